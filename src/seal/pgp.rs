//! Encrypting what is handed out for the OpenPGP key of whoever gets it (RFC 9580), as Vault does.
//!
//! The plaintext is the text of a share in hexadecimal, or of a token. The message is of the old container (SEIPD
//! version 1, AES-256), which every GnuPG in use can read.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use pgp::{
    composed::{Deserializable as _, MessageBuilder, SignedPublicKey},
    crypto::sym::SymmetricKeyAlgorithm,
    packet::{Signature, SignatureType},
    types::{EncryptionKey, KeyDetails, Timestamp},
};
use rand_core::OsRng;

use super::share::Share;
use crate::secret::SecretString;

/// Bytes of a key at most: one with many signatures on it has tens of KiB.
const MAX_KEY_LEN: usize = 256 * 1024;

/// Why a key cannot be encrypted for. The beginnings are Vault's.
#[derive(Debug, thiserror::Error)]
pub enum PgpError {
    /// Not base64.
    #[error("error decoding given PGP key: {0}")]
    Encoding(#[from] base64::DecodeError),
    /// Not an OpenPGP certificate, or one whose signatures are not its own.
    #[error("error parsing given PGP key: {0}")]
    Malformed(String),
    /// Revoked, expired, or made for signing alone.
    #[error("error parsing given PGP key: {fingerprint}: {why}; export a key that can be encrypted for")]
    Unusable {
        /// Of its primary key, in hexadecimal.
        fingerprint: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// An OpenPGP certificate with a key in it that can be encrypted for.
pub struct PgpKey {
    certificate: SignedPublicKey,
    /// Which subkey; the primary key if none.
    subkey: Option<usize>,
}

impl PgpKey {
    /// Reads the base64 of a binary certificate, as `gpg --export` writes it.
    ///
    /// Guarantees that the key encrypts: it is tried.
    ///
    /// # Errors
    /// [`PgpError`], by what is wrong with the key.
    pub fn parse(text: &str) -> Result<Self, PgpError> {
        let malformed = |why: &dyn std::fmt::Display| PgpError::Malformed(why.to_string());
        let bytes = STANDARD.decode(text.trim())?;
        if bytes.len() > MAX_KEY_LEN {
            return Err(malformed(&format_args!("{} bytes are more than {MAX_KEY_LEN}", bytes.len())));
        }
        let certificate = SignedPublicKey::from_bytes(bytes.as_slice()).map_err(|e| malformed(&e))?;
        let now = Timestamp::now();
        let subkey = chosen(&certificate, now).map_err(|why| PgpError::Unusable {
            fingerprint: certificate.primary_key.fingerprint().to_string(),
            why,
        })?;
        let key = Self { certificate, subkey };
        key.encrypt("").map_err(|e| malformed(&e))?;
        Ok(key)
    }

    /// The fingerprint of the primary key in lower-case hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.certificate.primary_key.fingerprint().to_string()
    }

    /// A binary message that only the key's owner reads.
    ///
    /// # Errors
    /// What the library says; a key that was parsed has encrypted once.
    pub fn encrypt(&self, text: &str) -> Result<Vec<u8>, pgp::errors::Error> {
        match self.subkey.map(|at| &self.certificate.public_subkeys[at]) {
            Some(subkey) => encrypted(text, subkey),
            None => encrypted(text, &self.certificate.primary_key),
        }
    }
}

fn encrypted(text: &str, key: &impl EncryptionKey) -> Result<Vec<u8>, pgp::errors::Error> {
    let message = MessageBuilder::from_reader("", text.as_bytes());
    let mut message = message.seipd_v1(OsRng, SymmetricKeyAlgorithm::AES256);
    message.encrypt_to_key(OsRng, key)?;
    message.to_vec(OsRng)
}

/// The newest subkey that is meant for encryption and valid, or the primary key if it is meant for that.
fn chosen(certificate: &SignedPublicKey, now: Timestamp) -> Result<Option<usize>, &'static str> {
    let primary = &certificate.primary_key;
    let details = &certificate.details;
    if !details.revocation_signatures.is_empty() {
        return Err("the key is revoked");
    }
    certificate.details.verify_bindings(primary).map_err(|_| "a signature on the key is not its own")?;
    let own = details.users.iter().flat_map(|user| &user.signatures).chain(&details.direct_signatures);
    let own = newest(own.filter(|signature| signature.typ() != Some(SignatureType::CertRevocation)));
    if own.is_some_and(|own| expired(own, primary.created_at(), now)) {
        return Err("the key has expired");
    }
    let usable = |subkey: &&(usize, &pgp::composed::SignedPublicSubKey)| {
        let (_, subkey) = subkey;
        let revoked = subkey.signatures.iter().any(|s| s.typ() == Some(SignatureType::SubkeyRevocation));
        let binding = newest(subkey.signatures.iter());
        let meant = binding.is_some_and(|binding| {
            for_encryption(binding) && !expired(binding, subkey.key.created_at(), now)
        });
        let bound = || subkey.verify_bindings(primary).is_ok();
        !revoked && meant && subkey.key.algorithm().can_encrypt() && bound()
    };
    let subkeys: Vec<_> = certificate.public_subkeys.iter().enumerate().collect();
    let best = subkeys.iter().filter(usable).max_by_key(|(_, subkey)| subkey.key.created_at().as_secs());
    match best {
        Some((at, _)) => Ok(Some(*at)),
        None if primary.algorithm().can_encrypt() && own.is_some_and(for_encryption) => Ok(None),
        None => Err("no key in it is for encryption, valid and not expired"),
    }
}

fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>) -> Option<&'a Signature> {
    signatures.max_by_key(|signature| signature.created().map_or(0, Timestamp::as_secs))
}

fn for_encryption(signature: &Signature) -> bool {
    let flags = signature.key_flags();
    flags.encrypt_comms() || flags.encrypt_storage()
}

fn expired(signature: &Signature, created: Timestamp, now: Timestamp) -> bool {
    let lives = signature.key_expiration_time().map_or(0, |lives| lives.as_secs());
    lives > 0 && u64::from(created.as_secs()) + u64::from(lives) <= u64::from(now.as_secs())
}

/// The keys of those who get shares.
///
/// # Errors
/// In Vault's words: a key that is none, or not one for each share.
pub fn holders(keys: &[String], shares: u64) -> Result<Vec<PgpKey>, String> {
    if !keys.is_empty() && keys.len() as u64 != shares {
        return Err("count mismatch between number of provided PGP keys and number of shares".to_owned());
    }
    keys.iter().map(|key| PgpKey::parse(key).map_err(|error| error.to_string())).collect()
}

/// Shares in the two forms in which they are handed out, once.
#[derive(Default)]
pub struct HandedOut {
    /// In hexadecimal.
    pub hex: Vec<SecretString>,
    /// The same in base64.
    pub base64: Vec<SecretString>,
}

impl HandedOut {
    /// The shares as they are, or each encrypted for its holder.
    ///
    /// # Errors
    /// As [`PgpKey::encrypt`].
    pub fn new(shares: &[Share], holders: &[PgpKey]) -> Result<Self, pgp::errors::Error> {
        if holders.is_empty() {
            let hex = shares.iter().map(Share::to_hex).collect();
            return Ok(Self { hex, base64: shares.iter().map(Share::to_base64).collect() });
        }
        let mut out = Self::default();
        for (share, holder) in shares.iter().zip(holders) {
            let message = holder.encrypt(share.to_hex().expose())?;
            out.hex.push(SecretString::new(hex::encode(&message)));
            out.base64.push(SecretString::new(STANDARD.encode(&message)));
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_is_refused_in_the_words_of_vault() {
        let refused = |text: &str| PgpKey::parse(text).err().unwrap().to_string();
        assert!(refused("***").starts_with("error decoding given PGP key: "));
        assert!(refused("").starts_with("error parsing given PGP key: "));
        assert!(refused("AAAA").starts_with("error parsing given PGP key: "));
        assert!(refused(&STANDARD.encode(vec![0x99; MAX_KEY_LEN + 1])).contains("more than 262144"));
        assert!(holders(&["AAAA".to_owned()], 2).err().unwrap().starts_with("count mismatch"));
        assert!(holders(&[], 2).unwrap().is_empty());
    }
}

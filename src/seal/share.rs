//! A share as a key holder keeps it and types it in.
//!
//! 48 bytes: version `1`, root generation `[4]`, vault tag `[6]`, x `[1]`, y `[32]`, checksum `[4]`, written as hex
//! or base64. The checksum is the start of SHA-256 over what is before it: a CRC is linear like the sharing itself,
//! and those of some shares would then tell about the others. The 33 bytes `x y` alone are accepted too.
//!
//! The text codecs read tables at places that depend on the share, which the arithmetic never does; a share is
//! decoded once, on the node it is entered at.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::shamir::SharePoint;
use crate::barrier::VaultId;
use crate::secret::{SecretString, ShareBytes, on_wiped_stack};

const VERSION: u8 = 1;
const LEN: usize = 48;
const BARE_LEN: usize = 33;
const CHECKED_LEN: usize = 44;
/// Shorter hex is no share by any reading, so that it may be meant as base64.
const SHORTEST_HEX: usize = 16;

/// The six bytes by which a share of this vault is told from one of another.
#[must_use]
pub fn vault_tag(vault_id: VaultId) -> [u8; 6] {
    let hash = Sha256::new().chain_update("keystead/v1/vault-tag").chain_update(vault_id.0).finalize();
    *hash.first_chunk().expect("SHA-256 is longer than six bytes")
}

/// What a full share says about where it comes from. It is a claim; only the verifiers prove it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareOrigin {
    /// Generation of the root key it opens.
    pub generation: u32,
    /// See [`vault_tag`].
    pub vault_tag: [u8; 6],
}

/// One share of the key that wraps the root key.
pub struct Share {
    /// Where it comes from; a bare share does not say.
    pub origin: Option<ShareOrigin>,
    /// The point it stands for; its x is not 0.
    pub point: SharePoint,
}

/// Why a text is no share. None of the messages repeats any of it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareTextError {
    /// Neither encoding fits.
    #[error("'key' must be a valid hex or base64 string")]
    NotHexOrBase64,
    /// It decodes, to another length than a share has.
    #[error(
        "a share has 48 bytes (33 in its bare form), this has {len}; was a part of it left out or entered twice?"
    )]
    WrongLength {
        /// Length in bytes of what was decoded.
        len: usize,
    },
    /// The length is right, the checksum is not.
    #[error("the share's checksum is wrong: it was mistyped; enter it again")]
    BadChecksum,
    /// A share at x = 0 would be the secret itself.
    #[error("not a share: its number is 0, and shares are numbered from 1")]
    ZeroX,
    /// A format this version does not know.
    #[error(
        "the share has format {version}, of which this version of Keystead knows nothing; use a newer one"
    )]
    UnknownVersion {
        /// The format it names.
        version: u8,
    },
}

impl Share {
    /// Makes the full share of `point` for a root generation of a vault.
    #[must_use]
    pub fn new(vault_id: VaultId, generation: u32, point: SharePoint) -> Self {
        Self { origin: Some(ShareOrigin { generation, vault_tag: vault_tag(vault_id) }), point }
    }

    /// Reads a share from hex or base64, whitespace around it ignored.
    ///
    /// Text of hex digits alone is hex, unless that gives fewer than 16 bytes (as Vault has it: `abcd` is three bytes
    /// of base64). A share's base64 cannot be taken for hex, short of a chance of one in 10^20.
    ///
    /// # Errors
    /// [`ShareTextError`]; it never contains the text.
    pub fn parse(text: &str) -> Result<Self, ShareTextError> {
        on_wiped_stack(|| Self::parse_trimmed(text.trim()))
    }

    fn parse_trimmed(text: &str) -> Result<Self, ShareTextError> {
        // Decoded into their full length at once: growing would leave parts behind in freed memory.
        let mut bytes = Zeroizing::new(vec![0; text.len() / 2]);
        if hex::decode_to_slice(text, &mut bytes).is_ok() && bytes.len() >= SHORTEST_HEX {
            return Self::decode(&bytes);
        }
        let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(text.len())]);
        let len = STANDARD.decode_slice(text, &mut bytes).map_err(|_| ShareTextError::NotHexOrBase64)?;
        Self::decode(&bytes[..len])
    }

    /// Reads a share from its bytes, in full or bare.
    ///
    /// # Errors
    /// [`ShareTextError`], of which [`ShareTextError::NotHexOrBase64`] cannot occur.
    pub fn decode(bytes: &[u8]) -> Result<Self, ShareTextError> {
        if let Ok(bare) = <&[u8; BARE_LEN]>::try_from(bytes) {
            return Ok(Self { origin: None, point: point(bare)? });
        }
        if bytes.len() != LEN {
            return Err(ShareTextError::WrongLength { len: bytes.len() });
        }
        let (checked, sum) = bytes.split_at(CHECKED_LEN);
        // The checksum before the version: a mistyped version digit is more likely than a share from the future,
        // and a future format of this length keeps the checksum where it is.
        if !bool::from(checksum(checked).ct_eq(sum)) {
            return Err(ShareTextError::BadChecksum);
        }
        if checked[0] != VERSION {
            return Err(ShareTextError::UnknownVersion { version: checked[0] });
        }
        let (claims, core) =
            checked[1..].split_first_chunk::<10>().expect("43 bytes have ten at their front");
        let (generation, vault_tag) = claims.split_first_chunk().expect("ten bytes have four at their front");
        let origin = ShareOrigin {
            generation: u32::from_be_bytes(*generation),
            vault_tag: vault_tag.try_into().expect("six of the ten bytes are left"),
        };
        Ok(Self {
            origin: Some(origin),
            point: point(core.try_into().expect("33 of the 43 bytes are left"))?,
        })
    }

    /// The bytes of the share: 48, or 33 of a bare one.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(LEN));
        if let Some(origin) = &self.origin {
            bytes.push(VERSION);
            bytes.extend_from_slice(&origin.generation.to_be_bytes());
            bytes.extend_from_slice(&origin.vault_tag);
        }
        bytes.push(self.point.x);
        bytes.extend_from_slice(self.point.y.expose());
        if self.origin.is_some() {
            let sum = checksum(&bytes);
            bytes.extend_from_slice(&sum);
        }
        bytes
    }

    /// The share in lower-case hex.
    #[must_use]
    pub fn to_hex(&self) -> SecretString {
        SecretString::new(hex::encode(&*self.encode()))
    }

    /// The share in base64 (RFC 4648 section 4, padded).
    #[must_use]
    pub fn to_base64(&self) -> SecretString {
        SecretString::new(STANDARD.encode(&*self.encode()))
    }
}

fn point(core: &[u8; BARE_LEN]) -> Result<SharePoint, ShareTextError> {
    let (x, y) = core.split_first().expect("a core has 33 bytes");
    if *x == 0 {
        return Err(ShareTextError::ZeroX);
    }
    Ok(SharePoint { x: *x, y: ShareBytes::from_bytes(y.try_into().expect("32 of the 33 bytes are left")) })
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    *Sha256::digest(bytes).first_chunk().expect("SHA-256 is longer than four bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([7; 16]);

    fn share() -> Share {
        Share::new(VAULT, 3, SharePoint { x: 2, y: ShareBytes::from_bytes(&[0xD5; 32]) })
    }

    fn assert_same(parsed: Result<Share, ShareTextError>) {
        let parsed = parsed.unwrap();
        assert_eq!(*parsed.encode(), *share().encode());
        assert_eq!(parsed.origin, share().origin);
    }

    #[test]
    fn format_is_the_written_one() {
        let hex = share().to_hex();
        assert_eq!(
            hex.expose(),
            "0100000003f23c187d52b002d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d5d512626db4"
        );
        assert_eq!(share().to_base64().len(), 64);
    }

    #[test]
    fn hex_and_base64_in_any_dress_are_the_same_share() {
        let (hex, base64) = (share().to_hex(), share().to_base64());
        assert_same(Share::parse(hex.expose()));
        assert_same(Share::parse(&hex.expose().to_uppercase()));
        assert_same(Share::parse(base64.expose()));
        assert_same(Share::parse(&format!(" \t{}\r\n", base64.expose())));
        assert_same(Share::parse(&format!("\n{} ", hex.expose())));
    }

    #[test]
    fn bare_core_is_accepted_in_both_encodings() {
        let bare = Share { origin: None, ..share() };
        assert_eq!(bare.encode().len(), 33);
        for text in [bare.to_hex(), bare.to_base64()] {
            let parsed = Share::parse(text.expose()).unwrap();
            assert_eq!(parsed.origin, None);
            assert_eq!(parsed.point.x, 2);
            assert!(parsed.point.y.ct_eq(&bare.point.y));
        }
    }

    #[test]
    fn no_other_length_is_accepted() {
        for len in (0..100).filter(|len| !matches!(len, 33 | 48)) {
            let bytes = vec![1_u8; len];
            assert_eq!(Share::decode(&bytes).err().unwrap(), ShareTextError::WrongLength { len });
            if len >= SHORTEST_HEX {
                assert_eq!(
                    Share::parse(&hex::encode(&bytes)).err().unwrap(),
                    ShareTextError::WrongLength { len }
                );
            }
            assert_eq!(
                Share::parse(&STANDARD.encode(&bytes)).err().unwrap(),
                ShareTextError::WrongLength { len }
            );
        }
    }

    #[test]
    fn short_text_is_hex_only_if_it_cannot_be_base64() {
        assert_eq!(Share::parse("abcd").err().unwrap(), ShareTextError::WrongLength { len: 3 });
        assert_eq!(Share::parse("00").err().unwrap(), ShareTextError::NotHexOrBase64);
        assert_eq!(Share::parse("not a share!").err().unwrap(), ShareTextError::NotHexOrBase64);
        assert_eq!(Share::parse("").err().unwrap(), ShareTextError::WrongLength { len: 0 });
    }

    #[test]
    fn every_mistyped_byte_is_seen_and_never_shown() {
        let bytes = share().encode();
        for n in 0..bytes.len() {
            let mut mistyped = bytes.clone();
            mistyped[n] ^= 4;
            let refused = Share::parse(&hex::encode(&*mistyped)).err().unwrap();
            assert_eq!(refused, ShareTextError::BadChecksum, "byte {n}");
            assert!(!refused.to_string().contains("d5"));
        }
    }

    #[test]
    fn unknown_version_and_zero_x_are_refused_with_a_right_checksum() {
        let with = |at: usize, value: u8| {
            let mut bytes = share().encode();
            bytes[at] = value;
            let sum = checksum(&bytes[..CHECKED_LEN]);
            bytes[CHECKED_LEN..].copy_from_slice(&sum);
            Share::decode(&bytes).err().unwrap()
        };
        assert_eq!(with(0, 2), ShareTextError::UnknownVersion { version: 2 });
        assert_eq!(with(11, 0), ShareTextError::ZeroX);
        assert_eq!(Share::decode(&[0; 33]).err().unwrap(), ShareTextError::ZeroX);
    }
}

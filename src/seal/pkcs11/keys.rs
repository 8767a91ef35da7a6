//! The wrapping keys of a token: which there are, which is the current one, and how a new one is made.
//!
//! Keys are found anew for every call: handles are renumbered by a login, and the number of one key may then be that of
//! another. A rotated key has the label of the one before it and an id of ours with a higher number in it; keys with ids
//! that others gave come before all of these.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};

use super::blob::{Blob, key_name};
use super::protocol::Failure;
use super::token::Token;
use crate::config::WrapMechanism;
use crate::secret::random_array;

/// What an id of ours begins with; the number follows, and 12 random bytes.
const ID_PREFIX: [u8; 2] = *b"ks";

const RSA_BITS: u64 = 3072;

/// The mechanisms, the best first.
const BY_PREFERENCE: [WrapMechanism; 3] =
    [WrapMechanism::AesGcm, WrapMechanism::AesKeyWrapPad, WrapMechanism::RsaPkcsOaep];

/// A wrapping key, as it was found a moment ago.
pub(super) struct Key {
    pub(super) mechanism: WrapMechanism,
    /// The secret or public key.
    pub(super) encrypts: ObjectHandle,
    /// The secret or private key.
    pub(super) decrypts: ObjectHandle,
    pub(super) id: Vec<u8>,
    pub(super) kcv: Vec<u8>,
    pub(super) never_left: bool,
}

/// A key object with what tells it from others.
struct Found {
    handle: ObjectHandle,
    id: Vec<u8>,
    kcv: Vec<u8>,
    never_left: bool,
    encrypts: bool,
    wraps: bool,
}

/// Whether a token can do it.
pub(super) fn offers(mechanisms: &[MechanismType], mechanism: WrapMechanism) -> bool {
    let wanted = match mechanism {
        WrapMechanism::AesGcm => MechanismType::AES_GCM,
        WrapMechanism::AesKeyWrapPad => MechanismType::AES_KEY_WRAP_PAD,
        WrapMechanism::RsaPkcsOaep => MechanismType::RSA_PKCS_OAEP,
    };
    mechanisms.contains(&wanted)
}

impl Token {
    /// The key by which the next KEK is wrapped.
    pub(super) fn current_key(&mut self) -> Result<Key, Failure> {
        let mut permitted = true;
        for mechanism in self.candidates()? {
            let found =
                self.private_keys(mechanism, &self.target.key_label, self.target.key_id.as_deref())?;
            if found.is_empty() {
                continue;
            }
            let newest = self.newest(found)?;
            let fits = match mechanism {
                WrapMechanism::AesGcm => newest.encrypts,
                WrapMechanism::AesKeyWrapPad => newest.wraps,
                WrapMechanism::RsaPkcsOaep => true,
            };
            if fits {
                self.key_was_found = true;
                let label = self.target.key_label.clone();
                return self.complete(mechanism, newest, &label);
            }
            permitted = false;
        }
        Err(self.no_key(permitted))
    }

    /// The key that a blob names; `None` if there is none.
    pub(super) fn key_of(&mut self, blob: &Blob) -> Result<Option<Key>, Failure> {
        let mut found = self.private_keys(blob.mechanism, &blob.key_label, Some(&blob.key_id))?;
        if found.len() > 1 {
            return Err(self.duplicates(&blob.key_label, &blob.key_id));
        }
        let Some(found) = found.pop() else { return Ok(None) };
        self.key_was_found = true;
        self.complete(blob.mechanism, found, &blob.key_label).map(Some)
    }

    /// The key that authenticates OAEP's wraps by the key of that id.
    pub(super) fn mac_key(&self, id: &[u8]) -> Result<ObjectHandle, Failure> {
        let label = self.target.hmac_key_label.as_ref().unwrap_or(&self.target.key_label);
        let id = match (&self.target.hmac_key_id, &self.target.hmac_key_label) {
            (Some(id), _) => Some(id.as_slice()),
            // A key of a label of its own is found by that alone.
            (None, Some(_)) => None,
            (None, None) => Some(id),
        };
        let mut found = Vec::new();
        for kind in [KeyType::GENERIC_SECRET, KeyType::SHA256_HMAC] {
            found.extend(self.find(ObjectClass::SECRET_KEY, kind, label, id)?);
        }
        match found.as_slice() {
            [key] => Ok(key.handle),
            [] => Err(Failure::NeedsOperator(format!(
                "OAEP needs a key for CKM_SHA256_HMAC beside the RSA key, since anybody can encrypt by that, and there is \
                 none of label \"{label}\"; make both with `keystead hsm init`, or name it with \"hmac_key_label\""
            ))),
            _ => Err(Failure::NeedsOperator(format!(
                "{} keys for CKM_SHA256_HMAC have the label \"{label}\"; name one with \"hmac_key_id\"",
                found.len()
            ))),
        }
    }

    /// How many wrapping keys have the label.
    pub(super) fn keys_of_label(&self, mechanism: WrapMechanism) -> Result<u32, Failure> {
        let found = self.private_keys(mechanism, &self.target.key_label, None)?;
        Ok(u32::try_from(found.len()).unwrap_or(u32::MAX))
    }

    /// Makes a wrapping key if there is none, or one more; then looks whether somebody else did so as well.
    pub(super) fn generate(&mut self, rotate: bool) -> Result<(), Failure> {
        match self.current_key() {
            Ok(_) if !rotate => return Ok(()),
            Err(Failure::NeedsOperator(_)) if !self.has_any_key()? => {}
            other => drop(other?),
        }
        if rotate && self.target.key_id.is_some() {
            return Err(Failure::NeedsOperator(
                "\"key_id\" names one key for good; take it out of the stanza to rotate, the label is enough"
                    .to_owned(),
            ));
        }
        let mechanism = match self.current_key() {
            Ok(key) => key.mechanism,
            Err(_) => *self.candidates()?.first().ok_or_else(|| self.no_mechanism())?,
        };
        let id = match &self.target.key_id {
            Some(id) => id.clone(),
            None => self.next_id(mechanism)?,
        };
        self.make(mechanism, &id)?;
        self.current_key().map(|_| ())
    }

    fn candidates(&self) -> Result<Vec<WrapMechanism>, Failure> {
        if let Some(mechanism) = self.target.mechanism {
            if !offers(&self.mechanisms, mechanism) {
                return Err(Failure::NeedsOperator(format!(
                    "token \"{}\" does not offer {}; take \"mechanism\" out to use the best that it does",
                    self.facts.label,
                    mechanism.name()
                )));
            }
            return Ok(vec![mechanism]);
        }
        Ok(BY_PREFERENCE.into_iter().filter(|mechanism| offers(&self.mechanisms, *mechanism)).collect())
    }

    fn no_mechanism(&self) -> Failure {
        Failure::NeedsOperator(format!(
            "token \"{}\" offers none of CKM_AES_GCM, CKM_AES_KEY_WRAP_PAD and CKM_RSA_PKCS_OAEP",
            self.facts.label
        ))
    }

    fn no_key(&self, permitted: bool) -> Failure {
        let label = &self.target.key_label;
        let token = &self.facts.label;
        if self.key_was_found {
            return Failure::Unavailable(format!("token \"{token}\" shows its key \"{label}\" no more"));
        }
        if !permitted {
            return Failure::NeedsOperator(format!(
                "the key \"{label}\" of token \"{token}\" may not be used to encrypt and decrypt, nor to wrap and unwrap"
            ));
        }
        let id =
            self.target.key_id.as_ref().map(|id| format!(" and id {}", hex::encode(id))).unwrap_or_default();
        Failure::NeedsOperator(format!(
            "token \"{token}\" has no key of label \"{label}\"{id}: it was deleted, or never made; make one with \
             `keystead hsm init`"
        ))
    }

    fn duplicates(&self, label: &str, id: &[u8]) -> Failure {
        Failure::NeedsOperator(format!(
            "token \"{}\" has several keys {}; delete all but one, or name one with \"key_id\"",
            self.facts.label,
            key_name(label, id)
        ))
    }

    /// The one with the highest number; two of the same are an error.
    fn newest(&self, mut found: Vec<Found>) -> Result<Found, Failure> {
        found.sort_by_key(|key| number(&key.id));
        let newest = found.pop().expect("the caller found at least one");
        if found.last().is_some_and(|other| number(&other.id) == number(&newest.id)) {
            return Err(self.duplicates(&self.target.key_label, &newest.id));
        }
        Ok(newest)
    }

    /// Whether there is a key that could be meant, even if it may not be used.
    fn has_any_key(&self) -> Result<bool, Failure> {
        for mechanism in self.candidates()? {
            let found =
                self.private_keys(mechanism, &self.target.key_label, self.target.key_id.as_deref())?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn next_id(&self, mechanism: WrapMechanism) -> Result<Vec<u8>, Failure> {
        let found = self.private_keys(mechanism, &self.target.key_label, None)?;
        let last = found.iter().map(|key| number(&key.id)).max().unwrap_or(0);
        let next = last.checked_add(1).ok_or_else(|| {
            Failure::NeedsOperator("the key was rotated 65535 times; use another label".to_owned())
        })?;
        Ok([ID_PREFIX.as_slice(), &next.to_be_bytes(), &random_array::<12>()].concat())
    }

    fn private_keys(
        &self,
        mechanism: WrapMechanism,
        label: &str,
        id: Option<&[u8]>,
    ) -> Result<Vec<Found>, Failure> {
        match mechanism {
            WrapMechanism::RsaPkcsOaep => self.find(ObjectClass::PRIVATE_KEY, KeyType::RSA, label, id),
            _ => self.find(ObjectClass::SECRET_KEY, KeyType::AES, label, id),
        }
    }

    fn find(
        &self,
        class: ObjectClass,
        kind: KeyType,
        label: &str,
        id: Option<&[u8]>,
    ) -> Result<Vec<Found>, Failure> {
        let session = self.session()?;
        let mut template = vec![
            Attribute::Token(true),
            Attribute::Class(class),
            Attribute::KeyType(kind),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        template.extend(id.map(|id| Attribute::Id(id.to_vec())));
        let wanted = [
            AttributeType::Id,
            AttributeType::CheckValue,
            AttributeType::AlwaysSensitive,
            AttributeType::NeverExtractable,
            AttributeType::Encrypt,
            AttributeType::Wrap,
        ];
        let mut found = Vec::new();
        for handle in session.find_objects(&template)? {
            let mut key = Found {
                handle,
                id: Vec::new(),
                kcv: Vec::new(),
                never_left: true,
                encrypts: false,
                wraps: false,
            };
            for attribute in session.get_attributes(handle, &wanted)? {
                match attribute {
                    Attribute::Id(id) => key.id = id,
                    Attribute::CheckValue(kcv) => key.kcv = kcv,
                    Attribute::AlwaysSensitive(yes) | Attribute::NeverExtractable(yes) => {
                        key.never_left &= yes
                    }
                    Attribute::Encrypt(yes) => key.encrypts = yes,
                    Attribute::Wrap(yes) => key.wraps = yes,
                    _ => {}
                }
            }
            found.push(key);
        }
        Ok(found)
    }

    /// The other half of a pair of keys.
    fn complete(&self, mechanism: WrapMechanism, found: Found, label: &str) -> Result<Key, Failure> {
        let encrypts = match mechanism {
            WrapMechanism::RsaPkcsOaep => {
                let public = self.find(ObjectClass::PUBLIC_KEY, KeyType::RSA, label, Some(&found.id))?;
                match public.as_slice() {
                    [key] => key.handle,
                    [] => {
                        return Err(Failure::NeedsOperator(format!(
                            "the public key of {} is not on the token; import it beside the private one",
                            key_name(label, &found.id)
                        )));
                    }
                    _ => return Err(self.duplicates(label, &found.id)),
                }
            }
            _ => found.handle,
        };
        Ok(Key {
            mechanism,
            encrypts,
            decrypts: found.handle,
            id: found.id,
            kcv: found.kcv,
            never_left: found.never_left,
        })
    }

    fn make(&self, mechanism: WrapMechanism, id: &[u8]) -> Result<(), Failure> {
        let session = self.open_session(true)?;
        let label = || Attribute::Label(self.target.key_label.as_bytes().to_vec());
        let id = || Attribute::Id(id.to_vec());
        let kept = || {
            vec![
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Modifiable(false),
                id(),
            ]
        };
        if mechanism != WrapMechanism::RsaPkcsOaep {
            let mut template = kept();
            template.extend([
                label(),
                Attribute::ValueLen(32_u64.into()),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::Wrap(true),
                Attribute::Unwrap(true),
            ]);
            session.generate_key(&Mechanism::AesKeyGen, &template)?;
            return Ok(());
        }
        // The MAC's key first: a pair without one would be found, and be of no use.
        if self.target.hmac_key_label.is_none() && self.target.hmac_key_id.is_none() {
            let mut template = kept();
            template.extend([
                label(),
                Attribute::ValueLen(32_u64.into()),
                Attribute::Sign(true),
                Attribute::Verify(true),
            ]);
            session.generate_key(&Mechanism::GenericSecretKeyGen, &template)?;
        }
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Modifiable(false),
            Attribute::Encrypt(true),
            Attribute::ModulusBits(RSA_BITS.into()),
            Attribute::PublicExponent(vec![1, 0, 1]),
            label(),
            id(),
        ];
        let mut private = kept();
        private.extend([label(), Attribute::Decrypt(true)]);
        session.generate_key_pair(&Mechanism::RsaPkcsKeyPairGen, &public, &private)?;
        Ok(())
    }
}

/// The number in an id of ours; 0 in any other.
fn number(id: &[u8]) -> u16 {
    match id.strip_prefix(&ID_PREFIX) {
        Some([high, low, rest @ ..]) if rest.len() == 12 => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_from_ids_of_ours_only() {
        let id = |number: [u8; 2]| [ID_PREFIX.as_slice(), &number, &[9; 12]].concat();
        assert_eq!((number(&id([0, 1])), number(&id([1, 0]))), (1, 256));
        assert_eq!((number(b""), number(b"ks"), number(&id([0, 1])[..15])), (0, 0, 0));
        assert_eq!(number(&[id([0, 1]).as_slice(), &[0]].concat()), 0);
    }
}

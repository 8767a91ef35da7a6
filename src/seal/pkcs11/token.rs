//! A token, seen from inside the helper process: finding it, logging in, and what is wrapped and unwrapped by its keys.

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::blob::{Blob, key_name};
use super::fault::{describe, is_about_parameters};
use super::keys::{Key, offers};
use super::protocol::{Failure, KeyFacts, Target, TokenFacts, Wiped};
use crate::config::{OaepHash, WrapMechanism};
use crate::secret::{Kek, fill_random, random_array};

const HASH_LEN: usize = 32;
const IV_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// A token whose module is loaded; with a session once somebody logged in.
pub(super) struct Token {
    pub(super) pkcs11: Pkcs11,
    pub(super) slot: Slot,
    pub(super) target: Target,
    pub(super) facts: TokenFacts,
    pub(super) mechanisms: Vec<MechanismType>,
    session: Option<Session>,
    has_generator: bool,
    /// A key was found since the login: if none is found after that, it is the token that is gone.
    pub(super) key_was_found: bool,
}

impl Token {
    /// Loads the module and finds the token.
    pub(super) fn open(target: Target) -> Result<(Self, TokenFacts), Failure> {
        let pkcs11 = Pkcs11::new(&target.lib).map_err(|error| match error {
            // The text of the dynamic linker repeats the path.
            Error::LibraryLoading(_) | Error::MissingSymbol(_) => Failure::from(error),
            other => Failure::Unavailable(format!("the module does not load: {}", describe(&other))),
        })?;
        pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(|error| {
            Failure::Unavailable(format!(
                "the module does not start: {}; check its own configuration, and who may read it",
                describe(&error)
            ))
        })?;
        let (slot, info) = select(&pkcs11, &target)?;
        let module = pkcs11.get_library_info()?;
        let facts = TokenFacts {
            module: format!("{} {}", module.library_description().trim(), module.library_version()),
            label: info.label().to_owned(),
            serial: info.serial_number().to_owned(),
            model: format!("{} {}", info.manufacturer_id(), info.model()).trim().to_owned(),
            slot: slot.id(),
            pin_count_low: info.user_pin_count_low(),
            pin_final_try: info.user_pin_final_try(),
            pin_locked: info.user_pin_locked(),
            pin_initialized: info.user_pin_initialized(),
        };
        let mechanisms = pkcs11.get_mechanism_list(slot)?;
        let token = Self {
            pkcs11,
            slot,
            target,
            facts: facts.clone(),
            mechanisms,
            session: None,
            has_generator: info.rng(),
            key_was_found: false,
        };
        Ok((token, facts))
    }

    /// Opens the one session and logs in.
    pub(super) fn login(&mut self, pin: &Wiped) -> Result<(), Failure> {
        let session = self.open_session(self.target.force_rw_session)?;
        let text = std::str::from_utf8(&pin.0)
            .map_err(|_| Failure::NeedsOperator("the PIN is no UTF-8 text".to_owned()))?;
        match session.login(UserType::User, Some(&AuthPin::from(text.to_owned()))) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            Err(error) => return Err(error.into()),
        }
        self.session = Some(session);
        Ok(())
    }

    pub(super) fn open_session(&self, read_write: bool) -> Result<Session, Failure> {
        let session = if read_write {
            self.pkcs11.open_rw_session(self.slot)
        } else {
            self.pkcs11.open_ro_session(self.slot)
        };
        Ok(session?)
    }

    pub(super) fn session(&self) -> Result<&Session, Failure> {
        self.session
            .as_ref()
            .ok_or_else(|| Failure::Unavailable("nobody is logged in to the token".to_owned()))
    }

    /// Puts a new session in the place of one in which something failed; the login is the token's and stays.
    fn renew_session(&mut self) -> Result<(), Failure> {
        self.session = Some(self.open_session(self.target.force_rw_session)?);
        Ok(())
    }

    /// Encrypts with the current key, and compares what comes out again.
    pub(super) fn encrypt(&mut self, kek: &Wiped, aad: &[u8]) -> Result<(String, Vec<u8>), Failure> {
        let key = self.current_key()?;
        let blob = self.wrap(&key, kek, aad)?;
        let again = self.unwrap(&key, &blob, aad)?;
        if !bool::from(again.0.ct_eq(&kek.0)) {
            return Err(Failure::Unavailable(
                "the token gave back something else than it was given".to_owned(),
            ));
        }
        let bytes = blob.encode();
        let bytes =
            bytes.ok_or_else(|| Failure::Unavailable("the token made far too much of a key".to_owned()))?;
        Ok((blob.key_name(), bytes))
    }

    /// Decrypts a blob with the key that it names.
    pub(super) fn decrypt(&mut self, bytes: &[u8], aad: &[u8]) -> Result<Wiped, Failure> {
        let not_ours = |text: String| Failure::NotOurs(text);
        let blob = Blob::decode(bytes)
            .ok_or_else(|| not_ours("this is no wrap of a PKCS#11 seal, or a newer one".to_owned()))?;
        let name = blob.key_name();
        if !offers(&self.mechanisms, blob.mechanism) {
            return Err(not_ours(format!(
                "the token does not offer {}, by which this was wrapped",
                blob.mechanism.name()
            )));
        }
        let Some(key) = self.key_of(&blob)? else {
            // Is it this key that is gone, or every one? The current one says so.
            self.current_key()?;
            return Err(not_ours(format!(
                "token \"{}\" has no key {name}: it was deleted, or another token wrapped this",
                self.facts.label
            )));
        };
        if !blob.kcv.is_empty() && !key.kcv.is_empty() && blob.kcv != key.kcv {
            return Err(not_ours(format!("the key {name} is another one than that which wrapped this")));
        }
        let failed = match self.unwrap(&key, &blob, aad) {
            Ok(kek) => return Ok(kek),
            Err(failure) => failure,
        };
        // A bad tag and a token that is gone give the same code; only one of them can still wrap.
        self.renew_session()?;
        self.canary(&key).map_err(|_| match &failed {
            Failure::NotOurs(text) => Failure::Unavailable(text.clone()),
            other => other.clone(),
        })?;
        let why = match &failed {
            Failure::Unavailable(text)
            | Failure::NeedsOperator(text)
            | Failure::NotOurs(text)
            | Failure::PinRefused(text) => text,
        };
        Err(not_ours(format!(
            "this was not wrapped by key {name} of token \"{}\", or was altered ({why})",
            self.facts.label
        )))
    }

    fn canary(&self, key: &Key) -> Result<(), Failure> {
        let random = Wiped(random_array::<{ Kek::LEN }>().to_vec());
        let blob = self.wrap(key, &random, b"canary")?;
        self.unwrap(key, &blob, b"canary").map(|_| ())
    }

    /// Bytes of the token's generator.
    pub(super) fn random(&mut self, len: u32) -> Result<Option<Wiped>, Failure> {
        if !self.has_generator {
            return Ok(None);
        }
        let mut bytes = Wiped(vec![0; usize::try_from(len.min(4096)).unwrap_or(4096)]);
        self.session()?.generate_random_slice(&mut bytes.0)?;
        Ok(Some(bytes))
    }

    /// What is known of the current key.
    pub(super) fn facts(&mut self) -> Result<KeyFacts, Failure> {
        let key = match self.current_key() {
            Ok(key) => key,
            Err(Failure::NeedsOperator(missing)) => return Ok(KeyFacts { missing, ..KeyFacts::default() }),
            Err(other) => return Err(other),
        };
        Ok(KeyFacts {
            key_id: key_name(&self.target.key_label, &key.id),
            mechanism: key.mechanism.name().to_owned(),
            kcv: hex::encode(&key.kcv),
            keys_of_label: self.keys_of_label(key.mechanism)?,
            never_left: key.never_left,
            missing: String::new(),
        })
    }

    fn wrap(&self, key: &Key, kek: &Wiped, aad: &[u8]) -> Result<Blob, Failure> {
        let session = self.session()?;
        let mut blob = Blob {
            mechanism: key.mechanism,
            oaep_hash: None,
            key_label: self.target.key_label.clone(),
            key_id: key.id.clone(),
            kcv: key.kcv.clone(),
            serial: self.facts.serial.clone(),
            iv: Vec::new(),
            ciphertext: Vec::new(),
            mac: Vec::new(),
        };
        match key.mechanism {
            WrapMechanism::AesGcm => {
                let bound = blob.bound(aad);
                (blob.iv, blob.ciphertext) = gcm_encrypt(session, key.encrypts, &kek.0, &bound)?;
            }
            WrapMechanism::AesKeyWrapPad => {
                let bound = blob.bound_hash(aad);
                blob.ciphertext = wrap_object(session, key.encrypts, &kek.0, &bound)?;
            }
            WrapMechanism::RsaPkcsOaep => {
                let configured = self.target.oaep_hash;
                let mut outcome = self.oaep(key, kek, aad, &mut blob, configured.unwrap_or(OaepHash::Sha256));
                if configured.is_none() && outcome.as_ref().is_err_and(is_about_parameters) {
                    outcome = self.oaep(key, kek, aad, &mut blob, OaepHash::Sha1);
                }
                blob.ciphertext = outcome.map_err(|error| match configured {
                    Some(hash) if is_about_parameters(&error) => Failure::NeedsOperator(format!(
                        "the token does not do OAEP with {}: set rsa_oaep_hash = \"sha1\", or take it out",
                        hash.name()
                    )),
                    _ => Failure::from(error),
                })?;
                blob.mac = self.mac(&blob, aad)?;
            }
        }
        Ok(blob)
    }

    fn oaep(
        &self,
        key: &Key,
        kek: &Wiped,
        aad: &[u8],
        blob: &mut Blob,
        hash: OaepHash,
    ) -> Result<Vec<u8>, Error> {
        blob.oaep_hash = Some(hash);
        let text = Zeroizing::new([kek.0.as_slice(), &blob.bound_hash(aad)].concat());
        // The session was there when the key was found.
        let session = self.session.as_ref().ok_or(Error::PinNotSet)?;
        session.encrypt(&Mechanism::RsaPkcsOaep(oaep_params(hash)), key.encrypts, &text)
    }

    fn unwrap(&self, key: &Key, blob: &Blob, aad: &[u8]) -> Result<Wiped, Failure> {
        let session = self.session()?;
        match blob.mechanism {
            WrapMechanism::AesGcm => {
                let mut iv = blob.iv.clone();
                if iv.is_empty() {
                    return Err(Failure::NotOurs("the wrap has no IV".to_owned()));
                }
                let bound = blob.bound(aad);
                let text = gcm(&mut iv, &bound, |mechanism| {
                    session.decrypt(mechanism, key.decrypts, &blob.ciphertext)
                })?;
                whole_kek(Wiped(text))
            }
            WrapMechanism::AesKeyWrapPad => {
                let text = unwrap_object(session, key.decrypts, &blob.ciphertext)?;
                bound_kek(&text, &blob.bound_hash(aad))
            }
            WrapMechanism::RsaPkcsOaep => {
                // First of all: anybody who has the public key can make the rest.
                let expected = self.mac(blob, aad)?;
                if !bool::from(expected.ct_eq(&blob.mac)) {
                    return Err(Failure::NotOurs(
                        "the token did not make this wrap: its MAC is another".to_owned(),
                    ));
                }
                let hash = blob.oaep_hash.unwrap_or(OaepHash::Sha256);
                let mechanism = Mechanism::RsaPkcsOaep(oaep_params(hash));
                let text = Wiped(session.decrypt(&mechanism, key.decrypts, &blob.ciphertext)?);
                bound_kek(&text, &blob.bound_hash(aad))
            }
        }
    }

    fn mac(&self, blob: &Blob, aad: &[u8]) -> Result<Vec<u8>, Failure> {
        let key = self.mac_key(&blob.key_id)?;
        Ok(self.session()?.sign(&Mechanism::Sha256Hmac, key, &blob.authenticated(aad))?)
    }
}

/// The token that fits every selector; exactly one.
fn select(pkcs11: &Pkcs11, target: &Target) -> Result<(Slot, TokenInfo), Failure> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for slot in pkcs11.get_slots_with_token()? {
        // A token that is gone must not hide the others.
        let Ok(info) = pkcs11.get_token_info(slot) else {
            seen.push(format!("slot {} without an answer", slot.id()));
            continue;
        };
        if !info.token_initialized() {
            continue;
        }
        let fits = target.slot.is_none_or(|wanted| wanted == slot.id())
            && target.token_label.as_deref().is_none_or(|wanted| wanted == info.label())
            && target.serial.as_deref().is_none_or(|wanted| wanted == info.serial_number());
        seen.push(format!("\"{}\" (serial {}, slot {})", info.label(), info.serial_number(), slot.id()));
        if fits {
            found.push((slot, info));
        }
    }
    let wanted = [
        target.token_label.as_ref().map(|label| format!("label \"{label}\"")),
        target.serial.as_ref().map(|serial| format!("serial number {serial}")),
        target.slot.map(|slot| format!("slot {slot}")),
    ];
    let wanted = wanted.into_iter().flatten().collect::<Vec<_>>().join(" and ");
    if found.len() > 1 {
        let all: Vec<_> = found
            .iter()
            .map(|(slot, info)| format!("serial {} in slot {}", info.serial_number(), slot.id()))
            .collect();
        return Err(Failure::NeedsOperator(format!(
            "several tokens have {wanted}: {}; name one with \"serial\"",
            all.join(", ")
        )));
    }
    found.pop().ok_or_else(|| {
        let seen = if seen.is_empty() { "no token at all".to_owned() } else { seen.join(", ") };
        Failure::Unavailable(format!("no token has {wanted}; the module shows {seen}"))
    })
}

/// Runs one call with GCM's parameters; the token may put another IV in the place of `iv`.
fn gcm(
    iv: &mut [u8],
    aad: &[u8],
    call: impl FnOnce(&Mechanism<'_>) -> Result<Vec<u8>, Error>,
) -> Result<Vec<u8>, Error> {
    let tag_bits = 128_u64.into();
    let params = GcmParams::new(iv, aad, tag_bits)?;
    call(&Mechanism::AesGcm(params))
}

/// The IV as the token left it, and the ciphertext with its tag.
///
/// A token that draws the IV itself either puts its own over ours, or takes nothing but zeros in that place.
fn gcm_encrypt(
    session: &Session,
    key: ObjectHandle,
    text: &[u8],
    aad: &[u8],
) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let mut iv = [0; IV_LEN];
    fill_random(&mut iv);
    let mut outcome = gcm(&mut iv, aad, |mechanism| session.encrypt(mechanism, key, text));
    if outcome.as_ref().is_err_and(is_about_parameters) {
        iv = [0; IV_LEN];
        outcome = gcm(&mut iv, aad, |mechanism| session.encrypt(mechanism, key, text));
        // What was encrypted under a fixed IV goes no further.
        if outcome.is_ok() && iv == [0; IV_LEN] {
            return Err(unknown_iv("takes no IV for AES-GCM, and shows none of its own"));
        }
    }
    let ciphertext = outcome?;
    if ciphertext.len() != text.len() + TAG_LEN {
        return Err(unknown_iv("puts something of its own into the output of AES-GCM"));
    }
    Ok((iv.to_vec(), ciphertext))
}

fn unknown_iv(what: &str) -> Failure {
    Failure::NeedsOperator(format!(
        "the token {what}; use mechanism = \"CKM_AES_KEY_WRAP_PAD\" or \"CKM_RSA_PKCS_OAEP\" with a key for it"
    ))
}

fn oaep_params(hash: OaepHash) -> PkcsOaepParams<'static> {
    let (hash, mask) = match hash {
        OaepHash::Sha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        OaepHash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        OaepHash::Sha384 => (MechanismType::SHA384, PkcsMgfType::MGF1_SHA384),
        OaepHash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
    };
    PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty())
}

/// What an object is that only this session sees, and that may be read.
fn session_object() -> [Attribute; 6] {
    [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

/// Wraps the KEK and the hash as one session object, which is gone when this ends.
fn wrap_object(session: &Session, key: ObjectHandle, kek: &[u8], bound: &[u8]) -> Result<Vec<u8>, Failure> {
    let mut template = session_object().to_vec();
    template.push(Attribute::Value([kek, bound].concat()));
    let object = session.create_object(&template);
    if let Some(Attribute::Value(value)) = template.last_mut() {
        value.zeroize();
    }
    let object = object?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrapPad, key, object);
    let destroyed = session.destroy_object(object);
    let wrapped = wrapped?;
    destroyed?;
    Ok(wrapped)
}

fn unwrap_object(session: &Session, key: ObjectHandle, wrapped: &[u8]) -> Result<Wiped, Failure> {
    let object = session.unwrap_key(&Mechanism::AesKeyWrapPad, key, wrapped, &session_object())?;
    let value = session.get_attributes(object, &[AttributeType::Value]);
    let destroyed = session.destroy_object(object);
    let value = value?.into_iter().find_map(|attribute| match attribute {
        Attribute::Value(value) => Some(Wiped(value)),
        _ => None,
    });
    destroyed?;
    value.ok_or_else(|| Failure::NeedsOperator("the token does not show what it unwrapped".to_owned()))
}

fn whole_kek(text: Wiped) -> Result<Wiped, Failure> {
    if text.0.len() == Kek::LEN {
        Ok(text)
    } else {
        Err(Failure::NotOurs("what is inside is no key".to_owned()))
    }
}

/// The KEK of a text that ends with the hash it is bound to.
fn bound_kek(text: &Wiped, bound: &[u8; HASH_LEN]) -> Result<Wiped, Failure> {
    match text.0.split_last_chunk::<HASH_LEN>() {
        Some((kek, hash)) if kek.len() == Kek::LEN && bool::from(hash.ct_eq(bound)) => {
            Ok(Wiped(kek.to_vec()))
        }
        _ => Err(Failure::NotOurs("it was wrapped for other fields".to_owned())),
    }
}

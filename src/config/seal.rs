//! The `seal` blocks: what opens the vault, besides or in place of Shamir shares.
//!
//! Parameters and variables have Vault's and OpenBao's names. The environment is looked at while a block is read, since
//! what the one lacks the other may give; a stanza that is read is complete.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::environment;
use super::error::{At, ConfigError, ConfigWarning};
use super::section::{Block, Keys, Section, Use, nearest, printable};
use super::value;
use crate::seal::SealKind;
use crate::secret::SecretString;

use Use::{InEffect, Pointless};

/// One `seal` block.
#[derive(Debug, Clone)]
pub struct SealStanza {
    /// Its name, unique among the stanzas: that of its kind if none is given. Part of every wrap, and so for good.
    pub name: String,
    /// What it is, and where.
    pub kind: SealStanzaKind,
    /// Seals are tried from the lowest number to the highest.
    pub priority: u32,
    /// It is migrated away from: it opens once more, and nothing new is wrapped by it.
    pub disabled: bool,
}

impl SealStanza {
    /// Its kind without the particulars.
    #[must_use]
    pub fn seal_kind(&self) -> SealKind {
        match self.kind {
            SealStanzaKind::Shamir => SealKind::Shamir,
            SealStanzaKind::Pkcs11(_) => SealKind::Pkcs11,
            SealStanzaKind::File(_) => SealKind::File,
        }
    }
}

/// The particulars of a [`SealStanza`].
#[derive(Debug, Clone)]
pub enum SealStanzaKind {
    /// `seal "shamir"`: key holders type shares in.
    Shamir,
    /// `seal "pkcs11"`: a token behind a module.
    Pkcs11(Box<Pkcs11Config>),
    /// `seal "file"`: a key in a file, for development only.
    File(FileSealConfig),
}

/// `seal "file"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSealConfig {
    /// Where the key lies.
    pub path: PathBuf,
}

/// `seal "pkcs11"`. At least one of slot, label and serial number is given, and all that are must fit.
#[derive(Debug, Clone)]
pub struct Pkcs11Config {
    /// The module, a shared library.
    pub lib: PathBuf,
    /// The slot's number. Slots may be renumbered; a label or serial number is better.
    pub slot: Option<u64>,
    /// The token's label.
    pub token_label: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// Where the PIN of the crypto user is.
    pub pin: PinSource,
    /// The wrapping key's `CKA_LABEL`.
    pub key_label: String,
    /// Its `CKA_ID`, if there are several keys of the label.
    pub key_id: Option<Vec<u8>>,
    /// How it wraps; the best that the token offers if not given.
    pub mechanism: Option<WrapMechanism>,
    /// The hash of OAEP; SHA-256, or SHA-1 where the token has nothing else, if not given.
    pub oaep_hash: Option<OaepHash>,
    /// The leader that initialises a vault makes the wrapping key if there is none.
    pub generate_key: bool,
    /// Open read-write sessions even where reading would do: some modules have no others.
    pub force_rw_session: bool,
    /// The `CKA_LABEL` of the key that authenticates OAEP's wraps; the wrapping key's if not given.
    pub hmac_key_label: Option<String>,
    /// Its `CKA_ID`.
    pub hmac_key_id: Option<Vec<u8>>,
    /// How long one call may take until the module counts as hung.
    pub timeout: Duration,
}

/// The label of the wrapping key where none is given.
pub const DEFAULT_KEY_LABEL: &str = "keystead";

/// How long one call of a module may take unless the stanza says otherwise.
pub const DEFAULT_SEAL_TIMEOUT: Duration = Duration::from_secs(10);

const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);

/// Where a PIN comes from.
#[derive(Clone)]
pub enum PinSource {
    /// It is in the configuration or its environment.
    Text(SecretString),
    /// It is the content of a file, without the blanks around it; read whenever the seal is opened.
    File(PathBuf),
}

/// Says which it is, and no PIN.
impl fmt::Debug for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(..)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

/// Bytes of a PIN's file at most.
const MAX_PIN_FILE_LEN: u64 = 4096;

impl PinSource {
    /// The PIN itself.
    ///
    /// # Errors
    /// What is wrong with its file. The PIN is no part of it.
    pub fn read(&self) -> Result<SecretString, String> {
        match self {
            Self::Text(pin) => Ok(pin.clone()),
            Self::File(path) => read_pin_file(path),
        }
    }
}

fn read_pin_file(path: &Path) -> Result<SecretString, String> {
    let cannot = |why: &dyn std::fmt::Display| format!("cannot read the PIN from {}: {why}", path.display());
    let len = fs::metadata(path).map_err(|error| cannot(&error))?.len();
    if len > MAX_PIN_FILE_LEN {
        return Err(cannot(&"the file is far too large to hold a PIN"));
    }
    let bytes = fs::read(path).map(Zeroizing::new).map_err(|error| cannot(&error))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| cannot(&"it is not UTF-8 text"))?.trim();
    if text.is_empty() {
        return Err(cannot(&"the file is empty"));
    }
    Ok(SecretString::new(text.to_owned()))
}

/// How a token wraps a key. Its place in this list is its number on the disk: a new one goes to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum WrapMechanism {
    /// `CKM_AES_GCM`.
    AesGcm,
    /// `CKM_AES_KEY_WRAP_PAD` (RFC 5649).
    AesKeyWrapPad,
    /// `CKM_RSA_PKCS_OAEP`, with an HMAC key beside it.
    RsaPkcsOaep,
}

impl WrapMechanism {
    /// The name in the standard.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "CKM_AES_GCM",
            Self::AesKeyWrapPad => "CKM_AES_KEY_WRAP_PAD",
            Self::RsaPkcsOaep => "CKM_RSA_PKCS_OAEP",
        }
    }

    /// Reads a number of the standard (`0x1087`) or a name, with or without `CKM_`.
    ///
    /// # Errors
    /// A phrase that follows the name of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = text.trim().to_ascii_uppercase();
        let name = name.strip_prefix("CKM_").unwrap_or(&name);
        let number = number(text).ok();
        match (number, name) {
            (Some(0x1087), _) | (_, "AES_GCM") => Ok(Self::AesGcm),
            (Some(0x210A), _) | (_, "AES_KEY_WRAP_PAD") => Ok(Self::AesKeyWrapPad),
            (Some(0x9), _) | (_, "RSA_PKCS_OAEP") => Ok(Self::RsaPkcsOaep),
            (Some(0x1 | 0x1082 | 0x1085 | 0x2109), _)
            | (_, "RSA_PKCS" | "AES_CBC" | "AES_CBC_PAD" | "AES_KEY_WRAP") => Err(format!(
                "names a mechanism that is not used here, for it cannot tell an altered wrap, or wraps other \
                 lengths; {WRITE_MECHANISM}"
            )),
            _ => Err(format!("names an unknown mechanism; {WRITE_MECHANISM}")),
        }
    }
}

const WRITE_MECHANISM: &str = "write \"CKM_AES_GCM\", \"CKM_AES_KEY_WRAP_PAD\" or \"CKM_RSA_PKCS_OAEP\", or leave \
                               it out for the best that the token offers";

/// The hash inside OAEP, and of its mask. Its place in this list is its number on the disk: a new one goes to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub enum OaepHash {
    /// SHA-1, which is all that some tokens have, and which does no harm in this place.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl OaepHash {
    /// The name as it is written in a stanza.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    /// Reads that name.
    ///
    /// # Errors
    /// A phrase that follows the name of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().replace('-', "").as_str() {
            "sha1" => Ok(Self::Sha1),
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            _ => Err("must be sha1, sha256, sha384 or sha512".to_owned()),
        }
    }
}

pub(super) const COMMON_KEYS: Keys = &[("name", InEffect), ("priority", InEffect), ("disabled", InEffect)];

pub(super) const PKCS11_KEYS: Keys = &[
    ("lib", InEffect),
    ("slot", InEffect),
    ("token_label", InEffect),
    ("serial", InEffect),
    ("pin", InEffect),
    ("pin_file", InEffect),
    ("key_label", InEffect),
    ("key_id", InEffect),
    ("mechanism", InEffect),
    ("rsa_oaep_hash", InEffect),
    ("generate_key", InEffect),
    ("force_rw_session", InEffect),
    ("hmac_key_label", InEffect),
    ("hmac_key_id", InEffect),
    ("timeout", InEffect),
    ("hmac_mechanism", Pointless("it is always CKM_SHA256_HMAC")),
    ("default_key_label", Pointless("every wrap names its key")),
    ("default_hmac_key_label", Pointless("every wrap names its key")),
    ("max_parallel", Pointless("one session does one call at a time, which a seal never exhausts")),
    ("rsa_encrypt_local", Pointless("the token encrypts, and authenticates what it encrypted")),
    (
        "disable_software_encryption",
        Pointless("nothing is encrypted outside of the token: it is always as if this were true"),
    ),
];

pub(super) const FILE_KEYS: Keys = &[("path", InEffect)];

/// Seals that Vault or OpenBao know, and our own.
const KINDS: &[&str] = &[
    "shamir",
    "pkcs11",
    "file",
    "transit",
    "awskms",
    "azurekeyvault",
    "gcpckms",
    "ocikms",
    "alicloudkms",
    "kmip",
    "static",
];

/// The prefixes of the variables of a PKCS#11 seal, the first that is set counts.
const HSM_PREFIXES: [&str; 3] = ["KEYSTEAD_HSM_", "VAULT_HSM_", "BAO_HSM_"];

/// The seals of the merged files, with the environment over them, by priority.
///
/// # Errors
/// The first thing that is wrong, with its place.
pub(super) fn read(
    section: &Section<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<SealStanza>, ConfigError> {
    let mut blocks: Vec<(&str, Block<'_>)> = Vec::new();
    for key in ["seal", "hsm"] {
        blocks.extend(section.labelled(key)?.into_iter().map(|block| (key, block)));
    }
    let mut opened = Vec::new();
    for (key, block) in &blocks {
        opened.push(open(key, block, warnings)?);
    }
    let environment = HsmEnvironment { env };
    let is_hsm = |stanza: &&Opened<'_>| stanza.kind == "pkcs11" && !stanza.disabled;
    let hsms = opened.iter().filter(is_hsm).count();
    if hsms > 1 {
        environment.refuse_among_several()?;
    }
    let mut stanzas: Vec<(Option<At>, SealStanza)> = Vec::new();
    for stanza in &opened {
        let overlaid = is_hsm(&stanza) && hsms == 1;
        stanzas.push((Some(stanza.at.clone()), stanza.read(&environment, overlaid, warnings)?));
    }
    stanzas.extend(environment.stanza(hsms, &opened)?.map(|stanza| (None, stanza)));
    for (index, (at, stanza)) in stanzas.iter().enumerate() {
        if stanzas[..index].iter().any(|(_, other)| other.name == stanza.name) {
            let message = format!(
                "a second seal is called \"{}\"; give each a name of its own: name = \"...\"",
                printable(&stanza.name)
            );
            return Err(at.as_ref().map_or_else(
                || ConfigError::Incomplete { message: message.clone() },
                |at| at.error(&message),
            ));
        }
    }
    let mut stanzas: Vec<SealStanza> = stanzas.into_iter().map(|(_, stanza)| stanza).collect();
    stanzas.sort_by_key(|stanza| stanza.priority);
    Ok(stanzas)
}

/// A PKCS#11 seal of the environment alone; `env` looks up a variable. See [`load_with_env`](super::load_with_env).
///
/// # Errors
/// What is wrong with a variable, or missing.
pub fn pkcs11_from_env(env: impl Fn(&str) -> Option<String>) -> Result<Pkcs11Config, ConfigError> {
    let environment = HsmEnvironment { env: &env };
    let settings = Settings { section: None, environment: &environment, overlaid: true };
    settings.pkcs11().map_err(|fault| match fault {
        SettingsFault::Config(error) => error,
        SettingsFault::Missing(message) => ConfigError::Incomplete { message },
    })
}

/// A block whose keys are known, and what every kind has.
struct Opened<'t> {
    kind: &'t str,
    at: At,
    section: Section<'t>,
    name: String,
    priority: u32,
    disabled: bool,
}

fn open<'t>(
    key: &str,
    block: &Block<'t>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Opened<'t>, ConfigError> {
    let kind = block.label;
    let title = format!("{key} \"{}\"", printable(kind));
    let keys: Keys = match kind {
        "shamir" => &[],
        "pkcs11" => PKCS11_KEYS,
        "file" => FILE_KEYS,
        known if KINDS.contains(&known) => {
            let text = format!("{title} is not built yet; take this block out to unseal with Shamir shares");
            return Err(block.at.error(text));
        }
        _ => {
            let hint = nearest(kind, KINDS.iter().copied()).map(|name| format!("; did you mean \"{name}\"?"));
            return Err(block.at.error(format!("unknown {title}{}", hint.unwrap_or_default())));
        }
    };
    let section = block.open(&title, &[COMMON_KEYS, keys], warnings)?;
    let name = section.parsed_text("name", |name| seal_name(name, kind))?.unwrap_or_else(|| kind.to_owned());
    let priority = section.parsed("priority", priority)?.unwrap_or(1);
    let disabled = section.boolean("disabled")?.unwrap_or(false);
    Ok(Opened { kind, at: block.at.clone(), section, name, priority, disabled })
}

/// Letters, digits, `-` and `_`; and no name that stands for a set of shares, unless it is that.
fn seal_name(text: &str, kind: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.len() > 64 || !text.bytes().all(legal) {
        return Err("must be up to 64 letters, digits, \"-\", \"_\" and \".\"".to_owned());
    }
    let reserved = ["shamir", "break-glass", "recovery"];
    if reserved.contains(&text) && text != kind {
        return Err(format!("must not be \"{text}\", which names shares"));
    }
    Ok(text.to_owned())
}

fn priority(text: &str) -> Result<u32, String> {
    let number = value::whole(text)?;
    u32::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| "must be 1 or greater".to_owned())
}

impl Opened<'_> {
    fn read(
        &self,
        environment: &HsmEnvironment<'_>,
        overlaid: bool,
        warnings: &mut Vec<ConfigWarning>,
    ) -> Result<SealStanza, ConfigError> {
        let kind = match self.kind {
            "shamir" => SealStanzaKind::Shamir,
            "file" => {
                let path = self.section.string("path")?;
                let path = path.ok_or_else(|| self.at.error("seal \"file\" needs \"path\""))?;
                let text = "seal \"file\" protects nothing: whoever reads its key opens the vault; it is for development";
                warnings.push(self.at.warning("seal", text));
                SealStanzaKind::File(FileSealConfig { path: PathBuf::from(path) })
            }
            _ => {
                let settings = Settings { section: Some(&self.section), environment, overlaid };
                let pkcs11 = settings.pkcs11().map_err(|fault| match fault {
                    SettingsFault::Config(error) => error,
                    SettingsFault::Missing(message) => self.at.error(message),
                })?;
                SealStanzaKind::Pkcs11(Box::new(pkcs11))
            }
        };
        Ok(SealStanza { name: self.name.clone(), kind, priority: self.priority, disabled: self.disabled })
    }
}

/// The variables of a PKCS#11 seal.
struct HsmEnvironment<'e> {
    env: &'e dyn Fn(&str) -> Option<String>,
}

impl HsmEnvironment<'_> {
    /// The variable of that suffix that counts, with its full name.
    fn variable(&self, suffix: &str) -> Option<(String, String)> {
        let names = HSM_PREFIXES.map(|prefix| format!("{prefix}{suffix}"));
        let set = names.into_iter().find_map(|name| (self.env)(&name).map(|value| (name, value)));
        set.filter(|(_, value)| !value.is_empty())
    }

    /// A variable without a prefix, which counts least of all.
    fn bare(&self, names: &[&str]) -> Option<(String, String)> {
        let set = names.iter().find_map(|name| (self.env)(name).map(|value| ((*name).to_owned(), value)));
        set.filter(|(_, value)| !value.is_empty())
    }

    /// The variables cannot say which of several stanzas they are about.
    fn refuse_among_several(&self) -> Result<(), ConfigError> {
        let suffixes = SUFFIXES.iter().map(|(_, suffix)| *suffix);
        let Some((name, _)) = suffixes.filter_map(|suffix| self.variable(suffix)).next() else {
            return Ok(());
        };
        let message = "is about one seal \"pkcs11\", and the files have several; unset it and write each stanza's own \
                       value, such as pin = \"env://NAME\" or pin_file = \"...\"";
        Err(ConfigError::Environment { name, message: message.to_owned() })
    }

    /// The stanza that is made of the environment alone.
    fn stanza(&self, hsms: usize, opened: &[Opened<'_>]) -> Result<Option<SealStanza>, ConfigError> {
        let kind = environment::lookup(&self.env, "SEAL_TYPE")
            .or_else(|| self.bare(&["BAO_SEAL_TYPE"]))
            .or_else(|| self.variable("TYPE"))
            .or_else(|| self.bare(&["HSM_TYPE"]).filter(|(_, kind)| kind == "pkcs11"));
        let Some((name, kind)) = kind else { return Ok(None) };
        let refused =
            |message: &str| ConfigError::Environment { name: name.clone(), message: message.to_owned() };
        match kind.as_str() {
            "pkcs11" if hsms > 0 => Ok(None),
            "pkcs11" => {
                let settings = Settings { section: None, environment: self, overlaid: true };
                let pkcs11 = settings.pkcs11().map_err(|fault| match fault {
                    SettingsFault::Config(error) => error,
                    SettingsFault::Missing(message) => refused(&format!("asks for a seal, but {message}")),
                })?;
                let kind = SealStanzaKind::Pkcs11(Box::new(pkcs11));
                Ok(Some(SealStanza { name: "pkcs11".to_owned(), kind, priority: 1, disabled: false }))
            }
            "shamir" if opened.iter().all(|stanza| stanza.kind == "shamir" || stanza.disabled) => Ok(None),
            "shamir" => Err(refused("says shamir, and the files have another seal; take one of them out")),
            _ => Err(refused("names a seal that is not built yet; unset it to unseal with Shamir shares")),
        }
    }
}

/// The keys that a variable may give, and its suffix.
const SUFFIXES: &[(&str, &str)] = &[
    ("lib", "LIB"),
    ("slot", "SLOT"),
    ("token_label", "TOKEN_LABEL"),
    ("serial", "SERIAL"),
    ("pin", "PIN"),
    ("pin_file", "PIN_FILE"),
    ("key_label", "KEY_LABEL"),
    ("key_id", "KEY_ID"),
    ("mechanism", "MECHANISM"),
    ("rsa_oaep_hash", "RSA_OAEP_HASH"),
    ("generate_key", "GENERATE_KEY"),
    ("force_rw_session", "FORCE_RW_SESSION"),
    ("hmac_key_label", "HMAC_KEY_LABEL"),
    ("hmac_key_id", "HMAC_KEY_ID"),
    ("timeout", "TIMEOUT"),
];

/// A block, or none, with the environment over it.
struct Settings<'s, 't> {
    section: Option<&'s Section<'t>>,
    environment: &'s HsmEnvironment<'s>,
    /// Whether the variables are about this block; what its `env://` names is looked up in any case.
    overlaid: bool,
}

enum SettingsFault {
    Config(ConfigError),
    /// What is nowhere, as a sentence about `seal "pkcs11"`.
    Missing(String),
}

impl From<ConfigError> for SettingsFault {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl Settings<'_, '_> {
    fn pkcs11(&self) -> Result<Pkcs11Config, SettingsFault> {
        let missing =
            |key: &str, or: &str| SettingsFault::Missing(format!("seal \"pkcs11\" needs \"{key}\"{or}"));
        let lib = self.text("lib", &["HSM_LIBRARY", "PKCS11_LIBRARY"])?;
        let lib = lib.ok_or_else(|| missing("lib", ", the path of the token's PKCS#11 module"))?;
        let token_label = self.text("token_label", &[])?;
        let serial = self.text("serial", &[])?;
        // A number without a prefix stands in only where nothing names the token.
        let bare: &[&str] = if token_label.is_none() && serial.is_none() { &["HSM_SLOT"] } else { &[] };
        let slot = self.parsed("slot", bare, number)?;
        if slot.is_none() && token_label.is_none() && serial.is_none() {
            return Err(missing("token_label", ", or \"serial\" or \"slot\""));
        }
        let pin = self.pin()?.ok_or_else(|| missing("pin", ", or \"pin_file\""))?;
        let key_label = self.text("key_label", &[])?.unwrap_or_else(|| DEFAULT_KEY_LABEL.to_owned());
        Ok(Pkcs11Config {
            lib: PathBuf::from(lib),
            slot,
            token_label,
            serial,
            pin,
            key_label,
            key_id: self.parsed("key_id", &[], key_id)?,
            mechanism: self.parsed("mechanism", &[], WrapMechanism::parse)?,
            oaep_hash: self.parsed("rsa_oaep_hash", &[], OaepHash::parse)?,
            generate_key: self.parsed("generate_key", &[], value::boolean)?.unwrap_or(false),
            force_rw_session: self.parsed("force_rw_session", &[], value::boolean)?.unwrap_or(false),
            hmac_key_label: self.text("hmac_key_label", &[])?,
            hmac_key_id: self.parsed("hmac_key_id", &[], key_id)?,
            timeout: self.parsed("timeout", &[], timeout)?.unwrap_or(DEFAULT_SEAL_TIMEOUT),
        })
    }

    fn pin(&self) -> Result<Option<PinSource>, ConfigError> {
        // A file that the environment names wins over a PIN that the file has, and the other way round.
        let from_environment = |key: &str| self.variable(key).is_some();
        let file_first = from_environment("pin_file") && !from_environment("pin");
        let of_file =
            || Ok::<_, ConfigError>(self.text("pin_file", &[])?.map(|path| PinSource::File(path.into())));
        if file_first {
            return of_file();
        }
        let both = |section: &&Section<'_>| section.at("pin").is_some() && section.at("pin_file").is_some();
        if let Some(section) = self.section.filter(both).filter(|_| !from_environment("pin")) {
            let at = section.at("pin_file").expect("the filter saw it");
            return Err(at.error("seal \"pkcs11\" has both \"pin\" and \"pin_file\"; keep one"));
        }
        let written = match self.variable("pin") {
            Some((_, text)) => Some(Zeroizing::new(text)),
            None => self.section.map(|section| section.secret("pin")).transpose()?.flatten(),
        };
        if let Some(text) = written.filter(|text| !text.is_empty()) {
            return self.pin_of(&text).map(Some);
        }
        if let Some(file) = of_file()? {
            return Ok(Some(file));
        }
        let bare = self.bare(&["HSM_PIN"]);
        Ok(bare.map(|(_, pin)| PinSource::Text(SecretString::new(pin))))
    }

    /// `file:///path` and `env://NAME` stand for what is there, as in Vault.
    fn pin_of(&self, text: &str) -> Result<PinSource, ConfigError> {
        if let Some(path) = text.strip_prefix("file://") {
            return Ok(PinSource::File(PathBuf::from(path)));
        }
        let Some(name) = text.strip_prefix("env://") else {
            return Ok(PinSource::Text(SecretString::new(text.to_owned())));
        };
        let value = (self.environment.env)(name).filter(|value| !value.is_empty()).map(SecretString::new);
        value.map(PinSource::Text).ok_or_else(|| ConfigError::Environment {
            name: printable(name),
            message: "is empty or not set, and the \"pin\" of seal \"pkcs11\" is to be read from it"
                .to_owned(),
        })
    }

    fn variable(&self, key: &str) -> Option<(String, String)> {
        let suffix = SUFFIXES.iter().find(|(name, _)| *name == key).map(|(_, suffix)| *suffix);
        suffix.filter(|_| self.overlaid).and_then(|suffix| self.environment.variable(suffix))
    }

    fn bare(&self, names: &[&str]) -> Option<(String, String)> {
        self.overlaid.then(|| self.environment.bare(names)).flatten()
    }

    fn text(&self, key: &str, bare: &[&str]) -> Result<Option<String>, ConfigError> {
        self.parsed(key, bare, |text| Ok(text.to_owned()))
    }

    fn parsed<T>(
        &self,
        key: &str,
        bare: &[&str],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let of_variable = |(name, text): (String, String)| {
            parse(&text).map(Some).map_err(|message| ConfigError::Environment { name, message })
        };
        if let Some(found) = self.variable(key) {
            return of_variable(found);
        }
        let of_file = self.section.map(|section| section.parsed_text(key, &parse)).transpose()?.flatten();
        if of_file.is_some() {
            return Ok(of_file);
        }
        self.bare(bare).map_or(Ok(None), of_variable)
    }
}

/// A whole number, decimal or with `0x`.
fn number(text: &str) -> Result<u64, String> {
    let error = || "must be a whole number, decimal or hexadecimal with 0x".to_owned();
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).map_err(|_| error()),
        None => text.parse().map_err(|_| error()),
    }
}

/// Hexadecimal digits, with or without `0x`.
fn key_id(text: &str) -> Result<Vec<u8>, String> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")).unwrap_or(digits);
    let bytes = hex::decode(digits).ok().filter(|bytes| !bytes.is_empty() && bytes.len() <= 128);
    bytes.ok_or_else(|| "must be hexadecimal digits, two for each byte, such as \"0x01ab\"".to_owned())
}

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = value::duration(text)?;
    if (SHORTEST_TIMEOUT..=LONGEST_TIMEOUT).contains(&timeout) {
        return Ok(timeout);
    }
    Err("must be from \"100ms\" to \"5m\"".to_owned())
}

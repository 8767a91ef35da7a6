//! Tokens: the secret a client shows, and the record that says what it is worth.

use std::{collections::HashMap, sync::Arc};

use bincode::{Decode, Encode};
use hmac::{Hmac, KeyInit, Mac};
use keystead_storage::{RecordKey, Version};
use parking_lot::Mutex;
use sha2::Sha256;
use zeroize::ZeroizeOnDrop;

use super::{codec, error::ApiError};
use crate::{
    barrier::Token,
    secret::{DerivedKey, Locked, SecretString, fill_random, on_wiped_stack},
};

/// Longest token that is looked up at all.
const MAX_TOKEN_BYTES: usize = 8_192;
/// Tokens that are cached at most.
const MAX_CACHED: usize = 4_096;
/// The alphabet of tokens and accessors.
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What is stored of a token. The token itself is not: its record is found by a keyed hash of it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct TokenRecord {
    /// A public handle for the token.
    pub accessor: String,
    /// Policies in force; `root` stands alone.
    pub policies: Vec<String>,
    /// Name that appears in audit records.
    pub display_name: String,
    /// The path that made it.
    pub path: String,
    /// Creation, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

impl TokenRecord {
    /// The record of the first root token.
    pub fn root(created_ms: u64) -> Self {
        Self {
            accessor: random_base62(24),
            policies: vec!["root".to_owned()],
            display_name: "root".to_owned(),
            path: "auth/token/root".to_owned(),
            created_ms,
        }
    }

    /// This token may do everything.
    pub fn is_root(&self) -> bool {
        self.policies == ["root"]
    }

    /// The bytes that are sealed.
    pub fn encode(&self) -> Result<Vec<u8>, ApiError> {
        codec::encode(self)
    }

    /// Reads what [`TokenRecord::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ApiError> {
        codec::decode(bytes)
    }
}

/// The key under which tokens are hashed before they become a path, with itself and everything constant already hashed:
/// every request hashes its token.
pub struct TokenKey(Locked<Prepared>);

struct Prepared(Hmac<Sha256>);

/// HMAC's and SHA-256's states wipe themselves, see the assertion in `barrier`.
impl ZeroizeOnDrop for Prepared {}

impl TokenKey {
    /// Prepares the key.
    pub fn new(key: &DerivedKey<Token>) -> Self {
        Self(on_wiped_stack(|| {
            let mut mac = Hmac::new_from_slice(key.expose()).expect("HMAC takes keys of every length");
            mac.update(b"keystead/v1/token-path");
            Locked::new(Prepared(mac))
        }))
    }
}

/// The path of a token's record below the vault's own mount: a keyed hash, so that neither the record's place
/// nor the time its lookup takes says anything about the token (a comparison that stops at the first different
/// byte compares hashes nobody can choose).
///
/// `None` for what cannot be a token at all.
pub fn record_path(key: &TokenKey, token: &SecretString) -> Option<[String; 2]> {
    token_hash(key, token).map(path_of)
}

/// The keyed hash of a token; `None` for what cannot be a token at all.
pub(super) fn token_hash(key: &TokenKey, token: &SecretString) -> Option<[u8; 32]> {
    let text = token.expose();
    if text.is_empty() || text.len() > MAX_TOKEN_BYTES || text.chars().any(char::is_control) {
        return None;
    }
    let mut mac = key.0.expose().0.clone();
    mac.update(text.as_bytes());
    Some(mac.finalize().into_bytes().into())
}

/// The path of the record of a token with this hash.
pub(super) fn path_of(hash: [u8; 32]) -> [String; 2] {
    ["token".to_owned(), hex::encode(hash)]
}

/// Tokens whose records were opened lately, by their keyed hash. It saves sealing the record's path and opening
/// its value; whether the record is still that one is asked of the state every time.
#[derive(Default)]
pub struct TokenCache(Mutex<HashMap<[u8; 32], CachedToken>>);

/// A record that was opened, and where and at which version it was.
#[derive(Clone)]
pub(super) struct CachedToken {
    pub key: RecordKey,
    pub version: Version,
    pub record: Arc<TokenRecord>,
}

impl TokenCache {
    /// What is known of a token.
    pub(super) fn get(&self, hash: &[u8; 32]) -> Option<CachedToken> {
        self.0.lock().get(hash).cloned()
    }

    /// Keeps what was opened.
    pub(super) fn put(&self, hash: [u8; 32], token: CachedToken) {
        let mut tokens = self.0.lock();
        if tokens.len() >= MAX_CACHED {
            // Starting over costs less than knowing which are used.
            tokens.clear();
        }
        tokens.insert(hash, token);
    }
}

/// Characters of a token as [`random_token`] draws it.
pub const TOKEN_LEN: usize = 28;

/// A new password, as long as a token.
pub fn random_otp() -> SecretString {
    SecretString::new(random_base62(TOKEN_LEN))
}

/// A new service token: `hvs.` and 24 characters, as long as Vault's root token.
pub fn random_token() -> SecretString {
    SecretString::new(format!("hvs.{}", random_base62(24)))
}

/// Characters drawn evenly from the 62 letters and digits.
fn random_base62(length: usize) -> String {
    let mut text = String::with_capacity(length);
    let mut bytes = [0u8; 64];
    while text.len() < length {
        fill_random(&mut bytes);
        // 248 is the largest multiple of 62 in a byte; what lies above would favour the first letters.
        let letters = bytes.iter().filter(|byte| **byte < 248).map(|byte| BASE62[usize::from(byte % 62)]);
        text.extend(letters.take(length - text.len()).map(char::from));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_shape_of_vaults() {
        let token = random_token();
        assert_eq!(token.expose().len(), 28);
        assert!(token.expose().starts_with("hvs."));
        assert!(token.expose()[4..].bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(token.expose(), random_token().expose());
    }

    #[test]
    fn a_record_survives_its_encoding_and_damage_is_seen() {
        let record = TokenRecord::root(7);
        let bytes = record.encode().unwrap();
        assert_eq!(TokenRecord::decode(&bytes), Ok(record));
        assert!(TokenRecord::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(TokenRecord::decode(&[]).is_err());
    }
}

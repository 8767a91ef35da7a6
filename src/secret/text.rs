//! Secrets that are text: tokens, and shares as people type them.

use std::str::Utf8Error;

use subtle::ConstantTimeEq;
use zeroize::ZeroizeOnDrop;

use super::bytes::{SecretBytes, wipe};

/// A secret string that is wiped when dropped, never printed, and compared in constant time.
///
/// It is not locked against swapping: requests carry such strings through buffers that are not locked either.
#[derive(Clone)]
pub struct SecretString(String);

impl Drop for SecretString {
    fn drop(&mut self) {
        wipe(&mut std::mem::take(&mut self.0).into_bytes());
    }
}

impl ZeroizeOnDrop for SecretString {}

impl SecretString {
    /// Takes over `text`, without a copy.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether this is `other`, in a time that depends on the lengths alone.
    #[must_use]
    pub fn ct_eq(&self, other: &str) -> bool {
        self.0.as_bytes().ct_eq(other.as_bytes()).into()
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no text at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<SecretBytes> for SecretString {
    type Error = Utf8Error;

    /// Takes over the bytes, without a copy; those that are no text are wiped.
    fn try_from(bytes: SecretBytes) -> Result<Self, Utf8Error> {
        String::from_utf8(bytes.into_vec()).map(Self).map_err(|error| {
            let why = error.utf8_error();
            drop(SecretBytes::from(error.into_bytes()));
            why
        })
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_text_is_equal_and_nothing_else_is() {
        let token = SecretString::new("hvs.one".to_owned());
        assert!(token.ct_eq("hvs.one"));
        assert!(!token.ct_eq("hvs.onE"));
        assert!(!token.ct_eq("hvs.one "));
        assert!(!token.ct_eq(""));
    }
}

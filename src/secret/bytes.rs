//! Secrets that are bytes of any length: what records hold before they are sealed and after they are opened.

use std::ops::Deref;

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Secret bytes that are wiped when dropped.
///
/// `Zeroizing<Vec<u8>>` would do the same one byte at a time, which costs a get 4 % of its processor time. It is not locked
/// against swapping: requests carry what is in it through buffers that are not locked either.
#[derive(Clone, Default)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// The bytes, for a type that wipes them in its turn.
    pub(super) fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl ZeroizeOnDrop for SecretBytes {}

impl Deref for SecretBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsMut<[u8]> for SecretBytes {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl From<Vec<u8>> for SecretBytes {
    /// Takes over `bytes`, without a copy.
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// Wipes all memory of a vector and leaves it empty.
pub(super) fn wipe(bytes: &mut Vec<u8>) {
    bytes.as_mut_slice().zeroize();
    bytes.clear();
    bytes.spare_capacity_mut().zeroize();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wiping_leaves_a_vector_empty_with_its_memory() {
        let mut bytes = vec![7; 40];
        bytes.truncate(3);
        wipe(&mut bytes);
        assert!(bytes.is_empty() && bytes.capacity() >= 40);
        // Safe code sees only what it has written; that the memory behind it is wiped is shown by `tests/memory.rs`.
    }

    #[test]
    fn bytes_are_read_and_changed_in_place() {
        let mut bytes = SecretBytes::from(vec![1, 2, 3]);
        bytes.as_mut()[0] = 9;
        assert_eq!(*bytes.clone(), [9, 2, 3]);
    }
}

//! One type per role of a key, so that a key cannot be used for what it is not.

use std::marker::PhantomData;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Locked, entropy::fill_key};

/// Key bytes of a fixed length in locked memory; the base of every type below.
struct Bytes<const N: usize>(Locked<Zeroizing<[u8; N]>>);

impl<const N: usize> Bytes<N> {
    fn filled(fill: impl FnOnce(&mut [u8; N])) -> Self {
        let mut bytes = Locked::new(Zeroizing::new([0; N]));
        fill(bytes.expose_mut());
        Self(bytes)
    }

    fn expose(&self) -> &[u8; N] {
        self.0.expose()
    }
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        pub struct $name(Bytes<$len>);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;

            /// Draws a new one from the operating system's generator, mixed with what was [stirred in](super::stir).
            ///
            /// # Panics
            /// As [`fill_random`](super::fill_random).
            #[must_use]
            pub fn random() -> Self {
                Self::filled(|bytes| fill_key(bytes))
            }

            /// Makes one whose bytes `fill` writes, in place and starting from zeros.
            pub fn filled(fill: impl FnOnce(&mut [u8; $len])) -> Self {
                Self(Bytes::filled(fill))
            }

            /// Copies `bytes`; wiping the original is up to the caller.
            #[must_use]
            pub fn from_bytes(bytes: &[u8; $len]) -> Self {
                Self::filled(|own| own.copy_from_slice(bytes))
            }

            /// The bytes themselves.
            #[must_use]
            pub fn expose(&self) -> &[u8; $len] {
                self.0.expose()
            }

            /// Whether both hold the same bytes, in constant time.
            #[must_use]
            pub fn ct_eq(&self, other: &Self) -> bool {
                self.expose().ct_eq(other.expose()).into()
            }

            /// A second copy in locked memory of its own. Not `Clone`, so that copies are made on purpose.
            #[must_use]
            pub fn duplicate(&self) -> Self {
                Self::from_bytes(self.expose())
            }
        }

    };
}

key! {
    /// The root key: seals the keyring, and every [`DerivedKey`] comes from it. Never on disk in the clear.
    RootKey, 32
}
key! {
    /// The key that wraps the root key; it exists as Shamir shares or as an HSM's ciphertext only.
    Kek, 32
}
key! {
    /// A key of the barrier, which seals values (AES-256-GCM-SIV).
    BarrierKey, 32
}
key! {
    /// The key that seals path segments deterministically (AES-SIV with two AES-256 keys).
    PathKey, 64
}
key! {
    /// A key that authenticates log entries (HMAC-SHA256).
    LogKey, 32
}
key! {
    /// What keys come from that outlive the root key (see `barrier::derive_lasting`).
    LastingKey, 32
}
key! {
    /// The secret part of one Shamir share: the values of 32 polynomials at the share's `x`.
    ShareBytes, 32
}

/// A key derived from the root key for the one purpose `P` (see `barrier::Purpose`).
pub struct DerivedKey<P>(Bytes<32>, PhantomData<fn() -> P>);

impl<P> DerivedKey<P> {
    /// Makes one whose bytes `fill` writes, in place and starting from zeros.
    pub fn filled(fill: impl FnOnce(&mut [u8; 32])) -> Self {
        Self(Bytes::filled(fill), PhantomData)
    }

    /// The bytes themselves.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// Whether both hold the same bytes, in constant time.
    #[must_use]
    pub fn ct_eq(&self, other: &Self) -> bool {
        self.expose().ct_eq(other.expose()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_keys_differ_and_copies_do_not() {
        let key = RootKey::random();
        assert!(!key.ct_eq(&RootKey::random()));
        assert!(key.ct_eq(&key.duplicate()));
        assert!(key.expose().iter().any(|byte| *byte != 0));
    }

    #[test]
    fn keys_wipe_themselves() {
        fn wiped<T: zeroize::ZeroizeOnDrop>() {}
        wiped::<Zeroizing<[u8; 32]>>();
        let mut bytes = Zeroizing::new([0xAB_u8; 32]);
        zeroize::Zeroize::zeroize(&mut *bytes);
        assert_eq!(*bytes, [0; 32]);
    }
}

//! Keys come from more than one generator where there is more than one.

use hkdf::Hkdf;
use parking_lot::Mutex;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{Locked, fill_random, on_wiped_stack};

const STIR_TAG: &[u8] = b"keystead/v1/entropy-pool";
const KEY_TAG: &[u8] = b"keystead/v1/entropy";

/// What other generators gave, all of it in one key.
static POOL: Mutex<Option<Locked<Zeroizing<[u8; 32]>>>> = Mutex::new(None);

/// Mixes the bytes of another generator, such as a token's, into every key that this process draws from now on.
///
/// Guarantees that no key is worse for it, whoever chose the bytes.
pub fn stir(bytes: &[u8]) {
    let mut pool = POOL.lock();
    let mut next = Locked::new(Zeroizing::new([0; 32]));
    on_wiped_stack(|| {
        let former = pool.as_ref().map(|pool| &pool.expose()[..]);
        let extracted = Hkdf::<Sha256>::new(former, bytes);
        extracted.expand(STIR_TAG, &mut next.expose_mut()[..]).expect("HKDF-SHA256 gives 32 bytes");
    });
    *pool = Some(next);
}

/// Fills a key from the operating system's generator and what others gave (HKDF-SHA256, RFC 5869: the former is the
/// salt). Either is enough alone to keep the key from being guessed.
///
/// # Panics
/// As [`fill_random`].
pub fn fill_key(key: &mut [u8]) {
    fill_random(key);
    let pool = POOL.lock();
    if let Some(pool) = &*pool {
        on_wiped_stack(|| {
            let extracted = Hkdf::<Sha256>::new(Some(&*key), &pool.expose()[..]);
            extracted.expand(KEY_TAG, key).expect("no key is longer than HKDF-SHA256 can give");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stirred_in_changes_keys_of_any_length_and_none_is_drawn_twice() {
        for _ in 0..3 {
            let mut former = [0; 64];
            fill_key(&mut former);
            stir(b"the same bytes again");
            let pool = *POOL.lock().as_ref().unwrap().expose().clone();
            stir(b"the same bytes again");
            assert_ne!(pool, **POOL.lock().as_ref().unwrap().expose(), "the pool goes on");
            let mut key = [0; 64];
            fill_key(&mut key);
            assert!(key != former && key[..32] != key[32..]);
        }
        let mut long = vec![0; 255 * 32];
        fill_key(&mut long);
        assert!(long.chunks(32).all(|part| part != [0; 32]));
    }
}

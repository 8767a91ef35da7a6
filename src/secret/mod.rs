//! Memory that holds keys: locked against swapping, wiped when dropped, and never printed or compared in the
//! usual ways.
//!
//! Every role has a type of its own, read only through `expose`, which is easy to grep for. Key bytes
//! are filled in place on the heap wherever the interface of a cipher allows it, and what moves leave on the stack is
//! wiped by [`on_wiped_stack`]. What cannot be wiped: copies in registers, the pages of a suspended machine's memory
//! image, and the buffers of TLS and HTTP through which shares and tokens come in.
#![cfg_attr(test, allow(clippy::unwrap_used))] // in a test, a panic is the report

mod bytes;
#[cfg(test)]
mod comparison_tests;
mod entropy;
mod keys;
mod lock;
mod stack;
mod text;

use std::cell::RefCell;

pub use bytes::SecretBytes;
pub use entropy::{fill_key, stir};
pub use keys::{BarrierKey, DerivedKey, Kek, LastingKey, LogKey, PathKey, RootKey, ShareBytes};
pub use lock::{Locked, can_lock, disable_core_dumps, mlock_failures, set_mlock};
pub use stack::on_wiped_stack;
pub use text::SecretString;

/// Random bytes that a thread draws at a time.
const POOL_BYTES: usize = 512;

/// Fills `bytes` from the operating system's random generator.
///
/// # Panics
/// When the operating system has no working generator. Nothing safe can be done without one, and on Linux it
/// cannot happen once the machine has booted.
pub fn fill_random(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the operating system's random generator works");
}

/// Returns `N` random bytes for what is public, such as salts, nonces and ids. Keys are filled in place instead.
///
/// They come from the operating system, a few hundred bytes at a time: a call for each nonce would cost a put 2 % of its
/// processor time. No byte is given out twice.
///
/// # Panics
/// As [`fill_random`].
#[must_use]
pub fn random_array<const N: usize>() -> [u8; N] {
    thread_local! {
        static POOL: RefCell<([u8; POOL_BYTES], usize)> = const { RefCell::new(([0; POOL_BYTES], POOL_BYTES)) };
    }
    let mut bytes = [0; N];
    if N > POOL_BYTES {
        fill_random(&mut bytes);
        return bytes;
    }
    POOL.with_borrow_mut(|(pool, used)| {
        if POOL_BYTES - *used < N {
            fill_random(pool);
            *used = 0;
        }
        bytes.copy_from_slice(&pool[*used..*used + N]);
        *used += N;
    });
    bytes
}

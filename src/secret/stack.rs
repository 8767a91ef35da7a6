//! A stack that is wiped after keys were worked with.
//!
//! Ciphers and hashes wipe what they own when it is dropped, but a value that is returned or moved leaves its former
//! place on the stack as it was, round keys and blocks of key bytes included. Those places are in no one's hands,
//! and whether they are overwritten depends on what the thread does next.

use std::hint::black_box;

/// How deep the work with one key may reach. Without optimisation every move has a place of its own.
const DEPTH_BYTES: usize = if cfg!(debug_assertions) { 48 << 10 } else { 8 << 10 };

/// Does `work` with keys and wipes the part of the stack that it used, 8 KiB deep (48 KiB in a debug build).
///
/// What it returns is moved out and must hold keys on the heap only. A panic of `work` leaves the stack unwiped.
///
/// ```
/// let sum = keystead::secret::on_wiped_stack(|| [1_u8; 32].iter().sum::<u8>());
/// assert_eq!(sum, 32);
/// ```
pub fn on_wiped_stack<R>(work: impl FnOnce() -> R) -> R {
    let result = apart(work);
    wipe();
    result
}

/// Has a frame of its own, below which everything is that `work` leaves behind.
#[inline(never)]
fn apart<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Covers what [`apart`] has used, for it is called from the same depth.
#[inline(never)]
fn wipe() {
    let mut scratch = [0_u8; DEPTH_BYTES];
    // Zeros that are looked at have to be written.
    black_box(&mut scratch);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves a pattern in its frame and tells where.
    #[inline(never)]
    fn leave_behind(seed: u8) -> usize {
        let mut secret = [0_u8; 256];
        for (n, byte) in (0_u8..).zip(&mut secret) {
            *byte = black_box(n.wrapping_mul(seed) ^ 0x5a);
        }
        black_box(&mut secret).as_ptr().addr()
    }

    /// The bytes at an address of this process, as the kernel sees them.
    #[cfg(target_os = "linux")]
    fn bytes_at(address: usize) -> [u8; 256] {
        use std::os::unix::fs::FileExt as _;
        let mut bytes = [0; 256];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        memory.read_exact_at(&mut bytes, address as u64).unwrap();
        bytes
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_left_behind_is_wiped() {
        // A thread whose stack nobody else uses. The file is opened outside, for that uses the stack as well.
        let (address, after) = std::thread::spawn(|| {
            let address = on_wiped_stack(|| leave_behind(167));
            (address, std::thread::spawn(move || bytes_at(address)).join().unwrap())
        })
        .join()
        .unwrap();
        let pattern: Vec<u8> = (0..=255_u8).map(|n| n.wrapping_mul(167) ^ 0x5a).collect();
        assert_ne!(address, 0);
        assert!(!after.windows(16).any(|window| pattern.windows(16).any(|part| part == window)));
    }
}

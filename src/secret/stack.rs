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

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn pattern() -> [u8; 256] {
        std::array::from_fn(|n| (n as u8).wrapping_mul(167) ^ 0x5a)
    }

    /// Leaves a pattern in its frame and tells where.
    #[inline(never)]
    fn leave_behind() -> usize {
        let mut secret = black_box(pattern());
        black_box(&mut secret).as_ptr().addr()
    }

    /// Whether the pattern is still there when `work` has returned, seen from another thread, for looking takes
    /// stack as well. The thread that worked stays where it is meanwhile.
    fn is_left_after(work: fn() -> usize) -> bool {
        let look = |address: usize| {
            let mut bytes = [0; 256];
            let memory = std::fs::File::open("/proc/self/mem").unwrap();
            memory.read_exact_at(&mut bytes, address as u64).unwrap();
            // What joins the threads may have written over a part of it.
            pattern().chunks(16).any(|part| bytes.windows(16).any(|window| window == part))
        };
        std::thread::spawn(move || {
            let address = work();
            std::thread::spawn(move || look(address)).join().unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn what_was_left_behind_is_wiped() {
        assert!(!is_left_after(|| on_wiped_stack(leave_behind)));
    }

    /// Without which the test above would show nothing. Deep down, where nothing else writes soon.
    #[test]
    fn what_is_not_wiped_stays() {
        #[inline(never)]
        fn deep() -> usize {
            let mut above = [1_u8; 16 << 10];
            black_box(&mut above);
            leave_behind()
        }
        assert!(is_left_after(deep));
    }
}

//! Heap memory that is kept out of swap and core dumps.
#![allow(unsafe_code)] // mlock and munlock take an address; nothing here dereferences one

use std::collections::HashMap;
use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::param::page_size;
use zeroize::ZeroizeOnDrop;

static MLOCK_ENABLED: AtomicBool = AtomicBool::new(true);
static MLOCK_FAILURES: AtomicU64 = AtomicU64::new(0);

/// How many [`Locked`] values lie on each locked page, by page address.
///
/// `mlock` does not nest: one `munlock` unlocks a page for everybody who shares it, so that the last one out has to
/// call it.
static LOCKED_PAGES: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(|| Mutex::new(HashMap::new()));

/// Switches locking on or off for values made from now on (`disable_mlock` in the configuration; on by default).
pub fn set_mlock(enabled: bool) {
    MLOCK_ENABLED.store(enabled, Ordering::Relaxed);
}

/// How often a page could not be locked since the process started, usually because of `RLIMIT_MEMLOCK`.
///
/// The value is used all the same: refusing to run without locked memory is the operator's choice, made from this
/// number, and not the allocator's.
#[must_use]
pub fn mlock_failures() -> u64 {
    MLOCK_FAILURES.load(Ordering::Relaxed)
}

/// Whether the system lets this process lock as much memory as the keys of a vault take; tried with 16 pages.
#[must_use]
pub fn can_lock() -> bool {
    let buffer = vec![0_u8; 16 * page_size()];
    let before = mlock_failures();
    drop(Pages::lock(buffer.as_ptr().addr(), buffer.len()));
    mlock_failures() == before
}

/// Forbids this process and its children to write core files, and other processes of the same user to attach.
///
/// # Errors
/// What the operating system said. A caller warns and goes on, for a sandbox may forbid the call and be safe.
pub fn disable_core_dumps() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// A value on the heap whose pages are locked into memory for as long as it lives.
///
/// The value wipes itself when it is dropped, which the bound demands; only then are its pages given back. It does
/// not move while it is held, so no copies stay behind. Locking that fails is counted by [`mlock_failures`].
pub struct Locked<T: ZeroizeOnDrop> {
    // Dropped in this order: wiped while the pages are still locked.
    value: Box<T>,
    _pages: Pages,
}

impl<T: ZeroizeOnDrop> Locked<T> {
    /// Moves `value` to the heap and locks its pages.
    ///
    /// The move may leave a copy on the stack, so a key is made empty and filled in place through
    /// [`Locked::expose_mut`].
    pub fn new(value: T) -> Self {
        let value = Box::new(value);
        let pages = Pages::lock(std::ptr::from_ref::<T>(&value).addr(), size_of::<T>());
        Self { value, _pages: pages }
    }

    /// The value itself.
    pub fn expose(&self) -> &T {
        &self.value
    }

    /// The value itself, to be filled.
    pub fn expose_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// The pages that one value lies on; unlocked on drop unless another value needs them.
struct Pages {
    first: usize,
    count: usize,
}

impl Pages {
    fn lock(address: usize, len: usize) -> Self {
        if len == 0 || !MLOCK_ENABLED.load(Ordering::Relaxed) {
            return Self { first: 0, count: 0 };
        }
        let size = page_size();
        let first = address / size * size;
        let mut held = Self { first, count: 0 };
        let mut pages = LOCKED_PAGES.lock();
        for page in (first..address + len).step_by(size) {
            // Also where it has holders already: one of them may be on its way out, its memory unmapped and mapped
            // anew since.
            // SAFETY: the range lies within one page that this process has mapped, for a live allocation is on it;
            // locking changes neither its content nor its protection.
            if unsafe { rustix::mm::mlock(page as *mut _, size) }.is_err() {
                MLOCK_FAILURES.fetch_add(1, Ordering::Relaxed);
                break;
            }
            *pages.entry(page).or_insert(0) += 1;
            held.count += 1;
        }
        held
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.count == 0 {
            return;
        }
        let size = page_size();
        let mut pages = LOCKED_PAGES.lock();
        for page in (0..self.count).map(|n| self.first + n * size) {
            let holders =
                pages.get_mut(&page).expect("a held page is in the table until its last holder leaves");
            *holders -= 1;
            if *holders == 0 {
                pages.remove(&page);
                // SAFETY: as for mlock. The allocator may have unmapped the page after the value was freed, which
                // makes the call fail with ENOMEM and unlocks the page just as well; hence the ignored result.
                let _ = unsafe { rustix::mm::munlock(page as *mut _, size) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    /// Writes down that it was dropped, in place of a wipe that safe code cannot look at afterwards.
    struct Witness<'a>(&'a AtomicU64, [u8; 16]);
    impl Drop for Witness<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    impl ZeroizeOnDrop for Witness<'_> {}

    #[test]
    fn value_is_dropped_once_with_its_lock() {
        let drops = AtomicU64::new(0);
        let locked = Locked::new(Witness(&drops, [7; 16]));
        assert_eq!(locked.expose().1, [7; 16]);
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        drop(locked);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn shared_page_stays_locked_until_its_last_holder_leaves() {
        // An address range that belongs to this test alone, so that other tests cannot change the counts.
        let buffer = vec![0_u8; 3 * page_size()];
        let page = buffer.as_ptr().addr().div_ceil(page_size()) * page_size();
        let failures = mlock_failures();
        let one = Pages::lock(page + 8, 32);
        if one.count == 0 {
            assert!(mlock_failures() > failures, "not locking is counted");
            return;
        }
        let two = Pages::lock(page + page_size() - 4, 8);
        assert_eq!(two.count, 2, "a value across a page border holds both pages");
        let holders = |page: usize| LOCKED_PAGES.lock().get(&page).copied();
        assert_eq!(holders(page), Some(2));
        drop(two);
        assert_eq!(holders(page), Some(1));
        assert_eq!(holders(page + page_size()), None);
        #[cfg(target_os = "linux")]
        assert!(kernel_holds(page) && !kernel_holds(page + page_size()));
        drop(one);
        assert_eq!(holders(page), None);
        #[cfg(target_os = "linux")]
        assert!(!kernel_holds(page));

        set_mlock(false);
        let unlocked = Pages::lock(page + 8, 32);
        set_mlock(true);
        assert_eq!((unlocked.count, holders(page)), (0, None));
    }

    /// Whether the kernel's list of this process's mappings has the page as locked ("lo").
    #[cfg(target_os = "linux")]
    fn kernel_holds(page: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap().split_once('-');
            let hex = |text| usize::from_str_radix(text, 16).ok();
            if let Some((start, end)) = range.and_then(|(start, end)| Some((hex(start)?, hex(end)?))) {
                inside = (start..end).contains(&page);
            } else if inside && line.starts_with("VmFlags:") {
                return line.split(' ').any(|flag| flag == "lo");
            }
        }
        panic!("the page is mapped");
    }

    #[test]
    fn core_dumps_can_be_switched_off() {
        use rustix::process::{Resource, getrlimit};
        disable_core_dumps().unwrap();
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        #[cfg(target_os = "linux")]
        assert_eq!(
            rustix::process::dumpable_behavior().unwrap(),
            rustix::process::DumpableBehavior::NotDumpable
        );
    }

    #[test]
    fn value_is_filled_in_place() {
        let mut locked = Locked::new(Zeroizing::new([0_u8; 32]));
        let before = std::ptr::from_ref(locked.expose()).addr();
        locked.expose_mut().fill(9);
        assert_eq!(**locked.expose(), [9; 32]);
        assert_eq!(std::ptr::from_ref(locked.expose()).addr(), before);
    }
}

//! Drives the fuzz targets, which are tests beside the decoders they attack, so that nothing becomes public for
//! their sake. Their names begin with `fuzz_`.
//!
//! Inputs are programs (see [`mutate`]) that alter valid samples: noise alone is refused by the first length or
//! checksum and never reaches what lies behind it. The same targets run in two ways:
//!
//! - as ordinary tests on a stable compiler, with random programs, for a second each or for
//!   `BOLERO_RANDOM_TEST_TIME_MS`;
//! - guided by coverage: `cargo +nightly bolero test -p keystead-storage fuzz_state_rows`, after
//!   `cargo install cargo-bolero`. What that finds goes to `__fuzz__/<test>/crashes` beside the test, where the
//!   first way runs it again, before anything random.
//!
//! A failure prints the input as hex, and the seed by which `BOLERO_RANDOM_SEED` repeats it.

pub mod mutate;

use std::{
    cell::Cell,
    panic::RefUnwindSafe,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

pub use bolero;
use rustix::time::{ClockId, clock_gettime};

/// What a decoder may use up for one input.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of memory at one time, however short the input.
    pub base_bytes: u64,
    /// Bytes of memory at one time for each byte of input.
    pub bytes_per_byte: u64,
}

/// CPU time that one input may take, in a build without optimisation.
const CPU_LIMIT: Duration = Duration::from_secs(2);

/// Runs a target in the test that this stands in: `check!(samples, bounds, |bytes| ..)`.
///
/// `samples` is a `Vec<Vec<u8>>` of valid inputs; the property panics where something does not hold.
#[macro_export]
macro_rules! check {
    ($samples:expr, $bounds:expr, $property:expr) => {
        $crate::run($crate::bolero::check!(), $samples, $bounds, $property)
    };
}

/// What `bolero::check!` makes.
pub type Target =
    bolero::TestTarget<bolero::ByteSliceGenerator, bolero::DefaultEngine, bolero::BorrowedInput>;

/// See [`check!`](crate::check).
#[allow(unreachable_code)] // the engines that are guided by coverage do not return
pub fn run(target: Target, samples: Vec<Vec<u8>>, bounds: Bounds, property: impl Fn(&[u8]) + RefUnwindSafe) {
    assert!(!samples.is_empty(), "a target needs a valid sample to begin with");
    for sample in &samples {
        within(bounds, sample, &property);
    }
    let ran = AtomicU64::new(0);
    target.for_each(|program: &[u8]| {
        let input = mutate::run(program, &samples);
        let failing = bolero::with_context(|context| context.run_phase == bolero::RunPhase::Failure);
        if failing == Some(true) {
            bolero::on_failure({
                let input = input.clone();
                move || eprintln!("the input, {} bytes: {}", input.len(), hex::encode(&input))
            });
        }
        within(bounds, &input, &property);
        ran.fetch_add(1, Ordering::Relaxed);
    });
    eprintln!("{} inputs", ran.load(Ordering::Relaxed));
}

/// Runs the property and holds it to its bounds.
fn within(bounds: Bounds, input: &[u8], property: &impl Fn(&[u8])) {
    let before = cpu_time();
    let ran = Cell::new(false);
    let used = allocation_counter::measure(|| {
        property(input);
        ran.set(true);
    });
    let took = cpu_time().saturating_sub(before);
    assert!(ran.get(), "the allocator ran the property");
    let allowed = bounds.base_bytes + bounds.bytes_per_byte * input.len() as u64;
    assert!(
        used.bytes_max <= allowed,
        "{} bytes of input took {} bytes of memory, {allowed} are allowed",
        input.len(),
        used.bytes_max
    );
    assert!(took <= CPU_LIMIT, "{} bytes of input took {took:?}", input.len());
}

/// CPU time of this thread: a loaded machine is no fault of a decoder.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

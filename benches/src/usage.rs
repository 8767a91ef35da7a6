//! What processes have used of the machine, from /proc.

use std::{fs, path::Path, time::Duration};

use crate::Result;

/// Threads of a node that write to sockets and to the log on standard error, not to the disk.
const SPEAKERS: [&str; 4] = ["keystead", "api", "raft", "log"];

/// What one process has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time, in user and system mode.
    pub cpu: Duration,
    /// Bytes that its threads wrote to files.
    pub written: u64,
    /// Resident memory now, in KiB.
    pub resident_kib: u64,
    /// The most resident memory it ever had, in KiB.
    pub peak_kib: u64,
}

/// The usage of several processes.
pub fn of_all(pids: &[u32]) -> Result<Vec<Usage>> {
    pids.iter().map(|pid| of(*pid)).collect()
}

/// The usage of a process.
pub fn of(pid: u32) -> Result<Usage> {
    let place = format!("/proc/{pid}");
    let field = |file: &str, name: &str| -> Result<u64> {
        let text = fs::read_to_string(format!("{place}/{file}"))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).ok_or(format!("{file}: no {name}"))?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Usage {
        cpu: cpu(&format!("{place}/stat"))?,
        written: written(&place)?,
        resident_kib: field("status", "VmRSS:")?,
        peak_kib: field("status", "VmHWM:")?,
    })
}

/// Bytes written to files.
///
/// The kernel's own `write_bytes` counts whole folios of the page cache each time they become dirty, which is up to
/// 2 MiB for an append of a kilobyte where the file system has large folios. `wchar` counts what was handed
/// over, but for sockets, too; those are the business of the threads in [`SPEAKERS`].
fn written(place: &str) -> Result<u64> {
    let mut bytes = 0;
    for thread in fs::read_dir(format!("{place}/task"))? {
        let thread = thread?.path();
        let read = |file: &str| fs::read_to_string(thread.join(file));
        // A thread may end while its directory is read.
        let (Ok(name), Ok(io)) = (read("comm"), read("io")) else { continue };
        if !SPEAKERS.contains(&name.trim()) {
            let count = io.lines().find_map(|line| line.strip_prefix("wchar:")).ok_or("io: no wchar")?;
            bytes += count.trim().parse::<u64>()?;
        }
    }
    Ok(bytes)
}

/// Processor time of this process.
pub fn own() -> Result<Duration> {
    cpu("/proc/self/stat")
}

fn cpu(file: &str) -> Result<Duration> {
    let text = fs::read_to_string(file)?;
    // The name in parentheses may contain anything; utime and stime are the 14th and 15th field.
    let fields = text.rsplit_once(')').ok_or("no name in stat")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(from_ticks(ticks.sum::<std::result::Result<u64, _>>()?))
}

fn from_ticks(ticks: u64) -> Duration {
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Processor time that the whole machine has spent.
pub struct Machine {
    busy: Duration,
}

impl Machine {
    /// What it has spent by now.
    pub fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let line = text.lines().next().ok_or("an empty /proc/stat")?;
        let ticks: Vec<u64> =
            line.split_whitespace().skip(1).map(str::parse).collect::<std::result::Result<_, _>>()?;
        // user, nice, system, then after idle and iowait: irq, softirq, steal.
        let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| ticks.get(*at)).sum();
        Ok(Self { busy: from_ticks(busy) })
    }

    /// The share of the machine that others than the measured processes had since then.
    pub fn others(&self, measured: Duration, elapsed: Duration) -> Result<f64> {
        let spent = Self::now()?.busy.saturating_sub(self.busy);
        let capacity = elapsed.as_secs_f64() * std::thread::available_parallelism()?.get() as f64;
        Ok((spent.saturating_sub(measured)).as_secs_f64() / capacity)
    }
}

/// What a directory takes on the disk, in bytes.
pub fn disk_bytes(directory: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += if found.is_dir() { disk_bytes(&entry.path())? } else { found.blocks() * 512 };
    }
    Ok(bytes)
}

//! Looks into the memory of a running process, as whoever reads its swap or a core file of it would.

use std::{fs::File, io::Write as _, os::unix::fs::FileExt as _, path::Path};

use memchr::memmem::Finder;

use crate::{Error, Result};

/// How much is read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Bytes that are looked for, under a name that may be shown.
pub struct Needle {
    name: String,
    finder: Finder<'static>,
}

impl Needle {
    /// Something to look for.
    ///
    /// # Panics
    /// When it is so short that chance would find it.
    pub fn new(name: impl Into<String>, bytes: &[u8]) -> Self {
        assert!(bytes.len() >= 8, "eight bytes at least");
        Self { name: name.into(), finder: Finder::new(bytes).into_owned() }
    }
}

/// Where a needle was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The needle's name.
    pub name: String,
    /// What the kernel calls the mapping: `[heap]`, `[stack]`, a file, or nothing for anonymous memory.
    pub mapping: String,
    /// Where in the address space.
    pub address: u64,
}

/// Whether this user may read another process's memory.
pub fn permitted() -> bool {
    rustix::process::geteuid().is_root()
}

/// Searches all writable memory of a process. It goes on running meanwhile, so that what moves may be missed.
///
/// # Errors
/// [`Error::Io`] when there is no such process or its memory may not be read.
pub fn find(pid: u32, needles: &[Needle]) -> Result<Vec<Found>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(Error::io("memory map"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(Error::io("memory"))?;
    let mut found = Vec::new();
    for (start, end, mapping) in maps.lines().filter_map(writable) {
        search(&memory, start, end, needles, |name, address| {
            found.push(Found { name: name.to_owned(), mapping: mapping.to_owned(), address });
        });
    }
    Ok(found)
}

/// Writes all writable memory of a process to a file, to be searched when it is known what for. Pages that hold
/// nothing but zeros are left out.
///
/// # Errors
/// As [`find`], and those of the file.
pub fn dump(pid: u32, path: &Path) -> Result<()> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(Error::io("memory map"))?;
    let memory = File::open(format!("/proc/{pid}/mem")).map_err(Error::io("memory"))?;
    let mut out = File::create(path).map_err(Error::io("memory dump"))?;
    let mut page = [0; 4096];
    for (start, end, _) in maps.lines().filter_map(writable) {
        for at in (start..end).step_by(page.len()) {
            // What was unmapped since is no longer there to be written.
            if memory.read_exact_at(&mut page, at).is_ok() && page != [0; 4096] {
                out.write_all(&page).map_err(Error::io("memory dump"))?;
            }
        }
    }
    Ok(())
}

/// Searches a file, such as a memory dump or a core file.
///
/// # Errors
/// [`Error::Io`] when it cannot be read.
pub fn find_in_file(path: &Path, needles: &[Needle]) -> Result<Vec<Found>> {
    let file = File::open(path).map_err(Error::io("core file"))?;
    let end = file.metadata().map_err(Error::io("core file"))?.len();
    let mapping = path.display().to_string();
    let mut found = Vec::new();
    search(&file, 0, end, needles, |name, address| {
        found.push(Found { name: name.to_owned(), mapping: mapping.clone(), address });
    });
    Ok(found)
}

/// Start, end and name of a mapping that can be written to (proc(5), `/proc/pid/maps`).
fn writable(line: &str) -> Option<(u64, u64, &str)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let writable = fields.next()?.starts_with("rw");
    writable.then_some((hex(start)?, hex(end)?, fields.nth(3).unwrap_or_default()))
}

fn search(file: &File, start: u64, end: u64, needles: &[Needle], mut report: impl FnMut(&str, u64)) {
    let overlap = needles.iter().map(|needle| needle.finder.needle().len()).max().unwrap_or(1) - 1;
    let mut buffer = vec![0; CHUNK_BYTES + overlap];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        // What was unmapped since is no longer there to be found.
        let Ok(read) = file.read_at(&mut buffer[..want], at) else { return };
        for needle in needles {
            for hit in needle.finder.find_iter(&buffer[..read]) {
                // What lies in the overlap alone is found by the next chunk.
                if hit < CHUNK_BYTES {
                    report(&needle.name, at + hit as u64);
                }
            }
        }
        if read <= CHUNK_BYTES {
            if read == want || read == 0 {
                at = if read == want { end } else { return };
            } else {
                at += read as u64;
            }
        } else {
            at += CHUNK_BYTES as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_heap_is_found_and_what_was_wiped_is_not() {
        // Made at run time, so that the program's own constants do not hold it.
        let mut secret: Vec<u8> = (0..32u8).map(|n| n.wrapping_mul(167) ^ 0x5a).collect();
        let needles = [Needle::new("secret", &secret)];
        let own = std::process::id();
        let before = find(own, &needles).unwrap();
        assert!(before.iter().any(|found| found.name == "secret"));
        let address = secret.as_ptr().addr() as u64;
        assert!(before.iter().any(|found| found.address == address));
        secret.fill(0);
        std::hint::black_box(&secret);
        assert!(find(own, &needles).unwrap().iter().all(|found| found.address != address));
    }

    #[test]
    fn a_needle_across_two_chunks_is_found_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("core");
        let mut bytes = vec![0; 3 * CHUNK_BYTES + 100];
        for at in [0, CHUNK_BYTES - 3, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 90] {
            bytes[at..at + 9].copy_from_slice(b"needle-17");
        }
        std::fs::write(&path, bytes).unwrap();
        let found =
            find_in_file(&path, &[Needle::new("n", b"needle-17"), Needle::new("m", &[7; 64])]).unwrap();
        let at: Vec<u64> = found.iter().map(|found| found.address).collect();
        let chunk = CHUNK_BYTES as u64;
        assert_eq!(at, [0, chunk - 3, 2 * chunk, 3 * chunk + 90]);
    }
}

//! Damage on the disk is recognised when the storage is opened: the message says what is damaged and what to do.
//! What is not recognised did no harm. Never a panic, never an acknowledged entry missing in silence.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/exerciser.rs"]
mod exerciser;

use std::{
    fs::{self, OpenOptions},
    io::Read as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

use exerciser::{REFUSED, Random, WHOLE, fill, start_check};
use keystead_chaos::node::copy_directory;
use keystead_raft::{ClusterParams, Identity};
use keystead_storage::DataDir;
use keystead_tls::NodeKey;

/// Entries that the data directory has seen: over a segment of the log.
const ENTRIES: u64 = 11_000;
/// How long opening a damaged directory may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Checks at a time.
const AT_ONCE: u64 = 2;

/// How many images are tried; `tests/run --long` tries three thousand.
fn images() -> u64 {
    if common::long() { 3_000 } else { 150 }
}

#[test]
fn child() {
    exerciser::run_child();
}

/// A directory in memory if there is one: an image is some ten megabytes.
fn scratch() -> tempfile::TempDir {
    keystead_chaos::scratch::in_memory("keystead-damage-").unwrap()
}

/// A data directory with everything in it, closed in good order.
fn original(at: &Path, acknowledged: &Path) {
    let dir = DataDir::open(at).unwrap();
    fill(&dir, acknowledged, 1, ENTRIES);
    let (key, params) = (NodeKey::generate().unwrap(), ClusterParams::scaled(1, 1 << 20));
    let identity = Identity::new([7; 16], 1, "n1".into(), 5, &key, vec![1; 500], vec![2; 500], params);
    identity.save(at).unwrap();
    // The check now wants an identity.
    let mut text = fs::read_to_string(acknowledged).unwrap();
    text.push_str("I\n");
    fs::write(acknowledged, text).unwrap();
}

/// Every file of a directory, in order.
fn files(below: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "LOCK" {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A place that holds something, if one is soon found: most of a database file is empty.
fn place(random: &mut Random, bytes: &[u8]) -> usize {
    let mut at = 0;
    for _ in 0..50 {
        at = random.below(bytes.len() as u64) as usize;
        if bytes[at] != 0 {
            break;
        }
    }
    at
}

/// Damages one file, or two, and says how.
fn damage(image: &Path, random: &mut Random) -> String {
    let files = files(image);
    let large = |path: &&PathBuf| path.ends_with("db") || path.extension().is_some_and(|kind| kind == "log");
    let large: Vec<_> = files.iter().filter(large).collect();
    let file = if random.one_in(2) {
        large[random.below(large.len() as u64) as usize].clone()
    } else {
        files[random.below(files.len() as u64) as usize].clone()
    };
    let name = file.strip_prefix(image).unwrap().display().to_string();
    let bytes = fs::read(&file).unwrap();
    let at = place(random, &bytes);
    let open = || OpenOptions::new().write(true).open(&file).unwrap();
    match random.below(20) {
        0..8 if !bytes.is_empty() => {
            let bit = random.below(8);
            open().write_all_at(&[bytes[at] ^ 1 << bit], at as u64).unwrap();
            format!("{name}: bit {bit} of byte {at} flipped")
        }
        8..13 => {
            // Half of the cuts are near the end of what is there.
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let cut = if random.one_in(2) {
                random.below(2_000.min(end as u64 + 1))
            } else {
                random.below(end as u64 + 1)
            };
            let length = end as u64 - cut.min(end as u64);
            open().set_len(length).unwrap();
            format!("{name}: cut from {} to {length}", bytes.len())
        }
        13..16 if !bytes.is_empty() => {
            let from = at / 512 * 512;
            let length = 512.min(bytes.len() - from);
            open().write_all_at(&vec![0; length], from as u64).unwrap();
            format!("{name}: the sector at {from} zeroed")
        }
        16 if !bytes.is_empty() => {
            let from = at / 512 * 512;
            let sector: Vec<u8> = (0..512.min(bytes.len() - from)).map(|_| random.next() as u8).collect();
            open().write_all_at(&sector, from as u64).unwrap();
            format!("{name}: the sector at {from} overwritten")
        }
        17 => {
            let other = &files[random.below(files.len() as u64) as usize];
            let theirs = fs::read(other).unwrap();
            fs::write(&file, theirs).unwrap();
            fs::write(other, bytes).unwrap();
            format!("{name}: swapped with {}", other.strip_prefix(image).unwrap().display())
        }
        18 if file.parent() != Some(image) => {
            let directory = file.parent().unwrap();
            fs::remove_dir_all(directory).unwrap();
            format!("{}: removed", directory.strip_prefix(image).unwrap().display())
        }
        _ => {
            fs::remove_file(&file).unwrap();
            format!("{name}: removed")
        }
    }
}

/// The exit code and everything that it printed; a code of -1 stands for one that was killed.
fn ended(mut child: Child) -> (i32, String) {
    let deadline = Instant::now() + PATIENCE;
    // It prints a line or two: the pipe holds them.
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (status.unwrap_or(-1), said)
}

#[derive(Default)]
struct Tally {
    whole: u64,
    refused: u64,
    /// Refused for what was promised alone: everything that is there is in order.
    lost_tails: u64,
    faults: Vec<String>,
}

impl Tally {
    fn count(&mut self, seed: u64, how: &str, code: i32, said: &str) {
        let named =
            said.contains("keystead operator raft rebuild") || said.contains("run the release that wrote it");
        match code {
            _ if said.contains("PANIC") || said.contains("panicked") => {}
            WHOLE => return self.whole += 1,
            REFUSED if named => {
                self.lost_tails += u64::from(said.contains("the log has lost"));
                return self.refused += 1;
            }
            _ => {}
        }
        self.faults.push(format!("image {seed}, {how}: exit {code}: {}", said.trim()));
    }
}

#[test]
fn damage_is_told_with_its_remedy_or_does_no_harm() {
    let scratch = scratch();
    let (data, acknowledged) = (scratch.path().join("original"), scratch.path().join("acknowledged"));
    original(&data, &acknowledged);
    let check = |image: &Path| ended(start_check(image, &acknowledged));
    let copy = scratch.path().join("copy");
    copy_directory(&data, &copy).unwrap();
    let (code, said) = check(&copy);
    assert_eq!(code, WHOLE, "without damage: {said}");
    fs::remove_dir_all(&copy).unwrap();

    // One image again: KEYSTEAD_DAMAGE_IMAGE=17 cargo test --test damage
    let only: Option<u64> = std::env::var("KEYSTEAD_DAMAGE_IMAGE").ok().map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = only.map_or_else(|| (0..images()).collect(), |seed| vec![seed]);
    let mut tally = Tally::default();
    for some in seeds.chunks(AT_ONCE as usize) {
        let running: Vec<_> = some
            .iter()
            .map(|seed| {
                let image = scratch.path().join(format!("image-{seed}"));
                copy_directory(&data, &image).unwrap();
                let how = damage(&image, &mut Random::new(*seed + 1_000));
                (*seed, how, start_check(&image, &acknowledged), image)
            })
            .collect();
        for (seed, how, child, image) in running {
            let (code, said) = ended(child);
            if only.is_some() {
                eprintln!("{how}: exit {code}: {said}");
            }
            tally.count(seed, &how, code, &said);
            fs::remove_dir_all(image).unwrap();
        }
    }
    let Tally { whole, refused, lost_tails, faults } = tally;
    eprintln!(
        "{} images: {refused} refused, {lost_tails} of them for a lost tail alone; {whole} unharmed",
        seeds.len()
    );
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), seeds.len(), faults.join("\n"));
    let both = refused > 0 && lost_tails > 0 && whole > 0;
    assert!(only.is_some() || both, "the images are of every kind");
}

//! Crash images of a writer, opened and compared with what it had acknowledged.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use keystead_chaos::{
    images::{Change, Disk, Trace, Unsynced},
    lin::Seed,
};

use crate::{
    model::{self, Notes},
    processes::{self, Child, Role, STEPS},
    script::Script,
    writer,
};

/// Readers at a time.
const READERS: usize = 2;
/// Bad images that are kept.
const KEPT: usize = 3;

/// A writer's run.
pub struct Run {
    seed: u64,
    base: tempfile::TempDir,
    script: Script,
    trace: Trace,
}

/// What was found in the images of a run.
#[derive(Default)]
pub struct Findings {
    pub images: usize,
    /// In how many of them there was something to lose.
    pub unsafe_images: usize,
    pub bad: Vec<String>,
}

/// A moment of the power cut.
#[derive(Clone, Copy)]
struct Place {
    nth: usize,
    /// So many changes of the trace had happened.
    at: usize,
    unsynced: Unsynced,
}

struct Opened {
    place: Place,
    base: PathBuf,
    notes: Notes,
    reader: Child,
}

impl Run {
    /// Lets a writer carry out the script of a seed, and keeps the trace.
    pub fn new(seed: u64) -> Result<Self, String> {
        let base = processes::base()?;
        let faults = processes::watched(base.path())?;
        faults.trace("/watched/").map_err(|e| e.to_string())?;
        let variables = [("SURVIVAL_SEED", seed.to_string())];
        let ended = Child::start(Role::Writer, base.path(), &variables, Some(&faults))?.wait()?;
        let notes = processes::notes(base.path())?;
        if !ended.success() || !notes.failed.is_empty() || !notes.other.contains_key("end") {
            return Err(format!(
                "seed {seed}: the writer did not come to its end: {ended} {:?}",
                notes.failed
            ));
        }
        let trace = Trace::read(&faults.trace_file()).map_err(|e| e.to_string())?;
        Ok(Self { seed, base, script: Script::random(seed, STEPS), trace })
    }

    /// Opens `count` images: before syncs, after them, and at other places.
    pub fn images(&self, count: usize, deaf: Option<&str>, enough: usize) -> Result<Findings, String> {
        let mut disk = self.disk(deaf);
        let mut findings = Findings::default();
        let mut open = VecDeque::new();
        for place in self.places(count) {
            disk.advance(place.at);
            findings.images += 1;
            findings.unsafe_images += usize::from(disk.unsafe_writes(&writer::data(self.base.path())) > 0);
            let base = self.base.path().join(format!("image-{}", place.nth));
            self.write(&disk, &place, &base)?;
            let text = self.trace.appended(&writer::notes(self.base.path()), place.at);
            let notes = Notes::parse(&String::from_utf8_lossy(&text));
            let mut variables = vec![("SURVIVAL_SEED", self.seed.to_string())];
            if place.nth % 4 == 0 {
                variables.push(("SURVIVAL_AGAIN", "1".to_owned()));
            }
            let reader = Child::start(Role::Reader, &base, &variables, None)?;
            open.push_back(Opened { place, base, notes, reader });
            if open.len() == READERS {
                self.judge(open.pop_front(), deaf, &mut findings)?;
            }
            if findings.bad.len() >= enough {
                break;
            }
        }
        while !open.is_empty() {
            self.judge(open.pop_front(), deaf, &mut findings)?;
        }
        Ok(findings)
    }

    fn disk(&self, deaf: Option<&str>) -> Disk<'_> {
        let disk = Disk::new(&self.trace);
        match deaf {
            Some(path) => disk.deaf_to_syncs_of(path),
            None => disk,
        }
    }

    fn write(&self, disk: &Disk<'_>, place: &Place, base: &Path) -> Result<(), String> {
        let mut random = Seed::new(self.seed << 32 | place.nth as u64);
        disk.image(&writer::data(self.base.path()), &writer::data(base), place.unsynced, &mut random)
            .map_err(|e| e.to_string())
    }

    /// Points of the trace, in order, with what becomes there of what is not safe.
    fn places(&self, count: usize) -> Vec<Place> {
        let mut random = Seed::new(self.seed);
        let of_notes = |at: usize| self.trace.events[at].path == writer::notes(self.base.path());
        // A crash before the database is made leaves nothing to look at.
        let begun = (0..self.trace.events.len()).find(|at| of_notes(*at) && self.is_write(*at)).unwrap_or(0);
        let syncs: Vec<usize> = self.trace.syncs().into_iter().filter(|at| *at > begun).collect();
        let length = (self.trace.events.len() - begun) as u64;
        let mut places: Vec<_> = (0..count)
            .map(|nth| {
                let unsynced = Unsynced::EVERY[nth % Unsynced::EVERY.len()];
                let at = match nth % 3 {
                    0 => syncs[random.below(syncs.len() as u64) as usize],
                    1 => syncs[random.below(syncs.len() as u64) as usize] + 1,
                    _ => begun + random.below(length + 1) as usize,
                };
                Place { nth, at, unsynced }
            })
            .collect();
        places.sort_by_key(|place| place.at);
        places
    }

    fn is_write(&self, at: usize) -> bool {
        matches!(self.trace.events[at].change, Change::Write { .. })
    }

    fn judge(
        &self,
        opened: Option<Opened>,
        deaf: Option<&str>,
        findings: &mut Findings,
    ) -> Result<(), String> {
        let Some(Opened { place, base, notes, reader }) = opened else { return Ok(()) };
        let result = reader.report().and_then(|report| model::check(&self.script, &notes, &report));
        std::fs::remove_dir_all(base).map_err(|e| e.to_string())?;
        let Err(why) = result else { return Ok(()) };
        let Place { nth, at, unsynced } = place;
        let (seed, length) = (self.seed, self.trace.events.len());
        let mut line =
            format!("image {nth} of seed {seed} (after change {at} of {length}, {unsynced:?}): {why}");
        if deaf.is_none() && findings.bad.len() < KEPT {
            let kept =
                tempfile::Builder::new().prefix("survival-image-").tempdir().map_err(|e| e.to_string())?;
            let mut disk = self.disk(deaf);
            disk.advance(at);
            self.write(&disk, &place, kept.path())?;
            line += &format!("\n  the image as it was: {}", kept.keep().display());
        }
        findings.bad.push(format!("{line}\n  again: SURVIVAL_SEED={seed} {}", processes::AGAIN));
        Ok(())
    }
}

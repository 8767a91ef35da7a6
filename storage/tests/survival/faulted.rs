//! Every kind of operation with every kind of fault, at every point where it touches the disk.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use keystead_chaos::{Errno, Op, Rule};

use crate::{
    model::{self, Notes},
    processes::{self, Child, Role},
    script::{Script, Step},
};

/// What is struck.
const DATA: &str = "watched/data/";
/// How long a late failure takes: whoever asked for the write is waiting for it by then.
const LATE: Duration = Duration::from_millis(50);

/// So many failed runs leave their files.
const KEPT: usize = 3;
static FAILED: AtomicUsize = AtomicUsize::new(0);

/// A fault: kind and position.
#[derive(Clone, Debug)]
pub struct Plan {
    pub step: String,
    pub fault: String,
    /// The disk works until it was touched so often.
    pub nth: u64,
    /// Whether it works again before anything else is tried.
    pub healed: bool,
}

/// Kinds of steps that are struck.
pub const STEPS: [&str; 9] =
    ["append", "vote", "apply", "purge", "truncate", "install", "spool", "file", "reopen"];
/// Kinds of faults.
pub const FAULTS: [&str; 8] = [
    "failed-write",
    "late-write",
    "short-write",
    "failed-sync",
    "failed-flush",
    "late-flush",
    "full",
    "names",
];

impl Plan {
    /// Reads what [`Plan::text`] gave.
    pub fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.split(':').collect();
        let [step, fault, nth, healed] = parts[..] else { panic!("{text} is no plan") };
        Self {
            step: step.to_owned(),
            fault: fault.to_owned(),
            nth: nth.parse().expect("a number"),
            healed: healed == "healed",
        }
    }

    pub fn text(&self) -> String {
        let Self { step, fault, nth, healed } = self;
        format!("{step}:{fault}:{nth}:{}", if *healed { "healed" } else { "broken" })
    }

    /// The rules; the first one is struck first.
    pub fn rules(&self) -> Vec<Rule> {
        let at = |ops: &[Op]| Rule::on(ops).at(DATA).skip(self.nth);
        let writes = [Op::Write, Op::Truncate];
        match self.fault.as_str() {
            "failed-write" => vec![at(&writes).fails(Errno::IO)],
            "late-write" => vec![at(&writes).fails_after(LATE, Errno::IO)],
            "short-write" => {
                vec![at(&[Op::Write]).times(1).short(7), at(&[Op::Write]).skip(self.nth + 1).fails(Errno::IO)]
            }
            // Once: the kernel reports a lost page once and takes it for written from then on.
            "failed-sync" => vec![at(&[Op::Sync]).times(1).fails(Errno::IO)],
            "failed-flush" => vec![at(&[Op::Range]).times(1).fails(Errno::IO)],
            "late-flush" => vec![at(&[Op::Range]).times(1).fails_after(LATE, Errno::IO)],
            "full" => vec![at(&[Op::Write, Op::Truncate, Op::Open, Op::Mkdir]).fails(Errno::NOSPC)],
            "names" => vec![at(&[Op::Open, Op::Rename, Op::Unlink, Op::Mkdir]).fails(Errno::IO)],
            other => panic!("no fault is called {other}"),
        }
    }

    /// Runs it; says whether the fault struck at all.
    pub fn run(&self) -> Result<bool, String> {
        let base = processes::base()?;
        let result = self.run_in(base.path());
        result.map_err(|why| {
            let files = if FAILED.fetch_add(1, Ordering::Relaxed) < KEPT {
                format!("\n  files: {}", base.keep().display())
            } else {
                String::new()
            };
            format!("{why}{files}\n  again: SURVIVAL_PLAN={} {}", self.text(), processes::AGAIN)
        })
    }

    fn run_in(&self, base: &std::path::Path) -> Result<bool, String> {
        let faults = processes::watched(base)?;
        let writer = Child::start(Role::Writer, base, &[("SURVIVAL_PLAN", self.text())], Some(&faults))?;
        let ended = writer.wait()?;
        let notes = processes::notes(base)?;
        let number = |word: &str| -> Vec<u64> {
            let text = notes.other.get(word).map_or("", String::as_str);
            text.split(' ').filter_map(|part| part.parse().ok()).collect()
        };
        let (mut script, before) = Script::before_fault(&self.step);
        let struck = match number("struck")[..] {
            [struck] => struck > 0,
            _ => true, // it died before it could say
        };
        if let [last, applied] = number("then")[..] {
            script.steps.extend(Script::afterwards(last, applied));
        }
        if !struck {
            return if notes.failed.is_empty() {
                Ok(false)
            } else {
                Err(format!("failed without a fault: {notes:?}"))
            };
        }
        self.check_refusals(&script, before, &notes)?;
        if !ended.success() {
            if !ended.aborted_by_design() {
                return Err(format!("the writer ended with {ended}"));
            }
            eprintln!("{}: it aborted: {ended}", self.text());
        }
        let variables = [("SURVIVAL_PLAN", self.text()), ("SURVIVAL_AGAIN", "1".to_owned())];
        let report = Child::start(Role::Reader, base, &variables, None)?.report()?;
        model::check(&script, &notes, &report).map_err(|why| format!("{why}\n  notes: {notes:?}"))?;
        Ok(true)
    }

    /// After a failure nothing more is acknowledged by that half of the storage, and it says why.
    fn check_refusals(&self, script: &Script, before: usize, notes: &Notes) -> Result<(), String> {
        let told = |why: &str| Err(format!("{why}: {:?} {:?} {:?}", notes.failed, notes.done, notes.other));
        let harmful = self.fault != "names" && self.step != "reopen";
        if harmful && notes.failed.is_empty() && notes.other.contains_key("struck") {
            return told("nobody noticed the fault");
        }
        let of_log = |at: usize| {
            let step = script.steps[at];
            matches!(
                step,
                Step::Append { .. } | Step::Vote { .. } | Step::Truncate { .. } | Step::Purge { .. }
            )
        };
        let of_state = |at: usize| matches!(script.steps[at], Step::Install { .. } | Step::Flush);
        for (half, latch) in [(&of_log as &dyn Fn(usize) -> bool, "log-latch"), (&of_state, "state-latch")] {
            let Some(first) = notes.failed.keys().copied().find(|at| half(*at)) else { continue };
            if let Some(later) = notes.done.iter().find(|at| **at > first && half(**at)) {
                return told(&format!("step {later} was acknowledged after {first} had failed"));
            }
            let opened = !notes.failed.values().any(|why| why.contains("it is not open"));
            if opened
                && notes.other.get(latch).is_none_or(|why| why.is_empty())
                && notes.other.contains_key("end")
            {
                return told(&format!("no {latch} after step {first} had failed"));
            }
        }
        if notes.failed.keys().any(|at| *at < before) {
            return told("a step failed before the fault");
        }
        Ok(())
    }
}

//! What must be there after the notes that were made: everything acknowledged, and nothing half.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    reader,
    script::{Content, Script, Step},
};

/// Paths with the entry that wrote them and their values.
pub type Contents = BTreeMap<String, (u64, Bytes)>;

/// The state after some entries.
#[derive(Default)]
pub struct Applied {
    pub contents: Contents,
    pub membership: Option<u64>,
    pub requests: BTreeSet<u64>,
}

impl Applied {
    /// The state after the entry at `index`.
    pub fn at(script: &Script, index: u64) -> Self {
        let mut applied = Self::default();
        for index in 1..=index {
            match script.content(index) {
                Content::Blank | Content::Checkpoint => {}
                Content::Piece => drop(applied.requests.insert(index)),
                Content::Activation(records) => {
                    applied.requests.insert(index);
                    let records = records.into_iter().map(|(path, value)| (path, (index, value)));
                    applied.contents = records.collect();
                }
                Content::Membership(_) => applied.membership = Some(index),
                Content::Writes(writes) => {
                    applied.requests.insert(index);
                    for (path, value) in writes {
                        match value {
                            Some(value) => applied.contents.insert(path, (index, value)),
                            None => applied.contents.remove(&path),
                        };
                    }
                }
            }
        }
        applied
    }
}

/// The notes of a writer.
#[derive(Default, Debug)]
pub struct Notes {
    /// Steps that were begun, in order.
    pub begun: Vec<usize>,
    /// Steps that were acknowledged.
    pub done: BTreeSet<usize>,
    /// Steps that failed, and why.
    pub failed: BTreeMap<usize, String>,
    /// All other lines, by their first word.
    pub other: BTreeMap<String, String>,
}

impl Notes {
    /// Reads notes; a line that was cut off is left out.
    pub fn parse(text: &str) -> Self {
        let mut notes = Self::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let (number, why) = rest.split_once(' ').unwrap_or((rest, ""));
            match (word, number.parse()) {
                ("begin", Ok(number)) => notes.begun.push(number),
                ("done", Ok(number)) => drop(notes.done.insert(number)),
                ("failed", Ok(number)) => drop(notes.failed.insert(number, why.to_owned())),
                _ => drop(notes.other.insert(word.to_owned(), rest.to_owned())),
            }
        }
        notes
    }
}

/// A log: purged up to `floor`, then true entries up to `before_strays`, then strays up to `last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Log {
    floor: u64,
    before_strays: u64,
    last: u64,
}

impl Log {
    fn after(self, step: Step) -> Self {
        match step {
            Step::Append { until, stray: true, .. } => Self { last: until, ..self },
            Step::Append { until, .. } => Self { before_strays: until, last: until, ..self },
            Step::Truncate { after } => {
                Self { before_strays: self.before_strays.min(after), last: self.last.min(after), ..self }
            }
            Step::Purge { up_to } => Self {
                floor: up_to,
                before_strays: self.before_strays.max(up_to),
                last: self.last.max(up_to),
            },
            _ => self,
        }
    }

    /// Whether this can be what lies between `before` and the end of a step.
    fn is_between(self, before: Self, step: Step) -> bool {
        match step {
            Step::Append { from, until, stray } => {
                (from - 1..=until).any(|until| self == before.after(Step::Append { from, until, stray }))
            }
            Step::Truncate { after } => {
                (after..=before.last).any(|after| self == before.after(Step::Truncate { after }))
            }
            _ => self == before || self == before.after(step),
        }
    }
}

/// Whether a step ended by being refused, and so changed nothing.
pub fn refused(why: &str) -> bool {
    why.contains("stopped after an earlier failure") || why.contains("it is not open")
}

/// Compares a report with the notes.
///
/// # Errors
/// What is missing, or there although it cannot be.
pub fn check(script: &Script, notes: &Notes, report: &str) -> Result<(), String> {
    let (words, snapshots) = reader::parse(report);
    let numbers = |word: &str| words.get(word).cloned().ok_or(format!("the report says nothing of {word}"));
    let begun: Vec<(Step, bool)> = notes
        .begun
        .iter()
        .filter(|at| !notes.failed.get(at).is_some_and(|why| refused(why)))
        .map(|at| (script.steps[*at], notes.done.contains(at)))
        .collect();
    let log = match numbers("log")?[..] {
        [floor, before_strays, last] => Log { floor, before_strays, last },
        _ => return Err("the report says too little of the log".to_owned()),
    };
    check_log(&begun, log)?;
    let applied = numbers("applied")?[0];
    check_applied(&begun, applied, log)?;
    let newest = |of: &dyn Fn(Step) -> Option<u64>| {
        let acknowledged = begun.iter().rposition(|(step, done)| *done && of(*step).is_some());
        let since: Vec<u64> =
            begun[acknowledged.unwrap_or(0)..].iter().filter_map(|(step, _)| of(*step)).collect();
        if acknowledged.is_none() { [vec![0], since].concat() } else { since }
    };
    let votes = newest(&|step| if let Step::Vote { term } = step { Some(term) } else { None });
    let files = newest(&|step| if let Step::File { number } = step { Some(number) } else { None });
    for (word, possible) in [("vote", votes), ("file", files)] {
        let found = numbers(word)?[0];
        if !possible.contains(&found) {
            return Err(format!("{word} is {found}, possible are {possible:?}"));
        }
    }
    for (step, done) in begun {
        if let (Step::Spool { number }, true) = (step, done)
            && !snapshots.contains(&number)
        {
            return Err(format!("snapshot {number} is gone"));
        }
    }
    Ok(())
}

fn check_log(begun: &[(Step, bool)], found: Log) -> Result<(), String> {
    let of_log =
        |step: &Step| matches!(step, Step::Append { .. } | Step::Truncate { .. } | Step::Purge { .. });
    let steps: Vec<(Step, bool)> = begun.iter().filter(|(step, _)| of_log(step)).copied().collect();
    let acknowledged = steps.iter().rposition(|(_, done)| *done).map_or(0, |last| last + 1);
    let mut log = steps[..acknowledged].iter().fold(Log::default(), |log, (step, _)| log.after(*step));
    let least = log;
    let mut possible = found == log;
    for (step, _) in &steps[acknowledged..] {
        possible |= found.is_between(log, *step);
        log = log.after(*step);
    }
    if possible { Ok(()) } else { Err(format!("the log is {found:?}, due are {least:?} to {log:?}")) }
}

fn check_applied(begun: &[(Step, bool)], found: u64, log: Log) -> Result<(), String> {
    let (mut least, mut reached, mut installed) = (0, 0, None);
    let mut possible = vec![0..=0];
    for (step, done) in begun {
        match step {
            Step::Apply { until, .. } => {
                possible.push(reached..=*until);
                reached = *until;
            }
            Step::Install { to } => {
                possible.push(*to..=*to);
                reached = *to;
                installed = Some(*to);
                if *done {
                    least = *to;
                }
            }
            Step::Flush if *done => least = reached,
            _ => {}
        }
    }
    if found < least || !possible.iter().any(|range| range.contains(&found)) {
        return Err(format!("the state is at {found}, due is {least} or one of {possible:?}"));
    }
    if found < log.floor {
        return Err(format!("the state is at {found}, but the log was purged up to {}", log.floor));
    }
    if found > log.last && installed != Some(found) {
        return Err(format!("the state is at {found}, ahead of the log, which ends at {}", log.last));
    }
    Ok(())
}

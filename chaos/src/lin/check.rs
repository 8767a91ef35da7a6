//! The verdict on a history.
//!
//! `stateright`'s tester judges each folder. Its search is exhaustive and does not remember where it has been,
//! so it is given a number of steps; a folder on which it does not come to an end, and every folder that it
//! refuses, goes to [`search`](super::search), which does remember. That the two agree is tested below.

use std::{cell::Cell, collections::BTreeMap, fmt, rc::Rc};

use stateright::semantics::{ConsistencyTester as _, LinearizabilityTester, SequentialSpec};

use super::{
    folder::Folder,
    history::{Op, Operation, Outcome, Ret},
    search,
};

/// Steps that the tester's search may take on one folder.
const STEPS: u32 = 20_000;
/// Writes of unknown outcome with which a folder is given to the tester: it tries them in every order, and what it
/// supposes of them cannot be refused, so the number of steps is no bound there.
const MOST_UNKNOWN: usize = 5;

/// What was looked at and found right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checked {
    /// Folders.
    pub folders: usize,
    /// Operations that were answered.
    pub answered: usize,
    /// Operations that were refused: nothing was done.
    pub refused: usize,
    /// Writes of which nobody knows whether they took effect.
    pub unknown: usize,
    /// Folders on which the tester ran out of steps.
    pub long: usize,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folders, answered, refused, unknown, long } = self;
        write!(
            f,
            "{folders} folders ({long} long), {answered} answers, {refused} refusals, {unknown} unknown writes"
        )
    }
}

/// A folder whose history no order explains.
#[derive(Debug, Clone)]
pub struct Violation {
    /// What was recorded of the folder up to the first answer that makes no sense, which is the last.
    pub operations: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = self.operations.first().map_or("", |operation| &operation.folder);
        writeln!(f, "folder {folder:?} is not linearizable: no order explains its last answer")?;
        for operation in &self.operations {
            let Operation { client, node, begun_us, ended_us, op, outcome, .. } = operation;
            let ended_us = if *ended_us == u64::MAX { "...".into() } else { ended_us.to_string() };
            writeln!(f, "{begun_us:>10} {ended_us:>10} us client {client} node {node} {op:?} {outcome:?}")?;
        }
        Ok(())
    }
}

/// Judges a history, folder by folder.
///
/// # Errors
/// The first folder that is not linearizable.
pub fn check(operations: &[Operation]) -> Result<Checked, Box<Violation>> {
    let mut folders: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    let mut checked = Checked::default();
    for operation in operations {
        match &operation.outcome {
            Outcome::Returned(_) => checked.answered += 1,
            Outcome::Refused(_) => checked.refused += 1,
            Outcome::Unknown(_) => checked.unknown += usize::from(operation.op.writes()),
        }
        folders.entry(&operation.folder).or_default().push(operation);
    }
    checked.folders = folders.len();
    for folder in folders.values_mut() {
        folder.sort_by_key(|operation| operation.ended_us);
        let verdict = judge(folder);
        checked.long += usize::from(verdict.is_none());
        if verdict != Some(true) && !search::explains(folder) {
            return Err(Box::new(shortest(folder)));
        }
        assert_ne!(verdict, Some(false), "the tester refuses what the search explains: {folder:#?}");
    }
    Ok(checked)
}

/// The shortest beginning of a folder's history, in the order of its ends, that no order explains. What had
/// begun and not ended by then may have taken effect or not.
fn shortest(folder: &[&Operation]) -> Violation {
    let up_to = |count: usize| -> Vec<Operation> {
        let end_us = folder[count - 1].ended_us;
        let pending = folder[count..].iter().filter(|operation| operation.begun_us <= end_us);
        let pending = pending.map(|operation| {
            let outcome = Outcome::Unknown("had not ended".into());
            Operation { ended_us: u64::MAX, outcome, ..(*operation).clone() }
        });
        pending.chain(folder[..count].iter().map(|operation| (*operation).clone())).collect()
    };
    // Beginnings of a linearizable history are linearizable, so one bound divides the right from the wrong.
    let counts: Vec<usize> = (1..=folder.len()).collect();
    let right = counts.partition_point(|count| {
        let beginning = up_to(*count);
        search::explains(&beginning.iter().collect::<Vec<_>>())
    });
    Violation { operations: up_to((right + 1).min(folder.len())) }
}

/// The tester's verdict on one folder; `None` if it took, or would take, too many steps.
fn judge(folder: &[&Operation]) -> Option<bool> {
    let unknown =
        |operation: &&&Operation| operation.op.writes() && matches!(operation.outcome, Outcome::Unknown(_));
    if folder.iter().filter(unknown).count() > MOST_UNKNOWN {
        return None;
    }
    let steps = Rc::new(Cell::new(STEPS));
    let mut tester = LinearizabilityTester::new(Counted { folder: Folder::default(), steps: steps.clone() });
    for (thread, event) in events(folder) {
        let accepted = match event {
            Event::Invoke(op) => tester.on_invoke(thread, op.clone()).map(drop),
            Event::Return(ret) => tester.on_return(thread, ret.clone()).map(drop),
        };
        accepted.expect("a thread has one operation at a time");
    }
    let consistent = tester.is_consistent();
    (consistent || steps.get() > 0).then_some(consistent)
}

enum Event<'a> {
    Invoke(&'a Op),
    Return(&'a Ret),
}

/// Beginnings and ends in the order of time, each with the number of a thread that does one thing at a time.
///
/// What may never have taken effect stays in flight for ever, on a thread of its own; the numbers of those
/// threads are the greatest, for the tester tries the least first.
fn events<'a>(folder: &[&'a Operation]) -> Vec<(usize, Event<'a>)> {
    let mut events = Vec::new();
    let mut by_begin = folder.to_vec();
    by_begin.sort_by_key(|operation| operation.begun_us);
    let mut busy_until: Vec<u64> = Vec::new();
    let mut for_ever = folder.len();
    for operation in by_begin {
        let (begun_us, op) = (operation.begun_us, &operation.op);
        match &operation.outcome {
            Outcome::Returned(ret) => {
                let free = busy_until.iter().position(|until| *until < begun_us);
                let thread = free.unwrap_or(busy_until.len());
                busy_until.resize(busy_until.len().max(thread + 1), 0);
                busy_until[thread] = operation.ended_us;
                // At the same moment, what begins comes before what ends: they may have overlapped.
                events.push(((begun_us, 0), (thread, Event::Invoke(op))));
                events.push(((operation.ended_us, 1), (thread, Event::Return(ret))));
            }
            Outcome::Unknown(_) if op.writes() => {
                events.push(((begun_us, 0), (for_ever, Event::Invoke(op))));
                for_ever += 1;
            }
            Outcome::Unknown(_) | Outcome::Refused(_) => {}
        }
    }
    events.sort_by_key(|(time, _)| *time);
    events.into_iter().map(|(_, event)| event).collect()
}

/// A folder that counts what is asked of it, over all its copies.
#[derive(Clone)]
struct Counted {
    folder: Folder,
    steps: Rc<Cell<u32>>,
}

impl SequentialSpec for Counted {
    type Op = Op;
    type Ret = Ret;

    fn invoke(&mut self, op: &Op) -> Ret {
        self.folder.perform(op)
    }

    /// Nothing is valid any more once the steps are used up, which ends the search.
    fn is_valid_step(&mut self, op: &Op, ret: &Ret) -> bool {
        let left = self.steps.get().saturating_sub(1);
        self.steps.set(left);
        left > 0 && self.folder.perform(op) == *ret
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;

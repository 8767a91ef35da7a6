//! The search for an order that explains a history (Wing and Gong, 1993), which remembers where it has been
//! (Lowe, 2017): of two ways to the same set of operations and the same state, one is enough.

use std::collections::HashSet;

use super::{
    folder::Folder,
    history::{Op, Operation, Outcome, Ret},
};

/// One operation as the search sees it.
struct Step<'a> {
    op: &'a Op,
    /// The answer, which no operation has that may never have taken effect.
    ret: Option<&'a Ret>,
    begun_us: u64,
    /// No later than this it had taken effect.
    ended_us: u64,
}

/// Which operations have taken effect, one bit for each.
type Taken = Box<[u64]>;

/// Whether one folder's operations, whose order is of no meaning, can be put in an order that explains every
/// answer, in which no operation comes before another that had ended when it began.
pub fn explains(operations: &[&Operation]) -> bool {
    let mut steps: Vec<Step<'_>> = operations.iter().filter_map(|operation| step(operation)).collect();
    steps.sort_by_key(|step| step.begun_us);
    let nothing: Taken = vec![0; steps.len().div_ceil(64)].into();
    let mut seen = HashSet::new();
    let mut open = vec![(nothing, Folder::default())];
    while let Some((taken, folder)) = open.pop() {
        let left = |at: &usize| !is_taken(&taken, *at);
        if (0..steps.len()).filter(left).all(|at| steps[at].ret.is_none()) {
            return true;
        }
        // What began after another had ended has to wait for it.
        let first_end = (0..steps.len()).filter(left).map(|at| steps[at].ended_us).min();
        let first_end = first_end.expect("something is left");
        // The last one pushed is tried first: what has an answer, and of that what began first.
        let candidates = (0..steps.len()).rev().filter(left).filter(|at| steps[*at].begun_us <= first_end);
        let (sure, unsure): (Vec<usize>, Vec<usize>) = candidates.partition(|at| steps[*at].ret.is_some());
        for at in unsure.into_iter().chain(sure) {
            let mut next = folder.clone();
            let ret = next.perform(steps[at].op);
            if steps[at].ret.is_some_and(|seen| *seen != ret) {
                continue;
            }
            let mut taken = taken.clone();
            taken[at / 64] |= 1 << (at % 64);
            if seen.insert((taken.clone(), next.clone())) {
                open.push((taken, next));
            }
        }
    }
    false
}

fn is_taken(taken: &Taken, at: usize) -> bool {
    taken[at / 64] & (1 << (at % 64)) != 0
}

/// `None` for what says nothing: what was not done, and reads without an answer.
fn step(operation: &Operation) -> Option<Step<'_>> {
    let (op, begun_us) = (&operation.op, operation.begun_us);
    match &operation.outcome {
        Outcome::Returned(ret) => Some(Step { op, ret: Some(ret), begun_us, ended_us: operation.ended_us }),
        Outcome::Unknown(_) if op.writes() => Some(Step { op, ret: None, begun_us, ended_us: u64::MAX }),
        Outcome::Unknown(_) | Outcome::Refused(_) => None,
    }
}

//! Histories made by hand: the good are accepted, each kind of bad is refused. And the two searches agree.

use super::*;
use crate::lin::seed::Seed;

/// An operation on folder `f` between two moments.
fn done(begun_us: u64, ended_us: u64, op: Op, ret: Ret) -> Operation {
    let outcome = Outcome::Returned(ret);
    Operation { client: 0, node: 0, folder: "f".into(), begun_us, ended_us, op, outcome }
}

fn lost(begun_us: u64, ended_us: u64, op: Op) -> Operation {
    let outcome = Outcome::Unknown("lost".into());
    Operation { client: 0, node: 0, folder: "f".into(), begun_us, ended_us, op, outcome }
}

fn refused(begun_us: u64, ended_us: u64, op: Op) -> Operation {
    let outcome = Outcome::Refused("nobody leads".into());
    Operation { outcome, ..lost(begun_us, ended_us, op) }
}

fn put(value: u64) -> Op {
    Op::Put { key: 1, value }
}

fn cas(expected: u64, value: u64) -> Op {
    Op::Cas { key: 1, expected, value }
}

const GET: Op = Op::Get { key: 1 };

fn found(version: u64, value: u64) -> Ret {
    Ret::Found { version, value }
}

fn listed<const N: usize>(keys: [u8; N]) -> Ret {
    Ret::Listed(keys.into())
}

fn accepted(operations: &[Operation]) {
    assert_eq!(judge(&operations.iter().collect::<Vec<_>>()), Some(true), "the tester");
    assert!(search::explains(&operations.iter().collect::<Vec<_>>()), "the search");
    check(operations).unwrap();
}

/// Refused by both, and the last operation shown is the one that cannot be.
fn seen_through(operations: &[Operation]) {
    assert_eq!(judge(&operations.iter().collect::<Vec<_>>()), Some(false), "the tester");
    assert!(!search::explains(&operations.iter().collect::<Vec<_>>()), "the search");
    let violation = check(operations).unwrap_err();
    assert_eq!(violation.operations.last(), operations.last());
}

#[test]
fn one_thing_after_the_other_is_accepted() {
    accepted(&[
        done(0, 1, GET, Ret::Absent),
        done(2, 3, Op::List, listed([])),
        done(4, 5, cas(0, 7), Ret::Written(1)),
        done(6, 7, cas(0, 8), Ret::Conflict),
        done(8, 9, put(9), Ret::Written(2)),
        done(10, 11, GET, found(2, 9)),
        done(12, 13, Op::List, listed([1])),
        done(14, 15, Op::Delete { key: 1 }, Ret::Done),
        done(16, 17, GET, Ret::Deleted(2)),
        done(18, 19, Op::List, listed([1])),
        done(20, 21, put(10), Ret::Written(3)),
        done(22, 23, Op::Remove { key: 1 }, Ret::Done),
        done(24, 25, GET, Ret::Absent),
        done(26, 27, Op::List, listed([])),
        done(28, 29, put(11), Ret::Written(1)),
    ]);
}

#[test]
fn what_overlaps_may_have_happened_in_either_order() {
    accepted(&[
        done(0, 10, put(1), Ret::Written(2)),
        done(1, 9, put(2), Ret::Written(1)),
        done(2, 3, GET, found(1, 2)),
        done(4, 8, GET, found(2, 1)),
        done(11, 12, GET, found(2, 1)),
    ]);
}

#[test]
fn a_stale_read_is_refused() {
    seen_through(&[
        done(0, 1, put(1), Ret::Written(1)),
        done(2, 3, put(2), Ret::Written(2)),
        done(4, 5, GET, found(1, 1)),
    ]);
}

#[test]
fn a_read_that_goes_back_behind_another_is_refused_though_the_write_is_still_going_on() {
    seen_through(&[
        done(0, 1, put(1), Ret::Written(1)),
        lost(2, 100, put(2)),
        done(3, 4, GET, found(2, 2)),
        done(5, 6, GET, found(1, 1)),
    ]);
}

#[test]
fn a_phantom_in_a_list_is_refused() {
    let other = Op::Put { key: 2, value: 2 };
    seen_through(&[
        done(0, 1, put(1), Ret::Written(1)),
        done(2, 5, other.clone(), Ret::Written(1)),
        done(3, 4, Op::List, listed([2])),
    ]);
    // Each key for itself could be explained: the second list is one moment for neither of them.
    seen_through(&[
        done(0, 9, put(1), Ret::Written(1)),
        done(0, 9, other, Ret::Written(1)),
        done(1, 2, Op::List, listed([1])),
        done(3, 4, Op::List, listed([2])),
    ]);
}

#[test]
fn a_write_twice_is_refused() {
    // The answer to the second execution.
    seen_through(&[done(0, 1, put(1), Ret::Written(2))]);
    // The answer to the first, and what is found later.
    seen_through(&[done(0, 1, put(1), Ret::Written(1)), done(2, 3, GET, found(2, 1))]);
    // A check-and-set that was done, and told of its second execution only.
    seen_through(&[done(0, 1, put(1), Ret::Written(1)), done(2, 3, cas(1, 2), Ret::Conflict)]);
    // An old value that comes back when a request arrives a second time.
    seen_through(&[
        done(0, 1, put(1), Ret::Written(1)),
        done(2, 3, put(2), Ret::Written(2)),
        done(4, 5, GET, found(3, 1)),
    ]);
}

#[test]
fn a_lost_write_is_refused() {
    seen_through(&[done(0, 1, put(1), Ret::Written(1)), done(2, 3, GET, Ret::Absent)]);
    seen_through(&[done(0, 1, put(1), Ret::Written(1)), done(2, 3, put(2), Ret::Written(1))]);
}

#[test]
fn two_that_win_the_same_version_are_refused() {
    seen_through(&[done(0, 9, cas(0, 1), Ret::Written(1)), done(0, 10, cas(0, 2), Ret::Written(1))]);
}

#[test]
fn what_was_refused_must_not_have_been_done() {
    accepted(&[refused(0, 1, put(1)), done(2, 3, GET, Ret::Absent)]);
    seen_through(&[refused(0, 1, put(1)), done(2, 3, GET, found(1, 1))]);
}

#[test]
fn what_is_unknown_may_be_done_late_or_never_but_once_only() {
    accepted(&[lost(0, 1, put(1)), done(2, 3, GET, Ret::Absent)]);
    accepted(&[
        lost(0, 1, put(1)),
        done(2, 3, put(2), Ret::Written(1)),
        done(4, 5, GET, found(1, 2)),
        done(6, 7, GET, found(2, 1)),
        done(8, 9, put(3), Ret::Written(3)),
    ]);
    seen_through(&[lost(0, 1, put(1)), done(2, 3, GET, found(2, 1))]);
    seen_through(&[lost(0, 1, put(1)), done(2, 3, GET, found(1, 1)), done(4, 5, GET, Ret::Absent)]);
}

#[test]
fn what_was_never_written_and_what_nobody_understands_are_refused() {
    seen_through(&[lost(0, 1, put(1)), done(2, 3, GET, found(1, 2))]);
    seen_through(&[done(0, 1, GET, Ret::Strange("200 without data".into()))]);
}

#[test]
fn folders_are_judged_each_for_itself() {
    let elsewhere = |operation: Operation| Operation { folder: "g".into(), ..operation };
    let operations = [
        done(0, 1, put(1), Ret::Written(1)),
        elsewhere(done(2, 3, GET, Ret::Absent)),
        elsewhere(lost(4, 5, put(2))),
        elsewhere(refused(4, 5, put(3))),
    ];
    let expected = Checked { folders: 2, answered: 2, refused: 1, unknown: 1, long: 0 };
    assert_eq!(check(&operations).unwrap(), expected);
}

/// Many writes of which nothing is known: more orders than the tester has steps for, and few states.
#[test]
fn a_history_with_many_unknown_writes_is_decided() {
    let mut operations: Vec<Operation> =
        (0..12).map(|at| lost(at, at + 1, Op::Put { key: 2 + (at % 2) as u8, value: at })).collect();
    operations.push(done(20, 21, put(50), Ret::Written(1)));
    assert!(check(&operations).is_ok());
    operations.push(done(22, 23, GET, found(1, 49)));
    assert_eq!(judge(&operations.iter().collect::<Vec<_>>()), None, "the tester gives up");
    assert_eq!(check(&operations).unwrap_err().operations.last(), operations.last());
}

/// A history of a folder that works, as several clients see it who overlap, with an answer changed now and then.
fn drawn(seed: &mut Seed) -> Vec<Operation> {
    let mut folder = Folder::default();
    let mut operations = Vec::new();
    for at in 0..seed.between(3, 9) {
        let key = seed.below(2) as u8;
        let op = match seed.below(6) {
            0 => Op::Put { key, value: at },
            1 => Op::Cas { key, expected: seed.below(3), value: at },
            2 => Op::Delete { key },
            3 => Op::Remove { key },
            4 => Op::Get { key },
            _ => Op::List,
        };
        let (begun_us, ended_us) = ((at * 10).saturating_sub(seed.below(25)), at * 10 + seed.below(25));
        if op.writes() && seed.once_in(5) {
            if seed.once_in(2) {
                folder.perform(&op);
            }
            operations.push(lost(begun_us, ended_us, op));
            continue;
        }
        let mut ret = folder.perform(&op);
        if seed.once_in(10) {
            ret = match ret {
                Ret::Found { version, value } => found(version, value.saturating_sub(1)),
                Ret::Written(version) => Ret::Written(version + 1),
                Ret::Absent => Ret::Deleted(1),
                other => other,
            };
        }
        operations.push(done(begun_us, ended_us, op, ret));
    }
    operations
}

#[test]
fn the_tester_and_the_search_agree() {
    let mut seed = Seed::new(7);
    let (mut good, mut bad) = (0, 0);
    for _ in 0..3_000 {
        let operations = drawn(&mut seed);
        let operations: Vec<&Operation> = operations.iter().collect();
        let Some(verdict) = judge(&operations) else { continue };
        assert_eq!(search::explains(&operations), verdict, "{operations:#?}");
        if verdict { good += 1 } else { bad += 1 }
    }
    assert!(good > 500 && bad > 500, "{good} good, {bad} bad: too few of one kind to prove anything");
}

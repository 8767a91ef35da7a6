//! What the writer does, step by step: the same for the same seed, so that whoever looks afterwards knows it too.

use bytes::Bytes;
use keystead_chaos::lin::Seed;
use keystead_storage::{
    Activation, ApplyEntry, ApplyOp, CheckpointMark, Command, FolderKey, LogId, LogRecord, Pieces, RecordKey,
    RequestId, Txn, Vote, Write,
};

/// Entries that a long script begins with, enough to fill a segment of the log, so that purging drops one.
const SEGMENT: u64 = 10_000;
/// So often what was staged becomes the state; within the first entries that are not tiny, too.
const RESTORES: u64 = 16;

/// One operation on the storage. Indexes are those of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Appends entries, true ones or such as a deposed leader leaves, which are cut off again.
    Append { from: u64, until: u64, stray: bool },
    /// Saves the vote for a term.
    Vote { term: u64 },
    /// Applies entries.
    Apply { from: u64, until: u64 },
    /// Brings the state to the disk.
    Flush,
    /// Cuts the log off behind an entry.
    Truncate { after: u64 },
    /// Forgets the log up to an entry.
    Purge { up_to: u64 },
    /// Replaces the state by a snapshot at an entry that the log does not reach.
    Install { to: u64 },
    /// Writes a snapshot of the state.
    Spool { number: u64 },
    /// Replaces a file.
    File { number: u64 },
    /// Closes everything and opens it again.
    Reopen,
}

/// Steps of a seed.
pub struct Script {
    pub steps: Vec<Step>,
    /// Entries up to here are as small as can be.
    tiny: u64,
}

/// Where log and state are after the steps so far.
#[derive(Default)]
struct Position {
    last: u64,
    applied: u64,
    floor: u64,
}

impl Script {
    /// About `length` steps of every kind.
    pub fn random(seed: u64, length: usize) -> Self {
        let mut random = Seed::new(seed);
        let mut script = Self { steps: Vec::new(), tiny: SEGMENT };
        let mut at = Position::default();
        script.append(&mut at, SEGMENT);
        script.apply(&mut at, SEGMENT);
        script.steps.push(Step::Flush);
        while script.steps.len() < length {
            script.random_step(&mut random, &mut at);
        }
        script.steps.push(Step::Flush);
        script
    }

    /// Steps before a fault, the step that the fault strikes, and how many steps there are before it.
    pub fn before_fault(kind: &str) -> (Self, usize) {
        let large = matches!(kind, "purge" | "truncate");
        let mut script = Self { steps: Vec::new(), tiny: if large { SEGMENT } else { 0 } };
        let mut at = Position::default();
        if large {
            script.append(&mut at, SEGMENT);
            script.apply(&mut at, SEGMENT);
        }
        script.append(&mut at, 20);
        script.apply(&mut at, 10);
        script.steps.extend([Step::Flush, Step::Vote { term: 3 }, Step::File { number: 1 }]);
        let last = at.last;
        let steps = match kind {
            "append" => vec![Step::Append { from: last + 1, until: last + 40, stray: false }],
            "vote" => vec![Step::Vote { term: 9 }],
            "apply" => {
                let before = script.steps.len();
                script.apply(&mut at, 10);
                script.steps.push(Step::Flush);
                return (script, before);
            }
            "purge" => vec![Step::Purge { up_to: at.applied }],
            "truncate" => {
                script.steps.push(Step::Append { from: last + 1, until: last + SEGMENT, stray: true });
                script.steps.push(Step::Append {
                    from: last + SEGMENT + 1,
                    until: last + SEGMENT + 9,
                    stray: true,
                });
                vec![Step::Truncate { after: last - 5 }]
            }
            "install" => vec![Step::Install { to: last + 30 }, Step::Purge { up_to: last + 30 }],
            "spool" => vec![Step::Spool { number: 1 }],
            "file" => vec![Step::File { number: 2 }],
            "reopen" => vec![Step::Reopen],
            other => panic!("no kind of step is called {other}"),
        };
        let before = script.steps.len();
        script.steps.extend(steps);
        (script, before)
    }

    /// What is tried after a fault.
    pub fn afterwards(last: u64, applied: u64) -> [Step; 4] {
        [
            Step::Append { from: last + 1, until: last + 2, stray: false },
            Step::Vote { term: 77 },
            Step::Apply { from: applied + 1, until: applied + 2 },
            Step::Flush,
        ]
    }

    fn append(&mut self, at: &mut Position, count: u64) {
        self.steps.push(Step::Append { from: at.last + 1, until: at.last + count, stray: false });
        at.last += count;
    }

    fn apply(&mut self, at: &mut Position, count: u64) {
        let until = (at.applied + count).min(at.last);
        if until > at.applied {
            self.steps.push(Step::Apply { from: at.applied + 1, until });
            at.applied = until;
        }
    }

    fn random_step(&mut self, random: &mut Seed, at: &mut Position) {
        let number = self.steps.len() as u64;
        match random.below(100) {
            0..40 => self.append(at, 1 + random.below(8)),
            40..48 => self.steps.push(Step::Vote { term: number }),
            48..65 => self.apply(at, 1 + random.below(12)),
            65..72 => self.steps.push(Step::Flush),
            72..80 => {
                let until = at.last + 1 + random.below(9);
                self.steps.push(Step::Append { from: at.last + 1, until, stray: true });
                // What is applied is committed, and never cut off.
                let after = at.last - random.below(4).min(at.last - at.applied.max(at.floor));
                self.steps.push(Step::Truncate { after });
                at.last = after;
            }
            80..86 => {
                let up_to = at.applied - random.below(3).min(at.applied - at.floor);
                if up_to > at.floor {
                    self.steps.extend([Step::Flush, Step::Purge { up_to }]);
                    at.floor = up_to;
                }
            }
            86..89 => {
                let to = at.last + 1 + random.below(20);
                self.steps.extend([Step::Install { to }, Step::Purge { up_to: to }]);
                *at = Position { last: to, applied: to, floor: to };
            }
            89..92 => self.steps.push(Step::Spool { number }),
            92..97 => self.steps.push(Step::File { number }),
            _ => self.steps.push(Step::Reopen),
        }
    }

    /// The log entry at an index.
    pub fn record(&self, index: u64, stray: bool) -> LogRecord {
        let mut random = Seed::new(index * 2 + u64::from(stray));
        let size = match random.below(40) {
            _ if index <= self.tiny => 2,
            0 => 300_000,
            1..4 => 100_000,
            _ => 20 + random.below(2_000) as usize,
        };
        LogRecord { log_id: log_id(index), payload: vec![random.next() as u8; size].into() }
    }

    /// What the state makes of the entry at an index.
    pub fn entry(&self, index: u64) -> ApplyEntry {
        let op = match self.content(index) {
            Content::Blank => ApplyOp::Blank,
            Content::Membership(bytes) => ApplyOp::Membership(bytes),
            Content::Checkpoint => ApplyOp::Command(command(index, Txn::default(), true)),
            Content::Piece => {
                let (piece, _) = staged(index);
                let request_id = request(index);
                let response = Bytes::copy_from_slice(&index.to_be_bytes());
                let txn = Txn { request_id, writes: piece, response, ..Txn::default() };
                ApplyOp::Command(command(index, txn, false))
            }
            Content::Activation(_) => {
                let (_, activation) = staged(index - 1);
                let response = Bytes::copy_from_slice(&index.to_be_bytes());
                let activate = Some(Box::new(activation));
                let txn = Txn { request_id: request(index), response, activate, ..Txn::default() };
                ApplyOp::Command(command(index, txn, false))
            }
            Content::Writes(writes) => {
                let writes = writes.into_iter().map(|(path, value)| match value {
                    Some(value) => Write::Put { key: key(&path), value },
                    None => Write::Delete { key: key(&path) },
                });
                let response = Bytes::copy_from_slice(&index.to_be_bytes());
                let txn =
                    Txn { request_id: request(index), writes: writes.collect(), response, ..Txn::default() };
                ApplyOp::Command(command(index, txn, false))
            }
        };
        ApplyEntry { log_id: log_id(index), op }
    }

    /// The same in words that a model understands.
    pub fn content(&self, index: u64) -> Content {
        if index <= self.tiny {
            return Content::Blank;
        }
        // What is staged by one entry becomes the state with the next.
        match index % RESTORES {
            1 => return Content::Piece,
            2 => return Content::Activation(restored(index - 1)),
            _ => {}
        }
        let n = Seed::new(index).below(1 << 20);
        let path = format!("f{}/g{}/{}", n % 5, n % 3, n % 17);
        let value = |size: usize| Some(Bytes::from(vec![index as u8; size]));
        Content::Writes(match n % 11 {
            0 => vec![(path, None), (format!("x{}", n % 4), value(40))],
            1 => return Content::Membership(vec![index as u8; 9].into()),
            2 => vec![(path, value(100_000))],
            3 => return Content::Checkpoint,
            4 => (0..30)
                .map(|k| (format!("many/{k}"), if n.is_multiple_of(2) { value(300) } else { None }))
                .collect(),
            _ => vec![(path, value(50))],
        })
    }
}

/// What an entry changes.
pub enum Content {
    Blank,
    Membership(Bytes),
    Checkpoint,
    Writes(Vec<(String, Option<Bytes>)>),
    Piece,
    Activation(Vec<(String, Bytes)>),
}

/// What the entry at an index stages.
fn restored(index: u64) -> Vec<(String, Bytes)> {
    let value = |n: u64| Bytes::from(vec![index as u8; if n == 3 { 100_000 } else { 300 }]);
    (0..20).map(|n| (format!("f{}/r{}/{n}", n % 3, index % 7), value(n))).collect()
}

/// The same as writes, and what makes it the state.
fn staged(index: u64) -> (Vec<Write>, Activation) {
    let mut pieces = Pieces::new([index as u8; 16], 60_000);
    restored(index).into_iter().for_each(|(path, value)| pieces.add(&key(&path), value));
    let mut writes: Vec<Write> = std::iter::from_fn(|| pieces.next_piece()).collect();
    let (last, activation) = pieces.finish();
    writes.extend(last);
    (writes, activation)
}

/// The name of the entry at an index.
pub fn log_id(index: u64) -> LogId {
    LogId { term: term(index), node: 1, index }
}

/// The vote that a step saves.
pub fn vote(term: u64) -> Vote {
    Vote { term, node: 1 + term % 3, committed: term.is_multiple_of(2) }
}

/// The request that the entry at an index answers.
pub fn request(index: u64) -> RequestId {
    let mut id = [7; 16];
    id[..8].copy_from_slice(&index.to_be_bytes());
    RequestId(id)
}

/// Where everything lies.
pub fn root() -> FolderKey {
    FolderKey::root([9; 16])
}

fn term(index: u64) -> u64 {
    1 + index / 100
}

fn command(index: u64, txn: Txn, checkpoint: bool) -> Command {
    let checkpoint = checkpoint.then(CheckpointMark::default);
    Command { term: term(index), sequence: index, cluster_time_ms: index, txn, checkpoint }
}

fn key(path: &str) -> RecordKey {
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
    let folders = folders.split('/').filter(|segment| !segment.is_empty());
    let folder = folders.fold(root(), |folder, segment| folder.folder(segment.as_bytes()).expect("valid"));
    folder.child(name.as_bytes()).expect("valid")
}

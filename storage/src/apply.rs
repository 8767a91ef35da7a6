//! The rules of applying one command: stale, duplicate, checks, writes, folders.
//!
//! Everything here is a function of the state and the entry, so that it ends alike on every node.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::StorageError;
use crate::ids::{LogId, Version};
use crate::keys::{FolderKey, RecordKey};
use crate::overlay::{Before, Change};
use crate::row::{self, Folder, Row};
use crate::state::{Applied, Outcome, Record};
use crate::txn::{Check, Command, Txn, Write};
use crate::window::Window;

/// What the rules read of the state.
pub(crate) trait Rows {
    /// The version of the record at `key`.
    fn record_version(&self, key: &[u8]) -> Result<Option<Version>, StorageError>;

    /// The folder at `key`.
    fn folder(&self, key: &[u8]) -> Result<Option<Folder>, StorageError>;

    /// What is at `key`, for whoever is about to change it.
    fn before(&self, key: &[u8]) -> Result<Before, StorageError>;
}

/// What a command does.
pub(crate) struct Plan {
    pub outcome: Outcome,
    pub changes: Vec<Change>,
    pub changed: Vec<RecordKey>,
}

impl Plan {
    /// No effect.
    pub fn nothing(outcome: Outcome) -> Self {
        Self { outcome, changes: Vec::new(), changed: Vec::new() }
    }
}

/// Decides what a command does; `applied` already takes its sequence and time unless it is stale.
pub(crate) fn plan(
    rows: &impl Rows,
    window: &Window,
    applied: &mut Applied,
    log_id: LogId,
    command: Command,
) -> Result<Plan, StorageError> {
    if let Some(outcome) = refusal(rows, window, applied, log_id, &command)? {
        return Ok(Plan::nothing(outcome));
    }
    let version = Version { generation: applied.generation, index: log_id.index };
    write(rows, version, command.txn)
}

/// How a command ends that must have no effect; `applied` already takes its sequence and time unless it is stale.
pub(crate) fn refusal(
    rows: &impl Rows,
    window: &Window,
    applied: &mut Applied,
    log_id: LogId,
    command: &Command,
) -> Result<Option<Outcome>, StorageError> {
    let sequence = (command.term, command.sequence);
    if command.term != log_id.term || sequence <= applied.last_sequence {
        return Ok(Some(Outcome::Stale));
    }
    applied.last_sequence = sequence;
    applied.cluster_time_ms = applied.cluster_time_ms.max(command.cluster_time_ms);
    let txn = &command.txn;
    if !txn.request_id.is_none()
        && let Some(first) = window.find(txn.request_id)
    {
        let (version, response) = (first.version, first.response.clone());
        return Ok(Some(Outcome::Duplicate { version, response }));
    }
    Ok(first_failure(rows, &txn.checks)?.map(|check| Outcome::Conflict { check }))
}

/// Position of the first check that does not hold.
pub(crate) fn first_failure(rows: &impl Rows, checks: &[Check]) -> Result<Option<usize>, StorageError> {
    for (at, check) in checks.iter().enumerate() {
        let holds = match check {
            Check::Record { key, version } => rows.record_version(&row::record_key(key))? == *version,
            Check::Children { folder, version } => {
                rows.folder(&row::folder_key(folder))?.map(|f| f.version) == *version
            }
        };
        if !holds {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

fn write(rows: &impl Rows, version: Version, txn: Txn) -> Result<Plan, StorageError> {
    let mut last: BTreeMap<RecordKey, Option<Bytes>> = BTreeMap::new();
    for write in txn.writes {
        match write {
            Write::Put { key, value } => last.insert(key, Some(value)),
            Write::Delete { key } => last.insert(key, None),
        };
    }
    let mut plan = Plan::nothing(Outcome::Applied { version });
    let mut folders = FolderChanges::default();
    for (key, value) in last {
        let at = row::record_key(&key);
        let before = rows.before(&at)?;
        let existed = !matches!(before, Before::Absent);
        if !existed && value.is_none() {
            continue;
        }
        if existed != value.is_some()
            && let Some(parent) = key.parent()
        {
            folders.child(parent, value.is_some());
        }
        let row = value.map(|value| Row::Record(Record { version, value }));
        plan.changes.push(Change { key: at.into(), row, before });
        plan.changed.push(key);
    }
    folders.settle(rows, version, &mut plan.changes)?;
    Ok(plan)
}

/// Names that appear and vanish, by folder, the deepest folders first.
#[derive(Default)]
struct FolderChanges(BTreeMap<(Reverse<usize>, FolderKey), i64>);

impl FolderChanges {
    /// A direct child of `folder` appears or vanishes.
    fn child(&mut self, folder: FolderKey, appears: bool) {
        *self.0.entry((Reverse(folder.depth()), folder)).or_default() += if appears { 1 } else { -1 };
    }

    /// Works upwards: a folder that gets its first child appears in its parent, one that loses its last
    /// vanishes there. What appears and vanishes within one entry changes nothing above it.
    fn settle(
        mut self,
        rows: &impl Rows,
        version: Version,
        changes: &mut Vec<Change>,
    ) -> Result<(), StorageError> {
        while let Some(((_, folder), delta)) = self.0.pop_first() {
            let at = row::folder_key(&folder);
            let was = rows.folder(&at)?;
            let before = was.map_or(0, |f| f.children);
            let children = before.checked_add_signed(delta).ok_or_else(|| {
                StorageError::damaged("a folder of the state counts fewer children than it has")
            })?;
            if (before == 0) != (children == 0)
                && let Some(parent) = folder.parent()
            {
                self.child(parent, before == 0);
            }
            if before > 0 || children > 0 {
                let row = (children > 0).then_some(Row::Folder(Folder { version, children }));
                let before = was.map_or(Before::Absent, |folder| Before::Row(Row::Folder(folder)));
                changes.push(Change { key: at.into(), row, before });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    #[cfg(not(feature = "test-no-request-window"))]
    use crate::ids::RequestId;
    use crate::window::Remembered;

    #[derive(Default)]
    struct Memory(HashMap<Bytes, Row>);

    impl Rows for Memory {
        fn record_version(&self, key: &[u8]) -> Result<Option<Version>, StorageError> {
            Ok(self.0.get(key).map(Row::version))
        }

        fn folder(&self, key: &[u8]) -> Result<Option<Folder>, StorageError> {
            match self.0.get(key) {
                Some(Row::Folder(folder)) => Ok(Some(*folder)),
                Some(Row::Record(_)) => panic!("a record in a folder's place"),
                None => Ok(None),
            }
        }

        fn before(&self, key: &[u8]) -> Result<Before, StorageError> {
            Ok(self.0.get(key).map_or(Before::Absent, |row| Before::Row(row.clone())))
        }
    }

    struct State {
        rows: Memory,
        window: Window,
        applied: Applied,
        index: u64,
    }

    impl State {
        fn new() -> Self {
            let applied = Applied { generation: 1, ..Applied::default() };
            Self { rows: Memory::default(), window: Window::default(), applied, index: 0 }
        }

        fn apply(&mut self, txn: Txn) -> Outcome {
            let sequence = self.index + 1;
            self.apply_as(1, sequence, 0, txn)
        }

        fn apply_as(&mut self, term: u64, sequence: u64, cluster_time_ms: u64, txn: Txn) -> Outcome {
            self.index += 1;
            let log_id = LogId { term: 1, node: 1, index: self.index };
            let (id, response) = (txn.request_id, txn.response.clone());
            let command = Command { term, sequence, cluster_time_ms, txn, checkpoint: None };
            let plan = plan(&self.rows, &self.window, &mut self.applied, log_id, command).expect("good");
            for Change { key, row, .. } in plan.changes {
                match row {
                    Some(row) => self.rows.0.insert(key, row),
                    None => self.rows.0.remove(&key),
                };
            }
            if let (Outcome::Applied { version }, false) = (&plan.outcome, id.is_none()) {
                self.window.record(Remembered { id, version: *version, response });
            }
            plan.outcome
        }

        fn write(&mut self, writes: Vec<Write>) -> u64 {
            let outcome = self.apply(Txn { writes, ..Txn::default() });
            assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
            self.index
        }

        fn folder(&self, folder: &FolderKey) -> Option<(u64, u64)> {
            let found = self.rows.folder(&row::folder_key(folder)).expect("good");
            found.map(|f| (f.version.index, f.children))
        }
    }

    fn root() -> FolderKey {
        FolderKey::root([9; 16])
    }

    fn put(folder: &FolderKey, name: &str) -> Write {
        let key = folder.child(name.as_bytes()).expect("valid");
        Write::Put { key, value: Bytes::from_static(b"v") }
    }

    fn delete(folder: &FolderKey, name: &str) -> Write {
        Write::Delete { key: folder.child(name.as_bytes()).expect("valid") }
    }

    #[test]
    fn a_folder_changes_when_a_name_appears_or_vanishes_and_else_not() {
        let mut state = State::new();
        let app = root().folder(b"app").expect("valid");
        let made = state.write(vec![put(&app, "a")]);
        assert_eq!((state.folder(&app), state.folder(&root())), (Some((made, 1)), Some((made, 1))));
        state.write(vec![put(&app, "a")]);
        assert_eq!(state.folder(&app), Some((made, 1)), "the name was there");
        let more = state.write(vec![put(&app, "b")]);
        assert_eq!((state.folder(&app), state.folder(&root())), (Some((more, 2)), Some((made, 1))));
        let record = state.write(vec![put(&root(), "app")]);
        assert_eq!(state.folder(&root()), Some((record, 2)), "a record beside the folder of its name");
        let gone = state.write(vec![delete(&app, "a"), delete(&app, "b"), delete(&app, "never")]);
        assert_eq!((state.folder(&app), state.folder(&root())), (None, Some((gone, 1))));
        state.write(vec![delete(&root(), "app")]);
        assert_eq!(state.folder(&root()), None);
    }

    #[test]
    fn a_folder_that_stays_through_an_entry_is_not_new_to_its_parent() {
        let mut state = State::new();
        let app = root().folder(b"app").expect("valid");
        let made = state.write(vec![put(&app, "a")]);
        let swapped = state.write(vec![delete(&app, "a"), put(&app, "b")]);
        assert_eq!(state.folder(&root()), Some((made, 1)));
        assert_eq!(state.folder(&app), Some((swapped, 1)), "but its names changed");
    }

    #[test]
    fn of_several_writes_to_a_record_the_last_wins() {
        let mut state = State::new();
        state.write(vec![put(&root(), "a"), delete(&root(), "a")]);
        assert!(state.rows.0.is_empty());
        state.write(vec![delete(&root(), "a"), put(&root(), "a")]);
        assert_eq!(state.folder(&root()), Some((2, 1)));
    }

    #[test]
    fn the_first_check_that_fails_is_named_and_nothing_lands() {
        let mut state = State::new();
        let index = state.write(vec![put(&root(), "a")]);
        let version = Some(Version { generation: 1, index });
        let a = root().child(b"a").expect("valid");
        let b = root().child(b"b").expect("valid");
        let good = vec![
            Check::Record { key: a.clone(), version },
            Check::Record { key: b.clone(), version: None },
            Check::Children { folder: root(), version },
        ];
        let bad = [
            Check::Record { key: a, version: None },
            Check::Record { key: b, version },
            Check::Children { folder: root(), version: None },
        ];
        for check in bad {
            let checks = good.iter().cloned().chain([check]).collect();
            let outcome = state.apply(Txn { checks, writes: vec![put(&root(), "x")], ..Txn::default() });
            assert_eq!(outcome, Outcome::Conflict { check: 3 });
        }
        let outcome = state.apply(Txn { checks: good, writes: vec![put(&root(), "x")], ..Txn::default() });
        assert!(matches!(outcome, Outcome::Applied { .. }));
        assert_eq!(state.folder(&root()).expect("there").1, 2);
    }

    #[test]
    fn a_stale_command_has_no_effect() {
        let mut state = State::new();
        let txn = || Txn { writes: vec![put(&root(), "a")], ..Txn::default() };
        assert_eq!(state.apply_as(2, 5, 100, txn()), Outcome::Stale, "of another term");
        assert!(matches!(state.apply_as(1, 5, 100, txn()), Outcome::Applied { .. }));
        assert_eq!(state.apply_as(1, 5, 200, txn()), Outcome::Stale, "seen before");
        assert_eq!(state.apply_as(1, 4, 200, txn()), Outcome::Stale, "overtaken");
        assert_eq!(state.applied.cluster_time_ms, 100);
        assert!(matches!(state.apply_as(1, 6, 50, txn()), Outcome::Applied { .. }));
        assert_eq!(state.applied.cluster_time_ms, 100, "time never goes back");
    }

    #[test]
    #[cfg(not(feature = "test-no-request-window"))]
    fn a_request_takes_effect_once() {
        let mut state = State::new();
        let txn = |response: &'static str| Txn {
            request_id: RequestId([4; 16]),
            writes: vec![put(&root(), "a")],
            response: Bytes::from_static(response.as_bytes()),
            ..Txn::default()
        };
        assert!(matches!(state.apply(txn("first")), Outcome::Applied { .. }));
        let version = Version { generation: 1, index: 1 };
        let response = Bytes::from_static(b"first");
        assert_eq!(state.apply(txn("second")), Outcome::Duplicate { version, response });
        assert_eq!(state.folder(&root()), Some((1, 1)));
    }
}

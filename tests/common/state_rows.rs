//! The rows of a node's state, while it is off: what somebody with its disk sees and can change.

#![allow(dead_code)] // each test uses what it needs

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use lsm_tree::{AbstractTree, AnyTree, Config, Guard, SequenceNumberCounter};

/// Rows by the tree that they are in, and by key.
pub type Rows = BTreeMap<(PathBuf, Vec<u8>), Vec<u8>>;

const NEWEST: u64 = u64::MAX >> 1;

fn open(dir: &Path) -> AnyTree {
    let counter = SequenceNumberCounter::default();
    Config::new(dir, counter.clone(), counter).open().unwrap()
}

/// The trees of a state: the current one, and others that a crash left.
fn trees(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("state")).unwrap();
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
}

/// All rows whose keys begin with `prefix`.
pub fn rows(data: &Path, prefix: &[u8]) -> Rows {
    let mut rows = Rows::new();
    for dir in trees(data) {
        for row in open(&dir).prefix(prefix, NEWEST, None) {
            let (key, value) = row.into_inner().unwrap();
            rows.insert((dir.clone(), key.to_vec()), value.to_vec());
        }
    }
    rows
}

/// Writes rows, or removes those that are `None`, as the node itself would have.
pub fn write<'a>(changes: impl IntoIterator<Item = (&'a (PathBuf, Vec<u8>), Option<&'a [u8]>)>) {
    for ((dir, key), value) in changes {
        let tree = open(dir);
        let sequence = tree.get_highest_persisted_seqno().unwrap() + 1;
        match value {
            Some(value) => tree.insert(key.as_slice(), value, sequence),
            None => tree.remove(key.as_slice(), sequence),
        };
        let lock = tree.get_flush_lock();
        tree.rotate_memtable();
        tree.flush(&lock, sequence + 1).unwrap();
    }
}

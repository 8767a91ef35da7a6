//! What one folder of a kv v2 mount does when it is asked one thing at a time.

use std::collections::BTreeMap;

use super::history::{Op, Ret};

/// A folder with its secrets; empty by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Folder {
    secrets: BTreeMap<u8, Secret>,
}

/// The current version of a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Secret {
    version: u64,
    /// Nothing if the version is deleted.
    value: Option<u64>,
}

impl Folder {
    /// Does one thing and gives the answer that is due.
    pub fn perform(&mut self, op: &Op) -> Ret {
        match *op {
            Op::Put { key, value } => self.write(key, value),
            Op::Cas { key, expected, value } => {
                let current = self.secrets.get(&key).map_or(0, |secret| secret.version);
                if current == expected { self.write(key, value) } else { Ret::Conflict }
            }
            Op::Delete { key } => {
                if let Some(secret) = self.secrets.get_mut(&key) {
                    secret.value = None;
                }
                Ret::Done
            }
            Op::Remove { key } => {
                self.secrets.remove(&key);
                Ret::Done
            }
            Op::Get { key } => match self.secrets.get(&key) {
                None => Ret::Absent,
                Some(Secret { version, value: None }) => Ret::Deleted(*version),
                Some(Secret { version, value: Some(value) }) => {
                    Ret::Found { version: *version, value: *value }
                }
            },
            Op::List => Ret::Listed(self.secrets.keys().copied().collect()),
        }
    }

    fn write(&mut self, key: u8, value: u64) -> Ret {
        let secret = self.secrets.entry(key).or_default();
        secret.version += 1;
        secret.value = Some(value);
        Ret::Written(secret.version)
    }
}

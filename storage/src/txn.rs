//! Transactions: what one log entry asks of the state.

use std::collections::BTreeSet;

use bincode::de::{Decode, Decoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};
use bytes::Bytes;

use crate::ids::{RequestId, Version};
use crate::keys::{FolderKey, RecordKey};

/// Most operations that one entry may cost, writes and derived folder rows counted.
///
/// An entry is applied in one go, while nothing else is.
pub const MAX_OPERATIONS: usize = 500;

/// Something that was read and must still be so when the transaction is applied.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub enum Check {
    /// The record has this version; `None` means that it does not exist.
    Record {
        /// The record.
        key: RecordKey,
        /// Its version when it was read.
        version: Option<Version>,
    },
    /// The names of the direct children have not changed; `None` means that there are none.
    Children {
        /// The folder.
        folder: FolderKey,
        /// The version of its children when they were read.
        version: Option<Version>,
    },
}

/// One change of one record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Creates or replaces the record.
    Put {
        /// The record.
        key: RecordKey,
        /// Its (sealed) value.
        value: Bytes,
    },
    /// Removes the record, if it exists.
    Delete {
        /// The record.
        key: RecordKey,
    },
}

impl Write {
    /// The record that is changed.
    pub fn key(&self) -> &RecordKey {
        match self {
            Write::Put { key, .. } | Write::Delete { key } => key,
        }
    }
}

/// What is staged becomes the state: every record that the pieces hold, and what is kept of the present one.
///
/// The records that the pieces hold get the version of the entry that does it, so that nothing that was read before
/// still holds after it by chance; what is kept keeps its own.
#[derive(Clone, PartialEq, Eq, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct Activation {
    /// Whose pieces: [`RecordKey::staged`] with sequences from 0 on.
    pub restore: [u8; 16],
    /// How many pieces there are.
    pub pieces: u64,
    /// Records in all of them.
    pub rows: u64,
    /// BLAKE3 over the bytes of all of them, in order.
    pub digest: [u8; 32],
    /// Records that stay as they are now, present or absent, whatever the pieces hold.
    pub keep: Vec<RecordKey>,
    /// Below these folders a record stays only if it is there now and in the pieces, and it stays as it is now.
    pub meet: Vec<FolderKey>,
}

/// One transaction: all checks hold and all writes land, or nothing happens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// The request that it answers; [`RequestId::NONE`] is not recorded.
    pub request_id: RequestId,
    /// What must still be so.
    pub checks: Vec<Check>,
    /// What changes; of several writes to one record the last wins.
    pub writes: Vec<Write>,
    /// The (sealed) answer, kept in the request window.
    pub response: Bytes,
    /// Makes what is staged the state, in place of `writes`. If it is not what it should be, the outcome is a conflict
    /// past the last check.
    pub activate: Option<Box<Activation>>,
}

/// What the proposer knows about an earlier state, for comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, bincode::Encode, bincode::Decode)]
pub struct CheckpointMark {
    /// Index and digest that the proposer had; `None` if it had none yet.
    pub of: Option<(u64, [u8; 32])>,
}

/// A transaction with what the leader's queue added.
#[derive(Clone, PartialEq, Eq, Debug, bincode::Encode, bincode::Decode)]
pub struct Command {
    /// Term in which the leader proposed it; an entry of another term is stale.
    pub term: u64,
    /// Position in the leader's queue; it grows within a term.
    pub sequence: u64,
    /// Cluster time in milliseconds since the Unix epoch.
    pub cluster_time_ms: u64,
    /// The transaction.
    pub txn: Txn,
    /// Makes every node compute the digest at this index.
    pub checkpoint: Option<CheckpointMark>,
}

/// Operations that applying the transaction costs at worst: every distinct record and every folder above
/// one of them. A proposer refuses more than [`MAX_OPERATIONS`].
pub fn operation_count(txn: &Txn) -> usize {
    let mut records = BTreeSet::new();
    let mut folders = BTreeSet::new();
    for write in &txn.writes {
        if !records.insert(write.key().as_bytes()) {
            continue;
        }
        let mut above = write.key().parent();
        while let Some(folder) = above {
            above = folder.parent();
            if !folders.insert(folder) {
                break; // and so are all above it
            }
        }
    }
    records.len() + folders.len()
}

const PUT: u8 = 0;
const DELETE: u8 = 1;

impl Encode for Write {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        match self {
            Write::Put { key, value } => {
                PUT.encode(encoder)?;
                key.encode(encoder)?;
                value.as_ref().encode(encoder)
            }
            Write::Delete { key } => {
                DELETE.encode(encoder)?;
                key.encode(encoder)
            }
        }
    }
}

impl<Context> Decode<Context> for Write {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        match u8::decode(decoder)? {
            PUT => {
                let key = RecordKey::decode(decoder)?;
                Ok(Write::Put { key, value: Vec::<u8>::decode(decoder)?.into() })
            }
            DELETE => Ok(Write::Delete { key: RecordKey::decode(decoder)? }),
            other => Err(DecodeError::OtherString(format!("unknown kind of write {other}"))),
        }
    }
}

impl Encode for Txn {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.request_id.encode(encoder)?;
        self.checks.encode(encoder)?;
        self.writes.encode(encoder)?;
        self.response.as_ref().encode(encoder)?;
        self.activate.encode(encoder)
    }
}

impl<Context> Decode<Context> for Txn {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        Ok(Txn {
            request_id: RequestId::decode(decoder)?,
            checks: Vec::decode(decoder)?,
            writes: Vec::decode(decoder)?,
            response: Vec::<u8>::decode(decoder)?.into(),
            activate: Option::decode(decoder)?,
        })
    }
}

bincode::impl_borrow_decode!(Write);
bincode::impl_borrow_decode!(Txn);

#[cfg(test)]
mod tests {
    use super::*;

    fn put(folder: &FolderKey, name: &[u8]) -> Write {
        Write::Put { key: folder.child(name).expect("valid"), value: Bytes::from_static(b"v") }
    }

    #[test]
    fn shared_folders_are_counted_once() {
        let root = FolderKey::root([1; 16]);
        let deep = root.folder(b"a").and_then(|f| f.folder(b"b")).expect("valid");
        let writes = vec![put(&deep, b"x"), put(&deep, b"y"), put(&root, b"z"), put(&root, b"z")];
        let txn = Txn { writes, ..Txn::default() };
        assert_eq!(operation_count(&txn), 3 + 3);
    }

    #[test]
    fn a_command_survives_its_encoding() {
        let root = FolderKey::root([1; 16]);
        let key = root.child(b"k").expect("valid");
        let version = Some(Version { generation: 1, index: 9 });
        let command = Command {
            term: 3,
            sequence: 4,
            cluster_time_ms: 5,
            txn: Txn {
                request_id: RequestId([6; 16]),
                checks: vec![
                    Check::Record { key: key.clone(), version },
                    Check::Children { folder: root.clone(), version: None },
                ],
                writes: vec![put(&root, b"x"), Write::Delete { key }],
                response: Bytes::from_static(b"sealed"),
                activate: Some(Box::new(Activation { meet: vec![root.clone()], ..Activation::default() })),
            },
            checkpoint: Some(CheckpointMark { of: Some((7, [8; 32])) }),
        };
        let config = bincode::config::standard();
        let bytes = bincode::encode_to_vec(&command, config).expect("encodes");
        let (back, used) = bincode::decode_from_slice::<Command, _>(&bytes, config).expect("decodes");
        assert_eq!((back, used), (command, bytes.len()));
    }
}

//! Records on their way through the log: cut into pieces that are staged one by one and activated together.

use bytes::Bytes;

use crate::ids::Version;
use crate::keys::RecordKey;
use crate::row::{self, Row};
use crate::snapshot::write_row;
use crate::state::Record;
use crate::txn::{Activation, Write};

/// Cuts records into the pieces of a restore.
///
/// A piece is written by [`Write::Put`] in a transaction of its own; writing one twice changes nothing. Folders are
/// not in them: they follow from the records.
pub struct Pieces {
    activation: Activation,
    piece_bytes: usize,
    pending: Vec<u8>,
    hasher: blake3::Hasher,
}

impl Pieces {
    /// Begins the pieces of `restore`, of `piece_bytes` each.
    pub fn new(restore: [u8; 16], piece_bytes: usize) -> Self {
        let activation = Activation { restore, ..Activation::default() };
        Self { activation, piece_bytes, pending: Vec::new(), hasher: blake3::Hasher::new() }
    }

    /// Adds a record. No record may come twice.
    pub fn add(&mut self, key: &RecordKey, value: Bytes) {
        let row = Row::Record(Record { version: Version { generation: 0, index: 0 }, value });
        write_row(&mut self.pending, &row::record_key(key), &row);
        self.activation.rows += 1;
    }

    /// The next whole piece, if there is one.
    pub fn next_piece(&mut self) -> Option<Write> {
        (self.pending.len() >= self.piece_bytes).then(|| {
            let rest = self.pending.split_off(self.piece_bytes);
            self.put(rest)
        })
    }

    /// The last piece, if there is one, and what makes all of them the state, still without what is kept.
    pub fn finish(mut self) -> (Option<Write>, Activation) {
        let last = (!self.pending.is_empty()).then(|| self.put(Vec::new()));
        self.activation.digest = self.hasher.finalize().into();
        (last, self.activation)
    }

    fn put(&mut self, rest: Vec<u8>) -> Write {
        let piece = std::mem::replace(&mut self.pending, rest);
        self.hasher.update(&piece);
        let key = RecordKey::staged(self.activation.restore, self.activation.pieces);
        self.activation.pieces += 1;
        Write::Put { key, value: piece.into() }
    }
}

//! The state digest: an additive set hash over rows, so that it follows every change without a scan.
//!
//! LtHash with 1,024 lanes of 16 bits (Bellare and Micciancio 1997; Lewi et al. 2019): a row adds the
//! BLAKE3 extendable output of (type tag, length and bytes of its key, version, value) to the lanes,
//! removing subtracts the same. The digest at an index is BLAKE3 over the lanes, the running hash of the
//! request window, and what the state knows of itself.

use bytes::Bytes;

use crate::codec;
use crate::ids::LogId;
use crate::row::Row;
use crate::state::Applied;

const LANES: usize = 1024;
const LANE_BYTES: usize = LANES * 2;

/// The lanes of the set hash.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct LtHash(Box<[u16; LANES]>);

impl Default for LtHash {
    fn default() -> Self {
        Self(Box::new([0; LANES]))
    }
}

impl LtHash {
    /// Adds a row that appeared.
    pub fn add(&mut self, key: &[u8], row: &Row) {
        let bytes = element(key, row);
        for (lane, bytes) in self.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *lane = lane.wrapping_add(u16::from_le_bytes(*bytes));
        }
    }

    /// Removes a row that vanished.
    pub fn remove(&mut self, key: &[u8], row: &Row) {
        let bytes = element(key, row);
        for (lane, bytes) in self.0.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *lane = lane.wrapping_sub(u16::from_le_bytes(*bytes));
        }
    }

    /// The lanes, little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|lane| lane.to_le_bytes()).collect()
    }

    /// Lanes from bytes of the right length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut lanes = Self::default();
        let (chunks, rest) = bytes.as_chunks::<2>();
        if chunks.len() != LANES || !rest.is_empty() {
            return None;
        }
        for (lane, bytes) in lanes.0.iter_mut().zip(chunks) {
            *lane = u16::from_le_bytes(*bytes);
        }
        Some(lanes)
    }
}

/// The digest of a whole state.
pub(crate) fn digest(lanes: &LtHash, window_hash: &[u8; 32], applied: &Applied) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"keystead/v1/state\0");
    hasher.update(&lanes.to_bytes());
    hasher.update(window_hash);
    hasher.update(&codec::encode(1, &plain(applied)));
    hasher.finalize().into()
}

/// What the state knows of itself, as it is encoded.
pub(crate) type PlainApplied = (Option<LogId>, Option<(LogId, Vec<u8>)>, u64, u32, (u64, u64));

/// Takes apart what has no encoding of its own.
pub(crate) fn plain(applied: &Applied) -> PlainApplied {
    let membership = applied.membership.as_ref().map(|(id, bytes)| (*id, bytes.to_vec()));
    (applied.log_id, membership, applied.cluster_time_ms, applied.generation, applied.last_sequence)
}

/// Puts together what [`plain`] took apart.
pub(crate) fn from_plain(plain: PlainApplied) -> Applied {
    let (log_id, membership, cluster_time_ms, generation, last_sequence) = plain;
    let membership = membership.map(|(id, bytes)| (id, Bytes::from(bytes)));
    Applied { log_id, membership, cluster_time_ms, generation, last_sequence }
}

fn element(key: &[u8], row: &Row) -> [u8; LANE_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(match row {
        Row::Record(_) => b"keystead/v1/record\0",
        Row::Folder(_) => b"keystead/v1/folder\0",
    });
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(&row.version().to_bytes());
    match row {
        Row::Record(record) => {
            hasher.update(&(record.value.len() as u64).to_be_bytes());
            hasher.update(&record.value);
        }
        Row::Folder(folder) => {
            hasher.update(&folder.children.to_be_bytes());
        }
    }
    let mut out = [0; LANE_BYTES];
    hasher.finalize_xof().fill(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Version;
    use crate::state::Record;

    fn row(index: u64, value: &'static [u8]) -> Row {
        let version = Version { generation: 1, index };
        Row::Record(Record { version, value: Bytes::from_static(value) })
    }

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (mut a, mut b) = (LtHash::default(), LtHash::default());
        a.add(b"c1", &row(1, b"x"));
        a.add(b"c2", &row(2, b"y"));
        b.add(b"c2", &row(2, b"y"));
        b.add(b"c3", &row(3, b"z"));
        b.add(b"c1", &row(1, b"x"));
        assert!(a != b);
        b.remove(b"c3", &row(3, b"z"));
        assert!(a == b);
        assert!(LtHash::from_bytes(&a.to_bytes()) == Some(b));
    }

    #[test]
    fn key_version_and_value_all_count() {
        let of = |key: &[u8], row: Row| {
            let mut lanes = LtHash::default();
            lanes.add(key, &row);
            digest(&lanes, &[0; 32], &Applied::default())
        };
        let base = of(b"c1", row(1, b"x"));
        assert_ne!(base, of(b"c2", row(1, b"x")));
        assert_ne!(base, of(b"c1", row(2, b"x")));
        assert_ne!(base, of(b"c1", row(1, b"y")));
        let moved = Applied { cluster_time_ms: 1, ..Applied::default() };
        assert_ne!(
            digest(&LtHash::default(), &[0; 32], &moved),
            digest(&LtHash::default(), &[0; 32], &Applied::default())
        );
    }
}

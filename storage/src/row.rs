//! How the state lies in a tree: keys that sort as listings need them, and rows.
//!
//! The first byte of a key is its area: `c` clear records, `s` sealed records, `f` folders, `r` staged pieces of a
//! snapshot, `p` parts of large values, `w` the request window, `m` the state's own record. A sealed record is `s`, the uuid of
//! the mount, every folder segment escaped and closed by `00 01`, and the last segment escaped and closed
//! by `00 00`; escaping turns `00` into `00 FF`. So the names in a folder sort by (segment, folder), all
//! below a folder lies together, and a listing steps over a folder with one seek. A folder is `f`, the
//! uuid, its segments closed by `00 01`.
//!
//! A row is format and kind in a byte, the version's generation and index in as many bytes as they need (seven bits
//! in each, the lowest first), body, `u32` CRC32 of all that. A value of more than 60 KiB is cut into
//! parts, whose keys carry the version: a reader never joins parts of two writes.

use bytes::{Buf, Bytes};

use crate::error::StorageError;
use crate::ids::Version;
use crate::keys::{CLEAR, FolderKey, InvalidKey, RecordKey, SEALED, STAGED};
use crate::state::{Child, Record};

/// Area of folder rows.
pub(crate) const FOLDER: u8 = b'f';
const PART: u8 = b'p';
/// Areas that belong to snapshots and to the digest.
pub(crate) const DATA_AREAS: [u8; 4] = [CLEAR, FOLDER, STAGED, SEALED];

/// Largest value that lies in its row; larger ones are cut into parts of this size.
pub(crate) const INLINE_BYTES: usize = 60 * 1024;
/// Largest value: it came in one log entry.
const MAX_VALUE_BYTES: usize = crate::log_frame::MAX_PAYLOAD_BYTES;

const FORMAT: u8 = 2;
const KIND_INLINE: u8 = 0;
const KIND_SPLIT: u8 = 1;
const KIND_FOLDER: u8 = 2;
/// Bytes before the body at most.
const HEADER_BYTES: usize = 1 + 5 + 10;
const CRC_BYTES: usize = 4;

const CLOSE_RECORD: u8 = 0x00;
const CLOSE_FOLDER: u8 = 0x01;
const PAST_FOLDER: u8 = 0x02;

/// What a key holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Row {
    Record(Record),
    Folder(Folder),
}

/// A folder that has children.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Folder {
    /// When a name appeared or vanished last.
    pub version: Version,
    /// Number of direct children.
    pub children: u64,
}

impl Row {
    /// The version of the record, or of the folder's children.
    pub fn version(&self) -> Version {
        match self {
            Row::Record(record) => record.version,
            Row::Folder(folder) => folder.version,
        }
    }

    /// The same row in memory of its own: a value that was replicated is a piece of a whole log entry.
    pub fn detached(&self) -> Self {
        match self {
            Row::Record(record) => {
                let value = Bytes::copy_from_slice(&record.value);
                Row::Record(Record { version: record.version, value })
            }
            Row::Folder(folder) => Row::Folder(*folder),
        }
    }

    /// Bytes of memory that the row and its key take, roughly.
    pub fn weight(key: &[u8], row: Option<&Row>) -> usize {
        let value = match row {
            Some(Row::Record(record)) => record.value.len(),
            _ => 0,
        };
        key.len() + value + 128
    }
}

/// A row as read, before its parts.
pub(crate) enum Stored {
    Whole(Row),
    Split(Split),
}

/// A value that lies in parts.
pub(crate) struct Split {
    pub version: Version,
    total: u32,
    crc: u32,
}

/// The key of a record.
pub(crate) fn record_key(key: &RecordKey) -> Vec<u8> {
    match key.split() {
        None => key.as_bytes().to_vec(),
        Some((folder, segment)) => {
            let mut out = children_prefix(&folder);
            escape(&mut out, segment);
            out.extend([0, CLOSE_RECORD]);
            out
        }
    }
}

/// The record that a key stands for.
///
/// # Errors
/// [`InvalidKey`] if the key is none that [`record_key`] gives.
pub(crate) fn record_of(key: &[u8]) -> Result<RecordKey, InvalidKey> {
    if key.first() != Some(&SEALED) {
        return RecordKey::parse(key);
    }
    let bad = InvalidKey("escaped wrongly");
    let (mount, mut rest) = key.split_at_checked(1 + 16).ok_or(bad)?;
    let mut out = mount.to_vec();
    loop {
        let length_at = out.len();
        out.extend([0, 0]);
        let folder = loop {
            match *rest {
                [0, 0xff, ref later @ ..] => {
                    out.push(0);
                    rest = later;
                }
                [0, CLOSE_RECORD] => break false,
                [0, CLOSE_FOLDER, ref later @ ..] => {
                    rest = later;
                    break true;
                }
                [0, ..] | [] => return Err(bad),
                [byte, ref later @ ..] => {
                    out.push(byte);
                    rest = later;
                }
            }
        };
        let length = u16::try_from(out.len() - length_at - 2).map_err(|_| bad)?;
        out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        if !folder {
            return RecordKey::parse(out);
        }
    }
}

/// The key of a folder.
pub(crate) fn folder_key(folder: &FolderKey) -> Vec<u8> {
    let mut out = children_prefix(folder);
    out[0] = FOLDER;
    out
}

/// What the keys of all records in and below a folder begin with.
pub(crate) fn children_prefix(folder: &FolderKey) -> Vec<u8> {
    let mut out = Vec::with_capacity(folder.as_bytes().len() + 24);
    out.push(SEALED);
    out.extend_from_slice(folder.mount());
    for segment in folder.segments() {
        escape(&mut out, segment);
        out.extend([0, CLOSE_FOLDER]);
    }
    out
}

/// The first key after all that begin with `prefix`; `None` if there can be none.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let at = prefix.iter().rposition(|&b| b != 0xff)?;
    let mut end = prefix[..=at].to_vec();
    end[at] += 1;
    Some(end)
}

/// The child of a folder that a key stands for, given what follows the folder's prefix.
pub(crate) fn child_of(suffix: &[u8]) -> Result<Child, StorageError> {
    let bad = || StorageError::damaged("a key of the state cannot be read");
    let mut segment = Vec::with_capacity(suffix.len());
    let mut bytes = suffix.iter();
    loop {
        match *bytes.next().ok_or_else(bad)? {
            0 => match *bytes.next().ok_or_else(bad)? {
                0xff => segment.push(0),
                CLOSE_RECORD => return Ok(Child { segment, folder: false }),
                CLOSE_FOLDER => return Ok(Child { segment, folder: true }),
                _ => return Err(bad()),
            },
            byte => segment.push(byte),
        }
    }
}

/// The first key after a child and all that is below it.
pub(crate) fn past_child(prefix: &[u8], child: &Child) -> Vec<u8> {
    let mut out = prefix.to_vec();
    escape(&mut out, &child.segment);
    out.extend([0, if child.folder { PAST_FOLDER } else { CLOSE_FOLDER }]);
    out
}

fn escape(out: &mut Vec<u8>, segment: &[u8]) {
    for &byte in segment {
        out.push(byte);
        if byte == 0 {
            out.push(0xff);
        }
    }
}

/// Encodes a row; a large value comes back as parts to be written before it.
pub(crate) fn encode(key: &[u8], row: &Row) -> (Vec<u8>, Vec<(Vec<u8>, Bytes)>) {
    let (kind, version, body_bytes) = match row {
        Row::Record(record) if record.value.len() > INLINE_BYTES => (KIND_SPLIT, record.version, 8),
        Row::Record(record) => (KIND_INLINE, record.version, record.value.len()),
        Row::Folder(folder) => (KIND_FOLDER, folder.version, 8),
    };
    let mut out = Vec::with_capacity(HEADER_BYTES + body_bytes + CRC_BYTES);
    out.push(FORMAT << 4 | kind);
    put_number(&mut out, version.generation.into());
    put_number(&mut out, version.index);
    let mut parts = Vec::new();
    match row {
        Row::Folder(folder) => out.extend_from_slice(&folder.children.to_be_bytes()),
        Row::Record(record) if kind == KIND_INLINE => out.extend_from_slice(&record.value),
        Row::Record(record) => {
            let total = u32::try_from(record.value.len()).expect("values are below 4 GiB");
            out.extend_from_slice(&total.to_be_bytes());
            out.extend_from_slice(&crc32fast::hash(&record.value).to_be_bytes());
            let chunks = (0..record.value.len())
                .step_by(INLINE_BYTES)
                .map(|at| record.value.slice(at..record.value.len().min(at + INLINE_BYTES)));
            parts.extend((0u16..).zip(chunks).map(|(n, chunk)| (part_key(key, version, n), chunk)));
        }
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    (out, parts)
}

/// Reads a row.
pub(crate) fn decode(bytes: &[u8]) -> Result<Stored, StorageError> {
    let bad = |why: &str| StorageError::damaged(format!("a row of the state cannot be read ({why})"));
    let (covered, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or_else(|| bad("cut off"))?;
    if crc32fast::hash(covered) != u32::from_be_bytes(*crc) {
        return Err(bad("wrong checksum"));
    }
    let (first, mut body) = covered.split_first().ok_or_else(|| bad("cut off"))?;
    let (format, kind) = (first >> 4, first & 0xf);
    if format != FORMAT {
        return Err(bad(&format!("format {format}, this release knows {FORMAT}")));
    }
    let generation = take_number(&mut body).and_then(|number| u32::try_from(number).ok());
    let (Some(generation), Some(index)) = (generation, take_number(&mut body)) else {
        return Err(bad("no version"));
    };
    let version = Version { generation, index };
    match (kind, body.len()) {
        (KIND_INLINE, _) => {
            let value = Bytes::copy_from_slice(body);
            Ok(Stored::Whole(Row::Record(Record { version, value })))
        }
        (KIND_SPLIT, 8) => {
            let (total, crc) = (body.get_u32(), body.get_u32());
            if (INLINE_BYTES + 1..=MAX_VALUE_BYTES).contains(&(total as usize)) {
                Ok(Stored::Split(Split { version, total, crc }))
            } else {
                Err(bad("parts that no value is cut into"))
            }
        }
        (KIND_FOLDER, 8) => Ok(Stored::Whole(Row::Folder(Folder { version, children: body.get_u64() }))),
        _ => Err(bad("unknown kind")),
    }
}

/// Writes a number in groups of seven bits, the lowest first; all but the last are marked.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads what [`put_number`] wrote, and nothing that it would have written otherwise.
fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let group = u64::from(byte & 0x7f);
        if group << shift >> shift != group {
            return None;
        }
        number |= group << shift;
        if *byte < 0x80 {
            return (*byte != 0 || shift == 0).then_some(number);
        }
    }
    None
}

/// Where the parts of a value lie.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    pub version: Version,
    count: u16,
}

impl Parts {
    fn of(version: Version, total: usize) -> Self {
        let count = u16::try_from(total.div_ceil(INLINE_BYTES)).expect("no value has so many parts");
        Self { version, count }
    }

    /// Keys of the parts, in order.
    pub fn keys(self, key: &[u8]) -> impl Iterator<Item = Vec<u8>> {
        (0..self.count).map(move |n| part_key(key, self.version, n))
    }
}

/// Where the parts of a row lie once it is written; `None` if it has none.
pub(crate) fn split_of(row: &Row) -> Option<Parts> {
    match row {
        Row::Record(record) if record.value.len() > INLINE_BYTES => {
            Some(Parts::of(record.version, record.value.len()))
        }
        Row::Record(_) | Row::Folder(_) => None,
    }
}

impl Split {
    /// Where the parts lie.
    pub fn at(&self) -> Parts {
        Parts::of(self.version, self.total as usize)
    }

    /// Joins the parts.
    pub fn join(&self, parts: &[lsm_tree::Slice]) -> Result<Row, StorageError> {
        let value = parts.concat();
        if value.len() != self.total as usize || crc32fast::hash(&value) != self.crc {
            return Err(StorageError::damaged("a large value of the state has a wrong checksum"));
        }
        Ok(Row::Record(Record { version: self.version, value: value.into() }))
    }
}

fn part_key(key: &[u8], version: Version, part: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + 4 + key.len() + Version::BYTES + 2);
    out.push(PART);
    out.extend_from_slice(&u32::try_from(key.len()).expect("keys are short").to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(&version.to_bytes());
    out.extend_from_slice(&part.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(0xff), any::<u8>()], 1..6)
    }

    proptest! {
        #[test]
        fn keys_sort_as_listings_do(a in segment(), b in segment(), fa: bool, fb: bool) {
            let root = FolderKey::root([3; 16]);
            let key = |segment: &[u8], folder: bool| match folder {
                false => record_key(&root.child(segment).expect("valid")),
                true => record_key(&root.folder(segment).and_then(|f| f.child(b"x")).expect("valid")),
            };
            let (ka, kb) = (key(&a, fa), key(&b, fb));
            let (ca, cb) = (Child { segment: a, folder: fa }, Child { segment: b, folder: fb });
            prop_assert_eq!(ka.cmp(&kb), ca.cmp(&cb));
            prop_assert_eq!(record_of(&ka).map(|key| record_key(&key)), Ok(ka.clone()));
            prop_assert!(record_of(&ka[..ka.len() - 1]).is_err());
            let prefix = children_prefix(&root);
            prop_assert_eq!(&child_of(&ka[prefix.len()..]).expect("a child"), &ca);
            prop_assert!(ka < past_child(&prefix, &ca));
            if ca < cb {
                prop_assert!(past_child(&prefix, &ca) <= kb);
            }
        }
    }

    #[test]
    fn a_flipped_bit_in_a_row_is_noticed() {
        let version = Version { generation: 1, index: 9 };
        let row = Row::Record(Record { version, value: Bytes::from_static(b"value") });
        let (good, parts) = encode(b"ckey", &row);
        assert!(parts.is_empty());
        assert!(matches!(decode(&good), Ok(Stored::Whole(read)) if read == row));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_large_value_is_cut_and_joined() {
        let version = Version { generation: 1, index: 9 };
        let value = Bytes::from(vec![7; INLINE_BYTES * 2 + 1]);
        let row = Row::Record(Record { version, value });
        let (main, parts) = encode(b"ckey", &row);
        let Ok(Stored::Split(split)) = decode(&main) else { panic!("not split") };
        let keys: Vec<_> = split.at().keys(b"ckey").collect();
        assert_eq!(split_of(&row).map(|parts| parts.keys(b"ckey").collect()), Some(keys.clone()));
        assert_eq!(keys, parts.iter().map(|(k, _)| k.clone()).collect::<Vec<_>>());
        let stored: Vec<lsm_tree::Slice> = parts.iter().map(|(_, v)| v.as_ref().into()).collect();
        assert_eq!(split.join(&stored).expect("whole"), row);
        assert!(split.join(&stored[1..]).is_err());
    }

    #[test]
    fn a_number_comes_back_and_has_one_form() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            let mut rest = &bytes[..];
            assert_eq!((take_number(&mut rest), rest), (Some(number), &[][..]));
            for cut in 0..bytes.len() {
                assert_eq!(take_number(&mut &bytes[..cut]), None);
            }
        }
        for bad in [&[0x80, 0][..], &[0xff, 0x80, 0], &[0xff; 10], &[0x80; 10]] {
            assert_eq!(take_number(&mut &*bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_row_that_claims_more_parts_than_a_value_has_is_damaged() {
        let version = Version { generation: 1, index: 9 };
        let row = Row::Record(Record { version, value: vec![7; INLINE_BYTES + 1].into() });
        let (good, _) = encode(b"ckey", &row);
        for total in [0, 1, INLINE_BYTES as u32, MAX_VALUE_BYTES as u32 + 1, u32::MAX] {
            let mut bad = good[..good.len() - CRC_BYTES].to_vec();
            let body = bad.len() - 8;
            bad[body..body + 4].copy_from_slice(&total.to_be_bytes());
            let crc = crc32fast::hash(&bad);
            bad.extend_from_slice(&crc.to_be_bytes());
            assert!(decode(&bad).is_err(), "{total}");
        }
    }
}

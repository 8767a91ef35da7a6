//! What lies in the chunks: rows in the order of their keys, then the remembered requests in theirs.
//!
//! Each item is a tag byte and, for a row, `u32` length and bytes of the key, the version, and `u32` length
//! and bytes of the value, or the `u64` number of children. Items run over the ends of chunks.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::StorageError;
use crate::ids::Version;
use crate::keys::MAX_KEY_BYTES;
use crate::row::{Folder, Row};
use crate::state::Record;
use crate::window::Remembered;

const TAG_RECORD: u8 = 1;
const TAG_FOLDER: u8 = 2;
const TAG_REQUEST: u8 = 3;

/// Escaping doubles a key at most; the rest is area and closing bytes.
const KEY_LIMIT: usize = 2 * MAX_KEY_BYTES + 1024;
/// Largest item that is waited for; what is larger is damaged or hostile.
const ITEM_LIMIT: usize = 32 * 1024 * 1024;

/// One item.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Row(Bytes, Row),
    Request(Remembered),
}

/// Encodes a row.
pub(crate) fn write_row(out: &mut Vec<u8>, key: &[u8], row: &Row) {
    let bytes = |out: &mut Vec<u8>, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).expect("keys and values are below 4 GiB");
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(bytes);
    };
    out.push(match row {
        Row::Record(_) => TAG_RECORD,
        Row::Folder(_) => TAG_FOLDER,
    });
    bytes(out, key);
    out.extend_from_slice(&row.version().to_bytes());
    match row {
        Row::Record(record) => bytes(out, &record.value),
        Row::Folder(folder) => out.extend_from_slice(&folder.children.to_be_bytes()),
    }
}

/// Encodes a request.
pub(super) fn write_request(out: &mut Vec<u8>, request: &Remembered) {
    out.push(TAG_REQUEST);
    request.encode(out);
}

/// Puts items together again from chunks.
#[derive(Default)]
pub(crate) struct Items(BytesMut);

impl Items {
    /// Adds a chunk.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(chunk);
    }

    /// Whether an item is there in part.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes of the item that is there in part.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The next whole item, if there is one.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] for what cannot become an item.
    pub fn next(&mut self) -> Result<Option<Item>, StorageError> {
        let mut rest = &self.0[..];
        let Some(item) = parse(&mut rest)? else {
            if self.0.len() > ITEM_LIMIT {
                return Err(bad("an item is too large"));
            }
            return Ok(None);
        };
        let used = self.0.len() - rest.len();
        self.0.advance(used);
        Ok(Some(item))
    }
}

fn bad(why: &str) -> StorageError {
    StorageError::Damaged {
        what: format!("the snapshot cannot be read: {why}"),
        remedy: "nothing was changed; fetch it again".to_owned(),
    }
}

fn parse(bytes: &mut &[u8]) -> Result<Option<Item>, StorageError> {
    let Some((&tag, rest)) = bytes.split_first() else { return Ok(None) };
    let mut rest = rest;
    let item = match tag {
        TAG_RECORD | TAG_FOLDER => parse_row(tag, &mut rest)?,
        TAG_REQUEST => parse_request(&mut rest),
        _ => return Err(bad("unknown kind of item")),
    };
    if item.is_some() {
        *bytes = rest;
    }
    Ok(item)
}

fn parse_row(tag: u8, bytes: &mut &[u8]) -> Result<Option<Item>, StorageError> {
    let Some(length) = length(bytes) else { return Ok(None) };
    if length == 0 || length > KEY_LIMIT {
        return Err(bad("a key has an impossible length"));
    }
    let Some(key) = take(bytes, length) else { return Ok(None) };
    let Some(mut version) = take(bytes, Version::BYTES) else { return Ok(None) };
    let version = Version { generation: version.get_u32(), index: version.get_u64() };
    let row = if tag == TAG_FOLDER {
        let Some(mut children) = take(bytes, 8) else { return Ok(None) };
        Row::Folder(Folder { version, children: children.get_u64() })
    } else {
        let Some(value) = self::length(bytes).and_then(|length| take(bytes, length)) else {
            return Ok(None);
        };
        Row::Record(Record { version, value: Bytes::copy_from_slice(value) })
    };
    Ok(Some(Item::Row(Bytes::copy_from_slice(key), row)))
}

fn parse_request(bytes: &mut &[u8]) -> Option<Item> {
    let length = u32::from_be_bytes(bytes.get(28..32)?.try_into().ok()?) as usize;
    let mut whole = Bytes::copy_from_slice(take(bytes, 32 + length)?);
    Remembered::decode(&mut whole).map(Item::Request)
}

fn length(bytes: &mut &[u8]) -> Option<usize> {
    take(bytes, 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize)
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RequestId;

    #[test]
    fn items_survive_any_cut_into_chunks() {
        let version = Version { generation: 1, index: 5 };
        let row = |size: usize| Row::Record(Record { version, value: vec![1; size].into() });
        let rows = [
            (Bytes::from_static(b"ca"), row(0)),
            (Bytes::from_static(b"f1"), Row::Folder(Folder { version, children: 3 })),
            (Bytes::from_static(b"s1"), row(300)),
        ];
        let request = Remembered { id: RequestId([3; 16]), version, response: Bytes::from_static(b"answer") };
        let mut bytes = Vec::new();
        rows.iter().for_each(|(key, row)| write_row(&mut bytes, key, row));
        write_request(&mut bytes, &request);
        let mut expected: Vec<Item> = rows.into_iter().map(|(key, row)| Item::Row(key, row)).collect();
        expected.push(Item::Request(request));
        for size in [1, 2, 7, 64, 1000] {
            let mut items = Items::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                items.feed(chunk);
                while let Some(item) = items.next().expect("good") {
                    found.push(item);
                }
            }
            assert!(items.is_empty());
            assert_eq!(found, expected, "chunks of {size}");
        }
    }

    #[test]
    fn an_impossible_item_is_refused() {
        for bad in [&[9u8][..], &[TAG_RECORD, 0xff, 0xff, 0xff, 0xff], &[TAG_RECORD, 0, 0, 0, 0]] {
            let mut items = Items::default();
            items.feed(bad);
            assert!(items.next().is_err(), "{bad:?}");
        }
    }
}

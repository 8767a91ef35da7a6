//! What the fuzz targets need to see of this module.

use super::stream::{self, Items};
use crate::error::StorageError;
use crate::row::Row;
use crate::window::Remembered;

pub(crate) use super::file::SnapshotWriter;
pub(crate) use super::stream::Item;

/// The items of some chunks, and how many bytes of an unfinished one are left over.
pub(crate) fn items(chunks: &[&[u8]]) -> Result<(Vec<Item>, usize), StorageError> {
    let mut items = Items::default();
    let mut found = Vec::new();
    for chunk in chunks {
        items.feed(chunk);
        while let Some(item) = items.next()? {
            found.push(item);
        }
    }
    Ok((found, items.len()))
}

/// Encodes rows under their keys.
pub(crate) fn write_items(out: &mut Vec<u8>, rows: &[(&[u8], Row)]) {
    rows.iter().for_each(|(key, row)| stream::write_row(out, key, row));
}

/// Encodes a request.
pub(crate) fn write_request(out: &mut Vec<u8>, request: &Remembered) {
    stream::write_request(out, request);
}

//! Reading all of a snapshot file, and proving it while it is read.

use bytes::Bytes;

use super::stream::{Item, Items};
use super::{SnapshotFile, applied_of};
use crate::digest::{LtHash, digest};
use crate::error::StorageError;
use crate::keys::RecordKey;
use crate::row::{self, Row};
use crate::window::Window;

impl SnapshotFile {
    /// Reads everything and gives every record to `sink`, in the order of the state's keys: clear records before sealed
    /// ones. Staged pieces of an unfinished restore are left out. Gives the number of records.
    ///
    /// What `sink` has seen is proven only when this has returned.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] if a chunk was changed, or rows and requests do not give the digest of the manifest; what
    /// `sink` says, as soon as it says it.
    pub fn read_records<E: From<StorageError>>(
        &self,
        mut sink: impl FnMut(RecordKey, Bytes) -> Result<(), E>,
    ) -> Result<u64, E> {
        let damaged = |why: &str| StorageError::Damaged {
            what: format!("snapshot {} is damaged: {why}", self.path().display()),
            remedy: "use another copy of it, or an older one".to_owned(),
        };
        let manifest = self.manifest();
        let (mut items, mut lanes) = (Items::default(), LtHash::default());
        let mut window = Window::beginning(manifest.window);
        let (mut rows, mut records, mut last_key) = (0, 0, Bytes::new());
        for n in 0..manifest.chunks {
            items.feed(&self.read_chunk(n)?);
            while let Some(item) = items.next()? {
                rows += 1;
                match item {
                    Item::Row(key, row) => {
                        let known = key.first().is_some_and(|area| row::DATA_AREAS.contains(area));
                        if !known || key <= last_key || window.next() != manifest.window.first {
                            return Err(damaged("its rows are out of order").into());
                        }
                        lanes.add(&key, &row);
                        if let Row::Record(record) = row {
                            let name = row::record_of(&key).map_err(|_| damaged("a key cannot be read"))?;
                            if name.as_staged().is_none() {
                                records += 1;
                                sink(name, record.value)?;
                            }
                        }
                        last_key = key;
                    }
                    Item::Request(request) => {
                        window.record(request);
                        // What a window forgets, a snapshot of it does not hold; so memory stays bounded, too.
                        if window.mark() != manifest.window {
                            return Err(damaged("it holds more requests than a window").into());
                        }
                    }
                }
            }
        }
        if rows != manifest.rows || !items.is_empty() {
            return Err(damaged("it is not complete").into());
        }
        if digest(&lanes, &window.hash(), &applied_of(&manifest.meta)) != manifest.digest {
            return Err(damaged("it does not have the digest that it names").into());
        }
        Ok(records)
    }
}

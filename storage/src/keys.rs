//! Names of records and folders, valid by construction.
//!
//! A record is named by bytes: `c` and a name for the clear records of the cluster, or `s`, the 16-byte
//! uuid of a mount and one or more segments, each a big-endian `u16` length and that many (sealed)
//! bytes. `r`, a restore's 16-byte id and a `u64` sequence name a piece of a snapshot that is staged to become
//! the state; no folder knows it. A folder is named like a sealed record, with zero or more segments. [`Row`](crate::row) says
//! how they are laid out on the disk.

use bincode::de::{Decode, Decoder};
use bincode::enc::{Encode, Encoder};
use bincode::error::{DecodeError, EncodeError};

/// First byte of clear cluster records.
pub const CLEAR: u8 = b'c';
/// First byte of sealed records and of folders.
pub const SEALED: u8 = b's';
/// First byte of staged pieces of a snapshot.
pub const STAGED: u8 = b'r';
/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 16 * 1024;

/// Bytes before the first segment: the area and the uuid of the mount.
const ROOT_BYTES: usize = 17;
/// Bytes of a staged piece's name: area, id of the restore, sequence.
const STAGED_BYTES: usize = 1 + 16 + 8;

/// Bytes that name neither a record nor a folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid key: {0}")]
pub struct InvalidKey(pub(crate) &'static str);

/// Names one record.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RecordKey(Vec<u8>);

impl RecordKey {
    /// Names the clear cluster record `name`.
    ///
    /// # Errors
    /// [`InvalidKey`] if the name is empty or too long.
    pub fn clear(name: &str) -> Result<Self, InvalidKey> {
        let mut bytes = Vec::with_capacity(1 + name.len());
        bytes.push(CLEAR);
        bytes.extend_from_slice(name.as_bytes());
        Self::parse(bytes)
    }

    /// Names piece `sequence` of what `restore` stages.
    pub fn staged(restore: [u8; 16], sequence: u64) -> Self {
        let mut bytes = Vec::with_capacity(STAGED_BYTES);
        bytes.push(STAGED);
        bytes.extend_from_slice(&restore);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        Self(bytes)
    }

    /// The restore and the sequence that a staged piece is named by; `None` for any other record.
    pub fn as_staged(&self) -> Option<([u8; 16], u64)> {
        let (area, rest) = self.0.split_first()?;
        let (restore, sequence) = rest.split_first_chunk::<16>()?;
        let sequence = sequence.try_into().ok().map(u64::from_be_bytes)?;
        (*area == STAGED).then_some((*restore, sequence))
    }

    /// Checks bytes that may name a record.
    ///
    /// # Errors
    /// [`InvalidKey`] if the area is unknown, a name or segment is empty, a length does not fit, or the
    /// whole is longer than [`MAX_KEY_BYTES`].
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, InvalidKey> {
        let bytes = bytes.into();
        if bytes.len() > MAX_KEY_BYTES {
            return Err(InvalidKey("longer than 16 KiB"));
        }
        match bytes.first() {
            Some(&CLEAR) if bytes.len() > 1 => Ok(Self(bytes)),
            Some(&CLEAR) => Err(InvalidKey("a clear record without a name")),
            Some(&STAGED) if bytes.len() == STAGED_BYTES => Ok(Self(bytes)),
            Some(&STAGED) => Err(InvalidKey("a staged piece with a name of the wrong length")),
            Some(&SEALED) if check_segments(&bytes)? > 0 => Ok(Self(bytes)),
            Some(&SEALED) => Err(InvalidKey("a sealed record without a segment")),
            _ => Err(InvalidKey("unknown area")),
        }
    }

    /// The folder that the record is a direct child of; `None` for a clear record or a staged piece.
    pub fn parent(&self) -> Option<FolderKey> {
        self.split().map(|(folder, _)| folder)
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Folder and last segment; `None` for a clear record or a staged piece.
    pub fn split(&self) -> Option<(FolderKey, &[u8])> {
        (self.0[0] == SEALED).then(|| {
            let at = last_segment(&self.0).expect("a sealed record has a segment");
            (FolderKey(self.0[..at].to_vec()), &self.0[at + 2..])
        })
    }
}

/// Names one folder: the place that records and further folders are children of.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FolderKey(Vec<u8>);

impl FolderKey {
    /// The root folder of a mount.
    pub fn root(mount: [u8; 16]) -> Self {
        let mut bytes = Vec::with_capacity(ROOT_BYTES);
        bytes.push(SEALED);
        bytes.extend_from_slice(&mount);
        Self(bytes)
    }

    /// Checks bytes that may name a folder.
    ///
    /// # Errors
    /// [`InvalidKey`] as for [`RecordKey::parse`], except that no segment is needed.
    pub fn parse(bytes: impl Into<Vec<u8>>) -> Result<Self, InvalidKey> {
        let bytes = bytes.into();
        if bytes.len() > MAX_KEY_BYTES {
            return Err(InvalidKey("longer than 16 KiB"));
        }
        if bytes.first() != Some(&SEALED) {
            return Err(InvalidKey("a folder is in the sealed area"));
        }
        check_segments(&bytes)?;
        Ok(Self(bytes))
    }

    /// Names the record `segment` in this folder.
    ///
    /// # Errors
    /// [`InvalidKey`] if the segment is empty or the key becomes too long.
    pub fn child(&self, segment: &[u8]) -> Result<RecordKey, InvalidKey> {
        RecordKey::parse(self.with(segment)?)
    }

    /// Names the folder `segment` in this folder.
    ///
    /// # Errors
    /// [`InvalidKey`] if the segment is empty or the key becomes too long.
    pub fn folder(&self, segment: &[u8]) -> Result<FolderKey, InvalidKey> {
        FolderKey::parse(self.with(segment)?)
    }

    /// The folder that this one is a direct child of; `None` for the root of a mount.
    pub fn parent(&self) -> Option<FolderKey> {
        last_segment(&self.0).map(|at| FolderKey(self.0[..at].to_vec()))
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Segments below the root of the mount.
    pub(crate) fn depth(&self) -> usize {
        self.segments().count()
    }

    /// The uuid of the mount.
    pub(crate) fn mount(&self) -> &[u8] {
        &self.0[1..ROOT_BYTES]
    }

    /// The segments, outermost first.
    pub(crate) fn segments(&self) -> Segments<'_> {
        Segments(&self.0[ROOT_BYTES..])
    }

    fn with(&self, segment: &[u8]) -> Result<Vec<u8>, InvalidKey> {
        let length = u16::try_from(segment.len()).map_err(|_| InvalidKey("a segment is too long"))?;
        let mut bytes = Vec::with_capacity(self.0.len() + 2 + segment.len());
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(segment);
        Ok(bytes)
    }
}

/// Walks checked segments, outermost first.
pub(crate) struct Segments<'a>(&'a [u8]);

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (segment, rest) = rest.split_at(u16::from_be_bytes(*length) as usize);
        self.0 = rest;
        Some(segment)
    }
}

/// Checks uuid and segments of a key in the sealed area and counts the segments.
fn check_segments(bytes: &[u8]) -> Result<usize, InvalidKey> {
    let mut rest = bytes.get(ROOT_BYTES..).ok_or(InvalidKey("the uuid of the mount is cut off"))?;
    let mut count = 0;
    while !rest.is_empty() {
        let (length, tail) =
            rest.split_first_chunk::<2>().ok_or(InvalidKey("a segment length is cut off"))?;
        let length = u16::from_be_bytes(*length) as usize;
        if length == 0 {
            return Err(InvalidKey("an empty segment"));
        }
        rest = tail.get(length..).ok_or(InvalidKey("a segment is cut off"))?;
        count += 1;
    }
    Ok(count)
}

/// Where the length of the last segment begins in a checked key.
fn last_segment(bytes: &[u8]) -> Option<usize> {
    let last = Segments(&bytes[ROOT_BYTES..]).last()?;
    Some(bytes.len() - last.len() - 2)
}

impl Encode for RecordKey {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<Context> Decode<Context> for RecordKey {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Vec::<u8>::decode(decoder)?;
        Self::parse(bytes).map_err(|e| DecodeError::OtherString(e.to_string()))
    }
}

impl Encode for FolderKey {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.encode(encoder)
    }
}

impl<Context> Decode<Context> for FolderKey {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Self, DecodeError> {
        let bytes = Vec::<u8>::decode(decoder)?;
        Self::parse(bytes).map_err(|e| DecodeError::OtherString(e.to_string()))
    }
}

bincode::impl_borrow_decode!(RecordKey);
bincode::impl_borrow_decode!(FolderKey);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_knows_its_folder() {
        let root = FolderKey::root([7; 16]);
        let app = root.folder(b"app").expect("valid");
        let record = app.child(b"db").expect("valid");
        assert_eq!(record.parent(), Some(app.clone()));
        assert_eq!(app.parent(), Some(root.clone()));
        assert_eq!(root.parent(), None);
        assert_eq!((root.depth(), app.depth()), (0, 1));
        assert_eq!(record.split().expect("sealed").1, b"db");
        assert_eq!(RecordKey::clear("seal").expect("valid").parent(), None);
    }

    #[test]
    fn bytes_that_name_nothing_are_refused() {
        let root = FolderKey::root([7; 16]);
        for bad in [vec![], vec![b'x', 1], vec![CLEAR], root.as_bytes().to_vec(), vec![SEALED; 5]] {
            assert!(RecordKey::parse(bad.clone()).is_err(), "{bad:?}");
        }
        assert!(root.child(b"").is_err());
        let mut cut = root.child(b"name").expect("valid").as_bytes().to_vec();
        cut.pop();
        assert!(RecordKey::parse(cut).is_err());
        assert!(root.child(&[1; MAX_KEY_BYTES]).is_err());
    }

    #[test]
    fn a_staged_piece_is_named_by_its_restore_and_sequence() {
        let key = RecordKey::staged([3; 16], 258);
        assert_eq!(RecordKey::parse(key.as_bytes()), Ok(key.clone()));
        assert_eq!((key.as_staged(), key.parent()), (Some(([3; 16], 258)), None));
        assert!(RecordKey::parse(&key.as_bytes()[..24]).is_err());
        assert_eq!(RecordKey::clear("staged-by-nobody-at-all-").expect("valid").as_staged(), None);
    }

    #[test]
    fn decoding_validates() {
        let config = bincode::config::standard();
        let bytes = bincode::encode_to_vec(vec![b'x', 1], config).expect("encodes");
        assert!(bincode::decode_from_slice::<RecordKey, _>(&bytes, config).is_err());
    }
}

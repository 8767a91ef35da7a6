//! Reading and writing the hand-made formats: big-endian integers and length-prefixed byte strings.
//!
//! Hot formats (log entries, append requests) are written by hand so that a payload is a slice of the frame it
//! came in, not a copy; everything else between nodes is bincode behind [`encode`] and [`decode`], with a size
//! limit always set.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("the bytes end too early")]
    Short,
    /// There are bytes left over.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// A tag that this release does not know.
    #[error("unknown {0} {1}: this node is older than the one that wrote it, upgrade it")]
    Unknown(&'static str, u64),
    /// A value that cannot be.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Appends `u32 length`, then the bytes.
pub fn put_slice(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(bytes.len() as u32);
    out.put_slice(bytes);
}

/// What no term or index ever comes near. A peer that sends more is refused, for whoever adds to it overflows.
pub const COUNT_LIMIT: u64 = 1 << 62;

/// Reads from a buffer without copying what it hands out.
pub struct Reader(Bytes);

impl Reader {
    /// A reader over all of `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    fn need(&self, len: usize) -> Result<(), DecodeError> {
        if self.0.len() < len { Err(DecodeError::Short) } else { Ok(()) }
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    /// One byte that is 0 or 1: every message has one encoding.
    pub fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Invalid("flag")),
        }
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.need(4)?;
        Ok(self.0.get_u32())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.need(8)?;
        Ok(self.0.get_u64())
    }

    /// Eight bytes that count something from zero by ones, such as a term or an index: below [`COUNT_LIMIT`].
    pub fn count(&mut self) -> Result<u64, DecodeError> {
        match self.u64()? {
            count if count < COUNT_LIMIT => Ok(count),
            _ => Err(DecodeError::Invalid("count")),
        }
    }

    /// A fixed number of bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.need(N)?;
        let mut out = [0; N];
        self.0.copy_to_slice(&mut out);
        Ok(out)
    }

    /// The next `len` bytes, shared, not copied.
    pub fn bytes(&mut self, len: usize) -> Result<Bytes, DecodeError> {
        self.need(len)?;
        Ok(self.0.split_to(len))
    }

    /// A byte string with its length before it, shared, not copied.
    pub fn slice(&mut self) -> Result<Bytes, DecodeError> {
        let len = self.u32()? as usize;
        self.bytes(len)
    }

    /// A UTF-8 string with its length before it.
    pub fn string(&mut self) -> Result<String, DecodeError> {
        String::from_utf8(self.slice()?.to_vec()).map_err(|_| DecodeError::Invalid("UTF-8"))
    }

    /// Ends the reading; nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// The largest bincode message between nodes, in bytes. Bulk never goes through bincode.
const MESSAGE_LIMIT: usize = 4 << 20;

/// Encodes one of our own small messages.
pub fn encode<T: bincode::Encode>(message: &T) -> Bytes {
    bincode::encode_to_vec(message, bincode::config::standard())
        .expect("our own message types always encode into memory")
        .into()
}

/// Decodes one of our own small messages; nothing may be left over.
pub fn decode<T: bincode::Decode<()>>(bytes: &[u8]) -> Result<T, DecodeError> {
    let config = bincode::config::standard().with_limit::<MESSAGE_LIMIT>();
    let (value, used) =
        bincode::decode_from_slice(bytes, config).map_err(|_| DecodeError::Invalid("message"))?;
    match bytes.len() - used {
        0 => Ok(value),
        left => Err(DecodeError::Trailing(left)),
    }
}

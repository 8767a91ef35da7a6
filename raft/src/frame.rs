//! Frames on the cluster port.
//!
//! `version[1] kind[1] flags[2] length[4] stream[8] payload[length]`, big-endian. A frame of an unknown version,
//! of an unknown kind or over its channel's limit closes the connection; nothing is allocated for a length
//! before it has been compared with the limit.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The frame format this release speaks.
pub const VERSION: u8 = 1;
const HEADER_LEN: usize = 16;
/// Payload limit on a replication channel: an append request is capped well below it.
pub const REPLICATION_LIMIT: usize = 4 << 20;
/// Payload limit before the peer has said what it wants.
pub const HELLO_LIMIT: usize = 16 << 10;
/// Payload limit on an open channel: a request body of 32 MiB and its envelope.
pub const OPEN_LIMIT: usize = 36 << 20;
/// Set in every frame of a sealed node: acks say whether a node is sealed.
pub const FLAG_SEALED: u16 = 1;
/// Set in every frame of a node that leads and answers.
pub const FLAG_LEADS: u16 = 2;
/// Set in every frame of a node whose disk is almost full.
pub const FLAG_DISK_LOW: u16 = 4;
/// Set in every frame of a node whose disk is full.
pub const FLAG_DISK_FULL: u16 = 8;
/// Set in every frame of a node whose syncs hang.
pub const FLAG_DISK_SLOW: u16 = 16;
/// The sender should lead when it can.
pub const FLAG_PREFERRED: u16 = 32;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First frame each way: who speaks, and what the channel is for.
    Hello = 1,
    /// The other side will not talk; the payload says why.
    Refused = 2,
    /// One append request of a stream.
    Append = 3,
    /// The answer to one append request of a stream.
    Appended = 4,
    /// No more append requests on this stream, or no more answers.
    End = 5,
    /// A call that has one answer.
    Call = 6,
    /// The answer to a call.
    Reply = 7,
    /// The call failed; the payload says why.
    Failed = 8,
}

impl Kind {
    fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Refused,
            3 => Self::Append,
            4 => Self::Appended,
            5 => Self::End,
            6 => Self::Call,
            7 => Self::Reply,
            8 => Self::Failed,
            _ => return None,
        })
    }
}

/// One frame.
#[derive(Debug, Clone)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// What the sender says of itself ([`Standing`](crate::standing::Standing)); unknown flags are ignored.
    pub flags: u16,
    /// Which stream or call it belongs to.
    pub stream: u64,
    /// Its content.
    pub payload: Bytes,
}

/// Reads one frame. `Ok(None)` is a clean end between frames.
///
/// # Errors
/// `InvalidData` for an unknown version or kind and for a length over `limit`; `UnexpectedEof` inside a frame.
///
/// # Cancel safety
/// Not cancel safe: one task owns the reading side of a connection.
pub async fn read<R: AsyncRead + Unpin>(reader: &mut R, limit: usize) -> io::Result<Option<Frame>> {
    let mut header = [0u8; HEADER_LEN];
    let first = reader.read(&mut header).await?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut header[first..]).await?;
    let [version, kind, f0, f1, l0, l1, l2, l3, stream @ ..] = header;
    if version != VERSION {
        return Err(invalid(format!("frame version {version}, this node speaks {VERSION}")));
    }
    let kind = Kind::from_u8(kind).ok_or_else(|| invalid(format!("unknown frame kind {kind}")))?;
    let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if len > limit {
        return Err(invalid(format!("frame of {len} bytes, the limit here is {limit}")));
    }
    let mut payload = BytesMut::with_capacity(len);
    while payload.len() < len {
        let want = len - payload.len();
        if reader.read_buf(&mut (&mut payload).limit(want)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some(Frame {
        kind,
        flags: u16::from_be_bytes([f0, f1]),
        stream: u64::from_be_bytes(stream),
        payload: payload.freeze(),
    }))
}

/// Writes one frame; the caller flushes.
pub async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> io::Result<()> {
    let mut header = [0u8; HEADER_LEN];
    header[0] = VERSION;
    header[1] = frame.kind as u8;
    header[2..4].copy_from_slice(&frame.flags.to_be_bytes());
    let len = u32::try_from(frame.payload.len()).map_err(|_| invalid("frame over 4 GiB".into()))?;
    header[4..8].copy_from_slice(&len.to_be_bytes());
    header[8..].copy_from_slice(&frame.stream.to_be_bytes());
    writer.write_all(&header).await?;
    writer.write_all(&frame.payload).await
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &'static [u8]) -> Frame {
        Frame { kind: Kind::Call, flags: FLAG_SEALED, stream: 77, payload: Bytes::from_static(payload) }
    }

    async fn bytes_of(frame: &Frame) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out, frame).await.unwrap();
        out
    }

    #[tokio::test]
    async fn a_frame_reads_back_as_it_was_written() {
        let out = bytes_of(&frame(b"hello")).await;
        let got = read(&mut &out[..], 100).await.unwrap().unwrap();
        assert_eq!((got.kind, got.flags, got.stream), (Kind::Call, FLAG_SEALED, 77));
        assert_eq!(&got.payload[..], b"hello");
    }

    #[tokio::test]
    async fn a_length_over_the_limit_is_refused_before_it_is_allocated() {
        let mut out = bytes_of(&frame(b"hello")).await;
        out[4..8].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(read(&mut &out[..], 100).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn unknown_versions_and_kinds_and_truncations_are_refused() {
        let good = bytes_of(&frame(b"hello")).await;
        for (at, byte) in [(0, 2), (1, 0), (1, 200)] {
            let mut out = good.clone();
            out[at] = byte;
            assert_eq!(read(&mut &out[..], 100).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        for len in 1..good.len() {
            let error = read(&mut &good[..len], 100).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {len}");
        }
        assert!(read(&mut &good[..0], 100).await.unwrap().is_none());
    }
}

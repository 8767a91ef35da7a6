//! Bodies of requests: bytes, or a file that is read while it is sent.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

const PIECE_BYTES: usize = 256 << 10;

/// A body that may be sent twice: to the node that was asked, and to the one that it names.
#[derive(Clone)]
pub(super) enum Outgoing {
    Bytes(Full<Bytes>),
    File(UploadBody),
}

/// A file to be sent, and who is told how far it has come.
#[derive(Clone)]
pub(super) struct UploadBody {
    pub file: PathBuf,
    pub progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl From<Full<Bytes>> for Outgoing {
    fn from(bytes: Full<Bytes>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<UploadBody> for Outgoing {
    fn from(file: UploadBody) -> Self {
        Self::File(file)
    }
}

impl Outgoing {
    /// The body, from its beginning.
    pub fn open(self) -> io::Result<RequestBody> {
        Ok(match self {
            Self::Bytes(bytes) => RequestBody::Bytes(bytes),
            Self::File(upload) => {
                let file = File::open(&upload.file)?;
                let left = file.metadata()?.len();
                RequestBody::File { file, left, sent: 0, progress: upload.progress }
            }
        })
    }
}

/// A body that is being sent.
pub(super) enum RequestBody {
    Bytes(Full<Bytes>),
    File { file: File, left: u64, sent: u64, progress: Arc<dyn Fn(u64) + Send + Sync> },
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Bytes(bytes) => Pin::new(bytes).poll_frame(cx).map_err(|never| match never {}),
            Self::File { left: 0, .. } => Poll::Ready(None),
            Self::File { file, left, sent, progress } => {
                // A command does nothing else meanwhile, so that reading may block.
                let size = usize::try_from(*left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
                let mut piece = BytesMut::zeroed(size);
                let read = file.read_exact(&mut piece);
                *left -= size as u64;
                *sent += size as u64;
                progress(*sent);
                Poll::Ready(Some(read.map(|()| Frame::data(piece.freeze()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_end_stream(),
            Self::File { left, .. } => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => bytes.size_hint(),
            Self::File { left, .. } => SizeHint::with_exact(*left),
        }
    }
}

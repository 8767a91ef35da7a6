//! One connection on the cluster port, seen from the side that dialled it: calls and streams share it.
//!
//! A writer task owns the sending half and a reader task the receiving half. Every call and every stream has a
//! slot under its number; when the connection ends, all slots are dropped, and whoever waits learns that the
//! answer is lost.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    frame::{self, Frame, Kind},
    hello::Hello,
};

/// Frames waiting to be written; more, and the sender waits.
const WRITE_QUEUE: usize = 128;
/// Answers of one stream waiting to be taken.
const STREAM_QUEUE: usize = 256;

/// What a call asks for: its payload's first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Method {
    /// RequestVote (Raft paper, 5.2).
    Vote = 1,
    /// The Pre-Vote phase (Raft dissertation, 9.6).
    PreVote = 2,
    /// TimeoutNow (Raft dissertation, 3.10).
    TransferLeader = 3,
    /// AppendEntries without entries.
    Heartbeat = 4,
    /// Starts the transfer of a snapshot.
    SnapshotBegin = 5,
    /// One piece of a snapshot.
    SnapshotPiece = 6,
    /// All pieces are there: install.
    SnapshotEnd = 7,
    /// The proof that opens a channel.
    OpenProof = 8,
    /// A client's request that only the leader may answer.
    Forward = 9,
    /// The index a linearizable read has to wait for.
    ReadIndex = 10,
    /// Nothing but the hello: makes addresses and seal state known.
    Ping = 11,
    /// The leader's cluster time.
    Time = 12,
    /// What the vault above hands from one open node to another.
    HandOver = 13,
    /// What opens a sealed node, from the vault of one that is open.
    Unseal = 14,
    /// The digest of the state at a checkpoint.
    Digest = 15,
}

impl Method {
    /// Reads a method byte.
    pub fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Vote,
            2 => Self::PreVote,
            3 => Self::TransferLeader,
            4 => Self::Heartbeat,
            5 => Self::SnapshotBegin,
            6 => Self::SnapshotPiece,
            7 => Self::SnapshotEnd,
            8 => Self::OpenProof,
            9 => Self::Forward,
            10 => Self::ReadIndex,
            11 => Self::Ping,
            12 => Self::Time,
            13 => Self::HandOver,
            14 => Self::Unseal,
            15 => Self::Digest,
            _ => return None,
        })
    }

    /// Whether only an open channel may carry it.
    pub fn needs_open(self) -> bool {
        matches!(self, Self::Forward | Self::ReadIndex | Self::Time | Self::HandOver)
    }
}

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// It certainly did not go out.
    #[error("not sent: {0}")]
    NotSent(String),
    /// It may have gone out and been executed.
    #[error("connection lost")]
    Lost,
    /// No answer in time; it may have been executed.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The other side executed nothing and says why.
    #[error("{0}")]
    Failed(String),
}

enum Slot {
    Call(oneshot::Sender<Result<Bytes, CallError>>),
    Stream(mpsc::Sender<Bytes>),
}

type Slots = Arc<Mutex<Option<HashMap<u64, Slot>>>>;

/// A live connection.
pub struct Conn {
    /// Who answered.
    pub peer: Hello,
    /// `host:port` that was dialled; what the peer says of itself may be something else.
    pub address: String,
    outgoing: mpsc::Sender<Frame>,
    slots: Slots,
    next: AtomicU64,
    closed: watch::Receiver<bool>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Conn {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// The receiving end of a stream; dropping it frees the number.
pub struct StreamEnd {
    id: u64,
    slots: Slots,
    answers: mpsc::Receiver<Bytes>,
}

impl StreamEnd {
    /// The next answer; `None` when the other side ended the stream or the connection is gone.
    pub async fn recv(&mut self) -> Option<Bytes> {
        self.answers.recv().await
    }
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.lock().as_mut() {
            slots.remove(&self.id);
        }
    }
}

impl Conn {
    /// Runs a connection over two halves after the hellos. `flags` go into every frame, and `heard` is told those
    /// of every frame that comes.
    pub fn start<R, W>(
        peer: Hello,
        reader: R,
        writer: W,
        limit: usize,
        flags: impl Fn() -> u16 + Send + Sync + 'static,
        heard: impl Fn(u16) + Send + 'static,
    ) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (outgoing, queue) = mpsc::channel(WRITE_QUEUE);
        let (closed_tx, closed) = watch::channel(false);
        let closed_tx = Arc::new(closed_tx);
        let slots: Slots = Arc::new(Mutex::new(Some(HashMap::new())));
        let writing = tokio::spawn({
            let closed_tx = closed_tx.clone();
            async move {
                write_loop(writer, queue, flags).await;
                closed_tx.send_replace(true);
            }
        });
        let reading = tokio::spawn({
            let slots = slots.clone();
            async move {
                read_loop(reader, limit, &slots, heard).await;
                slots.lock().take();
                closed_tx.send_replace(true);
            }
        });
        Self {
            peer,
            address: String::new(),
            outgoing,
            slots,
            next: AtomicU64::new(1),
            closed,
            tasks: [writing, reading],
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Sends a call and waits for its answer.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the answer; the call may still be executed.
    pub async fn call(&self, method: Method, body: &[u8], timeout: Duration) -> Result<Bytes, CallError> {
        let mut payload = BytesMut::with_capacity(body.len() + 1);
        payload.put_u8(method as u8);
        payload.put_slice(body);
        let (tx, rx) = oneshot::channel();
        let id = self.slot(Slot::Call(tx)).ok_or_else(|| CallError::NotSent("connection closed".into()))?;
        let guard = StreamEnd { id, slots: self.slots.clone(), answers: mpsc::channel(1).1 };
        let answer = async {
            let frame = Frame { kind: Kind::Call, flags: 0, stream: id, payload: payload.freeze() };
            if self.outgoing.send(frame).await.is_err() {
                return Err(CallError::NotSent("connection closed".into()));
            }
            rx.await.unwrap_or(Err(CallError::Lost))
        };
        let result = tokio::time::timeout(timeout, answer).await.unwrap_or(Err(CallError::Timeout(timeout)));
        drop(guard);
        result
    }

    /// Opens a stream of append requests.
    pub fn open_stream(&self) -> Option<(StreamSender, StreamEnd)> {
        let (tx, answers) = mpsc::channel(STREAM_QUEUE);
        let id = self.slot(Slot::Stream(tx))?;
        let sender = StreamSender { ended: false, id, outgoing: self.outgoing.clone() };
        Some((sender, StreamEnd { id, slots: self.slots.clone(), answers }))
    }

    fn slot(&self, slot: Slot) -> Option<u64> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.slots.lock().as_mut()?.insert(id, slot);
        Some(id)
    }
}

/// The sending end of a stream.
pub struct StreamSender {
    ended: bool,
    id: u64,
    outgoing: mpsc::Sender<Frame>,
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        if !self.ended {
            self.end_now();
        }
    }
}

impl StreamSender {
    /// Queues one request; waits while the connection is behind. `false` when it is gone.
    pub async fn send(&self, payload: Bytes) -> bool {
        let frame = Frame { kind: Kind::Append, flags: 0, stream: self.id, payload };
        self.outgoing.send(frame).await.is_ok()
    }

    /// Says that no more requests come, without waiting: for a sender that is dropped in the middle.
    fn end_now(&self) {
        let frame = Frame { kind: Kind::End, flags: 0, stream: self.id, payload: Bytes::new() };
        // When the queue is full the other side finds out by its own limit of streams.
        drop(self.outgoing.try_send(frame));
    }

    /// Says that no more requests come.
    pub async fn end(mut self) {
        self.ended = true;
        let frame = Frame { kind: Kind::End, flags: 0, stream: self.id, payload: Bytes::new() };
        // A connection that is gone has ended the stream already.
        drop(self.outgoing.send(frame).await);
    }
}

/// Writes frames as they come, flushing whenever the queue runs dry.
pub async fn write_loop<W: AsyncWrite + Unpin>(
    writer: W,
    mut queue: mpsc::Receiver<Frame>,
    flags: impl Fn() -> u16,
) {
    let mut writer = BufWriter::with_capacity(64 << 10, writer);
    while let Some(mut frame) = queue.recv().await {
        loop {
            frame.flags = flags();
            if frame::write(&mut writer, &frame).await.is_err() {
                return;
            }
            match queue.try_recv() {
                Ok(next) => frame = next,
                Err(_) => break,
            }
        }
        if writer.flush().await.is_err() {
            return;
        }
    }
    // The peer sees an end of stream or a reset; both mean the same to it.
    drop(writer.shutdown().await);
}

async fn read_loop<R: AsyncRead + Unpin>(mut reader: R, limit: usize, slots: &Slots, heard: impl Fn(u16)) {
    while let Ok(Some(frame)) = frame::read(&mut reader, limit).await {
        heard(frame.flags);
        match frame.kind {
            Kind::Reply | Kind::Failed => {
                let slot = slots.lock().as_mut().and_then(|slots| slots.remove(&frame.stream));
                if let Some(Slot::Call(tx)) = slot {
                    let failed = frame.kind == Kind::Failed;
                    let text = || String::from_utf8_lossy(&frame.payload).into_owned();
                    // Whoever gave up waiting has dropped the receiver.
                    drop(tx.send(if failed { Err(CallError::Failed(text())) } else { Ok(frame.payload) }));
                }
            }
            Kind::Appended => {
                let tx = match slots.lock().as_ref().and_then(|slots| slots.get(&frame.stream)) {
                    Some(Slot::Stream(tx)) => tx.clone(),
                    _ => continue,
                };
                drop(tx.send(frame.payload).await);
            }
            Kind::End => {
                slots.lock().as_mut().and_then(|slots| slots.remove(&frame.stream));
            }
            _ => return,
        }
    }
}

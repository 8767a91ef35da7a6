//! A connection that ends when its client is too slow, in each of the ways that `http_*_timeout` names.
//!
//! The HTTP library has one timer for headers that also runs while a connection is idle. Vault tells the two
//! apart, and clients keep connections idle for minutes, so time is kept here, below it.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::config::HttpTimeouts;

/// What a connection's requests tell its clock.
pub(super) struct Activity {
    /// Requests being answered.
    running: AtomicUsize,
    /// Requests whose headers have come in, ever.
    begun: AtomicU64,
    idle_since: Mutex<Instant>,
}

/// A request in progress; dropped with its answer.
pub(super) struct Busy(Arc<Activity>);

impl Activity {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            running: AtomicUsize::new(0),
            begun: AtomicU64::new(0),
            idle_since: Mutex::new(Instant::now()),
        })
    }

    /// A request's headers have come in.
    pub fn begin(self: &Arc<Self>) -> Busy {
        self.running.fetch_add(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::AcqRel);
        Busy(Arc::clone(self))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.idle_since.lock() = Instant::now();
        self.0.running.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A stream with the timeouts of its listener.
pub(super) struct Paced<S> {
    stream: S,
    timeouts: HttpTimeouts,
    activity: Arc<Activity>,
    /// When the first byte of a request's headers came in, and how many requests had begun before. With
    /// HTTP/2 bytes that come in while nothing runs need not belong to a request, so there it stays empty.
    headers: Option<(Instant, u64)>,
    http2: bool,
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    pub fn new(stream: S, timeouts: HttpTimeouts, http2: bool, activity: Arc<Activity>) -> Self {
        let read_timer = Box::pin(sleep_until(Instant::now()));
        Self { stream, timeouts, activity, headers: None, http2, read_timer, write_timer: None }
    }

    /// By when the client must have sent something; `None` while it waits for us.
    fn read_deadline(&mut self) -> Option<Instant> {
        let limit = |since: Instant, limit: Duration| (!limit.is_zero()).then(|| since + limit);
        if self.activity.running.load(Ordering::Acquire) > 0 {
            return None;
        }
        if self.headers.is_some_and(|(_, begun)| begun != self.activity.begun.load(Ordering::Acquire)) {
            // They were complete, and their request has been answered since.
            self.headers = None;
        }
        match self.headers {
            Some((since, _)) => limit(since, self.timeouts.read_header),
            None => limit(*self.activity.idle_since.lock(), self.timeouts.idle),
        }
    }

    fn received(&mut self, bytes: usize) {
        let waits = self.activity.running.load(Ordering::Acquire) == 0;
        if bytes > 0 && waits && !self.http2 {
            let begun = self.activity.begun.load(Ordering::Acquire);
            if self.headers.is_none_or(|(_, before)| before != begun) {
                self.headers = Some((Instant::now(), begun));
            }
        }
    }

    /// Called with the outcome of every write: time runs while the client takes nothing.
    fn written<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.write_timer = None;
            return outcome;
        }
        if !self.timeouts.write.is_zero() {
            let limit = self.timeouts.write;
            let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + limit)));
            ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Err(too_slow()));
        }
        Poll::Pending
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client was too slow")
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if let Poll::Ready(outcome) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.received(buffer.filled().len() - before);
            return Poll::Ready(outcome);
        }
        let Some(deadline) = self.read_deadline() else { return Poll::Pending };
        if self.read_timer.deadline() != deadline {
            self.read_timer.as_mut().reset(deadline);
        }
        ready!(self.read_timer.as_mut().poll(cx));
        Poll::Ready(Err(too_slow()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    const TIMEOUTS: HttpTimeouts = HttpTimeouts {
        read_header: Duration::from_secs(2),
        read: Duration::ZERO,
        write: Duration::from_secs(5),
        idle: Duration::from_secs(60),
    };

    fn pair() -> (DuplexStream, Paced<DuplexStream>, Arc<Activity>) {
        let (client, server) = duplex(16);
        let activity = Activity::new();
        let paced = Paced::new(server, TIMEOUTS, false, Arc::clone(&activity));
        (client, paced, activity)
    }

    async fn waits(paced: &mut Paced<DuplexStream>) -> Option<Duration> {
        let started = Instant::now();
        let outcome = paced.read_u8().await;
        (outcome.unwrap_err().kind() == io::ErrorKind::TimedOut).then(|| started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_may_wait_longer_than_one_that_has_begun_to_send() {
        let (mut client, mut paced, activity) = pair();
        assert_eq!(waits(&mut paced).await.unwrap().as_secs(), 60);
        *activity.idle_since.lock() = Instant::now();
        client.write_all(b"G").await.unwrap();
        paced.read_u8().await.unwrap();
        assert_eq!(waits(&mut paced).await.unwrap().as_secs(), 2);
        // Its headers came in and it was answered: idle again.
        drop(activity.begin());
        assert_eq!(waits(&mut paced).await.unwrap().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_hurried_while_we_are_the_slow_ones() {
        let (_client, mut paced, activity) = pair();
        let busy = activity.begin();
        let read = tokio::time::timeout(Duration::from_secs(3_600), paced.read_u8()).await;
        assert!(read.is_err(), "it still waits after an hour");
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_left() {
        let (_client, mut paced, _activity) = pair();
        let started = Instant::now();
        let error = paced.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), started.elapsed().as_secs()), (io::ErrorKind::TimedOut, 5));
    }
}

//! The cluster port, answering side.
//!
//! Whoever the cluster's CA signed may connect and say hello; the directory decides whether it is talked to.
//! A connection carries Raft calls; with the proof of the root key it carries requests too.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use keystead_storage::{Manifest, SealedState};
use keystead_tls::{ClusterTls, FairShare, PeerIdentity, Portion, Seldom, peer_of};
use openraft::{
    EntryPayload,
    async_runtime::watch::WatchReceiver as _,
    raft::{AppendEntriesRequest, VoteRequest, VoteResponse},
    storage::Snapshot,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    codec,
    conn::{Method, write_loop},
    directory::DirectoryCache,
    frame::{self, Frame, Kind},
    hello::{Hello, Refusal},
    leadership::Contact,
    machine::{SnapshotData, snapshot_meta},
    open_channel::{self, Ends},
    peers::Peers,
    pool::Myself,
    reads::ReadGate,
    standing::{OwnStanding, Standing},
    types::{Raft, RaftEntry, RaftVote, TypeConfig},
    unsealing::Suspects,
    vault_side::{Peer, VaultSide},
    verification, wire,
};

/// How long a connection may take until its hello is through.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that have not said hello yet, at most: in all and from one address. Whoever reaches the port can
/// hold these, and keeps no other address from a peer's.
const MAX_HANDSHAKES: usize = 256;
const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;
/// Connections at most, in all and from one address: every peer needs five, and a machine may run many.
const MAX_CONNECTIONS: usize = 512;
const MAX_CONNECTIONS_PER_ADDRESS: usize = 256;
/// Calls of one connection worked on at once; more are not read until one is done.
const CALLS_PER_CONNECTION: usize = 256;
/// Append requests of one stream that the library has not taken yet.
const APPENDS_PER_STREAM: usize = 64;
/// Append streams of one connection.
const STREAMS_PER_CONNECTION: usize = 8;
/// A snapshot of which no piece came for this long has been given up.
const PIECES: Duration = Duration::from_secs(60);
/// Memory for calls that are being worked on, in KiB.
pub const CALLS_KIB: usize = 256 << 10;
/// A connection of the same incarnation heard within this time is alive.
const ALIVE: Duration = Duration::from_secs(3);

/// What the cluster port needs.
pub struct Server {
    /// Who this node is.
    pub myself: Myself,
    /// Certificates.
    pub tls: Arc<ClusterTls>,
    /// The library.
    pub raft: Raft,
    /// The local state, for staging snapshots.
    pub state: Arc<dyn SealedState>,
    /// Who is a member.
    pub directory: Arc<DirectoryCache>,
    /// What was heard of the others.
    pub peers: Arc<Peers>,
    /// The vault.
    pub vault: Arc<dyn VaultSide>,
    /// What this node says of itself.
    pub own: Arc<OwnStanding>,
    /// Linearizable reads.
    pub reads: ReadGate,
    /// Cluster time.
    pub clock: Arc<crate::clock::ClusterClock>,
    /// The last append taken.
    pub contact: Arc<Contact>,
    /// While set, votes are refused: this node does not know what it promised before its start.
    pub quiet: Arc<AtomicBool>,
    /// Where forwarded requests are worked on.
    pub requests: tokio::runtime::Handle,
    /// Live connections by peer.
    pub connections: Connections,
    /// Incarnations of which a second process was seen.
    pub suspects: Suspects,
    /// Memory for calls that are being worked on, in KiB.
    pub memory_kib: Arc<Semaphore>,
    /// The snapshot that is coming in; a new one takes the place of one that was given up.
    pub incoming: tokio::sync::Mutex<Option<Incoming>>,
}

/// Live connections, so that a removed peer's can be ended and a clone is noticed.
#[derive(Default)]
pub struct Connections {
    live: Mutex<HashMap<u64, Live>>,
    next: AtomicU64,
}

struct Live {
    incarnation: u64,
    boot_id: u64,
    open: bool,
    since: Instant,
    heard: Instant,
    task: AbortHandle,
}

impl Connections {
    /// Ends all connections of a peer.
    pub fn close(&self, incarnation: u64) {
        self.live.lock().retain(|_, live| {
            let close = live.incarnation == incarnation;
            if close {
                live.task.abort();
            }
            !close
        });
    }

    /// Ends the open channels that were opened before `until`.
    pub fn close_open(&self, until: Instant) {
        self.live.lock().retain(|_, live| {
            let close = live.open && live.since < until;
            if close {
                live.task.abort();
            }
            !close
        });
    }

    /// Whether another process is connected under this incarnation and was heard of lately.
    fn clone_of(&self, hello: &Hello) -> bool {
        self.live.lock().values().any(|live| live.is_clone_of(hello) && live.heard.elapsed() < ALIVE)
    }

    /// Whether another process than the one of `boot_id` is connected under the incarnation and was heard of lately.
    fn has_other(&self, incarnation: u64, boot_id: u64) -> bool {
        let other = |live: &Live| live.incarnation == incarnation && live.boot_id != boot_id;
        self.live.lock().values().any(|live| other(live) && live.heard.elapsed() < ALIVE)
    }

    /// Registers a connection; `None`, and nothing registered, if a clone was faster. What a former process of
    /// the incarnation left is ended.
    fn add(&self, hello: &Hello, task: AbortHandle) -> Option<u64> {
        let mut all = self.live.lock();
        if all.values().any(|live| live.is_clone_of(hello) && live.heard.elapsed() < ALIVE) {
            return None;
        }
        all.retain(|_, live| {
            let former = live.is_clone_of(hello);
            if former {
                live.task.abort();
            }
            !former
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let live = Live {
            incarnation: hello.incarnation,
            boot_id: hello.boot_id,
            open: hello.channel.is_open(),
            since: now,
            heard: now,
            task,
        };
        all.insert(id, live);
        Some(id)
    }

    fn heard(&self, hello: &Hello) {
        let mut all = self.live.lock();
        let same = |live: &&mut Live| live.incarnation == hello.incarnation && live.boot_id == hello.boot_id;
        for live in all.values_mut().filter(same) {
            live.heard = Instant::now();
        }
    }

    fn remove(&self, id: u64) {
        self.live.lock().remove(&id);
    }
}

impl Live {
    fn is_clone_of(&self, hello: &Hello) -> bool {
        self.incarnation == hello.incarnation && self.boot_id != hello.boot_id
    }
}

/// A peer that has said hello.
struct Caller {
    hello: Hello,
    identity: PeerIdentity,
    exporter: [u8; 32],
    address: SocketAddr,
    proven: AtomicBool,
}

impl Caller {
    fn peer(&self) -> Peer {
        Peer { incarnation: self.hello.incarnation, node_id: self.hello.node_id.clone() }
    }
}

/// A snapshot that is coming in.
pub struct Incoming {
    /// Whose it is.
    from: u64,
    heard: Instant,
    vote: RaftVote,
    manifest: Manifest,
    installer: Box<keystead_storage::Installer>,
}

impl Server {
    /// Accepts connections until the raft runtime stops.
    pub async fn run(self: Arc<Self>, listener: TcpListener) {
        let handshakes = FairShare::new(MAX_HANDSHAKES, MAX_HANDSHAKES_PER_ADDRESS);
        let connections = FairShare::new(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS);
        loop {
            let accepted = listener.accept().await;
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    static SAID: Seldom = Seldom::new();
                    if let Some(times) = SAID.due() {
                        tracing::warn!(%error, times, "the cluster port cannot accept connections");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let from = Some(address.ip());
            let (Ok(handshake), Ok(connection)) = (handshakes.take(from, 1), connections.take(from, 1))
            else {
                static SAID: Seldom = Seldom::new();
                metrics::counter!("keystead_cluster_connections_refused").increment(1);
                if let Some(times) = SAID.due() {
                    tracing::warn!(
                        times,
                        "connections on the cluster port were refused: too many are open, in all or from one address"
                    );
                }
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                if let Err(error) = server.connection(tcp, address, handshake).await {
                    tracing::debug!(%error, %address, "connection on the cluster port ended");
                }
                drop(connection);
            });
        }
    }

    async fn connection(
        self: Arc<Self>,
        tcp: TcpStream,
        address: SocketAddr,
        handshake: Portion,
    ) -> std::io::Result<()> {
        tcp.set_nodelay(true)?;
        crate::pool::notice_silence(&tcp)?;
        let shake = async {
            let tls = TlsAcceptor::from(self.tls.server_config()).accept(tcp).await?;
            let identity = peer_of(tls.get_ref().1).map_err(std::io::Error::other)?;
            let exporter = *keystead_tls::exporter(tls.get_ref().1).map_err(std::io::Error::other)?;
            let (mut reader, mut writer) = tokio::io::split(tls);
            let first = frame::read(&mut reader, frame::HELLO_LIMIT)
                .await?
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let hello = self.judge(&first, &identity);
            let (kind, payload) = match &hello {
                Ok(hello) => {
                    let mine = self.myself.hello(hello.channel, !self.vault.is_open());
                    (Kind::Hello, codec::encode(&mine))
                }
                Err(refusal) => (Kind::Refused, codec::encode(refusal)),
            };
            frame::write(&mut writer, &Frame { kind, flags: 0, stream: 0, payload }).await?;
            writer.flush().await?;
            let hello = hello.map_err(|refusal| {
                static SAID: Seldom = Seldom::new();
                if let Some(times) = SAID.due() {
                    tracing::warn!(%address, node = identity.name.node_id, %refusal, times, "peer refused");
                }
                std::io::Error::other(refusal)
            })?;
            Ok::<_, std::io::Error>((reader, writer, hello, identity, exporter))
        };
        let (reader, writer, hello, identity, exporter) =
            tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await.map_err(std::io::Error::other)??;
        drop(handshake);
        self.peers.hello(&hello);
        let caller = Arc::new(Caller { hello, identity, exporter, address, proven: AtomicBool::new(false) });
        let (outgoing, queue) = mpsc::channel(128);
        let own = self.own.clone();
        let writing = tokio::spawn(write_loop(writer, queue, move || own.now().to_flags()));
        let reading = tokio::spawn(self.clone().read_loop(reader, caller.clone(), outgoing));
        let registered = self.connections.add(&caller.hello, reading.abort_handle());
        // A removal or a faster clone may have come between the hello and here.
        if registered.is_none() || self.directory.current().is_tombstoned(caller.hello.incarnation) {
            reading.abort();
        }
        let result = reading.await;
        if let Some(id) = registered {
            self.connections.remove(id);
        }
        writing.abort();
        // An aborted reader is a removed peer.
        result.unwrap_or(Ok(()))
    }

    /// Whether to talk to a peer whose certificate is good.
    fn judge(&self, first: &Frame, identity: &PeerIdentity) -> Result<Hello, Refusal> {
        if first.kind != Kind::Hello {
            return Err(Refusal::Malformed);
        }
        let hello = Hello::decode(&first.payload).map_err(|_| Refusal::Malformed)?;
        if hello.incarnation != identity.name.incarnation || hello.node_id != identity.name.node_id {
            return Err(Refusal::Malformed);
        }
        let directory = self.directory.current();
        if directory.is_tombstoned(hello.incarnation) {
            return Err(Refusal::Removed);
        }
        if directory.member(hello.incarnation).is_some_and(|m| m.spki_sha256 != identity.spki_sha256) {
            return Err(Refusal::KeyNotPinned);
        }
        if hello.epoch != self.myself.epoch {
            return Err(Refusal::Epoch { ours: self.myself.epoch, theirs: hello.epoch });
        }
        let level = directory.feature_level;
        if hello.feature_level < level {
            return Err(Refusal::TooOld { cluster: level, theirs: hello.feature_level });
        }
        if hello.oldest_level > level.max(1) {
            return Err(Refusal::TooNew { cluster: level, oldest: hello.oldest_level });
        }
        let own = hello.incarnation == self.myself.incarnation && hello.boot_id != self.myself.boot_id;
        if own || self.connections.clone_of(&hello) {
            metrics::counter!("keystead_cluster_clones_noticed").increment(1);
            self.suspects.add(hello.incarnation);
            static SAID: Seldom = Seldom::new();
            if let Some(times) = SAID.due() {
                tracing::error!(
                    node = hello.node_id,
                    times,
                    "two processes claim one incarnation: one of them runs on a copy of the other's data directory"
                );
            }
            return Err(Refusal::Clone);
        }
        Ok(hello)
    }

    async fn read_loop<R: AsyncRead + Unpin>(
        self: Arc<Self>,
        mut reader: R,
        caller: Arc<Caller>,
        outgoing: mpsc::Sender<Frame>,
    ) -> std::io::Result<()> {
        let limit = caller.hello.channel.limit();
        let calls = Arc::new(Semaphore::new(CALLS_PER_CONNECTION));
        let mut streams: HashMap<u64, mpsc::Sender<AppendEntriesRequest<TypeConfig>>> = HashMap::new();
        loop {
            // Until the proof an open channel takes no more than a replication channel does.
            let limit = if caller.proven.load(Ordering::Acquire) {
                limit
            } else {
                limit.min(frame::REPLICATION_LIMIT)
            };
            let Some(frame) = frame::read(&mut reader, limit).await? else { return Ok(()) };
            self.peers.frame(caller.hello.incarnation, Standing::of_flags(frame.flags));
            match frame.kind {
                Kind::Call => {
                    let permit = calls.clone().acquire_owned().await.map_err(std::io::Error::other)?;
                    let memory = self.hold(frame.payload.len()).await?;
                    let work = self.clone().answer(caller.clone(), frame, outgoing.clone(), (permit, memory));
                    tokio::spawn(work);
                }
                Kind::Append => {
                    let request = wire::decode_append(frame.payload).map_err(std::io::Error::other)?;
                    self.check_possible(&request).map_err(std::io::Error::other)?;
                    // Room is left for what was taken before. The leader tries again, slower and slower; heartbeats
                    // go on.
                    if self.must_wait_for_room(&request) {
                        streams.remove(&frame.stream);
                        let end =
                            Frame { kind: Kind::End, flags: 0, stream: frame.stream, payload: Bytes::new() };
                        drop(outgoing.send(end).await);
                        continue;
                    }
                    streams.retain(|_, stream| !stream.is_closed());
                    if !streams.contains_key(&frame.stream) {
                        if streams.len() >= STREAMS_PER_CONNECTION {
                            return Err(std::io::Error::other("too many append streams"));
                        }
                        let (tx, rx) = mpsc::channel(APPENDS_PER_STREAM);
                        tokio::spawn(self.clone().appends(
                            caller.clone(),
                            frame.stream,
                            rx,
                            outgoing.clone(),
                        ));
                        streams.insert(frame.stream, tx);
                    }
                    // A stream that has ended by itself (conflict, higher vote) takes no more; its end is on
                    // its way to the sender.
                    drop(streams[&frame.stream].send(request).await);
                }
                Kind::End => {
                    streams.remove(&frame.stream);
                }
                _ => return Err(std::io::Error::other("unexpected frame")),
            }
            self.connections.heard(&caller.hello);
        }
    }

    /// Refuses an append that no leader can send: one whose entries, up to what is committed here, are of a later
    /// term than what is committed. The library takes its absence for granted.
    fn check_possible(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), String> {
        let committed = self.raft.metrics().borrow_watched().local_committed;
        let Some(committed) = committed else { return Ok(()) };
        let entries = request.entries.iter().map(|entry| entry.log_id);
        let impossible = request
            .prev_log_id
            .into_iter()
            .chain(entries)
            .take_while(|id| id.index <= committed.index)
            .any(|id| id > committed);
        if impossible {
            metrics::counter!("keystead_cluster_impossible_appends").increment(1);
            return Err("an append contradicts what is committed".into());
        }
        Ok(())
    }

    /// Whether an append that brings commands must wait for room on a full disk.
    ///
    /// The first entry of a leader's term must not, nor what lies before it: until it is committed nobody serves reads. So what
    /// a new leader sends is taken while there is some of the room that is kept for such things.
    fn must_wait_for_room(&self, request: &AppendEntriesRequest<TypeConfig>) -> bool {
        if !self.own.now().disk_full {
            return false;
        }
        let command = |entry: &RaftEntry| matches!(entry.payload, EntryPayload::Normal(_));
        let Some(last) = request.entries.last() else { return false };
        if !request.entries.iter().all(command) {
            return false;
        }
        let Some(own) = self.raft.data_metrics().borrow_watched().last_log else { return true };
        let space = self.own.disk().status().space;
        let new_leader = *own.leader_id < request.vote.leader_id.term;
        last.log_id.index > own.index
            && !(new_leader && space.free_bytes >= space.watermarks().full_bytes / 4)
    }

    /// Feeds one stream to the library and sends its answers back in order.
    async fn appends(
        self: Arc<Self>,
        caller: Arc<Caller>,
        stream: u64,
        requests: mpsc::Receiver<AppendEntriesRequest<TypeConfig>>,
        outgoing: mpsc::Sender<Frame>,
    ) {
        let input = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = std::pin::pin!(self.raft.stream_append(input));
        while let Some(answer) = answers.next().await {
            let Ok(answer) = answer else { break };
            if answer.is_ok() {
                self.contact.heard(caller.hello.incarnation);
            }
            let payload = wire::encode_append_result(&answer);
            let frame = Frame { kind: Kind::Appended, flags: 0, stream, payload };
            if outgoing.send(frame).await.is_err() {
                return;
            }
        }
        let end = Frame { kind: Kind::End, flags: 0, stream, payload: Bytes::new() };
        drop(outgoing.send(end).await);
    }

    async fn answer(
        self: Arc<Self>,
        caller: Arc<Caller>,
        frame: Frame,
        outgoing: mpsc::Sender<Frame>,
        held: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) {
        let stream = frame.stream;
        let (kind, payload) = match self.call(&caller, frame.payload).await {
            Ok(payload) => (Kind::Reply, payload),
            Err(text) => (Kind::Failed, Bytes::from(text)),
        };
        drop(outgoing.send(Frame { kind, flags: 0, stream, payload }).await);
        drop(held);
    }

    /// Memory for a call: more is not read from its connection until it is there.
    async fn hold(&self, bytes: usize) -> std::io::Result<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(u32::MAX);
        self.memory_kib.clone().acquire_many_owned(kib).await.map_err(std::io::Error::other)
    }

    async fn call(&self, caller: &Arc<Caller>, mut payload: Bytes) -> Result<Bytes, String> {
        let method = payload.first().copied().and_then(Method::from_u8).ok_or("unknown method")?;
        let body = payload.split_off(1);
        let open = caller.hello.channel.is_open() && caller.proven.load(Ordering::Acquire);
        if method.needs_open() && !open {
            metrics::counter!("keystead_cluster_unproven_calls_refused").increment(1);
            return Err("this channel is not open: the root key was not proved".into());
        }
        if method.needs_open() && !self.vault.is_open() {
            return Err("this node is sealed".into());
        }
        match method {
            Method::Ping => Ok(Bytes::copy_from_slice(&self.own.free_bytes().to_be_bytes())),
            Method::Time if self.raft.is_leader() => {
                Ok(Bytes::copy_from_slice(&self.clock.now_ms().to_be_bytes()))
            }
            Method::Time => Err("this node does not lead".into()),
            Method::Vote => self.vote(body, false).await,
            Method::PreVote => self.vote(body, true).await,
            Method::TransferLeader => self.transfer(body).await,
            Method::Heartbeat => self.heartbeat(caller, body).await,
            Method::SnapshotBegin => self.snapshot_begin(caller, body).await,
            Method::SnapshotPiece => self.snapshot_piece(caller, body).await,
            Method::SnapshotEnd => self.snapshot_end(caller).await,
            Method::OpenProof => self.open_proof(caller, &body),
            Method::Forward => self.forward(caller, body).await,
            Method::HandOver => {
                let taken = self.vault.take_over(caller.peer(), &body);
                drop(payload);
                wipe(body);
                taken.map(|()| Bytes::new())
            }
            Method::Digest => verification::answer(self.state.clone(), &body).await,
            Method::Unseal => {
                drop(payload);
                self.unseal(caller, body).await
            }
            Method::ReadIndex => self.reads.answer().await.map_err(|error| error.to_string()),
        }
    }

    async fn vote(&self, body: Bytes, pre: bool) -> Result<Bytes, String> {
        let request: VoteRequest<TypeConfig> = wire::decode_vote_request(body).map_err(|e| e.to_string())?;
        // A restart forgets the lease that was given to a leader; for its length nobody gets this node's vote.
        if self.quiet.load(Ordering::Acquire) {
            let (vote, last) = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                (metrics.vote, metrics.last_applied)
            };
            return Ok(wire::encode_vote_response(&VoteResponse::new(vote, last, false)));
        }
        let response = match pre {
            true => self.raft.pre_vote(request).await,
            false => self.raft.vote(request).await,
        };
        response.map(|r| wire::encode_vote_response(&r)).map_err(|e| e.to_string())
    }

    async fn transfer(&self, body: Bytes) -> Result<Bytes, String> {
        let request = wire::decode_transfer(body).map_err(|e| e.to_string())?;
        let to_me = *request.to_node_id() == self.myself.incarnation;
        if to_me && !self.vault.is_open() {
            return Err("this node is sealed and does not take leadership".into());
        }
        match self.raft.handle_transfer_leader(request).await {
            Ok(Ok(())) => Ok(Bytes::new()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(fatal) => Err(fatal.to_string()),
        }
    }

    async fn heartbeat(&self, caller: &Caller, body: Bytes) -> Result<Bytes, String> {
        let request = wire::decode_append(body).map_err(|e| e.to_string())?;
        self.check_possible(&request)?;
        let input = futures_util::stream::iter([request]);
        let mut answers = std::pin::pin!(self.raft.stream_append(input));
        match answers.next().await {
            Some(Ok(answer)) => {
                if answer.is_ok() {
                    self.contact.heard(caller.hello.incarnation);
                }
                Ok(wire::encode_append_result(&answer))
            }
            Some(Err(fatal)) => Err(fatal.to_string()),
            None => Err("replication has stopped".into()),
        }
    }

    async fn snapshot_begin(&self, caller: &Caller, body: Bytes) -> Result<Bytes, String> {
        let (vote, manifest) = wire::decode_snapshot_begin(body).map_err(|e| e.to_string())?;
        let manifest = Manifest::from_bytes(&manifest).map_err(|e| e.to_string())?;
        let mut incoming = self.incoming.lock().await;
        let from = caller.hello.incarnation;
        let busy = incoming.as_ref().is_some_and(|i| i.from != from && i.heard.elapsed() < PIECES);
        // Only a leader sends snapshots; a higher vote is a newer leader's.
        if busy && incoming.as_ref().is_some_and(|i| vote <= i.vote) {
            return Err("another snapshot is coming in".into());
        }
        *incoming = None;
        let installer = self.state.begin_install(manifest.clone()).map_err(|e| e.to_string())?;
        tracing::info!(from = caller.hello.node_id, bytes = manifest.bytes, "receiving a snapshot");
        *incoming =
            Some(Incoming { from, heard: Instant::now(), vote, manifest, installer: Box::new(installer) });
        Ok(Bytes::new())
    }

    async fn snapshot_piece(&self, caller: &Caller, body: Bytes) -> Result<Bytes, String> {
        let mut incoming = self.incoming.lock().await;
        let mut current = take_from(&mut incoming, caller)?;
        let Some((n, chunk)) = body.split_first_chunk::<8>() else { return Err("short piece".into()) };
        let (n, chunk) = (u64::from_be_bytes(*n), body.slice_ref(chunk));
        let taken = tokio::task::spawn_blocking(move || {
            let result = current.installer.chunk(n, &chunk);
            (current, result)
        });
        let (mut current, result) = taken.await.map_err(|_| "internal error".to_string())?;
        result.map_err(|e| e.to_string())?;
        current.heard = Instant::now();
        *incoming = Some(current);
        Ok(Bytes::new())
    }

    /// Installs what has come in, after everything that the library would panic on has been ruled out.
    async fn snapshot_end(&self, caller: &Caller) -> Result<Bytes, String> {
        let mut incoming = take_from(&mut *self.incoming.lock().await, caller)?;
        let checked = tokio::task::spawn_blocking(move || {
            let result = incoming.installer.check();
            (incoming, result)
        });
        let (incoming, result) = checked.await.map_err(|_| "internal error".to_string())?;
        result.map_err(|e| e.to_string())?;
        let meta = snapshot_meta(&incoming.manifest.meta).map_err(|e| e.to_string())?;
        let (committed, term) = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            (metrics.local_committed, metrics.current_term)
        };
        let beyond_vote = meta.last_log_id.is_some_and(|id| *id.leader_id > incoming.vote.leader_id.term);
        let behind = meta.last_log_id.map(|id| id.index) <= committed.map(|id| id.index);
        if beyond_vote || (behind && meta.last_log_id != committed) {
            return Err(format!("a snapshot that cannot be: own term {term}"));
        }
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Staged(incoming.installer) };
        let response =
            self.raft.install_full_snapshot(incoming.vote, snapshot).await.map_err(|e| e.to_string())?;
        self.contact.heard(caller.hello.incarnation);
        Ok(wire::encode_vote(&response.vote))
    }

    fn open_proof(&self, caller: &Caller, body: &[u8]) -> Result<Bytes, String> {
        if !caller.hello.channel.is_open() {
            return Err("this is a replication channel".into());
        }
        let ends = Ends { client: caller.identity.spki_sha256, server: self.myself.spki_sha256 };
        let epoch = self.myself.epoch;
        let own = open_channel::server_proof(&*self.vault, &caller.exporter, &ends, epoch)
            .ok_or("this node is sealed")?;
        if !open_channel::check_client(&*self.vault, &caller.exporter, &ends, epoch, body) {
            metrics::counter!("keystead_cluster_false_proofs").increment(1);
            static SAID: Seldom = Seldom::new();
            if let Some(times) = SAID.due() {
                tracing::warn!(node = caller.hello.node_id, address = %caller.address, times, "a peer could not prove that it holds the root key");
            }
            return Err("the proof is wrong".into());
        }
        caller.proven.store(true, Ordering::Release);
        self.peers.proven(&caller.hello);
        Ok(Bytes::copy_from_slice(&own))
    }

    /// Only a member whose key the directory pins may open this node; the vault judges what it brings.
    async fn unseal(&self, caller: &Caller, body: Bytes) -> Result<Bytes, String> {
        let (incarnation, key) = (caller.hello.incarnation, caller.identity.spki_sha256);
        if self.directory.current().member(incarnation).is_none_or(|member| member.spki_sha256 != key) {
            return Err("only a member of the cluster may open this node".into());
        }
        let (vault, peer) = (self.vault.clone(), caller.peer());
        let opened = self.requests.spawn(async move { vault.unseal(peer, body).await }).await;
        opened.map_err(|_| "internal error".to_string())?.map(|()| Bytes::new())
    }

    /// Whether another process than the one of `boot_id` is connected under the incarnation, or tried to be lately.
    pub fn is_claimed_twice(&self, incarnation: u64, boot_id: u64) -> bool {
        self.suspects.contains(incarnation) || self.connections.has_other(incarnation, boot_id)
    }

    async fn forward(&self, caller: &Caller, body: Bytes) -> Result<Bytes, String> {
        if !self.vault.is_open() {
            return Err("this node is sealed".into());
        }
        if !self.raft.is_leader() {
            return Err("this node does not lead".into());
        }
        let peer = caller.peer();
        let vault = self.vault.clone();
        // A panic in a request must not take the connection along, and requests run beside, not on, the
        // threads of consensus.
        let served = self.requests.spawn(async move { vault.serve(peer, body).await }).await;
        // A request that broke may have been executed before; an empty answer says that nobody knows.
        Ok(served.unwrap_or_default())
    }
}

/// Overwrites what may have held keys, as far as nobody else holds it.
fn wipe(body: Bytes) {
    if let Ok(mut body) = body.try_into_mut() {
        zeroize::Zeroize::zeroize(&mut body[..]);
    }
}

/// The snapshot that this caller has begun.
fn take_from(incoming: &mut Option<Incoming>, caller: &Caller) -> Result<Incoming, String> {
    match incoming.take() {
        Some(current) if current.from == caller.hello.incarnation => Ok(current),
        other => {
            *incoming = other;
            Err("no snapshot was begun".into())
        }
    }
}

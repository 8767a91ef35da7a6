//! The consensus library's network over the connection pool.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use keystead_storage::SnapshotFile;
use openraft::{
    OptionalSend,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, VoteRequest, VoteResponse,
    },
    type_config::alias::{SnapshotOf, VoteOf},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::{
    conn::{CallError, Conn, Method, StreamEnd},
    hello::Channel,
    machine::{SnapshotData, read_chunk},
    pool::{Pool, SILENCE},
    types::{Member, RpcError, TypeConfig},
    wire,
};

type AppendResult = Result<StreamAppendResult<TypeConfig>, RpcError>;

/// How long one piece of a snapshot may take to be taken.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a whole snapshot may take to be verified and installed once all pieces are there.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Makes the library's clients; they share the pool's connections.
pub struct Factory {
    /// Connections to the other nodes.
    pub pool: Arc<Pool>,
    /// How long an append may stay unanswered: twice the greatest election timeout.
    pub append_timeout: Duration,
    /// Takes note of what the peers are told.
    pub told: Arc<Told>,
}

/// The highest index of which this node has told a peer, as leader, that it is committed.
///
/// A peer may have applied that far before this node has, and answered a read from it. So whoever reads here afterwards
/// waits until that index is applied here.
#[derive(Debug, Default)]
pub struct Told(AtomicU64);

impl Told {
    /// The index; 0 when nobody was told anything.
    pub fn index(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Encodes an append, which is the only way in which a peer learns what is committed.
    fn encode(&self, request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
        if let Some(committed) = &request.leader_commit {
            self.0.fetch_max(committed.index, Ordering::AcqRel);
        }
        wire::encode_append(request)
    }
}

impl RaftNetworkFactory<TypeConfig> for Factory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, _node: &Member) -> Network {
        self.client(target, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &Member) -> Network {
        self.client(target, true)
    }
}

impl Factory {
    fn client(&self, target: u64, heartbeat: bool) -> Network {
        let (pool, told) = (self.pool.clone(), self.told.clone());
        Network { pool, target, heartbeat, append_timeout: self.append_timeout, told }
    }
}

/// One of the library's clients of one peer.
pub struct Network {
    pool: Arc<Pool>,
    target: u64,
    heartbeat: bool,
    append_timeout: Duration,
    told: Arc<Told>,
}

fn unreachable(error: impl ToString) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(error))
}

fn network(error: impl ToString) -> RpcError {
    RPCError::Network(NetworkError::from_string(error))
}

impl Network {
    async fn control(&self, method: Method, body: Bytes, option: &RPCOption) -> Result<Bytes, RpcError> {
        self.pool
            .call(self.target, Channel::Control, method, &body, option.soft_ttl())
            .await
            .map_err(unreachable)
    }
}

impl RaftNetworkV2<TypeConfig> for Network {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let answer = self.control(Method::Heartbeat, self.told.encode(&request), &option).await?;
        Ok(wire::decode_append_result(answer).map_err(network)?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // Nothing here may fail before the input has been polled: the library backs off only while it is.
        let stream: BoxStream<'s, AppendResult> = if self.heartbeat {
            let (pool, told) = (self.pool.clone(), self.told.clone());
            Box::pin(heartbeats(pool, told, self.target, input, option.soft_ttl()))
        } else {
            let start = Appends::Start {
                input: Box::pin(input),
                pool: self.pool.clone(),
                target: self.target,
                timeout: self.append_timeout,
                told: self.told.clone(),
            };
            Box::pin(futures_util::stream::unfold(start, Appends::next))
        };
        Box::pin(std::future::ready(Ok(stream)))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let answer = self.control(Method::Vote, wire::encode_vote_request(&request), &option).await?;
        wire::decode_vote_response(answer).map_err(network)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let answer = self.control(Method::PreVote, wire::encode_vote_request(&request), &option).await?;
        wire::decode_vote_response(answer).map_err(network)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<TypeConfig>,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Spooled(spool) = snapshot.snapshot else {
            return Err(StreamingError::Network(NetworkError::from_string("snapshot without content")));
        };
        let send = async {
            // A dead target is found out before anything is read.
            let conn = self.pool.get(self.target, Channel::Snapshot).await.map_err(unreachable)?;
            let file = spool.file().await.map_err(network)?;
            send_snapshot(&conn, &vote, file).await
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => Ok(sent?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<openraft::raft::TransferLeaderResponse<TypeConfig>, RpcError> {
        self.control(Method::TransferLeader, wire::encode_transfer(&request), &option).await?;
        Ok(Ok(()))
    }
}

async fn send_snapshot(
    conn: &Conn,
    vote: &VoteOf<TypeConfig>,
    file: Arc<SnapshotFile>,
) -> Result<SnapshotResponse<TypeConfig>, RpcError> {
    let lost = |error: CallError| network(error);
    let manifest = file.manifest();
    let begin = wire::encode_snapshot_begin(vote, &manifest.to_bytes());
    conn.call(Method::SnapshotBegin, &begin, PIECE_TIMEOUT).await.map_err(lost)?;
    for n in 0..manifest.chunks {
        let chunk = read_chunk(file.clone(), n).await.map_err(network)?;
        let mut piece = Vec::with_capacity(chunk.len() + 8);
        piece.extend_from_slice(&n.to_be_bytes());
        piece.extend_from_slice(&chunk);
        conn.call(Method::SnapshotPiece, &piece, PIECE_TIMEOUT).await.map_err(lost)?;
    }
    let answer = conn.call(Method::SnapshotEnd, &[], INSTALL_TIMEOUT).await.map_err(lost)?;
    Ok(SnapshotResponse::new(wire::decode_vote(answer).map_err(network)?))
}

fn heartbeats<S>(
    pool: Arc<Pool>,
    told: Arc<Told>,
    target: u64,
    input: S,
    ttl: Duration,
) -> impl Stream<Item = AppendResult>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    input.then(move |request| {
        let pool = pool.clone();
        let body = told.encode(&request);
        async move {
            let answer = pool
                .call(target, Channel::Control, Method::Heartbeat, &body, ttl)
                .await
                .map_err(unreachable)?;
            wire::decode_append_result(answer).map_err(network)
        }
    })
}

/// One pipelined stream of appends to one peer.
enum Appends<S> {
    /// Nothing has been polled yet.
    Start { input: std::pin::Pin<Box<S>>, pool: Arc<Pool>, target: u64, timeout: Duration, told: Arc<Told> },
    /// Requests go out on a task of their own while answers come in here.
    Running(Running),
    /// An error or the end has been reported.
    Over,
}

struct Running {
    pool: Arc<Pool>,
    target: u64,
    answers: StreamEnd,
    /// Send times of what is not answered yet.
    sent: mpsc::UnboundedReceiver<Instant>,
    timeout: Duration,
    _sender: SenderTask,
}

/// The library holds a lock while its input is polled, so the task must go when the stream goes.
struct SenderTask(JoinHandle<()>);

impl Drop for SenderTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<S> Appends<S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static,
{
    async fn next(self) -> Option<(AppendResult, Self)> {
        let mut running = match self {
            Self::Over => return None,
            Self::Running(running) => running,
            Self::Start { mut input, pool, target, timeout, told } => {
                let first = input.next().await?;
                match start(input, first, &pool, target, timeout, told).await {
                    Ok(running) => running,
                    Err(error) => return Some((Err(error), Self::Over)),
                }
            }
        };
        // The sender says when it sent; no more of that means the input has ended.
        let sent = running.sent.recv().await?;
        let deadline = sent.max(Instant::now() - running.timeout) + running.timeout;
        let answer = timeout(deadline.duration_since(Instant::now()), running.answers.recv()).await;
        let result = match answer {
            Ok(Some(bytes)) => wire::decode_append_result(bytes).map_err(network),
            Ok(None) => Err(unreachable("connection lost")),
            Err(_) => {
                running.pool.give_up(running.target, Channel::Bulk, SILENCE);
                Err(unreachable("no answer to an append in time"))
            }
        };
        let over = !matches!(result, Ok(Ok(_)));
        Some((result, if over { Self::Over } else { Self::Running(running) }))
    }
}

async fn start<S>(
    mut input: std::pin::Pin<Box<S>>,
    first: AppendEntriesRequest<TypeConfig>,
    pool: &Arc<Pool>,
    target: u64,
    timeout: Duration,
    told: Arc<Told>,
) -> Result<Running, RpcError>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static,
{
    let conn = pool.get(target, Channel::Bulk).await.map_err(unreachable)?;
    let (stream, answers) = conn.open_stream().ok_or_else(|| unreachable("connection closed"))?;
    let (sent_tx, sent) = mpsc::unbounded_channel();
    let task = tokio::spawn(async move {
        // The connection lives as long as a stream of it does.
        let _conn = conn;
        let mut next = Some(first);
        while let Some(request) = next {
            if sent_tx.send(Instant::now()).is_err() || !stream.send(told.encode(&request)).await {
                return;
            }
            next = input.next().await;
        }
        stream.end().await;
    });
    Ok(Running { pool: pool.clone(), target, answers, sent, timeout, _sender: SenderTask(task) })
}

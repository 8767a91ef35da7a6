//! Connections to the other nodes, made when they are needed and kept.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use keystead_tls::{ClusterTls, peer_of};
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::Mutex as AsyncMutex, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::{
    codec,
    conn::{Conn, Method},
    directory::DirectoryCache,
    frame::{self, Frame, Kind},
    hello::{Channel, Hello, OLDEST_LEVEL, Refusal},
    open_channel,
    peers::Peers,
    standing::{OwnStanding, Standing},
    vault_side::VaultSide,
};

/// How long one attempt at one address may take, TLS and hello included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialError {
    /// No address is known for the node.
    #[error("no address is known for node {0:016x}")]
    Unknown(u64),
    /// No address answered.
    #[error("{0}")]
    Unreachable(String),
    /// The node answered and will not talk.
    #[error("{node}: {refusal}")]
    Refused {
        /// Who refused.
        node: String,
        /// Why.
        refusal: Refusal,
    },
    /// One of the two nodes is sealed, so the channel cannot be opened.
    #[error("{0}")]
    NotOpen(String),
}

/// Who this node is, as it says in every hello.
#[derive(Debug, Clone)]
pub struct Myself {
    /// The Raft id.
    pub incarnation: u64,
    /// Drawn at each start of the process.
    pub boot_id: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// SHA-256 of its public key.
    pub spki_sha256: [u8; 32],
    /// The set of nodes it belongs to.
    pub cluster_id: [u8; 16],
    /// The epoch it belongs to.
    pub epoch: u64,
    /// `host:port` of its cluster port as others reach it.
    pub cluster_addr: String,
    /// Base URL of its API as clients reach it.
    pub api_addr: String,
    /// What its release can do.
    pub feature_level: u32,
    /// Its release, for people.
    pub version: String,
}

impl Myself {
    /// This node's hello for a channel.
    pub fn hello(&self, channel: Channel, sealed: bool) -> Hello {
        Hello {
            feature_level: self.feature_level,
            oldest_level: OLDEST_LEVEL,
            version: self.version.clone(),
            epoch: self.epoch,
            node_id: self.node_id.clone(),
            incarnation: self.incarnation,
            boot_id: self.boot_id,
            cluster_addr: self.cluster_addr.clone(),
            api_addr: self.api_addr.clone(),
            channel,
            sealed,
        }
    }
}

type Slot = Arc<AsyncMutex<Option<Arc<Conn>>>>;

/// The pool.
pub struct Pool {
    myself: Myself,
    tls: Arc<ClusterTls>,
    directory: Arc<DirectoryCache>,
    peers: Arc<Peers>,
    vault: Arc<dyn VaultSide>,
    own: Arc<OwnStanding>,
    slots: Mutex<HashMap<(u64, Channel), Slot>>,
    /// The last refusal since a member was reached, logged once.
    refused: Mutex<Option<Refusal>>,
    /// Where members may be, by somebody's word.
    hints: Mutex<HashMap<u64, String>>,
}

impl Pool {
    /// An empty pool.
    pub fn new(
        myself: Myself,
        tls: Arc<ClusterTls>,
        directory: Arc<DirectoryCache>,
        peers: Arc<Peers>,
        vault: Arc<dyn VaultSide>,
        own: Arc<OwnStanding>,
    ) -> Self {
        let (slots, refused, hints) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { myself, tls, directory, peers, vault, own, slots, refused, hints }
    }

    /// The connection to a peer for a channel, dialled if there is none.
    ///
    /// # Cancel safety
    /// A dial that has begun goes on: a caller with little time does not spoil it for the others.
    pub async fn get(self: &Arc<Self>, peer: u64, channel: Channel) -> Result<Arc<Conn>, DialError> {
        let pool = self.clone();
        let dialling: JoinHandle<_> = tokio::spawn(async move { pool.get_now(peer, channel).await });
        dialling.await.unwrap_or_else(|e| Err(DialError::Unreachable(e.to_string())))
    }

    async fn get_now(&self, peer: u64, channel: Channel) -> Result<Arc<Conn>, DialError> {
        let slot = self.slots.lock().entry((peer, channel)).or_default().clone();
        // Whoever else wants this connection waits for the one attempt.
        let mut slot = slot.lock().await;
        if let Some(conn) = slot.as_ref().filter(|conn| !conn.is_closed()) {
            return Ok(conn.clone());
        }
        *slot = None;
        let conn = match self.dial(peer, channel).await {
            Ok(conn) => Arc::new(conn),
            Err(error) => {
                self.note_refusal(&error);
                return Err(error);
            }
        };
        *self.refused.lock() = None;
        *slot = Some(conn.clone());
        Ok(conn)
    }

    fn note_refusal(&self, error: &DialError) {
        if let DialError::Refused { node, refusal } = error {
            let mut last = self.refused.lock();
            if last.as_ref() != Some(refusal) {
                tracing::warn!(node, %refusal, "a member refuses to talk to this node");
                *last = Some(refusal.clone());
            }
        }
    }

    /// Drops all connections to a peer.
    pub fn close(&self, peer: u64) {
        self.slots.lock().retain(|(id, _), _| *id != peer);
    }

    /// Drops all open channels: this node has been sealed.
    pub fn close_open_channels(&self) {
        self.slots.lock().retain(|(_, channel), _| !channel.is_open());
    }

    /// Drops a connection on which nothing comes back any more, so that the next call dials anew instead of
    /// waiting for TCP to give up on it.
    pub fn give_up(&self, peer: u64, channel: Channel, silence: Duration) {
        if !self.peers.heard_within(peer, silence) {
            self.slots.lock().remove(&(peer, channel));
        }
    }

    /// Why members will not talk to this node, if one of them said so since another was reached.
    pub fn refusal(&self) -> Option<Refusal> {
        self.refused.lock().clone()
    }

    /// Somebody says where a member is. Only its certificate proves it.
    pub fn hint(&self, peer: u64, address: String) {
        if address.len() <= 512 && self.directory.current().member(peer).is_some() {
            self.hints.lock().insert(peer, address);
        }
    }

    /// Where a peer may be: where it said itself, then where the directory says, then where others say.
    fn addresses(&self, peer: u64) -> Vec<String> {
        let heard = self.peers.status(peer).map(|status| status.cluster_addr);
        let listed = self.directory.current().member(peer).map(|member| member.cluster_addr.clone());
        let hinted = self.hints.lock().get(&peer).cloned();
        let mut addresses: Vec<String> = Vec::with_capacity(3);
        for address in heard.into_iter().chain(listed).chain(hinted) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    async fn dial(&self, peer: u64, channel: Channel) -> Result<Conn, DialError> {
        let mut last = DialError::Unknown(peer);
        for address in self.addresses(peer) {
            let attempt = self.dial_address(peer, channel, &address);
            match tokio::time::timeout(DIAL_TIMEOUT, attempt).await {
                Ok(Ok(conn)) => return Ok(conn),
                Ok(Err(error)) => last = error,
                Err(_) => {
                    last = DialError::Unreachable(format!("{address}: no answer within {DIAL_TIMEOUT:?}"))
                }
            }
        }
        Err(last)
    }

    async fn dial_address(&self, peer: u64, channel: Channel, address: &str) -> Result<Conn, DialError> {
        let unreachable =
            |error: &dyn std::fmt::Display| DialError::Unreachable(format!("{address}: {error}"));
        let tcp = TcpStream::connect(address).await.map_err(|e| unreachable(&e))?;
        tcp.set_nodelay(true).map_err(|e| unreachable(&e))?;
        notice_silence(&tcp).map_err(|e| unreachable(&e))?;
        let connector = TlsConnector::from(self.tls.client_config(Some(peer)));
        let tls = connector.connect(ClusterTls::server_name(), tcp).await.map_err(|e| unreachable(&e))?;
        let identity = peer_of(tls.get_ref().1).map_err(|e| unreachable(&e))?;
        self.check_pinned(peer, &identity)?;
        let exporter = keystead_tls::exporter(tls.get_ref().1).map_err(|e| unreachable(&e))?;
        let (mut reader, mut writer) = tokio::io::split(tls);

        let hello = codec::encode(&self.myself.hello(channel, !self.vault.is_open()));
        let frame = Frame { kind: Kind::Hello, flags: 0, stream: 0, payload: hello };
        frame::write(&mut writer, &frame).await.map_err(|e| unreachable(&e))?;
        tokio::io::AsyncWriteExt::flush(&mut writer).await.map_err(|e| unreachable(&e))?;
        let answer = frame::read(&mut reader, frame::HELLO_LIMIT)
            .await
            .map_err(|e| unreachable(&e))?
            .ok_or_else(|| unreachable(&"closed the connection"))?;
        let theirs = self.judge_hello(peer, &answer)?;
        self.peers.hello(&theirs);

        let (own, peers) = (self.own.clone(), self.peers.clone());
        let flags = move || own.now().to_flags();
        let heard = move |flags| peers.frame(peer, Standing::of_flags(flags));
        let mut conn = Conn::start(theirs, reader, writer, channel.limit(), flags, heard);
        conn.address = address.to_owned();
        if channel.is_open() {
            let keys = open_channel::Ends { client: self.myself.spki_sha256, server: identity.spki_sha256 };
            self.prove_open(&conn, &exporter, &keys).await?;
            self.peers.proven(&conn.peer);
        }
        Ok(conn)
    }

    /// What the directory says of whoever answered: its key is pinned, and it has not been removed.
    fn check_pinned(&self, peer: u64, identity: &keystead_tls::PeerIdentity) -> Result<(), DialError> {
        let directory = self.directory.current();
        let refused = |refusal| Err(DialError::Refused { node: self.name_of(peer), refusal });
        if directory.is_tombstoned(peer) {
            return refused(Refusal::Removed);
        }
        match directory.member(peer) {
            Some(member) if member.spki_sha256 != identity.spki_sha256 => refused(Refusal::KeyNotPinned),
            _ => Ok(()),
        }
    }

    fn judge_hello(&self, peer: u64, answer: &Frame) -> Result<Hello, DialError> {
        match answer.kind {
            Kind::Hello => {
                let hello = Hello::decode(&answer.payload)
                    .map_err(|e| DialError::Unreachable(format!("malformed hello: {e}")))?;
                if hello.incarnation != peer {
                    return Err(DialError::Unreachable("the hello names another incarnation".into()));
                }
                Ok(hello)
            }
            Kind::Refused => Err(DialError::Refused {
                node: self.name_of(peer),
                refusal: codec::decode(&answer.payload).unwrap_or(Refusal::Malformed),
            }),
            _ => Err(DialError::Unreachable("no hello".into())),
        }
    }

    fn name_of(&self, peer: u64) -> String {
        let directory = self.directory.current();
        directory.member(peer).map_or_else(|| format!("{peer:016x}"), |member| member.node_id.clone())
    }

    async fn prove_open(
        &self,
        conn: &Conn,
        exporter: &[u8; 32],
        ends: &open_channel::Ends,
    ) -> Result<(), DialError> {
        let sealed_here = || DialError::NotOpen("this node is sealed".into());
        let epoch = self.myself.epoch;
        let proof =
            open_channel::client_proof(&*self.vault, exporter, ends, epoch).ok_or_else(sealed_here)?;
        let answer = conn
            .call(Method::OpenProof, &proof, DIAL_TIMEOUT)
            .await
            .map_err(|e| DialError::NotOpen(e.to_string()))?;
        if open_channel::check_server(&*self.vault, exporter, ends, epoch, &answer) {
            Ok(())
        } else {
            Err(DialError::NotOpen("the other side could not prove that it holds the root key".into()))
        }
    }

    /// Calls a peer over a channel, dialling first if needed.
    pub async fn call(
        self: &Arc<Self>,
        peer: u64,
        channel: Channel,
        method: Method,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Bytes, crate::conn::CallError> {
        let conn = self
            .get(peer, channel)
            .await
            .map_err(|error| crate::conn::CallError::NotSent(error.to_string()))?;
        let result = conn.call(method, body, timeout).await;
        if matches!(result, Err(crate::conn::CallError::Timeout(_))) {
            self.give_up(peer, channel, SILENCE);
        }
        result
    }
}

/// A connection of which nothing was heard for this long, with a call unanswered, is given up.
pub const SILENCE: Duration = Duration::from_secs(1);

/// Has the kernel end connections to machines that are gone: what was sent must be acknowledged within seconds,
/// and an idle peer is asked whether it is there.
///
/// # Errors
/// When the options cannot be set.
pub fn notice_silence(tcp: &TcpStream) -> std::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_user_timeout(tcp, 4_000)?;
    sockopt::set_socket_keepalive(tcp, true)?;
    sockopt::set_tcp_keepidle(tcp, Duration::from_secs(2))?;
    sockopt::set_tcp_keepintvl(tcp, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(tcp, 3)?;
    Ok(())
}

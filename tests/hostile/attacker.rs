//! What an attacker does with a stolen data directory: speaks on the cluster port under its certificate.
//!
//! Requests are put together by hand, byte by byte, as a program would that shares no code with the server.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use keystead_chaos::NodeConfig;
use keystead_raft::{
    Identity, codec,
    conn::Method,
    frame::{self, Frame, Kind},
    hello::{Channel, FEATURE_LEVEL, Hello, Refusal},
};
use keystead_tls::{ClusterId, ClusterTls, PeerIdentity, PeerPolicy};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

struct Anybody;

impl PeerPolicy for Anybody {
    fn admit(&self, _: &PeerIdentity) -> Result<(), String> {
        Ok(())
    }
}

/// A stolen identity.
pub struct Attacker {
    identity: Identity,
    tls: ClusterTls,
    cluster_addr: String,
    api_addr: String,
}

/// Drawn at each start of a node; the attacker has no reason to draw.
const BOOT_ID: u64 = 0x00a7_7ac4;

/// A log position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub term: u64,
    pub index: u64,
}

/// What a node says when it is asked for its vote.
#[derive(Debug)]
pub struct Ballot {
    pub term: u64,
    pub last: Position,
    pub granted: bool,
}

impl Attacker {
    /// Takes the identity out of a copy of a data directory, and says that it lives where its owner does, so that
    /// nobody has a reason to look up.
    pub fn with_stolen(data: &Path, owner: &NodeConfig) -> Attacker {
        let identity = Identity::load(data).unwrap().expect("the directory of a member");
        let tls = ClusterTls::new(
            ClusterId(identity.cluster_id),
            &identity.ca_cert_der,
            &identity.cert_der,
            identity.key().unwrap(),
            Arc::new(Anybody),
        )
        .unwrap();
        Attacker {
            identity,
            tls,
            cluster_addr: owner.cluster_advertised.to_string(),
            api_addr: owner.api_url(),
        }
    }

    /// The Raft id whose place it takes.
    pub fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// A TLS connection under the stolen certificate, before any hello.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(to).await?;
        let connector = TlsConnector::from(self.tls.client_config(None));
        connector.connect(ClusterTls::server_name(), tcp).await
    }

    /// What it says of itself.
    pub fn hello(&self, channel: Channel) -> Hello {
        Hello {
            feature_level: FEATURE_LEVEL,
            oldest_level: FEATURE_LEVEL,
            version: String::new(),
            epoch: self.identity.epoch,
            node_id: self.identity.node_id.clone(),
            incarnation: self.identity.incarnation,
            cluster_addr: self.cluster_addr.clone(),
            api_addr: self.api_addr.clone(),
            boot_id: BOOT_ID,
            channel,
            sealed: false,
        }
    }

    /// A connection after the hellos.
    pub async fn open(&self, to: SocketAddr, channel: Channel) -> Result<Line, Refusal> {
        let mut stream = self.connect(to).await.unwrap();
        send(&mut stream, Kind::Hello, 0, &codec::encode(&self.hello(channel))).await.unwrap();
        let first = receive(&mut stream).await.unwrap().expect("an answer to the hello");
        match first.kind {
            Kind::Hello => Ok(Line { stream }),
            Kind::Refused => Err(codec::decode(&first.payload).unwrap()),
            other => panic!("{other:?} in answer to a hello"),
        }
    }
}

/// A connection on which calls are made, one at a time.
pub struct Line {
    pub stream: TlsStream<TcpStream>,
}

impl Line {
    /// Makes a call: what came back, or why it was refused.
    pub async fn call(&mut self, method: Method, body: &[u8]) -> Result<Bytes, String> {
        let payload = [&[method as u8], body].concat();
        send(&mut self.stream, Kind::Call, 7, &payload).await.unwrap();
        let answer = receive(&mut self.stream).await.unwrap().expect("an answer to a call");
        match answer.kind {
            Kind::Reply => Ok(answer.payload),
            Kind::Failed => Err(String::from_utf8_lossy(&answer.payload).into_owned()),
            other => panic!("{other:?} in answer to a call"),
        }
    }

    /// Asks for a vote.
    pub async fn ask_for_vote(
        &mut self,
        method: Method,
        term: u64,
        candidate: u64,
        last: Position,
    ) -> Ballot {
        let mut body = vote(term, candidate, false);
        put_position(&mut body, Some(last));
        body.put_u8(0);
        let answer = self.call(method, &body).await.unwrap();
        // vote: term[8] node[8] committed[1], then the last position, then whether it was granted.
        let number = |at: usize| u64::from_be_bytes(answer[at..at + 8].try_into().unwrap());
        assert_eq!(answer[17], 1, "a node with a log");
        let last = Position { term: number(18), index: number(26) };
        Ballot { term: number(0), last, granted: answer[34] != 0 }
    }

    /// Sends entries as a leader would: they follow `previous`, and all of them are committed. Gives whether the
    /// node took them.
    pub async fn append(&mut self, term: u64, leader: u64, previous: Position, payloads: &[Bytes]) -> bool {
        let mut body = vote(term, leader, true);
        put_position(&mut body, Some(previous));
        let last = Position { term, index: previous.index + payloads.len() as u64 };
        put_position(&mut body, Some(last));
        body.put_u32(payloads.len() as u32);
        for (index, payload) in (previous.index + 1..).zip(payloads) {
            body.put_u64(term);
            body.put_u64(index);
            body.put_u32(payload.len() as u32);
            body.put_slice(payload);
        }
        send(&mut self.stream, Kind::Append, 1, &body).await.unwrap();
        // A node that refuses what no leader can send ends the connection.
        let Ok(Some(answer)) = receive(&mut self.stream).await else { return false };
        // 0 and the position it now has: all of it was taken.
        let mut taken = BytesMut::from(&[0u8][..]);
        put_position(&mut taken, Some(last));
        answer.kind == Kind::Appended && answer.payload == taken
    }
}

fn vote(term: u64, node: u64, committed: bool) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u64(term);
    out.put_u64(node);
    out.put_u8(u8::from(committed));
    out
}

fn put_position(out: &mut BytesMut, position: Option<Position>) {
    match position {
        None => out.put_u8(0),
        Some(position) => {
            out.put_u8(1);
            out.put_u64(position.term);
            out.put_u64(position.index);
        }
    }
}

/// Sends one frame.
pub async fn send(
    stream: &mut TlsStream<TcpStream>,
    kind: Kind,
    number: u64,
    payload: &[u8],
) -> io::Result<()> {
    let frame = Frame { kind, flags: 0, stream: number, payload: Bytes::copy_from_slice(payload) };
    frame::write(stream, &frame).await?;
    stream.flush().await
}

/// Waits for one frame; `None` when the other side closes.
pub async fn receive(stream: &mut TlsStream<TcpStream>) -> io::Result<Option<Frame>> {
    match tokio::time::timeout(PATIENCE, frame::read(stream, frame::OPEN_LIMIT)).await {
        Ok(Ok(frame)) => Ok(frame),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

//! The payload of a log entry: its bytes, its place in the sequence, its tag.
//!
//! A payload is one byte of kind, then:
//!
//! | kind | bytes |
//! |---|---|
//! | 0 blank | nothing; the consensus library writes one at the start of each term |
//! | 1 command | `format[1] cluster_id[16] epoch[8] term[8] sequence[8] cluster_time_ms[8] key_term[4] body_kind[1] body tag[32]` |
//! | 2 membership | `format[1]`, then the configurations and nodes, length-prefixed |
//!
//! Integers are big-endian. The tag is HMAC-SHA256 under `K_log` over everything before it. Cluster id, epoch,
//! term and sequence are judged by every node without a key: an entry put back from an old disk has the wrong
//! term or a sequence that does not increase, and is a no-op. The tag is judged by every node that is open.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{BufMut, Bytes, BytesMut};
use keystead_storage::{
    Activation, Check, CheckpointMark, Command, FolderKey, RecordKey, RequestId, Txn, Version, Write,
};

use crate::{
    codec::{DecodeError, Reader, put_slice},
    types::{Member, Proposal, RaftMembership},
};

const KIND_BLANK: u8 = 0;
const KIND_COMMAND: u8 = 1;
const KIND_MEMBERSHIP: u8 = 2;
const FORMAT: u8 = 2;
const BODY_TXN: u8 = 1;
const BODY_CHECKPOINT: u8 = 2;
/// Length of the tag that ends a command.
pub const TAG_LEN: usize = 32;
/// Bytes of a command around its body.
pub const COMMAND_OVERHEAD: usize = 1 + 1 + 16 + 8 * 4 + 4 + 1 + TAG_LEN;

/// Where a command stands: what makes it unrepeatable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The set of nodes it was written for.
    pub cluster_id: [u8; 16],
    /// Raised by a recovery from lost quorum; an older epoch's entries do not count.
    pub epoch: u64,
    /// The Raft term of the leader that proposed it.
    pub term: u64,
    /// Strictly increasing within a term.
    pub sequence: u64,
    /// Cluster time in milliseconds since the Unix epoch.
    pub cluster_time_ms: u64,
    /// Which `K_log` the tag is under.
    pub key_term: u32,
}

/// What a command asks for.
#[derive(Debug, Clone)]
pub enum Body {
    /// A transaction over sealed records.
    Txn(Txn),
    /// A digest checkpoint.
    Checkpoint(CheckpointMark),
}

/// A decoded payload.
#[derive(Debug)]
pub enum Payload {
    /// The library's own blank entry.
    Blank,
    /// A command.
    Command {
        /// Where it stands.
        header: Header,
        /// What it asks for.
        body: Body,
        /// The bytes that the tag covers.
        signed: Bytes,
        /// The tag.
        tag: [u8; TAG_LEN],
    },
    /// A membership.
    Membership(RaftMembership),
}

/// The body's bytes, encoded once, before the sequence is known.
#[derive(Clone)]
pub struct EncodedBody {
    kind: u8,
    bytes: Bytes,
}

impl EncodedBody {
    /// Encodes a body.
    pub fn new(body: &Body) -> Self {
        let mut out = BytesMut::with_capacity(body_capacity(body));
        match body {
            Body::Txn(txn) => {
                put_txn(&mut out, txn);
                Self { kind: BODY_TXN, bytes: out.freeze() }
            }
            Body::Checkpoint(mark) => {
                match mark.of {
                    Some((index, digest)) => {
                        out.put_u8(1);
                        out.put_u64(index);
                        out.put_slice(&digest);
                    }
                    None => out.put_u8(0),
                }
                Self { kind: BODY_CHECKPOINT, bytes: out.freeze() }
            }
        }
    }

    /// Size of the entry this body will make, in bytes.
    pub fn entry_len(&self) -> usize {
        self.bytes.len() + COMMAND_OVERHEAD
    }
}

/// Puts header and body together and signs them. `sign` gets everything before the tag.
pub fn encode_command<E>(
    header: &Header,
    body: &EncodedBody,
    sign: impl FnOnce(&[u8]) -> Result<[u8; TAG_LEN], E>,
) -> Result<Proposal, E> {
    let mut out = BytesMut::with_capacity(body.entry_len());
    out.put_u8(KIND_COMMAND);
    out.put_u8(FORMAT);
    out.put_slice(&header.cluster_id);
    out.put_u64(header.epoch);
    out.put_u64(header.term);
    out.put_u64(header.sequence);
    out.put_u64(header.cluster_time_ms);
    out.put_u32(header.key_term);
    out.put_u8(body.kind);
    out.put_slice(&body.bytes);
    let tag = sign(&out)?;
    out.put_slice(&tag);
    Ok(Proposal(out.freeze()))
}

/// The payload of the library's blank entry.
pub fn encode_blank() -> Bytes {
    Bytes::from_static(&[KIND_BLANK])
}

/// The payload of a membership entry.
pub fn encode_membership(membership: &RaftMembership) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(KIND_MEMBERSHIP);
    out.put_u8(FORMAT);
    let configs = membership.get_joint_config();
    out.put_u32(configs.len() as u32);
    for config in configs {
        out.put_u32(config.len() as u32);
        for id in config {
            out.put_u64(*id);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.put_u32(nodes.len() as u32);
    for (id, node) in nodes {
        out.put_u64(*id);
        put_slice(&mut out, node.node_id.as_bytes());
    }
    out.freeze()
}

/// Decodes any payload.
pub fn decode(payload: &Bytes) -> Result<Payload, DecodeError> {
    let mut reader = Reader::new(payload.clone());
    match reader.u8()? {
        KIND_BLANK => reader.finish().map(|()| Payload::Blank),
        KIND_MEMBERSHIP => decode_membership(reader).map(Payload::Membership),
        KIND_COMMAND => decode_command(payload, reader),
        other => Err(DecodeError::Unknown("log entry kind", u64::from(other))),
    }
}

/// Whether a payload is a command, without decoding it.
pub fn is_command(payload: &[u8]) -> bool {
    payload.first() == Some(&KIND_COMMAND)
}

fn decode_command(payload: &Bytes, mut reader: Reader) -> Result<Payload, DecodeError> {
    match reader.u8()? {
        FORMAT => {}
        other => return Err(DecodeError::Unknown("log entry format", u64::from(other))),
    }
    let header = Header {
        cluster_id: reader.array()?,
        epoch: reader.u64()?,
        term: reader.u64()?,
        sequence: reader.u64()?,
        cluster_time_ms: reader.u64()?,
        key_term: reader.u32()?,
    };
    let kind = reader.u8()?;
    let body_len = reader.remaining().checked_sub(TAG_LEN).ok_or(DecodeError::Short)?;
    let mut body_reader = Reader::new(reader.bytes(body_len)?);
    let tag = reader.array()?;
    let body = match kind {
        BODY_TXN => Body::Txn(read_txn(&mut body_reader)?),
        BODY_CHECKPOINT => Body::Checkpoint(CheckpointMark {
            of: match body_reader.flag()? {
                false => None,
                true => Some((body_reader.u64()?, body_reader.array()?)),
            },
        }),
        other => return Err(DecodeError::Unknown("command body", u64::from(other))),
    };
    body_reader.finish()?;
    Ok(Payload::Command { header, body, signed: payload.slice(..payload.len() - TAG_LEN), tag })
}

fn decode_membership(mut reader: Reader) -> Result<RaftMembership, DecodeError> {
    match reader.u8()? {
        FORMAT => {}
        other => return Err(DecodeError::Unknown("membership format", u64::from(other))),
    }
    let mut configs = Vec::new();
    for _ in 0..reader.u32()? {
        let mut ids = BTreeSet::new();
        for _ in 0..reader.u32()? {
            ids.insert(reader.u64()?);
        }
        configs.push(ids);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..reader.u32()? {
        let id = reader.u64()?;
        nodes.insert(id, Member { node_id: reader.string()? });
    }
    reader.finish()?;
    RaftMembership::new(configs, nodes).map_err(|_| DecodeError::Invalid("membership"))
}

/// A command as the state applies it.
pub fn to_command(header: &Header, body: Body) -> Command {
    let (txn, checkpoint) = match body {
        Body::Txn(txn) => (txn, None),
        Body::Checkpoint(mark) => (Txn::default(), Some(mark)),
    };
    Command {
        term: header.term,
        sequence: header.sequence,
        cluster_time_ms: header.cluster_time_ms,
        txn,
        checkpoint,
    }
}

/// Bytes that a body takes, or a few more: growing would copy it several times.
fn body_capacity(body: &Body) -> usize {
    const FIELDS: usize = 32;
    let Body::Txn(txn) = body else { return 64 };
    let check = |check: &Check| match check {
        Check::Record { key, .. } => key.as_bytes().len() + FIELDS,
        Check::Children { folder, .. } => folder.as_bytes().len() + FIELDS,
    };
    let write = |write: &Write| match write {
        Write::Put { key, value } => key.as_bytes().len() + value.len() + FIELDS,
        Write::Delete { key } => key.as_bytes().len() + FIELDS,
    };
    let checks: usize = txn.checks.iter().map(check).sum();
    let writes: usize = txn.writes.iter().map(write).sum();
    checks + writes + txn.response.len() + 2 * FIELDS
}

fn put_txn(out: &mut BytesMut, txn: &Txn) {
    out.put_slice(&txn.request_id.0);
    out.put_u32(txn.checks.len() as u32);
    for check in &txn.checks {
        let (kind, key, version) = match check {
            Check::Record { key, version } => (0, key.as_bytes(), version),
            Check::Children { folder, version } => (1, folder.as_bytes(), version),
        };
        out.put_u8(kind);
        put_slice(out, key);
        match version {
            None => out.put_u8(0),
            Some(version) => {
                out.put_u8(1);
                out.put_u32(version.generation);
                out.put_u64(version.index);
            }
        }
    }
    out.put_u32(txn.writes.len() as u32);
    for write in &txn.writes {
        match write {
            Write::Put { key, value } => {
                out.put_u8(0);
                put_slice(out, key.as_bytes());
                put_slice(out, value);
            }
            Write::Delete { key } => {
                out.put_u8(1);
                put_slice(out, key.as_bytes());
            }
        }
    }
    put_slice(out, &txn.response);
    let Some(activation) = &txn.activate else { return out.put_u8(0) };
    let Activation { restore, pieces, rows, digest, keep, meet } = &**activation;
    out.put_u8(1);
    out.put_slice(restore);
    out.put_u64(*pieces);
    out.put_u64(*rows);
    out.put_slice(digest);
    out.put_u32(keep.len() as u32);
    keep.iter().for_each(|key| put_slice(out, key.as_bytes()));
    out.put_u32(meet.len() as u32);
    meet.iter().for_each(|folder| put_slice(out, folder.as_bytes()));
}

fn read_txn(reader: &mut Reader) -> Result<Txn, DecodeError> {
    let request_id = RequestId(reader.array()?);
    let mut checks = Vec::new();
    for _ in 0..reader.u32()? {
        let kind = reader.u8()?;
        let key = reader.slice()?;
        let version = match reader.flag()? {
            false => None,
            true => Some(Version { generation: reader.u32()?, index: reader.u64()? }),
        };
        checks.push(match kind {
            0 => Check::Record { key: record_key(&key)?, version },
            1 => Check::Children { folder: folder_key(&key)?, version },
            other => return Err(DecodeError::Unknown("check", u64::from(other))),
        });
    }
    let mut writes = Vec::new();
    for _ in 0..reader.u32()? {
        writes.push(match reader.u8()? {
            0 => Write::Put { key: record_key(&reader.slice()?)?, value: reader.slice()? },
            1 => Write::Delete { key: record_key(&reader.slice()?)? },
            other => return Err(DecodeError::Unknown("write", u64::from(other))),
        });
    }
    let response = reader.slice()?;
    let activate = match reader.flag()? {
        false => None,
        true => Some(Box::new(read_activation(reader)?)),
    };
    Ok(Txn { request_id, checks, writes, response, activate })
}

fn read_activation(reader: &mut Reader) -> Result<Activation, DecodeError> {
    let mut activation = Activation {
        restore: reader.array()?,
        pieces: reader.u64()?,
        rows: reader.u64()?,
        digest: reader.array()?,
        ..Activation::default()
    };
    for _ in 0..reader.u32()? {
        activation.keep.push(record_key(&reader.slice()?)?);
    }
    for _ in 0..reader.u32()? {
        activation.meet.push(folder_key(&reader.slice()?)?);
    }
    Ok(activation)
}

fn folder_key(bytes: &[u8]) -> Result<FolderKey, DecodeError> {
    FolderKey::parse(bytes.to_vec()).map_err(|_| DecodeError::Invalid("folder key"))
}

fn record_key(bytes: &[u8]) -> Result<RecordKey, DecodeError> {
    RecordKey::parse(bytes.to_vec()).map_err(|_| DecodeError::Invalid("record key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            cluster_id: [7; 16],
            epoch: 1,
            term: 3,
            sequence: 9,
            cluster_time_ms: 1_700_000_000_000,
            key_term: 1,
        }
    }

    fn sample_activation() -> Activation {
        Activation {
            restore: [1; 16],
            pieces: 2,
            rows: 3,
            digest: [4; 32],
            keep: vec![RecordKey::clear("directory").unwrap()],
            meet: vec![FolderKey::root([6; 16])],
        }
    }

    fn sample_txn() -> Txn {
        let key = RecordKey::clear("directory").unwrap();
        Txn {
            request_id: RequestId([5; 16]),
            checks: vec![Check::Record {
                key: key.clone(),
                version: Some(Version { generation: 1, index: 4 }),
            }],
            writes: vec![
                Write::Put { key: key.clone(), value: Bytes::from_static(b"v") },
                Write::Delete { key },
            ],
            response: Bytes::from_static(b"r"),
            activate: Some(Box::new(sample_activation())),
        }
    }

    #[test]
    fn a_command_reads_back_as_it_was_written() {
        let body = EncodedBody::new(&Body::Txn(sample_txn()));
        let proposal =
            encode_command(&header(), &body, |signed| Ok::<_, ()>([signed.len() as u8; 32])).unwrap();
        assert_eq!(proposal.0.len(), body.entry_len());
        let Payload::Command { header: got, body: Body::Txn(txn), signed, tag } =
            decode(&proposal.0).unwrap()
        else {
            panic!("not a transaction");
        };
        assert_eq!(got, header());
        assert_eq!(tag, [signed.len() as u8; 32]);
        assert_eq!(txn.request_id.0, [5; 16]);
        assert_eq!(txn.writes.len(), 2);
        assert_eq!(txn.activate.as_deref(), Some(&sample_activation()));
        assert_eq!(txn.response, Bytes::from_static(b"r"));
    }

    #[test]
    fn every_truncation_of_a_command_is_refused() {
        let body = EncodedBody::new(&Body::Txn(sample_txn()));
        let proposal = encode_command(&header(), &body, |_| Ok::<_, ()>([0; 32])).unwrap();
        for len in 0..proposal.0.len() {
            assert!(decode(&proposal.0.slice(..len)).is_err(), "{len} bytes were accepted");
        }
    }

    #[test]
    fn a_count_that_lies_is_refused_without_allocating_for_it() {
        let mut out = BytesMut::from(&[KIND_MEMBERSHIP, FORMAT][..]);
        out.put_u32(u32::MAX);
        assert!(decode(&out.freeze()).is_err());
    }

    #[test]
    fn a_joint_membership_reads_back() {
        let nodes: BTreeMap<_, _> = (1..4).map(|id| (id, Member { node_id: format!("n{id}") })).collect();
        let membership =
            RaftMembership::new(vec![BTreeSet::from([1, 2]), BTreeSet::from([1, 3])], nodes).unwrap();
        let Payload::Membership(got) = decode(&encode_membership(&membership)).unwrap() else {
            panic!("not a membership");
        };
        assert_eq!(got, membership);
    }
}

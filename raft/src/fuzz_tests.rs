//! Fuzz targets for what comes over the cluster port, and for the records that peers replicate.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use keystead_fuzz::{Bounds, check};
use keystead_storage::{
    Check, CheckpointMark, FolderKey, LogId, RecordKey, RequestId, Txn, Version, Vote, Write,
};
use openraft::{
    entry::RaftEntry as _,
    raft::{AppendEntriesRequest, StreamAppendError, TransferLeaderRequest, VoteRequest, VoteResponse},
};

use crate::{
    codec::{self, DecodeError},
    directory::Directory,
    entry::{self, Body, EncodedBody, Header, Payload},
    frame::{self, Frame, Kind},
    hello::{Channel, Hello, Refusal},
    types::{Member, Proposal, RaftEntry, RaftMembership, from_storage, vote_from_storage},
    wire,
};

/// bincode's own limit is 4 MiB. The library keeps an entry in more memory than it takes on the wire.
const BOUNDS: Bounds = Bounds { base_bytes: 5 << 20, bytes_per_byte: 48 };

/// The input behind a byte that names the decoder.
fn tagged(tag: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[tag], bytes.as_ref()].concat()
}

fn header() -> Header {
    Header { cluster_id: [7; 16], epoch: 1, term: 3, sequence: 9, cluster_time_ms: 1_700_000, key_term: 1 }
}

fn command(body: &Body) -> Bytes {
    let body = EncodedBody::new(body);
    entry::encode_command(&header(), &body, |_| Ok::<_, DecodeError>([4; 32])).expect("signed").0
}

fn txn() -> Txn {
    let root = FolderKey::root([9; 16]);
    let key = root.child(b"sealed name").expect("valid");
    let version = Some(Version { generation: 1, index: 4 });
    Txn {
        request_id: RequestId([5; 16]),
        checks: vec![
            Check::Record { key: key.clone(), version },
            Check::Children { folder: root, version: None },
        ],
        writes: vec![
            Write::Put { key, value: Bytes::from_static(b"sealed value") },
            Write::Delete { key: RecordKey::clear("directory").expect("valid") },
        ],
        response: Bytes::from_static(b"sealed response"),
        activate: Some(Box::new(keystead_storage::Activation { pieces: 2, ..Default::default() })),
    }
}

fn membership() -> RaftMembership {
    let nodes: BTreeMap<_, _> = (1..5).map(|id| (id, Member { node_id: format!("n{id}") })).collect();
    RaftMembership::new(vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2, 4])], nodes).expect("valid")
}

#[test]
fn fuzz_entries() {
    let mark = CheckpointMark { of: Some((7, [8; 32])) };
    let samples = vec![
        entry::encode_blank().to_vec(),
        entry::encode_membership(&membership()).to_vec(),
        command(&Body::Txn(txn())).to_vec(),
        command(&Body::Checkpoint(mark)).to_vec(),
        command(&Body::Checkpoint(CheckpointMark { of: None })).to_vec(),
    ];
    check!(samples, BOUNDS, |input: &[u8]| {
        let payload = Bytes::copy_from_slice(input);
        match entry::decode(&payload) {
            Err(_) => {}
            Ok(Payload::Blank) => assert_eq!(payload, entry::encode_blank()),
            Ok(Payload::Membership(members)) => {
                let again = entry::encode_membership(&members);
                let Ok(Payload::Membership(read)) = entry::decode(&again) else { panic!("our own") };
                assert_eq!(read, members);
            }
            Ok(Payload::Command { header, body, signed, tag }) => {
                assert!(entry::is_command(&payload));
                assert_eq!(signed, payload.slice(..payload.len() - entry::TAG_LEN));
                let encoded = EncodedBody::new(&body);
                assert_eq!(encoded.entry_len(), payload.len());
                let again = entry::encode_command(&header, &encoded, |_| Ok::<_, DecodeError>(tag));
                assert_eq!(again.expect("signed").0, payload, "a command has one encoding");
            }
        }
    });
}

fn frames() -> Vec<u8> {
    let frames = [
        (Kind::Hello, hello()),
        (Kind::Call, Bytes::from_static(b"\x0bping")),
        (Kind::Append, wire::encode_append(&append())),
        (Kind::End, Bytes::new()),
    ];
    let mut out = Vec::new();
    for (stream, (kind, payload)) in (0..).zip(frames) {
        write_frame(&mut out, &Frame { kind, flags: frame::FLAG_SEALED, stream, payload });
    }
    out
}

fn write_frame(out: &mut Vec<u8>, frame: &Frame) {
    frame::write(out, frame).now_or_never().expect("memory is always ready").expect("memory takes all");
}

fn hello() -> Bytes {
    codec::encode(&Hello {
        feature_level: 1,
        oldest_level: 1,
        version: "1.0.0".into(),
        epoch: 2,
        node_id: "n1".into(),
        incarnation: 77,
        cluster_addr: "127.0.0.1:8201".into(),
        api_addr: "https://127.0.0.1:8200".into(),
        boot_id: 5,
        channel: Channel::Bulk,
        sealed: true,
    })
}

fn append() -> AppendEntriesRequest<crate::types::TypeConfig> {
    let id = |index| from_storage(&LogId { term: 3, node: 0, index });
    AppendEntriesRequest {
        vote: vote(true),
        prev_log_id: Some(id(6)),
        entries: vec![
            RaftEntry::new_normal(id(7), Proposal(command(&Body::Txn(txn())))),
            RaftEntry::new_blank(id(8)),
            RaftEntry::new_membership(id(9), membership()),
        ],
        leader_commit: Some(id(6)),
    }
}

fn vote(committed: bool) -> crate::types::RaftVote {
    vote_from_storage(&Vote { term: 3, node: 9, committed })
}

fn directory() -> Bytes {
    crate::directory::tests::sample().seal(|_| Ok::<_, DecodeError>([4; 32])).expect("signed")
}

#[test]
fn fuzz_frames() {
    let id = from_storage(&LogId { term: 3, node: 0, index: 8 });
    let samples = vec![
        tagged(0, frames()),
        tagged(1, hello()),
        tagged(2, codec::encode(&Refusal::Epoch { ours: 1, theirs: 2 })),
        tagged(3, wire::encode_append(&append())),
        tagged(4, wire::encode_append_result(&Ok(Some(id)))),
        tagged(4, wire::encode_append_result(&Err(StreamAppendError::Conflict(id)))),
        tagged(4, wire::encode_append_result(&Err(StreamAppendError::HigherVote(vote(false))))),
        tagged(5, wire::encode_vote_request(&VoteRequest::new(vote(false), Some(id)))),
        tagged(6, wire::encode_vote_response(&VoteResponse::new(vote(false), Some(id), true))),
        tagged(7, wire::encode_transfer(&TransferLeaderRequest::new(vote(true), 9, Some(id)))),
        tagged(8, wire::encode_snapshot_begin(&vote(true), b"manifest")),
        tagged(9, wire::encode_vote(&vote(true))),
        tagged(10, directory()),
    ];
    check!(samples, BOUNDS, |input: &[u8]| {
        let Some((tag, bytes)) = input.split_first() else { return };
        let message = Bytes::copy_from_slice(bytes);
        match tag % 11 {
            0 => read_frames(bytes),
            1 => {
                if let Ok(hello) = Hello::decode(bytes) {
                    assert_eq!(Hello::decode(&codec::encode(&hello)), Ok(hello));
                }
            }
            2 => {
                if let Ok(refusal) = codec::decode::<Refusal>(bytes) {
                    assert_eq!(codec::decode(&codec::encode(&refusal)), Ok(refusal));
                }
            }
            3 => read_append(message),
            4 => one_encoding(&message, wire::decode_append_result, wire::encode_append_result),
            5 => one_encoding(&message, wire::decode_vote_request, wire::encode_vote_request),
            6 => one_encoding(&message, wire::decode_vote_response, wire::encode_vote_response),
            7 => one_encoding(&message, wire::decode_transfer, wire::encode_transfer),
            8 => one_encoding(&message, wire::decode_snapshot_begin, |(vote, manifest)| {
                wire::encode_snapshot_begin(vote, manifest)
            }),
            9 => one_encoding(&message, wire::decode_vote, wire::encode_vote),
            _ => {
                if let Ok((directory, mac)) = Directory::open(bytes) {
                    let again = directory.seal(|_| Ok::<_, DecodeError>(mac)).expect("signed");
                    assert_eq!(Directory::open(&again), Ok((directory, mac)));
                }
            }
        }
    });
}

/// What decodes was encoded by us: there is no second way to write it.
fn one_encoding<T: Debug>(
    bytes: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, DecodeError>,
    encode: impl Fn(&T) -> Bytes,
) {
    if let Ok(message) = decode(bytes.clone()) {
        assert_eq!(encode(&message), *bytes, "{message:?}");
    }
}

/// Frames up to the first that is refused; each was written as it is read.
fn read_frames(bytes: &[u8]) {
    for limit in [frame::HELLO_LIMIT, frame::REPLICATION_LIMIT] {
        let mut rest = bytes;
        loop {
            let before = rest;
            match frame::read(&mut rest, limit).now_or_never().expect("memory is always ready") {
                Ok(Some(frame)) => {
                    assert!(frame.payload.len() <= limit);
                    let mut again = Vec::new();
                    write_frame(&mut again, &frame);
                    assert_eq!(again, before[..before.len() - rest.len()]);
                }
                Ok(None) => break assert!(before.is_empty()),
                Err(_) => break,
            }
        }
    }
}

fn read_append(bytes: Bytes) {
    let Ok(request) = wire::decode_append(bytes.clone()) else { return };
    let first = request.prev_log_id.map_or(0, |id| id.index + 1);
    let indexes = request.entries.iter().map(|entry| entry.log_id.index);
    assert!(indexes.eq((first..).take(request.entries.len())), "indexes follow each other");
    // A membership may be written in another order than ours.
    let again = wire::decode_append(wire::encode_append(&request)).expect("our own");
    assert_eq!(format!("{again:?}"), format!("{request:?}"));
}

//! The consensus library's messages in our own bytes.
//!
//! The library adds fields between releases and positional codecs cannot skip them, so its types never reach a
//! wire: each message is mapped here, field by field, under the frame's version.

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};

use crate::{
    codec::{DecodeError, Reader, put_slice},
    log_store::{entry_of, payload_of},
    types::{RaftLogId, RaftVote, TypeConfig, from_storage, to_storage, vote_from_storage, vote_to_storage},
};

fn put_vote(out: &mut BytesMut, vote: &RaftVote) {
    let vote = vote_to_storage(vote);
    out.put_u64(vote.term);
    out.put_u64(vote.node);
    out.put_u8(u8::from(vote.committed));
}

fn read_vote(reader: &mut Reader) -> Result<RaftVote, DecodeError> {
    let (term, node) = (reader.count()?, reader.u64()?);
    let committed = reader.flag()?;
    Ok(vote_from_storage(&keystead_storage::Vote { term, node, committed }))
}

fn put_log_id(out: &mut BytesMut, id: Option<&RaftLogId>) {
    match id {
        None => out.put_u8(0),
        Some(id) => {
            let id = to_storage(id);
            out.put_u8(1);
            out.put_u64(id.term);
            out.put_u64(id.index);
        }
    }
}

fn read_log_id(reader: &mut Reader) -> Result<Option<RaftLogId>, DecodeError> {
    if !reader.flag()? {
        return Ok(None);
    }
    let (term, index) = (reader.count()?, reader.count()?);
    Ok(Some(from_storage(&keystead_storage::LogId { term, node: 0, index })))
}

/// AppendEntries. Entry payloads are copied in once; on the other side they are slices of the frame.
pub fn encode_append(request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let payloads: Vec<Bytes> = request.entries.iter().map(payload_of).collect();
    let size: usize = payloads.iter().map(|p| p.len() + 20).sum();
    let mut out = BytesMut::with_capacity(size + 64);
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.prev_log_id.as_ref());
    put_log_id(&mut out, request.leader_commit.as_ref());
    out.put_u32(request.entries.len() as u32);
    for (entry, payload) in request.entries.iter().zip(&payloads) {
        let id = to_storage(&entry.log_id);
        out.put_u64(id.term);
        out.put_u64(id.index);
        put_slice(&mut out, payload);
    }
    out.freeze()
}

/// Reads what [`encode_append`] wrote. The indexes must follow each other: the library relies on it.
pub fn decode_append(bytes: Bytes) -> Result<AppendEntriesRequest<TypeConfig>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let vote = read_vote(&mut reader)?;
    let prev_log_id = read_log_id(&mut reader)?;
    let leader_commit = read_log_id(&mut reader)?;
    let first = prev_log_id.map_or(0, |id| id.index + 1);
    let mut entries = Vec::new();
    for n in 0..reader.u32()? {
        let (term, index) = (reader.count()?, reader.count()?);
        if index != first + u64::from(n) {
            return Err(DecodeError::Invalid("order of entries"));
        }
        let id = from_storage(&keystead_storage::LogId { term, node: 0, index });
        entries.push(entry_of(id, &reader.slice()?).map_err(|_| DecodeError::Invalid("entry"))?);
    }
    reader.finish()?;
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// The answer to one append request.
pub fn encode_append_result(result: &StreamAppendResult<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    match result {
        Ok(matched) => {
            out.put_u8(0);
            put_log_id(&mut out, matched.as_ref());
        }
        Err(StreamAppendError::Conflict(id)) => {
            out.put_u8(1);
            put_log_id(&mut out, Some(id));
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

/// Reads what [`encode_append_result`] wrote.
pub fn decode_append_result(bytes: Bytes) -> Result<StreamAppendResult<TypeConfig>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let result = match reader.u8()? {
        0 => Ok(read_log_id(&mut reader)?),
        1 => Err(StreamAppendError::Conflict(
            read_log_id(&mut reader)?.ok_or(DecodeError::Invalid("conflict"))?,
        )),
        2 => Err(StreamAppendError::HigherVote(read_vote(&mut reader)?)),
        _ => return Err(DecodeError::Invalid("append result")),
    };
    reader.finish()?;
    Ok(result)
}

/// RequestVote and Pre-Vote.
pub fn encode_vote_request(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, &request.vote);
    put_log_id(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

/// Reads what [`encode_vote_request`] wrote.
pub fn decode_vote_request(bytes: Bytes) -> Result<VoteRequest<TypeConfig>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut request = VoteRequest::new(read_vote(&mut reader)?, read_log_id(&mut reader)?);
    request.leadership_transfer = reader.flag()?;
    reader.finish()?;
    Ok(request)
}

/// The answer to a vote request.
pub fn encode_vote_response(response: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, &response.vote);
    put_log_id(&mut out, response.last_log_id.as_ref());
    out.put_u8(u8::from(response.vote_granted));
    out.freeze()
}

/// Reads what [`encode_vote_response`] wrote.
pub fn decode_vote_response(bytes: Bytes) -> Result<VoteResponse<TypeConfig>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (vote, last) = (read_vote(&mut reader)?, read_log_id(&mut reader)?);
    let granted = reader.flag()?;
    reader.finish()?;
    Ok(VoteResponse::new(vote, last, granted))
}

/// TransferLeader.
pub fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, request.from_leader());
    out.put_u64(*request.to_node_id());
    put_log_id(&mut out, request.last_log_id());
    out.freeze()
}

/// Reads what [`encode_transfer`] wrote.
pub fn decode_transfer(bytes: Bytes) -> Result<TransferLeaderRequest<TypeConfig>, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (vote, to) = (read_vote(&mut reader)?, reader.u64()?);
    let last = read_log_id(&mut reader)?;
    reader.finish()?;
    Ok(TransferLeaderRequest::new(vote, to, last))
}

/// The head of a snapshot transfer: the sender's vote, then the manifest.
pub fn encode_snapshot_begin(vote: &RaftVote, manifest: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, vote);
    put_slice(&mut out, manifest);
    out.freeze()
}

/// Reads what [`encode_snapshot_begin`] wrote.
pub fn decode_snapshot_begin(bytes: Bytes) -> Result<(RaftVote, Bytes), DecodeError> {
    let mut reader = Reader::new(bytes);
    let out = (read_vote(&mut reader)?, reader.slice()?);
    reader.finish()?;
    Ok(out)
}

/// A vote alone.
pub fn encode_vote(vote: &RaftVote) -> Bytes {
    let mut out = BytesMut::new();
    put_vote(&mut out, vote);
    out.freeze()
}

/// Reads a vote alone.
pub fn decode_vote(bytes: Bytes) -> Result<RaftVote, DecodeError> {
    let mut reader = Reader::new(bytes);
    let vote = read_vote(&mut reader)?;
    reader.finish()?;
    Ok(vote)
}

#[cfg(test)]
mod tests {
    use openraft::entry::RaftEntry as _;

    use super::*;
    use crate::types::{Proposal, RaftEntry};

    fn id(term: u64, index: u64) -> RaftLogId {
        from_storage(&keystead_storage::LogId { term, node: 0, index })
    }

    fn append() -> AppendEntriesRequest<TypeConfig> {
        let payload = Bytes::from_static(&[1, 1, 2, 3]);
        AppendEntriesRequest {
            vote: RaftVote::new_committed(3, 9),
            prev_log_id: Some(id(2, 6)),
            entries: vec![RaftEntry::new_normal(id(3, 7), Proposal(payload)), RaftEntry::new_blank(id(3, 8))],
            leader_commit: None,
        }
    }

    #[test]
    fn an_append_request_reads_back_as_it_was_written() {
        let got = decode_append(encode_append(&append())).unwrap();
        assert_eq!(format!("{got:?}"), format!("{:?}", append()));
    }

    #[test]
    fn entries_out_of_order_are_refused() {
        let mut request = append();
        request.entries.swap(0, 1);
        assert!(decode_append(encode_append(&request)).is_err());
    }

    #[test]
    fn truncated_messages_are_refused() {
        let bytes = encode_append(&append());
        for len in 0..bytes.len() {
            assert!(decode_append(bytes.slice(..len)).is_err(), "{len} bytes were accepted");
        }
        let bytes = encode_vote_request(&VoteRequest::new(RaftVote::new(1, 2), Some(id(1, 1))));
        for len in 0..bytes.len() {
            assert!(decode_vote_request(bytes.slice(..len)).is_err(), "{len} bytes were accepted");
        }
    }

    #[test]
    fn counts_that_leave_no_room_are_refused() {
        for (term, index) in [(u64::MAX, 1), (1, u64::MAX), (crate::codec::COUNT_LIMIT, 1)] {
            let request = VoteRequest::new(RaftVote::new(1, 2), Some(id(term, index)));
            assert!(decode_vote_request(encode_vote_request(&request)).is_err(), "{term} {index}");
            assert!(term == 1 || decode_vote(encode_vote(&RaftVote::new(term, 2))).is_err(), "{term}");
        }
    }

    #[test]
    fn every_append_result_reads_back() {
        for result in [
            Ok(None),
            Ok(Some(id(1, 2))),
            Err(StreamAppendError::Conflict(id(3, 4))),
            Err(StreamAppendError::HigherVote(RaftVote::new(5, 6))),
        ] {
            assert_eq!(decode_append_result(encode_append_result(&result)).unwrap(), result);
        }
    }
}

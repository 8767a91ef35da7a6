//! Frames: what a segment of the log consists of.
//!
//! `length[4] CRC32[4] kind[1] body[length]`, big-endian, one after the other. The checksum covers the number of the
//! segment, the length, the kind and the body, so that a frame of another file, or of another place in the history of
//! this one, is none. Behind the last frame there are zeros, or nothing.

use bincode::{Decode, Encode};
use bytes::{Buf, Bytes};

use crate::codec;
use crate::error::StorageError;
use crate::ids::{LogId, Vote};
use crate::log::LogRecord;

/// Largest payload of one record.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 4 + 4 + 1;
const ID_BYTES: usize = 24;
/// Bytes of the frame of an entry without its payload.
pub(crate) const ENTRY_BYTES: usize = HEADER_BYTES + ID_BYTES;
const BEGIN: u8 = 1;
const NOTE: u8 = 2;
const ENTRY: u8 = 3;

/// What is known besides the entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub(crate) struct Known {
    /// The last entry that was purged.
    pub floor: Option<LogId>,
    /// The newest entry, or the floor.
    pub last: Option<LogId>,
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
}

/// The first frame of a segment: with it, the segments before are needed for their entries alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) struct Begin {
    /// Bytes of frames in the segment before; 0 if this is the first one.
    pub previous_bytes: u64,
    /// What all segments before have come to.
    pub known: Known,
}

/// Something that happened to the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
pub(crate) enum Note {
    Vote(Vote),
    Committed(LogId),
    /// Entries up to this one are purged.
    Floor(LogId),
    /// Entries from this index on are removed; the one before is the newest.
    Truncate {
        from: u64,
        last: Option<LogId>,
    },
}

/// One frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Frame {
    Begin(Begin),
    Note(Note),
    Entry(LogRecord),
}

/// Bytes that a record takes on the disk.
pub(crate) fn frame_bytes(record: &LogRecord) -> u64 {
    (ENTRY_BYTES + record.payload.len()) as u64
}

/// Adds the frame of a record.
pub(crate) fn write_entry(out: &mut Vec<u8>, segment: u64, record: &LogRecord) {
    let LogId { term, node, index } = record.log_id;
    let mut id = [0; ID_BYTES];
    for (place, field) in id.chunks_exact_mut(8).zip([term, node, index]) {
        place.copy_from_slice(&field.to_be_bytes());
    }
    write(out, segment, ENTRY, &[&id, &record.payload]);
}

/// Adds the frame of a note.
pub(crate) fn write_note(out: &mut Vec<u8>, segment: u64, note: &Note) {
    write(out, segment, NOTE, &[&codec::encode(FORMAT, note)]);
}

/// Adds the first frame of a segment.
pub(crate) fn write_begin(out: &mut Vec<u8>, segment: u64, begin: &Begin) {
    write(out, segment, BEGIN, &[&codec::encode(FORMAT, begin)]);
}

fn write(out: &mut Vec<u8>, segment: u64, kind: u8, body: &[&[u8]]) {
    let length: usize = body.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length).expect("payloads are capped below 4 GiB").to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(segment, length, kind, body).to_be_bytes());
    out.push(kind);
    for part in body {
        out.extend_from_slice(part);
    }
}

fn checksum(segment: u64, length: [u8; 4], kind: u8, body: &[&[u8]]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&segment.to_be_bytes());
    crc.update(&length);
    crc.update(&[kind]);
    for part in body {
        crc.update(part);
    }
    crc.finalize()
}

/// Takes the next frame; `None` where the frames end.
///
/// # Errors
/// Why what is there is no frame; nothing was taken then.
pub(crate) fn read(bytes: &mut Bytes, segment: u64) -> Result<Option<Frame>, &'static str> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return if bytes.iter().all(|byte| *byte == 0) { Ok(None) } else { Err("cut off") };
    };
    if *header == [0; HEADER_BYTES] {
        return Ok(None);
    }
    let (length, mut crc, kind) = ([header[0], header[1], header[2], header[3]], &header[4..8], header[8]);
    let body_bytes = u32::from_be_bytes(length) as usize;
    if body_bytes > MAX_PAYLOAD_BYTES + ID_BYTES {
        return Err("longer than it can be");
    }
    let body = rest.get(..body_bytes).ok_or("cut off")?;
    if checksum(segment, length, kind, &[body]) != crc.get_u32() {
        return Err("wrong checksum");
    }
    let mut body = bytes.slice(HEADER_BYTES..HEADER_BYTES + body_bytes);
    let frame = match kind {
        BEGIN => codec::decode("begin", FORMAT, &body).map(Frame::Begin).map_err(|_| "unknown beginning")?,
        NOTE => codec::decode("note", FORMAT, &body).map(Frame::Note).map_err(|_| "unknown note")?,
        ENTRY if body_bytes >= ID_BYTES => {
            let log_id = LogId { term: body.get_u64(), node: body.get_u64(), index: body.get_u64() };
            Frame::Entry(LogRecord { log_id, payload: body })
        }
        _ => return Err("unknown kind"),
    };
    bytes.advance(HEADER_BYTES + body_bytes);
    Ok(Some(frame))
}

/// The record whose frame these bytes are.
///
/// # Errors
/// [`StorageError::Damaged`] unless they are the frame of entry `index`.
pub(crate) fn read_entry(mut bytes: Bytes, segment: u64, index: u64) -> Result<LogRecord, StorageError> {
    let bad = |why: &str| StorageError::damaged(format!("log entry {index} is damaged ({why})"));
    match read(&mut bytes, segment) {
        Ok(Some(Frame::Entry(record))) if record.log_id.index == index => Ok(record),
        Ok(_) => Err(bad("something else is in its place")),
        Err(why) => Err(bad(why)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(index: u64, size: usize) -> LogRecord {
        let log_id = LogId { term: 2, node: 3, index };
        LogRecord { log_id, payload: vec![index as u8; size].into() }
    }

    fn all(bytes: Vec<u8>, segment: u64) -> Result<Vec<Frame>, &'static str> {
        let mut bytes = Bytes::from(bytes);
        std::iter::from_fn(|| read(&mut bytes, segment).transpose()).collect()
    }

    fn sample(segment: u64) -> (Vec<u8>, Vec<Frame>) {
        let known = Known { vote: Some(Vote { term: 4, node: 5, committed: true }), ..Known::default() };
        let begin = Begin { previous_bytes: 77, known };
        let id = LogId { term: 1, node: 1, index: 2 };
        let notes = [Note::Truncate { from: 6, last: Some(id) }, Note::Floor(id)];
        let mut bytes = Vec::new();
        write_begin(&mut bytes, segment, &begin);
        write_entry(&mut bytes, segment, &record(5, 40));
        notes.iter().for_each(|note| write_note(&mut bytes, segment, note));
        write_entry(&mut bytes, segment, &record(6, 0));
        let frames = [Frame::Begin(begin), Frame::Entry(record(5, 40))].into_iter();
        let frames = frames.chain(notes.map(Frame::Note)).chain([Frame::Entry(record(6, 0))]);
        (bytes, frames.collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn frames_are_read_as_they_were_written(sizes in prop::collection::vec(0usize..2000, 0..20), zeros in 0usize..40) {
            let records: Vec<_> = sizes.iter().zip(5u64..).map(|(&size, index)| record(index, size)).collect();
            let mut bytes = Vec::new();
            for record in &records {
                let before = bytes.len() as u64;
                write_entry(&mut bytes, 9, record);
                prop_assert_eq!(bytes.len() as u64 - before, frame_bytes(record));
            }
            bytes.resize(bytes.len() + zeros, 0);
            let frames = all(bytes, 9).expect("good");
            prop_assert_eq!(frames, records.into_iter().map(Frame::Entry).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (good, frames) = sample(3);
        assert_eq!(all(good.clone(), 3), Ok(frames));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(all(bad, 3).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_of_another_segment_is_none() {
        assert!(all(sample(3).0, 4).is_err());
    }

    #[test]
    fn a_cut_frame_is_no_end() {
        let (good, _) = sample(3);
        let mut whole = Bytes::from(good.clone());
        let mut ends = vec![0, good.len()];
        while read(&mut whole, 3).expect("good").is_some() {
            ends.push(good.len() - whole.len());
        }
        for length in 1..good.len() {
            let cut = all(good[..length].to_vec(), 3);
            // Zeros are no frame.
            let end = good[..length].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            assert_eq!(
                cut.is_ok(),
                ends.iter().any(|at| (end..=length).contains(at)),
                "cut to {length}: {cut:?}"
            );
        }
    }
}

//! How log records lie in sled: packed, one value per group of appends.
//!
//! A piece is one sled value of at most 64 KiB. Its key is the index of its first record and a part
//! number, both big-endian; the value is a format byte and frames, one after the other: `u32` payload
//! length, term, node, index (`u64` each), `u32` CRC32 over those three and the payload, the payload. A
//! record whose frame does not fit into a piece lies alone, cut into parts 0, 1, 2, ...

use bytes::{Buf, Bytes, BytesMut};

use crate::error::StorageError;
use crate::ids::LogId;
use crate::log::LogRecord;

/// Largest piece; the largest value that was found safe in sled, and comfortable.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;
/// Largest payload of one record: its parts fit into one batch of sled.
pub(crate) const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 10;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 4 + 24 + 4;
const BODY_BYTES: usize = PIECE_BYTES - 1;

/// One key and value for sled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub key: [u8; KEY_BYTES],
    pub value: Vec<u8>,
}

/// The key of a part.
pub(crate) fn key(first: u64, part: u16) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&first.to_be_bytes());
    key[8..].copy_from_slice(&part.to_be_bytes());
    key
}

/// Reads a key.
pub(crate) fn parse_key(bytes: &[u8]) -> Result<(u64, u16), StorageError> {
    let bad = || StorageError::damaged("a key of the log has the wrong length");
    let (first, part) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
    let part: [u8; 2] = part.try_into().map_err(|_| bad())?;
    Ok((u64::from_be_bytes(*first), u16::from_be_bytes(part)))
}

/// Packs records that follow each other. The parts of one record are one inner list: they must reach
/// sled in one batch.
pub(crate) fn pack(records: &[LogRecord]) -> Vec<Vec<Piece>> {
    let mut out = Vec::new();
    let mut open: Option<Piece> = None;
    for record in records {
        let frame_bytes = HEADER_BYTES + record.payload.len();
        if let Some(piece) = open.take_if(|p| p.value.len() + frame_bytes > PIECE_BYTES) {
            out.push(vec![piece]);
        }
        if frame_bytes > BODY_BYTES {
            out.push(split(record));
            continue;
        }
        let piece =
            open.get_or_insert_with(|| Piece { key: key(record.log_id.index, 0), value: vec![FORMAT] });
        write_frame(&mut piece.value, record);
    }
    out.extend(open.map(|piece| vec![piece]));
    out
}

/// The frames of all parts of a piece, in order, without their format bytes.
pub(crate) fn join(parts: &[impl AsRef<[u8]>]) -> Result<Bytes, StorageError> {
    let mut body = BytesMut::with_capacity(parts.iter().map(|p| p.as_ref().len()).sum());
    for part in parts {
        match part.as_ref().split_first() {
            Some((&FORMAT, rest)) => body.extend_from_slice(rest),
            Some((found, _)) => {
                let what = format!("a piece of the log has format {found}, this release knows {FORMAT}");
                return Err(StorageError::damaged(what));
            }
            None => return Err(StorageError::damaged("a piece of the log is empty")),
        }
    }
    Ok(body.freeze())
}

/// Reads the frames of a piece whose first record has index `first`, checking every one.
pub(crate) fn unpack(first: u64, mut body: Bytes) -> Result<Vec<LogRecord>, StorageError> {
    let mut records = Vec::new();
    let mut index = first;
    while !body.is_empty() {
        let bad = |why: &str| StorageError::damaged(format!("log entry {index} is damaged ({why})"));
        if body.len() < HEADER_BYTES {
            return Err(bad("cut off"));
        }
        let length = body.get_u32() as usize;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&body[..24]);
        let log_id = LogId { term: body.get_u64(), node: body.get_u64(), index: body.get_u64() };
        let expected = body.get_u32();
        if body.len() < length {
            return Err(bad("cut off"));
        }
        let payload = body.split_to(length);
        crc.update(&payload);
        if crc.finalize() != expected {
            return Err(bad("wrong checksum"));
        }
        if log_id.index != index {
            return Err(bad(&format!("it calls itself {}", log_id.index)));
        }
        records.push(LogRecord { log_id, payload });
        index = index.checked_add(1).ok_or_else(|| bad("no log is that long"))?;
    }
    if records.is_empty() {
        return Err(StorageError::damaged(format!("log entry {first} is missing")));
    }
    Ok(records)
}

/// Bytes that a record takes on the disk.
pub(crate) fn frame_bytes(record: &LogRecord) -> u64 {
    (HEADER_BYTES + record.payload.len()) as u64
}

fn write_frame(out: &mut Vec<u8>, record: &LogRecord) {
    let length = u32::try_from(record.payload.len()).expect("payloads are capped below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    let id = out.len();
    for field in [record.log_id.term, record.log_id.node, record.log_id.index] {
        out.extend_from_slice(&field.to_be_bytes());
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&out[id..]);
    crc.update(&record.payload);
    out.extend_from_slice(&crc.finalize().to_be_bytes());
    out.extend_from_slice(&record.payload);
}

fn split(record: &LogRecord) -> Vec<Piece> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + record.payload.len());
    write_frame(&mut frame, record);
    frame
        .chunks(BODY_BYTES)
        .zip(0u16..)
        .map(|(chunk, part)| {
            let mut value = Vec::with_capacity(1 + chunk.len());
            value.push(FORMAT);
            value.extend_from_slice(chunk);
            Piece { key: key(record.log_id.index, part), value }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(index: u64, size: usize) -> LogRecord {
        let log_id = LogId { term: 2, node: 3, index };
        LogRecord { log_id, payload: vec![index as u8; size].into() }
    }

    fn unpack_all(sets: &[Vec<Piece>]) -> Result<Vec<LogRecord>, StorageError> {
        let mut records = Vec::new();
        for set in sets {
            let parts: Vec<&[u8]> = set.iter().map(|p| p.value.as_slice()).collect();
            let (first, part) = parse_key(&set[0].key)?;
            assert_eq!(part, 0);
            records.extend(unpack(first, join(&parts)?)?);
        }
        Ok(records)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn packing_loses_nothing(sizes in prop::collection::vec(
            prop_oneof![0usize..200, 60_000usize..70_000, Just(BODY_BYTES - HEADER_BYTES), Just(300_000)],
            1..40,
        )) {
            let records: Vec<_> = sizes.iter().zip(5u64..).map(|(&s, i)| record(i, s)).collect();
            let sets = pack(&records);
            for piece in sets.iter().flatten() {
                prop_assert!(piece.value.len() <= PIECE_BYTES);
            }
            prop_assert_eq!(unpack_all(&sets).expect("good"), records);
        }
    }

    #[test]
    fn small_records_share_a_piece() {
        let records: Vec<_> = (1..=100).map(|i| record(i, 50)).collect();
        assert_eq!(pack(&records).len(), 1);
    }

    #[test]
    fn an_index_past_the_last_is_damage() {
        let sets = pack(&[record(u64::MAX, 5)]);
        assert!(unpack_all(&sets).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let sets = pack(&[record(1, 5), record(2, 5)]);
        for bit in 0..sets[0][0].value.len() * 8 {
            let mut bad = sets.clone();
            bad[0][0].value[bit / 8] ^= 1 << (bit % 8);
            assert!(unpack_all(&bad).is_err(), "bit {bit}");
        }
    }
}

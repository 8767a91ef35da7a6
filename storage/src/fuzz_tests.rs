//! Fuzz targets for everything that is read from the disk or from a snapshot that a peer sends.
//!
//! Checksums are set right after an input was altered: they keep out what is damaged, not what is forged, and what
//! lies behind them is what is attacked here.

use std::fs;
use std::io::Write;

use bytes::Bytes;
use keystead_fuzz::{Bounds, check};

use crate::codec;
use crate::ids::{LogId, RequestId, Version, Vote};
use crate::keys::{FolderKey, RecordKey};
use crate::log::LogRecord;
use crate::log_frame::{self, Begin, Known, Note};
use crate::log_replay::Replay;
use crate::row::{self, Folder, Row, Stored};
use crate::snapshot::fuzz::{Item, SnapshotWriter, items, write_items};
use crate::snapshot::{Manifest, SnapshotFile, SnapshotMeta};
use crate::state::Record;
use crate::txn::{Check, CheckpointMark, Command, Txn, Write as Change};
use crate::window::{Remembered, Window};

/// The codec's own limit is 4 MiB; everything else grows with the input.
const BOUNDS: Bounds = Bounds { base_bytes: 5 << 20, bytes_per_byte: 24 };
const VERSION: Version = Version { generation: 3, index: 77 };

/// The input behind a byte that names the decoder.
fn tagged(tag: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[tag], bytes.as_ref()].concat()
}

/// The same bytes with a right CRC32 at their end, as the attacker would leave them.
fn with_crc(bytes: &[u8]) -> Vec<u8> {
    let body = bytes.split_last_chunk::<4>().map_or(bytes, |(body, _)| body);
    [body, &crc32fast::hash(body).to_be_bytes()].concat()
}

fn rows() -> Vec<Row> {
    let record = |size: usize| {
        let value: Vec<u8> = (0..size).map(|n| n as u8).collect();
        Row::Record(Record { version: VERSION, value: value.into() })
    };
    vec![
        record(0),
        record(100),
        record(row::INLINE_BYTES + 1),
        Row::Folder(Folder { version: VERSION, children: 9 }),
    ]
}

fn sealed_key() -> RecordKey {
    let root = FolderKey::root([7; 16]);
    root.folder(b"a\0b").and_then(|folder| folder.child(b"\0\xff name")).expect("valid")
}

fn remembered() -> Remembered {
    Remembered { id: RequestId([5; 16]), version: VERSION, response: Bytes::from_static(b"sealed answer") }
}

fn command() -> Command {
    let key = sealed_key();
    Command {
        term: 3,
        sequence: 4,
        cluster_time_ms: 5,
        txn: Txn {
            request_id: RequestId([6; 16]),
            checks: vec![
                Check::Record { key: key.clone(), version: Some(VERSION) },
                Check::Children { folder: key.parent().expect("sealed"), version: None },
            ],
            writes: vec![
                Change::Put { key: key.clone(), value: Bytes::from_static(b"value") },
                Change::Delete { key },
            ],
            response: Bytes::from_static(b"answer"),
            activate: Some(Box::new(crate::Activation { pieces: 3, ..Default::default() })),
        },
        checkpoint: Some(CheckpointMark { of: Some((7, [8; 32])) }),
    }
}

#[test]
fn fuzz_state_rows() {
    let mut samples: Vec<Vec<u8>> = rows().iter().map(|row| tagged(0, row::encode(b"ckey", row).0)).collect();
    let key = sealed_key();
    samples.push(tagged(1, key.as_bytes()));
    samples.push(tagged(1, b"cdirectory"));
    samples.push(tagged(2, row::record_key(&key)));
    samples.push(tagged(3, codec::encode(1, &command())));
    let mut stream = Vec::new();
    (0..3).for_each(|_| remembered().encode(&mut stream));
    samples.push(tagged(4, [&[0; 8], &stream[..]].concat()));
    check!(samples, BOUNDS, |input: &[u8]| {
        let Some((tag, bytes)) = input.split_first() else { return };
        match tag % 5 {
            0 => read_row(&with_crc(bytes)),
            1 => read_key(bytes),
            2 => drop(row::child_of(bytes)),
            3 => {
                if let Ok(command) = codec::decode::<Command>("command", 1, &with_crc(bytes)) {
                    let again = codec::encode(1, &command);
                    assert_eq!(codec::decode::<Command>("command", 1, &again).expect("our own"), command);
                }
            }
            _ => read_window(bytes),
        }
    });
}

fn read_row(bytes: &[u8]) {
    match row::decode(bytes) {
        Ok(Stored::Whole(row)) => {
            let (again, parts) = row::encode(b"ckey", &row);
            // A large value is cut when it is written, and was not here.
            assert!(again == bytes || !parts.is_empty(), "a row has one encoding");
        }
        Ok(Stored::Split(split)) => {
            assert!(split.at().keys(b"ckey").last().is_some(), "a value in parts has parts");
            assert!(split.join(&[]).is_err());
        }
        Err(_) => {}
    }
}

fn read_key(bytes: &[u8]) {
    if let Ok(folder) = FolderKey::parse(bytes) {
        assert_eq!(folder.as_bytes(), bytes);
        let up = std::iter::successors(Some(folder.clone()), FolderKey::parent);
        assert_eq!(up.count(), folder.depth() + 1);
        drop(row::folder_key(&folder));
    }
    let Ok(key) = RecordKey::parse(bytes) else { return };
    assert_eq!(key.as_bytes(), bytes);
    let Some((folder, segment)) = key.split() else { return };
    assert_eq!(folder.child(segment).as_ref(), Ok(&key));
    let (stored, prefix) = (row::record_key(&key), row::children_prefix(&folder));
    let child = row::child_of(stored.strip_prefix(&prefix[..]).expect("in its folder")).expect("a child");
    assert_eq!((&child.segment[..], child.folder), (segment, false));
    assert!(row::past_child(&prefix, &child) > stored);
}

/// A window that begins where the first eight bytes say.
fn read_window(bytes: &[u8]) {
    let Some((first, stream)) = bytes.split_first_chunk::<8>() else { return };
    let mark = crate::snapshot::WindowMark { first: u64::from_be_bytes(*first), ..Default::default() };
    if mark.check().is_err() {
        return;
    }
    let mut window = Window::beginning(mark);
    let mut stream = Bytes::copy_from_slice(stream);
    while let Some(request) = Remembered::decode(&mut stream) {
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(Remembered::decode(&mut again.into()).as_ref(), Some(&request));
        window.record(request);
    }
    assert!(window.next() >= mark.first);
}

const SEGMENT: u64 = 3;

/// Sets the checksums of the frames in a segment right, those inside of frames, too.
fn repair_frames(mut rest: &mut [u8]) {
    while rest.len() >= 9 {
        let (header, body) = rest.split_at_mut(9);
        let length = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some((body, after)) = body.split_at_mut_checked(length) else { return };
        if header[8] != 3 {
            let right = with_crc(body);
            let same = right.len().min(body.len());
            body[..same].copy_from_slice(&right[..same]);
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&SEGMENT.to_be_bytes());
        crc.update(&header[..4]);
        crc.update(&header[8..]);
        crc.update(body);
        header[4..8].copy_from_slice(&crc.finalize().to_be_bytes());
        rest = after;
    }
}

#[test]
fn fuzz_log_segments() {
    let id = |index: u64| LogId { term: 2, node: 3, index };
    let entry = |out: &mut Vec<u8>, index: u64, size: usize| {
        let record = LogRecord { log_id: id(index), payload: vec![index as u8; size].into() };
        log_frame::write_entry(out, SEGMENT, &record);
    };
    let vote = Some(Vote { term: 2, node: 3, committed: false });
    let known = Known { floor: Some(id(4)), last: Some(id(6)), vote, committed: Some(id(5)) };
    let sample = |known: Known, rest: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        log_frame::write_begin(&mut bytes, SEGMENT, &Begin { previous_bytes: 99, known });
        rest(&mut bytes);
        bytes
    };
    let note = |out: &mut Vec<u8>, note: Note| log_frame::write_note(out, SEGMENT, &note);
    let samples = vec![
        sample(Known::default(), &|out| (1..4).for_each(|index| entry(out, index, 40 * index as usize))),
        sample(known, &|out| {
            note(out, Note::Floor(id(6)));
            entry(out, 7, 3);
            note(out, Note::Committed(id(7)));
            note(out, Note::Truncate { from: 7, last: Some(id(6)) });
            entry(out, 7, 300);
        }),
        sample(Known::default(), &|out| {
            note(out, Note::Floor(id(u64::MAX - 1)));
            entry(out, u64::MAX, 9);
            note(out, Note::Vote(Vote::default()));
            out.extend([0; 64]);
        }),
    ];
    check!(samples, BOUNDS, |input: &[u8]| {
        let mut bytes = input.to_vec();
        repair_frames(&mut bytes);
        let bytes = Bytes::from(bytes);
        let mut replay = Replay::default();
        if replay.segment(SEGMENT, bytes.clone()).and_then(|()| replay.finish()).is_err() {
            return;
        }
        assert!(
            replay.end <= bytes.len() as u64
                && (replay.torn || bytes[replay.end as usize..].iter().all(|b| *b == 0))
        );
        let last = replay.known.last.map_or(0, |last| last.index);
        for (place, index) in replay.places.iter().rev().zip((0..=last).rev()) {
            let frame = bytes.slice(place.offset as usize..place.offset as usize + place.bytes as usize);
            let record = log_frame::read_entry(frame, SEGMENT, index).expect("it was verified");
            let mut again = Vec::new();
            log_frame::write_entry(&mut again, SEGMENT, &record);
            assert_eq!(again.len(), place.bytes as usize);
        }
    });
}

fn manifest() -> Manifest {
    let id = LogId { term: 4, node: 0, index: 900 };
    let meta = SnapshotMeta {
        log_id: Some(id),
        membership: Some((id, Bytes::from_static(b"members"))),
        cluster_time_ms: 17,
        generation: 1,
        last_sequence: (4, 12),
    };
    Manifest { meta, chunks: 2, bytes: 70_000, rows: 3, digest: [9; 32], ..Manifest::default() }
}

#[test]
fn fuzz_snapshots() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("snapshot");
    let mut contents = Vec::new();
    let key = row::record_key(&sealed_key());
    write_items(&mut contents, &rows().into_iter().map(|row| (&key[..], row)).collect::<Vec<_>>());
    crate::snapshot::fuzz::write_request(&mut contents, &remembered());
    let small = contents.len() - row::INLINE_BYTES..;
    let empty = Manifest { chunks: 0, bytes: 0, rows: 0, ..manifest() };
    let mut writer = SnapshotWriter::create(&path, empty).expect("written");
    writer.write(&contents).expect("written");
    writer.finish([9; 32]).expect("written");
    let samples = vec![
        tagged(0, manifest().to_bytes()),
        tagged(1, &contents[small]),
        tagged(1, &contents[..300]),
        tagged(2, fs::read(&path).expect("readable")),
    ];
    check!(samples, BOUNDS, |input: &[u8]| {
        let Some((tag, bytes)) = input.split_first() else { return };
        match tag % 3 {
            0 => {
                if let Ok(manifest) = Manifest::from_bytes(&with_crc(bytes)) {
                    assert_eq!(Manifest::from_bytes(&manifest.to_bytes()).expect("our own"), manifest);
                }
            }
            1 => read_items(bytes),
            _ => {
                let mut file = fs::File::create(&path).expect("written");
                file.write_all(bytes).expect("written");
                read_snapshot(&path);
            }
        }
    });
}

fn read_items(bytes: &[u8]) {
    let whole = items(&[bytes]);
    // Where chunks end makes no difference.
    let middle = bytes.len() / 2;
    assert_eq!(whole.is_ok(), items(&[&bytes[..middle], &bytes[middle..]]).is_ok());
    let Ok((items, left)) = whole else { return };
    let mut again = Vec::new();
    for item in &items {
        match item {
            Item::Row(key, row) => write_items(&mut again, &[(&key[..], row.clone())]),
            Item::Request(request) => crate::snapshot::fuzz::write_request(&mut again, request),
        }
    }
    assert_eq!(again, bytes[..bytes.len() - left], "an item has one encoding");
}

fn read_snapshot(path: &std::path::Path) {
    let Ok(file) = SnapshotFile::open(path) else { return };
    let mut bytes = 0;
    for n in 0..file.manifest().chunks {
        // The hashes of the chunks were verified, so that only the bytes of one may be wrong.
        bytes += file.read_chunk(n).map_or(0, |chunk| chunk.len() as u64);
    }
    assert!(bytes <= file.manifest().bytes);
    assert!(file.read_chunk(file.manifest().chunks).is_err());
}

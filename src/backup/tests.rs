//! Archives as they are, cut, changed and forged.

use std::io::{Cursor, Read, Write};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use keystead_storage::{
    ApplyEntry, ApplyOp, Command, DataDir, LogId, RecordKey, SealedState, SnapshotItem, TreeState, Txn,
    Write as Put,
};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::{
    barrier::{Backup as BackupKey, VaultId, derive},
    secret::{DerivedKey, RootKey},
};

const VAULT: VaultId = VaultId([5; 16]);
const RECORDS: u64 = 400;

type Members = Vec<(String, Vec<u8>)>;

fn key() -> DerivedKey<BackupKey> {
    derive(&RootKey::from_bytes(&[9; 32]), VAULT, 3)
}

/// An archive of a state with some hundred records.
fn archive() -> (Vec<u8>, Meta) {
    let dir = tempfile::tempdir().unwrap();
    let data = DataDir::open(dir.path()).unwrap();
    let state = TreeState::open(&data).unwrap();
    let entries = (1..=RECORDS).map(|index| {
        let put = Put::Put {
            key: RecordKey::clear(&format!("r{index:05}")).unwrap(),
            value: Bytes::from(vec![index as u8; 300]),
        };
        let txn = Txn { writes: vec![put], ..Txn::default() };
        let command = Command { term: 1, sequence: index, cluster_time_ms: index, txn, checkpoint: None };
        ApplyEntry { log_id: LogId { term: 1, node: 1, index }, op: ApplyOp::Command(command) }
    });
    state.apply(entries.collect()).unwrap();
    let path = dir.path().join("snapshot");
    let file = state.cut().unwrap().spool(&path).unwrap();
    let manifest = file.manifest();
    let meta = Meta {
        version: 1,
        id: "x".to_owned(),
        index: RECORDS,
        term: 1,
        peers: None,
        configuration: Configuration::default(),
        configuration_index: 0,
        size: std::fs::metadata(&path).unwrap().len(),
        keystead: About {
            format: FORMAT,
            vault_id: VAULT.to_string(),
            root_generation: 3,
            cluster_id: "c".to_owned(),
            cluster_name: "test".to_owned(),
            node_id: "n1".to_owned(),
            created_ms: 1_700_000_000_000,
            digest: hex::encode(manifest.digest),
            rows: manifest.rows,
        },
    };
    let mut out = Vec::new();
    let state = std::fs::File::open(&path).unwrap();
    write(&mut out, state, &meta, |sums| BackupSeal::new(&key(), VAULT, 3, sums)).unwrap();
    (out, meta)
}

fn try_read(bytes: &[u8]) -> Result<(Backup, u64), BackupError> {
    let mut records = 0;
    let backup = read(bytes, |item| {
        records += u64::from(matches!(item, SnapshotItem::Record { .. }));
        Ok(())
    })?;
    Ok((backup, records))
}

fn unpacked(archive: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    GzDecoder::new(archive).read_to_end(&mut tar).unwrap();
    tar
}

fn packed(tar: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::none());
    out.write_all(tar).unwrap();
    out.finish().unwrap()
}

/// The members by name.
fn members(archive: &[u8]) -> Members {
    let tar = unpacked(archive);
    let mut tar = tar::Archive::new(Cursor::new(tar));
    let all = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (name, bytes)
    });
    all.collect()
}

fn archived(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    packed(&tar.into_inner().unwrap())
}

/// With checksums that fit the members as they are.
fn summed(mut members: Members) -> Vec<u8> {
    let line =
        |(name, bytes): &(String, Vec<u8>)| format!("{}  {name}\n", hex::encode(Sha256::digest(bytes)));
    members[2].1 = format!("{}{}", line(&members[0]), line(&members[1])).into_bytes();
    archived(&members)
}

#[test]
fn an_archive_is_read_back_and_known_by_its_key() {
    let (bytes, meta) = archive();
    let (backup, records) = try_read(&bytes).unwrap();
    assert_eq!((&backup.meta, records), (&meta, RECORDS));
    assert!(backup.seal.is_of(&key(), &backup.sums));
    let other = derive(&RootKey::from_bytes(&[8; 32]), VAULT, 3);
    assert!(!backup.seal.is_of(&other, &backup.sums));
    let names: Vec<String> = members(&bytes).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [META, STATE, SUMS, SEALED_SUMS]);
    // The same checksums as other programs compute them.
    let sums = members(&bytes)[2].1.clone();
    assert_eq!(summed(members(&bytes)).len(), archived(&members(&bytes)).len());
    assert_eq!(sums, backup.sums);
}

#[test]
fn an_archive_that_is_cut_off_is_refused_wherever_it_ends() {
    let (bytes, _) = archive();
    let steps = (0..bytes.len()).step_by(211).chain(bytes.len() - 64..bytes.len());
    for length in steps {
        assert!(try_read(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
    }
    // Within the archive, where gzip finds nothing wrong.
    let tar = unpacked(&bytes);
    for length in (0..tar.len()).step_by(512) {
        if tar[length..].iter().any(|byte| *byte != 0) {
            assert!(try_read(&packed(&tar[..length])).is_err(), "{length} of {} bytes", tar.len());
        }
    }
}

#[test]
fn a_changed_bit_is_found_wherever_it_is() {
    let (bytes, _) = archive();
    let (_, records) = try_read(&bytes).unwrap();
    for at in (0..bytes.len()).step_by(97).chain(0..600) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        // What gzip says of time and system of origin is nothing to anybody.
        if let Ok((backup, read)) = try_read(&changed) {
            assert!((4..10).contains(&at), "byte {at}");
            assert!(read == records && backup.seal.is_of(&key(), &backup.sums));
        }
    }
    // Past gzip: every byte of the members counts, or is one of tar's.
    let tar = unpacked(&bytes);
    for at in (0..tar.len()).step_by(53) {
        let mut changed = tar.clone();
        changed[at] ^= 0x10;
        if let Ok((backup, read)) = try_read(&packed(&changed)) {
            let same = read == records && backup.seal.is_of(&key(), &backup.sums);
            assert!(same, "byte {at} of the archive changes what is read, and was not noticed");
        }
    }
}

#[test]
fn a_forgery_with_checksums_of_its_own_is_whole_and_is_not_the_vaults() {
    let (bytes, _) = archive();
    let mut all = members(&bytes);
    let mut meta: serde_json::Value = serde_json::from_slice(&all[0].1).unwrap();
    meta["Keystead"]["cluster_name"] = "another".into();
    all[0].1 = serde_json::to_vec(&meta).unwrap();
    let forged = summed(all.clone());
    let (backup, _) = try_read(&forged).unwrap();
    assert!(!backup.seal.is_of(&key(), &backup.sums), "only the key tells");
    // A seal of other checksums does not help.
    all[3].1 = BackupSeal::new(&key(), VAULT, 3, b"others").to_bytes();
    let (backup, _) = try_read(&summed(all)).unwrap();
    assert!(!backup.seal.is_of(&key(), &backup.sums));
}

#[test]
fn what_is_no_archive_of_ours_is_named() {
    let (bytes, _) = archive();
    let all = members(&bytes);
    let swapped = |change: fn(&mut Members)| {
        let mut members = all.clone();
        change(&mut members);
        try_read(&archived(&members)).err().unwrap().to_string()
    };
    let said = try_read(b"").err().unwrap().to_string();
    assert!(said.contains("no snapshot"), "{said}");
    assert!(try_read(&[7; 4096]).err().unwrap().to_string().contains("gzip"));
    assert!(try_read(&packed(&[0; 1024])).err().unwrap().to_string().contains("missing"));
    assert!(swapped(|members| members.swap(0, 1)).contains("something else"));
    assert!(swapped(|members| drop(members.pop())).contains("missing"));
    let more = swapped(|members| members.push(("more".to_owned(), vec![1])));
    assert!(more.contains("more than it should"), "{more}");
    let vaults = swapped(|members| members[0].1 = br#"{"Version":1,"ID":"bolt-snapshot"}"#.to_vec());
    assert!(vaults.contains("another program"), "{vaults}");
    let newer = swapped(|members| members[0].1 = br#"{"Keystead":{"format":7}}"#.to_vec());
    assert!(newer.contains("format 7"), "{newer}");
    let mut followed = bytes.clone();
    followed.extend_from_slice(b"more");
    assert!(try_read(&followed).err().unwrap().to_string().contains("follows its end"));
}

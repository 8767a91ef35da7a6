//! What can be found in a node's memory, and what of it reaches a disk when the process dies.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/state_rows.rs"]
mod state_rows;

use std::{
    collections::BTreeMap,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use common::{BINARY, one};
use keystead::{
    barrier::{Directory, Join, Keyring, Peer, Token, derive, derive_lasting},
    seal::{SealConfig, Share, combine},
};
use keystead_chaos::{
    Builder, Cluster, Node,
    memory::{self, Found, Needle},
    skip,
};
use rustix::process::Signal;
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// Where the state keeps these clear records: their area, then their name.
const SEAL_CONFIG: &[u8] = b"cseal-config";
const KEYRING: &[u8] = b"ckeyring";

/// Says so and is true where this user may not look into other processes.
fn skipped() -> bool {
    let skipped = !memory::permitted();
    if skipped {
        skip("reading another process's memory takes root");
    }
    skipped
}

/// A record of a node that is not running: what follows the row's header, found by who can decode it.
fn record<T>(data: &Path, key: &[u8], decode: impl Fn(&[u8]) -> Option<T>) -> T {
    let rows = state_rows::rows(data, key).into_values();
    // A CRC32 ends the row.
    rows.filter_map(|row| {
        let value = &row[..row.len() - 4];
        (0..value.len()).find_map(|at| decode(&value[at..]))
    })
    .next()
    .expect("the record is on the disk")
}

/// Every key of a vault as its own code computes it from the shares and from what is on a disk.
fn keys_of(cluster: &Cluster, data: &Path) -> Vec<Needle> {
    let config = record(data, SEAL_CONFIG, |bytes| SealConfig::decode(bytes).ok());
    let points: Vec<_> = cluster.shares().iter().map(|share| Share::parse(share).unwrap().point).collect();
    let root = config.unwrap_root(&points).unwrap();
    let (vault, generation) = (config.vault_id, config.root_generation);
    let keyring = record(data, KEYRING, |bytes| Keyring::open(bytes, &root, vault, generation).ok());
    let mut keys = vec![
        Needle::new("root key", root.expose()),
        Needle::new("key of the wrap", &*combine(&points).unwrap()),
        Needle::new("join key", derive::<Join>(&root, vault, generation).expose()),
        Needle::new("peer key", derive::<Peer>(&root, vault, generation).expose()),
        Needle::new("directory key", derive_lasting::<Directory>(keyring.lasting_key(), vault).expose()),
        Needle::new("token key", derive_lasting::<Token>(keyring.lasting_key(), vault).expose()),
        Needle::new("barrier key", keyring.barrier_terms()[0].key.expose()),
        Needle::new("log key", keyring.log_terms()[0].key.expose()),
        Needle::new("lasting key", keyring.lasting_key().expose()),
        // The two halves of AES-SIV's key are used apart.
        Needle::new("path key, MAC", &keyring.path_key().expose()[..32]),
        Needle::new("path key, cipher", &keyring.path_key().expose()[32..]),
    ];
    // HMAC works with its key under two masks.
    for (mask, name) in [(0x36, "inner"), (0x5c, "outer")] {
        let masked: Vec<u8> = keyring.log_terms()[0].key.expose().iter().map(|byte| byte ^ mask).collect();
        keys.push(Needle::new(format!("log key, {name}"), &masked));
    }
    keys
}

/// The secret part of every share.
fn shares_of(cluster: &Cluster) -> Vec<Needle> {
    let parsed = cluster.keys().shares.iter().map(|share| Share::parse(share).unwrap());
    parsed.enumerate().map(|(n, share)| Needle::new(format!("share {n}"), share.point.y.expose())).collect()
}

/// What was found and where, counted, for a report that shows nothing secret.
fn report(found: &[Found]) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for Found { name, mapping, .. } in found {
        *counts.entry((name.clone(), mapping.clone())).or_default() += 1;
    }
    counts
}

async fn use_it(node: &Node) {
    for n in 0..20 {
        node.put(&format!("in/memory-{n}"), &json!({ "n": n })).await.unwrap();
        assert!(node.get(&format!("in/memory-{n}")).await.unwrap().is_some());
        node.list("in").await.unwrap();
    }
}

async fn seal(cluster: &Cluster) {
    let output = cluster.cli(0).run(&["operator", "seal"]).await.unwrap();
    assert_eq!(output.code, 0, "{}", output.stderr);
    cluster.at(0).health(&[503], SOON).await.unwrap();
}

/// Also where it was initialised in the same process, and so made every key and share itself. The shares' texts are
/// another matter: they pass through buffers of TLS and HTTP, which nobody wipes.
#[tokio::test]
async fn a_sealed_node_holds_no_key_and_no_share() {
    if skipped() {
        return;
    }
    let cluster = Box::pin(one().ready()).await.unwrap();
    let node = cluster.at(0);
    use_it(node).await;
    let (open, sealed) = (cluster.directory().join("open"), cluster.directory().join("sealed"));
    memory::dump(node.pid(), &open).unwrap();
    seal(&cluster).await;
    memory::dump(node.pid(), &sealed).unwrap();
    // Only a node that is not running can be asked for its keyring.
    node.stop().await.unwrap();
    let mut secrets = keys_of(&cluster, &node.data());
    secrets.extend(shares_of(&cluster));
    let found = report(&memory::find_in_file(&open, &secrets).unwrap());
    for key in ["root key", "barrier key", "join key", "path key, cipher"] {
        assert!(found.keys().any(|(name, _)| name == key), "the {key} is in an open node: {found:?}");
    }
    assert_eq!(report(&memory::find_in_file(&sealed, &secrets).unwrap()), BTreeMap::new());
}

#[tokio::test]
async fn no_key_is_in_memory_before_the_unseal_and_after_the_seal() {
    if skipped() {
        return;
    }
    let cluster = Box::pin(one().ready()).await.unwrap();
    let node = cluster.at(0);
    node.stop().await.unwrap();
    let keys = keys_of(&cluster, &node.data());
    let shares = shares_of(&cluster);
    node.start().await.unwrap();
    assert_eq!(report(&memory::find(node.pid(), &keys).unwrap()), BTreeMap::new(), "before it was unsealed");

    // One share as a key holder types it, one in hex, one in base64; and an attempt that is given up.
    let [typed, hexed, plain] = cluster.shares() else { panic!("three shares") };
    let hexed = Share::parse(hexed).unwrap().to_hex().expose().to_owned();
    node.call("PUT", "sys/unseal", Some(&json!({ "key": hexed }))).await.unwrap().ok().unwrap();
    node.call("PUT", "sys/unseal", Some(&json!({ "reset": true }))).await.unwrap().ok().unwrap();
    assert_eq!(report(&memory::find(node.pid(), &shares).unwrap()), BTreeMap::new(), "after a reset");
    let output = cluster.cli(0).run(&["operator", "unseal", typed]).await.unwrap();
    assert_eq!(output.code, 0, "{}", output.stderr);
    node.unseal(&[hexed, plain.clone()]).await.unwrap();
    node.health(&[200], SOON).await.unwrap();
    assert_eq!(
        report(&memory::find(node.pid(), &shares).unwrap()),
        BTreeMap::new(),
        "shares in an open node"
    );
    use_it(node).await;
    let open = report(&memory::find(node.pid(), &keys).unwrap());
    assert!(open.keys().any(|(name, _)| name == "root key"), "{open:?}");

    seal(&cluster).await;
    assert_eq!(report(&memory::find(node.pid(), &keys).unwrap()), BTreeMap::new(), "keys in a sealed node");
    assert_eq!(
        report(&memory::find(node.pid(), &shares).unwrap()),
        BTreeMap::new(),
        "shares in a sealed node"
    );
}

/// A binary that is the one under test, started by a shell that has run `before`.
fn started_by(directory: &Path, before: &str) -> PathBuf {
    let path = directory.join("keystead");
    let text = format!("#!/bin/sh\ncd {}\n{before}\n", directory.display());
    std::fs::write(&path, text.replace("KEYSTEAD", BINARY)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn case_10_a_crash_leaves_no_core_file() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.contains(['|', '/', '%']) {
        skip(&format!("this system collects core files elsewhere ({pattern})"));
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let cores = || {
        let entries = std::fs::read_dir(directory.path()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("core")).count()
    };
    // The system does write one for who does not object.
    let status = std::process::Command::new("sh")
        .args(["-c", "ulimit -c unlimited; kill -ABRT $$"])
        .current_dir(directory.path())
        .status()
        .unwrap();
    if !status.core_dumped() || cores() == 0 {
        skip("no core file is written here at all");
        return;
    }
    for entry in std::fs::read_dir(directory.path()).unwrap().flatten() {
        std::fs::remove_file(entry.path()).unwrap();
    }

    let binary = started_by(directory.path(), "ulimit -c unlimited; exec KEYSTEAD \"$@\"");
    let cluster = Box::pin(Builder::new(binary, 1).ready()).await.unwrap();
    let node = cluster.at(0);
    node.put("canary", &json!({ "n": 1 })).await.unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    node.signal(Signal::ABORT).unwrap();
    let status = node.ends(SOON).await.unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(6), false));
    assert_eq!(cores(), 0);
}

#[tokio::test]
async fn a_node_that_may_not_lock_memory_says_so_and_runs() {
    if skipped() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let warning = "memory cannot be locked";
    // Without this capability root is limited like everybody else.
    let limited = "ulimit -l 0; exec setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock KEYSTEAD \"$@\"";
    for (before, mlock_disabled, told, locks) in [
        (limited, false, true, false),
        (limited, true, false, false),
        ("exec KEYSTEAD \"$@\"", false, false, true),
    ] {
        let what = format!("{before}, disable_mlock = {mlock_disabled}");
        let before = format!("export VAULT_DISABLE_MLOCK={mlock_disabled}; {before}");
        let binary = started_by(directory.path(), &before);
        let cluster = Box::pin(Builder::new(binary, 1).ready()).await.unwrap();
        let node = cluster.at(0);
        node.put("a", &json!({ "n": 1 })).await.unwrap();
        assert_eq!(node.log().contains(warning), told, "{what}: {}", node.log());
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap().trim();
        assert_eq!(locked != "0 kB", locks, "{what}: {locked} locked");
    }
}

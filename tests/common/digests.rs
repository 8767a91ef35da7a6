//! The digest of every node's state, made from what its disk holds while it is down.

use std::{cell::Cell, path::Path, time::Duration};

use keystead_chaos::{Cluster, wait};
use keystead_raft::entry::{self, Payload};
use keystead_storage::{ApplyEntry, ApplyOp, DataDir, LogId, LogRecord, RaftLog as _, SealedState as _};

/// How long nothing must move.
const QUIET: Duration = Duration::from_secs(1);
/// How often the nodes are stopped for it: a checkpoint of theirs may come in between.
const TRIES: usize = 3;

/// What a node that starts makes of an entry. It also looks at the tag, for which it takes an unsealed node.
fn apply_entry(record: LogRecord) -> ApplyEntry {
    let log_id = record.log_id;
    let op = match entry::decode(&record.payload).unwrap() {
        Payload::Blank => ApplyOp::Blank,
        Payload::Membership(_) => ApplyOp::Membership(record.payload),
        Payload::Command { header, body, .. } if header.term == log_id.term => {
            ApplyOp::Command(entry::to_command(&header, body))
        }
        Payload::Command { .. } => ApplyOp::NoOp,
    };
    ApplyEntry { log_id, op }
}

/// Brings the state below a data directory up to an entry of its log, as a start does, compares all of it with its own
/// digest, and gives that.
fn digest(data: &Path, up_to: u64) -> (Option<LogId>, [u8; 32]) {
    let dir = DataDir::open(data).unwrap();
    let (log, state) = keystead_storage::open(&dir).unwrap();
    loop {
        let next = state.applied().log_id.map_or(0, |id| id.index + 1);
        let records = log.read(next, up_to + 1, 1 << 20).unwrap();
        if records.is_empty() {
            break;
        }
        state.apply(records.into_iter().map(apply_entry).collect()).unwrap();
    }
    (state.applied().log_id, state.cut().unwrap().verify().unwrap())
}

async fn applied(cluster: &Cluster) -> Result<u64, String> {
    let mut found = Vec::new();
    for node in cluster.nodes() {
        let status = node.call("GET", "sys/leader", None).await.map_err(|error| error.to_string())?.json();
        found.push(status["raft_applied_index"].as_u64().unwrap_or(0));
    }
    match found.iter().all(|index| *index == found[0] && *index > 0) {
        true => Ok(found[0]),
        false => Err(format!("applied {found:?}")),
    }
}

/// Waits until nothing moves, kills every node, and compares the digests of their states; nobody may write
/// meanwhile. The nodes are up again afterwards.
pub async fn equal(cluster: &Cluster) {
    let all: Vec<usize> = (0..cluster.nodes().len()).collect();
    let mut seen = Vec::new();
    for _ in 0..TRIES {
        let before = Cell::new(0);
        wait::until("the nodes to be equally far", Duration::from_secs(30), || async {
            let now = applied(cluster).await?;
            if before.replace(now) != now {
                tokio::time::sleep(QUIET).await; // that nothing moves is seen by waiting
                return Err(format!("moved to {now}"));
            }
            Ok(())
        })
        .await
        .unwrap();
        cluster.kill_together(&all).unwrap();
        let found: Vec<_> = cluster.nodes().iter().map(|node| digest(&node.data(), before.get())).collect();
        Box::pin(cluster.bring_back_together(&all)).await.unwrap();
        let (same, equal) =
            (found.iter().all(|(at, _)| *at == found[0].0), found.iter().all(|f| *f == found[0]));
        assert!(equal || !same, "the states at {:?} differ: {found:?}", found[0].0);
        if equal {
            return;
        }
        seen.push(found);
    }
    panic!("the nodes were never equally far: {seen:?}");
}

//! The digest of every node's state, read from its disk while it is down.

use std::{cell::Cell, path::Path, time::Duration};

use keystead_chaos::{Cluster, wait};
use keystead_storage::{DataDir, LogId, SealedState as _};

/// How long a lazily written state may take to reach the disk, with room to spare.
const LAZY: Duration = Duration::from_secs(4);
/// How often the nodes are stopped for it: a checkpoint of theirs may come in between.
const TRIES: usize = 3;

/// Reads the whole state below a data directory, compares it with its own digest, and gives that.
fn digest(data: &Path) -> (Option<LogId>, [u8; 32]) {
    let dir = DataDir::open(data).unwrap();
    let (_log, state) = keystead_storage::open(&dir).unwrap();
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
        wait::until(
            "the nodes to be equally far, and to have written it",
            Duration::from_secs(30),
            || async {
                let now = applied(cluster).await?;
                if before.replace(now) != now {
                    tokio::time::sleep(LAZY).await; // the flusher's own laziness is what is waited out
                    return Err(format!("moved to {now}"));
                }
                Ok(())
            },
        )
        .await
        .unwrap();
        cluster.kill_together(&all).unwrap();
        let found: Vec<_> = cluster.nodes().iter().map(|node| digest(&node.data())).collect();
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

//! Each of these fails when the safety it guards is switched off; `tests/run` sees to that with the features
//! `test-no-lease-check` and `test-no-read-validation`. The guard of `test-no-request-window` is
//! `a_counter_is_raised_exactly_once_when_the_leader_dies_between_commit_and_reply` in `failover.rs`.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use common::{ready, three};
use serde_json::json;

#[tokio::test]
async fn lease_check_a_deposed_leader_serves_nothing_stale() {
    let cluster = Box::pin(three().with_net().ready()).await.unwrap();
    let old = cluster.leader().await.unwrap();
    let others = cluster.others(old);
    cluster.at(old).put("term", &json!({ "of": "old" })).await.unwrap();
    let client = cluster.at(old).client().with_timeout(Duration::from_millis(500));
    assert_eq!(client.call("GET", "secret/data/term", None).await.unwrap().status, 200);

    cluster.net().isolate(old);
    cluster.leader_among(&others, Duration::from_secs(20)).await.unwrap();
    cluster.at(others[0]).put("term", &json!({ "of": "new" })).await.unwrap();

    // From here on the old value is stale, wherever it comes from.
    let end = Instant::now() + Duration::from_secs(4);
    let mut asked = 0;
    while Instant::now() < end {
        asked += 1;
        if let Ok(answer) = client.call("GET", "secret/data/term", None).await {
            assert_ne!(answer.data()["data"]["of"], "old", "a stale read after {asked} tries");
        }
    }
    assert!(asked > 1);
    cluster.net().heal();
    cluster.serves(old, Duration::from_secs(20)).await.unwrap();
    assert_eq!(cluster.at(old).get("term").await.unwrap().unwrap()["of"], "new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn read_validation_a_read_of_several_records_is_one_point_in_time() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let metadata = json!({ "max_versions": 1 });
    cluster.at(leader).call("POST", "secret/metadata/point", Some(&metadata)).await.unwrap().ok().unwrap();
    cluster.at(leader).put("point", &json!({ "n": 1 })).await.unwrap();

    // With one version kept, each write takes away what the one before wrote: a reader that mixes two moments
    // sees a version that is not there, or another's data.
    let stop = Arc::new(AtomicBool::new(false));
    let writes = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop, writes) = (cluster.at(leader).client(), stop.clone(), writes.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Acquire) {
                    let body = json!({ "data": { "n": 1 } });
                    client.call("POST", "secret/data/point", Some(&body)).await.unwrap().ok().unwrap();
                    writes.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(10);
    let readers: Vec<_> = (0..6)
        .map(|reader| {
            let client = cluster.at(reader % 3).client();
            tokio::spawn(async move {
                let mut seen = 0;
                while Instant::now() < end {
                    let answer = client.call("GET", "secret/data/point", None).await.unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let data = answer.data();
                    assert_eq!(data["data"]["n"], 1, "a version without its data: {data}");
                    assert_eq!(data["metadata"]["destroyed"], false, "{data}");
                    seen += 1;
                }
                seen
            })
        })
        .collect();
    let mut reads = 0;
    for reader in readers {
        reads += reader.await.unwrap();
    }
    stop.store(true, Ordering::Release);
    for writer in writers {
        writer.await.unwrap();
    }
    let writes = writes.load(Ordering::Relaxed);
    assert!(reads > 100 && writes > 100, "{reads} reads, {writes} writes: too few to prove anything");
}

//! kill -9 of one node, of two, of all at once, at random moments under load: nothing acknowledged is lost, and in the
//! end every node has the same state.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;
#[path = "common/exerciser.rs"]
mod exerciser;

use std::time::Duration;

use common::ready;
use exerciser::Random;
use keystead_chaos::{
    Cluster,
    load::{Ended, Load},
    wait,
};

/// How often something is killed; `tests/run --long` does it two hundred times.
fn kills() -> u64 {
    if common::long() { 200 } else { 30 }
}

/// The seed of this run: drawn, or that of the run that is to be repeated.
fn seed() -> u64 {
    let seed = std::env::var("KEYSTEAD_KILLS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let time = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
        u64::from(time.subsec_nanos())
    });
    eprintln!("to do the same again: KEYSTEAD_KILLS_SEED={seed} cargo test --test kills");
    seed
}

/// One, two or all of three.
fn victims(random: &mut Random) -> Vec<usize> {
    let first = random.below(3) as usize;
    let count = 1 + random.below(3) as usize;
    (0..count).map(|n| (first + n) % 3).collect()
}

async fn kill_and_bring_back(cluster: &Cluster, random: &mut Random) -> usize {
    let victims = victims(random);
    cluster.kill_together(&victims).unwrap();
    // Sometimes they are back before an election, sometimes after it.
    tokio::time::sleep(Duration::from_millis(random.below(800))).await;
    Box::pin(cluster.bring_back_together(&victims)).await.unwrap();
    victims.len()
}

#[tokio::test]
async fn kills_at_random_moments_lose_no_acknowledged_write_and_leave_equal_states() {
    let mut random = Random::new(seed());
    let cluster = ready().await;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 4, Duration::from_millis(20));
    let mut processes = 0;
    for _ in 0..kills() {
        let due = load.acknowledged() + 1 + random.below(30) as usize;
        wait::until_now("the load to go on", Duration::from_secs(30), || {
            let written = load.acknowledged();
            if written >= due { Ok(()) } else { Err(format!("{written} of {due} writes")) }
        })
        .await
        .unwrap();
        tokio::time::sleep(Duration::from_micros(random.below(20_000))).await; // a moment of no writer's choosing
        processes += kill_and_bring_back(&cluster, &mut random).await;
    }
    let history = load.stop().await;
    let acknowledged = history.count(Ended::Acknowledged);
    eprintln!("{} times, {processes} processes killed; {acknowledged} writes acknowledged", kills());
    assert!(acknowledged as u64 > kills());
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    digests::equal(&cluster).await;
    // What was on the disks is what is served.
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    for node in cluster.nodes() {
        let log = node.log();
        assert!(!log.contains("panicked") && !log.contains("differs"), "{}: {log}", node.name());
    }
}

//! Whatever happens to nodes, links and clocks, what clients see can be explained by one vault that does one thing
//! at a time: no stale read, no phantom, no write lost and none done twice.
//!
//! `KEYSTEAD_TESTS_SEED=<number>` repeats a schedule. Built with one of the features `test-no-lease-check`,
//! `test-no-read-validation`, `test-no-request-window`, the test of that safety wants to find its absence within a
//! minute.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::{Duration, Instant};

use common::three;
use keystead_chaos::{
    Cluster,
    lin::{Checked, Fault, Habits, Trial, check},
};
use serde_json::json;

/// How long a fault that is there may go unseen.
const A_MINUTE: Duration = Duration::from_secs(60);

/// Answers in a history that is to prove something.
const ENOUGH: usize = 500;

/// A mount that keeps one version of each key, where a write takes away what the one before wrote.
const ONE_VERSION: &str = "one";

fn seed() -> u64 {
    match std::env::var("KEYSTEAD_TESTS_SEED") {
        Ok(seed) => seed.parse().expect("KEYSTEAD_TESTS_SEED is a number"),
        Err(_) => u64::from(getrandom::u32().unwrap()),
    }
}

/// `short`, or five minutes where the full numbers are asked for.
fn length(short: u64) -> Duration {
    Duration::from_secs(if common::long() { 300 } else { short })
}

async fn cluster(reads: &'static str) -> Cluster {
    let clocks = reads == "quorum";
    let builder = if clocks { three().with_faults() } else { three() };
    let builder = builder.with_net().configure(move |_, config| {
        config.lines.push(format!("linearizable_reads = \"{reads}\""));
    });
    let cluster = Box::pin(builder.ready()).await.unwrap();
    let mount = json!({ "type": "kv", "options": { "version": "2" } });
    let leader = cluster.at(cluster.leader().await.unwrap());
    leader.call("POST", &format!("sys/mounts/{ONE_VERSION}"), Some(&mount)).await.unwrap().ok().unwrap();
    let config = json!({ "max_versions": 1 });
    leader.call("POST", &format!("{ONE_VERSION}/config"), Some(&config)).await.unwrap().ok().unwrap();
    cluster
}

fn habits() -> Habits {
    Habits { mounts: vec!["secret".into(), ONE_VERSION.into()], ..Habits::default() }
}

/// Runs and judges a trial; a failure says how to run it again.
async fn explained(trial: Trial<'_>, test: &str) -> Checked {
    let again = format!("again: KEYSTEAD_TESTS_SEED={} cargo test --test linearizable {test}", trial.seed);
    let recording = Box::pin(trial.run()).await.unwrap_or_else(|error| panic!("{error}\n{again}"));
    let checked = trial.judge(&recording).unwrap_or_else(|error| panic!("{error}\n{again}"));
    eprintln!("seed {}: {checked}", trial.seed);
    checked
}

/// Trials aimed at one safety. Where it is switched off, one of them has to see it within a minute; where it is
/// not, one trial has to see nothing.
async fn aimed(switched_off: bool, test: &str, short: u64, habits: Habits, faults: &[Fault]) {
    let cluster = cluster("lease").await;
    if !switched_off {
        let trial = Trial { habits, ..Trial::new(&cluster, seed(), length(short), faults) };
        explained(trial, test).await;
        return;
    }
    let start = Instant::now();
    for round in 0.. {
        let length = Duration::from_secs(5);
        let trial = Trial { habits: habits.clone(), ..Trial::new(&cluster, seed() + round, length, faults) };
        let recording = Box::pin(trial.run()).await.unwrap();
        // What is wanted leaves no file behind.
        if let Err(violation) = check(&recording.operations()) {
            eprintln!("seen after {:?}: {violation}", start.elapsed());
            return;
        }
        assert!(start.elapsed() < A_MINUTE, "a safety is off, and nobody saw it in {:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_through_kills_pauses_and_partitions_are_linearizable() {
    let cluster = cluster("lease").await;
    let trial = Trial { habits: habits(), ..Trial::new(&cluster, seed(), length(14), &Fault::ALL) };
    let test = "histories_through_kills_pauses_and_partitions_are_linearizable";
    let checked = explained(Trial { answers: ENOUGH, ..trial }, test).await;
    assert!(checked.answered >= ENOUGH, "{checked}: too few to prove anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_quorum_reads_histories_through_stepped_clocks_and_pauses_are_linearizable() {
    let cluster = cluster("quorum").await;
    let faults = [
        Fault::StepWall,
        Fault::StepWall,
        Fault::LeapAhead,
        Fault::LeapAhead,
        Fault::Pause,
        Fault::Isolate,
        Fault::OneWay,
        Fault::Kill,
        Fault::LoseReplies,
    ];
    let test = "with_quorum_reads_histories_through_stepped_clocks_and_pauses_are_linearizable";
    let trial = Trial { habits: habits(), ..Trial::new(&cluster, seed(), length(14), &faults) };
    let checked = explained(Trial { answers: ENOUGH, ..trial }, test).await;
    assert!(checked.answered >= ENOUGH, "{checked}: too few to prove anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_stale_when_a_leader_is_cut_off() {
    let off = cfg!(feature = "test-no-lease-check");
    let faults = [Fault::Isolate, Fault::Pause, Fault::OneWay];
    aimed(off, "no_read_is_stale_when_a_leader_is_cut_off", 5, habits(), &faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_of_two_moments_when_all_work_on_one_key() {
    let off = cfg!(feature = "test-no-read-validation");
    let habits = Habits {
        clients: 10,
        pause_at_most: Duration::ZERO,
        mounts: vec![ONE_VERSION.into()],
        folders: 1,
        keys: 1,
        ..Habits::default()
    };
    aimed(off, "no_read_is_of_two_moments_when_all_work_on_one_key", 3, habits, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_done_twice_when_replies_are_lost() {
    let off = cfg!(feature = "test-no-request-window");
    let faults = [Fault::LoseReplies, Fault::LoseRepliesAndKill];
    aimed(off, "no_write_is_done_twice_when_replies_are_lost", 5, habits(), &faults).await;
}

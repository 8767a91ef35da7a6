//! What a node costs while it rests and when it is filled, and how long a cluster takes from one state to the
//! next.

use std::time::{Duration, Instant};

use keystead_chaos::{Builder, Cluster, Error, Load, Node, load::Ended, wait};
use serde_json::json;

use crate::{
    Result,
    args::Args,
    load::{self, Plan, Target, Until},
    rates::{client_tls, fill},
    report::{Due, Report},
    requests::{self, Kind},
    snapshot, token, usage,
};

const MIB: f64 = 1_048_576.0;
/// How many secrets a filled node holds.
const SECRETS: usize = 100_000;
/// How many secrets a cluster holds that is killed as a whole.
const RESTART_SECRETS: usize = 80_000;
/// How long nodes are left alone before they count as at rest.
const REST: Duration = Duration::from_secs(5);
/// How long a step may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Measures every such figure that is wanted.
pub async fn all(args: &Args, report: &mut Report) -> Result<()> {
    if args.wants("memory/rest") || args.wants_long("memory/filled") {
        Box::pin(memory(args, report)).await?;
    }
    if args.wants("time/start") {
        Box::pin(start(args, report)).await?;
    }
    if args.wants("time/token") {
        Box::pin(token::start(args, report)).await?;
    }
    if args.wants("time/failover") {
        Box::pin(failover(args, report)).await?;
    }
    if args.wants("time/transfer") {
        Box::pin(transfer(args, report)).await?;
    }
    if args.wants_long("snapshot") {
        Box::pin(snapshot::all(args, report)).await?;
    }
    if args.wants_long("time/restart") {
        Box::pin(restart(args, report)).await?;
    }
    if args.wants_long("time/elections") {
        Box::pin(elections(args, report)).await?;
    }
    Ok(())
}

/// Memory and disk, of new nodes and of filled ones.
async fn memory(args: &Args, report: &mut Report) -> Result<()> {
    let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
    at_rest(&cluster, "memory/rest", 64.0, report).await?;
    if args.wants_long("memory/filled") {
        let leader = cluster.leader().await?;
        let seen = fill(&cluster, leader, 0..args.secrets.unwrap_or(SECRETS)).await?;
        report.note(&format!("all secrets written, {:.0} per second", seen.per_second))?;
        at_rest(&cluster, "memory/filled", 128.0, report).await?;
    }
    Ok(())
}

/// Memory and disk of every node; the bound is in MiB of memory.
async fn at_rest(cluster: &Cluster, name: &str, bound: f64, report: &mut Report) -> Result<()> {
    tokio::time::sleep(REST).await;
    let (mut resident, mut peak, mut disk) = (Vec::new(), Vec::new(), Vec::new());
    for node in cluster.nodes() {
        let usage = usage::of(node.pid())?;
        resident.push(usage.resident_kib as f64 / 1024.0);
        peak.push(usage.peak_kib as f64 / 1024.0);
        let part = |part: &str| usage::disk_bytes(&node.data().join(part));
        disk.push((part("")? as f64 / MIB, part("log")? as f64 / MIB, part("state")? as f64 / MIB));
    }
    let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    let taken: Vec<f64> = disk.iter().map(|disk| disk.0 * MIB / 1e6).collect();
    report.figure(
        name,
        &format!("each node: {resident:.0?} MiB resident, {peak:.0?} at most; disk (all, log, state) {disk:.0?} MiB"),
        &json!({ "resident_mib": resident, "peak_mib": peak, "disk_mib": disk }),
        &[
            Due::at_most("resident, MiB", bound, most(&resident)),
            Due::at_most("disk, MB", 200.0, most(&taken)),
        ],
    )
}

/// Three configuration files to three voters that serve: processes, init, shares, kv, a write.
async fn start(args: &Args, report: &mut Report) -> Result<()> {
    let mut times = Vec::new();
    for _ in 0..if args.quick { 2 } else { 5 } {
        let mut cluster = Builder::new(&args.binary, 3).prepare().await?;
        let begun = Instant::now();
        for node in cluster.nodes() {
            node.spawn()?;
        }
        answers(cluster.at(0)).await?;
        cluster.init(0).await?;
        let [one, two, three] = [0, 1, 2].map(|at| cluster.at(at));
        tokio::try_join!(open(&cluster, one), open(&cluster, two), open(&cluster, three))?;
        cluster.voters(3, PATIENCE).await?;
        cluster.mount_kv().await?;
        cluster.serves(0, PATIENCE).await?;
        times.push(begun.elapsed());
    }
    spans("time/start", "three files to three voters that serve", times, 3.0, None, report)
}

/// Kills leaders under load; every acknowledged write must be found on every node.
async fn failover(args: &Args, report: &mut Report) -> Result<()> {
    let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 8, Duration::ZERO);
    let mut times = Vec::new();
    for kill in 0..if args.quick { 5 } else { 50 } {
        let leader = cluster.leader().await?;
        let survivor = cluster.others(leader)[kill % 2];
        // Some load must meet this leader.
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.at(leader).kill();
        let begun = Instant::now();
        cluster.at(survivor).put("drill/kill", &json!({ "number": kill })).await?;
        times.push(begun.elapsed());
        Box::pin(cluster.bring_back(leader)).await?;
    }
    let history = load.stop().await;
    Box::pin(history.check(&cluster, &[0, 1, 2])).await?;
    let kept = history.count(Ended::Acknowledged);
    report.note(&format!("{kept} writes were acknowledged meanwhile, all found on every node"))?;
    spans("time/failover", "kill -9 of the leader to the next write", times, 1.0, Some(2.0), report)
}

/// Has leaders step down under load; no request may fail. The silence is the longest that a client which writes without
/// a pause, through a standby, waits for one answer.
async fn transfer(args: &Args, report: &mut Report) -> Result<()> {
    let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 8, Duration::ZERO);
    let mut times = Vec::new();
    for number in 0..if args.quick { 5 } else { 20 } {
        let leader = cluster.leader().await?;
        let standby = cluster.others(leader)[number % 2];
        let probe = Load::start(&[cluster.at(standby).client()], 1, Duration::ZERO);
        let silences = longest_silence(&probe, async {
            cluster.at(leader).call("PUT", "sys/step-down", None).await?.ok()
        });
        times.push(silences.await?);
        let seen = probe.stop().await;
        if seen.count(Ended::Refused) + seen.count(Ended::Unknown) > 0 {
            return Err(format!("a request failed during a transfer: {:?}", seen.refusals).into());
        }
    }
    let history = load.stop().await;
    let failed = history.count(Ended::Refused) + history.count(Ended::Unknown);
    let kept = history.count(Ended::Acknowledged);
    report.note(&format!("{kept} writes were acknowledged meanwhile, {failed} failed"))?;
    if failed > 0 {
        return Err(format!("{failed} requests failed: {:?}", history.refusals).into());
    }
    spans("time/transfer", "longest silence of a planned transfer", times, 0.1, Some(0.3), report)
}

/// The longest time in which nothing was acknowledged, from a moment before `work` to a while after it.
async fn longest_silence<T>(
    load: &Load,
    work: impl Future<Output = keystead_chaos::Result<T>>,
) -> Result<Duration> {
    const BEFORE: Duration = Duration::from_millis(200);
    const AFTER: Duration = Duration::from_millis(500);
    let work = async {
        tokio::time::sleep(BEFORE).await;
        let done = work.await;
        tokio::time::sleep(AFTER).await;
        done
    };
    tokio::pin!(work);
    let (mut seen, mut since, mut longest) = (load.acknowledged(), Instant::now(), Duration::ZERO);
    loop {
        tokio::select! {
            done = &mut work => {
                done?;
                return Ok(longest.max(since.elapsed()));
            }
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
        longest = longest.max(since.elapsed());
        let now = load.acknowledged();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

/// Kills all nodes at once, starts and unseals them, until a write succeeds.
async fn restart(args: &Args, report: &mut Report) -> Result<()> {
    let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
    let secrets = args.secrets.unwrap_or(RESTART_SECRETS);
    fill(&cluster, cluster.leader().await?, 0..secrets).await?;
    let mut times = Vec::new();
    for _ in 0..if args.quick { 1 } else { 5 } {
        cluster.nodes().iter().for_each(Node::kill);
        let begun = Instant::now();
        for node in cluster.nodes() {
            node.spawn()?;
        }
        let [one, two, three] = [0, 1, 2].map(|at| cluster.at(at));
        tokio::try_join!(open(&cluster, one), open(&cluster, two), open(&cluster, three))?;
        cluster.serves(0, PATIENCE).await?;
        times.push(begun.elapsed());
        for node in cluster.nodes() {
            node.health(&[200, 429], PATIENCE).await?;
        }
    }
    let what = format!("all killed with {secrets} secrets, to the first write");
    spans("time/restart", &what, times, 2.0, None, report)
}

/// Ten minutes of full load: nobody may stand for election.
async fn elections(args: &Args, report: &mut Report) -> Result<()> {
    let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
    let leader = cluster.leader().await?;
    let length = Duration::from_secs(if args.quick { 30 } else { 600 });
    let before = elections_won(&cluster).await?;
    let target = Target {
        address: cluster.at(leader).api(),
        tls: client_tls(&cluster),
        pids: cluster.nodes().iter().map(|node| node.pid()).collect(),
    };
    let requests = requests::of_keys(Kind::Put, 0..10_000, &cluster.keys().root_token);
    let plan = Plan { requests, connections: 128, until: Until::Elapsed(length), settle: false };
    let seen = load::run(target, plan).await?;
    let won = elections_won(&cluster).await? - before;
    report.figure(
        "time/elections",
        &format!(
            "{won} elections in {length:?} of {:.0} writes per second over 128 connections",
            seen.per_second
        ),
        &json!({ "time/elections": won, "seconds": length.as_secs(), "per_second": seen.per_second }),
        &[Due::at_most("elections without cause", 0.0, won)],
    )
}

/// How often any node has become the leader.
async fn elections_won(cluster: &Cluster) -> Result<f64> {
    let mut won = 0.0;
    for node in cluster.nodes() {
        let text = node.call("GET", "sys/metrics?format=prometheus", None).await?.ok()?.text();
        let counts = text.lines().filter_map(|line| line.strip_prefix("keystead_raft_elections_won"));
        won += counts.filter_map(|rest| rest.split_whitespace().last()?.parse::<f64>().ok()).sum::<f64>();
    }
    if won == 0.0 { Err("no node counts the elections that it won".into()) } else { Ok(won) }
}

/// Waits until a node's API answers.
async fn answers(node: &Node) -> Result<()> {
    wait::until("the API to answer", PATIENCE, || async {
        node.alive()?;
        node.client().with_timeout(Duration::from_secs(2)).call("GET", "sys/seal-status", None).await
    })
    .await?;
    Ok(())
}

/// Waits for a node to answer, and unseals it; it may go on opening after the answer to the last share.
async fn open(cluster: &Cluster, node: &Node) -> Result<()> {
    answers(node).await?;
    match cluster.unseal(node).await {
        Ok(()) => {}
        Err(Error::Broken(_)) => {
            node.health(&[200, 429], PATIENCE).await?;
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Times with a bound for their median, or for the worst where both are given.
pub fn spans(
    name: &str,
    what: &str,
    mut times: Vec<Duration>,
    median_s: f64,
    worst_s: Option<f64>,
    report: &mut Report,
) -> Result<()> {
    times.sort_unstable();
    let seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
    let (Some(worst), Some(median)) = (seconds.last(), seconds.get(seconds.len() / 2)) else {
        return Err(format!("{name} was not measured").into());
    };
    let mut due = vec![Due::at_most("median, s", median_s, *median)];
    due.extend(worst_s.map(|bound| Due::at_most("worst, s", bound, *worst)));
    report.figure(
        name,
        &format!("{what}: median {median:.2} s, worst {worst:.2} s of {}", seconds.len()),
        &json!({ "seconds": seconds }),
        &due,
    )
}

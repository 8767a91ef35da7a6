//! What a snapshot of a filled cluster costs, and a restore, each beside what the machine can do with the same bytes.

use std::{
    fs::File,
    path::Path,
    time::{Duration, Instant},
};

use keystead_chaos::{Builder, Cluster, wait};
use serde_json::json;

use crate::{
    Result,
    args::Args,
    load::{self, Plan, Seen, Target, Until},
    rates::{client_tls, fill},
    report::{Due, Report},
    requests::{self, Kind},
    usage,
};

/// How many secrets the cluster holds.
const SECRETS: usize = 100_000;
/// Bytes of a record that the other database is given: what the state keeps of a put.
const RECORD_BYTES: usize = 300;
/// Writers beside a snapshot, and for how long they are measured.
const WRITERS: usize = 16;
const KEYS: usize = 16_000;
const WINDOW: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(300);

/// Fills a cluster, saves it, looks at what it saved, restores it, and has an empty node catch up.
pub async fn all(args: &Args, report: &mut Report) -> Result<()> {
    let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
    let leader = cluster.leader().await?;
    let secrets = args.secrets.unwrap_or(SECRETS);
    let seen = fill(&cluster, leader, 0..secrets).await?;
    report.note(&format!("{secrets} secrets written, {:.0} per second", seen.per_second))?;
    let file = cluster.directory().join("bench.snap");
    let (save_s, bytes) = save(&cluster, leader, &file).await?;
    let copy_s = copied(&file)?;
    let verify_s = command(&cluster, leader, &["verify", &shown(&file)]).await?;
    let beside = beside_writers(&cluster, leader, &file).await?;
    let memory = usage::of(cluster.at(leader).pid())?.peak_kib as f64 / 1024.0;
    report.figure(
        "snapshot/save",
        &format!(
            "{:.0} MB saved in {save_s:.2} s, verified in {verify_s:.2} s; copied in {copy_s:.2} s; writers' p99 {:.1} ms, {:.1} ms without; node {memory:.0} MiB at most",
            bytes as f64 / 1e6, beside.1 * 1e3, beside.0 * 1e3,
        ),
        &json!({ "bytes": bytes, "save_s": save_s, "verify_s": verify_s, "copy_s": copy_s, "p99_without_s": beside.0,
            "p99_during_s": beside.1, "peak_mib": memory }),
        &[
            Due::at_most("save, copies", 3.0, save_s / copy_s),
            Due::at_most("writers' p99, times that without", 2.0, beside.1 / beside.0),
        ],
    )?;

    let sled_s = sled_load(cluster.directory(), secrets)?;
    let restore_s = command(&cluster, leader, &["restore", &shown(&file)]).await?;
    let catch_up_s = catch_up(&cluster, leader).await?;
    report.figure(
        "snapshot/restore",
        &format!(
            "restored in {restore_s:.2} s, an empty follower has caught up in {catch_up_s:.2} s; sled loads as many records in {sled_s:.2} s"
        ),
        &json!({ "restore_s": restore_s, "catch_up_s": catch_up_s, "sled_s": sled_s }),
        &[
            Due::at_most("restore, loads of sled", 1.5, restore_s / sled_s),
            Due::at_most("catch-up, loads of sled", 1.5, catch_up_s / sled_s),
        ],
    )
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// How long a command takes that must succeed.
async fn command(cluster: &Cluster, at: usize, args: &[&str]) -> Result<f64> {
    let args: Vec<&str> = ["operator", "raft", "snapshot"].iter().chain(args).copied().collect();
    let begun = Instant::now();
    let output = cluster.cli(at).run(&args).await?;
    match output.code {
        0 => Ok(begun.elapsed().as_secs_f64()),
        _ => Err(format!("{args:?}: {}{}", output.stdout, output.stderr).into()),
    }
}

async fn save(cluster: &Cluster, at: usize, file: &Path) -> Result<(f64, u64)> {
    let seconds = command(cluster, at, &["save", &shown(file)]).await?;
    Ok((seconds, std::fs::metadata(file)?.len()))
}

/// Copies the same bytes beside it, to the disk.
fn copied(file: &Path) -> Result<f64> {
    let to = file.with_extension("copy");
    let begun = Instant::now();
    let (mut from, mut out) = (File::open(file)?, File::create(&to)?);
    std::io::copy(&mut from, &mut out)?;
    out.sync_data()?;
    let seconds = begun.elapsed().as_secs_f64();
    std::fs::remove_file(to)?;
    Ok(seconds)
}

/// The p99 of writers without and with a snapshot that is taken, over and over.
async fn beside_writers(cluster: &Cluster, at: usize, file: &Path) -> Result<(f64, f64)> {
    let alone = writers(cluster, at).await?;
    let again = file.with_extension("again");
    let saving = async {
        loop {
            save(cluster, at, &again).await?;
        }
        #[allow(unreachable_code)] // says what the block gives
        crate::Result::Ok(())
    };
    let beside = tokio::select! {
        seen = writers(cluster, at) => seen?,
        ended = saving => return Err(format!("saving ended: {ended:?}").into()),
    };
    Ok((alone.p99.as_secs_f64(), beside.p99.as_secs_f64()))
}

async fn writers(cluster: &Cluster, at: usize) -> Result<Seen> {
    let target = Target { address: cluster.at(at).api(), tls: client_tls(cluster), pids: Vec::new() };
    let requests = requests::of_keys(Kind::Put, 0..KEYS, &cluster.keys().root_token);
    load::run(target, Plan { requests, connections: WRITERS, until: Until::Elapsed(WINDOW), settle: true })
        .await
}

/// How long sled takes to load as many records and flush them.
fn sled_load(directory: &Path, records: usize) -> Result<f64> {
    let begun = Instant::now();
    let db = sled::open(directory.join("sled"))?;
    let mut value = vec![0_u8; RECORD_BYTES];
    for n in 0..records as u64 {
        // Like sealed bytes: without a pattern.
        let mut state = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for piece in value.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
        }
        db.insert(state.to_be_bytes(), value.as_slice())?;
    }
    db.flush()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// Empties a follower; from its shares to having everything.
async fn catch_up(cluster: &Cluster, leader: usize) -> Result<f64> {
    let node = cluster.at(cluster.others(leader)[0]);
    node.kill();
    node.wipe()?;
    // Its former life has to have been silent for a while before another takes its place.
    tokio::time::sleep(Duration::from_secs(11)).await;
    node.start().await?;
    let begun = Instant::now();
    cluster.unseal(node).await?;
    wait::until("the follower to have everything", PATIENCE, || async {
        let status = node.seal_status().await.map_err(|error| error.to_string())?;
        if status["sealed"] == false { Ok(()) } else { Err(status.to_string()) }
    })
    .await?;
    Ok(begun.elapsed().as_secs_f64())
}

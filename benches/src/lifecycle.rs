//! What a node costs while it rests and when it is filled.

use std::time::Duration;

use keystead_chaos::{Builder, Cluster};
use serde_json::json;

use crate::{
    Result,
    args::Args,
    rates::fill,
    report::{Due, Report},
    usage,
};

const MIB: f64 = 1_048_576.0;
/// How many secrets a filled node holds.
const SECRETS: usize = 100_000;
/// How long nodes are left alone before they count as at rest.
const REST: Duration = Duration::from_secs(5);

/// Measures every such figure that is wanted.
pub async fn all(args: &Args, report: &mut Report) -> Result<()> {
    if args.wants("rest") || args.wants_long("filled") {
        let cluster = Box::pin(Builder::new(&args.binary, 3).ready()).await?;
        at_rest(&cluster, "rest", 64.0, report).await?;
        if args.wants_long("filled") {
            let leader = cluster.leader().await?;
            let seen = fill(&cluster, leader, 0..SECRETS).await?;
            report.note(&format!("{SECRETS} secrets written, {:.0} per second", seen.per_second))?;
            at_rest(&cluster, "filled", 128.0, report).await?;
        }
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
        disk.push(usage::disk_bytes(&node.data())? as f64 / MIB);
    }
    let most = |of: &[f64]| of.iter().copied().fold(0.0, f64::max);
    report.figure(
        name,
        &format!("each node: resident {resident:.0?} MiB, at most {peak:.0?}; disk {disk:.0?} MiB"),
        &json!({ "resident_mib": resident, "peak_mib": peak, "disk_mib": disk }),
        &[
            Due::at_most("resident, MiB", bound, most(&resident)),
            Due::at_most("disk, MB", 200.0, most(&disk) * MIB / 1e6),
        ],
    )
}

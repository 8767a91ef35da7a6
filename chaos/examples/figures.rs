//! Measures a cluster of three: time to ready, requests per second, memory at rest.
//!
//! `cargo run --release -p keystead-chaos --example figures -- [--seconds 5] [path of the binary]`

use std::{
    error::Error,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use keystead_chaos::{
    Builder,
    load::{Kind, measure},
    process::resident_kib,
};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut seconds, mut binary) = (5, default_binary()?);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => seconds = args.next().ok_or("--seconds needs a number")?.parse()?,
            _ => binary = PathBuf::from(arg),
        }
    }
    let mut out = std::io::stdout();
    let start = Instant::now();
    let cluster = Box::pin(Builder::new(binary, 3).ready()).await?;
    writeln!(out, "three nodes initialised, unsealed and voting after {:?}", start.elapsed())?;
    let leader = cluster.leader().await?;
    let standby = cluster.others(leader)[0];
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in cluster.nodes() {
        writeln!(out, "{} at rest: {} KiB resident", node.name(), resident_kib(node.pid())?)?;
    }
    for n in 0..100 {
        let value = json!({ "password": "0123456789abcdef0123456789abcdef" });
        cluster.at(leader).put(&format!("bench/{n}"), &value).await?;
    }
    for kind in [Kind::Get, Kind::Put] {
        for (place, at) in [("leader", leader), ("standby", standby)] {
            for connections in [1, 16, 128] {
                let length = Duration::from_secs(seconds);
                let rate = Box::pin(measure(&cluster.at(at).client(), kind, connections, length)).await?;
                writeln!(
                    out,
                    "{kind:?} on the {place}, {connections} connections: {:.0} per second, median {:?}, p99 {:?}, {} failed",
                    rate.per_second, rate.median, rate.p99, rate.failed
                )?;
            }
        }
    }
    Ok(())
}

/// The server beside this example in the target directory.
fn default_binary() -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(|examples| examples.parent()).ok_or("no target directory")?;
    Ok(profile.join("keystead"))
}

//! Kills leaders and says how long the next write took.
//!
//! `cargo run --release -p keystead-chaos --example failover -- --kills 20 [path of the binary]`

use std::{
    error::Error,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use keystead_chaos::{Builder, load::Load};
use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (mut kills, mut binary) = (20, default_binary()?);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--kills" => kills = args.next().ok_or("--kills needs a number")?.parse()?,
            _ => binary = PathBuf::from(arg),
        }
    }
    let mut out = std::io::stdout();
    let cluster = Box::pin(Builder::new(binary, 3).ready()).await?;
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 8, Duration::ZERO);
    let mut times = Vec::new();
    for kill in 1..=kills {
        let leader = cluster.leader().await?;
        let survivor = cluster.others(leader)[kill % 2];
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.at(leader).kill();
        let start = Instant::now();
        cluster.at(survivor).put("drill/kill", &json!({ "number": kill })).await?;
        times.push(start.elapsed());
        writeln!(out, "kill {kill}: next write after {:?}", start.elapsed())?;
        Box::pin(cluster.bring_back(leader)).await?;
    }
    let history = load.stop().await;
    Box::pin(history.check(&cluster, &[0, 1, 2])).await?;
    times.sort_unstable();
    writeln!(
        out,
        "{kills} kills: median {:?}, worst {:?}; {} acknowledged writes, all found on every node",
        times[times.len() / 2],
        times[times.len() - 1],
        history.count(keystead_chaos::load::Ended::Acknowledged),
    )?;
    Ok(())
}

/// The server beside this example in the target directory.
fn default_binary() -> Result<PathBuf, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let profile = own.parent().and_then(|examples| examples.parent()).ok_or("no target directory")?;
    Ok(profile.join("keystead"))
}

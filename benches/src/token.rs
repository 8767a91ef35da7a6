//! How long a node takes that a token opens, from its start to its first answer.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use keystead_chaos::{
    Builder, Cluster,
    softhsm::{self, Tokens},
    wait,
};
use serde_json::{Value, json};

use crate::{Result, args::Args, lifecycle::spans, report::Report};

const PATIENCE: Duration = Duration::from_secs(60);

/// One node of three is killed and started, ten times, until it answers a read of what was written meanwhile; nobody
/// opens it.
pub async fn start(args: &Args, report: &mut Report) -> Result<()> {
    let Some(module) = softhsm::module() else {
        return report
            .note("time/token is left out: SoftHSM is not installed (Debian: apt-get install softhsm2)");
    };
    let directory = tempfile::tempdir()?;
    let program = token(directory.path(), &args.binary)?;
    let stanza = format!(
        "seal \"pkcs11\" {{\n  lib = \"{}\"\n  token_label = \"bench\"\n  pin = \"{}\"\n  generate_key = true\n}}",
        module.display(),
        softhsm::PIN
    );
    let builder = Builder::new(program, 3).configure(move |_, config| config.lines.push(stanza.clone()));
    let cluster = Box::pin(builder.start()).await?;
    let body = json!({ "recovery_shares": 1, "recovery_threshold": 1 });
    let made = cluster.at(0).call("PUT", "sys/init", Some(&body)).await?.ok()?.json();
    for node in cluster.nodes() {
        node.set_token(made["root_token"].as_str().unwrap_or_default());
    }
    cluster.voters(3, PATIENCE).await?;
    cluster.mount_kv().await?;
    let mut times = Vec::new();
    for n in 0..if args.quick { 3 } else { 10 } {
        times.push(once(&cluster, n).await?);
    }
    spans("time/token", "a node that a token opens, start to the first answer", times, 1.0, None, report)
}

async fn once(cluster: &Cluster, n: usize) -> Result<Duration> {
    let leader = cluster.leader().await?;
    let (standby, value) = (cluster.at(cluster.others(leader)[n % 2]), json!({ "n": n }));
    standby.kill();
    cluster.at(leader).put("while", &value).await?;
    let begun = Instant::now();
    standby.spawn()?;
    let answered = || async {
        standby.alive()?;
        match standby.get("while").await? {
            Some(found) if found == value => Ok(()),
            other => {
                Err(keystead_chaos::Error::Broken(format!("{:?}", other.as_ref().map(Value::to_string))))
            }
        }
    };
    wait::until("the node to answer", PATIENCE, answered).await?;
    Ok(begun.elapsed())
}

/// Makes a token, and a program that is the binary with its configuration.
fn token(directory: &Path, binary: &Path) -> Result<PathBuf> {
    let tokens = Tokens::new(directory)?;
    tokens.add("bench")?;
    let program = directory.join("keystead");
    let script = format!(
        "#!/bin/sh\nSOFTHSM2_CONF={} exec {} \"$@\"\n",
        tokens.conf().display(),
        fs::canonicalize(binary)?.display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    Ok(program)
}

//! A client that nobody here wrote: Python's hvac, over TLS, against the leader and a standby.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{path::Path, process::Command, time::Duration};

use common::ready;
use keystead_chaos::Process;

#[tokio::test]
#[ignore = "needs tests/.venv, which tests/run makes"]
async fn hvac_finds_a_vault() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("tests/.venv/bin/python");
    assert!(python.exists(), "tests/run makes {}", python.display());
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    let mut command = Command::new(python);
    command
        .arg(root.join("tests/hvac/test_hvac.py"))
        .env_clear()
        .env("KEYSTEAD_LEADER", cluster.at(leader).url())
        .env("KEYSTEAD_STANDBY", cluster.at(standby).url())
        .env("KEYSTEAD_CA", cluster.pki().ca_file())
        .env("KEYSTEAD_TOKEN", &cluster.keys().root_token)
        .env("KEYSTEAD_SHARES", cluster.keys().shares.join(","));
    let tests = Process::start("hvac", command, &cluster.directory().join("hvac.log")).unwrap();
    let status = tests.wait(Duration::from_secs(120)).await.unwrap();
    assert!(status.success(), "{}", tests.log());
    assert!(tests.log().contains("Ran 51 tests"), "{}", tests.log());
}

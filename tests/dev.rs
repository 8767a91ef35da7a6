//! `server -dev`: one command, and a newcomer has something to try.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use common::at_most;
use keystead_chaos::{Cli, Process, ports, wait};
use rustix::process::Signal;

/// A development server and what it printed.
struct Dev {
    process: Process,
    home: tempfile::TempDir,
    took: Duration,
}

impl Dev {
    async fn start(args: &[&str], ready: &str) -> Dev {
        let home = tempfile::tempdir().unwrap();
        let mut command = Command::new(common::BINARY);
        command.args(["server", "-dev"]).args(args).env_clear().env("HOME", home.path());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TMPDIR", home.path());
        let begun = Instant::now();
        let process = Process::start("server -dev", command, &home.path().join("printed")).unwrap();
        wait::until_now("what it prints when it is ready", Duration::from_secs(30), || {
            process.alive().map_err(|error| error.to_string())?;
            let printed = process.log();
            if printed.contains(ready) { Ok(()) } else { Err(printed) }
        })
        .await
        .unwrap();
        Dev { process, home, took: begun.elapsed() }
    }

    /// The value of each `export NAME='value'` line.
    fn exports(&self) -> Vec<(String, String)> {
        let text = self.process.log();
        let line = |line: &str| {
            let (name, value) = line.split_once("export ")?.1.split_once('=')?;
            Some((name.to_owned(), value.trim().trim_matches(['\'', '"']).to_owned()))
        };
        text.lines().filter_map(line).collect()
    }

    fn export(&self, name: &str) -> String {
        let exports = self.exports();
        let found = exports.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        found.unwrap_or_else(|| panic!("no export of {name} in:\n{}", self.process.log()))
    }

    fn labelled(&self, label: &str) -> Vec<String> {
        let text = self.process.log();
        text.lines().filter_map(|line| Some(line.split_once(label)?.1.trim().to_owned())).collect()
    }

    fn cli(&self) -> Cli {
        self.exports()
            .into_iter()
            .fold(Cli::new(Path::new(common::BINARY), self.home.path()), |cli, (name, value)| {
                cli.with(&name, value)
            })
    }
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let parent = |entry: &std::fs::DirEntry| -> Option<u32> {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| parent(entry) == Some(pid))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

#[tokio::test]
async fn one_command_gives_three_processes_that_store_and_read_a_secret() {
    let first = ports::free_row(3, 2).unwrap();
    let dev = Dev::start(&["-dev-nodes=3", &format!("-dev-listen-address={first}")], "Root Token:").await;
    // Three seconds are promised of a release.
    assert!(dev.took < at_most(Duration::from_secs(3)), "ready after {:?}", dev.took);
    assert_eq!(
        dev.labelled("Unseal Key ").len().max(dev.labelled("Unseal Key:").len()),
        5,
        "{}",
        dev.process.log()
    );

    let nodes: Vec<u32> = (0..3).map(|n| u32::from(first.port() + 2 * n)).collect();
    let printed = dev.process.log();
    for port in &nodes {
        assert!(printed.contains(&format!("127.0.0.1:{port}")), "{printed}");
    }
    let pids = children(dev.process.pid());
    assert_eq!(pids.len(), 3, "three real processes");
    for pid in &pids {
        assert!(printed.contains(&pid.to_string()), "process {pid} in:\n{printed}");
    }

    let cli = dev.cli();
    let put = cli.run(&["kv", "put", "secret/app/db", "password=s3cr3t"]).await.unwrap();
    assert_eq!(put.code, 0, "{}", put.stderr);
    for port in &nodes {
        let other = cli.clone().with("VAULT_ADDR", format!("https://127.0.0.1:{port}"));
        let got = other.run(&["kv", "get", "-field=password", "secret/app/db"]).await.unwrap();
        assert_eq!((got.code, got.stdout.trim_end()), (0, "s3cr3t"), "{}", got.stderr);
    }
    let peers = cli.run(&["operator", "raft", "list-peers"]).await.unwrap();
    assert_eq!(
        peers.stdout.lines().filter(|line| line.trim_end().ends_with("true")).count(),
        3,
        "{}",
        peers.stdout
    );

    // Ctrl-C at a terminal reaches the whole group; the parent alone has to be enough.
    dev.process.signal(Signal::INT).unwrap();
    let status = dev.process.wait(Duration::from_secs(20)).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", dev.process.log());
    wait::until_now("the children to be gone", Duration::from_secs(5), || {
        let left: Vec<_> =
            pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}/exe")).exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn the_children_of_a_killed_parent_do_not_stay_behind() {
    let first = ports::free_row(3, 2).unwrap();
    let dev = Dev::start(&["-dev-nodes=3", &format!("-dev-listen-address={first}")], "Root Token:").await;
    let pids = children(dev.process.pid());
    assert_eq!(pids.len(), 3);
    dev.process.kill();
    wait::until_now("the children to be gone", Duration::from_secs(15), || {
        let left: Vec<_> =
            pids.iter().filter(|pid| Path::new(&format!("/proc/{pid}/exe")).exists()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_single_development_server_is_vaults() {
    let address = ports::free().unwrap();
    let args = ["-dev-root-token-id=myroot", &format!("-dev-listen-address={address}")];
    let dev = Dev::start(&args, "Root Token:").await;
    assert_eq!(dev.export("VAULT_ADDR"), format!("http://{address}"));
    assert_eq!(dev.labelled("Root Token:"), ["myroot"]);
    assert_eq!(dev.labelled("Unseal Key:").len(), 1);
    let helper = dev.home.path().join(".vault-token");
    assert_eq!(std::fs::read_to_string(&helper).unwrap(), "myroot");
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&helper.metadata().unwrap().permissions()) & 0o777,
        0o600
    );

    // The token comes from the helper.
    let put = dev.cli().run(&["kv", "put", "secret/a", "b=c"]).await.unwrap();
    assert_eq!(put.code, 0, "{}", put.stderr);
    let mounts = dev.cli().run(&["secrets", "list"]).await.unwrap().stdout;
    assert!(mounts.contains("key/value secret storage"), "{mounts}");

    dev.process.signal(Signal::TERM).unwrap();
    let status = dev.process.wait(Duration::from_secs(20)).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", dev.process.log());
    let left: Vec<_> = std::fs::read_dir(dev.home.path())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.') && name != "printed")
        .collect();
    assert!(left.is_empty(), "its temporary data is gone: {left:?}");
}

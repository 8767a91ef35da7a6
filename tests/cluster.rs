//! The main job as a user sees it: three processes by stock configuration, driven by the command line.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::{Duration, Instant};

use common::{ready, three};
use keystead_chaos::{Cli, wait};
use serde_json::{Value, json};

/// The lines of a transcript with runs of spaces made one, so that column widths do not matter.
fn squeezed(text: &str) -> Vec<String> {
    let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(squeeze).filter(|line| !line.is_empty()).collect()
}

fn value_after<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(label)).map(str::trim)
}

async fn run(cli: &Cli, args: &[&str]) -> String {
    let output = cli.run(args).await.unwrap();
    assert_eq!(output.code, 0, "{args:?}: {}{}", output.stdout, output.stderr);
    output.stdout
}

#[tokio::test]
async fn three_nodes_are_set_up_by_the_command_line_and_vote_within_five_seconds_of_the_last_share() {
    let cluster = Box::pin(three().start()).await.unwrap();
    let clis: Vec<Cli> = (0..3).map(|at| cluster.cli(at)).collect();

    let uninitialised = clis[0].run(&["status"]).await.unwrap();
    assert_eq!(uninitialised.code, 2, "{}", uninitialised.stderr);
    assert!(
        squeezed(&uninitialised.stdout).contains(&"Initialized false".to_owned()),
        "{}",
        uninitialised.stdout
    );

    let made = run(&clis[0], &["operator", "init"]).await;
    let shares: Vec<&str> =
        (1..=5).map(|n| value_after(&made, &format!("Unseal Key {n}:")).unwrap()).collect();
    let token = value_after(&made, "Initial Root Token:").unwrap();
    assert!(token.starts_with("hvs.") && token.len() == 28, "the root token has Vault's form");

    for (at, cli) in clis.iter().enumerate() {
        let node = cluster.at(at);
        wait::until("the node to know of the cluster", Duration::from_secs(20), || async {
            let status = node.seal_status().await.map_err(|error| error.to_string())?;
            if status["initialized"] == true { Ok(()) } else { Err(status.to_string()) }
        })
        .await
        .unwrap();
        for (given, share) in shares[..3].iter().enumerate() {
            let status = run(cli, &["operator", "unseal", share]).await;
            if given == 0 {
                assert!(squeezed(&status).contains(&"Unseal Progress 1/3".to_owned()), "{status}");
            }
        }
    }
    let last_share = Instant::now();
    let clis: Vec<Cli> = clis.into_iter().map(|cli| cli.with("VAULT_TOKEN", token)).collect();
    let peers = wait::until("three voters", Duration::from_secs(20), || async {
        let output =
            clis[0].run(&["operator", "raft", "list-peers"]).await.map_err(|error| error.to_string())?;
        let lines = squeezed(&output.stdout);
        let voters = lines.iter().filter(|line| line.ends_with(" true")).count();
        if voters == 3 { Ok(lines) } else { Err(format!("{}{}", output.stdout, output.stderr)) }
    })
    .await
    .unwrap();
    assert!(
        last_share.elapsed() < common::at_most(Duration::from_secs(5)),
        "took {:?}",
        last_share.elapsed()
    );
    assert_eq!(peers[0], "Node Address State Voter");
    assert_eq!(peers.iter().filter(|line| line.contains(" leader ")).count(), 1);
    assert_eq!(peers.iter().filter(|line| line.contains(" follower ")).count(), 2);
    for (at, line) in (0..3).zip(&peers[2..]) {
        assert!(
            line.contains(&cluster.at(at).config().cluster_advertised.to_string()) || line.starts_with('n')
        );
    }

    let enabled = run(&clis[1], &["secrets", "enable", "-path=secret", "kv-v2"]).await;
    assert_eq!(enabled, "Success! Enabled the kv-v2 secrets engine at: secret/\n");
    let put = run(&clis[0], &["kv", "put", "secret/app/db", "password=s3cr3t"]).await;
    let lines = squeezed(&put);
    assert_eq!(lines[..2], ["=== Secret Path ===", "secret/data/app/db"]);
    assert!(lines.contains(&"version 1".to_owned()), "{put}");
    for cli in &clis {
        assert_eq!(run(cli, &["kv", "get", "-field=password", "secret/app/db"]).await.trim_end(), "s3cr3t");
        let status = cli.run(&["status"]).await.unwrap();
        assert_eq!(status.code, 0, "{}", status.stdout);
        assert!(squeezed(&status.stdout).contains(&"Sealed false".to_owned()));
    }
}

#[tokio::test]
async fn the_command_line_speaks_as_vaults_does() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    let cli = cluster.cli(standby);
    run(&cli, &["kv", "put", "secret/a", "x=1", "y=two"]).await;
    run(&cli, &["kv", "put", "secret/f/b", "x=1"]).await;

    assert_eq!(squeezed(&run(&cli, &["kv", "list", "secret/"]).await), ["Keys", "----", "a", "f/"]);
    let got = squeezed(&run(&cli, &["kv", "get", "secret/a"]).await);
    assert_eq!(got[..3], ["== Secret Path ==", "secret/data/a", "======= Metadata ======="]);
    assert_eq!(got[got.len() - 5..], ["== Data ==", "Key Value", "--- -----", "x 1", "y two"]);
    let envelope: Value =
        serde_json::from_str(&run(&cli, &["kv", "get", "-format=json", "secret/a"]).await).unwrap();
    assert_eq!(envelope["data"]["data"], json!({ "x": "1", "y": "two" }));
    assert_eq!(envelope["data"]["metadata"]["version"], 1);

    let missing = cli.run(&["kv", "get", "secret/none"]).await.unwrap();
    assert_eq!((missing.code, missing.stdout.as_str()), (2, ""));
    assert_eq!(missing.stderr, "No value found at secret/data/none\n");
    let stale = cli.run(&["kv", "put", "-cas=7", "secret/a", "x=2"]).await.unwrap();
    assert_eq!(stale.code, 2);
    assert!(
        stale.stderr.contains("Code: 400. Errors:\n\n* check-and-set parameter did not match"),
        "{}",
        stale.stderr
    );

    assert_eq!(
        run(&cli, &["kv", "delete", "secret/a"]).await,
        "Success! Data deleted (if it existed) at: secret/data/a\n"
    );
    assert_eq!(
        run(&cli, &["kv", "undelete", "-versions=1", "secret/a"]).await,
        "Success! Data written to: secret/undelete/a\n"
    );
    assert_eq!(run(&cli, &["kv", "get", "-field=y", "secret/a"]).await.trim_end(), "two");
    assert_eq!(
        run(&cli, &["kv", "destroy", "-versions=1", "secret/a"]).await,
        "Success! Data written to: secret/destroy/a\n"
    );

    let gone =
        Cli::new(common::BINARY.as_ref(), cluster.directory()).with("VAULT_ADDR", "http://127.0.0.1:1");
    let refused = gone.run(&["status"]).await.unwrap();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("connection refused"), "{}", refused.stderr);
    let denied = cli.clone().with("VAULT_TOKEN", "hvs.wrong").run(&["kv", "get", "secret/a"]).await.unwrap();
    assert_eq!(denied.code, 2);
    assert!(denied.stderr.contains("permission denied"), "{}", denied.stderr);
    assert_eq!(cli.run(&["nosuch"]).await.unwrap().code, 127);
}

#[tokio::test]
async fn what_one_node_acknowledged_every_other_one_shows_at_once() {
    let cluster = ready().await;
    for n in 0..60 {
        let (writer, reader) = (n % 3, (n + 1 + n % 2) % 3);
        cluster.at(writer).put("fresh", &json!({ "n": n })).await.unwrap();
        let seen = cluster.at(reader).get("fresh").await.unwrap().unwrap();
        assert_eq!(seen["n"], n, "written through {writer}, read through {reader}");
    }
}

#[tokio::test]
async fn a_listing_shows_what_was_just_written_on_every_node() {
    let cluster = ready().await;
    for n in 0..12 {
        cluster.at(n % 3).put(&format!("dir/k{n:02}"), &json!({ "n": n })).await.unwrap();
        let names = cluster.at((n + 1) % 3).list("dir").await.unwrap();
        let expected: Vec<String> = (0..=n).map(|n| format!("k{n:02}")).collect();
        assert_eq!(names, expected);
    }
}

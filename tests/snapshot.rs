//! Snapshots that are saved while the cluster serves, and what can be told of them afterwards.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use common::ready;
use keystead_chaos::{Client, Cluster, Node, cli::Output, load, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

async fn snapshot(cluster: &Cluster, at: usize, args: &[&str]) -> Output {
    let args = ["operator", "raft", "snapshot"].iter().chain(args);
    cluster.cli(at).run(&args.copied().collect::<Vec<_>>()).await.unwrap()
}

/// Saves a snapshot from one node.
async fn save(cluster: &Cluster, at: usize, name: &str) -> PathBuf {
    let path = cluster.directory().join(name);
    let saved = snapshot(cluster, at, &["save", &path.display().to_string()]).await;
    assert_eq!((saved.code, saved.stdout.as_str(), saved.stderr.as_str()), (0, "", ""));
    path
}

/// Opens everything in it with shares.
async fn deep(cluster: &Cluster, path: &Path, shares: &[String]) -> Output {
    let path = path.display().to_string();
    let mut args = vec!["verify", "-deep", "-format=json", &path];
    args.extend(shares.iter().map(String::as_str));
    snapshot(cluster, 0, &args).await
}

/// What spooled files a node has lying about.
fn spooled(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(node.data().join("snapshots")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("spool-backup")).collect()
}

#[tokio::test]
async fn every_node_saves_while_writes_go_on_and_its_shares_open_all_of_it() {
    let cluster = ready().await;
    for n in 0..40 {
        cluster.at(n % 3).put(&format!("folder/{n}"), &json!({ "n": n })).await.unwrap();
    }
    let clients: Vec<Client> = cluster.nodes().iter().map(Node::client).collect();
    let load = load::Load::start(&clients, 3, Duration::from_millis(1));
    let mut paths = Vec::new();
    for at in 0..3 {
        // Everything that was acknowledged before is in it, on whatever node.
        cluster.at((at + 1) % 3).put("last", &json!({ "at": at })).await.unwrap();
        paths.push(save(&cluster, at, &format!("{at}.snap")).await);
    }
    let history = load.stop().await;
    assert_eq!(history.count(load::Ended::Refused), 0, "{:?}", history.refusals);
    history.check(&cluster, &[0, 1, 2]).await.unwrap();
    for (at, path) in paths.iter().enumerate() {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        let shown = snapshot(&cluster, at, &["inspect", "-format=json", &path.display().to_string()]).await;
        let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
        assert_eq!(shown["node_id"], cluster.at(at).name());
        let whole = snapshot(&cluster, at, &["verify", &path.display().to_string()]).await;
        assert!(whole.code == 0 && whole.stderr.contains("-deep"), "{whole:?}");
        let opened = deep(&cluster, path, cluster.shares()).await;
        assert_eq!(opened.code, 0, "{}", opened.stderr);
        let opened: Value = serde_json::from_str(&opened.stdout).unwrap();
        assert!(opened["proven"] == true && opened["secret_versions"].as_u64().unwrap() > 40, "{opened}");
        assert_eq!(opened["digest"], shown["digest"]);
        wait::until_now("what was spooled to be gone", SOON, || match spooled(cluster.at(at)).as_slice() {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        })
        .await
        .unwrap();
    }
    assert!(cluster.at(0).log().contains("a snapshot was taken"));
}

#[tokio::test]
async fn only_shares_of_its_time_open_it_and_too_few_do_not() {
    let cluster = ready().await;
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let path = save(&cluster, 0, "one.snap").await;
    let other = ready().await;
    let foreign = deep(&cluster, &path, other.shares()).await;
    assert!(foreign.code == 2 && foreign.stderr.contains("another vault"), "{foreign:?}");
    let few = deep(&cluster, &path, &cluster.shares()[..2]).await;
    assert!(few.code == 1 && few.stderr.contains("2 of 3 shares"), "{few:?}");
    let file = path.display().to_string();
    let args = ["operator", "raft", "snapshot", "verify", "-deep", &file, "-"];
    let shares = cluster.shares().join("\n");
    let stdin = cluster.cli(0).run_with(&args, shares.as_bytes()).await.unwrap();
    assert!(stdin.code == 0 && stdin.stdout.contains("Secret Versions"), "{stdin:?}");
    for share in cluster.shares() {
        assert!(!few.stderr.contains(share.as_str()) && !stdin.stdout.contains(share.as_str()));
    }
}

#[tokio::test]
async fn who_may_not_is_refused_and_leaves_no_file() {
    let cluster = ready().await;
    let path = cluster.directory().join("none.snap");
    let file = path.display().to_string();
    let stranger = cluster.cli(0).with("VAULT_TOKEN", "hvs.nobody");
    let refused = stranger.run(&["operator", "raft", "snapshot", "save", &file]).await.unwrap();
    assert!(refused.code == 2 && refused.stderr.contains("Code: 403"), "{refused:?}");
    let nowhere = snapshot(&cluster, 0, &["save", "/nowhere/at/all"]).await;
    assert_eq!(nowhere.code, 2, "{nowhere:?}");
    let arguments = snapshot(&cluster, 0, &["save"]).await;
    assert!(arguments.code == 1 && arguments.stderr.contains("expected 1, got 0"), "{arguments:?}");
    cluster.at(1).kill();
    cluster.at(1).start().await.unwrap();
    let sealed = snapshot(&cluster, 1, &["save", &file]).await;
    assert!(sealed.code == 2 && sealed.stderr.contains("sealed"), "{sealed:?}");
    let left: Vec<_> =
        std::fs::read_dir(cluster.directory()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("none.snap")), "{left:?}");
    for missing in ["inspect", "verify"] {
        let missing = snapshot(&cluster, 0, &[missing, &file]).await;
        assert!(missing.code == 2 && missing.stderr.contains("No such file"), "{missing:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_and_the_next_is_served() {
    let cluster = ready().await;
    for n in 0..64 {
        let value = "x".repeat(256 << 10);
        cluster.at(0).put(&format!("large/{n}"), &json!({ "value": value })).await.unwrap();
    }
    let node = cluster.at(0);
    let mut stream = {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let connector = tokio_rustls::TlsConnector::from(node.tls().unwrap());
        let tcp = tokio::net::TcpStream::connect(node.api()).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        let head = format!(
            "GET /v1/sys/storage/raft/snapshot HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {}\r\n\r\n",
            cluster.keys().root_token
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 4096];
        let read = stream.read(&mut first).await.unwrap();
        let head = String::from_utf8_lossy(&first[..read]).to_lowercase();
        assert!(head.contains("200 ok") && head.contains("application/gzip"), "{head}");
        assert!(head.contains("content-disposition: attachment"), "{head}");
        stream
    };
    assert_eq!(spooled(node).len(), 1, "it is being sent");
    let busy = node.call("GET", "sys/storage/raft/snapshot", None).await.unwrap();
    assert_eq!(busy.status, 503, "one at a time: {}", busy.text());
    tokio::io::AsyncWriteExt::shutdown(&mut stream).await.ok();
    drop(stream);
    wait::until_now("the broken off snapshot to be gone", SOON, || match spooled(node).as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    })
    .await
    .unwrap();
    save(&cluster, 0, "next.snap").await;
}

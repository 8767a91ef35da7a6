//! A node that cannot start says why, says what to do, and ends at once.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{net::TcpListener, time::Duration};

use common::one;
use keystead_chaos::{Cluster, Node, NodeConfig};

const AT_ONCE: Duration = Duration::from_secs(5);

/// A node that is laid out and not started, changed in some way.
async fn prepared(change: impl FnOnce(&Cluster, &mut NodeConfig)) -> Cluster {
    let cluster = Box::pin(one().prepare()).await.unwrap();
    cluster.at(0).configure(|config| change(&cluster, config));
    cluster
}

/// Starts a node that must fail, and gives everything that it said.
async fn failure(node: &Node) -> String {
    node.spawn().unwrap();
    let status = node.ends(AT_ONCE).await.expect("it ends at once");
    assert!(!status.success(), "and not in good order");
    assert_eq!(status.code(), Some(1), "{}", node.log());
    node.log()
}

#[tokio::test]
async fn a_taken_api_port_ends_the_start() {
    let cluster = prepared(|_, _| {}).await;
    let _taken = TcpListener::bind(cluster.at(0).api()).unwrap();
    let log = failure(cluster.at(0)).await;
    assert!(log.contains("ddress already in use"), "{log}");
    assert!(log.contains(&cluster.at(0).api().to_string()), "the message names the address: {log}");
}

#[tokio::test]
async fn a_taken_cluster_port_ends_the_start() {
    let cluster = prepared(|_, _| {}).await;
    let port = cluster.at(0).config().cluster;
    let _taken = TcpListener::bind(port).unwrap();
    let log = failure(cluster.at(0)).await;
    assert!(log.contains("ddress already in use"), "{log}");
    assert!(log.contains(&port.to_string()), "the message names the address: {log}");
}

#[tokio::test]
async fn a_data_directory_of_a_newer_format_is_left_alone() {
    let cluster = prepared(|_, _| {}).await;
    let data = cluster.at(0).data();
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("FORMAT"), "keystead-data 9\n").unwrap();
    let log = failure(cluster.at(0)).await;
    assert!(log.contains("newer"), "{log}");
    assert_eq!(std::fs::read_to_string(data.join("FORMAT")).unwrap(), "keystead-data 9\n");
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_and_its_user_goes_on() {
    let cluster = Box::pin(one().ready()).await.unwrap();
    let mut config = cluster.newcomer("second").unwrap();
    config.data = cluster.at(0).data();
    let second = cluster.node(config);
    let log = failure(&second).await;
    assert!(log.contains("in use by another process"), "{log}");
    cluster.serves(0, AT_ONCE).await.unwrap();
}

#[tokio::test]
async fn an_unknown_key_is_an_error_with_the_nearest_known_name_and_its_line() {
    let cluster = prepared(|_, config| config.listener_lines.push("tls_cert_fil = \"x.pem\"".into())).await;
    let log = failure(cluster.at(0)).await;
    assert!(log.contains("tls_cert_fil") && log.contains("did you mean \"tls_cert_file\"?"), "{log}");
    assert!(log.contains("config.hcl:"), "file and line: {log}");
}

#[tokio::test]
async fn a_key_that_is_not_built_yet_is_a_warning() {
    let cluster = prepared(|_, config| config.lines.push("ui = true".into())).await;
    cluster.at(0).start().await.unwrap();
    let log = cluster.at(0).log();
    assert!(log.contains("ui"), "{log}");
}

#[tokio::test]
async fn somebody_elses_storage_is_refused_with_ours() {
    let cluster = Box::pin(one().prepare()).await.unwrap();
    let file = cluster.directory().join("consul.hcl");
    std::fs::write(&file, "storage \"consul\" {\n  address = \"127.0.0.1:8500\"\n}\nlistener \"tcp\" {\n  address = \"127.0.0.1:1\"\n  tls_disable = true\n}\n").unwrap();
    let output = cluster.cli(0).run(&["server", &format!("-config={}", file.display())]).await.unwrap();
    assert_eq!(output.code, 1);
    let said = output.stdout + &output.stderr;
    assert!(said.contains("consul") && said.contains("raft"), "{said}");
}

#[tokio::test]
async fn a_missing_certificate_is_named() {
    let cluster = prepared(|cluster, config| {
        let files = config.tls.as_mut().unwrap();
        files.cert = cluster.directory().join("nosuch.pem");
    })
    .await;
    let log = failure(cluster.at(0)).await;
    assert!(log.contains("nosuch.pem"), "{log}");
}

#[tokio::test]
async fn no_configuration_at_all_is_a_usage_error() {
    let cluster = Box::pin(one().prepare()).await.unwrap();
    let output = cluster.cli(0).run(&["server"]).await.unwrap();
    assert_eq!(output.code, 1);
    assert!((output.stdout + &output.stderr).contains("-config"));
}

//! Case 22: where the seal is absent, nothing opens: not the vault that was there, and no new one in its place.

use std::{path::Path, time::Duration};

use keystead_chaos::{Cluster, Node};
use serde_json::json;

use crate::{
    common::one,
    state_rows::{self, Rows},
};

const SEAL_CONFIG: &[u8] = b"cseal-config";
const AT_ONCE: Duration = Duration::from_secs(10);

/// One node with a secret, stopped.
async fn stopped() -> Cluster {
    let cluster = Box::pin(one().ready()).await.unwrap();
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    cluster.at(0).stop().await.unwrap();
    cluster
}

/// The row of the seal configuration is taken out, or put in.
fn replace_row(data: &Path, row: Option<&[u8]>) -> Rows {
    let found = state_rows::rows(data, SEAL_CONFIG);
    assert_eq!(found.len(), 1);
    state_rows::write(found.keys().map(|at| (at, row)));
    found
}

fn put_back(rows: &Rows) {
    state_rows::write(rows.iter().map(|(at, row)| (at, Some(row.as_slice()))));
}

/// Neither the old vault opens nor a new one is made.
async fn stays_closed(node: &Node, shares: &[String], what: &str) {
    if node.start().await.is_err() {
        let log = node.log();
        assert!(log.contains("seal") || log.contains("damaged"), "{what}: it says why: {log}");
        return;
    }
    assert!(node.unseal(shares).await.is_err(), "{what}: it was opened");
    let body = json!({ "secret_shares": 1, "secret_threshold": 1 });
    let init = node.call("PUT", "sys/init", Some(&body)).await.unwrap();
    assert_ne!(init.status, 200, "{what}: a new vault over the old one: {}", init.text());
    assert_eq!(node.seal_status().await.unwrap()["sealed"], true, "{what}");
    let read = node.call("GET", "secret/data/kept", None).await.unwrap();
    assert_eq!(read.status, 503, "{what}: {}", read.text());
    node.stop().await.unwrap();
}

#[tokio::test]
async fn case_22_a_vault_whose_seal_configuration_is_gone_stays_closed() {
    let cluster = stopped().await;
    let node = cluster.at(0);
    let rows = replace_row(&node.data(), None);
    stays_closed(node, cluster.shares(), "no record").await;
    put_back(&rows);
    for (what, value) in [("an empty record", &[][..]), ("a record without seals", &[0; 20])] {
        // Format, kind and version stay; the checksum is right.
        let header = rows.values().next().unwrap()[..14].to_vec();
        let mut row = [&header[..], value].concat();
        row.extend_from_slice(&crc32fast::hash(&row).to_be_bytes());
        replace_row(&node.data(), Some(&row));
        stays_closed(node, cluster.shares(), what).await;
    }
    // With what was taken out, it opens and nothing is lost: it was the absence that closed it.
    put_back(&rows);
    node.start().await.unwrap();
    node.unseal(cluster.shares()).await.unwrap();
    cluster.serves(0, Duration::from_secs(30)).await.unwrap();
    assert_eq!(node.get("kept").await.unwrap().unwrap()["n"], 1);
}

#[tokio::test]
async fn case_22_a_seal_that_is_configured_and_not_there_ends_the_start() {
    let cluster = stopped().await;
    let node = cluster.at(0);
    for seal in [
        "seal \"pkcs11\" { lib = \"/nosuch/module.so\" }",
        "seal \"transit\" { address = \"https://127.0.0.1:1\" }",
        "seal \"awskms\" {}",
        "seal \"nosuch\" {}",
        "seal {}",
        "hsm \"pkcs11\" {}",
        "seal \"shamir\" {}\nseal \"pkcs11\" {}",
    ] {
        node.configure(|config| config.lines = vec![seal.to_owned()]);
        node.spawn().unwrap();
        let status = node.ends(AT_ONCE).await.unwrap_or_else(|error| panic!("{seal}: {error}"));
        assert!(!status.success(), "{seal}");
        let log = node.log();
        assert!(log.contains("seal") || log.contains("hsm"), "{seal}: {log}");
    }
    node.configure(|config| config.lines.clear());
    node.start().await.unwrap();
    assert_eq!(node.seal_status().await.unwrap()["sealed"], true);
    node.unseal(cluster.shares()).await.unwrap();
}

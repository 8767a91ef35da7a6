//! Attackers with what they can really get: a place in the network, a stolen disk, a stolen certificate.
//!
//! They are processes or sockets on the real ports of real nodes. What they may achieve is in
//! `docs/threat-model.md`; here is what they may not.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/state_rows.rs"]
mod state_rows;

mod attacker;
mod clone;
mod disk;
mod false_leader;
mod frames;

use keystead_chaos::Node;
use serde_json::{Value, json};

/// Three new unseal shares, of which two are needed, by a threshold of the present ones.
async fn rekey(node: &Node, present: &[String]) -> Vec<String> {
    let body = json!({ "secret_shares": 3, "secret_threshold": 2 });
    let begun = node.call("PUT", "sys/rekey/init", Some(&body)).await.unwrap().ok().unwrap().json();
    let mut made = Value::Null;
    for share in present {
        let body = json!({ "key": share, "nonce": begun["nonce"] });
        made = node.call("PUT", "sys/rekey/update", Some(&body)).await.unwrap().ok().unwrap().json();
    }
    assert_eq!(made["complete"], true, "{made}");
    serde_json::from_value(made["keys_base64"].clone()).unwrap()
}

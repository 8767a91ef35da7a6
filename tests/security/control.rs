//! Case 6: whoever has no token neither seals a node nor deposes a leader.

use bytes::Bytes;
use serde_json::Value;

use crate::common::ready;

/// Tokens that are none: absent, empty, invented, and the true one spoiled.
fn false_tokens(token: &str) -> Vec<Option<String>> {
    let mut flipped = token.to_owned();
    let last = if flipped.pop() == Some('A') { 'B' } else { 'A' };
    flipped.push(last);
    vec![
        None,
        Some(String::new()),
        Some("root".to_owned()),
        Some(format!("hvs.{}", "x".repeat(24))),
        Some(flipped),
        Some(token[..token.len() - 1].to_owned()),
        Some(format!("{token}x")),
    ]
}

async fn told(node: &keystead_chaos::Node) -> Value {
    node.call("GET", "sys/leader", None).await.unwrap().json()["leader_address"].clone()
}

#[tokio::test]
async fn case_06_nobody_without_a_token_seals_a_node_or_deposes_its_leader() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let led_by = told(cluster.at(leader)).await;
    for at in [leader, cluster.others(leader)[0]] {
        let client = cluster.at(at).client().without_token();
        for token in false_tokens(&cluster.keys().root_token) {
            for path in ["sys/seal", "sys%2Fseal", "sys/step-down", "sys/storage/raft/remove-peer"] {
                for method in ["PUT", "POST"] {
                    let mut headers = vec![("X-Vault-No-Request-Forwarding", "true")];
                    headers.extend(token.as_deref().map(|token| ("X-Vault-Token", token)));
                    for headers in [&headers[..], &headers[1..]] {
                        let body = Bytes::from_static(b"{\"server_id\":\"n1\"}");
                        let answer =
                            client.send(method, &format!("/v1/{path}"), body, headers).await.unwrap();
                        // A standby that is not to forward says where the leader is, and does nothing.
                        let redirected = answer.status == 307
                            && path != "sys/seal"
                            && path != "sys%2Fseal"
                            && at != leader;
                        assert!(
                            answer.status == 403 || redirected,
                            "{method} {path} with {} of a token: {} {}",
                            token.as_ref().map_or(0, String::len),
                            answer.status,
                            answer.text()
                        );
                    }
                }
            }
        }
    }
    for node in cluster.nodes() {
        assert_eq!(node.seal_status().await.unwrap()["sealed"], false, "{}", node.name());
        assert_eq!(told(node).await, led_by, "{}", node.name());
    }
    assert_eq!(cluster.servers().await.unwrap().len(), 3);
}

#[tokio::test]
async fn case_06_a_sealed_node_answers_seal_without_a_token_and_nothing_else() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let sealed = cluster.at(cluster.others(leader)[0]);
    sealed.call("PUT", "sys/seal", None).await.unwrap().ok().unwrap();
    let client = sealed.client().without_token();
    assert_eq!(
        client.call("PUT", "sys/seal", None).await.unwrap().status,
        204,
        "it is what it is asked to be"
    );
    assert_eq!(client.call("PUT", "sys/step-down", None).await.unwrap().status, 503);
    assert_eq!(cluster.leader().await.unwrap(), leader);
}

//! Every route of the table is answered right on every node, whatever state it is in.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{one, ready};
use keystead::core::{
    request::Operation,
    router::{Access, Handler, MOUNTED, Place, ROUTES, Route},
};
use keystead_chaos::{Client, Cluster, Response};
use serde_json::{Value, json};

/// One request for each line of the table and each operation on it.
struct Visit {
    route: Route,
    method: &'static str,
    path: String,
    body: Value,
}

impl Visit {
    async fn send(&self, client: &Client, headers: &[(&str, &str)]) -> Response {
        let body = if self.body.is_null() { Bytes::new() } else { Bytes::from(self.body.to_string()) };
        let mut headers = headers.to_vec();
        if self.method == "PATCH" {
            headers.push(("Content-Type", "application/merge-patch+json"));
        }
        client.send(self.method, &format!("/v1/{}", self.path), body, &headers).await.unwrap()
    }

    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

fn method(operation: Operation) -> Option<&'static str> {
    Some(match operation {
        Operation::Read => "GET",
        Operation::List => "LIST",
        Operation::Update => "PUT",
        Operation::Patch => "PATCH",
        Operation::Delete => "DELETE",
        _ => return None, // help is asked by a query
    })
}

/// What a request needs to do no harm: each is refused, or changes nothing that matters.
fn body_for(route: &Route, method: &str) -> Value {
    match (route.handler, method) {
        (_, "GET" | "LIST" | "DELETE") => Value::Null,
        (Handler::Init, _) => json!({ "secret_shares": 1, "secret_threshold": 1 }),
        (Handler::Unseal, _) => json!({ "key": "00" }),
        (Handler::RaftJoin, _) => json!({ "leader_api_addr": "" }),
        (Handler::RemovePeer, _) => json!({ "server_id": "nobody" }),
        (Handler::RaftChallenge, _) => json!({ "server_id": "walker" }),
        (Handler::Mount, _) => json!({ "type": "kv" }),
        (Handler::GenerateRoot, _) => json!({ "otp": "short" }),
        (Handler::Engine, _) => json!({ "data": { "a": "b" } }),
        _ => json!({}),
    }
}

fn visits() -> Vec<Visit> {
    let mut visits = Vec::new();
    for route in ROUTES.iter().chain(&MOUNTED) {
        for method in route.operations.iter().filter_map(|operation| method(*operation)) {
            let path = match (route.handler, route.pattern) {
                (Handler::Engine, _) => "secret/data/walk".to_owned(),
                (Handler::VisibleMount, _) => "sys/internal/ui/mounts/secret".to_owned(),
                (Handler::Mount, _) if method == "GET" => "sys/mounts/secret".to_owned(),
                (_, pattern) => pattern.replace('*', "walk"),
            };
            // Sealing is walked in `restart.rs`, stepping down in `leadership.rs`: they would end the walk.
            if !matches!(route.handler, Handler::Seal | Handler::StepDown) {
                visits.push(Visit { route: *route, method, path, body: body_for(route, method) });
            }
        }
    }
    assert!(visits.len() > 20);
    visits
}

#[tokio::test]
async fn leader_and_standby_answer_every_route_alike() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    for node in cluster.nodes() {
        node.put("walk", &json!({ "n": 1 })).await.unwrap();
    }
    for visit in visits() {
        let mut statuses = Vec::new();
        for at in [leader, standby] {
            // Each starts from the same state.
            drop(cluster.at(leader).call("DELETE", "sys/mounts/walk", None).await);
            let answer = visit.send(&cluster.at(at).client(), &[]).await;
            assert_ne!(answer.status, 403, "{} with the root token", visit.name());
            assert!(
                answer.status < 500 || visit.route.raw,
                "{}: {} {}",
                visit.name(),
                answer.status,
                answer.text()
            );
            statuses.push(answer.status);
        }
        if visit.route.handler == Handler::Health {
            assert_eq!(statuses, [200, 429]);
        } else if visit.route.handler == Handler::SnapshotRestore {
            // A long body goes to the leader by itself.
            assert_eq!(statuses, [400, 307]);
        } else {
            assert_eq!(statuses[0], statuses[1], "{} on the leader and on a standby", visit.name());
        }
    }
}

#[tokio::test]
async fn without_a_token_every_route_that_wants_one_refuses_on_every_node() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    for visit in visits() {
        for (place, at) in [("leader", leader), ("standby", standby)] {
            let client = cluster.at(at).client().without_token();
            let answer = visit.send(&client, &[]).await;
            let wants = matches!(visit.route.access, Access::Token | Access::Root);
            if wants {
                assert_eq!(answer.status, 403, "{} on the {place}: {}", visit.name(), answer.text());
                assert_eq!(answer.errors(), "permission denied", "{} on the {place}", visit.name());
            } else {
                assert_ne!(answer.status, 403, "{} on the {place}: {}", visit.name(), answer.text());
            }
        }
    }
    for at in [leader, standby] {
        let client = cluster.at(at).client().without_token();
        assert_eq!(client.call("PUT", "sys/seal", None).await.unwrap().status, 403);
        assert_eq!(client.call("PUT", "sys/step-down", None).await.unwrap().status, 403);
        assert_eq!(
            client.call("GET", "sys/nosuch", None).await.unwrap().status,
            403,
            "what exists is not told"
        );
    }
}

#[tokio::test]
async fn a_standby_redirects_what_it_would_forward_and_serves_the_rest() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.at(cluster.others(leader)[0]);
    cluster.at(leader).put("walk", &json!({ "n": 1 })).await.unwrap();
    for visit in visits() {
        let answer = visit.send(&standby.client(), &[("X-Vault-No-Request-Forwarding", "false")]).await;
        if visit.route.place == Place::Leader {
            assert_eq!(answer.status, 307, "{}: {}", visit.name(), answer.text());
            let location = format!("{}/v1/{}", cluster.at(leader).url(), visit.path);
            let named = if visit.route.handler == Handler::SafeToStop { "?node=" } else { "" };
            let sent_to = answer.header("location").unwrap_or_default();
            assert!(sent_to.starts_with(&format!("{location}{named}")), "{sent_to}");
            assert!(!named.is_empty() || sent_to == location, "{sent_to}");
            assert!(answer.body.is_empty() && answer.header("content-type").is_none());
        } else {
            assert_ne!(answer.status, 307, "{}: {}", visit.name(), answer.text());
        }
    }
    let query = standby
        .client()
        .send(
            "PUT",
            "/v1/secret/data/walk?x=%2Fy&z",
            Bytes::from("{}"),
            &[("X-Vault-No-Request-Forwarding", "1")],
        )
        .await
        .unwrap();
    assert!(query.header("location").unwrap().ends_with("/v1/secret/data/walk?x=%2Fy&z"), "query and all");
}

async fn only_the_node_itself_is_answered_for(cluster: &Cluster) {
    let initialized = cluster.at(0).seal_status().await.unwrap()["initialized"] == true;
    for visit in visits().iter().filter(|visit| !visit.route.raw) {
        // A node that belongs to no vault takes a snapshot from anybody, as it takes an init, and this is none.
        if !initialized
            && visit.name().starts_with("PUT sys/storage/raft/snapshot")
            && !visit.name().contains("auto")
        {
            let answer = visit.send(&cluster.at(0).client().without_token(), &[]).await;
            assert!(answer.status == 400 && answer.errors().contains("no snapshot"), "{}", answer.text());
            continue;
        }
        for client in [cluster.at(0).client(), cluster.at(0).client().without_token()] {
            let answer = visit.send(&client, &[]).await;
            assert_eq!(answer.status, 503, "{}: {}", visit.name(), answer.text());
            assert_eq!(answer.json(), json!({ "errors": ["Vault is sealed"] }), "{}", visit.name());
        }
    }
    let node = cluster.at(0);
    assert_eq!(node.call("GET", "nosuch/path", None).await.unwrap().status, 503);
    assert_eq!(node.call("GET", "sys/leader", None).await.unwrap().status, 503);
    let outside = node.client().send("GET", "/nosuch", Bytes::new(), &[]).await.unwrap();
    assert_eq!((outside.status, outside.json()), (404, json!({ "errors": [] })));
}

#[tokio::test]
async fn an_uninitialised_node_answers_for_itself_only() {
    let cluster = Box::pin(one().start()).await.unwrap();
    let node = cluster.at(0);
    only_the_node_itself_is_answered_for(&cluster).await;
    let health = node.call("GET", "sys/health", None).await.unwrap();
    assert_eq!(health.status, 501);
    let body = health.json();
    assert_eq!(
        (&body["initialized"], &body["sealed"], &body["standby"]),
        (&json!(false), &json!(true), &json!(true))
    );
    assert_eq!(body["replication_performance_mode"], "unknown");
    assert_eq!(node.call("GET", "sys/health?uninitcode=222", None).await.unwrap().status, 222);
    assert_eq!(node.call("GET", "sys/init", None).await.unwrap().json(), json!({ "initialized": false }));
    let status = node.seal_status().await.unwrap();
    assert_eq!(
        (&status["initialized"], &status["sealed"], &status["t"]),
        (&json!(false), &json!(true), &json!(0))
    );
    assert_eq!(node.call("PUT", "sys/seal", None).await.unwrap().status, 204);
}

#[tokio::test]
async fn a_sealed_node_answers_for_itself_only() {
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    let node = cluster.at(0);
    only_the_node_itself_is_answered_for(&cluster).await;
    assert_eq!(node.call("GET", "sys/health", None).await.unwrap().status, 503);
    assert_eq!(node.call("GET", "sys/health?sealedcode=222", None).await.unwrap().status, 222);
    assert_eq!(node.call("GET", "sys/health?sealedcode=abc", None).await.unwrap().status, 400);
    assert_eq!(node.call("GET", "sys/init", None).await.unwrap().json(), json!({ "initialized": true }));
    let status = node.seal_status().await.unwrap();
    assert_eq!((&status["initialized"], &status["sealed"]), (&json!(true), &json!(true)));
    assert_eq!((&status["t"], &status["n"], &status["storage_type"]), (&json!(3), &json!(5), &json!("raft")));
    assert!(status.get("cluster_id").is_none());
    assert_eq!(node.call("PUT", "sys/seal", None).await.unwrap().status, 204);
}

#[tokio::test]
async fn health_and_leader_tell_the_roles_apart() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.at(cluster.others(leader)[0]);
    for (query, status) in
        [("", 429), ("?standbyok=true", 200), ("?standbyok", 200), ("?standbycode=222", 222)]
    {
        assert_eq!(
            standby.call("GET", &format!("sys/health{query}"), None).await.unwrap().status,
            status,
            "{query}"
        );
    }
    let body = standby.call("GET", "sys/health", None).await.unwrap().json();
    assert_eq!((&body["standby"], &body["sealed"]), (&json!(true), &json!(false)));
    let told = standby.call("GET", "sys/leader", None).await.unwrap().json();
    assert_eq!(told["is_self"], false);
    assert_eq!(told["leader_address"], cluster.at(leader).url());
    let own = cluster.at(leader).call("GET", "sys/leader", None).await.unwrap().json();
    assert_eq!((&own["is_self"], &own["ha_enabled"]), (&json!(true), &json!(true)));
    standby.health(&[429], Duration::from_secs(1)).await.unwrap();
}

//! The endpoints about the server itself, over a real state and without a network.

use serde_json::{Map, Value};

use super::{
    error::ApiError,
    request::Operation,
    response::{Answer, HealthState},
    test_replica::{TestNode, cluster, leader, request},
};

fn data(answer: Result<Answer, ApiError>) -> Map<String, Value> {
    match answer {
        Ok(Answer::Logical(logical)) => logical.data.unwrap_or_default(),
        other => panic!("{other:?}"),
    }
}

fn raw(answer: Result<Answer, ApiError>) -> Value {
    match answer {
        Ok(Answer::Raw(body)) => serde_json::from_str(&body).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn health(answer: Result<Answer, ApiError>) -> (HealthState, Option<u16>) {
    match answer {
        Ok(Answer::Health { state, code, .. }) => (state, code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ha_status_lists_the_members_on_every_node_and_the_leader_has_no_echo() {
    let (leader, standby) = cluster();
    for node in [&leader, &standby] {
        let shown = data(node.read("sys/ha-status").await);
        let nodes = shown["nodes"].as_array().unwrap();
        assert_eq!(
            (&nodes[0]["api_address"], &nodes[0]["active_node"]),
            (&"https://n1:8200".into(), &true.into())
        );
        assert_eq!(nodes[0]["last_echo"], Value::Null);
        assert_eq!(nodes[1]["last_echo"], "1970-01-01T00:00:01Z");
    }
}

#[tokio::test]
async fn levels_of_the_log_are_read_changed_and_taken_back() {
    let node = leader();
    let level = async |node: &TestNode| data(node.read("sys/loggers").await)["keystead"].clone();
    assert_eq!(level(&node).await, "info");
    assert_eq!(node.write("sys/loggers", r#"{"level":"debug"}"#).await, Ok(Answer::NoContent));
    assert_eq!(level(&node).await, "debug");
    assert_eq!(node.call(Operation::Delete, "sys/loggers/keystead", "{}").await, Ok(Answer::NoContent));
    assert_eq!(level(&node).await, "info");
    for (path, body) in [
        ("sys/loggers", "{}"),
        ("sys/loggers", r#"{"level":""}"#),
        ("sys/loggers", r#"{"level":"loud"}"#),
        ("sys/loggers", r#"{"level":["debug"]}"#),
        ("sys/loggers/nosuch", r#"{"level":"debug"}"#),
    ] {
        assert!(matches!(node.write(path, body).await, Err(ApiError::Invalid(_))), "{path} {body}");
    }
    assert_eq!(node.read("sys/loggers/nosuch").await, Err(ApiError::NotFound));
}

#[tokio::test]
async fn small_endpoints_answer_in_the_shape_that_clients_know() {
    let node = leader();
    let history = data(node.call(Operation::List, "sys/version-history", "{}").await);
    let version = history["keys"][0].as_str().unwrap().to_owned();
    assert_eq!(history["key_info"][version.as_str()]["previous_version"], Value::Null);
    assert!(matches!(node.read("sys/version-history").await, Err(ApiError::UnsupportedOperation { .. })));
    assert_eq!(data(node.read("sys/internal/ui/resultant-acl").await)["root"], true);
    assert!(!data(node.read("sys/host-info").await)["host"]["hostname"].as_str().unwrap().is_empty());
    assert_eq!(data(node.read("sys/replication/status").await)["dr"]["mode"], "disabled");
    let running = raw(node.read("sys/in-flight-req").await);
    let request = running.as_object().unwrap().values().next().unwrap();
    assert_eq!(request["request_path"], "/v1/sys/in-flight-req");
    assert_eq!(raw(node.read("sys/internal/ui/feature-flags").await)["feature_flags"].to_string(), "[]");
    assert_eq!(
        data(node.write("sys/tools/random/8", r#"{"format":"hex"}"#).await)["random_bytes"]
            .as_str()
            .unwrap()
            .len(),
        16
    );
    assert!(data(node.write("sys/tools/hash/sha2-512", r#"{"input":"YQ=="}"#).await).contains_key("sum"));
    assert!(matches!(node.read("sys/tools/random").await, Err(ApiError::UnsupportedOperation { .. })));
}

#[tokio::test]
async fn help_is_given_for_mounts_and_the_vaults_own_paths() {
    let node = leader();
    for (path, words) in [
        ("secret/", "subkeys/<path>"),
        ("secret/data/a", "subkeys/<path>"),
        ("sys/mounts", "/sys/mounts/*"),
        ("sys", "/sys/health"),
    ] {
        let help = raw(node.call(Operation::Help, path, "{}").await);
        assert!(help["help"].as_str().unwrap().contains(words), "{path}: {help}");
        assert!(help["openapi"]["paths"].is_object() && help.as_object().unwrap().contains_key("see_also"));
    }
    assert!(matches!(node.call(Operation::Help, "nosuch/x", "{}").await, Err(ApiError::NoRoute(_))));
    let mut anonymous = request(Operation::Help, "secret/", "{}");
    anonymous.token = None;
    assert_eq!(node.core.handle(anonymous).await.result, Err(ApiError::BadToken));
}

#[tokio::test]
async fn a_living_node_is_not_restarted_and_only_a_ready_one_gets_traffic() {
    let (leader, standby) = cluster();
    for (node, state) in [(&leader, HealthState::Active), (&standby, HealthState::Standby)] {
        assert_eq!(health(node.read("sys/livez").await), (state, Some(200)));
        assert_eq!(health(node.read("sys/readyz").await), (HealthState::Active, None));
    }
    let coded = standby.call(Operation::Read, "sys/livez", r#"{"standbycode":"299"}"#).await;
    assert_eq!(health(coded).1, Some(299));
    standby.replica.lose_leader();
    assert_eq!(health(standby.read("sys/readyz").await).0, HealthState::Sealed);
    assert_eq!(health(standby.read("sys/livez").await).1, Some(200));
    *leader.node.unsealed.lock() = None;
    assert_eq!(health(leader.read("sys/livez").await), (HealthState::Sealed, Some(200)));
    assert_eq!(health(leader.read("sys/readyz").await), (HealthState::Sealed, None));
    assert_eq!(leader.read("sys/in-flight-req").await, Err(ApiError::Sealed));
}

//! The vault as a whole, over a real state and without a network.

use std::{sync::Arc, time::Duration};

use keystead_raft::Shortage;
use keystead_storage::{RequestId, Txn};
use serde_json::Value;

use super::kv_tests::{kv1, sweep_all};
use super::{
    Core, Swept,
    error::ApiError,
    leader::Led,
    mounts::MountTable,
    node_ops::NodeOps,
    request::{Operation, fresh_id},
    response::{Answer, HealthState},
    router::{self, Handler, Place},
    test_replica::{Fault, ROOT, TestNode, cluster, leader, request},
    txn::{Transaction, kind, seal_record},
};
use crate::barrier::MountId;

#[tokio::test]
async fn a_mount_moves_with_everything_in_it() {
    let (node, standby) = cluster();
    node.write("secret/data/a", r#"{"data":{"p":1}}"#).await.unwrap();
    let moved = standby.write("sys/remount", r#"{"from":"secret/","to":"/team/kv"}"#).await;
    let Ok(Answer::Logical(moved)) = moved else { panic!("{moved:?}") };
    assert!(moved.duplicated);
    let id = moved.data.unwrap()["migration_id"].as_str().unwrap().to_owned();
    for node in [&node, &standby] {
        assert_eq!(node.data("team/kv/data/a").await["data"]["p"].to_string(), "1");
        assert!(matches!(node.read("secret/data/a").await, Err(ApiError::NoRoute(_))));
        let status = node.data(&format!("sys/remount/status/{id}")).await;
        assert_eq!(status["migration_info"]["status"], "success");
        assert_eq!(status["migration_info"]["target_mount"], "team/kv/");
    }
    assert_eq!(node.read("sys/remount/status/other").await, Err(ApiError::NotFound));
    for body in [
        "{}",
        r#"{"from":"team/kv"}"#,
        r#"{"from":"no","to":"x"}"#,
        r#"{"from":"team/kv","to":"sys/x"}"#,
        r#"{"from":"team/kv","to":"a//b"}"#,
        r#"{"from":"team/kv","to":"a/../b"}"#,
        r#"{"from":["x"],"to":5}"#,
    ] {
        assert!(matches!(node.write("sys/remount", body).await, Err(ApiError::Invalid(_))), "{body}");
    }
}

#[tokio::test]
async fn settings_of_a_mount_are_shown_as_they_are_in_force() {
    let node = leader();
    kv1(&node).await;
    assert_eq!(node.data("sys/mounts/kv1/tune").await["max_lease_ttl"].to_string(), "2764800");
    let tuned =
        r#"{"default_lease_ttl":"10m","max_lease_ttl":"1h","description":"d","listing_visibility":"unauth"}"#;
    assert_eq!(node.write("sys/mounts/kv1/tune", tuned).await, Ok(Answer::NoContent));
    assert_eq!(node.data("sys/mounts/kv1/tune").await["default_lease_ttl"].to_string(), "600");
    node.write("kv1/a", r#"{"a":1}"#).await.unwrap();
    let Ok(Answer::Logical(logical)) = node.read("kv1/a").await else { panic!() };
    assert_eq!(logical.lease_duration_s, 600);
    assert_eq!(
        node.read("sys/mounts/no/tune").await,
        Err(ApiError::invalid("cannot fetch sysview for path \"no/\""))
    );
    assert_eq!(node.data("sys/auth").await["token/"]["type"], "token");
    assert_eq!(node.data("sys/mounts/auth/token/tune").await["token_type"], "default-service");
    let mut anonymous = request(Operation::Read, "sys/internal/ui/mounts", "{}");
    anonymous.token = None;
    let Ok(Answer::Logical(shown)) = node.core.handle(anonymous).await.result else { panic!() };
    let shown = Value::Object(shown.data.unwrap());
    assert_eq!(shown["secret"].as_object().unwrap().keys().collect::<Vec<_>>(), ["kv1/"]);
    assert!(shown["secret"]["kv1/"].get("uuid").is_none());
}

#[tokio::test]
async fn a_disabled_mount_is_gone_at_once_and_its_successor_is_empty() {
    let node = leader();
    kv1(&node).await;
    for n in 0..250 {
        node.write(&format!("kv1/deep/{n}/x"), r#"{"a":1}"#).await.unwrap();
    }
    node.call(Operation::Delete, "sys/mounts/kv1", "{}").await.unwrap();
    assert_eq!(node.read("kv1/deep/1/x").await, Err(ApiError::NoRoute("kv1/deep/1/x".to_owned())));
    kv1(&node).await;
    assert_eq!(node.read("kv1/deep/1/x").await, Err(ApiError::NotFound));
    assert!(sweep_all(&node).await >= 3, "250 records and the table");
    assert_eq!(node.core.sweep_step().await, Ok(Swept::Nothing));
}

#[tokio::test]
async fn mounts_are_listed_read_and_refused_as_vault_does() {
    let node = leader();
    let mounts = node.data("sys/mounts").await;
    let names: Vec<&str> = mounts.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["cubbyhole/", "identity/", "secret/", "sys/"]);
    assert_eq!(mounts["secret/"]["options"]["version"], "2");
    assert_eq!(
        node.read("sys/mounts/nosuch").await,
        Err(ApiError::invalid("No secret engine mount at nosuch/"))
    );
    assert_eq!(
        node.write("sys/mounts/secret/x", r#"{"type":"kv"}"#).await,
        Err(ApiError::invalid("path is already in use at secret/"))
    );
    assert_eq!(
        node.write("sys/mounts/t", r#"{"type":"transit"}"#).await,
        Err(ApiError::invalid("plugin not found in the catalog: transit"))
    );
    assert_eq!(node.call(Operation::Delete, "sys/mounts/nosuch", "{}").await, Ok(Answer::NoContent));
    let one = node.data("sys/internal/ui/mounts/secret/app/db").await;
    assert_eq!((&one["path"], &one["options"]["version"]), (&"secret/".into(), &"2".into()));
    assert!(matches!(node.read("sys/internal/ui/mounts/nosuch").await, Err(ApiError::Forbidden(_))));
}

#[tokio::test]
async fn no_route_but_the_open_ones_answers_without_a_token() {
    let node = leader();
    for route in router::ROUTES.iter().chain(&router::MOUNTED) {
        for operation in route.operations {
            if matches!(route.access, router::Access::None | router::Access::Optional) {
                continue;
            }
            for token in [None, Some("hvs.wrong"), Some("a\u{0}b"), Some("")] {
                let mut request = request(*operation, &route.pattern.replace('*', "x/y"), "{}");
                request.token = token.map(|token| crate::secret::SecretString::new(token.to_owned()));
                let result = node.core.handle(request).await.result;
                assert_eq!(result, Err(ApiError::BadToken), "{} {operation:?}", route.pattern);
            }
        }
    }
    assert!(node.node.unsealed().is_some(), "an unauthenticated seal was refused");
}

#[tokio::test]
async fn every_route_answers_on_leader_standby_and_sealed_node() {
    let (leader, standby) = cluster();
    for route in router::ROUTES.iter().chain(&router::MOUNTED) {
        for operation in route.operations {
            if route.pattern == "sys/seal" {
                continue;
            }
            let path = route.pattern.replace('*', "nosuch/x");
            let there = leader.call(*operation, &path, "{}").await;
            let here = standby.call(*operation, &path, "{}").await;
            // These tell of the node, of now, or draw lots.
            let own = matches!(route.handler, Handler::InFlight | Handler::HostInfo | Handler::Random);
            if !route.raw && !own {
                assert_eq!(here, there, "{path} {operation:?}");
            }
            assert_ne!(there, Err(ApiError::NoLeader), "{path} {operation:?}");
        }
    }
    *standby.node.unsealed.lock() = None;
    for route in router::ROUTES.iter().chain(&router::MOUNTED) {
        for operation in route.operations {
            let path = route.pattern.replace('*', "nosuch/x");
            let sealed = standby.call(*operation, &path, "{}").await;
            let open = route.raw && route.pattern != "sys/leader";
            assert_eq!(sealed == Err(ApiError::Sealed), !open, "{path} {operation:?}: {sealed:?}");
        }
    }
}

#[tokio::test]
async fn sealing_needs_a_token_unless_it_is_sealed_already() {
    let node = leader();
    let mut anonymous = request(Operation::Update, "sys/seal", "{}");
    anonymous.token = None;
    assert_eq!(node.core.handle(anonymous).await.result, Err(ApiError::BadToken));
    assert_eq!(node.write("sys/seal", "{}").await, Ok(Answer::NoContent));
    assert!(node.node.unsealed().is_none());
    let mut anonymous = request(Operation::Update, "sys/seal", "{}");
    anonymous.token = None;
    assert_eq!(node.core.handle(anonymous).await.result, Ok(Answer::NoContent));
}

#[tokio::test]
async fn health_tells_the_state_and_obeys_its_parameters() {
    let (leader, standby) = cluster();
    let health =
        async |node: &TestNode, query: &str| match node.call(Operation::Read, "sys/health", query).await {
            Ok(Answer::Health { state, code, body }) => (state, code, body),
            other => panic!("{other:?}"),
        };
    assert_eq!(health(&leader, "{}").await.0, HealthState::Active);
    let (state, _, body) = health(&standby, "{}").await;
    assert_eq!(state, HealthState::Standby);
    assert!(body.starts_with(r#"{"initialized":true,"sealed":false,"standby":true,"#), "{body}");
    for flag in ["", "true", "1"] {
        let query = format!(r#"{{"standbyok":"{flag}"}}"#);
        assert_eq!(health(&standby, &query).await.0, HealthState::Active, "{flag:?}");
    }
    assert_eq!(health(&standby, r#"{"standbyok":"false"}"#).await.0, HealthState::Standby);
    assert_eq!(health(&standby, r#"{"standbycode":"299","activecode":"298"}"#).await.1, Some(299));
    for query in [
        r#"{"standbyok":"maybe"}"#,
        r#"{"activecode":"x"}"#,
        r#"{"sealedcode":""}"#,
        r#"{"uninitcode":"99"}"#,
    ] {
        assert_eq!(
            leader.call(Operation::Read, "sys/health", query).await,
            Err(ApiError::Malformed),
            "{query}"
        );
    }
    assert!(!body.contains("failure") && !body.contains("warnings"), "{body}");
    *standby.node.unsealed.lock() = None;
    let (state, _, body) = health(&standby, "{}").await;
    assert_eq!(state, HealthState::Sealed);
    assert!(body.contains(r#""standby":true"#) && body.contains(r#""replication_dr_mode":"unknown""#));
    *standby.node.initialized.lock() = false;
    assert_eq!(health(&standby, "{}").await.0, HealthState::Uninitialized);
}

#[tokio::test]
async fn without_room_reads_and_deletes_are_served_and_what_stores_is_refused() {
    let (leader, standby) = cluster();
    leader.write("secret/data/f", r#"{"data":{"n":1}}"#).await.unwrap();
    let shortage = |deletes| Shortage { node_id: "n3".to_owned(), free_bytes: 5, deletes };
    *leader.replica.shortage.lock() = Some(shortage(true));
    for node in [&leader, &standby] {
        match node.write("secret/data/f", r#"{"data":{"n":2}}"#).await {
            Err(ApiError::DiskFull(text)) => {
                assert!(text.contains("\"n3\" is almost full (5 bytes free)"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(node.data("secret/data/f").await["data"]["n"].to_string(), "1");
        node.write("secret/delete/f", r#"{"versions":[1]}"#).await.unwrap();
        assert!(matches!(
            node.write("secret/undelete/f", r#"{"versions":[1]}"#).await,
            Err(ApiError::DiskFull(_))
        ));
        node.write("secret/destroy/f", r#"{"versions":[7]}"#).await.unwrap();
        node.call(Operation::Delete, "secret/data/f", "{}").await.unwrap();
        *leader.replica.shortage.lock() = None;
        node.write("secret/undelete/f", r#"{"versions":[1]}"#).await.unwrap();
        *leader.replica.shortage.lock() = Some(shortage(true));
    }
    *leader.replica.shortage.lock() = Some(shortage(false));
    assert!(matches!(
        standby.call(Operation::Delete, "secret/metadata/f", "{}").await,
        Err(ApiError::DiskFull(_))
    ));
    *leader.replica.shortage.lock() = None;
    standby.call(Operation::Delete, "secret/metadata/f", "{}").await.unwrap();
}

#[tokio::test]
async fn a_standby_serves_reads_and_forwards_writes() {
    let (leader, standby) = cluster();
    standby.write("secret/data/f", r#"{"data":{"n":1}}"#).await.unwrap();
    assert_eq!(standby.replica.proposals.lock().len(), 0);
    assert_eq!(leader.replica.proposals.lock().len(), 1);
    assert_eq!(standby.data("secret/data/f").await["data"]["n"].to_string(), "1");
    let mut moved = request(Operation::Update, "secret/data/f", r#"{"data":{}}"#);
    moved.no_forward = true;
    moved.location = "/v1/secret/data/f?a=%2F".to_owned();
    assert_eq!(
        standby.core.handle(moved).await.result,
        Ok(Answer::Redirect { location: "https://leader:8200/v1/secret/data/f?a=%2F".to_owned() })
    );
    let mut served = request(Operation::Read, "secret/data/f", "{}");
    served.no_forward = true;
    assert!(matches!(standby.core.handle(served).await.result, Ok(Answer::Secret(_))));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_happens_once_and_is_answered_truly() {
    let (leader, standby) = cluster();
    let body = r#"{"data":{"n":1},"options":{"cas":0}}"#;
    // The forward is lost after the leader executed it: asked again, the leader remembers its answer. Run
    // twice, the check-and-set would have failed.
    standby.replica.forward_faults.lock().push_back(Fault::LandedUnknown);
    let answered = standby.write("secret/data/once", body).await;
    let Ok(Answer::Logical(logical)) = answered else { panic!("{answered:?}") };
    assert_eq!(logical.data.unwrap()["version"].to_string(), "1");
    // The same on the leader itself: it landed, and leadership was lost before anybody knew.
    leader.replica.propose_faults.lock().push_back(Fault::LandedUnknown);
    assert!(leader.write("secret/data/twice", body).await.is_ok());
    // It did not land: then it is executed by the next attempt.
    leader.replica.propose_faults.lock().push_back(Fault::LostUnknown);
    assert!(leader.write("secret/data/thrice", body).await.is_ok());
    for path in ["once", "twice", "thrice"] {
        let meta = leader.data(&format!("secret/metadata/{path}")).await;
        assert_eq!(meta["current_version"].to_string(), "1", "{path}");
    }
}

#[tokio::test]
async fn the_same_id_is_executed_once() {
    let node = leader();
    let id = fresh_id();
    let send = || {
        let mut request = request(Operation::Update, "secret/data/dup", r#"{"data":{"n":1}}"#);
        request.id = id;
        node.core.handle(request)
    };
    let (first, second) = tokio::join!(send(), send());
    assert_eq!(first, second);
    assert_eq!(first, send().await);
    let meta = node.data("secret/metadata/dup").await;
    assert_eq!(meta["current_version"].to_string(), "1");
}

#[tokio::test]
async fn an_outcome_that_nobody_knows_is_a_conflict_and_never_repeated() {
    let (leader, standby) = cluster();
    standby.replica.forward_faults.lock().push_back(Fault::LandedUnknown);
    *leader.node.unsealed.lock() = None;
    // The leader is sealed, so nothing landed and it says so; then the connection is lost, and stays lost.
    for _ in 0..200 {
        standby.replica.forward_faults.lock().push_back(Fault::LostUnknown);
    }
    let started = std::time::Instant::now();
    let result = standby.write("secret/data/lost", r#"{"data":{}}"#).await;
    assert_eq!(result, Err(ApiError::OutcomeUnknown));
    assert!(started.elapsed() >= Duration::from_millis(400), "it was asked for, not given up at once");
}

#[tokio::test]
async fn a_promise_that_nothing_was_done_is_not_given_when_an_attempt_before_may_have_done_it() {
    let (leader, standby) = cluster();
    // Executed, and the reply is lost; when the request comes again, the leader has been sealed.
    standby.replica.forward_faults.lock().push_back(Fault::LandedUnknown);
    for _ in 0..10_000 {
        standby.replica.forward_faults.lock().push_back(Fault::NotLeader);
    }
    let sealed = async {
        while leader.replica.proposals.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        *leader.node.unsealed.lock() = None;
        standby.replica.forward_faults.lock().clear();
    };
    let (result, ()) = tokio::join!(standby.write("secret/data/f", r#"{"data":{}}"#), sealed);
    assert_eq!(result, Err(ApiError::OutcomeUnknown));
}

#[tokio::test]
async fn an_attempt_that_comes_late_finds_that_its_request_was_answered() {
    let node = leader();
    for (operation, path, body) in [
        (Operation::Delete, "secret/data/late", "{}"),
        (Operation::Delete, "secret/metadata/late", "{}"),
        (Operation::Update, "secret/data/late", r#"{"data":{"n":2},"options":{"cas":1}}"#),
    ] {
        let mut second = request(operation, path, body);
        second.retry = true;
        let mut first = request(operation, path, body);
        first.id = second.id;
        let route = router::find(&first.path, operation);
        // There is nothing yet, so the second attempt, which comes first, changes nothing and says so.
        let Led::Answered(answered) = node.core.lead(Arc::new(second), &route).await else { panic!() };
        assert_eq!(answered.is_ok(), operation == Operation::Delete, "{answered:?}");
        // The client goes on, and then the network delivers the first.
        node.write("secret/data/late", r#"{"data":{"n":1}}"#).await.unwrap();
        let Led::Answered(late) = node.core.lead(Arc::new(first), &route).await else { panic!() };
        assert_eq!(late, answered);
        let found = node.data("secret/data/late").await;
        assert_eq!(found["data"]["n"].to_string(), "1", "{operation:?} {path} was done late");
        let remove = request(Operation::Delete, "secret/metadata/late", "{}");
        assert_eq!(node.core.handle(remove).await.result, Ok(Answer::NoContent));
    }
}

#[tokio::test]
async fn a_retry_from_before_the_window_is_unknown() {
    let node = leader();
    let retry = || {
        let mut again = request(Operation::Update, "secret/data/w", r#"{"data":{}}"#);
        again.retry = true;
        let route = router::find(&again.path, again.operation);
        let core = Arc::clone(&node.core);
        async move { core.lead(Arc::new(again), &route).await }
    };
    assert!(matches!(retry().await, Led::Answered(Ok(_))), "an id that was never applied runs");
    // The window holds 16 MiB of answers; these push the oldest out of it.
    for _ in 0..20 {
        let response = vec![0; 1 << 20].into();
        let filler = Txn { request_id: fresh_id(), response, ..Txn::default() };
        node.replica.shared.apply(filler);
    }
    assert!(matches!(retry().await, Led::Answered(Err(ApiError::OutcomeUnknown))));
}

#[tokio::test]
async fn a_refused_attempt_is_made_again_elsewhere() {
    let (leader, standby) = cluster();
    standby.replica.forward_faults.lock().push_back(Fault::NotLeader);
    leader.replica.propose_faults.lock().push_back(Fault::NotLeader);
    standby.write("secret/data/again", r#"{"data":{},"options":{"cas":0}}"#).await.unwrap();
}

#[tokio::test]
async fn without_a_leader_a_request_waits_and_is_then_told() {
    let (_leader, standby) = cluster();
    standby.replica.lose_leader();
    assert_eq!(standby.write("secret/data/a", r#"{"data":{}}"#).await, Err(ApiError::NoLeader));
    assert_eq!(standby.read("secret/data/a").await, Err(ApiError::NoLeader));
    let waiting = {
        let core = Arc::clone(&standby.core);
        tokio::spawn(async move {
            core.handle(request(Operation::Update, "secret/data/a", r#"{"data":{}}"#)).await.result
        })
    };
    // The task runs until it waits, because the runtime of the test has one thread.
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    standby.replica.lead(false);
    assert!(waiting.await.unwrap().is_ok(), "the election ended in time");
}

#[tokio::test]
async fn a_conflicting_write_runs_again_on_what_is_there_then() {
    let node = leader();
    node.write("secret/data/r", r#"{"data":{"n":1}}"#).await.unwrap();
    let unsealed = node.node.unsealed().unwrap();
    // Somebody else changes the token's or the mount's record in between: the write must not land unseen.
    let mut txn = Transaction::new(Arc::clone(&unsealed.barrier), node.node.replica().unwrap().state(), 0);
    let table = MountTable::load(&mut txn).unwrap().encode().unwrap();
    let same = seal_record(&unsealed.barrier, MountId::VAULT, &["mounts"], kind::MOUNTS, &table).unwrap();
    node.replica.propose_faults.lock().push_back(Fault::Race(vec![same]));
    node.replica.proposals.lock().clear();
    node.write("secret/data/r", r#"{"data":{"n":2}}"#).await.unwrap();
    assert_eq!(node.replica.proposals.lock().len(), 2);
    let meta = node.data("secret/metadata/r").await;
    assert_eq!(meta["current_version"].to_string(), "2");
}

#[tokio::test]
async fn writes_that_always_conflict_end_and_say_so() {
    let node = leader();
    let unsealed = node.node.unsealed().unwrap();
    let mut txn = Transaction::new(Arc::clone(&unsealed.barrier), node.node.replica().unwrap().state(), 0);
    let table = MountTable::load(&mut txn).unwrap().encode().unwrap();
    for _ in 0..100 {
        let same = seal_record(&unsealed.barrier, MountId::VAULT, &["mounts"], kind::MOUNTS, &table).unwrap();
        node.replica.propose_faults.lock().push_back(Fault::Race(vec![same]));
    }
    assert!(matches!(node.write("secret/data/r", r#"{"data":{}}"#).await, Err(ApiError::Busy(_))));
}

#[tokio::test]
async fn a_hot_key_is_written_without_conflicts() {
    let node = Arc::new(leader());
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let node = Arc::clone(&node);
        tasks.push(tokio::spawn(async move {
            node.write("secret/data/hot", r#"{"data":{"n":1}}"#).await.unwrap();
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(node.replica.proposals.lock().len(), 50);
    let meta = node.data("secret/metadata/hot").await;
    assert_eq!(meta["current_version"].to_string(), "50");
}

/// Fails with the feature `test-no-read-validation`, as it must.
#[tokio::test]
async fn reads_of_two_moments_are_not_one_answer() {
    let node = leader();
    let unsealed = node.node.unsealed().unwrap();
    let barrier = &unsealed.barrier;
    let mount = MountId([5; 16]);
    let put = |name: &str| seal_record(barrier, mount, &[name], kind::KV1, b"x").unwrap();
    let begin = || Transaction::new(Arc::clone(barrier), node.node.replica().unwrap().state(), 0);
    node.replica.shared.apply_writes(vec![put("a")]);

    let mut torn = begin();
    assert!(torn.get(mount, &["a"], kind::KV1).unwrap().is_some());
    node.replica.shared.apply_writes(vec![put("a"), put("b")]);
    assert!(torn.get(mount, &["b"], kind::KV1).unwrap().is_some());
    assert_eq!(torn.is_one_point_in_time(), Ok(false), "a is older than b, b newer than the start");

    let mut phantom = begin();
    assert_eq!(phantom.list(mount, &[]).unwrap().len(), 2);
    node.replica.shared.apply_writes(vec![put("c")]);
    assert_eq!(phantom.is_one_point_in_time(), Ok(false), "a name has appeared");

    let mut absent = begin();
    assert!(absent.get(mount, &["d"], kind::KV1).unwrap().is_none());
    node.replica.shared.apply_writes(vec![put("d")]);
    assert_eq!(absent.is_one_point_in_time(), Ok(false), "what was absent is there");
}

#[tokio::test]
async fn reads_of_one_moment_are_one_answer() {
    let node = leader();
    let unsealed = node.node.unsealed().unwrap();
    let mut txn = Transaction::new(Arc::clone(&unsealed.barrier), node.node.replica().unwrap().state(), 0);
    assert!(txn.get(MountId::VAULT, &["nosuch"], kind::KV1).unwrap().is_none());
    assert!(MountTable::load(&mut txn).is_ok());
    assert_eq!(txn.is_one_point_in_time(), Ok(true));
}

#[tokio::test]
async fn a_value_larger_than_an_entry_is_refused() {
    let node = leader();
    let body = format!(r#"{{"data":{{"x":"{}"}}}}"#, "a".repeat(2 << 20));
    assert!(matches!(node.write("secret/data/big", &body).await, Err(ApiError::TooLarge(_))));
    assert_eq!(node.read("secret/data/big").await, Err(ApiError::NotFound));
}

#[tokio::test]
async fn tokens_look_themselves_up() {
    let node = leader();
    let data = node.data("auth/token/lookup-self").await;
    assert_eq!((&data["id"], &data["path"]), (&ROOT.into(), &"auth/token/root".into()));
    assert_eq!(data["policies"][0], "root");
    let other = node.write("auth/token/lookup", r#"{"token":"hvs.nobody"}"#).await;
    assert_eq!(other, Err(ApiError::Forbidden("bad token".to_owned())));
    assert!(matches!(node.write("auth/token/lookup", "{}").await, Ok(Answer::Logical(_))));
}

#[tokio::test]
async fn unknown_paths_and_namespaces_are_told_apart() {
    let node = leader();
    assert_eq!(node.read("sys/nosuch").await, Err(ApiError::UnsupportedPath { authenticated: true }));
    assert_eq!(node.list("sys/mounts").await, Err(ApiError::UnsupportedPath { authenticated: true }));
    assert_eq!(node.list("nosuch").await, Err(ApiError::NoRoute("nosuch/".to_owned())));
    assert_eq!(
        node.call(Operation::Patch, "sys/mounts", "{}").await,
        Err(ApiError::UnsupportedOperation { authenticated: true })
    );
    assert_eq!(node.call(Operation::Delete, "sys/health", "{}").await, Err(ApiError::MethodNotAllowed));
    let mut elsewhere = request(Operation::Read, "secret/data/a", "{}");
    elsewhere.namespace = Some("team".to_owned());
    assert_eq!(node.core.handle(elsewhere).await.result, Err(ApiError::NoNamespace));
}

#[tokio::test]
async fn removing_a_peer_is_the_leaders_work() {
    let (leader, standby) = cluster();
    assert_eq!(
        standby.write("sys/storage/raft/remove-peer", r#"{"server_id":"n3"}"#).await,
        Ok(Answer::NoContent)
    );
    assert_eq!(*leader.node.removed.lock(), ["n3"]);
    assert_eq!(
        standby.write("sys/storage/raft/remove-peer", "{}").await,
        Err(ApiError::invalid("no server id provided"))
    );
}

#[tokio::test]
async fn nothing_readable_reaches_the_state() {
    let node = leader();
    node.write("secret/data/canary-name", r#"{"data":{"canary-key":"canary-value"}}"#).await.unwrap();
    for entry in node.replica.proposals.lock().iter() {
        let text = format!("{entry:?}");
        let bytes = bincode::encode_to_vec(entry, bincode::config::standard()).unwrap();
        let raw = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("canary") && !raw.contains("canary"));
        assert_ne!(entry.request_id, RequestId::NONE);
    }
}

#[tokio::test]
async fn garbage_from_a_peer_is_answered_and_harmless() {
    let node = leader();
    for frame in [&b""[..], b"\x01", b"\x02abc", &[0xff; 64]] {
        let reply = Core::handle_forwarded(&node.core, frame.to_vec().into(), "n9").await;
        assert!(!reply.is_empty());
    }
    let local = request(Operation::Read, "sys/health", "{}").encode().unwrap();
    let reply = node.core.handle_forwarded(local.into(), "n9").await;
    assert!(!reply.is_empty());
    assert_eq!(
        Place::Local,
        router::find(&request(Operation::Read, "sys/health", "{}").path, Operation::Read).place
    );
}

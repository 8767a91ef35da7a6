//! KV, both kinds of it, over a real state and without a network.

use std::time::Duration;

use serde_json::Value;

use super::{
    Swept,
    error::ApiError,
    request::Operation,
    response::Answer,
    test_replica::{TestNode, leader, logical},
};

fn missing(answer: Result<Answer, ApiError>) -> Value {
    match answer {
        Ok(Answer::Missing(logical)) => Value::Object(logical.data.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

pub(super) async fn kv1(node: &TestNode) {
    assert_eq!(node.write("sys/mounts/kv1", r#"{"type":"kv"}"#).await, Ok(Answer::NoContent));
}

pub(super) async fn sweep_all(node: &TestNode) -> usize {
    let mut steps = 0;
    while node.core.sweep_step().await.unwrap() == Swept::Some {
        steps += 1;
        assert!(steps < 100, "the sweep ends");
    }
    steps
}

#[tokio::test]
async fn kv1_stores_lists_and_deletes() {
    let node = leader();
    kv1(&node).await;
    assert_eq!(node.write("kv1/app/db", r#"{"password":"s3cr3t","n":2.50}"#).await, Ok(Answer::NoContent));
    node.write("kv1/app", r#"{"a":1}"#).await.unwrap();
    match node.read("kv1/app/db").await {
        Ok(Answer::Logical(logical)) => {
            assert_eq!(logical.lease_duration_s, 2_764_800);
            let data = Value::Object(logical.data.unwrap());
            assert_eq!(data.to_string(), r#"{"n":2.50,"password":"s3cr3t"}"#);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(node.list("kv1").await.unwrap(), ["app", "app/"]);
    assert_eq!(node.list("kv1/app").await.unwrap(), ["db"]);
    assert_eq!(node.write("kv1/x", "{}").await, Err(ApiError::invalid("missing data fields")));
    assert!(matches!(node.write("kv1/x/", r#"{"a":1}"#).await, Err(ApiError::Invalid(_))));
    for _ in 0..2 {
        assert_eq!(node.call(Operation::Delete, "kv1/app/db", "{}").await, Ok(Answer::NoContent));
    }
    assert_eq!(node.read("kv1/app/db").await, Err(ApiError::NotFound));
    assert_eq!(node.list("kv1/app").await, Err(ApiError::NotFound));
    assert_eq!(node.list("kv1").await.unwrap(), ["app"]);
}

#[tokio::test]
async fn a_secrets_own_ttl_is_its_lease() {
    let node = leader();
    kv1(&node).await;
    node.write("kv1/a", r#"{"ttl":"30m"}"#).await.unwrap();
    let Ok(Answer::Logical(logical)) = node.read("kv1/a").await else { panic!() };
    assert_eq!(logical.lease_duration_s, 1_800);
}

#[tokio::test]
async fn kv2_keeps_versions_and_forgets_the_oldest() {
    let node = leader();
    for n in 1..=12 {
        let written = node.write("secret/data/a", &format!(r#"{{"data":{{"n":{n}}}}}"#)).await;
        let Ok(Answer::Logical(logical)) = written else { panic!("{written:?}") };
        assert_eq!(logical.data.unwrap()["version"].to_string(), n.to_string());
    }
    assert_eq!(node.data("secret/data/a").await["data"]["n"].to_string(), "12");
    let old = node.call(Operation::Read, "secret/data/a", r#"{"version":"3"}"#).await.unwrap();
    assert_eq!(logical(old).data.unwrap()["data"]["n"].to_string(), "3");
    let gone = node.call(Operation::Read, "secret/data/a", r#"{"version":"2"}"#).await;
    assert_eq!(gone, Err(ApiError::NotFound));
    let meta = node.data("secret/metadata/a").await;
    assert_eq!(meta["oldest_version"].to_string(), "3");
    assert_eq!(meta["current_version"].to_string(), "12");
    assert_eq!(meta["versions"].as_object().unwrap().len(), 10);
    assert_eq!(meta["delete_version_after"], "0s");
    assert_eq!(meta["custom_metadata"], Value::Null);
}

#[tokio::test]
async fn kv2_checks_and_sets() {
    let node = leader();
    let put = |cas: &str| {
        let body = format!(r#"{{"data":{{"x":1}},"options":{{"cas":{cas}}}}}"#);
        let node = &node;
        async move { node.write("secret/data/c", &body).await }
    };
    let mismatch = Err(ApiError::invalid("check-and-set parameter did not match the current version"));
    assert_eq!(put("1").await, mismatch);
    assert!(put("0").await.is_ok());
    assert_eq!(put("0").await, mismatch);
    assert!(put("\"1\"").await.is_ok());
    assert_eq!(put("1.5").await, Err(ApiError::invalid("error parsing check-and-set parameter")));
    assert_eq!(put("-1").await, mismatch);
    node.write("secret/metadata/c", r#"{"cas_required":true}"#).await.unwrap();
    assert_eq!(
        node.write("secret/data/c", r#"{"data":{}}"#).await,
        Err(ApiError::invalid("check-and-set parameter required for this call"))
    );
    assert!(put("2").await.is_ok());
    assert_eq!(node.write("secret/data/c", "{}").await, Err(ApiError::invalid("no data provided")));
}

#[tokio::test]
async fn kv2_deletes_undeletes_and_destroys() {
    let node = leader();
    for n in 1..=3 {
        node.write("secret/data/d", &format!(r#"{{"data":{{"n":{n}}}}}"#)).await.unwrap();
    }
    node.call(Operation::Delete, "secret/data/d", "{}").await.unwrap();
    let gone = missing(node.read("secret/data/d").await);
    assert_eq!(gone["data"], Value::Null);
    assert_ne!(gone["metadata"]["deletion_time"], "");
    node.write("secret/undelete/d", r#"{"versions":["3"]}"#).await.unwrap();
    assert_eq!(node.data("secret/data/d").await["data"]["n"].to_string(), "3");
    node.write("secret/delete/d", r#"{"versions":"1,2"}"#).await.unwrap();
    node.write("secret/destroy/d", r#"{"versions":[2]}"#).await.unwrap();
    node.write("secret/undelete/d", r#"{"versions":[1,2]}"#).await.unwrap();
    let versions = node.data("secret/metadata/d").await["versions"].clone();
    assert_eq!(versions["1"]["deletion_time"], "");
    assert_eq!(versions["2"]["destroyed"], true);
    let destroyed = node.call(Operation::Read, "secret/data/d", r#"{"version":2}"#).await;
    assert_eq!(missing(destroyed)["metadata"]["destroyed"], true);
    for path in ["secret/destroy/d", "secret/delete/d"] {
        assert!(matches!(node.write(path, r#"{"versions":[]}"#).await, Err(ApiError::Invalid(_))));
    }
    assert_eq!(node.write("secret/undelete/no", r#"{"versions":[1]}"#).await, Ok(Answer::NoContent));
    node.call(Operation::Delete, "secret/metadata/d", "{}").await.unwrap();
    assert_eq!(node.read("secret/data/d").await, Err(ApiError::NotFound));
    assert_eq!(node.read("secret/metadata/d").await, Err(ApiError::NotFound));
    node.write("secret/data/d", r#"{"data":{"n":9},"options":{"cas":0}}"#).await.unwrap();
    assert_eq!(node.data("secret/data/d").await["metadata"]["version"].to_string(), "1");
}

#[tokio::test]
async fn kv2_versions_expire_by_cluster_time() {
    let node = leader();
    node.write("secret/config", r#"{"delete_version_after":"1h"}"#).await.unwrap();
    assert_eq!(node.data("secret/config").await["delete_version_after"], "1h0m0s");
    node.write("secret/data/e", r#"{"data":{"n":1}}"#).await.unwrap();
    node.replica.shared.advance(Duration::from_secs(3_590));
    assert!(matches!(node.read("secret/data/e").await, Ok(Answer::Secret(_))));
    node.replica.shared.advance(Duration::from_secs(20));
    missing(node.read("secret/data/e").await);
}

#[tokio::test]
async fn kv2_patches_and_shows_subkeys() {
    let node = leader();
    let patch = |data: &'static str| node.call(Operation::Patch, "secret/data/p", data);
    assert_eq!(patch(r#"{"data":{"a":1}}"#).await, Err(ApiError::NotFound));
    node.write("secret/data/p", r#"{"data":{"a":1,"b":{"c":2}}}"#).await.unwrap();
    patch(r#"{"data":{"a":null,"b":{"d":3}}}"#).await.unwrap();
    assert_eq!(node.data("secret/data/p").await["data"].to_string(), r#"{"b":{"c":2,"d":3}}"#);
    assert_eq!(node.data("secret/subkeys/p").await["subkeys"].to_string(), r#"{"b":{"c":null,"d":null}}"#);
}

#[tokio::test]
async fn a_merge_patch_of_metadata_changes_what_it_names_and_clears_what_is_null() {
    let node = leader();
    let patch = async |body: &str| node.call(Operation::Patch, "secret/metadata/m", body).await;
    assert_eq!(patch(r#"{"max_versions":3}"#).await, Err(ApiError::NotFound));
    let body = r#"{"max_versions":5,"cas_required":true,"delete_version_after":"1h","custom_metadata":{"a":"1","b":"2"}}"#;
    assert_eq!(node.write("secret/metadata/m", body).await, Ok(Answer::NoContent));
    patch(r#"{"custom_metadata":{"a":null,"c":3}}"#).await.unwrap();
    let meta = node.data("secret/metadata/m").await;
    assert_eq!(meta["custom_metadata"].to_string(), r#"{"b":"2","c":"3"}"#);
    assert_eq!(
        (meta["max_versions"].to_string(), &meta["delete_version_after"]),
        ("5".to_owned(), &"1h0m0s".into())
    );
    patch(r#"{"custom_metadata":null,"max_versions":null,"cas_required":null,"delete_version_after":null}"#)
        .await
        .unwrap();
    let meta = node.data("secret/metadata/m").await;
    assert_eq!(meta["custom_metadata"], Value::Null);
    assert_eq!(
        (meta["max_versions"].to_string(), meta["cas_required"].clone()),
        ("0".to_owned(), false.into())
    );
    assert_eq!(meta["delete_version_after"], "0s");
    for custom in [r#"{"x":{"y":1}}"#, r#"{"":"v"}"#, r#""text""#] {
        let body = format!(r#"{{"custom_metadata":{custom}}}"#);
        assert!(
            matches!(node.write("secret/metadata/m", &body).await, Err(ApiError::Invalid(_))),
            "{custom}"
        );
    }
}

#[tokio::test]
async fn a_mounts_configuration_binds_its_keys() {
    let node = leader();
    let config = r#"{"max_versions":2,"cas_required":true,"delete_version_after":"30m"}"#;
    assert_eq!(node.write("secret/config", config).await, Ok(Answer::NoContent));
    assert_eq!(
        node.data("secret/config").await.to_string(),
        r#"{"cas_required":true,"delete_version_after":"30m0s","max_versions":2}"#
    );
    assert!(matches!(node.write("secret/data/a", r#"{"data":{}}"#).await, Err(ApiError::Invalid(_))));
    let Ok(Answer::Logical(warned)) =
        node.write("secret/metadata/a", r#"{"cas_required":false,"delete_version_after":"2h"}"#).await
    else {
        panic!()
    };
    assert!(warned.warnings[0].contains("mandated by backend config"), "{:?}", warned.warnings);
    for n in 0..3 {
        node.write("secret/data/a", &format!(r#"{{"data":{{}},"options":{{"cas":{n}}}}}"#)).await.unwrap();
    }
    let meta = node.data("secret/metadata/a").await;
    assert_eq!(meta["oldest_version"].to_string(), "2");
    // The shorter of the two times counts.
    node.replica.shared.advance(Duration::from_secs(31 * 60));
    assert_eq!(missing(node.read("secret/data/a").await)["data"], Value::Null);
}

#[tokio::test]
async fn a_mount_without_versions_gets_them_in_place() {
    let node = leader();
    kv1(&node).await;
    for path in ["a", "dir/b", "dir/c", "metadata/odd", "never"] {
        node.write(&format!("kv1/{path}"), &format!(r#"{{"p":"{path}"}}"#)).await.unwrap();
    }
    let uuid = node.data("sys/mounts/kv1").await["uuid"].clone();
    assert_eq!(
        node.write("sys/mounts/kv1/tune", r#"{"options":{"version":"2"}}"#).await,
        Ok(Answer::NoContent)
    );
    assert_eq!(
        node.write("sys/mounts/kv1/tune", r#"{"options":{"version":"2"}}"#).await,
        Ok(Answer::NoContent)
    );
    assert!(node.write("sys/mounts/kv1/tune", r#"{"options":{"version":"1"}}"#).await.is_err());
    let mount = node.data("sys/mounts/kv1").await;
    assert_eq!((&mount["uuid"], &mount["options"]["version"]), (&uuid, &"2".into()));

    assert_eq!(node.list("kv1/metadata").await.unwrap(), ["a", "dir/", "metadata/", "never"]);
    assert_eq!(node.list("kv1/metadata/dir").await.unwrap(), ["b", "c"]);
    let b = node.data("kv1/data/dir/b").await;
    assert_eq!((&b["data"]["p"], b["metadata"]["version"].to_string()), (&"dir/b".into(), "1".to_owned()));
    assert_eq!(node.data("kv1/data/metadata/odd").await["data"]["p"], "metadata/odd");
    assert_eq!(node.data("kv1/metadata/a").await["current_version"].to_string(), "1");
    assert!(node.write("kv1/data/a", r#"{"data":{},"options":{"cas":0}}"#).await.is_err());

    node.write("kv1/data/a", r#"{"data":{"p":"new"},"options":{"cas":1}}"#).await.unwrap();
    assert_eq!(node.data("kv1/data/a").await["data"]["p"], "new");
    let first = node.call(Operation::Read, "kv1/data/a", r#"{"version":"1"}"#).await.unwrap();
    assert_eq!(logical(first).data.unwrap()["data"]["p"], "a");

    node.call(Operation::Delete, "kv1/data/dir/b", "{}").await.unwrap();
    assert_eq!(missing(node.read("kv1/data/dir/b").await)["data"], Value::Null);
    node.write("kv1/undelete/dir/b", r#"{"versions":[1]}"#).await.unwrap();
    assert_eq!(node.data("kv1/data/dir/b").await["data"]["p"], "dir/b");
    node.write("kv1/destroy/dir/b", r#"{"versions":[1]}"#).await.unwrap();
    assert_eq!(missing(node.read("kv1/data/dir/b").await)["metadata"]["destroyed"], true);

    // What is deleted for good does not come back as what it was before the upgrade.
    for key in ["dir/c", "never"] {
        node.call(Operation::Delete, &format!("kv1/metadata/{key}"), "{}").await.unwrap();
        assert_eq!(node.read(&format!("kv1/data/{key}")).await, Err(ApiError::NotFound));
    }
    let made = node.write("kv1/data/never", r#"{"data":{"p":"again"},"options":{"cas":0}}"#).await;
    assert!(made.is_ok(), "{made:?}");
    for n in 1..=11 {
        node.write("kv1/data/a", &format!(r#"{{"data":{{"n":{n}}}}}"#)).await.unwrap();
    }
    let trimmed = node.call(Operation::Read, "kv1/data/a", r#"{"version":"1"}"#).await;
    assert_eq!(trimmed, Err(ApiError::NotFound));

    node.call(Operation::Delete, "sys/mounts/kv1", "{}").await.unwrap();
    sweep_all(&node).await;
    node.write("sys/mounts/kv1", r#"{"type":"kv-v2"}"#).await.unwrap();
    assert_eq!(node.list("kv1/metadata").await, Err(ApiError::NotFound));
}

#[tokio::test]
async fn kv2_lists_folders_and_tells_v1_clients_where_to_go() {
    let node = leader();
    for path in ["a", "a/b", "a-b", "z/1", "z/2"] {
        node.write(&format!("secret/data/{path}"), r#"{"data":{}}"#).await.unwrap();
    }
    assert_eq!(node.list("secret/metadata").await.unwrap(), ["a", "a-b", "a/", "z/"]);
    assert_eq!(node.list("secret/metadata/z").await.unwrap(), ["1", "2"]);
    assert_eq!(node.list("secret/metadata/none").await, Err(ApiError::NotFound));
    assert_eq!(node.read("secret/data/").await, Err(ApiError::NotFound));
    for path in ["secret/foo", "secret", "secret/"] {
        let Ok(Answer::Missing(logical)) = node.read(path).await else { panic!("{path}") };
        assert!(logical.warnings[0].starts_with("Invalid path for a versioned"));
    }
}

#[tokio::test]
async fn a_long_history_is_unlinked_at_once_and_swept_later() {
    let node = leader();
    node.write("secret/metadata/h", r#"{"max_versions":300}"#).await.unwrap();
    for _ in 0..250 {
        node.write("secret/data/h", r#"{"data":{"x":1}}"#).await.unwrap();
    }
    node.call(Operation::Delete, "secret/metadata/h", "{}").await.unwrap();
    assert_eq!(node.read("secret/data/h").await, Err(ApiError::NotFound));
    assert_eq!(sweep_all(&node).await, 2);
    node.call(Operation::Delete, "sys/mounts/secret", "{}").await.unwrap();
    // Nothing but the table's own tidying is left of a mount whose versions were swept.
    assert_eq!(sweep_all(&node).await, 1);
}

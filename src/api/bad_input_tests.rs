//! What clients send by mistake or on purpose: each is answered with a status that says whose mistake it was, and
//! the node goes on.

use super::tests::Server;
use crate::core::test_replica::{ROOT, leader};

fn server() -> Server {
    Server::start(leader(), None)
}

#[tokio::test]
async fn wrong_types_are_named_by_their_field_and_never_repeated() {
    let server = server();
    for (method, target, body) in [
        ("PUT", "/v1/secret/data/a", r#"{"data":"hunter2"}"#),
        ("PUT", "/v1/secret/data/a", r#"{"data":["hunter2"]}"#),
        ("PUT", "/v1/secret/data/a", r#"{"data":{},"options":"hunter2"}"#),
        ("PUT", "/v1/secret/data/a", r#"{"data":{},"options":{"cas":"hunter2"}}"#),
        ("PUT", "/v1/secret/data/a", r#"{"data":{},"options":{"cas":[1]}}"#),
        ("PUT", "/v1/secret/config", r#"{"max_versions":"hunter2"}"#),
        ("PUT", "/v1/secret/config", r#"{"max_versions":-1}"#),
        ("PUT", "/v1/secret/config", r#"{"max_versions":1.5}"#),
        ("PUT", "/v1/secret/config", r#"{"max_versions":99999999999999999999}"#),
        ("PUT", "/v1/secret/config", r#"{"cas_required":"hunter2"}"#),
        ("PUT", "/v1/secret/config", r#"{"delete_version_after":"hunter2"}"#),
        ("PUT", "/v1/secret/config", r#"{"delete_version_after":{"s":1}}"#),
        ("PUT", "/v1/secret/metadata/a", r#"{"custom_metadata":["hunter2"]}"#),
        ("PUT", "/v1/secret/metadata/a", r#"{"custom_metadata":{"a":{"b":"hunter2"}}}"#),
        ("PUT", "/v1/secret/destroy/a", r#"{"versions":["hunter2"]}"#),
        ("PUT", "/v1/secret/destroy/a", r#"{"versions":{"1":1}}"#),
        ("GET", "/v1/secret/data/a?version=hunter2", ""),
        ("GET", "/v1/secret/data/a?version=1&version=2", ""),
        ("GET", "/v1/secret/subkeys/a?depth=hunter2", ""),
        ("PUT", "/v1/sys/mounts/x", r#"{"type":["hunter2"]}"#),
        ("PUT", "/v1/sys/mounts/x", r#"{"type":"kv","config":"hunter2"}"#),
        ("PUT", "/v1/sys/mounts/x", r#"{"type":"kv","options":{"version":"hunter2"}}"#),
        ("PUT", "/v1/sys/mounts/x", r#"{"type":"kv","config":{"max_lease_ttl":"hunter2"}}"#),
        ("PUT", "/v1/sys/mounts/x", r#"{"type":"kv","config":{"max_lease_ttl":-5}}"#),
        ("PUT", "/v1/sys/mounts/secret/tune", r#"{"max_lease_ttl":"hunter2"}"#),
        ("PUT", "/v1/sys/mounts/secret/tune", r#"{"options":"hunter2"}"#),
        ("PUT", "/v1/sys/remount", r#"{"from":{"a":"hunter2"},"to":"b"}"#),
        ("PUT", "/v1/sys/unseal", r#"{"key":{"a":"hunter2"}}"#),
        ("PUT", "/v1/sys/unseal", r#"{"key":"00","reset":"hunter2"}"#),
        ("PUT", "/v1/sys/init", r#"{"secret_shares":"hunter2"}"#),
        ("PUT", "/v1/sys/storage/raft/join", r#"{"leader_api_addr":["hunter2"]}"#),
        ("PUT", "/v1/sys/storage/raft/remove-peer", r#"{"server_id":["hunter2"]}"#),
        ("PUT", "/v1/sys/tools/random", r#"{"bytes":"hunter2"}"#),
        ("PUT", "/v1/sys/tools/hash", r#"{"input":"hunter2!"}"#),
    ] {
        let answer = server.call(method, target, body).await;
        assert_eq!(answer.status, 400, "{method} {target} {body}: {}", answer.body);
        assert!(answer.body.starts_with("{\"errors\":["), "{}", answer.body);
        assert!(!answer.body.contains("hunter2"), "{method} {target} {body}: {}", answer.body);
    }
    assert_eq!(server.call("GET", "/v1/sys/health", "").await.status, 200);
}

#[tokio::test]
async fn weak_types_mean_what_they_mean_in_vault() {
    let server = server();
    for (target, body, status) in [
        ("/v1/secret/config", r#"{"max_versions":"7","cas_required":"0","delete_version_after":3600}"#, 204),
        ("/v1/secret/data/a", r#"{"data":null}"#, 200),
        ("/v1/secret/data/a", r#"{"data":{}}"#, 200),
        ("/v1/secret/destroy/a", r#"{"versions":"1"}"#, 204),
        ("/v1/secret/destroy/a", r#"{"versions":1}"#, 204),
        ("/v1/secret/metadata/a", r#"{"custom_metadata":{"a":1,"b":true}}"#, 204),
        ("/v1/sys/mounts/x", r#"{"type":"kv","description":5,"local":"true"}"#, 204),
    ] {
        let answer = server.call("POST", target, body).await;
        assert_eq!(answer.status, status, "{target} {body}: {}", answer.body);
    }
}

#[tokio::test]
async fn bodies_that_are_no_object_are_refused_or_mean_nothing() {
    let server = server();
    let put = async |kind: &str, body: &[u8]| {
        let headers = format!("X-Vault-Token: {ROOT}\r\n{kind}");
        server.send("PUT", "/v1/secret/data/a", &headers, body).await
    };
    let json = "Content-Type: application/json\r\n";
    for body in [
        &b"{"[..],
        b"[1]",
        b"5",
        b"\"x\"",
        b"true",
        b"{\"data\":{},}",
        b"{data:{}}",
        b"{\"data\":{\"a\":NaN}}",
        b"{\"data\":{}}trailing",
        b"{\"data\":{}}{\"data\":{}}",
        b"\xef\xbb\xbf{\"data\":{}}",
        b"{\"data\":{\"a\":\"\xff\"}}",
        b"{\"data\":{\"a\":\"\x01\"}}",
        b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b--",
        b"\x1f\x8b\x08\x00",
    ] {
        let answer = put(json, body).await;
        assert_eq!(answer.status, 400, "{body:?}: {}", answer.body);
        assert!(answer.body.contains("failed to decode JSON input"), "{}", answer.body);
    }
    for body in [&b""[..], b"  \n", b"null", b"{}"] {
        let answer = put(json, body).await;
        assert_eq!(answer.body, "{\"errors\":[\"no data provided\"]}\n", "{body:?}");
    }
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    assert_eq!(put(form, b"{\"data\":{\"a\":1}}").await.status, 200, "curl -d sends JSON as a form");
    assert_eq!(put(form, b"data=x").await.status, 400);
    assert_eq!(put(form, b"a=%zz").await.status, 400);
}

#[tokio::test]
async fn of_a_key_given_twice_the_last_counts() {
    let server = server();
    let body = r#"{"data":{"a":1,"A":2,"a":3},"data":{"b":1,"b":2}}"#;
    assert_eq!(server.call("PUT", "/v1/secret/data/a", body).await.status, 200);
    let read = server.call("GET", "/v1/secret/data/a", "").await;
    assert!(read.body.contains(r#""data":{"data":{"b":2},"#), "{}", read.body);
}

#[tokio::test]
async fn parameters_that_nobody_reads_are_warned_of() {
    let server = server();
    server.call("PUT", "/v1/secret/data/a", r#"{"data":{"a":1}}"#).await;
    let warning =
        |names: &str| format!("\"warnings\":[\"Endpoint ignored these unrecognized parameters: [{names}]\"]");
    for (method, target, body, names) in [
        ("GET", "/v1/sys/mounts?b=1&a=2", "", "a b"),
        ("GET", "/v1/sys/mounts/secret?x", "", "x"),
        ("GET", "/v1/auth/token/lookup-self?x=1", "", "x"),
        ("GET", "/v1/sys/key-status?x=1", "", "x"),
        ("GET", "/v1/secret/data/a?versoin=1", "", "versoin"),
        ("GET", "/v1/secret/metadata/a?x=1", "", "x"),
        ("GET", "/v1/secret/subkeys/a?x=1", "", "x"),
        ("PUT", "/v1/secret/data/a", r#"{"data":{},"otpions":{}}"#, "otpions"),
        ("PUT", "/v1/secret/config", r#"{"max_version":5}"#, "max_version"),
        ("PUT", "/v1/sys/tools/random", r#"{"byte":5}"#, "byte"),
    ] {
        let answer = server.call(method, target, body).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.body);
        assert!(answer.body.contains(&warning(names)), "{target}: {}", answer.body);
    }
    let quiet = server.call("GET", "/v1/secret/data/a?version=1", "").await;
    assert!(quiet.body.contains("\"warnings\":null"), "{}", quiet.body);
    let mounted = server.call("POST", "/v1/sys/mounts/y", r#"{"type":"kv","foo":1}"#).await;
    assert_eq!(mounted.status, 204, "this endpoint does not look");
}

#[tokio::test]
async fn wrong_methods_are_refused_everywhere() {
    let server = server();
    for (method, target) in [
        ("DELETE", "/v1/sys/mounts"),
        ("PUT", "/v1/sys/key-status"),
        ("POST", "/v1/sys/ha-status"),
        ("GET", "/v1/sys/remount"),
        ("GET", "/v1/sys/tools/hash"),
        ("GET", "/v1/sys/version-history"),
        ("DELETE", "/v1/secret/config"),
        ("GET", "/v1/secret/destroy/a"),
        ("PUT", "/v1/secret/subkeys/a"),
        ("LIST", "/v1/secret/data/a"),
        ("DELETE", "/v1/sys/livez"),
        ("PUT", "/v1/sys/internal/ui/mounts"),
    ] {
        let answer = server.call(method, target, "{}").await;
        assert!(matches!(answer.status, 405 | 404), "{method} {target}: {} {}", answer.status, answer.body);
        if target != "/v1/secret/data/a" {
            assert_eq!(answer.status, 405, "{method} {target}: {}", answer.body);
        }
    }
}

#[tokio::test]
async fn paths_and_values_out_of_all_proportion_are_refused() {
    let server = server();
    let long = format!("/v1/secret/data/{}", "a".repeat(5_000));
    let deep = format!("/v1/secret/data/{}", "a/".repeat(100));
    for target in [long.as_str(), deep.as_str()] {
        assert_eq!(server.call("GET", target, "").await.status, 400);
    }
    let many = format!("/v1/secret/data/a?{}", "x=1&".repeat(11_000));
    assert_eq!(server.call("GET", &many, "").await.status, 400);
    let large = format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(2 << 20));
    assert_eq!(server.call("PUT", "/v1/secret/data/a", &large).await.status, 413);
    let number = format!(r#"{{"data":{{"a":{}}}}}"#, "9".repeat(5_000));
    assert_eq!(server.call("PUT", "/v1/secret/data/a", &number).await.status, 400);
    let versions = format!(r#"{{"versions":[{}1]}}"#, "1,".repeat(50_000));
    assert_eq!(server.call("PUT", "/v1/secret/delete/a", &versions).await.status, 204);
    assert_eq!(server.call("GET", "/v1/sys/health", "").await.status, 200);
}

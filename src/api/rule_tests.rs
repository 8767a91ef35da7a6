//! The rules of listeners, over real sockets.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
};

use super::{tests::Server, *};
use crate::{
    config::{IpRange, ListenerKeyHolders, ListenerMetrics, StatusHeaders, XForwardedFor},
    core::test_replica::{ROOT, leader},
};

fn serving(rules: ListenerRules) -> Server {
    Server::with_rules(leader(), None, rules)
}

#[tokio::test]
async fn a_body_longer_than_the_listeners_limit_is_refused() {
    let server = serving(ListenerRules { max_body_bytes: 100, ..ListenerRules::default() });
    let put = async |length: usize| {
        let body = format!(r#"{{"data":{{"a":"{}"}}}}"#, "x".repeat(length));
        server.call("PUT", "/v1/secret/data/a", &body).await.status
    };
    assert_eq!((put(10).await, put(100).await), (200, 413));
}

#[tokio::test]
async fn a_listener_may_demand_the_request_header() {
    let server = serving(ListenerRules { require_request_header: true, ..ListenerRules::default() });
    let ask = async |headers: &str| server.send("GET", "/v1/sys/health", headers, b"").await.status;
    assert_eq!(ask("").await, 412);
    assert_eq!(ask("X-Vault-Request: false\r\n").await, 412);
    assert_eq!(ask("X-Vault-Request: true\r\n").await, 200);
}

#[tokio::test]
async fn configured_headers_are_on_every_answer_that_they_are_for() {
    let group = |status: &str, name: &str, value: &str| StatusHeaders {
        status: status.to_owned(),
        headers: vec![(name.to_owned(), vec![value.to_owned()])],
    };
    let mut headers = ResponseHeaders::read(&[
        group("default", "Strict-Transport-Security", "max-age=1"),
        group("4xx", "X-Refused", "yes"),
    ])
    .unwrap();
    headers.add("x-vault-raft-node-id", "n7");
    let server = serving(ListenerRules { headers, ..ListenerRules::default() });
    let good = server.send("GET", "/v1/sys/health", "", b"").await;
    assert!(good.head.contains("strict-transport-security: max-age=1\r\n"), "{}", good.head);
    assert!(good.head.contains("x-vault-raft-node-id: n7") && !good.head.contains("x-refused"));
    let bad = server.send("GET", "/v1/secret/data/a", "", b"").await;
    assert!(
        bad.head.contains("x-refused: yes") && bad.head.contains("x-vault-raft-node-id: n7"),
        "{}",
        bad.head
    );
}

#[tokio::test]
async fn a_forwarded_address_is_the_clients_and_a_missing_one_is_refused() {
    let x_forwarded_for = XForwardedFor {
        authorized: vec![IpRange::parse("127.0.0.0/8").unwrap()],
        ..XForwardedFor::default()
    };
    let server = serving(ListenerRules { x_forwarded_for, ..ListenerRules::default() });
    let ask = async |headers: &str| {
        let headers = format!("X-Vault-Token: {ROOT}\r\n{headers}");
        server.send("GET", "/v1/sys/in-flight-req", &headers, b"").await
    };
    assert_eq!(ask("").await.status, 400);
    let seen = ask("X-Forwarded-For: 192.0.2.7\r\n").await;
    assert!(seen.body.contains("\"client_remote_address\":\"192.0.2.7:"), "{}", seen.body);
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_told_and_a_write_is_not_called_failed() {
    let server =
        serving(ListenerRules { max_request: Duration::from_millis(20), ..ListenerRules::default() });
    server.node.replica.lose_leader();
    assert_eq!(server.call("GET", "/v1/secret/data/a", "").await.status, 503);
    let write = server.call("PUT", "/v1/secret/data/a", r#"{"data":{}}"#).await;
    assert_eq!(write.status, 409, "{}", write.body);
    assert_eq!(server.send("GET", "/v1/sys/health", "", b"").await.status, 429);
}

#[tokio::test]
async fn slow_headers_and_bodies_are_not_waited_for() {
    let timeouts = HttpTimeouts {
        read_header: Duration::from_millis(100),
        read: Duration::from_millis(100),
        idle: Duration::from_secs(60),
        ..HttpTimeouts::default()
    };
    let server = serving(ListenerRules { timeouts, ..ListenerRules::default() });
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost").await.unwrap();
    let mut rest = Vec::new();
    // The server closes, whether with words or without.
    timeout(Duration::from_secs(10), slow.read_to_end(&mut rest)).await.unwrap().ok();
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    let head = format!(
        "PUT /v1/secret/data/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Vault-Token: {ROOT}\r\nContent-Length: 50\r\n\r\n{{"
    );
    let answer = timeout(Duration::from_secs(10), server.raw(head.as_bytes())).await.unwrap();
    assert!(answer.body.contains("not received in time"), "{}", answer.body);
}

#[tokio::test]
async fn metrics_are_open_only_on_the_listener_that_opens_them() {
    let with = |metrics| serving(ListenerRules { metrics, ..ListenerRules::default() });
    let server = with(ListenerMetrics { unauthenticated: true, ..ListenerMetrics::default() });
    for path in ["/metrics", "/v1/sys/metrics?format=prometheus"] {
        assert_eq!(server.send("GET", path, "", b"").await.body, "# metrics\n");
    }
    *server.node.node.unsealed.lock() = None;
    assert_eq!(server.send("GET", "/metrics", "", b"").await.status, 200);
    assert_eq!(serving(ListenerRules::default()).send("GET", "/metrics", "", b"").await.status, 403);
    let none = with(ListenerMetrics { disallowed: true, ..ListenerMetrics::default() });
    assert_eq!(none.call("GET", "/v1/sys/metrics", "").await.status, 403);
    assert_eq!(none.call("GET", "/v1/sys/mounts", "").await.status, 200);
    let only = with(ListenerMetrics { only: true, ..ListenerMetrics::default() });
    assert_eq!(only.call("GET", "/metrics", "").await.status, 200);
    for path in ["/v1/sys/mounts", "/v1/sys/health", "/health", "/v1/secret/data/a"] {
        assert_eq!(only.call("GET", path, "").await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_listener_may_want_a_token_of_key_holders() {
    let with = |key_holders| serving(ListenerRules { key_holders, ..ListenerRules::default() });
    let all = ListenerKeyHolders { no_rekey: true, no_generate_root: true, no_unseal_reset: true };
    let server = with(all);
    for path in ["/v1/sys/rekey/init", "/v1/sys/rekey-recovery-key/init", "/v1/sys/generate-root/attempt"] {
        let refused = server.send("GET", path, "", b"").await;
        assert!(refused.status == 403 && refused.body.contains("this listener"), "{path}: {}", refused.body);
        assert_ne!(server.call("GET", path, "").await.status, 403, "{path} with a token");
        let elsewhere = serving(ListenerRules::default()).send("GET", path, "", b"").await;
        assert_ne!(elsewhere.status, 403, "{path} where the listener does not care");
    }
}

#[tokio::test]
async fn a_socket_in_the_file_system_serves_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let node = leader();
    let (stop, stopped) = watch::channel(false);
    let task =
        tokio::spawn(serve(Socket::Unix(listener), None, Arc::clone(&node.core), Arc::default(), stopped));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stop.send_replace(true);
    assert_eq!(task.await.unwrap().unwrap(), Drained::Completely);
}

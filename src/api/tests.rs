//! The API over real sockets, spoken to byte by byte.

use std::{io::Write as _, net::TcpListener, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};

use super::*;
use crate::core::test_replica::{ROOT, TestNode, cluster, leader};

pub(super) struct Server {
    pub address: SocketAddr,
    pub node: TestNode,
    stop: watch::Sender<bool>,
    task: JoinHandle<io::Result<Drained>>,
}

pub(super) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Server {
    pub fn start(node: TestNode, tls: Option<TlsSource>) -> Self {
        Self::with_rules(node, tls, ListenerRules::default())
    }

    pub fn with_rules(node: TestNode, tls: Option<TlsSource>, rules: ListenerRules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let task =
            tokio::spawn(serve(Socket::Tcp(listener), tls, Arc::clone(&node.core), rules.into(), stopped));
        Self { address, node, stop, task }
    }

    /// Sends bytes and reads until the server closes.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received).await;
        let text = String::from_utf8(received).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub async fn send(&self, method: &str, target: &str, headers: &str, body: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        write!(
            bytes,
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        )
        .unwrap();
        bytes.extend_from_slice(body);
        self.raw(&bytes).await
    }

    /// With the root token.
    pub async fn call(&self, method: &str, target: &str, body: &str) -> Answer {
        self.send(method, target, &format!("X-Vault-Token: {ROOT}\r\n"), body.as_bytes()).await
    }
}

#[tokio::test]
async fn a_secret_goes_in_and_comes_out() {
    let server = Server::start(leader(), None);
    let put = server.call("PUT", "/v1/secret/data/app/db", r#"{"data":{"p":"<s3cr3t>","n":2.50}}"#).await;
    assert_eq!(put.status, 200, "{}", put.body);
    let got = server.call("GET", "/v1/secret/data/app/db", "").await;
    assert_eq!(got.status, 200);
    assert!(got.body.starts_with("{\"request_id\":\""), "{}", got.body);
    assert!(got.body.contains(r#""data":{"data":{"n":2.50,"p":"\u003cs3cr3t\u003e"},"metadata":{"#));
    assert!(got.body.ends_with("\"auth\":null}\n"));
    for header in [
        "cache-control: no-store",
        "content-type: application/json",
        "strict-transport-security: max-age=31536000; includesubdomains",
        "date: ",
    ] {
        assert!(got.head.contains(header), "{}", got.head);
    }
    for (method, target) in [
        ("LIST", "/v1/secret/metadata"),
        ("GET", "/v1/secret/metadata/?list=true"),
        ("GET", "/v1/secret/metadata?list=T"),
    ] {
        let list = server.call(method, target, "").await;
        assert!(list.body.contains(r#""keys":["app/"]"#), "{method} {target}: {}", list.body);
    }
    let deleted = server.call("DELETE", "/v1/secret/data/app/db", "").await;
    assert_eq!((deleted.status, deleted.body.as_str()), (204, ""));
    assert!(deleted.head.contains("content-type: application/json"), "on 204, too");
    let gone = server.call("GET", "/v1/secret/data/app/db", "").await;
    assert_eq!(gone.status, 404);
    assert!(gone.body.contains(r#""data":{"data":null,"metadata":{"#), "{}", gone.body);
}

#[tokio::test]
async fn tokens_come_in_two_headers() {
    let server = Server::start(leader(), None);
    for (headers, status) in [
        (String::new(), 403),
        (format!("Authorization: Bearer {ROOT}\r\n"), 200),
        (format!("Authorization: bearer {ROOT}\r\n"), 403),
        (format!("X-Vault-Token: wrong\r\nAuthorization: Bearer {ROOT}\r\n"), 403),
        (format!("X-Vault-Token: {ROOT}\r\nX-Vault-Wrap-TTL: 5m\r\n"), 400),
        (format!("X-Vault-Token: {ROOT}\r\nX-Vault-Wrap-TTL: -5\r\n"), 400),
        (format!("X-Vault-Token: {ROOT}\r\nX-Vault-Wrap-TTL: 0\r\n"), 200),
        (format!("X-Vault-Token: {ROOT}\r\nX-Vault-Namespace: team\r\n"), 404),
        (format!("X-Vault-Token: {ROOT}\r\nX-Vault-Namespace: root\r\n"), 200),
    ] {
        let answer = server.send("GET", "/v1/auth/token/lookup-self", &headers, b"").await;
        assert_eq!(answer.status, status, "{headers}: {}", answer.body);
    }
    let answer = server.send("GET", "/v1/sys/health", "X-Vault-Namespace: team\r\n", b"").await;
    assert!(answer.head.contains("x-vault-namespace: team"));
}

#[tokio::test]
async fn ambiguous_paths_are_refused_before_anything_else() {
    let server = Server::start(leader(), None);
    for (target, status) in [
        ("/v1/secret/data/a/../b", 400),
        ("/v1/secret/data/%2e%2e/b", 400),
        ("/v1/secret/data/..%2Fb", 400),
        ("/v1/secret//data/b", 400),
        ("/v1/secret/data/a%2F%2Fb", 400),
        ("/v1/secret/data/a%00b", 400),
        ("/v1/secret/data/a%0d%0ab", 400),
        ("/v1/secret/data/a%ffb", 400),
        ("/v1/secret/data/a%zz", 400),
        ("/v1//secret", 400),
        ("//v1/secret", 404),
        ("/V1/secret", 404),
        ("/v1", 404),
        ("/nosuch", 404),
        ("/v1/", 403),
        ("/v1/secret%2Fdata/x", 403),
    ] {
        let answer = server.send("GET", target, "", b"").await;
        assert_eq!(answer.status, status, "{target}: {}", answer.body);
    }
    let put = server.call("PUT", "/v1/secret%2Fdata/a+b%20c", r#"{"data":{}}"#).await;
    assert_eq!(put.status, 200, "{}", put.body);
    let list = server.call("LIST", "/v1/secret/metadata", "").await;
    assert!(list.body.contains(r#""keys":["a+b c"]"#), "{}", list.body);
}

#[tokio::test]
async fn methods_are_refused_as_vault_refuses_them() {
    let server = Server::start(leader(), None);
    for (method, target, status, body) in [
        ("DELETE", "/v1/sys/health", 405, "{\"errors\":[]}\n"),
        ("PUT", "/v1/sys/seal-status", 405, "{\"errors\":[]}\n"),
        ("OPTIONS", "/v1/secret/data/a", 405, "{\"errors\":[]}\n"),
        ("FOO", "/v1/secret/data/a", 405, "{\"errors\":[]}\n"),
        ("TRACE", "/v1/secret/data/a", 405, "{\"errors\":[]}\n"),
        ("GET", "/v1/secret/metadata?list=yes", 400, "{\"errors\":[]}\n"),
        ("PATCH", "/v1/secret/data/a", 400, "{\"errors\":[\"mime: no media type\"]}\n"),
        (
            "DELETE",
            "/v1/sys/mounts",
            405,
            "{\"errors\":[\"1 error occurred:\\n\\t* unsupported operation\\n\\n\"]}\n",
        ),
        (
            "LIST",
            "/v1/sys/mounts",
            404,
            "{\"errors\":[\"1 error occurred:\\n\\t* unsupported path\\n\\n\"]}\n",
        ),
    ] {
        let answer = server.call(method, target, "").await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{method} {target}");
    }
    let patch = server.send("PATCH", "/v1/secret/data/a", "Content-Type: application/json\r\n", b"{}").await;
    assert_eq!(patch.status, 415);
    for target in ["/v1/sys/health", "/v1/sys/mounts"] {
        let head = server.call("HEAD", target, "").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{target}");
        assert!(head.head.contains("content-length: "), "{}", head.head);
    }
}

#[tokio::test]
async fn bombs_and_oversized_bodies_are_refused_and_the_node_lives() {
    let server = Server::start(leader(), None);
    let deep = format!(r#"{{"data":{}"#, "[".repeat(1_000_000));
    let many = format!(r#"{{"data":[{}1]}}"#, "1,".repeat(200_000));
    for body in [&*deep, &*many, "{", "[1]", r#"{"data":"hunter2"#, r#"{"data":{"a":"hunter2"}}trailing"#] {
        let answer = server.call("PUT", "/v1/secret/data/a", body).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.contains("failed to decode JSON input"), "{}", answer.body);
        assert!(!answer.body.contains("hunter2"), "{}", answer.body);
    }
    let deep_enough = format!(r#"{{"data":{{"a":{}{}}}}}"#, "[".repeat(400), "]".repeat(400));
    assert_eq!(server.call("PUT", "/v1/secret/data/deep", &deep_enough).await.status, 200);
    assert_eq!(server.call("GET", "/v1/secret/data/deep", "").await.status, 200);

    let announced = format!(
        "PUT /v1/secret/data/a HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {ROOT}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        ListenerRules::default().max_body_bytes + 1
    );
    let answer = server.raw(announced.as_bytes()).await;
    assert_eq!(answer.status, 413);
    assert_eq!(answer.body, "{\"errors\":[\"http: request body too large\"]}\n");
    let huge_header = format!("X-Filler: {}\r\n", "a".repeat(8 * MAX_HEADER_BYTES));
    let answer = server.send("GET", "/v1/sys/health", &huge_header, b"").await;
    assert!(answer.status == 431 || answer.status == 400, "{}", answer.status);
    assert_eq!(server.call("GET", "/v1/sys/health", "").await.status, 200);
}

#[tokio::test]
async fn a_body_that_grows_beyond_the_limit_is_cut_off() {
    let server = Server::start(leader(), None);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "PUT /v1/secret/data/a HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {ROOT}\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut receiving, mut sending) = stream.into_split();
    tokio::spawn(async move {
        let chunk = vec![b'a'; 1 << 20];
        for _ in 0..40 {
            let framed = [b"100000\r\n", &*chunk, b"\r\n"].concat();
            if sending.write_all(&framed).await.is_err() {
                return;
            }
        }
    });
    let mut start = [0; 12];
    receiving.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
}

#[tokio::test]
async fn every_state_of_a_node_answers_as_the_table_says() {
    let (_leader, standby) = cluster();
    let server = Server::start(standby, None);
    let expect = async |rows: &[(&str, &str, &str, u16)]| {
        for (method, target, body, status) in rows {
            let answer = server.send(method, target, "", body.as_bytes()).await;
            assert_eq!(answer.status, *status, "{method} {target}: {}", answer.body);
        }
    };
    expect(&[
        ("GET", "/v1/sys/init", "", 200),
        ("GET", "/v1/sys/seal-status", "", 200),
        ("GET", "/v1/sys/health", "", 429),
        ("GET", "/v1/sys/health?standbyok=true", "", 200),
        ("GET", "/v1/sys/health?standbycode=299", "", 299),
        ("GET", "/v1/sys/leader", "", 200),
        ("PUT", "/v1/sys/unseal", r#"{"key":"00"}"#, 200),
        ("PUT", "/v1/sys/unseal", "{}", 400),
        ("PUT", "/v1/sys/seal", "", 403),
        ("GET", "/v1/secret/data/a", "", 403),
        ("GET", "/v1/sys/internal/ui/mounts", "", 200),
    ])
    .await;
    *server.node.node.unsealed.lock() = None;
    expect(&[
        ("GET", "/v1/sys/init", "", 200),
        ("GET", "/v1/sys/seal-status", "", 200),
        ("GET", "/v1/sys/health", "", 503),
        ("GET", "/v1/sys/leader", "", 503),
        ("PUT", "/v1/sys/unseal", r#"{"key":"00"}"#, 200),
        ("PUT", "/v1/sys/seal", "", 204),
        ("GET", "/v1/secret/data/a", "", 503),
        ("GET", "/v1/nosuch", "", 503),
        ("GET", "/nosuch", "", 404),
    ])
    .await;
    *server.node.node.initialized.lock() = false;
    let init = server.send("GET", "/v1/sys/init", "", b"").await;
    assert_eq!(init.body, "{\"initialized\":false}\n");
    assert_eq!(server.send("GET", "/v1/sys/health", "", b"").await.status, 501);
    let status = server.send("GET", "/v1/sys/seal-status", "", b"").await;
    assert!(status.body.starts_with(r#"{"type":"shamir","initialized":false,"sealed":true,"t":2,"n":3,"#));
}

#[tokio::test]
async fn without_a_leader_the_client_is_told_when_to_come_back() {
    let (_leader, standby) = cluster();
    standby.replica.lose_leader();
    let server = Server::start(standby, None);
    let answer = server.call("PUT", "/v1/secret/data/a", r#"{"data":{}}"#).await;
    assert_eq!(answer.status, 503);
    assert!(answer.head.contains("retry-after: 1"), "{}", answer.head);
    assert!(answer.body.contains("local node not active but active cluster node not found"));
}

#[tokio::test]
async fn a_redirect_keeps_path_and_query_as_they_were_sent() {
    let (_leader, standby) = cluster();
    let server = Server::start(standby, None);
    let headers = format!("X-Vault-Token: {ROOT}\r\nX-Vault-No-Request-Forwarding: false\r\n");
    let answer = server.send("PUT", "/v1/secret/data/a%20b?x=%2F", &headers, b"{}").await;
    assert_eq!((answer.status, answer.body.as_str()), (307, ""));
    assert!(answer.head.contains("location: https://leader:8200/v1/secret/data/a%20b?x=%2f"));
    assert!(!answer.head.contains("content-type"));
}

#[tokio::test]
async fn plain_http_to_the_tls_port_is_told_so() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
    let config = Arc::new(config);
    let server = Server::start(leader(), Some(Arc::new(move || Arc::clone(&config))));
    let answer = server.send("GET", "/v1/sys/health", "", b"").await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.body, "Client sent an HTTP request to an HTTPS server.\n");
}

#[tokio::test]
async fn shutting_down_ends_idle_connections_and_says_how_it_went() {
    let server = Server::start(leader(), None);
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    idle.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    server.stop.send_replace(true);
    assert_eq!(server.task.await.unwrap().unwrap(), Drained::Completely);
}

#[tokio::test]
async fn probes_are_answered_outside_of_v1() {
    let server = Server::start(leader(), None);
    for path in ["/health", "/livez", "/ready", "/readyz"] {
        let answer = server.send("GET", path, "", b"").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        let head = server.send("HEAD", path, "", b"").await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(server.send("POST", path, "", b"").await.status, 405, "{path}");
    }
    assert_eq!(server.send("GET", "/health?activecode=abc", "", b"").await.status, 400);
    assert_eq!(server.send("GET", "/metrics", "", b"").await.status, 403);
    let metrics = server.call("GET", "/metrics", "").await;
    assert_eq!((metrics.status, metrics.body.as_str()), (200, "# metrics\n"));
    *server.node.node.unsealed.lock() = None;
    assert_eq!(server.send("GET", "/health", "", b"").await.status, 200);
    assert_eq!(server.send("GET", "/ready", "", b"").await.status, 503);
    for path in ["/healthz", "/health/", "/ready/x"] {
        assert_eq!(server.send("GET", path, "", b"").await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn metrics_can_be_opened_to_everybody() {
    let server = Server::start(leader(), None);
    assert_eq!(server.send("GET", "/v1/sys/metrics?format=prometheus", "", b"").await.status, 403);
    let metrics = server.call("GET", "/v1/sys/metrics?format=prometheus", "").await;
    assert_eq!((metrics.status, metrics.body.as_str()), (200, "# metrics\n"));
    assert!(metrics.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"));
}

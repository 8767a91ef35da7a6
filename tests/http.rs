//! HTTP as it is not meant: paths, bodies, methods, headers that are made to do harm.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{one, ready};
use keystead_chaos::{Cluster, process::resident_kib, raw};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(3);

async fn one_ready() -> Cluster {
    Box::pin(one().ready()).await.unwrap()
}

/// Sends a request line and headers as they are, with the token, and gives status and whole answer.
async fn raw_request(cluster: &Cluster, line: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Vault-Token: {}\r\n{headers}\r\n",
        cluster.keys().root_token
    );
    let bytes = [head.as_bytes(), body].concat();
    let answer = raw::over_tls(cluster.at(0).api(), cluster.tls(), &bytes, PATIENCE).await.unwrap();
    (raw::status(&answer).unwrap_or(0), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn ambiguous_paths_are_refused_before_anything_else_looks_at_them() {
    let cluster = one_ready().await;
    cluster.at(0).put("a/b", &json!({ "n": 1 })).await.unwrap();
    for (path, status) in [
        ("/v1/secret/data/a/b", 200),
        ("/v1/secret/data/a%2Fb", 200),
        ("/v1/secret%2Fdata/a/b", 200),
        ("/v1/secret/data/a/../a/b", 400),
        ("/v1/secret/data/a/%2e%2e/a/b", 400),
        ("/v1/secret/data/a/..%2Fa/b", 400),
        ("/v1/secret/data/./a/b", 400),
        ("/v1/secret/data//a/b", 400),
        ("/v1/secret/data/a%2F%2Fb", 400),
        ("/v1/secret/data/a%00b", 400),
        ("/v1/secret/data/a%0Ab", 400),
        ("/v1/secret/data/a%7fb", 400),
        ("/v1/secret/data/%ff", 400),
        ("/v1/secret/data/%zz", 400),
        ("/v1/sys/../secret/data/a/b", 400),
        ("/v1/secret/data/x..y", 404),
        ("/v1/secret/data/.../x", 404),
        // Decoded once: this names a key with a percent sign in it.
        ("/v1/secret/data/a%252Fb", 404),
        ("/V1/secret/data/a/b", 404),
        ("//v1/secret/data/a/b", 404),
        ("/nosuch", 404),
    ] {
        let (got, answer) = raw_request(&cluster, &format!("GET {path}"), "", b"").await;
        assert_eq!(got, status, "{path}: {answer}");
    }
    let (got, answer) =
        raw_request(&cluster, &format!("GET /v1/secret/data/{}", "x".repeat(70_000)), "", b"").await;
    assert!((400..500).contains(&got), "a long path is refused: {answer}");
}

#[tokio::test]
async fn case_08_hostile_bodies_are_refused_and_do_not_come_back_in_the_answer() {
    let cluster = one_ready().await;
    let node = cluster.at(0);
    let client = node.client();
    let before = resident_kib(node.pid()).unwrap();
    let deep = |depth: usize| format!("{{\"data\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let deep_objects = format!("{}1{}", "{\"a\":".repeat(20_000), "}".repeat(20_000));
    let many = format!("{{\"data\":{{\"a\":[{}\"x\"]}}}}", "\"x\",".repeat(2_000_000));
    let digits = format!("{{\"data\":{{\"a\":{}}}}}", "9".repeat(2_000_000));
    for (name, body, statuses) in [
        ("cut off", "{\"data\":{\"canary-5c1f\":".to_owned(), &[400][..]),
        ("not an object", "[\"canary-5c1f\"]".to_owned(), &[400]),
        ("two values", "{\"data\":{}}{\"data\":{\"canary-5c1f\":1}}".to_owned(), &[400]),
        ("trailing", "{\"data\":{\"a\":\"canary-5c1f\"}}x".to_owned(), &[400]),
        ("a comma too many", "{\"data\":{\"a\":\"canary-5c1f\"},}".to_owned(), &[400]),
        ("20,000 arrays deep", deep(20_000), &[400]),
        ("20,000 objects deep", deep_objects, &[400]),
        ("two million strings", many, &[400, 413]),
        ("two million digits", digits, &[400, 413]),
        ("not UTF-8", "\u{fffd}".to_owned(), &[400]),
    ] {
        let answer = client.send("POST", "/v1/secret/data/bomb", Bytes::from(body), &[]).await.unwrap();
        assert!(statuses.contains(&answer.status), "{name}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("canary-5c1f"), "{name}: {}", answer.text());
    }
    let fine =
        client.send("POST", "/v1/secret/data/deep", Bytes::from(deep(100).replace("1", "{}")), &[]).await;
    assert!(fine.unwrap().status < 500);
    assert_eq!(node.get("bomb").await.unwrap(), None);
    let grown = resident_kib(node.pid()).unwrap().saturating_sub(before);
    assert!(grown < 400 << 10, "{grown} KiB after the bombs");
    assert!(!node.log().contains("canary-5c1f"));
}

#[tokio::test]
async fn a_body_over_32_mib_is_refused_and_a_value_over_an_entry_too() {
    let cluster = one_ready().await;
    let client = cluster.at(0).client();
    let whole = Bytes::from(vec![b' '; (32 << 20) + 1]);
    // The server may answer and close before it has been sent everything; then the answer may be lost.
    if let Ok(answer) = client.send("POST", "/v1/secret/data/big", whole, &[]).await {
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert!(answer.errors().contains("request body too large"), "{}", answer.text());
    }
    let (status, answer) =
        raw_request(&cluster, "POST /v1/secret/data/big", "Content-Length: 33554433\r\n", b"{").await;
    assert_eq!(status, 413, "{answer}");
    let large = json!({ "data": { "a": "x".repeat(2 << 20) } });
    let answer = client.call("POST", "secret/data/big", Some(&large)).await.unwrap();
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.errors().contains("max"), "{}", answer.text());
    assert_eq!(cluster.at(0).get("big").await.unwrap(), None);
    let fits = json!({ "a": "x".repeat(512 << 10) });
    cluster.at(0).put("fits", &fits).await.unwrap();
    assert_eq!(cluster.at(0).get("fits").await.unwrap(), Some(fits));
}

#[tokio::test]
async fn methods_are_answered_as_vault_answers_them() {
    let cluster = one_ready().await;
    for (line, status) in [
        ("GET /v1/sys/health", 200),
        ("HEAD /v1/sys/health", 200),
        ("DELETE /v1/sys/health", 405),
        ("POST /v1/sys/seal-status", 405),
        ("OPTIONS /v1/sys/health", 405),
        ("OPTIONS /v1/secret/data/a", 405),
        ("FOO /v1/secret/data/a", 405),
        ("TRACE /v1/sys/health", 405),
        ("LIST /v1/sys/mounts/secret", 405),
        ("LIST /v1/secret/metadata", 404),
        ("GET /v1/secret/metadata?list=true", 404),
        ("GET /v1/secret/metadata?list=yes", 400),
        ("GET /v1/nosuch/a", 404),
        ("GET /v1/sys/nosuch", 404),
    ] {
        let (got, answer) = raw_request(&cluster, line, "", b"").await;
        assert_eq!(got, status, "{line}: {answer}");
        if status == 200 || status >= 400 {
            let lower = answer.to_lowercase();
            assert!(lower.contains("cache-control: no-store"), "{line}: {answer}");
            assert!(
                lower.contains("strict-transport-security: max-age=31536000; includesubdomains"),
                "{line}"
            );
        }
    }
    let (got, answer) = raw_request(&cluster, "HEAD /v1/sys/health", "", b"").await;
    assert_eq!(got, 200);
    assert!(answer.ends_with("\r\n\r\n"), "HEAD has no body: {answer}");
}

#[tokio::test]
async fn case_08_headers_are_bounded_and_read_as_vault_reads_them() {
    let cluster = one_ready().await;
    let huge = format!("X-Huge: {}\r\n", "x".repeat(2 << 20));
    let (got, answer) = raw_request(&cluster, "GET /v1/secret/data/a", &huge, b"").await;
    assert!(got == 431 || got == 400 || got == 0, "{answer}");
    let many: String = (0..5_000).map(|n| format!("X-{n}: y\r\n")).collect();
    let (got, answer) = raw_request(&cluster, "GET /v1/secret/data/a", &many, b"").await;
    assert!(got == 431 || got == 400 || got == 0, "{answer}");

    let client = cluster.at(0).client().without_token();
    let token = cluster.keys().root_token.clone();
    for (headers, status) in [
        (vec![("X-Vault-Token", token.clone())], 200),
        (vec![("Authorization", format!("Bearer {token}"))], 200),
        (vec![("Authorization", format!("bearer {token}"))], 403),
        (vec![("X-Vault-Token", "wrong".into()), ("Authorization", format!("Bearer {token}"))], 403),
        (vec![("X-Vault-Token", token.clone()), ("X-Vault-Namespace", "nosuch".into())], 404),
        (vec![("X-Vault-Token", token.clone()), ("X-Vault-Namespace", "root".into())], 200),
        (vec![("X-Vault-Token", token.clone()), ("X-Vault-Wrap-TTL", "abc".into())], 400),
        (vec![], 403),
    ] {
        let borrowed: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = client.send("GET", "/v1/auth/token/lookup-self", Bytes::new(), &borrowed).await.unwrap();
        let names: Vec<&str> = borrowed.iter().map(|(name, _)| *name).collect();
        assert_eq!(answer.status, status, "{names:?}: {}", answer.text());
        assert!(status == 200 || !answer.text().contains(&token), "the token is echoed");
    }
}

#[tokio::test]
async fn plain_http_to_the_tls_port_is_told_so() {
    let cluster = one_ready().await;
    let request = b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = raw::over_tcp(cluster.at(0).api(), request, PATIENCE).await.unwrap();
    assert_eq!(raw::status(&answer), Some(400));
    assert!(String::from_utf8_lossy(&answer).contains("Client sent an HTTP request to an HTTPS server."));
}

#[tokio::test]
async fn case_08_garbage_and_dawdlers_on_the_api_port_leave_the_node_answering() {
    let cluster = one_ready().await;
    let node = cluster.at(0);
    let before = resident_kib(node.pid()).unwrap();
    let mut dawdlers = Vec::new();
    for n in 0..200u32 {
        // Half of them begin a handshake or a request and never go on.
        let bytes: &[u8] = if n % 2 == 0 { b"\x16\x03\x01" } else { b"GET /v1/sys/hea" };
        let mut stream = tokio::net::TcpStream::connect(node.api()).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, bytes).await.unwrap();
        dawdlers.push(stream);
    }
    let fresh = node.client().fresh().with_timeout(Duration::from_secs(5));
    assert_eq!(fresh.call("GET", "sys/health", None).await.unwrap().status, 200);
    cluster.serves(0, Duration::from_secs(5)).await.unwrap();
    let grown = resident_kib(node.pid()).unwrap().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for 200 idle connections");
}

#[tokio::test]
async fn an_answer_that_was_forwarded_reads_like_any_other() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    let body = json!({ "data": { "html": "<b>&</b>" } });
    let mut shapes = Vec::new();
    for at in [leader, standby] {
        cluster.at(at).call("POST", "secret/data/same", Some(&body)).await.unwrap().ok().unwrap();
        let answer = cluster.at(at).call("GET", "secret/data/same", None).await.unwrap();
        assert!(
            answer.text().contains(r"\u003cb\u003e\u0026\u003c/b\u003e"),
            "Go's escapes: {}",
            answer.text()
        );
        assert!(answer.text().ends_with('\n'));
        let keys: Vec<String> = answer.json().as_object().unwrap().keys().cloned().collect();
        let mut headers: Vec<String> = answer.headers.keys().map(|name| name.to_string()).collect();
        headers.sort();
        shapes.push((answer.status, keys, headers));
    }
    assert_eq!(shapes[0], shapes[1]);
}

#[tokio::test]
async fn case_08_bodies_that_are_promised_and_never_sent_take_no_memory() {
    let cluster = one_ready().await;
    let node = cluster.at(0);
    let before = resident_kib(node.pid()).unwrap();
    let head = format!(
        "POST /v1/secret/data/slow HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {}\r\nContent-Length: 33554432\r\n\r\n{{",
        cluster.keys().root_token
    );
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let (address, tls, head) = (node.api(), cluster.tls(), head.clone());
            tokio::spawn(async move { raw::over_tls(address, tls, head.as_bytes(), PATIENCE).await })
        })
        .collect();
    // While they all dawdle, others are served.
    for n in 0..20 {
        node.put("meanwhile", &json!({ "n": n })).await.unwrap();
    }
    let grown = resident_kib(node.pid()).unwrap().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for 100 promises of 32 MiB");
    for dawdler in slow {
        dawdler.await.unwrap().unwrap();
    }
    assert_eq!(node.get("slow").await.unwrap(), None);
}

#[tokio::test]
async fn http2_is_spoken_with_those_who_ask_for_it() {
    let cluster = one_ready().await;
    cluster.at(0).put("two", &json!({ "n": 2 })).await.unwrap();
    let mut tls = (*cluster.tls()).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let address = cluster.at(0).api();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls)).connect(name, tcp).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    // Many at once on one connection.
    let asked: Vec<_> = (0..50)
        .map(|_| {
            let mut sender = sender.clone();
            let request = http::Request::get(format!("https://{address}/v1/secret/data/two"))
                .header("X-Vault-Token", &cluster.keys().root_token)
                .body(http_body_util::Empty::<Bytes>::new())
                .unwrap();
            tokio::spawn(async move { sender.send_request(request).await.unwrap() })
        })
        .collect();
    for answer in asked {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status(), answer.version()), (http::StatusCode::OK, http::Version::HTTP_2));
    }
}

#[tokio::test]
async fn requests_are_counted_by_operation_and_outcome() {
    let cluster = one_ready().await;
    let node = cluster.at(0);
    let counted = async |operation: &str, outcome: &str| -> u64 {
        let answer = node.call("GET", "sys/metrics?format=prometheus", None).await.unwrap();
        let name =
            format!("keystead_core_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}} ");
        let text = answer.text();
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    };
    let before = (counted("delete", "ok").await, counted("list", "error").await);
    node.call("DELETE", "secret/data/nothing", None).await.unwrap().ok().unwrap();
    assert_eq!(node.call("LIST", "secret/metadata/nothing", None).await.unwrap().status, 404);
    let after = (counted("delete", "ok").await, counted("list", "error").await);
    assert_eq!(after, (before.0 + 1, before.1 + 1));
}

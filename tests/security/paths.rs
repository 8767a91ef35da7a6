//! Case 1: a path is decoded exactly once, and what could be read in two ways is refused before anything looks at it.

use bytes::Bytes;
use keystead_chaos::{Cluster, Node};
use serde_json::json;

use crate::common::{one, ready};

/// Ways to write what is refused, below a prefix.
const AMBIGUOUS: &[&str] = &[
    "a/../b",
    "a/%2e%2e/b",
    "a/.%2E/b",
    "a%2f%2e%2e%2fb",
    "../sys/seal",
    "..%2F..%2fsys/seal",
    "a/..",
    "a/./b",
    "a/%2e/b",
    "a/.",
    "a//b",
    "a%2F%2Fb",
    "a/%2Fb",
    "a//",
    "/a",
    "%2Fa",
    "a%00b",
    "a%0Ab",
    "a%0d%0aX-Other:%20y",
    "a%1bb",
    "a%7fb",
    "a%c2%85b",
    "%ff",
    "a%c0%aeb",
    "a%zz",
    "a%",
    "a%2",
];

/// The API's areas, mounted and not, there and not.
const PREFIXES: &[&str] = &[
    "secret/data/",
    "secret/metadata/",
    "sys/mounts/",
    "sys/raw/",
    "sys/internal/ui/mounts/",
    "auth/token/",
    "nosuch/",
];

async fn status(node: &Node, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let client = node.client().without_token();
    let body = if method == "PUT" { Bytes::from_static(b"{\"data\":{}}") } else { Bytes::new() };
    let answer = client.send(method, &format!("/v1/{path}"), body, headers).await.unwrap();
    (answer.status, answer.text())
}

async fn everything_ambiguous_is_refused(node: &Node, token: &str) {
    let authorised = [("X-Vault-Token", token), ("X-Vault-No-Request-Forwarding", "true")];
    for prefix in PREFIXES {
        // One prefix thoroughly: the edge does not know what is behind it.
        let thoroughly = prefix.starts_with("secret/data");
        let (methods, senders) = if thoroughly { (4, 4) } else { (1, 2) };
        for tail in AMBIGUOUS {
            let path = format!("{prefix}{tail}");
            for method in ["PUT", "GET", "LIST", "DELETE"].into_iter().take(methods) {
                // With a token, with none, with a false one: nobody has looked at it.
                let headers = [&authorised[..1], &[], &authorised[..], &[("X-Vault-Token", "x")]];
                for headers in headers.into_iter().take(senders) {
                    let (status, text) = status(node, method, &path, headers).await;
                    assert_eq!(status, 400, "{method} {path} on {}: {text}", node.name());
                    assert!(!text.contains("permission denied"), "{method} {path}: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn case_01_an_ambiguous_path_is_refused_before_anything_is_read() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let token = cluster.keys().root_token.clone();
    for at in [leader, cluster.others(leader)[0]] {
        everything_ambiguous_is_refused(cluster.at(at), &token).await;
    }
    over_http2(&cluster, cluster.others(leader)[0]).await;
    for node in cluster.nodes() {
        assert_eq!(node.seal_status().await.unwrap()["sealed"], false, "nothing was sealed on the way");
    }
    assert_eq!(cluster.at(leader).call("LIST", "secret/metadata", None).await.unwrap().status, 404);
}

/// HTTP/2 has the path in a field of its own; it is read the same way.
async fn over_http2(cluster: &Cluster, at: usize) {
    let mut tls = (*cluster.tls()).clone();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let address = cluster.at(at).api();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    let stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls)).connect(name, tcp).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for tail in AMBIGUOUS {
        let request = http::Request::get(format!("https://{address}/v1/secret/data/{tail}"))
            .body(http_body_util::Empty::<Bytes>::new())
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 400, "{tail}");
    }
}

#[tokio::test]
async fn case_01_a_node_without_a_vault_refuses_ambiguous_paths_too() {
    let cluster = Box::pin(one().start()).await.unwrap();
    for (path, expected) in [("secret/data/a", 503), ("secret/data/a/../b", 400), ("sys/..%2finit", 400)] {
        let (status, text) = status(cluster.at(0), "GET", path, &[]).await;
        assert_eq!(status, expected, "{path}: {text}");
    }
}

#[tokio::test]
async fn case_01_a_path_is_decoded_exactly_once_through_every_node() {
    let cluster = ready().await;
    for (at, node) in cluster.nodes().iter().enumerate() {
        let body = json!({ "data": { "through": at } });
        for path in [format!("once%2F{at}"), format!("twice%252F{at}"), format!("up%252e%252e%252f{at}")] {
            node.call("PUT", &format!("secret/data/{path}"), Some(&body)).await.unwrap().ok().unwrap();
        }
    }
    for node in cluster.nodes() {
        let names = node.list("").await.unwrap();
        let expected =
            ["once/", "twice%2F0", "twice%2F1", "twice%2F2", "up%2e%2e%2f0", "up%2e%2e%2f1", "up%2e%2e%2f2"];
        assert_eq!(names, expected, "on {}", node.name());
        for at in 0..3 {
            // Each spelling of a name finds it, and no spelling of another does.
            for (path, status) in [
                (format!("once/{at}"), 200),
                (format!("once%2f{at}"), 200),
                (format!("%6fnce%2F%3{at}"), 200),
                (format!("once%252F{at}"), 404),
                (format!("twice%252F{at}"), 200),
                (format!("twice%2F{at}"), 404),
                (format!("twice%25252F{at}"), 404),
                (format!("up%252e%252e%252f{at}"), 200),
            ] {
                let answer = node.call("GET", &format!("secret/data/{path}"), None).await.unwrap();
                assert_eq!(answer.status, status, "{path} on {}: {}", node.name(), answer.text());
                if status == 200 {
                    assert_eq!(answer.data()["data"]["through"], at, "{path} on {}", node.name());
                }
            }
        }
    }
    // A path of sys is the same decoded or not, and is not decoded again into another.
    let leader = cluster.leader().await.unwrap();
    for at in [leader, cluster.others(leader)[0]] {
        let node = cluster.at(at);
        assert_eq!(node.call("GET", "sys%2fmounts%2Fsecret", None).await.unwrap().status, 200);
        assert_eq!(node.call("GET", "sys%252fmounts", None).await.unwrap().status, 404);
        let tune = json!({ "description": format!("by {at}") });
        node.call("PUT", "sys/mounts%2Fsecret/tune", Some(&tune)).await.unwrap().ok().unwrap();
        let mounts = cluster.at(leader).call("GET", "sys/mounts", None).await.unwrap().data();
        assert_eq!(mounts["secret/"]["description"], tune["description"]);
    }
}

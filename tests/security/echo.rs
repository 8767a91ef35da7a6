//! Case 11: a malformed request, or configuration, is refused without showing the values that it carried.

use std::time::Duration;

use bytes::Bytes;
use keystead_chaos::{Cli, raw};

use crate::common::{BINARY, one};

/// What is looked for in answers and logs.
const CANARY: &str = "canary-5c1f";
const FORM: Header = ("Content-Type", "application/x-www-form-urlencoded");
const PATCH: Header = ("Content-Type", "application/merge-patch+json");

type Header = (&'static str, &'static str);

/// Requests in which something is wrong: method, path, header, body. `@` stands for the canary.
const MALFORMED: &[(&str, &str, Option<Header>, &str)] = &[
    // Bodies that are no JSON, no form, no object.
    ("PUT", "secret/data/x", None, r#"{"data":{"@":"#),
    ("PUT", "secret/data/x", None, r#"{"data":{"a":"@"},}"#),
    ("PUT", "secret/data/x", None, r#"{"data":{"a":"@\x"}}"#),
    ("PUT", "secret/data/x", None, r#"{"data":{"a":@}}"#),
    ("PUT", "secret/data/x", None, r#"["@"]"#),
    ("PUT", "secret/data/x", None, r#""@""#),
    ("PUT", "secret/data/x", None, r#"{"data":{}} @"#),
    ("PUT", "secret/data/x", Some(FORM), "data=@&b=%zz"),
    ("PATCH", "secret/data/x", Some(PATCH), r#"{"data":"@""#),
    ("PATCH", "secret/data/x", Some(("Content-Type", "@")), r#"{"data":{}}"#),
    ("PATCH", "secret/data/x", Some(("Content-Type", "a/@")), r#"{"data":{}}"#),
    // Fields of the wrong kind.
    ("PUT", "secret/data/x", None, r#"{"data":"@"}"#),
    ("PUT", "secret/data/x", None, r#"{"data":["@"]}"#),
    ("PUT", "secret/data/x", None, r#"{"data":{},"options":"@"}"#),
    ("PUT", "secret/data/x", None, r#"{"data":{},"options":{"cas":"@"}}"#),
    ("PUT", "secret/data/x", None, r#"{"data":{},"options":{"cas":{"@":1}}}"#),
    ("PUT", "secret/metadata/x", None, r#"{"max_versions":"@"}"#),
    ("PUT", "secret/metadata/x", None, r#"{"cas_required":"@"}"#),
    ("PUT", "secret/metadata/x", None, r#"{"delete_version_after":"@"}"#),
    ("PUT", "secret/metadata/x", None, r#"{"custom_metadata":"@"}"#),
    ("PUT", "secret/metadata/x", None, r#"{"custom_metadata":{"a":["@"]}}"#),
    ("PUT", "secret/config", None, r#"{"max_versions":"@"}"#),
    ("PUT", "secret/delete/x", None, r#"{"versions":"@"}"#),
    ("PUT", "secret/destroy/x", None, r#"{"versions":["@"]}"#),
    ("PUT", "secret/undelete/x", None, r#"{"versions":{"a":"@"}}"#),
    ("GET", "secret/data/x?version=@", None, ""),
    ("GET", "secret/metadata/?list=@", None, ""),
    ("GET", "secret/data/x?version=%zz@", None, ""),
    ("GET", "secret/data/@%zz", None, ""),
    ("GET", "secret/data/@%00", None, ""),
    ("PUT", "sys/unseal", None, r#"{"key":"@"}"#),
    ("PUT", "sys/unseal", None, r#"{"key":["@"]}"#),
    ("PUT", "sys/init", None, r#"{"secret_shares":"@"}"#),
    ("PUT", "sys/init", None, r#"{"secret_shares":1,"secret_threshold":1,"pgp_keys":["@"]}"#),
    ("PUT", "sys/mounts/y", None, r#"{"type":["@"]}"#),
    ("PUT", "sys/mounts/y", None, r#"{"type":"kv","config":"@"}"#),
    ("PUT", "sys/mounts/y", None, r#"{"type":"kv","config":{"default_lease_ttl":"@"}}"#),
    ("PUT", "sys/mounts/y", None, r#"{"type":"kv","options":"@"}"#),
    ("PUT", "sys/mounts/y", None, r#"{"type":"kv","options":{"version":"@"}}"#),
    ("PUT", "sys/mounts/y", None, r#"{"type":"kv","local":"@"}"#),
    ("PUT", "sys/mounts/secret/tune", None, r#"{"max_lease_ttl":"@"}"#),
    ("PUT", "sys/mounts/secret/tune", None, r#"{"listing_visibility":"@"}"#),
    ("PUT", "sys/remount", None, r#"{"from":["@"],"to":"z"}"#),
    ("PUT", "sys/tools/hash", None, r#"{"input":"@!"}"#),
    ("PUT", "sys/tools/hash", None, r#"{"input":"","format":"@"}"#),
    ("PUT", "sys/tools/random", None, r#"{"bytes":"@"}"#),
    ("PUT", "sys/loggers", None, r#"{"level":"@"}"#),
    ("PUT", "sys/storage/raft/join", None, r#"{"leader_api_addr":"@"}"#),
    (
        "PUT",
        "sys/storage/raft/join",
        None,
        r#"{"leader_api_addr":"https://127.0.0.1:1","leader_ca_cert":"@","leader_client_key":"@"}"#,
    ),
    ("PUT", "sys/storage/raft/remove-peer", None, r#"{"server_id":["@"]}"#),
    (
        "PUT",
        "sys/storage/raft/bootstrap/answer",
        None,
        r#"{"server_id":"@","challenge":"@","mac":"@","csr":"@","incarnation":"@"}"#,
    ),
    ("PUT", "auth/token/lookup", None, r#"{"token":"@"}"#),
    ("PUT", "auth/token/lookup", None, r#"{"token":{"a":"@"}}"#),
    ("GET", "sys/health?sealedcode=@", None, ""),
    // Headers.
    ("GET", "auth/token/lookup-self", Some(("X-Vault-Token", "@")), ""),
    ("GET", "auth/token/lookup-self", Some(("Authorization", "Bearer @")), ""),
    ("GET", "auth/token/lookup-self", Some(("X-Vault-Wrap-TTL", "@")), ""),
    ("GET", "auth/token/lookup-self", Some(("X-Vault-Namespace", "@")), ""),
];

#[tokio::test]
async fn case_11_a_malformed_request_is_refused_without_an_echo() {
    let cluster =
        Box::pin(one().configure(|_, config| config.log_level = "trace".into()).ready()).await.unwrap();
    let node = cluster.at(0);
    let token = cluster.keys().root_token.clone();
    let mut wrong = Vec::new();
    for (method, path, header, body) in MALFORMED {
        let fill = |text: &str| text.replace('@', CANARY);
        let header = header.map(|(name, value)| (name, fill(value)));
        let own = matches!(header, Some(("X-Vault-Token" | "Authorization", _)));
        let mut headers: Vec<(&str, &str)> = header.iter().map(|(name, value)| (*name, &value[..])).collect();
        if !own {
            headers.push(("X-Vault-Token", &token));
        }
        let client = node.client().without_token();
        let path = format!("/v1/{}", fill(path));
        let answer = client.send(method, &path, Bytes::from(fill(body)), &headers).await.unwrap();
        // A member has joined already, whatever it is told.
        let refused = (400..500).contains(&answer.status) || path.ends_with("raft/join");
        if !refused {
            wrong.push(format!("{method} {path} {body}: {}", answer.status));
        }
        // The namespace is a name, and comes back in a header of its own, as it does from Vault.
        let shown = answer.headers.iter().filter(|(name, _)| *name != "x-vault-namespace");
        let shown: String = shown.map(|(_, value)| format!("{value:?} ")).collect();
        if answer.text().contains(CANARY) || shown.contains(CANARY) {
            wrong.push(format!("{method} {path} {body}: {} {shown}", answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for head in [
        format!("GET /v1/sys/health {CANARY}\r\nHost: x\r\n\r\n"),
        format!("{CANARY}\r\n\r\n"),
        format!("GET /v1/sys/health HTTP/1.1\r\n{CANARY}\r\n\r\n"),
        format!("PUT /v1/sys/unseal HTTP/1.1\r\nHost: x\r\nContent-Length: {CANARY}\r\n\r\n{CANARY}"),
        format!("PUT /v1/sys/unseal HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{CANARY}\r\n"),
    ] {
        let patience = Duration::from_secs(1);
        let answer = raw::over_tls(node.api(), cluster.tls(), head.as_bytes(), patience).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(!answer.contains(CANARY) && !answer.starts_with("HTTP/1.1 200"), "{head:?}: {answer}");
    }
    let log = node.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains(CANARY)).collect();
    assert!(lines.is_empty(), "{lines:#?}");
}

/// Files with something wrong in or after a line that holds a secret, `@`.
const BAD_FILES: &[&str] = &[
    "leader_client_key = @\n",
    "leader_client_key = \"@\n",
    "leader_client_key \"@\" = 1\n",
    "leader_client_key = \"@\" \"@\"\n",
    "leader_client_key = \"\\q@\"\n",
    "leader_client_key = \"\\u12@\"\n",
    "leader_client_key = <<EOF\n@\n",
    "leader_client_key = <<\n@\n",
    "leader_client_key = <<@ x\n@ x\n",
    "leader_client_key = [\"@\"\n",
    "leader_client_key = {\n x = \"@\"\n",
    "leader_client_key : \"@\"\n",
    "storage \"raft\" {\n retry_join {\n leader_client_keyy = \"@\"\n }\n}\n",
    "storage \"raft\" {\n retry_join = \"@\"\n}\n",
    "storage \"raft\" {\n path = \"d\"\n retry_join {\n leader_api_addr = \"https://u:@<at>h:1\"\n }\n}\n",
    "storage \"raft\" {\n path = \"d\"\n retry_join {\n leader_client_key = [\"@\"]\n }\n}\n",
    "storage \"raft\" {\n path = \"d\"\n node_id = \"@ @\"\n}\nlistener \"tcp\" { tls_disable = 1 }\n",
    "storage \"raft\" {\n path = \"d\"\n max_entry_size = \"@\"\n}\nlistener \"tcp\" { tls_disable = 1 }\n",
    "storage \"raft\" {\n path = \"d\"\n retry_join {\n leader_api_addr = \"https://127.0.0.1:1\"\n \
     leader_client_cert = \"@\"\n leader_client_key = \"@\"\n leader_ca_cert = \"@\"\n }\n}\n\
     listener \"tcp\" { tls_disable = \"@\" }\n",
    "storage \"inmem\" {}\nlistener \"tcp\" {\n tls_cert_file = [\"@\"]\n}\n",
    "storage \"inmem\" {}\nlistener \"tcp\" {\n tls_disable = 1\n}\ndefault_lease_ttl = \"@\"\n",
    "storage \"inmem\" {}\nlistener \"tcp\" {\n tls_disable = 1\n}\nseal \"transit\" {\n token = \"@\"\n}\n",
    "{\"storage\": {\"raft\": {\"leader_client_key\": \"@\",}}}",
    "{\"storage\": {\"raft\": {\"leader_client_key\": @}}}",
    "{\"storage\": {\"raft\": {\"leader_client_key\": \"@",
    "{\"storage\": {\"raft\": {\"leader_client_key\": \"\\q@\"}}}",
    "{\"storage\": [\"@\"]}",
    "{\"leader_client_key\": \"@\", \"leader_client_key\": \"@\"}",
];

#[tokio::test]
async fn case_11_a_configuration_that_is_refused_shows_none_of_its_values() {
    let directory = tempfile::tempdir().unwrap();
    let cli = Cli::new(BINARY.as_ref(), directory.path());
    for (number, text) in BAD_FILES.iter().enumerate() {
        let file = directory.path().join(format!("bad-{number}.hcl"));
        std::fs::write(&file, text.replace('@', CANARY).replace("<at>", "@")).unwrap();
        let config = format!("-config={}", file.display());
        for args in [&["server", &config][..], &["operator", "diagnose", &config]] {
            let output = cli.run(args).await.unwrap();
            let shown = format!("{}{}", output.stdout, output.stderr);
            assert_ne!(output.code, 0, "{text}: {shown}");
            assert!(!shown.contains(CANARY), "{args:?} {text}: {shown}");
            assert!(!shown.contains("panicked"), "{text}: {shown}");
        }
    }
}

//! Whole command lines against a server that plays a part: what is sent, what is printed, what is returned.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::*;

mod requests;

/// One answer: method and target it is for, status, body.
type Part = (&'static str, &'static str, u16, &'static str);

/// Answers what its part says, 404 otherwise, and remembers what came.
struct Server {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn playing(parts: &'static [Part]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                while let Some((method, target, token, body)) = read_request(&mut reader) {
                    let part = parts.iter().find(|part| part.0 == method && part.1 == target);
                    let (status, answer) = part.map_or((404, r#"{"errors":[]}"#), |part| (part.2, part.3));
                    let space = if body.is_empty() { "" } else { " " };
                    seen.lock().unwrap().push(format!("{token}{method} {target}{space}{body}"));
                    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", answer.len());
                    reader.get_mut().write_all(format!("{head}{answer}").as_bytes()).unwrap();
                }
            }
        });
        Server { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }
}

/// Method, target, the token in brackets if there is one, body.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, String, String, String)> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push(line.trim_end().to_owned());
    }
    let header = |name: &str| head.iter().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    let length = header("content-length: ").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let mut words = head[0].split(' ').map(str::to_owned);
    let token = header("x-vault-token: ").map_or(String::new(), |token| format!("[{token}] "));
    Some((words.next()?, words.next()?, token, String::from_utf8(body).unwrap()))
}

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

fn keystead(environment: &Environment, stdin: &str, args: &[&str]) -> Outcome {
    let args: Vec<String> = ["keystead"].iter().chain(args).map(|arg| arg.to_string()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = {
        let mut ui = Ui::new(stdin.as_bytes(), &mut out, &mut err);
        let code = run(&args, environment, &mut ui);
        ui.finish(code)
    };
    Outcome { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

fn at(server: &Server) -> Environment {
    Environment::default().with("VAULT_ADDR", server.address.clone())
}

/// Runs a line given as one text, without quoting.
fn line(server: &Server, line: &str) -> Outcome {
    keystead(&at(server), "", &line.split(' ').collect::<Vec<_>>())
}

const V2: &str = r#"{"data":{"path":"secret/","type":"kv","options":{"version":"2"}}}"#;
const V1: &str = r#"{"data":{"path":"kv1/","type":"kv","options":null}}"#;
const WRITTEN: &str = r#"{"request_id":"r","data":{"created_time":"2026-11-22T10:00:00Z","custom_metadata":null,
    "deletion_time":"","destroyed":false,"version":1}}"#;
const READ: &str = r#"{"request_id":"r","lease_id":"","lease_duration":0,"renewable":false,
    "data":{"data":{"password":"s3cr3t"},"metadata":{"created_time":"2026-11-22T10:00:00Z","custom_metadata":null,
    "deletion_time":"","destroyed":false,"version":1}},"warnings":null}"#;
const DELETED: &str = r#"{"request_id":"r","data":{"data":null,"metadata":{"deletion_time":"2026-11-22T10:00:00Z",
    "destroyed":false,"version":1}}}"#;

#[test]
fn kv_put_asks_for_the_mount_and_prints_two_sections() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/internal/ui/mounts/secret/app/db", 200, V2),
        ("PUT", "/v1/secret/data/app/db", 200, WRITTEN),
    ]);
    let outcome = line(&server, "kv put -cas=0 secret/app/db password=s3cr3t");
    let expected = "\
=== Secret Path ===
secret/data/app/db

======= Metadata =======
Key                Value
---                -----
created_time       2026-11-22T10:00:00Z
custom_metadata    <nil>
deletion_time      n/a
destroyed          false
version            1
";
    assert_eq!((outcome.code, outcome.out.as_str(), outcome.err.as_str()), (0, expected, ""));
    assert_eq!(
        server.requests(),
        [
            "GET /v1/sys/internal/ui/mounts/secret/app/db",
            r#"PUT /v1/secret/data/app/db {"data":{"password":"s3cr3t"},"options":{"cas":0}}"#
        ]
    );
}

const KV_V2: &[Part] = &[
    ("GET", "/v1/sys/internal/ui/mounts/secret", 200, V2),
    ("GET", "/v1/sys/internal/ui/mounts/secret/a", 200, V2),
    ("GET", "/v1/sys/internal/ui/mounts/secret/gone", 200, V2),
    ("GET", "/v1/sys/internal/ui/mounts/secret/none", 200, V2),
    ("GET", "/v1/secret/data/a", 200, READ),
    ("GET", "/v1/secret/data/a?version=1", 200, READ),
    ("GET", "/v1/secret/data/gone", 404, DELETED),
    ("GET", "/v1/secret/metadata?list=true", 200, r#"{"data":{"keys":["a","b/"]}}"#),
    ("DELETE", "/v1/secret/data/a", 204, ""),
    ("DELETE", "/v1/secret/metadata/a", 204, ""),
    ("PUT", "/v1/secret/delete/a", 204, ""),
    ("PUT", "/v1/secret/undelete/a", 204, ""),
    ("PUT", "/v1/secret/destroy/a", 204, ""),
    (
        "GET",
        "/v1/secret/metadata/a",
        200,
        r#"{"data":{"cas_required":false,"current_version":10,"versions":{
            "10":{"version_data":"x"},"2":{"version_data":"y"}}}}"#,
    ),
];

#[test]
fn kv_get_prints_the_secret_in_sections() {
    let server = Server::playing(KV_V2);
    let outcome = line(&server, "kv get -version=1 secret/a");
    let expected = "\
== Secret Path ==
secret/data/a

======= Metadata =======
Key                Value
---                -----
created_time       2026-11-22T10:00:00Z
custom_metadata    <nil>
deletion_time      n/a
destroyed          false
version            1

====== Data ======
Key         Value
---         -----
password    s3cr3t
";
    assert_eq!((outcome.code, outcome.out.as_str(), outcome.err.as_str()), (0, expected, ""));
    assert_eq!(server.requests()[1], "GET /v1/secret/data/a?version=1");
}

#[test]
fn kv_get_of_one_field_prints_it_bare() {
    let server = Server::playing(KV_V2);
    for (command, code, out, err) in [
        ("kv get -field=password secret/a", 0, "s3cr3t", ""),
        ("kv get -mount=secret -field=password a", 0, "s3cr3t", ""),
        ("kv get -field=data secret/a", 0, "map[password:s3cr3t]", ""),
        ("kv get -field=metadata secret/a", 1, "", "Field \"metadata\" not present in secret\n"),
        ("kv get -field=password secret/gone", 2, "", "No data found at secret/data/gone\n"),
    ] {
        let outcome = line(&server, command);
        assert_eq!((outcome.code, outcome.out.as_str(), outcome.err.as_str()), (code, out, err), "{command}");
    }
}

#[test]
fn a_deleted_version_is_no_error_and_a_missing_secret_is() {
    let server = Server::playing(KV_V2);
    let gone = line(&server, "kv get secret/gone");
    assert_eq!((gone.code, gone.err.as_str()), (0, ""));
    assert!(gone.out.contains("= Metadata =") && !gone.out.contains("Data =="), "{}", gone.out);
    for command in ["kv get secret/none", "kv get -format=json secret/none"] {
        let none = line(&server, command);
        assert_eq!(
            (none.code, none.out.as_str(), none.err.as_str()),
            (2, "", "No value found at secret/data/none\n")
        );
    }
    let none = line(&server, "kv list -format=json secret/none");
    assert_eq!((none.code, none.out.as_str()), (2, "{}\n"));
    let none = line(&server, "kv list secret/none");
    assert_eq!((none.code, none.err.as_str()), (2, "No value found at secret/metadata/none\n"));
}

#[test]
fn the_other_kv_commands_send_what_vaults_send() {
    let server = Server::playing(KV_V2);
    for (command, request, out) in [
        ("kv list secret", "GET /v1/secret/metadata?list=true", "Keys\n----\na\nb/\n"),
        (
            "kv list -format=json -mount=secret",
            "GET /v1/secret/metadata?list=true",
            "[\n  \"a\",\n  \"b/\"\n]\n",
        ),
        (
            "kv delete secret/a",
            "DELETE /v1/secret/data/a",
            "Success! Data deleted (if it existed) at: secret/data/a\n",
        ),
        (
            "kv delete -versions=1,2 secret/a",
            r#"PUT /v1/secret/delete/a {"versions":["1","2"]}"#,
            "Success! Data deleted (if it existed) at: secret/data/a\n",
        ),
        (
            "kv undelete -versions=1 secret/a",
            r#"PUT /v1/secret/undelete/a {"versions":["1"]}"#,
            "Success! Data written to: secret/undelete/a\n",
        ),
        (
            "kv destroy -versions 3 secret/a",
            r#"PUT /v1/secret/destroy/a {"versions":["3"]}"#,
            "Success! Data written to: secret/destroy/a\n",
        ),
        (
            "kv metadata delete secret/a",
            "DELETE /v1/secret/metadata/a",
            "Success! Data deleted (if it existed) at: secret/metadata/a\n",
        ),
        ("kv delete -format=json secret/a", "DELETE /v1/secret/data/a", ""),
    ] {
        let outcome = line(&server, command);
        assert_eq!((outcome.code, outcome.out.as_str(), outcome.err.as_str()), (0, out, ""), "{command}");
        assert_eq!(server.requests().last().unwrap(), request);
    }
}

#[test]
fn kv_metadata_lists_versions_in_the_order_of_their_numbers() {
    let outcome = line(&Server::playing(KV_V2), "kv metadata get secret/a");
    let expected = "\
= Metadata Path =
secret/metadata/a

======= Metadata =======
Key                Value
---                -----
cas_required       false
current_version    10

===== Version 2 =====
Key             Value
---             -----
version_data    y

===== Version 10 =====
Key             Value
---             -----
version_data    x
";
    assert_eq!((outcome.code, outcome.out.as_str()), (0, expected), "{}", outcome.err);
}

#[test]
fn kv_of_version_1_has_no_inner_paths() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/internal/ui/mounts/kv1/a", 200, V1),
        ("PUT", "/v1/kv1/a", 204, ""),
        ("GET", "/v1/kv1/a", 200, r#"{"lease_duration":2764800,"data":{"x":"1"}}"#),
    ]);
    let put = line(&server, "kv put kv1/a x=1");
    assert_eq!((put.code, put.out.as_str()), (0, "Success! Data written to: kv1/a\n"));
    assert_eq!(server.requests()[1], r#"PUT /v1/kv1/a {"x":"1"}"#);
    let get = line(&server, "kv get kv1/a");
    assert_eq!((get.code, get.out.as_str()), (0, "== Data ==\nKey    Value\n---    -----\nx      1\n"));
    let undelete = line(&server, "kv undelete -versions=1 kv1/a");
    assert_eq!((undelete.code, undelete.err.as_str()), (1, "Undelete not supported on KV Version 1\n"));
    let metadata = line(&server, "kv metadata get kv1/a");
    assert_eq!((metadata.code, metadata.err.as_str()), (1, "Metadata not supported on KV Version 1\n"));
}

const LOGICAL: &[Part] = &[
    ("GET", "/v1/kv1/a?version=1", 200, r#"{"request_id":"r","data":{"x":"1"}}"#),
    ("PUT", "/v1/kv1/a", 204, ""),
    ("DELETE", "/v1/kv1/a", 204, ""),
    (
        "DELETE",
        "/v1/nosuch/a",
        404,
        r#"{"errors":["no handler for route \"nosuch/a\". route entry not found."]}"#,
    ),
    ("GET", "/v1/warned", 404, r#"{"warnings":["mind the path"]}"#),
    ("GET", "/v1/denied", 403, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#),
    ("GET", "/v1/odd%20path%3F", 200, r#"{"data":{"x":"1"}}"#),
];

#[test]
fn read_write_and_delete_send_what_vaults_send() {
    let server = Server::playing(LOGICAL);
    for (command, request, code, out, err) in [
        ("read kv1/a version=1", "GET /v1/kv1/a?version=1", 0, "Key    Value\n---    -----\nx      1\n", ""),
        ("read -field=x kv1/a version=1", "GET /v1/kv1/a?version=1", 0, "1", ""),
        (
            "read -field=y kv1/a version=1",
            "GET /v1/kv1/a?version=1",
            1,
            "",
            "Field \"y\" not present in secret\n",
        ),
        ("read none", "GET /v1/none", 2, "", "No value found at none\n"),
        ("write kv1/a x=1 y=@@", "", 1, "", ""),
        ("write kv1/a x=1", r#"PUT /v1/kv1/a {"x":"1"}"#, 0, "Success! Data written to: kv1/a\n", ""),
        (
            "write -field=x kv1/a x=1",
            r#"PUT /v1/kv1/a {"x":"1"}"#,
            0,
            "Success! Data written to: kv1/a\n",
            "",
        ),
        ("write -f kv1/a", "PUT /v1/kv1/a null", 0, "Success! Data written to: kv1/a\n", ""),
        ("write -format=json kv1/a x=1", r#"PUT /v1/kv1/a {"x":"1"}"#, 0, "", ""),
        ("delete /kv1/a/", "DELETE /v1/kv1/a", 0, "Success! Data deleted (if it existed) at: kv1/a\n", ""),
    ] {
        let outcome = line(&server, command);
        assert_eq!((outcome.code, outcome.out.as_str()), (code, out), "{command}: {}", outcome.err);
        assert!(outcome.err.starts_with(err), "{command}: {}", outcome.err);
        assert_eq!(server.requests().last().map_or("", |request| request), request);
    }
    let outcome = keystead(&at(&server), "", &["read", "odd path?"]);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

#[test]
fn errors_of_the_server_come_in_the_known_block() {
    let server = Server::playing(LOGICAL);
    let outcome = line(&server, "read denied");
    let block = format!(
        "Error reading denied: Error making API request.\n\nURL: GET {}/v1/denied\nCode: 403. Errors:\n\n\
         * 1 error occurred:\n\t* permission denied\n\n\n",
        server.address
    );
    assert_eq!((outcome.code, outcome.out.as_str(), outcome.err), (2, "", block));
    let outcome = line(&server, "delete nosuch/a");
    assert_eq!(outcome.code, 2);
    assert!(outcome.err.starts_with("Error deleting nosuch/a: Error making API request.\n\nURL: DELETE "));

    let warned = line(&server, "read warned");
    assert_eq!((warned.code, warned.out.as_str()), (0, ""));
    assert!(warned.err.contains("  * mind the path\n"));
}

#[test]
fn raw_prints_the_body_and_only_read_has_it() {
    let server = Server::playing(LOGICAL);
    let raw = line(&server, "read -format=raw kv1/a version=1");
    assert_eq!((raw.code, raw.out.as_str()), (0, "{\"request_id\":\"r\",\"data\":{\"x\":\"1\"}}\n"));
    let miss = line(&server, "read -format=raw none");
    assert_eq!(miss.code, 2);
    assert!(miss.err.starts_with("Error reading: none: Error making API request."));
    let list = line(&server, "list -format=raw none");
    assert_eq!(
        (list.code, list.err.as_str()),
        (1, "This command does not support the -format=raw option.\n")
    );
}

#[test]
fn a_server_that_is_not_there_is_2_but_1_for_status() {
    let nowhere = Environment::default().with("VAULT_ADDR", "http://127.0.0.1:1");
    let read = keystead(&nowhere, "", &["read", "secret/a"]);
    let text = "Get \"http://127.0.0.1:1/v1/secret/a\": dial tcp 127.0.0.1:1: connect: connection refused\n";
    assert_eq!((read.code, read.err), (2, format!("Error reading secret/a: {text}")));
    let status = keystead(&nowhere, "", &["status"]);
    assert_eq!(status.code, 1);
    assert!(
        status
            .err
            .starts_with("Error checking seal status: Get \"http://127.0.0.1:1/v1/sys/seal-status\": dial")
    );
}

const SEALED: &str = r#"{"type":"shamir","initialized":true,"sealed":true,"t":3,"n":5,"progress":1,"nonce":"n-1",
    "version":"1.16.3","build_date":"b","migration":false,"recovery_seal":false,"storage_type":"raft"}"#;

#[test]
fn status_of_a_sealed_node_is_2_and_the_leaders_silence_no_error() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/seal-status", 200, SEALED),
        ("GET", "/v1/sys/leader", 503, r#"{"errors":["Vault is sealed"]}"#),
        ("PUT", "/v1/sys/unseal", 200, SEALED),
    ]);
    let status = line(&server, "status");
    assert_eq!((status.code, status.err.as_str()), (2, ""));
    assert!(status.out.contains("Unseal Progress    1/3\nUnseal Nonce       n-1\n"), "{}", status.out);
    assert_eq!(server.requests(), ["GET /v1/sys/seal-status", "GET /v1/sys/leader"]);

    let unseal = line(&server, "operator unseal abc");
    assert_eq!((unseal.code, unseal.out), (0, status.out));
    assert_eq!(server.requests()[0], r#"PUT /v1/sys/unseal {"key":"abc","migrate":false,"reset":false}"#);
    assert_eq!(line(&server, "operator unseal -reset").code, 0);
    assert_eq!(server.requests()[0], r#"PUT /v1/sys/unseal {"reset":true}"#);

    let unasked = line(&server, "operator unseal");
    assert_eq!((unasked.code, unasked.out.as_str()), (1, "Unseal Key (will be hidden): \n"));
    assert!(unasked.err.ends_with("file descriptor 0 is not a terminal\n"));
    assert!(server.requests().is_empty());
}

#[test]
fn init_sends_counts_and_prints_keys() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/seal-status", 200, SEALED),
        ("GET", "/v1/sys/init", 200, r#"{"initialized":false}"#),
        ("PUT", "/v1/sys/init", 200, r#"{"keys":["00"],"keys_base64":["AA=="],"root_token":"s.r"}"#),
    ]);
    let init = line(&server, "operator init -key-shares=1 -key-threshold=1 -format=json");
    assert_eq!(init.code, 0, "{}", init.err);
    let json: serde_json::Value = serde_json::from_str(&init.out).unwrap();
    assert_eq!((&json["unseal_keys_b64"][0], &json["unseal_threshold"]), (&"AA==".into(), &1.into()));
    let body = server.requests()[1].strip_prefix("PUT /v1/sys/init ").unwrap().to_owned();
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let expected = serde_json::json!({"secret_shares": 1, "secret_threshold": 1, "stored_shares": 0, "pgp_keys": null,
        "recovery_shares": 0, "recovery_threshold": 0, "recovery_pgp_keys": null, "root_token_pgp_key": ""});
    assert_eq!(body, expected);

    let status = line(&server, "operator init -status");
    assert_eq!((status.code, status.out.as_str()), (2, "Vault is not initialized\n"));
    let status = line(&server, "operator init -status -format=json");
    assert_eq!((status.code, status.out.as_str()), (2, "{\n  \"Initialized\": false\n}\n"));
}

#[test]
fn operators_commands_send_what_vaults_send() {
    let server = Server::playing(&[
        ("PUT", "/v1/sys/seal", 204, ""),
        ("PUT", "/v1/sys/storage/raft/remove-peer", 204, ""),
        ("POST", "/v1/sys/storage/raft/join", 200, r#"{"joined":true}"#),
        ("POST", "/v1/sys/mounts/x", 204, ""),
        ("DELETE", "/v1/sys/mounts/x", 204, ""),
    ]);
    let seal = line(&server, "operator seal");
    assert_eq!((seal.code, seal.out.as_str()), (0, "Success! Vault is sealed.\n"));
    let remove = line(&server, "operator raft remove-peer n2");
    assert_eq!((remove.code, remove.out.as_str()), (0, "Peer removed successfully!\n"));
    let join = line(&server, "operator raft join https://leader:8200");
    assert_eq!((join.code, join.out.as_str()), (0, "Key       Value\n---       -----\nJoined    true\n"));
    let peers = line(&server, "operator raft list-peers");
    assert_eq!((peers.code, peers.err.as_str()), (2, "No raft cluster configuration found\n"));
    let requests = server.requests();
    assert_eq!(
        requests[..2],
        ["PUT /v1/sys/seal", r#"PUT /v1/sys/storage/raft/remove-peer {"server_id":"n2"}"#]
    );
    assert!(requests[2].contains(r#""leader_api_addr":"https://leader:8200""#));

    let enable = line(&server, "secrets enable -path=x -version=2 -max-lease-ttl=1h kv");
    assert_eq!((enable.code, enable.out.as_str()), (0, "Success! Enabled the kv secrets engine at: x/\n"));
    let disable = line(&server, "secrets disable x");
    assert_eq!(disable.out, "Success! Disabled the secrets engine (if it existed) at: x/\n");
    assert_eq!(
        server.requests()[0],
        "POST /v1/sys/mounts/x {\"config\":{\"default_lease_ttl\":\"0s\",\"force_no_cache\":false,\
         \"max_lease_ttl\":\"1h0m0s\",\"options\":null},\"description\":\"\",\"external_entropy_access\":false,\
         \"local\":false,\"options\":{\"version\":\"2\"},\"seal_wrap\":false,\"type\":\"kv\"}"
    );
    let missing = line(&server, "operator raft remove-peer");
    assert_eq!((missing.code, missing.err.as_str()), (1, "Incorrect arguments (expected 1, got 0)\n"));
}

const LOOKUP: Part = (
    "GET",
    "/v1/auth/token/lookup-self",
    200,
    r#"{"data":{"id":"s.root","accessor":"acc","policies":["root"],"ttl":0,"renewable":false,"meta":null}}"#,
);

#[test]
fn login_checks_and_stores_the_token() {
    let server = Server::playing(&[LOOKUP]);
    let home = tempfile::tempdir().unwrap();
    let environment = at(&server).with("HOME", home.path());
    let login = keystead(&environment, "", &["login", "s.root"]);
    assert_eq!((login.code, login.err.as_str()), (0, ""));
    assert!(
        login.out.starts_with("Success! You are now authenticated.")
            && login.out.contains("token_policies       [\"root\"]\n")
    );
    assert_eq!(server.requests(), ["[s.root] GET /v1/auth/token/lookup-self"]);
    assert_eq!(keystead(&environment, "", &["print", "token"]).out, "s.root\n");

    let denied = keystead(&environment, "", &["read", "x"]);
    assert_eq!((denied.code, server.requests()), (2, vec!["[s.root] GET /v1/x".to_owned()]));
    let overridden = environment.clone().with("VAULT_TOKEN", "s.other");
    assert_eq!(keystead(&overridden, "", &["print", "token"]).out, "s.other\n");
    let login = keystead(&overridden, "", &["login", "token=s.root"]);
    assert!(login.err.contains("VAULT_TOKEN environment variable is set!"), "{}", login.err);
}

#[test]
fn login_can_print_the_token_only_and_store_nothing() {
    let server = Server::playing(&[LOOKUP]);
    let home = tempfile::tempdir().unwrap();
    let environment = at(&server).with("HOME", home.path());
    let login = keystead(&environment, "s.root\n", &["login", "-token-only", "-"]);
    assert_eq!((login.code, login.out.as_str(), login.err.as_str()), (0, "s.root", ""));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0);
    let unasked = keystead(&environment, "", &["login"]);
    assert_eq!((unasked.code, unasked.out.as_str()), (2, ""));
    assert!(unasked.err.starts_with("Token (will be hidden): \nError authenticating: "));
    let unknown = keystead(&environment, "", &["login", "-method=nosuch"]);
    assert_eq!(unknown.code, 1);
}

#[test]
fn mistakes_on_this_side_are_1() {
    let server = Server::playing(&[]);
    for (command, err) in [
        ("kv get", "Not enough arguments (expected 1, got 0)\n"),
        ("status x", "Too many arguments (expected 0, got 1)\n"),
        ("kv get -badflag secret/a", "flag provided but not defined: -badflag\n"),
        ("list -field=x secret", "flag provided but not defined: -field\n"),
        ("status -format=bogus", "Invalid output format: bogus\n"),
        ("status -format bogus", "Invalid output format: bogus\n"),
        ("kv put secret/a", "Must supply data\n"),
        ("write secret/a", "Must supply data or use -force\n"),
        (
            "kv put secret/a x",
            "Failed to parse K=V data: invalid key/value pair \"x\": format must be key=value\n",
        ),
        (
            "kv get secret/a -field=z",
            "Command flags must be provided before positional arguments. The following arguments will not be parsed \
             as flags: [-field=z]\nToo many arguments (expected 1, got 2)\n",
        ),
        (
            "kv undelete secret/a",
            "No versions provided, use the \"-versions\" flag to specify the version to undelete.\n",
        ),
        ("read -address=127.0.0.1:8200 x", "address \"127.0.0.1:8200\" needs http:// or https:// in front\n"),
    ] {
        let outcome = line(&server, command);
        assert_eq!((outcome.code, outcome.out.as_str(), outcome.err.as_str()), (1, "", err), "{command}");
    }
    let unreadable = line(&server, "read -address=https://127.0.0.1:1 -ca-cert=/nonexistent/ca.pem x");
    assert_eq!(unreadable.code, 1);
    assert!(unreadable.err.contains("/nonexistent/ca.pem"), "{}", unreadable.err);
    assert!(server.requests().is_empty());
}

#[test]
fn the_format_is_found_behind_the_data_which_keep_it() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/internal/ui/mounts/secret/a", 200, V2),
        ("PUT", "/v1/secret/data/a", 200, WRITTEN),
    ]);
    let put = line(&server, "kv put secret/a z=1 -format=json");
    assert!(put.code == 0 && put.out.starts_with("{\n  \"request_id\": \"r\""), "{}", put.out);
    assert!(put.err.starts_with("WARNING!"));
    let body = r#"PUT /v1/secret/data/a {"data":{"-format":"json","z":"1"},"options":{}}"#;
    assert_eq!(server.requests()[1], body);
    let environment = at(&server).with("VAULT_FORMAT", "JSON");
    assert!(keystead(&environment, "", &["kv", "put", "secret/a", "z=1"]).out.starts_with('{'));
}

#[test]
fn usage_goes_where_scripts_expect_it() {
    let environment = Environment::default();
    let run = |args: &[&str]| keystead(&environment, "", args);
    for args in [[].as_slice(), &["help"], &["nosuch"], &["nosuch", "-h"]] {
        let outcome = run(args);
        assert_eq!((outcome.code, outcome.out.as_str()), (127, ""), "{args:?}");
        assert!(outcome.err.starts_with("Usage: keystead <command> [args]"));
    }
    for args in [["kv"].as_slice(), &["kv", "nosuch"], &["operator"]] {
        let outcome = run(args);
        assert_eq!((outcome.code, outcome.out.as_str()), (1, ""), "{args:?}");
        assert!(outcome.err.contains("Subcommands:"), "{args:?}");
    }
    for args in [["kv", "get", "-h"].as_slice(), &["status", "-help"], &["kv", "--help"], &["-h"]] {
        let outcome = run(args);
        assert_eq!((outcome.code, outcome.err.as_str()), (0, ""), "{args:?}");
        assert!(outcome.out.starts_with("Usage: keystead "), "{args:?}");
    }
    let early = run(&["-address=http://x", "status"]);
    assert_eq!((early.code, early.out.as_str()), (1, ""));
    assert!(early.err.starts_with("Invalid flags before the subcommand."));
}

#[test]
fn the_version_is_one_line_under_each_name() {
    let environment = Environment::default();
    for args in [["version"], ["-v"], ["-version"], ["--version"]] {
        let outcome = keystead(&environment, "", &args);
        assert!(outcome.code == 0 && outcome.out.starts_with("Keystead v0."), "{args:?}: {}", outcome.out);
        assert_eq!(outcome.out.lines().count(), 1);
    }
    assert!(
        commands::version::line(Program::of(Some(&"/usr/bin/vault".to_owned())))
            .starts_with("Vault v1.16.3 (")
    );
}

#[test]
fn curl_and_policy_are_printed_in_place_of_the_request() {
    let server = Server::playing(&[("GET", "/v1/sys/internal/ui/mounts/secret/a", 200, V2)]);
    let environment = at(&server).with("VAULT_TOKEN", "s.root");
    let curl = keystead(
        &environment,
        "",
        &["kv", "put", "-output-curl-string", "-wrap-ttl=5m", "secret/a", "x=it's"],
    );
    let expected = format!(
        "curl -X PUT -H \"X-Vault-Request: true\" -H \"X-Vault-Token: $(keystead print token)\" -H \"X-Vault-Wrap-Ttl: \
         5m0s\" -d '{{\"data\":{{\"x\":\"it'\"'\"'s\"}},\"options\":{{}}}}' \"{}/v1/secret/data/a\"\n",
        server.address
    );
    assert_eq!((curl.code, curl.out), (0, expected));
    let policy = keystead(&environment, "", &["kv", "get", "-output-policy", "secret/a"]);
    assert_eq!(policy.out, "path \"secret/data/a\" {\n  capabilities = [\"read\"]\n}\n");
    assert_eq!(server.requests().len(), 2);
}

#[test]
fn tls_makes_an_authority_and_a_certificate_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let environment = Environment::default();
    let out_dir = format!("-out-dir={}", directory.path().display());
    let ca = keystead(&environment, "", &["tls", "ca", &out_dir]);
    assert_eq!(ca.code, 0, "{}", ca.err);
    let mode = std::fs::metadata(path("ca-key.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (ca, key) = (format!("-ca={}", path("ca.pem")), format!("-ca-key={}", path("ca-key.pem")));
    let (out, key_out) = (format!("-out={}", path("n.pem")), format!("-key-out={}", path("n-key.pem")));
    let args = ["tls", "cert", &ca, &key, "-dns=localhost,n1", "-ip=127.0.0.1", &out, &key_out];
    let cert = keystead(&environment, "", &args);
    assert_eq!(cert.code, 0, "{}", cert.err);
    assert!(std::fs::read_to_string(path("n.pem")).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));
    let again = keystead(&environment, "", &args);
    assert!(again.code == 1 && again.err.contains("is there already"), "{}", again.err);
}

//! What commands send that a development server cannot be made to need, or that it does not show.

use super::*;

const DENIED: &str = r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;

#[test]
fn kv_patch_reads_and_writes_where_the_policy_has_no_patch() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/internal/ui/mounts/secret/a", 200, V2),
        ("PATCH", "/v1/secret/data/a", 403, DENIED),
        ("GET", "/v1/secret/data/a", 200, READ),
        ("PUT", "/v1/secret/data/a", 200, WRITTEN),
    ]);
    let patch = line(&server, "kv patch secret/a user=u");
    assert_eq!(patch.code, 0, "{}", patch.err);
    assert!(patch.err.starts_with("Data was written to secret/data/a but we recommend"), "{}", patch.err);
    assert_eq!(
        server.requests()[1..],
        [
            r#"PATCH /v1/secret/data/a {"data":{"user":"u"},"options":{}}"#,
            "GET /v1/secret/data/a",
            r#"PUT /v1/secret/data/a {"data":{"password":"s3cr3t","user":"u"},"options":{"cas":1}}"#
        ]
    );
    // Who asks for one of the methods gets that one.
    let patch = line(&server, "kv patch -method=patch secret/a user=u");
    assert_eq!((patch.code, server.requests().len()), (2, 2));
    let removed = line(&server, "kv patch -method=rw -remove-data=password secret/a user=u");
    assert_eq!(removed.code, 0);
    let body = r#"PUT /v1/secret/data/a {"data":{"user":"u"},"options":{"cas":1}}"#;
    assert_eq!(server.requests().last().unwrap(), body);
}

#[test]
fn kv_metadata_sends_only_what_was_given() {
    let server = Server::playing(&[
        ("GET", "/v1/sys/internal/ui/mounts/secret/a", 200, V2),
        ("PUT", "/v1/secret/metadata/a", 204, ""),
        ("PATCH", "/v1/secret/metadata/a", 204, ""),
    ]);
    for (command, request) in [
        ("kv metadata put secret/a", "PUT /v1/secret/metadata/a {}"),
        (
            "kv metadata put -max-versions=0 -cas-required -delete-version-after=90 secret/a",
            r#"PUT /v1/secret/metadata/a {"cas_required":true,"delete_version_after":"1m30s","max_versions":0}"#,
        ),
        ("kv metadata patch secret/a", r#"PATCH /v1/secret/metadata/a {"custom_metadata":{}}"#),
        (
            "kv metadata patch -cas-required=false -custom-metadata=a=b -remove-custom-metadata=c secret/a",
            r#"PATCH /v1/secret/metadata/a {"cas_required":false,"custom_metadata":{"a":"b","c":null}}"#,
        ),
    ] {
        let outcome = line(&server, command);
        assert_eq!(
            (outcome.code, outcome.out.as_str()),
            (0, "Success! Data written to: secret/metadata/a\n")
        );
        assert_eq!(server.requests().last().unwrap(), request);
    }
}

#[test]
fn mounts_are_tuned_with_what_was_given_and_moved_until_they_are() {
    let server = Server::playing(&[
        ("POST", "/v1/sys/mounts/kv1/tune", 204, ""),
        ("POST", "/v1/sys/mounts/x", 204, ""),
        ("POST", "/v1/sys/remount", 200, r#"{"data":{"migration_id":"m-1"}}"#),
        ("GET", "/v1/sys/remount/status/m-1", 200, r#"{"data":{"migration_info":{"status":"failure"}}}"#),
    ]);
    let tune = line(&server, "secrets tune kv1/");
    assert_eq!((tune.code, tune.out.as_str()), (0, "Success! Tuned the secrets engine at: kv1/\n"));
    line(&server, "secrets tune -default-lease-ttl=1h -version=2 -allowed-response-headers=A,B kv1");
    line(&server, "kv enable-versioning kv1");
    assert_eq!(
        server.requests(),
        [
            r#"POST /v1/sys/mounts/kv1/tune {"default_lease_ttl":"","max_lease_ttl":"","options":null}"#.to_owned(),
            "POST /v1/sys/mounts/kv1/tune {\"allowed_response_headers\":[\"A\",\"B\"],\"default_lease_ttl\":\"1h0m0s\",\
             \"max_lease_ttl\":\"\",\"options\":{\"version\":\"2\"}}"
                .to_owned(),
            r#"POST /v1/sys/mounts/kv1/tune {"default_lease_ttl":"","max_lease_ttl":"","options":{"version":"2"}}"#
                .to_owned(),
        ]
    );
    line(&server, "secrets enable -path=x -plugin-name=mine -listing-visibility=hidden plugin");
    let enabled = server.requests().remove(0);
    assert!(
        enabled.contains(r#""type":"mine""#) && enabled.contains(r#""listing_visibility":"hidden""#),
        "{enabled}"
    );

    let moved = line(&server, "secrets move kv1 kv2");
    assert_eq!(
        (moved.code, server.requests().remove(0)),
        (2, r#"POST /v1/sys/remount {"from":"kv1/","to":"kv2/"}"#.to_owned())
    );
    assert_eq!(moved.out, "Started moving secrets engine kv1/ to kv2/, with migration ID m-1\n");
    assert!(moved.err.starts_with("Failure! Error encountered moving secrets engine kv1/ to kv2/"));
}

const LIST: &str = r#"{"request_id":"r","data":{"keys":["a","b/"]}}"#;

#[test]
fn unwrap_shows_what_the_command_would_have_shown() {
    let server = Server::playing(&[("PUT", "/v1/sys/wrapping/unwrap", 200, READ)]);
    let environment = at(&server).with("VAULT_TOKEN", "s.own").with("VAULT_WRAP_TTL", "5m");
    let unwrap = |args: &[&str]| keystead(&environment, "", &[&["unwrap"], args].concat());
    assert!(unwrap(&["s.wrap"]).out.starts_with("Key         Value\n"));
    assert_eq!(unwrap(&["-field=data", "s.own"]).out, "map[password:s3cr3t]");
    assert_eq!(unwrap(&[]).code, 0);
    let anonymous = at(&server);
    assert_eq!(keystead(&anonymous, "", &["unwrap", "s.wrap"]).code, 0);
    assert_eq!(
        server.requests(),
        [
            r#"[s.own] PUT /v1/sys/wrapping/unwrap {"token":"s.wrap"}"#,
            "[s.own] PUT /v1/sys/wrapping/unwrap",
            "[s.own] PUT /v1/sys/wrapping/unwrap",
            "[s.wrap] PUT /v1/sys/wrapping/unwrap"
        ]
    );
    let server = Server::playing(&[("PUT", "/v1/sys/wrapping/unwrap", 200, LIST)]);
    assert_eq!(line(&server, "unwrap t").out, "Keys\n----\na\nb/\n");
    let server = Server::playing(&[(
        "PUT",
        "/v1/sys/wrapping/unwrap",
        400,
        r#"{"errors":["wrapping token is not valid or does not exist"]}"#,
    )]);
    let twice = line(&server, "unwrap t");
    assert_eq!(twice.code, 2);
    assert!(twice.err.starts_with("Error unwrapping: Error making API request."), "{}", twice.err);
}

#[test]
fn help_history_and_members_are_shown() {
    let server = Server::playing(&[
        (
            "GET",
            "/v1/secret?help=1",
            200,
            r#"{"help":"About it.","openapi":{"openapi":"3.0.2"},"see_also":null}"#,
        ),
        (
            "GET",
            "/v1/sys/version-history?list=true",
            200,
            r#"{"data":{"keys":["1.16.3"],"key_info":{"1.16.3":{"timestamp_installed":"2026-11-22T10:00:00Z"}}}}"#,
        ),
        ("GET", "/v1/sys/ha-status", 200, r#"{"data":{"nodes":[{"hostname":"a","active_node":true}]}}"#),
    ]);
    assert_eq!(line(&server, "path-help secret/").out, "About it.\n");
    assert_eq!(line(&server, "path-help -format=json secret").out, "{\"openapi\":\"3.0.2\"}\n");
    let none = line(&server, "path-help none");
    assert_eq!(none.code, 2);
    let history = line(&server, "version-history");
    assert!(history.out.ends_with("\n1.16.3   2026-11-22T10:00:00Z  n/a\n"), "{}", history.out);
    assert!(history.err.contains("Note:\nUse of this command"), "{}", history.err);
    let members: serde_json::Value =
        serde_json::from_str(&line(&server, "operator members -format=json").out).unwrap();
    assert_eq!(
        (&members["Nodes"][0]["hostname"], &members["Nodes"][0]["last_echo"]),
        (&"a".into(), &().into())
    );
}

#[test]
fn the_next_address_is_asked_when_one_is_not_there() {
    let server = Server::playing(&[("GET", "/v1/kv1/a", 200, r#"{"data":{"x":"1"}}"#)]);
    let list = format!("http://127.0.0.1:1, {}", server.address);
    let read = keystead(&Environment::default().with("VAULT_ADDR", list), "", &["read", "-field=x", "kv1/a"]);
    assert_eq!((read.code, read.out.as_str()), (0, "1"), "{}", read.err);
}

#[test]
fn status_prints_the_servers_warnings_beside_the_result() {
    let server = Server::playing(&[
        (
            "GET",
            "/v1/sys/seal-status",
            200,
            r#"{"type":"shamir","initialized":true,"sealed":false,"t":1,"n":1,"warnings":["the certificate runs out"]}"#,
        ),
        ("GET", "/v1/sys/leader", 200, r#"{"ha_enabled":true,"is_self":true}"#),
    ]);
    for command in ["status", "status -format=json"] {
        let status = line(&server, command);
        assert_eq!(status.code, 0);
        assert!(!status.out.contains("warnings") && !status.out.contains("runs out"), "{}", status.out);
        assert_eq!(
            status.err,
            "WARNING! The following warnings were returned from Vault:\n\n  * the certificate runs out\n\n"
        );
    }
}

#[test]
fn reads_are_sent_again_where_that_is_asked_for_and_writes_never() {
    let server = Server::playing(&[
        ("GET", "/v1/kv1/a", 503, r#"{"errors":["Vault is sealed"]}"#),
        ("GET", "/v1/kv1/b", 403, DENIED),
        ("PUT", "/v1/kv1/a", 503, r#"{"errors":["Vault is sealed"]}"#),
    ]);
    let retrying = at(&server).with("VAULT_MAX_RETRIES", "1");
    for (environment, args, sent) in [
        (&at(&server), ["read", "kv1/a"].as_slice(), 1),
        (&retrying, &["read", "kv1/a"], 2),
        (&retrying, &["read", "kv1/b"], 1),
        (&retrying, &["write", "kv1/a", "x=1"], 1),
    ] {
        assert_eq!(keystead(environment, "", args).code, 2);
        assert_eq!(server.requests().len(), sent, "{args:?}");
    }
    let wrong = keystead(&at(&server).with("VAULT_MAX_RETRIES", "x"), "", &["read", "kv1/a"]);
    assert_eq!((wrong.code, server.requests().len()), (1, 0));
}

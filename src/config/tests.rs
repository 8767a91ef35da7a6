//! Whole files: the shapes that Vault's documentation and the guides around it print, and what can be wrong in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

use super::*;

/// Writes files into a directory of their own.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("a file is written");
    }
    directory
}

fn load_text(text: &str) -> Result<ServerConfig, ConfigError> {
    let files = [source::parse(Path::new("vault.hcl"), text)?];
    let mut warnings = Vec::new();
    let entries = source::merge(&files, &mut warnings);
    server::read(entries, None, &|_| None, warnings)
}

fn config(text: &str) -> ServerConfig {
    load_text(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The message, such as `vault.hcl:3: ...`.
fn error(text: &str) -> String {
    let Err(error) = load_text(text) else { panic!("loaded:\n{text}") };
    error.to_string()
}

/// A file in which only the raft block is of interest.
fn with_raft(lines: &str) -> String {
    format!("storage \"raft\" {{\n path = \"data\"\n{lines}\n}}\nlistener \"tcp\" {{\n tls_disable = 1\n}}\n")
}

/// A file in which only the listener is of interest; its text begins on line 3.
fn with_listener(lines: &str) -> String {
    format!("storage \"inmem\" {{}}\nlistener \"tcp\" {{\n{lines}\n}}\n")
}

/// A file in which only the top level is of interest; its text begins on line 3.
fn with_top(lines: &str) -> String {
    format!("storage \"inmem\" {{}}\nlistener \"tcp\" {{ tls_disable = 1 }}\n{lines}\n")
}

fn raft(config: &ServerConfig) -> &RaftStorageConfig {
    match &config.storage {
        StorageConfig::Raft(raft) => raft,
        other => panic!("not raft but {}", other.kind()),
    }
}

fn tcp(config: &ServerConfig) -> &TcpListenerConfig {
    match config.listeners.first() {
        Some(ListenerConfig::Tcp(tcp)) => tcp,
        other => panic!("not tcp but {other:?}"),
    }
}

const THREE_NODE: &str = r#"
# Stock Vault, node 1 of 3
storage "raft" {
  path    = "/opt/vault/data"
  node_id = "raft_node_1"
  performance_multiplier = "1"   // weakly typed
  max_entry_size = 2097152

  retry_join {
    leader_api_addr       = "https://10.0.0.2:8200"
    leader_ca_cert_file   = "/opt/vault/tls/ca.pem"
    leader_client_cert_file = "/opt/vault/tls/node.pem"
    leader_client_key_file  = "/opt/vault/tls/node-key.pem"
  }
  retry_join {
    leader_api_addr       = "https://10.0.0.3:8200/"
    leader_tls_servername = "vault.example.com"
    leader_ca_cert        = <<-EOC
      -----BEGIN CERTIFICATE-----
      MIIB
      -----END CERTIFICATE-----
      EOC
  }
}

/* the API
   of this node */
listener "tcp" {
  address            = "0.0.0.0:8200"
  cluster_address    = "0.0.0.0:8201"
  tls_cert_file      = "/opt/vault/tls/node.pem"
  tls_key_file       = "/opt/vault/tls/node-key.pem"
  tls_client_ca_file = "/opt/vault/tls/ca.pem"
  tls_disable        = "false"
  telemetry { unauthenticated_metrics_access = true }
}

listener "tcp" {
  address     = "127.0.0.1:8300"
  tls_disable = true
}

seal "shamir" {}

telemetry {
  prometheus_retention_time = "30s"
  disable_hostname = true
}

api_addr      = "https://10.0.0.1:8200"
cluster_addr  = "https://10.0.0.1:8201"
cluster_name  = "prod"
disable_mlock = true
log_level     = "Warn"
log_format    = "json"
default_lease_ttl = "168h"
max_lease_ttl     = 2592000
linearizable_reads = "quorum"
pid_file = "/run/vault.pid"
"#;

#[test]
fn an_empty_block_where_a_type_belongs_is_not_as_good_as_none() {
    for key in ["seal", "hsm", "storage", "listener"] {
        let message = error(&with_top(&format!("{key} {{}}")));
        assert!(message.contains("needs a type"), "{key}: {message}");
    }
}

#[test]
fn a_stock_file_of_three_nodes_is_read_in_full() {
    let config = config(THREE_NODE);
    let raft = raft(&config);
    assert_eq!(raft.path, PathBuf::from("/opt/vault/data"));
    assert_eq!(raft.node_id.as_deref(), Some("raft_node_1"));
    assert_eq!((raft.performance_multiplier, raft.max_entry_size_bytes), (Some(1), Some(2_097_152)));
    let [first, second] = raft.retry_join.as_slice() else { panic!("two blocks") };
    assert_eq!(first.leader_api_addr, "https://10.0.0.2:8200");
    assert_eq!(first.leader_ca_cert_file, Some("/opt/vault/tls/ca.pem".into()));
    assert_eq!(first.leader_client_key_file, Some("/opt/vault/tls/node-key.pem".into()));
    assert_eq!(second.leader_api_addr, "https://10.0.0.3:8200");
    assert_eq!(second.leader_tls_servername.as_deref(), Some("vault.example.com"));
    let pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    assert_eq!(second.leader_ca_cert.as_deref(), Some(pem));

    let listener = tcp(&config);
    assert_eq!(listener.address.to_string(), "0.0.0.0:8200");
    assert_eq!(listener.cluster_address.to_string(), "0.0.0.0:8201");
    assert!(listener.metrics.unauthenticated);
    let tls = listener.tls.as_ref().expect("TLS");
    assert_eq!(tls.cert_file, PathBuf::from("/opt/vault/tls/node.pem"));
    assert_eq!(tls.client_ca_file, Some("/opt/vault/tls/ca.pem".into()));
    assert_eq!((tls.min_version, tls.require_and_verify_client_cert), (TlsVersion::Tls12, false));
    let Some(ListenerConfig::Tcp(second)) = config.listeners.get(1) else { panic!("a second listener") };
    assert!(second.tls.is_none());
    assert_eq!(second.cluster_address.to_string(), "127.0.0.1:8301");

    assert_eq!(config.api_addr.as_deref(), Some("https://10.0.0.1:8200"));
    assert_eq!(config.cluster_addr.as_deref(), Some("https://10.0.0.1:8201"));
    assert_eq!(config.cluster_name.as_deref(), Some("prod"));
    assert!(config.disable_mlock);
    assert_eq!((config.log_level, config.log_format), (LogLevel::Warn, LogFormat::Json));
    assert_eq!((config.default_lease_ttl_s, config.max_lease_ttl_s), (604_800, 2_592_000));
    assert_eq!(config.linearizable_reads, LinearizableReads::Quorum);
    assert_eq!(config.pid_file, Some("/run/vault.pid".into()));
    assert_eq!(config.telemetry.prometheus_retention_time, Duration::from_secs(30));
    let keys: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["disable_mlock"]);
}

#[test]
fn json_in_all_its_shapes_says_the_same_as_hcl() {
    let raft_object = r#""storage": {"raft": {"path": "data", "node_id": "a",
        "retry_join": [{"leader_api_addr": "https://b:1"}, {"leader_api_addr": "https://c:1"}]}}"#;
    let raft_list = r#""storage": [{"raft": [{"path": "data", "node_id": "a", "retry_join":
        [{"leader_api_addr": "https://b:1"}, {"leader_api_addr": "https://c:1"}]}]}]"#;
    let one = r#""listener": {"tcp": {"address": "127.0.0.1:1", "tls_disable": "1"}}"#;
    let listed = r#""listener": [{"tcp": {"address": "127.0.0.1:1", "tls_disable": 1}}]"#;
    let inner_list = r#""listener": {"tcp": [{"address": "127.0.0.1:1", "tls_disable": true}]}"#;
    for storage in [raft_object, raft_list] {
        for listener in [one, listed, inner_list] {
            let config =
                config(&format!("{{ {storage}, {listener}, \"ui\": false, \"cluster_name\": null }}"));
            let addresses: Vec<_> =
                raft(&config).retry_join.iter().map(|j| j.leader_api_addr.as_str()).collect();
            assert_eq!(addresses, ["https://b:1", "https://c:1"]);
            assert_eq!(tcp(&config).address.to_string(), "127.0.0.1:1");
            assert!(tcp(&config).tls.is_none());
            assert_eq!((config.cluster_name, config.warnings.len()), (None, 0));
        }
    }
    let several = r#"{"storage": {"inmem": {}}, "listener": [{"tcp": {"address": ":1", "tls_disable": 1}},
        {"tcp": {"address": ":5", "tls_disable": 1}}]}"#;
    assert_eq!(config(several).listeners.len(), 2);
}

#[test]
fn the_published_single_node_guide_loads_unchanged() {
    let guide = r#"
   storage "file" {
     path = "/opt/vault/data"
   }

   listener "tcp" {
     address = "0.0.0.0:8200"
     tls_disable = 1
   }

   api_addr = "http://127.0.0.1:8200"
   cluster_addr = "https://127.0.0.1:8201"
   ui = true
"#;
    let config = config(guide);
    let StorageConfig::File { path } = &config.storage else { panic!("file storage") };
    assert_eq!(path, &PathBuf::from("/opt/vault/data"));
    assert!(tcp(&config).tls.is_none() && config.ui);
    assert_eq!(config.warnings[0].key, "ui");
}

#[test]
fn the_published_json_with_the_alias_backend_loads_unchanged() {
    let guide = r#"{
  "api_addr": "https://127.0.0.1:8200",
  "backend": {
    "file": {
      "path": "vault/file"
    }
  },
  "default_lease_ttl": "168h",
  "max_lease_ttl": "720h",
  "listener": {
    "tcp": {
      "address": "0.0.0.0:8200",
      "tls_cert_file": "vault-tls.crt",
      "tls_key_file": "vault-tls.key",
      "tls_min_version": "tls12"
    }
  }
}
"#;
    let config = config(guide);
    assert_eq!(config.storage.kind(), "file");
    assert_eq!((config.default_lease_ttl_s, config.max_lease_ttl_s), (604_800, 2_592_000));
    assert_eq!(tcp(&config).tls.as_ref().map(|tls| tls.min_version), Some(TlsVersion::Tls12));
    assert_eq!(config.warnings, []);
}

#[test]
fn the_published_production_fragment_names_the_embedded_store() {
    let fragment = r#"listener "tcp" {
     address = "0.0.0.0:8200"
     tls_cert_file = "/etc/vault/tls/vault.crt"
     tls_key_file = "/etc/vault/tls/vault.key"
   }
   storage "consul" {
     address = "consul.service.consul:8500"
     path = "vault/"
   }
   ha_storage "consul" {
     address = "consul.service.consul:8500"
     path = "vault/"
   }
"#;
    let message = error(fragment);
    assert!(message.starts_with("vault.hcl:6: storage \"consul\" is a server of its own"), "{message}");
    assert!(message.contains("use storage \"raft\""), "{message}");
    let ha = format!("{}ha_storage \"consul\" {{\n path = \"vault/\"\n}}\n", with_raft(""));
    assert!(error(&ha).contains("ha_storage is not supported: storage \"raft\" replicates by itself"));
}

#[test]
fn storage_of_others_is_refused_without_a_word_of_its_settings() {
    for kind in ["postgresql", "mysql", "etcd", "s3", "dynamodb", "zookeeper", "cassandra"] {
        let text = format!("storage \"{kind}\" {{ connection_url = \"postgres://u:hunter2@h/db\" }}");
        let message = error(&text);
        assert!(message.contains("use storage \"raft\"") && !message.contains("hunter2"), "{message}");
    }
    assert!(error("storage \"raftt\" { }").contains("did you mean \"raft\"?"));
    assert!(error("storage \"floppy\" { }").contains("unknown storage \"floppy\"; use storage \"raft\""));
}

#[test]
fn an_unknown_key_is_refused_with_line_and_nearest_name() {
    let text = with_listener(" address = \"127.0.0.1:8200\"\n tls_cert_fil = \"/cert.pem\"");
    let expected =
        "vault.hcl:4: unknown key \"tls_cert_fil\" in listener \"tcp\"; did you mean \"tls_cert_file\"?";
    assert_eq!(error(&text), expected);
    assert_eq!(
        error(&with_top("api_adr = \"\"")),
        "vault.hcl:3: unknown key \"api_adr\"; did you mean \"api_addr\"?"
    );
    let join = with_raft(" retry_join {\n  leader_api_add = \"https://a\"\n }");
    let expected =
        "vault.hcl:4: unknown key \"leader_api_add\" in retry_join; did you mean \"leader_api_addr\"?";
    assert_eq!(error(&join), expected);
    assert_eq!(error(&with_top("zzzzzzz = 1")), "vault.hcl:3: unknown key \"zzzzzzz\"");
    let json = "{\n \"storage\": {\"inmem\": {}},\n \"listener\": {\"tcp\": {\n  \"adress\": \":1\"\n }}\n}";
    assert!(error(json).starts_with("vault.hcl:4: unknown key \"adress\" in listener \"tcp\""));
}

#[test]
fn a_misplaced_key_is_refused_with_the_place_where_it_belongs() {
    let expected = "vault.hcl:3: unknown key \"node_id\"; \"node_id\" belongs in storage \"raft\"";
    assert_eq!(error(&with_top("node_id = \"a\"")), expected);
    let message = error(&with_raft(" log_level = \"info\""));
    assert!(message.ends_with("\"log_level\" belongs in the top level"), "{message}");
}

#[test]
fn a_key_that_only_vault_acts_upon_is_a_warning_with_its_line() {
    let config = config(&with_top("plugin_directory = \"/plugins\"\nlicense_path = \"/x\""));
    assert_eq!(config.plugins.directory, Some("/plugins".into()));
    let warnings: Vec<_> = config.warnings.iter().map(|w| (w.key.as_str(), w.text.as_str())).collect();
    let text = "vault.hcl:3: \"plugin_directory\" is accepted, but has no effect yet";
    assert_eq!(warnings[0], ("plugin_directory", text));
    assert_eq!(warnings[1].0, "license_path");
}

#[test]
fn whole_blocks_that_only_vault_acts_upon_are_one_warning_each() {
    let text =
        "user_lockout \"all\" {\n lockout_duration = \"10m\"\n}\nservice_registration \"kubernetes\" {}\n";
    let config = config(&with_top(text));
    let keys: Vec<_> = config.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(keys, ["user_lockout", "service_registration"]);
}

#[test]
fn wrong_types_and_values_name_the_key_and_what_is_right() {
    for (text, phrase) in [
        (with_top("ui = \"yes\""), "\"ui\" must be true or false"),
        (with_top("ui = [true]"), "\"ui\" must be a single value"),
        (with_top("ui {}"), "\"ui\" must be a single value"),
        (with_top("log_level = \"loud\""), "must be trace, debug, info, warn or error"),
        (with_top("log_format = \"xml\""), "must be standard or json"),
        (with_top("default_lease_ttl = \"soon\""), "must be a duration"),
        (with_top("default_lease_ttl = \"1500ms\""), "must be whole seconds"),
        (with_top("default_lease_ttl = \"1000h\""), "is longer than max_lease_ttl"),
        (with_top("max_lease_ttl = \"1h\""), "is longer than max_lease_ttl"),
        (with_top("linearizable_reads = \"maybe\""), "must be \"lease\" or \"quorum\""),
        (with_top("telemetry = \"on\""), "must be a block"),
        (with_top("api_addr = \"127.0.0.1:8200\""), "has no scheme: write \"https://127.0.0.1:8200\""),
        (with_top("cluster_addr = \"https://node1\""), "has no port"),
        (with_top("raw_storage_endpoint = true"), "is refused"),
        (with_top("seal \"transit\" { token = \"hunter2\" }"), "seal \"transit\" is not built yet"),
        (with_top("seal \"pkcs1\" {}"), "did you mean \"pkcs11\"?"),
        (with_top("ui = true\nui = false"), "vault.hcl:4: \"ui\" is given twice (first on line 3)"),
        (with_raft(" node_id = \"a b\""), "visible ASCII"),
        (with_raft(&format!(" node_id = \"{}\"", "x".repeat(129))), "1 to 128"),
        (with_raft(" performance_multiplier = 11"), "from 1 (fastest) to 10"),
        (with_raft(" max_entry_size = 0"), "greater than 0"),
        (with_raft(" retry_join {}"), "needs \"leader_api_addr\""),
        (with_raft(" retry_join { leader_api_addr = \"10.0.0.2:8200\" }"), "has no scheme"),
        (with_raft(" retry_join = \"x\""), "must be a block"),
        (with_raft(" retry_join_as_non_voter = true"), "needs at least one retry_join"),
        (with_raft(" disable_clustering = true"), "disable_clustering does not go with storage \"raft\""),
        (
            with_listener(" address = \"127.0.0.1\"\n tls_disable = 1"),
            "\"address\" in listener \"tcp\" has no port",
        ),
        (with_listener(""), "vault.hcl:2: listener \"tcp\" needs \"tls_cert_file\""),
        (with_listener(" tls_cert_file = \"c\""), "needs \"tls_key_file\""),
        (with_listener(" tls_min_version = \"tls10\"\n tls_disable = 1"), "not spoken here"),
        (
            with_listener(
                " tls_cert_file = \"c\"\n tls_key_file = \"k\"\n tls_min_version = \"tls13\"\n \
             tls_max_version = \"tls12\"",
            ),
            "vault.hcl:6: tls_max_version is below tls_min_version",
        ),
        (
            with_listener(
                " tls_cert_file = \"c\"\n tls_key_file = \"k\"\n \
             tls_require_and_verify_client_cert = true",
            ),
            "vault.hcl:5: tls_require_and_verify_client_cert needs",
        ),
        (
            with_listener(" tls_disable = 1\n tls_cipher_suites = \"TLS_RSA_WITH_RC4_128_SHA\""),
            "is not offered",
        ),
        (with_listener(" tls_disable = 1\n x_forwarded_for_authorized_addrs = \"10.0.0.0/40\""), "no range"),
        (with_listener(" tls_disable = 1\n max_request_size = -1"), "whole number"),
        (with_listener(" tls_disable = 1\n custom_response_headers { \"20\" = {} }"), "a status such as"),
        ("storage \"inmem\" {}\nlistener \"tpc\" {}".to_owned(), "did you mean \"tcp\"?"),
        ("storage \"raft\" {}\n".to_owned(), "vault.hcl:1: storage \"raft\" needs \"path\""),
        ("storage \"file\" {}\n".to_owned(), "needs \"path\""),
        ("storage = \"raft\"\n".to_owned(), "must be a block: storage \"TYPE\" { .. }"),
        ("storage { path = \"x\" }\n".to_owned(), "needs a type before its brace"),
        ("storage \"inmem\" {}\nbackend \"inmem\" {}".to_owned(), "vault.hcl:2: a second storage"),
        ("storage \"inmem\" {}\n".to_owned(), "no listener"),
        ("".to_owned(), "no storage"),
        ("storage \"inmem\" {".to_owned(), "the file ends inside the block that opens on line 1"),
        ("{\"storage\": }".to_owned(), "vault.hcl:1: not valid JSON"),
    ] {
        let message = error(&text);
        assert!(message.contains(phrase), "{message:?} lacks {phrase:?}");
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn two_listeners_on_one_address_are_refused_with_both_lines() {
    let both = |first: &str, second: &str, storage: &str| {
        format!(
            "storage {storage}\nlistener \"tcp\" {{ tls_disable = 1, address = \"{first}\" }}\n\
             listener \"tcp\" {{ tls_disable = 1, address = \"{second}\" }}\n"
        )
    };
    let message = error(&both("127.0.0.1:8200", "0.0.0.0:8200", "\"inmem\" {}"));
    let expected = "vault.hcl:3: 0.0.0.0:8200 is wanted twice: by the API address of the listener on line 2, \
                    and as the API address of the listener on line 3; change one of them";
    assert_eq!(message, expected);
    let raft = "\"raft\" { path = \"data\" }";
    assert!(error(&both("127.0.0.1:8200", "127.0.0.1:8201", raft)).contains("the cluster address"));
    assert_eq!(config(&both("127.0.0.1:8200", "127.0.0.1:8201", "\"inmem\" {}")).listeners.len(), 2);
    assert_eq!(config(&both("127.0.0.1:0", "127.0.0.1:0", raft)).listeners.len(), 2);
}

#[test]
fn weak_types_mean_what_they_mean_in_vault() {
    let lines = " tls_disable = \"true\"\n max_request_size = \"1024\"\n max_request_duration = \"1m30s\"\n \
                 http_idle_timeout = 60\n x_forwarded_for_authorized_addrs = \"10.0.0.1, 10.1.0.0/16\"\n \
                 x_forwarded_for_hop_skips = \"1\"";
    let config = config(&with_listener(lines));
    let listener = tcp(&config);
    assert_eq!(listener.max_request_size_bytes, 1024);
    assert_eq!(listener.max_request_duration, Some(Duration::from_secs(90)));
    assert_eq!(listener.timeouts.idle, Duration::from_secs(60));
    let prefixes: Vec<_> =
        listener.x_forwarded_for.authorized.iter().map(|range| range.prefix_bits).collect();
    assert_eq!((prefixes, listener.x_forwarded_for.hop_skips), (vec![32, 16], 1));
}

#[test]
fn response_headers_are_read_as_the_documentation_prints_them() {
    let lines = r#" tls_disable = 1
  custom_response_headers {
    "default" = {
      "Strict-Transport-Security" = ["max-age=31536000", "includeSubDomains"],
      "X-Note" = "a, b",
    },
    "2xx" = {
      "X-Ok" = ["1"],
    },
  }"#;
    let config = config(&with_listener(lines));
    let headers = &tcp(&config).custom_response_headers;
    assert_eq!(headers.iter().map(|group| group.status.as_str()).collect::<Vec<_>>(), ["default", "2xx"]);
    assert_eq!(headers[0].headers[0].1, ["max-age=31536000", "includeSubDomains"]);
    assert_eq!(headers[0].headers[1], ("X-Note".to_owned(), vec!["a, b".to_owned()]));
}

#[test]
fn addresses_in_the_storage_block_count_unless_the_top_level_has_them() {
    let storage = " redirect_addr = \"https://a:1\"\n cluster_addr = \"https://a:2\"";
    let inner = config(&with_raft(storage));
    assert_eq!(inner.api_addr.as_deref(), Some("https://a:1"));
    assert_eq!(inner.cluster_addr.as_deref(), Some("https://a:2"));
    let both = config(&format!("{}api_addr = \"https://b:1\"\n", with_raft(storage)));
    assert_eq!(both.api_addr.as_deref(), Some("https://b:1"));
}

#[test]
fn an_auto_join_is_a_warning_and_no_node_to_ask() {
    let config = config(&with_raft(" retry_join {\n  auto_join = \"provider=aws\"\n }"));
    assert!(raft(&config).retry_join.is_empty());
    assert_eq!(config.warnings[0].key, "auto_join");
}

#[test]
fn client_keys_and_certificates_come_in_pairs_and_once() {
    let join =
        |lines: &str| with_raft(&format!(" retry_join {{\n leader_api_addr = \"https://a\"\n{lines}\n}}"));
    for (lines, phrase) in [
        ("leader_client_cert_file = \"c\"", "no \"leader_client_key_file\""),
        ("leader_client_key = \"hunter2\"", "no \"leader_client_cert_file\""),
        ("leader_ca_cert = \"x\"\nleader_ca_cert_file = \"y\"", "has both"),
        ("leader_client_key = [\"hunter2\"]", "must be a single value"),
    ] {
        let message = error(&join(lines));
        assert!(message.contains(phrase) && !message.contains("hunter2"), "{message}");
    }
}

#[test]
fn a_client_key_in_the_file_is_never_shown() {
    let join = " retry_join {\n leader_api_addr = \"https://a\"\n leader_client_cert = \"c\"\n \
                leader_client_key = \"hunter2\"\n }";
    let config = config(&with_raft(join));
    let key = raft(&config).retry_join[0].leader_client_key.as_ref().expect("a key");
    assert_eq!(key.expose(), "hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn a_unix_listener_is_served_in_the_clear_and_does_not_suffice() {
    let unix = "listener \"unix\" {\n address = \"/run/vault.sock\"\n socket_mode = \"0660\"\n}\n";
    let config = self::config(&with_top(unix));
    let Some(ListenerConfig::Unix(unix_listener)) = config.listeners.get(1) else {
        panic!("a unix listener")
    };
    assert_eq!(unix_listener.mode, Some(0o660));
    assert_eq!(config.warnings, []);
    let with_tls = with_top(&unix.replace("\n}", "\n tls_cert_file = \"x\"\n}"));
    assert!(self::config(&with_tls).warnings[0].text.contains("speaks plain HTTP"));
    assert!(error(&format!("storage \"inmem\" {{}}\n{unix}")).contains("no listener"));
}

#[test]
fn a_directory_is_merged_in_the_order_of_names() {
    let files = directory(&[
        (
            "20-late.json",
            r#"{"log_level": "error", "listener": {"tcp": {"address": ":9", "tls_disable": 1}}}"#,
        ),
        (
            "10-early.hcl",
            "log_level = \"debug\"\ncluster_name = \"x\"\nstorage \"inmem\" {}\nlistener \"tcp\" { tls_disable = 1 }",
        ),
        (".hidden.hcl", "nonsense"),
        ("notes.txt", "nonsense"),
    ]);
    let config = load(&[files.path().to_owned()]).expect("loads");
    assert_eq!((config.log_level, config.cluster_name.as_deref()), (LogLevel::Error, Some("x")));
    let addresses = config.listeners.iter().map(|listener| match listener {
        ListenerConfig::Tcp(tcp) => tcp.address.to_string(),
        ListenerConfig::Unix(_) => panic!("tcp only"),
    });
    let addresses: Vec<_> = addresses.collect();
    assert_eq!(addresses, ["127.0.0.1:8200", "[::]:9"]);
}

#[test]
fn a_storage_of_a_later_file_replaces_the_earlier_one_with_a_warning() {
    let files = directory(&[
        ("a.hcl", "storage \"raft\" { path = \"a\" }\nlistener \"tcp\" { tls_disable = 1 }"),
        ("b.hcl", "backend \"file\" { path = \"b\" }"),
    ]);
    let config = load(&[files.path().join("a.hcl"), files.path().join("b.hcl")]).expect("loads");
    assert_eq!(config.storage.kind(), "file");
    assert!(config.warnings[0].text.contains("a.hcl:1: the storage here is replaced by the one in"));
}

#[test]
fn errors_name_the_file_among_several() {
    let files = directory(&[("a.hcl", "storage \"inmem\" {}"), ("b.hcl", "\n\nlistner \"tcp\" {}")]);
    let Err(ConfigError::File { path, line, message }) = load(&[files.path().to_owned()]) else {
        panic!("loaded")
    };
    assert_eq!((path, line), (files.path().join("b.hcl"), 3));
    assert_eq!(message, "unknown key \"listner\"; did you mean \"listener\"?");
}

#[test]
fn what_cannot_be_read_is_said_with_its_path() {
    let files = directory(&[("readme.md", "")]);
    let missing = files.path().join("missing.hcl");
    let error = load(std::slice::from_ref(&missing)).expect_err("missing");
    assert!(matches!(&error, ConfigError::Read { path, .. } if *path == missing), "{error}");
    let empty = load(&[files.path().to_owned()]).expect_err("an empty directory");
    assert!(empty.to_string().contains("no file whose name ends in .hcl or .json"), "{empty}");
    assert!(matches!(load(&[]), Err(ConfigError::Incomplete { .. })));
    fs::write(files.path().join("binary.hcl"), b"a = 1\n\xff").expect("a file is written");
    let binary = load(&[files.path().join("binary.hcl")]).expect_err("not text");
    assert!(binary.to_string().ends_with("binary.hcl:2: this is not UTF-8 text"), "{binary}");
    fs::write(files.path().join("huge.hcl"), vec![b'#'; 5 << 20]).expect("a file is written");
    let huge = load(&[files.path().join("huge.hcl")]).expect_err("too large");
    assert!(huge.to_string().contains("larger than 4 MiB"), "{huge}");
}

#[test]
fn the_environment_may_give_the_path_that_the_raft_block_lacks() {
    let files = directory(&[("vault.hcl", "storage \"raft\" {}\nlistener \"tcp\" { tls_disable = 1 }")]);
    let env = |name: &str| (name == "VAULT_RAFT_PATH").then(|| "/data".to_owned());
    let config = load_with_env(&[files.path().to_owned()], env).expect("loads");
    assert_eq!(raft(&config).path, PathBuf::from("/data"));
}

#[test]
fn a_file_that_is_cut_off_never_loads_with_half_a_storage_block() {
    for end in (0..THREE_NODE.len()).filter(|&end| THREE_NODE.is_char_boundary(end)) {
        if let Ok(config) = load_text(&THREE_NODE[..end]) {
            assert_eq!(raft(&config).retry_join.len(), 2, "cut off after {end} bytes");
        }
    }
}

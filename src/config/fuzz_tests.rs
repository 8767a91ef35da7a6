//! Fuzz targets for configuration files, HCL and JSON: from the text to the types that the server runs on.

use std::path::Path;

use keystead_fuzz::{Bounds, check};

use super::{
    ServerConfig,
    error::ConfigError,
    hcl::{self, Item, Value},
    server, source,
};

/// A tree's item takes some hundred bytes, and the shortest is written in four.
const BOUNDS: Bounds = Bounds { base_bytes: 1 << 20, bytes_per_byte: 256 };

/// Far more levels than the parser allows, and far fewer than a stack has room for.
const DEPTH_LIMIT: u32 = 100;

const HCL: &str = r#"
# One of everything.
ui = true
cluster_name = "c\u00e9\x41\n"
api_addr = "https://127.0.0.1:8200", cluster_addr = "https://127.0.0.1:8201"
log_level = "info" // and so on
default_lease_ttl = "768h"
max_lease_ttl = 2764800
storage "raft" {
  path = "/var/lib/keystead"
  node_id = "n1"
  performance_multiplier = 1
  max_entry_size = "1048576"
  retry_join {
    leader_api_addr = "https://127.0.0.2:8200"
    leader_ca_cert = <<-PEM
      -----BEGIN CERTIFICATE-----
      AAAA
      -----END CERTIFICATE-----
    PEM
  }
  retry_join { leader_api_addr = "https://[::1]:8200" }
}
listener "tcp" {
  address = "0.0.0.0:8200"
  tls_cert_file = "c.pem"
  tls_key_file = "k.pem"
  tls_min_version = "tls12"
  x_forwarded_for_authorized_addrs = ["10.0.0.0/8", "::1"]
  custom_response_headers { "default" = { "X-A" = ["1", "2",], }, "2xx" = {} }
  telemetry { unauthenticated_metrics_access = false }
}
/* the end */
telemetry { prometheus_retention_time = "30s" disable_hostname = 1 }
seal "shamir" {}
seal "pkcs11" {
  lib = "/m.so"
  slot = "0x1"
  pin = "file:///pin"
  key_id = "0x01"
  priority = 2
}
"#;

const JSON: &str = r#"{
  "ui": true, "cluster_name": "n\u00e9\ud83d\ude00", "disable_mlock": "1", "default_max_request_duration": "90s", "pid_file": null,
  "storage": {"raft": {"path": "data", "node_id": "n\u0031", "retry_join": [
    {"leader_api_addr": "https://127.0.0.2:8200"}, {"leader_api_addr": "https://127.0.0.3:8200"}]}},
  "listener": [{"tcp": {"address": "127.0.0.1:8200", "tls_disable": 1}},
               {"unix": {"address": "/run/keystead.sock", "socket_mode": "0600"}}],
  "telemetry": {"prometheus_retention_time": 30, "disable_hostname": true}
}"#;

fn load(text: &str) -> Result<ServerConfig, ConfigError> {
    let files = [source::parse(Path::new("vault.hcl"), text)?];
    let mut warnings = Vec::new();
    let entries = source::merge(&files, &mut warnings);
    server::read(entries, None, &|_| None, warnings)
}

fn depth(items: &[Item]) -> u32 {
    items.iter().map(|item| 1 + depth_of(&item.value)).max().unwrap_or(0)
}

fn depth_of(value: &Value) -> u32 {
    match value {
        Value::Scalar(_) => 0,
        Value::List(values) => 1 + values.iter().map(depth_of).max().unwrap_or(0),
        Value::Object(items) => depth(items),
    }
}

fn read(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let lines = 1 + text.matches('\n').count();
    match hcl::parse(text) {
        Ok(items) => {
            assert!(depth(&items) <= DEPTH_LIMIT, "nested {} levels deep", depth(&items));
            let placed = items.iter().all(|item| (1..=lines).contains(&(item.line as usize)));
            assert!(placed, "a key stands on a line that there is");
        }
        Err(error) => assert!((1..=lines).contains(&(error.line as usize)), "{error:?} of {lines} lines"),
    }
    match load(text) {
        Ok(config) => assert!(!config.listeners.is_empty()),
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?} would drive a terminal");
            assert!(shown.len() < 2_000, "{shown}");
        }
    }
}

#[test]
fn fuzz_config_hcl() {
    load(HCL).expect("the sample is valid");
    let headers = "storage \"inmem\" {}\nlistener \"tcp\" { tls_disable = 1 }\n".to_owned();
    let nested = format!("a = {}1{}\n", "[".repeat(30), "]".repeat(30));
    let samples = [HCL, &headers, &nested, "a \"b\" \"c\" { d = -1.5e3 }", "a = <<E\n  x\nE\n"];
    check!(samples.map(|text| text.as_bytes().to_vec()).to_vec(), BOUNDS, read);
}

#[test]
fn fuzz_config_json() {
    load(JSON).expect("the sample is valid");
    let samples = [JSON, "{}", r#"{"a": [[{}], "\"\\\/\b\f\n\r\t", 1.5e-3, false, null]}"#];
    check!(samples.map(|text| text.as_bytes().to_vec()).to_vec(), BOUNDS, read);
}

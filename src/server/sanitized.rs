//! The configuration as `sys/config/state/sanitized` shows it: what Vault shows, and nothing secret.

use serde_json::{Map, Value, json};

use crate::config::{ListenerConfig, LogFormat, ServerConfig, StorageConfig};

/// The document. Only what is named here is in it, so that a new key is left out until somebody has thought
/// about it.
pub fn document(config: &ServerConfig, api_addr: &str, cluster_addr: &str) -> Map<String, Value> {
    let cluster_addr = format!("https://{cluster_addr}");
    let mut storage = json!({
        "cluster_addr": cluster_addr,
        "disable_clustering": config.disable_clustering,
        "redirect_addr": api_addr,
        "type": config.storage.kind(),
    });
    if let StorageConfig::Raft(raft) = &config.storage {
        let size = raft.max_entry_size_bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        storage["raft"] = json!({ "max_entry_size": size });
    }
    let document = json!({
        "api_addr": api_addr,
        "cache_size": config.cache_size.unwrap_or(0),
        "cluster_addr": cluster_addr,
        "cluster_cipher_suites": "",
        "cluster_name": config.cluster_name.clone().unwrap_or_default(),
        "default_lease_ttl": config.default_lease_ttl_s,
        "default_max_request_duration": config.default_max_request_duration.as_secs(),
        "disable_cache": config.disable_cache,
        "disable_clustering": config.disable_clustering,
        "disable_indexing": false,
        "disable_mlock": config.disable_mlock,
        "disable_performance_standby": false,
        "disable_printable_check": false,
        "disable_sealwrap": false,
        "enable_response_header_hostname": config.enable_response_header_hostname,
        "enable_response_header_raft_node_id": config.enable_response_header_raft_node_id,
        "enable_ui": config.ui,
        "introspection_endpoint": config.introspection_endpoint,
        "linearizable_reads": format!("{:?}", config.linearizable_reads).to_ascii_lowercase(),
        "listeners": config.listeners.iter().map(listener).collect::<Vec<_>>(),
        "log_format": match config.log_format {
            LogFormat::Text => "standard",
            LogFormat::Json => "json",
        },
        "log_level": config.log_level.as_str(),
        "max_lease_ttl": config.max_lease_ttl_s,
        "pid_file": config.pid_file.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        "plugin_directory": "",
        "raw_storage_endpoint": false,
        "seals": [{ "disabled": false, "type": "shamir" }],
        "storage": storage,
    });
    match document {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn listener(listener: &ListenerConfig) -> Value {
    match listener {
        ListenerConfig::Tcp(tcp) => {
            let mut config = json!({
                "address": tcp.address.to_string(),
                "cluster_address": tcp.cluster_address.to_string(),
                "tls_disable": tcp.tls.is_none(),
            });
            if let Some(tls) = &tcp.tls {
                config["tls_cert_file"] = tls.cert_file.display().to_string().into();
                config["tls_key_file"] = tls.key_file.display().to_string().into();
            }
            json!({ "config": config, "type": "tcp" })
        }
        ListenerConfig::Unix(unix) => {
            json!({ "config": { "address": unix.path.display().to_string() }, "type": "unix" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_secret_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.hcl");
        let text = r#"
            storage "raft" {
                path = "data"
                retry_join {
                    leader_api_addr = "https://other:8200"
                    leader_client_cert = "CERT"
                    leader_client_key = "hunter2"
                }
            }
            listener "tcp" { address = "127.0.0.1:8200" tls_disable = true }
            cluster_name = "c"
        "#;
        std::fs::write(&file, text.replace(" tls_disable", "\ntls_disable")).unwrap();
        let config = crate::config::load(&[file]).unwrap();
        let shown = Value::Object(document(&config, "https://me:8200", "me:8201"));
        assert_eq!((&shown["cluster_name"], &shown["storage"]["type"]), (&"c".into(), &"raft".into()));
        assert_eq!(shown["listeners"][0]["config"]["address"], "127.0.0.1:8200");
        assert!(!shown.to_string().contains("hunter2"));
    }
}

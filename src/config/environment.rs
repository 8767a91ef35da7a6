//! The environment, over what the files say.

use std::path::PathBuf;

use super::address;
use super::error::ConfigError;
use super::server::{LogFormat, LogLevel, ServerConfig};
use super::storage::{self, StorageConfig};
use super::value;

/// Puts the environment over a configuration; `env` looks up a variable.
///
/// `KEYSTEAD_X` wins over `VAULT_X` whenever it is set, even to nothing. A variable that is empty leaves what the
/// file says. The variables are, each after its prefix: `API_ADDR` (older names `REDIRECT_ADDR`, `ADVERTISE_ADDR`),
/// `CLUSTER_ADDR`, `CLUSTER_NAME`, `LOG_LEVEL`, `LOG_FORMAT`, `LOG_FILE`, `UI`, `DISABLE_MLOCK`,
/// and for raft storage `RAFT_PATH`, `RAFT_NODE_ID` and `RAFT_RETRY_JOIN_AS_NON_VOTER`.
///
/// # Errors
/// [`ConfigError::Environment`] for the first value that cannot be used; the configuration may then be half changed.
pub fn apply_env(config: &mut ServerConfig, env: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    let overlay = Overlay { env };
    let api_addr = overlay.first(&["API_ADDR", "REDIRECT_ADDR", "ADVERTISE_ADDR"], address::api_url)?;
    config.api_addr = api_addr.or(config.api_addr.take());
    config.cluster_addr = overlay.value("CLUSTER_ADDR", address::cluster_url)?.or(config.cluster_addr.take());
    config.cluster_name =
        overlay.value("CLUSTER_NAME", |text| Ok(text.to_owned()))?.or(config.cluster_name.take());
    config.log_level = overlay.value("LOG_LEVEL", LogLevel::parse)?.unwrap_or(config.log_level);
    config.log_format = overlay.value("LOG_FORMAT", LogFormat::parse)?.unwrap_or(config.log_format);
    config.log_file = overlay.value("LOG_FILE", |text| Ok(PathBuf::from(text)))?.or(config.log_file.take());
    config.ui = overlay.value("UI", value::boolean)?.unwrap_or(config.ui);
    config.disable_mlock = overlay.value("DISABLE_MLOCK", value::boolean)?.unwrap_or(config.disable_mlock);
    if let StorageConfig::Raft(raft) = &mut config.storage {
        if let Some(path) = overlay.value("RAFT_PATH", |text| Ok(PathBuf::from(text)))? {
            raft.path = path;
        }
        raft.node_id = overlay.value("RAFT_NODE_ID", storage::node_id)?.or(raft.node_id.take());
        let has_peers = !raft.retry_join.is_empty();
        let as_non_voter =
            overlay.value("RAFT_RETRY_JOIN_AS_NON_VOTER", |text| match value::boolean(text)? {
                true if !has_peers => Err(storage::NON_VOTER_NEEDS_RETRY_JOIN.to_owned()),
                on => Ok(on),
            })?;
        raft.retry_join_as_non_voter = as_non_voter.unwrap_or(raft.retry_join_as_non_voter);
    }
    Ok(())
}

/// The variable that counts for `suffix`, with its full name. `None` if none is set, or the one that counts is empty.
pub(super) fn lookup(env: &impl Fn(&str) -> Option<String>, suffix: &str) -> Option<(String, String)> {
    let names = ["KEYSTEAD_", "VAULT_"].map(|prefix| format!("{prefix}{suffix}"));
    let set = names.into_iter().find_map(|name| env(&name).map(|value| (name, value)));
    set.filter(|(_, value)| !value.is_empty())
}

struct Overlay<E> {
    env: E,
}

impl<E: Fn(&str) -> Option<String>> Overlay<E> {
    fn value<T>(
        &self,
        suffix: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.first(&[suffix], parse)
    }

    fn first<T>(
        &self,
        suffixes: &[&str],
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let found = suffixes.iter().find_map(|suffix| lookup(&self.env, suffix));
        let Some((name, text)) = found else { return Ok(None) };
        parse(&text).map(Some).map_err(|message| ConfigError::Environment { name, message })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ListenAddress, ListenerConfig, RaftStorageConfig, RetryJoin, TcpListenerConfig};
    use super::*;

    fn config() -> ServerConfig {
        let address = ListenAddress { host: "127.0.0.1".to_owned(), port: 8200 };
        let storage = StorageConfig::Raft(Box::new(RaftStorageConfig::new("data".into())));
        let mut config =
            ServerConfig::new(storage, vec![ListenerConfig::Tcp(Box::new(TcpListenerConfig::new(address)))]);
        config.api_addr = Some("https://file:8200".to_owned());
        config
    }

    fn env<'e>(set: &'e [(&'e str, &'e str)]) -> impl Fn(&str) -> Option<String> + 'e {
        |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn own_variables_win_over_those_of_vault_which_win_over_the_file() {
        let mut config = config();
        apply_env(&mut config, env(&[("VAULT_API_ADDR", "https://vault:1/")])).expect("applies");
        assert_eq!(config.api_addr.as_deref(), Some("https://vault:1"));
        let both = [("VAULT_API_ADDR", "https://vault:1"), ("KEYSTEAD_API_ADDR", "https://own:1")];
        apply_env(&mut config, env(&both)).expect("applies");
        assert_eq!(config.api_addr.as_deref(), Some("https://own:1"));
    }

    #[test]
    fn an_empty_own_variable_hides_that_of_vault_and_leaves_the_file() {
        let mut config = config();
        let both = [("VAULT_API_ADDR", "https://vault:1"), ("KEYSTEAD_API_ADDR", "")];
        apply_env(&mut config, env(&both)).expect("applies");
        assert_eq!(config.api_addr.as_deref(), Some("https://file:8200"));
    }

    #[test]
    fn older_names_of_the_api_address_still_count_but_least() {
        let mut config = config();
        let old = [("VAULT_REDIRECT_ADDR", "https://old:1"), ("VAULT_API_ADDR", "https://new:1")];
        apply_env(&mut config, env(&old[..1])).expect("applies");
        assert_eq!(config.api_addr.as_deref(), Some("https://old:1"));
        apply_env(&mut config, env(&old)).expect("applies");
        assert_eq!(config.api_addr.as_deref(), Some("https://new:1"));
    }

    #[test]
    fn raft_variables_reach_the_storage() {
        let mut config = config();
        if let StorageConfig::Raft(raft) = &mut config.storage {
            raft.retry_join.push(RetryJoin::default());
        }
        let set = [
            ("VAULT_RAFT_NODE_ID", "node-7"),
            ("VAULT_RAFT_PATH", "/data"),
            ("VAULT_RAFT_RETRY_JOIN_AS_NON_VOTER", "true"),
            ("VAULT_CLUSTER_ADDR", "http://10.0.0.7:8201"),
            ("VAULT_LOG_LEVEL", "DEBUG"),
            ("VAULT_LOG_FORMAT", "json"),
            ("VAULT_DISABLE_MLOCK", "1"),
        ];
        apply_env(&mut config, env(&set)).expect("applies");
        let StorageConfig::Raft(raft) = &config.storage else { panic!("raft") };
        assert_eq!(raft.node_id.as_deref(), Some("node-7"));
        assert_eq!(raft.path, PathBuf::from("/data"));
        assert!(raft.retry_join_as_non_voter);
        assert_eq!(config.cluster_addr.as_deref(), Some("https://10.0.0.7:8201"));
        assert_eq!((config.log_level, config.log_format), (LogLevel::Debug, LogFormat::Json));
        assert!(config.disable_mlock);
    }

    #[test]
    fn bad_values_are_refused_under_the_name_of_the_variable() {
        for (name, value) in [
            ("KEYSTEAD_API_ADDR", "127.0.0.1:8200"),
            ("VAULT_CLUSTER_ADDR", "https://node"),
            ("VAULT_LOG_LEVEL", "loud"),
            ("VAULT_RAFT_NODE_ID", "a b"),
            ("VAULT_RAFT_RETRY_JOIN_AS_NON_VOTER", "true"),
            ("VAULT_UI", "maybe"),
        ] {
            let error = apply_env(&mut config(), env(&[(name, value)])).expect_err(name);
            assert!(error.to_string().starts_with(&format!("environment variable {name}: ")), "{error}");
        }
    }
}

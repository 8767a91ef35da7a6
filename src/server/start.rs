//! From a checked configuration to a running node.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_raft::{
    ClusterParams, Identity,
    identity::{MAX_ENTRY_SIZE, MIN_ENTRY_SIZE},
};
use keystead_storage::{
    DataDir, StorageError,
    datadir::{read_file, write_file_durably},
};
use keystead_tls::ClientTls;
use tokio::sync::watch;

use super::{
    Failure,
    certificates::Certificates,
    listeners::{Listener, bind},
    recover, sanitized, say, stop, tls_source,
};
use crate::{
    api,
    config::{
        LinearizableReads, ListenAddress, ListenerConfig, RaftStorageConfig, RetryJoin, SealStanza,
        ServerConfig, StorageConfig, TcpListenerConfig,
    },
    core::{Core, Settings},
    node::{JoinTarget, Node, NodeSettings, Seals, uuid},
    seal::{self, SealKind},
    secret::SecretString,
};

/// Vault's default of `max_entry_size`, in bytes.
const DEFAULT_ENTRY_SIZE: u64 = 1 << 20;

/// What a development server does differently.
#[derive(Default)]
pub struct Dev {
    /// Mount `secret/` at init.
    pub mounts: bool,
    /// Stop when standard input ends.
    pub parent: bool,
    /// The first root token.
    pub root_token: Option<SecretString>,
}

/// Set by the parent of a development cluster for its nodes.
pub const DEV_NODE: &str = "KEYSTEAD_DEV_NODE";
/// The root token that a development cluster's operator chose.
pub const DEV_ROOT_TOKEN: &str = "KEYSTEAD_DEV_NODE_ROOT_TOKEN";

impl Dev {
    /// What the parent of a development cluster asked this node to be; nothing for everybody else.
    pub fn of_environment() -> Self {
        if std::env::var_os(DEV_NODE).is_none() {
            return Self::default();
        }
        let root_token = std::env::var(DEV_ROOT_TOKEN).ok().map(SecretString::new);
        Self { mounts: true, parent: true, root_token }
    }
}

/// A started server.
pub struct Server {
    /// The node.
    pub node: Arc<Node>,
    /// Answers requests.
    pub core: Arc<Core>,
    listeners: Vec<Listener>,
    api_addr: String,
    cluster_addr: String,
    parent: bool,
    pid_file: Option<PidFile>,
    /// The data of storage "inmem", which goes with the server.
    temporary: Option<tempfile::TempDir>,
}

impl Server {
    /// Opens storage, binds every port and starts the node.
    ///
    /// # Errors
    /// Each with its remedy: a port taken, a data directory in use or of a newer format, an unreadable
    /// certificate, damage on the disk.
    pub async fn start(config: &ServerConfig, dev: Dev) -> Result<Self, Failure> {
        let first = config.listeners.iter().find_map(|listener| match listener {
            ListenerConfig::Tcp(tcp) => Some(&**tcp),
            ListenerConfig::Unix(_) => None,
        });
        let first = first.ok_or_else(|| Failure("a listener \"tcp\" must be configured".into()))?;
        warn_of_files(&config.seals);
        let mut listeners = config
            .listeners
            .iter()
            .map(|listener| Listener::open(listener, config))
            .collect::<Result<Vec<_>, _>>()?;
        let api_addr = match &config.api_addr {
            Some(addr) => addr.clone(),
            None => derived_api_addr(first)?,
        };
        let (cluster_listener, cluster_addr) = cluster_port(config, first)?;
        let kind = config.storage.kind();
        let broken =
            |e: &dyn std::fmt::Display| Failure(format!("error initializing storage of type {kind}: {e}"));
        let (raft, temporary) = storage(&config.storage).map_err(|e| broken(&e.0))?;
        let path = raft.path.clone();
        let dir = tokio::task::spawn_blocking(move || DataDir::open(path)).await?.map_err(|e| broken(&e))?;
        let node_id = node_id(&raft, dir.path())?;
        let dir = Arc::new(dir);
        let (at, name) = (dir.clone(), node_id.clone());
        tokio::task::spawn_blocking(move || recover::honour_peers_file(&at, &name))
            .await?
            .map_err(|e| broken(&e.0))?;
        listeners.iter_mut().for_each(|listener| listener.name_node(config, &node_id));
        let retry_join = raft.retry_join.iter().map(join_target).collect::<Result<_, _>>()?;
        let max_entry_size = max_entry_size(&raft)?;
        let pid_file = config.pid_file.as_deref().map(PidFile::write).transpose()?;
        let disabled = config.seals.iter().filter(|stanza| stanza.disabled).map(|stanza| stanza.name.clone());
        let built = seal::build(&config.seals, Some(dir.path()), &seal::own_program());
        let seals = Seals::new(built, disabled.collect());
        let node = Node::start(NodeSettings {
            dir,
            node_id,
            api_addr: api_addr.clone(),
            cluster_addr: cluster_addr.clone(),
            cluster_listener,
            cluster_name: config.cluster_name.clone(),
            retry_join,
            non_voter: raft.retry_join_as_non_voter,
            snapshot_directory: raft.snapshot_directory.clone(),
            preferred_leader: raft.preferred_leader,
            params: ClusterParams::scaled(raft.performance_multiplier.unwrap_or(0).into(), max_entry_size),
            quorum_reads: config.linearizable_reads == LinearizableReads::Quorum,
            dev_mounts: dev.mounts,
            dev_root_token: dev.root_token,
            seals,
        })
        .await
        .map_err(|e| broken(&e))?;
        let settings = Settings {
            default_lease_ttl_s: config.default_lease_ttl_s,
            max_lease_ttl_s: config.max_lease_ttl_s,
            storage_type: kind,
            sanitized: sanitized::document(config, &api_addr, &cluster_addr),
            ..Settings::default()
        };
        let core = Core::new(node.clone(), settings);
        node.attach(&core);
        let parent = dev.parent;
        Ok(Self { node, core, listeners, api_addr, cluster_addr, parent, pid_file, temporary })
    }

    /// The block that is printed at start.
    pub fn banner(&self, config: &ServerConfig) -> String {
        let mut rows = vec![
            ("Api Address".to_owned(), self.api_addr.clone()),
            ("Cluster Address".to_owned(), format!("https://{}", self.cluster_addr)),
        ];
        for (n, listener) in self.listeners.iter().enumerate() {
            rows.push((format!("Listener {}", n + 1), listener.describe(&self.cluster_addr)));
        }
        rows.push(("Log Level".to_owned(), config.log_level.as_str().to_owned()));
        let available = if matches!(config.storage, StorageConfig::Raft(_)) { " (HA available)" } else { "" };
        rows.push(("Storage".to_owned(), format!("{}{available}", config.storage.kind())));
        rows.push(("Version".to_owned(), format!("Keystead v{}", env!("CARGO_PKG_VERSION"))));
        rows.sort();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let rows: String = rows.iter().map(|(name, text)| format!("{name:>width$}: {text}\n")).collect();
        format!("==> Keystead server configuration:\n\n{rows}")
    }

    /// Where storage "inmem" has its data.
    #[cfg(test)]
    pub fn temporary_directory(&self) -> Option<PathBuf> {
        self.temporary.as_ref().map(|dir| dir.path().to_owned())
    }

    /// Serves until there is a reason to stop, then stops in order: no new connections, leadership handed over,
    /// requests in flight answered, state flushed. At SIGHUP certificates are read again, and `reload` is called
    /// for everything else.
    pub async fn run(self, reload: impl Fn()) -> Result<(), Failure> {
        let (stop_tx, stop_rx) = watch::channel(false);
        let mut serving = tokio::task::JoinSet::new();
        let mut loaded = Vec::new();
        let mut kept = Vec::new();
        for listener in self.listeners {
            let (socket, tls, rules, keep) = listener.into_parts();
            loaded.extend(tls.clone());
            kept.push(keep);
            let tls = tls.as_ref().map(tls_source);
            serving.spawn(api::serve(socket, tls, self.core.clone(), rules, stop_rx.clone()));
        }
        let certificates = Arc::new(parking_lot::Mutex::new(Certificates::new(loaded)));
        let watching =
            Certificates::watch(Arc::clone(&certificates), Arc::clone(&self.core), self.node.clone());
        let watching = tokio::spawn(watching);
        let reason = stop::wait(self.parent, || {
            say("==> Keystead reload triggered");
            certificates.lock().reload();
            reload();
        })
        .await?;
        watching.abort();
        say("==> Keystead shutdown triggered");
        tracing::info!(?reason, "shutting down");
        self.node.shutdown_started().await;
        stop_tx.send_replace(true);
        while let Some(ended) = serving.join_next().await {
            match ended? {
                Ok(api::Drained::Completely) => {}
                Ok(api::Drained::Cut(connections)) => {
                    tracing::warn!(connections, "connections were cut at the deadline");
                }
                Err(error) => tracing::error!(%error, "a listener failed"),
            }
        }
        drop(kept);
        self.node.shutdown().await;
        drop((self.pid_file, self.temporary));
        tracing::info!("stopped");
        Ok(())
    }
}

/// Says what should not be done with seals where anything is at stake.
fn warn_of_files(seals: &[SealStanza]) {
    for stanza in seals.iter().filter(|stanza| stanza.seal_kind() == SealKind::File) {
        tracing::warn!(
            seal = stanza.name,
            "seal \"file\" is for development: whoever has this disk has the key to the vault"
        );
    }
}

/// The file with the process's id, removed when it is dropped.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self, Failure> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .map_err(|e| Failure(format!("could not store PID: pid_file {}: {e}", path.display())))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        drop(std::fs::remove_file(&self.0));
    }
}

/// The cluster port, and the address at which others reach it. A storage of a single node has no others: its
/// port is one that nobody is told, on an address that only this machine has.
fn cluster_port(config: &ServerConfig, first: &TcpListenerConfig) -> Result<(TcpListener, String), Failure> {
    if matches!(config.storage, StorageConfig::Raft(_)) {
        return Ok((bind(&first.cluster_address)?, cluster_addr(config, first)?));
    }
    let listener = bind(&ListenAddress { host: "127.0.0.1".to_owned(), port: 0 })?;
    let address = listener.local_addr()?.to_string();
    Ok((listener, address))
}

fn derived_api_addr(listener: &TcpListenerConfig) -> Result<String, Failure> {
    let address = &listener.address;
    if unspecified(&address.host) {
        return Err(Failure(
            "api_addr must be set: the listener takes every address, and clients and other nodes need one that reaches this node".into(),
        ));
    }
    let scheme = if listener.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{address}"))
}

fn cluster_addr(config: &ServerConfig, listener: &TcpListenerConfig) -> Result<String, Failure> {
    match &config.cluster_addr {
        Some(url) => Ok(url.split_once("://").map_or(url.as_str(), |(_, rest)| rest).trim_end_matches('/').to_owned()),
        None if unspecified(&listener.cluster_address.host) => Err(Failure(
            "cluster_addr must be set: the cluster port takes every address, and other nodes need one that reaches this node".into(),
        )),
        None => Ok(listener.cluster_address.to_string()),
    }
}

fn unspecified(host: &str) -> bool {
    host.is_empty() || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

/// The raft storage that stands behind every kind of storage: `file` is a single node on it, `inmem` one on a
/// directory that is gone afterwards.
fn storage(config: &StorageConfig) -> Result<(RaftStorageConfig, Option<tempfile::TempDir>), Failure> {
    Ok(match config {
        StorageConfig::Raft(raft) => ((**raft).clone(), None),
        StorageConfig::File { path } => (RaftStorageConfig::new(path.clone()), None),
        StorageConfig::Inmem => {
            let dir = tempfile::Builder::new().prefix("keystead-inmem-").tempdir()?;
            (RaftStorageConfig::new(dir.path().join("data")), Some(dir))
        }
    })
}

/// The configured `max_entry_size`, in bytes: what every node can replicate, init's own entry included.
fn max_entry_size(raft: &RaftStorageConfig) -> Result<u64, Failure> {
    let size = raft.max_entry_size_bytes.unwrap_or(DEFAULT_ENTRY_SIZE);
    if (MIN_ENTRY_SIZE..=MAX_ENTRY_SIZE).contains(&size) {
        return Ok(size);
    }
    Err(Failure(format!(
        "max_entry_size is {size} bytes: it must be from {MIN_ENTRY_SIZE} to {MAX_ENTRY_SIZE}; leave it out for {DEFAULT_ENTRY_SIZE}"
    )))
}

/// The configured node id, or the one that was generated for this data directory.
pub(super) fn node_id(raft: &RaftStorageConfig, data_dir: &Path) -> Result<String, Failure> {
    if let Some(node_id) = &raft.node_id {
        return Ok(node_id.clone());
    }
    let path = data_dir.join("node-id");
    let kept = match read_file(&path, 1024) {
        Err(StorageError::TooLarge { .. }) => None,
        other => other?.and_then(|bytes| String::from_utf8(bytes).ok()),
    };
    if let Some(node_id) = kept.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) {
        return Ok(node_id);
    }
    // A member whose file was lost or damaged knows its name.
    let node_id = Identity::load(data_dir)?.map_or_else(uuid, |identity| identity.node_id.clone());
    write_file_durably(&path, node_id.as_bytes(), 0o600)?;
    Ok(node_id)
}

/// Whom a `retry_join` block names, with the trust that it configures.
pub(super) fn join_target(stanza: &RetryJoin) -> Result<Arc<JoinTarget>, Failure> {
    let read = |path: &Option<std::path::PathBuf>| match path {
        None => Ok(None),
        Some(path) => std::fs::read_to_string(path)
            .map(Some)
            .map_err(|e| Failure(format!("retry_join: cannot read {}: {e}", path.display()))),
    };
    let key = match (&stanza.leader_client_key, read(&stanza.leader_client_key_file)?) {
        (Some(key), _) => Some(zeroize::Zeroizing::new(key.expose().to_owned())),
        (None, key) => key.map(zeroize::Zeroizing::new),
    };
    let tls = ClientTls {
        ca_file: stanza.leader_ca_cert_file.clone(),
        ca_pem: stanza.leader_ca_cert.clone(),
        client_cert_pem: match &stanza.leader_client_cert {
            Some(pem) => Some(pem.clone()),
            None => read(&stanza.leader_client_cert_file)?,
        },
        client_key_pem: key,
        server_name: stanza.leader_tls_servername.clone(),
        ..ClientTls::default()
    };
    JoinTarget::with_tls(&stanza.leader_api_addr, &tls)
        .map(Arc::new)
        .map_err(|e| Failure(format!("retry_join {}: {e}", stanza.leader_api_addr)))
}

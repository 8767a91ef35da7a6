//! From a checked configuration to a running node.

use std::{
    io,
    net::{TcpListener, ToSocketAddrs as _},
    path::Path,
    sync::Arc,
};

use keystead_raft::ClusterParams;
use keystead_storage::{
    DataDir,
    datadir::{read_file, write_file_durably},
};
use keystead_tls::{ApiTls, ApiTlsFiles, ClientTls, MinVersion};
use tokio::sync::watch;

use super::{Failure, say, stop, tls_source};
use crate::{
    api,
    config::{
        LinearizableReads, ListenAddress, ListenerConfig, ListenerTls, RaftStorageConfig, RetryJoin,
        ServerConfig, StorageConfig, TcpListenerConfig, TlsVersion,
    },
    core::{Core, Settings},
    node::{JoinTarget, Node, NodeSettings, uuid},
    secret::SecretString,
};

/// Vault's default of `max_entry_size`, in bytes.
const MAX_ENTRY_SIZE: u64 = 1 << 20;

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
    listeners: Vec<(TcpListener, Option<Arc<ApiTls>>)>,
    api_addr: String,
    cluster_addr: String,
    parent: bool,
}

impl Server {
    /// Opens storage, binds every port and starts the node.
    ///
    /// # Errors
    /// Each with its remedy: a port taken, a data directory in use or of a newer format, an unreadable
    /// certificate, damage on the disk.
    pub async fn start(config: &ServerConfig, dev: Dev) -> Result<Self, Failure> {
        let tcp: Vec<&TcpListenerConfig> = config
            .listeners
            .iter()
            .filter_map(|listener| match listener {
                ListenerConfig::Tcp(tcp) => Some(&**tcp),
                ListenerConfig::Unix(_) => None,
            })
            .collect();
        let first = *tcp.first().ok_or_else(|| Failure("a listener \"tcp\" must be configured".into()))?;
        let mut listeners = Vec::new();
        for listener in &tcp {
            listeners.push((bind(&listener.address)?, load_tls(listener.tls.as_ref())?));
        }
        let api_addr = match &config.api_addr {
            Some(addr) => addr.clone(),
            None => derived_api_addr(first)?,
        };
        let cluster_listener = bind(&first.cluster_address)?;
        let cluster_addr = cluster_addr(config, first)?;
        let raft = storage(&config.storage)?;
        let path = raft.path.clone();
        let dir = tokio::task::spawn_blocking(move || DataDir::open(path))
            .await?
            .map_err(|e| Failure(format!("error initializing storage of type raft: {e}")))?;
        let node_id = node_id(&raft, dir.path())?;
        let retry_join = raft.retry_join.iter().map(join_target).collect::<Result<_, _>>()?;
        let max_entry_size = raft.max_entry_size_bytes.unwrap_or(MAX_ENTRY_SIZE);
        let node = Node::start(NodeSettings {
            dir: Arc::new(dir),
            node_id,
            api_addr: api_addr.clone(),
            cluster_addr: cluster_addr.clone(),
            cluster_listener,
            cluster_name: config.cluster_name.clone(),
            retry_join,
            non_voter: raft.retry_join_as_non_voter,
            params: ClusterParams::scaled(raft.performance_multiplier.unwrap_or(0).into(), max_entry_size),
            quorum_reads: config.linearizable_reads == LinearizableReads::Quorum,
            dev_mounts: dev.mounts,
            dev_root_token: dev.root_token,
        })
        .await
        .map_err(|e| Failure(format!("error initializing storage of type raft: {e}")))?;
        let unauthenticated_metrics = tcp.iter().any(|listener| listener.unauthenticated_metrics_access);
        let core = Core::new(node.clone(), Settings { unauthenticated_metrics, ..Settings::default() });
        node.attach(&core);
        Ok(Self { node, core, listeners, api_addr, cluster_addr, parent: dev.parent })
    }

    /// The block that is printed at start.
    pub fn banner(&self, config: &ServerConfig) -> String {
        let mut rows = vec![
            ("Api Address".to_owned(), self.api_addr.clone()),
            ("Cluster Address".to_owned(), format!("https://{}", self.cluster_addr)),
        ];
        for (n, (listener, tls)) in self.listeners.iter().enumerate() {
            let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
            let tls = if tls.is_some() { "enabled" } else { "disabled" };
            let text = format!(
                "tcp (addr: \"{address}\", cluster address: \"{}\", tls: \"{tls}\")",
                self.cluster_addr
            );
            rows.push((format!("Listener {}", n + 1), text));
        }
        rows.push(("Log Level".to_owned(), config.log_level.as_str().to_owned()));
        rows.push(("Storage".to_owned(), format!("{} (HA available)", config.storage.kind())));
        rows.push(("Version".to_owned(), format!("Keystead v{}", env!("CARGO_PKG_VERSION"))));
        rows.sort();
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let rows: String = rows.iter().map(|(name, text)| format!("{name:>width$}: {text}\n")).collect();
        format!("==> Keystead server configuration:\n\n{rows}")
    }

    /// Serves until there is a reason to stop, then stops in order: no new connections, leadership handed over,
    /// requests in flight answered, state flushed.
    pub async fn run(self) -> Result<(), Failure> {
        let (stop_tx, stop_rx) = watch::channel(false);
        let mut serving = tokio::task::JoinSet::new();
        let certificates: Vec<Arc<ApiTls>> =
            self.listeners.iter().filter_map(|(_, tls)| tls.clone()).collect();
        for (listener, tls) in self.listeners {
            let tls = tls.as_ref().map(tls_source);
            serving.spawn(api::serve(listener, tls, self.core.clone(), stop_rx.clone()));
        }
        let reason = stop::wait(self.parent, || {
            say("==> Keystead reload triggered");
            for certificate in &certificates {
                match certificate.reload() {
                    Ok(()) => tracing::info!("listener certificate reloaded"),
                    Err(error) => {
                        tracing::error!(%error, "listener certificate kept: the new one cannot be used")
                    }
                }
            }
        })
        .await?;
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
        self.node.shutdown().await;
        tracing::info!("stopped");
        Ok(())
    }
}

fn bind(address: &ListenAddress) -> Result<TcpListener, Failure> {
    let text = address.to_string();
    let failed = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "bind: address already in use: another process listens there; stop it or choose another address"
            }
            io::ErrorKind::AddrNotAvailable => {
                "bind: cannot assign requested address: this machine does not have it"
            }
            io::ErrorKind::PermissionDenied => "bind: permission denied: ports below 1024 need a privilege",
            _ => "bind failed",
        };
        Failure(format!("Error initializing listener of type tcp: listen tcp {text}: {remedy}"))
    };
    let addresses: Vec<_> = text.to_socket_addrs().map_err(failed)?.collect();
    TcpListener::bind(&addresses[..]).map_err(failed)
}

fn load_tls(tls: Option<&ListenerTls>) -> Result<Option<Arc<ApiTls>>, Failure> {
    let Some(tls) = tls else { return Ok(None) };
    let files = ApiTlsFiles {
        cert_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
        client_ca_file: tls.client_ca_file.clone(),
        require_client_cert: tls.require_and_verify_client_cert,
        min_version: match tls.min_version {
            TlsVersion::Tls12 => MinVersion::Tls12,
            TlsVersion::Tls13 => MinVersion::Tls13,
        },
    };
    let loaded =
        ApiTls::load(files).map_err(|e| Failure(format!("Error initializing listener of type tcp: {e}")))?;
    Ok(Some(Arc::new(loaded)))
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

/// The raft storage that stands behind every kind of storage: `file` is a single node on it.
fn storage(config: &StorageConfig) -> Result<RaftStorageConfig, Failure> {
    match config {
        StorageConfig::Raft(raft) => Ok((**raft).clone()),
        StorageConfig::File { path } => Ok(RaftStorageConfig::new(path.clone())),
        StorageConfig::Inmem => Err(Failure(
            "storage \"inmem\" is not built yet: use `server -dev` for a server that keeps nothing, or storage \"raft\"".into(),
        )),
    }
}

/// The configured node id, or the one that was generated for this data directory.
fn node_id(raft: &RaftStorageConfig, data_dir: &Path) -> Result<String, Failure> {
    if let Some(node_id) = &raft.node_id {
        return Ok(node_id.clone());
    }
    let path = data_dir.join("node-id");
    if let Some(bytes) = read_file(&path, 1024)? {
        return Ok(String::from_utf8(bytes)?.trim().to_owned());
    }
    let node_id = uuid();
    write_file_durably(&path, node_id.as_bytes(), 0o600)?;
    Ok(node_id)
}

fn join_target(stanza: &RetryJoin) -> Result<Arc<JoinTarget>, Failure> {
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

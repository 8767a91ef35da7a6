//! The `storage` block: replicated on this server's own store, or a single node on it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

use super::address;
use super::error::{At, ConfigError, ConfigWarning};
use super::section::{Block, Keys, Section, Use, nearest, printable};

use Use::{InEffect, NotYet, Pointless};

/// Where the vault keeps its data.
#[derive(Debug, Clone)]
pub enum StorageConfig {
    /// `storage "raft"`: replicated between nodes.
    Raft(Box<RaftStorageConfig>),
    /// `storage "file"`: a single node on the embedded store.
    File {
        /// The data directory.
        path: PathBuf,
    },
    /// `storage "inmem"`: a single node whose data is gone when it stops.
    Inmem,
}

impl StorageConfig {
    /// The type as it is written in the file and shown in `status`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Raft(_) => "raft",
            Self::File { .. } => "file",
            Self::Inmem => "inmem",
        }
    }
}

/// `storage "raft"`.
#[derive(Debug, Clone)]
pub struct RaftStorageConfig {
    /// The data directory. It is created if it is not there.
    pub path: PathBuf,
    /// The operator's name for this place: 1 to 128 visible ASCII characters. Generated once if not given.
    pub node_id: Option<String>,
    /// The nodes that are asked to let this one in.
    pub retry_join: Vec<RetryJoin>,
    /// Join as a member that never votes.
    pub retry_join_as_non_voter: bool,
    /// Leadership goes to this node when it can lead and has been well for a while.
    pub preferred_leader: bool,
    /// Below it scheduled snapshots may be put on this node's disk. `None` if nowhere.
    pub snapshot_directory: Option<PathBuf>,
    /// 1 (fastest) to 10: scales the election timeouts. `None` if not given, or given as 0, Vault's default.
    pub performance_multiplier: Option<u8>,
    /// The largest log entry, in bytes.
    pub max_entry_size_bytes: Option<u64>,
    /// How many new log entries cause a snapshot.
    pub snapshot_threshold: Option<u64>,
    /// How often it is checked whether a snapshot is due.
    pub snapshot_interval: Option<Duration>,
    /// How many log entries stay after a snapshot.
    pub trailing_logs: Option<u64>,
    /// How often autopilot promotes and removes members.
    pub autopilot_reconcile_interval: Option<Duration>,
    /// How often autopilot looks at the members' health.
    pub autopilot_update_interval: Option<Duration>,
    /// The version autopilot takes this node to have, for upgrades.
    pub autopilot_upgrade_version: Option<String>,
    /// The zone autopilot takes this node to be in.
    pub autopilot_redundancy_zone: Option<String>,
}

impl RaftStorageConfig {
    /// A data directory, and the defaults for everything else.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            node_id: None,
            retry_join: Vec::new(),
            retry_join_as_non_voter: false,
            preferred_leader: false,
            snapshot_directory: None,
            performance_multiplier: None,
            max_entry_size_bytes: None,
            snapshot_threshold: None,
            snapshot_interval: None,
            trailing_logs: None,
            autopilot_reconcile_interval: None,
            autopilot_update_interval: None,
            autopilot_upgrade_version: None,
            autopilot_redundancy_zone: None,
        }
    }
}

/// One `retry_join` block: a node to ask, and how to trust it.
#[derive(Debug, Clone, Default)]
pub struct RetryJoin {
    /// The node's API address, a URL.
    pub leader_api_addr: String,
    /// A PEM file of authorities to trust.
    pub leader_ca_cert_file: Option<PathBuf>,
    /// The authorities themselves, PEM.
    pub leader_ca_cert: Option<String>,
    /// A PEM file with the certificate to present.
    pub leader_client_cert_file: Option<PathBuf>,
    /// The certificate to present, PEM.
    pub leader_client_cert: Option<String>,
    /// A PEM file with that certificate's key.
    pub leader_client_key_file: Option<PathBuf>,
    /// That certificate's key.
    pub leader_client_key: Option<ClientKeyPem>,
    /// The name to expect in the node's certificate instead of the address's host.
    pub leader_tls_servername: Option<String>,
}

/// A private key written into the configuration, PEM. Wiped when dropped.
#[derive(Clone)]
pub struct ClientKeyPem(Zeroizing<String>);

impl ClientKeyPem {
    /// The PEM text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ClientKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKeyPem(..)")
    }
}

pub(super) const RAFT_KEYS: Keys = &[
    ("path", InEffect),
    ("node_id", InEffect),
    ("retry_join", InEffect),
    ("retry_join_as_non_voter", InEffect),
    ("preferred_leader", InEffect),
    ("snapshot_directory", InEffect),
    ("performance_multiplier", InEffect),
    ("max_entry_size", InEffect),
    ("snapshot_threshold", InEffect),
    ("snapshot_interval", Pointless("snapshots are taken by the size of the log")),
    ("trailing_logs", InEffect),
    ("autopilot_reconcile_interval", NotYet),
    ("autopilot_update_interval", NotYet),
    ("autopilot_upgrade_version", NotYet),
    ("autopilot_redundancy_zone", NotYet),
    ("max_mount_and_namespace_table_entry_size", NotYet),
    ("raft_wal", Pointless("there is one kind of log")),
    ("raft_log_verifier_enabled", Pointless("every log entry is checked when it is read")),
    ("raft_log_verification_interval", Pointless("every log entry is checked when it is read")),
];

/// What may stand in any storage block.
pub(super) const COMMON_KEYS: Keys = &[
    ("api_addr", InEffect),
    ("redirect_addr", InEffect),
    ("advertise_addr", InEffect),
    ("cluster_addr", InEffect),
    ("disable_clustering", InEffect),
];

pub(super) const FILE_KEYS: Keys =
    &[("path", InEffect), ("node_id", Pointless("it names a node of a cluster"))];

pub(super) const RETRY_JOIN_KEYS: Keys = &[
    ("leader_api_addr", InEffect),
    ("leader_ca_cert_file", InEffect),
    ("leader_ca_cert", InEffect),
    ("leader_client_cert_file", InEffect),
    ("leader_client_cert", InEffect),
    ("leader_client_key_file", InEffect),
    ("leader_client_key", InEffect),
    ("leader_tls_servername", InEffect),
    ("auto_join", NotYet),
    ("auto_join_scheme", NotYet),
    ("auto_join_port", NotYet),
];

/// Storage that is a server of its own, or somebody's cloud.
const FOREIGN: &[&str] = &[
    "aerospike",
    "alicloudoss",
    "azure",
    "cassandra",
    "cockroachdb",
    "consul",
    "couchdb",
    "dynamodb",
    "etcd",
    "etcd3",
    "foundationdb",
    "gcs",
    "manta",
    "mssql",
    "mysql",
    "oci",
    "postgresql",
    "s3",
    "spanner",
    "swift",
    "zookeeper",
];

/// A storage block, with what Vault lets it say about addresses.
pub(super) struct StorageBlock {
    pub(super) storage: StorageConfig,
    pub(super) api_addr: Option<String>,
    pub(super) cluster_addr: Option<String>,
    pub(super) disable_clustering: bool,
}

/// Reads the storage block. `default_path` stands in for a raft block without `path`.
pub(super) fn read(
    block: &Block<'_>,
    default_path: Option<PathBuf>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<StorageBlock, ConfigError> {
    let kind = block.label;
    let name = format!("storage \"{}\"", printable(kind));
    let keys = match kind {
        "raft" => RAFT_KEYS,
        "file" => FILE_KEYS,
        "inmem" => &[],
        _ => return Err(block.at.error(foreign_or_unknown(kind))),
    };
    let section = block.open(&name, &[keys, COMMON_KEYS], warnings)?;
    let path = |default: Option<PathBuf>| match section.string("path")?.map(PathBuf::from).or(default) {
        Some(path) => Ok(path),
        None => Err(block.at.error(format!("{name} needs \"path\", the data directory"))),
    };
    let storage = match kind {
        "raft" => StorageConfig::Raft(Box::new(raft(&section, path(default_path)?, warnings)?)),
        "file" => StorageConfig::File { path: path(None)? },
        _ => StorageConfig::Inmem,
    };
    let mut api_addr = None;
    for key in ["api_addr", "redirect_addr", "advertise_addr"] {
        api_addr = api_addr.or(section.parsed_text(key, address::api_url)?);
    }
    Ok(StorageBlock {
        storage,
        api_addr,
        cluster_addr: section.parsed_text("cluster_addr", address::cluster_url)?,
        disable_clustering: section.boolean("disable_clustering")?.unwrap_or(false),
    })
}

fn foreign_or_unknown(kind: &str) -> String {
    let remedy = "use storage \"raft\", the embedded and replicated store";
    if FOREIGN.contains(&kind) {
        return format!("storage \"{kind}\" is a server of its own, which this vault does not use; {remedy}");
    }
    let known = ["raft", "file", "inmem"].into_iter().chain(FOREIGN.iter().copied());
    match nearest(kind, known) {
        Some(meant) if !FOREIGN.contains(&meant) => {
            format!("unknown storage \"{}\"; did you mean \"{meant}\"?", printable(kind))
        }
        _ => format!("unknown storage \"{}\"; {remedy}", printable(kind)),
    }
}

fn raft(
    section: &Section<'_>,
    path: PathBuf,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<RaftStorageConfig, ConfigError> {
    let config = RaftStorageConfig {
        path,
        node_id: section.parsed_text("node_id", node_id)?,
        retry_join: retry_joins(section, warnings)?,
        retry_join_as_non_voter: section.boolean("retry_join_as_non_voter")?.unwrap_or(false),
        preferred_leader: section.boolean("preferred_leader")?.unwrap_or(false),
        snapshot_directory: section.parsed_text("snapshot_directory", absolute)?,
        performance_multiplier: section.parsed("performance_multiplier", performance_multiplier)?.flatten(),
        max_entry_size_bytes: section.parsed("max_entry_size", positive)?,
        snapshot_threshold: section.parsed("snapshot_threshold", positive)?,
        snapshot_interval: section.duration("snapshot_interval")?,
        trailing_logs: section.whole("trailing_logs")?,
        autopilot_reconcile_interval: section.duration("autopilot_reconcile_interval")?,
        autopilot_update_interval: section.duration("autopilot_update_interval")?,
        autopilot_upgrade_version: section.string("autopilot_upgrade_version")?,
        autopilot_redundancy_zone: section.string("autopilot_redundancy_zone")?,
    };
    let at = section.at("retry_join_as_non_voter").filter(|_| config.retry_join_as_non_voter);
    if let Some(at) = at.filter(|_| config.retry_join.is_empty()) {
        return Err(at.error(NON_VOTER_NEEDS_RETRY_JOIN));
    }
    Ok(config)
}

pub(super) const NON_VOTER_NEEDS_RETRY_JOIN: &str =
    "retry_join_as_non_voter needs at least one retry_join block that says whom to join";

/// A directory that does not depend on where the server was started.
fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path".to_owned()) }
}

/// A node's name.
pub(super) fn node_id(text: &str) -> Result<String, String> {
    let longest = 128;
    if text.is_empty() || text.len() > longest || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("must be 1 to {longest} visible ASCII characters, without spaces"));
    }
    Ok(text.to_owned())
}

fn performance_multiplier(text: &str) -> Result<Option<u8>, String> {
    match text.parse::<u8>() {
        Ok(0) => Ok(None),
        Ok(multiplier @ 1..=10) => Ok(Some(multiplier)),
        _ => Err("must be a number from 1 (fastest) to 10".to_owned()),
    }
}

fn positive(text: &str) -> Result<u64, String> {
    match super::value::whole(text)? {
        0 => Err("must be greater than 0".to_owned()),
        number => Ok(number),
    }
}

fn retry_joins(
    section: &Section<'_>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<RetryJoin>, ConfigError> {
    let mut joins = Vec::new();
    for block in section.blocks("retry_join")? {
        joins.extend(retry_join(&block, warnings)?);
    }
    Ok(joins)
}

/// One block. `None` if all it has is `auto_join`, of which the operator has been warned.
fn retry_join(
    block: &Block<'_>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Option<RetryJoin>, ConfigError> {
    let section = block.open("retry_join", &[RETRY_JOIN_KEYS], warnings)?;
    let path = |key: &str| section.string(key).map(|path| path.map(PathBuf::from));
    let Some(leader_api_addr) = section.parsed_text("leader_api_addr", address::api_url)? else {
        if section.string("auto_join")?.is_some() {
            return Ok(None);
        }
        return Err(block
            .at
            .error("retry_join needs \"leader_api_addr\", the API address of a node to join"));
    };
    let join = RetryJoin {
        leader_api_addr,
        leader_ca_cert_file: path("leader_ca_cert_file")?,
        leader_ca_cert: section.string("leader_ca_cert")?,
        leader_client_cert_file: path("leader_client_cert_file")?,
        leader_client_cert: section.string("leader_client_cert")?,
        leader_client_key_file: path("leader_client_key_file")?,
        leader_client_key: section
            .secret("leader_client_key")?
            .filter(|key| !key.is_empty())
            .map(ClientKeyPem),
        leader_tls_servername: section.string("leader_tls_servername")?,
    };
    check_trust(&join, &block.at)?;
    Ok(Some(join))
}

fn check_trust(join: &RetryJoin, at: &At) -> Result<(), ConfigError> {
    let twice = [
        ("leader_ca_cert", join.leader_ca_cert_file.is_some() && join.leader_ca_cert.is_some()),
        ("leader_client_cert", join.leader_client_cert_file.is_some() && join.leader_client_cert.is_some()),
        ("leader_client_key", join.leader_client_key_file.is_some() && join.leader_client_key.is_some()),
    ];
    if let Some((key, _)) = twice.into_iter().find(|(_, both)| *both) {
        return Err(at.error(format!("retry_join has both \"{key}\" and \"{key}_file\"; keep one")));
    }
    let certificate = join.leader_client_cert_file.is_some() || join.leader_client_cert.is_some();
    let key = join.leader_client_key_file.is_some() || join.leader_client_key.is_some();
    match (certificate, key) {
        (true, false) => {
            Err(at.error("retry_join has a client certificate, but no \"leader_client_key_file\" for it"))
        }
        (false, true) => {
            Err(at.error("retry_join has a client key, but no \"leader_client_cert_file\" for it"))
        }
        _ => Ok(()),
    }
}

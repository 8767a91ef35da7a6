//! The top level of a configuration.

use std::path::PathBuf;
use std::time::Duration;

use super::address;
use super::error::{ConfigError, ConfigWarning};
use super::listener::{self, ListenerConfig};
use super::seal::{self, SealStanza};
use super::section::{Entry, Keys, Section, Use, printable};
use super::storage::{self, StorageBlock, StorageConfig};
use super::telemetry::{self, TelemetryConfig};

use Use::{InEffect, NotYet, Pointless};

/// Everything that a server's files and environment say.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where the vault keeps its data.
    pub storage: StorageConfig,
    /// Where the API is served; at least one of them is TCP, if read from files.
    pub listeners: Vec<ListenerConfig>,
    /// What opens the vault, by priority; none is as good as one for Shamir shares.
    pub seals: Vec<SealStanza>,
    /// The URL at which clients and nodes reach this node's API, without a slash at its end.
    pub api_addr: Option<String>,
    /// The URL at which nodes reach this node's cluster port: `https://host:port`.
    pub cluster_addr: Option<String>,
    /// The cluster's name as `status` shows it. Drawn at init if not given.
    pub cluster_name: Option<String>,
    /// Do not form a cluster with other nodes. Never with raft storage.
    pub disable_clustering: bool,
    /// Do not lock memory.
    pub disable_mlock: bool,
    /// The least severe messages that are logged.
    pub log_level: LogLevel,
    /// The form of a log line.
    pub log_format: LogFormat,
    /// The file that is logged to, besides standard error.
    pub log_file: Option<PathBuf>,
    /// When that file is put aside for a new one.
    pub log_rotation: LogRotation,
    /// How long a token or lease lives that asks for nothing, in seconds.
    pub default_lease_ttl_s: u64,
    /// How long a token or lease lives at most, in seconds.
    pub max_lease_ttl_s: u64,
    /// How long a request may take.
    pub default_max_request_duration: Duration,
    /// Vault's web interface, of which there is none here.
    pub ui: bool,
    /// What a linearizable read trusts. This key is ours, not Vault's.
    pub linearizable_reads: LinearizableReads,
    /// The file into which the process id is written.
    pub pid_file: Option<PathBuf>,
    /// The `telemetry` block.
    pub telemetry: TelemetryConfig,
    /// Name this host in every response.
    pub enable_response_header_hostname: bool,
    /// Name this raft node in every response.
    pub enable_response_header_raft_node_id: bool,
    /// `sys/internal/inspect` answers.
    pub introspection_endpoint: bool,
    /// How many records the cache may hold. `None` if not given.
    pub cache_size: Option<u64>,
    /// Read every record from the store.
    pub disable_cache: bool,
    /// Where external plugins lie.
    pub plugins: PluginConfig,
    /// What was given and comes to nothing, for the log at start.
    pub warnings: Vec<ConfigWarning>,
}

/// The least severe messages that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What a developer wants to see.
    Debug,
    /// What an operator wants to see. The default.
    Info,
    /// What an operator should look into.
    Warn,
    /// What needs an operator.
    Error,
}

impl LogLevel {
    /// Reads Vault's spellings, in any case: `trace`, `debug`, `info`, `warn`, `error`, `err`, `notice`, `warning`.
    ///
    /// # Errors
    /// A phrase that follows the name of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "trace" => Ok(Self::Trace),
            "debug" => Ok(Self::Debug),
            "info" | "notice" => Ok(Self::Info),
            "warn" | "warning" => Ok(Self::Warn),
            "error" | "err" => Ok(Self::Error),
            other => Err(format!("must be trace, debug, info, warn or error, not \"{}\"", printable(other))),
        }
    }

    /// The level's name in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people. Vault calls it `standard`.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// Reads `standard`, `text` or `json`, in any case.
    ///
    /// # Errors
    /// A phrase that follows the name of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_ascii_lowercase().as_str() {
            "standard" | "std" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("must be standard or json, not \"{}\"", printable(other))),
        }
    }
}

/// When a log file is put aside for a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogRotation {
    /// After this long.
    pub duration: Option<Duration>,
    /// At this size.
    pub bytes: Option<u64>,
    /// How many old files are kept. `None` or 0 keeps all.
    pub max_files: Option<u64>,
}

/// What a linearizable read trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinearizableReads {
    /// The leader's lease, and so the rate of its clock. The default.
    Lease,
    /// A round of the quorum for each read, and no clock.
    Quorum,
}

/// Where external plugins lie, and whose they must be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PluginConfig {
    /// The directory of the programs.
    pub directory: Option<PathBuf>,
    /// The directory for their sockets.
    pub tmpdir: Option<PathBuf>,
    /// The user who must own them.
    pub file_uid: Option<u64>,
    /// The mode they must have, octal.
    pub file_permissions: Option<String>,
}

/// 32 days in seconds, Vault's default for both lease limits.
pub const DEFAULT_LEASE_TTL_S: u64 = 32 * 24 * 3600;

/// Vault's default limit for a request.
pub const DEFAULT_MAX_REQUEST_DURATION: Duration = Duration::from_secs(90);

impl ServerConfig {
    /// A storage and listeners, with the defaults for everything else.
    #[must_use]
    pub fn new(storage: StorageConfig, listeners: Vec<ListenerConfig>) -> Self {
        Self {
            storage,
            listeners,
            seals: Vec::new(),
            api_addr: None,
            cluster_addr: None,
            cluster_name: None,
            disable_clustering: false,
            disable_mlock: false,
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            log_file: None,
            log_rotation: LogRotation::default(),
            default_lease_ttl_s: DEFAULT_LEASE_TTL_S,
            max_lease_ttl_s: DEFAULT_LEASE_TTL_S,
            default_max_request_duration: DEFAULT_MAX_REQUEST_DURATION,
            ui: false,
            linearizable_reads: LinearizableReads::Lease,
            pid_file: None,
            telemetry: TelemetryConfig::default(),
            enable_response_header_hostname: false,
            enable_response_header_raft_node_id: false,
            introspection_endpoint: false,
            cache_size: None,
            disable_cache: false,
            plugins: PluginConfig::default(),
            warnings: Vec::new(),
        }
    }
}

pub(super) const KEYS: Keys = &[
    ("storage", InEffect),
    ("backend", InEffect),
    ("ha_storage", InEffect),
    ("ha_backend", InEffect),
    ("listener", InEffect),
    ("seal", InEffect),
    ("hsm", InEffect),
    ("telemetry", InEffect),
    ("api_addr", InEffect),
    ("cluster_addr", InEffect),
    ("cluster_name", InEffect),
    ("disable_clustering", InEffect),
    ("disable_mlock", InEffect),
    ("log_level", InEffect),
    ("log_format", InEffect),
    ("log_file", InEffect),
    ("log_rotate_duration", InEffect),
    ("log_rotate_bytes", InEffect),
    ("log_rotate_max_files", InEffect),
    ("log_requests_level", NotYet),
    ("default_lease_ttl", InEffect),
    ("max_lease_ttl", InEffect),
    ("default_max_request_duration", InEffect),
    ("linearizable_reads", InEffect),
    ("ui", InEffect),
    ("pid_file", InEffect),
    ("raw_storage_endpoint", InEffect),
    ("introspection_endpoint", NotYet),
    ("enable_response_header_hostname", InEffect),
    ("enable_response_header_raft_node_id", InEffect),
    ("cluster_cipher_suites", Pointless("the cluster port speaks TLS 1.3 with its own suites")),
    ("cache_size", NotYet),
    ("disable_cache", NotYet),
    ("disable_printable_check", Pointless("paths with control characters are always refused")),
    ("disable_indexing", Pointless("there is no such index")),
    ("disable_performance_standby", Pointless("every node answers reads")),
    ("disable_sealwrap", Pointless("there is no seal wrapping of single values")),
    ("disable_sentinel_trace", Pointless("there is no Sentinel")),
    ("plugin_directory", NotYet),
    ("plugin_tmpdir", NotYet),
    ("plugin_file_uid", NotYet),
    ("plugin_file_permissions", NotYet),
    ("plugin", NotYet),
    ("user_lockout", NotYet),
    ("service_registration", NotYet),
    ("entropy", Pointless("what the seals' generators give is mixed into every key as it is")),
    ("kms_library", NotYet),
    ("administrative_namespace_path", NotYet),
    ("experiments", Pointless("there are no experiments")),
    ("enable_post_unseal_trace", NotYet),
    ("post_unseal_trace_directory", NotYet),
    ("imprecise_lease_role_tracking", NotYet),
    ("detect_deadlocks", Pointless("it is a debugging aid of another implementation")),
    ("license", Pointless("no licence is needed")),
    ("license_path", Pointless("no licence is needed")),
    ("reporting", Pointless("nothing is reported to anyone")),
    ("cloud", Pointless("there is no cloud to connect to")),
    ("allow_audit_log_prefixing", NotYet),
    ("unsafe_allow_api_audit_creation", NotYet),
    ("unsafe_cross_namespace_identity", NotYet),
    ("audit", NotYet),
    ("initialize", NotYet),
];

/// Reads the merged entries of all files. `raft_path` stands in for a raft storage's missing `path`, and the environment
/// goes over the seals.
pub(super) fn read(
    entries: Vec<Entry<'_>>,
    raft_path: Option<PathBuf>,
    env: &dyn Fn(&str) -> Option<String>,
    mut warnings: Vec<ConfigWarning>,
) -> Result<ServerConfig, ConfigError> {
    let section = Section::open("", entries, &[KEYS], &mut warnings)?;
    let stored = storage(&section, raft_path, &mut warnings)?;
    refuse_other_stores(&section)?;
    let seals = seal::read(&section, env, &mut warnings)?;
    let is_raft = matches!(stored.storage, StorageConfig::Raft(_));
    let blocks = section.labelled("listener")?;
    let listeners = listener::read_all(&blocks, is_raft, &mut warnings)?;
    if !listeners.iter().any(|listener| matches!(listener, ListenerConfig::Tcp(_))) {
        let message = "no listener; write listener \"tcp\" { address = \"127.0.0.1:8200\" .. }".to_owned();
        return Err(ConfigError::Incomplete { message });
    }

    let mut config = ServerConfig::new(stored.storage, listeners);
    config.seals = seals;
    config.api_addr = section.parsed_text("api_addr", address::api_url)?.or(stored.api_addr);
    config.cluster_addr = section.parsed_text("cluster_addr", address::cluster_url)?.or(stored.cluster_addr);
    config.cluster_name = section.string("cluster_name")?;
    config.disable_clustering = section.boolean("disable_clustering")?.unwrap_or(stored.disable_clustering);
    if config.disable_clustering && is_raft {
        let message =
            "disable_clustering does not go with storage \"raft\", which is a cluster; use storage \"file\"";
        return Err(ConfigError::Incomplete { message: message.to_owned() });
    }
    config.linearizable_reads =
        section.parsed_text("linearizable_reads", linearizable_reads)?.unwrap_or(LinearizableReads::Lease);
    config.pid_file = section.string("pid_file")?.map(PathBuf::from);
    config.telemetry = telemetry::read(&section, &mut warnings)?;
    read_logging(&section, &mut config)?;
    read_limits(&section, &mut config)?;
    read_switches(&section, &mut config, &mut warnings)?;
    config.warnings = warnings;
    Ok(config)
}

fn storage(
    section: &Section<'_>,
    raft_path: Option<PathBuf>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<StorageBlock, ConfigError> {
    let mut blocks = section.labelled("storage")?;
    blocks.extend(section.labelled("backend")?);
    match blocks.as_slice() {
        [] => {
            let message = "no storage; write storage \"raft\" { path = \"/var/lib/keystead\" .. }".to_owned();
            Err(ConfigError::Incomplete { message })
        }
        [block] => storage::read(block, raft_path, warnings),
        [first, second, ..] => {
            let text = format!("a second storage (the first is on line {}); keep one", first.at.line);
            Err(second.at.error(text))
        }
    }
}

fn refuse_other_stores(section: &Section<'_>) -> Result<(), ConfigError> {
    for key in ["ha_storage", "ha_backend"] {
        if let Some(at) = section.at(key) {
            let text =
                format!("{key} is not supported: storage \"raft\" replicates by itself; take this block out");
            return Err(at.error(text));
        }
    }
    Ok(())
}

fn linearizable_reads(text: &str) -> Result<LinearizableReads, String> {
    match text {
        "lease" => Ok(LinearizableReads::Lease),
        "quorum" => Ok(LinearizableReads::Quorum),
        _ => Err("must be \"lease\" or \"quorum\"".to_owned()),
    }
}

fn read_logging(section: &Section<'_>, config: &mut ServerConfig) -> Result<(), ConfigError> {
    config.log_level = section.parsed_text("log_level", LogLevel::parse)?.unwrap_or(LogLevel::Info);
    config.log_format = section.parsed_text("log_format", LogFormat::parse)?.unwrap_or(LogFormat::Text);
    config.log_file = section.string("log_file")?.map(PathBuf::from);
    config.log_rotation = LogRotation {
        duration: section.duration("log_rotate_duration")?,
        bytes: section.whole("log_rotate_bytes")?,
        max_files: section.whole("log_rotate_max_files")?,
    };
    Ok(())
}

fn read_limits(section: &Section<'_>, config: &mut ServerConfig) -> Result<(), ConfigError> {
    // As in Vault, 0 asks for the default.
    let duration = |key: &str| section.duration(key).map(|limit| limit.filter(|limit| !limit.is_zero()));
    let lease_s = |key: &str| match duration(key)? {
        None => Ok(DEFAULT_LEASE_TTL_S),
        Some(ttl) if ttl.subsec_nanos() == 0 => Ok(ttl.as_secs()),
        Some(_) => {
            let at = section.at(key).expect("a key whose value has just been read is there");
            Err(at.error(format!("{} must be whole seconds", section.place(key))))
        }
    };
    config.default_lease_ttl_s = lease_s("default_lease_ttl")?;
    config.max_lease_ttl_s = lease_s("max_lease_ttl")?;
    if config.default_lease_ttl_s > config.max_lease_ttl_s {
        let at = section.at("default_lease_ttl").or_else(|| section.at("max_lease_ttl"));
        let at = at.expect("the defaults are equal, so that one of the two was given");
        let text = format!(
            "default_lease_ttl ({} s) is longer than max_lease_ttl ({} s; 768h if not given); raise the latter",
            config.default_lease_ttl_s, config.max_lease_ttl_s
        );
        return Err(at.error(text));
    }
    config.default_max_request_duration =
        duration("default_max_request_duration")?.unwrap_or(DEFAULT_MAX_REQUEST_DURATION);
    config.cache_size = section.whole("cache_size")?;
    Ok(())
}

fn read_switches(
    section: &Section<'_>,
    config: &mut ServerConfig,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<(), ConfigError> {
    let switch = |key: &str| section.boolean(key).map(|on| on.unwrap_or(false));
    let mut warn_if = |on: bool, key: &str, text: &str| {
        let at = section.at(key).filter(|_| on);
        warnings.extend(at.map(|at| at.warning(key, text)));
    };
    config.disable_mlock = switch("disable_mlock")?;
    let text = "disable_mlock is set: keys in memory may reach the swap space; switch swap off or encrypt it";
    warn_if(config.disable_mlock, "disable_mlock", text);
    config.ui = switch("ui")?;
    warn_if(config.ui, "ui", "\"ui\" is accepted, but there is no web interface");
    if switch("raw_storage_endpoint")? {
        let at = section.at("raw_storage_endpoint").expect("a key whose value has just been read is there");
        let text =
            "raw_storage_endpoint is refused: sys/raw would reach every record past the policies on its path";
        return Err(at.error(text));
    }
    config.introspection_endpoint = switch("introspection_endpoint")?;
    config.enable_response_header_hostname = switch("enable_response_header_hostname")?;
    config.enable_response_header_raft_node_id = switch("enable_response_header_raft_node_id")?;
    config.disable_cache = switch("disable_cache")?;
    config.plugins = PluginConfig {
        directory: section.string("plugin_directory")?.map(PathBuf::from),
        tmpdir: section.string("plugin_tmpdir")?.map(PathBuf::from),
        file_uid: section.whole("plugin_file_uid")?,
        file_permissions: section.string("plugin_file_permissions")?,
    };
    Ok(())
}

//! The `listener` blocks: where the API is served, and under which TLS.

use std::path::PathBuf;
use std::time::Duration;

use super::address::{IpRange, ListenAddress};
use super::error::{ConfigError, ConfigWarning};
use super::hcl::Value;
use super::section::{Block, Keys, Section, Use, nearest, printable, strings_of};

use Use::{InEffect, NotYet, Pointless};

/// One `listener` block.
#[derive(Debug, Clone)]
pub enum ListenerConfig {
    /// `listener "tcp"`
    Tcp(Box<TcpListenerConfig>),
    /// `listener "unix"`
    Unix(UnixListenerConfig),
}

/// `listener "tcp"`.
#[derive(Debug, Clone)]
pub struct TcpListenerConfig {
    /// Where the API is served.
    pub address: ListenAddress,
    /// Where the other nodes connect. One port above `address` if not given.
    pub cluster_address: ListenAddress,
    /// `None` if `tls_disable` is set.
    pub tls: Option<ListenerTls>,
    /// The largest request body, in bytes.
    pub max_request_size_bytes: u64,
    /// How long a request may take. `None` leaves it to the server's `default_max_request_duration`.
    pub max_request_duration: Option<Duration>,
    /// Refuse requests without `X-Vault-Request: true`.
    pub require_request_header: bool,
    /// How long a connection may be slow or idle.
    pub timeouts: HttpTimeouts,
    /// Whose `X-Forwarded-For` is believed.
    pub x_forwarded_for: XForwardedFor,
    /// Headers to add to responses.
    pub custom_response_headers: Vec<StatusHeaders>,
    /// What becomes of requests for metrics.
    pub metrics: ListenerMetrics,
    /// What key holders cannot do here without a token.
    pub key_holders: ListenerKeyHolders,
}

/// What a listener refuses to key holders, whose shares need no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListenerKeyHolders {
    /// Refuse `sys/rekey`, `sys/rekey-recovery-key` and `sys/break-glass` without a token.
    pub no_rekey: bool,
    /// Refuse `sys/generate-root` without a token.
    pub no_generate_root: bool,
    /// Refuse a `reset` at `sys/unseal` that does not name the series of shares which it ends.
    pub no_unseal_reset: bool,
}

/// What a listener does with requests for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListenerMetrics {
    /// Answer without a token.
    pub unauthenticated: bool,
    /// Refuse.
    pub disallowed: bool,
    /// Answer nothing else.
    pub only: bool,
}

/// The TLS settings of a listener.
#[derive(Debug, Clone)]
pub struct ListenerTls {
    /// The certificate chain, PEM.
    pub cert_file: PathBuf,
    /// The certificate's key, PEM.
    pub key_file: PathBuf,
    /// The authorities of client certificates, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Refuse clients without a certificate of those authorities.
    pub require_and_verify_client_cert: bool,
    /// Do not ask clients for a certificate.
    pub disable_client_certs: bool,
    /// The oldest version spoken.
    pub min_version: TlsVersion,
    /// The newest version spoken. `None` is the newest there is.
    pub max_version: Option<TlsVersion>,
    /// The cipher suites of TLS 1.2 to offer, by their IANA names. Empty for the default.
    pub cipher_suites: Vec<String>,
}

impl ListenerTls {
    /// A certificate and its key, and the defaults for everything else.
    #[must_use]
    pub fn new(cert_file: PathBuf, key_file: PathBuf) -> Self {
        Self {
            cert_file,
            key_file,
            client_ca_file: None,
            require_and_verify_client_cert: false,
            disable_client_certs: false,
            min_version: TlsVersion::Tls12,
            max_version: None,
            cipher_suites: Vec::new(),
        }
    }
}

/// A version of TLS that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2, the default minimum.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The limits of an HTTP connection. Zero means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpTimeouts {
    /// For the headers of a request. 10 s if not given.
    pub read_header: Duration,
    /// For a whole request. 30 s if not given.
    pub read: Duration,
    /// For a response. None if not given.
    pub write: Duration,
    /// Between two requests. 5 minutes if not given.
    pub idle: Duration,
}

impl Default for HttpTimeouts {
    fn default() -> Self {
        Self {
            read_header: Duration::from_secs(10),
            read: Duration::from_secs(30),
            write: Duration::ZERO,
            idle: Duration::from_secs(300),
        }
    }
}

/// Whose `X-Forwarded-For` is believed, and what happens to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XForwardedFor {
    /// The proxies whose header is believed. Empty: the header is not looked at.
    pub authorized: Vec<IpRange>,
    /// How many addresses at the end of the header are skipped.
    pub hop_skips: u64,
    /// Refuse connections from addresses that are not authorized.
    pub reject_not_authorized: bool,
    /// Refuse requests without the header.
    pub reject_not_present: bool,
}

impl Default for XForwardedFor {
    fn default() -> Self {
        Self { authorized: Vec::new(), hop_skips: 0, reject_not_authorized: true, reject_not_present: true }
    }
}

/// Headers to add to the responses of one status, or of a group of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusHeaders {
    /// `default`, a status such as `200`, or a group such as `4xx`.
    pub status: String,
    /// Names and values, in the order of the file.
    pub headers: Vec<(String, Vec<String>)>,
}

/// `listener "unix"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnixListenerConfig {
    /// The socket's path.
    pub path: PathBuf,
    /// The socket's mode. `None` leaves it to the umask.
    pub mode: Option<u32>,
    /// The socket's owner, a name or number.
    pub user: Option<String>,
    /// The socket's group, a name or number.
    pub group: Option<String>,
}

/// 32 MiB, Vault's limit for request bodies.
pub const DEFAULT_MAX_REQUEST_SIZE_BYTES: u64 = 32 * 1024 * 1024;

impl TcpListenerConfig {
    /// A listener at `address` without TLS, with the defaults for everything else.
    ///
    /// The cluster address is one port up, or the system's choice after port 65535.
    #[must_use]
    pub fn new(address: ListenAddress) -> Self {
        let any_port = || ListenAddress { host: address.host.clone(), port: 0 };
        Self {
            cluster_address: address.next_port().unwrap_or_else(any_port),
            address,
            tls: None,
            max_request_size_bytes: DEFAULT_MAX_REQUEST_SIZE_BYTES,
            max_request_duration: None,
            require_request_header: false,
            timeouts: HttpTimeouts::default(),
            x_forwarded_for: XForwardedFor::default(),
            custom_response_headers: Vec::new(),
            metrics: ListenerMetrics::default(),
            key_holders: ListenerKeyHolders::default(),
        }
    }
}

pub(super) const TCP_KEYS: Keys = &[
    ("address", InEffect),
    ("cluster_address", InEffect),
    ("purpose", Pointless("every listener serves the API")),
    ("role", Pointless("every listener serves the API")),
    ("tls_disable", InEffect),
    ("tls_cert_file", InEffect),
    ("tls_key_file", InEffect),
    ("tls_client_ca_file", InEffect),
    ("tls_require_and_verify_client_cert", InEffect),
    ("tls_disable_client_certs", InEffect),
    ("tls_min_version", InEffect),
    ("tls_max_version", InEffect),
    ("tls_cipher_suites", InEffect),
    ("tls_prefer_server_cipher_suites", Pointless("every cipher suite on offer is a good one")),
    ("max_request_size", InEffect),
    ("max_request_duration", InEffect),
    ("require_request_header", InEffect),
    ("http_read_header_timeout", InEffect),
    ("http_read_timeout", InEffect),
    ("http_write_timeout", InEffect),
    ("http_idle_timeout", InEffect),
    ("proxy_protocol_behavior", NotYet),
    ("proxy_protocol_authorized_addrs", NotYet),
    ("x_forwarded_for_authorized_addrs", InEffect),
    ("x_forwarded_for_hop_skips", InEffect),
    ("x_forwarded_for_reject_not_authorized", InEffect),
    ("x_forwarded_for_reject_not_present", InEffect),
    ("x_forwarded_for_client_cert_header", NotYet),
    ("x_forwarded_for_client_cert_header_decoders", NotYet),
    ("custom_response_headers", InEffect),
    ("cors_enabled", NotYet),
    ("cors_allowed_origins", NotYet),
    ("cors_allowed_headers", NotYet),
    ("chroot_namespace", NotYet),
    ("redact_addresses", NotYet),
    ("redact_cluster_name", NotYet),
    ("redact_version", NotYet),
    ("disable_replication_status_endpoints", NotYet),
    ("disable_unauthed_rekey_endpoints", InEffect),
    ("disable_unauthed_generate_root_endpoints", InEffect),
    ("disable_unauthed_unseal_reset", InEffect),
    ("disable_request_limiter", NotYet),
    ("max_json_depth", NotYet),
    ("max_json_string_value_length", NotYet),
    ("max_json_object_entry_count", NotYet),
    ("max_json_array_element_count", NotYet),
    ("max_request_json_memory", NotYet),
    ("max_request_json_strings", NotYet),
    ("telemetry", InEffect),
    ("profiling", NotYet),
    ("inflight_requests_logging", NotYet),
    ("agent_api", Pointless("it belongs to the agent")),
    ("proxy_api", Pointless("it belongs to the proxy")),
];

pub(super) const UNIX_KEYS: Keys = &[
    ("address", InEffect),
    ("socket_mode", InEffect),
    ("socket_user", InEffect),
    ("socket_group", InEffect),
];

pub(super) const TELEMETRY_KEYS: Keys = &[
    ("unauthenticated_metrics_access", InEffect),
    ("disallow_metrics", InEffect),
    ("metrics_only", InEffect),
];

/// Reads all listeners and checks that no two of them want the same port.
///
/// `uses_cluster_port` says whether the cluster addresses are bound too.
pub(super) fn read_all(
    blocks: &[Block<'_>],
    uses_cluster_port: bool,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Vec<ListenerConfig>, ConfigError> {
    let mut listeners = Vec::new();
    let mut taken: Vec<(ListenAddress, String)> = Vec::new();
    for block in blocks {
        let listener = match block.label {
            "tcp" => ListenerConfig::Tcp(Box::new(tcp(block, warnings)?)),
            "unix" => ListenerConfig::Unix(unix(block, warnings)?),
            other => return Err(block.at.error(unknown_kind(other))),
        };
        if let ListenerConfig::Tcp(tcp) = &listener {
            let line = block.at.line;
            let api = (&tcp.address, format!("the API address of the listener on line {line}"));
            let cluster =
                (&tcp.cluster_address, format!("the cluster address of the listener on line {line}"));
            for (address, name) in
                [Some(api), Some(cluster).filter(|_| uses_cluster_port)].into_iter().flatten()
            {
                if let Some((_, other)) = taken.iter().find(|(other, _)| other.collides_with(address)) {
                    let text =
                        format!("{address} is wanted twice: by {other}, and as {name}; change one of them");
                    return Err(block.at.error(text));
                }
                taken.push((address.clone(), name));
            }
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn unknown_kind(kind: &str) -> String {
    let hint = nearest(kind, ["tcp", "unix"].into_iter()).map(|name| format!("; did you mean \"{name}\"?"));
    let hint = hint.unwrap_or_else(|| "; there are \"tcp\" and \"unix\"".to_owned());
    format!("unknown listener \"{}\"{hint}", printable(kind))
}

fn tcp(block: &Block<'_>, warnings: &mut Vec<ConfigWarning>) -> Result<TcpListenerConfig, ConfigError> {
    let section = block.open("listener \"tcp\"", &[TCP_KEYS], warnings)?;
    let address = section.parsed_text("address", ListenAddress::parse)?;
    let address = address.unwrap_or_else(|| ListenAddress { host: "127.0.0.1".to_owned(), port: 8200 });
    let cluster_address = match section.parsed_text("cluster_address", ListenAddress::parse)? {
        Some(given) => given,
        None => address.next_port().ok_or_else(|| {
            block.at.error("there is no port after 65535 for the cluster; give \"cluster_address\" too")
        })?,
    };
    let max_request_size = section.whole("max_request_size")?.filter(|size| *size > 0);
    Ok(TcpListenerConfig {
        address,
        cluster_address,
        tls: tls(&section, block)?,
        max_request_size_bytes: max_request_size.unwrap_or(DEFAULT_MAX_REQUEST_SIZE_BYTES),
        max_request_duration: section.duration("max_request_duration")?.filter(|limit| !limit.is_zero()),
        require_request_header: section.boolean("require_request_header")?.unwrap_or(false),
        timeouts: timeouts(&section)?,
        x_forwarded_for: x_forwarded_for(&section)?,
        custom_response_headers: custom_response_headers(&section)?,
        metrics: match section.block("telemetry")? {
            None => ListenerMetrics::default(),
            Some(block) => listener_metrics(&block, warnings)?,
        },
        key_holders: key_holders(&section)?,
    })
}

fn key_holders(section: &Section<'_>) -> Result<ListenerKeyHolders, ConfigError> {
    let switch = |key: &str| section.boolean(key).map(|on| on.unwrap_or(false));
    Ok(ListenerKeyHolders {
        no_rekey: switch("disable_unauthed_rekey_endpoints")?,
        no_generate_root: switch("disable_unauthed_generate_root_endpoints")?,
        no_unseal_reset: switch("disable_unauthed_unseal_reset")?,
    })
}

fn listener_metrics(
    block: &Block<'_>,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<ListenerMetrics, ConfigError> {
    let section = block.open("telemetry of listener \"tcp\"", &[TELEMETRY_KEYS], warnings)?;
    let switch = |key: &str| section.boolean(key).map(|on| on.unwrap_or(false));
    let metrics = ListenerMetrics {
        unauthenticated: switch("unauthenticated_metrics_access")?,
        disallowed: switch("disallow_metrics")?,
        only: switch("metrics_only")?,
    };
    if metrics.disallowed && metrics.only {
        return Err(block.at.error("disallow_metrics and metrics_only exclude each other; keep one"));
    }
    Ok(metrics)
}

fn tls(section: &Section<'_>, block: &Block<'_>) -> Result<Option<ListenerTls>, ConfigError> {
    let path = |key: &str| section.string(key).map(|path| path.map(PathBuf::from));
    let (cert_file, key_file) = (path("tls_cert_file")?, path("tls_key_file")?);
    let client_ca_file = path("tls_client_ca_file")?;
    let require_and_verify_client_cert =
        section.boolean("tls_require_and_verify_client_cert")?.unwrap_or(false);
    let disable_client_certs = section.boolean("tls_disable_client_certs")?.unwrap_or(false);
    let min_version = section.parsed_text("tls_min_version", tls_version)?.unwrap_or(TlsVersion::Tls12);
    let max_version = section.parsed_text("tls_max_version", tls_version)?;
    let cipher_suites = cipher_suites(section)?;
    if section.boolean("tls_disable")?.unwrap_or(false) {
        return Ok(None);
    }
    let missing = |key: &str| {
        let remedy = "(or, to serve secrets in the clear, tls_disable = true)";
        block.at.error(format!("listener \"tcp\" needs \"{key}\" {remedy}"))
    };
    let blame = |key: &str| section.at(key).unwrap_or(&block.at);
    if require_and_verify_client_cert && disable_client_certs {
        let text =
            "tls_disable_client_certs and tls_require_and_verify_client_cert exclude each other; keep one";
        return Err(blame("tls_disable_client_certs").error(text));
    }
    if require_and_verify_client_cert && client_ca_file.is_none() {
        let text = "tls_require_and_verify_client_cert needs \"tls_client_ca_file\", the authorities to verify against";
        return Err(blame("tls_require_and_verify_client_cert").error(text));
    }
    if max_version.is_some_and(|max| max < min_version) {
        return Err(blame("tls_max_version").error("tls_max_version is below tls_min_version"));
    }
    Ok(Some(ListenerTls {
        cert_file: cert_file.ok_or_else(|| missing("tls_cert_file"))?,
        key_file: key_file.ok_or_else(|| missing("tls_key_file"))?,
        client_ca_file,
        require_and_verify_client_cert,
        disable_client_certs,
        min_version,
        max_version,
        cipher_suites,
    }))
}

fn tls_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "tls12" => Ok(TlsVersion::Tls12),
        "tls13" => Ok(TlsVersion::Tls13),
        "tls10" | "tls11" => {
            Err(format!("is \"{text}\", which is broken and not spoken here; write \"tls12\""))
        }
        _ => Err("must be \"tls12\" or \"tls13\"".to_owned()),
    }
}

/// The suites that rustls has, by the names that Go and IANA give them.
const CIPHER_SUITES: &[&str] = &[
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

fn cipher_suites(section: &Section<'_>) -> Result<Vec<String>, ConfigError> {
    let key = "tls_cipher_suites";
    let mut suites = section.strings(key)?;
    for suite in &mut suites {
        // Go knows these two under an older name as well.
        if suite.ends_with("_CHACHA20_POLY1305") {
            suite.push_str("_SHA256");
        }
        if !CIPHER_SUITES.contains(&suite.as_str()) {
            let at = section.at(key).expect("a key whose value has just been read is there");
            let list = CIPHER_SUITES.join(", ");
            let place = section.place(key);
            return Err(at.error(format!(
                "{place} has \"{}\", which is not offered; there are {list}",
                printable(suite)
            )));
        }
    }
    Ok(suites)
}

fn timeouts(section: &Section<'_>) -> Result<HttpTimeouts, ConfigError> {
    let default = HttpTimeouts::default();
    Ok(HttpTimeouts {
        read_header: section.duration("http_read_header_timeout")?.unwrap_or(default.read_header),
        read: section.duration("http_read_timeout")?.unwrap_or(default.read),
        write: section.duration("http_write_timeout")?.unwrap_or(default.write),
        idle: section.duration("http_idle_timeout")?.unwrap_or(default.idle),
    })
}

fn x_forwarded_for(section: &Section<'_>) -> Result<XForwardedFor, ConfigError> {
    let key = "x_forwarded_for_authorized_addrs";
    let mut authorized = Vec::new();
    for text in section.strings(key)? {
        let at = section.at(key).expect("a key whose value has just been read is there");
        let range =
            IpRange::parse(&text).map_err(|reason| at.error(format!("{} {reason}", section.place(key))))?;
        authorized.push(range);
    }
    Ok(XForwardedFor {
        authorized,
        hop_skips: section.whole("x_forwarded_for_hop_skips")?.unwrap_or(0),
        reject_not_authorized: section.boolean("x_forwarded_for_reject_not_authorized")?.unwrap_or(true),
        reject_not_present: section.boolean("x_forwarded_for_reject_not_present")?.unwrap_or(true),
    })
}

fn custom_response_headers(section: &Section<'_>) -> Result<Vec<StatusHeaders>, ConfigError> {
    let mut groups = Vec::new();
    for block in section.labelled("custom_response_headers")? {
        let status = block.label;
        let digits = |c: char| c.is_ascii_digit() || c == 'x';
        if status != "default"
            && !(status.len() == 3
                && status.starts_with(['1', '2', '3', '4', '5'])
                && status.chars().all(digits))
        {
            let text = "custom_response_headers takes \"default\", a status such as \"200\", or a group such as \"4xx\"";
            return Err(block.at.error(text));
        }
        let mut headers = Vec::new();
        for item in block.items {
            let values = match &item.value {
                // A header's value may contain commas, so that one string is one value.
                Value::Scalar(text) => Some(vec![text.to_string()]),
                other => strings_of(other),
            };
            let values = values.ok_or_else(|| {
                let text = "a header in custom_response_headers takes a string or a list of strings";
                super::error::At { file: block.at.file.clone(), line: item.line }.error(text)
            })?;
            if item.key.to_ascii_lowercase().starts_with("x-vault-") {
                return Err(block
                    .at
                    .error("custom_response_headers may not set headers that begin with X-Vault-"));
            }
            headers.push((item.key.clone(), values));
        }
        groups.push(StatusHeaders { status: status.to_owned(), headers });
    }
    Ok(groups)
}

fn unix(block: &Block<'_>, warnings: &mut Vec<ConfigWarning>) -> Result<UnixListenerConfig, ConfigError> {
    let section = block.open("listener \"unix\"", &[UNIX_KEYS, TCP_KEYS], warnings)?;
    for key in ["tls_cert_file", "tls_key_file", "tls_client_ca_file"] {
        if let Some(at) = section.at(key) {
            warnings.push(
                at.warning(key, "a listener \"unix\" speaks plain HTTP: its TLS settings have no effect"),
            );
        }
    }
    let path = section.string("address")?.map(PathBuf::from);
    Ok(UnixListenerConfig {
        path: path.ok_or_else(|| block.at.error("listener \"unix\" needs \"address\", the socket's path"))?,
        mode: section.parsed_text("socket_mode", |text| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            mode.ok_or_else(|| "must be an octal mode such as \"0660\"".to_owned())
        })?,
        user: section.string("socket_user")?,
        group: section.string("socket_group")?,
    })
}

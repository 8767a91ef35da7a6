//! The listeners of a server: bound, with their TLS and their rules.

use std::{
    fs, io,
    net::{TcpListener, ToSocketAddrs as _},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _, chown},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use keystead_tls::{ApiTls, ApiTlsFiles, MinVersion};
use rustix::process::{Resource, getrlimit};

use super::Failure;
use crate::{
    api::{ListenerRules, MAX_CONNECTIONS, ResponseHeaders, Socket},
    config::{
        ListenAddress, ListenerConfig, ListenerTls, ServerConfig, TcpListenerConfig, TlsVersion,
        UnixListenerConfig,
    },
};

/// A listener that is ready to be served.
pub struct Listener {
    /// The bound socket.
    pub socket: Socket,
    /// Its certificate; `None` for plain HTTP.
    pub tls: Option<Arc<ApiTls>>,
    /// What it asks of requests.
    pub rules: Arc<ListenerRules>,
    /// The file of a socket in the file system; removed when the listener ends.
    file: Option<SocketFile>,
}

/// The file of a socket, removed when it is dropped.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        drop(fs::remove_file(&self.0));
    }
}

impl Listener {
    /// Binds a configured listener and reads its certificate.
    ///
    /// # Errors
    /// Each with its remedy.
    pub fn open(config: &ListenerConfig, server: &ServerConfig) -> Result<Self, Failure> {
        match config {
            ListenerConfig::Tcp(tcp) => Ok(Self {
                socket: Socket::Tcp(bind(&tcp.address)?),
                tls: load_tls(tcp.tls.as_ref())?,
                rules: Arc::new(rules(tcp, server)?),
                file: None,
            }),
            ListenerConfig::Unix(unix) => {
                let socket = bind_unix(unix)?;
                let rules = ListenerRules {
                    max_request: server.default_max_request_duration,
                    max_connections: max_connections(server),
                    ..ListenerRules::default()
                };
                Ok(Self {
                    socket: Socket::Unix(socket),
                    tls: None,
                    rules: Arc::new(rules),
                    file: Some(SocketFile(unix.path.clone())),
                })
            }
        }
    }

    /// Has every answer name the host and the node, where the configuration asks for it.
    pub fn name_node(&mut self, server: &ServerConfig, node_id: &str) {
        let headers = &mut Arc::make_mut(&mut self.rules).headers;
        if server.enable_response_header_hostname {
            let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
            headers.add("x-vault-hostname", &name);
        }
        if server.enable_response_header_raft_node_id {
            headers.add("x-vault-raft-node-id", node_id);
        }
    }

    /// How the block that is printed at start describes it.
    pub fn describe(&self, cluster_addr: &str) -> String {
        let tls = if self.tls.is_some() { "enabled" } else { "disabled" };
        match &self.socket {
            Socket::Tcp(listener) => {
                let address = listener.local_addr().map(|a| a.to_string()).unwrap_or_default();
                format!("tcp (addr: \"{address}\", cluster address: \"{cluster_addr}\", tls: \"{tls}\")")
            }
            Socket::Unix(_) => {
                let path = self.file.as_ref().map(|file| file.0.display().to_string());
                format!("unix (addr: \"{}\", tls: \"{tls}\")", path.unwrap_or_default())
            }
        }
    }

    /// The parts that serve, and what has to live as long as they do.
    pub fn into_parts(self) -> (Socket, Option<Arc<ApiTls>>, Arc<ListenerRules>, impl Send) {
        (self.socket, self.tls, self.rules, self.file)
    }
}

fn rules(tcp: &TcpListenerConfig, server: &ServerConfig) -> Result<ListenerRules, Failure> {
    Ok(ListenerRules {
        max_body_bytes: usize::try_from(tcp.max_request_size_bytes).unwrap_or(usize::MAX),
        max_request: tcp.max_request_duration.unwrap_or(server.default_max_request_duration),
        timeouts: tcp.timeouts,
        max_connections: max_connections(server),
        x_forwarded_for: tcp.x_forwarded_for.clone(),
        require_request_header: tcp.require_request_header,
        metrics: tcp.metrics,
        key_holders: tcp.key_holders,
        headers: ResponseHeaders::read(&tcp.custom_response_headers).map_err(Failure)?,
    })
}

/// Each listener's part of half the files that this process may have open: replication and storage need some whoever
/// else is connected.
fn max_connections(server: &ServerConfig) -> usize {
    // No limit counts as the highest.
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    (files.unwrap_or(usize::MAX) / 2 / server.listeners.len().max(1)).clamp(8, MAX_CONNECTIONS)
}

/// Binds a TCP port.
///
/// # Errors
/// With the address and the remedy.
pub fn bind(address: &ListenAddress) -> Result<TcpListener, Failure> {
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

/// Binds a socket in the file system. One that was left behind is replaced; one that somebody answers on is not,
/// nor is a file that is no socket.
fn bind_unix(config: &UnixListenerConfig) -> Result<UnixListener, Failure> {
    let path = &config.path;
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failure(format!("Error initializing listener of type unix: {}: {what}: {error}", path.display()))
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(failed("cannot be replaced", &"a file that is no socket stands there; move it away"));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(failed(
                "already in use",
                &"another process listens there; stop it or choose another path",
            ));
        }
        Ok(_) => fs::remove_file(path).map_err(|e| failed("cannot be replaced", &e))?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|e| failed("bind failed", &e))?;
    if let Some(mode) = config.mode {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, mode).map_err(|e| failed("socket_mode cannot be set", &e))?;
    }
    let user = config.user.as_deref().map(|name| number_of("/etc/passwd", name)).transpose();
    let group = config.group.as_deref().map(|name| number_of("/etc/group", name)).transpose();
    let user = user.map_err(|e| failed("socket_user", &e))?;
    let group = group.map_err(|e| failed("socket_group", &e))?;
    if user.is_some() || group.is_some() {
        chown(path, user, group).map_err(|e| failed("the owner cannot be set", &e))?;
    }
    Ok(listener)
}

/// The number of a user or group: itself, or the third field of its line.
fn number_of(table: &str, name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string(Path::new(table)).map_err(|e| format!("{table} cannot be read: {e}"))?;
    let line = text.lines().find(|line| line.split(':').next() == Some(name));
    line.and_then(|line| line.split(':').nth(2)?.parse().ok())
        .ok_or_else(|| format!("{table} has no such name; give a number"))
}

/// What a listener's TLS settings say, in the words of the crate that acts on them.
pub(super) fn tls_files(tls: &ListenerTls) -> ApiTlsFiles {
    ApiTlsFiles {
        cert_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
        client_ca_file: tls.client_ca_file.clone(),
        require_client_cert: tls.require_and_verify_client_cert,
        disable_client_certs: tls.disable_client_certs,
        min_version: match tls.min_version {
            TlsVersion::Tls12 => MinVersion::Tls12,
            TlsVersion::Tls13 => MinVersion::Tls13,
        },
        only_tls12: tls.max_version == Some(TlsVersion::Tls12),
        cipher_suites: tls.cipher_suites.clone(),
    }
}

fn load_tls(tls: Option<&ListenerTls>) -> Result<Option<Arc<ApiTls>>, Failure> {
    let Some(tls) = tls else { return Ok(None) };
    let loaded = ApiTls::load(tls_files(tls))
        .map_err(|e| Failure(format!("Error initializing listener of type tcp: {e}")))?;
    Ok(Some(Arc::new(loaded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: PathBuf) -> UnixListenerConfig {
        UnixListenerConfig { path, mode: Some(0o600), user: None, group: None }
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let first = bind_unix(&unix(path.clone())).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let refused = bind_unix(&unix(path.clone())).unwrap_err().0;
        assert!(refused.contains("another process listens there"), "{refused}");
        drop(first);
        drop(bind_unix(&unix(path.clone())).unwrap());
        let file = dir.path().join("notes.txt");
        fs::write(&file, "keep").unwrap();
        assert!(bind_unix(&unix(file.clone())).unwrap_err().0.contains("no socket"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "keep");
        let nobody = UnixListenerConfig { user: Some("no-such-user".to_owned()), ..unix(path) };
        assert!(bind_unix(&nobody).unwrap_err().0.contains("socket_user"));
    }

    #[test]
    fn names_become_numbers() {
        assert_eq!(number_of("/etc/passwd", "root"), Ok(0));
        assert_eq!(number_of("/etc/passwd", "17"), Ok(17));
        assert!(number_of("/etc/passwd", "no-such-user").is_err());
    }
}

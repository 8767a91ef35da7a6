//! The addresses a server listens on: whether they are this machine's, and free.

use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::{Check, Status};
use crate::config::{ListenAddress, ListenerConfig, ServerConfig};

pub(super) fn check(config: &ServerConfig, in_use: bool) -> Check {
    let mut checks = Vec::new();
    let mut cluster_port = true;
    for listener in &config.listeners {
        match listener {
            ListenerConfig::Tcp(tcp) => {
                checks.push(port("Check API Port", &tcp.address, in_use));
                // The cluster port is that of the first TCP listener.
                if std::mem::take(&mut cluster_port) {
                    checks.push(port("Check Cluster Port", &tcp.cluster_address, in_use));
                }
            }
            ListenerConfig::Unix(unix) => checks.push(socket(&unix.path, in_use)),
        }
    }
    Check::group("Check Ports", checks)
}

fn port(name: &str, address: &ListenAddress, in_use: bool) -> Check {
    let text = address.to_string();
    let bound = text.to_socket_addrs().and_then(|all| TcpListener::bind(&all.collect::<Vec<_>>()[..]));
    let error = match bound {
        Ok(_) => return Check::ok(name, format!("{text} is free")),
        Err(error) => error,
    };
    let (message, advice) = match error.kind() {
        io::ErrorKind::AddrInUse => {
            ("is taken", "stop what listens there (ss -ltnp shows it), or choose another port")
        }
        io::ErrorKind::AddrNotAvailable => {
            ("is no address of this machine", "choose one that \"ip address\" lists, or 0.0.0.0 for all")
        }
        io::ErrorKind::PermissionDenied => {
            ("needs a privilege", "choose a port above 1023, or give the server CAP_NET_BIND_SERVICE")
        }
        _ => ("cannot be bound", "see what the system says of the address"),
    };
    let message = format!("{text} {message}: {error}");
    if in_use && error.kind() == io::ErrorKind::AddrInUse {
        return Check::warn(
            name,
            message,
            "probably by the server that runs here: stop it before another is started",
        );
    }
    Check::new(name, Status::Fail, message, advice.to_owned())
}

fn socket(path: &Path, in_use: bool) -> Check {
    const NAME: &str = "Check Unix Socket";
    let shown = path.display();
    let directory = path.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        return Check::fail(
            NAME,
            format!("{shown} lies in no directory"),
            format!("mkdir -p {}", directory.display()),
        );
    }
    match path.symlink_metadata() {
        Ok(about) if !about.file_type().is_socket() => Check::fail(
            NAME,
            format!("{shown} is there and is no socket"),
            "choose another path, or remove it",
        ),
        Ok(_) if in_use => Check::warn(NAME, format!("{shown} is there"), "probably the running server's"),
        _ => Check::ok(NAME, format!("{shown} can be made")),
    }
}

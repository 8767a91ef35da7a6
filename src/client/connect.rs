//! From an address to a connection that HTTP/1.1 can be spoken on.

use std::io;
use std::sync::Arc;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::body::RequestBody;
use super::{Address, Failure, Scheme};

/// Sends requests on one connection, one after the other.
pub(super) type Sender = SendRequest<RequestBody>;

/// The TLS side of a client, ready to dial.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) connector: TlsConnector,
    pub(super) server_name: Option<String>,
}

impl Tls {
    /// Offers `http/1.1` only, whatever the given configuration offers.
    pub(super) fn new(config: &rustls::ClientConfig, server_name: Option<String>) -> Tls {
        let mut config = config.clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Tls { connector: TlsConnector::from(Arc::new(config)), server_name }
    }
}

/// Dials, shakes hands, and leaves a task behind that drives the connection until its sender is dropped.
///
/// # Cancel safety
/// Dropping the future closes whatever has been opened.
pub(super) async fn connect(address: &Address, tls: Option<&Tls>) -> Result<Sender, Failure> {
    let tcp = dial(address).await?;
    match (address.scheme(), tls) {
        (Scheme::Http, _) => speak_http(TokioIo::new(tcp)).await,
        (Scheme::Https, None) => {
            Err(Failure::Tls(io::Error::other("no TLS configuration for an https address")))
        }
        (Scheme::Https, Some(tls)) => {
            let name = tls.server_name.as_deref().unwrap_or(address.host());
            let name = ServerName::try_from(name.to_owned()).map_err(|_| {
                Failure::Tls(io::Error::other(format!("{name:?} is not a valid TLS server name")))
            })?;
            let stream = tls.connector.connect(name, tcp).await.map_err(Failure::Tls)?;
            speak_http(TokioIo::new(stream)).await
        }
    }
}

async fn dial(address: &Address) -> Result<TcpStream, Failure> {
    let lookup = tokio::net::lookup_host((address.host(), address.port())).await;
    let no_host = |source| Failure::Lookup { host: address.host().to_owned(), source };
    let peers: Vec<_> = lookup.map_err(no_host)?.collect();
    let mut first_failure = None;
    for peer in peers {
        match TcpStream::connect(peer).await {
            Ok(stream) => {
                // Requests are small and each is answered before the next: waiting to fill a segment
                // would only add delay.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(source) => {
                first_failure.get_or_insert(Failure::Dial { peer: peer.to_string(), source });
            }
        }
    }
    Err(first_failure.unwrap_or_else(|| no_host(io::Error::from(io::ErrorKind::NotFound))))
}

async fn speak_http<S>(stream: TokioIo<S>) -> Result<Sender, Failure>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::handshake(stream).await.map_err(Failure::Exchange)?;
    tokio::spawn(async move {
        // What breaks a connection reaches the caller through the request that was on it.
        let _ = connection.await;
    });
    Ok(sender)
}

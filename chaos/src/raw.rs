//! Bytes that no well-behaved client sends.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// The most that is read of an answer, in bytes.
const LIMIT: u64 = 1 << 20;

/// Sends bytes over TLS, and reads what comes back until the other side closes or `patience` is over.
///
/// # Errors
/// What the connection says before anything was sent; later errors end the reading.
pub async fn over_tls(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    bytes: &[u8],
    patience: Duration,
) -> io::Result<Vec<u8>> {
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    let stream = TlsConnector::from(tls).connect(name, tcp).await?;
    exchange(stream, bytes, patience).await
}

/// Sends bytes over plain TCP, and reads as [`over_tls`] does.
///
/// # Errors
/// As [`over_tls`].
pub async fn over_tcp(address: SocketAddr, bytes: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    exchange(TcpStream::connect(address).await?, bytes, patience).await
}

async fn exchange<S>(stream: S, bytes: &[u8], patience: Duration) -> io::Result<Vec<u8>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let mut reader = reader.take(LIMIT);
    let work = async {
        let sending = async {
            // A server that refuses early closes before everything is sent; its answer still counts.
            drop(writer.write_all(bytes).await);
            drop(writer.flush().await);
        };
        let receiving = async { drop(reader.read_to_end(&mut answer).await) };
        tokio::join!(sending, receiving);
    };
    drop(tokio::time::timeout(patience, work).await);
    Ok(answer)
}

/// The status of a raw HTTP/1 answer.
pub fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let text = std::str::from_utf8(line).ok()?;
    let rest = text.strip_prefix("HTTP/1.1 ").or_else(|| text.strip_prefix("HTTP/1.0 "))?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line_only() {
        assert_eq!(status(b"HTTP/1.1 400 Bad Request\r\nX: HTTP/1.1 200\r\n"), Some(400));
        assert_eq!(status(b""), None);
        assert_eq!(status(b"nonsense"), None);
    }
}

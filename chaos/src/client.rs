//! A small HTTP client that never retries what may have been executed.
//!
//! A test of what a server acknowledged must not have a client that papers over lost answers: a request goes
//! out again only if it certainly did not go out the first time.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::{Error, Result};

/// How long a request may take unless told otherwise: longer than a server waits for an election.
pub const TIMEOUT: Duration = Duration::from_secs(15);
/// The largest response read, in bytes.
const RESPONSE_LIMIT: usize = 40 << 20;
/// Connections kept for the next request.
const IDLE: usize = 256;

/// An answer, whatever its status.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    request: String,
}

impl Response {
    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The envelope's `data`.
    pub fn data(&self) -> Value {
        self.json()["data"].take()
    }

    /// The error texts of the body, joined.
    pub fn errors(&self) -> String {
        let json = self.json();
        let texts = json["errors"].as_array().into_iter().flatten();
        texts.filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The answer if its status is one of 2xx.
    ///
    /// # Errors
    /// [`Error::Status`].
    pub fn ok(self) -> Result<Self> {
        if (200..300).contains(&self.status) { Ok(self) } else { Err(self.refused()) }
    }

    /// The answer as the error that it is to a step which needed another.
    pub fn refused(&self) -> Error {
        let body: String = self.text().chars().take(400).collect();
        Error::Status { request: self.request.clone(), status: self.status, body }
    }
}

/// One client of one node. Clones share the connections.
#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    token: Option<String>,
    timeout: Duration,
    source: Option<IpAddr>,
    idle: Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>,
}

impl Client {
    /// A client for an address; over TLS if a configuration is given.
    pub fn new(address: SocketAddr, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { address, tls, token: None, timeout: TIMEOUT, source: None, idle: Arc::default() }
    }

    /// The same client with a token.
    #[must_use]
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// The same client without its token.
    #[must_use]
    pub fn without_token(mut self) -> Self {
        self.token = None;
        self
    }

    /// The same client with another patience.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client, with connections of its own that come from another address of this machine. All of
    /// 127.0.0.0/8 is, on Linux.
    #[must_use]
    pub fn coming_from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self.fresh()
    }

    /// The same client for another address.
    #[must_use]
    pub fn moved_to(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self.fresh()
    }

    /// The same client with connections of its own.
    #[must_use]
    pub fn fresh(mut self) -> Self {
        self.idle = Arc::default();
        self
    }

    /// Sends a request; `path` begins after `/v1/`.
    ///
    /// # Errors
    /// [`Error::NotSent`], [`Error::Lost`], [`Error::Timeout`]; any status is an answer.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Response> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.send(method, &format!("/v1/{path}"), body, &[]).await
    }

    /// Sends a request with a body of any bytes and headers over the usual ones.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn send(
        &self,
        method: &str,
        target: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> Result<Response> {
        let what = format!("{method} {target}");
        let work = async {
            loop {
                let (mut connection, reused) = match self.take() {
                    Some(connection) => (connection, true),
                    None => (self.connect().await?, false),
                };
                let request = self.request(method, target, &body, headers)?;
                match connection.try_send_request(request).await {
                    Ok(response) => {
                        let (parts, body) = response.into_parts();
                        let body = Limited::new(body, RESPONSE_LIMIT).collect().await;
                        let body = body.map_err(|error| Error::Lost(format!("{what}: {error}")))?.to_bytes();
                        self.keep(connection);
                        let (status, headers) = (parts.status.as_u16(), parts.headers);
                        return Ok(Response { status, headers, body, request: what.clone() });
                    }
                    Err(mut error) => {
                        let unsent = error.take_message().is_some();
                        if unsent && reused {
                            // The connection was closed before the request was taken: a new one is in order.
                            continue;
                        }
                        let text = format!("{what}: {}", chain(error.error()));
                        return Err(if unsent { Error::NotSent(text) } else { Error::Lost(text) });
                    }
                }
            }
        };
        tokio::time::timeout(self.timeout, work).await.unwrap_or(Err(Error::Timeout(self.timeout)))
    }

    fn request(
        &self,
        method: &str,
        target: &str,
        body: &Bytes,
        headers: &[(&str, &str)],
    ) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, self.address.to_string())
            .header("X-Vault-Request", "true");
        if let Some(token) = &self.token {
            request = request.header("X-Vault-Token", token);
        }
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !body.is_empty() && !typed {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.clone())).map_err(|error| Error::NotSent(error.to_string()))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let unsent = |error: std::io::Error| Error::NotSent(format!("{}: {error}", self.address));
        let tcp = connect(self.source, self.address).await.map_err(unsent)?;
        tcp.set_nodelay(true).map_err(unsent)?;
        match &self.tls {
            None => handshake(TokioIo::new(tcp)).await,
            Some(config) => {
                let name = ServerName::IpAddress(self.address.ip().into());
                let tls = TlsConnector::from(config.clone()).connect(name, tcp).await.map_err(unsent)?;
                handshake(TokioIo::new(tls)).await
            }
        }
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(connection) = idle.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn keep(&self, connection: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !connection.is_closed() && idle.len() < IDLE {
            idle.push(connection);
        }
    }
}

/// Connects, from a certain address of this machine if one is given.
///
/// # Errors
/// What the system says.
pub async fn connect(source: Option<IpAddr>, to: SocketAddr) -> std::io::Result<TcpStream> {
    let Some(source) = source else { return TcpStream::connect(to).await };
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(to).await
}

async fn handshake<T>(io: TokioIo<T>) -> Result<SendRequest<Full<Bytes>>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) =
        http1::handshake(io).await.map_err(|error| Error::NotSent(error.to_string()))?;
    // How the connection ends is told by the request that it carries.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

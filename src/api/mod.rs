//! The HTTP API: listeners, TLS, HTTP/1.1 and HTTP/2, and Vault's conventions on top.
//!
//! axum's bodies and requests are used, its router is not: the routing table is the vault's own, for it also says
//! who may ask and which node answers.

pub mod envelope;
mod http;
mod paced;
mod rules;
pub mod status;
mod upload;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

pub use self::rules::{ListenerRules, MAX_CONNECTIONS, ResponseHeaders};
pub use self::upload::ROOT_HEADER;
use self::{
    http::{Client, Shared, answer},
    paced::{Activity, Paced},
};
use crate::{config::HttpTimeouts, core::Core};
use axum::body::Body;
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::GracefulConnection,
};
use keystead_tls::{FairShare, Portion, Seldom};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// Gives the TLS configuration for the next connection, so that it can be replaced while the listener runs.
pub type TlsSource = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// One address has a quarter of a listener's connections at most: 1,024, which is generous for what pools a client
/// keeps, and for what stands behind one address that is not known as a proxy.
const CONNECTIONS_PER_ADDRESS: usize = 4;
/// Connections that have not finished their TLS handshake are half of all at most, and half of an address's.
const HANDSHAKES: usize = 2;
/// How long a client may take for its TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often an HTTP/2 client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// Memory for one request's headers.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Requests in flight on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// How long requests in flight may take once the listener shuts down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How a listener ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request in flight was answered.
    Completely,
    /// This many connections were cut off at the deadline.
    Cut(usize),
}

/// A bound socket.
pub enum Socket {
    /// `listener "tcp"`.
    Tcp(std::net::TcpListener),
    /// `listener "unix"`, which speaks plain HTTP.
    Unix(std::os::unix::net::UnixListener),
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Serves the API on a bound socket until `shutdown` is true, then lets the requests in flight end.
///
/// # Errors
/// Only if the socket cannot be handed to the runtime; a failure of one connection is that connection's.
///
/// # Cancel safety
/// Dropping the future cuts off every connection.
pub async fn serve(
    socket: Socket,
    tls: Option<TlsSource>,
    core: Arc<Core>,
    rules: Arc<ListenerRules>,
    mut shutdown: watch::Receiver<bool>,
) -> io::Result<Drained> {
    let acceptor = Acceptor::new(socket)?;
    let timeouts = rules.timeouts;
    let room = Room::new(Arc::clone(&rules));
    let shared = Shared::new(core, rules);
    let handler: Handler = Arc::new(move |request| Box::pin(answer(shared.clone(), request)));
    let mut connections = JoinSet::new();
    let stop = shutdown.clone();
    let mut stopped = pin!(stopped(&mut shutdown));
    loop {
        let accepted = tokio::select! {
            () = stopped.as_mut() => break,
            accepted = accept(&acceptor) => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok(accepted) => {
                let Some(entered) = room.enter(&accepted, tls.is_some()) else { continue };
                let (tls, serving) =
                    (tls.clone(), Serving { handler: Arc::clone(&handler), timeouts, stop: stop.clone() });
                connections.spawn(async move {
                    match accepted {
                        Accepted::Tcp(stream, address) => {
                            serve_connection(stream, address, tls, entered, serving).await;
                        }
                        Accepted::Unix(stream) => {
                            let client = Client::new(None, None);
                            serve_http(stream, false, client, serving).await;
                        }
                    }
                });
            }
            Err(error) => {
                static SAID: Seldom = Seldom::new();
                if let Some(times) = SAID.due() {
                    tracing::warn!(%error, times, "connections could not be accepted");
                }
                // Out of file descriptors, mostly: accepting again at once would only burn the processor.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(acceptor);
    let drained = timeout(DRAIN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
    Ok(match drained {
        Ok(()) => Drained::Completely,
        Err(_) => Drained::Cut(connections.len()),
    })
}

/// How many may be connected, in all and from one address.
struct Room {
    rules: Arc<ListenerRules>,
    connections: Arc<FairShare>,
    handshakes: Arc<FairShare>,
}

/// A connection's place, and its place among the handshakes until that is over.
struct Entered {
    _connection: Portion,
    handshake: Option<Portion>,
}

impl Room {
    fn new(rules: Arc<ListenerRules>) -> Self {
        let (total, each) = (rules.max_connections, rules.max_connections / CONNECTIONS_PER_ADDRESS);
        Self {
            rules,
            connections: FairShare::new(total, each),
            handshakes: FairShare::new(total / HANDSHAKES, each / HANDSHAKES),
        }
    }

    /// Lets a connection in, unless there is no room for it or for another from its address. Refusing it at once is
    /// kinder than to let it wait: the kernel's queue is one for all addresses, and a client that is told can try
    /// elsewhere.
    fn enter(&self, accepted: &Accepted, tls: bool) -> Option<Entered> {
        let address = match accepted {
            Accepted::Tcp(_, address) => {
                Some(address.ip()).filter(|address| !self.rules.speaks_for_others(*address))
            }
            Accepted::Unix(_) => None,
        };
        let take = || {
            let handshake = tls.then(|| self.handshakes.take(address, 1)).transpose()?;
            Ok::<_, keystead_tls::Exhausted>(Entered {
                _connection: self.connections.take(address, 1)?,
                handshake,
            })
        };
        let entered = take().ok();
        if entered.is_none() {
            static SAID: Seldom = Seldom::new();
            metrics::counter!("keystead_api_connections_refused").increment(1);
            if let Some(times) = SAID.due() {
                tracing::warn!(
                    times,
                    "connections were refused: too many are open, in all or from one address"
                );
            }
        }
        entered
    }
}

/// Answers a request.
type Handler = Arc<
    dyn Fn(axum::extract::Request) -> Pin<Box<dyn Future<Output = ::http::Response<Body>> + Send>>
        + Send
        + Sync,
>;

/// What every connection of a listener is served with.
struct Serving {
    handler: Handler,
    timeouts: HttpTimeouts,
    stop: watch::Receiver<bool>,
}

impl Acceptor {
    fn new(socket: Socket) -> io::Result<Self> {
        Ok(match socket {
            Socket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Self::Tcp(TcpListener::from_std(listener)?)
            }
            Socket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Self::Unix(UnixListener::from_std(listener)?)
            }
        })
    }
}

/// Waits for the end. A closed channel is the owner's own end, so it counts, too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The value is a guard that must not be held across the awaits of whoever waits.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept(acceptor: &Acceptor) -> io::Result<Accepted> {
    Ok(match acceptor {
        Acceptor::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            Accepted::Tcp(stream, address)
        }
        Acceptor::Unix(listener) => Accepted::Unix(listener.accept().await?.0),
    })
}

async fn serve_connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsSource>,
    mut entered: Entered,
    serving: Serving,
) {
    // Answers are small and written at once; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    let address = Some(address);
    let Some(tls) = tls else {
        let client = Client::new(address, None);
        return serve_http(stream, false, client, serving).await;
    };
    let handshake = timeout(HANDSHAKE_TIMEOUT, handshake(stream, tls())).await;
    drop(entered.handshake.take());
    match handshake {
        Ok(Some(stream)) => {
            let session = stream.get_ref().1;
            let http2 = session.alpn_protocol() == Some(b"h2");
            let certificate =
                session.peer_certificates().and_then(|chain| chain.first()).map(|leaf| leaf.to_vec());
            serve_http(stream, http2, Client::new(address, certificate), serving).await;
        }
        Ok(None) => {}
        Err(_) => tracing::debug!("a client did not finish its TLS handshake in time"),
    }
}

/// Shakes hands; who speaks plain HTTP instead is told so in plain HTTP.
async fn handshake(
    mut stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    const HANDSHAKE_RECORD: u8 = 0x16;
    const PLAIN: &[u8] = b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
        Connection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(1) if first[0] == HANDSHAKE_RECORD => {}
        Ok(1) if first[0].is_ascii_uppercase() => {
            // Read what is there, or closing the socket would reset it before the client sees the answer.
            let mut discarded = [0; 4096];
            let _ = stream.try_read(&mut discarded);
            let _ = stream.write_all(PLAIN).await;
            let _ = stream.shutdown().await;
            return None;
        }
        _ => return None,
    }
    match tokio_rustls::TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => Some(stream),
        Err(error) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
    }
}

async fn serve_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    http2: bool,
    client: Client,
    serving: Serving,
) {
    let Serving { handler, timeouts, stop } = serving;
    let activity = Activity::new();
    let client = Arc::new(client);
    let io = TokioIo::new(Paced::new(stream, timeouts, http2, Arc::clone(&activity)));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let busy = activity.begin();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Arc::clone(&client));
        let answer = handler(request);
        async move {
            let answer = answer.await;
            drop(busy);
            Ok::<_, Infallible>(answer)
        }
    });
    // Which version it is was settled by ALPN.
    if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEADER_BYTES).unwrap_or(u32::MAX))
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(HANDSHAKE_TIMEOUT);
        to_the_end(builder.serve_connection(io, service), stop).await;
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // `Paced` keeps the time.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEADER_BYTES)
            .half_close(false);
        to_the_end(builder.serve_connection(io, service), stop).await;
    }
}

/// Serves a connection until it ends, or until the listener stops and its requests are answered.
async fn to_the_end<C>(connection: C, mut stop: watch::Receiver<bool>)
where
    C: GracefulConnection<Error = hyper::Error>,
{
    let mut connection = pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}

#[cfg(test)]
mod bad_input_tests;
#[cfg(test)]
mod rule_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;

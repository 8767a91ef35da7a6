//! The API over TLS, with both versions of HTTP.

use std::{net::TcpListener, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use keystead_tls::{ApiTls, ApiTlsFiles, ClientTls, make::make_ca, make::make_cert};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;
use crate::core::test_replica::leader;

/// A listener with a certificate of its own authority, and connections to it.
struct TlsServer {
    address: SocketAddr,
    ca_pem: String,
    client_pem: (String, zeroize::Zeroizing<String>),
    _stop: watch::Sender<bool>,
}

/// A listener's configuration, and the authority that made it.
fn listener_tls() -> (ApiTls, String, zeroize::Zeroizing<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (ca_pem, ca_key) = make_ca("test").unwrap();
    let (cert, key) = make_cert(&ca_pem, &ca_key, &["localhost".to_owned()], &[], 30).unwrap();
    let files = ApiTlsFiles {
        cert_file: dir.path().join("cert.pem"),
        key_file: dir.path().join("key.pem"),
        ..ApiTlsFiles::default()
    };
    std::fs::write(&files.cert_file, cert).unwrap();
    std::fs::write(&files.key_file, &*key).unwrap();
    (ApiTls::load(files).unwrap(), ca_pem, ca_key)
}

impl TlsServer {
    fn start() -> Self {
        let (tls, ca_pem, ca_key) = listener_tls();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let node = leader();
        tokio::spawn(async move {
            let source: TlsSource = Arc::new(move || tls.server_config());
            let served =
                serve(Socket::Tcp(listener), Some(source), Arc::clone(&node.core), Arc::default(), stopped)
                    .await;
            drop(node);
            served
        });
        let client_pem = make_cert(&ca_pem, &ca_key, &["client".to_owned()], &[], 30).unwrap();
        Self { address, ca_pem, client_pem, _stop: stop }
    }

    async fn connect(&self, alpn: &[u8], with_certificate: bool) -> TlsStream<TcpStream> {
        let mut tls = ClientTls { ca_pem: Some(self.ca_pem.clone()), ..ClientTls::default() };
        if with_certificate {
            tls.client_cert_pem = Some(self.client_pem.0.clone());
            tls.client_key_pem = Some(self.client_pem.1.clone());
        }
        let mut config = (*tls.build().unwrap()).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}

#[tokio::test]
async fn http2_is_served_where_the_client_asks_for_it() {
    let server = TlsServer::start();
    let stream = server.connect(b"h2", false).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (method, status, empty) in [("GET", 200, false), ("HEAD", 200, true), ("DELETE", 405, false)] {
        let request = hyper::Request::builder()
            .method(method)
            .uri("https://localhost/v1/sys/health")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "{method}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.is_empty(), empty, "{method}");
    }
}

#[tokio::test]
async fn http1_is_served_over_tls_with_and_without_a_client_certificate() {
    let server = TlsServer::start();
    for with_certificate in [false, true] {
        let mut stream = server.connect(b"http/1.1", with_certificate).await;
        let request = b"GET /v1/sys/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "certificate: {with_certificate}");
    }
}

#[tokio::test]
async fn the_clients_certificate_reaches_the_request() {
    let server = TlsServer::start();
    let accepted = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = accepted.local_addr().unwrap();
    // A listener of the test's own stands for the vault: it answers with the length of the certificate.
    let (tls, ..) = listener_tls();
    accepted.set_nonblocking(true).unwrap();
    let accepted = tokio::net::TcpListener::from_std(accepted).unwrap();
    let handler: Handler = Arc::new(|request| {
        let client = request.extensions().get::<Arc<Client>>().cloned().unwrap();
        let length = client.certificate.as_ref().map_or(0, Vec::len);
        Box::pin(async move { ::http::Response::new(Body::from(length.to_string())) })
    });
    tokio::spawn(async move {
        let (stream, peer) = accepted.accept().await.unwrap();
        let source: TlsSource = Arc::new(move || tls.server_config());
        let (_stop, stopped) = watch::channel(false);
        let serving = Serving { handler, timeouts: HttpTimeouts::default(), stop: stopped };
        let entered = Entered { _connection: FairShare::new(1, 1).take(None, 1).unwrap(), handshake: None };
        serve_connection(stream, peer, Some(source), entered, serving).await;
    });
    let config = ClientTls {
        skip_verify: true,
        client_cert_pem: Some(server.client_pem.0.clone()),
        client_key_pem: Some(server.client_pem.1.clone()),
        ..ClientTls::default()
    };
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(config.build().unwrap());
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    let sent: usize = answer.rsplit("\r\n").next().unwrap().parse().unwrap();
    assert!(sent > 100, "{answer}");
}

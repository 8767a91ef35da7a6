//! Two ends of one connection, and certificates to try on it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// How one connection went, seen from both ends, each after it has read a byte from the other.
pub struct Connection {
    pub server: io::Result<server::TlsStream<TcpStream>>,
    pub client: io::Result<client::TlsStream<TcpStream>>,
}

impl Connection {
    /// Both ends, which must have succeeded.
    pub fn established(self) -> (server::TlsStream<TcpStream>, client::TlsStream<TcpStream>) {
        match (self.server, self.client) {
            (Ok(server), Ok(client)) => (server, client),
            (server, client) => {
                panic!("not established: server {:?}, client {:?}", server.err(), client.err())
            }
        }
    }

    /// Why the server refused; the client must have failed too.
    pub fn refused_by_server(self) -> String {
        assert!(self.client.is_err(), "the client was served");
        self.server.expect_err("the server accepted").to_string()
    }

    /// Why the client refused; the server must have failed too.
    pub fn refused_by_client(self) -> String {
        assert!(self.server.is_err(), "the server went on");
        self.client.expect_err("the client accepted").to_string()
    }
}

/// Connects the two over a socket. A TLS 1.3 client is done before the server has judged its certificate,
/// so both ends also exchange a byte.
pub async fn connect(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Connection {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (socket, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(server).accept(socket).await?;
        stream.write_all(b"s").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let dial = async {
        let socket = TcpStream::connect(address).await?;
        let mut stream = TlsConnector::from(client).connect(name, socket).await?;
        stream.write_all(b"c").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let both = async { tokio::join!(serve, dial) };
    let (server, client) =
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("the handshake hangs");
    Connection { server, client }
}

/// Has the client present this certificate and sign with this key, which need not belong together.
pub fn presenting(
    config: &ClientConfig,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'_>,
) -> Arc<ClientConfig> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).unwrap();
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
    Arc::new(config)
}

/// The path of a file in `testdata`.
pub fn testdata(file: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file)
}

/// A certificate and a key of `testdata`.
pub fn fixture(certificate: &str, key: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(testdata(certificate)).unwrap();
    (vec![certificate], PrivateKeyDer::from_pem_file(testdata(key)).unwrap())
}

/// A self-signed certificate for client and server, with what `change` makes of it.
pub fn self_signed(
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.into(), PrivateKeyDer::Pkcs8(key.into()))
}

/// A certificate or key in PEM.
pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// `localhost` as a name to dial.
pub fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

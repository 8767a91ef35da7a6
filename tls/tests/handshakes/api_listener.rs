//! The API port takes whatever certificate a client has, as long as he holds its key, and its own
//! certificate can be exchanged under way.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use keystead_tls::make::{make_ca, make_cert};
use keystead_tls::{ApiTls, ApiTlsFiles, ClientTls, Error, MinVersion};
use rcgen::{KeyPair, date_time_ymd};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::loopback::{connect, fixture, localhost, pem, presenting, self_signed, testdata};

const BOTH_VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

/// A CA, and a directory with a listener's certificate of it.
struct Pki {
    directory: TempDir,
    ca_pem: String,
    ca_key_pem: String,
}

impl Pki {
    fn new() -> Pki {
        let (ca_pem, ca_key_pem) = make_ca("test CA").unwrap();
        let pki = Pki { directory: tempfile::tempdir().unwrap(), ca_pem, ca_key_pem: ca_key_pem.to_string() };
        fs::write(pki.path("ca.pem"), &pki.ca_pem).unwrap();
        pki.issue(30);
        pki
    }

    /// Writes a new pair for `localhost` over the listener's files.
    fn issue(&self, days: u32) {
        let (certificate, key) =
            make_cert(&self.ca_pem, &self.ca_key_pem, &["localhost".into()], &[], days).unwrap();
        fs::write(self.path("cert.pem"), certificate).unwrap();
        fs::write(self.path("key.pem"), key.as_str()).unwrap();
    }

    fn path(&self, file: &str) -> std::path::PathBuf {
        self.directory.path().join(file)
    }

    fn files(&self) -> ApiTlsFiles {
        ApiTlsFiles {
            cert_file: self.path("cert.pem"),
            key_file: self.path("key.pem"),
            ..ApiTlsFiles::default()
        }
    }

    fn listener(&self) -> ApiTls {
        ApiTls::load(self.files()).unwrap()
    }

    /// A client of one TLS version that trusts the CA and has no certificate.
    fn client(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).unwrap()).unwrap();
        ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

fn read_certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[tokio::test]
async fn a_client_without_a_certificate_is_served() {
    let pki = Pki::new();
    let listener = pki.listener();
    for version in BOTH_VERSIONS {
        let connection = connect(listener.server_config(), Arc::new(pki.client(version)), localhost()).await;
        let (server, _client) = connection.established();
        assert!(server.get_ref().1.peer_certificates().is_none());
    }
}

#[tokio::test]
async fn odd_client_certificates_are_taken_and_seen() {
    let pki = Pki::new();
    let listener = pki.listener();
    let (expired, expired_key) = self_signed("expired.test", |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let clients = [
        ("expired", (vec![expired], expired_key)),
        ("self-signed RSA", fixture("rsa.crt.pem", "rsa.pkcs1.pem")),
        ("self-signed P-256", fixture("p256.crt.pem", "p256.sec1.pem")),
        ("self-signed P-384", fixture("p384.crt.pem", "p384.sec1.pem")),
        ("self-signed P-521", fixture("p521.crt.pem", "p521.sec1.pem")),
        ("self-signed Ed25519", fixture("ed25519.crt.pem", "ed25519.pkcs8.pem")),
        ("X.509 v1 RSA", fixture("v1.rsa.crt.pem", "rsa.pkcs8.pem")),
        ("X.509 v1 P-256", fixture("v1.p256.crt.pem", "p256.pkcs8.pem")),
        ("X.509 v1 Ed25519", fixture("v1.ed25519.crt.pem", "ed25519.pkcs8.pem")),
    ];
    for (kind, (chain, key)) in clients {
        for version in BOTH_VERSIONS {
            let client = presenting(&pki.client(version), chain.clone(), &key);
            let connection = connect(listener.server_config(), client, localhost()).await;
            let server = connection.server.unwrap_or_else(|error| panic!("{kind}, {version:?}: {error}"));
            assert_eq!(server.get_ref().1.peer_certificates(), Some(chain.as_slice()), "{kind}, {version:?}");
        }
    }
}

#[tokio::test]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let pki = Pki::new();
    let listener = pki.listener();
    let thief = PrivateKeyDer::Pkcs8(KeyPair::generate().unwrap().into());
    for certificate in ["p256.crt.pem", "v1.p256.crt.pem"] {
        for version in BOTH_VERSIONS {
            let stolen = vec![read_certificate(&testdata(certificate))];
            let client = presenting(&pki.client(version), stolen, &thief);
            let refused = connect(listener.server_config(), client, localhost()).await.refused_by_server();
            assert!(refused.contains("BadSignature"), "{certificate}, {version:?}: {refused}");
        }
    }
    // A key of another kind cannot sign for it either.
    let (rsa, _) = fixture("rsa.crt.pem", "rsa.pkcs8.pem");
    for version in BOTH_VERSIONS {
        let client = presenting(&pki.client(version), rsa.clone(), &thief);
        connect(listener.server_config(), client, localhost()).await.refused_by_server();
    }
}

#[tokio::test]
async fn bytes_that_are_no_certificate_are_refused() {
    let pki = Pki::new();
    let thief = PrivateKeyDer::Pkcs8(KeyPair::generate().unwrap().into());
    let client = presenting(&pki.client(&rustls::version::TLS13), vec![vec![0x30, 0x00].into()], &thief);
    let refused = connect(pki.listener().server_config(), client, localhost()).await.refused_by_server();
    assert!(refused.contains("BadEncoding"), "{refused}");
}

#[tokio::test]
async fn no_ca_is_hinted_so_that_clients_send_what_they_have() {
    #[derive(Debug, Default)]
    struct SeenHints(Mutex<Option<usize>>);
    impl ResolvesClientCert for SeenHints {
        fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
            *self.0.lock().unwrap() = Some(hints.len());
            None
        }
        fn has_certs(&self) -> bool {
            true
        }
    }

    let pki = Pki::new();
    let files = ApiTlsFiles { client_ca_file: Some(pki.path("ca.pem")), ..pki.files() };
    let listener = ApiTls::load(files).unwrap();
    for version in BOTH_VERSIONS {
        let seen = Arc::new(SeenHints::default());
        let mut client = pki.client(version);
        client.client_auth_cert_resolver = Arc::clone(&seen) as Arc<dyn ResolvesClientCert>;
        connect(listener.server_config(), Arc::new(client), localhost()).await.established();
        assert_eq!(*seen.0.lock().unwrap(), Some(0), "{version:?}");
    }
}

#[tokio::test]
async fn a_required_client_certificate_has_to_chain_to_the_client_ca() {
    let pki = Pki::new();
    let files =
        ApiTlsFiles { client_ca_file: Some(pki.path("ca.pem")), require_client_cert: true, ..pki.files() };
    let listener = ApiTls::load(files).unwrap();
    for version in BOTH_VERSIONS {
        let anonymous = Arc::new(pki.client(version));
        connect(listener.server_config(), anonymous, localhost()).await.refused_by_server();

        let (certificate, key) = self_signed("stranger.test", |_| {});
        let stranger = presenting(&pki.client(version), vec![certificate], &key);
        let refused = connect(listener.server_config(), stranger, localhost()).await.refused_by_server();
        assert!(refused.contains("UnknownIssuer"), "{refused}");

        let (certificate, key) =
            make_cert(&pki.ca_pem, &pki.ca_key_pem, &["client.test".into()], &[], 1).unwrap();
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let known = presenting(&pki.client(version), vec![certificate], &key);
        for _ in 0..2 {
            let connection = connect(listener.server_config(), Arc::clone(&known), localhost()).await;
            let (server, _client) = connection.established();
            assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}

#[tokio::test]
async fn an_api_client_may_resume() {
    // What shows that the tests of "never resumed" would see a resumption.
    let pki = Pki::new();
    let listener = pki.listener();
    let client = Arc::new(pki.client(&rustls::version::TLS13));
    connect(listener.server_config(), Arc::clone(&client), localhost()).await.established();
    let (server, _client) = connect(listener.server_config(), client, localhost()).await.established();
    assert_eq!(server.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
}

#[tokio::test]
async fn tls_1_2_is_served_unless_the_minimum_is_1_3() {
    let pki = Pki::new();
    let old = Arc::new(pki.client(&rustls::version::TLS12));
    let connection = connect(pki.listener().server_config(), Arc::clone(&old), localhost()).await;
    assert_eq!(connection.established().0.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_2));

    let strict = ApiTls::load(ApiTlsFiles { min_version: MinVersion::Tls13, ..pki.files() }).unwrap();
    connect(strict.server_config(), old, localhost()).await.refused_by_server();
}

#[tokio::test]
async fn nothing_newer_than_the_maximum_is_served() {
    let pki = Pki::new();
    let capped = ApiTls::load(ApiTlsFiles { only_tls12: true, ..pki.files() }).unwrap();
    let new = Arc::new(pki.client(&rustls::version::TLS13));
    connect(capped.server_config(), new, localhost()).await.refused_by_server();
    let old = Arc::new(pki.client(&rustls::version::TLS12));
    connect(capped.server_config(), old, localhost()).await.established();
    let none = ApiTlsFiles { only_tls12: true, min_version: MinVersion::Tls13, ..pki.files() };
    assert!(ApiTls::load(none).err().unwrap().to_string().contains("tls_max_version"));
}

#[tokio::test]
async fn only_the_cipher_suites_that_were_asked_for_are_offered() {
    let pki = Pki::new();
    let with = |names: &[&str]| {
        let cipher_suites = names.iter().map(|name| (*name).to_owned()).collect();
        ApiTls::load(ApiTlsFiles { cipher_suites, ..pki.files() })
    };
    let suite = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256";
    let picky = with(&[suite, "TLS_AES_128_GCM_SHA256"]).unwrap();
    let old = Arc::new(pki.client(&rustls::version::TLS12));
    let connection = connect(picky.server_config(), Arc::clone(&old), localhost()).await;
    let agreed = connection.established().0.get_ref().1.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(format!("{agreed:?}"), suite);
    let new = Arc::new(pki.client(&rustls::version::TLS13));
    connect(picky.server_config(), new, localhost()).await.established();
    // Only for certificates of another kind, so that nothing is left in common.
    let rsa = with(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]).unwrap();
    connect(rsa.server_config(), old, localhost()).await.refused_by_server();
    assert!(with(&["TLS_RSA_WITH_RC4_128_SHA"]).err().unwrap().to_string().contains("not offered"));
}

#[tokio::test]
async fn a_listener_may_leave_client_certificates_alone() {
    let pki = Pki::new();
    let listener = ApiTls::load(ApiTlsFiles { disable_client_certs: true, ..pki.files() }).unwrap();
    let (chain, key) = fixture("p256.crt.pem", "p256.sec1.pem");
    let client = presenting(&pki.client(&rustls::version::TLS13), chain, &key);
    let connection = connect(listener.server_config(), client, localhost()).await;
    let server = connection.server.unwrap();
    assert!(server.get_ref().1.peer_certificates().is_none(), "it was not asked");
}

#[tokio::test]
async fn http_2_and_1_1_are_offered_in_this_order() {
    let pki = Pki::new();
    let mut client = pki.client(&rustls::version::TLS13);
    client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let connection = connect(pki.listener().server_config(), Arc::new(client), localhost()).await;
    assert_eq!(connection.established().0.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn reload_serves_the_new_certificate_and_keeps_open_connections() {
    let pki = Pki::new();
    let listener = pki.listener();
    let client = ClientTls { ca_file: Some(pki.path("ca.pem")), ..ClientTls::default() }.build().unwrap();
    let served = async || {
        let connection = connect(listener.server_config(), Arc::clone(&client), localhost()).await;
        let (server, client) = connection.established();
        let shown = client.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
        (server, client, shown)
    };
    let (mut old_server, mut old_client, first) = served().await;
    assert_eq!(first, read_certificate(&pki.path("cert.pem")));
    let first_not_after = listener.not_after();

    pki.issue(60);
    let second = read_certificate(&pki.path("cert.pem"));
    listener.reload().unwrap();
    assert!(listener.not_after() > first_not_after + Duration::from_secs(29 * 86_400));
    // Another client, so that no session of the first certificate is resumed.
    let client = ClientTls { ca_file: Some(pki.path("ca.pem")), ..ClientTls::default() }.build().unwrap();
    let connection = connect(listener.server_config(), client, localhost()).await.established();
    assert_eq!(connection.1.get_ref().1.peer_certificates().unwrap()[0], second);
    old_server.write_all(b"x").await.unwrap();
    assert_eq!(old_client.read_u8().await.unwrap(), b'x');

    // Half of a replacement: the pair does not match, and the second certificate stays.
    let not_after = listener.not_after();
    fs::write(pki.path("key.pem"), fs::read(testdata("p256.pkcs8.pem")).unwrap()).unwrap();
    assert!(matches!(listener.reload(), Err(Error::KeyMismatch { .. })));
    assert_eq!(listener.not_after(), not_after);
    let client = ClientTls { ca_file: Some(pki.path("ca.pem")), ..ClientTls::default() }.build().unwrap();
    let connection = connect(listener.server_config(), client, localhost()).await.established();
    assert_eq!(connection.1.get_ref().1.peer_certificates().unwrap()[0], second);
}

#[test]
fn not_after_is_the_certificates_date() {
    let pki = Pki::new();
    let left = pki.listener().not_after().duration_since(SystemTime::now()).unwrap();
    assert!(
        left > Duration::from_secs(30 * 86_400 - 60) && left <= Duration::from_secs(30 * 86_400),
        "{left:?}"
    );
}

#[test]
fn an_expired_certificate_is_loaded_with_a_warning_only() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed("localhost", |params| params.not_after = date_time_ymd(2001, 1, 1));
    let (cert_file, key_file) = (directory.path().join("c"), directory.path().join("k"));
    fs::write(&cert_file, pem("CERTIFICATE", &certificate)).unwrap();
    fs::write(&key_file, pem("PRIVATE KEY", key.secret_der())).unwrap();
    let listener = ApiTls::load(ApiTlsFiles { cert_file, key_file, ..ApiTlsFiles::default() }).unwrap();
    assert!(listener.not_after() < SystemTime::now());
}

#[test]
fn errors_name_the_file_and_the_remedy() {
    let pki = Pki::new();
    let fails = |files| ApiTls::load(files).err().expect("it loaded").to_string();

    let error = fails(ApiTlsFiles { cert_file: pki.path("absent.pem"), ..pki.files() });
    assert!(error.contains("absent.pem") && error.contains("No such file"), "{error}");
    let error = fails(ApiTlsFiles { cert_file: pki.path("key.pem"), ..pki.files() });
    assert!(error.contains("key.pem") && error.contains("BEGIN CERTIFICATE"), "{error}");
    let error = fails(ApiTlsFiles { key_file: pki.path("cert.pem"), ..pki.files() });
    assert!(error.contains("cert.pem") && error.contains("BEGIN PRIVATE KEY"), "{error}");
    let error = fails(ApiTlsFiles { key_file: testdata("p256.pkcs8.pem"), ..pki.files() });
    assert!(error.contains("p256.pkcs8.pem") && error.contains("cert.pem"), "{error}");
    let error = fails(ApiTlsFiles { key_file: testdata("p256.encrypted.pem"), ..pki.files() });
    assert!(error.contains("p256.encrypted.pem") && error.contains("passphrase"), "{error}");
    let error = fails(ApiTlsFiles { client_ca_file: Some(pki.path("no-ca.pem")), ..pki.files() });
    assert!(error.contains("no-ca.pem"), "{error}");
    let error = fails(ApiTlsFiles { require_client_cert: true, ..pki.files() });
    assert!(error.contains("tls_client_ca_file"), "{error}");
}

#[test]
fn minimum_versions_are_spelled_as_vaults() {
    assert_eq!("tls12".parse::<MinVersion>().unwrap(), MinVersion::Tls12);
    assert_eq!("tls13".parse::<MinVersion>().unwrap(), MinVersion::Tls13);
    assert!("tls10".parse::<MinVersion>().unwrap_err().to_string().contains("use tls12"));
    assert!("ssl3".parse::<MinVersion>().is_err());
}

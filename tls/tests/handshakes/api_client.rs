//! A client trusts what it was told to trust, under the right name, and nothing else.

use std::fs;
use std::sync::Arc;

use keystead_tls::make::{make_ca, make_cert};
use keystead_tls::{ClientTls, Error};
use rcgen::{BasicConstraints, CertificateParams, IsCa, date_time_ymd};
use rustls::ServerConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::loopback::{Connection, connect, fixture, localhost, pem, self_signed, testdata};

/// A server that shows this certificate and signs with this key, which need not belong together.
fn server(certificate: CertificateDer<'static>, key: &PrivateKeyDer<'_>) -> Arc<ServerConfig> {
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key).unwrap();
    let certified = CertifiedKey::new(vec![certificate], key);
    let config = ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    Arc::new(config)
}

/// A server with a certificate of a new CA for `localhost` and 127.0.0.1, and the CA's PEM.
fn issued_server() -> (Arc<ServerConfig>, String) {
    let (ca, ca_key) = make_ca("test CA").unwrap();
    let (cert, key) =
        make_cert(&ca, &ca_key, &["localhost".into()], &["127.0.0.1".parse().unwrap()], 1).unwrap();
    let certificate = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    (server(certificate, &PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()), ca)
}

async fn dial(server: &Arc<ServerConfig>, tls: &ClientTls, host: &str) -> Connection {
    connect(Arc::clone(server), tls.build().unwrap(), tls.server_name_for(host).unwrap()).await
}

fn trusting(pem: impl Into<String>) -> ClientTls {
    ClientTls { ca_pem: Some(pem.into()), ..ClientTls::default() }
}

/// A CA:TRUE certificate that serves itself, as self-made ones often do.
fn ca_leaf(change: impl FnOnce(&mut CertificateParams)) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    self_signed("localhost", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(params);
    })
}

#[tokio::test]
async fn a_server_of_the_given_ca_is_trusted_by_name_and_address() {
    let (server, ca) = issued_server();
    dial(&server, &trusting(&ca), "localhost").await.established();
    dial(&server, &trusting(&ca), "127.0.0.1").await.established();
    let refused = dial(&server, &trusting(&ca), "other.test").await.refused_by_client();
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn every_source_of_trust_works_and_they_add_up() {
    let (server, ca) = issued_server();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("ca.pem"), &ca).unwrap();
    fs::write(directory.path().join("README"), "not a certificate").unwrap();
    let by_path = ClientTls { ca_path: Some(directory.path().to_owned()), ..ClientTls::default() };
    dial(&server, &by_path, "localhost").await.established();
    let (other_ca, _) = make_ca("other").unwrap();
    let by_file = ClientTls { ca_file: Some(directory.path().join("ca.pem")), ..trusting(other_ca) };
    dial(&server, &by_file, "localhost").await.established();
}

#[tokio::test]
async fn an_unknown_ca_is_refused() {
    let (server, _) = issued_server();
    let (other_ca, _) = make_ca("other CA").unwrap();
    let refused = dial(&server, &trusting(other_ca), "localhost").await.refused_by_client();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    let (namesake, _) = make_ca("test CA").unwrap();
    let refused = dial(&server, &trusting(namesake), "localhost").await.refused_by_client();
    assert!(refused.contains("BadSignature"), "{refused}");
    // With nothing given it is the system's roots, and none of them has signed this.
    let refused = dial(&server, &ClientTls::default(), "localhost").await.refused_by_client();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[tokio::test]
async fn a_given_server_name_is_checked_instead_of_the_host() {
    let (server, ca) = issued_server();
    let named = ClientTls { server_name: Some("localhost".into()), ..trusting(&ca) };
    dial(&server, &named, "10.0.0.1").await.established();
    // Also where the caller dials with the host's name.
    let host = ServerName::try_from("other.test").unwrap();
    connect(Arc::clone(&server), named.build().unwrap(), host).await.established();
    let wrong = ClientTls { server_name: Some("other.test".into()), ..trusting(&ca) };
    connect(Arc::clone(&server), wrong.build().unwrap(), localhost()).await.refused_by_client();
}

#[tokio::test]
async fn a_ca_leaf_identical_to_an_anchor_is_trusted_under_its_name() {
    let (certificate, key) = ca_leaf(|_| {});
    let tls = trusting(pem("CERTIFICATE", &certificate));
    let server = server(certificate, &key);
    dial(&server, &tls, "localhost").await.established();
    let refused = dial(&server, &tls, "other.test").await.refused_by_client();
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn a_ca_leaf_identical_to_an_anchor_is_refused_out_of_its_dates() {
    let (certificate, key) = ca_leaf(|params| params.not_after = date_time_ymd(2001, 1, 1));
    let tls = trusting(pem("CERTIFICATE", &certificate));
    let refused = dial(&server(certificate, &key), &tls, "localhost").await.refused_by_client();
    assert!(refused.contains("expired") || refused.contains("Expired"), "{refused}");

    let (certificate, key) = ca_leaf(|params| params.not_before = date_time_ymd(3000, 1, 1));
    let tls = trusting(pem("CERTIFICATE", &certificate));
    let refused = dial(&server(certificate, &key), &tls, "localhost").await.refused_by_client();
    assert!(refused.contains("not valid yet") || refused.contains("NotValidYet"), "{refused}");
}

#[tokio::test]
async fn a_ca_leaf_identical_to_an_anchor_is_refused_without_its_key_or_purpose() {
    let (certificate, _) = ca_leaf(|_| {});
    let (_, other_key) = ca_leaf(|_| {});
    let tls = trusting(pem("CERTIFICATE", &certificate));
    let refused = dial(&server(certificate, &other_key), &tls, "localhost").await.refused_by_client();
    assert!(refused.contains("BadSignature"), "{refused}");

    let (certificate, key) =
        ca_leaf(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
    let tls = trusting(pem("CERTIFICATE", &certificate));
    let refused = dial(&server(certificate, &key), &tls, "localhost").await.refused_by_client();
    assert!(refused.contains("InvalidPurpose"), "{refused}");
}

#[tokio::test]
async fn a_ca_leaf_that_only_resembles_an_anchor_is_refused() {
    let (anchor, _) = ca_leaf(|_| {});
    let (lookalike, key) = ca_leaf(|_| {});
    let tls = trusting(pem("CERTIFICATE", &anchor));
    dial(&server(lookalike, &key), &tls, "localhost").await.refused_by_client();
}

#[tokio::test]
async fn skipping_verification_still_demands_the_servers_key() {
    let skipping = ClientTls { skip_verify: true, ..ClientTls::default() };
    for (certificate, key) in [("p256.crt.pem", "p256.sec1.pem"), ("v1.rsa.crt.pem", "rsa.pkcs1.pem")] {
        let (mut chain, key) = fixture(certificate, key);
        dial(&server(chain.remove(0), &key), &skipping, "anything.test").await.established();
    }
    let (mut chain, _) = fixture("p256.crt.pem", "p256.sec1.pem");
    let (_, other_key) = self_signed("x.test", |_| {});
    let refused =
        dial(&server(chain.remove(0), &other_key), &skipping, "anything.test").await.refused_by_client();
    assert!(refused.contains("BadSignature"), "{refused}");
}

#[tokio::test]
async fn a_client_certificate_is_presented_from_files_and_from_text() {
    let directory = tempfile::tempdir().unwrap();
    let (ca, ca_key) = make_ca("test CA").unwrap();
    let (cert, key) = make_cert(&ca, &ca_key, &["localhost".into()], &[], 1).unwrap();
    let (cert_file, key_file) = (directory.path().join("c.pem"), directory.path().join("k.pem"));
    fs::write(&cert_file, &cert).unwrap();
    fs::write(&key_file, key.as_str()).unwrap();
    let listener = keystead_tls::ApiTls::load(keystead_tls::ApiTlsFiles {
        cert_file,
        key_file,
        ..keystead_tls::ApiTlsFiles::default()
    })
    .unwrap();
    let from_files = ClientTls {
        client_cert: Some(testdata("rsa.crt.pem")),
        client_key: Some(testdata("rsa.pkcs1.pem")),
        ..trusting(&ca)
    };
    let text = |file| fs::read_to_string(testdata(file)).unwrap();
    let from_text = ClientTls {
        client_cert_pem: Some(text("p384.crt.pem")),
        client_key_pem: Some(text("p384.sec1.pem").into()),
        ..trusting(&ca)
    };
    for (tls, certificate) in [(from_files, "rsa.crt.pem"), (from_text, "p384.crt.pem")] {
        let (server, _client) = dial(&listener.server_config(), &tls, "localhost").await.established();
        let expected = CertificateDer::from_pem_file(testdata(certificate)).unwrap();
        assert_eq!(server.get_ref().1.peer_certificates(), Some(&[expected][..]));
    }
}

#[test]
fn errors_name_the_file() {
    let fails = |tls: ClientTls| tls.build().expect_err("it was built");
    let error = fails(ClientTls { ca_file: Some("/nowhere/ca.pem".into()), ..ClientTls::default() });
    assert!(
        matches!(&error, Error::ReadFile { .. }) && error.to_string().contains("/nowhere/ca.pem"),
        "{error}"
    );
    let error = fails(ClientTls { ca_file: Some(testdata("p256.sec1.pem")), ..ClientTls::default() });
    assert!(error.to_string().contains("p256.sec1.pem"), "{error}");
    let error = fails(ClientTls { client_cert: Some(testdata("p256.crt.pem")), ..ClientTls::default() });
    assert!(error.to_string().contains("client key"), "{error}");
    let error = fails(ClientTls {
        client_cert: Some(testdata("p256.crt.pem")),
        client_key: Some(testdata("p384.sec1.pem")),
        ..ClientTls::default()
    });
    assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = fails(ClientTls { ca_path: Some(empty.path().to_owned()), ..ClientTls::default() });
    assert!(error.to_string().contains("no file in it"), "{error}");
    let error = fails(ClientTls { server_name: Some("not a name".into()), ..ClientTls::default() });
    assert!(error.to_string().contains("not a name"), "{error}");
}

#[test]
fn a_name_to_dial_is_the_override_or_the_host() {
    let plain = ClientTls::default();
    assert_eq!(plain.server_name_for("[::1]").unwrap(), ServerName::try_from("::1").unwrap());
    assert_eq!(plain.server_name_for("localhost").unwrap(), localhost());
    let named = ClientTls { server_name: Some("localhost".into()), ..ClientTls::default() };
    assert_eq!(named.server_name_for("10.0.0.1").unwrap(), localhost());
}

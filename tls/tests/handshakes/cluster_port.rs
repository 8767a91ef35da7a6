//! The cluster port lets in the members of its cluster, by certificate, key and policy, and nobody else.

use std::sync::Arc;
use std::time::Duration;

use keystead_tls::{
    ClusterCa, ClusterId, ClusterTls, NodeKey, PeerIdentity, PeerName, PeerPolicy, exporter, make, own_ca,
    peer_of,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};
use rustls::client::Resumption;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use crate::loopback::{Connection, connect, presenting};

const OURS: ClusterId = ClusterId([7; 16]);
const THEIRS: ClusterId = ClusterId([8; 16]);

/// Admits everybody but one incarnation.
struct AllBut(Option<u64>);

impl PeerPolicy for AllBut {
    fn admit(&self, peer: &PeerIdentity) -> Result<(), String> {
        match self.0 {
            Some(tombstoned) if tombstoned == peer.name.incarnation => Err("it was removed".into()),
            _ => Ok(()),
        }
    }
}

fn name(incarnation: u64) -> PeerName {
    PeerName { cluster_id: OURS, node_id: format!("node-{incarnation}"), incarnation }
}

fn node(ca: &ClusterCa, incarnation: u64, policy: AllBut) -> ClusterTls {
    let key = NodeKey::generate().unwrap();
    let request = key.csr_der("whoever", 0).unwrap();
    let name = PeerName { cluster_id: ca.cluster_id(), ..name(incarnation) };
    let certificate = ca.sign_csr(&request, &name).unwrap();
    ClusterTls::new(ca.cluster_id(), ca.cert_der(), &certificate, key, Arc::new(policy)).unwrap()
}

async fn dial(server: &ClusterTls, client: Arc<ClientConfig>) -> Connection {
    connect(server.server_config(), client, ClusterTls::server_name()).await
}

/// A certificate signed with the real CA's key whose content is this test's, with its key.
fn forged(
    ca: &ClusterCa,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let ca_key_der = ca.key_pkcs8_der();
    let ca_key = KeyPair::try_from(&PrivatePkcs8KeyDer::from(ca_key_der.as_slice())).unwrap();
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(ca.cert_der()), ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(name(2).to_uri().try_into().unwrap())];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (certificate.into(), PrivateKeyDer::Pkcs8(key.into()))
}

async fn dial_with_forged(change: impl FnOnce(&mut CertificateParams)) -> Connection {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    let (certificate, key) = forged(&ca, change);
    dial(&server, presenting(&client.client_config(None), vec![certificate], &key)).await
}

#[tokio::test]
async fn members_know_each_other_and_share_an_exporter() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    let (at_server, at_client) = dial(&server, client.client_config(Some(1))).await.established();

    let (server_end, client_end) = (at_server.get_ref().1, at_client.get_ref().1);
    assert_eq!(peer_of(server_end).unwrap().name, name(2));
    assert_eq!(peer_of(client_end).unwrap().name, name(1));
    assert_eq!(*exporter(server_end).unwrap(), *exporter(client_end).unwrap());
    assert_eq!(client_end.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(client_end.alpn_protocol(), Some(keystead_tls::cluster_port::ALPN));
    let group = client_end.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);

    let (_other, again) = dial(&server, client.client_config(Some(1))).await.established();
    assert_ne!(*exporter(client_end).unwrap(), *exporter(again.get_ref().1).unwrap());
}

#[tokio::test]
async fn another_ca_for_the_same_cluster_id_is_refused_by_both_sides() {
    let (real, fake) = (ClusterCa::generate(OURS).unwrap(), ClusterCa::generate(OURS).unwrap());
    let (member, outsider) = (node(&real, 1, AllBut(None)), node(&fake, 2, AllBut(None)));
    let refused = dial(&outsider, member.client_config(None)).await.refused_by_client();
    assert!(refused.contains("UnknownIssuer"), "{refused}");

    // An outsider that trusts anybody, so that it is the member who decides.
    let trusting = node(&real, 3, AllBut(None)).client_config(None);
    let key = NodeKey::generate().unwrap();
    let certificate = fake.sign_csr(&key.csr_der("x", 0).unwrap(), &name(2)).unwrap();
    let key = PrivateKeyDer::Pkcs8(pkcs8(&key));
    let hostile = presenting(&trusting, vec![certificate.into()], &key);
    let refused = dial(&member, hostile).await.refused_by_server();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

#[tokio::test]
async fn a_certificate_for_another_cluster_is_refused_even_if_our_ca_signed_it() {
    let foreign = PeerName { cluster_id: THEIRS, ..name(2) };
    let uri = SanType::URI(foreign.to_uri().try_into().unwrap());
    let refused = dial_with_forged(|params| params.subject_alt_names = vec![uri]).await.refused_by_server();
    assert!(refused.contains(&format!("belongs to cluster {THEIRS}, not to ours ({OURS})")), "{refused}");
}

#[tokio::test]
async fn two_names_or_none_are_refused() {
    let second = SanType::URI(name(3).to_uri().try_into().unwrap());
    let refused = dial_with_forged(|params| params.subject_alt_names.push(second)).await.refused_by_server();
    assert!(refused.contains("several names"), "{refused}");
    let refused = dial_with_forged(|params| params.subject_alt_names.clear()).await.refused_by_server();
    assert!(refused.contains("no keystead:// name"), "{refused}");
}

#[tokio::test]
async fn a_certificate_without_client_usage_is_refused() {
    let connection = dial_with_forged(|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let refused = connection.await.refused_by_server();
    assert!(refused.contains("InvalidPurpose"), "{refused}");
}

#[tokio::test]
async fn case_29_a_certificate_past_its_date_is_still_a_members() {
    let connection = dial_with_forged(|params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let (server, _client) = connection.await.established();
    assert_eq!(peer_of(server.get_ref().1).unwrap().name, name(2));
}

#[tokio::test]
async fn case_29_the_clock_of_neither_side_matters() {
    #[derive(Debug)]
    struct StuckAt(u64);
    impl TimeProvider for StuckAt {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
        }
    }

    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    // 1970, and the year 11970, after the last date that a certificate can carry.
    for clock in [1, 315_576_000_000] {
        let mut server_config = ServerConfig::clone(&server.server_config());
        server_config.time_provider = Arc::new(StuckAt(clock));
        let mut client_config = ClientConfig::clone(&client.client_config(None));
        client_config.time_provider = Arc::new(StuckAt(clock));
        let connection =
            connect(Arc::new(server_config), Arc::new(client_config), ClusterTls::server_name()).await;
        connection.established();
    }
}

#[tokio::test]
async fn a_tombstoned_peer_is_refused_by_policy_on_both_sides() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (strict, removed) = (node(&ca, 1, AllBut(Some(2))), node(&ca, 2, AllBut(None)));
    let refused = dial(&strict, removed.client_config(None)).await.refused_by_server();
    assert!(refused.contains("\"node-2\"") && refused.contains("it was removed"), "{refused}");
    let refused = dial(&removed, strict.client_config(None)).await.refused_by_client();
    assert!(refused.contains("it was removed"), "{refused}");
}

#[tokio::test]
async fn dialling_reaches_only_the_expected_incarnation() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    let refused = dial(&server, client.client_config(Some(9))).await.refused_by_client();
    assert!(refused.contains("dialled incarnation 0000000000000009"), "{refused}");
    dial(&server, client.client_config(Some(1))).await.established();
}

#[tokio::test]
async fn a_members_certificate_without_its_key_is_worth_nothing() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    let (stolen, _) = forged(&ca, |_| {});
    let other_key = PrivateKeyDer::Pkcs8(KeyPair::generate().unwrap().into());
    let refused = dial(&server, presenting(&client.client_config(None), vec![stolen], &other_key)).await;
    assert!(refused.refused_by_server().contains("BadSignature"));
}

#[tokio::test]
async fn nobody_gets_in_without_a_certificate_or_with_the_cas_own() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    let mut anonymous = ClientConfig::clone(&client.client_config(None));
    anonymous.client_auth_cert_resolver =
        ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
            .client_auth_cert_resolver;
    let refused = dial(&server, Arc::new(anonymous)).await.refused_by_server();
    assert!(refused.contains("no certificates"), "{refused}");

    let ca_key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(ca.key_pkcs8_der().to_vec()));
    let as_ca = presenting(&client.client_config(None), vec![ca.cert_der().to_vec().into()], &ca_key);
    let refused = dial(&server, as_ca).await.refused_by_server();
    assert!(refused.contains("CaUsedAsEndEntity"), "{refused}");
}

#[tokio::test]
async fn tls_1_2_is_refused_in_both_directions() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());

    let old_client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let refused = dial(&server, Arc::new(old_client)).await.refused_by_server();
    assert!(refused.contains("Tls13") || refused.contains("Tls12"), "{refused}");

    let (certificate, key) = forged(&ca, |_| {});
    let old_server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let connection =
        connect(Arc::new(old_server), client.client_config(None), ClusterTls::server_name()).await;
    assert!(connection.client.is_err() && connection.server.is_err());
}

#[tokio::test]
async fn case_29_no_session_is_ever_resumed() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let (server, client) = (node(&ca, 1, AllBut(None)), node(&ca, 2, AllBut(None)));
    // A client that would resume if it could.
    let mut eager = ClientConfig::clone(&client.client_config(None));
    eager.resumption = Resumption::in_memory_sessions(16);
    let eager = Arc::new(eager);
    for _ in 0..2 {
        let (at_server, at_client) = dial(&server, Arc::clone(&eager)).await.established();
        assert_eq!(at_client.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(at_server.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn a_node_is_not_built_with_another_nodes_key_or_another_clusters_ca() {
    let ca = ClusterCa::generate(OURS).unwrap();
    let key = NodeKey::generate().unwrap();
    let certificate = ca.sign_csr(&key.csr_der("n", 1).unwrap(), &name(1)).unwrap();
    let build = |cluster, ca: &ClusterCa, key| {
        ClusterTls::new(cluster, ca.cert_der(), &certificate, key, Arc::new(AllBut(None))).err().unwrap()
    };
    let error = build(OURS, &ca, NodeKey::generate().unwrap());
    assert!(matches!(error, keystead_tls::Error::KeyMismatch { .. }), "{error}");
    let error = build(THEIRS, &ca, copy(&key));
    assert!(matches!(error, keystead_tls::Error::PeerIdentity(_)), "{error}");
    let error = build(OURS, &ClusterCa::generate(OURS).unwrap(), copy(&key));
    assert!(matches!(error, keystead_tls::Error::Tls(_)), "{error}");
}

fn copy(key: &NodeKey) -> NodeKey {
    NodeKey::from_pkcs8_pem(&key.to_pkcs8_pem()).unwrap()
}

fn pkcs8(key: &NodeKey) -> PrivatePkcs8KeyDer<'static> {
    use rustls_pki_types::pem::PemObject;
    PrivatePkcs8KeyDer::from_pem_slice(key.to_pkcs8_pem().as_bytes()).unwrap()
}

/// A member by a CA of the operator's.
fn enrolled((ca, ca_key): &(String, zeroize::Zeroizing<String>), name: &PeerName) -> ClusterTls {
    let key = NodeKey::generate().unwrap();
    let request = own_ca::request_pem(&key, name).unwrap();
    let (_, certificate) = own_ca::sign(ca, ca_key, &request, 1).unwrap();
    let (ca, certificate) =
        (own_ca::single(ca, "ca").unwrap(), own_ca::single(&certificate, "node").unwrap());
    ClusterTls::new(name.cluster_id, &ca, &certificate, key, Arc::new(AllBut(None))).unwrap()
}

#[tokio::test]
async fn members_by_the_operators_ca_know_each_other_and_nobody_else_whom_it_signed() {
    let pki = make::make_ca("Example CA").unwrap();
    let (server, client) = (enrolled(&pki, &name(1)), enrolled(&pki, &name(2)));
    let (at_server, at_client) = dial(&server, client.client_config(Some(1))).await.established();
    assert_eq!(peer_of(at_server.get_ref().1).unwrap().name, name(2));
    assert_eq!(peer_of(at_client.get_ref().1).unwrap().name, name(1));

    let elsewhere = enrolled(&pki, &PeerName { cluster_id: THEIRS, ..name(2) });
    let refused = dial(&elsewhere, client.client_config(None)).await.refused_by_client();
    assert!(refused.contains("belongs to cluster"), "{refused}");

    let (web, web_key) = make::make_cert(&pki.0, &pki.1, &["www.test".into()], &[], 1).unwrap();
    let key = rustls_pki_types::pem::PemObject::from_pem_slice(web_key.as_bytes()).unwrap();
    let web = own_ca::single(&web, "web").unwrap();
    let hostile = presenting(&client.client_config(None), vec![web], &PrivateKeyDer::Pkcs8(key));
    let refused = dial(&server, hostile).await.refused_by_server();
    assert!(refused.contains("carries no keystead:// name"), "{refused}");

    let stranger = enrolled(&make::make_ca("Example CA").unwrap(), &name(3));
    let refused = dial(&stranger, client.client_config(None)).await.refused_by_client();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}

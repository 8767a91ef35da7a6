//! rustls configurations of the cluster port: mutual TLS 1.3 between nodes, and no clock anywhere.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, ConnectionCommon, DigitallySignedStruct, DistinguishedName, OtherError,
    PeerIncompatible, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use zeroize::Zeroizing;

use crate::own_ca::is_built_in;
use crate::peer::{ca_cluster_id, parse_certificate};
use crate::{ClusterId, Error, NodeKey, PeerIdentity, Result, peer_identity, provider};

/// The protocol spoken on the cluster port (ALPN, RFC 7301).
pub const ALPN: &[u8] = b"keystead/1";

/// The label of the exporter that binds an open channel to its connection (RFC 8446 7.5).
const EXPORTER_LABEL: &[u8] = b"EXPORTER-keystead-open-channel";

/// Decides whether a peer with a valid certificate of this cluster may connect.
///
/// Asked in every handshake, on both sides, from the runtime's threads: it must not block. Tombstones and
/// pinned keys live behind it.
pub trait PeerPolicy: Send + Sync {
    /// Admits the peer, or says why not; the text goes to this node's log, not to the peer.
    fn admit(&self, peer: &PeerIdentity) -> std::result::Result<(), String>;
}

/// What a node needs to speak on the cluster port: the cluster's CA, its own certificate and key, and the
/// policy for peers.
///
/// What is asked of it is by the newest certificate; connections that are there go on with theirs.
pub struct ClusterTls {
    policy: Arc<dyn PeerPolicy>,
    present: RwLock<Present>,
}

/// The configurations by one certificate.
struct Present {
    verifier: PeerVerifier,
    server_config: Arc<ServerConfig>,
    client_config: ClientConfig,
}

impl ClusterTls {
    /// Builds the configurations of a node.
    ///
    /// # Errors
    /// [`Error::PeerIdentity`] if the CA or the certificate is not of `cluster_id`,
    /// [`Error::KeyMismatch`] if `key` is not the certificate's, [`Error::Tls`] if the CA did not sign it.
    pub fn new(
        cluster_id: ClusterId,
        ca_cert_der: &[u8],
        cert_der: &[u8],
        key: NodeKey,
        policy: Arc<dyn PeerPolicy>,
    ) -> Result<ClusterTls> {
        let present = Present::new(cluster_id, ca_cert_der, cert_der, key, Arc::clone(&policy))?;
        Ok(ClusterTls { policy, present: RwLock::new(present) })
    }

    /// Takes another certificate, key and CA for all connections from now on.
    ///
    /// # Errors
    /// As [`ClusterTls::new`]; nothing has changed then.
    pub fn renew(
        &self,
        cluster_id: ClusterId,
        ca_cert_der: &[u8],
        cert_der: &[u8],
        key: NodeKey,
    ) -> Result<()> {
        let renewed = Present::new(cluster_id, ca_cert_der, cert_der, key, Arc::clone(&self.policy))?;
        *self.present.write() = renewed;
        Ok(())
    }

    /// The configuration for accepting peers: a certificate is demanded, judged, and never remembered.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.present.read().server_config)
    }

    /// The configuration for dialling a peer, which must be the `expected` incarnation if one is given.
    ///
    /// Addresses move between nodes; with an expectation a call can never reach the wrong one.
    pub fn client_config(&self, expected: Option<u64>) -> Arc<ClientConfig> {
        let present = self.present.read();
        let mut config = present.client_config.clone();
        let verifier = PeerVerifier { expected, ..present.verifier.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }

    /// The server name to dial with: rustls wants one, but it is neither sent nor checked, for identity is
    /// in the certificate.
    pub fn server_name() -> ServerName<'static> {
        ServerName::try_from("cluster.keystead").expect("a valid DNS name")
    }
}

impl Present {
    fn new(
        cluster_id: ClusterId,
        ca_cert_der: &[u8],
        cert_der: &[u8],
        key: NodeKey,
        policy: Arc<dyn PeerPolicy>,
    ) -> Result<Present> {
        let provider = provider();
        let verifier = PeerVerifier::new(cluster_id, ca_cert_der, policy, Arc::clone(&provider))?;
        let own = CertificateDer::from(cert_der.to_vec());
        let identity = verifier.verify_membership(&own, KeyUsage::server_auth())?;
        if identity.spki_sha256 != key.spki_sha256() {
            return Err(Error::KeyMismatch {
                certificate: "the node's certificate".into(),
                key: "the node's key".into(),
            });
        }

        let certified = CertifiedKey::new(vec![own], key.signing_key()?);
        let resolver = Arc::new(SingleCertAndKey::from(certified));

        let mut server_config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier.clone()))
            .with_cert_resolver(Arc::clone(&resolver) as Arc<dyn ResolvesServerCert>);
        server_config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session skips the policy, so a removed member could come back with one.
        server_config.session_storage = Arc::new(NoServerSessionStorage {});
        server_config.send_tls13_tickets = 0;

        let mut client_config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier.clone()))
            .with_client_cert_resolver(resolver);
        client_config.alpn_protocols = vec![ALPN.to_vec()];
        client_config.resumption = Resumption::disabled();
        client_config.enable_sni = false;

        Ok(Present { verifier, server_config: Arc::new(server_config), client_config })
    }
}

/// Keying material that both ends of a connection derive and nobody else can: what proofs of an open
/// channel are bound to.
///
/// # Errors
/// [`Error::Tls`] while the handshake is not complete.
pub fn exporter<Side>(connection: &ConnectionCommon<Side>) -> Result<Zeroizing<[u8; 32]>> {
    let mut material = Zeroizing::new([0; 32]);
    connection.export_keying_material(material.as_mut_slice(), EXPORTER_LABEL, None)?;
    Ok(material)
}

/// Why a peer's certificate was refused although its signature may be good.
#[derive(thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Identity(#[from] Error),
    #[error("{peer} belongs to cluster {theirs}, not to ours ({ours})")]
    OtherCluster { peer: String, theirs: ClusterId, ours: ClusterId },
    #[error("dialled incarnation {expected:016x}, but {peer} answered")]
    OtherIncarnation { peer: String, expected: u64 },
    #[error("{peer} is not admitted: {reason}")]
    Policy { peer: String, reason: String },
}

impl fmt::Debug for Refused {
    /// The sentence, because rustls shows a custom verdict's `Debug` form where others are shown in words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refused> for rustls::Error {
    fn from(refused: Refused) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(refused))).into()
    }
}

/// Judges peers for both sides of the cluster port.
#[derive(Clone)]
struct PeerVerifier {
    cluster_id: ClusterId,
    anchor: TrustAnchor<'static>,
    policy: Arc<dyn PeerPolicy>,
    provider: Arc<CryptoProvider>,
    expected: Option<u64>,
}

impl PeerVerifier {
    fn new(
        cluster_id: ClusterId,
        ca_cert_der: &[u8],
        policy: Arc<dyn PeerPolicy>,
        provider: Arc<CryptoProvider>,
    ) -> Result<PeerVerifier> {
        // A CA of the operator's names no cluster: the certificates it signs do.
        if is_built_in(ca_cert_der)? {
            let named = ca_cluster_id(&parse_certificate(ca_cert_der)?)?;
            if named != cluster_id {
                return Err(Error::PeerIdentity(format!("the CA is cluster {named}'s, not {cluster_id}'s")));
            }
        }
        let der = CertificateDer::from(ca_cert_der);
        let anchor = anchor_from_trusted_cert(&der)
            .map_err(|reason| Error::PeerIdentity(format!("the CA certificate is unusable: {reason}")))?
            .to_owned();
        Ok(PeerVerifier { cluster_id, anchor, policy, provider, expected: None })
    }

    /// Checks that our CA signed the certificate, for this usage and for our cluster.
    fn verify_membership(
        &self,
        certificate: &CertificateDer<'_>,
        usage: KeyUsage,
    ) -> Result<PeerIdentity, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_chain(&self.anchor, certificate, usage, algorithms).map_err(chain_error)?;
        let peer = peer_identity(certificate).map_err(Refused::Identity)?;
        if peer.name.cluster_id != self.cluster_id {
            return Err(Refused::OtherCluster {
                peer: peer.name.to_string(),
                theirs: peer.name.cluster_id,
                ours: self.cluster_id,
            }
            .into());
        }
        Ok(peer)
    }

    fn verify_peer(&self, certificate: &CertificateDer<'_>, usage: KeyUsage) -> Result<(), rustls::Error> {
        let peer = self.verify_membership(certificate, usage)?;
        if let Some(expected) = self.expected
            && peer.name.incarnation != expected
        {
            return Err(Refused::OtherIncarnation { peer: peer.name.to_string(), expected }.into());
        }
        self.policy
            .admit(&peer)
            .map_err(|reason| Refused::Policy { peer: peer.name.to_string(), reason }.into())
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerVerifier")
            .field("cluster_id", &self.cluster_id)
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_peer(end_entity, KeyUsage::client_auth()).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_peer(end_entity, KeyUsage::server_auth()).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Checks that a CA, its certificate in DER, signed a node's certificate for this usage.
pub(crate) fn chain_to(
    ca_cert_der: &[u8],
    certificate: &CertificateDer<'_>,
    usage: KeyUsage,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> std::result::Result<(), webpki::Error> {
    let ca = CertificateDer::from(ca_cert_der);
    verify_chain(&anchor_from_trusted_cert(&ca)?, certificate, usage, algorithms)
}

fn verify_chain(
    anchor: &TrustAnchor<'_>,
    certificate: &CertificateDer<'_>,
    usage: KeyUsage,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> std::result::Result<(), webpki::Error> {
    let end_entity = EndEntityCert::try_from(certificate)?;
    // Judged at the start of its own validity, so that no clock has a say: a wrong one, or a
    // certificate past its date, must never lock a cluster out. The directory decides who is in.
    let not_before = parse_certificate(certificate).map_err(|_| webpki::Error::BadDer)?.validity().not_before;
    let issued_at = u64::try_from(not_before.timestamp()).unwrap_or(0);
    // Intermediates are never looked at: the CA signs nodes itself.
    end_entity
        .verify_for_usage(
            algorithms,
            std::slice::from_ref(anchor),
            &[],
            UnixTime::since_unix_epoch(Duration::from_secs(issued_at)),
            usage,
            None,
            None,
        )
        .map(|_| ())
}

/// webpki's verdicts in rustls's words, so that the right alert is sent.
fn chain_error(error: webpki::Error) -> rustls::Error {
    use webpki::Error as Chain;
    match error {
        Chain::UnknownIssuer | Chain::InvalidSignatureForPublicKey => CertificateError::UnknownIssuer,
        Chain::BadDer | Chain::BadDerTime | Chain::TrailingData(_) => CertificateError::BadEncoding,
        Chain::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
    .into()
}

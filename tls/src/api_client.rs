//! The client side of the API port: whom to trust, and what to present.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeroize::Zeroizing;

use crate::keys::{certificates_from_pem, certified_key, read_file};
use crate::peer::parse_certificate;
use crate::{Error, Result, provider, public_key};

/// Where distributions keep the system's roots, as one PEM bundle.
const SYSTEM_BUNDLES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// How a client speaks TLS to an API port: the command line's flags, or a `retry_join` stanza.
///
/// The sources of trust add up; with none of them the system's roots are used. A client certificate comes
/// from files or as text, its key likewise.
#[derive(Clone, Default)]
pub struct ClientTls {
    /// A PEM bundle of trusted certificates (`VAULT_CACERT`, `leader_ca_cert_file`).
    pub ca_file: Option<PathBuf>,
    /// A directory of PEM files with trusted certificates (`VAULT_CAPATH`).
    pub ca_path: Option<PathBuf>,
    /// Trusted certificates as PEM text (`leader_ca_cert`).
    pub ca_pem: Option<String>,
    /// The client's certificate chain, a PEM file.
    pub client_cert: Option<PathBuf>,
    /// The key of the client's certificate, a PEM file.
    pub client_key: Option<PathBuf>,
    /// The client's certificate chain as PEM text.
    pub client_cert_pem: Option<String>,
    /// The key of the client's certificate as PEM text.
    pub client_key_pem: Option<Zeroizing<String>>,
    /// The name that the server's certificate must carry, instead of the address's host.
    pub server_name: Option<String>,
    /// Trust whoever answers. Only the handshake's signature is still checked.
    pub skip_verify: bool,
}

impl ClientTls {
    /// Builds the configuration: TLS 1.2 and 1.3, ALPN `http/1.1`.
    ///
    /// # Errors
    /// [`Error::ReadFile`], [`Error::Invalid`] or [`Error::KeyMismatch`], each naming the file.
    pub fn build(&self) -> Result<Arc<ClientConfig>> {
        let provider = provider();
        let versions = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let verifier: Arc<dyn ServerCertVerifier> = if self.skip_verify {
            Arc::new(AnyServer { provider: Arc::clone(&provider) })
        } else {
            let anchors = Anchors::load(self)?;
            let name = self.server_name.as_deref().map(parse_server_name).transpose()?;
            Arc::new(KnownServer { anchors, name, provider: Arc::clone(&provider) })
        };
        let builder = versions.dangerous().with_custom_certificate_verifier(verifier);
        let mut config = match self.client_certificate()? {
            Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// The name to dial a host with (for SNI): the override if there is one, else the host, which may be
    /// an IP address with or without brackets.
    pub fn server_name_for(&self, host: &str) -> Result<ServerName<'static>> {
        parse_server_name(self.server_name.as_deref().unwrap_or(host))
    }

    fn client_certificate(&self) -> Result<Option<CertifiedKey>> {
        let cert =
            Pem::load(self.client_cert_pem.as_deref(), self.client_cert.as_deref(), "client certificate")?;
        let key_text = self.client_key_pem.as_ref().map(|pem| pem.as_str());
        let key = Pem::load(key_text, self.client_key.as_deref(), "client key")?;
        match (cert, key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => {
                certified_key(&cert.text, &cert.origin, &key.text, &key.origin).map(Some)
            }
            (Some(cert), None) => {
                Err(Error::invalid(cert.origin, "has no key beside it; give the client key too"))
            }
            (None, Some(key)) => Err(Error::invalid(
                key.origin,
                "has no certificate beside it; give the client certificate too",
            )),
        }
    }
}

/// A PEM text and what errors call it.
struct Pem {
    text: Zeroizing<Vec<u8>>,
    origin: String,
}

impl Pem {
    fn load(text: Option<&str>, file: Option<&Path>, role: &str) -> Result<Option<Pem>> {
        match (text, file) {
            (Some(text), _) => Ok(Some(Pem {
                text: Zeroizing::new(text.as_bytes().to_vec()),
                origin: format!("the {role}"),
            })),
            (None, Some(path)) => {
                Ok(Some(Pem { text: read_file(path)?, origin: path.display().to_string() }))
            }
            (None, None) => Ok(None),
        }
    }
}

fn parse_server_name(name: &str) -> Result<ServerName<'static>> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    ServerName::try_from(bare.to_owned()).map_err(|_| {
        Error::invalid("TLS server name", format!("{name:?} is neither a DNS name nor an IP address"))
    })
}

/// The certificates a client trusts.
struct Anchors {
    roots: RootCertStore,
    /// The configured ones as they are, for the byte-identical rule; the system's are not among them.
    configured: Vec<CertificateDer<'static>>,
}

impl Anchors {
    fn load(tls: &ClientTls) -> Result<Anchors> {
        let mut configured = Vec::new();
        if let Some(pem) = &tls.ca_pem {
            configured.extend(anchors_from_pem(pem.as_bytes(), "the CA certificate")?);
        }
        if let Some(path) = &tls.ca_file {
            configured.extend(anchors_from_pem(&read_file(path)?, &path.display().to_string())?);
        }
        if let Some(directory) = &tls.ca_path {
            configured.extend(anchors_from_directory(directory)?);
        }
        let mut roots = RootCertStore::empty();
        for certificate in &configured {
            roots.add(certificate.clone())?;
        }
        if tls.ca_pem.is_none() && tls.ca_file.is_none() && tls.ca_path.is_none() {
            roots = system_roots();
        }
        Ok(Anchors { roots, configured })
    }
}

/// Certificates that can serve as anchors; one that cannot is an error, for it was configured on purpose.
fn anchors_from_pem(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = certificates_from_pem(pem, origin)?;
    for certificate in &certificates {
        webpki::anchor_from_trusted_cert(certificate).map_err(|reason| {
            Error::invalid(origin, format!("holds a certificate that cannot be read: {reason}"))
        })?;
    }
    Ok(certificates)
}

/// Every certificate of every file in a directory; files without any (a README, a key) are passed over.
fn anchors_from_directory(directory: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let mut anchors = Vec::new();
    let entries = fs::read_dir(directory).map_err(|source| Error::read_file(directory, source))?;
    for entry in entries {
        let path = entry.map_err(|source| Error::read_file(directory, source))?.path();
        if !path.is_file() {
            continue;
        }
        let pem = read_file(&path)?;
        if let Ok(found) = anchors_from_pem(&pem, &path.display().to_string()) {
            anchors.extend(found);
        }
    }
    if anchors.is_empty() {
        return Err(Error::invalid(
            directory.display().to_string(),
            "no file in it holds a CA certificate in PEM",
        ));
    }
    Ok(anchors)
}

/// The system's roots; empty where there are none, so that every certificate is of an unknown issuer.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let bundle = SYSTEM_BUNDLES.iter().find_map(|path| fs::read(path).ok());
    if let Some(certificates) = bundle.and_then(|pem| certificates_from_pem(&pem, "the system's roots").ok())
    {
        roots.add_parsable_certificates(certificates);
    }
    roots
}

/// Accepts servers that chain to an anchor, or are one, under the right name.
struct KnownServer {
    anchors: Anchors,
    name: Option<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl KnownServer {
    /// Checks an end-entity that is itself a configured anchor.
    ///
    /// webpki refuses a CA:TRUE certificate as an end-entity, yet that is what many self-made server
    /// certificates are. The operator has named this very certificate, so there is no chain to build; its
    /// dates and purpose are still judged here, its name by the caller, and possession of its key by the
    /// handshake's signature.
    fn verify_anchor(&self, end_entity: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let parsed = parse_certificate(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).map_err(|_| CertificateError::Expired)?;
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        match parsed.extended_key_usage() {
            Ok(None) => Ok(()),
            Ok(Some(usage)) if usage.value.server_auth || usage.value.any => Ok(()),
            Ok(Some(_)) => Err(CertificateError::InvalidPurpose.into()),
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }
}

impl fmt::Debug for KnownServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownServer").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for KnownServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if self.anchors.configured.contains(end_entity) {
            self.verify_anchor(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.anchors.roots,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        verify_server_name(&parsed, self.name.as_ref().unwrap_or(server_name))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        public_key::verify_tls12(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        public_key::verify_tls13(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Accepts whoever answers (`-tls-skip-verify`), as long as he holds the key of what he shows.
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for AnyServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyServer")
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        public_key::verify_tls12(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        public_key::verify_tls13(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

//! The server side of the API port: its certificate, which can be exchanged while it serves, and what it
//! asks of clients.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::keys::{certificates_from_pem, certified_key, read_file};
use crate::peer::parse_certificate;
use crate::{Error, Result, provider, public_key};

/// The files and rules of one API listener, as configured.
#[derive(Clone, Debug, Default)]
pub struct ApiTlsFiles {
    /// The server's certificate chain in PEM, its own certificate first (`tls_cert_file`).
    pub cert_file: PathBuf,
    /// The private key in PEM (`tls_key_file`).
    pub key_file: PathBuf,
    /// The CAs of client certificates in PEM (`tls_client_ca_file`).
    pub client_ca_file: Option<PathBuf>,
    /// Serve only clients whose certificate chains to `client_ca_file`
    /// (`tls_require_and_verify_client_cert`).
    pub require_client_cert: bool,
    /// Ask no client for a certificate (`tls_disable_client_certs`).
    pub disable_client_certs: bool,
    /// The oldest version served (`tls_min_version`).
    pub min_version: MinVersion,
    /// Serve nothing newer than TLS 1.2 (`tls_max_version`).
    pub only_tls12: bool,
    /// The cipher suites of TLS 1.2 on offer, by their IANA names; empty for all there are
    /// (`tls_cipher_suites`). Those of TLS 1.3 are always on offer, as in Go.
    pub cipher_suites: Vec<String>,
}

/// The oldest TLS version that a listener serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

impl FromStr for MinVersion {
    type Err = Error;

    /// Reads Vault's spelling, `tls12` or `tls13`.
    fn from_str(text: &str) -> Result<MinVersion> {
        match text {
            "tls12" => Ok(MinVersion::Tls12),
            "tls13" => Ok(MinVersion::Tls13),
            "tls10" | "tls11" => {
                Err(Error::invalid("tls_min_version", format!("{text} is not served any more; use tls12")))
            }
            _ => Err(Error::invalid("tls_min_version", format!("{text:?} is not known; use tls12 or tls13"))),
        }
    }
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];
        match self {
            MinVersion::Tls12 => BOTH,
            MinVersion::Tls13 => &BOTH[1..],
        }
    }
}

/// TLS of one API listener.
///
/// The listener asks for a client certificate and takes any or none: possession of its key is proved by
/// the handshake, and what it is worth is judged later, by the auth method that reads it.
pub struct ApiTls {
    files: ApiTlsFiles,
    certificate: Arc<CurrentCertificate>,
    config: Arc<ServerConfig>,
}

impl ApiTls {
    /// Reads the files and builds the configuration; warns if the certificate's dates are not now.
    ///
    /// # Errors
    /// [`Error::ReadFile`], [`Error::Invalid`] or [`Error::KeyMismatch`], each naming the file.
    pub fn load(files: ApiTlsFiles) -> Result<ApiTls> {
        let provider = offered(&files.cipher_suites)?;
        let certificate = Arc::new(CurrentCertificate(RwLock::new(Loaded::read(&files)?)));
        let versions = match (files.only_tls12, files.min_version) {
            (false, oldest) => oldest.versions(),
            (true, MinVersion::Tls12) => &[&rustls::version::TLS12][..],
            (true, MinVersion::Tls13) => {
                return Err(Error::invalid("tls_max_version", "is below tls_min_version"));
            }
        };
        let verifier = client_verifier(&files, Arc::clone(&provider))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&certificate) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if files.require_client_cert {
            // A resumed session is not judged again, so it would outlive its certificate's date.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(ApiTls { files, certificate, config: Arc::new(config) })
    }

    /// The configuration to accept connections with; it follows [`ApiTls::reload`].
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Reads certificate and key again and serves them from the next handshake on.
    ///
    /// Open connections go on. After an error, which may be a pair that is just being replaced, the
    /// previous certificate goes on being served. The client CA is read at start only.
    ///
    /// # Errors
    /// As [`ApiTls::load`].
    pub fn reload(&self) -> Result<()> {
        let loaded = Loaded::read(&self.files)?;
        *self.certificate.0.write() = loaded;
        Ok(())
    }

    /// The configured certificate file.
    pub fn cert_file(&self) -> &Path {
        &self.files.cert_file
    }

    /// When certificate and key were last changed on the disk, whichever was later; `None` while one of them
    /// cannot be looked at.
    pub fn changed(&self) -> Option<SystemTime> {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|found| found.modified()).ok();
        Some(changed(&self.files.cert_file)?.max(changed(&self.files.key_file)?))
    }

    /// When the certificate that is served now runs out.
    pub fn not_after(&self) -> SystemTime {
        self.certificate.0.read().not_after
    }
}

/// The provider, with as few cipher suites of TLS 1.2 as were asked for.
fn offered(names: &[String]) -> Result<Arc<CryptoProvider>> {
    let provider = provider();
    if names.is_empty() {
        return Ok(provider);
    }
    let mut fewer = (*provider).clone();
    fewer.cipher_suites.retain(|suite| {
        let own = format!("{:?}", suite.suite());
        suite.tls13().is_some() || names.contains(&own)
    });
    for name in names {
        let known = |suite: &SupportedCipherSuite| {
            let own = format!("{:?}", suite.suite());
            // TLS 1.3's have two spellings: IANA's and the library's.
            own == *name || own.replace("TLS13_", "TLS_") == *name
        };
        if !provider.cipher_suites.iter().any(known) {
            return Err(Error::invalid("tls_cipher_suites", format!("{name} is not offered")));
        }
    }
    Ok(Arc::new(fewer))
}

/// The judge of client certificates that the configuration asks for.
fn client_verifier(
    files: &ApiTlsFiles,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    // Read even where it is not demanded, so that a wrong file is found at start.
    let roots = files.client_ca_file.as_deref().map(client_roots).transpose()?;
    if files.disable_client_certs && !files.require_client_cert {
        return Ok(WebPkiClientVerifier::no_client_auth());
    }
    if !files.require_client_cert {
        return Ok(Arc::new(AnyClient { provider }));
    }
    let roots = roots.ok_or_else(|| {
        Error::invalid(
            "tls_require_and_verify_client_cert",
            "needs tls_client_ca_file, the CAs whose certificates are accepted",
        )
    })?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|reason| Error::invalid("tls_client_ca_file", reason.to_string()))
}

fn client_roots(path: &Path) -> Result<RootCertStore> {
    let origin = path.display().to_string();
    let mut roots = RootCertStore::empty();
    for certificate in certificates_from_pem(&read_file(path)?, &origin)? {
        roots.add(certificate).map_err(|reason| {
            Error::invalid(&origin, format!("holds a certificate that cannot be used: {reason}"))
        })?;
    }
    Ok(roots)
}

/// A certificate with its key, and the date that is asked about most.
struct Loaded {
    certified: Arc<CertifiedKey>,
    not_after: SystemTime,
}

impl Loaded {
    fn read(files: &ApiTlsFiles) -> Result<Loaded> {
        let cert_origin = files.cert_file.display().to_string();
        let certified = certified_key(
            &read_file(&files.cert_file)?,
            &cert_origin,
            &read_file(&files.key_file)?,
            &files.key_file.display().to_string(),
        )?;
        let end_entity = certified.end_entity_cert()?;
        let parsed = parse_certificate(end_entity)
            .map_err(|_| Error::invalid(&cert_origin, "its first certificate is not X.509"))?;
        let validity = parsed.validity();
        let now = UnixTime::now().as_secs();
        if seconds(validity.not_after.timestamp()) < now {
            tracing::warn!(
                file = cert_origin,
                not_after = %validity.not_after,
                "the listener's certificate has expired; clients will refuse it: renew it and send SIGHUP"
            );
        } else if seconds(validity.not_before.timestamp()) > now {
            tracing::warn!(
                file = cert_origin,
                not_before = %validity.not_before,
                "the listener's certificate is not valid yet: check its dates and this machine's clock"
            );
        }
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(validity.not_after.timestamp()));
        Ok(Loaded { certified: Arc::new(certified), not_after })
    }
}

/// Seconds since 1970, at which everything earlier is counted.
fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

/// The certificate that is served now.
struct CurrentCertificate(RwLock<Loaded>);

impl fmt::Debug for CurrentCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentCertificate")
    }
}

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // The same for every name that is asked for: a client that does not find its name in it says so
        // more clearly than a handshake alert would.
        Some(Arc::clone(&self.0.read().certified))
    }
}

/// Takes any client certificate, or none, and lets its owner prove that he holds the key.
///
/// Self-signed, expired and X.509 v1 certificates are all in use; no chain is judged here. No CA names are
/// hinted, because clients leave out a certificate that fits none of them.
struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for AnyClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyClient")
    }
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        public_key::spki(end_entity).map(|_| ClientCertVerified::assertion())
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

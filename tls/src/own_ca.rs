//! Node certificates by a CA of the operator's: what is requested, how it is signed, how it is judged.
//!
//! Such a certificate carries the same name as one by a cluster's built-in CA ([`crate::PeerName`], a URI among its
//! subject alternative names), so that everything behind the handshake is the same. Its dates are shown and
//! warned about, never obeyed: a clock must not lock a cluster out.

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use webpki::KeyUsage;

use crate::cluster_ca::p256_spki;
use crate::cluster_port::chain_to;
use crate::keys::certificates_from_pem;
use crate::make::{ca_key, check_ca, dated_params, may_sign};
use crate::peer::{keystead_uris, parse_certificate};
use crate::{Error, NodeKey, PeerIdentity, PeerName, Result, peer_identity, provider};
use sha2::{Digest, Sha256};

/// The common name of a certificate has at most this many bytes (RFC 5280, ub-common-name).
const COMMON_NAME_MAX_BYTES: usize = 64;

/// What errors call the certificate of a node.
const CERTIFICATE: &str = "the certificate";
/// What errors call the CA's certificate.
const CA: &str = "the CA certificate";
/// What errors call a request.
const REQUEST: &str = "the certificate request";

/// A certificate request in PEM for a CA that takes names from requests: it asks for everything the certificate
/// must have, and proves possession of the key.
pub fn request_pem(key: &NodeKey, name: &PeerName) -> Result<String> {
    let mut params = CertificateParams::default();
    ask_for(&mut params, name)?;
    Ok(params.serialize_request(key.pair())?.pem()?)
}

/// Signs a request of [`request_pem`] with the operator's CA: the name it asks for, and the certificate in PEM.
///
/// # Errors
/// [`Error::Request`] if the request is malformed, unsigned, not for a P-256 key or names no node;
/// [`Error::Invalid`] if the CA is none, or is the built-in one of a cluster; [`Error::KeyMismatch`] if the key is
/// not the CA's.
pub fn sign(ca_pem: &str, ca_key_pem: &str, request_pem: &str, days: u32) -> Result<(PeerName, String)> {
    let ca = single(ca_pem, CA)?;
    let parsed_ca = parse_certificate(&ca).map_err(|_| Error::invalid(CA, "is not X.509"))?;
    check_ca(&parsed_ca)?;
    refuse_built_in(&ca)?;
    let issuer_key = ca_key(ca_key_pem, &parsed_ca)?;
    let request = CertificateSigningRequestDer::from_pem_slice(request_pem.as_bytes()).map_err(|_| {
        Error::invalid(REQUEST, "holds none; a PEM file with -----BEGIN CERTIFICATE REQUEST----- is needed")
    })?;
    p256_spki(&request)?;
    let asked = CertificateSigningRequestParams::from_der(&request)
        .map_err(|reason| Error::Request(reason.to_string()))?;
    let name = asked_name(&asked.params)?;

    let mut params = dated_params(&common_name(&name), days)?;
    ask_for(&mut params, &name)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.not_after = params.not_after.min(parsed_ca.validity().not_after.to_datetime());
    let issuer = Issuer::from_ca_cert_der(&ca, &issuer_key.0)?;
    Ok((name, params.signed_by(&asked.public_key, &issuer)?.pem()))
}

/// Checks that a CA of the operator's signed a node's certificate, for both sides of a connection, whatever its
/// dates say; both in DER.
///
/// # Errors
/// [`Error::Invalid`] with the reason.
pub fn judge(ca_der: &[u8], cert_der: &[u8]) -> Result<PeerIdentity> {
    let ca = parse_certificate(ca_der).map_err(|_| Error::invalid(CA, "is not X.509"))?;
    if !may_sign(&ca) {
        return Err(Error::invalid(CA, "is not a CA's: it may not sign certificates"));
    }
    refuse_built_in(ca_der)?;
    let identity = peer_identity(cert_der).map_err(|error| {
        let how = "have the CA copy the extensions of the request, of which the URI among the subject alternative names is \
                   one (openssl x509 -req: -copy_extensions copy)";
        Error::invalid(CERTIFICATE, format!("names no node ({error}); {how}"))
    })?;
    let certificate = CertificateDer::from(cert_der);
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        chain_to(ca_der, &certificate, usage, provider().signature_verification_algorithms.all)
            .map_err(|error| Error::invalid(CERTIFICATE, unusable(error)))?;
    }
    Ok(identity)
}

/// SHA-256 of the public key whose possession a request in DER proves.
///
/// # Errors
/// [`Error::Request`] if it is malformed, its signature is wrong, or the key is not on P-256.
pub fn proven_key(request_der: &[u8]) -> Result<[u8; 32]> {
    let spki = p256_spki(request_der)?;
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request_der))
        .map_err(|reason| Error::Request(reason.to_string()))?;
    Ok(Sha256::digest(spki).into())
}

/// Whether two CA certificates in DER are of one CA: the same name and the same key. A CA's certificate is made
/// anew when its dates run out.
pub fn is_same_ca(one: &[u8], other: &[u8]) -> bool {
    match (parse_certificate(one), parse_certificate(other)) {
        (Ok(one), Ok(other)) => {
            one.subject().as_raw() == other.subject().as_raw()
                && one.public_key().raw == other.public_key().raw
        }
        _ => false,
    }
}

/// Whether a CA's certificate in DER is the built-in one of a cluster.
pub fn is_built_in(ca_der: &[u8]) -> Result<bool> {
    Ok(!keystead_uris(&parse_certificate(ca_der)?)?.is_empty())
}

/// When a certificate in DER ceases to be valid, in seconds since 1970.
pub fn not_after_s(cert_der: &[u8]) -> Result<i64> {
    Ok(parse_certificate(cert_der)?.validity().not_after.timestamp())
}

/// The one certificate in a PEM text. `origin` is what errors call the text.
///
/// # Errors
/// [`Error::Invalid`] if there is none, or several: a chain cannot be used, for the CA signs nodes itself.
pub fn single(pem: &str, origin: &str) -> Result<CertificateDer<'static>> {
    let mut all = certificates_from_pem(pem.as_bytes(), origin)?;
    match (all.pop(), all.is_empty()) {
        (Some(certificate), true) => Ok(certificate),
        _ => Err(Error::invalid(
            origin,
            "holds several certificates; give one: nodes trust the CA that signs them, not the CAs above it",
        )),
    }
}

fn refuse_built_in(ca_der: &[u8]) -> Result<()> {
    if is_built_in(ca_der)? {
        return Err(Error::invalid(CA, "is the built-in one of a cluster; give one of your own"));
    }
    Ok(())
}

/// What a node's certificate must have.
fn ask_for(params: &mut CertificateParams, name: &PeerName) -> Result<()> {
    name.check()?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name(name));
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::URI(name.to_uri().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(())
}

/// For people; nothing is decided by it.
fn common_name(name: &PeerName) -> String {
    if name.node_id.len() <= COMMON_NAME_MAX_BYTES { name.node_id.clone() } else { "Keystead node".into() }
}

fn asked_name(params: &CertificateParams) -> Result<PeerName> {
    let mut names = params.subject_alt_names.iter().filter_map(|name| match name {
        SanType::URI(uri) => PeerName::from_uri(uri.as_str()).ok(),
        _ => None,
    });
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name),
        _ => Err(Error::Request(
            "it does not ask for the name of one node; make it with `keystead tls csr`".into(),
        )),
    }
}

/// webpki's verdict in words.
fn unusable(error: webpki::Error) -> String {
    use webpki::Error as Chain;
    match error {
        Chain::UnknownIssuer | Chain::InvalidSignatureForPublicKey => "was not signed by this CA".into(),
        Chain::RequiredEkuNotFoundContext(_) => {
            "must be for server and client authentication (extended key usage)".into()
        }
        Chain::CaUsedAsEndEntity => "is a CA's".into(),
        Chain::UnsupportedCertVersion => {
            "is not X.509 version 3; have the CA copy the extensions of the request (openssl x509 -req: -copy_extensions \
             copy)"
                .into()
        }
        other => format!("cannot be used on the cluster port: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterCa, ClusterId, make};

    fn name() -> PeerName {
        PeerName { cluster_id: ClusterId([3; 16]), node_id: "node a".into(), incarnation: 77 }
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        single(pem, "test").unwrap()
    }

    #[test]
    fn a_request_is_signed_for_the_name_it_asks_for_and_judged_good() {
        let key = NodeKey::generate().unwrap();
        let (ca, ca_key) = make::make_ca("Example CA").unwrap();
        let (signed, certificate) = sign(&ca, &ca_key, &request_pem(&key, &name()).unwrap(), 30).unwrap();
        assert_eq!(signed, name());
        let identity = judge(&der(&ca), &der(&certificate)).unwrap();
        assert_eq!((identity.name, identity.spki_sha256), (name(), key.spki_sha256()));
    }

    #[test]
    fn what_cannot_be_signed_is_refused_with_its_reason() {
        let key = NodeKey::generate().unwrap();
        let request = request_pem(&key, &name()).unwrap();
        let (ca, ca_key) = make::make_ca("Example CA").unwrap();
        let refusal = |ca: &str, key: &str, request: &str| sign(ca, key, request, 1).unwrap_err().to_string();
        let built_in = ClusterCa::generate(name().cluster_id).unwrap();
        let der = built_in.key_pkcs8_der();
        let pem = |label: &str, der: &[u8]| {
            use base64::Engine as _;
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
        };
        let (built_in_pem, built_in_key) =
            (pem("CERTIFICATE", built_in.cert_der()), pem("PRIVATE KEY", &der));
        assert!(refusal(&built_in_pem, &built_in_key, &request).contains("built-in"));
        let (_, other_key) = make::make_ca("Example CA").unwrap();
        assert!(refusal(&ca, &other_key, &request).contains("does not belong"));
        assert!(refusal(&ca, &ca_key, "nothing").contains("CERTIFICATE REQUEST"));
        let nameless = pem("CERTIFICATE REQUEST", &key.csr_der("n", 1).unwrap());
        assert!(refusal(&ca, &ca_key, &nameless).contains("tls csr"));
        let other = NodeKey::generate().unwrap();
        let mut forged = CertificateParams::default();
        ask_for(&mut forged, &name()).unwrap();
        let mut forged = forged.serialize_request(other.pair()).unwrap().der().to_vec();
        *forged.last_mut().unwrap() ^= 1;
        assert!(refusal(&ca, &ca_key, &pem("CERTIFICATE REQUEST", &forged)).contains("signature"));
        assert!(proven_key(&forged).is_err());
    }

    #[test]
    fn certificates_of_others_are_judged_bad() {
        let key = NodeKey::generate().unwrap();
        let request = request_pem(&key, &name()).unwrap();
        let (ca, ca_key) = make::make_ca("Example CA").unwrap();
        let (same_name, _) = make::make_ca("Example CA").unwrap();
        let (other, _) = make::make_ca("Other CA").unwrap();
        let (_, good) = sign(&ca, &ca_key, &request, 1).unwrap();
        let refusal = |ca: &str, cert: &str| judge(&der(ca), &der(cert)).unwrap_err().to_string();
        for ca in [&other, &same_name] {
            assert!(refusal(ca, &good).contains("was not signed by this CA"), "{}", refusal(ca, &good));
        }
        assert!(refusal(&good, &good).contains("is not a CA's"));
        let (server, _) = make::make_cert(&ca, &ca_key, &["a.test".into()], &[], 1).unwrap();
        assert!(refusal(&ca, &server).contains("names no node"));
        assert!(is_same_ca(&der(&ca), &der(&ca)) && !is_same_ca(&der(&ca), &der(&same_name)));
        assert!(single(&format!("{ca}{other}"), "two.pem").unwrap_err().to_string().contains("several"));
    }

    #[test]
    fn dates_decide_nothing() {
        let key = NodeKey::generate().unwrap();
        let (ca, ca_key) = make::make_ca("Example CA").unwrap();
        let issuer_key = rcgen::KeyPair::from_pem(&ca_key).unwrap();
        let ca_der = der(&ca);
        let issuer = Issuer::from_ca_cert_der(&ca_der, &issuer_key).unwrap();
        let mut asked =
            CertificateSigningRequestParams::from_pem(&request_pem(&key, &name()).unwrap()).unwrap();
        asked.params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        asked.params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        let expired = asked.signed_by(&issuer).unwrap();
        assert_eq!(judge(&ca_der, expired.der()).unwrap().name, name());
        assert_eq!(not_after_s(expired.der()).unwrap(), 1_009_843_200);
    }
}

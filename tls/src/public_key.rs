//! Handshake signatures checked against a certificate's bare public key.
//!
//! webpki reads only X.509 v3 and refuses the rest outright, but the API port has to serve clients that
//! present v1 certificates; and who skips verification has not agreed to skip proof of possession. So
//! the key is taken out of the certificate here and webpki is asked about the key alone.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::{CertificateError, DigitallySignedStruct, Error, PeerMisbehaved};
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The SubjectPublicKeyInfo of a certificate of any X.509 version.
pub(crate) fn spki(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(SubjectPublicKeyInfoDer::from(parsed.public_key().raw.to_vec())),
        _ => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
    }
}

/// Checks a TLS 1.3 CertificateVerify (RFC 8446 4.4.3), where a scheme fixes the curve.
pub(crate) fn verify_tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &spki(certificate)?, signed, algorithms)
}

/// Checks a TLS 1.2 signature (RFC 5246 7.4.8), where a scheme names the hash only, so that several
/// algorithms have to be tried against the key.
pub(crate) fn verify_tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = spki(certificate)?;
    let key = RawPublicKeyEntity::try_from(&spki)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let (_, candidates) = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signed.scheme)
        .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    if candidates
        .iter()
        .any(|algorithm| key.verify_signature(*algorithm, message, signed.signature()).is_ok())
    {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(Error::InvalidCertificate(CertificateError::BadSignature))
    }
}

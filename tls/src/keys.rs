//! Private keys and certificates out of PEM files, in every form that tools write them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::{Zeroize, Zeroizing};

use crate::{Error, Result};

/// The first private key in a PEM text: PKCS#1 (`RSA PRIVATE KEY`), SEC1 (`EC PRIVATE KEY`) or PKCS#8
/// (`PRIVATE KEY`); what else stands there (certificates, `EC PARAMETERS`) is passed over.
///
/// `origin` is what errors call the text: its file, or where else it came from.
///
/// # Errors
/// [`Error::Invalid`], which never quotes the text, if there is no such key; it says so if the key is
/// encrypted.
pub fn private_key_from_pem(pem: &[u8], origin: &str) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| Error::invalid(origin, missing_key_reason(pem)))
}

/// All certificates in a PEM text, in its order; at least one.
///
/// # Errors
/// [`Error::Invalid`] if there is none, or if one of them is malformed.
pub fn certificates_from_pem(pem: &[u8], origin: &str) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|reason| Error::invalid(origin, format!("damaged PEM: {reason}")))?;
    if certificates.is_empty() {
        return Err(Error::invalid(
            origin,
            "holds no certificate; a PEM file with -----BEGIN CERTIFICATE----- is needed",
        ));
    }
    Ok(certificates)
}

/// Reads a file that holds, or may hold, a key; the buffer is wiped when it is dropped.
pub(crate) fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    fs::read(path).map(Zeroizing::new).map_err(|source| Error::read_file(path, source))
}

/// A certificate chain and its key, checked to belong together.
pub(crate) fn certified_key(
    cert_pem: &[u8],
    cert_origin: &str,
    key_pem: &[u8],
    key_origin: &str,
) -> Result<CertifiedKey> {
    let chain = certificates_from_pem(cert_pem, cert_origin)?;
    let key = signing_key(private_key_from_pem(key_pem, key_origin)?, key_origin)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(Error::KeyMismatch { certificate: cert_origin.into(), key: key_origin.into() })
        }
        Err(reason) => Err(Error::invalid(
            cert_origin,
            format!("its first certificate cannot be used: {reason}; an X.509 v3 certificate is needed"),
        )),
    }
}

/// The key as rustls signs with it; the encoded form is wiped.
///
/// Not through the provider's `load_private_key`, which would keep the encoded form to itself and drop it
/// unwiped.
pub(crate) fn signing_key(mut key: PrivateKeyDer<'static>, origin: &str) -> Result<Arc<dyn SigningKey>> {
    let signing = any_supported_type(&key);
    key.zeroize();
    signing.map_err(|_| {
        Error::invalid(
            origin,
            "the private key is of no supported kind; use RSA of at least 2048 bits, \
             ECDSA on P-256, P-384 or P-521, or Ed25519",
        )
    })
}

/// Why no key was found, for the reader who sees a key in the file.
fn missing_key_reason(pem: &[u8]) -> &'static str {
    let contains = |needle: &[u8]| pem.windows(needle.len()).any(|window| window == needle);
    if contains(b"BEGIN ENCRYPTED PRIVATE KEY") || contains(b"Proc-Type: 4,ENCRYPTED") {
        "the private key is encrypted with a passphrase; decrypt it with `openssl pkey -in KEY -out KEY.plain`"
    } else if contains(b"PRIVATE KEY-----") {
        "the private key is damaged or in a form of its own tool; PKCS#8, PKCS#1 or SEC1 PEM is needed"
    } else {
        "holds no private key; a PEM file with -----BEGIN PRIVATE KEY----- is needed"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn testdata(file: &str) -> Vec<u8> {
        read_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(file)).unwrap().to_vec()
    }

    fn pair(certificate: &str, key: &str) -> Result<CertifiedKey> {
        certified_key(&testdata(certificate), certificate, &testdata(key), key)
    }

    #[test]
    fn keys_are_read_in_every_form_and_fit_their_certificates() {
        for (certificate, key) in [
            ("rsa.crt.pem", "rsa.pkcs1.pem"),
            ("rsa.crt.pem", "rsa.pkcs8.pem"),
            ("p256.crt.pem", "p256.sec1.pem"),
            ("p256.crt.pem", "p256.pkcs8.pem"),
            ("p384.crt.pem", "p384.sec1.pem"),
            ("p384.crt.pem", "p384.pkcs8.pem"),
            ("p521.crt.pem", "p521.sec1.pem"),
            ("p521.crt.pem", "p521.pkcs8.pem"),
            ("ed25519.crt.pem", "ed25519.pkcs8.pem"),
        ] {
            pair(certificate, key).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    }

    #[test]
    fn forms_are_told_apart() {
        let read = |file| private_key_from_pem(&testdata(file), file).unwrap();
        assert!(matches!(read("rsa.pkcs1.pem"), PrivateKeyDer::Pkcs1(_)));
        assert!(matches!(read("p256.sec1.pem"), PrivateKeyDer::Sec1(_)));
        assert!(matches!(read("p256.pkcs8.pem"), PrivateKeyDer::Pkcs8(_)));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        for key in ["p384.sec1.pem", "rsa.pkcs1.pem", "ed25519.pkcs8.pem"] {
            assert!(matches!(pair("p256.crt.pem", key), Err(Error::KeyMismatch { .. })), "{key}");
        }
    }

    #[test]
    fn one_file_may_hold_certificate_and_key() {
        let both = [testdata("p256.crt.pem"), testdata("p256.sec1.pem")].concat();
        certified_key(&both, "both.pem", &both, "both.pem").unwrap();
        let both = [testdata("p256.sec1.pem"), testdata("p256.crt.pem")].concat();
        certified_key(&both, "both.pem", &both, "both.pem").unwrap();
    }

    #[test]
    fn encrypted_keys_are_recognised() {
        for file in ["p256.encrypted.pem", "rsa.encrypted.pem"] {
            let error = private_key_from_pem(&testdata(file), file).unwrap_err().to_string();
            assert!(error.starts_with(file) && error.contains("passphrase"), "{error}");
        }
    }

    #[test]
    fn no_error_quotes_the_key() {
        let whole = String::from_utf8(testdata("p256.pkcs8.pem")).unwrap();
        let body = whole.lines().nth(1).unwrap();
        let damaged = whole.replacen(&body[..8], "!!!!!!!!", 1);
        let error = private_key_from_pem(damaged.as_bytes(), "damaged.pem").unwrap_err().to_string();
        assert!(error.starts_with("damaged.pem") && !error.contains(&body[8..16]), "{error}");
    }

    #[test]
    fn a_text_without_certificates_says_what_is_needed() {
        for text in [&b""[..], b"hello", &testdata("p256.pkcs8.pem")] {
            let error = certificates_from_pem(text, "x.pem").unwrap_err().to_string();
            assert!(error.starts_with("x.pem") && error.contains("BEGIN CERTIFICATE"), "{error}");
        }
    }

    #[test]
    fn a_v1_certificate_cannot_serve_and_the_error_says_why() {
        let error = pair("v1.p256.crt.pem", "p256.pkcs8.pem").unwrap_err().to_string();
        assert!(error.contains("v1.p256.crt.pem") && error.contains("X.509 v3"), "{error}");
    }
}

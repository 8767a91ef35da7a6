//! Certificates for the API port, for those who have no PKI: `keystead tls ca` and `keystead tls cert`.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};
use x509_parser::prelude::X509Certificate;
use zeroize::{Zeroize, Zeroizing};

use crate::cluster_ca::random_serial;
use crate::keys::{certificates_from_pem, private_key_from_pem};
use crate::node_key::WipedKeyPair;
use crate::peer::parse_certificate;
use crate::{Error, Result};

/// How long a CA is valid, in days: ten years.
pub const CA_DAYS: u32 = 3650;

/// How long a certificate is valid unless asked otherwise, in days: the most that Apple's clients accept
/// of a private CA.
pub const CERT_DAYS: u32 = 825;

/// The longest validity, in days: a hundred years, far from where dates stop being encodable.
const DAYS_MAX: u32 = 36_525;

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// Certificates begin an hour ago, for machines whose clocks are behind.
const BACKDATED_SECONDS: u64 = 60 * 60;

/// Makes a CA for API certificates: `(certificate, key)` in PEM, the key in PKCS#8.
///
/// ECDSA on P-256, valid for [`CA_DAYS`], path length 0: it signs servers and clients, no further CAs.
pub fn make_ca(common_name: &str) -> Result<(String, Zeroizing<String>)> {
    let key = WipedKeyPair::generate()?;
    let mut params = dated_params(common_name, CA_DAYS)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key.0)?.pem(), key.to_pkcs8_pem()))
}

/// Makes a certificate for a node's API port, or for a client: `(certificate, key)` in PEM.
///
/// ECDSA on P-256, for the given names and addresses, valid for `days` but never beyond its CA. The CA may
/// be one of [`make_ca`] or any other whose key is RSA, ECDSA or Ed25519.
///
/// # Errors
/// [`Error::Invalid`] if no name is given, a name is not a DNS name, the CA is none or has expired;
/// [`Error::KeyMismatch`] if the key is not the CA's.
pub fn make_cert(
    ca_cert_pem: &str,
    ca_key_pem: &str,
    dns: &[String],
    ips: &[IpAddr],
    days: u32,
) -> Result<(String, Zeroizing<String>)> {
    let subject_alt_names = subject_alt_names(dns, ips)?;
    let ca = certificates_from_pem(ca_cert_pem.as_bytes(), "the CA certificate")?.swap_remove(0);
    let parsed_ca =
        parse_certificate(&ca).map_err(|_| Error::invalid("the CA certificate", "is not X.509"))?;
    check_ca(&parsed_ca)?;
    let issuer_key = ca_key(ca_key_pem, &parsed_ca)?;

    let common_name = dns.first().cloned().or_else(|| ips.first().map(IpAddr::to_string));
    let mut params = dated_params(&common_name.expect("there is a name, checked above"), days)?;
    params.not_after = params.not_after.min(parsed_ca.validity().not_after.to_datetime());
    params.subject_alt_names = subject_alt_names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;

    let key = WipedKeyPair::generate()?;
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(ca.as_ref()), &issuer_key.0)?;
    Ok((params.signed_by(&key.0, &issuer)?.pem(), key.to_pkcs8_pem()))
}

pub(crate) fn dated_params(common_name: &str, days: u32) -> Result<CertificateParams> {
    if !(1..=DAYS_MAX).contains(&days) {
        return Err(Error::invalid("the validity", format!("is 1 to {DAYS_MAX} days, not {days}")));
    }
    let now = UnixTime::now().as_secs();
    let at = |seconds| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.serial_number = Some(random_serial()?);
    params.not_before = at(now.saturating_sub(BACKDATED_SECONDS));
    params.not_after = at(now + u64::from(days) * DAY_SECONDS);
    Ok(params)
}

fn subject_alt_names(dns: &[String], ips: &[IpAddr]) -> Result<Vec<SanType>> {
    if dns.is_empty() && ips.is_empty() {
        return Err(Error::invalid("the certificate", "needs at least one DNS name or IP address"));
    }
    let mut names = Vec::with_capacity(dns.len() + ips.len());
    for name in dns {
        // The first label may be a wildcard (RFC 6125 6.4.3).
        let checked = name.strip_prefix("*.").unwrap_or(name);
        if name.parse::<IpAddr>().is_ok() {
            return Err(Error::invalid(
                "the certificate",
                format!("{name} is an IP address, not a DNS name"),
            ));
        }
        DnsName::try_from(checked)
            .map_err(|_| Error::invalid("the certificate", format!("{name:?} is not a DNS name")))?;
        names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    names.extend(ips.iter().copied().map(SanType::IpAddress));
    Ok(names)
}

/// Whether a certificate is a CA's that may sign others.
pub(crate) fn may_sign(ca: &X509Certificate<'_>) -> bool {
    let is_ca = matches!(ca.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    is_ca
        && match ca.key_usage() {
            Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
            Err(_) => false,
        }
}

pub(crate) fn check_ca(ca: &X509Certificate<'_>) -> Result<()> {
    if !may_sign(ca) {
        return Err(Error::invalid("the CA certificate", "is not a CA's; make one with `keystead tls ca`"));
    }
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    if ca.validity().not_after.timestamp() <= now {
        return Err(Error::invalid("the CA certificate", format!("expired at {}", ca.validity().not_after)));
    }
    Ok(())
}

pub(crate) fn ca_key(pem: &str, ca: &X509Certificate<'_>) -> Result<WipedKeyPair> {
    let mut der = private_key_from_pem(pem.as_bytes(), "the CA key")?;
    let pair = KeyPair::try_from(&der);
    der.zeroize();
    let pair = pair.map(WipedKeyPair).map_err(|_| {
        Error::invalid("the CA key", "is of no supported kind; use RSA, ECDSA on P-256 or P-384, or Ed25519")
    })?;
    if pair.0.public_key_raw() != ca.public_key().subject_public_key.data.as_ref() {
        return Err(Error::KeyMismatch {
            certificate: "the CA certificate".into(),
            key: "the CA key".into(),
        });
    }
    Ok(pair)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use rustls_pki_types::ServerName;
    use webpki::{EndEntityCert, KeyUsage};
    use x509_parser::extensions::ParsedExtension;

    use super::*;

    fn der(pem: &str) -> CertificateDer<'static> {
        certificates_from_pem(pem.as_bytes(), "test").unwrap().remove(0)
    }

    fn days_left(certificate: &X509Certificate<'_>) -> i64 {
        let now = i64::try_from(UnixTime::now().as_secs()).unwrap();
        (certificate.validity().not_after.timestamp() - now + 43_200) / 86_400
    }

    fn refusal(ca: &str, key: &str, dns: &[&str], days: u32) -> String {
        let dns: Vec<_> = dns.iter().map(|name| (*name).to_owned()).collect();
        make_cert(ca, key, &dns, &[], days).expect_err("it was made").to_string()
    }

    #[test]
    fn a_certificate_serves_its_names_for_server_and_client_under_its_ca() {
        let (ca, ca_key) = make_ca("Example CA").unwrap();
        let dns = ["node1.example.com".to_owned(), "*.vault.example.com".to_owned()];
        let ips = ["192.0.2.1".parse().unwrap(), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let (certificate, _) = make_cert(&ca, &ca_key, &dns, &ips, CERT_DAYS).unwrap();
        let (ca, certificate) = (der(&ca), der(&certificate));

        let anchor = webpki::anchor_from_trusted_cert(&ca).unwrap();
        let end_entity = EndEntityCert::try_from(&certificate).unwrap();
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            let anchors = std::slice::from_ref(&anchor);
            end_entity
                .verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    anchors,
                    &[],
                    UnixTime::now(),
                    usage,
                    None,
                    None,
                )
                .unwrap();
        }
        let serves = |name: &str| {
            end_entity
                .verify_is_valid_for_subject_name(&ServerName::try_from(name.to_owned()).unwrap())
                .is_ok()
        };
        assert!(serves("node1.example.com") && serves("a.vault.example.com"));
        assert!(serves("192.0.2.1") && serves("::1"));
        assert!(!serves("node2.example.com") && !serves("192.0.2.2"));
        assert_eq!(days_left(&parse_certificate(&certificate).unwrap()), i64::from(CERT_DAYS));
    }

    #[test]
    fn a_ca_signs_no_further_cas_and_names_its_key() {
        let (ca, ca_key) = make_ca("Example CA").unwrap();
        let (certificate, _) = make_cert(&ca, &ca_key, &["a.test".into()], &[], 1).unwrap();
        let (ca, certificate) = (der(&ca), der(&certificate));
        let (ca, certificate) = (parse_certificate(&ca).unwrap(), parse_certificate(&certificate).unwrap());

        let constraints = ca.basic_constraints().unwrap().unwrap().value;
        assert!(constraints.ca && constraints.path_len_constraint == Some(0));
        assert!(!certificate.is_ca());
        assert_eq!(days_left(&ca), i64::from(CA_DAYS));
        let subject_key = |certificate: &X509Certificate<'_>| {
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })
        };
        let authority_key =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            });
        assert!(subject_key(&ca).is_some() && subject_key(&certificate).is_some());
        assert_eq!(authority_key, subject_key(&ca));
    }

    #[test]
    fn the_key_is_the_certificates() {
        let (ca, ca_key) = make_ca("Example CA").unwrap();
        crate::keys::certified_key(ca.as_bytes(), "ca", ca_key.as_bytes(), "ca key").unwrap();
        let (certificate, key) = make_cert(&ca, &ca_key, &["a.test".into()], &[], 1).unwrap();
        crate::keys::certified_key(certificate.as_bytes(), "cert", key.as_bytes(), "key").unwrap();
    }

    #[test]
    fn a_certificate_never_outlives_its_ca() {
        let (ca, ca_key) = make_ca("Example CA").unwrap();
        let (certificate, _) = make_cert(&ca, &ca_key, &["a.test".into()], &[], CA_DAYS + 100).unwrap();
        let (ca, certificate) = (der(&ca), der(&certificate));
        let (ca, certificate) = (parse_certificate(&ca).unwrap(), parse_certificate(&certificate).unwrap());
        assert_eq!(certificate.validity().not_after, ca.validity().not_after);
    }

    #[test]
    fn a_ca_of_another_tool_signs_too() {
        // Self-signed by OpenSSL's `req -x509`, hence CA:TRUE, with keys in their older forms.
        for (ca, key) in [
            (include_str!("../testdata/rsa.crt.pem"), include_str!("../testdata/rsa.pkcs1.pem")),
            (include_str!("../testdata/p384.crt.pem"), include_str!("../testdata/p384.pkcs8.pem")),
            (include_str!("../testdata/p256.crt.pem"), include_str!("../testdata/p256.sec1.pem")),
            (include_str!("../testdata/ed25519.crt.pem"), include_str!("../testdata/ed25519.pkcs8.pem")),
        ] {
            let (certificate, _) = make_cert(ca, key, &["a.test".into()], &[], 1).unwrap();
            let (ca, certificate) = (der(ca), der(&certificate));
            let issuer = parse_certificate(&ca).unwrap();
            parse_certificate(&certificate).unwrap().verify_signature(Some(issuer.public_key())).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_signed_is_refused_with_its_reason() {
        let (ca, ca_key) = make_ca("Example CA").unwrap();
        assert!(refusal(&ca, &ca_key, &[], 1).contains("at least one DNS name"));
        assert!(refusal(&ca, &ca_key, &["not a name"], 1).contains("not a name"));
        assert!(refusal(&ca, &ca_key, &["192.0.2.1"], 1).contains("IP address"));
        assert!(refusal(&ca, &ca_key, &["a.test"], 0).contains("days"));
        assert!(refusal(&ca, &ca_key, &["a.test"], u32::MAX).contains("days"));
        let (other, other_key) = make_ca("Example CA").unwrap();
        assert!(refusal(&other, &ca_key, &["a.test"], 1).contains("does not belong"));
        let (leaf, leaf_key) = make_cert(&other, &other_key, &["a.test".into()], &[], 1).unwrap();
        assert!(refusal(&leaf, &leaf_key, &["a.test"], 1).contains("keystead tls ca"));
        assert!(refusal("", &ca_key, &["a.test"], 1).contains("the CA certificate"));
        assert!(refusal(&ca, "", &["a.test"], 1).contains("the CA key"));
    }
}

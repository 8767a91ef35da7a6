//! What a certificate says, in the words that people use for it.

use std::net::IpAddr;

use keystead_tls::keys::certificates_from_pem;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A certificate's contents, taken out of its encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it is for: `CN=node1`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its serial number, hexadecimal with colons.
    pub serial: String,
    /// The host names it is for, as written, wildcards too.
    pub dns_names: Vec<String>,
    /// The addresses it is for.
    pub ip_addresses: Vec<IpAddr>,
    /// Its other names: URIs and e-mail addresses.
    pub other_names: Vec<String>,
    /// When it begins to be valid, in seconds since 1970.
    pub not_before: i64,
    /// When it ceases to be valid, in seconds since 1970.
    pub not_after: i64,
    /// Its key: `ECDSA P-256`, `RSA 2048`, `Ed25519`.
    pub key_type: String,
    /// Whether it may sign others.
    pub is_ca: bool,
    /// SHA-256 over the whole of it, hexadecimal with colons.
    pub sha256: String,
}

impl Certificate {
    /// Reads all certificates of a PEM text, in its order.
    ///
    /// # Errors
    /// A sentence with `origin` in front that says what is wrong.
    pub fn read_all(pem: &[u8], origin: &str) -> Result<Vec<Certificate>, String> {
        let certificates = certificates_from_pem(pem, origin).map_err(|error| error.to_string())?;
        certificates
            .iter()
            .enumerate()
            .map(|(at, der)| {
                Certificate::read(der).ok_or_else(|| format!("{origin}: certificate {} is not X.509", at + 1))
            })
            .collect()
    }

    fn read(der: &[u8]) -> Option<Certificate> {
        let (rest, parsed) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let mut certificate = Certificate {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            serial: colons(parsed.raw_serial()),
            dns_names: Vec::new(),
            ip_addresses: Vec::new(),
            other_names: Vec::new(),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            key_type: key_type(parsed.public_key()),
            is_ca: parsed.is_ca(),
            sha256: colons(&Sha256::digest(der)),
        };
        for extension in parsed.extensions() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                names.general_names.iter().for_each(|name| certificate.add_name(name));
            }
        }
        Some(certificate)
    }

    fn add_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => self.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(octets) => self.ip_addresses.extend(ip_address(octets)),
            GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
                self.other_names.push((*name).to_owned());
            }
            _ => {}
        }
    }

    /// Whether a client that dials `host`, a name or an address without brackets, finds it in here.
    ///
    /// By RFC 6125: a wildcard stands for exactly the first label; the subject's common name counts for
    /// nothing.
    pub fn is_for(&self, host: &str) -> bool {
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.ip_addresses.contains(&address);
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.dns_names.iter().any(|name| {
            let name = name.to_ascii_lowercase();
            match name.strip_prefix("*.") {
                Some(domain) => {
                    host.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == domain)
                }
                None => name == host,
            }
        })
    }

    /// All its names, as one shows them.
    pub fn names(&self) -> Vec<String> {
        let addresses = self.ip_addresses.iter().map(ToString::to_string);
        self.dns_names.iter().cloned().chain(addresses).chain(self.other_names.iter().cloned()).collect()
    }
}

fn ip_address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

fn colons(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn key_type(key: &SubjectPublicKeyInfo<'_>) -> String {
    let parameter = || key.algorithm.parameters.as_ref()?.as_oid().ok().map(|oid| oid.to_id_string());
    match (key.algorithm.algorithm.to_id_string().as_str(), key.parsed()) {
        ("1.3.101.112", _) => "Ed25519".to_owned(),
        ("1.3.101.113", _) => "Ed448".to_owned(),
        (_, Ok(PublicKey::RSA(rsa))) => format!("RSA {}", rsa.key_size()),
        ("1.2.840.10045.2.1", _) => match parameter().as_deref() {
            Some("1.2.840.10045.3.1.7") => "ECDSA P-256".to_owned(),
            Some("1.3.132.0.34") => "ECDSA P-384".to_owned(),
            Some("1.3.132.0.35") => "ECDSA P-521".to_owned(),
            Some(curve) => format!("ECDSA {curve}"),
            None => "ECDSA".to_owned(),
        },
        (algorithm, _) => algorithm.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_tls::make;

    fn made() -> Certificate {
        let (ca, key) = make::make_ca("Test CA").unwrap();
        let names = ["node1.example".to_owned(), "*.wild.example".to_owned()];
        let (pem, _) = make::make_cert(&ca, &key, &names, &["127.0.0.1".parse().unwrap()], 30).unwrap();
        Certificate::read_all(pem.as_bytes(), "test").unwrap().remove(0)
    }

    #[test]
    fn what_it_says_is_read() {
        let certificate = made();
        assert!(certificate.issuer.contains("Test CA"), "{}", certificate.issuer);
        assert_eq!(certificate.names(), ["node1.example", "*.wild.example", "127.0.0.1"]);
        assert_eq!((certificate.key_type.as_str(), certificate.is_ca), ("ECDSA P-256", false));
        assert_eq!(certificate.not_after - certificate.not_before, 30 * 86_400 + 3600);
        assert_eq!(certificate.sha256.len(), 95);
    }

    #[test]
    fn names_match_as_clients_match_them() {
        let certificate = made();
        for host in ["node1.example", "NODE1.example.", "a.wild.example", "127.0.0.1"] {
            assert!(certificate.is_for(host), "{host}");
        }
        for host in
            ["example", "x.node1.example", "wild.example", "a.b.wild.example", ".wild.example", "127.0.0.2"]
        {
            assert!(!certificate.is_for(host), "{host}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let error = Certificate::read_all(b"nothing", "x.pem").unwrap_err();
        assert!(error.contains("x.pem"), "{error}");
    }
}

//! Who a peer on the cluster port is: the identity inside its certificate.
//!
//! A node's certificate carries exactly one URI among its subject alternative names,
//! `keystead://<cluster id, 32 hex digits>/<incarnation, 16 hex digits>/<node id, percent-encoded>`.
//! Nothing else in the certificate says who the node is.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use rustls::CommonState;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Error, Result};

const SCHEME: &str = "keystead://";

/// The longest node id that fits into a certificate, in bytes.
pub const NODE_ID_MAX_BYTES: usize = 255;

/// The id of a cluster: 128 random bits, drawn at init and again by a recovery that loses the quorum.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = Error;

    /// Reads 32 lowercase hex digits, the only form that [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<ClusterId> {
        let refused = || Error::PeerIdentity("the cluster id is not 32 lowercase hex digits".into());
        if text.len() != 32 || !is_lower_hex(text) {
            return Err(refused());
        }
        u128::from_str_radix(text, 16).map(|id| ClusterId(id.to_be_bytes())).map_err(|_| refused())
    }
}

/// The name of one incarnation of a node in one cluster, as its certificate carries it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerName {
    /// The cluster whose CA signed.
    pub cluster_id: ClusterId,
    /// The operator's name for the place, not empty, at most [`NODE_ID_MAX_BYTES`].
    pub node_id: String,
    /// The id that Raft counts with; fresh for every incarnation of the data.
    pub incarnation: u64,
}

impl PeerName {
    /// The URI that carries this name in a certificate.
    pub fn to_uri(&self) -> String {
        let mut uri = format!("{SCHEME}{}/{:016x}/", self.cluster_id, self.incarnation);
        for byte in self.node_id.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                uri.push(char::from(byte));
            } else {
                write!(uri, "%{byte:02X}").expect("writing to a string cannot fail");
            }
        }
        uri
    }

    /// Reads a name back from its URI.
    ///
    /// Only the one spelling that [`PeerName::to_uri`] writes is accepted, so that two URIs are the same
    /// name exactly if they are the same bytes.
    pub fn from_uri(uri: &str) -> Result<PeerName> {
        let refused = |reason: &str| Error::PeerIdentity(format!("its name {uri:?} {reason}"));
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| refused("is not a keystead:// URI"))?;
        let mut parts = rest.splitn(3, '/');
        let (Some(cluster), Some(incarnation), Some(node)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(refused("lacks a part"));
        };
        let name = PeerName {
            cluster_id: cluster.parse()?,
            incarnation: u64::from_str_radix(incarnation, 16).map_err(|_| refused("has no incarnation"))?,
            node_id: percent_decode(node).ok_or_else(|| refused("has a malformed node id"))?,
        };
        name.check()?;
        if name.to_uri() != uri {
            return Err(refused("is not spelled canonically"));
        }
        Ok(name)
    }

    /// Checks that the name can stand in a certificate.
    pub(crate) fn check(&self) -> Result<()> {
        if self.node_id.is_empty() || self.node_id.len() > NODE_ID_MAX_BYTES {
            return Err(Error::PeerIdentity(format!("a node id has 1 to {NODE_ID_MAX_BYTES} bytes")));
        }
        Ok(())
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {:?} (incarnation {:016x})", self.node_id, self.incarnation)
    }
}

/// A peer's certificate, read: its name and the fingerprints that a directory pins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// Who the certificate says it is.
    pub name: PeerName,
    /// SHA-256 of the DER of the SubjectPublicKeyInfo: what the directory pins.
    pub spki_sha256: [u8; 32],
    /// SHA-256 of the whole certificate's DER.
    pub cert_sha256: [u8; 32],
}

/// Reads the identity out of a certificate of the cluster port.
///
/// This proves nothing about who presents it: signature, cluster and policy are the verifier's to check
/// ([`crate::ClusterTls`]).
///
/// # Errors
/// [`Error::PeerIdentity`] if it is not a certificate or carries no name, several, or a malformed one.
pub fn peer_identity(cert_der: &[u8]) -> Result<PeerIdentity> {
    let certificate = parse_certificate(cert_der)?;
    let mut uris = keystead_uris(&certificate)?;
    let name = match (uris.pop(), uris.pop()) {
        (Some(uri), None) => PeerName::from_uri(uri)?,
        (None, _) => return Err(Error::PeerIdentity("it carries no keystead:// name".into())),
        (Some(_), Some(_)) => return Err(Error::PeerIdentity("it carries several names".into())),
    };
    Ok(PeerIdentity {
        name,
        spki_sha256: Sha256::digest(certificate.public_key().raw).into(),
        cert_sha256: Sha256::digest(cert_der).into(),
    })
}

/// The identity of the peer at the other end of a connection of the cluster port.
///
/// Both kinds of stream of `tokio_rustls` give a connection by `get_ref().1`, which derefs to what this
/// takes.
///
/// # Errors
/// [`Error::PeerIdentity`] while the handshake is not complete.
pub fn peer_of(connection: &CommonState) -> Result<PeerIdentity> {
    let certificate = connection.peer_certificates().and_then(|chain| chain.first());
    peer_identity(certificate.ok_or_else(|| Error::PeerIdentity("the peer has shown none yet".into()))?)
}

/// Parses one DER certificate with nothing after it.
pub(crate) fn parse_certificate(cert_der: &[u8]) -> Result<X509Certificate<'_>> {
    match X509Certificate::from_der(cert_der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(Error::PeerIdentity("bytes follow the certificate".into())),
        Err(_) => Err(Error::PeerIdentity("it is not an X.509 certificate".into())),
    }
}

/// The `keystead://` URIs among the subject alternative names.
pub(crate) fn keystead_uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| Error::PeerIdentity("its subject alternative names are malformed".into()))?;
    let Some(names) = names else { return Ok(Vec::new()) };
    let uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    Ok(uris.collect())
}

/// The URI that marks a cluster's CA certificate.
pub(crate) fn ca_uri(cluster_id: ClusterId) -> String {
    format!("{SCHEME}{cluster_id}")
}

/// The cluster that a CA certificate is for.
pub(crate) fn ca_cluster_id(certificate: &X509Certificate<'_>) -> Result<ClusterId> {
    match keystead_uris(certificate)?.as_slice() {
        [uri] => uri[SCHEME.len()..].parse(),
        _ => Err(Error::PeerIdentity("the CA certificate does not name one cluster".into())),
    }
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = char::from(rest.next()?).to_digit(16)?;
            let low = char::from(rest.next()?).to_digit(16)?;
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(node_id: &str) -> PeerName {
        PeerName { cluster_id: ClusterId([0xab; 16]), node_id: node_id.into(), incarnation: 0x1f }
    }

    #[test]
    fn a_name_is_spelled_as_documented() {
        let hex = "ab".repeat(16);
        assert_eq!(name("n-1.a_b~c").to_uri(), format!("keystead://{hex}/000000000000001f/n-1.a_b~c"));
        assert_eq!(name("a/b c%é").to_uri(), format!("keystead://{hex}/000000000000001f/a%2Fb%20c%25%C3%A9"));
    }

    #[test]
    fn a_name_survives_its_uri() {
        for node_id in ["n", "a/b", "../..", "ü%2F", "\u{1}\u{7f}", &"x".repeat(NODE_ID_MAX_BYTES)] {
            assert_eq!(PeerName::from_uri(&name(node_id).to_uri()).unwrap(), name(node_id));
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        let hex = "ab".repeat(16);
        let upper = hex.to_uppercase();
        for uri in [
            format!("https://{hex}/000000000000001f/n"),
            format!("keystead://{hex}/000000000000001f"),
            format!("keystead://{hex}/000000000000001f/"),
            format!("keystead://{upper}/000000000000001f/n"),
            format!("keystead://{hex}00/000000000000001f/n"),
            format!("keystead://+{}/000000000000001f/n", &hex[1..]),
            format!("keystead://{hex}/1f/n"),
            format!("keystead://{hex}/000000000000001F/n"),
            format!("keystead://{hex}/+00000000000001f/n"),
            format!("keystead://{hex}/10000000000000000/n"),
            format!("keystead://{hex}/000000000000001f/a/b"),
            format!("keystead://{hex}/000000000000001f/%6e"),
            format!("keystead://{hex}/000000000000001f/%2f"),
            format!("keystead://{hex}/000000000000001f/%"),
            format!("keystead://{hex}/000000000000001f/%+1"),
            format!("keystead://{hex}/000000000000001f/%FF"),
            format!("keystead://{hex}/000000000000001f/{}", "x".repeat(NODE_ID_MAX_BYTES + 1)),
        ] {
            assert!(PeerName::from_uri(&uri).is_err(), "{uri}");
        }
    }

    #[test]
    fn a_cluster_id_survives_its_hex_form() {
        let id = ClusterId(*b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\xff");
        assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
    }

    #[test]
    fn damaged_certificates_are_refused_without_a_panic() {
        let ca = crate::ClusterCa::generate(ClusterId([1; 16])).unwrap();
        let key = crate::NodeKey::generate().unwrap();
        let own = PeerName { cluster_id: ClusterId([1; 16]), node_id: "n".into(), incarnation: 5 };
        let certificate = ca.sign_csr(&key.csr_der("n", 5).unwrap(), &own).unwrap();
        let identity = peer_identity(&certificate).unwrap();
        assert_eq!(identity.name, own);
        assert_eq!(identity.spki_sha256, key.spki_sha256());
        for length in 0..certificate.len() {
            assert!(peer_identity(&certificate[..length]).is_err(), "cut at {length}");
        }
        let mut longer = certificate.clone();
        longer.push(0);
        assert!(peer_identity(&longer).is_err());
    }
}

//! The cluster's certificate authority: made by `operator init`, its key is sealed state.

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use crate::node_key::WipedKeyPair;
use crate::peer::{ca_cluster_id, ca_uri, parse_certificate};
use crate::{ClusterId, Error, PeerName, Result};

/// The largest certificate request that is looked at, in bytes; a node's own has about 300.
const CSR_MAX_BYTES: usize = 8 * 1024;

/// The DER of a SubjectPublicKeyInfo for an uncompressed P-256 point, up to and with the point's 0x04.
const P256_SPKI_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
const P256_SPKI_BYTES: usize = P256_SPKI_PREFIX.len() + 64;

/// The authority that says which keys belong to a cluster: ECDSA on P-256, path length 0.
///
/// Its certificates do not run out by date (2000-01-01 to 9999-12-31), because a clock must never lock a
/// cluster out; the directory decides who is in.
pub struct ClusterCa {
    cluster_id: ClusterId,
    certificate: CertificateDer<'static>,
    key: WipedKeyPair,
}

impl ClusterCa {
    /// Makes the CA of a new cluster.
    pub fn generate(cluster_id: ClusterId) -> Result<ClusterCa> {
        let key = WipedKeyPair::generate()?;
        let mut params = undated_params(format!("Keystead cluster {cluster_id}"))?;
        params.subject_alt_names.push(SanType::URI(ca_uri(cluster_id).try_into()?));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key.0)?.into();
        Ok(ClusterCa { cluster_id, certificate, key })
    }

    /// Puts a CA together again from its certificate and its key in PKCS#8 DER.
    ///
    /// # Errors
    /// [`Error::PeerIdentity`] if the certificate is not a cluster CA's, [`Error::KeyMismatch`] if the key
    /// is another's.
    pub fn from_parts(cert_der: &[u8], key_pkcs8_der: &[u8]) -> Result<ClusterCa> {
        let key = WipedKeyPair::from_pkcs8_der(key_pkcs8_der)?;
        let parsed = parse_certificate(cert_der)?;
        let cluster_id = ca_cluster_id(&parsed)?;
        if parsed.public_key().raw != key.0.subject_public_key_info() {
            return Err(Error::KeyMismatch {
                certificate: "the cluster CA's certificate".into(),
                key: "the cluster CA's key".into(),
            });
        }
        Ok(ClusterCa { cluster_id, certificate: CertificateDer::from(cert_der.to_vec()), key })
    }

    /// The cluster this CA signs for.
    pub fn cluster_id(&self) -> ClusterId {
        self.cluster_id
    }

    /// The CA's certificate in DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.certificate
    }

    /// The CA's private key in PKCS#8 DER, to be sealed.
    pub fn key_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        self.key.to_pkcs8_der()
    }

    /// Signs a node's certificate for the key in a certificate request.
    ///
    /// The request proves by its own signature that the asker holds the key; that is all that is taken
    /// from it. Who the certificate names comes from `name`, what it may do is fixed.
    ///
    /// # Errors
    /// [`Error::Request`] if the request is malformed, too large, not for a P-256 key, or its signature is
    /// wrong; [`Error::PeerIdentity`] if the name is another cluster's or does not fit.
    pub fn sign_csr(&self, csr_der: &[u8], name: &PeerName) -> Result<Vec<u8>> {
        name.check()?;
        if name.cluster_id != self.cluster_id {
            return Err(Error::PeerIdentity(format!(
                "the CA of cluster {} does not sign for cluster {}",
                self.cluster_id, name.cluster_id
            )));
        }
        let requested_spki = p256_spki(csr_der)?;
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr_der))
            .map_err(|reason| Error::Request(reason.to_string()))?;

        let mut params = undated_params("Keystead node".into())?;
        params.subject_alt_names.push(SanType::URI(name.to_uri().try_into()?));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&self.certificate, &self.key.0)?;
        let certificate = params.signed_by(&request.public_key, &issuer)?;
        let signed = parse_certificate(certificate.der())?;
        assert_eq!(signed.public_key().raw, requested_spki, "the certificate is for the requested key");
        Ok(certificate.der().to_vec())
    }
}

/// The public key of a request, if it is on P-256.
pub(crate) fn p256_spki(csr_der: &[u8]) -> Result<Vec<u8>> {
    if csr_der.len() > CSR_MAX_BYTES {
        return Err(Error::Request(format!("larger than {CSR_MAX_BYTES} bytes")));
    }
    let Ok(([], request)) = X509CertificationRequest::from_der(csr_der) else {
        return Err(Error::Request("not a PKCS#10 certificate request in DER".into()));
    };
    let spki = request.certification_request_info.subject_pki.raw;
    if spki.len() != P256_SPKI_BYTES || !spki.starts_with(&P256_SPKI_PREFIX) {
        return Err(Error::Request("its key is not an ECDSA key on P-256".into()));
    }
    Ok(spki.to_vec())
}

/// Parameters of a certificate that no date ends.
fn undated_params(common_name: String) -> Result<CertificateParams> {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = subject;
    params.not_before = date_time_ymd(2000, 1, 1);
    // RFC 5280 4.1.2.5: 99991231235959Z stands for "no well-defined expiration date".
    params.not_after = date_time_ymd(9999, 12, 31) + std::time::Duration::from_secs(86_399);
    params.serial_number = Some(random_serial()?);
    Ok(params)
}

/// A serial number of 127 random bits (RFC 5280 4.1.2.2: positive, at most 20 octets).
pub(crate) fn random_serial() -> Result<SerialNumber> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| rcgen::Error::RingUnspecified)?;
    // A leading 01 bit pair: positive in DER without a padding octet, and never zero.
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&serial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeKey, peer_identity};

    const CLUSTER: ClusterId = ClusterId([3; 16]);

    fn name() -> PeerName {
        PeerName { cluster_id: CLUSTER, node_id: "node a".into(), incarnation: 77 }
    }

    #[test]
    fn a_ca_survives_its_parts() {
        let ca = ClusterCa::generate(CLUSTER).unwrap();
        let again = ClusterCa::from_parts(ca.cert_der(), &ca.key_pkcs8_der()).unwrap();
        assert_eq!(again.cluster_id(), CLUSTER);
        let request = NodeKey::generate().unwrap().csr_der("n", 1).unwrap();
        let certificate = again.sign_csr(&request, &name()).unwrap();
        let (signed, issuer) =
            (parse_certificate(&certificate).unwrap(), parse_certificate(ca.cert_der()).unwrap());
        signed.verify_signature(Some(issuer.public_key())).unwrap();
    }

    #[test]
    fn a_ca_with_another_key_or_another_certificate_is_refused() {
        let (one, two) = (ClusterCa::generate(CLUSTER).unwrap(), ClusterCa::generate(CLUSTER).unwrap());
        let error = ClusterCa::from_parts(one.cert_der(), &two.key_pkcs8_der()).err().unwrap();
        assert!(matches!(error, Error::KeyMismatch { .. }), "{error}");
        let request = NodeKey::generate().unwrap().csr_der("n", 1).unwrap();
        let node = one.sign_csr(&request, &name()).unwrap();
        assert!(ClusterCa::from_parts(&node, &one.key_pkcs8_der()).is_err());
    }

    #[test]
    fn only_the_key_is_taken_from_a_request() {
        let ca = ClusterCa::generate(CLUSTER).unwrap();
        let key = WipedKeyPair::generate().unwrap();
        let mut wishes = CertificateParams::default();
        wishes.distinguished_name.push(DnType::CommonName, "impostor");
        let other = PeerName { node_id: "impostor".into(), ..name() };
        wishes.subject_alt_names = vec![
            SanType::URI(other.to_uri().try_into().unwrap()),
            SanType::DnsName("impostor.test".try_into().unwrap()),
        ];
        wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wishes.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let request = wishes.serialize_request(&key.0).unwrap();

        let certificate = ca.sign_csr(request.der(), &name()).unwrap();
        let signed = parse_certificate(&certificate).unwrap();
        assert_eq!(peer_identity(&certificate).unwrap().name, name());
        assert_eq!(signed.public_key().raw, key.0.subject_public_key_info());
        assert!(!signed.is_ca());
        let usage = signed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        assert!(!String::from_utf8_lossy(&certificate).contains("impostor"));
    }

    #[test]
    fn certificates_have_no_end_and_differ_in_serial() {
        let ca = ClusterCa::generate(CLUSTER).unwrap();
        let request = NodeKey::generate().unwrap().csr_der("n", 1).unwrap();
        let one = ca.sign_csr(&request, &name()).unwrap();
        let two = ca.sign_csr(&request, &name()).unwrap();
        let (one, two) = (parse_certificate(&one).unwrap(), parse_certificate(&two).unwrap());
        assert_ne!(one.raw_serial(), two.raw_serial());
        for certificate in [one, parse_certificate(ca.cert_der()).unwrap()] {
            assert_eq!(certificate.validity().not_before.timestamp(), 946_684_800);
            assert_eq!(certificate.validity().not_after.timestamp(), 253_402_300_799);
        }
    }

    #[test]
    fn damaged_or_foreign_requests_are_refused() {
        let ca = ClusterCa::generate(CLUSTER).unwrap();
        let request = NodeKey::generate().unwrap().csr_der("n", 1).unwrap();
        let refused = |request: &[u8]| matches!(ca.sign_csr(request, &name()), Err(Error::Request(_)));
        for length in 0..request.len() {
            assert!(refused(&request[..length]), "cut at {length}");
        }
        // The last bytes are the signature's: the request no longer proves possession of the key.
        let mut tampered = request.clone();
        *tampered.last_mut().unwrap() ^= 1;
        assert!(refused(&tampered));
        let mut longer = request.clone();
        longer.push(0);
        assert!(refused(&longer));
        assert!(refused(&vec![0x30; CSR_MAX_BYTES + 1]));
        for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
            let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let request = CertificateParams::default().serialize_request(&key).unwrap();
            assert!(refused(request.der()));
        }
        ca.sign_csr(&request, &name()).unwrap();
    }

    #[test]
    fn names_of_other_clusters_or_of_impossible_length_are_not_signed() {
        let ca = ClusterCa::generate(CLUSTER).unwrap();
        let request = NodeKey::generate().unwrap().csr_der("n", 1).unwrap();
        let long = "x".repeat(crate::NODE_ID_MAX_BYTES + 1);
        for wrong in [
            PeerName { cluster_id: ClusterId([4; 16]), ..name() },
            PeerName { node_id: String::new(), ..name() },
            PeerName { node_id: long, ..name() },
        ] {
            assert!(matches!(ca.sign_csr(&request, &wrong), Err(Error::PeerIdentity(_))), "{wrong}");
        }
    }
}

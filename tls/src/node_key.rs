//! A node's own key pair: made by the node, kept in its data directory, never sent anywhere.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::sign::SigningKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::keys::signing_key;
use crate::{Error, Result};

/// The key pair behind a node's certificate on the cluster port: ECDSA on P-256.
///
/// P-256 because aws-lc signs with it in some 20 microseconds and every tool an operator may hold against
/// a certificate knows it. The encoded key is wiped when this is dropped, as is aws-lc's own copy.
pub struct NodeKey(WipedKeyPair);

impl NodeKey {
    /// Makes a fresh key from the operating system's generator.
    pub fn generate() -> Result<NodeKey> {
        WipedKeyPair::generate().map(NodeKey)
    }

    /// Reads the key that [`NodeKey::to_pkcs8_pem`] wrote.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the text is not the PEM of a PKCS#8 P-256 key.
    pub fn from_pkcs8_pem(pem: &str) -> Result<NodeKey> {
        let reason = "not a P-256 private key in PKCS#8 PEM (-----BEGIN PRIVATE KEY-----)";
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| Error::invalid("the node's key", reason))?;
        let pair = WipedKeyPair::from_pkcs8_der(key.secret_pkcs8_der());
        // The PEM reader's copy does not wipe itself.
        let mut key = PrivateKeyDer::Pkcs8(key);
        key.zeroize();
        pair.map(NodeKey).map_err(|_| Error::invalid("the node's key", reason))
    }

    /// Writes the key as PKCS#8 PEM, for a file that only the owner can read.
    pub fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        self.0.to_pkcs8_pem()
    }

    /// SHA-256 of the DER of the SubjectPublicKeyInfo: what the directory pins, and the fingerprint an
    /// operator compares.
    pub fn spki_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.spki_der()).into()
    }

    /// The public key as a SubjectPublicKeyInfo in DER.
    pub fn spki_der(&self) -> Vec<u8> {
        self.0.0.subject_public_key_info()
    }

    /// A certificate request (PKCS#10, RFC 2986) that proves possession of this key.
    ///
    /// The names in it are for a person who reads it; what the certificate will say is decided by the
    /// signer ([`crate::ClusterCa::sign_csr`]).
    pub fn csr_der(&self, node_id: &str, incarnation: u64) -> Result<Vec<u8>> {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, format!("{node_id} {incarnation:016x}"));
        let mut params = CertificateParams::default();
        params.distinguished_name = subject;
        Ok(params.serialize_request(&self.0.0)?.der().to_vec())
    }

    /// The pair, to sign a request with.
    pub(crate) fn pair(&self) -> &KeyPair {
        &self.0.0
    }

    /// The key as rustls signs with it.
    pub(crate) fn signing_key(&self) -> Result<Arc<dyn SigningKey>> {
        let der = PrivatePkcs8KeyDer::from(self.0.0.serialized_der().to_vec());
        signing_key(der.into(), "the node's key")
    }
}

/// A key pair whose encoded form is wiped on drop: a node's, a cluster CA's, or one of the API port's.
///
/// The key that aws-lc holds beside it is wiped by aws-lc when it is freed.
pub(crate) struct WipedKeyPair(pub(crate) KeyPair);

impl WipedKeyPair {
    /// Makes a P-256 key.
    pub(crate) fn generate() -> Result<WipedKeyPair> {
        Ok(WipedKeyPair(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
    }

    /// Reads a P-256 key.
    pub(crate) fn from_pkcs8_der(der: &[u8]) -> Result<WipedKeyPair> {
        let der = PrivatePkcs8KeyDer::from(der);
        Ok(WipedKeyPair(KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?))
    }

    pub(crate) fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialized_der().to_vec())
    }

    pub(crate) fn to_pkcs8_pem(&self) -> Zeroizing<String> {
        let body = Zeroizing::new(STANDARD.encode(self.0.serialized_der()));
        // Sized beforehand: a string that grows leaves its old buffers behind unwiped.
        let mut pem = Zeroizing::new(String::with_capacity(body.len() + body.len() / 64 + 64));
        pem.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = body.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }
}

impl Drop for WipedKeyPair {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let key = NodeKey::generate().unwrap();
        let pem = key.to_pkcs8_pem();
        assert!(pem.lines().all(|line| line.len() <= 64), "lines as RFC 7468 wants them");
        let again = NodeKey::from_pkcs8_pem(&pem).unwrap();
        assert_eq!(again.spki_sha256(), key.spki_sha256());
        assert_eq!(*again.to_pkcs8_pem(), *pem);
    }

    #[test]
    fn the_written_buffer_never_grew() {
        let pem = NodeKey::generate().unwrap().to_pkcs8_pem();
        let body = pem.lines().filter(|line| !line.starts_with('-')).map(str::len).sum::<usize>();
        assert_eq!(pem.capacity(), body + body / 64 + 64);
    }

    #[test]
    fn two_keys_differ() {
        let (one, two) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        assert_ne!(one.spki_sha256(), two.spki_sha256());
    }

    #[test]
    fn keys_of_other_kinds_are_refused() {
        for pem in [
            include_str!("../testdata/rsa.pkcs8.pem"),
            include_str!("../testdata/p384.pkcs8.pem"),
            include_str!("../testdata/ed25519.pkcs8.pem"),
            include_str!("../testdata/p256.encrypted.pem"),
            include_str!("../testdata/p256.crt.pem"),
            "",
        ] {
            let error = NodeKey::from_pkcs8_pem(pem).err().expect("it was read");
            assert!(error.to_string().contains("P-256 private key"), "{error}");
        }
        NodeKey::from_pkcs8_pem(include_str!("../testdata/p256.pkcs8.pem")).unwrap();
    }
}

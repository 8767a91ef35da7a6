//! Who this node will be: the file `enrolment` of the data directory, from a certificate request until it joins.
//!
//! A cluster may have its nodes' certificates signed by a CA of the operator's. Such a node has its key pair, its
//! incarnation and its cluster's id before it belongs to anything; the certificate comes later, from elsewhere. What
//! is here goes into `identity` when the node founds the cluster or joins it, and is removed then: an incarnation is
//! used once. The layout is that of `identity`: `format[1]`, a bincode record, CRC32 of both; mode 0600.

use std::path::{Path, PathBuf};

use keystead_storage::{
    StorageError,
    datadir::{read_file, write_file_durably},
};
use keystead_tls::{ClusterId, NodeKey, PeerName};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    codec::DecodeError,
    identity::{framed, fresh_incarnation, unframed},
};

const FORMAT: u8 = 1;
const FILE: &str = "enrolment";
/// A key, two certificates and some names; a CA with an RSA key and many extensions stays far below.
const MAX_BYTES: u64 = 256 << 10;

/// A certificate by the operator's CA, and that CA's.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct OwnCertificate {
    /// Certificate of the cluster port, DER.
    pub cert_der: Vec<u8>,
    /// Certificate of the CA, DER.
    pub ca_cert_der: Vec<u8>,
}

/// A node that has asked for a certificate, and may have got it.
#[derive(bincode::Encode, bincode::Decode)]
pub struct Enrolment {
    /// The cluster it will found or join.
    pub cluster_id: [u8; 16],
    /// Whether it is to found the cluster: its id was drawn here.
    pub founds: bool,
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id it will have.
    pub incarnation: u64,
    /// Private key of the cluster port, PKCS#8 PEM.
    key_pem: String,
    /// The certificate, once it is installed.
    pub certificate: Option<OwnCertificate>,
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        self.key_pem.zeroize();
    }
}

/// Why an enrolment cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file is damaged; nothing but a request is lost with it.
    #[error("{path} is damaged ({source}); remove it, and begin again with `keystead tls csr`")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// The certificate has not been installed yet.
    #[error(
        "this node has asked for a certificate by a CA of your own and has not got it yet: have the request signed and run `keystead tls install`, or remove {path} to use the cluster's built-in CA"
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The place was renamed since.
    #[error(
        "the certificate of this node is for node_id {enrolled:?}, and node_id {configured:?} is configured; configure that one, or remove {path} and begin again with `keystead tls csr`"
    )]
    OtherNode {
        /// Whom the certificate names.
        enrolled: String,
        /// What the configuration says.
        configured: String,
        /// The file.
        path: PathBuf,
    },
}

impl Enrolment {
    /// A fresh incarnation with a fresh key: of the cluster `joins`, or of one that it will found.
    pub fn new(node_id: String, joins: Option<ClusterId>) -> Result<Self, keystead_tls::Error> {
        let drawn = || {
            let mut id = [0; 16];
            getrandom::fill(&mut id).expect("the operating system's generator works");
            id
        };
        Ok(Self {
            cluster_id: joins.map_or_else(drawn, |id| id.0),
            founds: joins.is_none(),
            node_id,
            incarnation: fresh_incarnation(),
            key_pem: NodeKey::generate()?.to_pkcs8_pem().to_string(),
            certificate: None,
        })
    }

    /// Where it is kept.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    /// The private key.
    pub fn key(&self) -> Result<NodeKey, keystead_tls::Error> {
        NodeKey::from_pkcs8_pem(&self.key_pem)
    }

    /// The name that the certificate must have.
    pub fn name(&self) -> PeerName {
        PeerName {
            cluster_id: ClusterId(self.cluster_id),
            node_id: self.node_id.clone(),
            incarnation: self.incarnation,
        }
    }

    /// Reads the enrolment; `None` if there is none.
    ///
    /// # Errors
    /// [`EnrolmentError::Damaged`], [`EnrolmentError::Storage`].
    pub fn load(data_dir: &Path) -> Result<Option<Self>, EnrolmentError> {
        let path = Self::path(data_dir);
        let Some(bytes) = read_file(&path, MAX_BYTES)? else { return Ok(None) };
        let bytes = Zeroizing::new(bytes);
        unframed(&bytes, FORMAT, "enrolment format")
            .map(Some)
            .map_err(|source| EnrolmentError::Damaged { path, source })
    }

    /// Reads the enrolment of a node that starts: complete, and for its place.
    ///
    /// # Errors
    /// All of [`EnrolmentError`].
    pub fn load_complete(data_dir: &Path, node_id: &str) -> Result<Option<Self>, EnrolmentError> {
        let Some(enrolment) = Self::load(data_dir)? else { return Ok(None) };
        let path = Self::path(data_dir);
        if enrolment.certificate.is_none() {
            return Err(EnrolmentError::NoCertificate { path });
        }
        if enrolment.node_id != node_id {
            let enrolled = enrolment.node_id.clone();
            return Err(EnrolmentError::OtherNode { enrolled, configured: node_id.to_owned(), path });
        }
        Ok(Some(enrolment))
    }

    /// Writes the enrolment durably: it is wholly there or wholly absent.
    pub fn save(&self, data_dir: &Path) -> Result<(), EnrolmentError> {
        Ok(write_file_durably(&Self::path(data_dir), &framed(self, FORMAT), 0o600)?)
    }

    /// Removes the enrolment, if there is one: its incarnation is in use now.
    pub fn remove(data_dir: &Path) -> std::io::Result<()> {
        match std::fs::remove_file(Self::path(data_dir)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(mut enrolment: Enrolment) -> Enrolment {
        enrolment.certificate = Some(OwnCertificate { cert_der: vec![1; 400], ca_cert_der: vec![2; 400] });
        enrolment
    }

    #[test]
    fn an_enrolment_reads_back_with_its_key() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert!(Enrolment::load(dir.path()).expect("absent").is_none());
        let enrolment = installed(Enrolment::new("n1".into(), Some(ClusterId([7; 16]))).expect("made"));
        enrolment.save(dir.path()).expect("saved");
        let again = Enrolment::load_complete(dir.path(), "n1").expect("whole").expect("there");
        assert_eq!((again.name(), again.founds), (enrolment.name(), false));
        assert_eq!(again.key().expect("a key").spki_sha256(), enrolment.key().expect("a key").spki_sha256());
        Enrolment::remove(dir.path()).expect("removed");
        Enrolment::remove(dir.path()).expect("nothing to remove");
        assert!(Enrolment::load(dir.path()).expect("absent").is_none());
    }

    #[test]
    fn one_that_founds_has_an_id_of_its_own() {
        let (one, two) = (
            Enrolment::new("n".into(), None).expect("made"),
            Enrolment::new("n".into(), None).expect("made"),
        );
        assert!(one.founds && one.cluster_id != two.cluster_id && one.incarnation != two.incarnation);
    }

    #[test]
    fn what_is_incomplete_or_for_another_place_does_not_start() {
        let dir = tempfile::tempdir().expect("tempdir");
        let enrolment = Enrolment::new("n1".into(), None).expect("made");
        enrolment.save(dir.path()).expect("saved");
        let refusal = |id| Enrolment::load_complete(dir.path(), id).err().expect("refused").to_string();
        assert!(refusal("n1").contains("tls install"), "{}", refusal("n1"));
        installed(enrolment).save(dir.path()).expect("saved");
        let other = refusal("n2");
        assert!(other.contains("\"n1\"") && other.contains("\"n2\"") && other.contains("tls csr"), "{other}");
    }

    #[test]
    fn flipped_bits_and_cuts_are_damage_with_a_remedy() {
        let dir = tempfile::tempdir().expect("tempdir");
        let enrolment = installed(Enrolment::new("n1".into(), None).expect("made"));
        enrolment.save(dir.path()).expect("saved");
        let path = Enrolment::path(dir.path());
        let good = std::fs::read(&path).expect("read");
        let flipped = (0..good.len() * 8).step_by(13).map(|bit| {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            bad
        });
        let cut = (0..good.len()).step_by(17).map(|length| good[..length].to_vec());
        for bad in flipped.chain(cut) {
            std::fs::write(&path, bad).expect("write");
            let error = Enrolment::load(dir.path()).err().expect("damaged").to_string();
            assert!(error.contains("enrolment is damaged") && error.contains("tls csr"), "{error}");
        }
    }
}

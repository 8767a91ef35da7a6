//! `tls csr` and `tls install`: a node gets its certificate for the cluster port from a CA of the operator's.
//!
//! Both work on the data directory. A node that belongs to no cluster yet is enrolled: key, incarnation and cluster id
//! are drawn once and kept, the certificate follows. A member only has its certificate renewed: key, name and CA stay,
//! for its peers know it by them.

use std::path::{Path, PathBuf};

use keystead_raft::{Enrolment, Identity, OwnCertificate};
use keystead_storage::DataDir;
use keystead_tls::{ClusterId, NodeKey, PeerIdentity, PeerName, own_ca};

use super::{Failure, start::node_id};
use crate::{
    config::{self, RaftStorageConfig, StorageConfig},
    node::uuid_text,
};

/// A certificate request, and whom it is for.
pub struct Request {
    /// The name that the certificate must have.
    pub name: PeerName,
    /// SHA-256 of the key's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// What comes of the certificate.
    pub purpose: Purpose,
    /// The request in PEM.
    pub pem: String,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The node founds a cluster, whose id was drawn here.
    Found,
    /// The node joins a cluster.
    Join,
    /// The node is a member and gets a new certificate for its old key.
    Renew,
}

impl Purpose {
    /// One word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Join => "join",
            Self::Renew => "renew",
        }
    }
}

/// A certificate that was installed, and whom it is for.
pub struct Installed {
    /// The name in it.
    pub name: PeerName,
    /// What comes of it.
    pub purpose: Purpose,
    /// When it ceases to be valid, in seconds since 1970.
    pub not_after_s: i64,
}

/// The storage that a configuration names.
///
/// # Errors
/// When it cannot be read, or is of a node that speaks with no other.
pub fn storage_of(
    paths: &[PathBuf],
    env: impl Fn(&str) -> Option<String>,
) -> Result<RaftStorageConfig, Failure> {
    let config = config::load_with_env(paths, env)
        .map_err(|e| Failure(format!("error loading configuration: {e}")))?;
    match config.storage {
        StorageConfig::Raft(raft) => Ok(*raft),
        other => Err(Failure(format!(
            "storage \"{}\" is a single node: it speaks with no other one and needs no certificate for that",
            other.kind()
        ))),
    }
}

/// Makes a request: for the cluster with this id, for a new one, or for the one that the node belongs to.
///
/// # Errors
/// Each with its remedy: the node belongs to another cluster, its cluster has the built-in CA, it asked under other
/// names before, a server is running on the directory.
pub fn request(storage: &RaftStorageConfig, cluster_id: Option<ClusterId>) -> Result<Request, Failure> {
    let data_dir = &storage.path;
    if let Some(identity) = Identity::load(data_dir)? {
        check_member(&identity, cluster_id)?;
        return made(&identity.key()?, name_of(&identity), Purpose::Renew);
    }
    let dir = DataDir::open(data_dir)?;
    let node_id = node_id(storage, dir.path())?;
    let enrolment = match Enrolment::load(data_dir)? {
        Some(known) => {
            check_known(&known, &node_id, cluster_id, data_dir)?;
            known
        }
        None => {
            let new = Enrolment::new(node_id, cluster_id)?;
            new.save(data_dir)?;
            new
        }
    };
    made(&enrolment.key()?, enrolment.name(), purpose_of(&enrolment))
}

/// Installs a certificate and the CA's, both in PEM.
///
/// # Errors
/// Each with its reason: the CA did not sign it, it is for another node, cluster or key, none was asked for here, a
/// server is running on the directory.
pub fn install(
    data_dir: &Path,
    (cert_pem, cert_origin): (&str, &str),
    (ca_pem, ca_origin): (&str, &str),
) -> Result<Installed, Failure> {
    let cert_der = own_ca::single(cert_pem, cert_origin)?.to_vec();
    let ca_cert_der = own_ca::single(ca_pem, ca_origin)?.to_vec();
    let judged = own_ca::judge(&ca_cert_der, &cert_der)?;
    let not_after_s = own_ca::not_after_s(&cert_der)?;
    // A directory that was never used must not be made by a mistyped path.
    std::fs::read_dir(data_dir).map_err(|e| Failure(format!("cannot read {}: {e}", data_dir.display())))?;
    let _locked = DataDir::open(data_dir)?;
    if let Some(mut identity) = Identity::load(data_dir)? {
        check_member(&identity, None)?;
        check_fit(&judged, &name_of(&identity), &identity.key()?)?;
        if !own_ca::is_same_ca(&identity.ca_cert_der, &ca_cert_der) {
            return Err(Failure(format!(
                "{ca_origin} is of another CA than this cluster's: all nodes of a cluster have certificates by the one CA that it was initialised with"
            )));
        }
        (identity.cert_der, identity.ca_cert_der) = (cert_der, ca_cert_der);
        identity.save(data_dir)?;
        return Ok(Installed { name: judged.name, purpose: Purpose::Renew, not_after_s });
    }
    let Some(mut enrolment) = Enrolment::load(data_dir)? else {
        return Err(Failure(format!(
            "no certificate was asked for in {}: run `keystead tls csr` on this node first, as the key is made there",
            data_dir.display()
        )));
    };
    check_fit(&judged, &enrolment.name(), &enrolment.key()?)?;
    enrolment.certificate = Some(OwnCertificate { cert_der, ca_cert_der });
    enrolment.save(data_dir)?;
    Ok(Installed { name: judged.name, purpose: purpose_of(&enrolment), not_after_s })
}

fn purpose_of(enrolment: &Enrolment) -> Purpose {
    if enrolment.founds { Purpose::Found } else { Purpose::Join }
}

fn name_of(identity: &Identity) -> PeerName {
    PeerName {
        cluster_id: ClusterId(identity.cluster_id),
        node_id: identity.node_id.clone(),
        incarnation: identity.incarnation,
    }
}

fn made(key: &NodeKey, name: PeerName, purpose: Purpose) -> Result<Request, Failure> {
    let pem = own_ca::request_pem(key, &name)?;
    Ok(Request { name, spki_sha256: key.spki_sha256(), purpose, pem })
}

/// Whether a member can have its certificate renewed.
fn check_member(identity: &Identity, cluster_id: Option<ClusterId>) -> Result<(), Failure> {
    let own = uuid_text(&identity.cluster_id);
    if let Some(wanted) = cluster_id.filter(|wanted| wanted.0 != identity.cluster_id) {
        return Err(Failure(format!(
            "this node was initialised or joined elsewhere: it belongs to cluster {own}, not to {}; to let it join that one, stop it, move its data directory away and run this again",
            uuid_text(&wanted.0)
        )));
    }
    if own_ca::is_built_in(&identity.ca_cert_der)? {
        return Err(Failure(format!(
            "this node belongs to cluster {own}, which has its built-in CA, and that CA's certificates do not run out: it is one or the other for all nodes, from init on"
        )));
    }
    Ok(())
}

/// Whether a request that was made before is the one that is asked for now.
fn check_known(
    known: &Enrolment,
    node_id: &str,
    cluster_id: Option<ClusterId>,
    data_dir: &Path,
) -> Result<(), Failure> {
    let path = Enrolment::path(data_dir);
    let other = |what: String| {
        Failure(format!(
            "a certificate was asked for here before, for {what}; remove {} to begin again with a new key",
            path.display()
        ))
    };
    if known.node_id != node_id {
        return Err(other(format!("node_id {:?} and not {node_id:?}", known.node_id)));
    }
    match cluster_id {
        Some(wanted) if wanted.0 != known.cluster_id => {
            Err(other(format!("cluster {} and not {}", uuid_text(&known.cluster_id), uuid_text(&wanted.0))))
        }
        _ => Ok(()),
    }
}

/// Whether a certificate is for this node and its key.
fn check_fit(judged: &PeerIdentity, name: &PeerName, key: &NodeKey) -> Result<(), Failure> {
    let theirs = &judged.name;
    if theirs.cluster_id != name.cluster_id {
        let (theirs, ours) = (uuid_text(&theirs.cluster_id.0), uuid_text(&name.cluster_id.0));
        return Err(Failure(format!(
            "the certificate is for cluster {theirs}, this node is of cluster {ours}"
        )));
    }
    if theirs != name {
        return Err(Failure(format!(
            "the certificate is for {theirs}, this is {name}; install the one that was made for this node's latest request"
        )));
    }
    if judged.spki_sha256 != key.spki_sha256() {
        return Err(Failure(
            "the certificate is for another key than this node's; have the request of `keystead tls csr` signed".into(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_raft::ClusterParams;
    use keystead_tls::{ClusterCa, make};

    struct Place {
        _dir: tempfile::TempDir,
        storage: RaftStorageConfig,
    }

    fn place(node_id: &str) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = RaftStorageConfig::new(dir.path().join("data"));
        storage.node_id = Some(node_id.into());
        Place { _dir: dir, storage }
    }

    type Pki = (String, zeroize::Zeroizing<String>);

    fn signed(pki: &Pki, request: &Request) -> String {
        own_ca::sign(&pki.0, &pki.1, &request.pem, 1).unwrap().1
    }

    fn installed(place: &Place, cert: &str, ca: &str) -> Result<Installed, String> {
        install(&place.storage.path, (cert, "cert.pem"), (ca, "ca.pem")).map_err(|Failure(why)| why)
    }

    fn refused(place: &Place, cluster_id: Option<ClusterId>) -> String {
        request(&place.storage, cluster_id).err().unwrap().0
    }

    /// Makes a member of an enrolled node, as founding or joining does.
    fn joined(place: &Place, cert_der: Vec<u8>, ca_der: Vec<u8>) {
        let enrolment = Enrolment::load(&place.storage.path).unwrap().unwrap();
        let params = ClusterParams::scaled(1, 1 << 20);
        let (cluster_id, node_id) = (enrolment.cluster_id, enrolment.node_id.clone());
        let key = enrolment.key().unwrap();
        Identity::new(cluster_id, 1, node_id, enrolment.incarnation, &key, cert_der, ca_der, params)
            .save(&place.storage.path)
            .unwrap();
        Enrolment::remove(&place.storage.path).unwrap();
    }

    #[test]
    fn a_request_is_for_the_same_key_until_it_is_used() {
        let place = place("n1");
        let first = request(&place.storage, None).unwrap();
        let again = request(&place.storage, None).unwrap();
        assert_eq!((&first.name, first.spki_sha256), (&again.name, again.spki_sha256));
        assert_eq!(first.purpose, Purpose::Found);
        let id = first.name.cluster_id;
        assert!(request(&place.storage, Some(id)).is_ok());
        assert!(refused(&place, Some(ClusterId([1; 16]))).contains("to begin again"));
        let mut renamed = place.storage.clone();
        renamed.node_id = Some("n2".into());
        assert!(request(&renamed, None).err().unwrap().0.contains("node_id \"n1\" and not \"n2\""));
        use std::os::unix::fs::PermissionsExt as _;
        let about = std::fs::metadata(Enrolment::path(&place.storage.path)).unwrap();
        assert_eq!(about.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn only_a_certificate_that_fits_is_installed() {
        let pki = make::make_ca("Example CA").unwrap();
        let (one, two) = (place("n1"), place("n2"));
        let founding = request(&one.storage, None).unwrap();
        let joining = request(&two.storage, Some(founding.name.cluster_id)).unwrap();
        assert_eq!(joining.purpose, Purpose::Join);
        let (first, second) = (signed(&pki, &founding), signed(&pki, &joining));

        let text = installed(&one, &second, &pki.0).err().unwrap();
        assert!(text.contains("is for node \"n2\"") && text.contains("this is node \"n1\""), "{text}");
        let (other_ca, _) = make::make_ca("Example CA").unwrap();
        assert!(installed(&one, &first, &other_ca).err().unwrap().contains("was not signed by this CA"));
        let key = NodeKey::generate().unwrap();
        let pem = own_ca::request_pem(&key, &founding.name).unwrap();
        let (_, other_key) = own_ca::sign(&pki.0, &pki.1, &pem, 1).unwrap();
        assert!(installed(&one, &other_key, &pki.0).err().unwrap().contains("another key"));
        let elsewhere = request(&place("n1").storage, None).unwrap();
        let text = installed(&one, &signed(&pki, &elsewhere), &pki.0).err().unwrap();
        assert!(text.contains(&format!("cluster {}", uuid_text(&elsewhere.name.cluster_id.0))), "{text}");
        let untouched = Enrolment::load(&one.storage.path).unwrap().unwrap();
        assert!(untouched.certificate.is_none());

        assert_eq!(installed(&one, &first, &pki.0).unwrap().purpose, Purpose::Found);
        assert_eq!(installed(&two, &second, &pki.0).unwrap().name, joining.name);
        Enrolment::load_complete(&one.storage.path, "n1").unwrap().unwrap();
        let nowhere = place("n3");
        assert!(installed(&nowhere, &first, &pki.0).err().unwrap().contains("cannot read"));
        std::fs::create_dir(&nowhere.storage.path).unwrap();
        assert!(installed(&nowhere, &first, &pki.0).err().unwrap().contains("tls csr"));
    }

    #[test]
    fn a_member_renews_under_its_own_ca_and_nothing_else() {
        let pki = make::make_ca("Example CA").unwrap();
        let place = place("n1");
        let founding = request(&place.storage, None).unwrap();
        let der = |pem: &str| own_ca::single(pem, "test").unwrap().to_vec();
        joined(&place, der(&signed(&pki, &founding)), der(&pki.0));

        let renewal = request(&place.storage, None).unwrap();
        assert_eq!(renewal.purpose, Purpose::Renew);
        assert_eq!((&renewal.name, renewal.spki_sha256), (&founding.name, founding.spki_sha256));
        let text = refused(&place, Some(ClusterId([1; 16])));
        assert!(text.contains("initialised or joined elsewhere") && text.contains("move its data"), "{text}");

        let other = make::make_ca("Example CA").unwrap();
        let text = installed(&place, &signed(&other, &renewal), &other.0).err().unwrap();
        assert!(text.contains("another CA than this cluster's"), "{text}");
        let renewed = signed(&pki, &renewal);
        assert_eq!(installed(&place, &renewed, &pki.0).unwrap().purpose, Purpose::Renew);
        assert_eq!(Identity::load(&place.storage.path).unwrap().unwrap().cert_der, der(&renewed));
    }

    #[test]
    fn a_member_under_the_built_in_ca_is_told_that_it_needs_nothing() {
        let place = place("n1");
        let name = request(&place.storage, None).unwrap().name;
        let ca = ClusterCa::generate(name.cluster_id).unwrap();
        joined(&place, vec![1], ca.cert_der().to_vec());
        let text = refused(&place, None);
        assert!(text.contains("built-in CA") && text.contains("from init on"), "{text}");
    }

    #[test]
    fn a_running_server_has_its_directory_for_itself() {
        let place = place("n1");
        let running = DataDir::open(&place.storage.path).unwrap();
        let text = refused(&place, None);
        assert!(text.contains("in use") || text.contains("another process"), "{text}");
        drop(running);
        request(&place.storage, None).unwrap();
    }
}

//! Nodes whose certificates a CA of the operator's has signed.
//!
//! Such a cluster differs in two places: where a node's certificate comes from, and which CA is trusted. Its record of
//! the cluster CA holds a certificate and no key; a joining node brings its certificate with its answer instead of
//! being given one. All nodes of a cluster are of one kind. The directory pins keys as ever.

use keystead_raft::{Enrolment, OwnCertificate};
use keystead_tls::{ClusterId, PeerName, own_ca};

use super::{records::ClusterAuthority, shares::uuid_text};
use crate::core::error::ApiError;

/// What a node brings along that has been enrolled.
#[derive(Clone)]
pub struct Enrolled {
    /// The cluster that its certificate is for.
    pub cluster_id: ClusterId,
    /// Whether it is to found that cluster.
    pub founds: bool,
    /// Its certificate and the CA's.
    pub certificate: OwnCertificate,
}

impl Enrolled {
    /// What a complete enrolment brings; `None` for one that still waits for its certificate.
    pub fn of(enrolment: &Enrolment) -> Option<Self> {
        Some(Self {
            cluster_id: ClusterId(enrolment.cluster_id),
            founds: enrolment.founds,
            certificate: enrolment.certificate.clone()?,
        })
    }

    /// Refuses to found a cluster that this node was enrolled to join: another node has its id, and there would be
    /// two vaults under one.
    pub fn may_found(&self) -> Result<(), ApiError> {
        if self.founds {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "this node's certificate is for joining cluster {}: initialise the node on which `keystead tls csr` drew that id, and this one joins it",
            uuid_text(&self.cluster_id.0)
        )))
    }

    /// Checks what a leader replied to the answer that carried this certificate.
    pub fn check_reply(&self, certificate: &[u8], ca_certificate: &[u8]) -> Result<(), String> {
        let same = certificate == self.certificate.cert_der
            && own_ca::is_same_ca(ca_certificate, &self.certificate.ca_cert_der);
        if same {
            return Ok(());
        }
        Err("the cluster does not use the CA of this node's certificate: enrol this node with that CA (`keystead tls csr`)".into())
    }
}

/// The leader's side: the certificate that a joining node will have. `brought` is empty for a node that asks for one.
///
/// # Errors
/// 400 with the reason and the remedy.
pub fn certify(
    authority: &ClusterAuthority,
    csr: &[u8],
    brought: &[u8],
    name: &PeerName,
) -> Result<Vec<u8>, ApiError> {
    match (authority, brought.is_empty()) {
        (ClusterAuthority::BuiltIn(ca), true) => {
            ca.sign_csr(csr, name).map_err(|_| ApiError::invalid("invalid answer given"))
        }
        (ClusterAuthority::Own(ca), false) => {
            judge(ca, csr, brought, name)?;
            Ok(brought.to_vec())
        }
        (ClusterAuthority::BuiltIn(_), false) => Err(ApiError::invalid(
            "this cluster has its built-in CA, and the joining node brings a certificate by a CA of your own: it is one or the other for all nodes, from init on; remove `enrolment` from that node's data directory and start it again",
        )),
        (ClusterAuthority::Own(_), true) => Err(ApiError::invalid(format!(
            "the nodes of this cluster have certificates by a CA of your own, and the joining node has none: stop it, run `keystead tls csr -cluster-id={}` on it, have the request signed, run `keystead tls install` and start it again",
            uuid_text(&name.cluster_id.0)
        ))),
    }
}

fn judge(ca: &[u8], csr: &[u8], brought: &[u8], name: &PeerName) -> Result<(), ApiError> {
    let refused = |why: &dyn std::fmt::Display| {
        ApiError::invalid(format!(
            "the joining node's certificate is refused: {why}; make a new request on it with `keystead tls csr -cluster-id={}`",
            uuid_text(&name.cluster_id.0)
        ))
    };
    let identity = own_ca::judge(ca, brought).map_err(|error| refused(&error))?;
    if identity.name.cluster_id != name.cluster_id {
        let theirs = uuid_text(&identity.name.cluster_id.0);
        return Err(refused(&format!("it is for cluster {theirs}")));
    }
    if identity.name != *name {
        return Err(refused(&format!("it is for {}, not for {name}", identity.name)));
    }
    // Whoever presents a certificate has to have its key.
    if own_ca::proven_key(csr).map_err(|error| refused(&error))? != identity.spki_sha256 {
        return Err(refused(&"it is for another key than the node's"));
    }
    Ok(())
}

/// When the certificates of a node with a CA of the operator's cease to be valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateEnds {
    /// The node's own.
    pub certificate_s: i64,
    /// The CA's.
    pub ca_s: i64,
}

impl CertificateEnds {
    /// Those of two certificates in DER; `None` under a built-in CA, whose certificates have no end.
    pub fn of(cert_der: &[u8], ca_cert_der: &[u8]) -> Option<Self> {
        if own_ca::is_built_in(ca_cert_der).ok()? {
            return None;
        }
        let end = |der: &[u8]| own_ca::not_after_s(der).ok();
        Some(Self { certificate_s: end(cert_der)?, ca_s: end(ca_cert_der)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keystead_tls::{ClusterCa, NodeKey, make};

    const CLUSTER: ClusterId = ClusterId([3; 16]);

    struct Pki(String, zeroize::Zeroizing<String>);

    impl Pki {
        fn new() -> Self {
            let (ca, key) = make::make_ca("Example CA").unwrap();
            Self(ca, key)
        }

        fn certificate(&self, key: &NodeKey, name: &PeerName) -> Vec<u8> {
            let request = own_ca::request_pem(key, name).unwrap();
            let (_, pem) = own_ca::sign(&self.0, &self.1, &request, 1).unwrap();
            own_ca::single(&pem, "test").unwrap().to_vec()
        }

        fn authority(&self) -> ClusterAuthority {
            ClusterAuthority::Own(own_ca::single(&self.0, "test").unwrap().to_vec())
        }
    }

    fn name() -> PeerName {
        PeerName { cluster_id: CLUSTER, node_id: "n2".into(), incarnation: 9 }
    }

    fn refusal(authority: &ClusterAuthority, csr: &[u8], brought: &[u8]) -> String {
        certify(authority, csr, brought, &name()).unwrap_err().to_string()
    }

    #[test]
    fn a_leader_takes_what_its_ca_signed_for_this_node_and_nothing_else() {
        let (pki, key) = (Pki::new(), NodeKey::generate().unwrap());
        let csr = key.csr_der("n2", 9).unwrap();
        let good = pki.certificate(&key, &name());
        assert_eq!(certify(&pki.authority(), &csr, &good, &name()).unwrap(), good);

        let foreign = refusal(&Pki::new().authority(), &csr, &good);
        assert!(foreign.contains("was not signed by this CA") && foreign.contains("tls csr"), "{foreign}");
        let other_key = NodeKey::generate().unwrap();
        let stolen = refusal(&pki.authority(), &other_key.csr_der("n2", 9).unwrap(), &good);
        assert!(stolen.contains("another key"), "{stolen}");
        for (other, expected) in [
            (PeerName { node_id: "n3".into(), ..name() }, "it is for node \"n3\""),
            (PeerName { incarnation: 10, ..name() }, "it is for node \"n2\" (incarnation 000000000000000a)"),
            (
                PeerName { cluster_id: ClusterId([4; 16]), ..name() },
                "it is for cluster 04040404-0404-0404-0404-040404040404",
            ),
        ] {
            let text = refusal(&pki.authority(), &csr, &pki.certificate(&key, &other));
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn a_cluster_is_of_one_kind() {
        let (pki, key) = (Pki::new(), NodeKey::generate().unwrap());
        let csr = key.csr_der("n2", 9).unwrap();
        let missing = refusal(&pki.authority(), &csr, b"");
        assert!(missing.contains("-cluster-id=03030303-0303-0303-0303-030303030303"), "{missing}");
        let built_in = ClusterAuthority::BuiltIn(ClusterCa::generate(CLUSTER).unwrap());
        let mixed = refusal(&built_in, &csr, &pki.certificate(&key, &name()));
        assert!(mixed.contains("built-in CA") && mixed.contains("remove `enrolment`"), "{mixed}");
        certify(&built_in, &csr, b"", &name()).unwrap();
    }

    #[test]
    fn only_the_node_that_drew_the_id_founds_the_cluster() {
        let certificate = OwnCertificate { cert_der: vec![1], ca_cert_der: vec![2] };
        let mut enrolled = Enrolled { cluster_id: CLUSTER, founds: true, certificate };
        enrolled.may_found().unwrap();
        enrolled.founds = false;
        assert!(enrolled.may_found().unwrap_err().to_string().contains("initialise the node"));
    }
}

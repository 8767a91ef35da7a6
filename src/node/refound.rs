//! After a recovery from lost quorum: the first open leader makes the new cluster's CA and directory.
//!
//! The CA's private key is sealed state, so nothing offline can make it. Until an open leader has, the survivor runs
//! alone with a certificate by a stand-in CA, and nobody can join.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use keystead_raft::{Directory, Identity, ProposeOutcome, Replica, Replicated as _};
use keystead_storage::{Check, RequestId, Txn, Write};
use keystead_tls::{ClusterCa, ClusterId, PeerName};

use super::{Node, OpenKeys, records, records::ClusterAuthority};
use crate::core::error::ApiError;

/// Pause between two looks at whether this node leads, and between two attempts.
const ROUND: Duration = Duration::from_millis(200);

impl Node {
    /// Makes CA and directory of a recovered cluster as soon as this node leads and is open.
    pub(super) fn refound_when_open(self: Arc<Self>) {
        let mut stopping = self.stopping.subscribe();
        let node = Arc::downgrade(&self);
        drop(self);
        tokio::spawn(async move {
            let mut said = String::new();
            loop {
                let Some(node) = node.upgrade() else { return };
                let keys = node.keys.read().clone();
                if let (Some(replica), Some(keys)) = (node.replica(), keys)
                    && replica.leadership().borrow().is_self
                {
                    match node.refound(&replica, &keys).await {
                        Ok(()) => return,
                        Err(error) => {
                            let error = error.to_string();
                            if error != said {
                                tracing::warn!(
                                    error,
                                    "the recovered cluster has no CA yet; this node goes on trying"
                                );
                                said = error;
                            }
                        }
                    }
                }
                drop(node);
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(ROUND) => {}
                }
            }
        });
    }

    async fn refound(&self, replica: &Replica, keys: &OpenKeys) -> Result<(), ApiError> {
        let failed = |context: &'static str| move |e: &dyn std::fmt::Display| ApiError::internal(context, e);
        let dir = self.data_dir();
        let identity = Identity::load(&dir).map_err(|e| failed("reading the identity")(&e))?;
        let mut identity = identity.ok_or_else(|| failed("reading the identity")(&"it is missing"))?;
        let cluster_id = ClusterId(identity.cluster_id);
        let ca = match self.cluster_authority(keys)? {
            ClusterAuthority::BuiltIn(ca) if ca.cluster_id() == cluster_id => ca,
            _ => self.write_ca(replica, keys, &identity).await?,
        };
        let key = identity.key().map_err(|e| failed("the node's key")(&e))?;
        let (node_id, incarnation) = (identity.node_id.clone(), identity.incarnation);
        let csr = key.csr_der(&node_id, incarnation).map_err(|e| failed("the certificate request")(&e))?;
        let name = PeerName { cluster_id, node_id, incarnation };
        identity.cert_der = ca.sign_csr(&csr, &name).map_err(|e| failed("signing a certificate")(&e))?;
        identity.ca_cert_der = ca.cert_der().to_vec();
        identity.stand_in_ca = false;
        replica.renew_certificate(&identity).map_err(|e| failed("the new certificate")(&e))?;
        identity.save(&dir).map_err(|e| failed("saving the identity")(&e))?;
        *self.certificate_ends.write() = None;
        tracing::info!(cluster_id = %cluster_id, epoch = identity.epoch, "the recovered cluster has its CA: nodes may join");
        Ok(())
    }

    /// Writes a new CA and the directory of the new cluster, in one entry.
    async fn write_ca(
        &self,
        replica: &Replica,
        keys: &OpenKeys,
        identity: &Identity,
    ) -> Result<ClusterCa, ApiError> {
        let ca = ClusterCa::generate(ClusterId(identity.cluster_id))
            .map_err(|e| ApiError::internal("making the cluster CA", &e))?;
        let ca_key = records::cluster_ca_key(keys.barrier())?;
        let sealed = records::seal_cluster_ca(keys.barrier(), &ca_key, ca.cert_der(), &ca.key_pkcs8_der());
        let unreadable = |e: &dyn std::fmt::Display| ApiError::internal("reading the directory", e);
        let record = replica.state().get(&Directory::key()).map_err(|e| unreadable(&e))?;
        let record = record.ok_or_else(|| unreadable(&"it is missing"))?;
        let (directory, _) = Directory::open(&record.value).map_err(|e| unreadable(&e))?;
        let directory = directory.of_cluster(identity.cluster_id, identity.epoch, identity.incarnation);
        let directory = directory.seal(|signed| Ok::<_, ApiError>(keys.directory_mac(signed)))?;
        let txn = Txn {
            request_id: RequestId([0; 16]),
            checks: vec![Check::Record { key: Directory::key(), version: Some(record.version) }],
            writes: vec![
                Write::Put { key: Directory::key(), value: directory },
                Write::Put { key: ca_key, value: sealed.into() },
            ],
            response: Bytes::new(),
            activate: None,
        };
        match replica.propose(txn).await {
            Ok(ProposeOutcome::Applied(_)) => Ok(ca),
            Ok(other) => Err(ApiError::Busy(format!("the new CA was not written: {other:?}"))),
            Err(error) => Err(ApiError::Busy(format!("the new CA was not written: {error}"))),
        }
    }
}

//! What the node lends to replication: signatures, verdicts, answers.

use std::sync::Arc;

use bytes::Bytes;
use keystead_raft::{BoxFuture, Peer, Replicated as _, VaultSide, Verdict};
use keystead_storage::RecordKey;

use super::{Node, OpenKeys, break_glass, records};
use crate::barrier::LogTag;

impl Node {
    /// The keys that sign: those of an open node, or of an initialisation or joining in progress.
    fn signing_keys(&self) -> Option<Arc<OpenKeys>> {
        self.keys.read().clone().or_else(|| self.provisional.read().clone())
    }
}

impl VaultSide for Node {
    fn is_open(&self) -> bool {
        self.keys.read().is_some() || self.provisional.read().is_some()
    }

    fn log_key_term(&self) -> Option<u32> {
        self.signing_keys().map(|keys| keys.barrier().term())
    }

    fn sign_entry(&self, key_term: u32, signed: &[u8]) -> Option<[u8; 32]> {
        let tag = self.signing_keys()?.log_tag(signed);
        (tag.term == key_term).then_some(tag.mac)
    }

    fn verify_entry(&self, key_term: u32, signed: &[u8], tag: &[u8; 32]) -> Verdict {
        let Some(keys) = self.signing_keys() else { return Verdict::Sealed };
        match keys.verify_log_tag(signed, &LogTag { term: key_term, mac: *tag }) {
            Ok(()) => Verdict::Good,
            Err(_) => Verdict::Bad,
        }
    }

    fn peer_mac(&self, parts: &[&[u8]]) -> Option<[u8; 32]> {
        self.signing_keys().map(|keys| keys.peer_mac(parts))
    }

    fn directory_mac(&self, bytes: &[u8]) -> Option<[u8; 32]> {
        self.signing_keys().map(|keys| keys.directory_mac(bytes))
    }

    fn applied(&self, changed: &[RecordKey]) {
        if changed.contains(&records::keyring_key()) {
            self.reload_keys();
        }
        // An older configuration on the disk would have a restarted node ask for what does not open the vault any more.
        if changed.contains(&records::seal_config_key())
            && let Some(replica) = self.replica()
        {
            replica.flush_when_applied();
            if let Ok(Some(config)) = records::seal_config(&*replica.state()) {
                break_glass::gauge(&config);
            }
        }
        if let Some(core) = self.core() {
            core.invalidate(changed);
        }
    }

    fn replaced(&self) {
        self.reload_keys();
        if let Some(core) = self.core() {
            core.forget();
        }
    }

    fn serve(&self, peer: Peer, request: Bytes) -> BoxFuture<'_, Bytes> {
        Box::pin(async move {
            match self.core() {
                Some(core) => core.handle_forwarded(request, &peer.node_id).await,
                None => Bytes::new(),
            }
        })
    }

    fn take_over(&self, peer: Peer, body: &[u8]) -> Result<(), String> {
        self.take_root(&peer, body)
    }

    fn unseal(&self, peer: Peer, body: Bytes) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.open_as_member(&peer, body).await })
    }

    /// A latched node seals itself: it has nothing to say that could be relied upon.
    fn latched(&self, reason: &str) {
        let first = self.latched.send_if_modified(|latched| {
            let first = latched.is_none();
            if first {
                *latched = Some(reason.to_owned());
            }
            first
        });
        if first {
            tracing::error!(reason, "this node has stopped serving and sealed itself");
            metrics::gauge!("keystead_node_latched").set(1.0);
            self.drop_keys();
        }
    }
}

//! One ceremony for all nodes: key holders open one node, are shown the others, and have it open them.
//!
//! What they confirm is the list they were shown: these processes, with these keys. The shares are forgotten as always; until the
//! list is confirmed nothing is kept but the list and a nonce, for the root key is in this node anyway.

use std::time::{Duration, Instant};

use bytes::Bytes;
use keystead_raft::{Candidate, Condition, Peer, Replica, Replicated as _};
use zeroize::Zeroize as _;

use super::{Node, records, rotation, shares};
use crate::core::{
    error::ApiError,
    node_ops::{Ceremony, CeremonyMember, MemberSeal, NodeOps as _},
};

/// How long a list may be confirmed: time to compare fingerprints.
const KEPT: Duration = Duration::from_secs(300);
/// How long a member may take to open; it goes on afterwards.
const OPENING: Duration = Duration::from_secs(10);

/// What was shown, until it is confirmed.
pub struct Offer {
    nonce: String,
    candidates: Vec<Candidate>,
    since: Instant,
}

impl Node {
    /// Shows the other members, and keeps what was shown.
    pub(super) async fn offer_members(&self) -> Ceremony {
        let candidates = match self.replica() {
            Some(replica) => replica.candidates().await,
            None => Vec::new(),
        };
        let members = candidates.iter().map(shown).collect();
        let nonce = shares::uuid();
        let offer = Offer { nonce: nonce.clone(), candidates, since: Instant::now() };
        *self.ceremony.lock() = Some(offer);
        Ceremony { nonce, members }
    }

    /// Opens what was shown and confirmed.
    ///
    /// # Errors
    /// 400 for a nonce that is not, or no longer, good, and for a name that was not shown.
    pub(super) async fn open_members(
        &self,
        nonce: &str,
        node_ids: Option<Vec<String>>,
    ) -> Result<Vec<CeremonyMember>, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let offer = self.take_offer(nonce)?;
        let listed = |id: &String| offer.candidates.iter().any(|candidate| candidate.member.node_id == *id);
        if let Some(unknown) = node_ids.iter().flatten().find(|id| !listed(id)) {
            let text = format!("no member {unknown:?} was shown: begin anew with the shares");
            return Err(ApiError::invalid(text));
        }
        let config = records::seal_config(&*replica.state())
            .map_err(|e| ApiError::internal("reading the seal configuration", &e))?
            .ok_or(ApiError::Sealed)?;
        config.verify(keys.root()).map_err(|e| ApiError::internal("checking the root key", &e))?;
        let body = rotation::encode(&config.root_commitment, keys.root());
        let wanted = |id: &String| node_ids.as_ref().is_none_or(|ids| ids.contains(id));
        let opened = offer.candidates.iter().map(|candidate| async {
            match &candidate.condition {
                Condition::Sealed { boot_id, cluster_addr } if wanted(&candidate.member.node_id) => {
                    open(&replica, candidate, (*boot_id, cluster_addr), &body).await
                }
                _ => shown(candidate),
            }
        });
        Ok(futures_util::future::join_all(opened).await)
    }

    fn take_offer(&self, nonce: &str) -> Result<Offer, ApiError> {
        let mut current = self.ceremony.lock();
        let good = |offer: &mut Offer| offer.nonce == nonce && offer.since.elapsed() < KEPT;
        current.take_if(good).ok_or_else(|| {
            ApiError::invalid(
                "no list of members with this nonce waits to be confirmed: it is good once, for five minutes, on the \
                 node that showed it",
            )
        })
    }

    /// Opens this node with what an open member gave it.
    ///
    /// # Errors
    /// A text for the member.
    pub(super) async fn open_as_member(&self, peer: &Peer, body: Bytes) -> Result<(), String> {
        let decoded = rotation::decode(&body);
        if let Ok(mut body) = body.try_into_mut() {
            body.zeroize();
        }
        let (commitment, root) = decoded.ok_or("what was handed over cannot be read")?;
        let _one = self.lifecycle.lock().await;
        if self.keys.read().is_some() {
            return Ok(());
        }
        if let Some(reason) = self.latch_reason() {
            return Err(format!("it has stopped serving: {reason}"));
        }
        let replica = self.replica().ok_or("replication has stopped")?;
        let config = records::seal_config(&*replica.state()).map_err(|e| e.to_string())?;
        let config = config.ok_or("it has no seal configuration yet")?;
        if config.root_commitment != commitment {
            let generation = config.root_generation;
            return Err(format!(
                "it knows the root key of generation {generation}, which is another: it has not caught up yet"
            ));
        }
        config.verify(&root).map_err(|e| e.to_string())?;
        tracing::info!(by = peer.node_id, "key holders open this node by way of another");
        metrics::counter!("keystead_seal_opened_by_member_total").increment(1);
        self.progress.lock().reset();
        self.open_and_wait(config, root).await.map_err(|error| error.to_string())?;
        match self.seal_status().sealed {
            true => Err("it goes on opening".to_owned()),
            false => Ok(()),
        }
    }
}

async fn open(
    replica: &Replica,
    candidate: &Candidate,
    (boot_id, address): (u64, &str),
    body: &[u8],
) -> CeremonyMember {
    let member = &candidate.member;
    let opened = replica.open_member(member, boot_id, address, body, OPENING).await;
    let mut row = shown(candidate);
    match opened {
        Ok(()) => {
            tracing::info!(member = member.node_id, address = row.cluster_addr, "a member was opened");
            row.state = MemberSeal::Unsealed;
        }
        Err(why) => {
            tracing::warn!(
                member = member.node_id,
                address = row.cluster_addr,
                why,
                "a member was not opened"
            );
            row.why = why;
        }
    }
    row
}

fn shown(candidate: &Candidate) -> CeremonyMember {
    let member = &candidate.member;
    let (state, cluster_addr, why) = match &candidate.condition {
        Condition::Open => (MemberSeal::Unsealed, &member.cluster_addr, String::new()),
        Condition::Sealed { cluster_addr, .. } => (MemberSeal::Sealed, cluster_addr, String::new()),
        Condition::Unfit(why) => (MemberSeal::Unfit, &member.cluster_addr, why.clone()),
    };
    CeremonyMember {
        node_id: member.node_id.clone(),
        cluster_addr: cluster_addr.clone(),
        listed_addr: member.cluster_addr.clone(),
        fingerprint: hex::encode(member.spki_sha256),
        state,
        why,
    }
}

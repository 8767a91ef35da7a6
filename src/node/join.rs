//! Joining a cluster, both sides.
//!
//! A node that belongs to no cluster asks every `retry_join` address, over and over, for a challenge; with it
//! comes the seal configuration, so that its key holders can give it the root key. With the root key it answers a
//! fresh challenge: certificate request and MAC under `K_join`. The reply carries a MAC over the transcript and
//! is verified before anything is stored. Neither side decrypts what the other sent in order to answer, and a
//! challenge is good once, for a minute.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use futures_util::future::join_all;
use keystead_raft::hello::Refusal;
use keystead_raft::{
    ClusterParams, Directory, DirectoryMember, Enrolment, Identity, JoinError, Replicated as _,
    fresh_incarnation,
};
use keystead_tls::{ClusterId, NodeKey, PeerName, Seldom};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::{
    ClusterName, Node, OpenKeys, feature_level, forget_enrolment,
    own_pki::{self, Enrolled},
    records,
};
use crate::{
    barrier::{Keyring, Mac},
    client::{Address, Client, ClientConfig, Response, Scheme},
    core::{error::ApiError, node_ops::JoinRequest},
    seal::SealConfig,
    secret::{LogKey, RootKey, random_array},
};

const ANSWER_TAG: &str = "keystead/v1/join-answer";
const REPLY_TAG: &str = "keystead/v1/join-reply";
const CHALLENGE_TAG: &str = "keystead/v1/join-challenge";
/// How long a challenge is good for.
const CHALLENGE_TTL: Duration = Duration::from_secs(60);
/// Challenges that are remembered as used, at most.
const MAX_USED: usize = 1024;
/// Pause between two rounds of asking.
const ROUND: Duration = Duration::from_millis(500);
/// A joining node remembers this many different offers.
const MAX_OFFERS: usize = 8;
/// How long one request to a member may take.
const TARGET_TIMEOUT: Duration = Duration::from_secs(10);

/// A node that may let this one in.
pub struct JoinTarget {
    /// Its API address, for messages.
    pub address: String,
    /// Speaks to it, with the trust its stanza configures.
    pub client: Client,
}

/// What a joining node keeps between attempts: attempts are idempotent.
pub struct Joining {
    incarnation: u64,
    key: Arc<NodeKey>,
    /// What it brings, if a CA of the operator's has signed for it.
    enrolled: Option<Enrolled>,
    offers: Vec<SealConfig>,
    /// Join without a vote.
    non_voter: bool,
    /// Why the latest attempt came to nothing.
    last_error: Option<String>,
}

impl Joining {
    /// The incarnation and the key of an enrolment, or fresh ones.
    pub fn new(non_voter: bool, enrolment: Option<&Enrolment>) -> Result<Self, keystead_tls::Error> {
        let (incarnation, key) = match enrolment {
            Some(enrolment) => (enrolment.incarnation, enrolment.key()?),
            None => (fresh_incarnation(), NodeKey::generate()?),
        };
        let enrolled = enrolment.and_then(Enrolled::of);
        let (key, offers) = (Arc::new(key), Vec::new());
        Ok(Self { incarnation, key, enrolled, offers, non_voter, last_error: None })
    }

    /// What this node brings, if a CA of the operator's has signed for it.
    pub fn enrolled(&self) -> Option<&Enrolled> {
        self.enrolled.as_ref()
    }

    /// Who this node will be: its incarnation, its key, and what it brings.
    pub fn credentials(&self) -> (u64, Arc<NodeKey>, Option<Enrolled>) {
        (self.incarnation, self.key.clone(), self.enrolled.clone())
    }

    /// The seal configurations that members offered.
    pub fn configs(&self) -> Vec<SealConfig> {
        self.offers.clone()
    }

    fn offer(&mut self, config: SealConfig) {
        if self.offers.contains(&config) {
            return;
        }
        self.offers.retain(|known| known.vault_id != config.vault_id);
        if self.offers.len() < MAX_OFFERS {
            tracing::info!("a cluster was found to join; enter its unseal shares on this node");
            self.offers.push(config);
        }
    }
}

/// Challenges: handed out without being kept, so that nobody who asks for many costs memory or takes away another's.
///
/// A challenge is `made[8] random[8] MAC[16]`, the MAC under a key of this process; made is in milliseconds since the
/// process began. Only those that were answered by a holder of the root key are remembered, for as long as they would
/// be good.
pub struct Challenges {
    key: LogKey,
    began: Instant,
    used: Mutex<HashMap<[u8; 32], Instant>>,
}

impl Default for Challenges {
    fn default() -> Self {
        Self { key: LogKey::random(), began: Instant::now(), used: Mutex::default() }
    }
}

impl Challenges {
    fn issue(&self, now: Instant) -> [u8; 32] {
        let made = u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX);
        let mut challenge = [0; 32];
        challenge[..8].copy_from_slice(&made.to_be_bytes());
        challenge[8..16].copy_from_slice(&random_array::<8>());
        let mac = self.mac(&challenge);
        challenge[16..].copy_from_slice(&mac);
        challenge
    }

    fn mac(&self, challenge: &[u8; 32]) -> [u8; 16] {
        let mac = Mac::new(self.key.expose(), CHALLENGE_TAG).field(&challenge[..16]).finish();
        *mac.first_chunk().expect("HMAC-SHA256 is longer than 16 bytes")
    }

    /// Whether the challenge is one of ours, fresh and not used up.
    fn is_good(&self, challenge: &[u8; 32], now: Instant) -> bool {
        let (made, _) = challenge.split_first_chunk().expect("32 bytes have eight at their front");
        let made = Duration::from_millis(u64::from_be_bytes(*made));
        let ours = bool::from(self.mac(challenge).ct_eq(&challenge[16..]));
        let age = now.saturating_duration_since(self.began).saturating_sub(made);
        ours && age < CHALLENGE_TTL && !self.used.lock().contains_key(challenge)
    }

    /// Uses up a good challenge; false if somebody was faster, or too many have been used within a minute.
    fn use_up(&self, challenge: &[u8; 32], now: Instant) -> bool {
        let mut used = self.used.lock();
        used.retain(|_, since| now.saturating_duration_since(*since) < CHALLENGE_TTL);
        used.len() < MAX_USED && used.insert(*challenge, now).is_none()
    }
}

/// Why a node did not join.
pub enum JoinFailure {
    /// This node cannot use what it was given; trying again does not help.
    Refused(String),
    /// This node is stopping.
    Stopped,
}

/// Why one attempt at one address came to nothing.
enum Attempt {
    /// Another address, or the same one later, may do better.
    Later(String),
    /// Nothing will do better.
    Refused(String),
}

/// A challenge as a member offers it.
struct Offer {
    challenge: [u8; 32],
    leader_id: String,
    config: SealConfig,
}

/// The MACed fields of an answer.
struct Answer<'a> {
    challenge: &'a [u8],
    leader_id: &'a str,
    node_id: &'a str,
    incarnation: u64,
    csr: &'a [u8],
    /// The certificate that the node brings; empty if it asks for one.
    certificate: &'a [u8],
    cluster_addr: &'a str,
    api_addr: &'a str,
    non_voter: bool,
    feature_level: u32,
}

impl Answer<'_> {
    fn mac(&self, keys: &OpenKeys) -> crate::barrier::Mac {
        keys.join_mac(
            ANSWER_TAG,
            &[
                self.challenge,
                self.leader_id.as_bytes(),
                self.node_id.as_bytes(),
                &self.incarnation.to_be_bytes(),
                &Sha256::digest(self.csr),
                &Sha256::digest(self.certificate),
                self.cluster_addr.as_bytes(),
                self.api_addr.as_bytes(),
                &[u8::from(self.non_voter)],
                &self.feature_level.to_be_bytes(),
            ],
        )
    }
}

/// The MACed fields of a reply.
struct Reply<'a> {
    challenge: &'a [u8],
    answer_mac: &'a [u8],
    certificate: &'a [u8],
    ca_certificate: &'a [u8],
    directory: &'a [u8],
    params: &'a [u8],
}

impl Reply<'_> {
    fn mac(&self, keys: &OpenKeys) -> crate::barrier::Mac {
        let parts = [
            self.challenge,
            self.answer_mac,
            self.certificate,
            self.ca_certificate,
            self.directory,
            self.params,
        ];
        keys.join_mac(REPLY_TAG, &parts)
    }
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    map.get(name)?.as_str()
}

fn bytes(map: &Map<String, Value>, name: &str) -> Option<Vec<u8>> {
    BASE64.decode(text(map, name)?).ok()
}

fn encode_params(params: &ClusterParams) -> Vec<u8> {
    [params.heartbeat_ms, params.election_min_ms, params.election_max_ms, params.max_entry_size]
        .iter()
        .flat_map(|value| value.to_be_bytes())
        .collect()
}

fn decode_params(bytes: &[u8]) -> Option<ClusterParams> {
    let mut values = bytes.chunks_exact(8).map(|c| u64::from_be_bytes(c.try_into().unwrap_or_default()));
    let params = ClusterParams {
        heartbeat_ms: values.next()?,
        election_min_ms: values.next()?,
        election_max_ms: values.next()?,
        max_entry_size: values.next()?,
    };
    (bytes.len() == 32).then_some(params)
}

// The joining side.
impl Node {
    /// Asks for challenges until this node belongs to a cluster.
    pub(super) fn spawn_challenge_loop(self: Arc<Self>) {
        if self.targets.read().is_empty() {
            return;
        }
        let node = Arc::downgrade(&self);
        let mut stopping = self.stopping.subscribe();
        drop(self);
        tokio::spawn(async move {
            loop {
                let Some(node) = node.upgrade() else { return };
                if node.replica().is_some() {
                    return;
                }
                let targets = node.targets.read().clone();
                join_all(targets.iter().map(|target| node.ask(target))).await;
                drop(node);
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    () = tokio::time::sleep(ROUND) => {}
                }
            }
        });
    }

    async fn ask(&self, target: &JoinTarget) {
        match self.challenge_of(target).await {
            Ok(offer) => self.joining.lock().offer(offer.config),
            Err(Attempt::Later(error) | Attempt::Refused(error)) => {
                tracing::debug!(address = target.address, error, "no challenge yet");
            }
        }
    }

    async fn challenge_of(&self, target: &JoinTarget) -> Result<Offer, Attempt> {
        let later = |text: &str| Attempt::Later(format!("{}: {text}", target.address));
        let body = json!({ "server_id": self.settings.node_id });
        let data = put(target, "/v1/sys/storage/raft/bootstrap/challenge", &body).await?;
        let challenge = bytes(&data, "challenge").and_then(|c| c.try_into().ok());
        let config = bytes(&data, "seal_config").and_then(|c| SealConfig::decode(&c).ok());
        let leader_id = text(&data, "leader_id").map(str::to_owned);
        match (challenge, config, leader_id) {
            (Some(challenge), Some(config), Some(leader_id)) => Ok(Offer { challenge, leader_id, config }),
            _ => Err(later("the challenge cannot be understood")),
        }
    }

    /// Joins with the root key of `config`, trying every address until one lets this node in.
    pub(super) async fn join_with(
        self: Arc<Self>,
        config: &SealConfig,
        root: &RootKey,
    ) -> Result<(), JoinFailure> {
        // Only the keys derived from the root are used until the keyring has been replicated.
        let placeholder = ClusterName { id: String::new(), name: String::new() };
        let keys = Arc::new(OpenKeys::new(config, root.duplicate(), Keyring::generate(0), &placeholder));
        let mut stopping = self.stopping.subscribe();
        loop {
            let targets = self.targets.read().clone();
            for target in &targets {
                match self.attempt(target, config, &keys).await {
                    Ok(()) => return Ok(()),
                    Err(Attempt::Refused(text)) => return Err(JoinFailure::Refused(text)),
                    Err(Attempt::Later(error)) => self.note_join_error(error),
                }
            }
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => return Err(JoinFailure::Stopped),
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }

    /// Keeps the reason for the operator, and logs it when it is a new one.
    fn note_join_error(&self, error: String) {
        let mut joining = self.joining.lock();
        if joining.last_error.as_ref() != Some(&error) {
            tracing::warn!(error, "not joined yet; this node goes on trying");
            joining.last_error = Some(error);
        }
    }

    /// Why this node has not joined so far.
    pub(super) fn last_join_error(&self) -> Option<String> {
        self.joining.lock().last_error.clone()
    }

    async fn attempt(
        &self,
        target: &JoinTarget,
        config: &SealConfig,
        keys: &OpenKeys,
    ) -> Result<(), Attempt> {
        let offer = self.challenge_of(target).await?;
        let same = offer.config.vault_id == config.vault_id
            && offer.config.root_commitment == config.root_commitment;
        if !same {
            return Err(Attempt::Later(format!(
                "{}: the node there belongs to another vault than the shares that were entered",
                target.address
            )));
        }
        let ((incarnation, key, enrolled), non_voter) = {
            let joining = self.joining.lock();
            (joining.credentials(), joining.non_voter)
        };
        let certificate =
            enrolled.as_ref().map_or(&[][..], |enrolled| enrolled.certificate.cert_der.as_slice());
        let settings = &self.settings;
        let csr = key
            .csr_der(&settings.node_id, incarnation)
            .map_err(|e| Attempt::Refused(format!("certificate request: {e}")))?;
        let answer = Answer {
            challenge: &offer.challenge,
            leader_id: &offer.leader_id,
            node_id: &settings.node_id,
            incarnation,
            csr: &csr,
            certificate,
            cluster_addr: &settings.cluster_addr,
            api_addr: &settings.api_addr,
            non_voter,
            feature_level: feature_level(),
        };
        let mac = answer.mac(keys).finish();
        let body = json!({
            "challenge": BASE64.encode(offer.challenge),
            "server_id": settings.node_id,
            "incarnation": format!("{incarnation:016x}"),
            "csr": BASE64.encode(&csr),
            "certificate": BASE64.encode(certificate),
            "cluster_addr": settings.cluster_addr,
            "api_addr": settings.api_addr,
            "non_voter": non_voter,
            "feature_level": feature_level(),
            "mac": BASE64.encode(mac),
        });
        let data = put(target, "/v1/sys/storage/raft/bootstrap/answer", &body).await?;
        self.accept(target, &data, &offer.challenge, &mac, keys, (incarnation, &key, enrolled.as_ref())).await
    }

    /// Verifies the reply, and only then stores anything.
    #[allow(clippy::too_many_arguments)]
    async fn accept(
        &self,
        target: &JoinTarget,
        data: &Map<String, Value>,
        challenge: &[u8],
        answer_mac: &[u8],
        keys: &OpenKeys,
        (incarnation, key, enrolled): (u64, &NodeKey, Option<&Enrolled>),
    ) -> Result<(), Attempt> {
        let false_leader = || {
            metrics::counter!("keystead_join_false_replies").increment(1);
            Attempt::Later(format!(
                "{}: the reply is not from a node that holds this vault's root key; check leader_api_addr and its CA",
                target.address
            ))
        };
        let field = |name| bytes(data, name).ok_or_else(false_leader);
        let (certificate, ca_certificate) = (field("certificate")?, field("ca_certificate")?);
        let (directory, params, mac) = (field("directory")?, field("params")?, field("mac")?);
        let reply = Reply {
            challenge,
            answer_mac,
            certificate: &certificate,
            ca_certificate: &ca_certificate,
            directory: &directory,
            params: &params,
        };
        if !reply.mac(keys).verify(&mac) {
            return Err(false_leader());
        }
        if let Some(enrolled) = enrolled {
            enrolled.check_reply(&certificate, &ca_certificate).map_err(Attempt::Refused)?;
        }
        let params = decode_params(&params).ok_or_else(false_leader)?;
        let (directory, _) = Directory::open(&directory).map_err(|_| false_leader())?;
        let identity = Identity::new(
            directory.cluster_id,
            directory.epoch,
            self.settings.node_id.clone(),
            incarnation,
            key,
            certificate,
            ca_certificate,
            params,
        );
        let refused = |e: &dyn std::fmt::Display| Attempt::Refused(e.to_string());
        identity.save(&self.data_dir()).map_err(|e| refused(&e))?;
        forget_enrolment(&self.data_dir());
        self.start_replica(Arc::new(identity), false, Some(directory)).await.map_err(|e| refused(&e))?;
        tracing::info!(through = target.address, "this node has joined the cluster");
        Ok(())
    }
}

// `sys/storage/raft/join`: joining by hand.
impl Node {
    /// Names a node to join through. True once its challenge has been seen, or when this node is a member
    /// already; the cluster's shares complete it.
    pub(super) async fn join_by_hand(&self, request: JoinRequest) -> Result<bool, ApiError> {
        if self.replica().is_some() {
            // As Vault answers. Nobody is asked whose cluster the address belongs to: this needs no token, and would have a
            // node that serves connect to wherever a stranger likes.
            return Ok(true);
        }
        let failed = |text: &str| ApiError::Internal(format!("failed to join raft cluster: {text}"));
        if !self.settings.retry_join.is_empty() {
            return Err(failed(
                "this node is configured with retry_join and joins by itself as soon as it is given the cluster's unseal shares",
            ));
        }
        if request.leader_api_addr.is_empty() {
            return Err(failed("failed to get raft challenge: leader_api_addr is missing"));
        }
        let target = Arc::new(JoinTarget::new(&request).map_err(ApiError::invalid)?);
        self.joining.lock().non_voter = request.non_voter;
        let first = self.challenge_of(&target).await;
        if first.is_err() && !request.retry {
            return Err(failed("failed to get raft challenge"));
        }
        let known = self.targets.read().iter().any(|known| known.address == target.address);
        if !known {
            self.targets.write().push(target);
            self.arc().spawn_challenge_loop();
        }
        match first {
            Ok(offer) => {
                self.joining.lock().offer(offer.config);
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }
}

impl JoinTarget {
    fn new(request: &JoinRequest) -> Result<Self, String> {
        let pem = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let tls = keystead_tls::ClientTls {
            ca_pem: pem(&request.leader_ca_cert),
            client_cert_pem: pem(&request.leader_client_cert),
            client_key_pem: pem(request.leader_client_key.expose()).map(zeroize::Zeroizing::new),
            server_name: pem(&request.leader_tls_servername),
            ..keystead_tls::ClientTls::default()
        };
        Self::with_tls(&request.leader_api_addr, &tls)
    }

    /// A target at an API address, trusted as `tls` says.
    pub fn with_tls(address: &str, tls: &keystead_tls::ClientTls) -> Result<Self, String> {
        let parsed = Address::parse(address).map_err(|e| e.to_string())?;
        let mut config = ClientConfig::new(parsed);
        if config.address.scheme() == Scheme::Https {
            config.tls = Some(tls.build().map_err(|e| e.to_string())?);
        }
        config.timeout = TARGET_TIMEOUT;
        let client = Client::new(config).map_err(|e| e.to_string())?;
        Ok(Self { address: address.to_owned(), client })
    }
}

/// Sends a request of the joining protocol and takes the envelope's data.
async fn put(target: &JoinTarget, path: &str, body: &Value) -> Result<Map<String, Value>, Attempt> {
    let later = |error: &dyn std::fmt::Display| Attempt::Later(format!("{}: {error}", target.address));
    let body = Bytes::from(body.to_string());
    let response = target.client.request("PUT", path, Some(body), &[]).await.map_err(|e| later(&e))?;
    let Response { status, body, .. } = response;
    let unreadable = |_| later(&"the answer is not JSON; is this the API of a Keystead node?");
    let parsed: Value = serde_json::from_slice(&body).map_err(unreadable)?;
    if status.is_success() {
        return match parsed.get("data") {
            Some(Value::Object(data)) => Ok(data.clone()),
            _ => Err(later(&"the answer has no data")),
        };
    }
    let errors = parsed.get("errors").and_then(Value::as_array).cloned().unwrap_or_default();
    let errors: Vec<&str> = errors.iter().filter_map(Value::as_str).collect();
    let text = format!("{}: {}", target.address, errors.join("; "));
    // Another address may do better, and what a leader refuses today it may take when the reason has gone.
    Err(Attempt::Later(text))
}

// The leader's side.
impl Node {
    /// Hands out a challenge.
    pub(super) async fn issue_challenge(&self) -> Result<Map<String, Value>, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        self.keys.read().as_ref().ok_or(ApiError::Sealed)?;
        let config = self.seal_configs()?.pop().ok_or(ApiError::Sealed)?;
        metrics::counter!("keystead_join_challenges").increment(1);
        let data = json!({
            "challenge": BASE64.encode(self.challenges.issue(Instant::now())),
            "seal_config": BASE64.encode(config.encode()),
            "leader_id": format!("{:016x}", replica.incarnation()),
            "cluster_id": hex::encode(replica.directory().cluster_id),
        });
        Ok(data.as_object().cloned().unwrap_or_default())
    }

    /// Judges an answer and lets the node in.
    pub(super) async fn judge_answer(
        &self,
        body: Map<String, Value>,
    ) -> Result<Map<String, Value>, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let keys = self.keys.read().clone().ok_or(ApiError::Sealed)?;
        let invalid = || ApiError::invalid("invalid answer given");
        let challenge: [u8; 32] =
            bytes(&body, "challenge").and_then(|c| c.try_into().ok()).ok_or_else(invalid)?;
        // Another leader may have issued it, or it is old: a fresh one helps, so this is not a 400.
        let unknown = || ApiError::Busy("the challenge is unknown or too old; ask for another".into());
        if !self.challenges.is_good(&challenge, Instant::now()) {
            return Err(unknown());
        }
        let field = |name| text(&body, name).ok_or_else(invalid);
        let (node_id, cluster_addr, api_addr) =
            (field("server_id")?, field("cluster_addr")?, field("api_addr")?);
        let incarnation = u64::from_str_radix(field("incarnation")?, 16).map_err(|_| invalid())?;
        let csr = bytes(&body, "csr").ok_or_else(invalid)?;
        let brought = bytes(&body, "certificate").ok_or_else(invalid)?;
        let mac = bytes(&body, "mac").ok_or_else(invalid)?;
        let non_voter = body.get("non_voter").and_then(Value::as_bool).unwrap_or(false);
        let number = body.get("feature_level").and_then(Value::as_u64);
        let feature_level = number.and_then(|level| u32::try_from(level).ok()).ok_or_else(invalid)?;
        let plausible = !node_id.is_empty()
            && node_id.len() <= keystead_tls::peer::NODE_ID_MAX_BYTES
            && cluster_addr.len() <= 512
            && api_addr.len() <= 512;
        let leader_id = format!("{:016x}", replica.incarnation());
        let answer = Answer {
            challenge: &challenge,
            leader_id: &leader_id,
            node_id,
            incarnation,
            csr: &csr,
            certificate: &brought,
            cluster_addr,
            api_addr,
            non_voter,
            feature_level,
        };
        if !plausible || !answer.mac(&keys).verify(&mac) {
            metrics::counter!("keystead_join_false_answers").increment(1);
            static SAID: Seldom = Seldom::new();
            if let Some(times) = SAID.due() {
                tracing::warn!(times, "nodes gave false answers to join challenges");
            }
            return Err(invalid());
        }
        if !self.challenges.use_up(&challenge, Instant::now()) {
            return Err(unknown());
        }
        let authority = self.cluster_authority(&keys)?;
        let cluster_id = replica.directory().cluster_id;
        if matches!(&authority, records::ClusterAuthority::BuiltIn(ca) if ca.cluster_id().0 != cluster_id) {
            return Err(ApiError::Busy("the recovered cluster has no CA yet; try again in a moment".into()));
        }
        let name = PeerName { cluster_id: ClusterId(cluster_id), node_id: node_id.to_owned(), incarnation };
        let certificate = own_pki::certify(&authority, &csr, &brought, &name)?;
        let spki_sha256 = keystead_tls::peer_identity(&certificate).map_err(|_| invalid())?.spki_sha256;
        let member = DirectoryMember {
            incarnation,
            node_id: node_id.to_owned(),
            spki_sha256,
            cluster_addr: cluster_addr.to_owned(),
            api_addr: api_addr.to_owned(),
            voter: !non_voter,
            feature_level,
            joined_ms: replica.cluster_time_ms(),
        };
        let level = replica.directory().feature_level;
        if feature_level < level {
            return Err(ApiError::invalid(
                Refusal::TooOld { cluster: level, theirs: feature_level }.to_string(),
            ));
        }
        let directory = replica.admit(member).await.map_err(join_error)?;
        tracing::info!(node_id, "a node joins");
        let directory = directory.seal(|signed| Ok::<_, ApiError>(keys.directory_mac(signed)))?;
        let params = encode_params(&replica.params());
        let ca_certificate = authority.cert_der();
        let reply = Reply {
            challenge: &challenge,
            answer_mac: &mac,
            certificate: &certificate,
            ca_certificate,
            directory: &directory,
            params: &params,
        };
        let data = json!({
            "certificate": BASE64.encode(&certificate),
            "ca_certificate": BASE64.encode(ca_certificate),
            "directory": BASE64.encode(&directory),
            "params": BASE64.encode(&params),
            "mac": BASE64.encode(reply.mac(&keys).finish()),
        });
        Ok(data.as_object().cloned().unwrap_or_default())
    }

    /// The cluster's CA as the state has it; after a recovery, the former cluster's until there is another.
    pub(super) fn cluster_authority(&self, keys: &OpenKeys) -> Result<records::ClusterAuthority, ApiError> {
        let replica = self.replica().ok_or(ApiError::Sealed)?;
        let key = records::cluster_ca_key(keys.barrier())?;
        let record = replica
            .state()
            .get(&key)
            .map_err(|e| ApiError::internal("reading the cluster CA", &e))?
            .ok_or_else(|| ApiError::internal("reading the cluster CA", &"it is missing"))?;
        records::open_cluster_ca(keys.barrier(), &key, &record.value)
    }
}

/// What a refused joining or removal means to whoever asked.
pub fn join_error(error: JoinError) -> ApiError {
    match error {
        JoinError::NotLeader => ApiError::NoLeader,
        JoinError::InUse { .. }
        | JoinError::Collision
        | JoinError::Removed
        | JoinError::LastVoter
        | JoinError::LevelTooLow { .. }
        | JoinError::Invalid(_)
        | JoinError::Unsafe { .. } => ApiError::invalid(error.to_string()),
        JoinError::NotNonVoter | JoinError::NotVoter => ApiError::Refused(error.to_string()),
        JoinError::Propose(_) | JoinError::Pending { .. } => ApiError::Busy(error.to_string()),
        JoinError::Directory(_) => ApiError::internal("the directory", &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_25_a_challenge_is_good_once() {
        let challenges = Challenges::default();
        let now = Instant::now();
        let challenge = challenges.issue(now);
        assert!(challenges.is_good(&challenge, now));
        assert!(challenges.use_up(&challenge, now));
        assert!(!challenges.is_good(&challenge, now));
        assert!(!challenges.use_up(&challenge, now), "two answers at a time");
    }

    #[test]
    fn case_25_a_challenge_is_good_for_a_minute_and_then_forgotten() {
        let challenges = Challenges::default();
        let now = challenges.began + Duration::from_secs(3_600);
        let (early, late) = (challenges.issue(now), challenges.issue(now));
        assert!(challenges.is_good(&early, now + CHALLENGE_TTL - Duration::from_secs(1)));
        assert!(!challenges.is_good(&late, now + CHALLENGE_TTL));
        assert!(challenges.use_up(&early, now));
        assert!(challenges.use_up(&late, now + CHALLENGE_TTL));
        assert_eq!(challenges.used.lock().len(), 1);
    }

    #[test]
    fn a_challenge_of_another_process_or_with_another_bit_is_none() {
        let challenges = Challenges::default();
        let now = Instant::now();
        assert!(!challenges.is_good(&Challenges::default().issue(now), now));
        assert!(!challenges.is_good(&[0; 32], now));
        for bit in 0..256 {
            let mut challenge = challenges.issue(now);
            challenge[bit / 8] ^= 1 << (bit % 8);
            assert!(!challenges.is_good(&challenge, now), "bit {bit}");
        }
    }

    #[test]
    fn case_09_a_flood_of_challenges_takes_no_memory_and_spoils_none() {
        let challenges = Challenges::default();
        let now = Instant::now();
        let first = challenges.issue(now);
        let distinct: std::collections::HashSet<_> = (0..10_000).map(|_| challenges.issue(now)).collect();
        assert_eq!(distinct.len(), 10_000);
        assert!(challenges.used.lock().is_empty());
        assert!(challenges.is_good(&first, now));
        // Answers of key holders are bounded, too.
        for challenge in distinct {
            challenges.use_up(&challenge, now);
        }
        assert_eq!(challenges.used.lock().len(), MAX_USED);
    }

    #[test]
    fn parameters_survive_their_encoding_and_nothing_else_does() {
        let params = ClusterParams::scaled(2, 1 << 20);
        assert_eq!(decode_params(&encode_params(&params)), Some(params));
        assert_eq!(decode_params(&[0; 31]), None);
        assert_eq!(decode_params(&[0; 40]), None);
    }
}

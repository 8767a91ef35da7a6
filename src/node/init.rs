//! `sys/init`: a new vault, a new cluster, its first member.

use std::{path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keystead_raft::{
    Directory, DirectoryMember, Identity, ProposeError, ProposeOutcome, Replica, Replicated as _, VaultSide,
};
use keystead_storage::{
    Check, DataDir, RequestId, Txn, Write,
    datadir::{forget_promise, write_file_durably},
};
use keystead_tls::{ClusterCa, ClusterId, PeerName};
use zeroize::Zeroizing;

use super::{
    ClusterName, Node, OpenKeys, StartError, forget_enrolment, own_pki::Enrolled, records, shares::uuid_text,
};
use crate::{
    barrier::Keyring,
    core::{
        error::ApiError,
        initial_writes,
        node_ops::{InitRequest, InitResponse},
        token::random_token,
    },
    seal::{self, HandedOut, InitOutput, InitParams, PgpKey, SealKind, Share, UnattendedInitError},
    secret::{SecretString, random_array},
};

/// While this file is there, an initialisation has begun and nobody was handed a share: what it left is undone.
pub(super) const MARKER: &str = "initialising";
/// How long the first entry may be turned away.
const FIRST_ENTRY: Duration = Duration::from_secs(10);

/// Removes what an interrupted initialisation left.
pub fn undo_interrupted(dir: &DataDir) -> Result<(), StartError> {
    let data_dir = dir.path();
    let marker = data_dir.join(MARKER);
    if !marker.exists() {
        return Ok(());
    }
    tracing::warn!("an initialisation was interrupted before anybody was handed a share: it is undone");
    let io = |context: &str| {
        let context = format!("{context} in {}", data_dir.display());
        move |source| StartError::Io { context, source }
    };
    for name in ["log", "state", "snapshots"] {
        let path = data_dir.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(io("undoing an interrupted initialisation"))?;
            std::fs::create_dir(&path).map_err(io("undoing an interrupted initialisation"))?;
        }
    }
    let identity = data_dir.join("identity");
    if identity.exists() {
        std::fs::remove_file(identity).map_err(io("undoing an interrupted initialisation"))?;
    }
    forget_promise(dir)?;
    std::fs::remove_file(marker).map_err(io("undoing an interrupted initialisation"))
}

/// Removes the marker durably.
pub(super) fn unmark(data_dir: &Path) -> std::io::Result<()> {
    std::fs::remove_file(data_dir.join(MARKER))?;
    std::fs::File::open(data_dir)?.sync_all()
}

fn invalid_config(text: impl std::fmt::Display) -> ApiError {
    ApiError::invalid(format!("invalid seal configuration: {text}"))
}

/// Checks what the operator asked for, in Vault's order and words: unseal shares for a vault that people open, recovery
/// shares for one that `kind` opens by itself.
fn params(request: &InitRequest, kind: Option<SealKind>) -> Result<InitParams, ApiError> {
    let of_other_kind = match kind {
        None => [
            ("recovery_shares", request.recovery_shares > 0),
            ("recovery_threshold", request.recovery_threshold > 0),
            ("recovery_pgp_keys", !request.recovery_pgp_keys.is_empty()),
        ],
        Some(_) => [
            ("secret_shares", request.secret_shares > 0),
            ("secret_threshold", request.secret_threshold > 0),
            ("pgp_keys", !request.pgp_keys.is_empty()),
        ],
    };
    let given: Vec<_> = of_other_kind.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    if !given.is_empty() {
        let (fields, kind) = (given.join(","), kind.unwrap_or(SealKind::Shamir));
        return Err(ApiError::invalid(format!("parameters {fields} not applicable to seal type {kind}")));
    }
    let (shares, threshold) = match kind {
        None => (request.secret_shares, request.secret_threshold),
        Some(_) => (request.recovery_shares, request.recovery_threshold),
    };
    if kind.is_none() && (request.break_glass_shares > 0 || request.break_glass_threshold > 0) {
        let text =
            "break-glass shares are for a vault that its seals open: the shares of this one open it anyway";
        return Err(invalid_config(text));
    }
    numbers(shares, threshold)
}

/// Shares and how many of them are needed, in Vault's order and words.
pub(super) fn numbers(shares: u64, threshold: u64) -> Result<InitParams, ApiError> {
    if shares == 0 {
        return Err(invalid_config("shares must be at least one"));
    }
    if threshold == 0 {
        return Err(invalid_config("threshold must be at least one"));
    }
    let shares = u8::try_from(shares).map_err(|_| invalid_config("shares must be less than 256"))?;
    let threshold = u8::try_from(threshold)
        .ok()
        .filter(|threshold| *threshold <= shares)
        .ok_or_else(|| invalid_config("threshold cannot be larger than shares"))?;
    if threshold == 1 && shares > 1 {
        return Err(invalid_config("threshold must be greater than one for multiple shares"));
    }
    Ok(InitParams { shares, threshold, now_ms: keystead_raft::clock::wall_ms() })
}

/// Proposes the first entry. A leader that has only just won may turn it away for a moment.
pub(super) async fn first_entry(replica: &Replica, txn: Txn) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + FIRST_ENTRY;
    loop {
        match replica.propose(txn.clone()).await {
            Ok(ProposeOutcome::Applied(_)) => return Ok(()),
            Err(ProposeError::NotLeader) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(other) => return Err(format!("{other:?}")),
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// For whom what is handed out is encrypted.
struct Holders {
    shares: Vec<PgpKey>,
    break_glass: Vec<PgpKey>,
    root_token: Option<PgpKey>,
}

impl Holders {
    fn of(request: &InitRequest, kind: Option<SealKind>) -> Result<Self, ApiError> {
        let (keys, shares) = match kind {
            None => (&request.pgp_keys, request.secret_shares),
            Some(_) => (&request.recovery_pgp_keys, request.recovery_shares),
        };
        let root_token = match request.root_token_pgp_key.as_str() {
            "" => None,
            key => Some(PgpKey::parse(key).map_err(invalid_config)?),
        };
        Ok(Self {
            shares: seal::holders(keys, shares).map_err(invalid_config)?,
            break_glass: seal::holders(&request.break_glass_pgp_keys, request.break_glass_shares)
                .map_err(invalid_config)?,
            root_token,
        })
    }

    fn root_token(&self, token: SecretString) -> Result<SecretString, ApiError> {
        match &self.root_token {
            None => Ok(token),
            Some(key) => {
                let message = key.encrypt(token.expose()).map_err(|e| encrypting(&e))?;
                Ok(SecretString::new(STANDARD.encode(message)))
            }
        }
    }
}

/// The texts of shares, as they are or each encrypted for its holder.
pub(super) fn hand_out(shares: &[Share], holders: &[PgpKey]) -> Result<HandedOut, ApiError> {
    HandedOut::new(shares, holders).map_err(|e| encrypting(&e))
}

/// What failed when something was encrypted.
pub(super) fn encrypting(error: &dyn std::fmt::Display) -> ApiError {
    ApiError::internal("encrypting for a PGP key", error)
}

/// Everything of a new cluster that is drawn before anything is written.
pub(super) struct Founding {
    pub identity: Identity,
    /// The built-in CA's key; empty for a CA of the operator's.
    pub ca_key: Zeroizing<Vec<u8>>,
    pub directory: Directory,
    pub cluster: ClusterName,
}

impl Node {
    /// Initialises the vault here.
    ///
    /// # Errors
    /// 400 when it is initialised already, or is about to be: here, or by a node that this one would join.
    pub(super) async fn initialise(&self, request: InitRequest) -> Result<InitResponse, ApiError> {
        let _one = self.lifecycle.lock().await;
        let seals = self.settings.seals.enabled();
        let kind = seals.first().map(|seal| seal.kind());
        let params = params(&request, kind)?;
        let holders = Holders::of(&request, kind)?;
        if let Some(reason) = self.latch_reason() {
            return Err(ApiError::Internal(format!("this node has stopped serving: {reason}")));
        }
        if self.replica().is_some() || !self.seal_configs()?.is_empty() {
            return Err(ApiError::invalid("Vault is already initialized"));
        }
        if let Some(enrolled) = self.joining.lock().enrolled() {
            enrolled.may_found()?;
        }
        let claimed = self.claim_vault().await?;
        let (output, break_glass) = match kind {
            None => (seal::init(&params).map_err(invalid_config)?, Vec::new()),
            Some(_) => {
                // Of two that made a key on one token at the same moment, neither might get through.
                claimed.commit().await?;
                self.wrapped_by_seals(&params, &request).await?
            }
        };
        let handed_out = hand_out(&output.shares, &holders.shares)?;
        let break_glass = hand_out(&break_glass, &holders.break_glass)?;
        let founding = self.found().map_err(|e| ApiError::internal("founding a cluster", &e))?;
        // The seals may have taken long; from here on it goes quickly, and nothing has been written yet.
        claimed.commit().await?;
        let dir = self.data_dir();
        let failed = |e: &dyn std::fmt::Display| {
            ApiError::Internal(format!("initialisation failed: {e}; start this node again, which undoes it"))
        };
        write_file_durably(&dir.join(MARKER), b"", 0o600).map_err(|e| failed(&e))?;
        let result = self.establish(&params, output, founding).await.and_then(|mut response| {
            response.root_token = holders.root_token(response.root_token)?;
            Ok(response)
        });
        self.provisional.write().take();
        match result {
            Ok(mut response) => {
                response.break_glass_hex = break_glass.hex;
                response.break_glass_base64 = break_glass.base64;
                response.keys_hex = handed_out.hex;
                response.keys_base64 = handed_out.base64;
                // Before anybody sees a share the marker must be gone for good, a power cut included.
                unmark(&dir).map_err(|e| failed(&e))?;
                claimed.keep();
                forget_enrolment(&dir);
                tracing::info!(shares = params.shares, threshold = params.threshold, "vault initialised");
                Ok(response)
            }
            Err(error) => {
                let replica = self.replica.write().take();
                if let Some(replica) = replica {
                    replica.shutdown().await;
                }
                // The marker stays: the next start undoes what is there. Until then nothing is built on it.
                VaultSide::latched(self, "an initialisation failed; start this node again, which undoes it");
                Err(failed(&error))
            }
        }
    }

    /// A new root key, wrapped by every seal that works.
    async fn wrapped_by_seals(
        &self,
        params: &InitParams,
        request: &InitRequest,
    ) -> Result<(InitOutput, Vec<Share>), ApiError> {
        let break_glass = match (request.break_glass_shares, request.break_glass_threshold) {
            (0, 0) => None,
            (shares, threshold) => Some(numbers(shares, threshold)?),
        };
        let seals = &self.settings.seals;
        let made =
            seal::init_unattended(params, break_glass.as_ref(), &seals.enabled()).await.map_err(|error| {
                match error {
                    UnattendedInitError::Shares(error) => invalid_config(error),
                    UnattendedInitError::NoSeal(_) => {
                        ApiError::Internal(format!("failed to initialize: {error}"))
                    }
                }
            })?;
        for seal in seals.enabled() {
            let fault = made.missing.iter().find(|(name, _)| name == seal.name());
            seals.note(&*seal, fault.map_or(Ok(()), |(_, fault)| Err(fault.clone())));
        }
        Ok((made.output, made.break_glass))
    }

    pub(super) fn found(&self) -> Result<Founding, keystead_tls::Error> {
        let (incarnation, key, enrolled) = self.joining.lock().credentials();
        let node_id = self.settings.node_id.clone();
        let (cluster_id, cert, ca_cert, ca_key) = match enrolled {
            Some(Enrolled { cluster_id, certificate, .. }) => {
                (cluster_id.0, certificate.cert_der, certificate.ca_cert_der, Zeroizing::default())
            }
            None => {
                let cluster_id: [u8; 16] = random_array();
                let ca = ClusterCa::generate(ClusterId(cluster_id))?;
                let name =
                    PeerName { cluster_id: ClusterId(cluster_id), node_id: node_id.clone(), incarnation };
                let cert = ca.sign_csr(&key.csr_der(&node_id, incarnation)?, &name)?;
                (cluster_id, cert, ca.cert_der().to_vec(), ca.key_pkcs8_der())
            }
        };
        let member = DirectoryMember {
            incarnation,
            node_id: node_id.clone(),
            spki_sha256: key.spki_sha256(),
            cluster_addr: self.settings.cluster_addr.clone(),
            api_addr: self.settings.api_addr.clone(),
            voter: true,
            feature_level: super::feature_level(),
            joined_ms: keystead_raft::clock::wall_ms(),
        };
        let directory = Directory {
            cluster_id,
            epoch: 1,
            members: vec![member],
            feature_level: super::feature_level(),
            ..Directory::default()
        };
        let params = self.settings.params;
        let identity = Identity::new(cluster_id, 1, node_id, incarnation, &key, cert, ca_cert, params);
        let name = self.settings.cluster_name.clone();
        let name = name.unwrap_or_else(|| format!("vault-cluster-{}", hex::encode(random_array::<4>())));
        let cluster = ClusterName { id: uuid_text(&cluster_id), name };
        Ok(Founding { identity, ca_key, directory, cluster })
    }

    /// Writes the vault's first entry: all of it, or nothing.
    async fn establish(
        &self,
        params: &InitParams,
        output: InitOutput,
        founding: Founding,
    ) -> Result<InitResponse, ApiError> {
        let InitOutput { seal_config, root_key, .. } = output;
        let recovery = seal_config.recovery.is_some();
        let failed = |context: &'static str| move |e: &dyn std::fmt::Display| ApiError::internal(context, e);
        let keyring = Keyring::generate(params.now_ms);
        let sealed_keyring = keyring.seal(&root_key, seal_config.vault_id, seal_config.root_generation);
        let keys = Arc::new(OpenKeys::new(&seal_config, root_key, keyring, &founding.cluster));
        *self.provisional.write() = Some(keys.clone());

        let root_token = self.settings.dev_root_token.clone().unwrap_or_else(random_token);
        let writes =
            self.first_writes(params, &keys, &seal_config.encode(), sealed_keyring, &founding, &root_token)?;
        founding.identity.save(&self.data_dir()).map_err(|e| failed("saving the identity")(&e))?;
        let identity = Arc::new(founding.identity);
        let replica = self
            .start_replica(identity, true, Some(founding.directory))
            .await
            .map_err(|e| failed("starting replication")(&e))?;
        replica.bootstrap().await.map_err(|e| failed("founding the cluster")(&e))?;
        let txn = Txn {
            request_id: RequestId([0; 16]),
            checks: vec![Check::Record { key: records::seal_config_key(), version: None }],
            writes,
            ..Txn::default()
        };
        first_entry(&replica, txn).await.map_err(|e| failed("writing the first entry")(&e))?;
        Ok(InitResponse {
            recovery,
            keys_hex: Vec::new(),
            keys_base64: Vec::new(),
            break_glass_hex: Vec::new(),
            break_glass_base64: Vec::new(),
            root_token,
        })
    }

    fn first_writes(
        &self,
        params: &InitParams,
        keys: &OpenKeys,
        seal_config: &[u8],
        keyring: Vec<u8>,
        founding: &Founding,
        root_token: &SecretString,
    ) -> Result<Vec<Write>, ApiError> {
        let mut writes = cluster_writes(keys, seal_config, keyring, founding)?;
        writes.extend(initial_writes(keys.unsealed(), root_token, params.now_ms, self.settings.dev_mounts)?);
        Ok(writes)
    }
}

/// The records that make a cluster the one that it is.
pub(super) fn cluster_writes(
    keys: &OpenKeys,
    seal_config: &[u8],
    keyring: Vec<u8>,
    founding: &Founding,
) -> Result<Vec<Write>, ApiError> {
    let ca_key = records::cluster_ca_key(keys.barrier())?;
    let ca =
        records::seal_cluster_ca(keys.barrier(), &ca_key, &founding.identity.ca_cert_der, &founding.ca_key);
    let directory = founding.directory.seal(|signed| Ok::<_, ApiError>(keys.directory_mac(signed)))?;
    let put = |key, value: Vec<u8>| Write::Put { key, value: value.into() };
    Ok(vec![
        put(records::seal_config_key(), seal_config.to_vec()),
        put(records::keyring_key(), keyring),
        put(records::cluster_key(), records::encode_cluster(&founding.cluster.name)),
        Write::Put { key: records::directory_key(), value: directory },
        put(ca_key, ca),
    ])
}

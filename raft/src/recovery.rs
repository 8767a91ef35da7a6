//! Recovery from a quorum that is lost for good: one survivor becomes the only voter of a new cluster.
//!
//! It works on the data directory of a server that is not running. The survivor's whole durable log counts as
//! committed; cluster id and epoch are new, the vault stays. What is to be done is written down first (the file
//! `recovery`), and every step after that may be repeated, the identity being the last one: whatever interrupts it,
//! the node either has not been recovered, or is recovered by the next attempt or start, never in between.
//!
//! The log ends in a purge: entries of the old cluster are in the state then, and whoever joins is sent the state,
//! never entries that it would judge by the new cluster's id.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::mpsc,
};

use bytes::Bytes;
use keystead_storage::{
    ApplyEntry, ApplyOp, DataDir, LogId, LogRecord, RaftLog, SealedState, StorageError, Vote,
    datadir::{read_file, write_file_durably},
    error::REBUILD,
};
use keystead_tls::{ClusterCa, ClusterId, PeerName};

use crate::{
    codec::DecodeError,
    directory::Directory,
    entry::{self, Payload},
    identity::{Identity, IdentityError, framed, unframed},
    machine::Place,
    types::{Member, RaftMembership},
};

const FILE: &str = "recovery";
const FORMAT: u8 = 1;
const MAX_BYTES: u64 = 1 << 20;
/// Bytes of the log that are read and applied at once.
const BATCH_BYTES: usize = 4 << 20;

/// Why a node cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The disk, or what is on it.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The key or the certificate.
    #[error("the node's identity cannot be used: {0}")]
    Tls(#[from] keystead_tls::Error),
    /// The directory holds no member of a cluster.
    #[error("{path} holds no member of a cluster: there is nothing to recover")]
    NoMember {
        /// The data directory.
        path: PathBuf,
    },
    /// What was begun cannot be read.
    #[error("{path} is damaged ({source}); remove it and run the recovery again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// The operating system.
    #[error("cannot remove {path}: {source}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A member, as a survivor knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownMember {
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id.
    pub incarnation: u64,
    /// `host:port` of its cluster port; empty if the directory does not have it.
    pub cluster_addr: String,
    /// Whether it votes.
    pub voter: bool,
}

/// What a data directory holds.
#[derive(Debug, Clone)]
pub struct Holding {
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id.
    pub incarnation: u64,
    /// The set of nodes it belongs to.
    pub cluster_id: [u8; 16],
    /// Its epoch.
    pub epoch: u64,
    /// Term and index of the last durable entry of the log.
    pub last: (u64, u64),
    /// Index of the last entry that the state on the disk holds.
    pub applied: u64,
    /// The members of the newest membership in log or state.
    pub members: Vec<KnownMember>,
    /// Whether a CA of the operator's signed its certificate.
    pub own_ca: bool,
}

/// What a recovery is about to make of a node; written down before anything else is.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
struct Plan {
    from_cluster: [u8; 16],
    cluster_id: [u8; 16],
    epoch: u64,
    /// Term and index of the last entry of the old cluster.
    last: (u64, u64),
    /// The term of the membership that follows it.
    term: u64,
}

/// What a recovery has made of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The new cluster.
    pub cluster_id: [u8; 16],
    /// Its epoch.
    pub epoch: u64,
}

impl Plan {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join(FILE)
    }

    fn load(data_dir: &Path) -> Result<Option<Self>, RecoveryError> {
        let path = Self::path(data_dir);
        let Some(bytes) = read_file(&path, MAX_BYTES)? else { return Ok(None) };
        let plan = unframed(&bytes, FORMAT, "format of a recovery");
        plan.map(Some).map_err(|source| RecoveryError::Damaged { path, source })
    }

    fn remove(data_dir: &Path) -> Result<(), RecoveryError> {
        let path = Self::path(data_dir);
        let removed = std::fs::remove_file(&path)
            .and_then(|()| std::fs::File::open(data_dir))
            .and_then(|dir| dir.sync_all());
        removed.map_err(|source| RecoveryError::Remove { path, source })
    }
}

/// Whether a recovery was begun here and not finished.
pub fn is_pending(data_dir: &Path) -> bool {
    Plan::path(data_dir).exists()
}

fn identity_of(dir: &DataDir) -> Result<Identity, RecoveryError> {
    let identity = Identity::load(dir.path())?;
    identity.ok_or_else(|| RecoveryError::NoMember { path: dir.path().to_owned() })
}

/// Looks at a data directory; the log and the state are verified as at a start. `look` is shown the state.
///
/// # Errors
/// [`RecoveryError::NoMember`], and those of damage.
pub fn inspect(dir: &DataDir, look: impl FnOnce(&dyn SealedState)) -> Result<Holding, RecoveryError> {
    let identity = identity_of(dir)?;
    let (log, state) = keystead_storage::open(dir)?;
    look(&state);
    let last = log.bounds().last.or(state.applied().log_id).unwrap_or_default();
    let membership = newest_membership(&log, &state)?;
    let directory = match state.get(&Directory::key())? {
        Some(record) => Directory::open(&record.value).map(|(directory, _)| directory).unwrap_or_default(),
        None => Directory::default(),
    };
    let members = membership.iter().flat_map(|membership| {
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let directory = &directory;
        membership.nodes().map(move |(id, node)| KnownMember {
            node_id: node.node_id.clone(),
            incarnation: *id,
            cluster_addr: directory.member(*id).map(|m| m.cluster_addr.clone()).unwrap_or_default(),
            voter: voters.contains(id),
        })
    });
    Ok(Holding {
        node_id: identity.node_id.clone(),
        incarnation: identity.incarnation,
        cluster_id: identity.cluster_id,
        epoch: identity.epoch,
        last: (last.term, last.index),
        applied: state.applied().log_id.map_or(0, |id| id.index),
        members: members.collect(),
        own_ca: keystead_tls::own_ca::is_built_in(&identity.ca_cert_der).is_ok_and(|built_in| !built_in),
    })
}

fn damaged(id: &LogId, error: impl std::fmt::Display) -> StorageError {
    StorageError::Damaged { what: format!("log entry {id}: {error}"), remedy: REBUILD.into() }
}

/// Hands every entry after the applied one to `each`, in order, in batches.
fn after_applied(
    log: &dyn RaftLog,
    applied: u64,
    until: u64,
    mut each: impl FnMut(Vec<LogRecord>) -> Result<(), RecoveryError>,
) -> Result<(), RecoveryError> {
    let mut next = applied.max(log.bounds().purged.map_or(0, |id| id.index)) + 1;
    while next <= until {
        let records = log.read(next, until + 1, BATCH_BYTES)?;
        let Some(last) = records.last() else {
            let what = format!("log entry {next} is missing");
            return Err(StorageError::Damaged { what, remedy: REBUILD.into() }.into());
        };
        next = last.log_id.index + 1;
        each(records)?;
    }
    Ok(())
}

fn newest_membership(
    log: &dyn RaftLog,
    state: &dyn SealedState,
) -> Result<Option<RaftMembership>, RecoveryError> {
    let applied = state.applied();
    let mut newest = None;
    if let Some((id, payload)) = &applied.membership {
        newest = membership_of(id, payload)?;
    }
    let end = log.bounds().last.map_or(0, |id| id.index);
    after_applied(log, applied.log_id.map_or(0, |id| id.index), end, |records| {
        for record in records {
            if let Some(membership) = membership_of(&record.log_id, &record.payload)? {
                newest = Some(membership);
            }
        }
        Ok(())
    })?;
    Ok(newest)
}

fn membership_of(id: &LogId, payload: &Bytes) -> Result<Option<RaftMembership>, RecoveryError> {
    if entry::is_command(payload) {
        return Ok(None);
    }
    match entry::decode(payload).map_err(|e| damaged(id, e))? {
        Payload::Membership(membership) => Ok(Some(membership)),
        _ => Ok(None),
    }
}

/// Recovers a node: what was begun before is finished.
///
/// # Errors
/// Those of damage and of the disk; it may be run again.
pub fn recover(dir: &DataDir) -> Result<Recovered, RecoveryError> {
    if let Some(recovered) = finish(dir)? {
        return Ok(recovered);
    }
    let identity = identity_of(dir)?;
    let plan = {
        let (log, state) = keystead_storage::open(dir)?;
        let last = log.bounds().last.or(state.applied().log_id).unwrap_or_default();
        let voted = log.vote().map_or(0, |vote| vote.term);
        let mut cluster_id = [0; 16];
        getrandom::fill(&mut cluster_id).expect("the operating system's generator works");
        Plan {
            from_cluster: identity.cluster_id,
            cluster_id,
            epoch: identity.epoch + 1,
            last: (last.term, last.index),
            term: voted.max(last.term) + 1,
        }
    };
    write_file_durably(&Plan::path(dir.path()), &framed(&plan, FORMAT), 0o600)?;
    carry_out(dir, &identity, &plan)
}

/// Finishes a recovery that was interrupted, if there is one.
///
/// # Errors
/// Those of damage and of the disk; it may be run again.
pub fn finish(dir: &DataDir) -> Result<Option<Recovered>, RecoveryError> {
    let Some(plan) = Plan::load(dir.path())? else { return Ok(None) };
    let identity = identity_of(dir)?;
    carry_out(dir, &identity, &plan).map(Some)
}

fn carry_out(dir: &DataDir, identity: &Identity, plan: &Plan) -> Result<Recovered, RecoveryError> {
    if identity.cluster_id != plan.cluster_id {
        bring_to_an_end(dir, identity, plan)?;
        renewed(identity, plan)?.save(dir.path())?;
    }
    Plan::remove(dir.path())?;
    Ok(Recovered { cluster_id: plan.cluster_id, epoch: plan.epoch })
}

/// Applies the old cluster's log to its end and makes this node the only voter of what follows.
fn bring_to_an_end(dir: &DataDir, identity: &Identity, plan: &Plan) -> Result<(), RecoveryError> {
    let (log, state) = keystead_storage::open(dir)?;
    let place = Place { cluster_id: plan.from_cluster, epoch: plan.epoch - 1 };
    let applied = state.applied().log_id.map_or(0, |id| id.index);
    after_applied(&log, applied, plan.last.1, |records| {
        let entries = records.into_iter().map(|record| judged(place, record));
        state.apply(entries.collect::<Result<_, _>>()?)?;
        Ok(())
    })?;
    waited(|done| state.flush(done))?;
    let member = Member { node_id: identity.node_id.clone() };
    let only = BTreeSet::from([identity.incarnation]);
    let membership = RaftMembership::new(vec![only], BTreeMap::from([(identity.incarnation, member)]))
        .map_err(|e| damaged(&LogId::default(), e))?;
    let log_id = LogId { term: plan.term, node: 0, index: plan.last.1 + 1 };
    let payload = entry::encode_membership(&membership);
    if log.bounds().last.is_none_or(|last| last.index <= plan.last.1) {
        let vote = Vote { term: plan.term, node: identity.incarnation, committed: false };
        waited(|done| log.save_vote(vote, done))?;
        let record = LogRecord { log_id, payload: payload.clone() };
        waited(|done| log.append(vec![record], done))?;
    }
    if state.applied().log_id.is_none_or(|id| id.index < log_id.index) {
        state.apply(vec![ApplyEntry { log_id, op: ApplyOp::Membership(payload) }])?;
    }
    waited(|done| state.flush(done))?;
    waited(|done| log.purge(LogId { term: plan.last.0, node: 0, index: plan.last.1 }, done))?;
    Ok(())
}

/// What an entry of the old cluster asks of the state. Tags need keys, so they are not judged here, as on any sealed
/// node.
fn judged(place: Place, record: LogRecord) -> Result<ApplyEntry, StorageError> {
    let LogRecord { log_id, payload } = record;
    let op = match entry::decode(&payload).map_err(|e| damaged(&log_id, e))? {
        Payload::Blank => ApplyOp::Blank,
        Payload::Membership(_) => ApplyOp::Membership(payload),
        Payload::Command { header, body, .. } if place.is_of(&header, &log_id) => {
            ApplyOp::Command(entry::to_command(&header, body))
        }
        Payload::Command { .. } => ApplyOp::NoOp,
    };
    Ok(ApplyEntry { log_id, op })
}

fn waited(start: impl FnOnce(keystead_storage::Done)) -> Result<(), StorageError> {
    let (sent, done) = mpsc::channel();
    start(Box::new(move |result| {
        // Nobody but the line below waits.
        drop(sent.send(result));
    }));
    done.recv().unwrap_or_else(|_| Err(StorageError::Latched { first: "a storage thread has ended".into() }))
}

/// The identity in the new cluster, by a CA whose key nobody keeps: the real one's is sealed state, so the first open
/// leader makes it.
fn renewed(identity: &Identity, plan: &Plan) -> Result<Identity, RecoveryError> {
    let key = identity.key()?;
    let (node_id, incarnation) = (identity.node_id.clone(), identity.incarnation);
    let cluster_id = ClusterId(plan.cluster_id);
    let ca = ClusterCa::generate(cluster_id)?;
    let name = PeerName { cluster_id, node_id: node_id.clone(), incarnation };
    let cert = ca.sign_csr(&key.csr_der(&node_id, incarnation)?, &name)?;
    let ca_cert = ca.cert_der().to_vec();
    let (id, epoch, params) = (plan.cluster_id, plan.epoch, identity.params);
    let mut renewed = Identity::new(id, epoch, node_id, incarnation, &key, cert, ca_cert, params);
    renewed.stand_in_ca = true;
    Ok(renewed)
}

#[cfg(test)]
mod tests {
    use keystead_tls::NodeKey;

    use super::*;
    use crate::identity::ClusterParams;

    fn membership(ids: &[u64]) -> Bytes {
        let nodes: BTreeMap<u64, Member> =
            ids.iter().map(|id| (*id, Member { node_id: format!("n{id}") })).collect();
        entry::encode_membership(&RaftMembership::new(vec![ids.iter().copied().collect()], nodes).unwrap())
    }

    /// A member of three with five entries in its log, of which the state has applied two.
    fn survivor(dir: &DataDir) {
        let key = NodeKey::generate().unwrap();
        let params = ClusterParams::scaled(1, 1 << 20);
        Identity::new([7; 16], 4, "n1".into(), 1, &key, vec![1; 40], vec![2; 40], params)
            .save(dir.path())
            .unwrap();
        let (log, state) = keystead_storage::open(dir).unwrap();
        let payload = |index| if index == 1 { membership(&[1, 2, 3]) } else { entry::encode_blank() };
        let id = |index| LogId { term: 2, node: 0, index };
        let records = (1..=5).map(|index| LogRecord { log_id: id(index), payload: payload(index) });
        waited(|done| log.save_vote(Vote { term: 3, node: 2, committed: true }, done)).unwrap();
        waited(|done| log.append(records.collect(), done)).unwrap();
        let ops = [ApplyOp::Membership(payload(1)), ApplyOp::Blank];
        let entries = (1..).zip(ops).map(|(index, op)| ApplyEntry { log_id: id(index), op });
        state.apply(entries.collect()).unwrap();
        waited(|done| state.flush(done)).unwrap();
    }

    fn check(dir: &DataDir, recovered: Recovered) {
        assert_eq!(recovered.epoch, 5);
        let identity = Identity::load(dir.path()).unwrap().unwrap();
        assert_eq!((identity.cluster_id, identity.epoch), (recovered.cluster_id, 5));
        assert!(identity.stand_in_ca && identity.incarnation == 1 && !is_pending(dir.path()));
        let held = inspect(dir, |_| ()).unwrap();
        assert_eq!((held.last, held.applied), ((4, 6), 6));
        let voters: Vec<_> = held.members.iter().map(|m| (m.incarnation, m.voter)).collect();
        assert_eq!(voters, [(1, true)]);
        let (log, _) = keystead_storage::open(dir).unwrap();
        assert_eq!(log.bounds().purged.map(|id| id.index), Some(5));
    }

    #[test]
    fn a_survivor_becomes_the_only_voter_with_its_whole_log() {
        let base = tempfile::tempdir().unwrap();
        let dir = DataDir::open(base.path()).unwrap();
        survivor(&dir);
        let held = inspect(&dir, |_| ()).unwrap();
        assert_eq!((held.last, held.applied, held.members.len()), ((2, 5), 2, 3));
        let recovered = recover(&dir).unwrap();
        assert_ne!(recovered.cluster_id, [7; 16]);
        check(&dir, recovered);
        assert_eq!(finish(&dir).unwrap(), None);
    }

    #[test]
    fn an_interrupted_recovery_goes_on_from_every_step() {
        for step in 0..3 {
            let base = tempfile::tempdir().unwrap();
            let dir = DataDir::open(base.path()).unwrap();
            survivor(&dir);
            let plan = Plan { from_cluster: [7; 16], cluster_id: [8; 16], epoch: 5, last: (2, 5), term: 4 };
            write_file_durably(&Plan::path(dir.path()), &framed(&plan, FORMAT), 0o600).unwrap();
            let identity = identity_of(&dir).unwrap();
            if step > 0 {
                bring_to_an_end(&dir, &identity, &plan).unwrap();
            }
            if step > 1 {
                renewed(&identity, &plan).unwrap().save(dir.path()).unwrap();
            }
            let recovered = finish(&dir).unwrap().expect("it was pending");
            assert_eq!(recovered.cluster_id, [8; 16], "step {step}");
            check(&dir, recovered);
        }
    }

    #[test]
    fn a_directory_without_a_member_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = DataDir::open(base.path()).unwrap();
        assert!(matches!(recover(&dir), Err(RecoveryError::NoMember { .. })));
        std::fs::write(Plan::path(dir.path()), [1; 30]).unwrap();
        assert!(matches!(recover(&dir), Err(RecoveryError::Damaged { .. })));
    }
}

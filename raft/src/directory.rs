//! The directory: who is in the cluster, with which key, at which address, and who is out for good.
//!
//! It is one clear record of the replicated state, so that sealed nodes can read it, with a MAC under
//! `K_directory`, so that open nodes notice an edit. Raft's membership follows it: the leader reconciles the
//! one to the other (see [`crate::membership`]).

use std::sync::Arc;

use bytes::Bytes;
use keystead_storage::RecordKey;
use parking_lot::RwLock;

use crate::{
    autopilot::AutopilotConfig,
    codec::{self, DecodeError},
    vault_side::VaultSide,
};

/// The record that holds the directory.
pub const DIRECTORY_RECORD: &str = "directory";
const FORMAT: u8 = 3;
/// Removed incarnations that are remembered; older ones fall out, for their certificates name an id that is
/// random and never reused.
const TOMBSTONES: usize = 4096;

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct DirectoryMember {
    /// The Raft id: one incarnation of one node's data.
    pub incarnation: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// SHA-256 of the public key of its cluster certificate.
    pub spki_sha256: [u8; 32],
    /// `host:port` of its cluster port.
    pub cluster_addr: String,
    /// Base URL of its API.
    pub api_addr: String,
    /// Whether it shall vote.
    pub voter: bool,
    /// What its release can do.
    pub feature_level: u32,
    /// Cluster time of joining, in milliseconds since the Unix epoch.
    pub joined_ms: u64,
}

/// The directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Directory {
    /// The set of nodes this is the directory of.
    pub cluster_id: [u8; 16],
    /// Raised by a recovery from lost quorum.
    pub epoch: u64,
    /// The members, in the order of joining.
    pub members: Vec<DirectoryMember>,
    /// Incarnations that may never come back.
    pub tombstones: Vec<u64>,
    /// How the leader looks after the members.
    pub autopilot: AutopilotConfig,
    /// What every member can do: nothing newer is proposed. It is never lowered.
    pub feature_level: u32,
    /// The sets of nodes that this one came from by recoveries from lost quorum, the oldest first.
    pub ancestors: Vec<[u8; 16]>,
}

impl Directory {
    /// The record's key.
    pub fn key() -> RecordKey {
        RecordKey::clear(DIRECTORY_RECORD).expect("the name is a valid record name")
    }

    /// The directory as it counts in a cluster: one from before a recovery has `survivor` as its only member there,
    /// and the others are out for good.
    #[must_use]
    pub fn of_cluster(mut self, cluster_id: [u8; 16], epoch: u64, survivor: u64) -> Self {
        if self.cluster_id == cluster_id {
            return self;
        }
        let others: Vec<u64> = self.members.iter().map(|member| member.incarnation).collect();
        for other in others.into_iter().filter(|other| *other != survivor) {
            self.remove(other);
        }
        if let Some(member) = self.members.first_mut() {
            member.voter = true;
        }
        self.ancestors.push(std::mem::replace(&mut self.cluster_id, cluster_id));
        self.epoch = epoch;
        self
    }

    /// The member of an incarnation.
    pub fn member(&self, incarnation: u64) -> Option<&DirectoryMember> {
        self.members.iter().find(|member| member.incarnation == incarnation)
    }

    /// The member at a place.
    pub fn by_node_id(&self, node_id: &str) -> Option<&DirectoryMember> {
        self.members.iter().find(|member| member.node_id == node_id)
    }

    /// Whether an incarnation was removed.
    pub fn is_tombstoned(&self, incarnation: u64) -> bool {
        self.tombstones.contains(&incarnation)
    }

    /// Takes a member out and remembers that its incarnation is gone. `false` if there was none.
    pub fn remove(&mut self, incarnation: u64) -> bool {
        let before = self.members.len();
        self.members.retain(|member| member.incarnation != incarnation);
        if self.members.len() == before {
            return false;
        }
        self.tombstones.push(incarnation);
        if self.tombstones.len() > TOMBSTONES {
            self.tombstones.remove(0);
        }
        true
    }

    /// The record's bytes: `format[1] mac[32] body`. `mac` gets format and body.
    pub fn seal<E>(&self, mac: impl FnOnce(&[u8]) -> Result<[u8; 32], E>) -> Result<Bytes, E> {
        let signed = self.signed();
        let mut out = vec![FORMAT];
        out.extend_from_slice(&mac(&signed)?);
        out.extend_from_slice(&signed[1..]);
        Ok(out.into())
    }

    fn signed(&self) -> Vec<u8> {
        let mut signed = vec![FORMAT];
        signed.extend_from_slice(&codec::encode(self));
        signed
    }

    /// Reads the record; the MAC is returned for whoever can judge it.
    pub fn open(record: &[u8]) -> Result<(Self, [u8; 32]), DecodeError> {
        let (&format, rest) = record.split_first().ok_or(DecodeError::Short)?;
        if format != FORMAT {
            return Err(DecodeError::Unknown("directory format", u64::from(format)));
        }
        let (mac, body) = rest.split_first_chunk::<32>().ok_or(DecodeError::Short)?;
        Ok((codec::decode(body)?, *mac))
    }

    /// Whether `mac` is right; `None` while sealed.
    pub fn verify(&self, mac: &[u8; 32], vault: &dyn VaultSide) -> Option<bool> {
        use subtle::ConstantTimeEq as _;
        vault.directory_mac(&self.signed()).map(|expected| expected.ct_eq(mac).into())
    }
}

/// The directory as it stands, for hot paths.
#[derive(Default)]
pub struct DirectoryCache(RwLock<Arc<Directory>>);

impl DirectoryCache {
    /// The directory now.
    pub fn current(&self) -> Arc<Directory> {
        self.0.read().clone()
    }

    /// Takes a newer one.
    pub fn set(&self, directory: Directory) {
        *self.0.write() = Arc::new(directory);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Directory {
        let member = DirectoryMember {
            incarnation: 11,
            node_id: "n1".into(),
            spki_sha256: [1; 32],
            cluster_addr: "127.0.0.1:8201".into(),
            api_addr: "https://127.0.0.1:8200".into(),
            voter: true,
            feature_level: 1,
            joined_ms: 5,
        };
        Directory {
            cluster_id: [9; 16],
            epoch: 1,
            members: vec![member],
            tombstones: vec![3],
            feature_level: 1,
            ..Directory::default()
        }
    }

    #[test]
    fn a_directory_reads_back_with_its_mac() {
        let record = sample().seal(|_| Ok::<_, ()>([4; 32])).unwrap();
        assert_eq!(Directory::open(&record).unwrap(), (sample(), [4; 32]));
    }

    #[test]
    fn a_removed_incarnation_is_remembered() {
        let mut directory = sample();
        assert!(directory.remove(11));
        assert!(!directory.remove(11));
        assert!(directory.is_tombstoned(11) && directory.is_tombstoned(3));
        assert!(directory.by_node_id("n1").is_none());
    }

    #[test]
    fn after_a_recovery_the_survivor_is_the_only_member() {
        let mut directory = sample();
        let lost = DirectoryMember { incarnation: 12, node_id: "n2".into(), ..directory.members[0].clone() };
        directory.members[0].voter = false;
        directory.members.push(lost);
        let same = directory.clone().of_cluster([9; 16], 1, 11);
        assert_eq!(same, directory);
        let recovered = directory.of_cluster([8; 16], 2, 11);
        assert_eq!((recovered.cluster_id, recovered.epoch), ([8; 16], 2));
        assert_eq!(recovered.ancestors, [[9; 16]]);
        assert!(recovered.members.len() == 1 && recovered.members[0].voter && recovered.is_tombstoned(12));
    }

    #[test]
    fn damaged_records_are_refused() {
        let record = sample().seal(|_| Ok::<_, ()>([4; 32])).unwrap();
        for len in 0..record.len() {
            assert!(Directory::open(&record[..len]).is_err(), "{len} bytes were accepted");
        }
        let mut newer = record.to_vec();
        newer[0] = FORMAT + 1;
        assert!(matches!(Directory::open(&newer), Err(DecodeError::Unknown(..))));
    }
}

//! `operator raft recover` and `peers.json`: one survivor goes on alone when the quorum is lost for good.
//!
//! What a survivor has is its *facts*; survivors are ranked by the last durable entry of their logs, as an election
//! would rank them. Nothing is asked over a network: the others are lost, or stopped.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use keystead_raft::{Identity, recovery};
use keystead_storage::{
    DataDir, StorageError,
    datadir::{read_file, write_file_durably},
};
use serde::{Deserialize, Serialize};

use super::Failure;
use crate::config::{self, StorageConfig};
use crate::node::{uuid_text, vault_id_of};

const FACTS_FORMAT: u32 = 1;
const MAX_FACTS_BYTES: u64 = 1 << 20;
/// Where Vault looks for it, and where older releases of it did, below the data directory.
const PEERS_FILES: [&str; 2] = ["raft/peers.json", "peers.json"];

/// What one survivor has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    format: u32,
    /// The vault, which stays.
    pub vault_id: String,
    /// The set of nodes, as `status` shows it.
    pub cluster_id: String,
    /// How many recoveries lie behind it, and one.
    pub epoch: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id, in hexadecimal digits.
    pub incarnation: String,
    /// Term of the last durable entry of its log.
    pub last_term: u64,
    /// Index of it.
    pub last_index: u64,
    /// Index of the last entry that its state holds.
    pub applied_index: u64,
    /// The members as it knows them.
    pub members: Vec<FactsMember>,
    /// A CA of the operator's signed the nodes' certificates.
    pub own_ca: bool,
}

/// A member in a survivor's facts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FactsMember {
    /// The operator's name of the place.
    pub node_id: String,
    /// The Raft id, in hexadecimal digits.
    pub incarnation: String,
    /// `host:port` of its cluster port.
    pub address: String,
    /// Whether it votes.
    pub voter: bool,
}

impl Facts {
    /// Reads what another survivor wrote.
    ///
    /// # Errors
    /// When the file is none, or of a newer release.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let what = || format!("{} holds no facts of a survivor", path.display());
        let remedy = "make it with `keystead operator raft recover -inspect -out=FILE` on that node";
        let bytes = read_file(path, MAX_FACTS_BYTES)?
            .ok_or_else(|| Failure(format!("{} is not there; {remedy}", path.display())))?;
        let facts: Self =
            serde_json::from_slice(&bytes).map_err(|e| Failure(format!("{}: {e}; {remedy}", what())))?;
        match facts.format {
            FACTS_FORMAT => Ok(facts),
            other => Err(Failure(format!("{}: their format is {other}; {remedy}", what()))),
        }
    }

    /// Writes them for the others.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self)?;
        Ok(write_file_durably(path, format!("{text}\n").as_bytes(), 0o600)?)
    }

    /// What survivors are ranked by.
    fn rank(&self) -> (u64, u64) {
        (self.last_term, self.last_index)
    }
}

/// How the survivors that are known stand to each other.
#[derive(Debug, PartialEq, Eq)]
pub struct Ranking<'a> {
    /// All of them, the best first; of equals this node.
    pub survivors: Vec<&'a Facts>,
    /// Whether everything that was ever acknowledged is on the best of them.
    pub complete: bool,
    /// Voters that nothing is known of.
    pub unknown: Vec<String>,
}

/// Ranks this node's facts and those of others.
///
/// # Errors
/// When facts are of another vault or cluster, or of one node twice.
pub fn rank<'a>(own: &'a Facts, others: &'a [Facts]) -> Result<Ranking<'a>, Failure> {
    let mut survivors = vec![own];
    for other in others {
        let whose = format!("the facts of node {:?}", other.node_id);
        if other.vault_id != own.vault_id {
            return Err(Failure(format!("{whose} are of another vault, {}", other.vault_id)));
        }
        if (&other.cluster_id, other.epoch) != (&own.cluster_id, own.epoch) {
            return Err(Failure(format!(
                "{whose} are of another cluster, {} at epoch {}: a recovery was run there already. If that is the one to go on, do not recover this node: empty it (operator raft rebuild) and let it join",
                other.cluster_id, other.epoch
            )));
        }
        if let Some(twice) = survivors.iter().find(|known| known.incarnation == other.incarnation) {
            if *twice == other {
                continue;
            }
            return Err(Failure(format!("{whose} were given twice and differ; inspect that node again")));
        }
        survivors.push(other);
    }
    survivors.sort_by_key(|facts| (Reverse(facts.rank()), facts.incarnation != own.incarnation));
    // The newest membership that any of them knows of.
    let voters: Vec<_> = survivors[0].members.iter().filter(|member| member.voter).collect();
    let known = |voter: &&&FactsMember| survivors.iter().any(|facts| facts.incarnation == voter.incarnation);
    let seen = voters.iter().filter(known).count();
    let unknown = voters.iter().filter(|voter| !known(voter)).map(|voter| voter.node_id.clone()).collect();
    // What was acknowledged is on a majority, and every majority has one of those seen.
    let complete = voters.len() - seen < voters.len() / 2 + 1;
    Ok(Ranking { survivors, complete, unknown })
}

/// A survivor whose data directory is locked.
pub struct Survivor {
    dir: DataDir,
    /// What it has.
    pub facts: Facts,
    /// A recovery was begun here before: it is finished, whatever the facts are.
    pub pending: bool,
}

impl Survivor {
    /// Takes the data directory that a configuration names.
    ///
    /// # Errors
    /// When the configuration cannot be read or is of a node that has no peers, and those of
    /// [`Survivor::of_directory`].
    pub fn of_config(paths: &[PathBuf], env: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let config = config::load_with_env(paths, env)
            .map_err(|e| Failure(format!("error loading configuration: {e}")))?;
        match &config.storage {
            StorageConfig::Raft(raft) => Self::of_directory(&raft.path),
            other => Err(Failure(format!(
                "storage \"{}\" is a single node: it has no quorum that could be lost",
                other.kind()
            ))),
        }
    }

    /// Takes a data directory, and verifies log and state.
    ///
    /// # Errors
    /// When it holds no member of a cluster, a server is running on it, or it is damaged.
    pub fn of_directory(path: &Path) -> Result<Self, Failure> {
        // Opening one that is not there would make it.
        if Identity::load(path)?.is_none() {
            return Err(recovery::RecoveryError::NoMember { path: path.to_owned() }.into());
        }
        let dir = DataDir::open(path)?;
        let pending = recovery::is_pending(path);
        let facts = facts_of(&dir)?;
        Ok(Self { dir, facts, pending })
    }

    /// The directory.
    pub fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Makes this node the only voter of a new cluster; what was begun before is finished. Gives the new cluster's id
    /// and its epoch.
    ///
    /// # Errors
    /// Those of the disk; it may be run again.
    pub fn recover(self) -> Result<(String, u64), Failure> {
        let recovered = recovery::recover(&self.dir)?;
        Ok((uuid_text(&recovered.cluster_id), recovered.epoch))
    }
}

fn facts_of(dir: &DataDir) -> Result<Facts, Failure> {
    let mut vault_id = Ok(None);
    let held = recovery::inspect(dir, |state| vault_id = vault_id_of(state)).map_err(|error| match error {
        recovery::RecoveryError::Storage(damage @ StorageError::Damaged { .. }) => Failure(format!(
            "{damage}\nAs it is, this node cannot be recovered: recover another survivor, or restore a snapshot."
        )),
        other => other.into(),
    })?;
    let vault_id = vault_id?.ok_or_else(|| {
        Failure(format!(
            "{} holds a member that had not caught up with its vault: it has nothing to recover; empty it (operator raft rebuild)",
            dir.path().display()
        ))
    })?;
    let members = held.members.into_iter().map(|member| FactsMember {
        node_id: member.node_id,
        incarnation: format!("{:016x}", member.incarnation),
        address: member.cluster_addr,
        voter: member.voter,
    });
    Ok(Facts {
        format: FACTS_FORMAT,
        vault_id,
        cluster_id: uuid_text(&held.cluster_id),
        epoch: held.epoch,
        node_id: held.node_id,
        incarnation: format!("{:016x}", held.incarnation),
        last_term: held.last.0,
        last_index: held.last.1,
        applied_index: held.applied,
        members: members.collect(),
        own_ca: held.own_ca,
    })
}

/// One line of Vault's `peers.json`.
#[derive(Debug, Deserialize)]
struct PeersEntry {
    id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    non_voter: bool,
}

/// Recovers the node that is about to start, if Vault's `raft/peers.json` in its data directory says so. The file is
/// renamed then.
///
/// # Errors
/// When the file names anything else than this node alone; nothing is changed then.
pub fn honour_peers_file(dir: &DataDir, node_id: &str) -> Result<(), Failure> {
    let found = PEERS_FILES.iter().map(|name| dir.path().join(name)).find(|path| path.exists());
    let Some(path) = found else { return Ok(()) };
    let wrong = |why: String| Failure(format!("{}: {why}", path.display()));
    let bytes = read_file(&path, MAX_FACTS_BYTES)?.unwrap_or_default();
    let entries: Vec<PeersEntry> = serde_json::from_slice(&bytes)
        .map_err(|e| wrong(format!("it is not a list of {{\"id\", \"address\", \"non_voter\"}}: {e}")))?;
    let identity = Identity::load(dir.path())?
        .ok_or_else(|| wrong("this node is no member of a cluster: there is nothing to recover".into()))?;
    match &entries[..] {
        [only] if only.id != identity.node_id => Err(wrong(format!(
            "it names node {:?}, and this is {:?}; it must name this node, or be removed",
            only.id, identity.node_id
        ))),
        [only] if only.non_voter => {
            Err(wrong("it makes this node, the only one, a non-voter: nobody could decide anything".into()))
        }
        [only] => {
            tracing::warn!(
                file = %path.display(), node_id, address = only.address,
                "recovering this node from lost quorum, as the file says"
            );
            let recovered = recovery::recover(dir)?;
            let mut done = path.clone().into_os_string();
            done.push(".done");
            std::fs::rename(&path, &done).map_err(|e| wrong(format!("cannot rename it: {e}")))?;
            tracing::warn!(
                cluster_id = uuid_text(&recovered.cluster_id),
                epoch = recovered.epoch,
                "recovered: this node is the only voter of a new cluster; empty the others with `keystead operator raft rebuild`, and they join it"
            );
            Ok(())
        }
        entries => Err(wrong(format!(
            "it names {} nodes, and a recovery leaves one voter: name only the survivor that has the most (`keystead operator raft recover` ranks them), and the others, emptied with `keystead operator raft rebuild`, join it",
            entries.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(n: u64, last: (u64, u64)) -> Facts {
        let member = |n: u64| FactsMember {
            node_id: format!("n{n}"),
            incarnation: n.to_string(),
            address: String::new(),
            voter: true,
        };
        Facts {
            format: FACTS_FORMAT,
            vault_id: "v".into(),
            cluster_id: "c".into(),
            epoch: 1,
            node_id: format!("n{n}"),
            incarnation: n.to_string(),
            last_term: last.0,
            last_index: last.1,
            applied_index: 0,
            members: (1..=5).map(member).collect(),
            own_ca: false,
        }
    }

    fn names(ranking: &Ranking<'_>) -> Vec<String> {
        ranking.survivors.iter().map(|facts| facts.node_id.clone()).collect()
    }

    #[test]
    fn survivors_are_ranked_as_an_election_would() {
        let own = facts(1, (3, 10));
        let others = [facts(2, (2, 90)), facts(3, (3, 11)), facts(4, (3, 10))];
        let ranking = rank(&own, &others[..2]).unwrap_or_else(|f| panic!("{}", f.0));
        assert_eq!(names(&ranking), ["n3", "n1", "n2"]);
        assert!(ranking.complete, "two of five cannot have acknowledged anything alone");
        assert_eq!(ranking.unknown, ["n4", "n5"]);
        let ranking = rank(&own, &others[2..]).unwrap_or_else(|f| panic!("{}", f.0));
        assert_eq!(names(&ranking), ["n1", "n4"], "of equals this one");
        assert!(!ranking.complete, "three of five may have acknowledged what nobody else has");
    }

    #[test]
    fn facts_that_do_not_belong_here_are_refused() {
        let own = facts(1, (3, 10));
        let refusal = |other: Facts| rank(&own, &[other]).err().map(|failure| failure.0).unwrap_or_default();
        let vault = Facts { vault_id: "w".into(), ..facts(2, (3, 9)) };
        assert!(refusal(vault).contains("another vault"));
        let epoch = Facts { epoch: 2, cluster_id: "d".into(), ..facts(2, (3, 9)) };
        let said = refusal(epoch);
        assert!(said.contains("already") && said.contains("raft rebuild"), "{said}");
        assert!(refusal(facts(1, (3, 9))).contains("twice"));
    }

    #[test]
    fn a_peers_file_that_names_anything_else_changes_nothing() {
        let base = tempfile::tempdir().unwrap();
        let dir = DataDir::open(base.path()).unwrap();
        std::fs::create_dir(base.path().join("raft")).unwrap();
        let path = base.path().join("raft/peers.json");
        for (text, said) in [
            ("{}", "not a list"),
            (r#"[{"id": 7}]"#, "not a list"),
            (r#"[{"id": "n1", "address": "127.0.0.1:8201", "non_voter": false}]"#, "no member"),
        ] {
            std::fs::write(&path, text).unwrap();
            let failure = honour_peers_file(&dir, "n1").err().map(|failure| failure.0).unwrap_or_default();
            assert!(failure.contains(said) && failure.contains("peers.json"), "{failure}");
            assert!(path.exists());
        }
    }
}

//! `operator raft rebuild`: empties a damaged node, so that it joins its cluster again and is sent everything by
//! its peers.
//!
//! It works on the data directory of a server that is not running. What a node has written may be damaged beyond
//! reading, so nothing but `identity` is read, and nothing is believed of it but names. Whether anybody else has
//! the data is asked of the peers themselves.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use keystead_raft::{Identity, identity::IdentityError};
use keystead_storage::datadir::{Emptying, read_file, write_file_durably};
use serde_json::Value;

use super::{Failure, start::join_target};
use crate::config::{self, RetryJoin, ServerConfig, StorageConfig};
use crate::node::{JoinTarget, uuid_text};

/// How long a peer may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node that is about to be emptied, its directory locked.
pub struct Rebuild {
    emptying: Emptying,
    data_dir: PathBuf,
    config: Option<ServerConfig>,
    identity: Result<Option<Member>, String>,
}

/// What a data directory says of its node.
pub struct Member {
    /// The name of the place.
    pub node_id: String,
    /// The Raft id of the data.
    pub incarnation: u64,
    /// The cluster, as `status` shows it.
    pub cluster_id: String,
    /// Whether a CA of the operator's signed its certificate.
    pub own_ca: bool,
}

/// A peer, and how it stands to the cluster of this node.
pub struct Peer {
    /// Its API address.
    pub address: String,
    /// What it said.
    pub standing: Standing,
}

/// How a peer stands to the cluster of a node that is to be emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It leads: a majority has the data without this node.
    Leads,
    /// It follows a leader elsewhere, with the same meaning.
    Follows(String),
    /// It is there, and knows of no leader, or is sealed and does not say.
    NoLeader,
    /// It is in the cluster that a recovery from lost quorum made of this node's, which has a leader.
    Succeeds(String),
    /// It belongs to another cluster.
    Foreign(String),
    /// It did not answer.
    Silent(String),
}

impl Standing {
    /// Whether the data are known to be safe without this node.
    pub fn is_served(&self) -> bool {
        matches!(self, Standing::Leads | Standing::Follows(_) | Standing::Succeeds(_))
    }
}

impl Rebuild {
    /// Takes the data directory that a configuration names.
    ///
    /// # Errors
    /// When the configuration cannot be read or is of a node that has no peers, and those of
    /// [`Rebuild::of_directory`].
    pub fn of_config(paths: &[PathBuf], env: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let config = config::load_with_env(paths, env)
            .map_err(|e| Failure(format!("error loading configuration: {e}")))?;
        let StorageConfig::Raft(raft) = &config.storage else {
            let kind = config.storage.kind();
            return Err(Failure(format!(
                "storage \"{kind}\" is a single node: it has no peers from which it could be rebuilt"
            )));
        };
        let path = raft.path.clone();
        Self::locked(&path, Some(config))
    }

    /// Takes a data directory.
    ///
    /// # Errors
    /// When it is not there, or a server is running on it.
    pub fn of_directory(path: &Path) -> Result<Self, Failure> {
        Self::locked(path, None)
    }

    fn locked(path: &Path, config: Option<ServerConfig>) -> Result<Self, Failure> {
        let emptying = Emptying::begin(path)?;
        let identity = match Identity::load(path) {
            Ok(found) => Ok(found.map(|identity| Member {
                node_id: identity.node_id.clone(),
                incarnation: identity.incarnation,
                cluster_id: uuid_text(&identity.cluster_id),
                own_ca: keystead_tls::own_ca::is_built_in(&identity.ca_cert_der)
                    .is_ok_and(|built_in| !built_in),
            })),
            Err(IdentityError::Damaged { path, source }) => {
                Err(format!("{} is damaged ({source})", path.display()))
            }
            Err(IdentityError::Missing { path, .. }) => Err(format!("{} is missing", path.display())),
            Err(error) => Err(error.to_string()),
        };
        Ok(Self { emptying, data_dir: path.to_owned(), config, identity })
    }

    /// The directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Who the node is; `None` if it never joined a cluster, the reason if that cannot be read any more.
    pub fn member(&self) -> Result<Option<&Member>, &str> {
        self.identity.as_ref().map(Option::as_ref).map_err(String::as_str)
    }

    /// What will be removed, with its size in bytes.
    pub fn contents(&self) -> Vec<(&'static str, u64)> {
        self.emptying.contents()
    }

    /// Whether the node will ask to be let in by itself.
    pub fn joins_by_itself(&self) -> bool {
        !self.retry_join().is_empty()
    }

    /// The name under which the node will join; `None` if that is not known here.
    pub fn next_node_id(&self) -> Option<String> {
        let configured = self.config.as_ref().and_then(|config| match &config.storage {
            StorageConfig::Raft(raft) => raft.node_id.clone(),
            _ => None,
        });
        configured.or_else(|| self.kept_node_id()).or_else(|| Some(self.member().ok()??.node_id.clone()))
    }

    /// Asks every configured peer how it stands to this node's cluster.
    pub async fn peers(&self) -> Vec<Peer> {
        let own = self.config.as_ref().and_then(|config| config.api_addr.as_deref());
        let cluster_id = self.member().ok().flatten().map(|member| member.cluster_id.as_str());
        let asked = self.retry_join().iter().map(|stanza| async move {
            let standing = match join_target(stanza) {
                Ok(target) => ask(&target, cluster_id, own).await,
                Err(Failure(why)) => Standing::Silent(why),
            };
            Peer { address: stanza.leader_api_addr.clone(), standing }
        });
        join_all(asked).await
    }

    /// Empties the node. Its name stays: without one in the configuration it is written down.
    ///
    /// # Errors
    /// Those of the file system; it may be run again.
    pub fn empty(self) -> Result<(), Failure> {
        if self.kept_node_id().is_none()
            && let Ok(Some(member)) = self.member()
        {
            write_file_durably(&self.data_dir.join("node-id"), member.node_id.as_bytes(), 0o600)?;
        }
        Ok(self.emptying.empty()?)
    }

    fn retry_join(&self) -> &[RetryJoin] {
        match self.config.as_ref().map(|config| &config.storage) {
            Some(StorageConfig::Raft(raft)) => &raft.retry_join,
            _ => &[],
        }
    }

    fn kept_node_id(&self) -> Option<String> {
        let bytes = read_file(&self.data_dir.join("node-id"), 1024).ok()??;
        let text = String::from_utf8(bytes).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    }
}

async fn ask(target: &JoinTarget, cluster_id: Option<&str>, own: Option<&str>) -> Standing {
    let health = match get(target, "/v1/sys/health").await {
        Ok(health) => health,
        Err(why) => return Standing::Silent(why),
    };
    let theirs = health.get("cluster_id").and_then(Value::as_str).filter(|id| !id.is_empty());
    if let (Some(theirs), Some(ours)) = (theirs, cluster_id)
        && theirs != ours
    {
        let leader = get(target, "/v1/sys/leader").await;
        let led = leader.is_ok_and(|leader| standing(&leader, own).is_served());
        let epoch = get(target, "/v1/sys/storage/raft/bootstrap/epoch").await.unwrap_or_default();
        let ancestors = epoch.get("ancestors").and_then(Value::as_array);
        let succeeds = led && ancestors.is_some_and(|all| all.iter().any(|id| id.as_str() == Some(ours)));
        let theirs = theirs.to_owned();
        return if succeeds { Standing::Succeeds(theirs) } else { Standing::Foreign(theirs) };
    }
    // A sealed node does not tell its cluster, so what it tells of a leader proves nothing.
    match (theirs, get(target, "/v1/sys/leader").await) {
        (Some(_), Ok(leader)) => standing(&leader, own),
        _ => Standing::NoLeader,
    }
}

/// What `sys/leader` says.
fn standing(leader: &Value, own: Option<&str>) -> Standing {
    let address = leader.get("leader_address").and_then(Value::as_str).unwrap_or_default();
    if leader.get("is_self") == Some(&Value::Bool(true)) {
        return Standing::Leads;
    }
    // A leader that has only just stopped is still named for a moment, and it may be this node.
    match address {
        "" => Standing::NoLeader,
        address if Some(address) == own => Standing::NoLeader,
        address => Standing::Follows(address.to_owned()),
    }
}

async fn get(target: &JoinTarget, path: &str) -> Result<Value, String> {
    let response = tokio::time::timeout(PATIENCE, target.client.request("GET", path, None, &[])).await;
    let response = response.map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
    let response = response.map_err(|error| error.to_string())?;
    serde_json::from_slice(&response.body).map_err(|_| "it is no node of a vault".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_leader_other_than_this_node_means_that_the_data_are_safe() {
        let own = Some("https://n1:8200");
        for (leader, expected, served) in [
            (json!({"is_self": true, "leader_address": "https://n2:8200"}), Standing::Leads, true),
            (
                json!({"is_self": false, "leader_address": "https://n2:8200"}),
                Standing::Follows("https://n2:8200".into()),
                true,
            ),
            (json!({"is_self": false, "leader_address": "https://n1:8200"}), Standing::NoLeader, false),
            (json!({"is_self": false, "leader_address": ""}), Standing::NoLeader, false),
            (json!({"errors": ["Vault is sealed"]}), Standing::NoLeader, false),
        ] {
            let found = standing(&leader, own);
            assert_eq!((found.is_served(), &found), (served, &expected), "{leader}");
        }
    }

    #[test]
    fn the_name_of_the_place_outlives_its_data() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("node-id"), "n7\n").unwrap();
        let rebuild = Rebuild::of_directory(dir.path()).unwrap_or_else(|f| panic!("{}", f.0));
        assert_eq!(rebuild.next_node_id().as_deref(), Some("n7"));
        assert!(matches!(rebuild.member(), Ok(None)));
        rebuild.empty().unwrap_or_else(|f| panic!("{}", f.0));
        assert_eq!(std::fs::read(dir.path().join("node-id")).unwrap(), b"n7\n");
    }
}

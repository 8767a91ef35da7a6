//! How the leader looks after the members: their health, dead ones that are taken out, the feature level, and the
//! leader that the operator prefers.
//!
//! Everything is judged by the leader's own monotonic clock, from the moment at which it began to lead: neither a
//! clock that is set nor what a former leader believed takes anybody out.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;

use crate::{clock::wall_ms, leadership::heir, replica::JoinError, shared::Shared, types::to_storage};

const TICK: Duration = Duration::from_secs(1);
/// How long the preferred leader must have been healthy, and another have led, before leadership goes there: two nodes
/// never pass it to and fro.
const PREFERENCE_SETTLES: Duration = Duration::from_secs(30);
/// The level from which on a cluster has a configuration of autopilot.
pub const CONFIG_LEVEL: u32 = 2;
/// The least time after which a silent member counts as dead, in milliseconds.
const MIN_DEAD_MS: u64 = 60_000;
/// The least `min_quorum` with which dead members are taken out.
const MIN_QUORUM: u64 = 3;

/// The replicated configuration, with Vault's names and defaults.
#[derive(Debug, Clone, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct AutopilotConfig {
    /// Take dead members out.
    pub cleanup_dead_servers: bool,
    /// A member that was silent for longer is unhealthy, in milliseconds.
    pub last_contact_threshold_ms: u64,
    /// A member that was silent for this long is dead, in milliseconds.
    pub dead_server_threshold_ms: u64,
    /// A member that is further behind is unhealthy, in log entries.
    pub max_trailing_logs: u64,
    /// Taking dead members out leaves at least this many voters.
    pub min_quorum: u64,
    /// How long a member must have been healthy before it becomes the fourth voter or a later one, in milliseconds.
    pub server_stabilization_ms: u64,
    /// Vault's switch for automated upgrades, which are not done here.
    pub disable_upgrade_migration: bool,
}

impl Default for AutopilotConfig {
    fn default() -> Self {
        Self {
            cleanup_dead_servers: false,
            last_contact_threshold_ms: 10_000,
            dead_server_threshold_ms: 24 * 3_600_000,
            max_trailing_logs: 1_000,
            min_quorum: 0,
            server_stabilization_ms: 10_000,
            disable_upgrade_migration: false,
        }
    }
}

impl AutopilotConfig {
    /// Whether it makes sense.
    ///
    /// # Errors
    /// A text that says what does not.
    pub fn check(&self) -> Result<(), String> {
        if self.cleanup_dead_servers && self.min_quorum < MIN_QUORUM {
            return Err(format!(
                "min_quorum must be set when cleanup_dead_servers is set and it should at least be {MIN_QUORUM}; cleanup_dead_servers: true, min_quorum: {}",
                self.min_quorum
            ));
        }
        if self.dead_server_threshold_ms < MIN_DEAD_MS {
            return Err("dead_server_last_contact_threshold should not be less than 1m".into());
        }
        if self.last_contact_threshold_ms == 0 {
            return Err("last_contact_threshold must be positive".into());
        }
        if self.last_contact_threshold_ms > self.dead_server_threshold_ms {
            return Err("last_contact_threshold must not exceed dead_server_last_contact_threshold".into());
        }
        Ok(())
    }
}

/// One member, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    /// The Raft id.
    pub incarnation: u64,
    /// The operator's name of the place.
    pub node_id: String,
    /// `host:port` of its cluster port.
    pub address: String,
    /// How long it has been silent; zero of the leader itself.
    pub last_contact: Duration,
    /// Term of the last entry that it is known to have.
    pub last_term: u64,
    /// Index of that entry.
    pub last_index: u64,
    /// It answers.
    pub answers: bool,
    /// It answers, and has nearly everything.
    pub healthy: bool,
    /// Since when that is so or not so, in milliseconds since the Unix epoch.
    pub stable_since_ms: u64,
    /// It votes.
    pub voter: bool,
    /// It leads.
    pub leader: bool,
    /// Its release.
    pub version: String,
}

/// All members, as the leader sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutopilotState {
    /// All of them are healthy.
    pub healthy: bool,
    /// How many healthy voters could be lost with a quorum left.
    pub failure_tolerance: usize,
    /// The members, by node id.
    pub servers: Vec<ServerState>,
}

impl AutopilotState {
    fn of(servers: Vec<ServerState>) -> Self {
        let voters = servers.iter().filter(|server| server.voter).count();
        let healthy = servers.iter().filter(|server| server.voter && server.healthy).count();
        Self {
            healthy: servers.iter().all(|server| server.healthy),
            failure_tolerance: healthy.saturating_sub(voters / 2 + 1),
            servers,
        }
    }
}

/// What a leader remembers of the members from one look to the next.
#[derive(Default)]
pub struct Records(Mutex<Option<Reign>>);

/// The time of one leader.
struct Reign {
    term: u64,
    since: Instant,
    health: BTreeMap<u64, Health>,
}

#[derive(Clone, Copy)]
struct Health {
    healthy: bool,
    since: Instant,
    since_ms: u64,
}

impl Records {
    /// How long this node has led in `term`, which it leads in now.
    fn led_for(&self, term: u64) -> Duration {
        let mut reign = self.0.lock();
        let begin = || Reign { term, since: Instant::now(), health: BTreeMap::new() };
        let known = reign.take().filter(|known| known.term == term);
        reign.insert(known.unwrap_or_else(begin)).since.elapsed()
    }

    fn forget(&self) {
        *self.0.lock() = None;
    }

    fn note(&self, servers: &[ServerState]) {
        let mut reign = self.0.lock();
        let Some(reign) = reign.as_mut() else { return };
        reign.health.retain(|id, _| servers.iter().any(|server| server.incarnation == *id));
        for server in servers {
            let now =
                Health { healthy: server.healthy, since: Instant::now(), since_ms: server.stable_since_ms };
            let known = reign.health.entry(server.incarnation).or_insert(now);
            if known.healthy != server.healthy {
                *known = now;
            }
        }
    }

    fn health(&self, incarnation: u64) -> Option<Health> {
        self.0.lock().as_ref()?.health.get(&incarnation).copied()
    }
}

impl Shared {
    /// Runs on every node, and works on the leader.
    pub async fn autopilot(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            let (leads, term) = {
                let leadership = self.leadership.borrow();
                (leadership.is_self, leadership.term)
            };
            if !leads || !self.vault.is_open() {
                self.autopilot.forget();
                continue;
            }
            let led_for = self.autopilot.led_for(term);
            let state = self.autopilot_state();
            self.autopilot.note(&state.servers);
            report(&state);
            if let Err(error) = self.raise_level().await {
                tracing::debug!(%error, "the feature level was not written yet");
            }
            self.remove_dead(&state, led_for).await;
            if led_for >= PREFERENCE_SETTLES {
                self.prefer().await;
            }
        }
    }

    /// How the members do, as far as this node can say; of use on the leader.
    pub fn autopilot_state(&self) -> AutopilotState {
        let directory = self.directory.current();
        let config = &directory.autopilot;
        let (last, matched) = {
            let metrics = self.raft.data_metrics();
            let metrics = metrics.borrow_watched();
            (metrics.last_log, metrics.replication.clone().unwrap_or_default())
        };
        let leader = self.leadership.borrow().leader.as_ref().map(|leader| leader.incarnation);
        let voters: Vec<u64> = self.raft.voter_ids().collect();
        let last_index = last.map_or(0, |last| last.index);
        let servers = directory.members.iter().map(|member| {
            let id = member.incarnation;
            let own = id == self.myself.incarnation;
            let status = self.peers.status(id);
            let has = if own { last } else { matched.get(&id).copied().flatten() };
            let has = has.map(|id| to_storage(&id));
            let last_contact = match &status {
                _ if own => Duration::ZERO,
                Some(status) => status.heard.elapsed(),
                None => self.started.elapsed(),
            };
            let near =
                has.is_some_and(|has| last_index.saturating_sub(has.index) <= config.max_trailing_logs);
            let answers = last_contact <= Duration::from_millis(config.last_contact_threshold_ms);
            let healthy = near && answers;
            let before = self.autopilot.health(id).filter(|before| before.healthy == healthy);
            let version =
                if own { Some(self.myself.version.clone()) } else { status.map(|status| status.version) };
            ServerState {
                incarnation: id,
                node_id: member.node_id.clone(),
                address: member.cluster_addr.clone(),
                last_contact,
                last_term: has.map_or(0, |has| has.term),
                last_index: has.map_or(0, |has| has.index),
                answers,
                healthy,
                stable_since_ms: before.map_or_else(wall_ms, |before| before.since_ms),
                voter: voters.contains(&id),
                leader: leader == Some(id),
                version: version.unwrap_or_default(),
            }
        });
        let mut servers: Vec<_> = servers.collect();
        servers.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        AutopilotState::of(servers)
    }

    /// Replaces autopilot's configuration by what `change` makes of it.
    ///
    /// # Errors
    /// [`JoinError::LevelTooLow`] while a member does not know it; what `change` says.
    pub async fn configure_autopilot(
        &self,
        mut change: impl FnMut(&mut AutopilotConfig) -> Result<(), JoinError>,
    ) -> Result<(), JoinError> {
        let written = self.change_directory(|directory| {
            if directory.feature_level < CONFIG_LEVEL {
                let older = directory.members.iter().filter(|member| member.feature_level < CONFIG_LEVEL);
                let older: Vec<&str> = older.map(|member| member.node_id.as_str()).collect();
                return Err(JoinError::LevelTooLow {
                    cluster: directory.feature_level,
                    needed: CONFIG_LEVEL,
                    older: older.join(", "),
                });
            }
            let mut config = directory.autopilot.clone();
            change(&mut config)?;
            let changed = config != directory.autopilot;
            directory.autopilot = config;
            Ok(changed)
        });
        written.await.map(drop)
    }

    /// Writes into the directory what members can do, and what all of them can.
    async fn raise_level(&self) -> Result<(), JoinError> {
        let level_of = |id: u64| {
            if id == self.myself.incarnation {
                Some(self.myself.feature_level)
            } else {
                self.peers.status(id).and_then(|status| status.proven_level)
            }
        };
        let directory = self.directory.current();
        let known = |id: u64, listed: u32| level_of(id).unwrap_or(listed);
        let news = directory.members.iter().any(|m| known(m.incarnation, m.feature_level) != m.feature_level);
        let least = |d: &crate::Directory| d.members.iter().map(|m| m.feature_level).min().unwrap_or(0);
        if !news && least(&directory) <= directory.feature_level {
            return Ok(());
        }
        let before = directory.feature_level;
        let written = self.change_directory(|directory| {
            let mut changed = false;
            for member in &mut directory.members {
                let level = known(member.incarnation, member.feature_level);
                changed |= level != member.feature_level;
                member.feature_level = level;
            }
            let level = least(directory).max(directory.feature_level);
            changed |= level != directory.feature_level;
            directory.feature_level = level;
            Ok(changed)
        });
        let level = written.await?.feature_level;
        if level != before {
            tracing::info!(level, before, "every member can do more: the cluster's feature level is raised");
        }
        Ok(())
    }

    async fn remove_dead(&self, state: &AutopilotState, led_for: Duration) {
        let config = self.directory.current().autopilot.clone();
        let Some(dead) = dead(&config, &state.servers, led_for) else { return };
        let silent_s = dead.last_contact.as_secs();
        match self.remove_incarnation(dead.incarnation).await {
            Ok(_) => {
                metrics::counter!("keystead_autopilot_dead_servers_removed").increment(1);
                tracing::warn!(node = dead.node_id, silent_s, "a dead member was removed");
            }
            Err(error) => tracing::debug!(%error, node = dead.node_id, "a dead member is not removed"),
        }
    }

    /// Gives leadership to the node that the operator prefers, once it has been well for a while.
    async fn prefer(&self) {
        if self.own.now().preferred {
            return;
        }
        let settled = |id: u64| {
            let health = self.autopilot.health(id);
            health.is_some_and(|health| health.healthy && health.since.elapsed() >= PREFERENCE_SETTLES)
        };
        let fits = |standing: crate::standing::Standing| standing.preferred && standing.burden() == 0;
        let (directory, own) = (self.directory.current(), self.myself.incarnation);
        let heir = heir(&self.raft, &self.peers, &directory, own, self.lease, fits);
        let Some(heir) = heir.filter(|heir| settled(*heir)) else { return };
        tracing::info!("leadership goes to the preferred leader");
        if let Err(error) = self.transfers.to(&self.raft, heir).await {
            tracing::warn!(%error, "cannot hand leadership to the preferred leader");
        }
    }
}

/// The member to be taken out next, if any: one at a time, those without a vote first, then who was silent longest.
fn dead<'a>(
    config: &AutopilotConfig,
    servers: &'a [ServerState],
    led_for: Duration,
) -> Option<&'a ServerState> {
    if !config.cleanup_dead_servers {
        return None;
    }
    let threshold = Duration::from_millis(config.dead_server_threshold_ms);
    let voters = servers.iter().filter(|server| server.voter).count() as u64;
    let spare = voters > config.min_quorum.max(MIN_QUORUM);
    servers
        .iter()
        .filter(|server| !server.leader && server.last_contact.min(led_for) >= threshold)
        .filter(|server| !server.voter || spare)
        .max_by_key(|server| (!server.voter, server.last_contact))
}

fn report(state: &AutopilotState) {
    let gauge = |yes: bool| if yes { 1.0 } else { 0.0 };
    for prefix in ["vault", "keystead"] {
        metrics::gauge!(format!("{prefix}_autopilot_healthy")).set(gauge(state.healthy));
        metrics::gauge!(format!("{prefix}_autopilot_failure_tolerance")).set(state.failure_tolerance as f64);
        for server in &state.servers {
            let name = format!("{prefix}_autopilot_node_healthy");
            metrics::gauge!(name, "node_id" => server.node_id.clone()).set(gauge(server.healthy));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(id: u64, voter: bool, silent_s: u64) -> ServerState {
        ServerState {
            incarnation: id,
            node_id: format!("n{id}"),
            address: String::new(),
            last_contact: Duration::from_secs(silent_s),
            last_term: 1,
            last_index: 1,
            answers: silent_s < 10,
            healthy: silent_s < 10,
            stable_since_ms: 0,
            voter,
            leader: id == 1,
            version: String::new(),
        }
    }

    fn cleaning() -> AutopilotConfig {
        AutopilotConfig {
            cleanup_dead_servers: true,
            min_quorum: 3,
            dead_server_threshold_ms: 60_000,
            ..AutopilotConfig::default()
        }
    }

    fn removed(config: &AutopilotConfig, servers: &[ServerState], led_s: u64) -> Option<u64> {
        dead(config, servers, Duration::from_secs(led_s)).map(|server| server.incarnation)
    }

    #[test]
    fn a_dead_voter_goes_while_min_quorum_are_left_and_the_longest_silent_first() {
        let servers = [1, 2, 3, 4, 5].map(|id| server(id, true, if id > 3 { 60 + id } else { 0 }));
        assert_eq!(removed(&cleaning(), &servers, 1_000), Some(5));
        assert_eq!(removed(&cleaning(), &servers[..4], 1_000), Some(4));
        let three = [server(1, true, 0), server(2, true, 0), server(3, true, 1_000)];
        assert_eq!(removed(&cleaning(), &three, 1_000), None, "three voters are the least");
        assert_eq!(removed(&AutopilotConfig::default(), &servers, 1_000), None, "not asked for");
    }

    #[test]
    fn a_dead_non_voter_goes_whatever_the_quorum() {
        let servers = [server(1, true, 0), server(2, false, 61), server(3, false, 59)];
        assert_eq!(removed(&cleaning(), &servers, 1_000), Some(2));
    }

    #[test]
    fn a_new_leader_counts_anew() {
        let servers = [1, 2, 3, 4, 5].map(|id| server(id, true, if id > 4 { 100_000 } else { 0 }));
        assert_eq!(removed(&cleaning(), &servers, 59), None);
        assert_eq!(removed(&cleaning(), &servers, 60), Some(5));
        let records = Records::default();
        assert!(records.led_for(3) < Duration::from_secs(1));
        records.note(&servers);
        assert!(records.health(5).is_some_and(|health| !health.healthy));
        records.led_for(4);
        assert!(records.health(5).is_none(), "another term, another reign");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_vaults_words() {
        let refused = |change: fn(&mut AutopilotConfig)| {
            let mut config = AutopilotConfig::default();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert_eq!(AutopilotConfig::default().check(), Ok(()));
        assert_eq!(cleaning().check(), Ok(()));
        assert_eq!(
            refused(|config| config.cleanup_dead_servers = true),
            "min_quorum must be set when cleanup_dead_servers is set and it should at least be 3; cleanup_dead_servers: true, min_quorum: 0"
        );
        assert!(refused(|config| config.dead_server_threshold_ms = 59_999).contains("1m"));
        assert!(refused(|config| config.last_contact_threshold_ms = 0).contains("positive"));
    }

    #[test]
    fn the_tolerance_counts_healthy_voters_beyond_the_quorum() {
        let all = |silent: [u64; 3]| {
            let mut servers: Vec<_> = [1, 2, 3].map(|id| server(id, true, silent[id as usize - 1])).into();
            servers.push(server(4, false, 0));
            let state = AutopilotState::of(servers);
            (state.healthy, state.failure_tolerance)
        };
        assert_eq!(all([0, 0, 0]), (true, 1));
        assert_eq!(all([0, 0, 60]), (false, 0));
        assert_eq!(all([0, 60, 60]), (false, 0));
    }
}

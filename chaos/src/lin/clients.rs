//! Clients that ask all nodes for everything at once, and write down what they were told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    history::{Op, Operation, Outcome, Recording, Ret},
    seed::Seed,
};
use crate::{Client, Error, Response, Result};

/// A folder with so many writes of unknown outcome retires: each doubles the work of the checker.
const MOST_UNKNOWN: usize = 4;
/// Reads of folders that have retired go to this many of the newest.
const REMEMBERED: usize = 8;
/// How long a client waits for an answer, in milliseconds: the impatient, the usual, the patient.
const PATIENCE_MS: [u64; 3] = [400, 1_500, 4_000];

/// What clients do.
#[derive(Debug, Clone)]
pub struct Habits {
    /// How many there are.
    pub clients: usize,
    /// The longest pause between two operations of one client.
    pub pause_at_most: Duration,
    /// Mounts (kv v2) that folders are made in.
    pub mounts: Vec<String>,
    /// Folders in use at the same time.
    pub folders: usize,
    /// Keys of a folder.
    pub keys: u8,
    /// Operations after which a folder retires.
    pub operations: usize,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            clients: 6,
            pause_at_most: Duration::from_millis(16),
            mounts: vec!["secret".into()],
            folders: 2,
            keys: 2,
            operations: 30,
        }
    }
}

/// What the clients share.
pub struct Ground {
    habits: Habits,
    /// Comes before the folders' names, so that no trial meets another's.
    name: String,
    nodes: Vec<Client>,
    recording: Arc<Recording>,
    folders: Mutex<Folders>,
    values: AtomicU64,
    stop: AtomicBool,
}

#[derive(Default)]
struct Folders {
    open: Vec<Open>,
    made: Vec<String>,
}

/// A folder in use.
struct Open {
    name: String,
    begun: usize,
    unknown: usize,
    /// Versions that somebody saw last, for check-and-sets that have a chance.
    versions: BTreeMap<u8, u64>,
}

impl Ground {
    /// Ground for clients of some nodes.
    pub fn new(habits: Habits, name: &str, nodes: Vec<Client>, recording: Arc<Recording>) -> Self {
        let (folders, values, stop) = (Mutex::default(), AtomicU64::new(1), AtomicBool::new(false));
        Self { habits, name: name.into(), nodes, recording, folders, values, stop }
    }

    /// Lets the clients end after what they are doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// One client, until [`stop`](Self::stop). It asks one node most of the time and all of them some of it.
    pub async fn client(&self, number: usize, mut seed: Seed) {
        let home = number % self.nodes.len();
        while !self.stop.load(Ordering::Acquire) {
            let (folder, versions) = self.folder(&mut seed);
            let op = self.op(versions.as_ref(), &mut seed);
            let mut node = if seed.once_in(4) { self.any(&mut seed) } else { home };
            let mut outcome = self.ask(number, node, &folder, op.clone(), &mut seed).await;
            // A client that was told nothing asks another node for the same thing, once or twice.
            for _ in 0..2 {
                if !op.writes() || !matches!(outcome, Outcome::Unknown(_)) || seed.once_in(2) {
                    break;
                }
                node = (node + 1) % self.nodes.len();
                outcome = self.ask(number, node, &folder, op.clone(), &mut seed).await;
            }
            let pause_us = u64::try_from(self.habits.pause_at_most.as_micros()).unwrap_or(u64::MAX);
            if pause_us > 0 {
                tokio::time::sleep(Duration::from_micros(seed.below(pause_us))).await;
            }
        }
    }

    /// Reads everything once more: each folder on one node, the newest on all of them.
    ///
    /// # Errors
    /// [`Error::Broken`] when a read is not answered although all nodes are well.
    pub async fn read_all(&self, mut seed: Seed) -> Result<()> {
        let folders = self.lock().made.clone();
        for (at, folder) in folders.iter().rev().enumerate() {
            let nodes = if at < REMEMBERED { self.nodes.len() } else { 1 };
            for node in 0..nodes {
                let node = (at + node) % self.nodes.len();
                for op in (0..self.habits.keys).map(|key| Op::Get { key }).chain([Op::List]) {
                    let outcome = self.ask(self.habits.clients, node, folder, op, &mut seed).await;
                    if !matches!(outcome, Outcome::Returned(_)) {
                        return Err(Error::Broken(format!("a read at the end: {outcome:?} of node {node}")));
                    }
                }
            }
        }
        Ok(())
    }

    fn any(&self, seed: &mut Seed) -> usize {
        seed.below(self.nodes.len() as u64) as usize
    }

    /// A folder for the next operation, and the versions that were seen of it; none for one that has retired.
    fn folder(&self, seed: &mut Seed) -> (String, Option<BTreeMap<u8, u64>>) {
        let mut guard = self.lock();
        let folders = &mut *guard;
        if seed.once_in(24) && folders.made.len() > self.habits.folders {
            let newest = folders.made.len().saturating_sub(REMEMBERED);
            return (seed.pick(&folders.made[newest..]).clone(), None);
        }
        let full = |open: &Open| open.begun >= self.habits.operations || open.unknown >= MOST_UNKNOWN;
        folders.open.retain(|open| !full(open));
        while folders.open.len() < self.habits.folders {
            let number = folders.made.len();
            let mount = &self.habits.mounts[number % self.habits.mounts.len()];
            let name = format!("{mount}/{}/{number}", self.name);
            folders.made.push(name.clone());
            folders.open.push(Open { name, begun: 0, unknown: 0, versions: BTreeMap::new() });
        }
        let at = seed.below(folders.open.len() as u64) as usize;
        let open = &mut folders.open[at];
        open.begun += 1;
        (open.name.clone(), Some(open.versions.clone()))
    }

    fn op(&self, versions: Option<&BTreeMap<u8, u64>>, seed: &mut Seed) -> Op {
        let key = seed.below(u64::from(self.habits.keys)) as u8;
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        let Some(versions) = versions else {
            return if seed.once_in(3) { Op::List } else { Op::Get { key } };
        };
        let seen = versions.get(&key).copied().unwrap_or(0);
        match seed.below(20) {
            0..8 => Op::Get { key },
            8..12 => Op::Put { key, value },
            12..15 => Op::Cas { key, expected: seen, value },
            15 => Op::Cas { key, expected: seed.below(seen + 2), value },
            16..18 => Op::List,
            18 => Op::Remove { key },
            _ => Op::Delete { key },
        }
    }

    async fn ask(&self, client: usize, node: usize, folder: &str, op: Op, seed: &mut Seed) -> Outcome {
        let patience = if client == self.habits.clients { 15_000 } else { *seed.pick(&PATIENCE_MS) };
        let through = self.nodes[node].clone().with_timeout(Duration::from_millis(patience));
        let begun_us = self.recording.now_us();
        let outcome = outcome(&op, send(&through, folder, &op).await);
        let ended_us = self.recording.now_us();
        self.learn(folder, &op, &outcome);
        let folder = folder.to_owned();
        let result = outcome.clone();
        self.recording.operation(Operation { client, node, folder, begun_us, ended_us, op, outcome });
        result
    }

    fn learn(&self, folder: &str, op: &Op, outcome: &Outcome) {
        let mut folders = self.lock();
        let Some(open) = folders.open.iter_mut().find(|open| open.name == folder) else { return };
        match (op, outcome) {
            (_, Outcome::Unknown(_)) if op.writes() => open.unknown += 1,
            (Op::Put { key, .. } | Op::Cas { key, .. }, Outcome::Returned(Ret::Written(version)))
            | (Op::Get { key }, Outcome::Returned(Ret::Deleted(version) | Ret::Found { version, .. })) => {
                open.versions.insert(*key, *version);
            }
            (Op::Get { key }, Outcome::Returned(Ret::Absent))
            | (Op::Remove { key }, Outcome::Returned(Ret::Done)) => {
                open.versions.remove(key);
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Folders> {
        self.folders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends an operation as the request that it is.
async fn send(client: &Client, folder: &str, op: &Op) -> Result<Response> {
    let (mount, rest) = folder.split_once('/').unwrap_or((folder, ""));
    let data = |key: u8| format!("{mount}/data/{rest}/k{key}");
    let metadata = |key: u8| format!("{mount}/metadata/{rest}/k{key}");
    match *op {
        Op::Put { key, value } => {
            client.call("POST", &data(key), Some(&json!({ "data": { "value": value } }))).await
        }
        Op::Cas { key, expected, value } => {
            let body = json!({ "data": { "value": value }, "options": { "cas": expected } });
            client.call("POST", &data(key), Some(&body)).await
        }
        Op::Delete { key } => client.call("DELETE", &data(key), None).await,
        Op::Remove { key } => client.call("DELETE", &metadata(key), None).await,
        Op::Get { key } => client.call("GET", &data(key), None).await,
        Op::List => client.call("LIST", &format!("{mount}/metadata/{rest}/"), None).await,
    }
}

/// What an answer, or none, says about the operation. A node that answers 503 or 507 says that nothing was done, and is
/// taken at its word; 409 says that nobody knows; any other failure on the server's side is no answer to give.
fn outcome(op: &Op, result: Result<Response>) -> Outcome {
    match result {
        Err(error @ Error::NotSent(_)) => Outcome::Refused(error.to_string()),
        Err(error) => Outcome::Unknown(error.to_string()),
        Ok(response) => match response.status {
            503 | 507 => Outcome::Refused(response.refused().to_string()),
            409 => Outcome::Unknown(response.refused().to_string()),
            _ => {
                let strange = || Ret::Strange(response.refused().to_string());
                Outcome::Returned(answer(op, &response).unwrap_or_else(strange))
            }
        },
    }
}

fn answer(op: &Op, response: &Response) -> Option<Ret> {
    let data = response.data();
    match (op, response.status) {
        (Op::Put { .. } | Op::Cas { .. }, 200) => Some(Ret::Written(data["version"].as_u64()?)),
        (Op::Cas { .. }, 400) if response.errors().contains("did not match the current version") => {
            Some(Ret::Conflict)
        }
        (Op::Delete { .. } | Op::Remove { .. }, 204) => Some(Ret::Done),
        (Op::Get { .. }, 200) => {
            let (version, value) = (data["metadata"]["version"].as_u64()?, data["data"]["value"].as_u64()?);
            Some(Ret::Found { version, value })
        }
        (Op::Get { .. }, 404) if data.is_null() && response.errors().is_empty() => Some(Ret::Absent),
        (Op::Get { .. }, 404) => {
            let metadata = &data["metadata"];
            let deleted = metadata["deletion_time"] != "" && metadata["destroyed"] == false;
            if deleted { Some(Ret::Deleted(metadata["version"].as_u64()?)) } else { None }
        }
        (Op::List, 200) => {
            let names = data["keys"].as_array()?.iter().map(Value::as_str);
            let key = |name: Option<&str>| name?.strip_prefix('k')?.parse().ok();
            Some(Ret::Listed(names.map(key).collect::<Option<_>>()?))
        }
        (Op::List, 404) if response.errors().is_empty() => Some(Ret::Listed([].into())),
        _ => None,
    }
}

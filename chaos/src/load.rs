//! Writes whose acknowledgements are remembered, and the check that none of them was lost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{Client, Cluster, Error, Result};

/// The most writes one writer makes.
const MOST_WRITES: u64 = 1_000_000;

/// How one write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The server said that it is there.
    Acknowledged,
    /// Nobody knows: it may be there or not.
    Unknown,
    /// The server, or the connection, said that it is not there.
    Refused,
}

/// Everything that was written.
#[derive(Debug, Default, Clone)]
pub struct History {
    writes: BTreeMap<String, Ended>,
    /// Texts of the answers that were neither success nor lost.
    pub refusals: Vec<String>,
}

impl History {
    /// How many writes ended in one way.
    pub fn count(&self, ended: Ended) -> usize {
        self.writes.values().filter(|write| **write == ended).count()
    }

    /// Reads every write back from every given node: what was acknowledged must be there with its value, what was
    /// refused must not be, what is unknown must be the same on all.
    ///
    /// # Errors
    /// [`Error::Broken`] with the first few violations.
    pub async fn check(&self, cluster: &Cluster, nodes: &[usize]) -> Result<()> {
        let mut violations = Vec::new();
        let mut readers = Vec::with_capacity(nodes.len());
        for at in nodes {
            let paths: Vec<String> = self.writes.keys().cloned().collect();
            readers.push((*at, tokio::spawn(read_all(cluster.at(*at).client(), paths))));
        }
        let mut found = Vec::with_capacity(nodes.len());
        for (at, reader) in readers {
            found.push((at, reader.await.map_err(|error| Error::Broken(error.to_string()))??));
        }
        for (n, (path, ended)) in self.writes.iter().enumerate() {
            let mut seen = Vec::new();
            for (at, values) in &found {
                let value = &values[n];
                let right = value.as_ref().is_none_or(|value| value["value"] == value_of(path));
                if !right {
                    violations.push(format!("{path} on node {at} has a value that nobody wrote"));
                }
                seen.push(value.is_some());
            }
            let wrong = match ended {
                Ended::Acknowledged => seen.contains(&false),
                Ended::Refused => seen.contains(&true),
                Ended::Unknown => seen.contains(&true) && seen.contains(&false),
            };
            if wrong {
                violations.push(format!("{path}: {ended:?}, found {seen:?}"));
            }
        }
        if violations.is_empty() {
            return Ok(());
        }
        violations.truncate(10);
        Err(Error::Broken(format!("{} writes checked: {}", self.writes.len(), violations.join("; "))))
    }
}

/// Reads every path through one client, a few at a time; what is not there is `None`.
async fn read_all(client: Client, paths: Vec<String>) -> Result<Vec<Option<Value>>> {
    const AT_ONCE: usize = 4;
    let mut readers = Vec::with_capacity(AT_ONCE);
    for part in paths.chunks(paths.len().div_ceil(AT_ONCE).max(1)) {
        let (client, part) = (client.clone(), part.to_vec());
        readers.push(tokio::spawn(async move {
            let mut values = Vec::with_capacity(part.len());
            for path in part {
                let response = client.call("GET", &format!("secret/data/{path}"), None).await?;
                values.push(match response.status {
                    404 => None,
                    _ => Some(response.ok()?.data()["data"].take()),
                });
            }
            Ok::<_, Error>(values)
        }));
    }
    let mut values = Vec::with_capacity(paths.len());
    for reader in readers {
        values.extend(reader.await.map_err(|error| Error::Broken(error.to_string()))??);
    }
    Ok(values)
}

fn value_of(path: &str) -> String {
    format!("value of {path}")
}

/// Writers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    history: Arc<Mutex<History>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts writers. Each goes round the clients, takes the next one after a failure, and writes a fresh key
    /// each time, so that a lost acknowledgement can be told from a lost write.
    pub fn start(clients: &[Client], writers: usize, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let history = Arc::new(Mutex::new(History::default()));
        let tasks = (0..writers).map(|writer| {
            let (clients, stop, history) = (clients.to_vec(), stop.clone(), history.clone());
            tokio::spawn(async move {
                for n in 0..MOST_WRITES {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    let client = &clients[(writer + n as usize) % clients.len()];
                    write(client, &format!("load/w{writer}/{n}"), &history).await;
                    tokio::time::sleep(pause).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, history, tasks }
    }

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).count(Ended::Acknowledged)
    }

    /// Stops the writers, lets what is in flight end, and gives what happened.
    pub async fn stop(mut self) -> History {
        self.stop.store(true, Ordering::Release);
        for task in self.tasks.drain(..) {
            // A writer that panicked has no more writes to tell of.
            drop(task.await);
        }
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn write(client: &Client, path: &str, history: &Mutex<History>) {
    let body = json!({ "data": { "value": value_of(path) } });
    let result = client.call("POST", &format!("secret/data/{path}"), Some(&body)).await.and_then(|r| r.ok());
    let ended = match &result {
        Ok(_) => Ended::Acknowledged,
        Err(error) if error.outcome_unknown() => Ended::Unknown,
        Err(_) => Ended::Refused,
    };
    let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error @ Error::Status { .. }) = result {
        history.refusals.push(error.to_string());
    }
    history.writes.insert(path.into(), ended);
}

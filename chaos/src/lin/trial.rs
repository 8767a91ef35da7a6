//! A cluster, clients and faults for a while; then the verdict.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    check::{Checked, check},
    clients::{Ground, Habits},
    faults::Fault,
    history::Recording,
    seed::Seed,
};
use crate::{Cluster, Error, Result};

/// How long the cluster may take to be well again after the last fault.
const RECOVERY: Duration = Duration::from_secs(20);

/// What is to be done, by one seed.
pub struct Trial<'a> {
    /// The cluster, ready, with a net between its nodes.
    pub cluster: &'a Cluster,
    /// What everything is drawn from.
    pub seed: u64,
    /// For how long faults are made.
    pub length: Duration,
    /// Answers without which a history proves little: where they take longer, as on a busy machine, faults are
    /// made for up to four times the length.
    pub answers: usize,
    /// What clients do.
    pub habits: Habits,
    /// What may be done to the nodes; with none, nothing is.
    pub faults: &'a [Fault],
    /// The longest quiet time between two faults.
    pub quiet_at_most: Duration,
}

impl<'a> Trial<'a> {
    /// A trial with the usual habits and pauses.
    pub fn new(cluster: &'a Cluster, seed: u64, length: Duration, faults: &'a [Fault]) -> Self {
        let quiet_at_most = Duration::from_millis(900);
        Self { cluster, seed, length, answers: 0, habits: Habits::default(), faults, quiet_at_most }
    }

    /// Carries it out.
    ///
    /// # Errors
    /// When the cluster does not recover from a fault, or does not answer at the end.
    pub async fn run(&self) -> Result<Recording> {
        let recording = Arc::new(Recording::default());
        let result = Box::pin(self.record(&recording)).await;
        if let Err(error) = result {
            let file = self.save(&recording)?;
            return Err(Error::Broken(format!("{error}\nthe history is in {}", file.display())));
        }
        // The clients, which shared it, are gone.
        Arc::try_unwrap(recording).map_err(|_| Error::Broken("a client did not end".into()))
    }

    /// Judges what was recorded.
    ///
    /// # Errors
    /// [`Error::Broken`] with the operations that cannot be explained, the file with all of them, and how to
    /// judge it again.
    pub fn judge(&self, recording: &Recording) -> Result<Checked> {
        match check(&recording.operations()) {
            Ok(checked) => Ok(checked),
            Err(violation) => {
                let file = self.save(recording)?;
                let file = file.display();
                Err(Error::Broken(format!(
                    "{violation}\nto judge the whole history again: \
                     cargo run -p keystead-chaos --example check_history {file}"
                )))
            }
        }
    }

    async fn record(&self, recording: &Arc<Recording>) -> Result<()> {
        let seed = Seed::new(self.seed);
        let nodes = self.cluster.nodes().iter().map(|node| node.client()).collect();
        // Two trials with one seed on one cluster must not meet, so the name is not drawn from the seed.
        let name = format!("lin/{:x}", Seed::new(getrandom::u64().unwrap_or(self.seed)).next());
        let ground = Arc::new(Ground::new(self.habits.clone(), &name, nodes, recording.clone()));
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..self.habits.clients {
            let (ground, seed) = (ground.clone(), seed.part(1 + number as u64));
            clients.spawn(async move { ground.client(number, seed).await });
        }
        let struck = self.strike(seed.part(0), recording).await;
        ground.stop();
        // A client that panicked is a fault of this crate, and no history to judge.
        while let Some(ended) = clients.join_next().await {
            ended.map_err(|error| Error::Broken(format!("a client: {error}")))?;
        }
        struck?;
        for through in 0..self.cluster.nodes().len() {
            self.cluster.serves(through, RECOVERY).await?;
        }
        ground.read_all(seed.part(1_000)).await
    }

    async fn strike(&self, mut seed: Seed, recording: &Recording) -> Result<()> {
        let start = Instant::now();
        let more = || {
            start.elapsed() < self.length
                || (recording.answers() < self.answers && start.elapsed() < self.length * 4)
        };
        while more() {
            let quiet_ms = u64::try_from(self.quiet_at_most.as_millis()).unwrap_or(u64::MAX).max(1);
            let quiet = Duration::from_millis(seed.below(quiet_ms));
            tokio::time::sleep(quiet).await;
            if !self.faults.is_empty() {
                let fault = *seed.pick(self.faults);
                Box::pin(fault.strike(self.cluster, &mut seed, recording)).await?;
            }
        }
        Ok(())
    }

    fn save(&self, recording: &Recording) -> Result<PathBuf> {
        let name = format!("keystead-history-{}-{}.jsonl", self.seed, std::process::id());
        let file = std::env::temp_dir().join(name);
        recording.save(&file)?;
        Ok(file)
    }
}

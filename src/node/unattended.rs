//! Opening a node that nobody has to open: its seals are asked for the root key, over and over, until one gives it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::Node;
use crate::{
    core::node_ops::SealBackend,
    seal::{AutoSeal, SealConfig, SealFault, SealKind, UnattendedError},
    secret::{RootKey, random_array},
};

/// The first pause between two attempts; each is twice the one before, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The seals of this node that open by themselves, and what is known of each.
#[derive(Default)]
pub struct Seals {
    /// In the order in which they are tried.
    all: Vec<Arc<dyn AutoSeal>>,
    /// Names of those that are migrated away from.
    disabled: HashSet<String>,
    /// What went wrong last and since when something does, in milliseconds since the Unix epoch, by the seal's name.
    faults: Mutex<HashMap<String, (SealFault, u64)>>,
}

impl Seals {
    /// The seals, in the order in which they are tried, and the names of those that are migrated away from.
    pub fn new(all: Vec<Arc<dyn AutoSeal>>, disabled: HashSet<String>) -> Self {
        Self { all, disabled, faults: Mutex::default() }
    }

    /// Those that a vault is to be opened by.
    pub fn enabled(&self) -> Vec<Arc<dyn AutoSeal>> {
        self.all.iter().filter(|seal| !self.is_disabled(seal.name())).cloned().collect()
    }

    /// Whether the seal of that name is migrated away from.
    pub fn is_disabled(&self, name: &str) -> bool {
        self.disabled.contains(name)
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<dyn AutoSeal>] {
        &self.all
    }

    /// Whether the seal worked when it was last used.
    pub fn works(&self, name: &str) -> bool {
        !self.faults.lock().contains_key(name)
    }

    /// The enabled seals, in a vault that is opened as `config` says.
    pub fn backends(&self, config: Option<&SealConfig>) -> Vec<SealBackend> {
        let faults = self.faults.lock();
        let of = |seal: &Arc<dyn AutoSeal>| {
            let name = seal.name().to_owned();
            let mut entries = config.into_iter().flat_map(SealConfig::unattended);
            SealBackend {
                unhealthy_since_ms: faults.get(&name).map(|(_, since_ms)| *since_ms),
                wraps: entries.any(|(entry, _)| entry.name == name && entry.kind() == seal.kind()),
                name,
            }
        };
        self.enabled().iter().map(of).collect()
    }

    /// What an operator should look after, in a vault that is opened as `config` says.
    pub fn warnings(&self, config: Option<&SealConfig>) -> Vec<String> {
        let mut warnings = self.faults_in_words();
        let Some(config) = config else { return warnings };
        warnings.extend(Self::only_way(config));
        let entries: Vec<_> = config.unattended().map(|(entry, _)| entry).collect();
        if entries.iter().any(|entry| entry.kind() == SealKind::File) {
            let text =
                "this vault is opened by a key in a file, which protects nothing: for development only";
            warnings.push(text.to_owned());
        }
        for seal in self.enabled() {
            if !entries.iter().any(|entry| entry.name == seal.name() && entry.kind() == seal.kind()) {
                warnings.push(format!(
                    "the root key is not wrapped by the seal \"{}\": it cannot open this vault",
                    seal.name()
                ));
            }
        }
        warnings
    }

    /// What is said as long as a single seal opens the vault and nothing else does.
    pub fn only_way(config: &SealConfig) -> Option<String> {
        let mut entries = config.unattended();
        let (only, _) = entries.next()?;
        (entries.next().is_none() && config.shamir().is_none()).then(|| {
            format!(
                "nothing but the seal \"{}\" opens this vault: without it the data is lost; configure a second seal, or hand out break-glass shares",
                only.name
            )
        })
    }

    fn faults_in_words(&self) -> Vec<String> {
        let faults = self.faults.lock();
        let of = |seal: &Arc<dyn AutoSeal>| {
            faults
                .get(seal.name())
                .map(|(fault, _)| format!("seal \"{}\" does not work: {fault}", seal.name()))
        };
        self.all.iter().filter_map(of).collect()
    }

    /// Takes note of how a seal did, and logs what is new.
    pub fn note(&self, seal: &dyn AutoSeal, result: Result<(), SealFault>) {
        let name = seal.name();
        metrics::gauge!("keystead_seal_healthy", "seal" => name.to_owned()).set(f64::from(result.is_ok()));
        let mut faults = self.faults.lock();
        match result {
            Ok(()) => {
                if faults.remove(name).is_some() {
                    tracing::info!(seal = name, "a seal works again");
                }
            }
            Err(fault) => {
                let before = faults.get(name);
                if before.is_none_or(|(known, _)| *known != fault) {
                    tracing::warn!(seal = name, %fault, "a seal does not work");
                }
                let since_ms = before.map_or_else(keystead_raft::clock::wall_ms, |(_, since_ms)| *since_ms);
                faults.insert(name.to_owned(), (fault, since_ms));
            }
        }
    }
}

impl Node {
    /// Opens this node as soon as its seals can. It ends when the node is open, or was sealed by an operator: who seals
    /// a node wants it sealed, until it is started again.
    pub(super) fn spawn_unattended(self: Arc<Self>) {
        if self.settings.seals.all().is_empty() {
            return;
        }
        let node = Arc::downgrade(&self);
        let mut stopping = self.stopping.subscribe();
        let mut wanted = self.opens_itself.subscribe();
        drop(self);
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let Some(node) = node.upgrade() else { return };
                if !*node.opens_itself.borrow() || node.keys.read().is_some() {
                    return;
                }
                // An opening that is under way may wait for a leader to let this node in.
                let tried = if node.is_opening() { Tried::Nothing } else { node.try_seals().await };
                pause = match tried {
                    Tried::Opened | Tried::Nothing => FIRST_PAUSE,
                    Tried::Failed => (pause * 2).min(LONGEST_PAUSE),
                };
                drop(node);
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => return,
                    _ = wanted.wait_for(|wanted| !*wanted) => return,
                    () = tokio::time::sleep(jittered(pause, random_array())) => {}
                }
            }
        });
    }

    /// Asks every seal that a known configuration has an entry for.
    async fn try_seals(&self) -> Tried {
        let configs = match self.seal_configs() {
            Ok(configs) if configs.is_empty() => return Tried::Nothing,
            Ok(configs) => configs,
            Err(error) => {
                tracing::warn!(%error, "the seal configuration cannot be read");
                return Tried::Failed;
            }
        };
        let mut tried = Tried::Nothing;
        let seals = &self.settings.seals;
        // Away from the last seal it goes by shares only, and those are typed in.
        let all = if seals.enabled().is_empty() { &[] } else { seals.all() };
        for config in configs {
            for seal in all {
                match self.ask_seal(&**seal, &config).await {
                    None => {}
                    Some(Err(())) => tried = Tried::Failed,
                    Some(Ok(root)) => return self.open_by_itself(config, root, seal.name()).await,
                }
            }
        }
        tried
    }

    /// The root key from one seal; `None` where there is nothing to ask it.
    pub(super) async fn ask_seal(
        &self,
        seal: &dyn AutoSeal,
        config: &SealConfig,
    ) -> Option<Result<RootKey, ()>> {
        let mut entries = config.unattended();
        let entry = entries.find(|(entry, _)| entry.name == seal.name() && entry.kind() == seal.kind())?;
        let seals = &self.settings.seals;
        // A seal that needs somebody is asked as well: it knows itself what it must not try again, such as a wrong PIN.
        Some(match config.open_with(seal, entry).await {
            Ok(root) => {
                seals.note(seal, Ok(()));
                Ok(root)
            }
            Err(error) => {
                let fault = match error {
                    UnattendedError::Seal(fault) => fault,
                    UnattendedError::Wrap(_) | UnattendedError::Config(_) => SealFault::NotOurs(format!(
                        "{error}; what this node was offered, or has on its disk, is not what the seal wrapped"
                    )),
                };
                seals.note(seal, Err(fault));
                Err(())
            }
        })
    }

    async fn open_by_itself(&self, config: SealConfig, root: RootKey, seal: &str) -> Tried {
        let _one = self.lifecycle.lock().await;
        // Somebody may have sealed it meanwhile, or key holders have been faster.
        if !*self.opens_itself.borrow() || self.keys.read().is_some() {
            return Tried::Opened;
        }
        match self.open_and_wait(config, root).await {
            Ok(()) => {
                tracing::info!(seal, "a seal gave the root key");
                Tried::Opened
            }
            Err(error) => {
                tracing::warn!(seal, %error, "the seal gave the root key, and the node could not be opened");
                Tried::Failed
            }
        }
    }
}

/// Half to all of a pause: nodes that lost one token at the same moment are not to ask it at the same moment.
fn jittered(pause: Duration, random: [u8; 2]) -> Duration {
    pause / 2 + (pause / 2).mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX))
}

/// What came of asking the seals.
enum Tried {
    /// The node is open, or opening.
    Opened,
    /// There was nothing to open, or no seal to ask.
    Nothing,
    /// No seal could.
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_spread_over_their_upper_half() {
        let pause = Duration::from_secs(8);
        assert_eq!(jittered(pause, [0, 0]), pause / 2);
        assert_eq!(jittered(pause, [255, 255]), pause);
        let middle = jittered(pause, [128, 0]);
        assert!(middle > pause * 7 / 10 && middle < pause * 8 / 10, "{middle:?}");
    }
}

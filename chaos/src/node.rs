//! One node: its files, its process, what it answers.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::{Client, Error, Faults, NodeConfig, Process, Response, Result, wait};

/// How long a node may take until its API answers.
pub const START: Duration = Duration::from_secs(20);
/// How long a node may take to stop when asked to.
pub const STOP: Duration = Duration::from_secs(20);

/// A node of a cluster under test. Killed when dropped.
pub struct Node {
    /// Its configuration; changes count from the next start.
    config: Mutex<NodeConfig>,
    directory: PathBuf,
    binary: PathBuf,
    tls: Option<Arc<ClientConfig>>,
    client: Mutex<Client>,
    process: Mutex<Option<Process>>,
    pid: Arc<AtomicU32>,
    faults: Mutex<Option<Faults>>,
}

impl Node {
    /// A node that is not running yet. Its configuration and log are kept in `directory`.
    pub fn new(
        config: NodeConfig,
        directory: PathBuf,
        binary: PathBuf,
        tls: Option<Arc<ClientConfig>>,
    ) -> Self {
        let client = Mutex::new(Client::new(config.api, tls.clone()));
        Self {
            config: Mutex::new(config),
            directory,
            binary,
            tls,
            client,
            process: Mutex::new(None),
            pid: Arc::default(),
            faults: Mutex::new(None),
        }
    }

    /// The operator's name of the place.
    pub fn name(&self) -> String {
        self.config().node_id
    }

    /// A copy of its configuration.
    pub fn config(&self) -> NodeConfig {
        lock(&self.config).clone()
    }

    /// Changes the configuration that the next start reads.
    pub fn configure(&self, change: impl FnOnce(&mut NodeConfig)) {
        let mut config = lock(&self.config);
        let api = config.api;
        change(&mut config);
        if config.api != api {
            let mut client = lock(&self.client);
            *client = client.clone().moved_to(config.api);
        }
    }

    /// Where its API is served.
    pub fn api(&self) -> SocketAddr {
        self.config().api
    }

    /// Base URL of its API.
    pub fn url(&self) -> String {
        self.config().api_url()
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.config().data
    }

    /// The file that everything it printed is appended to.
    pub fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// Everything it printed, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The file of its configuration.
    pub fn config_file(&self) -> PathBuf {
        self.directory.join("config.hcl")
    }

    /// What a client needs to trust it.
    pub fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.tls.clone()
    }

    /// A client of it, with the token that it was given. Clones share connections.
    pub fn client(&self) -> Client {
        lock(&self.client).clone()
    }

    /// From now on [`client`](Self::client) presents a token.
    pub fn set_token(&self, token: &str) {
        let mut client = lock(&self.client);
        *client = client.clone().with_token(token);
    }

    /// Faults of its disk and its clocks, free of any at first. They reach the process from the first start after
    /// the first call.
    ///
    /// # Errors
    /// Those of [`Faults::new`].
    pub fn faults(&self) -> Result<Faults> {
        let mut faults = lock(&self.faults);
        if let Some(faults) = &*faults {
            return Ok(faults.clone());
        }
        let new = Faults::new(&self.directory.join("faults"))?;
        *faults = Some(new.clone());
        Ok(new)
    }

    /// The process id, or 0; shared, for what wants to follow it over restarts.
    pub fn pid_cell(&self) -> Arc<AtomicU32> {
        self.pid.clone()
    }

    /// The process id, or 0 while it is not running.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Acquire)
    }

    /// Writes the configuration and starts the process, without waiting for anything.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn spawn(&self) -> Result<()> {
        std::fs::create_dir_all(&self.directory).map_err(Error::io("directory of a node"))?;
        std::fs::write(self.config_file(), self.config().to_hcl()).map_err(Error::io("configuration"))?;
        let mut command = Command::new(&self.binary);
        command.arg("server").arg(format!("-config={}", self.config_file().display()));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["VAULT_", "KEYSTEAD_", "BAO_"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.env("HOME", &self.directory);
        command.envs(self.config().environment);
        if let Some(faults) = &*lock(&self.faults) {
            command.envs(faults.env());
        }
        let process = Process::start(&self.name(), command, &self.log_file())?;
        self.pid.store(process.pid(), Ordering::Release);
        *self.process() = Some(process);
        Ok(())
    }

    /// Starts it and waits until its API answers.
    ///
    /// # Errors
    /// [`Error::Ended`] with its log when it gives up, [`Error::Deadline`].
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        self.up().await
    }

    /// Waits until the API of a process that was started answers.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn up(&self) -> Result<()> {
        let what = format!("the API of {}", self.name());
        let up = async || -> Result<()> {
            self.alive()?;
            self.client().with_timeout(Duration::from_secs(2)).call("GET", "sys/seal-status", None).await?;
            Ok(())
        };
        wait::until(&what, START, || async {
            match up().await {
                // No use in waiting for the dead.
                Err(error @ Error::Ended { .. }) => Ok(Err(error)),
                Err(error) => Err(error),
                Ok(()) => Ok(Ok(())),
            }
        })
        .await?
    }

    /// Fails if it should be running and is not.
    ///
    /// # Errors
    /// [`Error::Ended`] with the end of its log.
    pub fn alive(&self) -> Result<()> {
        match &*self.process() {
            Some(process) => process.alive(),
            None => Err(Error::Broken(format!("{} was not started", self.name()))),
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process().as_ref().is_some_and(|process| process.ended().is_none())
    }

    /// SIGKILL; gone when this returns.
    pub fn kill(&self) {
        self.pid.store(0, Ordering::Release);
        if let Some(process) = self.process().take() {
            process.kill();
        }
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// [`Error::Deadline`] when it does not end; it is then killed.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.pid.store(0, Ordering::Release);
        let Some(process) = self.process().take() else {
            return Err(Error::Broken(format!("{} is not running", self.name())));
        };
        process.signal(Signal::TERM)?;
        process.wait(STOP).await
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn ends(&self, at_most: Duration) -> Result<ExitStatus> {
        let Some(process) = self.process().take() else {
            return Err(Error::Broken(format!("{} is not running", self.name())));
        };
        process.wait(at_most).await
    }

    /// SIGSTOP: it stands still, its connections stay open.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match &*self.process() {
            Some(process) => process.signal(signal),
            None => Ok(()),
        }
    }

    /// Removes all its data. It must not be running.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn wipe(&self) -> Result<()> {
        std::fs::remove_dir_all(self.data()).map_err(Error::io("wiping a node"))
    }

    /// `sys/seal-status`.
    ///
    /// # Errors
    /// Those of [`Client::call`], [`Error::Status`].
    pub async fn seal_status(&self) -> Result<Value> {
        Ok(self.client().call("GET", "sys/seal-status", None).await?.ok()?.json())
    }

    /// Gives shares until the node says that it is unsealed.
    ///
    /// # Errors
    /// [`Error::Broken`] when it is still sealed after the last one.
    pub async fn unseal(&self, shares: &[String]) -> Result<()> {
        let client = self.client();
        for share in shares {
            let status = client.call("PUT", "sys/unseal", Some(&json!({ "key": share }))).await?.ok()?;
            if status.json()["sealed"] == false {
                return Ok(());
            }
        }
        Err(Error::Broken(format!("{} is still sealed after {} shares", self.name(), shares.len())))
    }

    /// Waits until `sys/health` answers with one of some statuses.
    ///
    /// # Errors
    /// [`Error::Deadline`], [`Error::Ended`].
    pub async fn health(&self, statuses: &[u16], at_most: Duration) -> Result<u16> {
        let what = format!("{} to be one of {statuses:?}", self.name());
        wait::until(&what, at_most, || async {
            self.alive().map_err(|error| error.to_string())?;
            let client = self.client().with_timeout(Duration::from_secs(2));
            match client.call("GET", "sys/health", None).await {
                Ok(response) if statuses.contains(&response.status) => Ok(response.status),
                Ok(response) => Err(format!("{} {}", response.status, response.text())),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    /// Writes fields to `secret/<path>` (kv v2) and gives the version.
    ///
    /// # Errors
    /// Those of [`Client::call`], [`Error::Status`].
    pub async fn put(&self, path: &str, data: &Value) -> Result<u64> {
        let body = json!({ "data": data });
        let response = self.client().call("POST", &format!("secret/data/{path}"), Some(&body)).await?.ok()?;
        Ok(response.data()["version"].as_u64().unwrap_or(0))
    }

    /// Writes to `secret/<path>` if its version is `version`.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn cas(&self, path: &str, version: u64, data: &Value) -> Result<u64> {
        let body = json!({ "data": data, "options": { "cas": version } });
        let response = self.client().call("POST", &format!("secret/data/{path}"), Some(&body)).await?.ok()?;
        Ok(response.data()["version"].as_u64().unwrap_or(0))
    }

    /// Reads `secret/<path>`: the fields, or `None` if there is nothing.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn get(&self, path: &str) -> Result<Option<Value>> {
        let response = self.client().call("GET", &format!("secret/data/{path}"), None).await?;
        match response.status {
            404 => Ok(None),
            _ => Ok(Some(response.ok()?.data()["data"].take())),
        }
    }

    /// Lists `secret/<path>`.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub async fn list(&self, path: &str) -> Result<Vec<String>> {
        let response = self.client().call("LIST", &format!("secret/metadata/{path}"), None).await?;
        if response.status == 404 {
            return Ok(Vec::new());
        }
        let data = response.ok()?.data();
        let keys = data["keys"].as_array().into_iter().flatten();
        Ok(keys.filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// Any request, by its path after `/v1/`.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Response> {
        self.client().call(method, path, body).await
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.process)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Copies a directory with everything in it.
///
/// # Errors
/// [`Error::Io`].
pub fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::io("copying"))?;
    for entry in std::fs::read_dir(from).map_err(Error::io("copying"))?.flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target).map_err(Error::io("copying"))?;
        }
    }
    Ok(())
}

//! A cluster of real processes on loopback, by stock configuration.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Cli, Error, Net, Node, NodeConfig, Pki, Result, ports, wait};

/// How long an election may take where nothing is measured.
pub const ELECTION: Duration = Duration::from_secs(15);
/// How much of a node's log is shown, in bytes.
const LOG_TAIL_BYTES: usize = 3_000;
/// How long a node may take to join.
pub const JOIN: Duration = Duration::from_secs(20);

/// The shares and the first token.
#[derive(Clone)]
pub struct Keys {
    /// Shares in base64.
    pub shares: Vec<String>,
    /// The root token.
    pub root_token: String,
}

type Change = Box<dyn Fn(usize, &mut NodeConfig)>;

/// How a cluster is to be.
pub struct Builder {
    binary: PathBuf,
    nodes: usize,
    name: String,
    proxied: bool,
    faulty: bool,
    changes: Vec<Change>,
}

impl Builder {
    /// A cluster of `nodes` processes of a binary. `KEYSTEAD_BIN` overrides the binary.
    pub fn new(binary: impl Into<PathBuf>, nodes: usize) -> Self {
        let binary = std::env::var_os("KEYSTEAD_BIN").map_or_else(|| binary.into(), PathBuf::from);
        Self { binary, nodes, name: "n".into(), proxied: false, faulty: false, changes: Vec::new() }
    }

    /// What the nodes' names begin with.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Puts a [`Net`] between the nodes' cluster ports.
    #[must_use]
    pub fn with_net(mut self) -> Self {
        self.proxied = true;
        self
    }

    /// Starts every node so that its disk and its clocks can be made to fail, see [`Node::faults`].
    #[must_use]
    pub fn with_faults(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// Changes each node's configuration before it is started; the number is the node's.
    #[must_use]
    pub fn configure(mut self, change: impl Fn(usize, &mut NodeConfig) + 'static) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// Lays out the files; starts nothing.
    ///
    /// # Errors
    /// [`Error::NoBinary`], [`Error::Io`].
    pub async fn prepare(self) -> Result<Cluster> {
        if !self.binary.is_file() {
            return Err(Error::NoBinary(self.binary));
        }
        let directory = tempfile::Builder::new()
            .prefix("keystead-")
            .tempdir()
            .map_err(Error::io("temporary directory"))?;
        let pki = Pki::new(&directory.path().join("tls"))?;
        let mut configs = Vec::with_capacity(self.nodes);
        for at in 0..self.nodes {
            let node_id = format!("{}{}", self.name, at + 1);
            let cluster = ports::free()?;
            configs.push(NodeConfig {
                data: directory.path().join(&node_id).join("data"),
                api: ports::free()?,
                cluster,
                cluster_advertised: if self.proxied { ports::free()? } else { cluster },
                tls: Some(pki.issue(&node_id)?),
                node_id,
                retry_join: Vec::new(),
                log_level: "info".into(),
                storage_lines: Vec::new(),
                listener_lines: Vec::new(),
                lines: Vec::new(),
                environment: Vec::new(),
            });
        }
        let apis: Vec<_> = configs.iter().map(|config| config.api).collect();
        for (at, config) in configs.iter_mut().enumerate() {
            let others = apis.iter().enumerate().filter(|(other, _)| *other != at);
            config.retry_join = others.map(|(_, api)| (*api, pki.ca_file())).collect();
            for change in &self.changes {
                change(at, config);
            }
        }
        let mut cluster =
            Cluster { binary: self.binary, pki, nodes: Vec::new(), net: None, keys: None, directory };
        let ends: Vec<_> = configs.iter().map(|config| (config.cluster_advertised, config.cluster)).collect();
        for config in configs {
            cluster.nodes.push(cluster.node(config));
        }
        if self.faulty {
            for node in &cluster.nodes {
                node.faults()?;
            }
        }
        if self.proxied {
            let pids = cluster.nodes.iter().map(|node| node.pid_cell()).collect();
            cluster.net = Some(Net::start(&ends, pids).await?);
        }
        Ok(cluster)
    }

    /// Starts every process; nothing is initialised.
    ///
    /// # Errors
    /// Those of [`Node::start`].
    pub async fn start(self) -> Result<Cluster> {
        let cluster = self.prepare().await?;
        for node in &cluster.nodes {
            node.start().await?;
        }
        Ok(cluster)
    }

    /// Starts everything, initialises (5 shares, 3 needed), unseals, waits for all to be voters and mounts kv v2
    /// at `secret/`.
    ///
    /// # Errors
    /// Those of every step.
    pub async fn ready(self) -> Result<Cluster> {
        let mut cluster = self.start().await?;
        let result = cluster.make_ready().await;
        if result.is_err() {
            cluster.show_logs();
        }
        result.map(|()| cluster)
    }
}

/// Processes, their files, and what opens them. All of it is gone when this is dropped.
pub struct Cluster {
    binary: PathBuf,
    pki: Pki,
    nodes: Vec<Node>,
    net: Option<Net>,
    keys: Option<Keys>,
    // Last, so that the processes are gone before their files.
    directory: TempDir,
}

impl Cluster {
    /// The directory that everything lies in.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The authority of the API's certificates.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// What a client needs to trust the nodes.
    pub fn tls(&self) -> Arc<ClientConfig> {
        self.pki.client()
    }

    /// The nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    pub fn at(&self, at: usize) -> &Node {
        &self.nodes[at]
    }

    /// The network between the nodes, if the cluster was built with one.
    ///
    /// # Panics
    /// If it was not.
    pub fn net(&self) -> &Net {
        self.net.as_ref().expect("built with a net")
    }

    /// Shares and token.
    ///
    /// # Panics
    /// Before [`init`](Self::init).
    pub fn keys(&self) -> &Keys {
        self.keys.as_ref().expect("initialised")
    }

    /// As many shares as are needed.
    pub fn shares(&self) -> &[String] {
        &self.keys().shares[..3]
    }

    /// Takes shares that were made since, which open the nodes from now on. At least three.
    ///
    /// # Panics
    /// Before the vault was initialised.
    pub fn replace_shares(&mut self, shares: Vec<String>) {
        self.keys.as_mut().expect("initialised").shares = shares;
    }

    /// A further node with files in this cluster's directory, not started, not in [`nodes`](Self::nodes).
    pub fn node(&self, config: NodeConfig) -> Node {
        let directory = self.directory.path().join(&config.node_id);
        let tls = config.tls.is_some().then(|| self.pki.client());
        let node = Node::new(config, directory, self.binary.clone(), tls);
        if let Some(keys) = &self.keys {
            node.set_token(&keys.root_token);
        }
        node
    }

    /// The configuration of a further node that is to join this cluster.
    ///
    /// # Errors
    /// Those of making ports and certificates.
    pub fn newcomer(&self, node_id: &str) -> Result<NodeConfig> {
        let cluster = ports::free()?;
        Ok(NodeConfig {
            node_id: node_id.into(),
            data: self.directory.path().join(node_id).join("data"),
            api: ports::free()?,
            cluster,
            cluster_advertised: cluster,
            tls: Some(self.pki.issue(node_id)?),
            retry_join: self.nodes.iter().map(|node| (node.api(), self.pki.ca_file())).collect(),
            log_level: "info".into(),
            storage_lines: Vec::new(),
            listener_lines: Vec::new(),
            lines: Vec::new(),
            environment: Vec::new(),
        })
    }

    async fn make_ready(&mut self) -> Result<()> {
        self.init(0).await?;
        self.unseal_all().await?;
        self.voters(self.nodes.len(), JOIN).await?;
        self.mount_kv().await
    }

    /// What a failed test leaves behind to be read: the end of each node's log, on standard error.
    pub fn show_logs(&self) {
        for node in &self.nodes {
            let log = node.log();
            let from = log.char_indices().rev().map(|(at, _)| at).find(|at| log.len() - at >= LOG_TAIL_BYTES);
            eprintln!("--- the end of {}'s log ---\n{}", node.name(), &log[from.unwrap_or(0)..]);
        }
    }

    /// Initialises on one node: 5 shares, 3 of them needed.
    ///
    /// # Errors
    /// [`Error::Status`].
    pub async fn init(&mut self, at: usize) -> Result<()> {
        let body = json!({ "secret_shares": 5, "secret_threshold": 3 });
        let made = self.nodes[at].call("PUT", "sys/init", Some(&body)).await?.ok()?.json();
        let shares = made["keys_base64"].as_array().into_iter().flatten();
        let keys = Keys {
            shares: shares.filter_map(Value::as_str).map(str::to_owned).collect(),
            root_token: made["root_token"].as_str().unwrap_or_default().to_owned(),
        };
        if keys.shares.len() != 5 || keys.root_token.is_empty() {
            return Err(Error::Broken("init gave no 5 shares and a token".into()));
        }
        for node in &self.nodes {
            node.set_token(&keys.root_token);
        }
        self.keys = Some(keys);
        Ok(())
    }

    /// Unseals every running node that is sealed, once it knows of the cluster.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn unseal_all(&self) -> Result<()> {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            self.unseal(node).await?;
        }
        Ok(())
    }

    /// Unseals one node, once it knows of the cluster; nothing if it is unsealed. Without shares of this cluster's it waits
    /// for the node to open by itself.
    ///
    /// # Errors
    /// [`Error::Deadline`], those of [`Node::unseal`].
    pub async fn unseal(&self, node: &Node) -> Result<()> {
        let what = format!("{} to know of a cluster", node.name());
        let status = wait::until(&what, JOIN, || async {
            node.alive()?;
            let status = node.seal_status().await?;
            match status["initialized"] == true {
                true => Ok(status),
                false => Err(Error::Broken(status.to_string())),
            }
        })
        .await?;
        if status["sealed"] == false {
            return Ok(());
        }
        if self.keys.is_some() {
            return node.unseal(self.shares()).await;
        }
        wait::until(&format!("{} to open by itself", node.name()), JOIN, || async {
            let status = node.seal_status().await?;
            match status["sealed"] == false {
                true => Ok(()),
                false => Err(Error::Broken(status.to_string())),
            }
        })
        .await
    }

    /// Waits until the cluster counts so many voters and leads itself; gives how long that took.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn voters(&self, count: usize, at_most: Duration) -> Result<Duration> {
        let start = Instant::now();
        wait::until(&format!("{count} voters"), at_most, || async {
            let servers = self.servers().await?;
            let voters = servers.iter().filter(|server| server["voter"] == true).count();
            let leaders = servers.iter().filter(|server| server["leader"] == true).count();
            if voters == count && leaders == 1 {
                Ok(())
            } else {
                Err(Error::Broken(json!(servers).to_string()))
            }
        })
        .await?;
        Ok(start.elapsed())
    }

    /// `sys/storage/raft/configuration`, from the first node that answers.
    ///
    /// # Errors
    /// The last node's.
    pub async fn servers(&self) -> Result<Vec<Value>> {
        let mut last = Error::Broken("no node runs".into());
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            let client = node.client().with_timeout(Duration::from_secs(5));
            match client.call("GET", "sys/storage/raft/configuration", None).await.and_then(|r| r.ok()) {
                Ok(response) => {
                    return Ok(response.data()["config"]["servers"].as_array().cloned().unwrap_or_default());
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Mounts kv v2 at `secret/`.
    ///
    /// # Errors
    /// [`Error::Status`].
    pub async fn mount_kv(&self) -> Result<()> {
        let body = json!({ "type": "kv", "options": { "version": "2" } });
        let leader = self.leader().await?;
        self.nodes[leader].call("POST", "sys/mounts/secret", Some(&body)).await?.ok()?;
        Ok(())
    }

    /// The number of the node that leads and says so itself.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn leader(&self) -> Result<usize> {
        self.leader_among(&(0..self.nodes.len()).collect::<Vec<_>>(), ELECTION).await
    }

    /// The number of the node that leads, looked for among some.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn leader_among(&self, among: &[usize], at_most: Duration) -> Result<usize> {
        wait::until("a leader", at_most, || async {
            let mut seen = Vec::new();
            for at in among {
                let node = &self.nodes[*at];
                if !node.is_running() {
                    continue;
                }
                let client = node.client().with_timeout(Duration::from_secs(1));
                match client.call("GET", "sys/leader", None).await {
                    Ok(response) if response.json()["is_self"] == true => return Ok(*at),
                    Ok(response) => seen.push(format!("{}: {}", node.name(), response.text())),
                    Err(error) => seen.push(format!("{}: {error}", node.name())),
                }
            }
            Err(seen.join(" "))
        })
        .await
    }

    /// The numbers of the running nodes but one.
    pub fn others(&self, at: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| *other != at && self.nodes[*other].is_running()).collect()
    }

    /// Starts a node again and unseals it, and waits until it follows.
    ///
    /// # Errors
    /// Those of every step.
    pub async fn bring_back(&self, at: usize) -> Result<()> {
        let node = &self.nodes[at];
        node.start().await?;
        self.unseal(node).await?;
        node.health(&[200, 429], ELECTION).await?;
        Ok(())
    }

    /// SIGKILL to nodes, as nearly at the same moment as can be.
    ///
    /// # Errors
    /// Those of [`Node::signal`].
    pub fn kill_together(&self, nodes: &[usize]) -> Result<()> {
        for at in nodes {
            self.nodes[*at].signal(Signal::KILL)?;
        }
        nodes.iter().for_each(|at| self.nodes[*at].kill());
        Ok(())
    }

    /// [`bring_back`](Self::bring_back) for nodes that are started at the same time, as after a power cut.
    ///
    /// # Errors
    /// Those of every step.
    pub async fn bring_back_together(&self, nodes: &[usize]) -> Result<()> {
        for at in nodes {
            self.nodes[*at].spawn()?;
        }
        for at in nodes {
            self.nodes[*at].up().await?;
            self.unseal(&self.nodes[*at]).await?;
        }
        for at in nodes {
            self.nodes[*at].health(&[200, 429], ELECTION).await?;
        }
        Ok(())
    }

    /// Waits until a write through some node succeeds.
    ///
    /// # Errors
    /// [`Error::Deadline`].
    pub async fn serves(&self, through: usize, at_most: Duration) -> Result<()> {
        let node = &self.nodes[through];
        wait::until("a write to succeed", at_most, || async {
            node.put("chaos/serves", &json!({ "yes": true })).await
        })
        .await?;
        Ok(())
    }

    /// A command line that speaks to one node, with the root token if there is one.
    pub fn cli(&self, at: usize) -> Cli {
        let home = self.directory.path().join("home");
        drop(std::fs::create_dir_all(&home));
        let cli = Cli::new(&self.binary, &home)
            .with("VAULT_ADDR", self.nodes[at].url())
            .with("VAULT_CACERT", self.pki.ca_file().display().to_string());
        match &self.keys {
            Some(keys) => cli.with("VAULT_TOKEN", &keys.root_token),
            None => cli,
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            self.show_logs();
        }
    }
}

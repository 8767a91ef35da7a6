//! `server -dev`: a node, or a whole cluster of real processes, for trying out.

use std::{
    fs::File,
    net::IpAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use keystead_tls::{ClientTls, make};
use serde_json::{Value, json};

use super::{
    Failure, ServerArgs, prepare_process, say,
    start::{DEV_NODE, DEV_ROOT_TOKEN, Dev, Server},
    stop,
};
use crate::{
    cli::{environment::Environment, token_helper::TokenHelper},
    client::{Address, Client, ClientConfig, Token},
    config::{
        ListenAddress, ListenerConfig, ListenerTls, RaftStorageConfig, ServerConfig, StorageConfig,
        TcpListenerConfig,
    },
    core::node_ops::{InitRequest, NodeOps as _, UnsealRequest},
    secret::SecretString,
};

const DEFAULT_ADDRESS: &str = "127.0.0.1:8200";
/// Shares and threshold of a development cluster.
const SHARES: (usize, usize) = (5, 3);
/// How long a development cluster may take to be ready before something must be wrong.
const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// How long a development certificate is good: beyond the month in which its end would be warned of.
const CERTIFICATE_DAYS: u32 = 90;
/// Lines of a failed node's log that are shown.
const LOG_TAIL: usize = 10;

fn listen_address(args: &ServerArgs) -> Result<ListenAddress, Failure> {
    let text = args.dev_listen_address.as_deref().unwrap_or(DEFAULT_ADDRESS);
    ListenAddress::parse(text).map_err(|e| Failure(format!("-dev-listen-address: {e}")))
}

/// One node on a temporary directory, initialised and unsealed, http as Vault's.
pub async fn single(args: &ServerArgs) -> Result<(), Failure> {
    let data = tempfile::Builder::new().prefix("keystead-dev-").tempdir()?;
    let mut listener = TcpListenerConfig::new(listen_address(args)?);
    let tls = args.dev_tls.then(|| dev_tls(&listener.address, data.path())).transpose()?;
    listener.tls = tls.as_ref().map(|tls| tls.listener.clone());
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut exports = format!("    $ export VAULT_ADDR='{scheme}://{}'\n", listener.address);
    if let Some(tls) = &tls {
        exports += &format!("    $ export VAULT_CACERT='{}'\n", tls.ca_file.display());
    }
    let raft = RaftStorageConfig::new(data.path().join("raft"));
    let mut config =
        ServerConfig::new(StorageConfig::Raft(Box::new(raft)), vec![ListenerConfig::Tcp(Box::new(listener))]);
    config.disable_mlock = true;
    prepare_process(args, &config)?;
    let root_token = args.dev_root_token_id.clone().map(SecretString::new);
    let server = Server::start(&config, Dev { mounts: true, parent: false, root_token }).await?;
    say(&server.banner(&config));

    let failed =
        |e: crate::core::error::ApiError| Failure(format!("the development server cannot start: {e}"));
    let request = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
    let init = server.node.init(request).await.map_err(failed)?;
    let key = init.keys_base64.first().cloned();
    let unseal = UnsealRequest { key: key.clone(), reset: None, migrate: false, cluster: false };
    server.node.unseal(unseal).await.map_err(failed)?;
    store_token(args, init.root_token.expose());
    say("==> Keystead server started! Log data will stream in below:\n");
    say(&format!(
        "WARNING! dev mode is enabled! In this mode, Keystead keeps its data in a temporary\n\
         directory that is removed when it stops, and starts unsealed with a single key.\n\n\
         You may need to set the following environment variables:\n\n{exports}\n\
         The unseal key and root token are displayed below in case you want to\n\
         seal/unseal the Vault or re-authenticate.\n\n\
         Unseal Key: {}\nRoot Token: {}\n\n\
         Development mode should NOT be used in production installations!\n",
        key.as_ref().map(SecretString::expose).unwrap_or_default(),
        init.root_token.expose(),
    ));
    server.run(|| ()).await
}

/// A development listener's certificate.
struct DevTls {
    listener: ListenerTls,
    ca_file: PathBuf,
}

/// Makes an authority and a certificate of it for an address.
fn dev_tls(address: &ListenAddress, dir: &Path) -> Result<DevTls, Failure> {
    let mut names = vec!["localhost".to_owned()];
    let mut ips = vec![IpAddr::from([127, 0, 0, 1])];
    match address.host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() || ips.contains(&ip) => {}
        Ok(ip) => ips.push(ip),
        Err(_) => names.push(address.host.clone()),
    }
    let (ca, ca_key) = make::make_ca("Keystead development CA")?;
    let (cert, key) = make::make_cert(&ca, &ca_key, &names, &ips, CERTIFICATE_DAYS)?;
    let [ca_file, cert_file, key_file] =
        ["vault-ca.pem", "vault-cert.pem", "vault-key.pem"].map(|name| dir.join(name));
    std::fs::write(&ca_file, &ca)?;
    std::fs::write(&cert_file, cert)?;
    keystead_storage::datadir::write_file_durably(&key_file, key.as_bytes(), 0o600)?;
    Ok(DevTls { listener: ListenerTls::new(cert_file, key_file), ca_file })
}

fn store_token(args: &ServerArgs, token: &str) {
    if args.dev_no_store_token {
        return;
    }
    if let Some(helper) = TokenHelper::of(&Environment::of_process())
        && let Err(error) = helper.store(&Token::new(token))
    {
        tracing::warn!(%error, path = %helper.path().display(), "the root token cannot be stored");
    }
}

/// One process of a development cluster.
struct DevNode {
    name: String,
    api: String,
    cluster: String,
    log: PathBuf,
    child: Child,
    client: Client,
}

impl Drop for DevNode {
    fn drop(&mut self) {
        // A node that has ended cannot be killed again.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Several real processes of this binary under one parent: TLS everywhere, initialised, unsealed.
pub async fn cluster(args: &ServerArgs) -> Result<(), Failure> {
    let started = Instant::now();
    if args.dev_nodes.is_multiple_of(2) {
        return Err(Failure(format!(
            "-dev-nodes={} is even: a cluster needs an odd number of nodes, for an even one survives no more failures than one node fewer",
            args.dev_nodes
        )));
    }
    let dir = tempfile::Builder::new().prefix("keystead-dev-").tempdir()?;
    let mut nodes = spawn(args, dir.path())?;
    let init = initialise(&mut nodes).await?;
    unseal_all(&nodes, &init.shares).await?;
    wait_for_voters(&nodes, &init.root_token).await?;
    store_token(args, &init.root_token);
    say(&report(&nodes, &init, dir.path(), started.elapsed()));
    let watched = tokio::select! {
        reason = stop::wait(false, || ()) => reason.map(drop).map_err(Failure::from),
        failure = child_ended(&mut nodes) => Err(failure),
    };
    say("==> Keystead shutdown triggered");
    stop_all(&mut nodes).await;
    watched
}

/// What a development cluster's key holders would have.
struct Opened {
    shares: Vec<String>,
    root_token: String,
}

fn spawn(args: &ServerArgs, dir: &Path) -> Result<Vec<DevNode>, Failure> {
    let first = listen_address(args)?;
    let ip: IpAddr = first
        .host
        .parse()
        .map_err(|_| Failure("-dev-listen-address: the nodes of a cluster need an IP address".into()))?;
    let tls = dir.join("tls");
    std::fs::create_dir(&tls)?;
    let (ca, ca_key) = make::make_ca("Keystead development CA")?;
    let ca_file = tls.join("ca.pem");
    std::fs::write(&ca_file, &ca)?;
    let (cert, key) = make::make_cert(&ca, &ca_key, &["localhost".to_owned()], &[ip], CERTIFICATE_DAYS)?;
    let (cert_file, key_file) = (tls.join("api.pem"), tls.join("api-key.pem"));
    std::fs::write(&cert_file, cert)?;
    keystead_storage::datadir::write_file_durably(&key_file, key.as_bytes(), 0o600)?;

    let port = |n: u32| -> Result<(u16, u16), Failure> {
        let offset = u16::try_from(n * 2)?;
        let api = first.port.checked_add(offset).ok_or_else(|| Failure("ports above 65535".into()))?;
        let cluster = api.checked_add(1).ok_or_else(|| Failure("ports above 65535".into()))?;
        Ok((api, cluster))
    };
    let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    let apis: Vec<String> = (0..args.dev_nodes)
        .map(|n| Ok(format!("https://{host}:{}", port(n)?.0)))
        .collect::<Result<_, Failure>>()?;
    let executable = std::env::current_exe()?;
    let mut nodes = Vec::new();
    for n in 0..args.dev_nodes {
        let name = format!("n{}", n + 1);
        let (api, cluster) = port(n)?;
        let others =
            apis.iter().enumerate().filter(|(other, _)| *other != n as usize).map(|(_, api)| api.as_str());
        let config =
            node_config(&name, dir, &host, (api, cluster), others, [&ca_file, &cert_file, &key_file]);
        let file = dir.join(format!("{name}.json"));
        std::fs::write(&file, config.to_string())?;
        let log_file = dir.join(format!("{name}.log"));
        let log = File::create(&log_file)?;
        let mut command = Command::new(&executable);
        command.arg("server").arg(format!("-config={}", file.display())).env(DEV_NODE, "1");
        if let Some(token) = &args.dev_root_token_id {
            command.env(DEV_ROOT_TOKEN, token);
        }
        // Its own process group, so that Ctrl-C reaches the parent alone, and a pipe that ends with the parent.
        let child =
            command.process_group(0).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let client = client(&apis[n as usize], &ca_file)?;
        let cluster = format!("https://{host}:{cluster}");
        nodes.push(DevNode { name, api: apis[n as usize].clone(), cluster, log: log_file, child, client });
    }
    Ok(nodes)
}

fn node_config<'a>(
    name: &str,
    dir: &Path,
    host: &str,
    (api, cluster): (u16, u16),
    others: impl Iterator<Item = &'a str>,
    [ca, cert, key]: [&PathBuf; 3],
) -> Value {
    let retry_join: Vec<Value> =
        others.map(|other| json!({ "leader_api_addr": other, "leader_ca_cert_file": ca })).collect();
    json!({
        "storage": { "raft": { "path": dir.join(name), "node_id": name, "retry_join": retry_join } },
        "listener": { "tcp": {
            "address": format!("{host}:{api}"),
            "cluster_address": format!("{host}:{cluster}"),
            "tls_cert_file": cert,
            "tls_key_file": key,
        } },
        "api_addr": format!("https://{host}:{api}"),
        "cluster_addr": format!("https://{host}:{cluster}"),
        "disable_mlock": true,
    })
}

fn client(address: &str, ca: &Path) -> Result<Client, Failure> {
    let mut config = ClientConfig::new(Address::parse(address)?);
    config.tls = Some(ClientTls { ca_file: Some(ca.to_path_buf()), ..ClientTls::default() }.build()?);
    config.timeout = Duration::from_secs(15);
    Ok(Client::new(config)?)
}

impl DevNode {
    async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        token: Option<&str>,
    ) -> Result<Value, Failure> {
        let body = body.map(|body| Bytes::from(body.to_string()));
        let mut headers = Vec::new();
        if let Some(token) = token {
            headers
                .push((http::HeaderName::from_static("x-vault-token"), http::HeaderValue::from_str(token)?));
        }
        let response = self.client.request(method, path, body, &headers).await?;
        let text = String::from_utf8_lossy(&response.body);
        if !response.status.is_success() {
            return Err(Failure(format!("{}: {method} {path}: {}: {text}", self.name, response.status)));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// The child's end, with the last lines of its log.
    fn ended(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok()??;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.trim_end().rmatch_indices('\n').nth(LOG_TAIL).map_or(0, |(at, _)| at + 1);
        Some(Failure(format!(
            "node {} has ended ({status}); its log ends with:\n{}",
            self.name,
            &log[from..]
        )))
    }
}

async fn initialise(nodes: &mut [DevNode]) -> Result<Opened, Failure> {
    let deadline = Instant::now() + READY;
    let (shares, threshold) = SHARES;
    loop {
        for node in nodes.iter_mut() {
            if let Some(failure) = node.ended() {
                return Err(failure);
            }
        }
        // All listen before the first is initialised, so that none is found missing by it.
        let mut up = true;
        for node in nodes.iter() {
            up &= node.call("GET", "/v1/sys/init", None, None).await.is_ok();
        }
        if up {
            break;
        }
        if Instant::now() > deadline {
            return Err(Failure("the nodes did not come up in time".into()));
        }
        tokio::time::sleep(POLL).await;
    }
    let body = json!({ "secret_shares": shares, "secret_threshold": threshold });
    let answer = nodes[0].call("PUT", "/v1/sys/init", Some(body), None).await?;
    let shares = answer["keys_base64"].as_array().into_iter().flatten();
    Ok(Opened {
        shares: shares.filter_map(|share| share.as_str().map(str::to_owned)).collect(),
        root_token: answer["root_token"].as_str().unwrap_or_default().to_owned(),
    })
}

async fn unseal_all(nodes: &[DevNode], shares: &[String]) -> Result<(), Failure> {
    unseal(&nodes[0], shares).await?;
    let rest = nodes[1..].iter().map(|node| unseal(node, shares));
    futures_util::future::try_join_all(rest).await?;
    Ok(())
}

async fn unseal(node: &DevNode, shares: &[String]) -> Result<(), Failure> {
    let deadline = Instant::now() + READY;
    for share in &shares[..SHARES.1] {
        loop {
            let body = json!({ "key": share });
            match node.call("PUT", "/v1/sys/unseal", Some(body), None).await {
                Ok(_) => break,
                // A node that has not found the cluster yet is not initialised.
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
    Ok(())
}

/// Ready is: every node votes and answers.
async fn wait_for_voters(nodes: &[DevNode], token: &str) -> Result<(), Failure> {
    let deadline = Instant::now() + READY;
    loop {
        let answer = nodes[0].call("GET", "/v1/sys/storage/raft/configuration", None, Some(token)).await;
        let servers = answer.ok().and_then(|answer| answer["data"]["config"]["servers"].as_array().cloned());
        let voters = servers.iter().flatten().filter(|server| server["voter"] == true).count();
        if voters == nodes.len() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Failure("the nodes did not form a cluster in time".into()));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn report(nodes: &[DevNode], init: &Opened, dir: &Path, took: Duration) -> String {
    let mut text = format!(
        "==> Keystead development cluster: {} nodes, ready after {:.1} s\n\n",
        nodes.len(),
        took.as_secs_f64()
    );
    for node in nodes {
        text +=
            &format!("    {}: {} (cluster {}, pid {})\n", node.name, node.api, node.cluster, node.child.id());
    }
    text += "\n";
    for (n, share) in init.shares.iter().enumerate() {
        text += &format!("Unseal Key {}: {share}\n", n + 1);
    }
    text += &format!("\nRoot Token: {}\n", init.root_token);
    text += &format!("\nData, certificates and logs are in {} until this stops.\n", dir.display());
    text += "\nPaste this into another terminal:\n\n";
    text += &format!("    $ export VAULT_ADDR='{}'\n", nodes[0].api);
    text += &format!("    $ export VAULT_CACERT='{}'\n", dir.join("tls/ca.pem").display());
    text += &format!("    $ export VAULT_TOKEN='{}'\n", init.root_token);
    text += "\nDevelopment mode should NOT be used in production installations! Ctrl-C stops all of it.\n";
    text
}

/// Waits for a node to end. One killed by a signal is somebody's experiment, and the rest of the cluster goes on;
/// one that ends by itself with an error takes the cluster along.
async fn child_ended(nodes: &mut [DevNode]) -> Failure {
    use std::os::unix::process::ExitStatusExt as _;
    let mut gone = vec![false; nodes.len()];
    loop {
        for (node, gone) in nodes.iter_mut().zip(&mut gone) {
            if !*gone && let Ok(Some(status)) = node.child.try_wait() {
                *gone = true;
                say(&format!("==> node {} has ended: {status}", node.name));
                if status.signal().is_none() && !status.success() {
                    return Failure(format!("node {} failed", node.name));
                }
            }
        }
        if gone.iter().all(|gone| *gone) {
            return Failure("all nodes have ended".into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn stop_all(nodes: &mut [DevNode]) {
    for node in nodes.iter_mut() {
        // The end of its standard input is a node's signal to stop.
        drop(node.child.stdin.take());
    }
    let deadline = Instant::now() + Duration::from_secs(15);
    for node in nodes.iter_mut() {
        while matches!(node.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            tokio::time::sleep(POLL).await;
        }
    }
}

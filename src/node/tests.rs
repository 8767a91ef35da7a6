//! The life of one node, in process, over a real data directory and a real cluster port.

use std::{
    net::TcpListener,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use keystead_raft::{ClusterParams, ProposeOutcome, Replicated as _};
use keystead_storage::{DataDir, RequestId, Txn, Write};

use super::{Node, NodeSettings, records};
use crate::{
    core::{
        error::ApiError,
        node_ops::{InitRequest, InitResponse, NodeOps as _, ResetRequest, SealStatus, UnsealRequest},
    },
    seal::{self, InitParams, SealConfig, Share, SharePoint},
    secret::{SecretString, ShareBytes},
};

struct Fixture {
    // It ends before its directory is removed: what it still writes would stay behind otherwise.
    node: Running,
    dir: Directory,
}

/// A node that is shut down when it is dropped; it and its replica hold each other until then.
struct Running(Arc<Node>);

impl std::ops::Deref for Running {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| runtime.block_on(self.0.shutdown()));
    }
}

/// A directory that is removed as soon as no node is in it any more.
struct Directory(tempfile::TempDir);

impl Directory {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while DataDir::open(self.path()).is_err() {
            assert!(Instant::now() < deadline || std::thread::panicking(), "a node stays in its directory");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

async fn start(dir: &Path) -> Running {
    let cluster_listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster_addr = cluster_listener.local_addr().unwrap().to_string();
    let node = Node::start(NodeSettings {
        dir: Arc::new(DataDir::open(dir).unwrap()),
        node_id: "n1".into(),
        api_addr: "http://127.0.0.1:1".into(),
        cluster_addr,
        cluster_listener,
        cluster_name: None,
        retry_join: Vec::new(),
        non_voter: false,
        snapshot_directory: None,
        preferred_leader: false,
        params: ClusterParams::scaled(0, 1 << 20),
        quorum_reads: false,
        dev_mounts: false,
        dev_root_token: None,
        seals: super::Seals::default(),
    });
    Running(node.await.unwrap())
}

async fn fixture() -> Fixture {
    let dir = Directory(tempfile::tempdir().unwrap());
    Fixture { node: start(dir.path()).await, dir }
}

async fn init(node: &Node) -> InitResponse {
    let request = InitRequest { secret_shares: 5, secret_threshold: 3, ..InitRequest::default() };
    node.init(request).await.unwrap()
}

async fn unseal(node: &Node, key: &str) -> Result<SealStatus, ApiError> {
    let key = Some(SecretString::new(key.to_owned()));
    node.unseal(UnsealRequest { key, reset: None, migrate: false, cluster: false }).await
}

async fn unseal_all(node: &Node, init: &InitResponse) {
    for key in &init.keys_hex[..3] {
        unseal(node, key.expose()).await.unwrap();
    }
    assert!(!node.seal_status().sealed);
}

fn refusal(result: Result<SealStatus, ApiError>) -> String {
    match result {
        Err(ApiError::Invalid(text)) => text,
        Err(other) => panic!("not a 400: {other:?}"),
        Ok(_) => panic!("accepted"),
    }
}

/// Writes a seal configuration as only somebody with the log key, or with the disk, could.
async fn replace_seal_config(node: &Node, config: &SealConfig) {
    let value = Bytes::from(config.encode());
    let txn = Txn { writes: vec![Write::Put { key: records::seal_config_key(), value }], ..Txn::default() };
    let outcome = Node::replica(node).unwrap().propose(txn).await.unwrap();
    assert!(matches!(outcome, ProposeOutcome::Applied(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unseal_before_init_is_refused_with_the_reason() {
    let f = fixture().await;
    assert_eq!(refusal(unseal(&f.node, &"00".repeat(33)).await), "Vault is not initialized");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_twice_is_refused_and_numbers_that_do_not_fit_are_named() {
    let f = fixture().await;
    for (shares, threshold, text) in [
        (0, 1, "invalid seal configuration: shares must be at least one"),
        (3, 4, "invalid seal configuration: threshold cannot be larger than shares"),
        (3, 1, "invalid seal configuration: threshold must be greater than one for multiple shares"),
    ] {
        let request =
            InitRequest { secret_shares: shares, secret_threshold: threshold, ..InitRequest::default() };
        assert_eq!(f.node.init(request).await.err(), Some(ApiError::invalid(text)));
    }
    init(&f.node).await;
    let again = InitRequest { secret_shares: 1, secret_threshold: 1, ..InitRequest::default() };
    assert_eq!(f.node.init(again).await.err(), Some(ApiError::invalid("Vault is already initialized")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_share_is_refused_when_it_is_entered() {
    let f = fixture().await;
    let out = init(&f.node).await;
    let good = out.keys_hex[0].expose().to_owned();

    let mut mistyped = hex::decode(&good).unwrap();
    mistyped[20] ^= 1;
    assert!(refusal(unseal(&f.node, &hex::encode(&mistyped)).await).contains("checksum"));
    assert!(refusal(unseal(&f.node, &good[..60]).await).contains("shorter than minimum"));
    assert!(refusal(unseal(&f.node, "zz").await).contains("hex or base64"));

    let bare = hex::decode(&good).unwrap()[11..44].to_vec();
    let mut zero = bare.clone();
    zero[0] = 0;
    let text = refusal(unseal(&f.node, &hex::encode(&zero)).await);
    assert!(text.contains("invalid key"), "{text}");

    let other = seal::init(&InitParams { shares: 5, threshold: 3, now_ms: 1 }).unwrap();
    assert!(refusal(unseal(&f.node, other.shares[0].to_hex().expose()).await).contains("another vault"));
    let vault_id = f.node.seal_configs().unwrap().pop().unwrap().vault_id;
    let changed = Share::new(vault_id, 1, SharePoint { x: 2, y: ShareBytes::random() });
    assert!(refusal(unseal(&f.node, changed.to_hex().expose()).await).contains("mistyped"));
    assert_eq!(f.node.seal_status().progress, 0, "a wrong share must not count");

    assert_eq!(unseal(&f.node, &good).await.unwrap().progress, 1);
    assert_eq!(unseal(&f.node, &good).await.unwrap().progress, 1, "a repeated share must not count");
    assert_eq!(unseal(&f.node, &hex::encode(&bare)).await.unwrap().progress, 1, "nor in its bare form");
    let reset = ResetRequest { nonce: String::new(), client_address: "here".to_owned(), named_only: false };
    let reset = UnsealRequest { key: None, reset: Some(reset), migrate: false, cluster: false };
    assert_eq!(f.node.unseal(reset).await.unwrap().progress, 0);
    unseal_all(&f.node, &out).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_of_an_older_root_generation_are_called_stale() {
    let f = fixture().await;
    let out = init(&f.node).await;
    unseal_all(&f.node, &out).await;
    let keys = f.node.keys.read().clone().unwrap();
    let old = f.node.seal_configs().unwrap().pop().unwrap();
    let params = InitParams { shares: 5, threshold: 3, now_ms: 2 };
    let root = crate::secret::RootKey::random();
    let (config, shares) = seal::reseal(old.vault_id, keys.root_generation() + 1, &root, &params).unwrap();
    replace_seal_config(&f.node, &config).await;
    f.node.seal().await.unwrap();
    assert!(refusal(unseal(&f.node, out.keys_hex[0].expose()).await).contains("stale"));
    assert_eq!(unseal(&f.node, shares[0].to_hex().expose()).await.unwrap().progress, 1);
}

/// The entry that gives a vault of shares another root key, and the new shares.
fn next_root(node: &Node, root: &crate::secret::RootKey) -> (SealConfig, Vec<Share>, Txn) {
    let keys = node.keys.read().clone().unwrap();
    let old = node.seal_configs().unwrap().pop().unwrap();
    let params = InitParams { shares: 5, threshold: 3, now_ms: 2 };
    let (config, shares) = seal::reseal(old.vault_id, keys.root_generation() + 1, root, &params).unwrap();
    let (_, sealed) = records::keyring(&*Node::replica(node).unwrap().state()).unwrap().unwrap();
    let mut keyring = keys.open_keyring(&sealed).unwrap();
    keyring.rotate(3);
    let keyring = keyring.seal(root, config.vault_id, config.root_generation);
    let put = |key, value: Vec<u8>| Write::Put { key, value: value.into() };
    let writes = vec![put(records::seal_config_key(), config.encode()), put(records::keyring_key(), keyring)];
    (config, shares, Txn { request_id: RequestId([0; 16]), writes, ..Txn::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_root_key_that_did_not_reach_a_node_seals_it_until_shares_of_its_generation_come() {
    let f = fixture().await;
    let out = init(&f.node).await;
    unseal_all(&f.node, &out).await;
    let (_, shares, txn) = next_root(&f.node, &crate::secret::RootKey::random());
    Node::replica(&f.node).unwrap().propose(txn).await.unwrap();
    assert!(f.node.seal_status().sealed);
    let warned = |node: &Node| node.health().warnings.iter().any(|text| text.contains("by generation 2"));
    assert!(warned(&f.node));
    let stale = refusal(unseal(&f.node, out.keys_hex[0].expose()).await);
    assert!(stale.contains("of root key generation 1, which generation 2 has replaced"), "{stale}");
    for share in &shares[..3] {
        unseal(&f.node, share.to_hex().expose()).await.unwrap();
    }
    assert!(!f.node.seal_status().sealed && !warned(&f.node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_key_that_was_handed_over_is_the_nodes_with_its_entry_and_not_before() {
    use keystead_raft::VaultSide as _;
    let f = fixture().await;
    let out = init(&f.node).await;
    unseal_all(&f.node, &out).await;
    let root = crate::secret::RootKey::random();
    let (config, _, txn) = next_root(&f.node, &root);
    let body = [&[1][..], &config.root_commitment, root.expose()].concat();
    let peer = keystead_raft::Peer { incarnation: 1, node_id: "n2".into() };
    assert!(f.node.take_over(peer.clone(), &body[..40]).is_err());
    f.node.take_over(peer, &body).unwrap();
    let generation = |node: &Node| node.keys.read().as_ref().map(|keys| keys.root_generation());
    assert_eq!(generation(&f.node), Some(1));
    Node::replica(&f.node).unwrap().propose(txn).await.unwrap();
    assert_eq!(generation(&f.node), Some(2));
    assert_eq!(f.node.key_status().unwrap().term, 2);
    // What comes after is signed and judged with the new term, and a snapshot of this state changes nothing.
    replace_seal_config(&f.node, &config).await;
    f.node.replaced();
    assert_eq!((generation(&f.node), f.node.latch_reason()), (Some(2), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_27_an_edited_seal_configuration_opens_nothing() {
    let f = fixture().await;
    let out = init(&f.node).await;
    unseal_all(&f.node, &out).await;
    let mut config = f.node.seal_configs().unwrap().pop().unwrap();
    config.created_ms += 1;
    replace_seal_config(&f.node, &config).await;
    f.node.seal().await.unwrap();
    unseal(&f.node, out.keys_hex[0].expose()).await.unwrap();
    unseal(&f.node, out.keys_hex[1].expose()).await.unwrap();
    let text = refusal(unseal(&f.node, out.keys_hex[2].expose()).await);
    assert!(text.contains("changed by somebody without the root key"), "{text}");
    assert!(f.node.seal_status().sealed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_is_sealed_and_opens_with_the_same_shares() {
    let f = fixture().await;
    let out = init(&f.node).await;
    unseal_all(&f.node, &out).await;
    drop(f.node);
    let node = restart(f.dir.path()).await;
    assert!(node.seal_status().sealed && node.seal_status().initialized);
    unseal_all(&node, &out).await;
}

/// Starts over a directory whose former node is on its way out.
async fn restart(dir: &Path) -> Running {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match DataDir::open(dir) {
            Ok(free) => {
                drop(free);
                return start(dir).await;
            }
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_init_is_undone_at_the_next_start() {
    let f = fixture().await;
    init(&f.node).await;
    drop(f.node);
    // As if the process had died before the shares were handed out.
    std::fs::write(f.dir.path().join("initialising"), b"").unwrap();
    let node = restart(f.dir.path()).await;
    assert!(!node.seal_status().initialized);
    init(&node).await;
}

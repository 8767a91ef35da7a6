//! A cluster for tests in one process: a real sealed state, no consensus, and faults on demand.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use bytes::Bytes;
use keystead_raft::{
    AutopilotConfig, AutopilotState, BoxFuture, ForwardError, LeaderInfo, Leadership, ProposeError,
    ProposeOutcome, ReadBarrier, ReadError, Replicated, Safety, Shortage, Verification,
};
use keystead_storage::{
    ApplyEntry, ApplyOp, Command, DataDir, LogId, MAX_OPERATIONS, Observer, Outcome, RecordKey, RequestId,
    SealedState, TreeState, Txn, Write, operation_count,
};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::{
    Core, Settings,
    error::ApiError,
    initial_writes,
    member_ops::{AutopilotChange, MemberOps},
    node_ops::{
        BreakGlassRequest, CeremonyMember, GenerateRootRequest, HaNode, HealthFacts, InitRequest,
        InitResponse, JoinRequest, KeyStatus, LeaderStatus, NodeOps, RaftServer, RekeyRequest, RekeyTarget,
        RestoreRequest, SealBackend, SealStatus, SealWrap, ShareFacts, UnsealRequest, Unsealed, WrapState,
    },
    path::RequestPath,
    request::{Operation, Request},
    response::Download,
    response::{Answer, Logical, Response, text_to_map},
};
use crate::{
    barrier::{Barrier, Keyring, VaultId},
    secret::{DerivedKey, SecretString},
};

/// The token of every test.
pub const ROOT: &str = "hvs.TestRootTokenTestRootTok";
const MAX_ENTRY_BYTES: usize = 1 << 20;

/// What may befall a proposal or a forwarded request.
pub enum Fault {
    /// These writes land just before it.
    Race(Vec<Write>),
    /// It lands, and nobody is told.
    LandedUnknown,
    /// It does not land, and nobody is told.
    LostUnknown,
    /// The node no longer leads.
    NotLeader,
}

struct Log {
    index: u64,
    now_ms: u64,
}

/// The state that all nodes of a test share.
pub struct SharedState {
    pub state: Arc<TreeState>,
    log: Mutex<Log>,
    _lock: DataDir,
    _dir: tempfile::TempDir,
}

impl Drop for SharedState {
    /// A task on another thread may hold the state a moment longer, and would write into the directory while it is
    /// removed, which leaves a part of it behind.
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(1);
        while Arc::strong_count(&self.state) > 1 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl SharedState {
    pub fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDir::open(dir.path()).unwrap();
        let state = Arc::new(TreeState::open(&lock).unwrap());
        let log = Mutex::new(Log { index: 0, now_ms: 1_700_000_000_000 });
        Arc::new(Self { state, log, _lock: lock, _dir: dir })
    }

    pub fn apply(&self, txn: Txn) -> Outcome {
        let mut log = self.log.lock();
        log.index += 1;
        log.now_ms += 1;
        let op = ApplyOp::Command(Command {
            term: 1,
            sequence: log.index,
            cluster_time_ms: log.now_ms,
            txn,
            checkpoint: None,
        });
        let log_id = LogId { term: 1, node: 1, index: log.index };
        self.state.apply(vec![ApplyEntry { log_id, op }]).unwrap().remove(0)
    }

    pub fn apply_writes(&self, writes: Vec<Write>) {
        let txn = Txn { writes, ..Txn::default() };
        assert!(matches!(self.apply(txn), Outcome::Applied { .. }));
    }

    pub fn advance(&self, duration: Duration) {
        self.log.lock().now_ms += u64::try_from(duration.as_millis()).unwrap();
    }
}

/// One node's view of it.
pub struct TestReplica {
    pub shared: Arc<SharedState>,
    pub leadership: watch::Sender<Leadership>,
    pub propose_faults: Mutex<VecDeque<Fault>>,
    pub forward_faults: Mutex<VecDeque<Fault>>,
    pub proposals: Mutex<Vec<Txn>>,
    pub leader: Mutex<Weak<Core>>,
    pub shortage: Mutex<Option<Shortage>>,
}

impl TestReplica {
    fn new(shared: Arc<SharedState>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            leadership: watch::channel(Leadership::default()).0,
            propose_faults: Mutex::default(),
            forward_faults: Mutex::default(),
            proposals: Mutex::default(),
            leader: Mutex::default(),
            shortage: Mutex::default(),
        })
    }

    pub fn lead(&self, is_self: bool) {
        let leader = LeaderInfo {
            incarnation: 1,
            node_id: "n1".to_owned(),
            api_addr: "https://leader:8200".to_owned(),
            cluster_addr: "https://leader:8201".to_owned(),
        };
        self.leadership.send_replace(Leadership {
            term: 1,
            leader: Some(leader),
            is_self,
            active_since_ms: 1,
        });
    }

    pub fn lose_leader(&self) {
        self.leadership.send_replace(Leadership::default());
    }

    fn propose_now(&self, txn: Txn) -> Result<ProposeOutcome, ProposeError> {
        let bytes: usize = txn
            .writes
            .iter()
            .map(|write| if let Write::Put { value, .. } = write { value.len() } else { 0 })
            .sum();
        if bytes > MAX_ENTRY_BYTES {
            return Err(ProposeError::TooLarge { bytes, max: MAX_ENTRY_BYTES });
        }
        let operations = operation_count(&txn);
        if operations > MAX_OPERATIONS {
            return Err(ProposeError::TooManyOperations { operations, max: MAX_OPERATIONS });
        }
        self.proposals.lock().push(txn.clone());
        let fault = self.propose_faults.lock().pop_front();
        match &fault {
            Some(Fault::Race(writes)) => self.shared.apply_writes(writes.clone()),
            Some(Fault::LostUnknown) => return Err(ProposeError::Unknown),
            Some(Fault::NotLeader) => return Err(ProposeError::NotLeader),
            Some(Fault::LandedUnknown) | None => {}
        }
        let outcome = self.shared.apply(txn);
        if matches!(fault, Some(Fault::LandedUnknown)) {
            return Err(ProposeError::Unknown);
        }
        Ok(match outcome {
            Outcome::Applied { version } => ProposeOutcome::Applied(version),
            Outcome::Duplicate { version, response } => ProposeOutcome::Duplicate { version, response },
            Outcome::Conflict { check } => ProposeOutcome::Conflict { check },
            Outcome::Blank | Outcome::Stale => panic!("a test's entry is a command in order"),
        })
    }
}

impl Replicated for TestReplica {
    fn propose(&self, txn: Txn) -> BoxFuture<'_, Result<ProposeOutcome, ProposeError>> {
        Box::pin(async move { self.propose_now(txn) })
    }

    fn shortage(&self) -> Option<Shortage> {
        self.shortage.lock().clone()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<ReadBarrier, ReadError>> {
        Box::pin(async move {
            if self.leadership.borrow().leader.is_none() {
                return Err(ReadError::NoLeader);
            }
            let index = self.shared.state.applied().log_id.map_or(0, |id| id.index);
            Ok(ReadBarrier::for_tests(index, self.cluster_time_ms()))
        })
    }

    fn confirm_read(&self, _barrier: &ReadBarrier) -> bool {
        true
    }

    fn state(&self) -> Arc<dyn SealedState> {
        Arc::clone(&self.shared.state) as Arc<dyn SealedState>
    }

    fn cluster_time_ms(&self) -> u64 {
        self.shared.log.lock().now_ms
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    fn forward(&self, request: Bytes, _deadline: Duration) -> BoxFuture<'_, Result<Bytes, ForwardError>> {
        Box::pin(async move {
            let fault = self.forward_faults.lock().pop_front();
            let leader = self.leader.lock().upgrade().ok_or(ForwardError::NoLeader)?;
            let lost = || Err(ForwardError::Lost("the test says so".to_owned()));
            match fault {
                Some(Fault::LostUnknown) => lost(),
                Some(Fault::NotLeader) => Err(ForwardError::Refused("the test says so".to_owned())),
                Some(Fault::LandedUnknown) => {
                    leader.handle_forwarded(request, "n2").await;
                    lost()
                }
                _ => Ok(leader.handle_forwarded(request, "n2").await),
            }
        })
    }
}

/// A node without anything around its vault.
pub struct FakeNode {
    pub unsealed: Mutex<Option<Arc<Unsealed>>>,
    pub replica: Arc<TestReplica>,
    pub initialized: Mutex<bool>,
    pub removed: Mutex<Vec<String>>,
    pub log_level: Mutex<String>,
}

impl NodeOps for FakeNode {
    fn unsealed(&self) -> Option<Arc<Unsealed>> {
        self.unsealed.lock().clone()
    }

    fn replica(&self) -> Option<Arc<dyn Replicated>> {
        Some(Arc::clone(&self.replica) as Arc<dyn Replicated>)
    }

    fn seal_status(&self) -> SealStatus {
        let sealed = self.unsealed.lock().is_none();
        SealStatus {
            seal_type: "shamir".to_owned(),
            recovery_seal: false,
            migration: false,
            initialized: *self.initialized.lock(),
            sealed,
            threshold: 2,
            shares: 3,
            progress: 0,
            nonce: String::new(),
            storage_type: "raft".to_owned(),
            cluster_name: (!sealed).then(|| "test".to_owned()),
            cluster_id: (!sealed).then(|| "id".to_owned()),
            ceremony: None,
        }
    }

    fn seal_backends(&self) -> Vec<SealBackend> {
        Vec::new()
    }

    fn health(&self) -> HealthFacts {
        let status = self.seal_status();
        let leadership = self.replica.leadership.borrow();
        HealthFacts {
            initialized: status.initialized,
            sealed: status.sealed,
            standby: !leadership.is_self,
            leader_known: leadership.leader.is_some(),
            failure: None,
            warnings: Vec::new(),
            server_time_s: 7,
            cluster_name: status.cluster_name,
            cluster_id: status.cluster_id,
        }
    }

    fn leader_status(&self) -> LeaderStatus {
        LeaderStatus {
            ha_enabled: true,
            is_self: self.replica.leadership.borrow().is_self,
            leader_address: "https://leader:8200".to_owned(),
            ..LeaderStatus::default()
        }
    }

    fn key_status(&self) -> Option<KeyStatus> {
        Some(KeyStatus { term: 1, installed_ms: 0, encryptions: 3, uncounted: 0, first_installed_ms: 0 })
    }

    fn raft_configuration(&self) -> Result<Vec<RaftServer>, ApiError> {
        let (node_id, address) = ("n1".to_owned(), "leader:8201".to_owned());
        Ok(vec![RaftServer { node_id, address, leader: true, voter: true }])
    }

    fn ha_nodes(&self) -> Result<Vec<HaNode>, ApiError> {
        let node = |name: &str, last_echo_ms: Option<u64>| HaNode {
            name: name.to_owned(),
            api_address: format!("https://{name}:8200"),
            cluster_address: format!("https://{name}:8201"),
            active: last_echo_ms.is_none(),
            version: super::VERSION.to_owned(),
            last_echo_ms,
        };
        Ok(vec![node("n2", Some(1_000)), node("n1", None)])
    }

    fn log_levels(&self) -> Vec<(String, String)> {
        vec![("keystead".to_owned(), self.log_level.lock().clone())]
    }

    fn set_log_level(&self, _name: Option<&str>, level: Option<&str>) -> Result<(), String> {
        let level = level.unwrap_or("info");
        if !["debug", "info"].contains(&level) {
            return Err("unknown".to_owned());
        }
        *self.log_level.lock() = level.to_owned();
        Ok(())
    }

    fn metrics_text(&self) -> String {
        "# metrics\n".to_owned()
    }

    fn init(&self, _request: InitRequest) -> BoxFuture<'_, Result<InitResponse, ApiError>> {
        Box::pin(async { Err(ApiError::invalid("Vault is already initialized")) })
    }

    fn unseal(&self, _request: UnsealRequest) -> BoxFuture<'_, Result<SealStatus, ApiError>> {
        Box::pin(async { Ok(self.seal_status()) })
    }

    fn unseal_members(
        &self,
        _nonce: String,
        _node_ids: Option<Vec<String>>,
    ) -> BoxFuture<'_, Result<Vec<CeremonyMember>, ApiError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn verify_share(&self, _key: &SecretString) -> Result<ShareFacts, ApiError> {
        Err(ApiError::invalid("no share of this vault"))
    }

    fn seal(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async {
            *self.unsealed.lock() = None;
            Ok(())
        })
    }

    fn seal_wraps(&self) -> BoxFuture<'_, Result<Vec<SealWrap>, ApiError>> {
        Box::pin(async { Ok(vec![SealWrap::without("east", WrapState::Missing)]) })
    }

    fn sync_seals(&self, _prune: bool) -> BoxFuture<'_, Result<Vec<SealWrap>, ApiError>> {
        Box::pin(async { Ok(vec![SealWrap::without("east", WrapState::Agrees)]) })
    }

    fn raft_claim(&self, _body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        Ok(Map::from_iter([("initialized".to_owned(), Value::from(true))]))
    }

    fn raft_epoch(&self, _body: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        Ok(Map::from_iter([("epoch".to_owned(), Value::from(1))]))
    }

    fn raft_challenge(
        &self,
        _body: Map<String, Value>,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(async { Ok(Map::from_iter([("challenge".to_owned(), Value::from("c"))])) })
    }

    fn raft_answer(&self, _body: Map<String, Value>) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(async { Err(ApiError::invalid("invalid answer given")) })
    }

    fn raft_join(&self, _request: JoinRequest) -> BoxFuture<'_, Result<bool, ApiError>> {
        Box::pin(async { Ok(true) })
    }

    fn break_glass(&self) -> Result<Map<String, Value>, ApiError> {
        Ok(Map::new())
    }

    fn change_break_glass(
        &self,
        _request: BreakGlassRequest,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(async { Err(ApiError::invalid("there are no seals here")) })
    }

    fn rekey(
        &self,
        _target: RekeyTarget,
        _request: RekeyRequest,
        _trusted: bool,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(async { Err(ApiError::invalid("there are no shares here")) })
    }

    fn generate_root(
        &self,
        _request: GenerateRootRequest,
        _trusted: bool,
    ) -> BoxFuture<'_, Result<Map<String, Value>, ApiError>> {
        Box::pin(async { Err(ApiError::invalid("there are no shares here")) })
    }

    fn awaits_backup(&self) -> bool {
        false
    }

    fn restore_snapshot(&self, _request: RestoreRequest) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Err(ApiError::Sealed) })
    }

    fn save_snapshot(&self) -> BoxFuture<'_, Result<Download, ApiError>> {
        Box::pin(async { Err(ApiError::Sealed) })
    }

    fn may_store(&self, _directory: &Path) -> Result<(), ApiError> {
        Ok(())
    }

    fn spool(&self) -> Result<(PathBuf, u64), ApiError> {
        Ok((std::env::temp_dir(), 1 << 20))
    }

    fn keep_counts(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }

    fn rotate(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }
}

impl MemberOps for FakeNode {
    fn node_id(&self) -> String {
        "n1".to_owned()
    }

    fn own_address(&self) -> Map<String, Value> {
        Map::new()
    }

    fn step_down(&self) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }

    fn remove_peer(&self, node_id: String) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            self.removed.lock().push(node_id);
            Ok(())
        })
    }

    fn verify_members(&self, _scrub: bool) -> BoxFuture<'_, Result<Verification, ApiError>> {
        Box::pin(async { Ok(Verification { index: 1, members: Vec::new() }) })
    }

    fn promote(&self, _node_id: String) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Err(ApiError::Refused("server is not a non-voter".to_owned())) })
    }

    fn demote(&self, _node_id: String) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async { Ok(()) })
    }

    fn autopilot_config(&self) -> Result<AutopilotConfig, ApiError> {
        Ok(AutopilotConfig::default())
    }

    fn configure_autopilot(&self, change: AutopilotChange) -> BoxFuture<'_, Result<(), ApiError>> {
        Box::pin(async move {
            let changed = change(&mut AutopilotConfig::default());
            changed.map_err(|error| ApiError::invalid(error.to_string()))
        })
    }

    fn autopilot_state(&self) -> Result<AutopilotState, ApiError> {
        Ok(AutopilotState { healthy: true, failure_tolerance: 0, servers: Vec::new() })
    }

    fn safe_to_stop(&self, node_id: &str) -> Result<Option<Safety>, ApiError> {
        Ok((node_id == "n1").then(Safety::default))
    }
}

/// Invalidates the caches of every node, as their observers do.
#[derive(Default)]
struct Caches(Mutex<Vec<Weak<Core>>>);

impl Observer for Caches {
    fn applied(&self, _log_id: LogId, changed: &[RecordKey]) {
        for core in self.0.lock().iter().filter_map(Weak::upgrade) {
            core.invalidate(changed);
        }
    }

    fn replaced(&self) {}

    fn digest_mismatch(&self, _index: u64) {}
}

/// A node for tests.
pub struct TestNode {
    pub core: Arc<Core>,
    pub node: Arc<FakeNode>,
    pub replica: Arc<TestReplica>,
}

/// A leader, initialised as a dev server is.
pub fn leader() -> TestNode {
    cluster().0
}

/// A leader and a standby.
pub fn cluster() -> (TestNode, TestNode) {
    let shared = SharedState::new();
    let unsealed = Arc::new(Unsealed {
        barrier: Arc::new(Barrier::new(VaultId([7; 16]), Keyring::generate(1_000))),
        vault_id: VaultId([7; 16]),
        cluster_id: "id".to_owned(),
        cluster_name: "test".to_owned(),
        token_key: super::token::TokenKey::new(&DerivedKey::filled(|key| key.fill(9))),
        tokens: super::token::TokenCache::default(),
    });
    shared.apply_writes(initial_writes(&unsealed, &SecretString::new(ROOT.to_owned()), 1_000, true).unwrap());
    let caches = Arc::new(Caches::default());
    shared.state.set_observer(Arc::clone(&caches) as Arc<dyn Observer>);
    let make = |leads: bool| {
        let replica = TestReplica::new(Arc::clone(&shared));
        replica.lead(leads);
        let node = Arc::new(FakeNode {
            unsealed: Mutex::new(Some(Arc::clone(&unsealed))),
            replica: Arc::clone(&replica),
            initialized: Mutex::new(true),
            removed: Mutex::default(),
            log_level: Mutex::new("info".to_owned()),
        });
        let settings = Settings {
            election_wait: Duration::from_millis(200),
            unknown_wait: Duration::from_millis(400),
            forward_deadline: Duration::from_secs(5),
            ..Settings::default()
        };
        let core = Core::new(Arc::clone(&node) as Arc<dyn NodeOps>, settings);
        caches.0.lock().push(Arc::downgrade(&core));
        TestNode { core, node, replica }
    };
    let (leader, standby) = (make(true), make(false));
    *standby.replica.leader.lock() = Arc::downgrade(&leader.core);
    (leader, standby)
}

/// A request with the root token.
pub fn request(operation: Operation, path: &str, data: &str) -> Request {
    let mut path = RequestPath::from_encoded(path).unwrap();
    if operation == Operation::List {
        path = path.into_folder();
    }
    let mut request = Request::new(operation, path);
    request.data = text_to_map(data).unwrap();
    request.token = Some(SecretString::new(ROOT.to_owned()));
    request
}

impl TestNode {
    pub async fn call(&self, operation: Operation, path: &str, data: &str) -> Result<Answer, ApiError> {
        self.core.handle(request(operation, path, data)).await.result
    }

    pub async fn write(&self, path: &str, data: &str) -> Result<Answer, ApiError> {
        self.call(Operation::Update, path, data).await
    }

    pub async fn read(&self, path: &str) -> Result<Answer, ApiError> {
        self.call(Operation::Read, path, "{}").await
    }

    /// The data of a read that succeeds.
    pub async fn data(&self, path: &str) -> Value {
        match self.read(path).await {
            Ok(answer) => Value::Object(logical(answer).data.unwrap_or_default()),
            other => panic!("{path}: {other:?}"),
        }
    }

    /// The names in a listing.
    pub async fn list(&self, path: &str) -> Result<Vec<String>, ApiError> {
        match self.call(Operation::List, path, "{}").await? {
            Answer::Logical(logical) => {
                let keys = logical.data.unwrap_or_default().remove("keys").unwrap_or_default();
                Ok(serde_json::from_value(keys).unwrap())
            }
            other => panic!("{path}: {other:?}"),
        }
    }
}

/// An answer in an envelope, as another node would get it.
pub fn logical(answer: Answer) -> Logical {
    let response = Response { id: RequestId::NONE, result: Ok(answer) };
    match Response::decode(&response.encode().unwrap()).unwrap().result {
        Ok(Answer::Logical(logical)) => logical,
        other => panic!("{other:?}"),
    }
}

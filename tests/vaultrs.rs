//! A client in Rust that nobody here wrote: the crate vaultrs, over TLS, against the leader and a standby.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    time::Duration,
};

use common::{ready, three};
use keystead_chaos::{
    Cluster,
    cluster::{ELECTION, JOIN},
    wait,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vaultrs::{
    api::{
        self,
        kv2::requests::{SetConfigurationRequest, SetSecretMetadataRequest, SetSecretRequestOptions},
        sys::requests::{EnableEngineDataConfig, EnableEngineRequest, RandomRequest, ReadHealthRequest},
    },
    client::{Client, VaultClient, VaultClientSettingsBuilder},
    error::ClientError,
    kv1, kv2,
    sys::{self, ServerStatus, auth, mount, remount, tools},
    token,
};

/// A secret as an application has it: not a map of texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Login {
    user: String,
    port: u64,
    tags: Vec<Option<bool>>,
}

fn login(port: u64) -> Login {
    Login { user: "ä <b>&".into(), port, tags: vec![Some(true), None] }
}

/// Who asks, and who looks at what came of it through another node.
struct Side {
    /// For paths that no other side uses.
    name: &'static str,
    here: VaultClient,
    there: VaultClient,
}

fn client(cluster: &Cluster, at: usize, token: &str) -> VaultClient {
    // vaultrs is built without a provider of its own; an error says that another test here was faster.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let settings = VaultClientSettingsBuilder::default()
        .address(cluster.at(at).url())
        .ca_certs(vec![cluster.pki().ca_file().display().to_string()])
        .identity(None)
        .timeout(Some(Duration::from_secs(30)))
        .token(token)
        .verify(true)
        .build()
        .unwrap();
    VaultClient::new(settings).unwrap()
}

/// Once through the leader, once through a standby.
async fn sides(cluster: &Cluster) -> [Side; 2] {
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    let of = |at| client(cluster, at, &cluster.keys().root_token);
    [
        Side { name: "leader", here: of(leader), there: of(standby) },
        Side { name: "standby", here: of(standby), there: of(leader) },
    ]
}

/// Status and texts of what was refused.
fn refusal<T: Debug>(result: Result<T, ClientError>) -> (u16, String) {
    match result {
        Err(ClientError::APIError { code, errors }) => (code, errors.join("; ")),
        other => panic!("not refused in the way of an API: {other:?}"),
    }
}

/// The names of the numbers of `read_metadata`, in order.
fn sorted<T>(versions: &HashMap<String, T>) -> Vec<&str> {
    versions.keys().map(String::as_str).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

#[tokio::test]
async fn vaultrs_initialises_and_unseals_a_cluster() {
    let cluster = Box::pin(three().start()).await.unwrap();
    let nodes: Vec<_> = (0..3).map(|at| client(&cluster, at, "")).collect();
    for node in &nodes {
        assert!(matches!(sys::status(node).await.unwrap(), ServerStatus::UNINITIALIZED));
    }
    let made = sys::start_initialization(&nodes[0], 5, 3, None).await.unwrap();
    assert_eq!((made.keys.len(), made.keys_base64.len()), (5, 5));
    let again = refusal(sys::start_initialization(&nodes[0], 5, 3, None).await);
    assert_eq!(again, (400, "Vault is already initialized".to_owned()));
    for node in &nodes {
        wait::until("a node to know of the cluster", JOIN, || async {
            match sys::status(node).await {
                Ok(ServerStatus::SEALED) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap();
        unseal_in_steps(node, &made.keys, &made.keys_base64).await;
    }
    let mut leaders = 0;
    for node in &nodes {
        leaders += wait::until("a node to serve", ELECTION, || async {
            match sys::status(node).await {
                Ok(ServerStatus::OK) => Ok(1),
                Ok(ServerStatus::STANDBY) => Ok(0),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap();
    }
    assert_eq!(leaders, 1);
    let [first, second] = [1, 2].map(|at| client(&cluster, at, &made.root_token));
    mount::enable(&first, "secret", "kv-v2", None).await.unwrap();
    kv2::set(&first, "secret", "a", &login(1)).await.unwrap();
    assert_eq!(kv2::read::<Login>(&second, "secret", "a").await.unwrap(), login(1));
}

/// Two shares, a new beginning, then as many as are needed: in hex first, in base64 afterwards.
async fn unseal_in_steps(node: &VaultClient, hex: &[String], base64: &[String]) {
    for (given, share) in hex[..2].iter().enumerate() {
        let seen = sys::unseal(node, Some(share.clone()), None, None).await.unwrap();
        assert_eq!((seen.sealed, seen.threshold, seen.n_shares), (true, 3, 5));
        assert_eq!(seen.progress, given as u64 + 1);
    }
    let seen = sys::unseal(node, None, Some(true), None).await.unwrap();
    assert_eq!((seen.sealed, seen.progress), (true, 0));
    let mut sealed = true;
    for share in &base64[2..] {
        sealed = sys::unseal(node, Some(share.clone()), None, None).await.unwrap().sealed;
    }
    assert!(!sealed);
}

#[tokio::test]
async fn vaultrs_uses_kv_with_versions_through_leader_and_standby() {
    let cluster = ready().await;
    for side in sides(&cluster).await {
        eprintln!("through the {}", side.name);
        versions_and_check_and_set(&side).await;
        versions_come_and_go(&side).await;
        metadata_and_folders(&side).await;
        configuration(&side).await;
    }
}

async fn versions_and_check_and_set(Side { name, here, there }: &Side) {
    let path = format!("{name}/app/versions");
    for version in 1..=3 {
        let made = kv2::set(here, "secret", &path, &login(version)).await.unwrap();
        assert_eq!(
            (made.version, made.destroyed, made.deletion_time.as_str(), made.custom_metadata),
            (version, false, "", None)
        );
        assert_eq!(kv2::read::<Login>(there, "secret", &path).await.unwrap(), login(version));
    }
    assert_eq!(kv2::read_version::<Login>(here, "secret", &path, 1).await.unwrap(), login(1));
    assert_eq!(refusal(kv2::read_version::<Login>(here, "secret", &path, 4).await), (404, String::new()));
    assert_eq!(refusal(kv2::read::<Login>(here, "secret", "no/such").await), (404, String::new()));

    let data = json!({ "n": 1.5, "deep": { "list": [1, null, "x"] } });
    let new = format!("{path}/cas");
    let only_if = |cas| SetSecretRequestOptions { cas };
    let made = kv2::set_with_options(here, "secret", &new, &data, only_if(0)).await.unwrap();
    assert_eq!(made.version, 1);
    let (code, text) = refusal(kv2::set_with_options(here, "secret", &new, &json!({}), only_if(0)).await);
    assert_eq!((code, text.as_str()), (400, "check-and-set parameter did not match the current version"));
    assert_eq!(kv2::read::<Value>(there, "secret", &new).await.unwrap(), data);
    let made = kv2::set_with_options(here, "secret", &new, &json!({ "n": 2 }), only_if(1)).await.unwrap();
    assert_eq!(made.version, 2);
    assert_eq!(kv2::read::<Value>(there, "secret", &new).await.unwrap(), json!({ "n": 2 }));
}

async fn versions_come_and_go(Side { name, here, there }: &Side) {
    let path = format!("{name}/life");
    for version in 1..=4 {
        kv2::set(here, "secret", &path, &login(version)).await.unwrap();
    }
    kv2::delete_latest(here, "secret", &path).await.unwrap();
    // Its body tells of the deleted version instead of errors, which vaultrs shows as it came.
    let gone = kv2::read::<Login>(there, "secret", &path).await.unwrap_err();
    assert!(format!("{gone:?}").contains("code: 404"), "{gone:?}");
    assert_eq!(kv2::read_version::<Login>(there, "secret", &path, 3).await.unwrap(), login(3));
    kv2::undelete_versions(here, "secret", &path, vec![4]).await.unwrap();
    assert_eq!(kv2::read::<Login>(there, "secret", &path).await.unwrap(), login(4));

    kv2::delete_versions(here, "secret", &path, vec![1, 2]).await.unwrap();
    kv2::destroy_versions(here, "secret", &path, vec![2, 3]).await.unwrap();
    kv2::undelete_versions(here, "secret", &path, vec![1, 2, 3]).await.unwrap();
    let versions = kv2::read_metadata(there, "secret", &path).await.unwrap().versions;
    let states: BTreeMap<_, _> = versions
        .iter()
        .map(|(version, about)| (version.as_str(), (about.destroyed, about.deletion_time.is_empty())))
        .collect();
    assert_eq!(states["1"], (false, true));
    assert!(states["2"].0 && states["3"].0);
    assert_eq!(states["4"], (false, true));
    assert_eq!(kv2::read_version::<Login>(there, "secret", &path, 1).await.unwrap(), login(1));
    let gone = kv2::read_version::<Login>(there, "secret", &path, 3).await.unwrap_err();
    assert!(format!("{gone:?}").contains("code: 404"), "{gone:?}");

    kv2::delete_metadata(here, "secret", &path).await.unwrap();
    assert_eq!(refusal(kv2::read_metadata(there, "secret", &path).await), (404, String::new()));
    assert_eq!(refusal(kv2::read::<Login>(there, "secret", &path).await), (404, String::new()));
    assert_eq!(kv2::set(here, "secret", &path, &login(1)).await.unwrap().version, 1);
}

async fn metadata_and_folders(Side { name, here, there }: &Side) {
    let path = format!("{name}/list/described");
    let about = HashMap::from([("owner".to_owned(), "ä".to_owned()), ("team".to_owned(), "b".to_owned())]);
    let mut wanted = SetSecretMetadataRequest::builder();
    wanted.max_versions(2_u64).cas_required(true).delete_version_after("90m").custom_metadata(about.clone());
    kv2::set_metadata(here, "secret", &path, Some(&mut wanted)).await.unwrap();
    let (code, text) = refusal(kv2::set(here, "secret", &path, &login(1)).await);
    assert_eq!((code, text.as_str()), (400, "check-and-set parameter required for this call"));
    for cas in 0..4 {
        let made =
            kv2::set_with_options(here, "secret", &path, &login(cas.into()), SetSecretRequestOptions { cas })
                .await
                .unwrap();
        // By `delete_version_after`, the version already knows its end.
        assert!(made.deletion_time > made.created_time, "{made:?}");
        assert_eq!(made.custom_metadata.as_ref(), Some(&about));
    }
    let seen = kv2::read_metadata(there, "secret", &path).await.unwrap();
    assert_eq!((seen.current_version, seen.oldest_version, seen.max_versions), (4, 3, 2));
    assert_eq!((seen.cas_required, seen.delete_version_after.as_str()), (true, "1h30m0s"));
    assert_eq!(seen.custom_metadata, Some(about));
    assert_eq!(sorted(&seen.versions), ["3", "4"]);
    assert!(seen.updated_time >= seen.created_time);

    for leaf in ["list/b", "list/b/deep", "list/Z"] {
        kv2::set(here, "secret", &format!("{name}/{leaf}"), &login(1)).await.unwrap();
    }
    let keys = kv2::list(there, "secret", &format!("{name}/list")).await.unwrap();
    assert_eq!(keys, ["Z", "b", "b/", "described"]);
    assert!(kv2::list(there, "secret", "").await.unwrap().contains(&format!("{name}/")));
    let none = refusal(kv2::list(there, "secret", &format!("{name}/nothing")).await);
    assert_eq!(none, (404, String::new()));
}

async fn configuration(Side { name, here, there }: &Side) {
    let at = format!("configured-{name}");
    mount::enable(here, &at, "kv-v2", None).await.unwrap();
    let fresh = kv2::config::read(there, &at).await.unwrap();
    assert_eq!(
        (fresh.cas_required, fresh.max_versions, fresh.delete_version_after.as_str()),
        (false, 0, "0s")
    );
    let mut wanted = SetConfigurationRequest::builder();
    wanted.max_versions(1_u64).cas_required(true).delete_version_after("1h");
    kv2::config::set(here, &at, Some(&mut wanted)).await.unwrap();
    let seen = kv2::config::read(there, &at).await.unwrap();
    assert_eq!(
        (seen.cas_required, seen.max_versions, seen.delete_version_after.as_str()),
        (true, 1, "1h0m0s")
    );
    assert_eq!(refusal(kv2::set(here, &at, "a", &login(1)).await).0, 400);
    for cas in 0..2 {
        let options = SetSecretRequestOptions { cas };
        kv2::set_with_options(here, &at, "a", &login(cas.into()), options).await.unwrap();
    }
    assert_eq!(sorted(&kv2::read_metadata(there, &at, "a").await.unwrap().versions), ["2"]);
    mount::disable(here, &at).await.unwrap();
}

#[tokio::test]
async fn vaultrs_uses_kv_without_versions_through_leader_and_standby() {
    let cluster = ready().await;
    for Side { name, here, there } in &sides(&cluster).await {
        eprintln!("through the {name}");
        let at = format!("plain-{name}");
        mount::enable(here, &at, "kv", None).await.unwrap();
        let data = HashMap::from([("text", json!("ä <b>&")), ("deep", json!({ "list": [1, null, 2.5] }))]);
        kv1::set(here, &at, "a/b", &data).await.unwrap();
        let seen: HashMap<String, Value> = kv1::get(there, &at, "a/b").await.unwrap();
        assert_eq!(json!(seen), json!(data));
        kv1::set(here, &at, "a/b", &HashMap::from([("ttl", "30m")])).await.unwrap();
        let seen = kv1::get_raw(there, &at, "a/b").await.unwrap();
        assert_eq!((seen.data, seen.lease_duration), (json!({ "ttl": "30m" }), 1_800));
        assert_eq!((seen.lease_id.as_str(), seen.renewable), ("", false));
        kv1::set(here, &at, "c", &HashMap::from([("x", 1)])).await.unwrap();
        assert_eq!(kv1::get_raw(there, &at, "c").await.unwrap().lease_duration, 32 * 24 * 3_600);
        assert_eq!(kv1::list(there, &at, "").await.unwrap().data.keys, ["a/", "c"]);
        assert_eq!(kv1::list(there, &at, "a").await.unwrap().data.keys, ["b"]);
        kv1::delete(here, &at, "a/b").await.unwrap();
        assert_eq!(refusal(kv1::get::<Value>(there, &at, "a/b").await), (404, String::new()));
        assert_eq!(refusal(kv1::list(there, &at, "a").await), (404, String::new()));
        mount::disable(here, &at).await.unwrap();
        assert_eq!(refusal(kv1::get::<Value>(there, &at, "c").await).0, 404);
    }
}

#[tokio::test]
async fn vaultrs_uses_sys_through_leader_and_standby() {
    let cluster = ready().await;
    for side in sides(&cluster).await {
        eprintln!("through the {}", side.name);
        mounts(&side).await;
        health(&side).await;
        tokens_and_tools(&side, &cluster).await;
    }
}

async fn mounts(Side { name, here, there }: &Side) {
    let (from, to) = (format!("from-{name}"), format!("moved/to-{name}"));
    let limits = EnableEngineDataConfig {
        default_lease_ttl: Some("1h".into()),
        max_lease_ttl: Some("2h".into()),
        ..EnableEngineDataConfig::default()
    };
    let mut wanted = EnableEngineRequest::builder();
    wanted.description("of an application").config(limits);
    wanted.options(HashMap::from([("version".to_owned(), "2".to_owned())]));
    mount::enable(here, &from, "kv", Some(&mut wanted)).await.unwrap();
    let seen = &mount::list(there).await.unwrap()[&format!("{from}/")];
    assert_eq!((seen.mount_type.as_str(), seen.description.as_str()), ("kv", "of an application"));
    assert_eq!((seen.config.default_lease_ttl, seen.config.max_lease_ttl), (3_600, 7_200));
    assert_eq!(seen.options.as_ref().unwrap()["version"], "2");
    let one = mount::get_configuration_of_a_secret_engine(there, &from).await.unwrap();
    assert_eq!((&one.uuid, &one.accessor, one.config.max_lease_ttl), (&seen.uuid, &seen.accessor, 7_200));

    let (code, text) = refusal(mount::enable(here, &from, "kv", None).await);
    assert!(code == 400 && text.contains(&format!("path is already in use at {from}/")), "{code} {text}");
    let (code, text) = refusal(mount::enable(here, "other", "nosuch", None).await);
    assert!(code == 400 && text.contains("plugin not found in the catalog"), "{code} {text}");
    assert_eq!(refusal(mount::get_configuration_of_a_secret_engine(here, "nosuch").await).0, 400);

    kv2::set(here, &from, "a", &login(1)).await.unwrap();
    let moved = remount::remount(here, &from, &to).await.unwrap();
    let status = remount::remount_status(there, &moved.migration_id).await.unwrap();
    assert_eq!((status.migration_id, status.migration_info.status.as_str()), (moved.migration_id, "success"));
    assert_eq!(
        (status.migration_info.source_mount, status.migration_info.target_mount),
        (format!("{from}/"), format!("{to}/"))
    );
    assert_eq!(kv2::read::<Login>(there, &to, "a").await.unwrap(), login(1));
    assert_eq!(refusal(kv2::read::<Login>(there, &from, "a").await).0, 404);
    assert_eq!(refusal(remount::remount(here, &from, "elsewhere").await).0, 400);
    mount::disable(here, &to).await.unwrap();
    assert!(!mount::list(there).await.unwrap().contains_key(&format!("{to}/")));

    let methods = auth::list(here).await.unwrap();
    assert_eq!(methods.keys().collect::<Vec<_>>(), ["token/"]);
    assert_eq!(methods["token/"].config.token_type, "default-service");
    let refused = refusal(auth::disable(here, "token").await);
    assert_eq!(refused, (400, "token credential backend cannot be disabled".to_owned()));
    assert_eq!(refusal(auth::enable(here, "people", "nosuch", None).await).0, 400);
}

async fn health(Side { name, here, there }: &Side) {
    let standby = *name == "standby";
    let (leader, other) = if standby { (there, here) } else { (here, there) };
    assert!(matches!(leader.status().await.unwrap(), ServerStatus::OK));
    assert!(matches!(other.status().await.unwrap(), ServerStatus::STANDBY));
    let of_leader = sys::health(leader).await.unwrap();
    assert_eq!((of_leader.initialized, of_leader.sealed, of_leader.standby), (true, false, false));
    assert_eq!(of_leader.replication_dr_mode, "disabled");
    assert!(of_leader.cluster_id.is_some() && of_leader.server_time_utc > 1_700_000_000);

    let mut always = ReadHealthRequest::builder();
    always.standbyok(Some(true)).perfstandbyok(Some(true));
    let seen = api::exec_with_no_result(here, always.build().unwrap()).await.unwrap();
    assert_eq!((seen.standby, &seen.cluster_id), (standby, &of_leader.cluster_id));
    assert_eq!((&seen.version, &seen.cluster_name), (&of_leader.version, &of_leader.cluster_name));
    // The codes of states that this node is not in change nothing; that of its own does.
    let mut coded = ReadHealthRequest::builder();
    coded.sealedcode(Some(599_u16)).uninitcode(Some(598_u16)).drsecondarycode(Some(597_u16));
    coded.performancestandbycode(Some(596_u16)).removedcode(Some(595_u16)).haunhealthycode(Some(594_u16));
    if standby {
        coded.standbycode(Some(203_u16)).activecode(Some(593_u16));
    } else {
        coded.standbycode(Some(593_u16)).activecode(Some(203_u16));
    }
    let seen = api::exec_with_no_result(here, coded.build().unwrap()).await.unwrap();
    assert_eq!(seen.standby, standby);
    coded.standbycode(Some(418_u16)).activecode(Some(418_u16));
    let refused = api::exec_with_no_result(here, coded.build().unwrap()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("code: 418"), "{refused:?}");
}

async fn tokens_and_tools(Side { here, .. }: &Side, cluster: &Cluster) {
    let own = here.lookup().await.unwrap();
    assert_eq!((own.policies, own.path.as_str()), (vec!["root".to_owned()], "auth/token/root"));
    let root = &cluster.keys().root_token;
    assert_eq!((&own.id, own.ttl), (root, 0));
    let looked_up = token::lookup(here, root).await.unwrap();
    assert_eq!((looked_up.accessor, looked_up.orphan), (own.accessor, true));
    assert_eq!(refusal(token::lookup(here, "hvs.wrong").await).0, 403);

    let random = async |bytes: Option<u64>, format: &str| {
        let mut wanted = RandomRequest::builder();
        wanted.format(format);
        if let Some(bytes) = bytes {
            wanted.bytes(bytes);
        }
        tools::random(here, Some(&mut wanted)).await.map(|made| made.random_bytes)
    };
    let hex = random(Some(16), "hex").await.unwrap();
    assert!(hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hex}");
    assert_ne!(random(Some(16), "hex").await.unwrap(), hex);
    assert_eq!(random(None, "base64").await.unwrap().len(), 44);
    assert_eq!(tools::random(here, None).await.unwrap().random_bytes.len(), 44);
    assert_eq!(refusal(random(Some(16), "roman").await).0, 400);
    assert_eq!(refusal(random(Some(0), "hex").await).0, 400);

    for wrong in ["", "hvs.wrong"] {
        let mut stranger = VaultClient::new(here.settings().clone()).unwrap();
        stranger.set_token(wrong);
        let denied = (403, "permission denied".to_owned());
        assert_eq!(refusal(mount::list(&stranger).await), denied);
        assert_eq!(refusal(kv2::set(&stranger, "secret", "a", &login(1)).await), denied);
        assert_eq!(refusal(kv2::read::<Login>(&stranger, "secret", "a").await), denied);
        assert_eq!(refusal(tools::random(&stranger, None).await), denied);
        assert_eq!(refusal(sys::seal(&stranger).await), denied);
    }
}

#[tokio::test]
async fn vaultrs_is_told_that_a_node_is_sealed_and_nothing_else() {
    let cluster = ready().await;
    let [leader, Side { here: standby, .. }] = sides(&cluster).await;
    kv2::set(&standby, "secret", "a", &login(1)).await.unwrap();
    sys::seal(&standby).await.unwrap();
    assert!(matches!(standby.status().await.unwrap(), ServerStatus::SEALED));
    let sealed = (503, "Vault is sealed".to_owned());
    assert_eq!(refusal(kv2::read::<Login>(&standby, "secret", "a").await), sealed);
    assert_eq!(refusal(kv2::read::<Login>(&standby, "no", "such").await), sealed);
    assert_eq!(refusal(kv2::set(&standby, "secret", "a", &login(2)).await), sealed);
    assert_eq!(refusal(kv2::list(&standby, "secret", "").await), sealed);
    assert_eq!(refusal(kv1::get::<Value>(&standby, "plain", "a").await), sealed);
    assert_eq!(refusal(mount::list(&standby).await), sealed);
    assert_eq!(refusal(mount::enable(&standby, "b", "kv", None).await), sealed);
    assert_eq!(refusal(auth::list(&standby).await), sealed);
    assert_eq!(refusal(tools::random(&standby, None).await), sealed);
    assert_eq!(refusal(standby.lookup().await), sealed);

    assert!(matches!(leader.here.status().await.unwrap(), ServerStatus::OK));
    kv2::set(&leader.here, "secret", "a", &login(3)).await.unwrap();
    for share in cluster.shares() {
        sys::unseal(&standby, Some(share.clone()), None, None).await.unwrap();
    }
    wait::until("the standby to follow", ELECTION, || async {
        match standby.status().await {
            Ok(ServerStatus::STANDBY) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    assert_eq!(kv2::read::<Login>(&standby, "secret", "a").await.unwrap(), login(3));
}

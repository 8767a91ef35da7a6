//! Nodes on SoftHSM tokens: the wraps on several are compared and mended, and what happens to a token while they serve.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[allow(dead_code)] // its own tests use all of it
#[path = "hsm/stage.rs"]
mod stage;
#[path = "common/unattended.rs"]
mod unattended_nodes;

use std::fs;

use keystead_chaos::{Builder, Cli, Cluster, Node, Result, wait};
use serde_json::{Value, json};
use stage::Stage;
use unattended_nodes::{SOON, open, restart_with, status, warns, with};

/// A stanza for a token of that label, under the same name.
fn stanza(stage: &Stage, label: &str, more: &str) -> String {
    format!(
        "seal \"pkcs11\" {{\n  name         = \"{label}\"\n  lib          = \"{}\"\n  token_label  = \"{label}\"\n  pin          = \
         \"{}\"\n  generate_key = true\n  {more}\n}}",
        stage.module.display(),
        stage::PIN
    )
}

async fn started(stage: &Stage, nodes: usize, stanzas: &[String]) -> Cluster {
    Box::pin(with(Builder::new(stage.path("helper"), nodes), stanzas.to_vec()).start()).await.unwrap()
}

/// The command line of an operator with the root token, under SoftHSM's configuration.
fn cli(stage: &Stage, cluster: &Cluster, token: &str) -> Cli {
    cluster
        .cli(0)
        .with("VAULT_TOKEN", token)
        .with("SOFTHSM2_CONF", stage.path("softhsm2.conf").display().to_string())
}

async fn initialised(cluster: &Cluster) -> String {
    initialised_with_key(cluster).await.0
}

/// The root token, and the only recovery key.
async fn initialised_with_key(cluster: &Cluster) -> (String, String) {
    let body = json!({ "recovery_shares": 1, "recovery_threshold": 1 });
    let made = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    let token = made["root_token"].as_str().unwrap().to_owned();
    cluster.nodes().iter().for_each(|node| node.set_token(&token));
    (token, made["recovery_keys_base64"][0].as_str().unwrap().to_owned())
}

/// Waits until the canary of a node has tried a seal, so that the next trial is a minute away.
async fn tried(node: &Node, seal: &str) {
    let line = format!("keystead_seal_last_success_time_seconds{{seal=\"{seal}\"}}");
    let look = || async {
        let metrics = node.call("GET", "sys/metrics?format=prometheus", None).await?.text();
        if metrics.contains(&line) { Result::Ok(()) } else { Err(keystead_chaos::Error::Broken(metrics)) }
    };
    wait::until(&format!("a trial of {seal}"), SOON, look).await.unwrap();
}

/// Runs a command whose result is JSON, and checks its exit code.
async fn json_of(cli: &Cli, args: &[&str], code: i32) -> Value {
    let output = cli.run(&[args, &["-format=json"]].concat()).await.unwrap();
    assert_eq!(output.code, code, "{args:?}: {output:?}");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"))
}

fn states(list: &Value) -> Vec<String> {
    let state = |seal: &Value| {
        format!("{} {}", seal["seal"].as_str().unwrap(), seal["wrap"]["state"].as_str().unwrap())
    };
    list.as_array().unwrap().iter().map(state).collect()
}

#[tokio::test]
async fn the_wraps_on_two_tokens_are_compared_and_a_difference_is_mended() {
    let Some(stage) = Stage::new() else { return };
    stage.token("zone-b");
    let both = [stanza(&stage, "zone-a", ""), stanza(&stage, "zone-b", "")];
    let cluster = started(&stage, 3, &both).await;
    let token = initialised(&cluster).await;
    cluster.voters(3, SOON).await.unwrap();
    let cli = cli(&stage, &cluster, &token);
    let config = format!("-config={}", cluster.at(0).config_file().display());
    let leader = cluster.leader().await.unwrap();
    for seal in ["zone-a", "zone-b"] {
        tried(cluster.at(leader), seal).await;
    }
    let agreed = json_of(&cli, &["hsm", "status", &config], 0).await;
    assert_eq!(states(&agreed), ["zone-a agrees", "zone-b agrees"], "{agreed}");
    assert_eq!(agreed[0]["wrap"]["root_generation"], 1);
    assert_eq!(agreed[0]["wrap"]["wrapped_by"], agreed[0]["key"]);
    // Rotated on one token: the wraps differ until somebody, or the leader within a minute, mends that.
    let rotated = json_of(&cli, &["hsm", "rotate-key", &config, "-seal=zone-b"], 0).await;
    let stale = json_of(&cli, &["hsm", "status", &config], 1).await;
    assert_eq!(states(&stale), ["zone-a agrees", "zone-b stale"], "{stale}");
    let mended = json_of(&cli, &["hsm", "sync"], 0).await;
    assert_eq!(states(&mended), ["zone-a agrees", "zone-b agrees"], "{mended}");
    assert_eq!(mended[1]["wrap"]["wrapped_by"], rotated["key"]);
    assert_ne!(mended[1]["wrap"]["wrap_id"], stale[1]["wrap"]["wrap_id"]);
    assert_eq!(mended[0]["wrap"]["wrap_id"], stale[0]["wrap"]["wrap_id"], "what agreed is left alone");
    // Without a token of the vault nobody is told.
    let stranger = cli.clone().with("VAULT_TOKEN", "hvs.nobody");
    assert_eq!(stranger.run(&["hsm", "sync"]).await.unwrap().code, 2);
    let shown = cli.run(&["hsm", "status", &config]).await.unwrap();
    assert!(shown.stdout.contains("Root Generation") && shown.code == 0, "{shown:?}");
    // A stanza less: the wrap stays until it is pruned, and no other way.
    restart_with(&cluster, &both[..1]).await;
    for node in cluster.nodes() {
        open(node).await;
    }
    let left = json_of(&cli, &["hsm", "sync", "-wait=1s"], 2).await;
    assert_eq!(states(&left), ["zone-a agrees", "zone-b no-stanza"], "{left}");
    let pruned = json_of(&cli, &["hsm", "sync", "-prune"], 0).await;
    assert_eq!(states(&pruned), ["zone-a agrees"], "{pruned}");
}

#[tokio::test]
async fn two_nodes_with_a_token_initialised_at_once_make_one_vault_and_one_key() {
    let Some(stage) = Stage::new() else { return };
    let cluster = started(&stage, 3, &[stanza(&stage, "zone-a", "")]).await;
    let body = json!({ "recovery_shares": 1, "recovery_threshold": 1 });
    let (one, two) = tokio::join!(
        cluster.at(0).call("PUT", "sys/init", Some(&body)),
        cluster.at(1).call("PUT", "sys/init", Some(&body))
    );
    let (made, refused): (Vec<_>, Vec<_>) =
        [one.unwrap(), two.unwrap()].into_iter().partition(|answer| answer.status == 200);
    assert_eq!(made.len(), 1);
    assert!(refused[0].errors().contains("already initialized"), "{}", refused[0].text());
    for node in cluster.nodes() {
        node.set_token(made[0].json()["root_token"].as_str().unwrap());
        open(node).await;
    }
    cluster.voters(3, SOON).await.unwrap();
    let (_, key) = stage.seal(|_| ()).facts().await.unwrap();
    assert_eq!((key.keys_of_label, key.missing.as_str()), (1, ""));
}

/// One node on two tokens, with a command line and its configuration's flag.
async fn one_on_two(stage: &Stage, stanzas: &[String]) -> (Cluster, Cli, String) {
    let cluster = started(stage, 1, stanzas).await;
    let token = initialised(&cluster).await;
    open(cluster.at(0)).await;
    cluster.mount_kv().await.unwrap();
    let cli = cli(stage, &cluster, &token);
    let config = format!("-config={}", cluster.at(0).config_file().display());
    (cluster, cli, config)
}

#[tokio::test]
async fn a_key_that_is_deleted_while_a_node_serves_is_warned_of_and_takes_nothing() {
    let Some(stage) = Stage::new() else { return };
    let (cluster, cli, _) = one_on_two(&stage, &[stanza(&stage, "zone-a", "")]).await;
    let node = cluster.at(0);
    let key = stage.key_files().remove(0);
    fs::rename(&key, stage.path("key.aside")).unwrap();
    let differs = json_of(&cli, &["hsm", "sync", "-wait=1s"], 2).await;
    assert_eq!(states(&differs), ["zone-a unreachable"], "{differs}");
    let warned = open(node).await;
    assert!(warns(&warned, "shows its key") || warns(&warned, "has no key"), "{warned}");
    node.put("a", &json!({ "v": "written without a key" })).await.unwrap();
    assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "written without a key");
    fs::rename(stage.path("key.aside"), &key).unwrap();
    let mended = json_of(&cli, &["hsm", "sync"], 0).await;
    assert_eq!(states(&mended), ["zone-a agrees"], "{mended}");
    assert!(!warns(&open(node).await, "does not work"));
    node.kill();
    node.start().await.unwrap();
    open(node).await;
    assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "written without a key");
}

#[tokio::test]
async fn a_token_that_was_initialised_anew_is_named_and_wrapped_by_once_it_has_a_key() {
    let Some(stage) = Stage::new() else { return };
    stage.token("zone-b");
    let both = [stanza(&stage, "zone-a", ""), stanza(&stage, "zone-b", "")];
    let (cluster, cli, config) = one_on_two(&stage, &both).await;
    let node = cluster.at(0);
    stage.initialise_anew("zone-a");
    node.kill();
    node.start().await.unwrap();
    let named = |status: &Value| status["sealed"] == false && warns(status, "keystead hsm init");
    status(node, "to open by the other token, and to say what helps", named).await;
    json_of(&cli, &["hsm", "init", &config, "-seal=zone-a"], 0).await;
    let mended = json_of(&cli, &["hsm", "sync"], 0).await;
    assert_eq!(states(&mended), ["zone-a agrees", "zone-b agrees"], "{mended}");
    restart_with(&cluster, &both[..1]).await;
    open(node).await;
}

#[tokio::test]
async fn another_key_in_the_place_of_the_one_that_wrapped_is_warned_of_and_wraps_only_when_somebody_says_so()
{
    let Some(stage) = Stage::new() else { return };
    stage.token("zone-b");
    let both = [stanza(&stage, "zone-a", "key_id = \"0x07\""), stanza(&stage, "zone-b", "")];
    let (cluster, cli, config) = one_on_two(&stage, &both).await;
    let node = cluster.at(0);
    node.kill();
    stage.initialise_anew("zone-a");
    json_of(&cli, &["hsm", "init", &config, "-seal=zone-a"], 0).await;
    node.start().await.unwrap();
    let told = |status: &Value| status["sealed"] == false && warns(status, "`keystead hsm sync`");
    status(node, "to open by the other token, and to tell of the key", told).await;
    let differs = json_of(&cli, &["hsm", "status", &config], 1).await;
    assert_eq!(states(&differs), ["zone-a does-not-open", "zone-b agrees"], "{differs}");
    let mended = json_of(&cli, &["hsm", "sync"], 0).await;
    assert_eq!(states(&mended), ["zone-a agrees", "zone-b agrees"], "{mended}");
    assert!(!warns(&open(node).await, "does not work"));
    restart_with(&cluster, &both[..1]).await;
    open(node).await;
}

#[tokio::test]
async fn a_token_that_missed_a_new_root_key_is_shown_and_gets_its_generation() {
    let Some(stage) = Stage::new() else { return };
    let first = stage.token_directories();
    stage.token("zone-b");
    let second = stage.token_directories().into_iter().find(|token| !first.contains(token)).unwrap();
    let both = [stanza(&stage, "zone-a", ""), stanza(&stage, "zone-b", "")];
    let cluster = started(&stage, 1, &both).await;
    let (token, recovery) = initialised_with_key(&cluster).await;
    let node = cluster.at(0);
    open(node).await;
    let cli = cli(&stage, &cluster, &token);
    let before = json_of(&cli, &["hsm", "sync"], 0).await;
    // Doing away with break-glass shares replaces the root key, while one token is away.
    fs::rename(&second, stage.path("away")).unwrap();
    for change in ["enable", "disable"] {
        let path = format!("sys/break-glass/{change}");
        let body = json!({ "secret_shares": 2, "secret_threshold": 2 });
        let begun =
            node.call("PUT", &format!("{path}/init"), Some(&body)).await.unwrap().ok().unwrap().data();
        let body = json!({ "key": recovery, "nonce": begun["nonce"] });
        let done =
            node.call("PUT", &format!("{path}/update"), Some(&body)).await.unwrap().ok().unwrap().data();
        assert_eq!(done["complete"], true, "{done}");
    }
    let without = json_of(&cli, &["hsm", "sync", "-wait=1s"], 2).await;
    assert_eq!(states(&without), ["zone-a agrees", "zone-b missing"], "{without}");
    let generation = |list: &Value, at: usize| list[at]["wrap"]["root_generation"].as_u64().unwrap();
    assert_eq!((generation(&before, 0), generation(&without, 0)), (1, 2), "{without}");
    fs::rename(stage.path("away"), &second).unwrap();
    let mended = json_of(&cli, &["hsm", "sync"], 0).await;
    assert_eq!(states(&mended), ["zone-a agrees", "zone-b agrees"], "{mended}");
    assert_eq!((generation(&mended, 0), generation(&mended, 1)), (2, 2), "{mended}");
    restart_with(&cluster, &both[1..]).await;
    open(node).await;
}

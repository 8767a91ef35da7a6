//! New unseal shares with a new root key, root tokens made by key holders, and the rotation of the barrier key.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;
#[path = "common/state_rows.rs"]
mod state_rows;
#[path = "common/unattended.rs"]
mod unattended;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use common::{ready, three};
use keystead_chaos::{Client, Cluster, Node, Response, load, wait};
use serde_json::{Value, json};
use unattended::{Keys, SOON, init, open, with};

/// Someone with a share and no token.
async fn ask(node: &Node, method: &str, path: &str, body: Value) -> Response {
    let body = (!body.is_null()).then_some(&body);
    node.client().without_token().call(method, &format!("sys/{path}"), body).await.unwrap()
}

async fn begin(node: &Node, body: Value) -> String {
    let begun = ask(node, "PUT", "rekey/init", body).await.ok().unwrap().json();
    assert_eq!(begun["started"], true, "{begun}");
    begun["nonce"].as_str().unwrap().to_owned()
}

/// Enters a threshold of shares, and gives the answer to the last.
async fn agree(node: &Node, path: &str, nonce: &str, shares: &[String]) -> Value {
    let mut last = Value::Null;
    for share in shares {
        last = ask(node, "PUT", path, json!({ "key": share, "nonce": nonce })).await.ok().unwrap().json();
    }
    assert_eq!(last["complete"], true, "{last}");
    last
}

fn shares(made: &Value) -> Vec<String> {
    serde_json::from_value(made["keys_base64"].clone()).unwrap()
}

fn threshold(cluster: &Cluster) -> Vec<String> {
    cluster.shares()[..3].to_vec()
}

fn refused(response: &Response, text: &str) {
    assert_eq!(response.status, 400, "{}", response.text());
    assert!(response.errors().contains(text), "{}", response.text());
}

/// Restarts a node, which the former shares do not open and the new ones do.
async fn restarted(cluster: &Cluster, at: usize, old: &[String], made: u8, new: &[String]) {
    let node = cluster.at(at);
    node.stop().await.unwrap();
    node.start().await.unwrap();
    // What it has in its log alone counts when a leader says so.
    wait::until("the node to know of the new shares", SOON, || async {
        let status = node.seal_status().await.map_err(|error| error.to_string())?;
        if status["n"] == made { Ok(()) } else { Err(status.to_string()) }
    })
    .await
    .unwrap();
    let unseal =
        async |share: &String| node.call("PUT", "sys/unseal", Some(&json!({ "key": share }))).await.unwrap();
    refused(&unseal(&old[0]).await, "stale: it is of root key generation 1");
    for share in new {
        unseal(share).await.ok().unwrap();
    }
    open(node).await;
}

#[tokio::test]
async fn new_shares_are_made_under_load_and_the_former_ones_open_nothing() {
    let mut cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let standby = cluster.others(leader)[0];
    let (old, node) = (threshold(&cluster), cluster.at(standby));
    let clients: Vec<Client> = cluster.nodes().iter().map(Node::client).collect();
    let load = load::Load::start(&clients, 3, Duration::from_millis(2));
    // A standby forwards.
    let nonce = begin(node, json!({ "secret_shares": 5, "secret_threshold": 3 })).await;
    let made = agree(node, "rekey/update", &nonce, &old).await;
    let new = shares(&made);
    assert_eq!((new.len(), &made["verification_required"]), (5, &json!(false)));
    let so_far = load.acknowledged();
    wait::until("writes under the new root key", SOON, || async {
        match load.acknowledged() > so_far + 200 {
            true => Ok(()),
            false => Err(load.acknowledged().to_string()),
        }
    })
    .await
    .unwrap();
    for node in cluster.nodes() {
        let status = open(node).await;
        assert_eq!((&status["t"], &status["n"]), (&json!(3), &json!(5)), "{status}");
    }
    let history = load.stop().await;
    assert_eq!(history.count(load::Ended::Refused), 0, "{:?}", history.refusals);
    restarted(&cluster, standby, &old, 5, &new[2..]).await;
    restarted(&cluster, leader, &old, 5, &new[..3]).await;
    cluster.replace_shares(new);
    cluster.voters(3, SOON).await.unwrap();
    history.check(&cluster, &[0, 1, 2]).await.unwrap();
    digests::equal(&cluster).await;
    // The former ones make nothing either.
    let node = cluster.at(standby);
    let nonce = begin(node, json!({ "secret_shares": 1, "secret_threshold": 1 })).await;
    let answer = ask(node, "PUT", "rekey/update", json!({ "key": old[0], "nonce": nonce })).await;
    refused(&answer, "stale: it is of root key generation 1");
}

#[tokio::test]
async fn what_is_wrong_with_a_rekey_is_said_and_changes_nothing() {
    let cluster = ready().await;
    let (node, old) = (cluster.at(0), threshold(&cluster));
    let init = async |body: Value| ask(node, "PUT", "rekey/init", body).await;
    let update = async |key: &str, nonce: &str| {
        ask(node, "PUT", "rekey/update", json!({ "key": key, "nonce": nonce })).await
    };
    let numbers = json!({ "secret_shares": 3, "secret_threshold": 2 });
    refused(&init(json!({ "secret_shares": 2, "secret_threshold": 3 })).await, "threshold cannot be larger");
    let backup = json!({ "secret_shares": 3, "secret_threshold": 2, "backup": true });
    refused(&init(backup).await, "without providing PGP keys");
    let mut keys = numbers.clone();
    keys["pgp_keys"] = json!(["AAAA"]);
    refused(&init(keys.clone()).await, "incorrect number of PGP keys");
    keys["pgp_keys"] = json!(["AAAA", "AAAA", "AAAA"]);
    refused(&init(keys).await, "error parsing given PGP key");
    refused(&update(&old[0], "x").await, "no barrier rekey in progress");
    refused(&ask(node, "GET", "rekey/verify", Value::Null).await, "no rekey configuration found");
    let recovery = ask(node, "PUT", "rekey-recovery-key/init", numbers.clone()).await;
    refused(&recovery, "recovery rekeying not supported");

    let nonce = begin(node, numbers.clone()).await;
    refused(&init(numbers).await, "rekey already in progress");
    let wrong = update(&old[0], "x").await;
    refused(&wrong, "incorrect nonce supplied");
    assert!(!wrong.errors().contains(&nonce), "it is not for outsiders: {}", wrong.text());
    refused(&update(&"07".repeat(33), &nonce).await, "is none of this vault's present shares");
    let one = update(&old[0], &nonce).await.ok().unwrap().json();
    assert_eq!((&one["progress"], &one["required"]), (&json!(1), &json!(3)), "{one}");
    refused(&update(&old[0], &nonce).await, "already been provided");
    let seen = ask(node, "GET", "rekey/init", Value::Null).await.ok().unwrap().json();
    assert_eq!((&seen["nonce"], &seen["progress"]), (&json!(""), &json!(1)), "{seen}");
    let seen = node.call("GET", "sys/rekey/init", None).await.unwrap().json();
    assert_eq!(seen["nonce"], json!(nonce), "who has a token is told: {seen}");
    // An outsider does not undo what holders have agreed to; who has the nonce does.
    refused(&ask(node, "DELETE", "rekey/init", Value::Null).await, "cancelled by who has its nonce");
    for method in ["GET", "DELETE"] {
        let other = ask(node, method, "rekey-recovery-key/init", Value::Null).await;
        refused(&other, "recovery rekeying not supported");
    }
    let seen = ask(node, "GET", "rekey/init", Value::Null).await.ok().unwrap().json();
    assert_eq!((&seen["started"], &seen["progress"]), (&json!(true), &json!(1)), "{seen}");
    let path = format!("rekey/init?nonce={nonce}");
    assert_eq!(ask(node, "DELETE", &path, Value::Null).await.status, 204);
    refused(&update(&old[1], &nonce).await, "no barrier rekey in progress");
    cluster.at(1).stop().await.unwrap();
    cluster.bring_back(1).await.unwrap();
}

#[tokio::test]
async fn with_verification_the_former_shares_count_until_the_new_ones_were_entered() {
    let mut cluster = ready().await;
    let (node, old) = (cluster.at(0), threshold(&cluster));
    let body = json!({ "secret_shares": 3, "secret_threshold": 3, "require_verification": true });
    let nonce = begin(node, body).await;
    let made = agree(node, "rekey/update", &nonce, &old).await;
    let (new, verification) = (shares(&made), made["verification_nonce"].as_str().unwrap());
    let again = ask(node, "PUT", "rekey/update", json!({ "key": old[0], "nonce": nonce })).await;
    refused(&again, "verification must be performed");
    // A standby restarts with the former ones meanwhile.
    let standby = cluster.others(cluster.leader().await.unwrap())[0];
    cluster.at(standby).stop().await.unwrap();
    cluster.bring_back(standby).await.unwrap();
    let verify = async |key: &str, nonce: &str| {
        ask(node, "PUT", "rekey/verify", json!({ "key": key, "nonce": nonce })).await
    };
    refused(&verify(&new[0], &nonce).await, "incorrect nonce supplied");
    refused(&verify(&old[0], verification).await, "stale: it is of root key generation 1");
    let one = verify(&new[0], verification).await.ok().unwrap().json();
    assert_eq!((&one["progress"], &one["started"]), (&json!(1), &json!(true)), "{one}");
    let path = format!("rekey/verify?nonce={verification}");
    let renamed = ask(node, "DELETE", &path, Value::Null).await.ok().unwrap().json();
    assert_eq!(renamed["progress"], 0, "{renamed}");
    let verification = renamed["nonce"].as_str().unwrap();
    assert_eq!(agree(node, "rekey/verify", verification, &new).await["nonce"], json!(verification));
    for node in cluster.nodes() {
        open(node).await;
    }
    restarted(&cluster, standby, &old, 3, &new).await;
    cluster.replace_shares(new);
    digests::equal(&cluster).await;
}

#[tokio::test]
async fn a_leader_that_dies_in_the_middle_leaves_the_former_shares() {
    let cluster = ready().await;
    let old = threshold(&cluster);
    let leader = cluster.leader().await.unwrap();
    let body = json!({ "secret_shares": 3, "secret_threshold": 2, "require_verification": true });
    let nonce = begin(cluster.at(leader), body).await;
    let made = agree(cluster.at(leader), "rekey/update", &nonce, &old).await;
    cluster.at(leader).kill();
    let survivors = cluster.others(leader);
    cluster.leader_among(&survivors, SOON).await.unwrap();
    cluster.serves(survivors[0], SOON).await.unwrap();
    let idle = ask(cluster.at(survivors[0]), "GET", "rekey/init", Value::Null).await.ok().unwrap().json();
    assert_eq!(idle["started"], false, "{idle}");
    let verify = json!({ "key": shares(&made)[0], "nonce": made["verification_nonce"] });
    let answer = ask(cluster.at(survivors[0]), "PUT", "rekey/verify", verify).await;
    refused(&answer, "no rekey configuration found");
    cluster.bring_back(leader).await.unwrap();
    digests::equal(&cluster).await;
}

/// The token that an answer has in it.
fn decoded(answer: &Value, otp: &str) -> String {
    let mixed = STANDARD_NO_PAD.decode(answer["encoded_token"].as_str().unwrap()).unwrap();
    assert_eq!(mixed.len(), otp.len());
    String::from_utf8(mixed.iter().zip(otp.bytes()).map(|(a, b)| a ^ b).collect()).unwrap()
}

#[tokio::test]
async fn key_holders_make_a_root_token_and_the_barrier_key_is_rotated_with_it() {
    let cluster = ready().await;
    let (node, holders) = (cluster.at(1), threshold(&cluster));
    let attempt = "generate-root/attempt";
    let short = ask(node, "PUT", attempt, json!({ "otp": "short" })).await;
    refused(&short, "OTP string has incorrect length");
    let update = json!({ "key": holders[0], "nonce": "x" });
    let early = ask(node, "PUT", "generate-root/update", update).await;
    refused(&early, "no root generation in progress");
    let begun = ask(node, "PUT", attempt, json!({})).await.ok().unwrap().json();
    let (nonce, otp) = (begun["nonce"].as_str().unwrap(), begun["otp"].as_str().unwrap());
    assert_eq!(begun["otp_length"], json!(otp.len()));
    refused(&ask(node, "PUT", attempt, json!({})).await, "root generation already in progress");
    let seen = ask(node, "GET", attempt, Value::Null).await.ok().unwrap().json();
    assert_eq!((&seen["otp"], &seen["nonce"], &seen["started"]), (&json!(""), &json!(""), &json!(true)));
    let made = agree(node, "generate-root/update", nonce, &holders).await;
    let token = decoded(&made, otp);
    let client = cluster.at(2).client().with_token(token);
    let own = client.call("GET", "auth/token/lookup-self", None).await.unwrap().ok().unwrap().data();
    assert_eq!(own["policies"], json!(["root"]));

    let status = async |client: &Client| {
        client.call("GET", "sys/key-status", None).await.unwrap().ok().unwrap().data()["term"].clone()
    };
    node.put("a", &json!({ "v": "before" })).await.unwrap();
    assert_eq!(status(&client).await, 1);
    let nobody = ask(node, "PUT", "rotate", json!({})).await;
    assert_eq!(nobody.status, 403);
    assert_eq!(client.call("PUT", "sys/rotate", Some(&json!({}))).await.unwrap().status, 204);
    for node in cluster.nodes() {
        assert_eq!(status(&node.client()).await, 2, "{}", node.name());
        assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "before");
    }
    cluster.at(0).stop().await.unwrap();
    cluster.bring_back(0).await.unwrap();
    digests::equal(&cluster).await;
}

#[tokio::test]
async fn where_seals_open_the_vault_recovery_shares_have_the_say_and_are_replaced() {
    let keys = Keys::new();
    let cluster = Box::pin(with(three(), keys.stanzas(&["file"])).start()).await.unwrap();
    let recovery = init(&cluster).await;
    cluster.voters(3, SOON).await.unwrap();
    for node in cluster.nodes() {
        open(node).await;
    }
    let node = cluster.at(0);
    let numbers = json!({ "secret_shares": 3, "secret_threshold": 2, "require_verification": true });
    refused(&ask(node, "PUT", "rekey/init", numbers.clone()).await, "is opened by its seals");
    let begun = ask(node, "PUT", "rekey-recovery-key/init", numbers).await.ok().unwrap().json();
    let nonce = begun["nonce"].as_str().unwrap();
    // Nor does asking under the other name.
    let other = ask(node, "GET", "rekey/init", Value::Null).await.ok().unwrap().json();
    assert_eq!(other["started"], false, "{other}");
    assert_eq!(ask(node, "DELETE", "rekey/init", Value::Null).await.status, 204);
    let made = agree(node, "rekey-recovery-key/update", nonce, &recovery[..3]).await;
    let (new, verification) = (shares(&made), made["verification_nonce"].as_str().unwrap());
    agree(node, "rekey-recovery-key/verify", verification, &new[1..]).await;
    let begun = ask(node, "PUT", "generate-root/attempt", json!({})).await.ok().unwrap().json();
    let (nonce, otp) = (begun["nonce"].as_str().unwrap(), begun["otp"].as_str().unwrap());
    let former = json!({ "key": recovery[0], "nonce": nonce });
    refused(&ask(node, "PUT", "generate-root/update", former).await, "this takes recovery shares");
    let made = agree(node, "generate-root/update", nonce, &new[..2]).await;
    let client = node.client().with_token(decoded(&made, otp));
    client.call("GET", "auth/token/lookup-self", None).await.unwrap().ok().unwrap();
    digests::equal(&cluster).await;
}

/// Runs a command that has to succeed, and gives its answer in JSON.
async fn command(cluster: &Cluster, args: &[&str]) -> Value {
    let args = [&["operator", args[0], "-format=json"], &args[1..]].concat();
    let done = cluster.cli(0).run(&args).await.unwrap();
    assert_eq!(done.code, 0, "{args:?}: {}{}", done.stdout, done.stderr);
    serde_json::from_str(&done.stdout).unwrap()
}

#[tokio::test]
async fn the_command_line_goes_through_all_of_it() {
    let cluster = Box::pin(common::one().ready()).await.unwrap();
    let shares_now = threshold(&cluster);
    let run = async |args: &[&str]| {
        let done = cluster.cli(0).run(&[&["operator"], args].concat()).await.unwrap();
        (done.code, done.stdout, done.stderr)
    };
    let (code, out, _) = run(&["rekey", "-status"]).await;
    assert_eq!((code, out.as_str()), (0, "Nonce      n/a\nStarted    false\n"));
    let (code, _, err) = run(&["rekey", "-nonce=x", "KEY"]).await;
    assert!(code == 1 && err.contains("No rekey is in progress"), "{code} {err}");
    let init = ["rekey", "-init", "-key-shares=3", "-key-threshold=2", "-verify"];
    let (code, out, err) = run(&init).await;
    assert!(code == 0 && out.contains("Rekey Progress           0/3"), "{code} {out}");
    assert!(err.contains("WARNING! If you lose the keys"), "{err}");
    let (code, _, err) = run(&["rekey", &shares_now[0]]).await;
    assert!(code == 1 && err.contains("Missing nonce value"), "{code} {err}");
    let nonce = command(&cluster, &["rekey", "-status"]).await["nonce"].as_str().unwrap().to_owned();
    let nonce = format!("-nonce={nonce}");
    let mut made = Value::Null;
    for share in &shares_now {
        made = command(&cluster, &["rekey", &nonce, share]).await;
    }
    let (new, verification) = (shares(&made), made["verification_nonce"].as_str().unwrap());
    let verification = format!("-nonce={verification}");
    let (code, out, err) = run(&["rekey", "-verify", &verification, &new[0]]).await;
    assert!(code == 0 && out.contains("Verification Progress    1/2"), "{code} {out}{err}");
    let (code, out, err) = run(&["rekey", "-verify", &verification, &new[1]]).await;
    assert!(code == 0 && out.starts_with("Rekey verification successful."), "{code} {out}{err}");

    let begun = command(&cluster, &["generate-root", "-init"]).await;
    let nonce = format!("-nonce={}", begun["nonce"].as_str().unwrap());
    command(&cluster, &["generate-root", &nonce, &new[0]]).await;
    let made = command(&cluster, &["generate-root", &nonce, &new[2]]).await;
    let encoded = format!("-decode={}", made["encoded_token"].as_str().unwrap());
    let otp = format!("-otp={}", begun["otp"].as_str().unwrap());
    let token = command(&cluster, &["generate-root", &encoded, &otp]).await;
    let client = cluster.at(0).client().with_token(token["token"].as_str().unwrap());
    client.call("GET", "auth/token/lookup-self", None).await.unwrap().ok().unwrap();
    let (code, _, err) = run(&["generate-root", &encoded, "-otp=short"]).await;
    assert!(code == 1 && err.contains("the password has 5"), "{code} {err}");
    let (code, otp, _) = run(&["generate-root", "-generate-otp"]).await;
    assert_eq!((code, otp.trim_end().len()), (0, 28));
    let (code, out, err) = run(&["rotate"]).await;
    assert!(code == 0 && out.starts_with("Success! Rotated key\n\nKey Term            3\n"), "{out}{err}");
    command(&cluster, &["rekey", "-init"]).await;
    let (code, out, err) = run(&["rekey", "-cancel"]).await;
    assert_eq!((code, out.trim_end()), (0, "Success! Canceled rekeying (if it was started)"), "{err}");
}

/// How many sealed values there are of each barrier term on a disk: a value begins with its format and its term.
fn terms(rows: &state_rows::Rows) -> [usize; 2] {
    let of = |term: u8| {
        let begins = |row: &&Vec<u8>| row[..row.len().min(40)].windows(5).any(|at| at == [1, 0, 0, 0, term]);
        rows.values().filter(begins).count()
    };
    [of(1), of(2)]
}

#[tokio::test]
async fn after_a_rotation_everything_is_sealed_anew_in_the_background() {
    let cluster = ready().await;
    let node = cluster.at(cluster.leader().await.unwrap());
    for n in 0..150 {
        node.put(&format!("deep/{}/{n}", n % 7), &json!({ "n": n })).await.unwrap();
    }
    let clients: Vec<Client> = cluster.nodes().iter().map(Node::client).collect();
    let load = load::Load::start(&clients, 2, Duration::from_millis(2));
    node.call("PUT", "sys/rotate", Some(&json!({}))).await.unwrap().ok().unwrap();
    let done = "everything is sealed under the newest barrier key";
    wait::until_now("the walk to end", SOON, || match node.log().contains(done) {
        true => Ok(()),
        false => Err("it goes on".to_owned()),
    })
    .await
    .unwrap();
    let history = load.stop().await;
    assert_eq!(history.count(load::Ended::Refused), 0, "{:?}", history.refusals);
    for n in 0..150 {
        assert_eq!(node.get(&format!("deep/{}/{n}", n % 7)).await.unwrap().unwrap()["n"], n);
    }
    history.check(&cluster, &[0, 1, 2]).await.unwrap();
    digests::equal(&cluster).await;
    for node in cluster.nodes() {
        node.stop().await.unwrap();
        let [old, new] = terms(&state_rows::rows(&node.data(), b"s"));
        assert!(old == 0 && new > 300, "{}: {old} under the old key, {new} under the new one", node.name());
    }
    // The next leader knows that there is nothing to do.
    cluster.bring_back_together(&[0, 1, 2]).await.unwrap();
    cluster.serves(0, SOON).await.unwrap();
    assert_eq!(cluster.nodes().iter().map(|node| node.log().matches(done).count()).sum::<usize>(), 1);
}

#[tokio::test]
async fn when_the_barrier_key_is_rotated_can_be_configured() {
    let cluster = ready().await;
    let node = cluster.at(1);
    let read = async || node.call("GET", "sys/rotate/config", None).await.unwrap().ok().unwrap().data();
    let write = async |body: Value| node.call("PUT", "sys/rotate/config", Some(&body)).await.unwrap();
    let default = json!({ "enabled": true, "interval": 0, "max_operations": 3_865_470_566_u64 });
    assert_eq!(read().await, default);
    for wrong in [
        json!({ "max_operations": 999_999 }),
        json!({ "max_operations": 3_865_470_567_u64 }),
        json!({ "interval": "23h" }),
        json!({ "enabled": "perhaps" }),
    ] {
        assert_eq!(write(wrong.clone()).await.status, 400, "{wrong}");
    }
    assert_eq!(read().await, default, "nothing was changed");
    assert_eq!(write(json!({ "interval": "48h", "max_operations": 2_000_000 })).await.status, 204);
    assert_eq!(read().await, json!({ "enabled": true, "interval": 172_800, "max_operations": 2_000_000 }));
    let stranger = node.client().without_token();
    assert_eq!(stranger.call("GET", "sys/rotate/config", None).await.unwrap().status, 403);
}

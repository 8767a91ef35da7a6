//! Nodes that open by themselves: with keys in files, and with a token.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[allow(dead_code)] // its own tests use all of it
#[path = "hsm/stage.rs"]
mod stage;
#[path = "common/unattended.rs"]
mod unattended_nodes;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use common::{at_most, one, three};
use keystead_chaos::{Builder, Cluster, Result, wait};
use serde_json::{Value, json};
use stage::Stage;
use unattended_nodes::{Keys, SOON, init, open, restart_with, start_all, status, type_in, warns, with};

/// Three nodes start, one is initialised, all serve; all are killed, started, and serve again; nobody opens anything.
async fn needs_nobody(cluster: &Cluster, kind: &str) {
    let shares = init(cluster).await;
    assert_eq!(shares.len(), 5);
    cluster.voters(3, SOON).await.unwrap();
    for node in cluster.nodes() {
        let status = open(node).await;
        assert_eq!((&status["type"], &status["recovery_seal"]), (&json!(kind), &json!(true)), "{status}");
        assert_eq!((&status["t"], &status["n"]), (&json!(3), &json!(5)), "{status}");
    }
    cluster.mount_kv().await.unwrap();
    cluster.at(0).put("a", &json!({ "v": "kept" })).await.unwrap();
    cluster.kill_together(&[0, 1, 2]).unwrap();
    start_all(cluster).await;
    for (at, node) in cluster.nodes().iter().enumerate() {
        open(node).await;
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "kept");
    }
}

#[tokio::test]
async fn three_nodes_with_a_key_in_a_file_need_nobody() {
    let keys = Keys::new();
    let cluster = Box::pin(with(three(), keys.stanzas(&["file"])).start()).await.unwrap();
    needs_nobody(&cluster, "file").await;
    let status = open(cluster.at(0)).await;
    assert!(warns(&status, "for development only") && warns(&status, "configure a second seal"), "{status}");
    let mode = fs::metadata(keys.path("file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn three_nodes_with_a_token_need_nobody() {
    let Some(stage) = Stage::new() else { return };
    let stanza = format!(
        "seal \"pkcs11\" {{\n  lib          = \"{}\"\n  token_label  = \"zone-a\"\n  pin          = \"{}\"\n  key_label    = \
         \"keystead\"\n  generate_key = true\n}}",
        stage.module.display(),
        stage::PIN
    );
    let builder = with(Builder::new(stage.path("helper"), 3), vec![stanza.clone()]);
    let cluster = Box::pin(builder.start()).await.unwrap();
    needs_nobody(&cluster, "pkcs11").await;
    // A token that is gone takes nothing from who is open, and opens nobody; when it is back, it does.
    let aside = stage.path("aside");
    fs::rename(stage.path("tokens"), &aside).unwrap();
    cluster.at(0).put("b", &json!({ "v": "written without a token" })).await.unwrap();
    cluster.at(2).kill();
    cluster.at(2).start().await.unwrap();
    status(cluster.at(2), "to miss its token", |status| {
        status["sealed"] == true && warns(status, "does not work")
    })
    .await;
    fs::rename(&aside, stage.path("tokens")).unwrap();
    open(cluster.at(2)).await;
    cluster.serves(2, SOON).await.unwrap();
    assert_eq!(cluster.at(2).get("b").await.unwrap().unwrap()["v"], "written without a token");
    // A second token, configured later: the leader makes its key and wraps by it, and it opens alone.
    stage.token("zone-b");
    let second = stanza.replace("zone-a", "zone-b").replace("\n}", "\n  name = \"west\"\n}");
    restart_with(&cluster, &[stanza, second.clone()]).await;
    let both = |status: &Value| {
        let lacking =
            ["is not wrapped", "second seal", "does not work"].iter().any(|text| warns(status, text));
        status["sealed"] == false && !lacking
    };
    for node in cluster.nodes() {
        status(node, "to have two wraps", both).await;
    }
    restart_with(&cluster, &[second]).await;
    for node in cluster.nodes() {
        open(node).await;
    }
}

#[tokio::test]
async fn either_of_two_seals_opens_and_the_missing_one_is_named() {
    let keys = Keys::new();
    let cluster = Box::pin(with(one(), keys.stanzas(&["east", "west"])).start()).await.unwrap();
    init(&cluster).await;
    let node = cluster.at(0);
    let status_of_both = open(node).await;
    assert!(!warns(&status_of_both, "second seal"), "{status_of_both}");
    for gone in ["east", "west"] {
        let aside = keys.path("aside");
        fs::rename(keys.path(gone), &aside).unwrap();
        node.kill();
        node.start().await.unwrap();
        let status = open(node).await;
        assert_eq!(warns(&status, "seal \"east\" does not work"), gone == "east", "{status}");
        let backends = node.client().without_token().call("GET", "sys/seal-backend-status", None).await;
        let backends = backends.unwrap().ok().unwrap().json();
        assert_eq!(backends["backends"][0]["name"], "east", "{backends}");
        assert_eq!(backends["backends"][0]["healthy"] == false, gone == "east", "{backends}");
        assert_eq!(backends["fully_wrapped"], true, "{backends}");
        fs::rename(&aside, keys.path(gone)).unwrap();
    }
}

#[tokio::test]
async fn a_seal_that_was_missing_is_wrapped_when_it_works_and_then_opens_alone() {
    let keys = Keys::new();
    let cluster = Box::pin(with(three(), keys.stanzas(&["east", "there.west"])).start()).await.unwrap();
    init(&cluster).await;
    cluster.voters(3, SOON).await.unwrap();
    let lacks = |status: &Value| warns(status, "is not wrapped by the seal \"there.west\"");
    let missing = status(cluster.at(0), "to miss a seal", lacks).await;
    assert!(warns(&missing, "configure a second seal"), "{missing}");
    fs::create_dir(keys.path("there")).unwrap();
    // The first leader that opens after that wraps, and everybody has it.
    cluster.kill_together(&[0, 1, 2]).unwrap();
    start_all(&cluster).await;
    for node in cluster.nodes() {
        status(node, "to have the second wrap", |status| status["sealed"] == false && !lacks(status)).await;
    }
    fs::remove_file(keys.path("east")).unwrap();
    cluster.kill_together(&[0, 1, 2]).unwrap();
    start_all(&cluster).await;
    for node in cluster.nodes() {
        let status = open(node).await;
        assert!(!warns(&status, "\"there.west\" does not work"), "{status}");
    }
}

#[tokio::test]
async fn a_rotated_key_wraps_the_root_key_anew() {
    let keys = Keys::new();
    let cluster = Box::pin(with(one(), keys.stanzas(&["east", "west"])).start()).await.unwrap();
    init(&cluster).await;
    let node = cluster.at(0);
    open(node).await;
    node.kill();
    fs::remove_file(keys.path("west")).unwrap();
    node.start().await.unwrap();
    // The canary makes a key there, and the leader wraps by it.
    open(node).await;
    let rewrapped = || async {
        let metrics = node.call("GET", "sys/metrics?format=prometheus", None).await?.text();
        let done =
            metrics.lines().any(|line| line.starts_with("keystead_seal_rewraps_total{seal=\"west\"} 1"));
        if done { Result::Ok(()) } else { Err(keystead_chaos::Error::Broken(metrics)) }
    };
    wait::until("the new key to wrap", SOON, rewrapped).await.unwrap();
    node.kill();
    fs::remove_file(keys.path("east")).unwrap();
    node.start().await.unwrap();
    open(node).await;
}

#[tokio::test]
async fn break_glass_opens_when_every_seal_is_gone() {
    let keys = Keys::new();
    let cluster = Box::pin(with(three(), keys.stanzas(&["file"])).start()).await.unwrap();
    let body = json!({
        "recovery_shares": 1, "recovery_threshold": 1, "break_glass_shares": 3, "break_glass_threshold": 2,
    });
    let made = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    for node in cluster.nodes() {
        node.set_token(made["root_token"].as_str().unwrap());
    }
    let shares: Vec<String> = serde_json::from_value(made["break_glass_keys_base64"].clone()).unwrap();
    cluster.voters(3, SOON).await.unwrap();
    cluster.mount_kv().await.unwrap();
    cluster.at(0).put("a", &json!({ "v": "saved" })).await.unwrap();
    let healthy = open(cluster.at(0)).await;
    assert!(!warns(&healthy, "configure a second seal"), "{healthy}");
    fs::remove_file(keys.path("file")).unwrap();
    cluster.kill_together(&[0, 1, 2]).unwrap();
    start_all(&cluster).await;
    for node in cluster.nodes() {
        status(node, "to miss its key", |status| warns(status, "does not work")).await;
        let recovery = json!({ "key": made["recovery_keys_base64"][0] });
        let refused = node.call("PUT", "sys/unseal", Some(&recovery)).await.unwrap();
        assert_eq!(refused.status, 400);
        assert!(refused.errors().contains("is a recovery share, which opens nothing"), "{}", refused.text());
        let answer = type_in(node, &shares[1..], false).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        open(node).await;
    }
    for (at, node) in cluster.nodes().iter().enumerate() {
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "saved");
    }
}

#[tokio::test]
async fn shares_give_way_to_a_seal_and_the_seal_to_the_same_shares() {
    let keys = Keys::new();
    let cluster = Box::pin(three().ready()).await.unwrap();
    cluster.at(0).put("a", &json!({ "v": "moved" })).await.unwrap();
    let enabled = keys.stanzas(&["file"]);
    restart_with(&cluster, &enabled).await;
    for node in cluster.nodes() {
        status(node, "to wait for a migration", |status| status["migration"] == true).await;
        let refused = type_in(node, &cluster.shares()[..1], false).await;
        assert_eq!(refused.status, 500);
        assert!(refused.errors().contains("seal migration is pending"), "{}", refused.text());
    }
    // Killed when the first node has been opened so: either nothing happened, or all of it.
    let answer = type_in(cluster.at(0), &cluster.shares()[..3], true).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    cluster.kill_together(&[0, 1, 2]).unwrap();
    start_all(&cluster).await;
    let first = status(cluster.at(0), "to know the vault", |status| status["initialized"] == true).await;
    if first["migration"] == true {
        type_in(cluster.at(0), &cluster.shares()[..3], true).await;
    }
    // The others need nobody any more, and nor does anybody from now on.
    for node in cluster.nodes() {
        let moved = open(node).await;
        assert!(node.is_running() && moved["type"] != "", "{moved}");
        status(node, "to have moved", |status| status["type"] == "file" && status["migration"] == false)
            .await;
    }
    restart_with(&cluster, &enabled).await;
    for (at, node) in cluster.nodes().iter().enumerate() {
        let moved = open(node).await;
        assert_eq!((&moved["recovery_seal"], &moved["t"], &moved["n"]), (&json!(true), &json!(3), &json!(5)));
        cluster.serves(at, SOON).await.unwrap();
        assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "moved");
    }
    // And back.
    let disabled = enabled[0].replace("\n}", "\n  disabled = true\n}");
    restart_with(&cluster, &[disabled]).await;
    for node in cluster.nodes() {
        status(node, "to wait for a migration", |status| {
            status["migration"] == true && status["sealed"] == true
        })
        .await;
    }
    let wrong = json!({ "key": format!("{}A", &cluster.shares()[0][..63]), "migrate": true });
    assert_eq!(cluster.at(1).call("PUT", "sys/unseal", Some(&wrong)).await.unwrap().status, 400);
    for node in cluster.nodes() {
        let pending = node.seal_status().await.unwrap()["migration"] == true;
        let answer = type_in(node, &cluster.keys().shares[2..], pending).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for node in cluster.nodes() {
        status(node, "to be opened by shares", |status| {
            status["type"] == "shamir" && status["sealed"] == false
        })
        .await;
    }
    restart_with(&cluster, &[]).await;
    for node in cluster.nodes() {
        // What a node has in its log alone counts once a leader says so.
        status(node, "to know that shares open it", |status| status["type"] == "shamir").await;
    }
    cluster.unseal_all().await.unwrap();
    for node in cluster.nodes() {
        assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "moved");
    }
    // Once more to the seal. A node whose disk had not heard of the shares yet may open by its older wrap; it takes the
    // shares for the migration all the same.
    restart_with(&cluster, &enabled).await;
    for node in cluster.nodes() {
        let pending = |status: &Value| status["type"] == "file" || status["migration"] == true;
        status(node, "to wait, or to be open", pending).await;
        type_in(node, &cluster.keys().shares[..3], true).await;
    }
    for node in cluster.nodes() {
        status(node, "to have moved again", |status| status["type"] == "file" && status["sealed"] == false)
            .await;
    }
}

/// What is killed, and when: before the last share, or so long after it was sent.
type Kill = (&'static [usize], Option<Duration>);

#[tokio::test]
async fn a_migration_that_is_killed_at_any_moment_is_done_wholly_or_not_at_all() {
    const ALL: &[usize] = &[0, 1, 2];
    let after = |ms| Some(Duration::from_millis(ms));
    // The node that writes the entry, one that applies it, and all of them.
    let kills: [Kill; 7] = [
        (ALL, None),
        (ALL, after(0)),
        (ALL, after(15)),
        (ALL, after(60)),
        (&[0], after(15)),
        (&[2], after(0)),
        (&[2], after(30)),
    ];
    for (killed, delay) in kills {
        let keys = Keys::new();
        let cluster = Box::pin(three().ready()).await.unwrap();
        cluster.at(0).put("a", &json!({ "v": "kept" })).await.unwrap();
        restart_with(&cluster, &keys.stanzas(&["file"])).await;
        for node in cluster.nodes() {
            status(node, "to wait for a migration", |status| status["migration"] == true).await;
        }
        let last = json!({ "key": cluster.shares()[2], "migrate": true });
        type_in(cluster.at(0), &cluster.shares()[..2], true).await;
        if let Some(delay) = delay {
            let sent = cluster.at(0).call("PUT", "sys/unseal", Some(&last));
            // The answer may be lost with the node.
            let (_, ()) = tokio::join!(sent, async {
                tokio::time::sleep(delay).await;
                cluster.kill_together(killed).unwrap();
            });
        } else {
            cluster.kill_together(killed).unwrap();
        }
        for at in killed {
            cluster.at(*at).start().await.unwrap();
        }
        // Whoever still waits is given the shares again; where it was done, nobody waits for long.
        let moved = |status: &Value| {
            status["type"] == "file" && status["sealed"] == false && status["migration"] == false
        };
        let settle = || async {
            let mut all = Vec::new();
            for node in cluster.nodes() {
                let status = node.seal_status().await?;
                if status["migration"] == true {
                    for share in cluster.shares() {
                        let body = json!({ "key": share, "migrate": true });
                        // It may have opened by itself meanwhile, and take none.
                        node.call("PUT", "sys/unseal", Some(&body)).await?;
                    }
                }
                all.push(status);
            }
            if all.iter().all(moved) {
                Result::Ok(())
            } else {
                Err(keystead_chaos::Error::Broken(format!("{killed:?} {delay:?}: {all:?}")))
            }
        };
        wait::until("all to have moved", SOON, settle).await.unwrap();
        for (at, node) in cluster.nodes().iter().enumerate() {
            cluster.serves(at, SOON).await.unwrap();
            assert_eq!(node.get("a").await.unwrap().unwrap()["v"], "kept", "{killed:?} {delay:?}");
        }
    }
}

#[tokio::test]
async fn one_seal_gives_way_to_another() {
    let keys = Keys::new();
    let cluster = Box::pin(with(three(), keys.stanzas(&["old"])).start()).await.unwrap();
    init(&cluster).await;
    cluster.voters(3, SOON).await.unwrap();
    let mut stanzas = keys.stanzas(&["old", "new"]);
    stanzas[0] = stanzas[0].replace("\n}", "\n  disabled = true\n}");
    restart_with(&cluster, &stanzas).await;
    for node in cluster.nodes() {
        status(node, "to be open by the new seal alone", |status| {
            status["sealed"] == false && warns(status, "nothing but the seal \"new\"")
        })
        .await;
    }
    fs::remove_file(keys.path("old")).unwrap();
    restart_with(&cluster, &stanzas[1..]).await;
    for node in cluster.nodes() {
        open(node).await;
    }
}

#[tokio::test]
async fn a_seal_that_is_gone_or_another_leaves_the_node_sealed_until_it_is_back() {
    let keys = Keys::new();
    let cluster = Box::pin(with(one(), keys.stanzas(&["file"])).start()).await.unwrap();
    init(&cluster).await;
    let node = cluster.at(0);
    open(node).await;
    node.kill();
    let aside = keys.path("aside");
    fs::rename(keys.path("file"), &aside).unwrap();
    node.start().await.unwrap();
    let gone = |status: &Value| status["sealed"] == true && warns(status, "cannot be read");
    status(node, "to miss its key", gone).await;
    // Another key is there.
    fs::write(keys.path("file"), format!("{}\n", "ab".repeat(32))).unwrap();
    fs::set_permissions(keys.path("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let other = |status: &Value| status["sealed"] == true && warns(status, "was not wrapped with the key");
    status(node, "to refuse another key", other).await;
    fs::rename(&aside, keys.path("file")).unwrap();
    let status = open(node).await;
    assert!(!warns(&status, "does not work"), "{status}");
}

#[tokio::test]
async fn recovery_shares_open_nothing_and_who_seals_a_node_wants_it_sealed() {
    let keys = Keys::new();
    let cluster = Box::pin(with(one(), keys.stanzas(&["file"])).start()).await.unwrap();
    let node = cluster.at(0);
    for (body, text) in [
        (json!({ "secret_shares": 5, "secret_threshold": 3 }), "not applicable to seal type file"),
        (json!({}), "shares must be at least one"),
        (json!({ "recovery_shares": 2, "recovery_threshold": 3 }), "threshold cannot be larger than shares"),
    ] {
        let refused = node.call("PUT", "sys/init", Some(&body)).await.unwrap();
        assert_eq!(refused.status, 400);
        assert!(refused.errors().contains(text), "{}", refused.text());
    }
    let shares = init(&cluster).await;
    open(node).await;
    node.call("PUT", "sys/seal", None).await.unwrap().ok().unwrap();
    for share in &shares {
        let refused = node.call("PUT", "sys/unseal", Some(&json!({ "key": share }))).await.unwrap();
        assert_eq!(refused.status, 400);
        assert!(refused.errors().contains("recovery shares open nothing"), "{}", refused.text());
    }
    let wait_for_it = at_most(Duration::from_secs(1));
    let opened = wait::until("the node to open by itself", wait_for_it, || async {
        let status = node.seal_status().await?;
        match status["sealed"] == false {
            true => Result::Ok(()),
            false => Err(keystead_chaos::Error::Broken(status.to_string())),
        }
    });
    assert!(opened.await.is_err(), "an operator sealed it");
    node.kill();
    node.start().await.unwrap();
    open(node).await;
}

#[tokio::test]
async fn the_key_of_a_seal_is_in_no_file_but_its_own() {
    let keys = Keys::new();
    let cluster = Box::pin(with(one(), keys.stanzas(&["file"])).start()).await.unwrap();
    init(&cluster).await;
    open(cluster.at(0)).await;
    let text = fs::read_to_string(keys.path("file")).unwrap();
    let key = hex::decode(text.trim()).unwrap();
    let mut files = 0;
    walk(cluster.directory(), &mut |path| {
        let bytes = fs::read(path).unwrap();
        let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|part| part == needle);
        assert!(!holds(&key) && !holds(text.trim().as_bytes()), "{}", path.display());
        files += 1;
    });
    assert!(files > 3, "{files} files were looked at");
}

fn walk(directory: &Path, each: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() { walk(&path, each) } else { each(&path) }
    }
}

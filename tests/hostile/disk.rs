//! Somebody edits a node's disk while it is off, checksums and all.

use std::time::Duration;

use common::{one, ready};
use keystead::seal::{Access, SealConfig};
use keystead_chaos::wait;

use crate::{
    common, rekey,
    state_rows::{self, Rows},
};

/// Where the state keeps a clear record: its area, then its name.
const SEAL_CONFIG: &[u8] = b"cseal-config";

/// Changes the seal configuration in the state. A row ends with a CRC32 of all before it, which every
/// attacker can compute.
fn edit(data: &std::path::Path, change: impl Fn(&mut SealConfig)) {
    let found = state_rows::rows(data, SEAL_CONFIG);
    assert_eq!(found.len(), 1);
    for (at, row) in &found {
        let version = row.iter().enumerate().skip(2);
        // The value begins after the row's header; where that ends is seen by what decodes.
        let value = &row[..row.len() - 4];
        let (start, mut config) = version
            .filter_map(|(at, _)| Some((at, SealConfig::decode(value.get(at..)?).ok()?)))
            .next()
            .expect("the row holds a seal configuration");
        change(&mut config);
        let mut row = [&value[..start], &config.encode()].concat();
        row.extend_from_slice(&crc32fast::hash(&row).to_be_bytes());
        state_rows::write([(at, Some(row.as_slice()))]);
    }
}

#[tokio::test]
async fn case_27_a_seal_configuration_that_was_edited_on_disk_opens_nothing() {
    type Change = fn(&mut SealConfig);
    let changes: [(&str, Change); 4] = [
        ("its date", |config| config.created_ms ^= 1),
        ("the threshold", |config| match &mut config.seals[0].access {
            Access::Shares(set) => set.threshold = 2,
            Access::Sealed { .. } => panic!("shares open it"),
        }),
        ("the root's commitment", |config| config.root_commitment[0] ^= 1),
        ("the wrap", |config| config.seals[0].wrap.ciphertext[3] ^= 1),
    ];
    for (what, change) in changes {
        let mut cluster = Box::pin(one().start()).await.unwrap();
        cluster.init(0).await.unwrap();
        let node = cluster.at(0);
        node.stop().await.unwrap();
        edit(&node.data(), change);
        // It may refuse to start, or to open; what it may not do is to open.
        if node.start().await.is_err() {
            assert!(node.log().contains("data directory"), "{what}: the remedy is named: {}", node.log());
            continue;
        }
        let error = node.unseal(cluster.shares()).await.expect_err(what).to_string();
        let told =
            ["changed", "does not fit", "do not open", "not the one"].iter().any(|text| error.contains(text));
        assert!(told || node.log().contains("changed"), "{what}: {error}");
        assert_eq!(node.health(&[503], Duration::from_secs(2)).await.unwrap(), 503, "{what}");
    }
}

#[tokio::test]
async fn an_unedited_row_that_is_written_back_still_opens() {
    // The control for the test above: it is the edit that is refused, not the way it is made.
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    let node = cluster.at(0);
    node.stop().await.unwrap();
    edit(&node.data(), |_| {});
    node.start().await.unwrap();
    node.unseal(cluster.shares()).await.unwrap();
}

/// The rows of sealed records.
fn sealed_rows(data: &std::path::Path) -> Rows {
    state_rows::rows(data, b"s")
}

#[tokio::test]
async fn case_27_an_older_validly_sealed_record_put_back_on_the_disk_is_recognised() {
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    cluster.unseal(cluster.at(0)).await.unwrap();
    cluster.mount_kv().await.unwrap();
    cluster.serves(0, Duration::from_secs(30)).await.unwrap();
    let node = cluster.at(0);
    node.put("account", &serde_json::json!({ "role": "admin" })).await.unwrap();
    node.stop().await.unwrap();
    let old = sealed_rows(&node.data());

    node.start().await.unwrap();
    cluster.unseal(node).await.unwrap();
    cluster.serves(0, Duration::from_secs(30)).await.unwrap();
    node.put("account", &serde_json::json!({ "role": "reader" })).await.unwrap();
    node.stop().await.unwrap();

    let new = sealed_rows(&node.data());
    let changed: Vec<_> =
        old.iter().filter(|(at, row)| new.get(*at).is_some_and(|now| now != *row)).collect();
    assert!(!changed.is_empty(), "the second write replaced records of the first");
    state_rows::write(changed.into_iter().map(|(at, row)| (at, Some(row.as_slice()))));
    node.start().await.unwrap();
    let error = node.unseal(cluster.shares()).await.expect_err("an old record was taken").to_string();
    assert!(error.contains("digest") && error.contains("peers"), "{error}");
    node.health(&[500], Duration::from_secs(2)).await.unwrap();
}

/// Rows of clear records, the seal configuration and the sealed keyring among them.
fn clear_rows(data: &std::path::Path) -> Rows {
    state_rows::rows(data, b"c")
}

#[tokio::test]
async fn case_28_what_led_to_the_former_root_key_put_back_opens_nothing() {
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    let node = cluster.at(0);
    cluster.unseal(node).await.unwrap();
    cluster.mount_kv().await.unwrap();
    cluster.serves(0, Duration::from_secs(30)).await.unwrap();
    node.stop().await.unwrap();
    let old = clear_rows(&node.data());

    node.start().await.unwrap();
    cluster.unseal(node).await.unwrap();
    cluster.serves(0, Duration::from_secs(30)).await.unwrap();
    let former = cluster.shares()[..3].to_vec();
    let new = rekey(node, &former).await;
    node.put("account", &serde_json::json!({ "role": "reader" })).await.unwrap();
    node.stop().await.unwrap();

    let now = clear_rows(&node.data());
    let changed: Vec<_> =
        old.iter().filter(|(at, row)| now.get(*at).is_some_and(|now| now != *row)).collect();
    let named = |name: &[u8]| changed.iter().any(|((_, key), _)| key.ends_with(name));
    assert!(named(b"seal-config") && named(b"keyring"), "the rekey replaced both");
    state_rows::write(changed.into_iter().map(|(at, row)| (at, Some(row.as_slice()))));
    node.start().await.unwrap();
    // The former shares open the former keyring; the state around it is not what it was then.
    let error = node.unseal(&former).await.expect_err("what was replaced was taken").to_string();
    assert!(error.contains("digest") && error.contains("peers"), "{error}");
    node.health(&[500], Duration::from_secs(2)).await.unwrap();
    assert!(node.unseal(&new[..2]).await.is_err(), "a node that met that serves nothing any more");
}

#[tokio::test]
async fn a_state_that_differs_from_the_others_is_named_while_all_serve() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let odd = cluster.others(leader)[0];
    cluster.at(leader).put("account", &serde_json::json!({ "role": "reader" })).await.unwrap();
    let verify = async |flags: &[&str]| {
        let args: Vec<&str> = ["operator", "raft", "verify"].iter().chain(flags).copied().collect();
        cluster.cli(leader).run(&args).await.unwrap()
    };
    for flags in [&[][..], &["-scrub"]] {
        let alike = verify(flags).await;
        assert_eq!((alike.code, alike.stdout.matches("agrees").count()), (0, 3), "{alike:?}");
    }
    // One bit of one sealed value on one disk, with a checksum that fits; nobody opens that node.
    let node = cluster.at(odd);
    node.stop().await.unwrap();
    let rows = sealed_rows(&node.data());
    let (at, row) = rows.iter().max_by_key(|(_, row)| row.len()).unwrap();
    let mut changed = row[..row.len() - 4].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    changed.extend_from_slice(&crc32fast::hash(&changed).to_be_bytes());
    state_rows::write([(at, Some(changed.as_slice()))]);
    node.start().await.unwrap();
    cluster.serves(leader, Duration::from_secs(30)).await.unwrap();

    let scrubbed = wait::until("the scrub to find it", Duration::from_secs(30), || async {
        let output = verify(&["-scrub"]).await;
        // A member that has just been started may be out of reach yet.
        if output.stdout.contains("digest that it should have") {
            Ok(output)
        } else {
            Err(format!("{output:?}"))
        }
    })
    .await
    .unwrap();
    assert_eq!((scrubbed.code, scrubbed.stdout.matches("agrees").count()), (2, 2), "{scrubbed:?}");
    let line = scrubbed.stdout.lines().find(|line| line.contains("digest that it should have")).unwrap();
    assert!(line.starts_with(&node.name()), "{line}");
    cluster.serves(leader, Duration::from_secs(30)).await.unwrap();
    // One that is away is no proof of anything.
    node.kill();
    let away = verify(&["-format=json"]).await;
    let document: serde_json::Value = serde_json::from_str(&away.stdout).unwrap();
    assert_eq!((away.code, &document["agree"]), (2, &serde_json::json!(false)), "{away:?}");
}

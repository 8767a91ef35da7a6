//! What is given to `sys/unseal` and is not what it should be.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::one;
use keystead_chaos::{Cluster, Response};
use serde_json::json;
use sha2::{Digest as _, Sha256};

async fn give(cluster: &Cluster, key: &str) -> Response {
    cluster.at(0).call("PUT", "sys/unseal", Some(&json!({ "key": key }))).await.unwrap()
}

/// A share with a change: `version[1] generation[4] tag[6] x[1] y[32] checksum[4]`.
fn changed(share: &str, change: impl Fn(&mut [u8])) -> String {
    let mut bytes = STANDARD.decode(share).unwrap();
    change(&mut bytes);
    STANDARD.encode(bytes)
}

/// A share with a change and the checksum that goes with it: somebody has meant it.
fn forged(share: &str, change: impl Fn(&mut [u8])) -> String {
    changed(share, |bytes| {
        change(bytes);
        let (covered, checksum) = bytes.split_at_mut(44);
        checksum.copy_from_slice(&Sha256::digest(covered)[..4]);
    })
}

#[tokio::test]
async fn before_init_there_is_nothing_to_unseal() {
    let cluster = Box::pin(one().start()).await.unwrap();
    let refused = give(&cluster, "abcd").await;
    assert_eq!((refused.status, refused.errors().as_str()), (400, "Vault is not initialized"));
    let status = cluster.at(0).call("PUT", "sys/unseal", Some(&json!({ "reset": true }))).await.unwrap();
    assert_eq!(status.status, 200);
}

#[tokio::test]
async fn a_share_that_is_not_one_is_refused_when_it_is_given_and_spoils_nothing() {
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    let mut foreign = Box::pin(one().named("f").start()).await.unwrap();
    foreign.init(0).await.unwrap();
    let shares = cluster.keys().shares.clone();

    let progress = give(&cluster, &shares[0]).await.ok().unwrap().json();
    assert_eq!(progress["progress"], 1);
    let y_changed = changed(&shares[1], |bytes| bytes[20] ^= 1);
    let bare = |x: u8, y: &[u8]| STANDARD.encode([&[x][..], y].concat());
    let second = STANDARD.decode(&shares[1]).unwrap();
    for (key, text) in [
        ("", "'key' must be specified"),
        ("not a key!", "must be a valid hex or base64 string"),
        ("YWJjZA==", "shorter"),
        (&STANDARD.encode([7; 47]), "33"),
        (&STANDARD.encode([7; 64]), "longer"),
        (&y_changed, "invalid key"),
        (&forged(&shares[1], |bytes| bytes[20] ^= 1), "not as it was handed out"),
        (&forged(&shares[1], |bytes| bytes[11] = 0), "invalid key"),
        (&forged(&shares[1], |bytes| bytes[11] = 77), "not as it was handed out"),
        (&forged(&shares[1], |bytes| bytes[4] = 0), "stale"),
        (&forged(&shares[1], |bytes| bytes[4] = 9), "catch up with the leader"),
        (&forged(&shares[1], |bytes| bytes[0] = 9), "invalid key"),
        (&foreign.keys().shares[0], "another vault"),
        (&bare(0, &second[12..44]), "invalid key"),
        (&bare(9, &second[12..44]), "none of this vault's present shares"),
    ] {
        let refused = give(&cluster, key).await;
        assert_eq!(refused.status, 400, "{key}: {}", refused.text());
        assert!(refused.errors().contains(text), "{key}: {}", refused.text());
        assert!(key.is_empty() || !refused.text().contains(key), "the share is echoed");
    }
    // A share given twice counts once.
    assert_eq!(give(&cluster, &shares[0]).await.ok().unwrap().json()["progress"], 1);
    let reset =
        cluster.at(0).call("PUT", "sys/unseal", Some(&json!({ "reset": true }))).await.unwrap().json();
    assert_eq!((reset["progress"].as_u64(), reset["nonce"].as_str()), (Some(0), Some("")));
    // In hexadecimal, bare, and as it was handed out: each opens.
    give(&cluster, &hex::encode(STANDARD.decode(&shares[2]).unwrap())).await.ok().unwrap();
    give(&cluster, &bare(second[11], &second[12..44])).await.ok().unwrap();
    let open = give(&cluster, &shares[4]).await.ok().unwrap().json();
    assert_eq!(open["sealed"], false, "{open}");
    let refused = cluster.at(0).call("PUT", "sys/unseal", Some(&json!({ "reset": true }))).await.unwrap();
    assert_eq!((refused.status, refused.errors().as_str()), (400, "vault is unsealed"));
}

#[tokio::test]
async fn init_refuses_what_makes_no_sense() {
    let cluster = Box::pin(one().start()).await.unwrap();
    for (shares, threshold, text) in [
        (0, 0, "shares must be at least one"),
        (3, 5, "threshold cannot be larger than shares"),
        (3, 1, "threshold must be greater than one for multiple shares"),
        (256, 3, "255"),
    ] {
        let body = json!({ "secret_shares": shares, "secret_threshold": threshold });
        let refused = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap();
        assert_eq!(refused.status, 400, "{shares}/{threshold}");
        assert!(refused.errors().contains(text) || refused.errors().contains("256"), "{}", refused.text());
    }
    let status = cluster.at(0).call("GET", "sys/init", None).await.unwrap();
    assert_eq!(status.json(), json!({ "initialized": false }));
}

#[tokio::test]
async fn a_share_is_verified_alone_and_opens_nothing() {
    let mut cluster = Box::pin(one().start()).await.unwrap();
    let verify = async |cluster: &Cluster, key: &str| {
        cluster.at(0).call("PUT", "sys/verify-share", Some(&json!({ "key": key }))).await.unwrap()
    };
    assert_eq!(verify(&cluster, &STANDARD.encode([7; 33])).await.errors(), "Vault is not initialized");
    cluster.init(0).await.unwrap();
    let shares = cluster.keys().shares.clone();
    give(&cluster, &shares[0]).await.ok().unwrap();
    for (at, share) in shares.iter().enumerate() {
        let facts = verify(&cluster, share).await.ok().unwrap().json();
        let expected = json!({ "valid": true, "kind": "unseal", "number": at + 1, "n": shares.len(),
            "t": facts["t"], "generation": 1 });
        assert_eq!(facts, expected);
    }
    // The series that others have begun is as it was.
    let status = cluster.at(0).seal_status().await.unwrap();
    assert_eq!((&status["sealed"], &status["progress"]), (&json!(true), &json!(1)));
    for (key, text) in [
        ("", "'key' must be specified"),
        ("not a key!", "must be a valid hex or base64 string"),
        (&changed(&shares[1], |bytes| bytes[20] ^= 1), "invalid key"),
        (&forged(&shares[1], |bytes| bytes[20] ^= 1), "mistyped"),
        (&forged(&shares[1], |bytes| bytes[6] ^= 1), "another vault"),
        (&forged(&shares[1], |bytes| bytes[4] += 1), "generation"),
    ] {
        let refused = verify(&cluster, key).await;
        assert_eq!(refused.status, 400);
        assert!(refused.errors().contains(text), "{text}: {}", refused.errors());
    }
}

#[tokio::test]
async fn an_outsider_cannot_reset_the_shares_over_and_over() {
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    let share = cluster.keys().shares[0].clone();
    let reset =
        async |body: serde_json::Value| cluster.at(0).call("PUT", "sys/unseal", Some(&body)).await.unwrap();
    for _ in 0..3 {
        give(&cluster, &share).await.ok().unwrap();
        assert_eq!(reset(json!({ "reset": true })).await.ok().unwrap().json()["progress"], 0);
    }
    let nonce = give(&cluster, &share).await.ok().unwrap().json()["nonce"].clone();
    let refused = reset(json!({ "reset": true })).await;
    assert!(refused.status == 429 && refused.errors().contains("nonce"), "{}", refused.text());
    assert_eq!(cluster.at(0).seal_status().await.unwrap()["progress"], 1, "the share is still there");
    assert!(cluster.at(0).log().contains("the entered shares were reset"), "whoever did it is logged");
    let named = reset(json!({ "reset": true, "nonce": nonce })).await.ok().unwrap();
    assert_eq!(named.json()["progress"], 0, "who names the series may");
}

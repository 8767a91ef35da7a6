//! Shares and tokens encrypted for their holders' OpenPGP keys, which GnuPG makes and GnuPG opens.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/unattended.rs"]
mod unattended_nodes;

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use common::one;
use keystead_chaos::{Builder, Cluster, skip};
use serde_json::{Value, json};
use unattended_nodes::{open, status};

/// Custodians with a key each, of several kinds, in a keyring of their own.
struct Custodians(tempfile::TempDir);

impl Custodians {
    fn new() -> Option<Self> {
        if Command::new("gpg").arg("--version").output().is_err() {
            skip("GnuPG is not installed (Debian: apt-get install gnupg)");
            return None;
        }
        let custodians = Self(tempfile::Builder::new().prefix("gpg").tempdir().unwrap());
        // The newest default (a curve), the usual one for years, and another curve.
        for (name, primary, sub) in
            [("anna", "ed25519", "cv25519"), ("ben", "rsa2048", "rsa2048"), ("cleo", "nistp256", "nistp256")]
        {
            custodians.gpg(&["--quick-generate-key", name, primary, "sign", "never"], b"");
            let fingerprint = custodians.fingerprint(name);
            custodians.gpg(&["--quick-add-key", &fingerprint, sub, "encrypt", "never"], b"");
        }
        Some(custodians)
    }

    fn gpg(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let mut gpg = Command::new("gpg")
            .env("GNUPGHOME", self.0.path())
            .args(["--batch", "--quiet", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", ""])
            .args(["--trust-model", "always"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        gpg.stdin.take().unwrap().write_all(input).unwrap();
        let output = gpg.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn fingerprint(&self, name: &str) -> String {
        let listed = String::from_utf8(self.gpg(&["--with-colons", "--list-keys", name], b"")).unwrap();
        let line = listed.lines().find(|line| line.starts_with("fpr:")).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }

    fn exported(&self, name: &str) -> String {
        STANDARD.encode(self.gpg(&["--export", name], b""))
    }

    /// The armoured key in a file.
    fn file(&self, name: &str) -> PathBuf {
        let file = self.0.path().join(format!("{name}.asc"));
        std::fs::write(&file, self.gpg(&["--armor", "--export", name], b"")).unwrap();
        file
    }

    /// What a message in base64 says to whoever has the key.
    fn opened(&self, message: &str) -> String {
        String::from_utf8(self.gpg(&["--decrypt"], &STANDARD.decode(message).unwrap())).unwrap()
    }
}

impl Drop for Custodians {
    fn drop(&mut self) {
        // Its agent would outlive it.
        let ended = Command::new("gpgconf").env("GNUPGHOME", self.0.path()).args(["--kill", "all"]).output();
        assert!(ended.is_ok_and(|ended| ended.status.success()) || std::thread::panicking());
    }
}

async fn refused(cluster: &Cluster, body: Value) -> String {
    let answer = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap();
    assert_eq!(answer.status, 400, "{body}");
    answer.text()
}

#[tokio::test]
async fn each_custodian_opens_one_share_with_gpg_and_the_shares_open_the_vault() {
    let Some(custodians) = Custodians::new() else { return };
    let cluster = Box::pin(one().start()).await.unwrap();
    let names = ["anna", "ben", "cleo"];
    let files = names.map(|name| custodians.file(name).display().to_string());
    let made = cluster
        .cli(0)
        .run(&[
            "operator",
            "init",
            "-key-shares=3",
            "-key-threshold=2",
            &format!("-pgp-keys={}", files.join(",")),
            &format!("-root-token-pgp-key={}", files[0]),
            "-format=json",
        ])
        .await
        .unwrap();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    let (base64, hex) = (&made["unseal_keys_b64"], &made["unseal_keys_hex"]);
    let mut shares = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let message = base64[at].as_str().unwrap();
        assert_eq!(hex[at].as_str().unwrap(), hex::encode(STANDARD.decode(message).unwrap()));
        let listed = custodians.gpg(&["--list-packets", "--list-only"], &STANDARD.decode(message).unwrap());
        let subkey = String::from_utf8(custodians.gpg(&["--with-colons", "--list-keys", name], b"")).unwrap();
        let subkey = subkey.lines().find(|line| line.starts_with("sub:")).unwrap().split(':').nth(4).unwrap();
        assert!(
            String::from_utf8_lossy(&listed).contains(subkey),
            "it is for {name}'s subkey and nobody else's"
        );
        shares.push(custodians.opened(message));
    }
    let node = cluster.at(0);
    for share in &shares[1..] {
        node.call("PUT", "sys/unseal", Some(&json!({ "key": share }))).await.unwrap().ok().unwrap();
    }
    open(node).await;
    node.set_token(&custodians.opened(made["root_token"].as_str().unwrap()));
    node.call("GET", "auth/token/lookup-self", None).await.unwrap().ok().unwrap();
}

#[tokio::test]
async fn recovery_and_break_glass_shares_are_encrypted_as_well() {
    let Some(custodians) = Custodians::new() else { return };
    let keys = tempfile::tempdir().unwrap();
    let stanza = format!("seal \"file\" {{\n  path = \"{}\"\n}}", keys.path().join("key").display());
    let builder: Builder = one().configure(move |_, config| config.lines.push(stanza.clone()));
    let cluster = Box::pin(builder.start()).await.unwrap();
    let (anna, ben) = (custodians.exported("anna"), custodians.exported("ben"));
    let text =
        refused(&cluster, json!({ "recovery_shares": 1, "recovery_threshold": 1, "pgp_keys": [anna] }));
    assert!(text.await.contains("parameters pgp_keys not applicable to seal type file"));
    let body = json!({ "recovery_shares": 2, "recovery_threshold": 2, "recovery_pgp_keys": [anna, ben],
        "break_glass_shares": 1, "break_glass_threshold": 1, "break_glass_pgp_keys": [ben] });
    let made = cluster.at(0).call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    for list in ["recovery_keys_base64", "break_glass_keys_base64"] {
        for message in made[list].as_array().unwrap() {
            let share = custodians.opened(message.as_str().unwrap());
            assert_eq!(hex::decode(&share).unwrap().len(), 48, "{list}");
        }
    }
    assert_eq!(made["recovery_keys"].as_array().unwrap().len(), 2);
    status(cluster.at(0), "to be open", |status| status["sealed"] == false).await;
}

#[tokio::test]
async fn keys_that_cannot_be_encrypted_for_are_refused_before_anything_is_made() {
    let Some(custodians) = Custodians::new() else { return };
    let cluster = Box::pin(one().start()).await.unwrap();
    custodians.gpg(&["--quick-generate-key", "signs", "ed25519", "sign", "never"], b"");
    custodians.gpg(&["--quick-generate-key", "past", "rsa2048", "encrypt", "seconds=1"], b"");
    let anna = custodians.exported("anna");
    let with = |keys: Value| json!({ "secret_shares": 1, "secret_threshold": 1, "pgp_keys": keys });
    let mut damaged = STANDARD.decode(&anna).unwrap();
    // Inside the last signature: that which binds the subkey.
    let at = damaged.len() - 5;
    damaged[at] ^= 1;
    for (keys, why) in [
        (json!([anna, anna]), "count mismatch between number of provided PGP keys and number of shares"),
        (json!(["***"]), "error decoding given PGP key"),
        (json!(["bm90IGEga2V5"]), "error parsing given PGP key"),
        (json!([custodians.exported("signs")]), "no key in it is for encryption"),
        (json!([STANDARD.encode(&damaged)]), "no key in it is for encryption"),
        (json!([&anna[..anna.len() / 2 / 4 * 4]]), "error parsing given PGP key"),
    ] {
        let text = refused(&cluster, with(keys)).await;
        assert!(text.contains(why), "{why}: {text}");
    }
    // GnuPG itself says when the key's second is over.
    let expired = || async {
        let listed = custodians.gpg(&["--with-colons", "--list-keys", "past"], b"");
        if listed.windows(6).any(|line| line == b"\npub:e") {
            Ok(())
        } else {
            Err(keystead_chaos::Error::Broken(String::from_utf8_lossy(&listed).into_owned()))
        }
    };
    keystead_chaos::wait::until("the key to expire", std::time::Duration::from_secs(10), expired)
        .await
        .unwrap();
    let text = refused(&cluster, with(json!([custodians.exported("past")]))).await;
    assert!(text.contains("the key has expired"), "{text}");
    let root = json!({ "secret_shares": 1, "secret_threshold": 1, "root_token_pgp_key": custodians.exported("signs") });
    let text = refused(&cluster, root).await;
    assert!(text.contains("no key in it is for encryption"), "{text}");
    let cli = cluster.cli(0).run(&["operator", "init", "-pgp-keys=keybase:anna"]).await.unwrap();
    assert_eq!(cli.code, 1);
    assert!(cli.stderr.contains("not fetched from Keybase"), "{}", cli.stderr);
    assert_eq!(cluster.at(0).seal_status().await.unwrap()["initialized"], false);
}

#[tokio::test]
async fn a_rekey_keeps_the_encrypted_shares_when_asked_to() {
    let Some(custodians) = Custodians::new() else { return };
    let mut cluster = Box::pin(one().start()).await.unwrap();
    cluster.init(0).await.unwrap();
    cluster.unseal_all().await.unwrap();
    open(cluster.at(0)).await;
    let (node, cli) = (cluster.at(0), cluster.cli(0));
    node.set_token(&cluster.keys().root_token);
    let retrieve = ["operator", "rekey", "-backup-retrieve", "-format=json"];
    let none = cli.run(&retrieve).await.unwrap();
    assert!(none.code == 2 && none.stderr.contains("no backed-up keys found"), "{none:?}");

    let names = ["anna", "ben", "cleo"];
    let files = names.map(|name| custodians.file(name).display().to_string()).join(",");
    let keys = format!("-pgp-keys={files}");
    let begin = ["operator", "rekey", "-init", "-backup", "-key-shares=3", "-key-threshold=2", &keys];
    let begun = cli.run(&begin).await.unwrap();
    assert_eq!(begun.code, 0, "{}", begun.stderr);
    let status = node.call("GET", "sys/rekey/init", None).await.unwrap().json();
    assert_eq!(status["backup"], true, "{status}");
    let mut made = Value::Null;
    for share in cluster.shares() {
        let body = json!({ "key": share, "nonce": status["nonce"] });
        made = node.call("PUT", "sys/rekey/update", Some(&body)).await.unwrap().ok().unwrap().json();
    }
    assert_eq!((&made["complete"], &made["backup"]), (&json!(true), &json!(true)), "{made}");

    let kept = cli.run(&retrieve).await.unwrap();
    assert_eq!(kept.code, 0, "{}", kept.stderr);
    let kept: Value = serde_json::from_str(&kept.stdout).unwrap();
    for (at, name) in names.iter().enumerate() {
        let fingerprint = made["pgp_fingerprints"][at].as_str().unwrap();
        let message = kept["data"]["keys_base64"][fingerprint][0].as_str().unwrap();
        assert_eq!(message, made["keys_base64"][at], "{name}");
        assert_eq!(kept["data"]["keys"][fingerprint][0], made["keys"][at], "{name}");
        let body = json!({ "key": custodians.opened(message) });
        let facts = node.call("PUT", "sys/verify-share", Some(&body)).await.unwrap().ok().unwrap().json();
        assert_eq!(
            (&facts["valid"], &facts["t"]),
            (&json!(true), &json!(2)),
            "{name}'s share counts: {facts}"
        );
    }
    let stranger = node.client().without_token().call("GET", "sys/rekey/backup", None).await.unwrap();
    assert_eq!(stranger.status, 403);
    let deleted = cli.run(&["operator", "rekey", "-backup-delete"]).await.unwrap();
    assert_eq!(deleted.code, 0, "{}", deleted.stderr);
    assert_eq!(cli.run(&retrieve).await.unwrap().code, 2);
}

//! Somebody between a joining node and the cluster, trusted by TLS, without the root key.

use std::{cell::Cell, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use keystead::seal::{SealConfig, Share};
use keystead_chaos::{Cluster, Impostor, Node, impostor::Asked, wait};
use keystead_raft::Directory;
use keystead_tls::{ClusterCa, ClusterId, NodeKey, PeerName};
use serde_json::{Value, json};

use crate::common::ready;

const CHALLENGE: &str = "sys/storage/raft/bootstrap/challenge";
const ANSWER: &str = "sys/storage/raft/bootstrap/answer";
const SOON: Duration = Duration::from_secs(20);

/// A newcomer that knows nobody but the impostor.
async fn victim(cluster: &Cluster, impostor: &Impostor) -> Node {
    let mut config = cluster.newcomer("victim").unwrap();
    config.retry_join = vec![(impostor.address, cluster.pki().ca_file())];
    let node = cluster.node(config);
    node.start().await.unwrap();
    node
}

async fn impostor(cluster: &Cluster) -> Impostor {
    Impostor::start(&cluster.pki().issue("impostor").unwrap()).await.unwrap()
}

/// What the true leader says to a request.
async fn truth(cluster: &Cluster, path: &str, body: &Value) -> (u16, Value) {
    let leader = cluster.leader().await.unwrap();
    let client = cluster.at(leader).client().without_token();
    let answer = client.call("PUT", path, Some(body)).await.unwrap();
    (answer.status, answer.json())
}

/// Sits between the victim and the true leader while the victim is given its shares: `change` alters requests on
/// their way, `forge` answers in the leader's place. Gives the answers to challenges that the victim sent, and how
/// the unsealing ended.
async fn between(
    cluster: &Cluster,
    impostor: &mut Impostor,
    node: &Node,
    change: impl Fn(&str, &mut Value),
    forge: impl Fn(&str, &Value) -> Option<(u16, Value)>,
) -> (Vec<Value>, keystead_chaos::Result<()>) {
    let mut answers = Vec::new();
    let unsealing = async {
        wait::until("the victim to know of a vault", SOON, || async {
            let status = node.seal_status().await.map_err(|error| error.to_string())?;
            if status["initialized"] == true { Ok(()) } else { Err(status.to_string()) }
        })
        .await?;
        node.unseal(cluster.shares()).await
    };
    let mut unsealing = std::pin::pin!(unsealing);
    loop {
        let asked: Asked = tokio::select! {
            result = unsealing.as_mut() => return (answers, result),
            asked = impostor.next() => asked.unwrap(),
        };
        let path = asked.path.trim_start_matches("/v1/").to_owned();
        let mut body = asked.body.clone();
        if path == ANSWER {
            answers.push(body.clone());
        }
        change(&path, &mut body);
        let (status, reply) = match forge(&path, &body) {
            Some(forged) => forged,
            None => truth(cluster, &path, &body).await,
        };
        asked.answer(status, reply);
    }
}

async fn nothing_happened(cluster: &Cluster, node: &Node) {
    assert!(!node.data().join("identity").exists(), "nothing was stored");
    assert_eq!(node.seal_status().await.unwrap()["sealed"], true);
    let servers = cluster.servers().await.unwrap();
    assert!(servers.iter().all(|server| server["voter"] == true) && servers.len() == 3, "{servers:?}");
}

#[tokio::test]
async fn case_25_a_certificate_request_that_is_swapped_on_the_way_is_refused_and_an_honest_relay_is_not() {
    let cluster = ready().await;
    let mut impostor = impostor(&cluster).await;
    let node = victim(&cluster, &impostor).await;
    let own = NodeKey::generate().unwrap();
    // Each try spoils another field. An unknown challenge is left out: it is told from a false answer, and a fresh
    // one is asked for.
    let fields = ["csr", "server_id", "cluster_addr", "api_addr", "incarnation", "mac"];
    let tries = Cell::new(0);
    let spoil = |path: &str, body: &mut Value| {
        if path == ANSWER {
            let field = fields[tries.get() % fields.len()];
            tries.set(tries.get() + 1);
            let incarnation = u64::from_str_radix(body["incarnation"].as_str().unwrap(), 16).unwrap();
            body[field] = match field {
                "csr" => json!(STANDARD.encode(own.csr_der("victim", incarnation).unwrap())),
                "incarnation" => json!("00000000deadbeef"),
                "mac" => json!(STANDARD.encode([9; 32])),
                _ => json!("127.0.0.1:1"),
            };
        }
    };
    let (answers, result) = Box::pin(between(&cluster, &mut impostor, &node, spoil, |_, _| None)).await;
    assert!(answers.len() >= fields.len(), "it went on trying: {}", answers.len());
    assert!(result.is_err(), "it is still sealed");
    assert!(node.log().contains("invalid answer given"), "{}", node.log());
    nothing_happened(&cluster, &node).await;
    // The relay itself is not what was refused.
    let (_, result) = Box::pin(between(&cluster, &mut impostor, &node, |_, _| {}, |_, _| None)).await;
    result.unwrap();
    wait::until("the victim to be a member", SOON, || async {
        let servers = cluster.servers().await.map_err(|error| error.to_string())?;
        if servers.len() == 4 { Ok(()) } else { Err(format!("{servers:?}")) }
    })
    .await
    .unwrap();
}

/// A reply as the true leader would give it, under a CA of the impostor's own.
fn forged_reply(answer: &Value, cluster_id: [u8; 16], mac: &[u8]) -> Value {
    let ca = ClusterCa::generate(ClusterId(cluster_id)).unwrap();
    let name = PeerName {
        cluster_id: ClusterId(cluster_id),
        node_id: answer["server_id"].as_str().unwrap().to_owned(),
        incarnation: u64::from_str_radix(answer["incarnation"].as_str().unwrap(), 16).unwrap(),
    };
    let csr = STANDARD.decode(answer["csr"].as_str().unwrap()).unwrap();
    let directory = Directory { cluster_id, epoch: 1, ..Directory::default() };
    let directory = directory.seal(|_| Ok::<_, ()>([7; 32])).unwrap();
    let params: Vec<u8> = [75u64, 250, 400, 1 << 20].iter().flat_map(|value| value.to_be_bytes()).collect();
    json!({ "data": {
        "certificate": STANDARD.encode(ca.sign_csr(&csr, &name).unwrap()),
        "ca_certificate": STANDARD.encode(ca.cert_der()),
        "directory": STANDARD.encode(directory),
        "params": STANDARD.encode(params),
        "mac": STANDARD.encode(mac),
    } })
}

#[tokio::test]
async fn case_25_a_reply_from_somebody_without_the_root_key_is_not_believed() {
    let cluster = ready().await;
    let mut impostor = impostor(&cluster).await;
    let node = victim(&cluster, &impostor).await;
    let id = truth(&cluster, CHALLENGE, &json!({ "server_id": "victim" })).await.1;
    let cluster_id: [u8; 16] =
        hex::decode(id["data"]["cluster_id"].as_str().unwrap()).unwrap().try_into().unwrap();
    let tries = Cell::new(0);
    let forge = |path: &str, body: &Value| {
        (path == ANSWER).then(|| {
            tries.set(tries.get() + 1);
            // Nothing, noise, and the victim's own MAC sent back to it.
            let own = STANDARD.decode(body["mac"].as_str().unwrap()).unwrap();
            let mac = [&[][..], &[5; 32], &own][tries.get() % 3];
            (200, forged_reply(body, cluster_id, mac))
        })
    };
    let (answers, result) = Box::pin(between(&cluster, &mut impostor, &node, |_, _| {}, forge)).await;
    assert!(answers.len() >= 3, "it went on asking: {}", answers.len());
    assert!(result.is_err(), "it is still sealed");
    nothing_happened(&cluster, &node).await;
    assert!(
        node.log().contains("the reply is not from a node that holds this vault's root key"),
        "{}",
        node.log()
    );
}

#[tokio::test]
async fn case_25_a_wrap_offered_as_challenge_is_not_opened_for_the_impostor() {
    let cluster = ready().await;
    let mut impostor = impostor(&cluster).await;
    let node = victim(&cluster, &impostor).await;
    let offer = truth(&cluster, CHALLENGE, &json!({ "server_id": "victim" })).await.1;
    let config = STANDARD.decode(offer["data"]["seal_config"].as_str().unwrap()).unwrap();
    let config = SealConfig::decode(&config).unwrap();
    let points: Vec<_> = cluster.shares().iter().map(|share| Share::parse(share).unwrap().point).collect();
    let root = config.unwrap_root(&points).unwrap();
    let wrap = config.shamir().unwrap().0.wrap.ciphertext;

    // The whole wrap is no challenge at all: it has the wrong length.
    for _ in 0..2 {
        let asked = impostor.next().await.unwrap();
        assert_eq!(asked.path, format!("/v1/{CHALLENGE}"));
        let mut whole = offer.clone();
        whole["data"]["challenge"] = json!(STANDARD.encode(wrap));
        asked.answer(200, whole);
    }
    assert_eq!(node.seal_status().await.unwrap()["initialized"], false, "no offer was taken");

    // A piece of it has the right length. What comes back is a MAC, not what the piece decrypts to.
    let forge = |path: &str, _: &Value| {
        Some(match path {
            ANSWER => (503, json!({ "errors": ["later"] })),
            _ => {
                let mut piece = offer.clone();
                piece["data"]["challenge"] = json!(STANDARD.encode(&wrap[..32]));
                (200, piece)
            }
        })
    };
    let (answers, result) = Box::pin(between(&cluster, &mut impostor, &node, |_, _| {}, forge)).await;
    assert!(result.is_err() && !answers.is_empty());
    for answer in &answers {
        let mut fields: Vec<&str> = answer.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let known = [
            "api_addr",
            "certificate",
            "challenge",
            "cluster_addr",
            "csr",
            "feature_level",
            "incarnation",
            "mac",
            "non_voter",
            "server_id",
        ];
        assert_eq!(fields, known);
        for field in ["certificate", "challenge", "csr", "mac"] {
            let bytes = STANDARD.decode(answer[field].as_str().unwrap()).unwrap();
            assert!(
                !bytes.windows(8).any(|piece| root.expose().windows(8).any(|secret| piece == secret)),
                "{field}"
            );
        }
    }
    nothing_happened(&cluster, &node).await;
}

#[tokio::test]
async fn case_25_an_answer_is_good_once_and_for_its_own_challenge() {
    let cluster = ready().await;
    let mut impostor = impostor(&cluster).await;
    let node = victim(&cluster, &impostor).await;
    let (answers, result) = Box::pin(between(&cluster, &mut impostor, &node, |_, _| {}, |_, _| None)).await;
    result.unwrap();
    let (status, reply) = truth(&cluster, ANSWER, &answers[0]).await;
    assert_eq!(status, 503, "the challenge is used up: {reply}");
    let fresh = truth(&cluster, CHALLENGE, &json!({ "server_id": "victim" })).await.1;
    let mut moved = answers[0].clone();
    moved["challenge"] = fresh["data"]["challenge"].clone();
    assert_eq!(truth(&cluster, ANSWER, &moved).await.0, 400, "the MAC covers the challenge");
}

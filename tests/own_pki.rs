//! Nodes whose certificates for the cluster port a CA of the operator's has signed, offline.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{BINARY, ready, three};
use keystead_chaos::{Cluster, Node, NodeConfig, cli::Cli, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// An offline CA, and the command line on its machine and on the nodes.
struct Pki {
    dir: tempfile::TempDir,
    cli: Cli,
}

/// How long a certificate lasts.
enum Dates {
    Years,
    LongGone,
}

impl Pki {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cli = Cli::new(Path::new(BINARY), dir.path());
        let pki = Self { dir, cli };
        pki.run(&["tls", "ca", &format!("-out-dir={}", pki.path("").display())]).await;
        pki
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn run(&self, args: &[&str]) -> String {
        let output = self.cli.run(args).await.unwrap();
        assert_eq!(output.code, 0, "{args:?}: {}", output.stderr);
        output.stdout
    }

    async fn refused(&self, args: &[&str]) -> String {
        let output = self.cli.run(args).await.unwrap();
        assert_eq!(output.code, 1, "{args:?}: {}", output.stdout);
        output.stderr
    }

    /// Makes a node's request; the document that describes it.
    async fn request(&self, node: &Node, cluster_id: Option<&str>) -> Value {
        let config = self.path(&format!("{}.hcl", node.name()));
        std::fs::write(&config, node.config().to_hcl()).unwrap();
        let config = format!("-config={}", config.display());
        let cluster_id = cluster_id.map(|id| format!("-cluster-id={id}"));
        let mut args = vec!["tls", "csr", "-format=json", &config];
        args.extend(cluster_id.as_deref());
        serde_json::from_str(&self.run(&args).await).unwrap()
    }

    /// Has a request signed and installs the certificate.
    async fn complete(&self, node: &Node, request: &Value, dates: Dates) {
        let csr = request["csr"].as_str().unwrap();
        let (csr_path, cert_path) = (self.path("node.csr"), self.path("node.pem"));
        std::fs::write(&csr_path, csr).unwrap();
        let (ca, ca_key) = (self.path("ca.pem"), self.path("ca-key.pem"));
        match dates {
            Dates::LongGone => std::fs::write(&cert_path, long_gone(&ca, &ca_key, csr)).unwrap(),
            Dates::Years => {
                drop(std::fs::remove_file(&cert_path));
                let (ca, key) = (format!("-ca={}", ca.display()), format!("-ca-key={}", ca_key.display()));
                let out = format!("-out={}", cert_path.display());
                self.run(&["tls", "sign", &ca, &key, &out, csr_path.to_str().unwrap()]).await;
            }
        }
        let data = format!("-data-dir={}", node.data().display());
        let ca = format!("-ca={}", ca.display());
        self.run(&["tls", "install", &data, &ca, cert_path.to_str().unwrap()]).await;
    }

    /// Both, and the id of the cluster.
    async fn enrol(&self, node: &Node, cluster_id: Option<&str>) -> String {
        let request = self.request(node, cluster_id).await;
        self.complete(node, &request, Dates::Years).await;
        request["cluster_id"].as_str().unwrap().to_owned()
    }
}

/// A certificate for a request that was valid in 2001 only.
fn long_gone(ca: &Path, ca_key: &Path, csr: &str) -> String {
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(ca_key).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&std::fs::read_to_string(ca).unwrap(), key).unwrap();
    let mut asked = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
    asked.params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    asked.params.not_after = rcgen::date_time_ymd(2002, 1, 1);
    asked.signed_by(&issuer).unwrap().pem()
}

/// Three nodes under an offline CA, unsealed and voting, and the cluster's id. The second one's certificate ran out
/// long ago.
async fn ready_under(pki: &Pki) -> (Cluster, String) {
    let mut cluster = Box::pin(three().configure(open_metrics).prepare()).await.unwrap();
    let id = pki.enrol(cluster.at(0), None).await;
    let second = pki.request(cluster.at(1), Some(&id)).await;
    pki.complete(cluster.at(1), &second, Dates::LongGone).await;
    pki.enrol(cluster.at(2), Some(&id)).await;
    for node in cluster.nodes() {
        node.start().await.unwrap();
    }
    cluster.init(0).await.unwrap();
    cluster.unseal_all().await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
    cluster.mount_kv().await.unwrap();
    (cluster, id)
}

fn open_metrics(_: usize, config: &mut NodeConfig) {
    config.listener_lines.push("telemetry { unauthenticated_metrics_access = true }".into());
}

async fn warnings(node: &Node) -> String {
    node.seal_status().await.unwrap()["warnings"].to_string()
}

#[tokio::test]
async fn a_cluster_under_an_offline_ca_outlives_its_certificates() {
    let pki = Pki::new().await;
    let (cluster, id) = Box::pin(ready_under(&pki)).await;
    let status = cluster.at(1).seal_status().await.unwrap();
    assert_eq!(status["cluster_id"], id.as_str());
    for node in cluster.nodes() {
        assert!(!node.data().join("enrolment").exists(), "it is used up");
    }
    wait::until("the warning", SOON, || async {
        let said = warnings(cluster.at(1)).await;
        if said.contains("certificate for the cluster port has expired") { Ok(()) } else { Err(said) }
    })
    .await
    .unwrap();
    let metrics = cluster.at(1).call("GET", "sys/metrics?format=prometheus", None).await.unwrap().text();
    let line = "keystead_cluster_certificate_not_after_seconds{of=\"node\"} 1009843200";
    assert!(metrics.contains(line), "{metrics}");
    assert!(cluster.at(1).log().contains("has expired; the cluster goes on"), "{}", cluster.at(1).log());
    assert!(!warnings(cluster.at(0)).await.contains("expired"));

    // It is a warning only: the node votes, restarts, and is one of a quorum of two.
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    cluster.at(1).stop().await.unwrap();
    cluster.at(2).stop().await.unwrap();
    cluster.at(1).start().await.unwrap();
    cluster.unseal(cluster.at(1)).await.unwrap();
    cluster.serves(1, SOON).await.unwrap();
    assert_eq!(cluster.at(1).get("kept").await.unwrap().unwrap()["n"], 1);

    // And a new certificate for the old key takes the warning away. The request can be made while the node runs.
    let renewal = pki.request(cluster.at(1), None).await;
    assert_eq!(renewal["purpose"], "renew");
    cluster.at(2).start().await.unwrap();
    cluster.unseal(cluster.at(2)).await.unwrap();
    cluster.at(1).stop().await.unwrap();
    pki.complete(cluster.at(1), &renewal, Dates::Years).await;
    cluster.at(1).start().await.unwrap();
    cluster.unseal(cluster.at(1)).await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
    cluster.at(1).health(&[200, 429], SOON).await.unwrap();
    let metrics = cluster.at(1).call("GET", "sys/metrics?format=prometheus", None).await.unwrap().text();
    assert!(!metrics.contains(line), "{metrics}");
    assert!(!warnings(cluster.at(1)).await.contains("expired"));
}

#[tokio::test]
async fn whoever_does_not_belong_is_refused_with_the_remedy() {
    let pki = Pki::new().await;
    let (cluster, id) = Box::pin(ready_under(&pki)).await;
    let newcomer = async |name: &str| cluster.node(cluster.newcomer(name).unwrap());
    let refused = async |node: &Node| {
        node.start().await.unwrap();
        let text = cluster.unseal(node).await.unwrap_err().to_string();
        node.kill();
        text
    };

    let bare = newcomer("bare").await;
    let text = refused(&bare).await;
    assert!(text.contains(&format!("tls csr -cluster-id={id}")), "{text}");

    let foreign = newcomer("foreign").await;
    Pki::new().await.enrol(&foreign, Some(&id)).await;
    let text = refused(&foreign).await;
    assert!(text.contains("was not signed by this CA") && text.contains("tls csr"), "{text}");

    let elsewhere = newcomer("elsewhere").await;
    pki.enrol(&elsewhere, Some("00000000-0000-0000-0000-000000000001")).await;
    let text = refused(&elsewhere).await;
    assert!(text.contains("it is for cluster 00000000-0000-0000-0000-000000000001"), "{text}");

    // The refused one starts over with the right request, and is in.
    std::fs::remove_file(elsewhere.data().join("enrolment")).unwrap();
    pki.enrol(&elsewhere, Some(&id)).await;
    elsewhere.start().await.unwrap();
    cluster.unseal(&elsewhere).await.unwrap();
    cluster.voters(4, SOON).await.unwrap();
}

#[tokio::test]
async fn a_node_that_was_initialised_elsewhere_is_not_added() {
    let pki = Pki::new().await;
    let (cluster, id) = Box::pin(ready_under(&pki)).await;
    let mut config = cluster.newcomer("loner").unwrap();
    let retry_join = std::mem::take(&mut config.retry_join);
    let loner = cluster.node(config);

    // One that is enrolled to join founds nothing: there would be two vaults under one id.
    pki.enrol(&loner, Some(&id)).await;
    loner.start().await.unwrap();
    let body = json!({ "secret_shares": 1, "secret_threshold": 1 });
    let founding = loner.call("PUT", "sys/init", Some(&body)).await.unwrap();
    assert_eq!(founding.status, 400);
    assert!(founding.errors().contains(&format!("is for joining cluster {id}")), "{}", founding.text());
    loner.stop().await.unwrap();
    loner.wipe().unwrap();

    // One that founds a cluster of its own under the same CA stays there.
    let own = pki.enrol(&loner, None).await;
    assert_ne!(own, id);
    loner.start().await.unwrap();
    let made = loner.call("PUT", "sys/init", Some(&body)).await.unwrap().ok().unwrap().json();
    let shares = [made["keys_base64"][0].as_str().unwrap().to_owned()];
    loner.unseal(&shares).await.unwrap();
    loner.stop().await.unwrap();

    let data = format!("-data-dir={}", loner.data().display());
    let text = pki.refused(&["tls", "csr", &data, &format!("-cluster-id={id}")]).await;
    assert!(text.contains(&own) && text.contains("move its data directory"), "{text}");

    // Nor does it come in by its configuration, and says why.
    loner.configure(|config| config.retry_join = retry_join);
    loner.start().await.unwrap();
    loner.unseal(&shares).await.unwrap();
    wait::until_now("the reason in its log", SOON, || {
        let log = loner.log();
        if log.contains("belongs to another cluster") { Ok(()) } else { Err(log) }
    })
    .await
    .unwrap();
    assert_eq!(cluster.servers().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_cluster_with_its_built_in_ca_takes_no_certificate_of_another() {
    let cluster = ready().await;
    let pki = Pki::new().await;
    let status = cluster.at(0).seal_status().await.unwrap();
    let id = status["cluster_id"].as_str().unwrap();
    let newcomer = cluster.node(cluster.newcomer("n4").unwrap());
    let request = pki.request(&newcomer, Some(id)).await;

    // Without its certificate it does not start at all, rather than join as somebody else.
    newcomer.spawn().unwrap();
    let ended = newcomer.ends(SOON).await.unwrap();
    assert_eq!(ended.code(), Some(1));
    assert!(newcomer.log().contains("run `keystead tls install`"), "{}", newcomer.log());

    pki.complete(&newcomer, &request, Dates::Years).await;
    newcomer.start().await.unwrap();
    let text = cluster.unseal(&newcomer).await.unwrap_err().to_string();
    assert!(text.contains("built-in CA") && text.contains("remove `enrolment`"), "{text}");
    newcomer.stop().await.unwrap();
    std::fs::remove_file(newcomer.data().join("enrolment")).unwrap();
    newcomer.start().await.unwrap();
    cluster.unseal(&newcomer).await.unwrap();
    cluster.voters(4, SOON).await.unwrap();
}

#[tokio::test]
async fn a_rebuilt_member_is_signed_for_again_and_comes_back_in_its_place() {
    let pki = Pki::new().await;
    let (cluster, id) = Box::pin(ready_under(&pki)).await;
    cluster.at(0).put("kept", &json!({ "n": 1 })).await.unwrap();
    let node = cluster.at(2);
    node.stop().await.unwrap();
    let config = format!("-config={}", node.config_file().display());
    let said = pki.run(&["operator", "raft", "rebuild", "-yes", &config]).await;
    assert!(said.contains(&format!("tls csr -cluster-id={id}")), "{said}");
    pki.enrol(node, Some(&id)).await;
    node.start().await.unwrap();
    wait::until("the place to be free", SOON, || cluster.unseal(node)).await.unwrap();
    cluster.voters(3, SOON).await.unwrap();
    node.health(&[200, 429], SOON).await.unwrap();
    assert_eq!(node.get("kept").await.unwrap().unwrap()["n"], 1);
}

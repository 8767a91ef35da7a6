//! Requests per second of kv version 2, on one node and on three, beside both limits.

use std::{collections::HashMap, sync::Arc, time::Duration};

use keystead_chaos::{Builder, Cluster};
use rustls::ClientConfig;

use crate::{
    Result, append,
    args::Args,
    bare::{Answer, Bare},
    load::{self, Plan, Seen, Target, Until},
    report::{Due, Rate, Report},
    requests::{self, Kind},
};

/// Secrets that are there before anything is measured.
const KEYS: usize = 10_000;
/// How many connections send at a time.
const CONNECTIONS: [usize; 3] = [1, 16, 128];

/// One rate to be measured.
struct Scenario {
    name: String,
    nodes: usize,
    standby: bool,
    kind: Kind,
    connections: usize,
}

fn scenarios(args: &Args) -> Vec<Scenario> {
    let mut all = Vec::new();
    for (size, nodes, place) in [("one", 1, "leader"), ("three", 3, "leader"), ("three", 3, "standby")] {
        for kind in [Kind::Get, Kind::Put] {
            for connections in CONNECTIONS {
                let name = format!("{size}/{place}/{}/{connections}", kind.name());
                all.push(Scenario { name, nodes, standby: place == "standby", kind, connections });
            }
        }
    }
    all.retain(|scenario| args.wants(&scenario.name));
    all
}

/// Measures every rate that is wanted.
pub async fn all(args: &Args, report: &mut Report) -> Result<()> {
    let all = scenarios(args);
    for nodes in [1, 3] {
        let own: Vec<_> = all.iter().filter(|scenario| scenario.nodes == nodes).collect();
        if !own.is_empty() {
            let place = Box::pin(Place::new(args, nodes)).await?;
            Box::pin(place.measure(&own, args, report)).await?;
        }
    }
    Ok(())
}

/// A filled cluster with the bare server beside it.
struct Place {
    cluster: Cluster,
    bare: Bare,
    leader: usize,
    tls: Arc<ClientConfig>,
}

impl Place {
    async fn new(args: &Args, nodes: usize) -> Result<Self> {
        let cluster = Box::pin(Builder::new(&args.binary, nodes).ready()).await?;
        let leader = cluster.leader().await?;
        let tls = client_tls(&cluster);
        fill(&cluster, leader, 0..KEYS).await?;
        let client = cluster.at(leader).client();
        let get = client.call("GET", "secret/data/bench/0", None).await?.ok()?;
        let value = get.data()["data"].take();
        let body = serde_json::json!({ "data": value });
        let put = client.call("PUT", "secret/data/bench/0", Some(&body)).await?.ok()?;
        let directory = cluster.directory().join("bare");
        let bare = Bare::start(&directory, Answer::of(&get), Answer::of(&put)).await?;
        Ok(Self { cluster, bare, leader, tls })
    }

    async fn measure(&self, scenarios: &[&Scenario], args: &Args, report: &mut Report) -> Result<()> {
        let pids: Vec<_> = self.cluster.nodes().iter().map(|node| node.pid()).collect();
        report.note(&format!("nodes {pids:?}, the leader is number {}", self.leader))?;
        let mut appends = HashMap::new();
        let mut rates: Vec<Rate> = Vec::new();
        for scenario in scenarios {
            let append = match scenario.kind {
                Kind::Get => None,
                Kind::Put => Some(self.append(&mut appends, scenario.connections, args.window).await?),
            };
            let before = self.bare(scenario, args.window / 2).await?;
            let own = self.own(scenario, args.window).await?;
            let after = self.bare(scenario, args.window / 2).await?;
            let mut rate =
                Rate { name: scenario.name.clone(), own, bare: [before, after], append, due: Vec::new() };
            rate.due = due(scenario, &rate, &rates);
            report.rate(&rate)?;
            rates.push(rate);
        }
        Ok(())
    }

    async fn own(&self, scenario: &Scenario, window: Duration) -> Result<Seen> {
        let at = if scenario.standby { self.cluster.others(self.leader)[0] } else { self.leader };
        let target = Target {
            address: self.cluster.at(at).api(),
            tls: self.tls.clone(),
            pids: self.cluster.nodes().iter().map(|node| node.pid()).collect(),
        };
        let requests = requests::of_keys(scenario.kind, 0..KEYS, &self.cluster.keys().root_token);
        load::run(target, plan(scenario, requests, window)).await
    }

    async fn bare(&self, scenario: &Scenario, window: Duration) -> Result<Seen> {
        let (kind, token) = (scenario.kind, &self.cluster.keys().root_token);
        let requests = requests::answered_with(kind, 0..KEYS, token, self.bare.body(kind));
        load::run(self.bare.target(), Plan { settle: false, ..plan(scenario, requests, window) }).await
    }

    async fn append(
        &self,
        known: &mut HashMap<usize, Seen>,
        writers: usize,
        window: Duration,
    ) -> Result<Seen> {
        if let Some(seen) = known.get(&writers) {
            return Ok(seen.clone());
        }
        let seen = append::run(self.cluster.directory(), writers, window / 2).await?;
        known.insert(writers, seen.clone());
        Ok(seen)
    }
}

fn plan(scenario: &Scenario, requests: Arc<Vec<requests::Request>>, window: Duration) -> Plan {
    Plan {
        requests,
        connections: scenario.connections,
        until: Until::Elapsed(window),
        settle: scenario.kind == Kind::Put,
    }
}

/// What a client of a cluster trusts, speaking HTTP/1.1.
pub fn client_tls(cluster: &Cluster) -> Arc<ClientConfig> {
    let mut tls = (*cluster.tls()).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(tls)
}

/// Writes a secret to each of some keys.
pub async fn fill(cluster: &Cluster, at: usize, keys: std::ops::Range<usize>) -> Result<Seen> {
    let target = Target { address: cluster.at(at).api(), tls: client_tls(cluster), pids: Vec::new() };
    let requests = requests::of_keys(Kind::Put, keys, &cluster.keys().root_token);
    load::run(target, Plan { requests, connections: 64, until: Until::Done, settle: false }).await
}

/// What is due of a rate.
fn due(scenario: &Scenario, rate: &Rate, earlier: &[Rate]) -> Vec<Due> {
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let bare_p99 = ms(rate.bare[0].p99 + rate.bare[1].p99) / 2.0;
    match (scenario.name.as_str(), &rate.append) {
        ("three/leader/get/128", _) => vec![
            Due::at_least("ratio to the bare server, %", 60.0, rate.ratio() * 100.0),
            Due::at_most("p99 as a multiple of the bare server's", 3.0, ms(rate.own.p99) / bare_p99),
        ],
        ("three/standby/get/128", _) => earlier
            .iter()
            .filter(|rate| rate.name == "three/leader/get/128")
            // Both as ratios to their own limit, so that what else the machine does counts less.
            .map(|leader| {
                Due::at_least("ratio to the leader, %", 80.0, rate.ratio() / leader.ratio() * 100.0)
            })
            .collect(),
        ("three/leader/put/128", _) => {
            vec![Due::at_least("ratio to the bare server, %", 18.0, rate.ratio() * 100.0)]
        }
        ("three/leader/put/16", _) => {
            vec![Due::at_most("bytes written on all nodes", 12_000.0, rate.own.written_all())]
        }
        // A bound for disks that sync in less than 0.2 ms; on a slower one two syncs come on top.
        ("three/leader/put/1", Some(append)) => {
            let syncs = (ms(append.p50) - 0.2).max(0.0) * 2.0;
            vec![Due::at_most("p50, ms", 1.0 + syncs, ms(rate.own.p50))]
        }
        _ => Vec::new(),
    }
}

//! Strangers in crowds: whatever they send, memory stays bounded, and who comes from elsewhere is served.
//!
//! The crowd comes from 127.0.0.2, the honest client from 127.0.0.3, the nodes talk to each other on 127.0.0.1.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use common::{at_most, long, one, ready};
use futures_util::future::join_all;
use keystead_chaos::{Client, Cluster, client::connect, process::resident_kib, raw, wait};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const CROWD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const CHALLENGE: &str = "sys/storage/raft/bootstrap/challenge";
const ANSWER: &str = "sys/storage/raft/bootstrap/answer";

/// A client that works all the time, on fresh connections now and then, and fails the test when it is not served.
struct Honest {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u32, Duration)>,
}

impl Honest {
    /// Works with one node until it is stopped; nothing may take longer than `patience`.
    fn begin(client: &Client, patience: Duration) -> Self {
        let client = client.clone().coming_from(HONEST).with_timeout(patience);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut rounds, mut worst) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Acquire) {
                let client = client.clone().fresh();
                for n in 0..5 {
                    let began = Instant::now();
                    let body = json!({ "data": { "n": n } });
                    client.call("POST", "secret/data/honest", Some(&body)).await.unwrap().ok().unwrap();
                    client.call("GET", "secret/data/honest", None).await.unwrap().ok().unwrap();
                    worst = worst.max(began.elapsed());
                }
                rounds += 1;
            }
            (rounds, worst)
        });
        Self { stop, task }
    }

    /// Ends the work; says how it went.
    async fn end(self, what: &str) {
        self.stop.store(true, Ordering::Release);
        let (rounds, worst) = self.task.await.unwrap();
        eprintln!("{what}: {rounds} rounds of an honest client, the slowest put and get {worst:?}");
        assert!(rounds > 0, "{what}: the honest client was never served");
    }
}

/// Resident memory of one node before something, to be compared with afterwards.
struct Memory {
    pid: u32,
    before_kib: u64,
}

impl Memory {
    fn of(pid: u32) -> Self {
        Self { pid, before_kib: resident_kib(pid).unwrap() }
    }

    fn grew_at_most(&self, mib: u64, what: &str) {
        let grown = resident_kib(self.pid).unwrap().saturating_sub(self.before_kib);
        eprintln!("{what}: {grown} KiB more");
        assert!(grown <= mib << 10, "{what}: {grown} KiB more, {mib} MiB are allowed");
    }
}

/// TLS from the crowd's address.
async fn crowd_tls(cluster: &Cluster, to: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = connect(Some(CROWD), to).await?;
    let name = ServerName::IpAddress(to.ip().into());
    TlsConnector::from(cluster.tls()).connect(name, tcp).await
}

/// Connections that have sent something and go on to hold still.
async fn crowd_tcp(to: SocketAddr, count: usize, first: &[u8]) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = connect(Some(CROWD), to).await.unwrap();
        // A server that has had enough closes; that is for the test to see by other means.
        drop(stream.write_all(first).await);
        held.push(stream);
    }
    held
}

/// How many the other side has closed.
fn closed(streams: &[TcpStream]) -> usize {
    let mut byte = [0];
    streams.iter().filter(|stream| matches!(stream.try_read(&mut byte), Ok(0))).count()
}

async fn metric(cluster: &Cluster, name: &str) -> u64 {
    let answer = cluster.at(0).client().coming_from(HONEST).call("GET", "sys/metrics", None).await.unwrap();
    let text = answer.text();
    let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// What a node needs anyway, so that it does not count.
async fn warm_up(cluster: &Cluster) {
    let body = json!({ "data": { "a": "x".repeat(16 << 10) } });
    let client = cluster.at(0).client();
    let calls = (0..16).map(|_| client.call("POST", "secret/data/warm", Some(&body)));
    for answer in join_all(calls).await {
        answer.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_08_half_open_connections_stalled_handshakes_and_slow_headers_are_bounded() {
    let cluster = Box::pin(one().ready()).await.unwrap();
    let (node, api) = (cluster.at(0), cluster.at(0).api());
    warm_up(&cluster).await;
    let memory = Memory::of(node.pid());
    let honest = Honest::begin(&node.client(), at_most(Duration::from_secs(3)));

    // 512 of an address may be in their handshake; the others are closed at once.
    let silent = crowd_tcp(api, 1_500, b"").await;
    let stalled = crowd_tcp(api, 1_500, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    let told = || match (closed(&silent) + closed(&stalled), 3_000 - 512) {
        (closed, refused) if closed >= refused => Ok(()),
        (closed, _) => Err(format!("{closed} closed")),
    };
    wait::until_now("2,488 refusals", Duration::from_secs(5), told).await.unwrap();
    assert!(metric(&cluster, "keystead_api_connections_refused").await >= 2_488);
    memory.grew_at_most(32, "3,000 half-open connections");
    drop((silent, stalled));

    // Requests whose headers never end.
    let mut slow = Vec::new();
    for _ in 0..200 {
        let Ok(mut stream) = crowd_tls(&cluster, api).await else { continue };
        let head = format!("GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nX-Slow: {}", "y".repeat(30_000));
        drop(stream.write_all(head.as_bytes()).await);
        slow.push(stream);
    }
    assert!(slow.len() > 150, "{} connections", slow.len());
    for stream in &mut slow {
        drop(stream.write_all(b"y").await);
    }
    memory.grew_at_most(64, "200 requests with 30 KB of headers that do not end");
    honest.end("half-open connections").await;
    let log = node.log();
    let told = log.lines().filter(|line| line.contains("connections were refused")).count();
    assert!((1..=5).contains(&told), "{told} lines about 2,488 refusals");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_08_slow_and_large_bodies_are_bounded() {
    let cluster = Box::pin(one().ready()).await.unwrap();
    let (node, api) = (cluster.at(0), cluster.at(0).api());
    warm_up(&cluster).await;
    let memory = Memory::of(node.pid());
    let honest = Honest::begin(&node.client(), at_most(Duration::from_secs(3)));
    let begin = async |path: &str, promised: usize, sent: usize| {
        let mut stream = crowd_tls(&cluster, api).await.unwrap();
        let head =
            format!("POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {promised}\r\n\r\n{{\"a\":\"");
        drop(stream.write_all(head.as_bytes()).await);
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..sent / piece.len() {
            if tokio::time::timeout(Duration::from_secs(5), stream.write_all(&piece)).await.is_err() {
                break;
            }
        }
        stream
    };

    // Promises of 32 MiB, and a byte now and then. No token: whoever reaches the port can do it.
    let mut slow = Vec::new();
    for _ in 0..100 {
        slow.push(begin("sys/tools/hash", 32 << 20, 64 << 10).await);
    }
    for _ in 0..3 {
        for stream in &mut slow {
            drop(stream.write_all(b"x").await);
        }
    }
    memory.grew_at_most(48, "100 bodies of 32 MiB of which 64 KiB came");

    // Bodies that nearly come in: an address may have 64 MiB of them in flight, no more.
    let mut large = Vec::new();
    for _ in 0..6 {
        large.push(begin("sys/tools/hash", 32 << 20, 24 << 20).await);
    }
    let mut refused = 0;
    for stream in &mut large {
        let mut answer = vec![0; 64];
        let read = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut answer)).await;
        // A 503, or an end before it was read: what comes after a refusal is not received.
        refused += usize::from(read.is_ok());
    }
    assert!((4..6).contains(&refused), "{refused} of 6 times 24 MiB were refused");
    // Others still have room for the largest.
    let body = Bytes::from(format!("{{\"input\":\"{}\"}}", "QUFB".repeat(1 << 20)));
    let other = node.client().coming_from(HONEST).with_timeout(Duration::from_secs(30));
    let answer = other.send("POST", "/v1/sys/tools/hash", body, &[]).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop((slow, large));

    // What no engine could store is not even received.
    let mut stream = begin("secret/data/large", 16 << 20, 0).await;
    let mut answer = vec![0; 64];
    let read = stream.read(&mut answer).await.unwrap();
    assert_eq!(raw::status(&answer[..read]), Some(413));
    memory.grew_at_most(256, "and 144 MiB of bodies at once");
    honest.end("slow bodies").await;
}

/// One body of each kind of bomb, of about `size` bytes.
fn bombs(size: usize) -> Vec<(&'static str, String)> {
    let many = |unit: &str| unit.repeat(size / unit.len());
    vec![
        ("arrays in arrays", format!("{{\"data\":{}", many("["))),
        ("objects in objects", many("{\"a\":")),
        ("strings", format!("{{\"data\":[{}\"\"]}}", many("\"\","))),
        ("empty objects", format!("{{\"data\":[{}{{}}]}}", many("{},"))),
        ("one number", format!("{{\"data\":{}}}", many("9"))),
        ("exponents", format!("{{\"data\":[{}1]}}", many("1e999999999,"))),
        ("one key", format!("{{{}\"k\":1}}", many("\"k\":1,"))),
        ("one long key", format!("{{\"{}\":1}}", many("k"))),
        ("escapes", format!("{{\"data\":\"{}\"}}", many("\\u0041"))),
        ("spaces", format!("{{{}}}", many(" "))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_08_json_bombs_and_huge_headers_leave_the_node_answering() {
    let cluster = Box::pin(one().ready()).await.unwrap();
    let node = cluster.at(0);
    warm_up(&cluster).await;
    let memory = Memory::of(node.pid());
    let honest = Honest::begin(&node.client(), at_most(Duration::from_secs(3)));
    let crowd = node.client().coming_from(CROWD).with_timeout(Duration::from_secs(30));
    for (name, body) in bombs(4 << 20) {
        let body = Bytes::from(body);
        let calls = (0..4).map(|_| crowd.send("POST", "/v1/secret/data/bomb", body.clone(), &[]));
        for answer in join_all(calls).await {
            let answer = answer.unwrap();
            let fits = name == "spaces" && answer.status == 400;
            assert!(fits || [400, 413, 503].contains(&answer.status), "{name}: {}", answer.status);
            assert!(answer.text().len() < 1_000, "{name}: it is echoed");
        }
    }
    assert_eq!(node.get("bomb").await.unwrap(), None);
    memory.grew_at_most(128, "four bombs of 4 MiB at a time, ten kinds");

    let crowd = crowd.without_token();
    let token = "t".repeat(60_000);
    let many: Vec<(String, String)> = (0..2_000).map(|n| (format!("X-{n}"), "y".repeat(1_000))).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
    for _ in 0..50 {
        // Closed before it was all sent, or answered with 431.
        if let Ok(answer) = crowd.send("GET", "/v1/secret/data/a", Bytes::new(), &many).await {
            assert_eq!(answer.status, 431);
        }
        let answer = crowd.send("GET", "/v1/secret/data/a", Bytes::new(), &[("X-Vault-Token", &token)]).await;
        assert!(answer.is_err() || [403, 431].contains(&answer.unwrap().status));
    }
    memory.grew_at_most(128, "and 50 requests with 2 MB of headers");
    honest.end("bombs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_09_a_flood_on_the_joining_endpoints_and_the_cluster_port_disturbs_nobody() {
    let cluster = ready().await;
    let leader = cluster.leader().await.unwrap();
    let (node, port) = (cluster.at(leader), cluster.at(leader).config().cluster);
    let elections = node.log().matches("this node leads").count();
    let crowd = node.client().without_token().coming_from(CROWD);
    let ask = json!({ "server_id": "flood" });
    let bogus = json!({ "server_id": "flood", "challenge": "AAAA".repeat(10) + "AAA=", "csr": "AAAA",
        "mac": "AAAA", "incarnation": "00", "cluster_addr": "127.0.0.2:1", "api_addr": "http://127.0.0.2" });
    for _ in 0..200 {
        crowd.call("PUT", CHALLENGE, Some(&ask)).await.unwrap().ok().unwrap();
    }
    let memory = Memory::of(node.pid());
    let honest = Honest::begin(&node.client(), at_most(Duration::from_secs(3)));

    let rounds = if long() { 10_000 } else { 2_500 } / 8;
    let floods = (0..8).map(|_| {
        let (crowd, ask, bogus) = (crowd.clone(), ask.clone(), bogus.clone());
        tokio::spawn(async move {
            for _ in 0..rounds {
                crowd.call("PUT", CHALLENGE, Some(&ask)).await.unwrap().ok().unwrap();
                let status = crowd.call("PUT", ANSWER, Some(&bogus)).await.unwrap().status;
                assert!(status >= 400, "{status}");
            }
        })
    });
    let floods: Vec<_> = floods.collect();
    // Meanwhile connections that say nothing, garbage, and handshakes that stall; the other two nodes hold theirs.
    let garbage: Vec<u8> = (0..2_000_u32).map(|n| ((n * 7919) >> 3) as u8).collect();
    let mut held = crowd_tcp(port, 400, b"").await;
    held.extend(crowd_tcp(port, 400, &garbage).await);
    held.extend(crowd_tcp(port, 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await);

    // A node joins, and another comes back, through the crowd.
    let newcomer = cluster.node(cluster.newcomer("n4").unwrap());
    newcomer.start().await.unwrap();
    cluster.unseal(&newcomer).await.unwrap();
    let standby = cluster.others(leader)[0];
    cluster.at(standby).kill();
    held.extend(crowd_tcp(port, 200, b"").await);
    Box::pin(cluster.bring_back(standby)).await.unwrap();
    newcomer.health(&[200, 429], Duration::from_secs(20)).await.unwrap();

    for flood in floods {
        flood.await.unwrap();
    }
    memory.grew_at_most(48, "challenges, false answers and 1,400 connections to the cluster port");
    honest.end("joining endpoints").await;
    drop(held);
    assert_eq!(cluster.leader().await.unwrap(), leader, "consensus went on undisturbed");
    assert_eq!(node.log().matches("this node leads").count(), elections);
    let told = node.log().lines().filter(|line| line.contains("on the cluster port were refused")).count();
    assert!((1..=8).contains(&told), "{told} lines about refusals");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_number_of_secrets() {
    let cluster = Box::pin(one().ready()).await.unwrap();
    let node = cluster.at(0);
    // By then the bounded buffers are full: overlay, remembered answers, cached rows and paths, the log's newest part.
    let (first, then) = (5_000, if long() { 20_000 } else { 5_000 });
    let put = async |from: usize, to: usize| {
        let writers = (0..16).map(|writer| {
            let client = node.client();
            tokio::spawn(async move {
                for n in (from + writer..to).step_by(16) {
                    let body = json!({ "data": { "value": "x".repeat(300) } });
                    let path = format!("secret/data/many/{}/{n}", n % 100);
                    client.call("POST", &path, Some(&body)).await.unwrap().ok().unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    };
    put(0, first).await;
    let memory = Memory::of(node.pid());
    put(first, first + then).await;
    memory.grew_at_most(32, &format!("{then} secrets more than {first}"));
}

//! A disk that is full, that fails, or that hangs: who leads then, what is refused with which words, what is served,
//! and that nothing acknowledged is lost.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{at_most, one, three};
use keystead_chaos::{Client, Cluster, Errno, Load, Op, Rule, load::Ended, skip, wait};
use serde_json::json;

const MIB: u64 = 1024 * 1024;
/// The size of each node's file system. Its marks: almost full below 32 MiB, full below 8 MiB.
const DISK_MIB: u64 = 128;
/// How long anything may take that happens by itself.
const SOON: Duration = Duration::from_secs(20);

/// A small file system, unmounted when this is dropped.
struct Disk(PathBuf);

impl Disk {
    /// Mounts one; `None` with the reason on standard error where that is not permitted.
    fn mount(path: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let size = format!("size={DISK_MIB}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "keystead-test"]).arg(&path).output();
        let why = match mounted {
            Ok(done) if done.status.success() => return Some(Self(path)),
            Ok(done) => String::from_utf8_lossy(&done.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        skip(&format!("a small file system cannot be mounted, which needs root: {why}"));
        None
    }

    fn free_mib(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).unwrap();
        stat.f_bavail * stat.f_frsize / MIB
    }

    /// Fills it until so much is free.
    fn leave_mib(&self, mib: u64) {
        let filler = OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        let length = filler.metadata().unwrap().len();
        let more = (self.free_mib() * MIB).saturating_sub(mib * MIB);
        if more > 0 {
            rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), length, more).unwrap();
        }
    }

    /// Takes all but so much, and again when the node has given its ballast up for it: its blocks may come free a
    /// moment after its name is gone.
    async fn fill_up(&self, but_mib: u64) {
        let mut looks = 0;
        wait::until_now("the ballast to go", SOON, || {
            let taken = self.free_mib() <= but_mib && !self.0.join("data/ballast").exists();
            self.leave_mib(but_mib);
            looks = if taken { looks + 1 } else { 0 };
            if looks >= 10 { Ok(()) } else { Err(format!("{} MiB free", self.free_mib())) }
        })
        .await
        .unwrap();
    }

    fn clear(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process that is being killed may still hold it.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

/// Three nodes, each on a small disk of its own. The disks go last.
async fn on_small_disks(directory: &Path) -> Option<(Cluster, Vec<Disk>)> {
    let mut disks = Vec::new();
    for at in 0..3 {
        disks.push(Disk::mount(directory.join(at.to_string()))?);
    }
    let paths: Vec<_> = disks.iter().map(|disk| disk.0.join("data")).collect();
    let cluster =
        three().configure(move |at, config| config.data = paths[at].clone()).configure(open_metrics);
    Some((Box::pin(cluster.ready()).await.unwrap(), disks))
}

/// Metrics without a token, so that those of a sealed node can be read.
fn open_metrics(_: usize, config: &mut keystead_chaos::NodeConfig) {
    config.listener_lines.push("telemetry { unauthenticated_metrics_access = true }".into());
}

fn load(cluster: &Cluster) -> Load {
    let clients: Vec<Client> = cluster.nodes().iter().map(|node| node.client()).collect();
    Load::start(&clients, 3, Duration::from_millis(10))
}

/// Waits until so many more writes were acknowledged.
async fn goes_on(load: &Load, writes: usize) {
    let before = load.acknowledged();
    wait::until_now("the load to go on", SOON, || match load.acknowledged() - before {
        more if more >= writes => Ok(()),
        more => Err(format!("{more} writes")),
    })
    .await
    .unwrap();
}

/// Waits until a node shows a metric with a value.
async fn metric(cluster: &Cluster, at: usize, name: &str, value: &str) {
    wait::until(&format!("{name} {value} on node {at}"), SOON, || async {
        let text = cluster.at(at).call("GET", "sys/metrics?format=prometheus", None).await;
        let text = text.map_err(|error| error.to_string())?.text();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or("missing");
        if line == format!("{name} {value}") { Ok(()) } else { Err(line.to_owned()) }
    })
    .await
    .unwrap();
}

/// Waits until a node's health has a status, and its text the words; without words it must not warn of anything.
async fn health(cluster: &Cluster, at: usize, statuses: &[u16], words: Option<&str>) {
    wait::until(&format!("health {statuses:?} with {words:?} on node {at}"), SOON, || async {
        let answer = cluster.at(at).call("GET", "sys/health", None).await.map_err(|e| e.to_string())?;
        let text = answer.text();
        let right = words.map_or(!text.contains("warnings"), |words| text.contains(words));
        if statuses.contains(&answer.status) && right {
            Ok(())
        } else {
            Err(format!("{} {text}", answer.status))
        }
    })
    .await
    .unwrap();
}

/// Waits until another node than `not` leads.
async fn another_leads(cluster: &Cluster, not: usize) -> usize {
    cluster.leader_among(&cluster.others(not), SOON).await.unwrap()
}

/// Ends a test: everything is well, and everything acknowledged is on all nodes.
async fn all_is_well(cluster: &Cluster, load: Load) {
    for at in 0..3 {
        health(cluster, at, &[200, 429], None).await;
        cluster.serves(at, SOON).await.unwrap();
    }
    let history = load.stop().await;
    assert!(history.count(Ended::Acknowledged) >= 40);
    Box::pin(history.check(cluster, &[0, 1, 2])).await.unwrap();
}

#[tokio::test]
async fn a_leader_whose_disk_fills_up_hands_over_and_catches_up_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let Some((cluster, disks)) = Box::pin(on_small_disks(directory.path())).await else { return };
    let load = load(&cluster);
    goes_on(&load, 20).await;
    let full = cluster.leader().await.unwrap();
    let pid = cluster.at(full).pid();
    disks[full].leave_mib(20);
    let next = another_leads(&cluster, full).await;
    health(&cluster, full, &[429], Some("the disk of this node is almost full")).await;
    metric(&cluster, full, "keystead_node_disk_low", "1").await;
    goes_on(&load, 20).await;

    disks[full].fill_up(0).await;
    health(&cluster, full, &[429], Some("the disk of this node is full")).await;
    goes_on(&load, 100).await;
    assert_eq!(cluster.leader().await.unwrap(), next, "the others do not mind");

    disks[full].clear();
    health(&cluster, full, &[200, 429], None).await;
    metric(&cluster, full, "keystead_node_disk_low", "0").await;
    cluster.serves(full, SOON).await.unwrap();
    assert_eq!(cluster.at(full).pid(), pid);
    let history = load.stop().await;
    assert!(history.refusals.is_empty(), "no client noticed: {:?}", history.refusals);
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    let told = cluster.at(full).log().matches("the disk is almost full").count();
    assert!((1..=3).contains(&told), "told once at each change, not at each look: {told} times");
}

/// The answer to a write through a node, once it is a refusal with the words.
async fn refused(cluster: &Cluster, at: usize, method: &str, path: &str, words: &str) {
    wait::until(&format!("{method} {path} to be refused on node {at}"), SOON, || async {
        let body = (method == "POST").then(|| json!({ "data": { "n": 1 } }));
        let answer = cluster.at(at).call(method, path, body.as_ref()).await.map_err(|e| e.to_string())?;
        let text = answer.errors();
        let remedy = text.contains("free space on that node's file system or enlarge it");
        if answer.status == 507 && text.contains(words) && remedy && text.contains("bytes free") {
            Ok(())
        } else {
            Err(format!("{} {text}", answer.status))
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn with_all_disks_full_reads_and_deletes_are_served_and_writes_go_on_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let Some((cluster, disks)) = Box::pin(on_small_disks(directory.path())).await else { return };
    let pids: Vec<_> = cluster.nodes().iter().map(|node| node.pid()).collect();
    for n in 0..4 {
        cluster.at(0).put(&format!("kept/{n}"), &json!({ "n": n })).await.unwrap();
    }
    let load = load(&cluster);
    goes_on(&load, 20).await;

    disks.iter().for_each(|disk| disk.leave_mib(20));
    for at in 0..3 {
        refused(&cluster, at, "POST", "secret/data/more", "is almost full").await;
        assert_eq!(cluster.at(at).get(&format!("kept/{at}")).await.unwrap().unwrap()["n"], at);
        assert_eq!(cluster.at(at).list("kept/").await.unwrap().len(), 4 - at);
        // Deletes of a version and of everything: both are served, through every node.
        let path = format!("secret/data/kept/{at}");
        cluster.at(at).call("DELETE", &path, None).await.unwrap().ok().unwrap();
        assert_eq!(cluster.at(at).get(&format!("kept/{at}")).await.unwrap(), None);
        let path = format!("secret/metadata/kept/{at}");
        cluster.at(at).call("DELETE", &path, None).await.unwrap().ok().unwrap();
    }
    let leader = cluster.leader().await.unwrap();
    health(&cluster, leader, &[200], Some("writes are refused")).await;
    metric(&cluster, leader, "keystead_raft_writes_refused", "1").await;

    for disk in &disks {
        // What a vote needs is left: with nothing at all, nobody could be elected.
        disk.fill_up(4).await;
    }
    for at in 0..3 {
        refused(&cluster, at, "POST", "secret/data/more", "is full").await;
        refused(&cluster, at, "DELETE", "secret/metadata/kept/3", "is full").await;
        assert_eq!(cluster.at(at).get("kept/3").await.unwrap().unwrap()["n"], 3);
    }

    disks.iter().for_each(Disk::clear);
    goes_on(&load, 20).await;
    cluster.at(0).call("DELETE", "secret/metadata/kept/3", None).await.unwrap().ok().unwrap();
    all_is_well(&cluster, load).await;
    assert_eq!(
        pids,
        cluster.nodes().iter().map(|node| node.pid()).collect::<Vec<_>>(),
        "nobody was restarted"
    );
}

#[tokio::test]
async fn a_lone_node_with_a_full_disk_stops_in_order_and_starts_again_when_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(directory.path().join("0")) else { return };
    let data = disk.0.join("data");
    let cluster =
        Box::pin(one().configure(move |_, config| config.data = data.clone()).ready()).await.unwrap();
    let node = cluster.at(0);
    node.put("kept", &json!({ "n": 1 })).await.unwrap();
    disk.leave_mib(20);
    refused(&cluster, 0, "POST", "secret/data/more", "is almost full").await;
    node.call("DELETE", "secret/metadata/more", None).await.unwrap().ok().unwrap();
    disk.fill_up(0).await;
    refused(&cluster, 0, "DELETE", "secret/metadata/kept", "is full").await;
    assert_eq!(node.get("kept").await.unwrap().unwrap()["n"], 1);

    assert!(node.stop().await.unwrap().success());
    node.spawn().unwrap();
    assert!(!node.ends(SOON).await.unwrap().success());
    let log = node.log();
    assert!(log.contains("no space left for ") && log.contains("free space on that file system"), "{log}");
    disk.clear();
    Box::pin(cluster.bring_back(0)).await.unwrap();
    assert_eq!(node.get("kept").await.unwrap().unwrap()["n"], 1);
    cluster.serves(0, SOON).await.unwrap();
}

#[tokio::test]
async fn a_leader_whose_syncs_hang_hands_over_and_keeps_away_until_they_are_quick() {
    let cluster = Box::pin(three().with_faults().configure(open_metrics).ready()).await.unwrap();
    let load = load(&cluster);
    goes_on(&load, 20).await;
    let hung = cluster.leader().await.unwrap();
    let faults = cluster.at(hung).faults().unwrap();
    faults.set(&[Rule::on(&[Op::Sync]).at("/log/").hangs()]).unwrap();
    let start = Instant::now();
    let next = another_leads(&cluster, hung).await;
    let took = start.elapsed();
    assert!(took < at_most(Duration::from_secs(2)), "a second is a hang, then it hands over: {took:?}");
    metric(&cluster, hung, "keystead_node_disk_slow", "1").await;
    health(&cluster, hung, &[200, 429], Some("syncs of this node's disk hang")).await;
    goes_on(&load, 50).await;
    // Who writes through the node whose core waits for the disk reaches the new leader.
    cluster.at(hung).put("through/the/hung", &json!({ "n": 1 })).await.unwrap();
    assert_eq!(cluster.leader_among(&cluster.others(hung), SOON).await.unwrap(), next);

    faults.clear().unwrap();
    metric(&cluster, hung, "keystead_node_disk_slow", "0").await;
    assert!(cluster.at(hung).log().contains("this node hands leadership over"));
    all_is_well(&cluster, load).await;
}

/// Writes until what the state puts off is more than it keeps in memory.
async fn write_much(cluster: &Cluster, at: usize) {
    let bulk = json!({ "much": "x".repeat(60 << 10) });
    for n in 0..300 {
        if cluster.at(at).put(&format!("bulk/{n}"), &bulk).await.is_err() {
            return;
        }
    }
}

/// Log or state of the leader fails: another leads, the node says why, and after mending and a restart it follows.
async fn fails(cluster: &Cluster, load: &Load, rule: Rule, what: &str, why: &str) {
    let failed = cluster.leader().await.unwrap();
    let faults = cluster.at(failed).faults().unwrap();
    faults.set(&[rule]).unwrap();
    if what == "state" {
        write_much(cluster, failed).await;
    }
    another_leads(cluster, failed).await;
    goes_on(load, 20).await;
    health(cluster, failed, &[500], Some(&format!("the {what} on this node's disk has failed: {why}"))).await;
    metric(cluster, failed, "keystead_node_latched", "1").await;
    let log = cluster.at(failed).log();
    assert!(log.contains("mend the disk and start this node again"), "the log names the remedy");
    let answer = cluster.at(failed).call("GET", "secret/data/load/w0/0", None).await.unwrap();
    assert_eq!(answer.status, 503, "it serves nothing: {}", answer.text());
    cluster.at(failed).kill();
    faults.clear().unwrap();
    Box::pin(cluster.bring_back(failed)).await.unwrap();
}

#[tokio::test]
async fn a_failed_sync_or_write_stops_the_node_and_another_leads() {
    let cluster = Box::pin(three().with_faults().configure(open_metrics).ready()).await.unwrap();
    let load = load(&cluster);
    goes_on(&load, 20).await;
    let faults = [
        (Rule::on(&[Op::Sync]).at("/log/").fails(Errno::IO), "log", "sync "),
        // Told of the write itself or of the flush after it, whichever meets it.
        (Rule::on(&[Op::Write]).at("/log/").fails(Errno::IO), "log", ""),
        // Space that went between the look and the write.
        (Rule::on(&[Op::Write]).at("/log/").fails(Errno::NOSPC), "log", "no space left for "),
        (Rule::on(&[Op::Sync]).at("/state/").fails(Errno::IO), "state", "sync "),
    ];
    for (rule, what, why) in faults {
        Box::pin(fails(&cluster, &load, rule, what, why)).await;
    }
    all_is_well(&cluster, load).await;
}

/// Runs a command about snapshots.
async fn snapshot(cluster: &Cluster, at: usize, args: &[&str]) -> keystead_chaos::Output {
    let args: Vec<&str> = ["operator", "raft", "snapshot"].iter().chain(args).copied().collect();
    cluster.cli(at).run(&args).await.unwrap()
}

#[tokio::test]
async fn a_snapshot_is_neither_taken_nor_restored_without_room_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some((cluster, disks)) = on_small_disks(directory.path()).await else { return };
    for n in 0..40 {
        let value = format!("{n}-{}", "x".repeat(400 << 10));
        cluster.at(0).put(&format!("large/{n}"), &json!({ "value": value })).await.unwrap();
    }
    let leader = cluster.leader().await.unwrap();
    let follower = cluster.others(leader)[0];
    let file = |name: &str| cluster.directory().join(name).display().to_string();
    let spooled = |at: usize| std::fs::read_dir(disks[at].0.join("data/snapshots")).unwrap().count();

    // Almost full: that node takes none, the others do.
    disks[follower].leave_mib(20);
    health(&cluster, follower, &[429], Some("almost full")).await;
    let refused = snapshot(&cluster, follower, &["save", &file("none")]).await;
    assert!(refused.code == 2 && refused.stderr.contains("Code: 507"), "{refused:?}");
    assert!(refused.stderr.contains("another node") && !Path::new(&file("none")).exists(), "{refused:?}");
    let saved = snapshot(&cluster, leader, &["save", &file("good")]).await;
    assert_eq!(saved.code, 0, "{saved:?}");
    disks[follower].clear();
    health(&cluster, follower, &[429], None).await;
    cluster.at(0).put("later", &json!({ "n": 1 })).await.unwrap();

    // Some room, and not for all of it: nothing is changed, and nothing is left lying about.
    let before = spooled(leader);
    disks[leader].leave_mib(44);
    let refused = snapshot(&cluster, leader, &["restore", &file("good")]).await;
    assert!(refused.code == 2 && refused.stderr.contains("Code: 507"), "{refused:?}");
    assert!(refused.stderr.contains("free space"), "the remedy is named: {refused:?}");
    assert_eq!(cluster.at(follower).get("later").await.unwrap().unwrap()["n"], 1);
    assert_eq!(spooled(leader), before);
    disks[leader].clear();
    // A follower that can not take it all keeps nobody from deciding, and has the same when there is room again.
    wait::until("the restore to succeed", SOON * 3, || async {
        let restored = snapshot(&cluster, leader, &["restore", &file("good")]).await;
        if restored.code == 0 { Ok(()) } else { Err(format!("{restored:?}")) }
    })
    .await
    .unwrap();
    for at in 0..3 {
        wait::until("the restored state", SOON, || async {
            match cluster.at(at).get("later").await.map_err(|error| error.to_string())? {
                None => Ok(()),
                Some(found) => Err(found.to_string()),
            }
        })
        .await
        .unwrap();
        assert!(cluster.at(at).get("large/39").await.unwrap().is_some());
    }
}

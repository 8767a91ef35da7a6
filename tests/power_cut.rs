//! The power is cut while a writer acknowledges: an ext4 on a loop device is shut down with `EXT4_IOC_SHUTDOWN`, which
//! forgets what was not synced, and mounted again. Everything acknowledged is there, and the storage opens.
//!
//! It takes root, loop devices, e2fsprogs and python3 (for the ioctl); where they are not to be had, the tests say so
//! and are skipped. What it does not model is a disk that lies about its cache.
#![allow(clippy::unwrap_used)] // in a test, a panic is the report

mod common;
#[path = "common/digests.rs"]
mod digests;
#[path = "common/exerciser.rs"]
mod exerciser;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use common::three;
use exerciser::{Acknowledged, Random, WHOLE, start_check, start_writer};
use keystead_chaos::{
    load::{Ended, Load},
    skip, wait,
};

const DEVICE_BYTES: u64 = 2 << 30;
/// How long a process may take to notice that its disk is gone, or to open one.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one of the system's tools may take.
const TOOL_SECONDS: &str = "60";
const POLL: Duration = Duration::from_millis(2);
/// `_IOR('X', 125, __u32)`: the kernel's `EXT4_IOC_SHUTDOWN`.
const SHUTDOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', int(sys.argv[2])))";

/// How the file system goes down.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// The journal is written out first, as when the cut comes a moment later.
    LogFlush = 1,
    /// Nothing more is written.
    NoLogFlush = 2,
}

#[test]
fn child() {
    exerciser::run_child();
}

/// A file system on a loop device, gone when it is dropped.
struct Device {
    directory: tempfile::TempDir,
    node: String,
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", TOOL_SECONDS, program]).args(args);
    let output = command.output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(format!("{program} {args:?}: {}", text(&output.stderr))),
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Device {
    fn new() -> Result<Self, String> {
        let directory = tempfile::Builder::new().prefix("keystead-power-").tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(DEVICE_BYTES)).unwrap();
        std::fs::create_dir(directory.path().join("mount")).unwrap();
        run("python3", &["-c", "import fcntl"])?;
        run("mkfs.ext4", &["-q", "-F", shown(&image)])?;
        let node = run("losetup", &["--find", "--show", shown(&image)])?;
        let device = Self { directory, node };
        device.mount()?;
        Ok(device)
    }

    /// The device, or the reason why there is none on standard error.
    fn or_skip() -> Option<Self> {
        let made = Self::new();
        if let Err(why) = &made {
            skip(&format!("no file system can be cut off here: {why}"));
        }
        made.ok()
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("mount")
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", &self.node, shown(&self.root())]).map(drop)
    }

    fn cut(&self, cut: Cut) {
        run("python3", &["-c", SHUTDOWN, shown(&self.root()), &(cut as u32).to_string()]).unwrap();
    }

    /// Takes the file system away and brings it back, as a machine does that starts again. Nobody may use it.
    fn power_on(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Err(why) = run("umount", &[shown(&self.root())]) {
            assert!(Instant::now() < deadline, "{why}");
            std::thread::sleep(POLL * 10);
        }
        self.mount().unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A test that failed may have left a process that uses it.
        for (program, args) in [("umount", ["-l", shown(&self.root())]), ("losetup", ["-d", &self.node])] {
            if let Err(why) = run(program, &args) {
                eprintln!("{why}");
            }
        }
    }
}

/// The exit code of a process that ends by itself, and what it printed.
fn ended(mut child: Child) -> (i32, String) {
    let deadline = Instant::now() + PATIENCE;
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code().unwrap_or(-1);
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break -1;
        }
        std::thread::sleep(POLL);
    };
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (code, said)
}

/// Lets a writer acknowledge for a while, and cuts.
fn write_and_cut(device: &Device, acknowledged: &Path, seed: u64, cut: Cut) {
    let mut random = Random::new(seed);
    let before = Acknowledged::read(acknowledged).lines;
    let due = before + 1 + random.below(400) as usize;
    let mut writer = start_writer(&device.root().join("data"), acknowledged, seed);
    let deadline = Instant::now() + PATIENCE;
    while Acknowledged::read(acknowledged).lines < due {
        if let Some(status) = writer.try_wait().unwrap() {
            let (_, said) = ended(writer);
            panic!("the writer ended by itself, {status}: {said}");
        }
        assert!(Instant::now() < deadline, "{:?}", Acknowledged::read(acknowledged));
        std::thread::sleep(POLL);
    }
    device.cut(cut);
    let (code, said) = ended(writer);
    let failure = Acknowledged::read(acknowledged).failure;
    assert!(code == 0 && failure.is_some(), "the writer did not notice: exit {code}, {failure:?}: {said}");
}

/// How often the power is cut under a writer of the storage, and under a cluster.
fn cuts() -> (u64, u64) {
    if common::long() { (50, 10) } else { (10, 2) }
}

fn cut_of(n: u64) -> Cut {
    if n.is_multiple_of(2) { Cut::NoLogFlush } else { Cut::LogFlush }
}

#[test]
fn what_the_storage_acknowledged_survives_the_power() {
    let Some(device) = Device::or_skip() else { return };
    let acknowledged = device.directory.path().join("acknowledged");
    for n in 0..cuts().0 {
        write_and_cut(&device, &acknowledged, n + 1, cut_of(n));
        device.power_on();
        let (code, said) = ended(start_check(&device.root().join("data"), &acknowledged));
        assert_eq!(code, WHOLE, "after cut {n}, {:?}: {said}", cut_of(n));
        assert!(!said.contains("PANIC"), "{said}");
    }
    let found = Acknowledged::read(&acknowledged);
    eprintln!("{} cuts, {} entries, {} acknowledgements", cuts().0, found.last, found.lines);
}

#[tokio::test]
async fn what_a_cluster_acknowledged_survives_the_power_of_all_its_nodes() {
    let Some(device) = Device::or_skip() else { return };
    let root = device.root();
    let builder = three().configure(move |at, config| config.data = root.join(format!("n{at}")));
    let cluster = Box::pin(builder.ready()).await.unwrap();
    let clients: Vec<_> = cluster.nodes().iter().map(|node| node.client()).collect();
    let load = Load::start(&clients, 4, Duration::from_millis(5));
    let mut random = Random::new(7);
    for n in 0..cuts().1 {
        let due = load.acknowledged() + 50 + random.below(200) as usize;
        wait::until_now("the load to go on", PATIENCE, || {
            let written = load.acknowledged();
            if written >= due { Ok(()) } else { Err(format!("{written} of {due} writes")) }
        })
        .await
        .unwrap();
        device.cut(cut_of(n));
        // What a node says between the loss of its disk and its end is held against it.
        tokio::time::sleep(Duration::from_millis(random.below(500))).await;
        cluster.kill_together(&[0, 1, 2]).unwrap();
        device.power_on();
        Box::pin(cluster.bring_back_together(&[0, 1, 2])).await.unwrap();
    }
    let history = load.stop().await;
    eprintln!("{} cuts, {} writes acknowledged", cuts().1, history.count(Ended::Acknowledged));
    Box::pin(history.check(&cluster, &[0, 1, 2])).await.unwrap();
    digests::equal(&cluster).await;
    drop(cluster);
}

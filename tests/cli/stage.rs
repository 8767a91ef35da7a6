//! A development server, and a shell in a directory of its own that knows it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::settled::settled;

const BINARY: &str = env!("CARGO_BIN_EXE_keystead");
const START: Duration = Duration::from_secs(60);
/// How long a line may take in the shell.
const LINE_SECONDS: &str = "120";

pub struct Stage {
    directory: tempfile::TempDir,
    server: Child,
    address: SocketAddr,
    unseal_key: String,
    path: String,
}

impl Stage {
    /// Starts a development server and waits until it serves.
    pub fn set() -> Stage {
        let mut stage = Stage::start(|_, address| {
            let listen = format!("-dev-listen-address={address}");
            let flags =
                ["-dev", "-dev-root-token-id=root", "-dev-no-store-token", "-log-level=warn", &listen];
            flags.map(str::to_owned).to_vec()
        });
        stage.unseal_key = stage.wait_for_unseal_key();
        stage
    }

    /// Starts a server that a seal will open, and waits until it can be initialised.
    pub fn set_with_seal() -> Stage {
        let stage = Stage::start(|directory, address| {
            let (ip, port, dir) = (address.ip(), address.port(), directory.display());
            let config = format!(
                "storage \"raft\" {{\n  path = \"{dir}/data\"\n  node_id = \"n1\"\n}}\nlistener \"tcp\" {{\n  address =                  \"{address}\"\n  cluster_address = \"{ip}:{}\"\n  tls_disable = true\n}}\nseal \"file\" {{\n  name =                  \"east\"\n  path = \"{dir}/key\"\n}}\napi_addr = \"http://{address}\"\ncluster_addr =                  \"https://{ip}:{}\"\ndisable_mlock = true\n",
                port + 1,
                port + 1
            );
            let file = directory.join("config.hcl");
            std::fs::create_dir(directory.join("data")).unwrap();
            std::fs::write(&file, config).unwrap();
            vec![format!("-config={}", file.display())]
        });
        let deadline = Instant::now() + START;
        while std::net::TcpStream::connect(stage.address).is_err() {
            assert!(Instant::now() < deadline, "the server did not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        stage
    }

    fn start(flags: impl FnOnce(&Path, SocketAddr) -> Vec<String>) -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for name in ["keystead", "vault", "bao"] {
            std::os::unix::fs::symlink(BINARY, bin.join(name)).unwrap();
        }
        let address = keystead_chaos::ports::free_row(1, 2).unwrap();
        let log = directory.path().join("server.log");
        let server = Command::new(BINARY)
            .arg("server")
            .args(flags(directory.path(), address))
            .env_clear()
            .env("HOME", directory.path())
            // What a killed server leaves behind goes with the stage.
            .env("TMPDIR", directory.path())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&log).unwrap())
            .stderr(std::fs::File::create(directory.path().join("server.err")).unwrap())
            .spawn()
            .unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        Stage { directory, server, address, unseal_key: String::new(), path }
    }

    /// The server prints its key when it is ready.
    fn wait_for_unseal_key(&mut self) -> String {
        let log = self.directory.path().join("server.log");
        let deadline = Instant::now() + START;
        loop {
            let printed = std::fs::read_to_string(&log).unwrap();
            let key = printed.lines().find_map(|line| line.strip_prefix("Unseal Key: "));
            let complete = printed.contains("Root Token: ");
            if let Some(key) = key.filter(|_| complete) {
                return key.trim().to_owned();
            }
            let ended = self.server.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(log.with_extension("err")).unwrap();
                panic!("no server: {ended:?}\n{printed}\n{said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs a line in a shell; what it printed, and its exit code, in a transcript's form.
    pub fn run(&self, line: &str) -> String {
        let output = Command::new("timeout")
            .args([LINE_SECONDS, "sh", "-c", line])
            .current_dir(self.directory.path())
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.directory.path())
            .env("VAULT_ADDR", format!("http://{}", self.address))
            .envs(self.keys().into_iter().flatten())
            .env("DIR", self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let names = [
            (self.directory.path().display().to_string(), "<dir>"),
            (self.address.to_string(), "<server>"),
            (SocketAddr::new(self.address.ip(), self.address.port() + 1).to_string(), "<cluster>"),
            (env!("CARGO_PKG_VERSION").to_owned(), "<version>"),
        ];
        let names = names.into_iter().chain(self.keys().map(|_| (self.unseal_key.clone(), "<unseal key>")));
        let names: Vec<_> = names.collect();
        let text = |bytes: Vec<u8>| settled(&String::from_utf8(bytes).unwrap(), &names);
        let mut shown = text(output.stdout);
        if !shown.is_empty() && !shown.ends_with('\n') {
            shown.push_str("<no newline>\n");
        }
        for line in text(output.stderr).lines() {
            let _ = writeln!(shown, "{}", format!("! {line}").trim_end());
        }
        match output.status.code() {
            Some(0) => {}
            Some(code) => drop(writeln!(shown, "? {code}")),
            None => shown.push_str("? killed\n"),
        }
        shown
    }
}

impl Stage {
    /// What the commands know of a server that was initialised for them: its unseal key, and the root token.
    fn keys(&self) -> Option<[(&'static str, &str); 2]> {
        let known = !self.unseal_key.is_empty();
        known.then_some([("VAULT_TOKEN", "root"), ("UNSEAL_KEY", self.unseal_key.as_str())])
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

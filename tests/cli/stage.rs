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
    /// Starts the server and waits until it serves.
    pub fn set() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let bin = directory.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        for name in ["keystead", "vault", "bao"] {
            std::os::unix::fs::symlink(BINARY, bin.join(name)).unwrap();
        }
        let address = keystead_chaos::ports::free_row(1, 2).unwrap();
        let log = directory.path().join("server.log");
        let server = Command::new(BINARY)
            .args(["server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token", "-log-level=warn"])
            .arg(format!("-dev-listen-address={address}"))
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
        let mut stage = Stage { directory, server, address, unseal_key: String::new(), path };
        stage.unseal_key = stage.wait_for_unseal_key(&log);
        stage
    }

    /// The server prints its key when it is ready.
    fn wait_for_unseal_key(&mut self, log: &Path) -> String {
        let deadline = Instant::now() + START;
        loop {
            let printed = std::fs::read_to_string(log).unwrap();
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
            .env("VAULT_TOKEN", "root")
            .env("UNSEAL_KEY", &self.unseal_key)
            .env("DIR", self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let names = [
            (self.directory.path().display().to_string(), "<dir>"),
            (self.address.to_string(), "<server>"),
            (SocketAddr::new(self.address.ip(), self.address.port() + 1).to_string(), "<cluster>"),
            (self.unseal_key.clone(), "<unseal key>"),
            (env!("CARGO_PKG_VERSION").to_owned(), "<version>"),
        ];
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

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

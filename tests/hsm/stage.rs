//! SoftHSM tokens in a directory of their own, and the module that stands in front of them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use keystead::config::{PinSource, Pkcs11Config, WrapMechanism};
use keystead::seal::Pkcs11Seal;
use keystead::secret::SecretString;
use keystead_chaos::{skip, softhsm, softhsm::Tokens};
use tempfile::TempDir;

/// The binary under test, which is its own helper.
pub const BINARY: &str = env!("CARGO_BIN_EXE_keystead");

pub use keystead_chaos::softhsm::PIN;

/// Tokens, their module's configuration, and a program that is a helper under that configuration.
pub struct Stage {
    pub directory: TempDir,
    tokens: Tokens,
    pub module: PathBuf,
}

impl Stage {
    /// One token "zone-a"; `None`, with a word on it, where there is no SoftHSM.
    pub fn new() -> Option<Stage> {
        let Some(module) = softhsm::module() else {
            skip("SoftHSM is not installed (Debian: apt-get install softhsm2)");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::new(directory.path()).unwrap();
        let stage = Stage { directory, tokens, module: module.to_owned() };
        fs::create_dir(stage.path("data")).unwrap();
        let script = format!("#!/bin/sh\n{}exec {BINARY} \"$@\"\n", stage.exports(module));
        fs::write(stage.path("helper"), script).unwrap();
        fs::set_permissions(stage.path("helper"), fs::Permissions::from_mode(0o755)).unwrap();
        stage.token("zone-a");
        Some(stage)
    }

    fn variables(&self, softhsm: &Path) -> [(&'static str, String); 4] {
        let path = |name: &str| self.path(name).display().to_string();
        [
            ("SOFTHSM2_CONF", path("softhsm2.conf")),
            ("FORWARD_MODULE", softhsm.display().to_string()),
            ("FORWARD_CONTROL", path("control")),
            ("FORWARD_LOG", path("log")),
        ]
    }

    fn exports(&self, softhsm: &Path) -> String {
        self.variables(softhsm).map(|(name, value)| format!("export {name}={value}\n")).concat()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts the forwarding module in front.
    pub fn forwarded(mut self) -> Stage {
        self.module = forward();
        self
    }

    /// What the forwarding module is to do from now on.
    pub fn order(&self, lines: &str) {
        fs::write(self.path("control.new"), lines).unwrap();
        fs::rename(self.path("control.new"), self.path("control")).unwrap();
    }

    /// How often somebody logged in through the forwarding module.
    pub fn logins(&self) -> usize {
        fs::read_to_string(self.path("log")).map_or(0, |log| log.lines().count())
    }

    /// Makes another token; its serial number.
    pub fn token(&self, label: &str) -> String {
        let before = self.token_directories();
        self.tokens.add(label).unwrap();
        let mut new = self.token_directories();
        new.retain(|directory| !before.contains(directory));
        let name = new[0].file_name().unwrap().to_string_lossy().replace('-', "");
        name[name.len() - 16..].to_owned()
    }

    /// Initialises a token anew, as its security officer may: the label and the PIN stay, the keys are gone.
    pub fn initialise_anew(&self, label: &str) {
        let slots = self.run(Command::new("softhsm2-util").arg("--show-slots"));
        let slots = String::from_utf8_lossy(&slots.stdout).into_owned();
        let numbered = slots.lines().scan(None, |slot, line| {
            *slot = line.strip_prefix("Slot ").or(*slot);
            Some((*slot, line.trim()))
        });
        let mut of_label =
            numbered.filter(|(_, line)| line.strip_prefix("Label:").map(str::trim) == Some(label));
        let slot = of_label.next().unwrap().0.unwrap().trim().to_owned();
        let made = self.run(Command::new("softhsm2-util").args([
            "--init-token",
            "--slot",
            &slot,
            "--label",
            label,
            "--pin",
            PIN,
            "--so-pin",
            softhsm::SO_PIN,
        ]));
        assert!(made.status.success(), "{made:?}");
    }

    /// The files of the keys on every token.
    pub fn key_files(&self) -> Vec<PathBuf> {
        let all = self.token_directories().into_iter().flat_map(|token| fs::read_dir(token).unwrap());
        let all = all.map(|entry| entry.unwrap().path());
        let is_key = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.ends_with(".object") && name != "token.object"
        };
        all.filter(is_key).collect()
    }

    pub fn token_directories(&self) -> Vec<PathBuf> {
        fs::read_dir(self.tokens.store()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Runs a program under the configuration.
    pub fn run(&self, command: &mut Command) -> Output {
        self.under(command).output().unwrap()
    }

    /// Puts a program that is about to start under the configuration.
    pub fn under<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.envs(self.variables(softhsm::module().unwrap()))
    }

    /// `keystead hsm COMMAND` on token "zone-a".
    pub fn hsm(&self, command: &str, more: &[&str]) -> Output {
        fs::write(self.path("pin"), PIN).unwrap();
        let module = format!("-lib={}", self.module.display());
        let pin = format!("-pin-file={}", self.path("pin").display());
        self.run(Command::new(BINARY).args(["hsm", command, &module, "-token-label=zone-a", &pin]).args(more))
    }

    pub fn config(&self) -> Pkcs11Config {
        Pkcs11Config {
            lib: self.module.clone(),
            slot: None,
            token_label: Some("zone-a".to_owned()),
            serial: None,
            pin: PinSource::Text(SecretString::new(PIN.to_owned())),
            key_label: "keystead".to_owned(),
            key_id: None,
            mechanism: None,
            oaep_hash: None,
            generate_key: true,
            force_rw_session: false,
            hmac_key_label: None,
            hmac_key_id: None,
            timeout: Duration::from_secs(5),
        }
    }

    /// A seal as a node has it after a start, changed by `change`.
    pub fn seal(&self, change: impl FnOnce(&mut Pkcs11Config)) -> Pkcs11Seal {
        let mut config = self.config();
        change(&mut config);
        Pkcs11Seal::new("hsm", config, Some(&self.path("data")), self.path("helper"))
    }

    pub fn seal_by(&self, mechanism: WrapMechanism) -> Pkcs11Seal {
        self.seal(|config| config.mechanism = Some(mechanism))
    }
}

/// The forwarding module, built once by the C compiler that the linker of this very program is.
fn forward() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hsm/forward.c");
        let place = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let module = place.join(format!("forward-{}.so", std::process::id()));
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-o"])
            .arg(&module)
            .arg(source)
            .args(["-ldl", "-lpthread"])
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        module
    };
    BUILT.get_or_init(build).clone()
}

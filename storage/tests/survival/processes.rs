//! The writer and the reader as processes of their own: this program once more, with a role.

use std::{
    fmt,
    fs::{self, File},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use keystead_chaos::{Faults, stacks::stacks};

use crate::{
    faulted::Plan,
    model::Notes,
    reader,
    script::Script,
    writer::{self, Writer},
};

/// How a run is repeated, after its variables.
pub const AGAIN: &str = "cargo test -p keystead-storage --test survival";
/// Steps of a random script.
pub const STEPS: usize = 110;
/// How long a process may take; it needs a second or two. One that hangs is killed, and told with its stacks.
const DEADLINE: Duration = Duration::from_secs(120);
/// How often its end is looked for.
const POLL: Duration = Duration::from_millis(2);

/// What a process is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    Writer,
    Reader,
}

/// A process with a role. It dies with this value.
pub struct Child {
    process: std::process::Child,
    role: Role,
    base: PathBuf,
}

/// How it ended.
pub struct Ended {
    status: ExitStatus,
    said: String,
}

impl Child {
    /// Starts this program again.
    pub fn start(
        role: Role,
        base: &Path,
        variables: &[(&str, String)],
        faults: Option<&Faults>,
    ) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let said = File::create(said(base)).map_err(|e| format!("what a {role:?} says: {e}"))?;
        let mut command = Command::new(program);
        command
            .args(["--exact", "a_process_with_a_role", "--ignored", "--nocapture"])
            .env("SURVIVAL_ROLE", format!("{role:?}"))
            .env("SURVIVAL_BASE", base)
            .env("RUST_BACKTRACE", "0")
            .env_remove("SURVIVAL_PLAN")
            .env_remove("SURVIVAL_SEED")
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said);
        if let Some(faults) = faults {
            command.envs(faults.env());
        }
        let process = command.spawn().map_err(|e| format!("starting a {role:?}: {e}"))?;
        Ok(Self { process, role, base: base.to_owned() })
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<Ended, String> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().map_err(|e| e.to_string())? {
                return Ok(Ended { status, said: self.said() });
            }
            if started.elapsed() > DEADLINE {
                return Err(self.hung());
            }
            sleep(POLL);
        }
    }

    fn said(&self) -> String {
        fs::read(said(&self.base))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// What is told of one that does not end.
    fn hung(&self) -> String {
        let notes = fs::read_to_string(writer::notes(&self.base)).unwrap_or_default();
        format!(
            "the {:?} has not ended after {DEADLINE:?}; it noted last: {:?}\n{}\n{}",
            self.role,
            notes.lines().last(),
            self.said(),
            stacks(self.process.id())
        )
    }

    /// Waits for the report of a reader.
    pub fn report(self) -> Result<String, String> {
        let path = self.base.join("report");
        let ended = self.wait()?;
        let report = fs::read_to_string(path).unwrap_or_default();
        match report.strip_prefix("good\n") {
            Some(report) if ended.success() => Ok(report.to_owned()),
            _ => Err(format!("it cannot be read: {report} {ended}")),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Where a process's standard error goes.
fn said(base: &Path) -> PathBuf {
    base.join("said")
}

impl Ended {
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// A panic of a storage thread ends the process: replication would not notice otherwise.
    pub fn aborted_by_design(&self) -> bool {
        self.status.signal() == Some(6) // SIGABRT
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.said.trim_end())
    }
}

/// A directory for the files of a run: in memory, for opening a database syncs a good deal and none of that is of
/// interest.
pub fn base() -> Result<tempfile::TempDir, String> {
    keystead_chaos::scratch::in_memory("survival-").map_err(|e| e.to_string())
}

/// Makes a base directory and the faults of its writer, with a trace of what it watches.
pub fn watched(base: &Path) -> Result<Faults, String> {
    fs::create_dir_all(base.join("watched")).map_err(|e| e.to_string())?;
    Faults::new(&base.join("faults")).map_err(|e| e.to_string())
}

/// What the writer noted.
pub fn notes(base: &Path) -> Result<Notes, String> {
    let text = fs::read_to_string(writer::notes(base)).map_err(|e| format!("notes: {e}"))?;
    Ok(Notes::parse(&text))
}

/// The other side: what the process does.
pub fn play() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(role) = variable("SURVIVAL_ROLE") else { return };
    let base = PathBuf::from(variable("SURVIVAL_BASE").expect("given with the role"));
    let plan = variable("SURVIVAL_PLAN").map(|text| Plan::parse(&text));
    let seed = variable("SURVIVAL_SEED").and_then(|seed| seed.parse().ok()).unwrap_or(0);
    match (role.as_str(), plan) {
        ("Writer", None) => Writer::new(&base, Script::random(seed, STEPS)).run(),
        ("Writer", Some(plan)) => {
            let faults = Faults::new(&base.join("faults")).expect("faults");
            let (script, before) = Script::before_fault(&plan.step);
            Writer::new(&base, script).run_into(&faults, &plan, before);
        }
        (_, plan) => {
            let script =
                plan.map_or_else(|| Script::random(seed, STEPS), |plan| Script::before_fault(&plan.step).0);
            let report = match reader::report(&base, &script, variable("SURVIVAL_AGAIN").is_some()) {
                Ok(report) => format!("good\n{report}"),
                Err(why) => format!("bad\n{why}"),
            };
            fs::write(base.join("report"), report).expect("the report can be written");
        }
    }
}

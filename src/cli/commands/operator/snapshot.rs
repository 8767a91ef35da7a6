//! `operator raft snapshot save`, `inspect` and `verify`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use zeroize::Zeroizing;

use super::raft::expect;
use crate::backup::{self, Backup, BackupError, Contents, KeyRecords};
use crate::barrier::Barrier;
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::ui::Ui;
use crate::cli::{Invocation, Outcome};
use crate::core::{time::rfc3339, txn::kind};
use crate::seal::{SealConfig, Share};
use crate::secret::RootKey;

const PATH: &str = "sys/storage/raft/snapshot";

pub const VERIFY_FLAGS: &[Flag] = &[Flag::new(
    "deep",
    Kind::Bool,
    "Open everything with unseal shares, which are asked for, given behind FILE, or (-) read from the standard input.",
)];

/// How far something has come, said now and then.
pub struct Progress {
    what: &'static str,
    said: Instant,
}

impl Progress {
    pub fn of(what: &'static str) -> Self {
        Self { what, said: Instant::now() }
    }

    pub fn at(&mut self, ui: &mut Ui<'_>, count: u64, unit: &str) {
        const OFTEN: Duration = Duration::from_millis(200);
        if self.said.elapsed() >= OFTEN {
            self.said = Instant::now();
            let count = if unit == "MiB" {
                format!("{:.1}", count as f64 / f64::from(1 << 20))
            } else {
                count.to_string()
            };
            ui.progress(&format!("{} {count} {unit}", self.what));
        }
    }
}

/// A file under another name, until it is whole.
struct Unfinished {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    done: bool,
}

impl Unfinished {
    fn create(path: &Path) -> io::Result<Self> {
        let mut name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?.to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        Ok(Self { file, temporary, path: path.to_owned(), done: false })
    }

    /// Gives it its name, once it is on the disk.
    fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.done = true;
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            // What is left of it is useless either way.
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}

pub fn save(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[1], "1")?;
    let path = PathBuf::from(invocation.args[0].trim());
    let session = invocation.session()?;
    let unwritable =
        |error: &dyn std::fmt::Display| format!("Error opening snapshot file {}: {error}", path.display());
    let mut file = match Unfinished::create(&path) {
        Ok(file) => file,
        Err(error) => {
            invocation.ui.error(&unwritable(&error));
            return Err(2);
        }
    };
    let (mut progress, mut bytes) = (Progress::of("Saved"), 0);
    let ui = &mut invocation.ui;
    let saved = session.download(PATH, |piece| {
        file.file.write_all(piece)?;
        bytes += piece.len() as u64;
        progress.at(ui, bytes, "MiB");
        Ok(())
    });
    ui.progress("");
    saved.map_err(|error| invocation.refused("Error taking the snapshot", &error))?;
    file.finish().map_err(|error| {
        invocation.ui.error(&format!("Error writing snapshot file {}: {error}", path.display()));
        2
    })?;
    Ok(0)
}

/// Reads a file to its end; what it holds goes to `sink`.
fn read(
    invocation: &mut Invocation<'_, '_>,
    what: &'static str,
    mut sink: impl FnMut(&keystead_storage::SnapshotItem) -> Result<(), BackupError>,
) -> Result<Backup, i32> {
    let path = invocation.args[0].trim().to_owned();
    let file = File::open(&path).map_err(|error| {
        invocation.ui.error(&format!("Error opening snapshot file {path}: {error}"));
        2
    })?;
    let (mut progress, mut rows) = (Progress::of(what), 0);
    let ui = &mut invocation.ui;
    let read = backup::read(file, |item| {
        rows += 1;
        progress.at(ui, rows, "rows");
        sink(&item)
    });
    ui.progress("");
    read.map_err(|error| {
        invocation.ui.error(&format!("Error reading snapshot file {path}: {error}"));
        2
    })
}

/// What an archive says, as rows of a table and as a document have it.
fn facts(backup: &Backup, config: &SealConfig) -> Vec<(&'static str, &'static str, Value)> {
    let (meta, ours) = (&backup.meta, &backup.meta.keystead);
    let set = config.shamir().map(|(_, set)| set);
    let opened_by = match set {
        Some(set) => format!("{} of {} shares", set.threshold, set.shares),
        None => "its seals".to_owned(),
    };
    vec![
        ("ID", "id", meta.id.as_str().into()),
        ("Size", "size", meta.size.into()),
        ("Index", "index", meta.index.into()),
        ("Term", "term", meta.term.into()),
        ("Version", "version", meta.version.into()),
        ("Created", "created", rfc3339(ours.created_ms).into()),
        ("Node", "node_id", ours.node_id.as_str().into()),
        ("Cluster Name", "cluster_name", ours.cluster_name.as_str().into()),
        ("Cluster ID", "cluster_id", ours.cluster_id.as_str().into()),
        ("Vault ID", "vault_id", ours.vault_id.as_str().into()),
        ("Root Generation", "root_generation", ours.root_generation.into()),
        ("Opened By", "opened_by", opened_by.into()),
        ("Rows", "rows", ours.rows.into()),
        ("State Digest", "digest", ours.digest.as_str().into()),
    ]
}

fn print(invocation: &mut Invocation<'_, '_>, facts: Vec<(&'static str, &'static str, Value)>) -> i32 {
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        return output::print(
            ui,
            format,
            Document::object(facts.into_iter().map(|(_, key, value)| (key, value))),
        );
    }
    ui.output(&output::key_value_rows(facts.into_iter().map(|(name, _, value)| (name, output::go(&value)))));
    0
}

pub fn inspect(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[1], "1")?;
    let (backup, keys) = keys_of(invocation)?;
    let config = config_of(invocation, &keys)?;
    Ok(print(invocation, facts(&backup, &config)))
}

pub fn verify(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let deep = invocation.flags.bool("deep");
    if invocation.args.is_empty() || (!deep && invocation.args.len() > 1) {
        expect(invocation, &[1], "1")?;
    }
    let (backup, keys) = keys_of(invocation)?;
    let config = config_of(invocation, &keys)?;
    let mut facts = facts(&backup, &config);
    facts.push(("Whole", "whole", true.into()));
    if !deep {
        facts.push(("Proven", "proven", false.into()));
        let code = print(invocation, facts);
        invocation.ui.warn(
            "Nothing is missing or damaged. Whether somebody made it up on purpose only its keys can tell: see -deep.",
        );
        return Ok(code);
    }
    let root = root_of(invocation, &config)?;
    let barrier = keys.open(&backup, &root).map_err(|error| invocation.fail(&error.to_string()).max(2))?;
    let contents = open_all(invocation, &barrier)?;
    facts.push(("Proven", "proven", true.into()));
    facts.extend(counts(&contents));
    Ok(print(invocation, facts))
}

fn counts(contents: &Contents) -> Vec<(&'static str, &'static str, Value)> {
    let secrets = contents.of(kind::KV1) + contents.of(kind::KV2_VERSION);
    vec![
        ("Records Opened", "records", contents.records().into()),
        ("Secret Versions", "secret_versions", secrets.into()),
        ("Tokens", "tokens", contents.of(kind::TOKEN).into()),
        ("Answers", "answers", contents.requests.into()),
    ]
}

pub fn keys_of(invocation: &mut Invocation<'_, '_>) -> Result<(Backup, KeyRecords), i32> {
    let mut keys = KeyRecords::default();
    let backup = read(invocation, "Read", |item| {
        keys.take(item);
        Ok(())
    })?;
    Ok((backup, keys))
}

pub fn config_of(invocation: &mut Invocation<'_, '_>, keys: &KeyRecords) -> Result<SealConfig, i32> {
    keys.seal_config().map_err(|error| invocation.fail(&error.to_string()).max(2))
}

fn open_all(invocation: &mut Invocation<'_, '_>, barrier: &Barrier) -> Result<Contents, i32> {
    let mut contents = Contents::default();
    read(invocation, "Opened", |item| backup::check(barrier, item, &mut contents))?;
    Ok(contents)
}

/// The root key, from the shares that are given behind the file, on the standard input, or on the terminal.
pub fn root_of(invocation: &mut Invocation<'_, '_>, config: &SealConfig) -> Result<RootKey, i32> {
    let Some(threshold) = config.shamir().map(|(_, set)| usize::from(set.threshold)) else {
        return Err(invocation.fail(
            "This vault is opened by its seals and has no break-glass shares, so that no shares open its snapshots: \
             a node that its seals open can test one, see sys/storage/raft/snapshot-auto",
        ));
    };
    let mut given = given(invocation)?;
    let ask = given.is_empty();
    let mut points = Vec::new();
    while points.len() < threshold {
        let text = match ask {
            true => asked(invocation, points.len() + 1, threshold)?,
            false if given.is_empty() => {
                let text =
                    format!("{} of {threshold} shares were given; give the rest as well", points.len());
                return Err(invocation.fail(&text));
            }
            false => given.remove(0),
        };
        let share = Share::parse(text.trim()).map_err(|error| error.to_string());
        let share = share.and_then(|share| match config.check_share(&share) {
            Ok(()) => Ok(share),
            Err(rejection) => Err(rejection.to_string()),
        });
        let share = share.map_err(|why| invocation.fail(&format!("A share was refused: {why}")).max(2))?;
        if points.iter().all(|point: &crate::seal::SharePoint| point.x != share.point.x) {
            points.push(share.point);
        }
    }
    config.unwrap_root(&points).map_err(|error| invocation.fail(&error.to_string()).max(2))
}

fn given(invocation: &mut Invocation<'_, '_>) -> Result<Vec<Zeroizing<String>>, i32> {
    let given = invocation.args.split_off(1);
    let given: Vec<Zeroizing<String>> = given.into_iter().map(Zeroizing::new).collect();
    if !matches!(given.as_slice(), [only] if only.as_str() == "-") {
        return Ok(given);
    }
    let input = invocation.ui.read_input();
    let input =
        input.map_err(|error| invocation.fail(&format!("Failed to read the shares from stdin: {error}")))?;
    let text = std::str::from_utf8(&input).map_err(|_| invocation.fail("The shares on stdin are no text"))?;
    Ok(text.split_whitespace().map(|share| Zeroizing::new(share.to_owned())).collect())
}

fn asked(
    invocation: &mut Invocation<'_, '_>,
    number: usize,
    threshold: usize,
) -> Result<Zeroizing<String>, i32> {
    if invocation.flags.bool("non-interactive") {
        return Err(invocation.fail("Refusing to ask for shares with -non-interactive set"));
    }
    let question = format!("Unseal Key {number} of {threshold} of the snapshot (will be hidden): ");
    let answer = invocation.ui.ask_hidden(&question, false);
    answer.map_err(|error| {
        invocation.fail(&format!(
            "The shares cannot be asked for ({error}): give them behind the file, or - and on stdin"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.snap");
        let mut unfinished = Unfinished::create(&path).unwrap();
        unfinished.file.write_all(b"half").unwrap();
        drop(unfinished);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        Unfinished::create(&path).unwrap().finish().unwrap();
        assert!(path.is_file() && std::fs::read_dir(dir.path()).unwrap().count() == 1);
        assert!(Unfinished::create(dir.path()).is_err());
    }
}

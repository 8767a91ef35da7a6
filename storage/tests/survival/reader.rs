//! The process that opens what is left and reports it, then goes on from there and opens it once more.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, sync::mpsc};

use keystead_storage::{
    DataDir, FolderKey, RaftLog, SealedState, SegmentLog, SnapshotFile, StorageError, TreeState,
};

use crate::{
    model::{Applied, Contents},
    script::{Script, log_id, request, root, vote},
    writer,
};

type Outcome<T> = Result<T, String>;

/// Opens the data directory below `base`, and once more if that is wanted, and gives a report: a line `word value...` for everything that was found.
pub fn report(base: &Path, script: &Script, again: bool) -> Outcome<String> {
    let told = |what: &str, error: StorageError| format!("{what}: {error}");
    let mut out = String::new();
    let dir = DataDir::open(writer::data(base)).map_err(|e| told("data directory", e))?;
    let (log, state) = keystead_storage::open(&dir).map_err(|e| told("log and state", e))?;
    let vote = log.vote().map_or(0, |vote| vote.term);
    let (floor, strays, last) = read_log(&log, script)?;
    let applied = state.applied().log_id.map_or(0, |id| id.index);
    let file = fs::read_to_string(writer::file(base)).unwrap_or_else(|_| "0".to_owned());
    let _ = writeln!(out, "vote {vote}\nlog {floor} {strays} {last}\napplied {applied}\nfile {file}");
    check_state(&state, script, applied)?;
    let spooled = fs::read_dir(dir.snapshots()).map_err(|e| e.to_string())?.flatten();
    for entry in spooled {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tmp") {
            continue;
        }
        let file = SnapshotFile::open(&entry.path()).map_err(|e| told("snapshot", e))?;
        for n in 0..file.manifest().chunks {
            file.read_chunk(n).map_err(|e| told("snapshot", e))?;
        }
        let _ = writeln!(out, "snapshot {name}");
    }
    go_on(&log, &state, script, applied).map_err(|why| format!("going on: {why}"))?;
    drop((log, state));
    if again {
        open_again(&dir, script, applied + 3).map_err(|why| format!("opened again: {why}"))?;
    }
    Ok(out)
}

/// Floor of the log, the last entry before strays, the last entry.
fn read_log(log: &SegmentLog, script: &Script) -> Outcome<(u64, u64, u64)> {
    let bounds = log.bounds();
    let floor = bounds.purged.map_or(0, |id| id.index);
    let last = bounds.last.map_or(0, |id| id.index);
    let (mut next, mut before_strays) = (floor + 1, floor);
    while next <= last {
        let records = log.read(next, last + 1, 1 << 20).map_err(|e| format!("reading the log: {e}"))?;
        if records.is_empty() {
            return Err(format!("log entry {next} of {last} is not there"));
        }
        for record in records {
            let index = next;
            next += 1;
            if record == script.record(index, false) && before_strays + 1 == index {
                before_strays = index;
            } else if record != script.record(index, true) {
                let (id, size) = (record.log_id, record.payload.len());
                return Err(format!("log entry {index} is not what was appended: {id}, {size} bytes"));
            }
        }
    }
    Ok((floor, before_strays, last))
}

/// The state must be exactly what the entries up to `applied` make.
fn check_state(state: &TreeState, script: &Script, applied: u64) -> Outcome<()> {
    let expected = Applied::at(script, applied);
    if state.applied().membership.map(|(id, _)| id.index) != expected.membership {
        return Err(format!("the membership at {applied} is {:?}", state.applied().membership));
    }
    let mut found = Contents::new();
    walk(state, &root(), "", &mut found).map_err(|e| format!("reading the state: {e}"))?;
    if let Some(difference) = difference(&found, &expected.contents) {
        return Err(format!("the state at {applied} differs: {difference}"));
    }
    for index in applied.saturating_sub(200)..applied + 100 {
        let remembered = state.request(request(index)).map(|(version, _)| version.index);
        let due = expected.requests.contains(&index).then_some(index);
        if remembered != due {
            return Err(format!("the request of entry {index} is {remembered:?} at {applied}"));
        }
    }
    let cut = state.cut().map_err(|e| e.to_string())?;
    cut.verify().map_err(|e| format!("the digest at {applied}: {e}"))?;
    Ok(())
}

fn difference(found: &Contents, expected: &Contents) -> Option<String> {
    let paths: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let differs = paths.into_iter().find(|path| found.get(*path) != expected.get(*path))?;
    Some(format!("{differs} is {:?}, due is {:?}", found.get(differs), expected.get(differs)))
}

fn walk(state: &TreeState, folder: &FolderKey, path: &str, out: &mut Contents) -> Result<(), StorageError> {
    for child in state.children(folder, None, usize::MAX)? {
        let name = format!("{path}{}", String::from_utf8_lossy(&child.segment));
        if child.folder {
            let below = folder.folder(&child.segment).expect("it was listed");
            walk(state, &below, &format!("{name}/"), out)?;
            continue;
        }
        let key = folder.child(&child.segment).expect("it was listed");
        let record = state.get(&key)?;
        let seen = record.map(|record| (record.version.index, record.value));
        out.insert(name, seen.unwrap_or_default());
    }
    Ok(())
}

/// What is left must also bear to be written to: strays are cut off, and three entries follow.
fn go_on(log: &SegmentLog, state: &TreeState, script: &Script, applied: u64) -> Outcome<()> {
    let told = |error: StorageError| error.to_string();
    let last = log.bounds().last.map_or(0, |id| id.index);
    if last < applied {
        wait(|done| log.purge(log_id(applied), done)).map_err(told)?;
    } else {
        wait(|done| log.truncate_after((applied > 0).then_some(applied), done)).map_err(told)?;
    }
    let records = (applied + 1..=applied + 3).map(|index| script.record(index, false)).collect();
    wait(|done| log.append(records, done)).map_err(told)?;
    wait(|done| log.save_vote(vote(1_000_000), done)).map_err(told)?;
    state.apply((applied + 1..=applied + 3).map(|index| script.entry(index)).collect()).map_err(told)?;
    wait(|done| state.flush(done)).map_err(told)
}

/// What was written then is there after another start.
fn open_again(dir: &DataDir, script: &Script, until: u64) -> Outcome<()> {
    let (log, state) = keystead_storage::open(dir).map_err(|e| e.to_string())?;
    let (_, before_strays, last) = read_log(&log, script)?;
    let reached = state.applied().log_id.map_or(0, |id| id.index);
    if (before_strays, last, reached, log.vote()) != (until, until, until, Some(vote(1_000_000))) {
        return Err(format!("after {until} the log is at {last}, the state at {reached}, {:?}", log.vote()));
    }
    check_state(&state, script, until)
}

fn wait(operation: impl FnOnce(keystead_storage::Done)) -> Result<(), StorageError> {
    let (sender, receiver) = mpsc::channel();
    operation(Box::new(move |result| drop(sender.send(result))));
    receiver.recv().expect("done is called")
}

/// A report by its words; the last line of a kind counts, snapshots are all there.
pub fn parse(report: &str) -> (BTreeMap<&str, Vec<u64>>, Vec<u64>) {
    let mut words = BTreeMap::new();
    let mut snapshots = Vec::new();
    for line in report.lines() {
        let mut parts = line.split(' ');
        let word = parts.next().unwrap_or_default();
        let numbers: Vec<u64> = parts.map(|part| part.parse().unwrap_or(u64::MAX)).collect();
        match word {
            "snapshot" => snapshots.extend(numbers),
            _ => drop(words.insert(word, numbers)),
        }
    }
    (words, snapshots)
}

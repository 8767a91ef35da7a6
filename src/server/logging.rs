//! The process's log: text or JSON on standard error, and in a file if one is configured.
//!
//! A line is handed to a thread that writes it. When nobody reads the other end of a pipe, lines are dropped and
//! counted; no request and no election ever waits for a log.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    sync::{
        OnceLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
};

use parking_lot::Mutex;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, Registry, filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _, reload,
    util::SubscriberInitExt as _,
};

use super::log_file::LogFile;
use crate::config::{LogFormat, LogLevel};

/// Lines waiting to be written; more are dropped.
const QUEUE_LINES: usize = 8192;

/// What the writing thread is sent.
enum Message {
    Line(Vec<u8>),
    /// The file may have been moved away: open it again.
    Reopen,
}

/// Where lines go: to the writing thread, or nowhere when it is behind.
#[derive(Clone)]
struct Lines(SyncSender<Message>);

impl Lines {
    fn start(mut file: Option<LogFile>) -> io::Result<Self> {
        let (tx, rx) = sync_channel(QUEUE_LINES);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            // There is nowhere to report that the log itself cannot be written.
            while let Ok(message) = rx.recv() {
                match message {
                    Message::Line(line) => {
                        drop(io::stderr().write_all(&line));
                        if let Some(file) = &mut file {
                            drop(file.write(&line));
                        }
                    }
                    Message::Reopen => {
                        if let Some(file) = &mut file {
                            drop(file.reopen());
                        }
                    }
                }
            }
        })?;
        Ok(Self(tx))
    }
}

/// One event's line.
struct Line {
    lines: Lines,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let line = std::mem::take(&mut self.bytes);
        if let Err(TrySendError::Full(_)) = self.lines.0.try_send(Message::Line(line)) {
            metrics::counter!("keystead_log_lines_dropped").increment(1);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { lines: self.clone(), bytes: Vec::with_capacity(256) }
    }
}

/// The parts of the log that have a level of their own: this program's crates.
const PARTS: [&str; 4] = ["keystead", "keystead_raft", "keystead_storage", "keystead_tls"];

/// Changes levels while the process runs.
struct Control {
    handle: reload::Handle<Targets, Registry>,
    lines: Lines,
    levels: Mutex<Levels>,
}

struct Levels {
    configured: LogLevel,
    of: BTreeMap<&'static str, LogLevel>,
}

static CONTROL: OnceLock<Control> = OnceLock::new();

impl Levels {
    fn new(configured: LogLevel) -> Self {
        Self { configured, of: PARTS.into_iter().map(|part| (part, configured)).collect() }
    }

    fn set(&mut self, part: Option<&str>, level: LogLevel) -> Result<(), String> {
        match part {
            None => self.of.values_mut().for_each(|of| *of = level),
            Some(part) => *self.of.get_mut(part).ok_or("there is no such part of the log")? = level,
        }
        Ok(())
    }

    fn filter(&self) -> Targets {
        // Libraries speak only where something is wrong; the consensus library warns of every missed heartbeat
        // and would fill a disk while a peer is down.
        // Of the levels the least severe is the smallest.
        let all = filter_of(self.of.values().copied().min().unwrap_or(self.configured));
        let library = if all >= LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::OFF };
        Targets::new()
            .with_default(LevelFilter::WARN.min(all))
            .with_target("openraft", library)
            .with_targets(self.of.iter().map(|(part, level)| (*part, filter_of(*level))))
    }
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    }
}

/// The parts of the log with the names of their levels; none before the log has been installed.
pub fn levels() -> Vec<(String, String)> {
    let Some(control) = CONTROL.get() else { return Vec::new() };
    let levels = control.levels.lock();
    levels.of.iter().map(|(part, level)| ((*part).to_owned(), level.as_str().to_owned())).collect()
}

/// Changes the level of one part or of all; `None` takes it back to the configured one.
///
/// # Errors
/// When there is no such part or level, or no log.
pub fn set_level(part: Option<&str>, level: Option<&str>) -> Result<(), String> {
    let control = CONTROL.get().ok_or("the log has not been installed")?;
    let mut levels = control.levels.lock();
    let level = match level {
        Some(text) => LogLevel::parse(text)?,
        None => levels.configured,
    };
    levels.set(part, level)?;
    control.handle.reload(levels.filter()).map_err(|error| error.to_string())
}

/// Opens the log's file again, which may have been moved away.
pub fn reopen() {
    if let Some(control) = CONTROL.get() {
        // A queue that is full is written by a thread that will find the file again at the next signal.
        drop(control.lines.0.try_send(Message::Reopen));
    }
}

/// Makes another level the configured one, and the present one of every part.
///
/// # Errors
/// When there is no log.
pub fn reconfigure(level: LogLevel) -> Result<(), String> {
    if let Some(control) = CONTROL.get() {
        control.levels.lock().configured = level;
    }
    set_level(None, None)
}

/// Installs the process's log.
///
/// # Errors
/// When the writing thread cannot be started or another log has been installed.
pub fn install(level: LogLevel, format: LogFormat, file: Option<LogFile>) -> io::Result<()> {
    let lines = Lines::start(file)?;
    let queue = lines.clone();
    let levels = Levels::new(level);
    let (filter, handle) = reload::Layer::new(levels.filter());
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(false);
    let layer = match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => layer.boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(io::Error::other)?;
    // The registry takes one log for the life of the process, so there is no second control to lose.
    drop(CONTROL.set(Control { handle, lines: queue, levels: Mutex::new(levels) }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_nobody_reads_drops_lines_and_does_not_block() {
        let (tx, _rx) = sync_channel(2);
        let lines = Lines(tx);
        for _ in 0..100 {
            let mut line = lines.make_writer();
            line.write_all(b"x\n").unwrap();
        }
    }

    #[test]
    fn levels_are_changed_for_one_part_or_all() {
        let mut levels = Levels::new(LogLevel::Info);
        assert!(!levels.filter().would_enable("keystead_raft", &tracing::Level::DEBUG));
        levels.set(Some("keystead_raft"), LogLevel::Debug).unwrap();
        assert!(levels.filter().would_enable("keystead_raft", &tracing::Level::DEBUG));
        assert!(!levels.filter().would_enable("keystead_tls", &tracing::Level::DEBUG));
        assert!(!levels.filter().would_enable("openraft", &tracing::Level::ERROR));
        levels.set(None, LogLevel::Error).unwrap();
        assert!(!levels.filter().would_enable("keystead", &tracing::Level::WARN));
        assert!(levels.set(Some("nosuch"), LogLevel::Info).is_err());
    }
}

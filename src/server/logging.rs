//! The process's log: text or JSON on standard error, and in a file if one is configured.
//!
//! A line is handed to a thread that writes it. When nobody reads the other end of a pipe, lines are dropped and
//! counted; no request and no election ever waits for a log.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, LogLevel};

/// Lines waiting to be written; more are dropped.
const QUEUE_LINES: usize = 8192;

/// Where lines go: to the writing thread, or nowhere when it is behind.
#[derive(Clone)]
struct Lines(SyncSender<Vec<u8>>);

impl Lines {
    fn start(file: Option<&Path>) -> io::Result<Self> {
        let mut file = match file {
            Some(path) => Some(OpenOptions::new().create(true).append(true).open(path)?),
            None => None,
        };
        let (tx, rx) = sync_channel::<Vec<u8>>(QUEUE_LINES);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            while let Ok(line) = rx.recv() {
                // There is nowhere to report that the log itself cannot be written.
                drop(io::stderr().write_all(&line));
                if let Some(file) = &mut file {
                    drop(file.write_all(&line));
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
        if let Err(TrySendError::Full(_)) = self.lines.0.try_send(line) {
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

/// Installs the process's log.
///
/// # Errors
/// When the log file cannot be opened or another log has been installed.
pub fn install(level: LogLevel, format: LogFormat, file: Option<&Path>) -> io::Result<()> {
    let lines = Lines::start(file)?;
    let level = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    // Libraries speak only where something is wrong; the consensus library warns of every missed heartbeat
    // and would fill a disk while a peer is down.
    let ours = ["keystead", "keystead_raft", "keystead_storage", "keystead_tls"];
    let filter = Targets::new()
        .with_default(LevelFilter::WARN.min(level))
        .with_target(
            "openraft",
            if level >= LevelFilter::TRACE { LevelFilter::DEBUG } else { LevelFilter::OFF },
        )
        .with_targets(ours.map(|target| (target, level)));
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(false);
    let layer = match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => layer.boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().map_err(io::Error::other)
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
}

//! The server process: configuration to listeners, signals to shutdown.

mod certificates;
mod cluster_certificate;
mod dev;
pub mod diagnose;
pub mod enrol;
mod listeners;
mod log_file;
mod logging;
pub mod rebuild;
pub mod recover;
mod sanitized;
mod start;
#[cfg(test)]
mod start_tests;
mod stop;

use std::{
    io::Write as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use self::log_file::LogFile;
pub use crate::cli::ServerArgs;
use crate::{
    config::{self, LogFormat, LogLevel, ServerConfig},
    secret,
};

static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();

/// Every metric of this process in Prometheus' text format; empty before the server has started.
pub fn metrics_text() -> String {
    METRICS.get().map(PrometheusHandle::render).unwrap_or_default()
}

/// The parts of this process's log and the names of their levels.
pub fn log_levels() -> Vec<(String, String)> {
    logging::levels()
}

/// Changes the level of one part of the log or of all; `None` takes it back to the configured one.
///
/// # Errors
/// When there is no such part or level, or no log.
pub fn set_log_level(part: Option<&str>, level: Option<&str>) -> Result<(), String> {
    logging::set_level(part, level)
}

/// Why a server does not start, or how it ended badly. The text is for the operator and names the remedy.
#[derive(Debug)]
pub struct Failure(pub String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Runs a server until it is told to stop, and returns the process's exit code.
pub fn run(args: ServerArgs) -> i32 {
    let outcome = runtime().and_then(|runtime| {
        let outcome = runtime.block_on(async {
            match (args.dev, args.dev_nodes) {
                (true, 1) => dev::single(&args).await,
                (true, _) => dev::cluster(&args).await,
                (false, _) => configured(&args).await,
            }
        });
        // What still runs has had its time.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        outcome
    });
    match outcome {
        Ok(()) => 0,
        Err(Failure(text)) => {
            // Whoever reads standard error may have gone; the exit code says the same.
            drop(writeln!(std::io::stderr(), "{text}"));
            1
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().thread_name("api").enable_all().build()?)
}

/// A server by configuration files.
async fn configured(args: &ServerArgs) -> Result<(), Failure> {
    let config = config::load_with_env(&args.config, |name| std::env::var(name).ok())
        .map_err(|e| Failure(format!("error loading configuration: {e}")))?;
    prepare_process(args, &config)?;
    for warning in &config.warnings {
        tracing::warn!(key = warning.key, "{}", warning.text);
    }
    let server = start::Server::start(&config, start::Dev::of_environment()).await?;
    say(&server.banner(&config));
    say("==> Keystead server started! Log data will stream in below:\n");
    server.run(|| reload(args)).await
}

/// Takes over what can change while the server runs: the level of the log, and the log's file, which whoever
/// rotates logs may have moved away. Everything else needs a restart.
fn reload(args: &ServerArgs) {
    logging::reopen();
    match config::load_with_env(&args.config, |name| std::env::var(name).ok()) {
        Ok(config) if args.log_level.is_none() => {
            if let Err(error) = logging::reconfigure(config.log_level) {
                tracing::error!(error, "the level of the log stays as it is");
            }
        }
        // The command line goes over the file.
        Ok(_) => {}
        Err(error) => {
            tracing::error!(%error, "the configuration cannot be read; nothing of it is taken over")
        }
    }
}

/// What is done once per process: log, metrics, memory.
fn prepare_process(args: &ServerArgs, config: &ServerConfig) -> Result<(), Failure> {
    let level = match &args.log_level {
        Some(text) => LogLevel::parse(text).map_err(Failure)?,
        None => config.log_level,
    };
    let format = match &args.log_format {
        Some(text) => LogFormat::parse(text).map_err(Failure)?,
        None => config.log_format,
    };
    install_log(level, format, config)?;
    std::panic::set_hook(Box::new(|panic| {
        if keystead_storage::expects_panic() {
            return;
        }
        tracing::error!(place = place_of(panic), "a task panicked");
        metrics::counter!("keystead_panics").increment(1);
    }));
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    secret::set_mlock(!config.disable_mlock);
    if !config.disable_mlock && !secret::can_lock() {
        tracing::warn!(
            "memory cannot be locked: keys may reach swap; allow it (LimitMEMLOCK=infinity in the systemd unit, or CAP_IPC_LOCK), or set disable_mlock where swap is off"
        );
    }
    if let Err(error) = secret::disable_core_dumps() {
        tracing::warn!(%error, "core dumps cannot be switched off: a crash may write keys to the disk");
    }
    let handle = PrometheusBuilder::new().install_recorder()?;
    keep_histograms_small(handle.clone())?;
    // A second server in one process would be a test's, and shares the first one's metrics.
    drop(METRICS.set(handle));
    Ok(())
}

/// A histogram keeps every sample until somebody asks for the metrics; where nobody does, this drains them.
fn keep_histograms_small(handle: PrometheusHandle) -> Result<(), Failure> {
    const EVERY: Duration = Duration::from_secs(5);
    let drain = move || {
        loop {
            std::thread::sleep(EVERY);
            handle.run_upkeep();
        }
    };
    let thread = std::thread::Builder::new().name("metrics".to_owned()).spawn(drain);
    thread.map(drop).map_err(|error| Failure(format!("the metrics' thread does not start: {error}")))
}

/// What is logged of a panic. Its message may hold what was being worked on; its place is enough to find it.
fn place_of(panic: &std::panic::PanicHookInfo<'_>) -> String {
    panic.location().map(ToString::to_string).unwrap_or_default()
}

/// Raises the limit on open files as far as this process may: the soft limit is low for the sake of programs that
/// use `select`, and each client's connection is a file.
fn raise_open_files() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    }
    Ok(())
}

fn install_log(level: LogLevel, format: LogFormat, config: &ServerConfig) -> Result<(), Failure> {
    let file = config.log_file.as_deref().map(|path| LogFile::open(path, config.log_rotation.clone()));
    let file = file.transpose().map_err(|e| Failure(format!("the log cannot be opened: log_file: {e}")))?;
    logging::install(level, format, file).map_err(|e| Failure(format!("the log cannot be opened: {e}")))
}

/// Writes to standard output; a closed pipe is not a reason to stop a server.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()));
}

/// The API port's certificates as the listener asks for them.
fn tls_source(tls: &Arc<keystead_tls::ApiTls>) -> crate::api::TlsSource {
    let tls = tls.clone();
    Arc::new(move || tls.server_config())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_10_of_a_panic_its_place_is_logged_and_not_its_message() {
        let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let (own, seen) = (std::thread::current().id(), told.clone());
        // Other tests go on panicking as they used to.
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| match std::thread::current().id() == own {
            true => seen.lock().push(place_of(panic)),
            false => former(panic),
        }));
        let value = "canary-panic-3a6d";
        let panicked = std::panic::catch_unwind(|| panic!("cannot work with {value}"));
        assert!(panicked.is_err());
        let told = told.lock().clone();
        let [place] = &told[..] else { panic!("{told:?}") };
        assert!(place.contains("src/server/mod.rs:") && !place.contains("canary"), "{place}");
    }
}

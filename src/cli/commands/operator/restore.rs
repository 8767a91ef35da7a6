//! `operator raft snapshot restore`.

use std::{
    fs::File,
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::raft::expect;
use super::snapshot::{config_of, keys_of, root_of};
use crate::api::ROOT_HEADER;
use crate::cli::flags::{Flag, Kind};
use crate::cli::{Invocation, Outcome};

pub const FLAGS: &[Flag] = &[
    Flag::new("force", Kind::Bool, "Do not stop at a snapshot of another vault because it is one."),
    Flag::new(
        "revoke-tokens",
        Kind::Bool,
        "Leave no token valid, those of the snapshot and the present ones.",
    ),
    Flag::new(
        "shares",
        Kind::Bool,
        "Open it with unseal shares of its time, asked for, given behind FILE, or (-) read from the standard input.",
    ),
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let shares = invocation.flags.bool("shares");
    if invocation.args.is_empty() || (!shares && invocation.args.len() > 1) {
        expect(invocation, &[1], "1")?;
    }
    let path = PathBuf::from(invocation.args[0].trim());
    if let Err(error) = File::open(&path) {
        invocation.ui.error(&format!("Error opening snapshot file {}: {error}", path.display()));
        return Err(2);
    }
    let target = match invocation.flags.bool("force") {
        true => "sys/storage/raft/snapshot-force",
        false => "sys/storage/raft/snapshot",
    };
    let query: &[(&str, &str)] = match invocation.flags.bool("revoke-tokens") {
        true => &[("revoke_tokens", "true")],
        false => &[],
    };
    let root = if shares { Some(root_header(invocation)?) } else { None };
    let session = invocation.session()?;
    let answer = session.upload(target, query, &path, root, sent(std::io::stderr().is_terminal()));
    invocation.ui.progress("");
    answer.map_err(|error| invocation.refused("Error installing the snapshot", &error))?;
    Ok(0)
}

/// Says on a terminal how much has been sent, and that the rest is the cluster's work.
fn sent(terminal: bool) -> impl Fn(u64) + Send + Sync + 'static {
    const OFTEN: Duration = Duration::from_millis(200);
    let said = Mutex::new(None::<Instant>);
    move |bytes| {
        let mut said = said.lock();
        if terminal && said.is_none_or(|at| at.elapsed() >= OFTEN) {
            *said = Some(Instant::now());
            let mib = bytes as f64 / f64::from(1 << 20);
            // What cannot be said changes nothing.
            drop(write!(std::io::stderr(), "\r\x1b[KSent {mib:.1} MiB; then every node is brought there"));
        }
    }
}

/// The root key of the snapshot's time, as it is sent: the shares themselves stay here.
fn root_header(invocation: &mut Invocation<'_, '_>) -> Result<(HeaderName, HeaderValue), i32> {
    let (_, keys) = keys_of(invocation)?;
    let config = config_of(invocation, &keys)?;
    let root = root_of(invocation, &config)?;
    let text = Zeroizing::new(STANDARD.encode(root.expose()));
    let mut value = HeaderValue::from_str(&text)
        .map_err(|error| invocation.fail(&format!("The root key cannot be sent: {error}")))?;
    value.set_sensitive(true);
    Ok((HeaderName::from_static(ROOT_HEADER), value))
}

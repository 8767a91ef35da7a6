//! `operator raft snapshot restore`.

use std::{fs::File, path::PathBuf};

use super::raft::expect;
use crate::cli::flags::{Flag, Kind};
use crate::cli::{Invocation, Outcome};

pub const FLAGS: &[Flag] = &[
    Flag::new("force", Kind::Bool, "Do not stop at a snapshot of another vault because it is one."),
    Flag::new(
        "revoke-tokens",
        Kind::Bool,
        "Leave no token valid, those of the snapshot and the present ones.",
    ),
];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    expect(invocation, &[1], "1")?;
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
    let session = invocation.session()?;
    let answer = session.upload(target, query, &path, |_| {});
    answer.map_err(|error| invocation.refused("Error installing the snapshot", &error))?;
    Ok(0)
}

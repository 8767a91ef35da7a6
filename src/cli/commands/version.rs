//! `version`, also as `-v`, `-version`, `--version`.

use crate::cli::{Command, Invocation, Outcome, Program};

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "version",
    synopsis: "Prints the version",
    arguments: "",
    about: "Prints the version of this program, on one line.",
    calls_api: false,
    run: Some(run),
    ..Command::DEFAULT
}];

/// The version of Vault whose API and output this program gives.
pub const VAULT_VERSION: &str = "1.16.3";

/// The commit this was built from, 40 hexadecimal digits as the parsers of the line expect; set by whoever
/// builds a release.
const COMMIT: &str = match option_env!("KEYSTEAD_COMMIT") {
    Some(commit) => commit,
    None => "0000000000000000000000000000000000000000",
};

/// The line that `version` prints. Scripts take its second word; under one of Vault's names they expect a
/// version of Vault there.
pub fn line(program: Program) -> String {
    let (product, version) = match program {
        Program::Keystead => ("Keystead", env!("CARGO_PKG_VERSION")),
        Program::Vault | Program::Bao => ("Vault", VAULT_VERSION),
    };
    format!("{product} v{version} ({COMMIT}), built {}", crate::core::BUILD_DATE)
}

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let line = line(invocation.program);
    invocation.ui.output(&line);
    Ok(0)
}

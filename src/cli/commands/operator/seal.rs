//! `operator seal`.

use crate::cli::Invocation;

pub fn run(invocation: &mut Invocation<'_, '_>) -> i32 {
    try_run(invocation).unwrap_or_else(|code| code)
}

fn try_run(invocation: &mut Invocation<'_, '_>) -> Result<i32, i32> {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    session
        .call("PUT", "sys/seal", &[], None)
        .map_err(|error| invocation.refused("Error sealing", &error))?;
    invocation.ui.output("Success! Vault is sealed.");
    Ok(0)
}

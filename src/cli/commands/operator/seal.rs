//! `operator seal`.

use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    session
        .call("PUT", "sys/seal", &[], None)
        .map_err(|error| invocation.refused("Error sealing", &error))?;
    invocation.ui.output("Success! Vault is sealed.");
    Ok(0)
}

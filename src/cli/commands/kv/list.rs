//! `kv list`.

use super::super::logical::print_list;
use super::mount::Place;
use crate::cli::Invocation;

pub fn run(invocation: &mut Invocation<'_, '_>) -> i32 {
    try_run(invocation).unwrap_or_else(|code| code)
}

fn try_run(invocation: &mut Invocation<'_, '_>) -> Result<i32, i32> {
    // With -mount, no argument means the whole engine.
    if !(invocation.args.is_empty() && invocation.flags.has("mount")) {
        invocation.expect_args(1)?;
    }
    let session = invocation.session()?;
    let place = Place::find(invocation, &session)?;
    let path = place.path("metadata");
    let answer = session.list(&path);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error listing {path}"), &error))?;
    Ok(print_list(invocation, answer, &path))
}

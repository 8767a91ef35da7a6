//! `kv list`.

use super::super::logical::print_list;
use super::mount::Place;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
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

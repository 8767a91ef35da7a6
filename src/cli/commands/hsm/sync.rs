//! `hsm sync`.

use std::time::{Duration, Instant};

use serde_json::json;

use super::wraps::{self, Wrap};
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::{Invocation, Outcome};

/// The flags.
pub const FLAGS: &[Flag] = &[
    Flag::new(
        "prune",
        Kind::Bool,
        "Take out the wraps by seals that no stanza of the leader names: their keys open nothing then.",
    ),
    Flag::new("wait", Kind::Duration, "How long to wait until all wraps agree; 10s by default."),
];

const WAIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);
/// Wraps do not agree.
const DIFFERENT: i32 = 2;

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let body = json!({ "prune": invocation.flags.bool("prune") });
    let deadline = Instant::now() + invocation.flags.duration("wait").unwrap_or(WAIT);
    let session = invocation.session()?;
    let wraps = loop {
        let answer = session.send("PUT", wraps::PATH, Some(&body));
        let answer = answer.map_err(|error| invocation.refused("Error wrapping the root key", &error))?;
        let wraps = wraps::of(answer.as_ref());
        if wraps.iter().all(Wrap::is_settled) || Instant::now() + PAUSE >= deadline {
            break wraps;
        }
        std::thread::sleep(PAUSE);
    };
    let settled = wraps.iter().all(Wrap::is_settled);
    let (ui, format) = invocation.printer();
    let printed = if format == Format::Table {
        let word = if settled {
            "Success! Every seal's newest key wraps the root key"
        } else {
            "Not every wrap agrees"
        };
        ui.output(&format!("{word}\n\n{}", wraps::table(&wraps)));
        0
    } else {
        let seals = wraps.iter().map(|wrap| {
            Document::object([("seal", Document::from(wrap.seal.as_str())), ("wrap", wrap.document())])
        });
        output::print(ui, format, Document::List(seals.collect()))
    };
    Ok(if settled { printed } else { DIFFERENT })
}

//! `path-help`.

use serde_json::Value;

use crate::cli::output::{self, Format};
use crate::cli::{Command, Invocation, Outcome};

use super::logical::trimmed;

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "path-help",
    synopsis: "Says what a path is for",
    arguments: "[options] PATH",
    about: "Prints what the server says of a path, with -format=json as an OpenAPI document.",
    run: Some(run),
    ..Command::DEFAULT
}];

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = trimmed(&invocation.args[0]).to_owned();
    let session = invocation.session()?;
    let answer = session.call("GET", &path, &[("help", "1")], None);
    let answer = answer.map_err(|error| invocation.refused("Error retrieving help", &error))?;
    let Ok(help) = serde_json::from_slice::<Value>(&answer.body) else {
        invocation.ui.error("Error retrieving help: the server's answer is no help text");
        return Err(2);
    };
    let (ui, format) = invocation.printer();
    match format {
        Format::Json => ui.output(&help.get("openapi").unwrap_or(&Value::Null).to_string()),
        Format::Yaml => {
            let document = help.get("openapi").cloned().unwrap_or_default();
            return Ok(output::print(ui, format, document.into()));
        }
        _ => ui.output(help.get("help").and_then(Value::as_str).unwrap_or_default()),
    }
    Ok(0)
}

//! `operator verify-share`.

use serde_json::{Value, json};

use super::{unseal::key, wipe};
use crate::cli::output::{self, Document, Format};
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    if invocation.args.len() > 1 {
        invocation.expect_args(1)?;
    }
    let session = invocation.session()?;
    let body = json!({ "key": key(invocation, "Key Share")?.trim() });
    let answer = session.raw_json("PUT", "sys/verify-share", Some(&body));
    wipe(body);
    let facts = answer.map_err(|error| invocation.refused("Error verifying the share", &error))?;
    let field = |name: &str| facts.get(name).cloned().unwrap_or_default();
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let fields = ["valid", "kind", "number", "n", "t", "generation"];
        return Ok(output::print(ui, format, Document::object(fields.map(|name| (name, field(name))))));
    }
    let text = |value: Value| output::go(&value);
    ui.output(&output::key_value_rows([
        ("Share", "good".to_owned()),
        ("Kind", text(field("kind"))),
        ("Number", format!("{} of {}", text(field("number")), text(field("n")))),
        ("Threshold", text(field("t"))),
        ("Generation", text(field("generation"))),
    ]));
    Ok(0)
}

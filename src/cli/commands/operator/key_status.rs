//! `operator key-status` and `operator rotate`.

use serde_json::{Map, Value};

use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::time::Timestamp;
use crate::cli::{Invocation, Outcome};

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    show(invocation, &session)
}

/// `operator rotate`: the status follows.
pub fn rotate(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.send("PUT", "sys/rotate", None);
    answer.map_err(|error| invocation.refused("Error rotating key", &error))?;
    if invocation.format == Format::Table {
        invocation.ui.output("Success! Rotated key\n");
    }
    show(invocation, &session)
}

fn show(invocation: &mut Invocation<'_, '_>, session: &Session) -> Outcome {
    let answer = session.read("sys/key-status", &[]);
    let answer = answer.map_err(|error| invocation.refused("Error reading key status", &error))?;
    let status = answer.and_then(|secret| secret.data).unwrap_or_default();
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&table(&status));
        return Ok(0);
    }
    let fields = ["term", "install_time", "encryptions"];
    let fields = fields.map(|key| (key, status.get(key).cloned().unwrap_or_default()));
    Ok(output::print(ui, format, Document::object(fields)))
}

fn table(status: &Map<String, Value>) -> String {
    let text = |key: &str| status.get(key).map(output::go).unwrap_or_default();
    let installed =
        Timestamp::parse(&text("install_time")).map_or(text("install_time"), |time| time.rfc822());
    output::key_value_rows([
        ("Key Term", text("term")),
        ("Install Time", installed),
        ("Encryption Count", text("encryptions")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_no_header() {
        let status =
            serde_json::json!({"term": 1, "install_time": "2026-11-22T10:55:00.1Z", "encryptions": 168});
        assert_eq!(
            table(status.as_object().unwrap()),
            "Key Term            1\nInstall Time        22 Nov 26 10:55 UTC\nEncryption Count    168"
        );
    }
}

//! `operator step-down` and `operator safe-to-stop`: before a node is stopped.

use serde_json::{Map, Value};

use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::{Invocation, Outcome};

pub const SAFE_FLAGS: &[Flag] =
    &[Flag::new("node", Kind::Text, "Node id of the member that is meant, if not the node at the address.")];

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    session
        .call("PUT", "sys/step-down", &[], None)
        .map_err(|error| invocation.refused("Error stepping down", &error))?;
    let address = session.address().to_owned();
    Ok(invocation.success(&format!("Success! Stepped down: {address}")))
}

/// 0 if the node may be stopped, 2 if not, 1 if nobody can say.
pub fn safe_to_stop(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let node = invocation.flags.text("node").unwrap_or_default().to_owned();
    let query = if node.is_empty() { vec![] } else { vec![("node", node.as_str())] };
    let session = invocation.session()?;
    let answer = session.read("sys/ha/safe-to-stop", &query);
    let answer = answer
        .map_err(|error| invocation.refused("Error asking whether the node may be stopped", &error).min(1))?;
    let data = answer.and_then(|secret| secret.data).unwrap_or_default();
    let Some(safe) = data.get("safe").and_then(Value::as_bool) else {
        return Err(invocation.fail("The server's answer does not say whether the node may be stopped"));
    };
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&report(&data, safe));
    } else if output::print(ui, format, Document::Value(Value::Object(data))) != 0 {
        return Err(1);
    }
    Ok(if safe { 0 } else { 2 })
}

fn report(data: &Map<String, Value>, safe: bool) -> String {
    let texts = |key: &str| -> Vec<String> {
        data.get(key).and_then(Value::as_array).into_iter().flatten().map(output::go).collect()
    };
    let node = data.get("node_id").map(output::go).unwrap_or_default();
    let leads = data.get("leader").and_then(Value::as_bool).unwrap_or(false);
    let mut lines = vec![match (safe, leads) {
        (true, true) => format!("{node} may be stopped. It leads, and hands leadership over when it stops."),
        (true, false) => format!("{node} may be stopped."),
        (false, _) => format!("{node} must not be stopped now:"),
    }];
    lines.extend(texts("reasons").into_iter().map(|reason| format!("  * {reason}")));
    lines.extend(texts("warnings").into_iter().map(|warning| format!("  Warning: {warning}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_reason_is_a_line() {
        let data = json!({
            "node_id": "n1", "leader": true, "safe": false,
            "reasons": ["the quorum would be lost", "all are sealed"], "warnings": ["a disk hangs"],
        });
        let expected = "\
n1 must not be stopped now:
  * the quorum would be lost
  * all are sealed
  Warning: a disk hangs";
        assert_eq!(report(data.as_object().unwrap(), false), expected);
        let data = json!({ "node_id": "n2", "leader": false, "safe": true, "reasons": [], "warnings": [] });
        assert_eq!(report(data.as_object().unwrap(), true), "n2 may be stopped.");
    }
}

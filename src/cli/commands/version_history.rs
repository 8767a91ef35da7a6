//! `version-history`.

use serde_json::{Map, Value};

use crate::cli::output::{self, Format};
use crate::cli::{Command, Invocation, Outcome};

/// The table's entry.
pub const COMMANDS: &[Command] = &[Command {
    name: "version-history",
    synopsis: "Prints the versions that the server has had",
    about: "Prints which versions of the server have opened this data, and since when.",
    run: Some(run),
    ..Command::DEFAULT
}];

const NOTE: &str = "\nNote:\nUse of this command requires a server running Vault 1.10.0 or greater.\n\
                    Version tracking was added in 1.9.0. Earlier versions have not been tracked.\n";

fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.list("sys/version-history");
    let answer = answer.map_err(|error| invocation.refused("Error reading version history", &error))?;
    let (ui, format) = invocation.printer();
    let Some(secret) = answer.filter(|secret| secret.data.is_some()) else {
        ui.error("\nInvalid response returned from Vault");
        return Err(2);
    };
    ui.warn(NOTE);
    if format != Format::Table {
        return Ok(secret.print(ui, format));
    }
    let keys = secret.keys().cloned().unwrap_or_default();
    let about = secret.data.as_ref().and_then(|data| data.get("key_info")).and_then(Value::as_object);
    ui.output(&table(&keys, about.unwrap_or(&Map::new())));
    Ok(0)
}

fn table(keys: &[Value], about: &Map<String, Value>) -> String {
    let row = |key: &Value| {
        let version = output::go(key);
        let text =
            |field: &str| about.get(&version)?.get(field).filter(|value| !value.is_null()).map(output::go);
        let (installed, built) = (text("timestamp_installed"), text("build_date"));
        vec![version.clone(), installed.unwrap_or_default(), built.unwrap_or_default()]
    };
    let header = ["Version", "Installation Time", "Build Date"];
    output::narrow_table(&header, &keys.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_stand_in_narrow_columns() {
        let about = json!({"1.16.3": {"timestamp_installed": "2026-11-22T10:00:00Z", "build_date": null}});
        let expected = "\
Version  Installation Time     Build Date
-------  -----------------     ----------
1.16.3   2026-11-22T10:00:00Z  n/a";
        assert_eq!(table(&[json!("1.16.3")], about.as_object().unwrap()), expected);
    }
}

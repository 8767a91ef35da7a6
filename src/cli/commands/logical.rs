//! `read`, `write`, `patch`, `list` and `delete` of any path.

use serde_json::Value;

use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::secret::Secret;
use crate::cli::{Command, FIELD, Invocation, Outcome, data};

/// The table's entries.
pub const COMMANDS: &[Command] = &[
    Command {
        name: "read",
        synopsis: "Reads data",
        arguments: "[options] PATH [K=V...]",
        about: "Reads what is at a path. Pairs behind it become query parameters:\n\n    \
                $ {program} read secret/data/app version=2",
        flags: &[FIELD],
        takes_data: true,
        run: Some(read),
        ..Command::DEFAULT
    },
    Command {
        name: "write",
        synopsis: "Writes data",
        arguments: "[options] PATH [DATA K=V...]",
        about: "Writes data to a path. A value that begins with @ is read from a file, - is the standard input,\n\
                a lone - or @file is a JSON object:\n\n    $ {program} write kv1/app user=u password=@password.txt",
        flags: &[
            FIELD,
            Flag::new("force", Kind::Bool, "Write without any data."),
            Flag::new("f", Kind::Bool, "Short for -force."),
        ],
        takes_data: true,
        run: Some(write),
        ..Command::DEFAULT
    },
    Command {
        name: "patch",
        synopsis: "Changes data",
        arguments: "[options] PATH [DATA K=V...]",
        about: "Changes the given fields of what is at a path, by a JSON merge patch: what is null is removed, what\n\
                is not given stays.\n\n    $ {program} patch kv1/app @change.json",
        flags: &[
            FIELD,
            Flag::new("force", Kind::Bool, "Send a patch without any data."),
            Flag::new("f", Kind::Bool, "Short for -force."),
        ],
        takes_data: true,
        run: Some(patch),
        ..Command::DEFAULT
    },
    Command {
        name: "list",
        synopsis: "Lists names",
        arguments: "[options] PATH",
        about: "Lists the names under a path; those that end in a slash have more names under them.",
        run: Some(list),
        ..Command::DEFAULT
    },
    Command {
        name: "delete",
        synopsis: "Deletes data",
        arguments: "[options] PATH [K=V...]",
        about: "Deletes what is at a path. Pairs behind it become query parameters.",
        takes_data: true,
        run: Some(delete),
        ..Command::DEFAULT
    },
];

/// A path as the API takes it: without slashes around it.
pub fn trimmed(path: &str) -> &str {
    path.trim().trim_matches('/')
}

/// The path among the arguments, and the pairs behind it.
fn path_and_pairs(
    invocation: &mut Invocation<'_, '_>,
) -> Result<(String, serde_json::Map<String, Value>), i32> {
    let Some(path) = invocation.args.first().map(|path| trimmed(path).to_owned()) else {
        return Err(invocation.fail("Not enough arguments (expected 1, got 0)"));
    };
    match data::parse(&invocation.args[1..], invocation.ui) {
        Ok(pairs) => Ok((path, pairs)),
        Err(why) => Err(invocation.fail(&format!("Failed to parse K=V data: {why}"))),
    }
}

/// Pairs as query parameters, a list as its name repeated.
fn query(pairs: &serde_json::Map<String, Value>) -> Vec<(String, String)> {
    let mut query = Vec::new();
    for (name, value) in pairs {
        match value {
            Value::Array(values) => {
                query.extend(values.iter().map(|value| (name.clone(), output::go(value))))
            }
            value => query.push((name.clone(), output::go(value))),
        }
    }
    query
}

fn read(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let (path, pairs) = path_and_pairs(invocation)?;
    let query = query(&pairs);
    let query: Vec<_> = query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let session = invocation.session()?;
    if invocation.format == Format::Raw {
        let response = session.call("GET", &path, &query, None);
        let response =
            response.map_err(|error| invocation.refused(&format!("Error reading: {path}"), &error))?;
        invocation.ui.output_bytes(&response.body);
        if !response.body.ends_with(b"\n") {
            invocation.ui.output_bytes(b"\n");
        }
        return Ok(0);
    }
    let answer = session.read(&path, &query);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error reading {path}"), &error))?;
    let Some(secret) = answer else { return Err(no_value(invocation, &path)) };
    let field = invocation.flags.text("field").map(str::to_owned);
    let (ui, format) = invocation.printer();
    Ok(match field {
        Some(field) => output::print_field(ui, format, &field, secret.field(&field).as_ref()),
        None => secret.print(ui, format),
    })
}

/// Says that nothing is there, and gives the exit code.
pub fn no_value(invocation: &mut Invocation<'_, '_>, path: &str) -> i32 {
    invocation.ui.error(&format!("No value found at {path}"));
    2
}

fn write(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let force = invocation.flags.bool("force") || invocation.flags.bool("f");
    if invocation.args.len() == 1 && !force {
        return Err(invocation.fail("Must supply data or use -force"));
    }
    let (path, pairs) = path_and_pairs(invocation)?;
    let body = if invocation.args.len() == 1 { Value::Null } else { Value::Object(pairs) };
    let session = invocation.session()?;
    let answer = session.send("PUT", &path, Some(&body));
    let answer =
        answer.map_err(|error| invocation.refused(&format!("Error writing data to {path}"), &error))?;
    let Some(secret) = answer else {
        return Ok(invocation.success(&format!("Success! Data written to: {path}")));
    };
    Ok(print_or_field(invocation, secret))
}

fn patch(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let force = invocation.flags.bool("force") || invocation.flags.bool("f");
    if invocation.args.len() == 1 && !force {
        return Err(invocation.fail("Must supply data or use -force"));
    }
    let (path, pairs) = path_and_pairs(invocation)?;
    let session = invocation.session()?;
    let answer = session.merge_patch(&path, &Value::Object(pairs));
    let answer =
        answer.map_err(|error| invocation.refused(&format!("Error writing data to {path}"), &error))?;
    let Some(secret) = answer else {
        return Ok(invocation.success(&format!("Success! Data written to: {path}")));
    };
    Ok(print_or_field(invocation, secret))
}

/// Prints an answer, or the field of it that `-field` names.
pub fn print_or_field(invocation: &mut Invocation<'_, '_>, secret: Secret) -> i32 {
    let field = invocation.flags.text("field").map(str::to_owned);
    let (ui, format) = invocation.printer();
    match field {
        Some(field) => output::print_field(ui, format, &field, secret.field(&field).as_ref()),
        None => secret.print(ui, format),
    }
}

fn list(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(1)?;
    let path = trimmed(&invocation.args[0]).to_owned();
    let session = invocation.session()?;
    let answer = session.list(&path);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error listing {path}"), &error))?;
    Ok(print_list(invocation, answer, &path))
}

/// Prints the names in a list's answer and gives the exit code.
pub fn print_list(invocation: &mut Invocation<'_, '_>, answer: Option<Secret>, path: &str) -> i32 {
    let (ui, format) = invocation.printer();
    let answer = match answer {
        Some(secret) if secret.is_wrapped() => return secret.print(ui, format),
        answer => answer,
    };
    if let Some(keys) = answer.as_ref().and_then(Secret::keys) {
        let keys = Value::Array(keys.clone());
        if let Some(secret) = &answer {
            secret.print_warnings(ui);
        }
        return output::print(ui, format, keys.into());
    }
    if format != Format::Table {
        let none: [(&str, Document); 0] = [];
        output::print(ui, format, Document::object(none));
        return 2;
    }
    match answer {
        None => no_value(invocation, path),
        Some(secret) if secret.data.is_none() => secret.print(ui, format),
        Some(_) => {
            ui.error(&format!("No entries found at {path}"));
            2
        }
    }
}

fn delete(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let (path, pairs) = path_and_pairs(invocation)?;
    let query = query(&pairs);
    let query: Vec<_> = query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let session = invocation.session()?;
    let answer = session.delete(&path, &query);
    let answer = answer.map_err(|error| invocation.refused(&format!("Error deleting {path}"), &error))?;
    let Some(secret) = answer else {
        return Ok(invocation.success(&format!("Success! Data deleted (if it existed) at: {path}")));
    };
    let (ui, format) = invocation.printer();
    Ok(secret.print(ui, format))
}

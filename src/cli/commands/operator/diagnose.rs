//! `operator diagnose`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::cli::commands::version;
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::time::Timestamp;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome};
use crate::server::diagnose::{self, Check, Status};

pub const FLAGS: &[Flag] = &[Flag::new(
    "config",
    Kind::List,
    "Configuration file, or directory of .hcl and .json files; may be repeated.",
)];

/// The exit code of a command line that cannot be understood, here.
pub const USAGE: i32 = 3;

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0).map_err(|_| USAGE)?;
    let paths: Vec<PathBuf> = invocation.flags.list("config").into_iter().map(PathBuf::from).collect();
    if paths.is_empty() {
        invocation.ui.error("Must specify a configuration file using -config.");
        return Err(USAGE);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| invocation.fail(&format!("cannot start the event loop: {error}")))?;
    let environment = invocation.environment;
    let checks = diagnose::run(&paths, |name| environment.variable(name).map(str::to_owned));
    let root = runtime.block_on(checks);
    let code = match root.status {
        Status::Skip | Status::Ok => 0,
        Status::Warn => 2,
        Status::Fail => 1,
    };
    let program = invocation.program;
    let (ui, format) = invocation.printer();
    let printed = if format == Format::Table {
        let mut text = format!("{}\n\nResults:\n", version::line(program));
        write_tree(&mut text, &root, 0);
        ui.output(text.trim_end());
        0
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let time = Timestamp::of_unix(i64::try_from(now).unwrap_or(i64::MAX)).whole_seconds();
        output::print(ui, format, document(root, &time))
    };
    if printed == 0 { Ok(code) } else { Err(printed) }
}

fn write_tree(text: &mut String, check: &Check, depth: usize) {
    let margin = "  ".repeat(depth);
    let status = match check.status {
        Status::Ok => "success",
        Status::Warn => "warning",
        Status::Fail => "failure",
        Status::Skip => "skipped",
    };
    let message = check.message.replace('\n', " ");
    let colon = if message.is_empty() { "" } else { ": " };
    text.push_str(&format!("{margin}[ {status} ] {}{colon}{message}\n", check.name));
    if !check.advice.is_empty() {
        text.push_str(&wrap(&check.advice, margin.len() + 12));
        text.push('\n');
    }
    for child in &check.children {
        write_tree(text, child, depth + 1);
    }
}

/// The tree as Vault's structure has it.
fn document(check: Check, time: &str) -> Document {
    let status = match check.status {
        Status::Ok => "ok",
        Status::Warn => "warn",
        Status::Fail => "fail",
        Status::Skip => "skip",
    };
    let mut fields: Vec<(&str, Document)> =
        vec![("time", time.into()), ("name", check.name.into()), ("status", status.into())];
    if !check.message.is_empty() {
        // As in Vault, what is no failure is said among the warnings.
        match check.status {
            Status::Warn => fields.push(("warnings", Value::from(vec![check.message]).into())),
            _ => fields.push(("message", check.message.into())),
        }
    }
    if !check.advice.is_empty() {
        fields.push(("Advice", check.advice.into()));
    }
    if !check.children.is_empty() {
        let children = check.children.into_iter().map(|child| document(child, time)).collect();
        fields.push(("children", Document::List(children)));
    }
    Document::object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Check {
        let leaf = |name: &str, status, advice: &str| Check {
            name: name.to_owned(),
            status,
            message: "what was found".to_owned(),
            advice: advice.to_owned(),
            children: Vec::new(),
        };
        Check {
            name: "All".to_owned(),
            status: Status::Warn,
            message: String::new(),
            advice: String::new(),
            children: vec![leaf("One", Status::Ok, ""), leaf("Two", Status::Warn, "do this")],
        }
    }

    #[test]
    fn checks_are_a_line_each_with_the_remedy_below() {
        let mut text = String::new();
        write_tree(&mut text, &tree(), 0);
        let expected = "\
[ warning ] All
  [ success ] One: what was found
  [ warning ] Two: what was found
              do this
";
        assert_eq!(text, expected);
    }

    #[test]
    fn json_has_vaults_fields() {
        let json = document(tree(), "t").render(Format::Json).unwrap();
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["status"], &json["children"][0]["status"]), (&"warn".into(), &"ok".into()));
        assert_eq!(json["children"][1]["warnings"][0], "what was found");
        assert_eq!(json["children"][1]["Advice"], "do this");
    }
}

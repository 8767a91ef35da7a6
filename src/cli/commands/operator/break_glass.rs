//! `operator break-glass status`, `enable` and `disable`.

use serde_json::{Map, Value, json};

use super::{entered, wipe};
use crate::cli::flags::{Flag, Kind};
use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::ui::wrap;
use crate::cli::{Invocation, Outcome};

pub const ENABLE_FLAGS: &[Flag] = &[
    Flag::new("init", Kind::Bool, "Begin; the recovery keys are entered afterwards."),
    Flag::new("cancel", Kind::Bool, "Forget what was begun, and the recovery keys that were entered."),
    Flag::new("status", Kind::Bool, "Show how far it has come."),
    Flag::new("nonce", Kind::Text, "The nonce that it began with."),
    Flag::new("break-glass-shares", Kind::Int, "Number of shares to make; 5 by default. Begins."),
    Flag::new(
        "break-glass-threshold",
        Kind::Int,
        "Number of them that open the cluster; 3 by default. Begins.",
    ),
    Flag::new("key-shares", Kind::Int, "The same as -break-glass-shares."),
    Flag::new("key-threshold", Kind::Int, "The same as -break-glass-threshold."),
];

pub const DISABLE_FLAGS: &[Flag] = &[
    Flag::new("init", Kind::Bool, "Begin; the recovery keys are entered afterwards."),
    Flag::new("cancel", Kind::Bool, "Forget what was begun, and the recovery keys that were entered."),
    Flag::new("status", Kind::Bool, "Show how far it has come."),
    Flag::new("nonce", Kind::Text, "The nonce that it began with."),
];

pub fn status(invocation: &mut Invocation<'_, '_>) -> Outcome {
    invocation.expect_args(0)?;
    let session = invocation.session()?;
    let answer = session.read("sys/break-glass", &[]);
    let answer = answer.map_err(|error| invocation.refused("Error reading break-glass status", &error))?;
    let facts = answer.and_then(|secret| secret.data).unwrap_or_default();
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&status_rows(&facts));
        ui.server_warnings(&text(&facts, "warning").into_iter().collect::<Vec<_>>());
        return Ok(0);
    }
    let fields = ["enabled", "n", "t", "generation", "root_generation", "seals", "warning"];
    let fields = fields.map(|key| (key, facts.get(key).cloned().unwrap_or_default()));
    Ok(output::print(ui, format, Document::object(fields)))
}

pub fn enable(invocation: &mut Invocation<'_, '_>) -> Outcome {
    change(invocation, "enable")
}

pub fn disable(invocation: &mut Invocation<'_, '_>) -> Outcome {
    change(invocation, "disable")
}

fn text(facts: &Map<String, Value>, key: &str) -> Option<String> {
    facts.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn status_rows(facts: &Map<String, Value>) -> String {
    let text = |key: &str| facts.get(key).map(output::go).unwrap_or_default();
    let enabled = facts.get("enabled").and_then(Value::as_bool).unwrap_or(false);
    let mut rows = vec![("Break Glass", if enabled { "enabled" } else { "disabled" }.to_owned())];
    if enabled {
        rows.extend([
            ("Shares", text("n")),
            ("Threshold", text("t")),
            ("Share Generation", text("generation")),
        ]);
    }
    rows.extend([("Root Key Generation", text("root_generation")), ("Seals", text("seals"))]);
    output::key_value_rows(rows)
}

fn change(invocation: &mut Invocation<'_, '_>, change: &'static str) -> Outcome {
    if invocation.args.len() > 1 {
        invocation.expect_args(1)?;
    }
    let session = invocation.session()?;
    let init = format!("sys/break-glass/{change}/init");
    if invocation.flags.bool("cancel") {
        let answer = session.delete(&init, &[]);
        answer.map_err(|error| invocation.refused("Error canceling the break-glass operation", &error))?;
        invocation.ui.output("Success! Canceled the break-glass operation (if it was started)");
        return Ok(0);
    }
    let numbers = ["break-glass-shares", "break-glass-threshold", "key-shares", "key-threshold"];
    let begins =
        invocation.flags.bool("init") || numbers.iter().any(|flag| invocation.flags.int(flag).is_some());
    if begins {
        return begin(invocation, &session, &init, change);
    }
    let answer = session.read(&init, &[]);
    let answer =
        answer.map_err(|error| invocation.refused("Error reading the break-glass operation", &error))?;
    let progress = answer.and_then(|secret| secret.data).unwrap_or_default();
    if invocation.flags.bool("status") {
        return Ok(print_progress(invocation, &progress));
    }
    if progress.get("started").and_then(Value::as_bool) != Some(true) {
        let program = invocation.program.command();
        let text = format!(
            "No break-glass operation is in progress: begin one with \"{program} operator break-glass {change} -init\""
        );
        return Err(invocation.fail(&text));
    }
    update(invocation, &session, change, &progress)
}

fn begin(invocation: &mut Invocation<'_, '_>, session: &Session, init: &str, change: &str) -> Outcome {
    let flags = &invocation.flags;
    let count = |names: [&str; 2]| names.iter().find_map(|name| flags.int(name).filter(|count| *count != 0));
    let body = match change {
        "enable" => {
            let shares = count(["break-glass-shares", "key-shares"]).unwrap_or(5);
            let threshold = count(["break-glass-threshold", "key-threshold"]).unwrap_or(shares.min(3));
            json!({ "secret_shares": shares, "secret_threshold": threshold })
        }
        _ => json!({}),
    };
    let answer = session.send("PUT", init, Some(&body));
    let answer =
        answer.map_err(|error| invocation.refused("Error starting the break-glass operation", &error))?;
    let progress = answer.and_then(|secret| secret.data).unwrap_or_default();
    if invocation.format == Format::Table {
        let meaning = match change {
            "enable" => {
                "Break-glass shares open the cluster when none of its seals does. They are printed once, when enough \
                 recovery keys have been entered."
            }
            _ => {
                "When enough recovery keys have been entered, the break-glass shares are destroyed and the root key is \
                 replaced. Then only the seals open the cluster."
            }
        };
        invocation.ui.warn(&format!("{}\n", wrap(meaning, 0)));
    }
    Ok(print_progress(invocation, &progress))
}

fn print_progress(invocation: &mut Invocation<'_, '_>, progress: &Map<String, Value>) -> i32 {
    let (ui, format) = invocation.printer();
    if format != Format::Table {
        let fields = ["nonce", "started", "n", "t", "progress", "required", "complete"];
        let fields = fields.map(|key| (key, progress.get(key).cloned().unwrap_or_default()));
        return output::print(ui, format, Document::object(fields));
    }
    ui.output(&progress_rows(progress));
    0
}

fn progress_rows(progress: &Map<String, Value>) -> String {
    let text = |key: &str| progress.get(key).map(output::go).unwrap_or_default();
    let mut rows = vec![("Nonce", text("nonce")), ("Started", text("started"))];
    if progress.get("started").and_then(Value::as_bool) == Some(true) {
        rows.push(("Recovery Progress", format!("{}/{}", text("progress"), text("required"))));
        if text("n") != "0" {
            rows.extend([("New Shares", text("n")), ("New Threshold", text("t"))]);
        }
    }
    output::key_value_rows(rows)
}

fn update(
    invocation: &mut Invocation<'_, '_>,
    session: &Session,
    change: &str,
    progress: &Map<String, Value>,
) -> Outcome {
    let running = text(progress, "nonce").unwrap_or_default();
    let (key, nonce) = entered(invocation, "Break-glass operation", "Recovery Key", &running)?;
    let body = json!({ "key": key.trim(), "nonce": nonce });
    let answer = session.send("PUT", &format!("sys/break-glass/{change}/update"), Some(&body));
    wipe(body);
    let answer = answer.map_err(|error| invocation.refused("Error posting the recovery key", &error))?;
    let answer = answer.and_then(|secret| secret.data).unwrap_or_default();
    if answer.get("complete").and_then(Value::as_bool) != Some(true) {
        return Ok(print_progress(invocation, &answer));
    }
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&completed(change, &answer));
        return Ok(0);
    }
    let fields = ["nonce", "complete", "n", "t", "keys", "keys_base64"];
    let fields = fields.map(|key| (key, answer.get(key).cloned().unwrap_or_default()));
    Ok(output::print(ui, format, Document::object(fields)))
}

fn completed(change: &str, answer: &Map<String, Value>) -> String {
    let text = |key: &str| answer.get(key).map(output::go).unwrap_or_default();
    if change != "enable" {
        let done = "Success! The break-glass shares are destroyed, and the root key was replaced: neither they nor old \
                    copies of anything that led to the former root key open what is stored from now on.";
        return format!("{}\n\nOperation nonce: {}", wrap(done, 0), text("nonce"));
    }
    let keys = answer.get("keys_base64").and_then(Value::as_array);
    let keys = keys.into_iter().flatten().enumerate();
    let mut lines: Vec<_> =
        keys.map(|(at, key)| format!("Break-Glass Key {}: {}", at + 1, output::go(key))).collect();
    lines.push(format!("\nOperation nonce: {}\n", text("nonce")));
    let (n, t) = (text("n"), text("t"));
    lines.push(wrap(
        &format!(
            "Break glass enabled with {n} key shares and a key threshold of {t}. Please securely distribute the key \
             shares printed above; they are not shown again. When none of the seals opens a node, {t} of them, entered \
             with \"operator unseal\", do."
        ),
        0,
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn what_is_enabled_is_shown_with_its_generation() {
        let facts = map(json!({
            "enabled": true, "n": 5, "t": 3, "generation": 2, "root_generation": 2, "seals": ["east", "west"],
        }));
        let expected = "\
Break Glass            enabled
Shares                 5
Threshold              3
Share Generation       2
Root Key Generation    2
Seals                  [east west]";
        assert_eq!(status_rows(&facts), expected);
        let facts = map(json!({ "enabled": false, "root_generation": 1, "seals": ["east"] }));
        assert!(status_rows(&facts).starts_with("Break Glass            disabled\nRoot Key"));
    }

    #[test]
    fn progress_names_new_shares_only_where_there_will_be_some() {
        let enable =
            map(json!({"nonce": "x", "started": true, "n": 5, "t": 3, "progress": 1, "required": 3}));
        assert!(progress_rows(&enable).ends_with("New Shares           5\nNew Threshold        3"));
        assert!(progress_rows(&enable).contains("Recovery Progress    1/3"));
        let disable =
            map(json!({"nonce": "x", "started": true, "n": 0, "t": 0, "progress": 0, "required": 3}));
        assert!(!progress_rows(&disable).contains("New Shares"));
    }

    #[test]
    fn the_new_shares_are_listed_as_those_of_init_are() {
        let answer = map(json!({"nonce": "x", "n": 2, "t": 2, "keys_base64": ["AA==", "AQ=="]}));
        let text = completed("enable", &answer);
        let start = "Break-Glass Key 1: AA==\nBreak-Glass Key 2: AQ==\n\nOperation nonce: x\n\nBreak glass enabled with 2";
        assert!(text.starts_with(start), "{text}");
        assert!(!completed("disable", &answer).contains("AA=="));
    }
}

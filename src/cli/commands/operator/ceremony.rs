//! `operator unseal -cluster`: one ceremony for all nodes.

use serde_json::{Map, Value, json};

use super::super::status::SealStatus;
use super::unseal;
use crate::cli::output::{self, Document, Format};
use crate::cli::session::Session;
use crate::cli::{Invocation, Outcome};

/// Exit code while a member is not open.
const STILL_SEALED: i32 = 2;

pub fn run(invocation: &mut Invocation<'_, '_>, session: &Session) -> Outcome {
    let status = collect(invocation, session)?;
    let Some(ceremony) = status.ceremony().cloned() else {
        if !status.is_sealed() {
            invocation
                .ui
                .warn("The shares are not complete yet: the other members are shown with the last one.");
        }
        return Ok(status.print(invocation));
    };
    let shown = members(&ceremony);
    let sealed: Vec<&str> =
        shown.iter().filter(|m| text(m, "state") == "sealed").map(|m| text(m, "node_id")).collect();
    if sealed.is_empty() {
        return print(invocation, &shown);
    }
    if !invocation.flags.bool("yes") {
        let list = table(&shown);
        if !agreed(invocation, &list, &sealed)? {
            invocation.ui.output("No other member was opened.");
            return Ok(STILL_SEALED);
        }
    }
    let body = json!({ "nonce": ceremony.get("nonce"), "members": sealed });
    let answer = session.raw_json("PUT", "sys/unseal-members", Some(&body));
    let answer = answer.map_err(|error| invocation.refused("Error unsealing the other members", &error))?;
    print(invocation, &members(answer.as_object().unwrap_or(&Map::new())))
}

/// One share if it is an argument, else as many as are missing.
fn collect(invocation: &mut Invocation<'_, '_>, session: &Session) -> Result<SealStatus, i32> {
    if !invocation.args.is_empty() {
        return unseal::enter(invocation, session, "Unseal Key");
    }
    let answer = session.raw_json("GET", "sys/seal-status", None);
    let status = answer.map_err(|error| invocation.refused("Error checking seal status", &error))?;
    let number = |key: &str| status.get(key).and_then(Value::as_u64).unwrap_or(0);
    let (mut entered, threshold) = (number("progress"), number("t"));
    loop {
        let name = format!("Unseal Key {} of {threshold}", entered + 1);
        let status = unseal::enter(invocation, session, &name)?;
        let before = std::mem::replace(&mut entered, status.progress().0);
        if entered == 0 || status.ceremony().is_some() {
            return Ok(status);
        }
        if entered == before {
            invocation.ui.warn("This share was entered before.");
        }
    }
}

fn agreed(invocation: &mut Invocation<'_, '_>, list: &str, sealed: &[&str]) -> Result<bool, i32> {
    if invocation.flags.bool("non-interactive") {
        return Err(invocation.fail(
            "Refusing to ask whether the members may be opened with -non-interactive set: -yes says so",
        ));
    }
    let question = format!(
        "{list}\n\nCompare the fingerprints with those that the nodes log when they start.\n\
         Open {}? Only 'yes' is taken as an answer: ",
        sealed.join(", ")
    );
    let answer = invocation.ui.ask(&question);
    let answer = answer.map_err(|error| invocation.fail(&format!("Failed to read the answer: {error}")))?;
    Ok(answer.trim() == "yes")
}

fn members(ceremony: &Map<String, Value>) -> Vec<Map<String, Value>> {
    let members = ceremony.get("members").and_then(Value::as_array);
    members.into_iter().flatten().filter_map(Value::as_object).cloned().collect()
}

fn text<'m>(member: &'m Map<String, Value>, key: &str) -> &'m str {
    member.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn table(members: &[Map<String, Value>]) -> String {
    let row = |member: &Map<String, Value>| {
        let (address, listed) = (text(member, "cluster_address"), text(member, "listed_address"));
        let address =
            if address == listed { address.to_owned() } else { format!("{address} (joined as {listed})") };
        let state = [text(member, "state"), text(member, "why")].map(str::to_owned);
        let state = state.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        vec![text(member, "node_id").to_owned(), address, text(member, "fingerprint").to_owned(), state]
    };
    output::table(
        &["Node", "Address", "Key (SHA-256)", "State"],
        &members.iter().map(row).collect::<Vec<_>>(),
    )
}

/// Prints how all stand, and says by the exit code whether one is not open.
fn print(invocation: &mut Invocation<'_, '_>, members: &[Map<String, Value>]) -> Outcome {
    let code =
        if members.iter().all(|member| text(member, "state") == "unsealed") { 0 } else { STILL_SEALED };
    let (ui, format) = invocation.printer();
    if format == Format::Table {
        ui.output(&table(members));
        return Ok(code);
    }
    let members: Vec<Value> = members.iter().cloned().map(Value::Object).collect();
    match output::print(ui, format, Document::object([("members", Value::Array(members))])) {
        0 => Ok(code),
        failed => Err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_row_with_what_stands_in_its_way() {
        let ceremony = json!({ "nonce": "n", "members": [
            {"node_id": "n2", "cluster_address": "10.0.0.2:8201", "listed_address": "10.0.0.2:8201",
             "fingerprint": "ab", "state": "sealed", "why": ""},
            {"node_id": "n3", "cluster_address": "10.0.0.9:8201", "listed_address": "10.0.0.3:8201",
             "fingerprint": "cd", "state": "unfit", "why": "no answer"},
        ]});
        let expected = "\
Node    Address                                  Key (SHA-256)    State
----    -------                                  -------------    -----
n2      10.0.0.2:8201                            ab               sealed
n3      10.0.0.9:8201 (joined as 10.0.0.3:8201)  cd               unfit: no answer";
        let shown = table(&members(ceremony.as_object().unwrap()));
        let squeezed = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(squeezed(&shown), squeezed(expected));
    }
}

//! `hsm status`.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::seals::{self, Opened};
use super::wraps::{self, Wrap};
use super::{TOKEN_REFUSED, finished};
use crate::cli::output::{self, Document, Format};
use crate::cli::settings::Settings;
use crate::cli::{Invocation, Outcome};
use crate::seal::{AutoSeal, KeyFacts, SealFault, TokenFacts};
use crate::secret::Kek;

/// What was found of one seal.
struct Found {
    name: String,
    lib: String,
    token: TokenFacts,
    key: KeyFacts,
    round_trip: Option<Duration>,
}

pub fn run(invocation: &mut Invocation<'_, '_>) -> Outcome {
    let all = seals::all(invocation)?;
    let mut found = Vec::new();
    let mut code = 0;
    for opened in &all {
        if invocation.flags.bool("retry-pin")
            && let Err(fault) = opened.seal.forget_refused_pin()
        {
            return Err(invocation.fail(&fault.to_string()));
        }
        match finished(invocation, look(opened)) {
            Ok(seal) => {
                if !seal.key.missing.is_empty() {
                    code = code.max(1);
                }
                found.push(seal);
            }
            // The others are shown all the same.
            Err(failed) => code = code.max(failed),
        }
    }
    let mut wraps = match compared(invocation) {
        Ok(wraps) => wraps,
        Err(failed) => {
            code = code.max(failed);
            Vec::new()
        }
    };
    for seal in found.iter().filter(|seal| seal.key.missing.is_empty()) {
        wraps.iter_mut().filter(|wrap| wrap.seal == seal.name).for_each(|wrap| wrap.beside(&seal.key.key_id));
    }
    if !wraps.iter().all(Wrap::is_settled) {
        code = code.max(1);
    }
    if found.is_empty() && wraps.is_empty() {
        return Err(TOKEN_REFUSED);
    }
    let (ui, format) = invocation.printer();
    let printed = if format == Format::Table {
        let tables = found.iter().map(table).chain((!wraps.is_empty()).then(|| wraps::table(&wraps)));
        ui.output(&tables.collect::<Vec<_>>().join("\n\n"));
        0
    } else {
        output::print(ui, format, Document::List(documents(&found, &wraps)))
    };
    Ok(code.max(printed))
}

/// The wraps of the vault at the address, if one is given.
fn compared(invocation: &mut Invocation<'_, '_>) -> Result<Vec<Wrap>, i32> {
    let settings = Settings { flags: &invocation.flags, environment: invocation.environment };
    if settings.text("address", "ADDR").is_none() {
        return Ok(Vec::new());
    }
    let session = invocation.session()?;
    let all = wraps::read(&session);
    let mut all =
        all.map_err(|error| invocation.refused("Error reading the wraps of the root key", &error))?;
    if let Some(wanted) = invocation.flags.text("seal") {
        all.retain(|wrap| wrap.seal == wanted);
    }
    Ok(all)
}

/// Every seal that was found with its wrap, then the wraps of the others.
fn documents(found: &[Found], wraps: &[Wrap]) -> Vec<Document> {
    let with = |mut fields: Vec<(&'static str, Document)>, wrap: Option<&Wrap>| {
        fields.extend(wrap.map(|wrap| ("wrap", wrap.document())));
        Document::object(fields)
    };
    let wrap_of = |name: &str| wraps.iter().find(|wrap| wrap.seal == name);
    let known = found.iter().map(|seal| with(fields(seal), wrap_of(&seal.name)));
    let others = wraps.iter().filter(|wrap| found.iter().all(|seal| seal.name != wrap.seal));
    let others = others.map(|wrap| with(vec![("seal", Document::from(wrap.seal.as_str()))], Some(wrap)));
    known.chain(others).collect()
}

async fn look(opened: &Opened) -> Result<Found, SealFault> {
    let (token, key) = opened.seal.facts().await?;
    let mut round_trip = None;
    if key.missing.is_empty() {
        let kek = Kek::random();
        let began = Instant::now();
        let sealed = opened.seal.encrypt(&kek, b"hsm status").await?;
        opened.seal.decrypt(&sealed, b"hsm status").await?;
        round_trip = Some(began.elapsed());
    }
    Ok(Found { name: opened.name.clone(), lib: opened.lib.display().to_string(), token, key, round_trip })
}

fn pin_state(token: &TokenFacts) -> &'static str {
    if token.pin_count_low { "taken; a wrong one was given before" } else { "taken" }
}

fn table(found: &Found) -> String {
    let Found { token, key, .. } = found;
    let mut rows = vec![
        ("Seal", found.name.clone()),
        ("Module", format!("{} ({})", found.lib, token.module)),
        ("Token", token.label.clone()),
        ("Serial Number", token.serial.clone()),
        ("Model", token.model.clone()),
        ("Slot", token.slot.to_string()),
        ("PIN", pin_state(token).to_owned()),
    ];
    if key.missing.is_empty() {
        let round_trip = found.round_trip.map(|time| format!("{time:.1?}")).unwrap_or_default();
        rows.extend([
            ("Key", key.key_id.clone()),
            ("Mechanism", key.mechanism.clone()),
            ("Check Value", key.kcv.clone()),
            ("Keys Of Label", key.keys_of_label.to_string()),
            ("Never Left Token", key.never_left.to_string()),
            ("Round Trip", round_trip),
        ]);
    } else {
        rows.push(("Key", format!("none: {}", key.missing)));
    }
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::table(&["Key", "Value"], &rows)
}

fn fields(found: &Found) -> Vec<(&'static str, Document)> {
    let Found { token, key, .. } = found;
    let round_trip_us = found.round_trip.and_then(|time| u64::try_from(time.as_micros()).ok());
    let fields = [
        ("seal", Value::from(found.name.as_str())),
        ("lib", found.lib.as_str().into()),
        ("module", token.module.as_str().into()),
        ("token_label", token.label.as_str().into()),
        ("serial_number", token.serial.as_str().into()),
        ("model", token.model.as_str().into()),
        ("slot", token.slot.into()),
        ("pin_count_low", token.pin_count_low.into()),
        ("key", key.key_id.as_str().into()),
        ("missing", key.missing.as_str().into()),
        ("mechanism", key.mechanism.as_str().into()),
        ("check_value", key.kcv.as_str().into()),
        ("keys_of_label", key.keys_of_label.into()),
        ("never_left_token", key.never_left.into()),
        ("round_trip_us", round_trip_us.into()),
    ];
    fields.into_iter().map(|(name, value)| (name, Document::from(value))).collect()
}

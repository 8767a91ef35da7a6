//! The seals that would open the vault by themselves.

use std::path::Path;

use super::Check;
use crate::config::SealStanza;
use crate::seal::{self, AutoSeal, SealFault};

/// Exercises every seal that opens by itself; `None` where there is none. Nothing is changed, except that a PIN that a
/// token refuses is remembered, so that it is not tried again.
pub async fn check(stanzas: &[SealStanza], data_dir: Option<&Path>) -> Option<Check> {
    let data_dir = data_dir.filter(|path| path.is_dir());
    let mut children = Vec::new();
    for seal in seal::build(stanzas, data_dir, &seal::own_program()) {
        children.push(one(&*seal).await);
    }
    (!children.is_empty()).then(|| Check::group("Check Seals", children))
}

async fn one(seal: &dyn AutoSeal) -> Check {
    let name = format!("Seal {}", seal.name());
    let report = match seal.report().await {
        Ok(report) => report,
        Err(fault) => return failed(&name, &fault),
    };
    // A seal without a key, which is made at init, has nothing to be exercised with.
    if report.key_id.is_empty() {
        let advice = "prepare the key (keystead hsm init), or let init make it (generate_key = true)";
        return Check::warn(&name, format!("{}: it has no key yet", report.description), advice);
    }
    match seal::exercise(seal).await {
        Ok(_) => Check::ok(&name, report.description),
        Err(fault) => failed(&name, &fault),
    }
}

/// A vault that is not initialised yet may do with a seal that is there later; one that is open goes on without it.
fn failed(name: &str, fault: &SealFault) -> Check {
    let advice = match fault {
        SealFault::Unavailable(_) => "see that the module, the token or the key file is there",
        SealFault::NeedsOperator(_) => "correct this before the server is started",
        SealFault::NotOurs(_) => "see that the stanza names the right token and key",
    };
    Check::fail(name, fault.to_string(), advice)
}

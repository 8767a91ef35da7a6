//! What the vault at an address has wrapped by its seals, as `hsm status` and `hsm sync` show it.

use serde_json::Value;

use crate::cli::api_error::ApiError;
use crate::cli::output::{self, Document};
use crate::cli::secret::Secret;
use crate::cli::session::Session;

/// The endpoint.
pub const PATH: &str = "sys/seal-backend-sync";

/// One seal's wrap, as the leader sees it.
pub struct Wrap {
    /// The seal's name.
    pub seal: String,
    state: String,
    root_generation: u64,
    wrap_id: String,
    wrapped_by: String,
    key: String,
    why: String,
}

/// Asks the vault how its wraps stand.
///
/// # Errors
/// The server's.
pub fn read(session: &Session) -> Result<Vec<Wrap>, ApiError> {
    session.read(PATH, &[]).map(|answer| of(answer.as_ref()))
}

/// The wraps in an answer.
pub fn of(answer: Option<&Secret>) -> Vec<Wrap> {
    let seals = answer.and_then(|secret| secret.data.as_ref()?.get("seals")?.as_array());
    let wrap = |seal: &Value| {
        let text = |key: &str| seal.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Wrap {
            seal: text("name"),
            state: text("state"),
            root_generation: seal.get("root_generation").and_then(Value::as_u64).unwrap_or(0),
            wrap_id: text("wrap_id"),
            wrapped_by: text("wrapped_by"),
            key: text("key"),
            why: text("why"),
        }
    };
    seals.into_iter().flatten().map(wrap).collect()
}

impl Wrap {
    /// Whether nothing is to be done about it.
    pub fn is_settled(&self) -> bool {
        matches!(self.state.as_str(), "agrees" | "disabled")
    }

    /// Takes note of the newest key on the token that this side sees: the leader may see another one.
    pub fn beside(&mut self, key: &str) {
        if self.state == "agrees" && self.key != key {
            self.state = "differs".to_owned();
            self.why = format!("the leader's token has the newest key {}, and the one here {key}", self.key);
        }
    }

    /// For programs.
    pub fn document(&self) -> Document {
        Document::object([
            ("state", Value::from(self.state.as_str())),
            ("root_generation", self.root_generation.into()),
            ("wrap_id", self.wrap_id.as_str().into()),
            ("wrapped_by", self.wrapped_by.as_str().into()),
            ("key", self.key.as_str().into()),
            ("why", self.why.as_str().into()),
        ])
    }
}

/// A line for each wrap, and what is to be done about those that do not agree.
pub fn table(wraps: &[Wrap]) -> String {
    let row = |wrap: &Wrap| {
        let none = wrap.wrapped_by.is_empty();
        vec![
            wrap.seal.clone(),
            wrap.state.clone(),
            if none { "-".to_owned() } else { wrap.root_generation.to_string() },
            if none { "-".to_owned() } else { wrap.wrap_id.get(..8).unwrap_or_default().to_owned() },
            if none { "-".to_owned() } else { wrap.wrapped_by.clone() },
        ]
    };
    let rows: Vec<_> = wraps.iter().map(row).collect();
    let mut text = output::table(&["Seal", "Wrap", "Root Generation", "Wrap Id", "Wrapped By"], &rows);
    for wrap in wraps.iter().filter(|wrap| !wrap.is_settled()) {
        let why = if wrap.why.is_empty() { String::new() } else { format!("{}; ", wrap.why) };
        text.push_str(&format!("\n\n{}: {why}{}", wrap.seal, remedy(&wrap.state)));
    }
    text
}

fn remedy(state: &str) -> &'static str {
    match state {
        "stale" => {
            "wrapped by an older key; `keystead hsm sync` wraps by the newest one now, the leader does within a minute"
        }
        "missing" => "this seal cannot open the vault; `keystead hsm sync` wraps by it once it works",
        "does-not-open" => {
            "restore the seal's key, or, if its present key is the right one, wrap by that with `keystead hsm sync`"
        }
        "unreachable" => "bring the seal back; nothing can be said of the wrap meanwhile",
        "no-stanza" => {
            "no stanza of the leader names this seal, whose key still opens the vault; `keystead hsm sync -prune` \
                        takes the wrap out"
        }
        "differs" => {
            "the nodes use different tokens under one name; correct the stanza, or give each its own name"
        }
        _ => "look at the leader's log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrap(state: &str, key: &str) -> Wrap {
        let text = |text: &str| text.to_owned();
        Wrap {
            seal: text("zone-a"),
            state: text(state),
            root_generation: 3,
            wrap_id: text("586a7b2e77"),
            wrapped_by: text("keystead:01"),
            key: text(key),
            why: String::new(),
        }
    }

    #[test]
    fn two_tokens_of_one_name_are_found_out() {
        let mut same = wrap("agrees", "keystead:01");
        same.beside("keystead:01");
        assert!(same.is_settled());
        let mut other = wrap("agrees", "keystead:01");
        other.beside("keystead:09");
        assert!(!other.is_settled());
        let shown = table(&[same, other]);
        assert!(shown.contains("zone-a    differs    3                  586a7b2e    keystead:01"), "{shown}");
        assert!(shown.contains("and the one here keystead:09; the nodes use different tokens"), "{shown}");
    }

    #[test]
    fn what_is_missing_has_no_generation_and_a_remedy() {
        let shown = table(&[Wrap { wrapped_by: String::new(), ..wrap("missing", "") }]);
        assert!(shown.contains("zone-a    missing    -                  -          -"), "{shown}");
        assert!(shown.contains("zone-a: this seal cannot open the vault"), "{shown}");
    }
}

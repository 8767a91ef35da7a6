//! The environment a command runs in, read once: variables and the home directory.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

/// What stands in front of a setting's name: ours, then those of the programs whose users' shells are set up
/// already. OpenBao's command line prefers its own to Vault's, too.
const PREFIXES: [&str; 3] = ["KEYSTEAD_", "BAO_", "VAULT_"];

/// A copy of the process's environment variables; tests make their own.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<OsString, OsString>,
}

impl Environment {
    /// What this process was started with.
    pub fn of_process() -> Environment {
        Environment { variables: std::env::vars_os().collect() }
    }

    /// A setting by its name without prefix: that of the first of [`PREFIXES`] with which it is set, even to
    /// nothing.
    ///
    /// Text that is not UTF-8 counts as not set.
    pub fn setting(&self, name: &str) -> Option<&str> {
        let values = PREFIXES.iter().map(|prefix| self.variables.get(OsStr::new(&format!("{prefix}{name}"))));
        values.flatten().next().and_then(|value| value.to_str())
    }

    /// A variable by its whole name.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(OsStr::new(name)).and_then(|value| value.to_str())
    }

    /// Like [`Environment::setting`], an empty text counting as not set.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.setting(name).filter(|value| !value.is_empty())
    }

    /// The name of the variable that a setting comes from, for messages.
    pub fn name_of(&self, name: &str) -> String {
        let names = PREFIXES.iter().map(|prefix| format!("{prefix}{name}"));
        let mut set = names.filter(|name| self.variables.contains_key(OsStr::new(name)));
        set.next().unwrap_or_else(|| format!("VAULT_{name}"))
    }

    /// The user's home directory, from `HOME`.
    pub fn home(&self) -> Option<PathBuf> {
        let home = self.variables.get(OsStr::new("HOME")).filter(|home| !home.is_empty());
        home.map(PathBuf::from)
    }

    /// The same with one variable more.
    pub fn with(mut self, name: &str, value: impl Into<OsString>) -> Environment {
        self.variables.insert(name.into(), value.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_prefix_wins_whenever_it_is_set() {
        let vault = Environment::default().with("VAULT_ADDR", "http://v");
        assert_eq!((vault.setting("ADDR"), vault.name_of("ADDR").as_str()), (Some("http://v"), "VAULT_ADDR"));
        let ours = vault.with("KEYSTEAD_ADDR", "");
        assert_eq!((ours.setting("ADDR"), ours.non_empty("ADDR")), (Some(""), None));
        assert_eq!(ours.setting("TOKEN"), None);
        let bao = Environment::default().with("VAULT_ADDR", "http://v").with("BAO_ADDR", "http://b");
        assert_eq!((bao.setting("ADDR"), bao.name_of("ADDR").as_str()), (Some("http://b"), "BAO_ADDR"));
    }
}

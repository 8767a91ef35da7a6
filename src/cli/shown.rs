//! What is shown in place of a request: parts of its curl command, and the policy it needs.

use std::path::PathBuf;

use http::HeaderName;

/// Text for single quotes in a shell.
pub(super) fn quoted(text: &str) -> String {
    text.replace('\'', r#"'"'"'"#)
}

/// Text for double quotes in a shell.
pub(super) fn in_double_quotes(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '\\' | '"' | '$' | '`') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// A header's name as Go spells it: `X-Vault-Wrap-Ttl`.
pub(super) fn canonical(name: &HeaderName) -> String {
    let word = |word: &str| {
        let (first, rest) = word.split_at(word.len().min(1));
        format!("{}{rest}", first.to_ascii_uppercase())
    };
    name.as_str().split('-').map(word).collect::<Vec<_>>().join("-")
}

/// The TLS settings that curl has options for.
#[derive(Default)]
pub(super) struct CurlTls {
    pub(super) skip_verify: bool,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) ca_path: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
}

impl CurlTls {
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let files = [
            ("--cacert", &self.ca_file),
            ("--capath", &self.ca_path),
            ("--cert", &self.client_cert),
            ("--key", &self.client_key),
        ];
        files.into_iter().filter_map(|(option, file)| Some((option, file.as_ref()?)))
    }
}

/// The policy that a request needs.
pub(super) fn policy_for(method: &str, path: &str, query: &[(&str, &str)]) -> String {
    let mut capabilities = match method {
        "GET" if query.contains(&("list", "true")) => vec!["list"],
        "GET" => vec!["read"],
        "DELETE" => vec!["delete"],
        "PATCH" => vec!["patch"],
        _ => vec!["create", "update"],
    };
    if needs_sudo(path) {
        capabilities.push("sudo");
    }
    format!("path \"{path}\" {{\n  capabilities = {capabilities:?}\n}}")
}

/// Whether a path is one of those that the API keeps for whoever has the `sudo` capability on them.
fn needs_sudo(path: &str) -> bool {
    const WHOLE: [&str; 9] = [
        "auth/token/accessors",
        "sys/audit",
        "sys/config/cors",
        "sys/leases",
        "sys/raw",
        "sys/remount",
        "sys/rotate",
        "sys/seal",
        "sys/step-down",
    ];
    const UNDER: [&str; 9] = [
        "sys/audit/",
        "sys/auth/",
        "sys/config/auditing/",
        "sys/config/ui/headers/",
        "sys/leases/lookup/",
        "sys/leases/revoke-force/",
        "sys/leases/revoke-prefix/",
        "sys/plugins/catalog/",
        "sys/raw/",
    ];
    WHOLE.contains(&path.trim_end_matches('/')) || UNDER.iter().any(|front| path.starts_with(front))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_name_what_a_request_needs() {
        assert_eq!(
            policy_for("GET", "secret/data/a", &[]),
            "path \"secret/data/a\" {\n  capabilities = [\"read\"]\n}"
        );
        assert!(policy_for("GET", "p", &[("list", "true")]).contains("[\"list\"]"));
        assert!(policy_for("PUT", "p", &[]).contains("[\"create\", \"update\"]"));
        assert!(policy_for("PUT", "sys/remount", &[]).contains("[\"create\", \"update\", \"sudo\"]"));
        assert!(policy_for("GET", "sys/audits", &[]).contains("[\"read\"]"));
    }

    #[test]
    fn a_shell_takes_quoted_texts_as_they_are() {
        assert_eq!(quoted("it's"), r#"it'"'"'s"#);
        assert_eq!(in_double_quotes(r#"a"b$c`d\e"#), r#"a\"b\$c\`d\\e"#);
        assert_eq!(canonical(&HeaderName::from_static("x-vault-wrap-ttl")), "X-Vault-Wrap-Ttl");
    }
}

//! Where a secret is: which engine, which version of it, and the API's path.

use serde_json::Value;

use super::super::logical::trimmed;
use crate::cli::Invocation;
use crate::cli::api_error::ApiError;
use crate::cli::secret::Secret;
use crate::cli::session::Session;

/// A secret's place, as found out from the server.
pub struct Place {
    /// The engine's path, as far as it is known, without slashes around it.
    mount: String,
    /// The secret's name; without `-mount`, with the mount's path in front.
    name: String,
    mount_was_given: bool,
    /// Whether the engine keeps versions.
    pub versioned: bool,
}

impl Place {
    /// Takes the secret's name from the arguments and asks the server for its engine.
    ///
    /// # Errors
    /// The exit code; the message is printed.
    pub fn find(invocation: &mut Invocation<'_, '_>, session: &Session) -> Result<Place, i32> {
        let name = invocation.args.first().map_or("", |name| trimmed(name)).to_owned();
        let given = invocation.flags.text("mount").map(|mount| trimmed(mount).to_owned());
        let asked = given.as_deref().unwrap_or(&name);
        match ask(session, asked) {
            Ok((mount, versioned)) => {
                let mount_was_given = given.is_some();
                let mount = given.unwrap_or_else(|| trimmed(&mount).to_owned());
                Ok(Place { mount, name, mount_was_given, versioned })
            }
            // The server's own words say best what is wrong; there is nothing to put in front of them.
            Err(error) => Err(invocation.refused("", &error)),
        }
    }

    /// The API's path of one aspect of the secret (`data`, `metadata`, `delete`, ...). An engine without
    /// versions has none of these, and so the same path for all.
    pub fn path(&self, aspect: &str) -> String {
        match (self.mount_was_given, self.versioned) {
            (true, true) => joined(&[&self.mount, aspect, &self.name]),
            (true, false) => joined(&[&self.mount, &self.name]),
            (false, true) => with_aspect(&self.name, &self.mount, aspect),
            (false, false) => self.name.clone(),
        }
    }
}

/// The mount of a path, and whether it keeps versions. A server that does not know the question, or the
/// path, means an engine without versions.
fn ask(session: &Session, path: &str) -> Result<(String, bool), ApiError> {
    let response = match session.preflight(&format!("sys/internal/ui/mounts/{path}")) {
        Ok(response) => response,
        Err(error) if error.status() == Some(404) => return Ok((String::new(), false)),
        Err(error) => return Err(error),
    };
    let secret = Secret::parse(&response.body)
        .map_err(|error| ApiError::Unreadable(format!("error parsing the pre-flight answer: {error}")))?;
    let data = secret.data.unwrap_or_default();
    let mount = data.get("path").and_then(Value::as_str).unwrap_or_default().to_owned();
    let version = data.get("options").and_then(|options| options.get("version"));
    Ok((mount, version.and_then(Value::as_str) == Some("2")))
}

/// Puts the aspect between the mount and the rest of a path.
fn with_aspect(path: &str, mount: &str, aspect: &str) -> String {
    // Inside a namespace the server may name the mount by a longer path than the operator did: leading
    // segments are dropped until the rest is found.
    let mut mount = mount;
    loop {
        if path == mount {
            return joined(&[mount, aspect]);
        }
        match path.strip_prefix(mount).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) if !mount.is_empty() => return joined(&[mount, aspect, rest]),
            _ => match mount.split_once('/') {
                Some((_, shorter)) => mount = shorter,
                None => return joined(&[mount, aspect, path]),
            },
        }
    }
}

fn joined(segments: &[&str]) -> String {
    segments.iter().filter(|segment| !segment.is_empty()).copied().collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_aspect_goes_between_mount_and_name() {
        assert_eq!(with_aspect("secret/app/db", "secret", "data"), "secret/data/app/db");
        assert_eq!(with_aspect("secret", "secret", "metadata"), "secret/metadata");
        assert_eq!(with_aspect("team/kv/a", "team/kv", "data"), "team/kv/data/a");
        assert_eq!(with_aspect("kv/a", "ns1/kv", "data"), "kv/data/a");
        assert_eq!(with_aspect("secrets/a", "secret", "data"), "secret/data/secrets/a");
    }
}

//! Where a server is: scheme, host, port and base path, parsed once from what the operator wrote.

use std::fmt;

/// How the bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain TCP.
    Http,
    /// TLS over TCP.
    Https,
}

impl Scheme {
    /// The scheme as it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// A server's address as parsed from `http[s]://host[:port][/base]`.
///
/// The base path has no trailing slash; it is put in front of every request's path, for servers behind a
/// proxy that gives them a sub-path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    scheme: Scheme,
    host: String,
    port: u16,
    port_was_written: bool,
    base_path: String,
}

/// Why a text is no usable address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// There is no `://`, or what stands before it is neither http nor https.
    #[error("address {0:?} needs http:// or https:// in front")]
    Scheme(String),
    /// There is no host between the scheme and the path.
    #[error("address {0:?} names no host")]
    Host(String),
    /// What follows the last colon is no port number.
    #[error("address {0:?} has an invalid port")]
    Port(String),
    /// A user name or password stands in front of the host; tokens are the only credentials here.
    #[error("the address must not carry a user name or password")]
    UserInfo,
}

impl Address {
    /// Parses an address; query and fragment are dropped.
    ///
    /// # Errors
    /// Anything that is not `http` or `https`, has no host, or has a bad port.
    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let text = text.trim();
        let (scheme, rest) = text.split_once("://").ok_or_else(|| AddressError::Scheme(text.to_owned()))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(AddressError::Scheme(text.to_owned())),
        };
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if authority.contains('@') {
            return Err(AddressError::UserInfo);
        }
        let (host, port) = split_port(authority).ok_or_else(|| AddressError::Port(text.to_owned()))?;
        let well_formed =
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&b));
        if !well_formed {
            return Err(AddressError::Host(text.to_owned()));
        }
        Ok(Address {
            scheme,
            host: host.to_owned(),
            port: port.unwrap_or(scheme.default_port()),
            port_was_written: port.is_some(),
            base_path: escape_path(path.trim_end_matches('/')),
        })
    }

    /// Plain or TLS.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port, the scheme's default one where none was written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The path in front of every request's path; empty or `/something`, never ending in a slash.
    pub fn base_path(&self) -> &str {
        &self.base_path
    }

    /// `host[:port]` as written, the value of the `Host` header.
    pub fn authority(&self) -> String {
        if self.port_was_written { self.host_and_port() } else { self.bracketed_host() }
    }

    /// `host:port`, the port always there.
    pub fn host_and_port(&self) -> String {
        format!("{}:{}", self.bracketed_host(), self.port)
    }

    fn bracketed_host(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority(), self.base_path)
    }
}

/// Splits `host[:port]`; `None` if the port is no number.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        match after {
            "" => (host, ""),
            _ => (host, after.strip_prefix(':')?),
        }
    } else {
        match authority.rsplit_once(':') {
            Some((host, port)) => (host, port),
            None => (authority, ""),
        }
    };
    match port {
        "" => Some((host, None)),
        _ => port.parse().ok().map(|port| (host, Some(port))),
    }
}

/// Percent-encodes a path as Go's `net/url` does, leaving `/` and the characters legal in a segment.
///
/// A `%` is encoded too: what is given here is a name, never an encoding.
pub fn escape_path(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            escaped.push(byte as char);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let address = Address::parse("https://vault.example:8200/base/").unwrap();
        assert_eq!(address.scheme(), Scheme::Https);
        assert_eq!((address.host(), address.port(), address.base_path()), ("vault.example", 8200, "/base"));
        assert_eq!(address.to_string(), "https://vault.example:8200/base");
    }

    #[test]
    fn the_default_port_is_not_shown_but_dialled() {
        let address = Address::parse("http://h").unwrap();
        assert_eq!((address.authority().as_str(), address.host_and_port().as_str()), ("h", "h:80"));
    }

    #[test]
    fn ipv6_hosts_keep_their_brackets_in_urls_only() {
        let address = Address::parse("http://[::1]:8200").unwrap();
        assert_eq!((address.host(), address.authority().as_str()), ("::1", "[::1]:8200"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        assert!(matches!(Address::parse("127.0.0.1:8200"), Err(AddressError::Scheme(_))));
        assert!(matches!(Address::parse("ftp://h"), Err(AddressError::Scheme(_))));
        assert!(matches!(Address::parse("http://"), Err(AddressError::Host(_))));
        assert!(matches!(Address::parse("http://a b"), Err(AddressError::Host(_))));
        assert!(matches!(Address::parse("http://h:99999"), Err(AddressError::Port(_))));
        assert!(matches!(Address::parse("http://u:p@h"), Err(AddressError::UserInfo)));
    }

    #[test]
    fn paths_are_escaped_as_names() {
        assert_eq!(escape_path("secret/data/a b%2F?ü"), "secret/data/a%20b%252F%3F%C3%BC");
        assert_eq!(escape_path("a+b;c=d:e@f"), "a+b;c=d:e@f");
    }
}

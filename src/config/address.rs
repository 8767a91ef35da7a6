//! Addresses: where a listener binds, and the URLs that nodes and clients are told.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::section::printable;

/// Where a listener binds: an IP address or a name, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddress {
    /// The host, an IPv6 address without its brackets. `:8200` is every address of the machine: `::`.
    pub host: String,
    /// The port; 0 lets the operating system choose.
    pub port: u16,
}

impl ListenAddress {
    /// Reads `host:port`, `[v6]:port` or `:port`.
    ///
    /// # Errors
    /// A phrase that follows the name of the key, such as `has no port`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.contains("{{") {
            return Err(
                "is an address template (go-sockaddr), which is not built; write the address itself".into()
            );
        }
        let example = "write it as \"127.0.0.1:8200\", \"[::1]:8200\" or \":8200\"";
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!("has a scheme ({}://), but takes host and port only", printable(scheme)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("has no port; {example}"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => {
                v6.parse::<Ipv6Addr>().map_err(|_| format!("is no IPv6 address; {example}"))?;
                v6
            }
            None if host.contains(':') => {
                return Err("is an IPv6 address without brackets; write \"[::1]:8200\"".into());
            }
            None if host.is_empty() => "::",
            None if is_host(host) => host,
            None => return Err(format!("is no host and port; {example}")),
        };
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = Some(port).filter(|_| digits).and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| "has a port that is not a number from 0 to 65535".to_owned())?;
        Ok(Self { host: host.to_owned(), port })
    }

    /// The address one port up, where Vault puts the cluster listener. Port 0 stays 0.
    ///
    /// `None` after port 65535.
    #[must_use]
    pub fn next_port(&self) -> Option<Self> {
        let port = if self.port == 0 { 0 } else { self.port.checked_add(1)? };
        Some(Self { host: self.host.clone(), port })
    }

    /// Whether binding the one keeps the other from being bound: same port, and hosts equal or one of them "all".
    #[must_use]
    pub fn collides_with(&self, other: &Self) -> bool {
        let (mine, theirs) = (Host::of(&self.host), Host::of(&other.host));
        let overlap = match (&mine, &theirs) {
            (Host::Ip(a), Host::Ip(b)) => {
                let same_family = a.is_ipv4() == b.is_ipv4();
                // A socket on `::` takes IPv4 connections too.
                let all = |ip: &IpAddr| ip.is_unspecified() && (same_family || ip.is_ipv6());
                a == b || all(a) || all(b)
            }
            (Host::Ip(ip), Host::Name(_)) | (Host::Name(_), Host::Ip(ip)) => ip.is_unspecified(),
            (Host::Name(a), Host::Name(b)) => a == b,
        };
        self.port != 0 && self.port == other.port && overlap
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Host {
    fn of(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Name(text.to_lowercase()), Self::Ip)
    }
}

/// A range of client addresses: `10.0.0.0/8`, or one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpRange {
    /// The network's address, with the bits after the prefix as they were written.
    pub address: IpAddr,
    /// How many leading bits an address must share.
    pub prefix_bits: u8,
}

impl IpRange {
    /// Reads an address, or an address and a prefix length.
    ///
    /// # Errors
    /// A phrase that follows the name of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let error = || {
            format!("has an entry that is no address and no range such as \"10.0.0.0/8\": {}", quoted(text))
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| error())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = prefix.map_or(Ok(longest), str::parse).map_err(|_| error())?;
        if prefix_bits > longest {
            return Err(error());
        }
        Ok(Self { address, prefix_bits })
    }

    /// Whether an address is in the range. An IPv4 address is in no IPv6 range, nor the other way round.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (mine, theirs, width) = match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        // A shift by all 128 bits is what a prefix of none asks for; there is no such shift.
        (mine ^ theirs).checked_shr(width - u32::from(self.prefix_bits)).unwrap_or(0) == 0
    }
}

/// The address at which clients and other nodes reach this node's API: `https://host[:port][/path]`.
///
/// A slash at the end is taken away.
///
/// # Errors
/// A phrase that follows the name of the key.
pub fn api_url(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| no_scheme(text))?;
    if !matches!(scheme, "http" | "https") {
        return Err(format!("has the scheme {}; it must be https or http", quoted(scheme)));
    }
    let authority = rest.split('/').next().unwrap_or_default();
    check_authority(authority, false)?;
    if rest.contains(['?', '#']) {
        return Err("has a query or fragment; leave it out".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The address at which other nodes reach this node's cluster port: `https://host:port`.
///
/// `http://` is accepted, as in Vault, and read as `https://`: that port speaks TLS only.
///
/// # Errors
/// A phrase that follows the name of the key.
pub fn cluster_url(text: &str) -> Result<String, String> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| no_scheme(text))?;
    if !matches!(scheme, "http" | "https") {
        return Err(format!("has the scheme {}; it must be https", quoted(scheme)));
    }
    let authority = rest.trim_end_matches('/');
    check_authority(authority, true)?;
    Ok(format!("https://{authority}"))
}

fn no_scheme(text: &str) -> String {
    let named = if text.contains(['@', '/']) {
        String::new()
    } else {
        format!(": write \"https://{}\"", printable(text))
    };
    format!("has no scheme{named}")
}

fn check_authority(authority: &str, needs_port: bool) -> Result<(), String> {
    if authority.contains('@') {
        return Err("contains a user or password; leave it out".to_owned());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !authority.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::parse::<Ipv6Addr>);
    let valid = match is_v6 {
        Some(parsed) => parsed.is_ok(),
        None => is_host(host),
    };
    if !valid {
        return Err(format!("has no valid host: {}", quoted(authority)));
    }
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p > 0)
    };
    match port {
        Some(port) if !is_port(port) => Err("has a port that is not a number from 1 to 65535".to_owned()),
        None if needs_port => Err("has no port; Vault's is 8201".to_owned()),
        _ => Ok(()),
    }
}

fn is_host(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !text.is_empty() && text.len() <= 253 && text.chars().all(letter)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> ListenAddress {
        ListenAddress::parse(text).expect("an address")
    }

    #[test]
    fn a_range_contains_what_shares_its_prefix() {
        let contains = |range: &str, ip: &str| IpRange::parse(range).unwrap().contains(ip.parse().unwrap());
        for (range, ip, inside) in [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7", "10.0.0.6", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("::/0", "fe80::1", true),
            ("::/0", "1.2.3.4", false),
            ("fd00::/9", "fd80::1", false),
        ] {
            assert_eq!(contains(range, ip), inside, "{range} {ip}");
        }
    }

    #[test]
    fn listen_addresses_are_read_and_written_alike() {
        for (text, shown) in [
            ("127.0.0.1:8200", "127.0.0.1:8200"),
            ("[::1]:8200", "[::1]:8200"),
            (":8200", "[::]:8200"),
            ("localhost:0", "localhost:0"),
            ("vault-0.vault-internal:65535", "vault-0.vault-internal:65535"),
        ] {
            assert_eq!(listen(text).to_string(), shown);
        }
    }

    #[test]
    fn bad_listen_addresses_are_refused_with_a_remedy() {
        for (text, phrase) in [
            ("127.0.0.1", "no port"),
            ("", "no port"),
            ("::1:8200", "brackets"),
            ("[::x]:8200", "no IPv6 address"),
            ("127.0.0.1:http", "port"),
            ("127.0.0.1:65536", "port"),
            ("127.0.0.1:+1", "port"),
            ("http://127.0.0.1:8200", "scheme"),
            ("a b:1", "no host"),
            ("{{ GetPrivateIP }}:8200", "template"),
        ] {
            let error = ListenAddress::parse(text).expect_err(text);
            assert!(error.contains(phrase), "{text}: {error}");
        }
    }

    #[test]
    fn the_next_port_ends_at_the_last_one() {
        assert_eq!(listen("a:8200").next_port(), Some(listen("a:8201")));
        assert_eq!(listen("a:0").next_port(), Some(listen("a:0")));
        assert_eq!(listen("a:65535").next_port(), None);
    }

    #[test]
    fn collisions_see_through_wildcards_and_families() {
        let collide = |a, b| listen(a).collides_with(&listen(b)) && listen(b).collides_with(&listen(a));
        assert!(collide("127.0.0.1:1", "127.0.0.1:1"));
        assert!(collide("0.0.0.0:1", "127.0.0.1:1"));
        assert!(collide(":1", "127.0.0.1:1"));
        assert!(collide("Host:1", "host:1"));
        assert!(collide("0.0.0.0:1", "host:1"));
        assert!(!collide("127.0.0.1:1", "127.0.0.1:2"));
        assert!(!collide("127.0.0.1:1", "127.0.0.2:1"));
        assert!(!collide("0.0.0.0:1", "[::1]:1"));
        assert!(!collide("127.0.0.1:0", "127.0.0.1:0"));
    }

    #[test]
    fn api_urls_need_a_scheme_and_a_host() {
        assert_eq!(api_url("https://vault.example.com:8200/"), Ok("https://vault.example.com:8200".into()));
        assert_eq!(api_url("http://[::1]:8200"), Ok("http://[::1]:8200".into()));
        assert_eq!(api_url("https://lb/prefix"), Ok("https://lb/prefix".into()));
        assert_eq!(api_url("127.0.0.1:8200"), Err("has no scheme: write \"https://127.0.0.1:8200\"".into()));
        for text in [
            "https://",
            "ftp://a",
            "https://a:b",
            "https://a:0",
            "https://a?x",
            "https://u:p@a",
            "https://a b",
        ] {
            let error = api_url(text).expect_err(text);
            assert!(!error.contains("u:p"), "{error}");
        }
    }

    #[test]
    fn cluster_urls_have_a_port_and_become_https() {
        assert_eq!(cluster_url("http://127.0.0.1:8201"), Ok("https://127.0.0.1:8201".into()));
        assert_eq!(cluster_url("https://[fd00::1]:8201/"), Ok("https://[fd00::1]:8201".into()));
        for text in
            ["127.0.0.1:8201", "https://node1", "https://node1:8201/path", "tcp://a:1", "https://[::1]"]
        {
            assert!(cluster_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_are_addresses_or_prefixes() {
        let range = |text| IpRange::parse(text).map(|range| range.prefix_bits);
        assert_eq!(range("10.0.0.0/8"), Ok(8));
        assert_eq!(range("10.1.2.3"), Ok(32));
        assert_eq!(range("fd00::/64"), Ok(64));
        for text in ["10.0.0.0/33", "10.0.0/8", "host", "", "10.0.0.0/", "::/129"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}

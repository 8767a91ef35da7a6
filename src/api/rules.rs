//! What one listener asks of requests and adds to answers, as its configuration says.

use std::{net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{
    config::{
        DEFAULT_MAX_REQUEST_DURATION, DEFAULT_MAX_REQUEST_SIZE_BYTES, HttpTimeouts, ListenerKeyHolders,
        ListenerMetrics, StatusHeaders, XForwardedFor,
    },
    core::error::ApiError,
};

/// Connections that one listener serves at a time, where the system allows the process that many files.
pub const MAX_CONNECTIONS: usize = 4_096;

/// The rules of one listener.
#[derive(Debug, Clone)]
pub struct ListenerRules {
    /// The longest body, in bytes.
    pub max_body_bytes: usize,
    /// How long a request may take.
    pub max_request: Duration,
    /// How long a connection may be slow or idle.
    pub timeouts: HttpTimeouts,
    /// Connections at a time.
    pub max_connections: usize,
    /// Whose `X-Forwarded-For` is believed.
    pub x_forwarded_for: XForwardedFor,
    /// Refuse requests without `X-Vault-Request: true`.
    pub require_request_header: bool,
    /// What becomes of requests for metrics.
    pub metrics: ListenerMetrics,
    /// What key holders cannot do here without a token.
    pub key_holders: ListenerKeyHolders,
    /// Headers that every answer gets, or those of one status or group.
    pub headers: ResponseHeaders,
}

impl ListenerRules {
    /// Whether an address is a proxy's that speaks for many clients.
    pub(super) fn speaks_for_others(&self, address: IpAddr) -> bool {
        self.x_forwarded_for.authorized.iter().any(|range| range.contains(address.to_canonical()))
    }
}

impl Default for ListenerRules {
    fn default() -> Self {
        Self {
            max_body_bytes: usize::try_from(DEFAULT_MAX_REQUEST_SIZE_BYTES).unwrap_or(usize::MAX),
            max_request: DEFAULT_MAX_REQUEST_DURATION,
            timeouts: HttpTimeouts::default(),
            max_connections: MAX_CONNECTIONS,
            x_forwarded_for: XForwardedFor::default(),
            require_request_header: false,
            metrics: ListenerMetrics::default(),
            key_holders: ListenerKeyHolders::default(),
            headers: ResponseHeaders::default(),
        }
    }
}

/// Headers to add to answers, the most general first, so that the more exact take their place.
#[derive(Debug, Clone, Default)]
pub struct ResponseHeaders(Vec<(Statuses, HeaderName, Vec<HeaderValue>)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Statuses {
    All,
    /// By the first digit.
    Group(u16),
    One(u16),
}

impl ResponseHeaders {
    /// Reads what `custom_response_headers` says.
    ///
    /// # Errors
    /// A phrase that names a header which HTTP does not allow.
    pub fn read(configured: &[StatusHeaders]) -> Result<Self, String> {
        let mut all = Vec::new();
        for group in configured {
            let statuses = match group.status.as_str() {
                "default" => Statuses::All,
                text => match text.parse() {
                    Ok(status) => Statuses::One(status),
                    Err(_) => Statuses::Group(u16::from(text.as_bytes()[0].saturating_sub(b'0'))),
                },
            };
            for (name, values) in &group.headers {
                let wrong =
                    || format!("custom_response_headers: {name:?} is no header, or its value is no text");
                let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
                let values = values.iter().map(|value| HeaderValue::from_str(value));
                all.push((statuses, header, values.collect::<Result<_, _>>().map_err(|_| wrong())?));
            }
        }
        all.sort_by_key(|(statuses, ..)| *statuses);
        Ok(Self(all))
    }

    /// Adds a header to every answer, beside those that are configured.
    pub fn add(&mut self, name: &'static str, value: &str) {
        // What is no header value is left out: it is a host's or node's name, and nobody depends on it.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.insert(0, (Statuses::All, HeaderName::from_static(name), vec![value]));
        }
    }

    /// Puts the headers on an answer. A configured header takes the place of one of ours.
    pub(super) fn apply(&self, status: StatusCode, headers: &mut HeaderMap) {
        for (statuses, name, values) in &self.0 {
            let fits = match statuses {
                Statuses::All => true,
                Statuses::Group(digit) => status.as_u16() / 100 == *digit,
                Statuses::One(code) => status.as_u16() == *code,
            };
            if !fits {
                continue;
            }
            headers.remove(name);
            for value in values {
                headers.append(name, value.clone());
            }
        }
    }
}

/// The address of whoever sent a request: the connection's, or the one that a trusted proxy names.
///
/// # Errors
/// [`ApiError::Invalid`] when the configuration wants such requests refused.
pub(super) fn client_ip(
    rules: &XForwardedFor,
    peer: Option<IpAddr>,
    headers: &HeaderMap,
) -> Result<Option<IpAddr>, ApiError> {
    let (Some(peer), false) = (peer, rules.authorized.is_empty()) else {
        return Ok(peer);
    };
    let mut lines = headers.get_all("x-forwarded-for").iter().peekable();
    if lines.peek().is_none() {
        if rules.reject_not_present {
            return Err(ApiError::invalid(
                "missing x-forwarded-for header and configured to reject when not present",
            ));
        }
        return Ok(Some(peer));
    }
    // An IPv4 client of a socket that takes both looks like an IPv6 one.
    if !rules.authorized.iter().any(|range| range.contains(peer.to_canonical())) {
        if rules.reject_not_authorized {
            return Err(ApiError::invalid(
                "client address not authorized for x-forwarded-for and configured to reject connection",
            ));
        }
        return Ok(Some(peer));
    }
    let malformed = || ApiError::invalid("malformed x-forwarded-for header");
    let mut chain = Vec::new();
    for line in lines {
        chain.extend(line.to_str().map_err(|_| malformed())?.split(',').map(str::trim));
    }
    let skips = usize::try_from(rules.hop_skips).unwrap_or(usize::MAX);
    let at = chain.len().checked_sub(1).and_then(|last| last.checked_sub(skips)).ok_or_else(|| {
        ApiError::invalid(format!(
            "malformed x-forwarded-for configuration or request, hops to skip ({skips}) would skip before \
             earliest chain link (chain length {})",
            chain.len()
        ))
    })?;
    chain[at].parse().map(Some).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IpRange;

    #[test]
    fn the_more_exact_header_wins() {
        let group = |status: &str, pairs: &[(&str, &str)]| StatusHeaders {
            status: status.to_owned(),
            headers: pairs.iter().map(|(k, v)| ((*k).to_owned(), vec![(*v).to_owned()])).collect(),
        };
        let headers = ResponseHeaders::read(&[
            group("404", &[("X-A", "exact")]),
            group("4xx", &[("X-A", "group"), ("X-B", "group")]),
            group("default", &[("X-A", "all"), ("Cache-Control", "private")]),
        ])
        .unwrap();
        let applied = |status: u16| {
            let mut map = HeaderMap::new();
            map.insert("cache-control", HeaderValue::from_static("no-store"));
            headers.apply(StatusCode::from_u16(status).unwrap(), &mut map);
            let text = |name: &str| map.get(name).map(|v| v.to_str().unwrap().to_owned());
            (text("x-a").unwrap(), text("x-b"), text("cache-control").unwrap())
        };
        assert_eq!(applied(404), ("exact".to_owned(), Some("group".to_owned()), "private".to_owned()));
        assert_eq!(applied(400).0, "group");
        assert_eq!(applied(200), ("all".to_owned(), None, "private".to_owned()));
        for (name, value) in [("a b", "x"), ("X", "a\nb"), ("", "x")] {
            assert!(ResponseHeaders::read(&[group("200", &[(name, value)])]).is_err(), "{name}");
        }
    }

    #[test]
    fn only_trusted_proxies_name_the_client() {
        let rules = XForwardedFor {
            authorized: vec![IpRange::parse("10.0.0.0/8").unwrap(), IpRange::parse("fd00::/8").unwrap()],
            ..XForwardedFor::default()
        };
        let lax = XForwardedFor { reject_not_authorized: false, reject_not_present: false, ..rules.clone() };
        let skip = XForwardedFor { hop_skips: 1, ..rules.clone() };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let find = |rules: &XForwardedFor, peer: &str, sent: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(sent) = sent {
                headers.insert("x-forwarded-for", HeaderValue::from_str(sent).unwrap());
            }
            client_ip(rules, Some(ip(peer)), &headers).map(|ip| ip.unwrap().to_string()).ok()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(find(&rules, "10.1.1.1", Some("1.1.1.1, 2.2.2.2")), some("2.2.2.2"));
        assert_eq!(find(&rules, "::ffff:10.1.1.1", Some("1.1.1.1, 2.2.2.2")), some("2.2.2.2"));
        assert_eq!(find(&skip, "fd00::1", Some("1.1.1.1, 2.2.2.2")), some("1.1.1.1"));
        assert_eq!(find(&skip, "10.1.1.1", Some("1.1.1.1")), None);
        assert_eq!(find(&rules, "10.1.1.1", Some("nonsense")), None);
        assert_eq!(find(&rules, "10.1.1.1", None), None);
        assert_eq!(find(&rules, "11.1.1.1", Some("1.1.1.1")), None);
        assert_eq!(find(&lax, "11.1.1.1", Some("1.1.1.1")), some("11.1.1.1"));
        assert_eq!(find(&lax, "10.1.1.1", None), some("10.1.1.1"));
        assert_eq!(find(&XForwardedFor::default(), "9.9.9.9", Some("1.1.1.1")), some("9.9.9.9"));
    }
}

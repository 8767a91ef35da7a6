//! Why no answer came, in Go's words.

use std::io;

use ::http::Method;

/// A request that got no complete answer.
///
/// Its text is that of Go's `url.Error`: the method with a capital, the URL in quotes, the cause.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The configuration or the request cannot be sent at all; nothing has left this process.
    #[error("{0}")]
    Unusable(String),
    /// No address of several answered.
    #[error("no address answered:\n\n{}", listed(.0))]
    NoneAnswered(Vec<ClientError>),
    /// What was to be sent cannot be read, or what came in not be kept.
    #[error("{0}")]
    Sink(io::Error),
    /// The request was not answered, or not completely. Whether it took effect is unknown, unless
    /// [`ClientError::was_not_sent`] says otherwise.
    #[error("{} \"{url}\": {source}", capitalised(.method))]
    Transport {
        /// The method, in capitals.
        method: String,
        /// The whole URL.
        url: String,
        /// What went wrong.
        source: Failure,
    },
}

impl ClientError {
    /// Whether another address of the same cluster may be asked: the server has not seen the request, or it
    /// is one that changes nothing. A certificate that is not trusted ends the search: it is for the
    /// operator to see, not to be stepped over.
    pub(super) fn lets_another_try(&self, method: &Method) -> bool {
        let ClientError::Transport { source, .. } = self else { return false };
        match source {
            Failure::Lookup { .. } | Failure::Dial { .. } => true,
            Failure::Tls(error) => !error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()),
            Failure::Exchange(_) => matches!(*method, Method::GET | Method::HEAD),
            Failure::Timeout | Failure::TooLarge { .. } | Failure::Redirect(_) => false,
        }
    }

    /// Whether the server cannot have seen the request.
    pub fn was_not_sent(&self) -> bool {
        match self {
            ClientError::NoneAnswered(failures) => failures.iter().all(ClientError::was_not_sent),
            ClientError::Unusable(_) => true,
            ClientError::Sink(_) => false,
            ClientError::Transport { source, .. } => {
                matches!(source, Failure::Lookup { .. } | Failure::Dial { .. } | Failure::Tls(_))
            }
        }
    }
}

/// What went wrong underneath a request.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The host's name has no address.
    #[error("dial tcp: lookup {host}: no such host")]
    Lookup {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("dial tcp {peer}: connect: {}", errno_text(.source))]
    Dial {
        /// Address and port that were tried first.
        peer: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The TLS handshake failed; the server has not seen the request.
    #[error("{}", tls_text(.0))]
    Tls(io::Error),
    /// The connection broke during the exchange.
    #[error("{}", exchange_text(.0))]
    Exchange(hyper::Error),
    /// The time is up.
    #[error("context deadline exceeded")]
    Timeout,
    /// The answer is larger than the client reads.
    #[error("response is larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A redirect that must not be followed.
    #[error("{0}")]
    Redirect(String),
}

fn listed(failures: &[ClientError]) -> String {
    failures.iter().map(|failure| format!("* {failure}")).collect::<Vec<_>>().join("\n")
}

fn capitalised(method: &str) -> String {
    let mut characters = method.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().chain(characters.flat_map(char::to_lowercase)).collect(),
        None => String::new(),
    }
}

/// The kernel's text for an error, in lower case as Go prints it, without Rust's "(os error N)".
fn errno_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}

fn tls_text(error: &io::Error) -> String {
    use rustls::CertificateError as Certificate;
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            _ => errno_text(error),
        };
    };
    let verify = |cause: &str| format!("tls: failed to verify certificate: x509: {cause}");
    match tls {
        rustls::Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            verify("certificate signed by unknown authority")
        }
        rustls::Error::InvalidCertificate(
            Certificate::Expired
            | Certificate::ExpiredContext { .. }
            | Certificate::NotValidYet
            | Certificate::NotValidYetContext { .. },
        ) => verify("certificate has expired or is not yet valid"),
        rustls::Error::InvalidCertificate(Certificate::NotValidForNameContext { expected, presented }) => {
            // rustls presents each as `DnsName("localhost")` or `IpAddress(127.0.0.1)`.
            let bare = |name: &String| {
                let inside = name.split_once('(').map_or(name.as_str(), |(_, inside)| inside);
                inside.trim_matches(['(', ')', '"']).to_owned()
            };
            let presented: Vec<_> = presented.iter().map(bare).collect();
            verify(&format!("certificate is valid for {}, not {}", presented.join(", "), expected.to_str()))
        }
        rustls::Error::InvalidCertificate(other) => verify(&other.to_string()),
        // The first byte of "HTTP/1.1 400" is no TLS record type.
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            "http: server gave HTTP response to HTTPS client".to_owned()
        }
        other => format!("remote error: tls: {other}"),
    }
}

fn exchange_text(error: &hyper::Error) -> String {
    if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
        return "EOF".to_owned();
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::UnexpectedEof => "unexpected EOF".to_owned(),
                _ => tls_text(io),
            };
        }
        source = cause.source();
    }
    if error.is_parse() {
        return format!("net/http: HTTP/1.x transport connection broken: malformed HTTP response: {error}");
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_reads_as_in_go() {
        let error = ClientError::Transport {
            method: "GET".into(),
            url: "http://127.0.0.1:1/v1/sys/seal-status".into(),
            source: Failure::Dial {
                peer: "127.0.0.1:1".into(),
                source: io::Error::from_raw_os_error(rustix::io::Errno::CONNREFUSED.raw_os_error()),
            },
        };
        assert_eq!(
            error.to_string(),
            "Get \"http://127.0.0.1:1/v1/sys/seal-status\": dial tcp 127.0.0.1:1: connect: connection refused"
        );
        assert!(error.was_not_sent());
    }

    #[test]
    fn an_unknown_issuer_reads_as_in_go() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert_eq!(
            Failure::Tls(io::Error::new(io::ErrorKind::InvalidData, tls)).to_string(),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        );
    }

    #[test]
    fn a_certificate_for_another_name_says_both_names() {
        let other = rustls::CertificateError::NotValidForNameContext {
            expected: rustls::pki_types::ServerName::try_from("n2").unwrap(),
            presented: vec!["DnsName(\"n1\")".to_owned(), "IpAddress(127.0.0.1)".to_owned()],
        };
        let tls = rustls::Error::InvalidCertificate(other);
        let text = Failure::Tls(io::Error::new(io::ErrorKind::InvalidData, tls)).to_string();
        assert!(text.ends_with("x509: certificate is valid for n1, 127.0.0.1, not n2"), "{text}");
    }

    #[test]
    fn a_timeout_leaves_the_outcome_open() {
        let error =
            ClientError::Transport { method: "PUT".into(), url: "u".into(), source: Failure::Timeout };
        assert_eq!(error.to_string(), "Put \"u\": context deadline exceeded");
        assert!(!error.was_not_sent());
    }
}

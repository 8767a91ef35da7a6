//! What a client needs to know before its first request.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::Address;

/// A token as it is sent in `X-Vault-Token`, wiped when dropped.
///
/// The copies that HTTP needs (header value, socket buffers) cannot be wiped.
#[derive(Clone)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes a token over; the caller's other copies are his to wipe.
    pub fn new(token: impl Into<String>) -> Token {
        Token(Zeroizing::new(token.into()))
    }

    /// The token's text.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Everything that stays the same between the requests of one [`Client`](super::Client).
#[derive(Clone)]
pub struct ClientConfig {
    /// The server.
    pub address: Address,
    /// Where else the server's cluster answers; tried in turn, each while the one before does not.
    pub further_addresses: Vec<Address>,
    /// Sent as `X-Vault-Token` where there is one.
    pub token: Option<Token>,
    /// Sent as `X-Vault-Namespace` where there is one.
    pub namespace: Option<String>,
    /// Sent with every request, after those above.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The longest a request may take, from the dial to the last byte of the answer, redirect included.
    pub timeout: Duration,
    /// How certificates are checked; needed for `https` only. Its ALPN list is replaced by `http/1.1`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name asked for in the TLS handshake in place of the address's host.
    pub tls_server_name: Option<String>,
    /// Whether one 301, 302 or 307 is followed, with the token sent again.
    pub follow_redirects: bool,
    /// The largest answer that is read, in bytes.
    pub max_response_bytes: usize,
}

impl ClientConfig {
    /// A configuration with Vault's defaults: 60 seconds, one redirect, answers up to 64 MiB, no token.
    pub fn new(address: Address) -> ClientConfig {
        ClientConfig {
            address,
            further_addresses: Vec::new(),
            token: None,
            namespace: None,
            headers: Vec::new(),
            timeout: Duration::from_secs(60),
            tls: None,
            tls_server_name: None,
            follow_redirects: true,
            max_response_bytes: 64 * 1024 * 1024,
        }
    }
    /// Every address, in the order they are tried.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        std::iter::once(&self.address).chain(&self.further_addresses)
    }
}

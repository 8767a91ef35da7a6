//! The requests that are sent, as bytes, and what their answers must contain.

use std::sync::Arc;

/// How long a secret is, in bytes.
pub const SECRET_BYTES: usize = 300;

/// One request.
pub struct Request {
    /// All of it, head and body.
    pub bytes: Vec<u8>,
    /// What the body of the answer contains.
    expected: Vec<u8>,
}

impl Request {
    /// Its first line, for messages.
    pub fn line(&self) -> String {
        String::from_utf8_lossy(self.bytes.split(|byte| *byte == b'\r').next().unwrap_or_default())
            .into_owned()
    }

    /// Whether a body is an answer to it.
    pub fn is_answered_by(&self, body: &[u8]) -> bool {
        body.windows(self.expected.len()).any(|window| window == self.expected)
    }
}

/// Which operation of kv version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reading a secret.
    Get,
    /// Writing a secret that is there.
    Put,
}

impl Kind {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
        }
    }
}

/// One request for each key.
pub fn of_keys(kind: Kind, keys: std::ops::Range<usize>, token: &str) -> Arc<Vec<Request>> {
    Arc::new(keys.map(|key| of_key(kind, key, token)).collect())
}

fn of_key(kind: Kind, key: usize, token: &str) -> Request {
    let (method, body, expected) = match kind {
        Kind::Get => ("GET", String::new(), format!("\"{}\"", secret(key))),
        Kind::Put => {
            ("PUT", format!("{{\"data\":{{\"value\":\"{}\"}}}}", secret(key)), "\"version\":".into())
        }
    };
    let length = match kind {
        Kind::Get => String::new(),
        Kind::Put => format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()),
    };
    let head = format!(
        "{method} /v1/secret/data/bench/{key} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n\
         X-Vault-Request: true\r\nX-Vault-Token: {token}\r\n{length}\r\n"
    );
    Request { bytes: [head, body].concat().into_bytes(), expected: expected.into_bytes() }
}

/// The same requests to a server that answers each of them with the same body.
pub fn answered_with(
    kind: Kind,
    keys: std::ops::Range<usize>,
    token: &str,
    body: &[u8],
) -> Arc<Vec<Request>> {
    let requests = keys.map(|key| Request { expected: body.to_vec(), ..of_key(kind, key, token) });
    Arc::new(requests.collect())
}

/// A secret that does not compress, the same for a key every time.
fn secret(key: usize) -> String {
    let mut state = key as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let letters = std::iter::repeat_with(|| {
        // xorshift64*: Marsaglia, "Xorshift RNGs", with Vigna's multiplier.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let drawn = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 58;
        char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[drawn as usize])
    });
    letters.take(SECRET_BYTES).collect()
}

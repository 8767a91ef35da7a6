//! A request, parsed once at the edge of the node that received it.

use std::path::{Path, PathBuf};

use bincode::{Decode, Encode};
use keystead_storage::RequestId;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    codec,
    error::ApiError,
    json,
    path::RequestPath,
    response::{map_to_text, text_to_map},
};
use crate::secret::{SecretString, random_array};

/// What is asked of a path.
///
/// Whether a write creates or updates is for the policy step to find out; the engines do not care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Operation {
    /// GET.
    Read,
    /// LIST, or GET with `?list=true`.
    List,
    /// POST and PUT.
    Update,
    /// PATCH with a JSON merge patch.
    Patch,
    /// DELETE.
    Delete,
    /// HELP, or GET with `?help=1`.
    Help,
}

impl Operation {
    /// The operation may change something, so that it must run on the leader and exactly once.
    pub fn writes(self) -> bool {
        matches!(self, Self::Update | Self::Patch | Self::Delete)
    }

    /// Its name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::List => "list",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::Help => "help",
        }
    }
}

/// A request's body in a file of its own, which goes with it.
pub struct Upload {
    path: PathBuf,
    /// Goes back when the request is done.
    _turn: Option<OwnedSemaphorePermit>,
}

impl Upload {
    /// The file at `path`, whether it is there yet or not.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, _turn: None }
    }

    /// The same, of which there are only so many at a time.
    #[must_use]
    pub fn in_turn(path: PathBuf, turn: OwnedSemaphorePermit) -> Self {
        Self { path, _turn: Some(turn) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %self.path.display(), "a spooled request body cannot be removed; the next start does it");
        }
    }
}

/// A parsed request. It holds what a client sent, so it is never printed.
pub struct Request {
    /// Drawn by the node that received it; the same on every attempt.
    pub id: RequestId,
    /// What is asked.
    pub operation: Operation,
    /// Of what.
    pub path: RequestPath,
    /// Path and query as they were sent, for a redirect.
    pub location: String,
    /// The fields: of the body for writes, of the query for everything else.
    pub data: Map<String, Value>,
    /// The token, from either header.
    pub token: Option<SecretString>,
    /// `X-Vault-Namespace`, as sent.
    pub namespace: Option<String>,
    /// The client wants a redirect instead of having its request forwarded.
    pub no_forward: bool,
    /// Address of the client, as the receiving node saw it.
    pub client_address: String,
    /// The client's certificate (DER), whose key it has proved to hold. Worth nothing by itself.
    pub client_certificate: Option<Vec<u8>>,
    /// Applied index of the receiving node when the request came in: what is not in the window of applied
    /// requests, although the window reaches back to here, was not applied.
    pub base_index: u64,
    /// An attempt before this one may have been executed.
    pub retry: bool,
    /// It came in where metrics are shown without a token, and so without a leader and while sealed
    /// (`unauthenticated_metrics_access`). Never forwarded, for every node answers for its own.
    pub open_metrics: bool,
    /// It came in where a series of shares may only be reset by who names it. Never forwarded.
    pub no_unseal_reset: bool,
    /// The body, of a request whose body is a file. Never forwarded.
    pub upload: Option<Upload>,
    /// A restore is to leave no token. Never forwarded.
    pub revoke_tokens: bool,
    /// The root key of the snapshot in the body, in base64. Never forwarded.
    pub snapshot_root: Option<SecretString>,
}

/// What a client sent is secret, or may be: the texts among its fields are wiped.
impl Drop for Request {
    fn drop(&mut self) {
        json::wipe(&mut self.data.values_mut());
    }
}

#[derive(Encode, Decode)]
struct Wire {
    id: [u8; 16],
    operation: Operation,
    path: String,
    location: String,
    data: String,
    token: Option<String>,
    namespace: Option<String>,
    no_forward: bool,
    client_address: String,
    client_certificate: Option<Vec<u8>>,
    base_index: u64,
    retry: bool,
}

impl Request {
    /// A request for `path` with nothing else in it.
    pub fn new(operation: Operation, path: RequestPath) -> Self {
        let location = format!("/v1/{}", path.as_str());
        Self::new_at(operation, path, location)
    }

    /// A request for `path` that was sent as `location`, with nothing else in it.
    pub fn new_at(operation: Operation, path: RequestPath, location: String) -> Self {
        Self {
            id: fresh_id(),
            operation,
            location,
            path,
            data: Map::new(),
            token: None,
            namespace: None,
            no_forward: false,
            client_address: String::new(),
            client_certificate: None,
            base_index: 0,
            retry: false,
            open_metrics: false,
            no_unseal_reset: false,
            upload: None,
            revoke_tokens: false,
            snapshot_root: None,
        }
    }

    /// The request as bytes for the leader (format 1). The buffer holds the token and the secret and goes out
    /// over the open channel only; it is not wiped afterwards.
    pub fn encode(&self) -> Result<Vec<u8>, ApiError> {
        codec::encode(&Wire {
            id: self.id.0,
            operation: self.operation,
            path: self.path.as_str().to_owned(),
            location: self.location.clone(),
            data: map_to_text(&self.data),
            token: self.token.as_ref().map(|token| token.expose().to_owned()),
            namespace: self.namespace.clone(),
            no_forward: self.no_forward,
            client_address: self.client_address.clone(),
            client_certificate: self.client_certificate.clone(),
            base_index: self.base_index,
            retry: self.retry,
        })
    }

    /// Reads what [`Request::encode`] wrote, with every check that a client's request passes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ApiError> {
        let wire: Wire = codec::decode(bytes)?;
        let path =
            RequestPath::from_decoded(wire.path).map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(Self {
            id: RequestId(wire.id),
            operation: wire.operation,
            path,
            location: wire.location,
            data: text_to_map(&wire.data)?,
            token: wire.token.map(SecretString::new),
            namespace: wire.namespace,
            no_forward: wire.no_forward,
            client_address: wire.client_address,
            client_certificate: wire.client_certificate,
            base_index: wire.base_index,
            retry: wire.retry,
            open_metrics: false,
            no_unseal_reset: false,
            upload: None,
            revoke_tokens: false,
            snapshot_root: None,
        })
    }
}

/// A fresh request id: 128 bits of which six say that it is a random UUID, so that it can be shown as one.
pub fn fresh_id() -> RequestId {
    let mut bytes: [u8; 16] = random_array();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    RequestId(bytes)
}

/// Reads a body into fields.
///
/// As Vault does: a form only if the content type says so and the body does not begin like JSON; everything
/// else is JSON, in which `null` and nothing at all mean no fields.
///
/// # Errors
/// [`ApiError::Invalid`] with a text that shows nothing of the body.
pub fn parse_body(content_type: Option<&str>, body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let start = body.iter().find(|byte| !byte.is_ascii_whitespace());
    let Some(first) = start else {
        return Ok(Map::new());
    };
    let form = content_type.is_some_and(|kind| {
        kind.trim_start().to_ascii_lowercase().starts_with("application/x-www-form-urlencoded")
    });
    if form && !matches!(first, b'{' | b'[') {
        return parse_form(body);
    }
    let refused = |why: &str| ApiError::invalid(format!("failed to decode JSON input: {why}"));
    match json::parse(body).map_err(|error| refused(&error.to_string()))? {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        Value::Array(_) => Err(refused("json: cannot unmarshal array into an object")),
        Value::String(_) => Err(refused("json: cannot unmarshal string into an object")),
        Value::Number(_) => Err(refused("json: cannot unmarshal number into an object")),
        Value::Bool(_) => Err(refused("json: cannot unmarshal bool into an object")),
    }
}

/// Reads a form. A field that comes several times holds its values joined by commas.
fn parse_form(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|_| ApiError::invalid("failed to parse form data"))?;
    let mut fields: Map<String, Value> = Map::new();
    for (name, value) in pairs(text).ok_or_else(|| ApiError::invalid("failed to parse form data"))? {
        match fields.get_mut(&name) {
            Some(Value::String(values)) => {
                values.push(',');
                values.push_str(&value);
            }
            _ => {
                fields.insert(name, Value::String(value));
            }
        }
    }
    Ok(fields)
}

/// Reads a query string into fields; several values of one name make a list.
pub fn parse_query(query: &str) -> Result<Map<String, Value>, ApiError> {
    let mut fields = Map::new();
    for (name, value) in pairs(query).ok_or(ApiError::Malformed)? {
        let value = Value::String(value);
        match fields.get_mut(&name) {
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
            None => {
                fields.insert(name, value);
            }
        }
    }
    Ok(fields)
}

/// The pairs of a form, or `None` when it does not decode or has absurdly many.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    const MAX_PAIRS: usize = 10_000;
    let mut pairs = Vec::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        if pairs.len() == MAX_PAIRS {
            return None;
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        pairs.push((form_decode(name)?, form_decode(value)?));
    }
    Some(pairs)
}

fn form_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high << 4 | low).ok()?
            }
            _ => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_fields(text: &str) -> Map<String, Value> {
        parse_body(None, text.as_bytes()).unwrap()
    }

    #[test]
    fn bodies_are_json_unless_they_are_forms() {
        let form = Some("application/x-www-form-urlencoded");
        assert_eq!(parse_body(form, b"{\"a\":\"1\"}").unwrap(), json_fields(r#"{"a":"1"}"#));
        assert_eq!(parse_body(form, b"a=1&b=2&a=3").unwrap(), json_fields(r#"{"a":"1,3","b":"2"}"#));
        assert_eq!(parse_body(form, b"a=x+y%26").unwrap(), json_fields(r#"{"a":"x y&"}"#));
        assert_eq!(parse_body(form, b"5").unwrap(), json_fields(r#"{"5":""}"#));
        assert!(parse_body(Some("text/plain"), b"5").is_err());
        assert!(parse_body(form, b"a=%zz").is_err());
        for empty in ["", "  ", "null"] {
            assert!(json_fields(empty).is_empty(), "{empty:?}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused_without_an_echo() {
        for body in ["[1]", "\"hunter2\"", "5", "true", "{", r#"{"pw":"hunter2",}"#, r#"{"a":1}{"b":2}"#] {
            let error = parse_body(Some("application/json"), body.as_bytes()).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with("failed to decode JSON input: "), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
        let error = parse_body(None, b"{").unwrap_err();
        assert_eq!(error.to_string(), "failed to decode JSON input: unexpected EOF");
        let bomb = format!("{{\"a\":{}", "[".repeat(20_000));
        let error = parse_body(None, bomb.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("exceeded max depth"));
    }

    #[test]
    fn queries_become_fields() {
        let fields = parse_query("version=2&a=1&a=2&flag").unwrap();
        assert_eq!(fields, json_fields(r#"{"version":"2","a":["1","2"],"flag":""}"#));
    }

    #[test]
    fn a_request_survives_the_wire_and_its_path_is_checked_again() {
        let mut request =
            Request::new(Operation::Update, RequestPath::from_encoded("secret/data/a").unwrap());
        request.data = json_fields(r#"{"data":{"n":2.50,"s":"x"}}"#);
        request.token = Some(SecretString::new("hvs.x".to_owned()));
        request.retry = true;
        request.base_index = 9;
        request.client_certificate = Some(vec![1, 2]);
        let back = Request::decode(&request.encode().unwrap()).unwrap();
        assert_eq!((back.id, back.operation, back.retry), (request.id, Operation::Update, true));
        assert_eq!((&back.data, back.path.as_str()), (&request.data, "secret/data/a"));
        assert_eq!(back.token.as_ref().unwrap().expose(), "hvs.x");

        let wire = Wire {
            id: [1; 16],
            operation: Operation::Read,
            path: "secret/../sys".to_owned(),
            location: String::new(),
            data: "{}".to_owned(),
            token: None,
            namespace: None,
            no_forward: false,
            client_address: String::new(),
            client_certificate: None,
            base_index: 0,
            retry: false,
        };
        assert!(Request::decode(&codec::encode(&wire).unwrap()).is_err());
        let bytes = request.encode().unwrap();
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(Request::decode(&bytes[..cut]).is_err());
        }
    }
}

//! The answer to a request, before it becomes HTTP.

use std::{borrow::Cow, fmt, io, sync::Arc};

use bincode::{Decode, Encode};
use bytes::Bytes;
use keystead_storage::RequestId;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{codec, error::ApiError, json};
use crate::secret::SecretString;

/// What a request came to.
///
/// It may hold a secret, so neither it nor its parts can be printed or compared outside of tests.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Response {
    /// The request's id, which the envelope shows as a UUID.
    pub id: RequestId,
    /// The answer, or why there is none.
    pub result: Result<Answer, ApiError>,
}

/// An answer.
#[derive(Clone)]
#[cfg_attr(test, derive(PartialEq))]
pub enum Answer {
    /// Done, and nothing to say.
    NoContent,
    /// An envelope.
    Logical(Logical),
    /// An envelope that says that what was asked for is gone: a deleted version still has metadata.
    Missing(Logical),
    /// An envelope around a version of a secret, whose stored text goes out as it is.
    Secret(Secret),
    /// A JSON document without an envelope, already serialised.
    Raw(String),
    /// The document of `sys/health`.
    Health {
        /// What the status code tells.
        state: HealthState,
        /// A code of the client's choosing.
        code: Option<u16>,
        /// The document.
        body: String,
    },
    /// Text of another type.
    Text {
        /// Its content type.
        content_type: String,
        /// The text.
        body: String,
    },
    /// Bytes that are made while they are sent.
    Download(Download),
    /// Ask there instead.
    Redirect {
        /// Absolute URL.
        location: String,
    },
}

/// What is sent as it is made, a piece at a time. It is sent once, by this node, and never encoded.
#[derive(Clone)]
pub struct Download {
    content_type: &'static str,
    pieces: Arc<Mutex<Option<mpsc::Receiver<io::Result<Bytes>>>>>,
}

impl Download {
    /// What comes out of a channel, to its end or to an error, after which the client knows that it does not have all.
    #[must_use]
    pub fn new(pieces: mpsc::Receiver<io::Result<Bytes>>, content_type: &'static str) -> Self {
        Self { content_type, pieces: Arc::new(Mutex::new(Some(pieces))) }
    }

    /// Its content type.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        self.content_type
    }

    /// The pieces, for the first who asks.
    #[must_use]
    pub fn take(&self) -> Option<mpsc::Receiver<io::Result<Bytes>>> {
        self.pieces.lock().take()
    }
}

#[cfg(test)]
impl PartialEq for Download {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.pieces, &other.pieces)
    }
}

/// What `sys/health` tells by its status code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum HealthState {
    /// Leads and answers.
    Active,
    /// Unsealed, does not lead.
    Standby,
    /// Sealed.
    Sealed,
    /// Not initialised.
    Uninitialized,
    /// Stopped for good by damage or a failed disk, and sealed.
    Failed,
}

/// What varies in an envelope.
#[derive(Clone, Default)]
#[cfg_attr(test, derive(PartialEq))]
pub struct Logical {
    /// The data, `null` when there is none.
    pub data: Option<Map<String, Value>>,
    /// Every key of the data also stands at the top level, where old clients look for it.
    pub duplicated: bool,
    /// How long the data is good for, in seconds.
    pub lease_duration_s: u64,
    /// What the client should know.
    pub warnings: Vec<String>,
}

/// A version of a secret. Its text is not read only to be written again.
#[derive(Clone)]
pub struct Secret {
    /// The data as it is stored: a JSON document that this program wrote.
    pub text: SecretString,
    /// What goes with it.
    pub metadata: Map<String, Value>,
    /// What the client should know.
    pub warnings: Vec<String>,
}

#[cfg(test)]
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.to_text() == other.to_text() && self.warnings == other.warnings
    }
}

impl Secret {
    /// `data` and `metadata` as one JSON object, as it is encoded between nodes.
    fn to_text(&self) -> String {
        format!("{{\"data\":{},\"metadata\":{}}}", self.text.expose(), map_to_text(&self.metadata))
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response").field("result", &self.result).finish_non_exhaustive()
    }
}

impl fmt::Debug for Answer {
    /// Names the kind of answer and shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoContent => "NoContent",
            Self::Logical(_) => "Logical(..)",
            Self::Missing(_) => "Missing(..)",
            Self::Secret(_) => "Secret(..)",
            Self::Raw(_) => "Raw(..)",
            Self::Health { .. } => "Health { .. }",
            Self::Text { .. } => "Text { .. }",
            Self::Download(_) => "Download(..)",
            Self::Redirect { .. } => "Redirect { .. }",
        })
    }
}

impl Answer {
    /// An envelope around data.
    pub fn data(data: Map<String, Value>) -> Self {
        Self::Logical(Logical { data: Some(data), ..Logical::default() })
    }

    /// An envelope around data whose keys also stand at its top level.
    pub fn duplicated(data: Map<String, Value>) -> Self {
        Self::Logical(Logical { data: Some(data), duplicated: true, ..Logical::default() })
    }

    /// A listing; one without names is nothing found.
    pub fn keys(names: Vec<String>) -> Result<Self, ApiError> {
        if names.is_empty() {
            return Err(ApiError::NotFound);
        }
        let mut data = Map::new();
        data.insert("keys".to_owned(), Value::from(names));
        Ok(Self::data(data))
    }

    /// The same answer with warnings added; done-without-words becomes an envelope, for a warning needs one.
    pub fn with_warnings(mut self, more: Vec<String>) -> Self {
        if more.is_empty() {
            return self;
        }
        match &mut self {
            Self::Logical(logical) | Self::Missing(logical) => logical.warnings.extend(more),
            Self::Secret(secret) => secret.warnings.extend(more),
            Self::NoContent => {
                return Self::Logical(Logical { warnings: more, ..Logical::default() });
            }
            Self::Raw(_)
            | Self::Health { .. }
            | Self::Text { .. }
            | Self::Download(_)
            | Self::Redirect { .. } => {}
        }
        self
    }
}

// JSON values have no encoding of their own in bincode, so data travels as JSON text.
#[derive(Encode, Decode)]
struct WireLogical {
    data: Option<String>,
    duplicated: bool,
    lease_duration_s: u64,
    warnings: Vec<String>,
}

#[derive(Encode, Decode)]
enum WireAnswer {
    NoContent,
    Logical(WireLogical),
    Missing(WireLogical),
    Raw(String),
    Health { state: HealthState, code: Option<u16>, body: String },
    Text { content_type: String, body: String },
    Redirect { location: String },
}

type WireResult = Result<WireAnswer, ApiError>;

#[derive(Encode, Decode)]
struct WireResponse {
    id: [u8; 16],
    result: WireResult,
}

/// What most answers to writes consist of. Of 65,536 requests the answers are kept in memory, in the log and on the
/// disk, so a phrase travels as one byte: JSON text never has bytes below a space. A phrase keeps its place.
const PHRASES: [&str; 4] = [
    "\",\"custom_metadata\":null,\"deletion_time\":\"\",\"destroyed\":false,\"version\":",
    "{\"created_time\":\"",
    "\",\"custom_metadata\":",
    "\"deletion_time\":\"",
];

impl Response {
    /// The answer as bytes: what a forwarded request gets back.
    pub fn encode(&self) -> Result<Vec<u8>, ApiError> {
        codec::encode(&WireResponse { id: self.id.0, result: self.to_wire() })
    }

    /// Reads what [`Response::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, ApiError> {
        let wire: WireResponse = codec::decode(bytes)?;
        Self::from_wire(RequestId(wire.id), wire.result)
    }

    /// The answer without its id: what is sealed beside a write, under that id.
    pub fn encode_result(&self) -> Result<Vec<u8>, ApiError> {
        codec::encode(&self.to_wire())
    }

    /// Reads what [`Response::encode_result`] wrote.
    pub fn decode_result(id: RequestId, bytes: &[u8]) -> Result<Self, ApiError> {
        Self::from_wire(id, codec::decode(bytes)?)
    }

    fn to_wire(&self) -> WireResult {
        match &self.result {
            Ok(answer) => Ok(to_wire(answer)),
            Err(error) => Err(error.clone()),
        }
    }

    fn from_wire(id: RequestId, wire: WireResult) -> Result<Self, ApiError> {
        let result = match wire {
            Ok(answer) => Ok(from_wire(answer)?),
            Err(error) => Err(error),
        };
        Ok(Self { id, result })
    }
}

/// JSON text with its phrases cut short.
fn shortened(mut text: String) -> String {
    for (phrase, byte) in PHRASES.into_iter().zip(1_u8..) {
        if text.contains(phrase) {
            text = text.replace(phrase, &char::from(byte).to_string());
        }
    }
    text
}

/// The text that [`shortened`] was given.
fn lengthened(text: &str) -> Cow<'_, str> {
    let phrase = |c: char| PHRASES.get((c as usize).wrapping_sub(1));
    if text.chars().all(|c| phrase(c).is_none()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(4 * text.len());
    for c in text.chars() {
        match phrase(c) {
            Some(phrase) => out.push_str(phrase),
            None => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn to_wire(answer: &Answer) -> WireAnswer {
    let logical = |logical: &Logical| WireLogical {
        data: logical.data.as_ref().map(|data| shortened(map_to_text(data))),
        duplicated: logical.duplicated,
        lease_duration_s: logical.lease_duration_s,
        warnings: logical.warnings.clone(),
    };
    match answer {
        // What is sent as it is made is answered by the node that was asked, and has no bytes here.
        Answer::NoContent | Answer::Download(_) => WireAnswer::NoContent,
        Answer::Logical(inner) => WireAnswer::Logical(logical(inner)),
        Answer::Missing(inner) => WireAnswer::Missing(logical(inner)),
        Answer::Secret(secret) => WireAnswer::Logical(WireLogical {
            data: Some(secret.to_text()),
            duplicated: false,
            lease_duration_s: 0,
            warnings: secret.warnings.clone(),
        }),
        Answer::Raw(body) => WireAnswer::Raw(body.clone()),
        Answer::Health { state, code, body } => {
            WireAnswer::Health { state: *state, code: *code, body: body.clone() }
        }
        Answer::Text { content_type, body } => {
            WireAnswer::Text { content_type: content_type.clone(), body: body.clone() }
        }
        Answer::Redirect { location } => WireAnswer::Redirect { location: location.clone() },
    }
}

fn from_wire(answer: WireAnswer) -> Result<Answer, ApiError> {
    let logical = |logical: WireLogical| -> Result<Logical, ApiError> {
        Ok(Logical {
            data: logical.data.map(|text| text_to_map(&lengthened(&text))).transpose()?,
            duplicated: logical.duplicated,
            lease_duration_s: logical.lease_duration_s,
            warnings: logical.warnings,
        })
    };
    Ok(match answer {
        WireAnswer::NoContent => Answer::NoContent,
        WireAnswer::Logical(inner) => Answer::Logical(logical(inner)?),
        WireAnswer::Missing(inner) => Answer::Missing(logical(inner)?),
        WireAnswer::Raw(body) => Answer::Raw(body),
        WireAnswer::Health { state, code, body } => Answer::Health { state, code, body },
        WireAnswer::Text { content_type, body } => Answer::Text { content_type, body },
        WireAnswer::Redirect { location } => Answer::Redirect { location },
    })
}

/// A JSON object as text.
pub fn map_to_text(map: &Map<String, Value>) -> String {
    serde_json::to_string(map).expect("a JSON object serialises: its keys are strings")
}

/// JSON text that this program wrote, as an object.
pub fn text_to_map(text: &str) -> Result<Map<String, Value>, ApiError> {
    match json::parse_own(text.as_bytes()) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::internal("reading our own JSON", &"not an object")),
        Err(error) => Err(ApiError::internal("reading our own JSON", &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(result: Result<Answer, ApiError>) {
        let response = Response { id: RequestId([7; 16]), result };
        assert_eq!(Response::decode(&response.encode().unwrap()), Ok(response));
    }

    #[test]
    fn every_answer_survives_the_wire() {
        let data = text_to_map(r#"{"n":2.50,"big":12345678901234567890123,"s":"<&>\u2028"}"#).unwrap();
        round_trip(Ok(Answer::NoContent));
        round_trip(Ok(Answer::data(data.clone())));
        round_trip(Ok(Answer::duplicated(data.clone()).with_warnings(vec!["w".to_owned()])));
        round_trip(Ok(Answer::Missing(Logical { data: Some(data), ..Logical::default() })));
        round_trip(Ok(Answer::Raw("{}".to_owned())));
        round_trip(Ok(Answer::Health {
            state: HealthState::Standby,
            code: Some(200),
            body: "{}".to_owned(),
        }));
        round_trip(Ok(Answer::Redirect { location: "https://a".to_owned() }));
        round_trip(Err(ApiError::NoRoute("x".to_owned())));
        round_trip(Err(ApiError::UnsupportedPath { authenticated: true }));
    }

    #[test]
    fn the_answer_to_a_put_is_stored_in_few_bytes() {
        let text = r#"{"created_time":"2026-11-22T21:15:17.909742Z","custom_metadata":null,"deletion_time":"","destroyed":false,"version":1}"#;
        let answer = |data: &str| Response {
            id: RequestId([7; 16]),
            result: Ok(Answer::data(text_to_map(data).unwrap())),
        };
        let stored = answer(text).encode_result().unwrap();
        assert!(stored.len() < 50, "{} bytes", stored.len());
        for data in
            [text, r#"{"created_time":"x\u0001","custom_metadata":{"\u0002":"\u0003"},"deletion_time":"y"}"#]
        {
            let stored = answer(data).encode_result().unwrap();
            assert_eq!(Response::decode_result(RequestId([7; 16]), &stored), Ok(answer(data)));
        }
    }

    #[test]
    fn debug_shows_nothing_of_an_answer() {
        let data = text_to_map(r#"{"password":"hunter2"}"#).unwrap();
        let response = Response { id: RequestId([7; 16]), result: Ok(Answer::data(data)) };
        assert_eq!(format!("{response:?}"), "Response { result: Ok(Logical(..)), .. }");
    }

    #[test]
    fn bytes_of_another_version_are_refused() {
        let mut bytes = Response { id: RequestId([0; 16]), result: Ok(Answer::NoContent) }.encode().unwrap();
        bytes[0] = 2;
        assert!(Response::decode(&bytes).is_err());
    }
}

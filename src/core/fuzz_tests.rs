//! Fuzz targets for what clients and peers send: paths, queries, bodies, forwarded requests and their answers.

use keystead_fuzz::{Bounds, check};
use serde_json::{Map, Value};

use super::{
    json::{self, JsonError},
    path::{MAX_PATH_BYTES, MAX_PATH_SEGMENTS, MAX_SEGMENT_BYTES, RequestPath},
    request::{Operation, Request, parse_body, parse_query},
    response::{Answer, Response, map_to_text, text_to_map},
};
use crate::secret::SecretString;

/// A path is copied a few times.
const PATH_BOUNDS: Bounds = Bounds { base_bytes: 64 << 10, bytes_per_byte: 16 };
/// A value of a tree takes about a hundred bytes, and the shortest is written in two; the codec's own limit, which
/// peers alone can reach, is 34 MiB.
const BODY_BOUNDS: Bounds = Bounds { base_bytes: 36 << 20, bytes_per_byte: 256 };

#[test]
fn fuzz_request_path() {
    let samples = [
        "secret/data/app/db",
        "secret%2Fdata/a%20b/%C3%A9",
        "sys/mounts/kv/tune",
        "a%252e%252e/..b/.../%2e.%2E/c/",
        "a/%2e%2e/b/./c//d",
        "x%00y%0a%7f%c2%80%ff%zz%",
    ];
    check!(samples.map(|text| text.as_bytes().to_vec()).to_vec(), PATH_BOUNDS, |input: &[u8]| {
        let Ok(encoded) = std::str::from_utf8(input) else { return };
        // What has no percent sign means the same decoded and not.
        let plain = RequestPath::from_decoded(encoded.to_owned());
        let Ok(path) = RequestPath::from_encoded(encoded) else {
            assert!(encoded.contains('%') || plain.is_err());
            return;
        };
        let text = path.as_str();
        if !encoded.contains('%') {
            assert!(plain.as_ref() == Ok(&path));
        }
        assert!(text.len() <= MAX_PATH_BYTES && !text.chars().any(char::is_control));
        let body = text.strip_suffix('/').unwrap_or(text);
        let segments: Vec<&str> = if text.is_empty() { Vec::new() } else { body.split('/').collect() };
        assert!(segments.len() <= MAX_PATH_SEGMENTS);
        for segment in &segments {
            assert!(!matches!(*segment, "" | "." | "..") && segment.len() <= MAX_SEGMENT_BYTES);
        }
        assert!(path.segments().eq(segments), "the engines see the segments that were checked");
        // Written again in any way, it is the same path; decoded already, it is not decoded again.
        let all: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        if all.len() <= 3 * MAX_PATH_BYTES {
            assert!(RequestPath::from_encoded(&all).as_ref() == Ok(&path));
        }
        assert!(RequestPath::from_encoded(&text.replace('%', "%25")).as_ref() == Ok(&path));
        assert!(RequestPath::from_decoded(text.to_owned()).as_ref() == Ok(&path));
        let folder = path.clone().into_folder();
        assert!(folder.is_folder() || text.is_empty());
        assert!(folder.clone().into_folder() == folder);
    });
}

fn tagged(tag: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    [&[tag], bytes.as_ref()].concat()
}

fn request() -> Request {
    let path = RequestPath::from_encoded("secret/data/a%25").expect("valid");
    let mut request = Request::new(Operation::Update, path);
    request.data = text_to_map(r#"{"data":{"n":2.50,"s":"x"}}"#).expect("valid");
    request.token = Some(SecretString::new("hvs.token".to_owned()));
    request.namespace = Some("ns".to_owned());
    request.client_address = "127.0.0.1:5".to_owned();
    request.client_certificate = Some(vec![0x30, 0x82]);
    request
}

fn answer() -> Response {
    let data = text_to_map(r#"{"a":[1,{"b":null}]}"#).expect("valid");
    let answer = Answer::duplicated(data).with_warnings(vec!["careful".to_owned()]);
    Response { id: request().id, result: Ok(answer) }
}

#[test]
fn fuzz_request_body() {
    let document = r#" {"data":{"a":"x\n\u00e9\ud83d\ude00","n":-12.5e+3,"l":[true,false,null,{}]},"options":{"cas":0}} "#;
    let samples = vec![
        tagged(0, document),
        tagged(0, r#"{"$serde_json::private::Number":"7","a":1,"a":2}"#),
        tagged(0, "[".repeat(400) + &"]".repeat(400)),
        tagged(1, "a=1&b=x+y%26&a=3&c"),
        tagged(2, "version=2&a=1&a=2&list=true&f%C3%A9"),
        tagged(3, request().encode().expect("encodes")),
        tagged(4, answer().encode().expect("encodes")),
    ];
    check!(samples, BODY_BOUNDS, |input: &[u8]| {
        let Some((tag, bytes)) = input.split_first() else { return };
        match tag % 5 {
            0 => read_json(bytes),
            1 => read_fields(parse_body(Some("application/x-www-form-urlencoded"), bytes).ok()),
            2 => read_fields(std::str::from_utf8(bytes).ok().and_then(|text| parse_query(text).ok())),
            3 => {
                let Ok(request) = Request::decode(bytes) else { return };
                let again = Request::decode(&request.encode().expect("encodes")).expect("our own");
                assert_eq!((again.id, &again.data), (request.id, &request.data));
                assert!(again.path == request.path);
            }
            _ => {
                let Ok(response) = Response::decode(bytes) else { return };
                let again = Response::decode(&response.encode().expect("encodes"));
                assert_eq!(again, Ok(response));
            }
        }
    });
}

/// Fields are what they are when they have been written and read again, as on the way to the leader.
fn read_fields(fields: Option<Map<String, Value>>) {
    if let Some(fields) = fields {
        assert_eq!(text_to_map(&map_to_text(&fields)), Ok(fields));
    }
}

fn read_json(bytes: &[u8]) {
    let ours = json::parse(bytes);
    match &ours {
        Ok(value) => {
            let text = serde_json::to_string(value).expect("a tree becomes text");
            assert_eq!(json::parse_own(text.as_bytes()).as_ref(), Ok(value));
        }
        Err(error) => {
            let shown = error.to_string();
            assert!(shown.len() < 60 && !shown.contains(['"', '\'']), "{shown}");
        }
    }
    assert_eq!(
        parse_body(None, bytes).is_ok(),
        bytes.iter().all(u8::is_ascii_whitespace) || is_fields(&ours)
    );
    // A parser that nobody here wrote, where it does what ours is there to do otherwise.
    let marker = b"$serde_json::private::";
    if bytes.windows(marker.len()).any(|window| window == marker) {
        return;
    }
    if let Ok(theirs) = serde_json::from_slice::<Value>(bytes) {
        match ours {
            Ok(ours) => assert_eq!(ours, theirs),
            Err(error) => {
                assert!(matches!(error, JsonError::TooManyValues | JsonError::NumberTooLong(_)), "{error}");
            }
        }
    }
}

fn is_fields(parsed: &Result<Value, JsonError>) -> bool {
    matches!(parsed, Ok(Value::Object(_) | Value::Null))
}

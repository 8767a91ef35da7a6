//! From an HTTP request to a [`Request`], and from a [`Response`] back.

use std::{
    borrow::Cow,
    hint::black_box,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use bytes::BytesMut;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header, request::Parts};
use http_body_util::BodyExt;
use keystead_tls::{FairShare, Portion};
use serde_json::{Map, Value};

use super::{
    envelope::render,
    rules::{ListenerRules, client_ip},
    status, upload,
};
use crate::{
    core::{
        Core, blocking_if,
        error::ApiError,
        fields::parse_bool,
        path::RequestPath,
        request::{Operation, Request, fresh_id, parse_body, parse_query},
        response::{Answer, Response},
        time::parse_duration_s,
    },
    secret::SecretString,
};

/// Memory that the bodies of all requests in flight may hold, and those of one client. What a body is parsed into
/// takes as much again, or less.
const MAX_BODIES_BYTES: usize = 128 << 20;
const MAX_BODIES_BYTES_PER_ADDRESS: usize = 64 << 20;
/// The longest body that an engine is sent. All that engines take is stored, so that nothing is lost by refusing
/// early what cannot fit: JSON writes a byte in six at most, and the rest is for names and braces.
const MAX_ENGINE_BODY_BYTES: usize = 6 * keystead_raft::identity::MAX_ENTRY_SIZE as usize + (64 << 10);
/// A body's length is believed, before it has come in, up to here.
const BELIEVED_BYTES: u64 = 4 << 10;
/// Bodies from here on are parsed apart from the requests of others.
const LONG_PARSE_BYTES: usize = 256 << 10;

/// What a connection knows of its client.
pub(super) struct Client {
    /// The other end of the connection; `None` on a socket of the file system.
    pub address: Option<SocketAddr>,
    /// The address as requests show it, written once for all of the connection.
    shown: String,
    /// The certificate it showed, in DER.
    pub certificate: Option<Vec<u8>>,
}

impl Client {
    /// A client that was accepted from `address` and showed `certificate`.
    pub fn new(address: Option<SocketAddr>, certificate: Option<Vec<u8>>) -> Self {
        let shown = address.map_or_else(|| "@".to_owned(), |address| address.to_string());
        Self { address, shown, certificate }
    }
}

/// What all requests of a listener share.
#[derive(Clone)]
pub(super) struct Shared {
    pub core: Arc<Core>,
    rules: Arc<ListenerRules>,
    /// Bytes of bodies whose requests are not answered yet.
    bodies: Arc<FairShare>,
}

impl Shared {
    pub fn new(core: Arc<Core>, rules: Arc<ListenerRules>) -> Self {
        let bodies = FairShare::new(MAX_BODIES_BYTES, MAX_BODIES_BYTES_PER_ADDRESS);
        Self { core, rules, bodies }
    }
}

/// Answers every request of every connection.
pub(super) async fn answer(shared: Shared, request: axum::extract::Request) -> http::Response<Body> {
    let head = request.method() == Method::HEAD;
    let namespace = request.headers().get("x-vault-namespace").cloned();
    let rules = Arc::clone(&shared.rules);
    let handled = AssertUnwindSafe(handle(shared, request)).catch_unwind().await;
    let response = handled.unwrap_or_else(|_panic| {
        // The panic's own message may hold anything, so it is not repeated here.
        tracing::error!("a request panicked; this is a bug");
        metrics::counter!("keystead_core_panics_total").increment(1);
        Response { id: fresh_id(), result: Err(ApiError::Internal("internal error".to_owned())) }
    });
    let mut answer = into_http(response, namespace, head);
    let status = answer.status();
    rules.headers.apply(status, answer.headers_mut());
    answer
}

async fn handle(shared: Shared, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let rules = Arc::clone(&shared.rules);
    // What a body holds, and what is made of it, counts until the request is answered.
    let mut _held = None;
    let parsed = match parse_head(&parts, &rules) {
        Ok(mut request) if upload::is_one(&request) => {
            match upload::receive(&shared.core, &rules, &parts, &request, body).await {
                Ok(upload) => {
                    request.upload = Some(upload);
                    // The file is here: who leads is sent it by the client.
                    request.no_forward = true;
                    let query = parse_query(parts.uri.query().unwrap_or_default()).unwrap_or_default();
                    let revoke = query.get("revoke_tokens").and_then(Value::as_str);
                    request.revoke_tokens = revoke.and_then(parse_bool) == Some(true);
                    let root = text(&parts.headers, upload::ROOT_HEADER);
                    request.snapshot_root = root.map(|root| SecretString::new(root.to_owned()));
                    Ok(request)
                }
                Err(error) => Err(error),
            }
        }
        Ok(mut request) if request.operation.writes() => {
            match receive(&shared, &parts, &request, body).await {
                Ok((data, held)) => {
                    request.data = data;
                    _held = Some(held);
                    Ok(request)
                }
                Err(error) => Err(error),
            }
        }
        other => other,
    };
    let request = match parsed {
        Ok(request) => request,
        Err(error) => return Response { id: fresh_id(), result: Err(error) },
    };
    let (id, writes) = (request.id, request.operation.writes());
    match tokio::time::timeout(rules.max_request, shared.core.handle(request)).await {
        Ok(response) => response,
        // What has been proposed goes on without us.
        Err(_) if writes => Response { id, result: Err(ApiError::OutcomeUnknown) },
        Err(_) => {
            let text = "the request took longer than max_request_duration; try again".to_owned();
            Response { id, result: Err(ApiError::Busy(text)) }
        }
    }
}

/// Everything but the body.
fn parse_head(parts: &Parts, rules: &ListenerRules) -> Result<Request, ApiError> {
    let raw = parts.uri.path();
    let encoded = match raw.strip_prefix("/v1/") {
        Some(encoded) => encoded,
        None => probe(raw).ok_or(ApiError::NotFound)?,
    };
    let query = parts.uri.query().unwrap_or_default();
    let mut fields = parse_query(query)?;
    let operation = operation(&parts.method, &mut fields)?;
    let mut path =
        RequestPath::from_encoded(encoded).map_err(|error| ApiError::invalid(error.to_string()))?;
    if operation == Operation::List {
        path = path.into_folder();
    }
    match path.as_str() == "sys/metrics" {
        true if rules.metrics.disallowed => {
            return Err(ApiError::Forbidden("metrics are not served on this listener".to_owned()));
        }
        false if rules.metrics.only => return Err(ApiError::NotFound),
        _ => {}
    }
    let headers = &parts.headers;
    if rules.require_request_header && text(headers, "x-vault-request") != Some("true") {
        return Err(ApiError::PreconditionFailed("missing \"X-Vault-Request\" header".to_owned()));
    }
    refuse_wrapping(headers)?;
    let location = parts.uri.path_and_query().map_or(raw, |location| location.as_str());
    let mut request = Request::new_at(operation, path, location.to_owned());
    request.token = token(headers);
    request.namespace = text(headers, "x-vault-namespace").map(str::to_owned);
    request.open_metrics = rules.metrics.unauthenticated;
    request.no_unseal_reset = rules.key_holders.no_unseal_reset;
    if request.token.is_none() && closed_to_strangers(rules.key_holders, request.path.as_str()) {
        let text = "this listener takes shares for a rekey or a root token from who shows a token only";
        return Err(ApiError::Forbidden(text.to_owned()));
    }
    request.no_forward = headers.contains_key("x-vault-no-request-forwarding");
    if let Some(client) = parts.extensions.get::<Arc<Client>>() {
        let peer = client.address.map(|address| address.ip());
        let found = client_ip(&rules.x_forwarded_for, peer, headers)?;
        // The port is the connection's own, as it is in Vault.
        request.client_address = match (found, client.address) {
            (Some(ip), Some(address)) if ip != address.ip() => {
                SocketAddr::new(ip, address.port()).to_string()
            }
            (Some(_), Some(_)) => client.shown.clone(),
            _ => "@".to_owned(),
        };
        request.client_certificate.clone_from(&client.certificate);
    }
    if matches!(operation, Operation::Delete) || !operation.writes() {
        request.data = fields;
    }
    Ok(request)
}

/// Whether a listener wants a token where shares are all that is needed elsewhere.
fn closed_to_strangers(rules: crate::config::ListenerKeyHolders, path: &str) -> bool {
    let below = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    rules.no_rekey && below(&["sys/rekey/", "sys/rekey-recovery-key/", "sys/break-glass/"])
        || rules.no_generate_root && below(&["sys/generate-root/"])
}

/// The paths that orchestrators and monitoring ask without knowing whose server this is.
fn probe(path: &str) -> Option<&'static str> {
    Some(match path {
        "/health" | "/livez" => "sys/livez",
        "/ready" | "/readyz" => "sys/readyz",
        "/metrics" => "sys/metrics",
        _ => return None,
    })
}

fn operation(method: &Method, query: &mut Map<String, Value>) -> Result<Operation, ApiError> {
    match method.as_str() {
        "GET" | "HEAD" => {
            let flag = |value: Option<Value>| match value {
                None => Ok(false),
                Some(value) => value.as_str().and_then(parse_bool).ok_or(ApiError::Malformed),
            };
            let list = flag(query.remove("list"))?;
            let help = flag(query.remove("help"))?;
            Ok(match (help, list) {
                (true, _) => Operation::Help,
                (false, true) => Operation::List,
                (false, false) => Operation::Read,
            })
        }
        "LIST" => Ok(Operation::List),
        "HELP" => Ok(Operation::Help),
        "POST" | "PUT" => Ok(Operation::Update),
        "PATCH" => Ok(Operation::Patch),
        "DELETE" => Ok(Operation::Delete),
        _ => Err(ApiError::MethodNotAllowed),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The token: its own header wins even when it is wrong; `Bearer` is spelled exactly so.
fn token(headers: &HeaderMap) -> Option<SecretString> {
    if headers.contains_key("x-vault-token") {
        // What is no text is no token, but it still keeps the other header from counting.
        let sent = text(headers, "x-vault-token").unwrap_or("\u{0}");
        return (!sent.is_empty()).then(|| SecretString::new(sent.to_owned()));
    }
    let bearer = text(headers, header::AUTHORIZATION.as_str())?.strip_prefix("Bearer ")?.trim();
    (!bearer.is_empty()).then(|| SecretString::new(bearer.to_owned()))
}

fn refuse_wrapping(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get("x-vault-wrap-ttl") else {
        return Ok(());
    };
    let wrong = |why: &str| ApiError::invalid(format!("error parsing X-Vault-Wrap-TTL header: {why}"));
    let sent = value.to_str().map_err(|_| wrong("not text"))?;
    match parse_duration_s(&Value::from(sent)) {
        None => Err(wrong("time: invalid duration")),
        Some(0) => Ok(()),
        Some(seconds) if seconds < 0 => Err(wrong("requested wrap ttl cannot be negative")),
        Some(_) => Err(ApiError::invalid("response wrapping is not built yet")),
    }
}

/// Receives and parses the body of a write.
async fn receive(
    shared: &Shared,
    parts: &Parts,
    request: &Request,
    body: Body,
) -> Result<(Map<String, Value>, Portion), ApiError> {
    let content_type = text(&parts.headers, header::CONTENT_TYPE.as_str());
    if request.operation == Operation::Patch {
        check_patch_type(content_type)?;
    }
    let length = text(&parts.headers, header::CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
    let max = match request.path.as_str().starts_with("sys/") {
        true => shared.rules.max_body_bytes,
        false => shared.rules.max_body_bytes.min(MAX_ENGINE_BODY_BYTES),
    };
    if length.is_some_and(|length: u64| usize::try_from(length).map_or(true, |length| length > max)) {
        return Err(ApiError::BodyTooLarge);
    }
    let address = request.client_address.parse().ok().map(|address: SocketAddr| address.ip());
    let receiving = collect(&shared.bodies, address, max, length.unwrap_or(0), body);
    let (mut bytes, held) = match shared.rules.timeouts.read {
        Duration::ZERO => receiving.await?,
        limit => tokio::time::timeout(limit, receiving)
            .await
            .map_err(|_| ApiError::invalid("request body was not received in time"))??,
    };
    if request.operation == Operation::Delete {
        // The fields of a DELETE are in its query; the body was read only to keep the connection usable.
        return Ok((request.data.clone(), held));
    }
    let data = blocking_if(bytes.len() > LONG_PARSE_BYTES, || parse_body(content_type, &bytes));
    // It may have been a share. Zeros that are looked at have to be written.
    bytes.fill(0);
    black_box(&bytes);
    Ok((data?, held))
}

fn check_patch_type(content_type: Option<&str>) -> Result<(), ApiError> {
    let Some(sent) = content_type.filter(|sent| !sent.is_empty()) else {
        return Err(ApiError::invalid("mime: no media type"));
    };
    let kind = sent.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/merge-patch+json") {
        return Ok(());
    }
    // What a client says in place of it by mistake may be anything, so that it is not repeated.
    const COMMON: [&str; 4] = [
        "application/json",
        "application/json-patch+json",
        "application/x-www-form-urlencoded",
        "text/plain",
    ];
    let shown = COMMON.iter().find(|common| kind.eq_ignore_ascii_case(common)).unwrap_or(&"another");
    Err(ApiError::UnsupportedMediaType(format!(
        "PATCH requires Content-Type of application/merge-patch+json, provided {shown}"
    )))
}

/// Receives a body, counted as long as the portion is held.
async fn collect(
    bodies: &Arc<FairShare>,
    address: Option<IpAddr>,
    max: usize,
    promised: u64,
    mut body: Body,
) -> Result<(BytesMut, Portion), ApiError> {
    let busy = |_| ApiError::Busy("too many large requests at once; try again".to_owned());
    let mut held = bodies.take(address, 0).map_err(busy)?;
    // A short body is received in one piece of memory; growing would leave copies behind.
    let mut bytes = BytesMut::with_capacity(usize::try_from(promised.min(BELIEVED_BYTES)).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| ApiError::invalid("request body could not be read"))?;
        if let Ok(data) = frame.into_data() {
            if data.len() > max - bytes.len() {
                return Err(ApiError::BodyTooLarge);
            }
            held.grow(data.len()).map_err(busy)?;
            bytes.extend_from_slice(&data);
        }
    }
    Ok((bytes, held))
}

fn into_http(response: Response, namespace: Option<HeaderValue>, head: bool) -> http::Response<Body> {
    let status = status::status(&response.result);
    let retry_after = response.result.as_ref().err().and_then(status::retry_after_s);
    let location = match &response.result {
        Ok(Answer::Redirect { location }) => HeaderValue::from_str(location).ok(),
        _ => None,
    };
    let download = match &response.result {
        Ok(Answer::Download(download)) => download.take(),
        _ => None,
    };
    let rendered = render(response);
    let mut out = http::Response::new(Body::empty());
    *out.status_mut() = status;
    let headers = out.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::STRICT_TRANSPORT_SECURITY,
        HeaderValue::from_static("max-age=31536000; includeSubDomains"),
    );
    let mut set = |name: HeaderName, value: Option<HeaderValue>| {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    };
    set(
        header::CONTENT_TYPE,
        rendered.content_type.and_then(|kind| match kind {
            Cow::Borrowed(kind) => Some(HeaderValue::from_static(kind)),
            Cow::Owned(kind) => HeaderValue::try_from(kind).ok(),
        }),
    );
    set(header::RETRY_AFTER, retry_after.map(HeaderValue::from));
    set(header::LOCATION, location);
    set(HeaderName::from_static("x-vault-namespace"), namespace);
    if let Some(pieces) = download {
        set(header::CONTENT_DISPOSITION, Some(HeaderValue::from_static("attachment")));
        *out.body_mut() = Body::from_stream(upload::stream(pieces));
        return out;
    }
    match rendered.body {
        Some(body) if head => set(header::CONTENT_LENGTH, Some(HeaderValue::from(body.len()))),
        Some(body) => *out.body_mut() = Body::from(body),
        None => {}
    }
    out
}

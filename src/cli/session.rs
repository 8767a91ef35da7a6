//! A command's conversation with a server: flags and environment in, API calls out.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::Value;
use zeroize::Zeroizing;

use super::api_error::ApiError;
use super::duration::GoDuration;
use super::environment::Environment;
use super::secret::Secret;
use super::settings::{Settings, canonical_namespace};
use super::shown::{CurlTls, canonical, in_double_quotes, policy_for, quoted};
use super::token_helper::TokenHelper;
use super::{Instead, Invocation};
use crate::client::{Address, Client, ClientConfig, Response, Scheme, Token, escape_path};

/// Where a server is if nobody says.
const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";

/// The pause before a read is sent again, Vault's shortest.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is done in place of a call, or for it.
struct Extra {
    wrap_ttl: Option<GoDuration>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// An open conversation. Calls block; each runs on this session's own single-threaded runtime.
pub struct Session {
    address: String,
    client: Client,
    runtime: tokio::runtime::Runtime,
    namespace: Option<String>,
    extra: Extra,
    retries: u32,
    instead: Instead,
    program: &'static str,
    configured_headers: Vec<(HeaderName, HeaderValue)>,
    curl_tls: CurlTls,
}

impl Session {
    /// Puts together address, TLS, token and headers; nothing is sent yet.
    ///
    /// # Errors
    /// The text for the operator: a bad address, an unreadable file, a bad variable. Exit code 1.
    pub fn open(invocation: &Invocation<'_, '_>) -> Result<Session, String> {
        let (flags, environment) = (&invocation.flags, invocation.environment);
        let settings = Settings { flags, environment };
        let address = settings.text("address", "ADDR").unwrap_or(DEFAULT_ADDRESS).to_owned();
        let mut addresses = addresses(&address)?.into_iter();
        let first = addresses.next().ok_or("the list of addresses is empty")?;
        let mut config = ClientConfig::new(first);
        config.further_addresses = addresses.collect();
        config.token = effective_token(environment)?;
        let namespace = settings.text("ns", "NAMESPACE").filter(|_| flags.has("ns"));
        let namespace = namespace.or(settings.text("namespace", "NAMESPACE"));
        config.namespace = namespace.and_then(canonical_namespace);
        config.headers = settings.headers()?;
        config.timeout = settings.timeout()?;
        config.follow_redirects = !settings.bool("disable-redirects", "DISABLE_REDIRECTS")?;
        config.tls_server_name = settings.text("tls-server-name", "TLS_SERVER_NAME").map(str::to_owned);
        let tls = settings.tls()?;
        if config.addresses().any(|address| address.scheme() == Scheme::Https) {
            config.tls = Some(tls.build().map_err(|error| error.to_string())?);
        }
        let namespace = config.namespace.clone();
        let extra = Extra { wrap_ttl: settings.wrap_ttl()?, headers: settings.request_headers()? };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let configured_headers = config.headers.clone();
        Ok(Session {
            address,
            client: Client::new(config).map_err(|error| error.to_string())?,
            runtime: runtime.map_err(|error| format!("cannot start the event loop: {error}"))?,
            namespace,
            extra,
            retries: settings.retries()?,
            instead: invocation.instead,
            program: invocation.program.command(),
            configured_headers,
            curl_tls: CurlTls {
                skip_verify: tls.skip_verify,
                ca_file: tls.ca_file,
                ca_path: tls.ca_path,
                client_cert: tls.client_cert,
                client_key: tls.client_key,
            },
        })
    }

    /// The address, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The token that calls carry.
    pub fn token(&self) -> Option<&Token> {
        self.client.token()
    }

    /// Carries another token from now on.
    pub fn replace_token(&mut self, token: Token) {
        self.client.replace_token(Some(token));
    }

    /// Does not wrap the answers of the calls to come.
    pub fn without_wrapping(&mut self) {
        self.extra.wrap_ttl = None;
    }

    /// Sends a request and gives the answer of any status below 400.
    ///
    /// `path` is a name, not encoded; `/v1/` is put in front.
    ///
    /// # Errors
    /// Every kind of [`ApiError`].
    pub fn call(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Response, ApiError> {
        self.call_with(method, path, query, body, Vec::new())
    }

    /// [`Session::call`] with headers of the request's own.
    fn call_with(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
        mut headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Response, ApiError> {
        let target = target(path, query);
        let body = body.map(|body| Zeroizing::new(body.to_string()));
        headers.extend(self.extra_headers());
        match self.instead {
            Instead::Nothing => self.exchange(method, &target, body, &headers),
            Instead::Curl => Err(ApiError::Shown(self.curl(method, &target, body.as_ref(), &headers))),
            Instead::Policy => Err(ApiError::Shown(policy_for(method, path, query))),
        }
    }

    /// A read that is made whatever is asked for in place of the command's own calls, and never wrapped.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn preflight(&self, path: &str) -> Result<Response, ApiError> {
        self.exchange("GET", &target(path, &[]), None, &self.extra.headers)
    }

    /// Reads; `None` when nothing is there.
    ///
    /// # Errors
    /// As [`Session::call`], but not for a 404.
    pub fn read(&self, path: &str, query: &[(&str, &str)]) -> Result<Option<Secret>, ApiError> {
        let (response, error) = self.call_for_any_status("GET", path, query, None)?;
        found(&response, error)
    }

    /// Lists; `None` when nothing is there.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn list(&self, path: &str) -> Result<Option<Secret>, ApiError> {
        self.read(path, &[("list", "true")])
    }

    /// Sends a request with or without a body; `None` when the answer has none.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Option<Secret>, ApiError> {
        parse(&self.call(method, path, &[], body)?)
    }

    /// Sends a JSON merge patch (RFC 7396); `None` when the answer has no body.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn merge_patch(&self, path: &str, body: &Value) -> Result<Option<Secret>, ApiError> {
        let content_type = HeaderValue::from_static("application/merge-patch+json");
        let headers = vec![(CONTENT_TYPE, content_type)];
        parse(&self.call_with("PATCH", path, &[], Some(body), headers)?)
    }

    /// Reads what a command must know before its own request: the read is made whatever is asked for in
    /// place of that request, and never wrapped. `None` when nothing is there.
    ///
    /// # Errors
    /// As [`Session::read`].
    pub fn preread(&self, path: &str, query: &[(&str, &str)]) -> Result<Option<Secret>, ApiError> {
        let response = self.answer("GET", &target(path, query), None, &self.extra.headers)?;
        found(&response, self.error_of("GET", &response))
    }

    /// Deletes; `None` when the answer has no body.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn delete(&self, path: &str, query: &[(&str, &str)]) -> Result<Option<Secret>, ApiError> {
        parse(&self.call("DELETE", path, query, None)?)
    }

    /// Like [`Session::call`], for endpoints that answer with plain JSON instead of an envelope.
    ///
    /// # Errors
    /// As [`Session::call`], and for an answer that is no JSON.
    pub fn raw_json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, ApiError> {
        let response = self.call(method, path, &[], body)?;
        serde_json::from_slice(&response.body)
            .map_err(|error| ApiError::Unreadable(format!("error parsing the server's answer: {error}")))
    }

    /// The answer of any status, with the error it stands for.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn call_for_any_status(
        &self,
        method: &str,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(Response, Option<ApiError>), ApiError> {
        if self.instead != Instead::Nothing {
            return self.call(method, path, query, body).map(|response| (response, None));
        }
        let body = body.map(|body| Zeroizing::new(body.to_string()));
        let response = self.answer(method, &target(path, query), body, &self.extra_headers())?;
        let error = self.error_of(method, &response);
        Ok((response, error))
    }

    /// Reads what is not a document, and gives it to `sink` as it comes.
    ///
    /// # Errors
    /// As [`Session::call`]; what `sink` was given by then is not all.
    pub fn download(
        &self,
        path: &str,
        sink: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> Result<(), ApiError> {
        let headers = self.extra_headers();
        let target = target(path, &[]);
        let answer = self.client.download(&target, &headers, sink);
        let response = self.runtime.block_on(answer).map_err(ApiError::Client)?;
        self.error_of("GET", &response).map_or(Ok(()), Err)
    }

    /// Sends a file, and says by `progress` how many bytes of it have gone.
    ///
    /// # Errors
    /// As [`Session::call`].
    pub fn upload(
        &self,
        path: &str,
        query: &[(&str, &str)],
        file: &std::path::Path,
        header: Option<(HeaderName, HeaderValue)>,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<Response, ApiError> {
        let mut headers = self.extra_headers();
        headers.extend(header);
        let target = target(path, query);
        let answer = self.client.upload(&target, file, &headers, progress);
        let response = self.runtime.block_on(answer).map_err(ApiError::Client)?;
        self.error_of("POST", &response).map_or(Ok(response), Err)
    }

    fn exchange(
        &self,
        method: &str,
        target: &str,
        body: Option<Zeroizing<String>>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, ApiError> {
        let response = self.answer(method, target, body, headers)?;
        match self.error_of(method, &response) {
            Some(error) => Err(error),
            None => Ok(response),
        }
    }

    fn answer(
        &self,
        method: &str,
        target: &str,
        body: Option<Zeroizing<String>>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> Result<Response, ApiError> {
        // The buffer is wiped when HTTP lets go of it; what the socket and TLS copied of it is not.
        let body = body.map(|body| Bytes::from_owner(WipedBody(body)));
        // What changes something is sent once: after an error it may have been done all the same.
        let retries = if method == "GET" { self.retries } else { 0 };
        self.runtime.block_on(async {
            for _ in 0..retries {
                match self.client.request(method, target, body.clone(), headers).await {
                    Ok(answer) if !is_passing(answer.status) => return Ok(answer),
                    _ => tokio::time::sleep(RETRY_AFTER).await,
                }
            }
            self.client.request(method, target, body, headers).await.map_err(ApiError::Client)
        })
    }

    fn error_of(&self, method: &str, response: &Response) -> Option<ApiError> {
        let failed = !(200..400).contains(&response.status.as_u16());
        failed.then(|| ApiError::of_response(method, self.namespace.as_deref(), response))
    }

    fn extra_headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = self.extra.headers.clone();
        if let Some(ttl) = self.extra.wrap_ttl.and_then(|ttl| HeaderValue::try_from(ttl.to_string()).ok()) {
            headers.push((HeaderName::from_static("x-vault-wrap-ttl"), ttl));
        }
        headers
    }

    fn curl(
        &self,
        method: &str,
        target: &str,
        body: Option<&Zeroizing<String>>,
        headers: &[(HeaderName, HeaderValue)],
    ) -> String {
        let mut command = String::from("curl ");
        if self.curl_tls.skip_verify {
            command.push_str("--insecure ");
        }
        if method != "GET" {
            command.push_str(&format!("-X {method} "));
        }
        for (option, file) in self.curl_tls.files() {
            command.push_str(&format!("{option} '{}' ", quoted(&file.display().to_string())));
        }
        command.push_str("-H \"X-Vault-Request: true\" ");
        if self.client.token().is_some() {
            command.push_str(&format!("-H \"X-Vault-Token: $({} print token)\" ", self.program));
        }
        if let Some(namespace) = &self.namespace {
            command.push_str(&format!("-H \"X-Vault-Namespace: {namespace}\" "));
        }
        for (name, value) in self.configured_headers.iter().chain(headers) {
            let value = in_double_quotes(&String::from_utf8_lossy(value.as_bytes()));
            command.push_str(&format!("-H \"{}: {value}\" ", canonical(name)));
        }
        if let Some(body) = body {
            command.push_str(&format!("-d '{}' ", quoted(body)));
        }
        format!("{command}\"{}\"", self.client.url(target))
    }
}

/// Whether the same request may be answered otherwise a moment later.
fn is_passing(status: StatusCode) -> bool {
    status == StatusCode::PRECONDITION_FAILED
        || status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}

/// The addresses in a list with commas, the order kept.
fn addresses(list: &str) -> Result<Vec<Address>, String> {
    let parts = list.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(|part| Address::parse(part).map_err(|error| error.to_string())).collect()
}

struct WipedBody(Zeroizing<String>);

impl AsRef<[u8]> for WipedBody {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The token that commands use: the variable's, else the helper's.
///
/// # Errors
/// When the helper's file is there but cannot be read.
pub fn effective_token(environment: &Environment) -> Result<Option<Token>, String> {
    if let Some(token) = environment.non_empty("TOKEN") {
        return Ok(Some(Token::new(token)));
    }
    match TokenHelper::of(environment) {
        Some(helper) => helper
            .load()
            .map_err(|error| format!("error reading the token from {}: {error}", helper.path().display())),
        None => Ok(None),
    }
}

/// What a read found, if anything.
fn found(response: &Response, error: Option<ApiError>) -> Result<Option<Secret>, ApiError> {
    match error {
        None => parse(response),
        Some(error) if error.status() == Some(404) => {
            // A 404 may carry data (a deleted version's metadata) or warnings.
            let secret = parse(response).unwrap_or_default();
            Ok(secret.filter(|secret| {
                secret.has_warnings() || secret.data.as_ref().is_some_and(|data| !data.is_empty())
            }))
        }
        Some(error) => Err(error),
    }
}

fn parse(response: &Response) -> Result<Option<Secret>, ApiError> {
    if response.body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    Secret::parse(&response.body)
        .map(Some)
        .map_err(|error| ApiError::Unreadable(format!("error parsing the server's answer: {error}")))
}

fn target(path: &str, query: &[(&str, &str)]) -> String {
    let mut target = format!("/v1/{}", escape_path(path));
    for (at, (name, value)) in query.iter().enumerate() {
        target.push(if at == 0 { '?' } else { '&' });
        target.push_str(&format!("{}={}", escape_query(name), escape_query(value)));
    }
    target
}

fn escape_query(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'-' | b'_' | b'.' | b'~' => escaped.push(byte as char),
            b' ' => escaped.push('+'),
            _ if byte.is_ascii_alphanumeric() => escaped.push(byte as char),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_escape_names_and_queries() {
        assert_eq!(
            target("secret/data/a b?", &[("version", "1"), ("x y", "&")]),
            "/v1/secret/data/a%20b%3F?version=1&x+y=%26"
        );
    }
}

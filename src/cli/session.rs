//! A command's conversation with a server: flags and environment in, API calls out.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use zeroize::Zeroizing;

use super::api_error::ApiError;
use super::duration::GoDuration;
use super::environment::Environment;
use super::secret::Secret;
use super::settings::{Settings, canonical_namespace};
use super::token_helper::TokenHelper;
use super::{Instead, Invocation};
use crate::client::{Address, Client, ClientConfig, Response, Scheme, Token, escape_path};

/// What is done in place of a call, or for it.
struct Extra {
    wrap_ttl: Option<GoDuration>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// An open conversation. Calls block; each runs on this session's own single-threaded runtime.
pub struct Session {
    client: Client,
    runtime: tokio::runtime::Runtime,
    namespace: Option<String>,
    extra: Extra,
    instead: Instead,
    program: &'static str,
}

impl Session {
    /// Puts together address, TLS, token and headers; nothing is sent yet.
    ///
    /// # Errors
    /// The text for the operator: a bad address, an unreadable file, a bad variable. Exit code 1.
    pub fn open(invocation: &Invocation<'_, '_>) -> Result<Session, String> {
        let (flags, environment) = (&invocation.flags, invocation.environment);
        let settings = Settings { flags, environment };
        let address = settings.text("address", "ADDR").unwrap_or("https://127.0.0.1:8200");
        let address = Address::parse(address).map_err(|error| error.to_string())?;
        let mut config = ClientConfig::new(address);
        config.token = effective_token(environment)?;
        let namespace = settings.text("ns", "NAMESPACE").filter(|_| flags.has("ns"));
        let namespace = namespace.or(settings.text("namespace", "NAMESPACE"));
        config.namespace = namespace.and_then(canonical_namespace);
        config.headers = settings.headers()?;
        config.timeout = settings.timeout()?;
        config.follow_redirects = !settings.bool("disable-redirects", "DISABLE_REDIRECTS")?;
        config.tls_server_name = settings.text("tls-server-name", "TLS_SERVER_NAME").map(str::to_owned);
        if config.address.scheme() == Scheme::Https {
            config.tls = Some(settings.tls()?.build().map_err(|error| error.to_string())?);
        }
        let namespace = config.namespace.clone();
        let extra = Extra { wrap_ttl: settings.wrap_ttl()?, headers: settings.request_headers()? };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Session {
            client: Client::new(config).map_err(|error| error.to_string())?,
            runtime: runtime.map_err(|error| format!("cannot start the event loop: {error}"))?,
            namespace,
            extra,
            instead: invocation.instead,
            program: invocation.program.command(),
        })
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
        let target = target(path, query);
        let body = body.map(|body| Zeroizing::new(body.to_string()));
        match self.instead {
            Instead::Nothing => {}
            Instead::Curl => return Err(ApiError::Shown(self.curl(method, &target, body.as_ref()))),
            Instead::Policy => return Err(ApiError::Shown(policy_for(method, path, query))),
        }
        self.exchange(method, &target, body, &self.extra_headers())
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
        match self.call_for_any_status("GET", path, query, None)? {
            (response, None) => parse(&response),
            (response, Some(error)) if error.status() == Some(404) => {
                // A 404 may carry data (a deleted version's metadata) or warnings.
                let secret = parse(&response).unwrap_or_default();
                Ok(secret.filter(|secret| {
                    secret.has_warnings() || secret.data.as_ref().is_some_and(|data| !data.is_empty())
                }))
            }
            (_, Some(error)) => Err(error),
        }
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
        let request = self.client.request(method, target, body, headers);
        self.runtime.block_on(request).map_err(ApiError::Client)
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

    fn curl(&self, method: &str, target: &str, body: Option<&Zeroizing<String>>) -> String {
        let mut command = String::from("curl ");
        if method != "GET" {
            command.push_str(&format!("-X {method} "));
        }
        command.push_str("-H \"X-Vault-Request: true\" ");
        if self.client.token().is_some() {
            command.push_str(&format!("-H \"X-Vault-Token: $({} print token)\" ", self.program));
        }
        if let Some(namespace) = &self.namespace {
            command.push_str(&format!("-H \"X-Vault-Namespace: {namespace}\" "));
        }
        if let Some(ttl) = self.extra.wrap_ttl {
            command.push_str(&format!("-H \"X-Vault-Wrap-Ttl: {ttl}\" "));
        }
        if let Some(body) = body {
            command.push_str(&format!("-d '{}' ", body.replace('\'', r#"'"'"'"#)));
        }
        format!("{command}\"{}\"", self.client.url(target))
    }
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

fn policy_for(method: &str, path: &str, query: &[(&str, &str)]) -> String {
    let capabilities = match method {
        "GET" if query.contains(&("list", "true")) => r#"["list"]"#,
        "GET" => r#"["read"]"#,
        "DELETE" => r#"["delete"]"#,
        "PATCH" => r#"["patch"]"#,
        _ => r#"["create", "update"]"#,
    };
    format!("path \"{path}\" {{\n  capabilities = {capabilities}\n}}")
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

    #[test]
    fn policies_name_what_a_request_needs() {
        assert_eq!(
            policy_for("GET", "secret/data/a", &[]),
            "path \"secret/data/a\" {\n  capabilities = [\"read\"]\n}"
        );
        assert!(policy_for("GET", "p", &[("list", "true")]).contains("[\"list\"]"));
        assert!(policy_for("PUT", "p", &[]).contains("[\"create\", \"update\"]"));
    }
}

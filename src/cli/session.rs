//! A command's conversation with a server: flags and environment in, API calls out.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use keystead_tls::ClientTls;
use serde_json::Value;
use zeroize::Zeroizing;

use super::api_error::ApiError;
use super::duration::GoDuration;
use super::environment::Environment;
use super::flags::{self, Flag, Kind, Parsed};
use super::secret::Secret;
use super::token_helper::TokenHelper;
use super::{Instead, Invocation};
use crate::client::{Address, Client, ClientConfig, Response, Scheme, Token, escape_path};

/// The flags of every command that calls the API.
pub const HTTP_FLAGS: &[Flag] = &[
    Flag::new(
        "address",
        Kind::Text,
        "Address of the server (VAULT_ADDR); https://127.0.0.1:8200 by default.",
    ),
    Flag::new("ca-cert", Kind::Text, "PEM file of trusted certificates (VAULT_CACERT)."),
    Flag::new("ca-path", Kind::Text, "Directory of PEM files of trusted certificates (VAULT_CAPATH)."),
    Flag::new("client-cert", Kind::Text, "PEM file of the client's certificate (VAULT_CLIENT_CERT)."),
    Flag::new("client-key", Kind::Text, "PEM file of the client's private key (VAULT_CLIENT_KEY)."),
    Flag::new(
        "tls-server-name",
        Kind::Text,
        "Name that the server's certificate must carry (VAULT_TLS_SERVER_NAME).",
    ),
    Flag::new(
        "tls-skip-verify",
        Kind::Bool,
        "Trust any certificate: for trying out only (VAULT_SKIP_VERIFY).",
    ),
    Flag::new("namespace", Kind::Text, "Namespace of the request (VAULT_NAMESPACE)."),
    Flag::new("ns", Kind::Text, "Short for -namespace."),
    Flag::new("header", Kind::Map, "Header to send, name=value; may be given more than once."),
    Flag::new("mfa", Kind::List, "MFA credentials, sent as X-Vault-MFA (VAULT_MFA)."),
    Flag::new(
        "wrap-ttl",
        Kind::Duration,
        "Wrap the answer in a single-use token of that life (VAULT_WRAP_TTL).",
    ),
    Flag::new("policy-override", Kind::Bool, "Override soft-mandatory policies."),
    Flag::new("unlock-key", Kind::Text, "Key of a locked namespace; accepted and not used."),
    Flag::new("disable-redirects", Kind::Bool, "Do not follow redirects (VAULT_DISABLE_REDIRECTS)."),
    Flag::new("non-interactive", Kind::Bool, "Never ask on the terminal."),
    Flag::new(
        "output-curl-string",
        Kind::Bool,
        "Print the curl command for the request instead of sending it.",
    ),
    Flag::new("output-policy", Kind::Bool, "Print the policy that the request needs instead of sending it."),
    Flag::new("format", Kind::Text, "table, json, yaml or raw (VAULT_FORMAT)."),
];

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

fn canonical_namespace(namespace: &str) -> Option<String> {
    let namespace = namespace.trim_matches('/');
    (!namespace.is_empty() && namespace != "root").then(|| format!("{namespace}/"))
}

/// Flags over environment variables.
struct Settings<'a> {
    flags: &'a Parsed,
    environment: &'a Environment,
}

impl<'a> Settings<'a> {
    fn text(&self, flag: &str, variable: &str) -> Option<&'a str> {
        self.flags.text(flag).or_else(|| self.environment.setting(variable)).filter(|text| !text.is_empty())
    }

    fn bool(&self, flag: &str, variable: &str) -> Result<bool, String> {
        match self.environment.non_empty(variable) {
            _ if self.flags.has(flag) => Ok(self.flags.bool(flag)),
            Some(text) => flags::parse_bool(text).map_err(|_| {
                format!("could not parse {}: {text:?} is not a boolean", self.environment.name_of(variable))
            }),
            None => Ok(false),
        }
    }

    fn duration(&self, variable: &str) -> Result<Option<GoDuration>, String> {
        let Some(text) = self.environment.non_empty(variable) else { return Ok(None) };
        let duration = GoDuration::parse_flag(text);
        duration
            .map(Some)
            .map_err(|why| format!("could not parse {}: {why}", self.environment.name_of(variable)))
    }

    fn timeout(&self) -> Result<Duration, String> {
        match self.duration("CLIENT_TIMEOUT")? {
            Some(GoDuration(nanos)) if nanos > 0 => Ok(Duration::from_nanos(nanos.unsigned_abs())),
            _ => Ok(Duration::from_secs(60)),
        }
    }

    fn wrap_ttl(&self) -> Result<Option<GoDuration>, String> {
        let ttl = match self.flags.go_duration("wrap-ttl") {
            None => self.duration("WRAP_TTL")?,
            given => given,
        };
        Ok(ttl.filter(|ttl| ttl.0 != 0))
    }

    fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let parse = |(name, value): (&str, &str)| {
            let refused = || format!("invalid header {name:?} in -header");
            let header = HeaderName::try_from(name).map_err(|_| refused())?;
            // Vault keeps these for the flags that set them.
            if header.as_str().starts_with("x-vault-") {
                return Err(format!("headers that begin with X-Vault- cannot be set with -header: {name:?}"));
            }
            Ok((header, HeaderValue::try_from(value).map_err(|_| refused())?))
        };
        self.flags.pairs("header").into_iter().map(parse).collect()
    }

    fn request_headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
        let mut credentials = self.flags.list("mfa");
        if credentials.is_empty() {
            credentials.extend(self.environment.non_empty("MFA"));
        }
        let mut headers = Vec::new();
        for credential in credentials {
            let value = HeaderValue::try_from(credential).map_err(|_| "invalid value of -mfa".to_owned())?;
            headers.push((HeaderName::from_static("x-vault-mfa"), value));
        }
        if self.flags.bool("policy-override") {
            let name = HeaderName::from_static("x-vault-policy-override");
            headers.push((name, HeaderValue::from_static("true")));
        }
        Ok(headers)
    }

    fn tls(&self) -> Result<ClientTls, String> {
        let path = |flag, variable| self.text(flag, variable).map(PathBuf::from);
        let ca_file = path("ca-cert", "CACERT");
        Ok(ClientTls {
            // As with Vault, a file makes a directory moot.
            ca_path: path("ca-path", "CAPATH").filter(|_| ca_file.is_none()),
            ca_file,
            client_cert: path("client-cert", "CLIENT_CERT"),
            client_key: path("client-key", "CLIENT_KEY"),
            server_name: self.text("tls-server-name", "TLS_SERVER_NAME").map(str::to_owned),
            skip_verify: self.bool("tls-skip-verify", "SKIP_VERIFY")?,
            ..ClientTls::default()
        })
    }
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

    #[test]
    fn namespaces_end_in_a_slash_and_the_root_is_none() {
        assert_eq!(canonical_namespace("/a/b"), Some("a/b/".to_owned()));
        assert_eq!((canonical_namespace("root"), canonical_namespace("/")), (None, None));
    }
}

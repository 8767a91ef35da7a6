//! The settings that all API commands share: their flags, and the environment behind these.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use keystead_tls::ClientTls;

use super::duration::GoDuration;
use super::environment::Environment;
use super::flags::{self, Flag, Kind, Parsed};

/// The flags of every command that calls the API.
pub const HTTP_FLAGS: &[Flag] = &[
    Flag::new(
        "address",
        Kind::Text,
        "Address of the server, or several with commas between them, of which the next is asked when one does \
         not answer (VAULT_ADDR); https://127.0.0.1:8200 by default.",
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
    FORMAT,
];

/// The flags of commands that call no API and yet have a result to format.
pub const FORMAT_FLAGS: &[Flag] = &[FORMAT];

const FORMAT: Flag = Flag::new("format", Kind::Text, "table, json, yaml or raw (VAULT_FORMAT).");

/// Flags over environment variables.
pub(super) struct Settings<'a> {
    pub(super) flags: &'a Parsed,
    pub(super) environment: &'a Environment,
}

impl<'a> Settings<'a> {
    pub(super) fn text(&self, flag: &str, variable: &str) -> Option<&'a str> {
        self.flags.text(flag).or_else(|| self.environment.setting(variable)).filter(|text| !text.is_empty())
    }

    pub(super) fn bool(&self, flag: &str, variable: &str) -> Result<bool, String> {
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

    pub(super) fn timeout(&self) -> Result<Duration, String> {
        match self.duration("CLIENT_TIMEOUT")? {
            Some(GoDuration(nanos)) if nanos > 0 => Ok(Duration::from_nanos(nanos.unsigned_abs())),
            _ => Ok(Duration::from_secs(60)),
        }
    }

    /// How often a read is sent again after an error of the server; none by default, as with Vault.
    pub(super) fn retries(&self) -> Result<u32, String> {
        let Some(text) = self.environment.non_empty("MAX_RETRIES") else { return Ok(0) };
        text.trim().parse().map_err(|_| {
            format!("could not parse {}: {text:?} is not a number", self.environment.name_of("MAX_RETRIES"))
        })
    }

    pub(super) fn wrap_ttl(&self) -> Result<Option<GoDuration>, String> {
        let ttl = match self.flags.go_duration("wrap-ttl") {
            None => self.duration("WRAP_TTL")?,
            given => given,
        };
        Ok(ttl.filter(|ttl| ttl.0 != 0))
    }

    pub(super) fn headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
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

    pub(super) fn request_headers(&self) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
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

    pub(super) fn tls(&self) -> Result<ClientTls, String> {
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

pub(super) fn canonical_namespace(namespace: &str) -> Option<String> {
    let namespace = namespace.trim_matches('/');
    (!namespace.is_empty() && namespace != "root").then(|| format!("{namespace}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings_of<T>(environment: &Environment, args: &[&str], see: impl Fn(Settings<'_>) -> T) -> T {
        let args: Vec<_> = args.iter().map(|arg| arg.to_string()).collect();
        let flags = Parsed::parse(HTTP_FLAGS, &args).unwrap();
        see(Settings { flags: &flags, environment })
    }

    #[test]
    fn flags_win_over_variables() {
        let environment =
            Environment::default().with("VAULT_ADDR", "http://v").with("VAULT_SKIP_VERIFY", "1");
        let address = |args: &[&str]| {
            settings_of(&environment, args, |settings| settings.text("address", "ADDR").map(str::to_owned))
        };
        assert_eq!(address(&[]).as_deref(), Some("http://v"));
        assert_eq!(address(&["-address=http://f"]).as_deref(), Some("http://f"));
        let skip = |args: &[&str]| {
            settings_of(&environment, args, |settings| settings.bool("tls-skip-verify", "SKIP_VERIFY"))
        };
        assert_eq!((skip(&[]), skip(&["-tls-skip-verify=false"])), (Ok(true), Ok(false)));
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_named() {
        let environment =
            Environment::default().with("VAULT_SKIP_VERIFY", "maybe").with("KEYSTEAD_CLIENT_TIMEOUT", "x");
        let error =
            settings_of(&environment, &[], |settings| settings.bool("tls-skip-verify", "SKIP_VERIFY"));
        assert!(error.unwrap_err().contains("VAULT_SKIP_VERIFY"));
        let error = settings_of(&environment, &[], |settings| settings.timeout());
        assert!(error.unwrap_err().contains("KEYSTEAD_CLIENT_TIMEOUT"));
    }

    #[test]
    fn the_headers_of_other_flags_cannot_be_set_by_hand() {
        let environment = Environment::default();
        let headers = |arg: &str| settings_of(&environment, &[arg], |settings| settings.headers());
        assert_eq!(headers("-header=X-My=a=b").unwrap()[0].1, "a=b");
        assert!(headers("-header=X-Vault-Token=t").is_err());
    }

    #[test]
    fn namespaces_end_in_a_slash_and_the_root_is_none() {
        assert_eq!(canonical_namespace("/a/b"), Some("a/b/".to_owned()));
        assert_eq!((canonical_namespace("root"), canonical_namespace("/")), (None, None));
    }
}

//! Errors of API calls, in the block that many scripts match.

use std::fmt;

use serde_json::Value;

use crate::client::{ClientError, Response};

/// Why an API call has no result.
#[derive(Debug)]
pub enum ApiError {
    /// No complete answer.
    Client(ClientError),
    /// The server answered with an error status.
    Refused(Box<Refusal>),
    /// The answer is not what the API sends.
    Unreadable(String),
    /// Nothing was sent, on the operator's request: this text is the result instead.
    Shown(String),
}

/// An answer with an error status.
#[derive(Debug)]
pub struct Refusal {
    method: String,
    url: String,
    namespace: Option<String>,
    status: u16,
    errors: Vec<String>,
    raw: Option<String>,
}

impl ApiError {
    /// Takes an error answer apart.
    pub fn of_response(method: &str, namespace: Option<&str>, response: &Response) -> ApiError {
        let parsed: Option<Value> = serde_json::from_slice(&response.body).ok();
        let errors = parsed.as_ref().filter(|body| body.is_object()).map(|body| {
            let list = body.get("errors").and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        });
        ApiError::Refused(Box::new(Refusal {
            method: method.to_owned(),
            url: response.url.clone(),
            namespace: namespace.filter(|namespace| !namespace.is_empty()).map(str::to_owned),
            status: response.status.as_u16(),
            raw: errors.is_none().then(|| String::from_utf8_lossy(&response.body).into_owned()),
            errors: errors.unwrap_or_default(),
        }))
    }

    /// The HTTP status, where there is one.
    pub fn status(&self) -> Option<u16> {
        match self {
            ApiError::Refused(refusal) => Some(refusal.status),
            _ => None,
        }
    }

    /// Whether the server refused because it is sealed.
    pub fn says_sealed(&self) -> bool {
        matches!(self, ApiError::Refused(refusal) if refusal.errors.iter().any(|text| text.contains("Vault is sealed")))
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiError::Client(error) => error.fmt(f),
            ApiError::Refused(refusal) => refusal.fmt(f),
            ApiError::Unreadable(why) => f.write_str(why),
            ApiError::Shown(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Error making API request.\n")?;
        if let Some(namespace) = &self.namespace {
            writeln!(f, "Namespace: {namespace}")?;
        }
        writeln!(f, "URL: {} {}", self.method, self.url)?;
        let Some(raw) = &self.raw else {
            writeln!(f, "Code: {}. Errors:\n", self.status)?;
            let lines: Vec<_> = self.errors.iter().map(|error| format!("* {error}")).collect();
            return f.write_str(&lines.join("\n"));
        };
        write!(f, "Code: {}. Raw Message:\n\n{raw}", self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderMap, StatusCode};

    fn block(status: u16, namespace: Option<&str>, body: &str) -> String {
        let response = Response {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: body.to_owned().into(),
            url: "http://127.0.0.1:8200/v1/sys/unseal".to_owned(),
        };
        ApiError::of_response("PUT", namespace, &response).to_string()
    }

    #[test]
    fn the_block_is_the_one_that_scripts_know() {
        assert_eq!(
            block(400, None, r#"{"errors":["Vault is not initialized"]}"#),
            "Error making API request.\n\nURL: PUT http://127.0.0.1:8200/v1/sys/unseal\nCode: 400. Errors:\n\n\
             * Vault is not initialized"
        );
        assert!(
            block(403, None, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n","b"]}"#)
                .ends_with("Errors:\n\n* 1 error occurred:\n\t* permission denied\n\n\n* b")
        );
        assert!(block(400, Some("ns1/"), "{}").contains("\n\nNamespace: ns1/\nURL: PUT"));
    }

    #[test]
    fn what_is_no_json_is_shown_raw() {
        assert!(block(400, None, "400 Bad Request").ends_with("Code: 400. Raw Message:\n\n400 Bad Request"));
    }
}

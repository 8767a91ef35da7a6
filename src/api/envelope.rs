//! The JSON documents around an answer, in the order of keys that clients see from Vault.

use std::borrow::Cow;

use keystead_storage::RequestId;
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeStruct},
};

use super::status::errors;
use crate::{
    barrier::MountId,
    core::{
        error::ApiError,
        gojson,
        response::{Answer, Logical, Response, Secret},
    },
};

/// A body and its content type; `None` for no body at all.
pub struct Rendered {
    /// The body, which ends in a newline.
    pub body: Option<String>,
    /// Its type; absent on redirects, present even without a body otherwise.
    pub content_type: Option<Cow<'static, str>>,
}

const JSON: &str = "application/json";

/// Renders a response.
pub fn render(response: Response) -> Rendered {
    let json = |body: String| Rendered { body: Some(body + "\n"), content_type: Some(JSON.into()) };
    match response.result {
        Ok(Answer::NoContent) => Rendered { body: None, content_type: Some(JSON.into()) },
        Ok(Answer::Logical(logical) | Answer::Missing(logical)) => {
            json(gojson::to_string(&Envelope { id: response.id, logical: &logical }))
        }
        Ok(Answer::Secret(secret)) => json(secret_document(response.id, &secret)),
        Ok(Answer::Raw(body) | Answer::Health { body, .. }) => json(body),
        Ok(Answer::Text { content_type, body }) => {
            Rendered { body: Some(body), content_type: Some(content_type.into()) }
        }
        Ok(Answer::Download(download)) => {
            Rendered { body: None, content_type: Some(download.content_type().into()) }
        }
        Ok(Answer::Redirect { .. }) => Rendered { body: None, content_type: None },
        Err(error) => json(gojson::to_string(&Errors(&error))),
    }
}

/// The document that [`Envelope`] would give for the same data, without reading the secret's text.
fn secret_document(id: RequestId, secret: &Secret) -> String {
    let mut out = String::with_capacity(secret.text.len() + 512);
    out.push_str("{\"request_id\":\"");
    out.push_str(&MountId(id.0).to_string());
    out.push_str("\",\"lease_id\":\"\",\"renewable\":false,\"lease_duration\":0,\"data\":{\"data\":");
    gojson::escape_markup(&mut out, secret.text.expose());
    out.push_str(",\"metadata\":");
    out.push_str(&gojson::to_string(&secret.metadata));
    out.push_str("},\"wrap_info\":null,\"warnings\":");
    match secret.warnings.as_slice() {
        [] => out.push_str("null"),
        warnings => out.push_str(&gojson::to_string(warnings)),
    }
    out.push_str(",\"auth\":null}");
    out
}

struct Errors<'a>(&'a ApiError);

impl Serialize for Errors<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut document = serializer.serialize_struct("Errors", 1)?;
        document.serialize_field("errors", &errors(self.0))?;
        document.end()
    }
}

struct Envelope<'a> {
    id: RequestId,
    logical: &'a Logical,
}

impl Serialize for Envelope<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let logical = self.logical;
        let mut document = serializer.serialize_map(None)?;
        if let (true, Some(data)) = (logical.duplicated, &logical.data) {
            for (name, value) in data {
                document.serialize_entry(name, value)?;
            }
        }
        // A request id is drawn as a random UUID, and shown as one.
        document.serialize_entry("request_id", &MountId(self.id.0).to_string())?;
        document.serialize_entry("lease_id", "")?;
        document.serialize_entry("renewable", &false)?;
        document.serialize_entry("lease_duration", &logical.lease_duration_s)?;
        document.serialize_entry("data", &logical.data)?;
        document.serialize_entry("wrap_info", &())?;
        let warnings = (!logical.warnings.is_empty()).then_some(&logical.warnings);
        document.serialize_entry("warnings", &warnings)?;
        document.serialize_entry("auth", &())?;
        document.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::response::text_to_map;

    fn body(result: Result<Answer, ApiError>) -> String {
        let rendered = render(Response { id: RequestId([0x4a; 16]), result });
        assert_eq!(rendered.content_type.as_deref(), Some("application/json"));
        rendered.body.unwrap_or_default()
    }

    #[test]
    fn the_envelope_is_vaults_byte_for_byte() {
        let data = text_to_map(r#"{"b":2.50,"a":"<x>&"}"#).unwrap();
        assert_eq!(
            body(Ok(Answer::data(data.clone()))),
            concat!(
                r#"{"request_id":"4a4a4a4a-4a4a-4a4a-4a4a-4a4a4a4a4a4a","lease_id":"","renewable":false,"#,
                r#""lease_duration":0,"data":{"a":"\u003cx\u003e\u0026","b":2.50},"wrap_info":null,"#,
                r#""warnings":null,"auth":null}"#,
                "\n"
            )
        );
        let shown = body(Ok(Answer::duplicated(data).with_warnings(vec!["w".to_owned()])));
        assert!(shown.starts_with(r#"{"a":"\u003cx\u003e\u0026","b":2.50,"request_id":"#), "{shown}");
        assert!(shown.contains(r#""warnings":["w"],"auth":null}"#), "{shown}");
    }

    #[test]
    fn a_secret_is_shown_as_the_same_data_would_be() {
        let text = r#"{"a<b":"x&y>\u2028\"\\é","n":2.50,"o":{"l":[1,null,true]}}"#;
        let text = text.replace("\\u2028", "\u{2028}");
        let metadata = text_to_map(r#"{"version":3,"custom_metadata":{"<k>":"v"}}"#).unwrap();
        for warnings in [Vec::new(), vec!["<w>".to_owned()]] {
            let mut data = text_to_map("{}").unwrap();
            data.insert("data".to_owned(), text_to_map(&text).unwrap().into());
            data.insert("metadata".to_owned(), metadata.clone().into());
            let secret =
                Secret { text: text.clone().into(), metadata: metadata.clone(), warnings: warnings.clone() };
            let shown = body(Ok(Answer::Secret(secret)));
            assert_eq!(shown, body(Ok(Answer::data(data).with_warnings(warnings))));
        }
    }

    #[test]
    fn errors_are_wrapped_only_where_vault_wraps_them() {
        for (error, expected) in [
            (ApiError::NotFound, r#"{"errors":[]}"#),
            (ApiError::BadToken, r#"{"errors":["permission denied"]}"#),
            (ApiError::PermissionDenied, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#),
            (
                ApiError::UnsupportedPath { authenticated: true },
                r#"{"errors":["1 error occurred:\n\t* unsupported path\n\n"]}"#,
            ),
            (ApiError::UnsupportedPath { authenticated: false }, r#"{"errors":["unsupported path"]}"#),
            (
                ApiError::NoRoute("x/y".to_owned()),
                r#"{"errors":["no handler for route \"x/y\". route entry not found."]}"#,
            ),
            (ApiError::Sealed, r#"{"errors":["Vault is sealed"]}"#),
        ] {
            assert_eq!(body(Err(error)), format!("{expected}\n"));
        }
    }

    #[test]
    fn nothing_to_say_has_a_type_and_no_body() {
        assert_eq!(body(Ok(Answer::NoContent)), "");
        let redirect = Answer::Redirect { location: String::new() };
        let rendered = render(Response { id: RequestId::NONE, result: Ok(redirect) });
        assert!(rendered.body.is_none() && rendered.content_type.is_none());
    }
}

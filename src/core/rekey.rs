//! `sys/rekey/*`, `sys/rekey-recovery-key/*`, `sys/generate-root/*` and `sys/rotate`: what key holders agree to, and what
//! follows it.
//!
//! As in Vault, shares are what authorises the first three; a token is not asked for. Who shows one is told the nonce of
//! what is in progress, and may cancel it without.

use serde_json::Value;

use super::{
    Core,
    error::ApiError,
    fields::Fields,
    gojson,
    node_ops::{GenerateRootRequest, RekeyRequest, RekeyTarget},
    request::{Operation, Request},
    response::Answer,
};
use crate::secret::SecretString;

impl Core {
    /// Makes new shares, step by step.
    pub(super) async fn rekey(&self, request: &Request) -> Result<Answer, ApiError> {
        let fields = Fields(&request.data);
        let path = request.path.as_str();
        let target = match path.starts_with("sys/rekey-recovery-key/") {
            true => RekeyTarget::Recovery,
            false => RekeyTarget::Barrier,
        };
        let step = path.rsplit('/').next().unwrap_or_default();
        let nonce = fields.text_or_empty("nonce")?;
        let asked = match (step, request.operation) {
            ("verify", Operation::Read) => RekeyRequest::Verification,
            ("verify", Operation::Delete) => RekeyRequest::RestartVerification { nonce },
            ("verify", _) => RekeyRequest::Verify { key: key(&fields)?, nonce },
            ("update", _) => RekeyRequest::Update { key: key(&fields)?, nonce },
            (_, Operation::Read) => RekeyRequest::Status,
            (_, Operation::Delete) => RekeyRequest::Cancel { nonce },
            _ => RekeyRequest::Begin {
                shares: fields.count("secret_shares")?,
                threshold: fields.count("secret_threshold")?,
                pgp_keys: fields.texts("pgp_keys")?.unwrap_or_default(),
                backup: fields.flag("backup")?.unwrap_or(false),
                verify: fields.flag("require_verification")?.unwrap_or(false),
            },
        };
        let cancels = matches!(asked, RekeyRequest::Cancel { .. });
        let result = self.node().rekey(target, asked, is_trusted(request)).await;
        answer(request, cancels, result.map(Value::Object))
    }

    /// Makes a root token, step by step.
    pub(super) async fn generate_root(&self, request: &Request) -> Result<Answer, ApiError> {
        let fields = Fields(&request.data);
        let asked = match request.operation {
            Operation::Read => GenerateRootRequest::Status,
            Operation::Delete => GenerateRootRequest::Cancel { nonce: fields.text_or_empty("nonce")? },
            _ if request.path.as_str().ends_with("/update") => {
                GenerateRootRequest::Update { key: key(&fields)?, nonce: fields.text_or_empty("nonce")? }
            }
            _ => GenerateRootRequest::Begin {
                otp: SecretString::new(fields.text_or_empty("otp")?),
                pgp_key: fields.text_or_empty("pgp_key")?,
            },
        };
        let cancels = matches!(asked, GenerateRootRequest::Cancel { .. });
        let result = self.node().generate_root(asked, is_trusted(request)).await;
        answer(request, cancels, result.map(Value::Object))
    }
}

/// The token has been found to be good, and there are only root tokens so far.
fn is_trusted(request: &Request) -> bool {
    request.token.is_some()
}

fn key(fields: &Fields<'_>) -> Result<SecretString, ApiError> {
    let key = fields.text("key")?.filter(|key| !key.is_empty());
    key.map(SecretString::new)
        .ok_or_else(|| ApiError::invalid("'key' must be specified in request body as JSON"))
}

fn answer(request: &Request, cancels: bool, result: Result<Value, ApiError>) -> Result<Answer, ApiError> {
    match result {
        Ok(_) if cancels => Ok(Answer::NoContent),
        Ok(body) => Ok(Answer::Raw(gojson::to_string(&body))),
        // The leader that the first attempt was sent to is gone, and what it did is not known to the next one.
        Err(ApiError::Invalid(_)) if request.retry && request.operation == Operation::Update => {
            Err(ApiError::OutcomeUnknown)
        }
        Err(error) => Err(error),
    }
}

//! `sys/break-glass/enable/*` and `sys/break-glass/disable/*`, in the shape of Vault's rekey.

use super::{
    Core,
    error::ApiError,
    fields::Fields,
    node_ops::{BreakGlassChange, BreakGlassRequest},
    request::{Operation, Request},
    response::Answer,
};
use crate::secret::SecretString;

impl Core {
    /// Begins a change of the break-glass shares, goes on with it, or cancels it. Who asks was found allowed to.
    pub(super) async fn change_break_glass(&self, request: &Request) -> Result<Answer, ApiError> {
        let fields = Fields(&request.data);
        let path = request.path.as_str();
        let change = match path.starts_with("sys/break-glass/enable/") {
            true => BreakGlassChange::Enable,
            false => BreakGlassChange::Disable,
        };
        let asked = match request.operation {
            Operation::Read => BreakGlassRequest::Progress(change),
            Operation::Delete => BreakGlassRequest::Cancel(change),
            _ if path.ends_with("/update") => {
                let key = fields.text("key")?.filter(|key| !key.is_empty());
                let key =
                    key.ok_or_else(|| ApiError::invalid("'key' must be specified in request body as JSON"))?;
                let key = SecretString::new(key);
                BreakGlassRequest::Update { change, key, nonce: fields.text_or_empty("nonce")? }
            }
            _ => {
                let (shares, threshold) = (fields.count("secret_shares")?, fields.count("secret_threshold")?);
                BreakGlassRequest::Begin { change, shares, threshold }
            }
        };
        let answer = self.node().change_break_glass(asked).await?;
        Ok(match request.operation {
            Operation::Delete => Answer::NoContent,
            _ => Answer::duplicated(answer),
        })
    }
}

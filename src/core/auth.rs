//! The steps between a request and its execution, each of which is a type that only the step can make.
//!
//! A function that takes [`Audited`] cannot be reached by a request that skipped one of them.

use std::sync::Arc;

use super::{
    error::ApiError,
    node_ops::Unsealed,
    request::Request,
    router::{Access, Route},
    token::{self, CachedToken, TokenRecord},
    txn::{Transaction, kind, record_key},
};
use crate::{barrier::MountId, secret::SecretString};

/// Whoever sent the request.
#[derive(Clone)]
pub enum Caller {
    /// No token was looked at.
    Anonymous,
    /// The holder of a token.
    Holder(Arc<TokenRecord>),
}

/// The token is known, or the route needs none.
pub struct Authenticated(Caller);

/// The caller may do this.
pub struct Authorized(Caller);

/// Every enabled audit device that must have the request's record has it.
pub struct Audited(Caller);

/// Where audit records go.
pub trait AuditBroker: Send + Sync + 'static {
    /// Records a request before it is executed.
    ///
    /// # Errors
    /// When devices are enabled and none could write: then the request must not run.
    fn request(&self, caller: &Caller, request: &Request) -> Result<(), ApiError>;
}

/// No audit device is enabled, so nothing is recorded.
pub struct NoDevices;

impl AuditBroker for NoDevices {
    fn request(&self, _caller: &Caller, _request: &Request) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Finds out whose token came with the request.
///
/// # Errors
/// [`ApiError::BadToken`] for a missing or unknown token, without saying which.
pub fn authenticate(
    request: &Request,
    route: &Route,
    unsealed: &Unsealed,
    txn: &mut Transaction,
) -> Result<Authenticated, ApiError> {
    let caller = match (route.access, &request.token) {
        (Access::None, _) | (Access::Optional, None) => Caller::Anonymous,
        (_, None) => return Err(ApiError::BadToken),
        (_, Some(token)) => Caller::Holder(lookup(token, unsealed, txn)?.ok_or(ApiError::BadToken)?),
    };
    Ok(Authenticated(caller))
}

/// Finds the record of a token. The answer depends on the record from now on, so that a token that is revoked
/// meanwhile takes the write with it.
pub fn lookup(
    token: &SecretString,
    unsealed: &Unsealed,
    txn: &mut Transaction,
) -> Result<Option<Arc<TokenRecord>>, ApiError> {
    let Some(hash) = token::token_hash(&unsealed.token_key, token) else {
        return Ok(None);
    };
    if let Some(known) = unsealed.tokens.get(&hash)
        && txn.version(&known.key)? == Some(known.version)
    {
        return Ok(Some(known.record));
    }
    let path = token::path_of(hash);
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let Some((bytes, version)) = txn.get_versioned(MountId::VAULT, &path, kind::TOKEN)? else {
        return Ok(None);
    };
    let record = Arc::new(TokenRecord::decode(&bytes)?);
    if let Some(version) = version {
        let key = record_key(&unsealed.barrier, MountId::VAULT, &path)?;
        unsealed.tokens.put(hash, CachedToken { key, version, record: Arc::clone(&record) });
    }
    Ok(Some(record))
}

impl Authenticated {
    /// Judges whether the caller may do this. There are only root tokens so far, so policies are not read yet.
    ///
    /// # Errors
    /// [`ApiError::PermissionDenied`].
    pub fn authorize(self, route: &Route) -> Result<Authorized, ApiError> {
        match (route.access, &self.0) {
            (Access::None | Access::Optional, _) => Ok(Authorized(self.0)),
            (Access::Token | Access::Root, Caller::Holder(record)) if record.is_root() => {
                Ok(Authorized(self.0))
            }
            (Access::Token | Access::Root, _) => Err(ApiError::PermissionDenied),
        }
    }
}

impl Authorized {
    /// Has the request recorded.
    ///
    /// # Errors
    /// As [`AuditBroker::request`].
    pub fn audit(self, broker: &dyn AuditBroker, request: &Request) -> Result<Audited, ApiError> {
        broker.request(&self.0, request)?;
        Ok(Audited(self.0))
    }
}

impl Audited {
    /// Whoever sent the request.
    pub fn caller(&self) -> &Caller {
        &self.0
    }
}

//! Why a request was not answered with data.

use bincode::{Decode, Encode};

/// Every way in which a request can end other than with its answer.
///
/// The variants are chosen by what a client can do: mend the request, bring another token, ask again later.
/// The HTTP status and the JSON body follow from the variant in `api::status` alone. Texts never hold a value
/// that the client sent, because errors travel into logs and terminals.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum ApiError {
    /// The request is wrong, and this is what is wrong with it (400).
    #[error("{0}")]
    Invalid(String),
    /// The request is wrong in a way for which Vault gives no text (400).
    #[error("malformed request")]
    Malformed,
    /// The request passed authentication and an engine or the router refused it (400, wrapped text).
    #[error("{0}")]
    Refused(String),
    /// No token, an unknown one, or an expired one (403).
    #[error("permission denied")]
    BadToken,
    /// The token is good and its policies do not allow this (403, wrapped text).
    #[error("permission denied")]
    PermissionDenied,
    /// Forbidden, with a text of its own (403).
    #[error("{0}")]
    Forbidden(String),
    /// There is nothing at this path (404 without a text).
    #[error("nothing found")]
    NotFound,
    /// The namespace does not exist (404).
    #[error("namespace not found")]
    NoNamespace,
    /// No mount owns the path (404).
    #[error("no handler for route \"{0}\". route entry not found.")]
    NoRoute(String),
    /// The mount has no such path (404).
    #[error("unsupported path")]
    UnsupportedPath {
        /// The request had passed authentication, which decides the shape of the text.
        authenticated: bool,
    },
    /// The path exists and does not know the operation (405).
    #[error("unsupported operation")]
    UnsupportedOperation {
        /// The request had passed authentication, which decides the shape of the text.
        authenticated: bool,
    },
    /// The HTTP method means nothing here (405 without a text).
    #[error("method not allowed")]
    MethodNotAllowed,
    /// The write may or may not have happened, and nobody can say any more (409, so that no client repeats it
    /// by itself).
    #[error(
        "outcome unknown: the write may or may not have been executed; read the state before sending it again"
    )]
    OutcomeUnknown,
    /// What is to be stored is larger than an entry of the log may be (413).
    #[error("{0}")]
    TooLarge(String),
    /// The body is longer than the listener takes (413).
    #[error("http: request body too large")]
    BodyTooLarge,
    /// The body has a content type that this operation does not take (415).
    #[error("{0}")]
    UnsupportedMediaType(String),
    /// Something failed on our side; the text is safe to show (500).
    #[error("{0}")]
    Internal(String),
    /// This node is sealed, or not initialised (503).
    #[error("Vault is sealed")]
    Sealed,
    /// No leader was found in time; nothing was executed (503 with `Retry-After`).
    #[error("local node not active but active cluster node not found")]
    NoLeader,
    /// Too much is in flight; nothing was executed (503 with `Retry-After`).
    #[error("{0}")]
    Busy(String),
    /// The client asks for this too often (429).
    #[error("{0}")]
    TooManyRequests(String),
    /// The request lacks something that the listener demands of every request (412).
    #[error("{0}")]
    PreconditionFailed(String),
    /// There is no room for what is to be stored; nothing was executed, and the text names the disk and the remedy
    /// (507).
    #[error("{0}")]
    DiskFull(String),
}

impl ApiError {
    /// A wrong request, from anything that can be shown.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// A promise that this attempt did nothing, for a reason that may be gone at the next one.
    pub(super) fn says_nothing_was_done(&self) -> bool {
        matches!(self, Self::Sealed | Self::NoLeader | Self::Busy(_) | Self::DiskFull(_))
    }

    /// A failure of ours: logs the cause and shows the client nothing of it.
    ///
    /// The cause may name a file or an index; neither concerns whoever sent the request.
    pub fn internal(context: &'static str, cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(context, cause = %cause, "a request failed inside the node");
        Self::Internal("internal error".to_owned())
    }
}

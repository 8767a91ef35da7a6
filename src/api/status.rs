//! The one place where an outcome gets its HTTP status and its error texts.

use http::StatusCode;

use crate::core::{
    error::ApiError,
    response::{Answer, HealthState},
};

/// The status of an answer or an error.
pub fn status(result: &Result<Answer, ApiError>) -> StatusCode {
    match result {
        Ok(answer) => of_answer(answer),
        Err(error) => of_error(error),
    }
}

fn of_answer(answer: &Answer) -> StatusCode {
    match answer {
        Answer::NoContent => StatusCode::NO_CONTENT,
        Answer::Logical(_)
        | Answer::Secret(_)
        | Answer::Raw(_)
        | Answer::Text { .. }
        | Answer::Download(_) => StatusCode::OK,
        Answer::Missing(_) => StatusCode::NOT_FOUND,
        Answer::Redirect { .. } => StatusCode::TEMPORARY_REDIRECT,
        Answer::Health { state, code, .. } => {
            let code = code.unwrap_or(match state {
                HealthState::Active => 200,
                HealthState::Standby => 429,
                HealthState::Uninitialized => 501,
                HealthState::Sealed => 503,
                HealthState::Failed => 500,
            });
            StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_REQUEST)
        }
    }
}

fn of_error(error: &ApiError) -> StatusCode {
    match error {
        ApiError::Invalid(_) | ApiError::Malformed | ApiError::Refused(_) => StatusCode::BAD_REQUEST,
        ApiError::BadToken | ApiError::PermissionDenied | ApiError::Forbidden(_) => StatusCode::FORBIDDEN,
        ApiError::NotFound
        | ApiError::NoNamespace
        | ApiError::NoRoute(_)
        | ApiError::UnsupportedPath { .. } => StatusCode::NOT_FOUND,
        ApiError::UnsupportedOperation { .. } | ApiError::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ApiError::OutcomeUnknown => StatusCode::CONFLICT,
        ApiError::TooLarge(_) | ApiError::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ApiError::TooManyRequests(_) => StatusCode::TOO_MANY_REQUESTS,
        ApiError::PreconditionFailed(_) => StatusCode::PRECONDITION_FAILED,
        ApiError::UnsupportedMediaType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        ApiError::DiskFull(_) => StatusCode::INSUFFICIENT_STORAGE,
        ApiError::Sealed | ApiError::NoLeader | ApiError::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The texts in the body of an error.
///
/// Vault has two shapes: what an authenticated request was refused by policy or routing is wrapped as a list
/// of one; everything else is plain.
pub fn errors(error: &ApiError) -> Vec<String> {
    match error {
        ApiError::Malformed | ApiError::NotFound | ApiError::MethodNotAllowed => Vec::new(),
        ApiError::Refused(_)
        | ApiError::PermissionDenied
        | ApiError::UnsupportedPath { authenticated: true }
        | ApiError::UnsupportedOperation { authenticated: true } => {
            vec![format!("1 error occurred:\n\t* {error}\n\n")]
        }
        other => vec![other.to_string()],
    }
}

/// Seconds after which a client may try again, where that makes sense.
pub fn retry_after_s(error: &ApiError) -> Option<u32> {
    matches!(error, ApiError::NoLeader | ApiError::Busy(_)).then_some(1)
}

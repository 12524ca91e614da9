//! Why an operation was refused: as a protocol error over a connection, as problem details
//! (RFC 9457) over REST.

use axum::http::StatusCode;
use serde::Serialize;
use shared::protocol::ClientError;
use store::archive::ArchiveError;
use store::records::RecordsError;

/// Why an operation was refused; each variant says what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChatError {
    /// A token is needed, or another one.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The user may not do this.
    #[error("{0}")]
    Forbidden(&'static str),
    /// There is no such thing, or not for this user.
    #[error("{0}")]
    NotFound(&'static str),
    /// The request must be changed.
    #[error("{0}")]
    Invalid(String),
    /// What is there already contradicts it.
    #[error("{0}")]
    Conflict(&'static str),
    /// The user has as many as may be.
    #[error("{0}")]
    Limit(String),
    /// The request is too large.
    #[error("{0}")]
    TooLarge(String),
    /// A store did not answer: the same request may succeed later.
    #[error("{0}")]
    Unavailable(&'static str),
    /// As the protocol puts it.
    #[error("{}", .0.message)]
    Protocol(ClientError),
}

impl From<ClientError> for ChatError {
    fn from(error: ClientError) -> Self {
        Self::Protocol(error)
    }
}

impl From<RecordsError> for ChatError {
    fn from(error: RecordsError) -> Self {
        match error {
            RecordsError::Limit(what) => Self::Limit(what),
            RecordsError::Refused(why) => {
                tracing::debug!(error = why, "the database refused a request's value");
                Self::Invalid("a value cannot be stored".to_owned())
            }
            RecordsError::Unavailable(_) | RecordsError::Schema(_) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, source, "chat records failed");
                Self::Unavailable("the database did not answer")
            }
        }
    }
}

impl From<ArchiveError> for ChatError {
    fn from(error: ArchiveError) -> Self {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, source, "archive could not be read");
        Self::Unavailable("the archive did not answer")
    }
}

/// Problem details; `code` is the protocol's error for the same thing.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub(crate) struct Problem {
    /// Always `about:blank`: the status says what kind of problem it is.
    r#type: &'static str,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What is wrong, for a developer.
    detail: String,
    /// The public number that a client on a connection gets for it.
    code: u32,
}

impl ChatError {
    /// Returns the error as a client on a connection gets it.
    pub(crate) fn client_error(&self) -> ClientError {
        match self {
            Self::Unauthenticated(_) => ClientError::UNAUTHORIZED,
            Self::Forbidden(_) => ClientError::PERMISSION_DENIED,
            Self::NotFound(_) => ClientError::NOT_FOUND,
            Self::Invalid(_) => ClientError::BAD_REQUEST,
            Self::Conflict(_) => ClientError::CONFLICT,
            Self::Limit(_) | Self::TooLarge(_) => ClientError::LIMIT_EXCEEDED,
            Self::Unavailable(_) => ClientError::INTERNAL,
            Self::Protocol(error) => *error,
        }
    }

    /// Returns the error's HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Limit(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Protocol(error) => match error.code {
                101 | 109 | 110 => StatusCode::UNAUTHORIZED,
                102 | 104 | 108 => StatusCode::NOT_FOUND,
                103 => StatusCode::FORBIDDEN,
                106 => StatusCode::PAYLOAD_TOO_LARGE,
                107 => StatusCode::BAD_REQUEST,
                111 => StatusCode::TOO_MANY_REQUESTS,
                113 => StatusCode::CONFLICT,
                _ => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// Returns the error as problem details.
    pub(crate) fn problem(&self) -> Problem {
        let status = self.status();
        Problem {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("error"),
            status: status.as_u16(),
            detail: self.to_string(),
            code: self.client_error().code,
        }
    }
}

//! What a failure of a table means for who asked. The SDK's words go to the log, never further.

use std::error::Error;

use aws_sdk_dynamodb::error::{DisplayErrorContext, ProvideErrorMetadata};
use tracing::error;

use crate::error::{ToolError, code};

/// A table that did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// For now: throttled, unreachable, too slow. A write may have been carried out.
    #[error("the tables do not answer now; nothing is known to be wrong with the question, ask again in some seconds")]
    Unavailable,
    /// Until somebody puts it right: no such table, no permission, another schema.
    #[error("the tables are not set up for these tools; their operator finds the reason in the tools' log")]
    Misconfigured,
}

impl From<StoreError> for ToolError {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Unavailable => code::STORE_UNAVAILABLE,
            StoreError::Misconfigured => code::INTERNAL,
        };
        Self::new(code, error.to_string())
    }
}

/// Codes that a repeat does not cure.
const LASTING: [&str; 7] = [
    "ResourceNotFoundException",
    "AccessDeniedException",
    "ValidationException",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "MissingAuthenticationTokenException",
    "SerializationException",
];

/// Logs a failure in full, once, and answers what it means.
pub(super) fn failed<E>(doing: &'static str, error: E) -> StoreError
where
    E: Error + ProvideErrorMetadata,
{
    let lasting = error.code().is_some_and(|code| LASTING.contains(&code));
    error!(doing, reason = %DisplayErrorContext(&error), "a table failed");
    if lasting { StoreError::Misconfigured } else { StoreError::Unavailable }
}

//! What an error of the SDK means for us. One method decides; nothing else in floorgate looks at SDK errors.

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_dynamodb::Error as Service;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ConnectorError, ProvideErrorMetadata, SdkError};

use crate::sync::item::Item;
use crate::sync::table::{Cause, Scope, TableError};

/// What an error means.
#[derive(Debug)]
pub(super) enum Disposition {
    /// The condition of a write did not hold; the item as it is, where the table told.
    Refused(Option<Item>),
    /// Anything else.
    Failed(TableError),
}

/// Codes that ask for fewer requests.
const THROTTLED: [&str; 6] = [
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "Throttling",
    "ThrottledException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
];
/// Codes that reject who we are.
const CREDENTIALS: [&str; 9] = [
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "ExpiredTokenException",
    "ExpiredToken",
    "MissingAuthenticationTokenException",
    "MissingAuthenticationToken",
    "IncompleteSignatureException",
    "InvalidSignatureException",
    "SignatureDoesNotMatch",
];
/// Codes that reject what we may do.
const FORBIDDEN: [&str; 3] = ["AccessDeniedException", "AccessDenied", "KMSAccessDeniedException"];
/// What DynamoDB (and its stand-ins) say about an item whose key is not the table's: a wrong table, not a wrong item.
const WRONG_KEYS: [&str; 4] =
    ["does not match the schema", "required keys was not given", "Missing the key", "key conditions were not unique"];

impl Disposition {
    /// Decides, for an operation on `table`.
    pub(super) fn of<E>(error: SdkError<E, HttpResponse>, table: &str) -> Self
    where
        E: ProvideErrorMetadata + Into<Service> + std::error::Error + Send + Sync + 'static,
    {
        match error {
            SdkError::ServiceError(service) => {
                let status = service.raw().status().as_u16();
                let error = service.into_err();
                let code = error.code().unwrap_or_default().to_owned();
                let message = error.message().unwrap_or_default().to_owned();
                match error.into() {
                    Service::ConditionalCheckFailedException(refused) => Self::Refused(refused.item),
                    _ => Self::Failed(of_code(status, &code, &message, table)),
                }
            }
            SdkError::TimeoutError(_) => Self::Failed(timed_out(table)),
            SdkError::DispatchFailure(failure) => Self::Failed(match failure.as_connector_error() {
                Some(error) => of_connector(error, table),
                None => retry(Cause::Network, format!("table `{table}` cannot be reached")),
            }),
            SdkError::ResponseError(response) => {
                let status = response.raw().status().as_u16();
                Self::Failed(retry(Cause::Server, format!("table `{table}` answered unreadably (HTTP {status})")))
            }
            other => Self::Failed(TableError::Permanent {
                text: format!("a request for table `{table}` cannot be made: {}", chain(&other)),
            }),
        }
    }
}

fn retry(cause: Cause, text: String) -> TableError {
    TableError::Retry { cause, text }
}

fn timed_out(table: &str) -> TableError {
    retry(Cause::Timeout, format!("table `{table}` did not answer in time"))
}

fn misconfigured(scope: Scope, text: String) -> TableError {
    TableError::Misconfigured { scope, text }
}

fn of_connector(error: &ConnectorError, table: &str) -> TableError {
    if error.is_timeout() {
        return timed_out(table);
    }
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if cause.is::<CredentialsError>() {
            return misconfigured(Scope::Everything, format!("no credentials for table `{table}`: {}", chain(cause)));
        }
        source = cause.source();
    }
    retry(Cause::Network, format!("table `{table}` cannot be reached: {}", chain(error)))
}

fn of_code(status: u16, code: &str, message: &str, table: &str) -> TableError {
    let said = if message.is_empty() { code.to_owned() } else { format!("{code}: {message}") };
    if THROTTLED.contains(&code) || status == 429 {
        return retry(Cause::Throttled, format!("table `{table}` asks for fewer requests ({said})"));
    }
    if status >= 500 || status == 408 || code == "TransactionConflictException" {
        return retry(Cause::Server, format!("table `{table}` failed (HTTP {status} {said})"));
    }
    match code {
        "ResourceNotFoundException" => misconfigured(
            Scope::Table,
            format!("table `{table}` does not exist; create it with `floorgate provision`, or correct its name"),
        ),
        "RequestExpired" | "RequestTimeTooSkewed" => clock(table, &said),
        _ if CREDENTIALS.contains(&code) && about_time(message) => clock(table, &said),
        _ if CREDENTIALS.contains(&code) => misconfigured(
            Scope::Everything,
            format!("table `{table}` does not accept the credentials ({said}); check the keys or the role alias"),
        ),
        _ if FORBIDDEN.contains(&code) => misconfigured(
            Scope::Table,
            format!("these credentials may not use table `{table}` ({said}); check the policy of their role"),
        ),
        _ if WRONG_KEYS.iter().any(|text| message.contains(text)) => misconfigured(
            Scope::Table,
            format!("table `{table}` has other keys than floorgate's; use another name or table ({said})"),
        ),
        // A proxy or a captive portal, not DynamoDB: what it says about our item means nothing.
        "" if status != 413 => retry(Cause::Server, format!("no table behind `{table}`'s address (HTTP {status})")),
        _ => TableError::Permanent { text: format!("table `{table}` refuses the item (HTTP {status} {said})") },
    }
}

fn about_time(message: &str) -> bool {
    message.contains("Signature expired") || message.contains("not yet current")
}

fn clock(table: &str, said: &str) -> TableError {
    misconfigured(
        Scope::Everything,
        format!(
            "table `{table}` finds this machine's clock wrong ({said}); set the time or repair its synchronisation"
        ),
    )
}

/// An error and what it came from, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_disposition() {
        let of = |status, code, message| of_code(status, code, message, "iot-devices");
        let cause = |error| match error {
            TableError::Retry { cause, .. } => Some(cause),
            _ => None,
        };
        let scope = |error| match error {
            TableError::Misconfigured { scope, .. } => Some(scope),
            _ => None,
        };
        for code in THROTTLED {
            assert_eq!(cause(of(400, code, "")), Some(Cause::Throttled), "{code}");
        }
        assert_eq!(cause(of(500, "InternalServerError", "")), Some(Cause::Server));
        assert_eq!(cause(of(503, "", "")), Some(Cause::Server));
        assert_eq!(cause(of(403, "", "<html>log in to the guest network</html>")), Some(Cause::Server));
        assert_eq!(scope(of(400, "ResourceNotFoundException", "")), Some(Scope::Table));
        assert_eq!(scope(of(400, "AccessDeniedException", "")), Some(Scope::Table));
        assert_eq!(scope(of(400, "UnrecognizedClientException", "")), Some(Scope::Everything));
        assert_eq!(scope(of(400, "ExpiredTokenException", "")), Some(Scope::Everything));
        let wrong_keys = "The provided key element does not match the schema";
        assert_eq!(scope(of(400, "ValidationException", wrong_keys)), Some(Scope::Table));
        let too_large = "Item size has exceeded the maximum allowed size";
        assert!(matches!(of(400, "ValidationException", too_large), TableError::Permanent { .. }));
        assert!(matches!(of(413, "", ""), TableError::Permanent { .. }));
    }

    #[test]
    fn a_signature_out_of_time_is_the_clock_and_any_other_the_keys() {
        let said = |message| of_code(400, "InvalidSignatureException", message, "t").to_string();
        assert!(said("Signature expired: 20260101T000000Z is now earlier than …").contains("clock"));
        assert!(said("Signature not yet current: …").contains("clock"));
        assert!(said("The request signature we calculated does not match").contains("credentials"));
    }
}

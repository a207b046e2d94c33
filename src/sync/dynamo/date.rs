//! Every answer of the table tells the time; the gateway's clock learns from it how far it may trust itself.

use std::time::SystemTime;

use aws_sdk_dynamodb::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_smithy_async::time::TimeSource;
use aws_smithy_types::date_time::{DateTime, Format};
use floorgate_model::Timestamp;

use crate::clock::Clock;

/// Hands the `Date` of each answer to the clock.
#[derive(Debug)]
pub(super) struct ObserveDate(pub(super) Clock);

impl Intercept for ObserveDate {
    fn name(&self) -> &'static str {
        "ObserveDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.0.observe_table_date(context.response().headers().get("date").and_then(read_date));
        Ok(())
    }
}

/// A `Date` header; `None` if it is none.
pub(crate) fn read_date(header: &str) -> Option<Timestamp> {
    let date = DateTime::from_str(header, Format::HttpDate).ok()?;
    Some(Timestamp::from_millis(date.to_millis().ok()?))
}

/// Requests are signed by the gateway's clock.
#[derive(Debug)]
pub(super) struct SigningTime(pub(super) Clock);

impl TimeSource for SigningTime {
    fn now(&self) -> SystemTime {
        to_system_time(self.0.now())
    }
}

/// A time as the SDK wants it.
pub(crate) fn to_system_time(at: Timestamp) -> SystemTime {
    let since = u64::try_from(at.as_millis()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_header_is_read_and_anything_else_is_not() {
        let read = |text| read_date(text).map(|date| date.to_string());
        assert_eq!(read("Sun, 22 Nov 2026 10:00:00 GMT").as_deref(), Some("2026-11-22T10:00:00.000Z"));
        assert_eq!(read("yesterday"), None);
    }
}

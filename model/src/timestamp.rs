//! Wall-clock time in milliseconds, and its one spelling.

use std::fmt;
use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z, between the years 1970 and 9999.
///
/// Written always as `YYYY-MM-DDTHH:MM:SS.mmmZ`, 24 bytes, because the tables sort it as text: `…00.500Z` comes
/// before `…00Z`, so mixed spellings would reorder history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(i64);

/// Why something is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// Neither RFC 3339 nor a number.
    #[error(
        "{0:?} is not a time; give RFC 3339 with an offset (2026-11-22T10:00:00.000Z) or epoch seconds or milliseconds"
    )]
    Unreadable(String),
    /// Before 1970 or after 9999.
    #[error("the time lies outside the years 1970 to 9999")]
    OutOfRange,
}

/// 9999-12-31T23:59:59.999Z: a later time would need a fifth digit for its year.
const MAX_MS: i64 = 253_402_300_799_999;
/// A number below this is seconds (until the year 5138), from here on milliseconds (from the year 1973).
const SECONDS_BELOW: f64 = 1e11;
/// RFC 3339 with nine fractional digits and an offset has 35 bytes.
const TEXT_MAX: usize = 40;

impl Timestamp {
    /// 1970-01-01T00:00:00.000Z.
    pub const EPOCH: Self = Self(0);

    /// A time from milliseconds since the epoch; values outside the range become its nearest end.
    #[must_use]
    pub fn from_millis(ms: i64) -> Self {
        Self(ms.clamp(0, MAX_MS))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, as a TTL attribute wants them.
    #[must_use]
    pub fn as_seconds(self) -> i64 {
        self.0 / 1000
    }

    /// This time plus `duration`; stops at the end of the range.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(MAX_MS);
        Self::from_millis(self.0.saturating_add(ms))
    }

    /// This time minus `duration`; stops at the beginning of the range.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let ms = i64::try_from(duration.as_millis()).unwrap_or(MAX_MS);
        Self::from_millis(self.0.saturating_sub(ms))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339 with any offset and 0 to 9 fractional digits (cut to milliseconds), or a number in a text.
    ///
    /// # Errors
    /// [`TimestampError`] if it is neither, or outside the range.
    pub fn parse(text: &str) -> Result<Self, TimestampError> {
        let unreadable = || TimestampError::Unreadable(text.chars().take(TEXT_MAX).collect());
        if text.len() > TEXT_MAX || !text.is_ascii() {
            return Err(unreadable());
        }
        if let Ok(number) = text.parse::<f64>() {
            return Self::from_number(number);
        }
        // RFC 3339 alone: jiff reads more (week dates, time zones in brackets) than the contract allows.
        let date_time = text.len() >= 20 && matches!(text.as_bytes()[10], b'T' | b't' | b' ') && !text.contains('[');
        if !date_time {
            return Err(unreadable());
        }
        let time: jiff::Timestamp = text.parse().map_err(|_| unreadable())?;
        Self::in_range(time.as_millisecond())
    }

    /// Reads epoch seconds (below 10¹¹, with a fraction if wanted) or epoch milliseconds.
    ///
    /// # Errors
    /// [`TimestampError::OutOfRange`] if it is not finite, negative, or too large.
    pub fn from_number(number: f64) -> Result<Self, TimestampError> {
        if !number.is_finite() || number < 0.0 {
            return Err(TimestampError::OutOfRange);
        }
        let ms = if number < SECONDS_BELOW { number * 1000.0 } else { number };
        if ms > 253_402_300_799_999.0 {
            return Err(TimestampError::OutOfRange);
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked to be within 0..=MAX_MS just above")]
        Self::in_range(ms.round() as i64)
    }

    fn in_range(ms: i64) -> Result<Self, TimestampError> {
        if (0..=MAX_MS).contains(&ms) { Ok(Self(ms)) } else { Err(TimestampError::OutOfRange) }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0).unwrap_or_default();
        write!(f, "{time:.3}")
    }
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Timestamp;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time, epoch seconds or epoch milliseconds")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Timestamp, E> {
                Timestamp::parse(text).map_err(E::custom)
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Timestamp, E> {
                Timestamp::from_number(number).map_err(E::custom)
            }
            #[expect(clippy::cast_precision_loss, reason = "valid times are below 2^53 ms; larger ones are refused")]
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Timestamp, E> {
                self.visit_f64(number as f64)
            }
            #[expect(clippy::cast_precision_loss, reason = "valid times are below 2^53 ms; larger ones are refused")]
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Timestamp, E> {
                self.visit_f64(number as f64)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_of_one_instant_reads_the_same() {
        let expected = "2026-11-22T10:00:00.500Z";
        for text in [
            "2026-11-22T10:00:00.5Z",
            "2026-11-22T10:00:00.500000+00:00",
            "2026-11-22T12:00:00.500999999+02:00",
            "1795341600.5",
            "1795341600500",
        ] {
            assert_eq!(Timestamp::parse(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in
            ["", "now", "2026-11-22", "2026-11-22T10:00:00", "NaN", "inf", "-1", "1e300", "2026-13-01T00:00:00Z"]
        {
            assert!(Timestamp::parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn text_order_is_time_order(a in 0..=MAX_MS, b in 0..=MAX_MS) {
            let (x, y) = (Timestamp::from_millis(a), Timestamp::from_millis(b));
            prop_assert_eq!(x.to_string().len(), 24);
            prop_assert_eq!(x.to_string().cmp(&y.to_string()), x.cmp(&y));
            prop_assert_eq!(Timestamp::parse(&x.to_string()).unwrap(), x);
        }
    }
}

//! What a device measured.

use std::collections::BTreeMap;
use std::fmt;

/// Most readings in one report (contract §3, hard).
pub const READINGS_MAX: usize = 64;
/// Longest name of a reading, bytes.
pub const METRIC_NAME_MAX: usize = 64;
/// Names that mean something else in a telemetry payload or in `last_telemetry`.
pub const RESERVED_NAMES: [&str; 3] = ["timestamp", "seq", "device_id"];

/// One finite number. A numeric text is a number; NaN and the infinities do not exist here.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Reading(f64);

impl Reading {
    /// A reading from a number, if it is finite. Negative zero becomes zero, so equal readings have equal bytes.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self(value + 0.0))
    }

    /// A reading from a text as devices write them (`"142.7"`).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // `f64::from_str` also reads "inf", "nan" and "infinity"; `new` refuses those.
        if text.len() > 64 { None } else { text.trim().parse().ok().and_then(Self::new) }
    }

    /// The number.
    #[must_use]
    pub fn value(self) -> f64 {
        self.0
    }

    /// Whether DynamoDB can hold it as a number: its range ends at 10¹²⁶ and at 10⁻¹³⁰.
    #[must_use]
    pub fn fits_table_number(self) -> bool {
        let size = self.0.abs();
        size == 0.0 || (1e-129..1e125).contains(&size)
    }
}

/// The shortest text that reads back as the same number; an exponent only for very large or small ones.
impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size == 0.0 || (1e-6..1e17).contains(&size) { write!(f, "{}", self.0) } else { write!(f, "{:e}", self.0) }
    }
}

/// The readings of one report: metric name with its unit (`pressure_psi`) → value, in the order of the names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Readings(BTreeMap<String, Reading>);

/// Why a set of readings is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadingsError {
    /// More fields than the limit.
    #[error("more than {READINGS_MAX} readings")]
    TooMany,
    /// A name that is empty, too long, reserved, or holds other characters than letters, digits and `_.:-`.
    #[error("{0:?} cannot name a reading")]
    Name(String),
}

impl Readings {
    /// No readings.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one reading; a second one of the same name replaces the first.
    ///
    /// # Errors
    /// [`ReadingsError`] for a bad name or one reading too many.
    pub fn insert(&mut self, name: &str, reading: Reading) -> Result<(), ReadingsError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b':' | b'-');
        let bad = name.is_empty() || name.len() > METRIC_NAME_MAX || !name.bytes().all(allowed);
        if bad || RESERVED_NAMES.contains(&name) {
            return Err(ReadingsError::Name(name.chars().take(METRIC_NAME_MAX).collect()));
        }
        if self.0.len() >= READINGS_MAX && !self.0.contains_key(name) {
            return Err(ReadingsError::TooMany);
        }
        self.0.insert(name.to_owned(), reading);
        Ok(())
    }

    /// The reading of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Reading> {
        self.0.get(name).copied()
    }

    /// Name and value, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Reading)> {
        self.0.iter().map(|(name, reading)| (name.as_str(), *reading))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_of_the_seed_are_readings_and_print_as_they_came() {
        for text in ["142.7", "38.2", "75", "0.5", "-12", "2184"] {
            assert_eq!(Reading::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_finite_number_is_no_reading() {
        for text in ["", "on", "NaN", "inf", "-infinity", "1e999", "0x10", "1,5"] {
            assert_eq!(Reading::parse(text), None, "{text:?}");
        }
        assert_eq!(Reading::new(f64::NAN), None);
    }

    proptest! {
        #[test]
        fn a_reading_survives_being_written_and_read(value in proptest::num::f64::NORMAL) {
            let reading = Reading::new(value).unwrap();
            prop_assert_eq!(Reading::parse(&reading.to_string()), Some(reading));
        }
    }
}

//! Small numbers in few bytes: the alphabet of [`super::segment`] and [`super::body`].
//!
//! Whole numbers are LEB128 (seven bits a byte), signed ones zigzag first. A reading is almost always a decimal with
//! few places (`142.7`), so it is written as a scaled whole number when that reads back as the very same `f64`, and
//! as eight raw bytes otherwise: nothing is ever rounded.
//!
//! Reading never panics: whatever is cut off or damaged answers `None`.

use floorgate_model::Reading;

/// Decimal places tried before a reading is written raw.
pub(super) const PLACES_MAX: u8 = 9;
/// Marks a raw `f64` where a number of places would stand.
pub(super) const RAW: u8 = 15;
/// Whole numbers below this are exact in an `f64`.
const EXACT_BELOW: f64 = 9_007_199_254_740_992.0;
/// Powers of ten, all exact in an `f64`.
const TEN_TO: [f64; PLACES_MAX as usize + 1] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9];

/// Appends an unsigned number: one byte below 128, ten at most.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

/// Appends a signed number; small ones of either sign are short.
pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put(out, zigzag(number));
}

/// Appends a text with its length.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Appends a length.
pub(super) fn put_len(out: &mut Vec<u8>, length: usize) {
    put(out, u64::try_from(length).unwrap_or(u64::MAX));
}

/// Appends one reading on its own.
pub(super) fn put_reading(out: &mut Vec<u8>, reading: Reading) {
    if let Some((scaled, places)) = decimal(reading) {
        put(out, zigzag(scaled) << 4 | u64::from(places));
    } else {
        put(out, u64::from(RAW));
        put_raw(out, reading);
    }
}

/// Appends the eight bytes of a reading.
pub(super) fn put_raw(out: &mut Vec<u8>, reading: Reading) {
    out.extend_from_slice(&reading.value().to_le_bytes());
}

/// The reading as a whole number and the power of ten that divides it, if that is exact.
pub(super) fn decimal(reading: Reading) -> Option<(i64, u8)> {
    (0..=PLACES_MAX).find_map(|places| Some((scaled(reading, places)?, places)))
}

/// The reading times ten to the `places`, if dividing again gives the very same number.
pub(super) fn scaled(reading: Reading, places: u8) -> Option<i64> {
    let power = TEN_TO.get(usize::from(places))?;
    let whole = (reading.value() * power).round();
    #[expect(clippy::float_cmp, reason = "only the very same number may be written this way")]
    let exact = whole.abs() < EXACT_BELOW && whole / power == reading.value();
    #[expect(clippy::cast_possible_truncation, reason = "below 2^53")]
    exact.then_some(whole as i64)
}

/// The reverse of [`scaled`].
pub(super) fn unscaled(scaled: i64, places: u8) -> Option<Reading> {
    #[expect(clippy::cast_precision_loss, reason = "below 2^53 as written; a damaged one is merely wrong")]
    Reading::new(scaled as f64 / TEN_TO.get(usize::from(places))?)
}

fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Reads what the `put` functions wrote, in the same order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn left(&self) -> usize {
        self.0.len()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        self.number().map(unzigzag)
    }

    /// A length, refused above `max` before anything is reserved for it.
    pub(super) fn length(&mut self, max: usize) -> Option<usize> {
        usize::try_from(self.number()?).ok().filter(|length| *length <= max)
    }

    pub(super) fn text(&mut self, max: usize) -> Option<&'a str> {
        let length = self.length(max)?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    pub(super) fn reading(&mut self) -> Option<Reading> {
        let code = self.number()?;
        let places = code.to_le_bytes()[0] & 0x0f;
        if places == RAW { self.raw() } else { unscaled(unzigzag(code >> 4), places) }
    }

    pub(super) fn raw(&mut self) -> Option<Reading> {
        Reading::new(f64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn readings_as_devices_send_them_take_three_bytes_at_most() {
        for text in ["142.7", "38.2", "75", "0.5", "-12", "2184"] {
            let mut out = Vec::new();
            put_reading(&mut out, Reading::parse(text).unwrap());
            assert!(out.len() <= 3, "{text} takes {}", out.len());
        }
    }

    proptest! {
        #[test]
        fn every_number_reads_back_as_it_was(a: u64, b: i64, value in proptest::num::f64::NORMAL | proptest::num::f64::ZERO) {
            let reading = Reading::new(value).unwrap();
            let mut out = Vec::new();
            put(&mut out, a);
            put_signed(&mut out, b);
            put_reading(&mut out, reading);
            let mut cursor = Cursor::new(&out);
            prop_assert_eq!(cursor.number(), Some(a));
            prop_assert_eq!(cursor.signed(), Some(b));
            prop_assert_eq!(cursor.reading(), Some(reading));
            prop_assert!(cursor.is_empty());
        }

        #[test]
        fn decimals_read_back_as_they_were(scaled in -99_999_999_i64..99_999_999, places in 0_u8..=6) {
            let reading = unscaled(scaled, places).unwrap();
            prop_assert!(decimal(reading).is_some());
            let mut out = Vec::new();
            put_reading(&mut out, reading);
            prop_assert_eq!(Cursor::new(&out).reading(), Some(reading));
        }
    }
}

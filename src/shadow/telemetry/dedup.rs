//! Which reports of a device were taken already.
//!
//! A report is known by a fingerprint of its device time as sent, its counter and its readings: the first 64 bits of
//! their SHA-256. Two different reports of one device fold wrongly with odds of 256 in 2⁶⁴, about 10⁻¹⁷ a report: at
//! 20 a second, once in 100 million years. The fingerprints are never stored; they are computed again from the samples.

use std::collections::VecDeque;

use floorgate_model::Readings;
use sha2::{Digest, Sha256};

/// Reports remembered per device; an older duplicate is taken as new.
pub(super) const REPORTS_REMEMBERED: usize = 256;

/// What a report is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(u64);

impl Fingerprint {
    /// Of a report: its device time as sent (epoch milliseconds), its counter, its readings.
    pub(super) fn of(device_time: Option<i64>, seq: Option<u64>, readings: &Readings) -> Self {
        let mut hash = Sha256::new();
        // A presence byte before each optional part, a length before each name: no two contents share their bytes.
        hash.update([u8::from(device_time.is_some()), u8::from(seq.is_some())]);
        hash.update(device_time.unwrap_or_default().to_le_bytes());
        hash.update(seq.unwrap_or_default().to_le_bytes());
        for (name, reading) in readings.iter() {
            hash.update(name.len().to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(reading.value().to_le_bytes());
        }
        let digest = hash.finalize();
        Self(digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)))
    }
}

/// The last reports of one device.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(VecDeque<Fingerprint>);

impl Memory {
    /// Whether a report is a duplicate. One with a device time is known by it wherever it stands; one without can
    /// only be told from an equal new one if it was redelivered, and only directly after itself.
    pub(super) fn knows(&self, report: Fingerprint, has_device_time: bool, redelivered: bool) -> bool {
        if has_device_time { self.0.contains(&report) } else { redelivered && self.0.back() == Some(&report) }
    }

    /// Remembers a report; forgets the oldest beyond [`REPORTS_REMEMBERED`].
    pub(super) fn remember(&mut self, report: Fingerprint) {
        if self.0.len() == REPORTS_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(report);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floorgate_model::Reading;

    fn readings(text: &str) -> Readings {
        let mut readings = Readings::new();
        readings.insert("pressure_psi", Reading::parse(text).unwrap()).unwrap();
        readings
    }

    #[test]
    fn any_difference_makes_another_report() {
        let one = Fingerprint::of(Some(1), Some(2), &readings("3"));
        assert_eq!(one, Fingerprint::of(Some(1), Some(2), &readings("3.0")));
        for other in [
            Fingerprint::of(None, Some(2), &readings("3")),
            Fingerprint::of(Some(1), None, &readings("3")),
            Fingerprint::of(Some(2), Some(1), &readings("3")),
            Fingerprint::of(Some(1), Some(2), &readings("4")),
            Fingerprint::of(Some(1), Some(2), &Readings::new()),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn exactly_the_last_256_reports_are_remembered() {
        let mut memory = Memory::default();
        let report = |time: i64| Fingerprint::of(Some(time), None, &readings("1"));
        for time in 0..257 {
            memory.remember(report(time));
        }
        assert!(!memory.knows(report(0), true, true));
        assert!((1..257).all(|time| memory.knows(report(time), true, false)));
    }

    #[test]
    fn without_a_device_time_only_a_redelivery_of_the_last_report_folds() {
        let mut memory = Memory::default();
        let (one, two) = (Fingerprint::of(None, None, &readings("1")), Fingerprint::of(None, None, &readings("2")));
        memory.remember(one);
        assert!(!memory.knows(one, false, false));
        assert!(memory.knows(one, false, true));
        memory.remember(two);
        assert!(!memory.knows(one, false, true));
    }
}

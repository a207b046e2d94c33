//! What became of readings: accepted, delivered, stored, lost; and what is told of those that were lost.
//!
//! For every device, at every instant, `accepted = delivered + stored + lost` ([`DeviceLedger::balances`]). *Accepted*
//! is a reading that was taken from its sender (its PUBACK left, or leaves, because of it) and was not known already;
//! *delivered* is in the history table; *stored* waits on the gateway's disk; *lost* is neither, and declared.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::DeviceId;
use crate::timestamp::Timestamp;

/// Why readings were lost; the code in tables, figures and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// The quota was used up: only minimum, maximum, mean and count of them are left.
    Thinned,
    /// The quota was used up: nothing of them is left.
    Quota,
    /// The file that held them was damaged.
    Damaged,
    /// The device sent more than it may; they were taken from it and not stored.
    RateLimited,
    /// The table refused their block for good, and it was dropped from those kept aside.
    Refused,
}

/// A word that is no reason of a loss.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no reason of a loss; allowed are thinned, quota, damaged, rate_limited, refused")]
pub struct UnknownLossReason(pub String);

impl LossReason {
    /// Every reason.
    pub const ALL: [Self; 5] = [Self::Thinned, Self::Quota, Self::Damaged, Self::RateLimited, Self::Refused];

    /// The stable code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Thinned => "thinned",
            Self::Quota => "quota",
            Self::Damaged => "damaged",
            Self::RateLimited => "rate_limited",
            Self::Refused => "refused",
        }
    }

    fn place(self) -> usize {
        self as usize
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl FromStr for LossReason {
    type Err = UnknownLossReason;

    fn from_str(text: &str) -> Result<Self, UnknownLossReason> {
        let found = Self::ALL.into_iter().find(|reason| reason.as_str() == text);
        found.ok_or_else(|| UnknownLossReason(text.to_owned()))
    }
}

/// Readings of one device that are lost, as they are declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Whose.
    pub device_id: DeviceId,
    /// Time of the first, as well as it is known.
    pub from: Timestamp,
    /// Time of the last, as well as it is known; not before `from`.
    pub to: Timestamp,
    /// How many.
    pub count: u64,
    /// Why.
    pub reason: LossReason,
}

/// Lost readings by reason; as JSON an object of those that are not zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LostCounts([u64; LossReason::ALL.len()]);

impl LostCounts {
    /// How many for this reason.
    #[must_use]
    pub fn of(&self, reason: LossReason) -> u64 {
        self.0[reason.place()]
    }

    /// Adds some.
    pub fn add(&mut self, reason: LossReason, count: u64) {
        let counted = &mut self.0[reason.place()];
        *counted = counted.saturating_add(count);
    }

    /// Counts some, which were lost for one reason, as lost for another.
    pub fn move_over(&mut self, from: LossReason, to: LossReason, count: u64) {
        let counted = &mut self.0[from.place()];
        let moved = count.min(*counted);
        *counted -= moved;
        self.add(to, moved);
    }

    /// How many in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Those that are not zero.
    pub fn iter(&self) -> impl Iterator<Item = (LossReason, u64)> + '_ {
        LossReason::ALL.into_iter().map(|reason| (reason, self.of(reason))).filter(|(_, count)| *count > 0)
    }
}

impl Serialize for LostCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de> Deserialize<'de> for LostCounts {
    /// A reason that is not known here (a newer daemon's) is left out.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut counts = Self::default();
        for (code, count) in BTreeMap::<String, u64>::deserialize(deserializer)? {
            if let Ok(reason) = code.parse() {
                counts.add(reason, count);
            }
        }
        Ok(counts)
    }
}

/// The readings of a device, or of all: where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceLedger {
    /// Taken from their sender, duplicates not counted.
    pub accepted: u64,
    /// Accepted by the history table.
    pub delivered: u64,
    /// On the gateway's disk: in open blocks, waiting, or kept aside.
    pub stored: u64,
    /// Declared lost.
    pub lost: LostCounts,
}

impl DeviceLedger {
    /// Whether nothing is unaccounted for: `accepted = delivered + stored + lost`.
    #[must_use]
    pub fn balances(&self) -> bool {
        let where_they_are = [self.delivered, self.stored, self.lost.total()];
        where_they_are.into_iter().try_fold(0_u64, u64::checked_add) == Some(self.accepted)
    }

    /// Adds another one's figures, for a total.
    pub fn add(&mut self, other: &Self) {
        self.accepted = self.accepted.saturating_add(other.accepted);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.stored = self.stored.saturating_add(other.stored);
        for (reason, count) in other.lost.iter() {
            self.lost.add(reason, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_its_code_and_nothing_else_is() {
        for reason in LossReason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        assert!("Thinned".parse::<LossReason>().is_err());
    }

    #[test]
    fn a_ledger_balances_only_if_every_reading_is_somewhere() {
        let mut ledger = DeviceLedger { accepted: 10, delivered: 3, stored: 4, ..DeviceLedger::default() };
        assert!(!ledger.balances());
        ledger.lost.add(LossReason::Thinned, 3);
        assert!(ledger.balances());
        ledger.lost.move_over(LossReason::Thinned, LossReason::Quota, 5);
        assert_eq!((ledger.lost.of(LossReason::Thinned), ledger.lost.of(LossReason::Quota)), (0, 3));
        assert!(ledger.balances());
    }

    #[test]
    fn as_json_a_ledger_shows_the_reasons_it_has_and_survives_a_newer_one() {
        let mut ledger = DeviceLedger { accepted: 2, delivered: 1, ..DeviceLedger::default() };
        ledger.lost.add(LossReason::RateLimited, 1);
        let json = serde_json::json!({"accepted": 2, "delivered": 1, "stored": 0, "lost": {"rate_limited": 1}});
        assert_eq!(serde_json::to_value(ledger).unwrap(), json);
        let newer = r#"{"accepted": 2, "delivered": 1, "stored": 0, "lost": {"rate_limited": 1, "eaten": 7}}"#;
        assert_eq!(serde_json::from_str::<DeviceLedger>(newer).unwrap(), ledger);
        assert_eq!(serde_json::from_str::<DeviceLedger>("{}").unwrap(), DeviceLedger::default());
    }
}

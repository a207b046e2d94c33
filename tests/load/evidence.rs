//! What was seen from outside the daemon: plain facts, written down while they happen, judged afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One reading, told apart by its number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading {
    pub device: String,
    /// Counts up for each device; no two devices have one number.
    pub n: u64,
    /// Its time, epoch milliseconds.
    pub at: i64,
}

/// A declared loss in the history: an item with `count = 0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub device: String,
    pub from: i64,
    pub to: i64,
    /// How many readings it declares lost.
    pub lost: u64,
    pub reason: String,
}

/// A command that the cloud's broker acknowledged to whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub id: String,
    /// Epoch milliseconds.
    pub expires_at: i64,
    /// Its profile calls it idempotent: it may run again after a crash.
    pub repeatable: bool,
}

/// An order that reached a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    pub id: String,
    /// Epoch milliseconds.
    pub at: i64,
    /// The device did it; false for one that only received it.
    pub done: bool,
}

/// An execution's status, seen on the result topic or in `iot-commands`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub id: String,
    pub status: String,
    pub reason: String,
}

impl Outcome {
    pub fn is_terminal(&self) -> bool {
        !matches!(self.status.as_str(), "created" | "in_progress")
    }

    /// It says that the device was never told.
    pub fn denies(&self) -> bool {
        matches!(self.status.as_str(), "rejected" | "expired")
            || (self.status == "failed" && self.reason == "DEVICE_OFFLINE")
    }
}

/// What the gateway says of a device's readings, at the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Book {
    pub accepted: u64,
    pub delivered: u64,
    pub stored: u64,
    /// For whatever reason.
    pub lost: u64,
}

/// Everything of one run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// Readings that senders handed to their connection, acknowledged or not.
    pub sent: Vec<Reading>,
    /// Of these, the acknowledged.
    pub acknowledged: Vec<Reading>,
    /// Samples of `iot-telemetry-history`, blocks unfolded.
    pub history: Vec<Reading>,
    pub gaps: Vec<Gap>,
    /// Read before the history was, so that nothing is delivered between.
    pub books: BTreeMap<String, Book>,
    pub asked: Vec<Asked>,
    /// Ids that came while the disk failed, with a daemon that died before it worked again: such a refusal is told and
    /// kept in memory (`src/shadow/refused.rs`), so nothing is asked of how these ended. They run once at most all the
    /// same, and in time.
    pub forgotten: BTreeSet<String>,
    pub executed: Vec<Executed>,
    /// The result topic, in order.
    pub results: Vec<Outcome>,
    /// `iot-commands`.
    pub records: Vec<Outcome>,
    /// `shadow_version` of the devices' items as they were seen one after the other.
    pub versions: Vec<(String, u64)>,
    /// The reading number that each device's item shows at the end.
    pub shown: BTreeMap<String, u64>,
    /// What each device is really set to, in its own words.
    pub configured: BTreeMap<String, String>,
    /// What its item says of that.
    pub shown_configured: BTreeMap<String, String>,
    /// From each start of the daemon to its first answer.
    pub starts: Vec<Duration>,
    /// When the daemon's CONNECTs came to the cloud's broker, since the beginning.
    pub connects: Vec<Duration>,
    /// From the moment when a link could carry again to the moment when the daemon was back on it.
    pub returns: Vec<Duration>,
}

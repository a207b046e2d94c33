//! `telemetry.db`: samples on their way to the history table.
//!
//! # Layout
//!
//! * `segment`: one row a commit, holding every sample of that commit, packed. It makes a commit cost one or two pages.
//! * `block`: one row a closed block, exactly as it goes to the table; waiting, sent, or parked.
//!
//! A sample is first in a segment and in its device's open block in memory; when the block closes (60 s, 1 KB as
//! DynamoDB counts, or a gap), it is written as a row in the same transaction that deletes the segments whose samples
//! are then all in blocks. Opening replays the segments.
//!
//! # What it does not do
//!
//! It owns no thread and no clock; the writer calls it, one call at a time.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Readings, Timestamp};

use super::report::TelemetryReport;
use super::store::{StoreError, Taken};
use super::view::HistoryBlock;

/// How long a block stays open, by the monotonic clock.
pub const BLOCK_AGE_MAX: Duration = Duration::from_secs(60);

/// What the writer learns from staging a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Staged {
    /// New or folded.
    pub(crate) taken: Taken,
    /// The time under which it is kept: the device's if it can be right, else the gateway's; unique per device.
    pub(crate) at: Timestamp,
    /// Nothing newer is known of this device.
    pub(crate) is_newest: bool,
}

/// Figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TelemetryStats {
    pub(crate) samples_open: u64,
    pub(crate) blocks_waiting: u64,
    pub(crate) samples_waiting: u64,
    pub(crate) blocks_parked: u64,
    /// Time of the oldest sample that the table does not have.
    pub(crate) oldest: Option<Timestamp>,
    pub(crate) bytes_on_disk: u64,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct TelemetryDb {}

#[expect(clippy::unused_self, clippy::unimplemented, dead_code, reason = "to be built")]
impl TelemetryDb {
    /// Opens or makes the file, migrates, replays. Also answers the newest sample of every device found in it.
    pub(crate) fn open(
        path: &Path,
        history_retention: Duration,
        now: Instant,
    ) -> Result<(Self, BTreeMap<DeviceId, (Timestamp, Readings)>), StoreError> {
        let _ = (path, history_retention, now);
        unimplemented!()
    }

    /// Tells the newest time known of a device from elsewhere (`state.db`), so that time never moves back.
    pub(crate) fn known_newest(&mut self, device: &DeviceId, at: Timestamp) {
        let _ = (device, at);
    }

    /// Takes a sample into memory: folds duplicates, decides its time. Durable only after [`Self::commit`].
    pub(crate) fn stage(&mut self, report: &TelemetryReport, now: Instant) -> Staged {
        let _ = (report, now);
        unimplemented!()
    }

    /// How many samples are staged.
    pub(crate) fn staged(&self) -> usize {
        0
    }

    /// Writes everything staged and every block that is due (age, size, gap), in one transaction. On an error nothing
    /// of it is durable and everything staged is forgotten (its senders will send it again). Answers how many blocks
    /// were closed.
    pub(crate) fn commit(&mut self, now: Instant) -> Result<usize, StoreError> {
        let _ = now;
        unimplemented!()
    }

    /// Whether some open block is due although nothing is staged.
    pub(crate) fn has_due_blocks(&self, now: Instant) -> bool {
        let _ = now;
        false
    }

    pub(crate) fn peek_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let _ = limit;
        unimplemented!()
    }

    pub(crate) fn confirm_blocks(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        let _ = ids;
        unimplemented!()
    }

    pub(crate) fn park_block(&mut self, id: i64, reason: &str) -> Result<(), StoreError> {
        let _ = (id, reason);
        unimplemented!()
    }

    /// Sheds sent blocks, oldest first, until the file with its log is within `quota_bytes`.
    pub(crate) fn keep_within(&mut self, quota_bytes: u64) -> Result<(), StoreError> {
        let _ = quota_bytes;
        unimplemented!()
    }

    pub(crate) fn stats(&self) -> Result<TelemetryStats, StoreError> {
        unimplemented!()
    }

    /// Commits, checkpoints and closes.
    pub(crate) fn close(self, now: Instant) -> Result<(), StoreError> {
        let _ = now;
        unimplemented!()
    }
}

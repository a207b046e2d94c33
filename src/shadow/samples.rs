//! Readings on their way to disk: staged in `telemetry.db`'s room, waiting here for the commit that acknowledges them.
//!
//! # Group commit
//!
//! The first sample opens a window of `commit_interval`; the commit comes when it ends or when [`COMMIT_BATCH`] wait.
//! A sample shows on its device only after that commit; if the commit fails, none of the window is acknowledged, and
//! its senders send it again. Presence alone does not wait: that something was heard is true whatever the disk does,
//! and also when the reading itself is refused because the quota is used up.
//!
//! Confirmations of blocks are collected too ([`CONFIRM_WAIT`], [`CONFIRMED_MAX`]): one commit for many costs the
//! flash less, and a confirmation lost in a crash means that the table gets a block again that it has already.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Readings, Timestamp};
use tokio::sync::oneshot;

use super::report::TelemetryReport;
use super::telemetry::{Staged, TelemetryDb, TelemetryStats};
use super::terms::{COMMIT_BATCH, Config, StoreError, Taken};
use super::turn::Memory;
use super::view::HistoryBlock;

/// The file.
const TELEMETRY_FILE: &str = "telemetry.db";
/// A confirmation of a block waits no longer than this for company, unless a commit takes it along sooner.
pub(super) const CONFIRM_WAIT: Duration = Duration::from_secs(5);
/// More confirmations than this do not wait.
const CONFIRMED_MAX: usize = 256;
/// After a failure the file is opened again at most this often; meanwhile every sample is refused, not lost: its
/// sender keeps it.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

/// Who waits for a sample's commit.
pub(super) type SampleReply = oneshot::Sender<Result<Taken, StoreError>>;

#[derive(Debug)]
struct Waiting {
    report: TelemetryReport,
    staged: Staged,
    heard_at: Instant,
    reply: SampleReply,
}

/// The way of readings to disk.
#[derive(Debug)]
pub(super) struct Samples {
    path: PathBuf,
    history_retention: Duration,
    commit_interval: Duration,
    db: Option<TelemetryDb>,
    broken_at: Option<(Instant, StoreError)>,
    waiting: Vec<Waiting>,
    window_opened: Option<Instant>,
    /// Blocks the table has, not yet marked so in the file.
    confirmed: BTreeSet<i64>,
    confirmed_first: Option<Instant>,
    quota_bytes: u64,
    full: bool,
}

/// Newest samples the file holds.
pub(super) type Newest = BTreeMap<DeviceId, (Timestamp, Readings)>;

impl Samples {
    pub(super) fn open(config: &Config, now: Instant, wall: Timestamp) -> Result<(Self, Newest), StoreError> {
        let path = config.state_dir.join(TELEMETRY_FILE);
        let (db, newest) = TelemetryDb::open_or_replace(&path, config.history_retention, now, wall)?;
        let samples = Self {
            path,
            history_retention: config.history_retention,
            commit_interval: config.commit_interval,
            db: Some(db),
            broken_at: None,
            waiting: Vec::new(),
            window_opened: None,
            confirmed: BTreeSet::new(),
            confirmed_first: None,
            quota_bytes: config.quota_bytes,
            full: false,
        };
        Ok((samples, newest))
    }

    pub(super) fn known_newest(&mut self, device: &DeviceId, at: Timestamp) {
        if let Some(db) = &mut self.db {
            db.known_newest(device, at);
        }
    }

    /// Takes a live sample in. `now` is the sender's time.
    pub(super) fn take(
        &mut self,
        report: TelemetryReport,
        reply: SampleReply,
        memory: &mut Memory,
        now: Instant,
        wall: Timestamp,
    ) {
        if !memory.devices.contains_key(&report.device_id) {
            return answer(reply, Ok(Taken::Unknown));
        }
        if let Err(cause) = self.room().and_then(|()| self.reopened(now, wall, memory)) {
            heard(&report, memory, now, wall);
            memory.counted.store_failures += 1;
            return answer(reply, Err(cause));
        }
        let Some(db) = &mut self.db else { return answer(reply, Err(StoreError::Closed)) };
        let staged = db.stage(&report, now);
        // A duplicate of something committed needs no commit; one of something that waits here does.
        if staged.taken == Taken::Duplicate && db.staged() == 0 {
            memory.counted.duplicates_folded += 1;
            return answer(reply, Ok(Taken::Duplicate));
        }
        let Some(device) = memory.devices.get_mut(&report.device_id) else { return };
        if staged.taken == Taken::Stored && is_fresh(staged.at, &report, device.observer.silence()) {
            device.observer.reported(now);
            device.seen(report.received_at);
            memory.signals.states |= device.refresh(wall);
        }
        self.waiting.push(Waiting { report, staged, heard_at: now, reply });
        self.window_opened.get_or_insert_with(Instant::now);
    }

    /// When the writer must come back here, by its own clock.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let window = self.window_opened.and_then(|opened| opened.checked_add(self.commit_interval));
        let confirmed = self.confirmed_first.and_then(|first| first.checked_add(CONFIRM_WAIT));
        [window, confirmed].into_iter().flatten().min()
    }

    /// Whether a commit is due at `real`, the writer's own clock.
    pub(super) fn is_due(&self, real: Instant) -> bool {
        let many_confirmed = self.confirmed.len() >= CONFIRMED_MAX && self.db.is_some();
        let full = self.waiting.len() >= COMMIT_BATCH || many_confirmed;
        full || self.deadline().is_some_and(|deadline| deadline <= real)
    }

    /// Whether a block is due although nothing waits.
    pub(super) fn has_due_blocks(&self, now: Instant) -> bool {
        self.db.as_ref().is_some_and(|db| db.has_due_blocks(now))
    }

    /// Commits what waits, shows it and answers for it.
    pub(super) fn commit(&mut self, memory: &mut Memory, now: Instant, wall: Timestamp) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        self.window_opened = None;
        match self.write(now, wall, memory) {
            Ok(blocks_closed) => {
                memory.counted.commits += 1;
                memory.signals.blocks |= blocks_closed > 0;
                for sample in waiting {
                    memory.signals.states |= show(&sample, memory, wall);
                    answer(sample.reply, Ok(sample.staged.taken));
                }
                Ok(())
            }
            Err(cause) => {
                memory.counted.store_failures += waiting.len() as u64;
                // What was staged is forgotten with the file; opening it anew reads what is durable.
                self.db = None;
                self.broken_at = Some((now, cause.clone()));
                // Confirmations try again after a whole wait, not at once and for ever.
                self.confirmed_first = (!self.confirmed.is_empty()).then(Instant::now);
                for sample in waiting {
                    answer(sample.reply, Err(cause.clone()));
                }
                Err(cause)
            }
        }
    }

    fn write(&mut self, now: Instant, wall: Timestamp, memory: &Memory) -> Result<usize, StoreError> {
        self.reopened(now, wall, memory)?;
        let db = self.db.as_mut().ok_or(StoreError::Closed)?;
        if !self.confirmed.is_empty() {
            db.confirm_blocks(&self.confirmed)?;
            self.confirmed.clear();
            self.confirmed_first = None;
        }
        db.commit(now)
    }

    /// Closed blocks not yet accepted, without those whose confirmation still waits.
    pub(super) fn peek_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        self.usable()?;
        let db = self.db.as_mut().ok_or(StoreError::Closed)?;
        let mut blocks = db.peek_blocks(limit.saturating_add(self.confirmed.len()))?;
        blocks.retain(|block| !self.confirmed.contains(&block.id));
        blocks.truncate(limit);
        Ok(blocks)
    }

    pub(super) fn confirm_blocks(&mut self, ids: &[i64]) {
        self.confirmed.extend(ids);
        if !self.confirmed.is_empty() {
            self.confirmed_first.get_or_insert_with(Instant::now);
        }
    }

    pub(super) fn has_confirmed(&self) -> bool {
        !self.confirmed.is_empty()
    }

    pub(super) fn park_block(&mut self, id: i64, reason: &str) -> Result<(), StoreError> {
        self.usable()?;
        self.db.as_mut().map_or(Err(StoreError::Closed), |db| db.park_block(id, reason))
    }

    pub(super) fn keep_within(&mut self, bytes: u64) -> Result<(), StoreError> {
        self.db.as_mut().map_or(Ok(()), |db| db.keep_within(bytes))
    }

    /// One small step towards a smaller file; answers whether there was one.
    pub(super) fn shrink_some(&mut self) -> Result<bool, StoreError> {
        self.db.as_mut().map_or(Ok(false), TelemetryDb::shrink_some)
    }

    pub(super) fn empty_log(&self) -> Result<(), StoreError> {
        self.db.as_ref().map_or(Ok(()), TelemetryDb::empty_log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether readings are refused because the quota is used up.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }

    pub(super) fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    fn room(&self) -> Result<(), StoreError> {
        if self.full { Err(StoreError::Full { quota_bytes: self.quota_bytes }) } else { Ok(()) }
    }

    /// Figures; like [`Self::peek_blocks`], they leave out what is confirmed already.
    pub(super) fn stats(&self) -> Result<TelemetryStats, StoreError> {
        self.usable()?.stats(&self.confirmed)
    }

    /// Commits, answers, and closes the file.
    pub(super) fn close(&mut self, memory: &mut Memory, now: Instant, wall: Timestamp) -> Result<(), StoreError> {
        self.commit(memory, now, wall)?;
        self.db.take().map_or(Ok(()), |db| db.close(now))
    }

    fn usable(&self) -> Result<&TelemetryDb, StoreError> {
        let broken = || self.broken_at.as_ref().map_or(StoreError::Closed, |(_, cause)| cause.clone());
        self.db.as_ref().ok_or_else(broken)
    }

    /// Opens the file again after a failure, at most once a second.
    fn reopened(&mut self, now: Instant, wall: Timestamp, memory: &Memory) -> Result<(), StoreError> {
        if self.db.is_some() {
            return Ok(());
        }
        if let Some((at, cause)) = &self.broken_at
            && now.saturating_duration_since(*at) < REOPEN_WAIT
        {
            return Err(cause.clone());
        }
        fail_point!(BeforeReopen);
        match TelemetryDb::open_or_replace(&self.path, self.history_retention, now, wall) {
            Ok((mut db, _)) => {
                for device in memory.devices.values() {
                    if let Some(at) = device.view.last_reading_at {
                        db.known_newest(device.id(), at);
                    }
                }
                self.db = Some(db);
                self.broken_at = None;
                Ok(())
            }
            Err(cause) => {
                self.broken_at = Some((now, cause.clone()));
                Err(cause)
            }
        }
    }
}

/// Recent enough to say something about now: what a broker kept for us, or a device sent belatedly, does not.
fn is_fresh(at: Timestamp, report: &TelemetryReport, silence: Duration) -> bool {
    at.saturating_add(silence) >= report.received_at
}

/// A reading that cannot be taken is a live sign all the same; one that comes again says nothing new.
fn heard(report: &TelemetryReport, memory: &mut Memory, now: Instant, wall: Timestamp) {
    let Some(device) = memory.devices.get_mut(&report.device_id) else { return };
    let at = report.device_time.unwrap_or(report.received_at);
    if !report.redelivered && is_fresh(at, report, device.observer.silence()) {
        device.observer.reported(now);
        device.seen(report.received_at);
        memory.signals.states |= device.refresh(wall);
    }
}

/// Lets the device show a committed sample. Answers whether its status changed.
fn show(sample: &Waiting, memory: &mut Memory, wall: Timestamp) -> bool {
    let Waiting { report, staged, heard_at, .. } = sample;
    if staged.taken == Taken::Duplicate {
        memory.counted.duplicates_folded += 1;
        return false;
    }
    memory.counted.telemetry_committed += 1;
    let Some(device) = memory.devices.get_mut(&report.device_id) else { return false };
    let newest = staged.is_newest && device.view.last_reading_at.is_none_or(|last| last < staged.at);
    let fresh = is_fresh(staged.at, report, device.observer.silence());
    if newest {
        device.measured(&report.readings, staged.at);
        if fresh {
            device.observer.sample(&report.readings, *heard_at);
        }
    }
    if newest || fresh {
        device.changed(wall);
    }
    device.refresh(wall)
}

fn answer(reply: SampleReply, outcome: Result<Taken, StoreError>) {
    // A sender that no longer waits wants no answer.
    let _ = reply.send(outcome);
}

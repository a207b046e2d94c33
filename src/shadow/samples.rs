//! Readings on their way to disk: staged in `telemetry.db`'s room, waiting here for the commit that acknowledges them.
//!
//! # Group commit
//!
//! The first sample opens a window of `commit_interval`; the commit comes when it ends, when [`COMMIT_BATCH`] wait, or
//! when the sender has said that it can send no more before ([`Samples::hasten`]).
//! A sample shows on its device only after that commit; if the commit fails, none of the window is acknowledged, and
//! its senders send it again. Presence alone does not wait: that something was heard is true whatever the disk does,
//! and also when the reading itself is refused because the quota is used up.
//!
//! When the disk fails at anything here, the file is out of use until the writer opens it again ([`Samples::reopen`]):
//! every sample is refused meanwhile, not lost, because its sender keeps it.
//!
//! Confirmations of blocks are collected too ([`CONFIRM_WAIT`], [`CONFIRMED_MAX`]): one commit for many costs the
//! flash less, and a confirmation lost in a crash means that the table gets a block again that it has already.

mod books;
mod reopen;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Readings, Timestamp};
use tokio::sync::oneshot;

use super::fault::Fault;
use super::ledgers::KnownLedger;
use super::report::TelemetryReport;
use super::rescue::Rescue;
use super::telemetry::{How, Staged, TelemetryDb, TelemetryStats};
use super::terms::{COMMIT_BATCH, Config, StoreError, Taken};
use super::turn::Memory;
use super::view::HistoryBlock;
use crate::clock::{BootId, Moment};

use self::books::tell;
use self::reopen::NoRoom;
pub(super) use self::reopen::passing;

/// The file.
pub(super) const TELEMETRY_FILE: &str = "telemetry.db";
/// A confirmation of a block waits no longer than this for company, unless a commit takes it along sooner.
pub(super) const CONFIRM_WAIT: Duration = Duration::from_secs(5);
/// More confirmations than this do not wait.
const CONFIRMED_MAX: usize = 256;

/// Rescues that wait to be noted while `state.db` is out of use too; beyond, the oldest is in the log alone.
const RESCUES_WAITING_MAX: usize = 8;

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
    /// Or why it is out of use.
    db: Result<TelemetryDb, StoreError>,
    /// Samples that were answered with an error because the file went out of use, since start.
    turned_away: u64,
    waiting: Vec<Waiting>,
    window_opened: Option<Instant>,
    /// Whoever sent what waits can send nothing more until it is acknowledged.
    hastened: bool,
    /// Blocks the table has, not yet marked so in the file.
    confirmed: BTreeSet<i64>,
    confirmed_first: Option<Instant>,
    quota_bytes: u64,
    full: bool,
    /// Which boot of the machine this is.
    boot_id: BootId,
    /// The time was known when it was looked at last: then what the devices show is no guess.
    time_known: bool,
    /// The ledgers as the file had them when it broke.
    known: BTreeMap<DeviceId, KnownLedger>,
    /// What was damaged and is not noted in `state.db` yet, oldest first.
    rescued: Vec<Rescue>,
    /// A rescue found no space.
    no_room: Option<NoRoom>,
}

/// Newest samples the file holds.
pub(super) type Newest = BTreeMap<DeviceId, (Timestamp, Readings)>;

impl Samples {
    /// A disk that cannot be used now is no error: the file is then out of use, and nothing is known of it.
    /// While `state.db` is out of use (`other`) no file is made either: it would look like what is left of a store.
    pub(super) fn open(
        config: &Config,
        now: Instant,
        moment: &Moment,
        other: Option<&StoreError>,
    ) -> Result<(Self, Newest), StoreError> {
        let path = config.state_dir.join(TELEMETRY_FILE);
        let opened = match other.filter(|_| !path.exists()) {
            Some(cause) => Err(cause.clone()),
            None => TelemetryDb::open_or_rescue(&path, config.history_retention, now, moment.wall, How::default()),
        };
        let (db, newest, rescued) = match opened {
            Ok((mut db, newest, rescued)) => {
                db.booted(moment.boot.boot_id);
                (Ok(db), newest, rescued.into_iter().collect())
            }
            Err(cause) => (Err(passing(cause, &config.state_dir)?), Newest::new(), Vec::new()),
        };
        let mut samples = Self {
            path,
            history_retention: config.history_retention,
            commit_interval: config.commit_interval,
            db,
            turned_away: 0,
            waiting: Vec::new(),
            window_opened: None,
            hastened: false,
            confirmed: BTreeSet::new(),
            confirmed_first: None,
            quota_bytes: config.quota_bytes,
            full: false,
            boot_id: moment.boot.boot_id,
            time_known: moment.quality.is_exact(),
            known: BTreeMap::new(),
            rescued,
            no_room: None,
        };
        if let Err(cause) = &samples.db {
            samples.no_room = NoRoom::after(None, cause, &samples.path, now);
        }
        Ok((samples, newest))
    }

    pub(super) fn known_newest(&mut self, device: &DeviceId, at: Timestamp) {
        if let Ok(db) = &mut self.db {
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
        if let Err(cause) = self.room().and_then(|()| self.usable().map(drop)) {
            heard(&report, memory, now, wall);
            memory.counted.store_failures += 1;
            return answer(reply, Err(cause));
        }
        let Ok(db) = &mut self.db else { return answer(reply, Err(StoreError::Closed)) };
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

    /// What waits is committed with the batch of requests among which this came.
    pub(super) fn hasten(&mut self) {
        self.hastened = !self.waiting.is_empty();
    }

    /// When the writer must come back here, by its own clock.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let window = self.window_opened.and_then(|opened| opened.checked_add(self.commit_interval));
        let confirmed = self.confirmed_first.and_then(|first| first.checked_add(CONFIRM_WAIT));
        [window, confirmed].into_iter().flatten().min()
    }

    /// Whether a commit is due at `real`, the writer's own clock.
    pub(super) fn is_due(&self, real: Instant) -> bool {
        let many_confirmed = self.confirmed.len() >= CONFIRMED_MAX && self.db.is_ok();
        let full = self.waiting.len() >= COMMIT_BATCH || many_confirmed;
        full || self.hastened || self.deadline().is_some_and(|deadline| deadline <= real)
    }

    /// Whether a block is due although nothing waits.
    pub(super) fn has_due_blocks(&self, now: Instant) -> bool {
        self.db.as_ref().is_ok_and(|db| db.has_due_blocks(now))
    }

    /// Commits what waits, shows it and answers for it.
    pub(super) fn commit(&mut self, memory: &mut Memory, now: Instant, wall: Timestamp) -> Result<(), StoreError> {
        let waiting = std::mem::take(&mut self.waiting);
        (self.window_opened, self.hastened) = (None, false);
        match self.write(now) {
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
                // What was staged is forgotten with the file; opening it anew reads what is durable.
                self.waiting = waiting;
                self.shut(&cause);
                Err(cause)
            }
        }
    }

    /// Takes the file out of use: nobody who waits is acknowledged.
    pub(super) fn shut(&mut self, cause: &StoreError) {
        self.known = self.known_ledgers();
        if let Ok(db) = std::mem::replace(&mut self.db, Err(cause.clone())) {
            db.abandon();
        }
        (self.window_opened, self.hastened) = (None, false);
        // Confirmations try again after a whole wait, not at once and for ever.
        self.confirmed_first = (!self.confirmed.is_empty()).then(Instant::now);
        self.turned_away += self.waiting.len() as u64;
        for sample in std::mem::take(&mut self.waiting) {
            answer(sample.reply, Err(cause.clone()));
        }
    }

    /// If the disk failed at it, the file is out of use from here on.
    fn checked<T>(&mut self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        outcome.inspect_err(|cause| {
            if cause.fault().is_some() {
                self.shut(cause);
            }
        })
    }

    /// Why the file is out of use, if it is.
    pub(super) fn broken(&self) -> Option<&StoreError> {
        self.db.as_ref().err()
    }

    /// What is wrong with the disk, if that is why.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.broken().map(|cause| cause.fault().unwrap_or(Fault::Other))
    }

    pub(super) fn turned_away(&self) -> u64 {
        self.turned_away
    }

    fn write(&mut self, now: Instant) -> Result<usize, StoreError> {
        let db = self.db.as_mut().map_err(|cause| cause.clone())?;
        if !self.confirmed.is_empty() {
            db.confirm_blocks(&self.confirmed)?;
            self.confirmed.clear();
            self.confirmed_first = None;
        }
        db.commit(now)
    }

    /// Gives some of the samples whose time was a guess their right time, if that is known by now or `must_do`. What
    /// waits for its commit is committed first: a failure here costs the file, as one there does.
    pub(super) fn settle(
        &mut self,
        moment: &Moment,
        must_do: bool,
        memory: &mut Memory,
        now: Instant,
    ) -> Result<(), StoreError> {
        self.time_known = moment.quality.is_exact();
        let due = (moment.quality.is_exact() || must_do) && self.db.as_ref().is_ok_and(TelemetryDb::is_provisional);
        if !due {
            return Ok(());
        }
        self.commit(memory, now, moment.wall)?;
        let settled = self.db.as_mut().map_err(|cause| cause.clone())?.settle(moment, must_do, now);
        // What was changed in memory is not in the file: it is read anew.
        memory.signals.blocks |= settled.inspect_err(|cause| self.shut(cause))? > 0;
        Ok(())
    }

    /// Closed blocks not yet accepted, without those whose confirmation still waits.
    pub(super) fn peek_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let more = limit.saturating_add(self.confirmed.len());
        let peeked = self.db.as_mut().map_err(|cause| cause.clone())?.peek_blocks(more);
        let mut blocks = self.checked(peeked)?;
        blocks.retain(|block| !self.confirmed.contains(&block.id));
        blocks.truncate(limit);
        Ok(blocks)
    }

    /// The newest of them, newest first.
    pub(super) fn peek_newest_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let more = limit.saturating_add(self.confirmed.len());
        let peeked = self.db.as_mut().map_err(|cause| cause.clone())?.peek_newest_blocks(more);
        let mut blocks = self.checked(peeked)?;
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
        let parked = self.db.as_mut().map_err(|cause| cause.clone())?.park_block(id, reason);
        self.checked(parked)
    }

    pub(super) fn keep_within(&mut self, bytes: u64) -> Result<(), StoreError> {
        let kept = self.db.as_mut().map_or(Ok(()), |db| db.keep_within(bytes));
        self.checked(kept)
    }

    /// One small step towards a smaller file; answers whether there was one.
    pub(super) fn shrink_some(&mut self, bytes: u64) -> Result<bool, StoreError> {
        let shrunk = self.db.as_mut().map_or(Ok(false), |db| db.shrink_some(bytes));
        self.checked(shrunk)
    }

    pub(super) fn empty_log(&mut self) -> Result<(), StoreError> {
        let emptied = self.db.as_ref().map_or(Ok(()), TelemetryDb::empty_log);
        self.checked(emptied)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What was damaged and is not noted yet, oldest first.
    pub(super) fn rescued(&self) -> &[Rescue] {
        &self.rescued
    }

    /// It is noted durably.
    pub(super) fn rescued_noted(&mut self) {
        self.rescued.clear();
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
        if self.db.is_ok() {
            self.commit(memory, now, wall)?;
        }
        self.known = self.known_ledgers();
        let db = std::mem::replace(&mut self.db, Err(StoreError::Closed));
        db.map_or(Ok(()), |db| db.close(now))
    }

    fn usable(&self) -> Result<&TelemetryDb, StoreError> {
        self.db.as_ref().map_err(Clone::clone)
    }
}

/// Recent enough to say something about now: what a broker kept for us, or a device sent belatedly, does not.
fn is_fresh(at: Timestamp, report: &TelemetryReport, silence: Duration) -> bool {
    at.saturating_add(silence) >= report.received_at
}

/// A reading that cannot be taken is a live sign all the same; one that comes again says nothing new.
fn heard(report: &TelemetryReport, memory: &mut Memory, now: Instant, wall: Timestamp) {
    let Some(device) = memory.devices.get_mut(&report.device_id) else { return };
    // A device's time cannot be judged while the gateway's is a guess.
    let judged = report.device_time.filter(|_| report.guess_base_ms.is_none());
    let at = judged.unwrap_or(report.received_at);
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
    let newest = staged.is_newest;
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

//! The thread behind the handle: takes requests in batches, gives each its turn, commits, answers.
//!
//! # How commits are shared
//!
//! * Everything that waits (up to [`BATCH_MAX`]) goes into one transaction of `state.db`; each request has a savepoint
//!   of its own, so a bad one does not undo its neighbours. Answers go out after the commit.
//! * Requests that may be repeated after a crash (confirmations) leave the transaction open for up to [`LAZY_WAIT`];
//!   whatever commits next takes them along.
//! * Readings go to `telemetry.db` alone, see [`super::samples`]. What they change on their device is written every
//!   [`FLUSH_INTERVAL`], or when a version would run too far ahead of the file ([`super::device`]).
//!
//! When the disk fails: see [`mend`].

mod attach;
mod mend;
mod rescued;
mod room;
mod unreadable;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Timestamp};
use rusqlite::Connection;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use self::mend::Mending;
use self::room::Chores;
use super::device::UNSAVED_MAX;
use super::fault::{Fault, StoreHealth};
use super::glance::Glance;
use super::ledgers::KnownLedger;
use super::request::{Kind, Pace, Request, Work};
use super::rescue::backup::Backups;
use super::rescue::doubt::Doubt;
use super::rescue::life;
use super::samples::Samples;
use super::state_file::StateFile;
use super::terms::{Config, StoreError, Wakeups};
use super::turn::{Memory, Signals, Turn};
use super::{clock_floor, device_rows, ledgers};
use crate::clock::{Clock, Moment};

/// Requests in one transaction; more wait for the next.
const BATCH_MAX: usize = 500;
/// A confirmation waits no longer than this for a commit that takes it along.
const LAZY_WAIT: Duration = Duration::from_secs(1);
/// What readings changed on the devices is written this often.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);

/// Everything the thread owns.
#[derive(Debug)]
pub(super) struct Writer {
    config: Config,
    clock: Clock,
    state: StateFile,
    samples: Samples,
    memory: Memory,
    wakeups: Arc<Wakeups>,
    floor_changes: watch::Sender<u64>,
    health: watch::Sender<StoreHealth>,
    mending: Mending,
    /// The newest time any sender told: the monotonic clock that all rules run on.
    now: Instant,
    flushed_at: Instant,
    /// The copy of the ledgers in `state.db`, and when it was written last.
    ledgers_saved: BTreeMap<DeviceId, KnownLedger>,
    ledgers_saved_at: Instant,
    chores: Chores,
    doubt: Doubt,
    backups: Backups,
    floor_saved: clock_floor::Saved,
    /// While the time is a guess: which one ([`Moment::guess_base`]), and what it said when it began.
    guess: Option<(i64, Timestamp)>,
    /// By the writer's own clock: when the open transaction must be committed.
    lazy_until: Option<Instant>,
    /// Given back last. `None` while the folder could never be locked: nothing is written before.
    lock: Option<File>,
}

type Done = (Box<dyn Work>, Result<(), StoreError>);

impl Writer {
    /// Runs until it is told to close or every handle is gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>, runtime: &Runtime) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let deadline = [self.lazy_until, self.samples.deadline()].into_iter().flatten().min();
            let more = requests.recv_many(&mut batch, BATCH_MAX);
            let ended = runtime.block_on(async {
                match deadline {
                    None => more.await == 0,
                    Some(at) => tokio::time::timeout_at(at.into(), more).await == Ok(0),
                }
            });
            let closing = self.serve(batch.drain(..));
            if ended || closing.is_some() {
                let outcome = self.close();
                // Before the answer: whoever heard it may open the folder again.
                drop(self);
                if let Some(reply) = closing {
                    let _ = reply.send(outcome);
                } else if let Err(cause) = outcome {
                    tracing::error!(%cause, "the store could not be closed in order");
                }
                return;
            }
        }
    }

    /// Gives every request its turn, commits and answers. Answers whom to tell that the store is closed.
    fn serve(
        &mut self,
        batch: impl Iterator<Item = Request>,
    ) -> Option<tokio::sync::oneshot::Sender<Result<(), StoreError>>> {
        let (mut done, mut ticks, mut attaching, mut closing) = (Vec::new(), Vec::new(), Vec::new(), None);
        let mut pace = Pace::Lazy;
        for request in batch {
            self.now = self.now.max(request.now);
            self.mend_if_due();
            match request.kind {
                Kind::Sample(report, reply) => {
                    self.samples.take(*report, reply, &mut self.memory, self.now, self.clock.now());
                }
                Kind::Work(mut work, its_pace) => {
                    if its_pace == Pace::AtOnce {
                        pace = Pace::AtOnce;
                    }
                    let outcome = self.give_turn(&mut *work, &mut done);
                    done.push((work, outcome));
                }
                Kind::Lost(losses, reply) => {
                    let (now, wall) = (self.now, self.clock.now());
                    // Whoever no longer waits wants no answer.
                    let _ = reply.send(self.samples.declare_lost(losses, &mut self.memory, now, wall));
                }
                Kind::Attach(devices, reply) => attaching.push((devices, reply)),
                Kind::Hasten => self.samples.hasten(),
                Kind::Tick(reply) => ticks.push(reply),
                Kind::Close(reply) => {
                    closing = Some(reply);
                    break;
                }
            }
        }
        self.end_turns(pace, done);
        for (devices, reply) in attaching {
            // Between transactions: it sets whom the next one is about.
            let _ = reply.send(self.attach_others(devices));
        }
        let real = Instant::now();
        let mut stepped = if ticks.is_empty() { Ok(()) } else { self.tick() };
        if self.samples.is_due(real) {
            let step = self.samples.commit(&mut self.memory, self.now, self.clock.now());
            let room = self.keep_room();
            stepped = stepped.and(step).and(room);
        }
        if self.lazy_until.is_some_and(|until| until <= real) || self.runs_ahead() {
            let step = self.flush();
            stepped = stepped.and(step);
        }
        self.notice();
        self.signal();
        for reply in ticks {
            let _ = reply.send(stepped.clone());
        }
        closing
    }

    /// One request's turn inside a savepoint. If SQLite gives up the whole transaction, so do all before it.
    fn give_turn(&mut self, work: &mut dyn Work, done: &mut [Done]) -> Result<(), StoreError> {
        let mark = self.memory.mark();
        let connection = match self.state.begin() {
            Ok(connection) => connection,
            Err(cause) => return self.glance(work, &cause, false).unwrap_or(Err(cause)),
        };
        let outcome = savepoint(connection, |connection| {
            let (memory, samples, config) = (&mut self.memory, &mut self.samples, &self.config);
            let (now, wall, inhibited) = (self.now, self.clock.now(), self.doubt.left());
            work.run(&mut Turn { connection, memory, samples, config, now, wall, inhibited })
        });
        if let Err(cause) = &outcome {
            self.memory.undo_to(mark);
            if self.state.lost_transaction() || StateFile::is_failing(cause) {
                let cause = cause.clone();
                self.gave_up(cause.clone(), done);
                let tried = !matches!(cause.fault(), Some(Fault::DiskFull | Fault::ReadOnly));
                return self.glance(work, &cause, tried).unwrap_or(Err(cause));
            }
        }
        outcome
    }

    /// What a request can do while the file is out of use.
    fn glance(&mut self, work: &mut dyn Work, cause: &StoreError, tried: bool) -> Option<Result<(), StoreError>> {
        let (samples, config, wall, cause) = (&self.samples, &self.config, self.clock.now(), cause.clone());
        work.glance(&mut Glance { memory: &mut self.memory, samples, config, wall, cause }, tried)
    }

    /// Commits if anything must be on disk before its answer, then answers.
    fn end_turns(&mut self, pace: Pace, mut done: Vec<Done>) {
        if pace == Pace::AtOnce || !self.state.has_changes() {
            if let Err(cause) = self.commit() {
                self.gave_up(cause, &mut done);
            }
        } else {
            self.lazy_until.get_or_insert_with(|| Instant::now() + LAZY_WAIT);
        }
        self.memory.counted.store_failures += done.iter().filter(|(_, outcome)| outcome.is_err()).count() as u64;
        self.signal();
        for (work, outcome) in done {
            work.reply(outcome);
        }
    }

    /// Writes the devices that were touched and commits the open transaction, if there is one.
    fn commit(&mut self) -> Result<(), StoreError> {
        if !self.state.is_open() {
            return Ok(());
        }
        let changes = self.state.has_changes() || !self.memory.touched.is_empty();
        if let Some(left) = self.doubt.to_save() {
            let connection = self.state.begin()?;
            life::wait(connection, left).map_err(super::words::io("note the inhibition"))?;
        }
        let connection = self.state.begin()?;
        let touched: Vec<DeviceId> = self.memory.touched.iter().cloned().collect();
        for device in touched.iter().filter_map(|id| self.memory.devices.get(id)) {
            device_rows::save(connection, device)?;
        }
        let with_floor = changes && self.floor_saved.may_travel(self.now);
        if with_floor {
            clock_floor::save(connection, &self.clock)?;
        }
        self.state.commit()?;
        self.doubt.saved();
        if with_floor {
            self.floor_saved.saved(self.now);
        }
        self.memory.counted.commits += u64::from(changes);
        for id in &touched {
            if let Some(device) = self.memory.devices.get_mut(id) {
                device.saved();
            }
        }
        self.memory.settle();
        self.memory.refused.settle(true);
        self.lazy_until = None;
        Ok(())
    }

    /// The transaction failed: nothing of it happened, in memory neither, and nobody is told that it did.
    fn gave_up(&mut self, cause: StoreError, done: &mut [Done]) {
        // What finds no space is certainly not there; after any other error of the disk it may be.
        let tried = !matches!(cause.fault(), Some(Fault::DiskFull | Fault::ReadOnly));
        self.state.broke(cause.clone());
        self.memory.undo_to(0);
        self.memory.settle();
        self.memory.refused.settle(tried && cause.fault().is_some());
        self.memory.signals = Signals::default();
        self.lazy_until = None;
        for (work, outcome) in done {
            if outcome.is_ok() {
                *outcome = self.glance(&mut **work, &cause, tried).unwrap_or_else(|| Err(cause.clone()));
            }
        }
    }

    /// Writes every device that differs from the file, with whatever else waits.
    fn flush(&mut self) -> Result<(), StoreError> {
        let dirty = self.memory.devices.values().filter(|device| device.dirty).map(|device| device.id().clone());
        self.memory.touched.extend(dirty);
        self.flushed_at = self.now;
        if !self.memory.touched.is_empty() || self.doubt.to_save().is_some() {
            self.state.begin()?;
        }
        self.commit().inspect_err(|cause| self.gave_up(cause.clone(), &mut []))
    }

    /// [`Self::flush`], with the copy of the ledgers that changed.
    fn flush_all(&mut self) -> Result<(), StoreError> {
        let known = self.samples.known_ledgers();
        let changed: Vec<_> = known.iter().filter(|(id, known)| self.ledgers_saved.get(*id) != Some(known)).collect();
        if !changed.is_empty() {
            let connection = self.state.begin()?;
            let saved = savepoint(connection, |connection| {
                changed.iter().try_for_each(|(id, known)| ledgers::save(connection, id, known))
            });
            if let Err(cause) = saved {
                self.gave_up(cause.clone(), &mut []);
                return Err(cause);
            }
        }
        self.flush()?;
        self.ledgers_saved = known;
        self.ledgers_saved_at = self.now;
        Ok(())
    }

    /// Whether some device has so many unwritten versions that they must be written now.
    fn runs_ahead(&self) -> bool {
        self.memory.devices.values().any(|device| device.unsaved() >= UNSAVED_MAX)
    }

    /// One step of the timers.
    fn tick(&mut self) -> Result<(), StoreError> {
        let (now, moment) = (self.now, self.clock.moment());
        let wall = moment.wall;
        self.note_the_time(&moment);
        self.doubt.pass(now);
        for device in self.memory.devices.values_mut() {
            device.observer.tick(now);
            self.memory.signals.states |= device.refresh(wall);
        }
        let mut outcome = Ok(());
        if self.samples.has_due_blocks(now) {
            let step = self.samples.commit(&mut self.memory, now, wall);
            outcome = outcome.and(step);
        }
        let step = self.samples.settle(&moment, self.clock.guess_must_do(), &mut self.memory, now);
        outcome = outcome.and(step);
        if now.saturating_duration_since(self.ledgers_saved_at) >= FLUSH_INTERVAL {
            self.ledgers_saved_at = now;
            let step = self.flush_all();
            outcome = outcome.and(step);
        } else if now.saturating_duration_since(self.flushed_at) >= FLUSH_INTERVAL {
            let step = self.flush();
            outcome = outcome.and(step);
        }
        if self.floor_saved.is_due(now) {
            let step = self.save_floor();
            outcome = outcome.and(step);
        }
        // A log that grows although SQLite copies it now and then: it cannot be copied.
        let bounded = self.bound_logs();
        let tidied = self.tidy().and(bounded);
        let noted = if self.state.broken().is_some() { Ok(()) } else { self.note_rescued() };
        self.look_after_backups();
        outcome.and(tidied).and(noted)
    }

    /// What was noted under a guess moves with it, once the time is known.
    fn note_the_time(&mut self, moment: &Moment) {
        let base = moment.guess_base();
        if self.guess.map(|(base, _)| base) == base {
            return;
        }
        let before = std::mem::replace(&mut self.guess, base.map(|base| (base, moment.wall)));
        let Some((guessed, since)) = before else { return };
        let shift = moment.base_ms().saturating_sub(guessed);
        for device in self.memory.devices.values_mut() {
            device.time_corrected(since, shift, moment.wall);
        }
        if base.is_none() {
            tracing::info!(now = %moment.wall, quality = ?moment.quality, corrected_by_ms = shift, "the time is known now");
        }
    }

    /// Writes the clock's floor, though nothing else is written.
    fn save_floor(&mut self) -> Result<(), StoreError> {
        let clock = self.clock.clone();
        let saved = self.state.begin().and_then(|connection| clock_floor::save(connection, &clock));
        let saved = saved.and_then(|()| self.commit());
        self.floor_saved.saved(self.now);
        saved.inspect_err(|cause| self.gave_up(cause.clone(), &mut []))
    }

    fn signal(&mut self) {
        let signals = std::mem::take(&mut self.memory.signals);
        signals.give(&self.wakeups);
        if signals.floor_changes > 0 {
            self.floor_changes.send_modify(|count| *count += signals.floor_changes);
        }
    }

    /// The last commits, both logs moved into their files.
    fn close(&mut self) -> Result<(), StoreError> {
        if !self.memory.health.ok {
            self.mend();
        }
        self.backups.stop();
        self.doubt.pass(self.now);
        let telemetry = self.samples.close(&mut self.memory, self.now, self.clock.now());
        if self.state.broken().is_none() {
            // What fails here fails below.
            let _ = self.note_rescued();
        }
        // Out of use already, it holds nothing that anyone believes to be there.
        let flushed =
            if self.state.broken().is_some() { Ok(()) } else { self.flush_all().and_then(|()| self.save_floor()) };
        let closed = self.state.close();
        telemetry.and(flushed).and(closed)
    }
}

/// Runs `work` so that its failure takes back its own changes alone.
fn savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let run = |text: &str| {
        let outcome = connection.prepare_cached(text).and_then(|mut statement| statement.execute([]));
        outcome.map(drop).map_err(super::words::io("set a savepoint"))
    };
    run("SAVEPOINT turn")?;
    let outcome = work(connection);
    if outcome.is_err() && !connection.is_autocommit() {
        run("ROLLBACK TO turn")?;
    }
    if !connection.is_autocommit() {
        run("RELEASE turn")?;
    }
    outcome
}

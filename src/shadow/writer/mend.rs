//! What is done when the disk fails: full, read-only, or with errors.
//!
//! # Guarantees
//!
//! * **After a failed write or flush nothing is called durable.** Nobody of the failed transaction is acknowledged, and
//!   what it changed in memory is put back. The file's connection is closed without a checkpoint. Opening it again begins
//!   with writing the log again ([`super::super::log`]), so that what is read back from it is on the disk; then it is the
//!   same opening as at the start, with everything in memory built anew from the file.
//! * **Nobody hangs.** While a file is out of use, each request that needs it is answered with an error at once. Devices,
//!   figures and states are answered from memory.
//! * **Commands are refused**, not forgotten: see [`super::super::refused`]. While the disk is full but `state.db` can still
//!   be written, they are journalled as refused.
//! * **What runs is brought to its end** with the reserve ([`super::super::reserve`]), which is given up when a write finds
//!   no space; from then on readings are refused, so that they do not use it up.
//! * **It recovers by itself.** Tried again after [`RETRY_MIN`], then at doubled distances up to [`RETRY_MAX`], by the next
//!   request or tick. A file is back in use only when a real write, its flush and a checkpoint have succeeded.
//! * **Damage is not waited out.** A file in which damage was met is rebuilt ([`super::super::rescue`]) at the next attempt,
//!   and so is one that cannot be read for [`super::unreadable::UNREADABLE_MAX`] in a folder that takes writes.
//! * It starts with a disk that takes nothing: then it knows its devices from the configuration alone, which commands it
//!   had before from a look at the journal ([`super::super::rescue::peek`]), and reads the file as soon as it can be opened for writing.
//! * A disk that comes and goes is logged at most once in [`SAID_EVERY`].

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floorgate_model::{CommandId, DeviceId};
use rusqlite::Connection;
use tokio::sync::watch;

use super::super::device::Device;
use super::super::fault::{Fault, StoreHealth};
use super::super::ledgers::KnownLedger;
use super::super::request::Ask;
use super::super::rescue::aside;
use super::super::rescue::backup::Backups;
use super::super::rescue::doubt::{Doubt, InhibitionWatch};
use super::super::rescue::life::Life;
use super::super::rescue::state::Opened;
use super::super::reserve::Reserve;
use super::super::samples::{Newest, Samples, TELEMETRY_FILE, passing};
use super::super::state_file::StateFile;
use super::super::terms::{Config, StoreError, Wakeups};
use super::super::turn::{Memory, Signals};
use super::super::{clock_floor, files, journal, ledgers, log, rescue, schema, words};
use super::Writer;
use super::attach::{as_configured, attach};
use super::room::Chores;
use super::unreadable::Unreadable;
use crate::clock::Clock;

/// First wait before a file that failed is opened again.
pub(super) const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait; with it the store is back within 5 s after the disk is.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(4);
/// A failing disk is told of at most this often.
const SAID_EVERY: Duration = Duration::from_secs(60);
/// Free space, bytes, that must be there before the reserve is taken again.
const FREE_WANTED: u64 = 4 * 1024 * 1024;

/// What failed, and when it is tried again.
#[derive(Debug)]
pub(super) struct Mending {
    reserve: Reserve,
    /// Why the reserve could not be taken.
    unreserved: Option<Fault>,
    retry_at: Option<Instant>,
    wait: Duration,
    said_at: Option<Instant>,
    /// Whether the files are damaged, or as good as.
    state: Unreadable,
    telemetry: Unreadable,
    /// `state.db` was rebuilt, and memory does not know yet.
    rebuilt: bool,
}

impl Mending {
    fn new(reserve: Reserve) -> Self {
        Self {
            reserve,
            unreserved: None,
            retry_at: None,
            wait: RETRY_MIN,
            said_at: None,
            state: Unreadable::default(),
            telemetry: Unreadable::default(),
            rebuilt: false,
        }
    }
}

impl Writer {
    pub(in super::super) fn open(
        config: Config,
        clock: Clock,
        wakeups: Arc<Wakeups>,
        (floor_changes, health): (watch::Sender<u64>, watch::Sender<StoreHealth>),
        now: Instant,
    ) -> Result<(Self, InhibitionWatch), StoreError> {
        let path = config.state_dir.join(schema::STATE_FILE);
        let mut lock = None;
        let has_journal = std::fs::metadata(&path).is_ok_and(|file| file.len() > 0);
        // Before the other file, which would be made where this one is refused.
        let opened = match open_state(&config, &clock, &mut lock, None) {
            Ok(opened) => Ok(opened),
            Err(cause) => Err(passing(cause, &config.state_dir)?),
        };
        let moment = clock.moment();
        let (mut samples, newest) = Samples::open(&config, now, &moment, opened.as_ref().err())?;
        let read = opened.and_then(|opened| read_state(opened, &config, &clock, &newest, now));
        let read = match read {
            // Too deep for its check, or the file is too large for one.
            Err(StoreError::Damaged { cause, .. }) => open_state(&config, &clock, &mut lock, Some(&cause))
                .and_then(|opened| read_state(opened, &config, &clock, &newest, now)),
            read => read,
        };
        let (mut doubt, inhibition) = Doubt::new(now);
        let (opened, memory, ledgers_saved) = match read {
            Ok(Read { opened, devices, ledgers, ids }) => {
                doubt.begin(opened.life.doubt_left, why(&opened.life), now);
                let mut memory = Memory::new(devices);
                memory.refused.know_all(&ids);
                (Ok((opened.connection, opened.witness)), memory, ledgers)
            }
            Err(cause) => {
                let memory = blank(&config, &clock, has_journal, now);
                (Err(passing(cause, &config.state_dir)?), memory, BTreeMap::new())
            }
        };
        // A time of a guess is no time to go on from; and while there is only a guess, nobody knows which is which.
        for device in memory.devices.values().filter(|_| moment.quality.is_exact()) {
            if let Some(at) = device.view.last_reading_at {
                samples.known_newest(device.id(), at);
            }
        }
        if opened.is_ok() {
            samples.reconcile(&ledgers_saved)?;
        }
        let mending = Mending::new(Reserve::new(&config.state_dir, config.quota_bytes));
        let backups = Backups::of(&path, now);
        let state = StateFile::new(path, opened);
        let (flushed_at, lazy_until, chores) = (now, None, Chores::new(now, &config.state_dir));
        let guess = moment.guess_base().map(|base| (base, moment.wall));
        let mut writer = Self {
            config,
            clock,
            state,
            samples,
            memory,
            wakeups,
            floor_changes,
            health,
            mending,
            now,
            flushed_at,
            ledgers_saved,
            ledgers_saved_at: now,
            chores,
            doubt,
            backups,
            floor_saved: clock_floor::Saved::default(),
            guess,
            lazy_until,
            lock,
        };
        if writer.state.broken().is_none() {
            writer.reserve();
            // What fails here is noticed below.
            let _ = writer.note_rescued();
        }
        writer.notice();
        Ok((writer, inhibition))
    }

    /// Opens again what failed, if it is time to.
    pub(super) fn mend_if_due(&mut self) {
        if self.mending.retry_at.is_some_and(|at| at <= self.now) {
            self.mending.retry_at = None;
            self.mend();
            self.notice();
            if self.memory.health.ok {
                self.mending.wait = RETRY_MIN;
            } else {
                self.mending.wait = (self.mending.wait * 2).min(RETRY_MAX);
                self.mending.retry_at = Some(self.now + self.mending.wait);
            }
        }
    }

    /// One attempt at everything that is out of use.
    pub(super) fn mend(&mut self) {
        if let Some(cause) = self.state.broken() {
            self.mending.state.failed(cause, schema::STATE_FILE, &self.config.state_dir, self.now);
            let asides = aside::copies(self.state.path());
            let reopened = self.reopen_state();
            if aside::copies(self.state.path()) != asides {
                // Also if it went no further: the next attempt finds a sound file, and must not rebuild that.
                self.mending.state.opened();
                self.mending.rebuilt |= reopened.is_err();
            }
            match reopened {
                Ok(()) => self.mending.state.opened(),
                Err(cause) => {
                    tracing::debug!(%cause, "state.db cannot be used yet");
                    self.state.broke(cause);
                }
            }
        }
        self.reserve();
        let room = self.mending.reserve.is_held() || self.mending.unreserved != Some(Fault::DiskFull);
        // It is not made where there is no `state.db` to go with it.
        let room = room && (self.state.broken().is_none() || self.samples.path().exists());
        if let Some(cause) = self.samples.broken().filter(|_| room) {
            let file = &mut self.mending.telemetry;
            file.failed(cause, TELEMETRY_FILE, &self.config.state_dir, self.now);
            let asides = aside::copies(self.samples.path());
            let reopened = self.samples.reopen(file.met().is_some(), &self.memory, self.now, self.clock.now());
            if reopened.is_ok() || aside::copies(self.samples.path()) != asides {
                file.opened();
            }
            if let Err(cause) = reopened {
                tracing::debug!(%cause, "telemetry.db cannot be used yet");
            }
        }
        self.look_beside();
    }

    /// Takes the reserve, if there is more space than it needs: else it would be given up again with the next write.
    fn reserve(&mut self) {
        if self.mending.reserve.is_held() {
            self.mending.unreserved = None;
            return;
        }
        let free = Fault::free_space(&self.config.state_dir);
        self.mending.unreserved = if free.is_some_and(|free| free < FREE_WANTED) {
            Some(Fault::DiskFull)
        } else {
            let held = self.mending.reserve.hold();
            held.err().map(|cause| Fault::of_io(&cause).unwrap_or(Fault::Other))
        };
    }

    /// The same as at the start, and then what was refused meanwhile, before anyone else gets a turn.
    fn reopen_state(&mut self) -> Result<(), StoreError> {
        fail_point!(BeforeReopen);
        let opened = open_state(&self.config, &self.clock, &mut self.lock, self.mending.state.met())?;
        // Also if it goes no further now: the next attempt finds a sound file.
        self.mending.rebuilt |= opened.rescue.is_some();
        let newest: Newest = self
            .memory
            .devices
            .values()
            .filter_map(|device| {
                Some((device.id().clone(), (device.view.last_reading_at?, device.view.last_readings.clone())))
            })
            .collect();
        let Read { opened, devices, ledgers, ids } = read_state(opened, &self.config, &self.clock, &newest, self.now)?;
        let emptied = files::empty_log(&opened.connection);
        if let Err(cause) = emptied {
            log::abandon(opened.connection);
            return Err(words::io("copy the log into state.db")(cause));
        }
        self.memory.refused.know_all(&ids);
        self.ledgers_saved = ledgers;
        let (rebuilt, blank) = (std::mem::take(&mut self.mending.rebuilt), self.memory.blank_since.is_some());
        if rebuilt && !blank {
            // What memory knows of the devices is newer than what was saved of the file.
            self.memory.resume_over(&devices);
        } else {
            self.memory.restart(devices, self.now, self.clock.now());
        }
        if rebuilt || blank || self.doubt.is_news(opened.life.doubt_left) {
            self.doubt.begin(opened.life.doubt_left, why(&opened.life), self.now);
        }
        self.state.renew(opened.connection, opened.witness);
        self.lazy_until = None;
        if rebuilt {
            self.backups.soon(self.now);
            self.floor_saved = clock_floor::Saved::default();
            // Versions that were sent may be higher than those that were saved.
            if let Err(cause) = self.flush() {
                self.mending.rebuilt = true;
                return Err(cause);
            }
        }
        if let Err(cause) = self.samples.reconcile(&self.ledgers_saved) {
            tracing::warn!(%cause, "the accounts of telemetry.db could not be compared; they are at the next start");
        }
        self.journal_refused()?;
        let all = Signals { journal: true, results: true, tables: true, states: true, blocks: true, floor_changes: 1 };
        self.memory.signals = all;
        Ok(())
    }

    fn journal_refused(&mut self) -> Result<(), StoreError> {
        let refused = self.memory.refused.all();
        if refused.is_empty() {
            return Ok(());
        }
        let count = refused.len();
        let work = move |turn: &mut super::super::turn::Turn<'_>| {
            refused.iter().try_for_each(|(entry, announced)| turn.journal_refused(entry, *announced))
        };
        let (mut ask, _) = Ask::new(work, None);
        self.give_turn(&mut ask, &mut [])?;
        self.commit().inspect_err(|cause| self.gave_up(cause.clone(), &mut []))?;
        self.memory.refused.journalled();
        tracing::info!(commands = count, "commands that were refused while the disk took no writes are journalled");
        Ok(())
    }

    /// Looks how everything stands, gives the reserve up if there is no space, and tells who wants to know.
    pub(super) fn notice(&mut self) {
        let full = |fault: Option<Fault>| fault == Some(Fault::DiskFull);
        if full(self.state.fault()) || full(self.samples.fault()) || full(self.mending.unreserved) {
            // Not the other's damage: that would be taken for this one's.
            let why = |cause: &&StoreError| full(cause.fault());
            let cause = self.state.broken().filter(why).or_else(|| self.samples.broken().filter(why)).cloned();
            if self.mending.reserve.is_held() {
                self.mending.reserve.give_up();
                self.mending.unreserved = Some(Fault::DiskFull);
            }
            let cause = cause.unwrap_or_else(|| StoreError::Disk {
                doing: "keep some space in reserve",
                cause: "too little of it is free".to_owned(),
                fault: Fault::DiskFull,
            });
            if self.samples.broken().is_none() {
                self.samples.shut(&cause);
            }
        }
        let fault = self.state.fault().or_else(|| self.samples.fault()).or(self.mending.unreserved);
        let was = self.memory.health;
        let health = StoreHealth {
            ok: fault.is_none(),
            failing_since: fault.map(|_| was.failing_since.unwrap_or_else(|| self.clock.now())),
            reason: fault,
            takes_readings: self.samples.broken().is_none(),
            takes_reports: self.state.broken().is_none(),
        };
        if !health.ok && self.mending.retry_at.is_none() {
            self.mending.retry_at = Some(self.now + self.mending.wait);
        }
        if health != was {
            self.became(was, health);
        }
    }

    fn became(&mut self, was: StoreHealth, health: StoreHealth) {
        self.memory.health = health;
        let wall = self.clock.now();
        if was.takes_readings != health.takes_readings {
            // While nobody's readings are taken, silence proves nothing.
            let heard = health.takes_readings && self.memory.floor_reachable;
            self.memory.devices.values_mut().for_each(|device| device.observer.floor_reachable(heard, self.now));
        }
        if let Some(own) = self.memory.devices.get_mut(&self.config.gateway_id.as_device()) {
            own.trouble = health.reason.map(|fault| format!("cannot write to its disk: {fault}"));
            self.memory.signals.states |= own.refresh(wall);
        }
        self.say(was, health);
        self.health.send_replace(health);
    }

    fn say(&mut self, was: StoreHealth, health: StoreHealth) {
        if was.ok == health.ok {
            return;
        }
        let due = self.mending.said_at.is_none_or(|at| self.now.saturating_duration_since(at) >= SAID_EVERY);
        let cause = self.state.broken().or_else(|| self.samples.broken()).map(ToString::to_string).unwrap_or_default();
        let folder = self.config.state_dir.display();
        match (health.reason, due) {
            (Some(fault), true) => {
                self.mending.said_at = Some(self.now);
                tracing::error!(
                    %folder, cause,
                    "{fault}: commands are refused, readings stay with their senders; it is tried again by itself"
                );
            }
            (Some(fault), false) => tracing::debug!(%folder, cause, "{fault} again"),
            (None, _) => {
                let failed_at = was.failing_since.unwrap_or_else(|| self.clock.now());
                let seconds = self.clock.now().since(failed_at).as_secs();
                tracing::info!(%folder, seconds, "the disk takes writes again");
            }
        }
    }
}

/// What stands in an open `state.db`.
struct Read {
    opened: Opened,
    devices: BTreeMap<DeviceId, Device>,
    ledgers: BTreeMap<DeviceId, KnownLedger>,
    /// The newest of the journal, for times in which it cannot be read.
    ids: Vec<CommandId>,
}

fn why(life: &Life) -> &str {
    life.doubt_why.as_deref().unwrap_or("the journal was damaged")
}

/// Locks the folder, unless it is locked by us, and opens `state.db`; the clock does not begin before the time it knows.
/// `met`: damage that was met in the file, which is then rebuilt whatever its check says.
fn open_state(
    config: &Config,
    clock: &Clock,
    lock: &mut Option<File>,
    met: Option<&str>,
) -> Result<Opened, StoreError> {
    if lock.is_none() {
        *lock = Some(schema::own_folder(&config.state_dir)?);
    }
    let opened = rescue::state::open(config, clock.now(), met)?;
    match (clock_floor::resume(&opened.connection, clock), met) {
        (Ok(()), _) => Ok(opened),
        (Err(StoreError::Damaged { cause, .. }), None) => {
            log::abandon(opened.connection);
            open_state(config, clock, lock, Some(&cause))
        }
        (Err(cause), _) => {
            log::abandon(opened.connection);
            Err(cause)
        }
    }
}

/// What is known where `state.db` cannot be opened: the configuration, and perhaps which commands its journal has.
fn blank(config: &Config, clock: &Clock, has_journal: bool, now: Instant) -> Memory {
    let mut memory = Memory::new(as_configured(config, clock, now));
    memory.blank_since = Some(clock.now());
    if has_journal {
        let ids = rescue::peek::journal_ids(&config.state_dir);
        memory.unread = ids.is_none();
        memory.refused.know_all(&ids.unwrap_or_default());
    }
    memory
}

fn read_state(
    mut opened: Opened,
    config: &Config,
    clock: &Clock,
    newest: &Newest,
    now: Instant,
) -> Result<Read, StoreError> {
    let read = |connection: &mut Connection| {
        let devices = attach(connection, config, clock, newest, now)?;
        let ids = journal::newest_ids(connection, super::super::refused::KNOWN_MAX)?;
        Ok((devices, ledgers::all(connection)?, ids))
    };
    match read(&mut opened.connection) {
        Ok((devices, ledgers, ids)) => Ok(Read { opened, devices, ledgers, ids }),
        Err(cause) => {
            log::abandon(opened.connection);
            Err(cause)
        }
    }
}

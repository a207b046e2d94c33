//! Keeping both files small: the journal is pruned, sent blocks are shed, free pages given back, logs cut, and beyond
//! the quota the oldest readings are given up ([`super::super::telemetry`]); only if that is not enough, no more are
//! taken.
//!
//! Every tick does one small step at most, so that nothing else waits long. Only at the quota a commit waits for more,
//! and there for a bounded number of steps.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::terms::StoreError;
use super::super::{files, journal, rescue};
use super::{LAZY_WAIT, StateFile, Writer, savepoint};

/// The journal is pruned this often.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Room is made when less than this part of the quota is free: more than one commit takes. Once full, readings are
/// taken again when so much is free, so that it does not flicker.
const FREE_PART: u64 = 64;
/// After so long without a commit, logs are copied into their files.
const IDLE_AFTER: Duration = Duration::from_secs(10);
/// That readings are given up is told this often.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// Logs smaller than this are left to SQLite, which copies them now and then: a page that changes often is then copied
/// once.
const LOG_WORTH_COPYING: u64 = 1024 * 1024;

/// A log longer than this is not copied as it should be: SQLite does that by itself from 4 MiB on. Its
/// index fits the first 32 KiB of memory, so that a full disk never meets a growing one.
pub(super) const LOG_BYTES_MAX: u64 = 12 * 1024 * 1024;

/// When what was done last.
#[derive(Debug)]
pub(super) struct Chores {
    pruned_at: Instant,
    /// Commits counted at the last tick, and since when there were no more.
    quiet: (u64, Instant),
    /// Pages were given back that the files still have.
    shrunk: bool,
    /// How many readings were given up for the quota when it was told last, and when that was.
    given_up: Option<(u64, Instant)>,
    /// When it was last told that a damaged copy cannot be removed; it is tried at every tick.
    stuck_copy: Option<Instant>,
    /// Bytes beside the two files when they were looked at last: a look reads the folder, too much for every commit.
    beside: u64,
}

impl Chores {
    pub(super) fn new(now: Instant, folder: &Path) -> Self {
        let beside = rescue::bytes_beside(folder);
        Self { pruned_at: now, quiet: (0, now), shrunk: false, given_up: None, stuck_copy: None, beside }
    }
}

impl Writer {
    /// One step of everything.
    pub(super) fn tidy(&mut self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        if self.now.saturating_duration_since(self.chores.pruned_at) >= PRUNE_INTERVAL {
            self.chores.pruned_at = self.now;
            outcome = self.prune();
        }
        self.look_beside();
        let kept = self.keep_room();
        let shrunk = self.shrink_some();
        self.tell_given_up();
        outcome.and(kept).and(shrunk)
    }

    /// Says at most once in [`TELL_INTERVAL`] that readings are given up.
    fn tell_given_up(&mut self) {
        let given_up = self.samples.given_up();
        let Some((told, at)) = self.chores.given_up else {
            // What was lost before this start was told then.
            self.chores.given_up = Some((given_up, self.now.checked_sub(TELL_INTERVAL).unwrap_or(self.now)));
            return;
        };
        if given_up > told && self.now.saturating_duration_since(at) >= TELL_INTERVAL {
            self.chores.given_up = Some((given_up, self.now));
            tracing::warn!(
                readings = given_up - told,
                quota = self.config.quota_bytes,
                "the quota is used up: the oldest readings that were not sent are given up, and declared lost"
            );
        }
    }

    fn prune(&mut self) -> Result<(), StoreError> {
        let (wall, by_age) = (self.clock.now(), self.clock.is_trusted());
        let connection = self.state.begin()?;
        let pruned = savepoint(connection, |connection| journal::prune(connection, wall, by_age));
        if self.state.lost_transaction() || pruned.as_ref().is_err_and(StateFile::is_failing) {
            let cause = pruned.as_ref().err().cloned().unwrap_or(StoreError::Closed);
            self.gave_up(cause, &mut []);
        } else if self.state.has_changes() {
            self.lazy_until.get_or_insert_with(|| Instant::now() + LAZY_WAIT);
        } else {
            self.commit().inspect_err(|cause| self.gave_up(cause.clone(), &mut []))?;
        }
        pruned.map(drop)
    }

    /// Sees to it that both files stay within the quota: a little before it is reached the logs are emptied and what
    /// matters least is given up; if that is not enough, no more readings are taken until it is.
    pub(super) fn keep_room(&mut self) -> Result<(), StoreError> {
        let (quota, was_full) = (self.config.quota_bytes, self.samples.is_full());
        let bound = quota - quota / FREE_PART;
        if !was_full && self.bytes_of_files() + self.chores.beside + self.log_bytes() <= bound {
            return Ok(());
        }
        let made = self.make_room(bound);
        let bytes = self.bytes_on_disk();
        let full = bytes > if was_full { bound } else { quota };
        self.samples.set_full(full);
        match (was_full, full) {
            (false, true) => tracing::warn!(
                bytes,
                quota,
                "the store is full and nothing more may be given up; no more telemetry is taken until there is room"
            ),
            (true, false) => tracing::info!(bytes, quota, "the store takes telemetry again"),
            _ => {}
        }
        made
    }

    fn make_room(&mut self, bound: u64) -> Result<(), StoreError> {
        // What the table has already makes room; no time to collect more.
        let confirmed = if self.samples.has_confirmed() {
            self.samples.commit(&mut self.memory, self.now, self.clock.now())
        } else {
            Ok(())
        };
        let lazy = self.commit().inspect_err(|cause| self.gave_up(cause.clone(), &mut []));
        let emptied = lazy.and_then(|()| self.state.between("copy the log into state.db", files::empty_log));
        // Before any reading is given up.
        self.drop_copies(bound);
        let beside = rescue::bytes_beside(&self.config.state_dir);
        let rest = bound.saturating_sub(files::bytes_with_log(self.state.path()) + beside);
        let kept = self.samples.keep_within(rest);
        confirmed.and(emptied).and(kept)
    }

    /// Readings are worth more than damaged copies, which were looked through already: beyond the quota the oldest go.
    fn drop_copies(&mut self, bound: u64) {
        let mut copies = rescue::aside::copies(self.samples.path());
        copies.extend(rescue::aside::copies(self.state.path()));
        let told = self.chores.stuck_copy.map(|at| self.now.saturating_duration_since(at));
        let quiet = told.is_some_and(|ago| ago < TELL_INTERVAL);
        for copy in copies {
            if self.bytes_on_disk() <= bound {
                return;
            }
            match rescue::aside::remove(&copy) {
                Ok(()) => tracing::warn!(copy = %copy.display(), "a damaged copy is removed: the quota needs its room"),
                Err(_) if quiet => {}
                Err(cause) => {
                    self.chores.stuck_copy = Some(self.now);
                    tracing::warn!(copy = %copy.display(), %cause, "a damaged copy could not be removed; it is tried again");
                }
            }
        }
    }

    /// Gives back a little of what neither file needs, and once all is quiet, copies the logs.
    fn shrink_some(&mut self) -> Result<(), StoreError> {
        let commits = self.memory.counted.commits;
        if self.chores.quiet.0 != commits {
            self.chores.quiet = (commits, self.now);
        }
        let beside = rescue::bytes_beside(&self.config.state_dir);
        let rest = self.config.quota_bytes.saturating_sub(files::bytes_with_log(self.state.path()) + beside);
        let telemetry = self.samples.shrink_some(rest);
        let state = self.state.between("give free pages of state.db back", |connection| {
            files::give_back_some(connection, files::FREE_PAGES_KEPT, files::PAGES_PER_STEP)
        });
        let (shrunk, more) = (telemetry?, state?);
        if shrunk || more {
            self.chores.shrunk = true;
            return Ok(());
        }
        let quiet = self.now.saturating_duration_since(self.chores.quiet.1) >= IDLE_AFTER;
        if !quiet {
            return Ok(());
        }
        let worth = |path: &Path| files::log_bytes(path) >= LOG_WORTH_COPYING;
        let shrunk = std::mem::take(&mut self.chores.shrunk);
        if shrunk || worth(self.samples.path()) {
            self.samples.empty_log()?;
        }
        if shrunk || worth(self.state.path()) {
            self.state.between("copy the log into state.db", files::empty_log)?;
        }
        Ok(())
    }

    /// Both logs: so much more the files may need while the logs are copied into them.
    fn log_bytes(&self) -> u64 {
        files::log_bytes(self.state.path()) + files::log_bytes(self.samples.path())
    }

    /// Logs beyond [`LOG_BYTES_MAX`] are copied into their files now; if that fails, the file is out of use until it
    /// works.
    pub(super) fn bound_logs(&mut self) -> Result<(), StoreError> {
        let too_long = |path: &Path| files::log_bytes(path) > LOG_BYTES_MAX;
        let mut outcome = Ok(());
        if too_long(self.state.path()) {
            let lazy = self.commit().inspect_err(|cause| self.gave_up(cause.clone(), &mut []));
            outcome = lazy.and_then(|()| self.state.between("copy the log into state.db", files::empty_log));
        }
        if too_long(self.samples.path()) {
            let emptied = self.samples.empty_log();
            outcome = outcome.and(emptied);
        }
        outcome
    }

    fn bytes_of_files(&self) -> u64 {
        files::bytes_with_log(self.state.path()) + files::bytes_with_log(self.samples.path())
    }

    fn bytes_on_disk(&self) -> u64 {
        self.bytes_of_files() + rescue::bytes_beside(&self.config.state_dir)
    }

    /// Looks what lies beside the files: at each tick, and when something was moved there.
    pub(super) fn look_beside(&mut self) {
        self.chores.beside = rescue::bytes_beside(&self.config.state_dir);
    }
}

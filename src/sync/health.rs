//! How sync fares, and the one owner of retry: every lane asks here before it sends, and tells here how it went.
//!
//! # Rules
//!
//! * What concerns everything (network, time-outs, credentials, clock) holds up every lane; what concerns one table
//!   (throttling, its failure, its absence) holds up the lanes of that table alone.
//! * Waits are drawn with full jitter: up to [`BACKOFF_MAX`] for what passes by itself, up to [`SLOW_MAX`] for
//!   what somebody has to repair. Failures are forgotten after [`STABLE_AFTER`] without one.
//! * While something fails, a lane sends one request at a time, as a probe. Throttling halves a lane's window of
//!   requests in flight; each step without it widens the window by one.
//! * What begins, what becomes another and what is over is told as [`super::outage`] says, and `status` shows the most
//!   important of what fails now. A success ends what held up everything, for all lanes: whatever the others last saw,
//!   their next request tells. A step of a lane in which nothing failed ends what held up that lane: it gave up the rest.
//! * After an outage the states go first: history waits until they are through, at most [`CATCH_UP_MAX`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floorgate_model::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::outage::{Outages, What, cut};
use super::table::{Cause, Scope, TableError};
use crate::backoff::Backoff;
use crate::clock::Clock;

/// First ceiling of a wait.
const BACKOFF_BASE: Duration = Duration::from_millis(500);
/// Highest ceiling for what passes by itself; keeps "current soon after the link is back" within sight.
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// Highest ceiling for what somebody has to repair.
const SLOW_MAX: Duration = Duration::from_secs(60);
/// So long without a failure, and earlier ones are forgotten.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Longest time that history waits for the states after an outage.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// Requests a lane has in flight at most.
pub const WINDOW_MAX: usize = 8;

/// The lanes, in order of importance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneName {
    /// Execution records.
    Executions,
    /// Device states.
    States,
    /// History blocks.
    History,
}

/// How sync fares, for `status`.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct SyncState {
    /// The table takes what it is given: something was written since start, and nothing that failed is still to be
    /// tried again.
    pub up: bool,
    /// The last success.
    pub last_success_at: Option<Timestamp>,
    /// The last failure.
    pub last_error_at: Option<Timestamp>,
    /// The most important of what fails, in at most 512 bytes. Stays after it has passed; `up` tells whether it has.
    pub last_error: Option<String>,
    /// Requests that failed, since start.
    pub failures: u64,
    /// Of these, throttled.
    pub throttled: u64,
    /// Items the table will never take, since start (blocks are kept aside, see `doctor`).
    pub refused: u64,
    /// Devices that another gateway writes.
    pub taken_over: usize,
    /// Execution records, states, history.
    pub lanes: [LaneState; 3],
}

impl SyncState {
    /// What fails now: these lanes, or everything; and how the worst of it is said.
    fn shows(&mut self, failing: [bool; 3], everything: bool, worst: Option<String>) {
        for (lane, failing) in self.lanes.iter_mut().zip(failing) {
            lane.failing = failing;
        }
        self.up = self.last_success_at.is_some() && !everything && !failing.contains(&true);
        if worst.is_some() {
            self.last_error = worst;
        }
    }
}

/// How one lane fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct LaneState {
    /// What it saw waiting at its last look, at most what it takes at once.
    pub waiting: usize,
    /// Written since start.
    pub written: u64,
    /// Requests it may have in flight.
    pub window: usize,
    /// The table of this lane fails, and not everything.
    pub failing: bool,
}

/// One thing that can fail and be waited for.
#[derive(Debug)]
struct Gate {
    quick: Backoff,
    slow: Backoff,
    not_before: Option<Instant>,
    failing: bool,
    since: Instant,
}

impl Gate {
    fn new() -> Self {
        Self {
            quick: Backoff::new(BACKOFF_BASE, BACKOFF_MAX, STABLE_AFTER),
            slow: Backoff::new(BACKOFF_BASE, SLOW_MAX, STABLE_AFTER),
            not_before: None,
            failing: false,
            since: Instant::now(),
        }
    }

    fn failed(&mut self, error: &TableError, random: f64) {
        let now = Instant::now();
        // Several requests of one moment fail for one reason; that is one failure.
        if self.not_before.is_some_and(|at| now < at) {
            return;
        }
        if !self.failing {
            let calm = now.duration_since(self.since);
            self.quick.lasted(calm);
            self.slow.lasted(calm);
        }
        let backoff = if matches!(error, TableError::Misconfigured { .. }) { &mut self.slow } else { &mut self.quick };
        self.not_before = Some(now + backoff.next_delay(random));
        self.failing = true;
    }

    /// Whether this was the end of a failure.
    fn succeeded(&mut self) -> bool {
        let ended = std::mem::take(&mut self.failing);
        if ended {
            self.since = Instant::now();
            self.not_before = None;
        }
        ended
    }
}

#[derive(Debug)]
struct Inner {
    everything: Gate,
    lanes: [Gate; 3],
    /// Items of the lane fail by themselves.
    alone: [bool; 3],
    windows: [usize; 3],
    catching_up_until: Option<Instant>,
    outages: Outages,
}

impl Inner {
    /// The lanes that fail by themselves.
    fn failing(&self) -> [bool; 3] {
        [0, 1, 2].map(|lane| self.lanes[lane].failing || self.alone[lane])
    }
}

/// The owner of retry. Shared by the lanes.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
    state: watch::Sender<SyncState>,
    recovered: Notify,
    caught_up: Notify,
    clock: Clock,
}

impl Health {
    /// Nothing has failed and nothing succeeded.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let mut state = SyncState::default();
        state.lanes.iter_mut().for_each(|lane| lane.window = WINDOW_MAX);
        Self {
            inner: Mutex::new(Inner {
                everything: Gate::new(),
                lanes: [Gate::new(), Gate::new(), Gate::new()],
                alone: [false; 3],
                windows: [WINDOW_MAX; 3],
                catching_up_until: Some(Instant::now() + CATCH_UP_MAX),
                outages: Outages::default(),
            }),
            state: watch::Sender::new(state),
            recovered: Notify::new(),
            caught_up: Notify::new(),
            clock,
        }
    }

    /// How it fares, now and at every change.
    pub fn watch(&self) -> watch::Receiver<SyncState> {
        self.state.subscribe()
    }

    /// Waits until a lane may send. Cancel safe.
    pub async fn admitted(&self, lane: LaneName) {
        loop {
            let caught_up = self.caught_up.notified();
            let Some(until) = self.held_until(lane) else { return };
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                () = caught_up => {}
            }
        }
    }

    /// Waits for the end of an outage. Cancel safe.
    pub async fn recovered(&self) {
        self.recovered.notified().await;
    }

    /// How many requests a lane may have in flight: one while something fails.
    pub fn window(&self, lane: LaneName) -> usize {
        let inner = self.lock();
        let failing = inner.everything.failing || inner.lanes[lane as usize].failing;
        if failing { 1 } else { inner.windows[lane as usize] }
    }

    /// A request of this lane was carried out; `written` things are in the table by it.
    pub fn succeeded(&self, lane: LaneName, written: usize) {
        let (over, failing, worst) = {
            let (mut inner, now) = (self.lock(), Instant::now());
            let mut over = [None, None];
            if inner.lanes[lane as usize].succeeded() && !inner.alone[lane as usize] {
                over[0] = inner.outages.over(What::Lane(lane), now);
            }
            if inner.everything.succeeded() {
                over[1] = inner.outages.over(What::Everything, now);
                inner.catching_up_until = Some(now + CATCH_UP_MAX);
                self.recovered.notify_one();
            }
            (over, inner.failing(), inner.outages.worst().map(str::to_owned))
        };
        let now = self.clock.now();
        self.state.send_modify(|state| {
            state.last_success_at = Some(now);
            state.lanes[lane as usize].written += written as u64;
            state.shows(failing, false, worst);
        });
        for over in over.into_iter().flatten() {
            tracing::info!(lane = ?lane, seconds = over.lasted.as_secs(), tries = over.tries, "the table takes data again");
        }
    }

    /// Part of a request of this lane was carried out.
    pub fn wrote(&self, lane: LaneName, written: usize) {
        let now = self.clock.now();
        if written > 0 {
            self.state.send_modify(|state| {
                state.last_success_at = Some(now);
                state.lanes[lane as usize].written += written as u64;
            });
        }
    }

    /// A step of this lane went through and nothing failed: what failed before was carried out meanwhile, or given up.
    /// `alone` tells that items which fail by themselves still wait for their next try.
    pub fn widen(&self, lane: LaneName, alone: bool) {
        let mut inner = self.lock();
        let window = &mut inner.windows[lane as usize];
        *window = (*window + 1).min(WINDOW_MAX);
        let window = *window;
        let held = std::mem::take(&mut inner.lanes[lane as usize].failing);
        let was_alone = std::mem::replace(&mut inner.alone[lane as usize], alone);
        let failed = held || was_alone != alone;
        if failed && !alone {
            // Given up: the table took nothing, so no end is told.
            inner.outages.over(What::Lane(lane), Instant::now());
        }
        let (failing, down) = (inner.failing(), inner.everything.failing);
        let worst = inner.outages.worst().map(str::to_owned);
        drop(inner);
        self.state.send_if_modified(|state| {
            let changed = failed || state.lanes[lane as usize].window != window;
            state.lanes[lane as usize].window = window;
            if failed {
                state.shows(failing, down, worst);
            }
            changed
        });
    }

    /// A request of this lane failed and will be repeated. Answers whether it was logged.
    pub fn failed(&self, lane: LaneName, error: &TableError) -> bool {
        let random = fastrand::f64();
        let throttled = matches!(error, TableError::Retry { cause: Cause::Throttled, .. });
        let what = What::of(lane, error);
        let mut inner = self.lock();
        match what {
            What::Everything => inner.everything.failed(error, random),
            What::Lane(lane) => inner.lanes[lane as usize].failed(error, random),
        }
        if throttled {
            let window = &mut inner.windows[lane as usize];
            *window = (*window / 2).max(1);
        }
        let window = inner.windows[lane as usize];
        let begun = inner.outages.failed(what, error, Instant::now());
        let (failing, down) = (inner.failing(), inner.everything.failing);
        let worst = inner.outages.worst().map(str::to_owned);
        drop(inner);
        if let Some(begun) = &begun {
            let passed_over = begun.passed_over;
            tracing::warn!(lane = ?lane, %error, passed_over, "the table did not take it");
        }
        let now = self.clock.now();
        self.state.send_modify(|state| {
            state.failures += 1;
            state.throttled += u64::from(throttled);
            state.last_error_at = Some(now);
            state.lanes[lane as usize].window = window;
            state.shows(failing, down, worst);
        });
        begun.is_some()
    }

    /// A request of this lane failed for a reason of its own item or of a table that somebody has to repair, while others
    /// go through; the lane tries it again at its own pace. Counted and told, it holds up nobody.
    pub fn failed_alone(&self, lane: LaneName, error: &TableError) {
        let throttled = matches!(error, TableError::Retry { cause: Cause::Throttled, .. });
        let mut inner = self.lock();
        inner.alone[lane as usize] = true;
        let begun = inner.outages.failed(What::Lane(lane), error, Instant::now());
        let (failing, down) = (inner.failing(), inner.everything.failing);
        let worst = inner.outages.worst().map(str::to_owned);
        drop(inner);
        if let Some(begun) = begun {
            let passed_over = begun.passed_over;
            tracing::warn!(lane = ?lane, %error, passed_over, "the table did not take one item; the others go on");
        }
        let now = self.clock.now();
        self.state.send_modify(|state| {
            state.failures += 1;
            state.throttled += u64::from(throttled);
            state.last_error_at = Some(now);
            state.shows(failing, down, worst);
        });
    }

    /// The time by the gateway's clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The table will never take one item; the lane goes on without it.
    pub fn refused(&self, error: &TableError) {
        let now = self.clock.now();
        self.state.send_modify(|state| {
            state.refused += 1;
            state.last_error_at = Some(now);
            state.last_error = Some(cut(&error.to_string()).to_owned());
        });
    }

    /// What a lane sees waiting.
    pub fn waiting(&self, lane: LaneName, count: usize) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.lanes[lane as usize].waiting, count) != count);
    }

    /// How many devices are another gateway's.
    pub fn taken_over(&self, count: usize) {
        self.state.send_if_modified(|state| std::mem::replace(&mut state.taken_over, count) != count);
    }

    /// No state waits any more: history may go.
    pub fn states_current(&self) {
        if self.lock().catching_up_until.take().is_some() {
            self.caught_up.notify_waiters();
        }
    }

    fn held_until(&self, lane: LaneName) -> Option<Instant> {
        let now = Instant::now();
        let inner = self.lock();
        let catching_up = inner.catching_up_until.filter(|_| lane == LaneName::History);
        let holds = [inner.everything.not_before, inner.lanes[lane as usize].not_before, catching_up];
        holds.into_iter().flatten().filter(|until| *until > now).max()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a failure is not its item's or its table's alone.
pub(super) fn concerns_everything(error: &TableError) -> bool {
    match error {
        TableError::Retry { cause, .. } => matches!(cause, Cause::Network | Cause::Timeout),
        TableError::Misconfigured { scope, .. } => *scope == Scope::Everything,
        TableError::Permanent { .. } => false,
    }
}

#[cfg(test)]
mod tests;

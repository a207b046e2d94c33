//! One budget of write units a second for all lanes, which finds out by itself what the tables take.
//!
//! # Rules
//!
//! * A unit is one item of at most 1 KB. Units come back at a rate; what is not used is kept for [`BURST`].
//! * **States and outcomes before history.** They may run into debt, outcomes deeper than states; history waits until
//!   there is none. So that a table too small for its states does not stop history for ever, it gets
//!   1/[`HISTORY_SHARE`] of the rate whatever happens.
//! * **Additive increase, multiplicative decrease.** The rate grows while it is what holds the lanes up: doubling until
//!   the first throttling, by [`INCREASE`] afterwards, looked at once in [`STEP`]. Throttling halves it, at most once in
//!   a [`STEP`]. Throttled history brings down a rate of its own beneath the common one, because its table may be the
//!   smaller one and must not slow the states; throttled states or outcomes bring down both.
//! * **A ramp.** After a start or an outage the backlog begins at a drawn time within [`JITTER_MAX`], at
//!   [`RAMP_START`], and doubles in steps of a drawn length: two hundred gateways that come back together do not all
//!   send a day's history in the same second. States, outcomes and live history ([`Spending::Live`]) wait for no ramp.
//!
//! [`Budget`] is pure: times and random numbers come from the caller. [`SharedBudget`] lends it to the lanes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Rate at the start, units a second: a quarter of what a new on-demand table takes.
pub const RATE_START: f64 = 1_000.0;
/// Lowest rate.
pub const RATE_MIN: f64 = 5.0;
/// Highest rate: more than one connection of a gateway carries.
pub const RATE_MAX: f64 = 20_000.0;
/// Units a second added in each step after the first throttling.
pub const INCREASE: f64 = 20.0;
/// How often the rate grows or falls at most.
pub const STEP: Duration = Duration::from_secs(1);
/// Unused units are kept for so long.
pub const BURST: Duration = Duration::from_secs(1);
/// History gets at least one part in so many.
pub const HISTORY_SHARE: f64 = 8.0;
/// Rate at which a backlog begins after a start or an outage, units a second: one batch.
pub const RAMP_START: f64 = 25.0;
/// A backlog begins at a time drawn within this.
pub const JITTER_MAX: Duration = Duration::from_secs(10);
/// One request's units at most (a batch); a bucket holds this much however low its rate is.
const REQUEST_MAX: f64 = 25.0;

/// What units are for, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spending {
    /// Execution records.
    Outcome,
    /// Device states.
    State,
    /// Blocks that were just closed.
    Live,
    /// Older blocks.
    Backlog,
}

/// A rate and what it has saved up.
#[derive(Debug, Clone)]
struct Bucket {
    rate: f64,
    units: f64,
    filled_at: Instant,
    /// Not throttled since the ramp began: doubling.
    doubling: bool,
    step: Duration,
    stepped_at: Instant,
    cut_at: Option<Instant>,
    /// Somebody had to wait for it since the last step.
    short: bool,
}

impl Bucket {
    fn new(rate: f64, now: Instant) -> Self {
        let units = rate.max(REQUEST_MAX);
        Self { rate, units, filled_at: now, doubling: true, step: STEP, stepped_at: now, cut_at: None, short: false }
    }

    fn refill(&mut self, now: Instant) {
        let most = (self.rate * BURST.as_secs_f64()).max(REQUEST_MAX);
        let since = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.units = (self.units + since * self.rate).min(most);
        self.filled_at = self.filled_at.max(now);
        if now.saturating_duration_since(self.stepped_at) >= self.step {
            if std::mem::take(&mut self.short) {
                self.rate = if self.doubling { self.rate * 2.0 } else { self.rate + INCREASE }.min(RATE_MAX);
            }
            self.stepped_at = now;
        }
    }

    /// Whether it can go down to `floor` for these units; else when.
    fn check(&mut self, units: f64, floor: f64, now: Instant) -> Result<(), Instant> {
        let missing = units + floor - self.units;
        if missing <= 1e-6 {
            return Ok(());
        }
        self.short = true;
        Err(now + Duration::from_secs_f64(missing / self.rate).max(Duration::from_millis(1)))
    }

    fn cut(&mut self, now: Instant) {
        if self.cut_at.is_some_and(|at| now.saturating_duration_since(at) < STEP) {
            return;
        }
        self.refill(now);
        (self.rate, self.doubling, self.short) = ((self.rate / 2.0).max(RATE_MIN), false, false);
        (self.cut_at, self.stepped_at) = (Some(now), now);
        self.units = self.units.min(0.0);
    }
}

/// The budget.
#[derive(Debug)]
pub struct Budget {
    common: Bucket,
    history: Bucket,
    /// What history may have although the others use everything up.
    share: f64,
    share_at: Instant,
    not_before: Instant,
}

impl Budget {
    /// A budget at the start of the ramp; `random` evenly from `0.0..1.0`.
    #[must_use]
    pub fn new(now: Instant, random: f64) -> Self {
        let mut budget = Self {
            common: Bucket::new(RATE_START, now),
            history: Bucket::new(RAMP_START, now),
            share: 0.0,
            share_at: now,
            not_before: now,
        };
        budget.ramp(now, random);
        budget
    }

    /// A start, or the end of an outage: the backlog begins anew, at a drawn time and pace.
    pub fn ramp(&mut self, now: Instant, random: f64) {
        let random = random.clamp(0.0, 1.0);
        self.not_before = now + JITTER_MAX.mul_f64(random);
        self.history = Bucket { step: STEP.mul_f64(1.0 + random), ..Bucket::new(RAMP_START, now) };
        self.history.units = REQUEST_MAX;
    }

    /// Takes units; if there are none, the time at which to ask again.
    ///
    /// # Errors
    /// That time.
    pub fn take(&mut self, spending: Spending, units: f64, now: Instant) -> Result<(), Instant> {
        self.common.refill(now);
        self.history.refill(now);
        self.refill_share(now);
        let debt = self.common.rate * BURST.as_secs_f64();
        let backlog = spending == Spending::Backlog;
        if backlog {
            if now < self.not_before {
                return Err(self.not_before);
            }
            self.history.check(units, 0.0, now)?;
        }
        let floor = match spending {
            Spending::Outcome => -2.0 * debt,
            Spending::State => -debt,
            Spending::Live | Spending::Backlog => 0.0,
        };
        let history = matches!(spending, Spending::Live | Spending::Backlog);
        if let Err(later) = self.common.check(units, floor, now) {
            if !history || self.share < units {
                return Err(later);
            }
            self.share -= units;
        }
        self.common.units -= units;
        if backlog {
            self.history.units -= units;
        }
        Ok(())
    }

    /// The tables said that it was too much.
    pub fn throttled(&mut self, spending: Spending, now: Instant) {
        self.history.cut(now);
        if matches!(spending, Spending::Outcome | Spending::State) {
            self.common.cut(now);
        }
    }

    /// Units a second: of all lanes, and of the backlog beneath it.
    #[must_use]
    pub fn rates(&self) -> (f64, f64) {
        (self.common.rate, self.history.rate)
    }

    fn refill_share(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.share_at).as_secs_f64();
        self.share = (self.share + since * self.common.rate / HISTORY_SHARE).min(REQUEST_MAX);
        self.share_at = self.share_at.max(now);
    }
}

/// The budget as the lanes share it.
#[derive(Debug)]
pub struct SharedBudget(Mutex<Budget>);

impl Default for SharedBudget {
    fn default() -> Self {
        Self(Mutex::new(Budget::new(Instant::now(), fastrand::f64())))
    }
}

impl SharedBudget {
    /// Waits for units and takes them. Cancel safe: none are taken before it resolves.
    pub async fn spend(&self, spending: Spending, units: f64) {
        while let Err(later) = self.try_spend(spending, units) {
            tokio::time::sleep_until(later).await;
        }
    }

    /// Takes units if they are there.
    ///
    /// # Errors
    /// When to ask again.
    pub fn try_spend(&self, spending: Spending, units: f64) -> Result<(), Instant> {
        self.lock().take(spending, units, Instant::now())
    }

    /// See [`Budget::throttled`].
    pub fn throttled(&self, spending: Spending) {
        self.lock().throttled(spending, Instant::now());
    }

    /// See [`Budget::ramp`].
    pub fn ramp(&self) {
        self.lock().ramp(Instant::now(), fastrand::f64());
    }

    fn lock(&self) -> MutexGuard<'_, Budget> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(random: f64) -> (Budget, Instant) {
        let now = Instant::now();
        (Budget::new(now, random), now)
    }

    /// How many units this spending gets in a time, asking for `units` at once as often as it may.
    fn spend(budget: &mut Budget, spending: Spending, units: f64, from: Instant, time: Duration) -> f64 {
        let (mut now, mut spent) = (from, 0.0);
        while now < from + time {
            match budget.take(spending, units, now) {
                Ok(()) => spent += units,
                Err(later) => now = later,
            }
        }
        spent
    }

    #[test]
    fn five_hundred_states_after_an_outage_wait_for_nothing() {
        let (mut budget, now) = budget(1.0);
        assert!((0..500).all(|_| budget.take(Spending::State, 1.0, now).is_ok()));
        assert!(budget.take(Spending::Backlog, 25.0, now).is_err(), "the ramp has not begun");
        assert!(budget.take(Spending::Live, 25.0, now).is_ok(), "live history waits for no ramp");
    }

    #[test]
    fn a_backlog_begins_at_a_drawn_time_and_doubles() {
        for random in [0.0, 0.5, 1.0] {
            let (mut budget, start) = budget(random);
            let begin = JITTER_MAX.mul_f64(random);
            assert_eq!(spend(&mut budget, Spending::Backlog, 25.0, start, begin), 0.0);
            let first = spend(&mut budget, Spending::Backlog, 25.0, start + begin, STEP);
            assert!((25.0..=75.0).contains(&first), "{first} units in the first second");
            spend(&mut budget, Spending::Backlog, 25.0, start + begin + STEP, Duration::from_secs(20));
            assert!(budget.rates().1 >= 5_000.0, "{:?}", budget.rates());
        }
    }

    #[test]
    fn two_hundred_gateways_that_come_back_together_do_not_stampede() {
        let start = Instant::now();
        let mut each: Vec<_> = (0..200).map(|n| Budget::new(start, f64::from(n) / 200.0)).collect();
        let mut first = |from: u64, seconds: u64| -> f64 {
            let from = start + Duration::from_secs(from);
            each.iter_mut().map(|b| spend(b, Spending::Backlog, 25.0, from, Duration::from_secs(seconds))).sum()
        };
        // Without the draw all 200 would send their first batch, 5,000 units, in the first instant.
        let in_the_first_second = first(0, 1);
        assert!(in_the_first_second <= 200.0 * 25.0 * 0.25, "{in_the_first_second}");
    }

    #[test]
    fn throttling_halves_once_a_second_and_the_rate_creeps_back() {
        let (mut budget, now) = budget(0.0);
        for _ in 0..100 {
            budget.throttled(Spending::State, now);
        }
        assert_eq!(budget.rates().0, RATE_START / 2.0);
        budget.throttled(Spending::State, now + STEP);
        assert_eq!(budget.rates().0, RATE_START / 4.0);
        for n in 2..100 {
            budget.throttled(Spending::State, now + STEP * n);
        }
        assert_eq!(budget.rates(), (RATE_MIN, RATE_MIN));
        let later = now + STEP * 100;
        spend(&mut budget, Spending::State, 1.0, later, STEP * 10);
        let (rate, _) = budget.rates();
        assert!((RATE_MIN + 8.0 * INCREASE..=RATE_MIN + 11.0 * INCREASE).contains(&rate), "{rate}");
        let (unused, _) = (budget.rates().0, ());
        budget.take(Spending::State, 1.0, later + Duration::from_secs(3_600)).unwrap();
        assert!(budget.rates().0 <= unused + INCREASE, "a rate that nobody needs does not grow");
    }

    #[test]
    fn a_small_history_table_slows_history_alone() {
        let (mut budget, now) = budget(0.0);
        for n in 0..20 {
            budget.throttled(Spending::Backlog, now + STEP * n);
        }
        assert_eq!(budget.rates(), (RATE_START, RATE_MIN));
    }

    #[test]
    fn history_gives_way_to_states_and_still_gets_its_share() {
        let (mut budget, mut now) = budget(0.0);
        for n in 0..6 {
            budget.throttled(Spending::State, now + STEP * n);
        }
        now += STEP * 6;
        // States want all there is and more; history asks as often.
        let (mut states, mut history) = (0.0, 0.0);
        for _ in 0..60_000 {
            states += f64::from(u8::from(budget.take(Spending::State, 1.0, now).is_ok()));
            history += if budget.take(Spending::Backlog, 25.0, now).is_ok() { 25.0 } else { 0.0 };
            now += Duration::from_millis(1);
        }
        assert!(states > 3.0 * history && history > 0.05 * states, "{states} states, {history} of history");
        assert!(budget.take(Spending::Outcome, 2.0, now).is_ok(), "an outcome goes all the same");
    }
}

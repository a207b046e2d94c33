//! The gateway's wall clock, and how far it can be trusted.
//!
//! Everything that needs the time of day gets a [`Clock`]; tests set one. Timers never use it: they run on the
//! monotonic clock (`tokio::time`, `std::time::Instant`), which no NTP step moves.
//!
//! # Trust (contract §5)
//!
//! A command is judged only by a trusted clock. With [`Trust::Auto`] that is a clock that the kernel calls
//! synchronised (an NTP daemon holds it), or one that agreed with the table's `Date` within [`TABLE_AGREES_WITHIN`]
//! during the last [`TABLE_COUNTS_FOR`] and was not stepped since. A response that disagrees ends the trust that an
//! earlier one gave.
//!
//! # What it does not do
//!
//! It sets no clock and asks no time server.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use floorgate_model::Timestamp;
use tokio::time::Instant;

/// A table's `Date` (whole seconds, some milliseconds old) may differ from ours by this much.
pub const TABLE_AGREES_WITHIN: Duration = Duration::from_secs(5);
/// How long one agreeing response counts.
pub const TABLE_COUNTS_FOR: Duration = Duration::from_secs(3_600);

/// Wall-clock time with its trust. Cheap to clone; all clones show the same.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    System { trust: Trust, table: Mutex<Option<Agreement>> },
    Set { now_ms: AtomicI64, trusted: AtomicBool },
}

/// The table and the clock agreed.
#[derive(Debug, Clone, Copy)]
struct Agreement {
    /// When, on the clock that nothing steps.
    at: Instant,
    /// When, on the wall clock.
    wall: Timestamp,
}

/// When the clock counts as right (contract §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Trust {
    /// The kernel calls it synchronised, or a response of the table within the last hour agreed within 5 s.
    #[default]
    Auto,
    /// The kernel calls it synchronised.
    Kernel,
    /// Always.
    Always,
}

impl Trust {
    /// Every rule.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Kernel, Self::Always];

    /// The word used in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kernel => "kernel",
            Self::Always => "always",
        }
    }

    fn holds(self, kernel: bool, table: bool) -> bool {
        match self {
            Self::Auto => kernel || table,
            Self::Kernel => kernel,
            Self::Always => true,
        }
    }
}

/// How the clock stands, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockState {
    /// The kernel calls it synchronised.
    pub synchronised_by_kernel: bool,
    /// How long ago a response of the table agreed; `None` if that counts no more, or never happened.
    pub table_agreed_seconds_ago: Option<u64>,
    /// Whether commands may be judged by it.
    pub trusted: bool,
}

impl Clock {
    /// A clock that stands where it is put; for tests.
    #[must_use]
    pub fn set_to(now: Timestamp) -> Self {
        Self(Arc::new(Source::Set { now_ms: AtomicI64::new(now.as_millis()), trusted: AtomicBool::new(true) }))
    }

    /// The system's clock.
    #[must_use]
    pub fn system(trust: Trust) -> Self {
        Self(Arc::new(Source::System { trust, table: Mutex::new(None) }))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &*self.0 {
            Source::Set { now_ms, .. } => Timestamp::from_millis(now_ms.load(Ordering::Relaxed)),
            Source::System { .. } => Timestamp::from_millis(jiff::Timestamp::now().as_millisecond()),
        }
    }

    /// Whether commands may be judged by it.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.state().trusted
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> ClockState {
        match &*self.0 {
            Source::Set { trusted, .. } => {
                let trusted = trusted.load(Ordering::Relaxed);
                ClockState { synchronised_by_kernel: trusted, table_agreed_seconds_ago: None, trusted }
            }
            Source::System { trust, table } => {
                let kernel = kernel_synchronised();
                let agreement = *table.lock().unwrap_or_else(PoisonError::into_inner);
                let age = agreement.and_then(|agreement| agreement.age(Instant::now(), self.now()));
                ClockState {
                    synchronised_by_kernel: kernel,
                    table_agreed_seconds_ago: age.map(|age| age.as_secs()),
                    trusted: trust.holds(kernel, age.is_some()),
                }
            }
        }
    }

    /// Puts a set clock to a time; a system clock stays as it is.
    pub fn put(&self, now: Timestamp) {
        if let Source::Set { now_ms, .. } = &*self.0 {
            now_ms.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    /// Makes a set clock trusted or not; a system clock stays as it is.
    pub fn set_trusted(&self, yes: bool) {
        if let Source::Set { trusted, .. } = &*self.0 {
            trusted.store(yes, Ordering::Relaxed);
        }
    }

    /// A response of the table carried this `Date`; called by sync for every response.
    pub fn observe_table_date(&self, date: Timestamp) {
        if let Source::System { table, .. } = &*self.0 {
            let wall = self.now();
            let agreement = (apart(wall, date) <= TABLE_AGREES_WITHIN).then(|| Agreement { at: Instant::now(), wall });
            *table.lock().unwrap_or_else(PoisonError::into_inner) = agreement;
        }
    }
}

impl Agreement {
    /// How old it is; `None` if that is too old, or the wall clock was stepped since.
    fn age(self, now: Instant, wall: Timestamp) -> Option<Duration> {
        let age = now.saturating_duration_since(self.at);
        let stepped = apart(wall, self.wall.saturating_add(age)) > TABLE_AGREES_WITHIN;
        (age <= TABLE_COUNTS_FOR && !stepped).then_some(age)
    }
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

/// Whether the kernel says that something keeps its clock right. Containers that may not ask get "no".
fn kernel_synchronised() -> bool {
    let (answer, status) = adjtimex();
    is_synchronised(answer, status)
}

fn is_synchronised(answer: libc::c_int, status: libc::c_int) -> bool {
    answer >= 0 && answer != libc::TIME_ERROR && status & libc::STA_UNSYNC == 0
}

/// The kernel's clock state and its status bits.
#[expect(unsafe_code, reason = "the one system call that tells whether the clock is synchronised has no safe wrapper")]
fn adjtimex() -> (libc::c_int, libc::c_int) {
    // SAFETY: `timex` is plain data for which all zeros is a valid value, and `modes` = 0 asks the kernel to change
    // nothing and to fill in the structure behind the pointer, which is valid and exclusive for the whole call.
    unsafe {
        let mut state: libc::timex = std::mem::zeroed();
        (libc::adjtimex(&raw mut state), state.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_kernels_word_is_read_as_it_is_meant() {
        assert!(is_synchronised(0, 0x2001));
        assert!(!is_synchronised(libc::TIME_ERROR, 0));
        assert!(!is_synchronised(0, libc::STA_UNSYNC));
        assert!(!is_synchronised(-1, 0));
        let (answer, _) = adjtimex();
        assert!((-1..=libc::TIME_ERROR).contains(&answer));
    }

    #[test]
    fn each_rule_asks_for_what_it_says() {
        let table: Vec<_> = [(false, false), (false, true), (true, false), (true, true)]
            .map(|(kernel, table)| Trust::ALL.map(|trust| trust.holds(kernel, table)))
            .to_vec();
        assert_eq!(table, [[false, false, true], [true, false, true], [true, true, true], [true, true, true]]);
    }

    #[test]
    fn the_table_vouches_for_an_hour_unless_the_clock_is_stepped() {
        let (at, wall) = (Instant::now(), Timestamp::from_millis(1_800_000_000_000));
        let agreement = Agreement { at, wall };
        let age = |real: Duration, shown: Duration| agreement.age(at + real, wall.saturating_add(shown));
        assert_eq!(age(MINUTE, MINUTE), Some(MINUTE));
        assert_eq!(age(MINUTE, MINUTE + TABLE_AGREES_WITHIN), Some(MINUTE));
        assert_eq!(age(MINUTE, MINUTE * 2), None, "stepped forward");
        assert_eq!(age(MINUTE * 10, MINUTE), None, "stepped back");
        assert_eq!(age(TABLE_COUNTS_FOR, TABLE_COUNTS_FOR), Some(TABLE_COUNTS_FOR));
        let late = TABLE_COUNTS_FOR + Duration::from_millis(1);
        assert_eq!(age(late, late), None);
    }

    #[test]
    fn a_response_that_disagrees_ends_what_an_earlier_one_gave() {
        let clock = Clock::system(Trust::Auto);
        assert_eq!(clock.state().table_agreed_seconds_ago, None);
        clock.observe_table_date(clock.now());
        assert_eq!(clock.state().table_agreed_seconds_ago, Some(0));
        assert!(clock.is_trusted());
        clock.observe_table_date(clock.now().saturating_sub(MINUTE));
        assert_eq!(clock.state().table_agreed_seconds_ago, None);
    }

    #[test]
    fn a_set_clock_stands_where_it_is_put() {
        let clock = Clock::set_to(Timestamp::EPOCH);
        let later = Timestamp::from_millis(5);
        clock.put(later);
        clock.set_trusted(false);
        clock.observe_table_date(later);
        assert_eq!((clock.now(), clock.is_trusted()), (later, false));
    }
}

//! The gateway's clocks: the time of day with how far it can be relied on, and the time since the boot.
//!
//! Everything that needs the time of day gets a [`Clock`]; tests set one. No timer uses the time of day: they run on
//! the monotonic clock (`tokio::time`), which stands still while the machine is suspended, where they measure what the
//! gateway itself has watched (silence, answers, blocks, pauses), and on [`Clock::boot_ms`], which goes on, where time
//! passes for others too (the life of a command, of a credential, of the table's word).
//!
//! # What the clock shows
//!
//! One look answers a [`Moment`]. Its [`Quality`] is the best of these that holds:
//!
//! 1. [`Quality::Synchronised`], [`Quality::Agreed`], [`Quality::Declared`]: the machine's wall clock, because the kernel
//!    calls it synchronised, because the table's `Date` lay within [`TABLE_AGREES_WITHIN`] of it during the last
//!    [`TABLE_COUNTS_FOR`] and it was not stepped since, or because the configuration says so. A time before
//!    [`Clock::not_before`] is none of these.
//! 2. [`Quality::HeldOver`]: one of these held earlier in this boot. Boot time has gone on since; a wall clock that was
//!    stepped meanwhile is not followed.
//! 3. [`Quality::Told`]: never in this boot, but the table told the time, to about a second.
//! 4. [`Quality::Unsynchronised`]: a guess, which is the wall clock or the floor, whichever is later, and runs on with
//!    boot time.
//!
//! Only a guess is not *exact*: what is stamped with it is stamped again once the time is known
//! (`shadow::telemetry::restamp`), which is why each guess names its distance to boot time ([`Moment::guess_base`]).
//!
//! # The floor
//!
//! The time cannot be earlier than the last time that was known to be right, plus what has passed since by boot time.
//! That is the floor. The store keeps it ([`Clock::floor`], [`Clock::resume`]). Only qualities of the first kind move
//! it, and they move it back as well: a wall clock that was wrong by a year and called synchronised is forgotten as
//! soon as it is right. Everything else lets it run on with boot time, so it is never ahead of the truth for long.
//!
//! # Trust (contract §5)
//!
//! A command is judged only by a trusted clock. With [`Trust::Auto`] that is one that is synchronised or agreed. A
//! response of the table that disagrees ends the trust that an earlier one gave.
//!
//! # What it does not do
//!
//! It sets no clock and asks no time server.

mod deadline;
mod face;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floorgate_model::Timestamp;

pub use self::deadline::Deadline;
pub use self::face::BootId;
use self::face::{Face, Shown};

/// A table's `Date` (whole seconds, some milliseconds old) may differ from ours by this much; two looks at one clock
/// that differ by more from what passed between them were stepped.
pub const TABLE_AGREES_WITHIN: Duration = Duration::from_secs(5);
/// How long one agreeing response counts.
pub const TABLE_COUNTS_FOR: Duration = Duration::from_secs(3_600);
/// How long what was stamped with a guess waits for the time, once a table answers that does not tell it.
pub const GUESS_HELD_MAX: Duration = Duration::from_secs(600);
/// No time before the build can be right. Builds that are to be reproducible name their time; this is for the others:
/// 2025-01-01T00:00:00Z, epoch seconds.
const NOT_BEFORE: i64 = 1_735_689_600;
/// The kernel is asked at most this often, milliseconds, where nothing is judged by its answer.
const KERNEL_ASKED_EVERY_MS: i64 = 100;

/// Wall-clock time with its trust, and boot time. Cheap to clone; all clones show the same.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    face: Face,
    rule: Trust,
    not_before: Timestamp,
    known: Mutex<Known>,
}

/// A time of day at a time since the boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Anchor {
    wall: Timestamp,
    boot_ms: i64,
}

/// What was learnt about the time in this boot.
#[derive(Debug)]
struct Known {
    boot_id: BootId,
    /// It is not earlier than this, going on with boot time.
    floor: Anchor,
    /// When it was last right, if it ever was.
    right: Option<Anchor>,
    /// The table's word, while there is nothing better.
    told: Option<Anchor>,
    guess: Option<Anchor>,
    /// The table and the wall clock agreed.
    table: Option<Anchor>,
    /// Since when a table answers without telling the time.
    undated_since: Option<i64>,
    /// What the kernel said, and when.
    kernel: Option<(i64, bool)>,
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

/// How good a time is; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quality {
    /// The kernel calls the wall clock synchronised.
    Synchronised,
    /// The table agreed with it.
    Agreed,
    /// The configuration calls it right.
    Declared,
    /// It was one of these earlier in this boot; boot time has gone on since.
    HeldOver,
    /// The table told it, to about a second.
    Told,
    /// A guess.
    Unsynchronised,
}

impl Quality {
    /// Whether what is stamped with it may be sent as it is.
    #[must_use]
    pub fn is_exact(self) -> bool {
        self != Self::Unsynchronised
    }
}

/// A time since the boot, and which boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootTime {
    /// Which boot.
    pub boot_id: BootId,
    /// Milliseconds since then, suspended time included.
    pub ms: i64,
}

/// One look at all clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time of day, as far as it is known.
    pub wall: Timestamp,
    /// The time since the boot.
    pub boot: BootTime,
    /// How good `wall` is.
    pub quality: Quality,
}

impl Moment {
    /// `wall` less the time since the boot, milliseconds: constant while nothing is learnt about the time.
    #[must_use]
    pub fn base_ms(&self) -> i64 {
        self.wall.as_millis().saturating_sub(self.boot.ms)
    }

    /// The same, if `wall` is a guess.
    #[must_use]
    pub fn guess_base(&self) -> Option<i64> {
        (!self.quality.is_exact()).then(|| self.base_ms())
    }
}

/// The floor as the store keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Not earlier than this,
    pub wall: Timestamp,
    /// at this time since the boot.
    pub boot: BootTime,
    /// It was known to be right in that boot.
    pub right: bool,
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
    /// How good the time is.
    pub quality: Quality,
    /// The time it shows.
    pub now: Timestamp,
    /// The time cannot be earlier than this.
    pub floor: Timestamp,
    /// Which boot of the machine.
    pub boot_id: BootId,
    /// Seconds since then, suspended time included.
    pub boot_seconds: u64,
}

/// Everything one look tells.
struct Look {
    moment: Moment,
    kernel: bool,
    table_age: Option<Duration>,
    trusted: bool,
}

impl Clock {
    /// A clock that stands where it is put, synchronised, no time too early for it; for tests.
    #[must_use]
    pub fn set_to(now: Timestamp) -> Self {
        Self::new(Face::set_to(now), Trust::Auto, Timestamp::EPOCH)
    }

    /// The system's clock.
    #[must_use]
    pub fn system(trust: Trust) -> Self {
        Self::new(Face::system(), trust, Self::not_before())
    }

    /// When this floorgate was built, or a little earlier: no time before can be right.
    #[must_use]
    pub fn not_before() -> Timestamp {
        let named = option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse::<i64>().ok());
        Timestamp::from_millis(named.map_or(NOT_BEFORE, |named| named.max(NOT_BEFORE)).saturating_mul(1_000))
    }

    fn new(face: Face, rule: Trust, not_before: Timestamp) -> Self {
        let floor = Anchor { wall: not_before, boot_ms: face.shown().boot_ms };
        let known = Mutex::new(Known::at_boot(face.boot_id(), floor));
        Self(Arc::new(Inner { face, rule, not_before, known }))
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.moment().wall
    }

    /// One look at all clocks. Its quality is at most 0.1 s behind what the kernel says.
    #[must_use]
    pub fn moment(&self) -> Moment {
        self.look(false).moment
    }

    /// The time since the boot.
    #[must_use]
    pub fn boot(&self) -> BootTime {
        BootTime { boot_id: self.0.face.boot_id(), ms: self.boot_ms() }
    }

    /// Milliseconds since the boot, suspended time included; nothing steps it.
    #[must_use]
    pub fn boot_ms(&self) -> i64 {
        self.0.face.shown().boot_ms
    }

    /// Whether commands may be judged by it.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.look(true).trusted
    }

    /// How it stands.
    #[must_use]
    pub fn state(&self) -> ClockState {
        let Look { moment, kernel, table_age, trusted } = self.look(true);
        ClockState {
            synchronised_by_kernel: kernel,
            table_agreed_seconds_ago: table_age.map(|age| age.as_secs()),
            trusted,
            quality: moment.quality,
            now: moment.wall,
            floor: self.known().floor.at(moment.boot.ms),
            boot_id: moment.boot.boot_id,
            boot_seconds: u64::try_from(moment.boot.ms / 1_000).unwrap_or(0),
        }
    }

    /// The floor, to be kept over a restart.
    #[must_use]
    pub fn floor(&self) -> Floor {
        let boot = self.look(false).moment.boot;
        let known = self.known();
        Floor { wall: known.floor.at(boot.ms), boot, right: known.right.is_some() }
    }

    /// What an earlier start kept. In another boot at least the time since this one began has passed; in the same boot
    /// it is known exactly, and a time that was right then is held over.
    pub fn resume(&self, kept: Floor) {
        let boot = self.boot();
        let mut known = self.known();
        let same_boot = kept.boot.boot_id == boot.boot_id && kept.boot.ms <= boot.ms;
        let anchor = Anchor { wall: kept.wall, boot_ms: if same_boot { kept.boot.ms } else { 0 } };
        if anchor.at(boot.ms) > known.floor.at(boot.ms) {
            known.floor = anchor;
        }
        if same_boot && kept.right && known.right.is_none() {
            known.right = Some(anchor);
        }
    }

    /// Whether what was stamped with a guess shall wait no longer: a table has been answering for [`GUESS_HELD_MAX`]
    /// and does not tell the time.
    #[must_use]
    pub fn guess_must_do(&self) -> bool {
        let now = self.boot_ms();
        let since = self.known().undated_since;
        since.is_some_and(|since| now.saturating_sub(since) >= as_ms(GUESS_HELD_MAX))
    }

    /// A response of the table carried this `Date`, or none that can be right; called by sync for every response.
    pub fn observe_table_date(&self, date: Option<Timestamp>) {
        let Shown { wall, boot_ms } = self.0.face.shown();
        let shows = self.moment().wall;
        let mut known = self.known();
        let Some(date) = date.filter(|date| *date >= self.0.not_before) else {
            known.undated_since.get_or_insert(boot_ms);
            return;
        };
        let agrees = apart(wall, date) <= TABLE_AGREES_WITHIN && wall >= self.0.not_before;
        known.table = agrees.then_some(Anchor { wall, boot_ms });
        known.undated_since = None;
        if !agrees {
            // A guess that agrees is better than a date in whole seconds.
            let wall = if apart(shows, date) <= TABLE_AGREES_WITHIN { shows } else { date };
            known.told = Some(Anchor { wall, boot_ms });
        }
    }

    fn look(&self, ask_kernel: bool) -> Look {
        let inner = &*self.0;
        let Shown { wall, boot_ms } = inner.face.shown();
        let mut known = self.known();
        let kernel = match known.kernel {
            Some((asked, said)) if !ask_kernel && (0..KERNEL_ASKED_EVERY_MS).contains(&(boot_ms - asked)) => said,
            _ => inner.face.synchronised(),
        };
        known.kernel = Some((boot_ms, kernel));
        let table_age = known.table.and_then(|agreed| agreed.age(wall, boot_ms));
        let possible = wall >= inner.not_before;
        let quality = match (possible, kernel, table_age, inner.rule) {
            (true, true, ..) => Quality::Synchronised,
            (true, false, Some(_), _) => Quality::Agreed,
            (true, false, None, Trust::Always) => Quality::Declared,
            _ if known.right.is_some() => Quality::HeldOver,
            _ if known.told.is_some() => Quality::Told,
            _ => Quality::Unsynchronised,
        };
        let wall = known.reckon(quality, wall, boot_ms);
        let trusted = possible && inner.rule.holds(kernel, table_age.is_some());
        let boot = BootTime { boot_id: known.boot_id, ms: boot_ms };
        Look { moment: Moment { wall, boot, quality }, kernel, table_age, trusted }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For tests: a set clock moves by these alone; a system clock stays as it is.
impl Clock {
    /// The wall clock is set, boot time does not notice.
    pub fn put(&self, now: Timestamp) {
        if let Face::Set(set) = &self.0.face {
            set.wall_ms.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    /// The wall clock is put forward or back.
    pub fn step(&self, by_ms: i64) {
        if let Face::Set(set) = &self.0.face {
            self.put(Timestamp::from_millis(set.wall_ms.load(Ordering::Relaxed).saturating_add(by_ms)));
        }
    }

    /// Time passes, on both clocks.
    pub fn pass(&self, time: Duration) {
        self.step(as_ms(time));
        self.pass_boot(time);
    }

    /// Time passes by boot time alone.
    pub fn pass_boot(&self, time: Duration) {
        if let Face::Set(set) = &self.0.face {
            set.boot_ms.fetch_add(as_ms(time), Ordering::Relaxed);
        }
    }

    /// The kernel calls the wall clock synchronised, or no longer.
    pub fn set_trusted(&self, yes: bool) {
        if let Face::Set(set) = &self.0.face {
            set.synchronised.store(yes, Ordering::Relaxed);
            self.known().kernel = None;
        }
    }

    /// The machine starts again: another boot, this wall clock, not synchronised, nothing learnt. What the store kept
    /// has to be given back by [`Self::resume`].
    pub fn reboot(&self, wall: Timestamp) {
        if let Face::Set(set) = &self.0.face {
            set.boots.fetch_add(1, Ordering::Relaxed);
            set.boot_ms.store(0, Ordering::Relaxed);
            self.put(wall);
            set.synchronised.store(false, Ordering::Relaxed);
            let floor = Anchor { wall: self.0.not_before, boot_ms: 0 };
            *self.known() = Known::at_boot(self.0.face.boot_id(), floor);
        }
    }
}

impl Known {
    fn at_boot(boot_id: BootId, floor: Anchor) -> Self {
        let (right, told, guess, table) = (None, None, None, None);
        Self { boot_id, floor, right, told, guess, table, undated_since: None, kernel: None }
    }

    /// The time of day of this quality, when the wall clock shows `wall`; remembers what was learnt.
    fn reckon(&mut self, quality: Quality, wall: Timestamp, boot_ms: i64) -> Timestamp {
        let follows = |reckoned: Timestamp| if apart(wall, reckoned) <= TABLE_AGREES_WITHIN { wall } else { reckoned };
        match quality {
            Quality::Synchronised | Quality::Agreed | Quality::Declared => {
                let anchor = Anchor { wall, boot_ms };
                (self.right, self.floor) = (Some(anchor), anchor);
                (self.told, self.guess, self.undated_since) = (None, None, None);
                wall
            }
            Quality::HeldOver => self.right.map_or(wall, |right| follows(right.at(boot_ms))),
            Quality::Told => self.told.map_or(wall, |told| told.at(boot_ms)),
            Quality::Unsynchronised => {
                let best = wall.max(self.floor.at(boot_ms));
                let guessed = self.guess.map(|guess| guess.at(boot_ms));
                match guessed.filter(|guessed| apart(*guessed, best) <= TABLE_AGREES_WITHIN) {
                    Some(guessed) => guessed,
                    None => {
                        self.guess = Some(Anchor { wall: best, boot_ms });
                        best
                    }
                }
            }
        }
    }
}

impl Anchor {
    /// The time of day at a time since the boot.
    fn at(self, boot_ms: i64) -> Timestamp {
        Timestamp::from_millis(self.wall.as_millis().saturating_add(boot_ms.saturating_sub(self.boot_ms)))
    }

    /// How old an agreement is; `None` if that is too old, or the wall clock was stepped since.
    fn age(self, wall: Timestamp, boot_ms: i64) -> Option<Duration> {
        let age = Duration::from_millis(u64::try_from(boot_ms.saturating_sub(self.boot_ms)).unwrap_or(0));
        let stepped = apart(wall, self.at(boot_ms)) > TABLE_AGREES_WITHIN;
        (age <= TABLE_COUNTS_FOR && !stepped).then_some(age)
    }
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

fn as_ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

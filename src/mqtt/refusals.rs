//! What came in and did not fit, and which commands were refused: counted by reason, logged sparsely, never kept.
//!
//! # Guarantees
//!
//! * Memory is fixed: one counter a reason, at most [`LOGGED_MAX`] devices with a log slot, at most [`PENDING_MAX`] unknown
//!   devices remembered. A million bad messages take no byte more than a thousand.
//! * The same holds for commands that fit and were refused all the same: one counter for each of the contract's reasons,
//!   and log slots of their own, so that neither kind of lines holds up the other.
//! * A device's refusals are logged at most once a minute ([`LOG_EVERY`]), with the number that was passed over. Devices
//!   beyond [`LOGGED_MAX`] in one minute share one slot, so a flood of ids writes at most 257 lines a minute.
//!
//! It decides nothing: whoever refuses a message acknowledges it as well.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floorgate_model::id::DEVICE_ID_MAX;
use floorgate_model::{CommandId, DeviceId, Reason, Timestamp};
use tokio::time::Instant;

use super::codec::{Refused, log_text};
use super::log_slots::LogSlots;
pub use super::log_slots::{LOG_EVERY, LOGGED_MAX};
use crate::clock::Clock;

/// Unknown devices remembered for `status`; further ones are counted alone.
pub const PENDING_MAX: usize = 256;
/// An unknown device that was silent this long gives its place to another when the list is full.
pub const PENDING_IDLE: Duration = Duration::from_secs(600);
macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $word:literal,)*) => {
        /// Why a message was refused: stable words, for counters and logs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Refusal {
            $($(#[$doc])* $variant,)*
        }

        impl Refusal {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

refusals! {
    /// More bytes than the contract allows.
    TooLarge = "too_large",
    /// No bytes at all.
    Empty = "empty",
    /// Not UTF-8.
    NotUtf8 = "not_utf8",
    /// Nested too deeply.
    TooDeep = "too_deep",
    /// Not JSON.
    NotJson = "not_json",
    /// JSON, but no object.
    NotObject = "not_object",
    /// An object or list where a reading belongs.
    NotFlat = "not_flat",
    /// A reading that is no number.
    NotNumeric = "not_numeric",
    /// A number that is not finite.
    NotFinite = "not_finite",
    /// A name no reading can have.
    BadName = "bad_name",
    /// More readings or parameters than allowed.
    TooMany = "too_many",
    /// Telemetry without a reading.
    NoReadings = "no_readings",
    /// A field is missing or has the wrong type.
    BadField = "bad_field",
    /// A configuration that is none.
    BadConfiguration = "bad_configuration",
    /// A time that cannot be read.
    BadTimestamp = "bad_timestamp",
    /// An id that is none, in the topic or in the payload.
    BadId = "bad_id",
    /// The payload names another device than the topic.
    DeviceMismatch = "device_mismatch",
    /// No topic of ours.
    ForeignTopic = "foreign_topic",
    /// No device of this id is attached.
    UnknownDevice = "unknown_device",
    /// A command that was retained: it says nothing about now.
    RetainedCommand = "retained_command",
    /// A command whose id belongs to a different one.
    DuplicateId = "duplicate_id",
    /// A payload that is no command.
    MalformedCommand = "malformed_command",
    /// Beyond its device's limit: a reading that was declared lost, a state or answer that a newer one replaced, an
    /// answer no command waits for.
    RateLimited = "rate_limited",
    /// Not refused: beyond its device's limit, and taken later.
    SlowedDown = "slowed_down",
    /// A command without a time to judge it by.
    MissingTimestamp = "missing_timestamp",
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Refusal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A device that speaks but is not attached.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PendingDevice {
    /// What it calls itself.
    pub device_id: DeviceId,
    /// When it was first heard since start.
    pub first_seen: Timestamp,
    /// When it was last heard.
    pub last_seen: Timestamp,
    /// How many messages it sent.
    pub count: u64,
}

/// Figures for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct RefusalSnapshot {
    /// All of them, since start.
    pub total: u64,
    /// By reason; reasons that never occurred are left out.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// Commands that were refused on arrival, by the contract's reason; reasons that never occurred are left out.
    pub commands: BTreeMap<&'static str, u64>,
    /// Unknown devices, at most [`PENDING_MAX`], in the order of their ids.
    pub pending: Vec<PendingDevice>,
    /// Messages of unknown devices that found no place in the list.
    pub pending_overflow: u64,
}

/// Where refusals are counted. Shared by links and endpoint.
#[derive(Debug)]
pub struct Refusals {
    clock: Clock,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    counts: BTreeMap<Refusal, u64>,
    lines: LogSlots,
    commands: BTreeMap<Reason, u64>,
    command_lines: LogSlots,
    pending: BTreeMap<DeviceId, Seen>,
    pending_overflow: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    first: Timestamp,
    last: Timestamp,
    last_instant: Instant,
    count: u64,
}

impl Refusals {
    /// Nothing refused yet. The clock dates unknown devices; log intervals run on the monotonic clock.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, book: Mutex::default() }
    }

    /// Counts one refusal, and logs it if this device (or text that stands for one) has not been logged for a minute.
    /// Tells whether it was logged.
    pub fn record(&self, device: &str, refused: &Refused) -> bool {
        let device = cut(device);
        let mut book = self.book();
        *book.counts.entry(refused.reason).or_default() += 1;
        let Some(line) = book.lines.line(device) else { return false };
        drop(book);
        let (device, passed_over) = (line.whose(device), line.passed_over);
        tracing::warn!(device_id = device, reason = %refused.reason, passed_over, "message refused: {}", refused.detail);
        true
    }

    /// Counts one command that was refused on arrival, and logs it if none of this device has been logged for a minute.
    /// One whose message was refused as such has its line already. Tells whether it was logged.
    pub fn command(&self, device: &DeviceId, id: Option<&CommandId>, reason: Reason, message: &str) -> bool {
        let mut book = self.book();
        *book.commands.entry(reason).or_default() += 1;
        if matches!(reason, Reason::Malformed | Reason::Retained) {
            return false;
        }
        let Some(line) = book.command_lines.line(device.as_str()) else { return false };
        drop(book);
        let (device, passed_over) = (line.whose(device.as_str()), line.passed_over);
        let id = id.map(tracing::field::display);
        tracing::warn!(device_id = device, command_id = id, %reason, passed_over, "command refused: {}", log_text(message));
        true
    }

    /// Counts one refusal without a word in the log: what is none of ours is no news.
    pub fn count(&self, reason: Refusal) {
        *self.book().counts.entry(reason).or_default() += 1;
    }

    /// Counts a message of a device that is not attached, and remembers the device. Tells whether it was logged.
    pub fn unknown_device(&self, device: &DeviceId) -> bool {
        self.book().remember(device, self.clock.now());
        let detail = "not attached; add it to the configuration, or see `floorgate status` for all pending devices";
        self.record(device.as_str(), &Refused::new(Refusal::UnknownDevice, detail))
    }

    /// The figures now.
    #[must_use]
    pub fn snapshot(&self) -> RefusalSnapshot {
        let book = self.book();
        let pending = book.pending.iter().map(|(id, seen)| PendingDevice {
            device_id: id.clone(),
            first_seen: seen.first,
            last_seen: seen.last,
            count: seen.count,
        });
        RefusalSnapshot {
            total: book.counts.values().sum(),
            by_reason: book.counts.iter().map(|(reason, n)| (reason.as_str(), *n)).collect(),
            commands: book.commands.iter().map(|(reason, n)| (reason.as_str(), *n)).collect(),
            pending: pending.collect(),
            pending_overflow: book.pending_overflow,
        }
    }

    /// Devices that have been attached meanwhile are no longer pending.
    pub fn forget_pending(&self, attached: impl Fn(&DeviceId) -> bool) {
        self.book().pending.retain(|id, _| !attached(id));
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counters stay usable whatever happened to a thread that held them.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn remember(&mut self, device: &DeviceId, at: Timestamp) {
        let now = Instant::now();
        if let Some(seen) = self.pending.get_mut(device) {
            (seen.last, seen.last_instant) = (at, now);
            seen.count += 1;
            return;
        }
        if self.pending.len() >= PENDING_MAX {
            let oldest = self.pending.iter().min_by_key(|(_, seen)| seen.last_instant);
            let idle = oldest.filter(|(_, seen)| now - seen.last_instant >= PENDING_IDLE).map(|(id, _)| id.clone());
            match idle {
                Some(id) => drop(self.pending.remove(&id)),
                None => {
                    self.pending_overflow += 1;
                    return;
                }
            }
        }
        self.pending.insert(device.clone(), Seen { first: at, last: at, last_instant: now, count: 1 });
    }
}

/// The beginning of a text, as long as an id may be: what stands where an id should may be anything.
fn cut(text: &str) -> &str {
    let end = (0..=DEVICE_ID_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusals() -> Refusals {
        Refusals::new(Clock::set_to(Timestamp::from_millis(1_000)))
    }

    fn bad() -> Refused {
        Refused::new(Refusal::NotJson, "x")
    }

    fn id(n: usize) -> DeviceId {
        DeviceId::new(&format!("D-{n}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_thousand_bad_messages_in_ten_minutes_are_ten_lines() {
        let refusals = refusals();
        let mut lines = 0;
        for _ in 0..100_000 {
            lines += usize::from(refusals.record("PRESS-1", &bad()));
            tokio::time::advance(Duration::from_millis(6)).await;
        }
        assert_eq!(lines, 10);
        assert_eq!(refusals.snapshot().total, 100_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_ids_fills_the_lists_and_no_more() {
        let refusals = refusals();
        let lines = (0..50_000).filter(|n| refusals.unknown_device(&id(*n))).count();
        assert_eq!(lines, LOGGED_MAX + 1);
        let snapshot = refusals.snapshot();
        assert_eq!(snapshot.by_reason["unknown_device"], 50_000);
        assert_eq!(snapshot.pending.len(), PENDING_MAX);
        assert_eq!(snapshot.pending_overflow, 50_000 - PENDING_MAX as u64);
        assert_eq!(refusals.book().lines.len(), LOGGED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_commands_are_counted_by_the_contracts_reason_and_a_device_has_a_line_a_minute() {
        let refusals = refusals();
        let mut lines = 0;
        for n in 0..6_000 {
            let reason = if n % 3 == 0 { Reason::QueueFull } else { Reason::Expired };
            lines += usize::from(refusals.command(&id(1), None, reason, &"x\n".repeat(10_000)));
            lines += usize::from(refusals.command(&id(1), None, Reason::Malformed, "told when it came in"));
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert_eq!(lines, 10, "in ten minutes");
        assert!(refusals.record(id(1).as_str(), &bad()), "the other kind has lines of its own");
        let flood = (0..50_000).filter(|n| refusals.command(&id(*n), None, Reason::CoolDown, "x")).count();
        assert!(flood <= LOGGED_MAX + 1, "{flood}");
        let snapshot = refusals.snapshot();
        let counts: Vec<_> = snapshot.commands.into_iter().collect();
        assert_eq!(counts, [("COOL_DOWN", 50_000), ("EXPIRED", 4_000), ("MALFORMED", 6_000), ("QUEUE_FULL", 2_000)]);
        assert_eq!(snapshot.total, 1, "messages that did not fit are counted apart");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_minute_slots_are_free_again() {
        let refusals = refusals();
        for n in 0..LOGGED_MAX {
            assert!(refusals.record(&format!("D-{n}"), &bad()));
        }
        assert!(refusals.record("one-more", &bad()), "the shared slot");
        assert!(!refusals.record("and-one-more", &bad()));
        tokio::time::advance(LOG_EVERY).await;
        assert!(refusals.record("and-one-more", &bad()));
        assert!(refusals.record("D-0", &bad()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_unknown_device_gives_its_place_to_a_new_one() {
        let refusals = refusals();
        for n in 0..PENDING_MAX {
            refusals.unknown_device(&id(n));
        }
        refusals.unknown_device(&id(9_999));
        assert!(!refusals.snapshot().pending.iter().any(|p| p.device_id == id(9_999)));
        tokio::time::advance(PENDING_IDLE).await;
        refusals.unknown_device(&id(9_999));
        assert!(refusals.snapshot().pending.iter().any(|p| p.device_id == id(9_999)));
        assert_eq!(refusals.snapshot().pending.len(), PENDING_MAX);
    }

    #[test]
    fn the_snapshot_says_who_is_pending_since_when() {
        let clock = Clock::set_to(Timestamp::from_millis(1_000));
        let refusals = Refusals::new(clock.clone());
        refusals.unknown_device(&id(1));
        clock.put(Timestamp::from_millis(5_000));
        refusals.unknown_device(&id(1));
        let json = serde_json::to_value(refusals.snapshot()).unwrap();
        assert_eq!(json["pending"][0]["device_id"], "D-1");
        assert_eq!(json["pending"][0]["first_seen"], "1970-01-01T00:00:01.000Z");
        assert_eq!(json["pending"][0]["last_seen"], "1970-01-01T00:00:05.000Z");
        assert_eq!(json["pending"][0]["count"], 2);
        refusals.forget_pending(|_| true);
        assert_eq!(refusals.snapshot().pending, []);
    }

    #[test]
    fn a_text_that_is_no_id_is_cut_at_a_character() {
        assert_eq!(cut(&"ä".repeat(100)).len(), 64);
        assert_eq!(cut("€".repeat(100).as_str()).len(), 63);
        assert_eq!(cut("abc"), "abc");
    }

    #[test]
    fn words_are_unlike_each_other() {
        let words: std::collections::BTreeSet<_> = Refusal::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(words.len(), Refusal::ALL.len());
    }
}

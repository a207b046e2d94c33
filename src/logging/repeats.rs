//! The same warning again and again is one line a minute.
//!
//! # Guarantees
//!
//! * A warning or an error with the same place, text and fields as one of the last [`TOLD_EVERY`] is not written. The next
//!   one after that is, and says how many were not.
//! * At most [`LINES_MAX`] different lines are remembered; beyond, the one told longest ago is forgotten, so a flood of
//!   ever new texts is written as it comes. Where texts hold what others send, the sender of the line bounds it
//!   (`mqtt/log_slots.rs`).
//! * Information is never held back: there is little of it, and an outcome may be the same as the one before.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// The same line is written at most this often.
pub const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Lines that are remembered.
pub const LINES_MAX: usize = 256;

/// Tells how many lines were held back before the one that follows.
type Teller = Box<dyn Fn(&str) + Send + Sync>;

/// Keeps repeated lines from the layers beside it.
pub(super) struct Repeats {
    lines: Mutex<Lines>,
    tell: Teller,
}

impl Repeats {
    pub(super) fn new(tell: Teller) -> Self {
        Self { lines: Mutex::default(), tell }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::WARN {
            return true;
        }
        let mut print = Print(DefaultHasher::new());
        event.metadata().callsite().hash(&mut print.0);
        event.record(&mut print);
        let held_back = {
            let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
            lines.take(print.0.finish(), Instant::now())
        };
        if let Some(count) = held_back.filter(|count| *count > 0) {
            (self.tell)(&format!("the next line came {count} more times since it was last written"));
        }
        held_back.is_some()
    }
}

/// What a line consists of, in a number.
struct Print(DefaultHasher);

impl Visit for Print {
    fn record_str(&mut self, field: &Field, value: &str) {
        (field.index(), value).hash(&mut self.0);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[derive(Debug, Default)]
struct Lines(HashMap<u64, Told>);

#[derive(Debug, Clone, Copy)]
struct Told {
    at: Instant,
    held_back: u64,
}

impl Lines {
    /// Whether the line may be written, and how many of it were not since it last was.
    fn take(&mut self, line: u64, now: Instant) -> Option<u64> {
        if let Some(told) = self.0.get_mut(&line) {
            if now.saturating_duration_since(told.at) < TOLD_EVERY {
                told.held_back += 1;
                return None;
            }
            told.at = now;
            return Some(std::mem::take(&mut told.held_back));
        }
        if self.0.len() >= LINES_MAX {
            let oldest = self.0.iter().min_by_key(|(_, told)| told.at).map(|(line, _)| *line);
            oldest.map(|line| self.0.remove(&line));
        }
        self.0.insert(line, Told { at: now, held_back: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn the_same_line_every_second_is_one_a_minute_with_the_number_held_back() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let told: Vec<_> = (0..180).filter_map(|n| lines.take(1, start + Duration::from_secs(n))).collect();
        assert_eq!(told, [0, 59, 59]);
        assert_eq!(lines.take(2, start), Some(0), "another line is another line");
    }

    #[test]
    fn a_flood_of_different_lines_takes_no_more_than_its_place() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        for n in 0..10_000 {
            assert_eq!(lines.take(n, start + Duration::from_millis(n)), Some(0));
        }
        assert_eq!(lines.0.len(), LINES_MAX);
    }

    /// Writes down what gets through.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<Level>>>);

    impl<S: Subscriber> Layer<S> for Seen {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.0.lock().unwrap().push(*event.metadata().level());
        }
    }

    #[test]
    fn what_is_told_of_one_device_does_not_hide_the_other_and_information_is_never_held_back() {
        let seen = Seen::default();
        let subscriber = tracing_subscriber::registry().with(Repeats::new(Box::new(|_| {}))).with(seen.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                for device in ["A", "B"] {
                    tracing::warn!(device_id = device, n = 1, "refused");
                    tracing::info!(device_id = device, "ended");
                }
            }
        });
        let levels = seen.0.lock().unwrap();
        assert_eq!(levels.iter().filter(|level| **level == Level::WARN).count(), 2);
        assert_eq!(levels.iter().filter(|level| **level == Level::INFO).count(), 6);
    }

    #[test]
    fn the_same_text_with_another_cause_is_another_line() {
        let seen = Seen::default();
        let subscriber = tracing_subscriber::registry().with(Repeats::new(Box::new(|_| {}))).with(seen.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..3 {
                for cause in ["connection refused", "no space left on device"] {
                    let error = std::io::Error::other(cause);
                    tracing::warn!(%error, "the table did not take it");
                }
            }
        });
        assert_eq!(seen.0.lock().unwrap().len(), 2);
    }
}

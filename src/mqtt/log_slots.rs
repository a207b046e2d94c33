//! Who may write a log line now: each name at most once a minute, and not more names than there is room for.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// A name's refusals are logged at most this often (contract §3).
pub const LOG_EVERY: Duration = Duration::from_secs(60);
/// Names with a log slot of their own; further ones share one.
pub const LOGGED_MAX: usize = 256;
/// Expired log slots are looked for at most this often, so a flood does not pay for it with every message.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The slots of one kind of lines. A flood of names writes at most [`LOGGED_MAX`] lines and one a minute.
#[derive(Debug, Default)]
pub(super) struct LogSlots {
    own: HashMap<String, Slot>,
    shared: Option<Slot>,
    swept_at: Option<Instant>,
}

/// A line that may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Line {
    /// How many were passed over since the slot's last one.
    pub(super) passed_over: u64,
    /// The slot is this name's alone.
    own: bool,
}

impl Line {
    /// Whose line it is: the name's, or many names'.
    pub(super) fn whose<'a>(&self, name: &'a str) -> &'a str {
        if self.own { name } else { "(many devices)" }
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    logged_at: Instant,
    passed_over: u64,
}

impl LogSlots {
    /// The line that may be written about `name`; `None`: not yet again.
    pub(super) fn line(&mut self, name: &str) -> Option<Line> {
        let now = Instant::now();
        let line = |own| move |passed_over| Line { passed_over, own };
        if let Some(slot) = self.own.get_mut(name) {
            return slot.due(now).map(line(true));
        }
        if self.own.len() >= LOGGED_MAX && self.swept_at.is_none_or(|at| now - at >= SWEEP_EVERY) {
            self.swept_at = Some(now);
            self.own.retain(|_, slot| now - slot.logged_at < LOG_EVERY);
        }
        let fresh = Slot { logged_at: now, passed_over: 0 };
        if self.own.len() < LOGGED_MAX {
            self.own.insert(name.to_owned(), fresh);
            return Some(line(true)(0));
        }
        match &mut self.shared {
            Some(slot) => slot.due(now).map(line(false)),
            None => {
                self.shared = Some(fresh);
                Some(line(false)(0))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.own.len()
    }
}

impl Slot {
    fn due(&mut self, now: Instant) -> Option<u64> {
        if now - self.logged_at < LOG_EVERY {
            self.passed_over += 1;
            return None;
        }
        self.logged_at = now;
        Some(std::mem::take(&mut self.passed_over))
    }
}

//! The pace of second tries.
//!
//! An item that fails for a reason of its own (its throttled key, its server error, a table that somebody has to create)
//! is tried again after a back-off of its lane's second tries, while first tries go on at once: it holds up nobody. Its
//! errors are counted at [`crate::sync::health::Health`], which alone decides what holds up the lane.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::sync::table::TableError;

/// First ceiling of the pause between second tries.
const BASE: Duration = Duration::from_millis(500);
/// Highest ceiling for what passes by itself.
const QUICK_MAX: Duration = Duration::from_secs(8);
/// Highest ceiling for what somebody has to repair.
const SLOW_MAX: Duration = Duration::from_secs(60);
/// Shortest pause.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// When second tries may go.
#[derive(Debug)]
pub(super) struct Pace {
    quick: Backoff,
    slow: Backoff,
    due: Option<Instant>,
}

impl Pace {
    pub(super) fn new() -> Self {
        let [quick, slow] = [QUICK_MAX, SLOW_MAX].map(|max| Backoff::new(BASE, max, Duration::ZERO));
        Self { quick, slow, due: None }
    }

    /// Whether second tries may go now.
    pub(super) fn is_due(&self) -> bool {
        self.due.is_none_or(|due| due <= Instant::now())
    }

    /// When they may go, if they have to wait.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.filter(|due| *due > Instant::now())
    }

    /// Whether an item failed since nothing was left, or since one went through.
    pub(super) fn is_failing(&self) -> bool {
        self.due.is_some()
    }

    /// One item failed. Several of one moment are one failure.
    pub(super) fn failed(&mut self, error: &TableError) {
        if !self.is_due() {
            return;
        }
        let backoff = if matches!(error, TableError::Misconfigured { .. }) { &mut self.slow } else { &mut self.quick };
        self.due = Some(Instant::now() + backoff.next_delay(fastrand::f64()).max(PAUSE_MIN));
    }

    /// Nothing is left to be tried again, or one of them went through.
    pub(super) fn over(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::table::{Cause, Scope};

    #[tokio::test(start_paused = true)]
    async fn failures_of_one_moment_are_one_and_what_needs_repair_waits_longer() {
        let passing = TableError::Retry { cause: Cause::Server, text: String::new() };
        let mut pace = Pace::new();
        assert!(pace.is_due());
        for _ in 0..100 {
            pace.failed(&passing);
        }
        assert!(pace.due().is_some_and(|due| due <= Instant::now() + BASE), "one failure's pause");
        let mut longest = [Duration::ZERO; 2];
        let missing = TableError::Misconfigured { scope: Scope::Table, text: String::new() };
        for (error, longest) in [&passing, &missing].into_iter().zip(&mut longest) {
            pace.over();
            for _ in 0..200 {
                pace.failed(error);
                let due = pace.due().unwrap();
                *longest = (*longest).max(due - Instant::now());
                tokio::time::sleep_until(due).await;
                assert!(pace.is_due());
            }
        }
        assert!(longest[0] <= QUICK_MAX && longest[0] > QUICK_MAX / 2, "{longest:?}");
        assert!(longest[1] <= SLOW_MAX && longest[1] > SLOW_MAX / 2, "{longest:?}");
    }
}

//! What the log says of failures of the tables: when one begins, when it becomes another, and when it is over.
//!
//! # Guarantees
//!
//! * There is a slot for each cause that holds up everything, and for each lane and cause that holds up one lane: 12 in
//!   all, each with the last text, cut to [`TEXT_MAX`] bytes. That is all the memory.
//! * A slot is told when its failure begins; one that somebody has to repair also when its text becomes another. Texts of
//!   what passes by itself differ by table and moment, and say nothing new. A slot is told at most once in [`TOLD_EVERY`],
//!   with the number of failures that were passed over; a failure that begins sooner is told then if it still lasts.
//! * The end is told, with how long it took and how many tries, if the beginning was.
//!
//! So an outage of a week is a line or two at its beginning and one at its end.
//!
//! It decides nothing and writes no log itself.

use std::time::Duration;

use tokio::time::Instant;

use super::health::{LaneName, concerns_everything};
use super::table::{Cause, TableError};

/// A cause is told at most this often.
pub(super) const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Longest text that is kept, bytes.
pub(super) const TEXT_MAX: usize = 512;

/// Causes that hold up everything, and causes that hold up one lane.
const CAUSES: usize = 3;
const LANES: usize = 3;

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// Every lane is held up.
    Everything,
    /// This lane alone.
    Lane(LaneName),
}

impl What {
    /// What an error in this lane holds up.
    pub(super) fn of(lane: LaneName, error: &TableError) -> Self {
        if concerns_everything(error) { Self::Everything } else { Self::Lane(lane) }
    }

    fn row(self) -> usize {
        match self {
            Self::Everything => 0,
            Self::Lane(lane) => 1 + lane as usize,
        }
    }
}

/// The beginning of a failure, or that it became another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begun {
    /// Failures of this cause since its last line.
    pub(super) passed_over: u64,
}

/// The end of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Over {
    /// How long it lasted.
    pub(super) lasted: Duration,
    /// How many requests failed.
    pub(super) tries: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// Of the failure that lasts; `None` while there is none.
    since: Option<Instant>,
    tries: u64,
    /// The text it was told with, if this failure was told.
    told: Option<String>,
    text: String,
    told_at: Option<Instant>,
    passed_over: u64,
}

impl Slot {
    fn failed(&mut self, text: &str, texts_matter: bool, now: Instant) -> Option<Begun> {
        self.since.get_or_insert(now);
        self.tries += 1;
        text.clone_into(&mut self.text);
        let known = self.told.as_ref().is_some_and(|told| !texts_matter || told == text);
        let soon = self.told_at.is_some_and(|at| now.duration_since(at) < TOLD_EVERY);
        if known || soon {
            self.passed_over += 1;
            return None;
        }
        (self.told_at, self.told) = (Some(now), Some(text.to_owned()));
        Some(Begun { passed_over: std::mem::take(&mut self.passed_over) })
    }
}

/// All slots.
#[derive(Debug, Default)]
pub(super) struct Outages {
    slots: [[Slot; CAUSES]; 1 + LANES],
}

impl Outages {
    /// A failure; answers whether it is to be told.
    pub(super) fn failed(&mut self, what: What, error: &TableError, now: Instant) -> Option<Begun> {
        let cause = match error {
            TableError::Retry { cause: Cause::Network | Cause::Server, .. } => 0,
            TableError::Retry { cause: Cause::Timeout | Cause::Throttled, .. } => 1,
            TableError::Misconfigured { .. } | TableError::Permanent { .. } => 2,
        };
        let text = error.to_string();
        let texts_matter = !matches!(error, TableError::Retry { .. });
        self.slots[what.row()][cause].failed(cut(&text), texts_matter, now)
    }

    /// It works again, for whatever cause it did not; answers whether that is to be told.
    pub(super) fn over(&mut self, what: What, now: Instant) -> Option<Over> {
        let slots = &mut self.slots[what.row()];
        let since = slots.iter().filter_map(|slot| slot.since).min()?;
        let tries = slots.iter().map(|slot| slot.tries).sum();
        let told = slots.iter().any(|slot| slot.told.is_some());
        for slot in slots {
            (slot.since, slot.tries, slot.told) = (None, 0, None);
        }
        told.then(|| Over { lasted: now.duration_since(since), tries })
    }

    /// What fails now, the most important first: everything before lanes, lanes in their order, what somebody has to
    /// repair before what passes.
    pub(super) fn worst(&self) -> Option<&str> {
        let slots = self.slots.iter().flat_map(|causes| causes.iter().rev());
        slots.filter(|slot| slot.since.is_some()).map(|slot| slot.text.as_str()).next()
    }
}

/// The beginning of a text, cut at a character.
pub(super) fn cut(text: &str) -> &str {
    let end = (0..=TEXT_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::table::Scope;

    const ALL: [LaneName; 3] = [LaneName::Executions, LaneName::States, LaneName::History];

    fn retry(cause: Cause, text: &str) -> TableError {
        TableError::Retry { cause, text: text.to_owned() }
    }

    fn broken(scope: Scope, text: &str) -> TableError {
        TableError::Misconfigured { scope, text: text.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_of_a_week_in_all_lanes_is_two_lines_and_one_at_its_end() {
        let mut outages = Outages::default();
        let (mut lines, mut tries) = (0, 0);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(7 * 86_400) {
            for lane in ALL {
                let cause = if fastrand::bool() { Cause::Network } else { Cause::Timeout };
                let error = retry(cause, &format!("table `{lane:?}` after {:?}", start.elapsed()));
                let what = What::of(lane, &error);
                assert_eq!(what, What::Everything);
                lines += usize::from(outages.failed(what, &error, Instant::now()).is_some());
                tries += 1;
            }
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        assert_eq!(lines, 2, "one for the network, one for the time-outs");
        assert!(outages.worst().is_some());
        let over = outages.over(What::Everything, Instant::now()).unwrap();
        assert_eq!(over, Over { lasted: start.elapsed(), tries });
        assert_eq!(outages.over(What::Everything, Instant::now()), None);
        assert_eq!(outages.worst(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_comes_and_goes_is_told_once_a_minute_with_what_was_passed_over() {
        let mut outages = Outages::default();
        let what = What::Lane(LaneName::States);
        let (mut begun, mut over) = (Vec::new(), 0);
        for _ in 0..600 {
            begun.extend(outages.failed(what, &retry(Cause::Throttled, "too much"), Instant::now()));
            over += usize::from(outages.over(what, Instant::now()).is_some());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let passed: Vec<_> = begun.iter().map(|line| line.passed_over).collect();
        assert_eq!(passed, [0, 59, 59, 59, 59, 59, 59, 59, 59, 59]);
        assert_eq!(over, 10, "only what began in the log ends there");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_to_be_repaired_is_told_when_it_becomes_another_and_hides_nothing() {
        let mut outages = Outages::default();
        let what = What::Lane(LaneName::History);
        let mut fails = |text: &str| outages.failed(what, &broken(Scope::Table, text), Instant::now()).is_some();
        assert!(fails("no such table"));
        assert!(!fails("no such table"));
        assert!(!fails("access denied"), "another, but within the minute");
        tokio::time::advance(TOLD_EVERY).await;
        assert!(fails("access denied"), "still so");
        tokio::time::advance(TOLD_EVERY * 10).await;
        assert!(!fails("access denied"), "nothing new");
        assert!(outages.failed(What::Lane(LaneName::States), &retry(Cause::Server, "500"), Instant::now()).is_some());
        assert_eq!(outages.worst(), Some("500; trying again"), "states come before history");
        let all = broken(Scope::Everything, "the credentials have expired");
        assert!(outages.failed(What::of(LaneName::History, &all), &all, Instant::now()).is_some());
        assert_eq!(outages.worst(), Some("the credentials have expired"));
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        assert_eq!(cut(&"€".repeat(1_000)).len(), 510);
        assert_eq!(cut("short"), "short");
    }
}

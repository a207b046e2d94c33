//! The second look at an outcome: a tool may write its optimistic state just after it sent the command, later than we
//! wrote the outcome.
//!
//! * Every outcome is looked at once more [`SETTLE_AFTER`] after it was written; one whose item is newer than what we
//!   know, or fails, again after as long, at most [`SETTLE_TRIES`] times. A table that cannot be reached costs no try.
//! * The queue lives in memory. A start looks at the outcomes of the last hour again, at most [`LOOK_BACK_MAX`]: one
//!   whose second look a stop or a crash forgot is among them, and a look at any other changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::ExecutionRecord;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::Context;
use super::pace::Pace;
use crate::shadow::store::StoreError;
use crate::sync::health::{LaneName, concerns_everything};
use crate::sync::source::SyncSource;
use crate::sync::table::{CloudTable, Settled, TableError};

const LANE: LaneName = LaneName::Executions;
/// From an outcome to its second look, and between two of them.
pub(super) const SETTLE_AFTER: Duration = Duration::from_secs(2);
/// Second looks that fail or come too early; then it is left to the device's next state.
const SETTLE_TRIES: u32 = 30;
/// Outcomes that wait for their second look; the oldest is dropped beyond.
const SETTLE_MAX: usize = 1_000;
/// A start looks again at outcomes this young. No command lives longer, so no tool writes later for one.
const LOOK_BACK: Duration = Duration::from_secs(3_600);
/// Outcomes that a start looks at again, the newest.
const LOOK_BACK_MAX: usize = 200;

/// One outcome that waits.
#[derive(Debug)]
struct Second {
    due: Instant,
    tries: u32,
    record: ExecutionRecord,
}

/// The outcomes that wait for their second look, by due time.
pub(super) struct Settling<S, T> {
    context: Arc<Context<S, T>>,
    waiting: VecDeque<Second>,
    pace: Pace,
    looked_back: bool,
}

impl<S: SyncSource, T: CloudTable> Settling<S, T> {
    pub(super) fn new(context: Arc<Context<S, T>>) -> Self {
        Self { context, waiting: VecDeque::new(), pace: Pace::new(), looked_back: false }
    }

    /// An outcome was written.
    pub(super) fn add(&mut self, record: ExecutionRecord) {
        self.wait(0, record);
    }

    /// Whether a look failed by itself and is to be repeated.
    pub(super) fn is_failing(&self) -> bool {
        self.pace.is_failing() && !self.waiting.is_empty()
    }

    /// When the next look is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let next = self.waiting.front()?.due;
        Some(self.pace.due().map_or(next, |due| due.max(next)))
    }

    /// One look at what is due, as many as the lane may have in flight. Answers whether more is due.
    pub(super) async fn step(&mut self) -> Result<bool, StoreError> {
        self.look_back().await?;
        let now = Instant::now();
        if !self.pace.is_due() {
            return Ok(false);
        }
        let window = self.context.health.window(LANE);
        let mut batch = Vec::new();
        while batch.len() < window
            && let Some(second) = self.waiting.pop_front_if(|second| second.due <= now)
        {
            batch.push(second);
        }
        let context = Arc::clone(&self.context);
        let answers = join_all(batch.iter().map(|second| context.settle(&second.record))).await;
        let mut failed = Ok(());
        for (second, answer) in batch.into_iter().zip(answers) {
            match answer {
                Ok(answer) => self.took(second, answer),
                Err(error) => {
                    // The store's: no try of the table.
                    self.wait(second.tries, second.record);
                    failed = Err(error);
                }
            }
        }
        failed?;
        Ok(self.due().is_some_and(|due| due <= now))
    }

    fn took(&mut self, second: Second, answer: Result<Settled, TableError>) {
        let health = &self.context.health;
        let mut tries = second.tries + 1;
        match answer {
            Ok(Settled::Done) => {
                health.succeeded(LANE, 0);
                self.pace.over();
                return;
            }
            Ok(Settled::Again) => health.succeeded(LANE, 0),
            Err(error @ TableError::Permanent { .. }) => return health.refused(&error),
            Err(error) if concerns_everything(&error) => {
                health.failed(LANE, &error);
                tries = second.tries;
            }
            Err(error) => {
                health.failed_alone(LANE, &error);
                self.pace.failed(&error);
            }
        }
        if tries < SETTLE_TRIES {
            self.wait(tries, second.record);
        }
    }

    fn wait(&mut self, tries: u32, record: ExecutionRecord) {
        if self.waiting.len() >= SETTLE_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Second { due: Instant::now() + SETTLE_AFTER, tries, record });
    }

    async fn look_back(&mut self) -> Result<(), StoreError> {
        if self.looked_back {
            return Ok(());
        }
        let newest = self.context.source.newest_executions(LOOK_BACK_MAX).await?;
        self.looked_back = true;
        let since = self.context.health.now().saturating_sub(LOOK_BACK);
        // A clock that was put back makes them young: rather one look too many.
        let young = |record: &ExecutionRecord| record.completed_at.is_some_and(|at| at >= since);
        for record in newest.into_iter().rev().filter(|record| record.status.is_terminal()).filter(young) {
            self.wait(0, record);
        }
        Ok(())
    }
}

impl<S: SyncSource, T: CloudTable> Context<S, T> {
    async fn settle(&self, record: &ExecutionRecord) -> Result<Result<Settled, TableError>, StoreError> {
        let view = self.source.device(&record.device_id).await?;
        let view = view.filter(|view| view.taken_over_by.is_none());
        Ok(self.table.settle(record, view.as_ref()).await)
    }
}

//! Execution records to `iot-commands` and `iot-devices`: each at once, none behind another device's.
//!
//! # Turns
//!
//! Numbers of the outbox only grow. What lies above the highest number tried has never been tried and goes first, at
//! once, outcomes of accepted commands before refusals: as all outcomes above the mark are tried before the first refusal,
//! the mark passes over refusals alone. What lies below and is still there failed, or waits for its device's item: it is tried again in rounds, from the
//! lowest number to the highest and around, so that every record gets its turn however many fail for good. The rounds
//! have a pace of their own, so that no failure that is a record's own delays another record's first try; what is too
//! much at once, or cannot be reached, holds up all. Memory does not grow with what fails.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::pace::Pace;
use super::settling::Settling;
use super::{Context, Step, StoreTrouble};
use crate::shadow::store::StoreError;
use crate::shadow::{OutboxEntry, OutboxOrder};
use crate::sync::budget::Spending;
use crate::sync::health::{LaneName, concerns_everything};
use crate::sync::source::SyncSource;
use crate::sync::table::{Cause, CloudTable, ExecutionWritten, TableError};

const LANE: LaneName = LaneName::Executions;
/// Units of a record: it goes into two tables.
const RECORD_UNITS: f64 = 2.0;
/// Records taken at one look: so many that were never tried, and so many of the round.
const PEEK: usize = 64;
/// How long a record waits for its device's first state, and between two tries.
const NO_ITEM_RETRY: Duration = Duration::from_secs(2);
/// Tries for a record whose device never gets an item (removed from the configuration); then `iot-commands` alone has it.
const NO_ITEM_TRIES: u32 = 30;
/// A round is made this often even if nothing is known to be left: after a failure of its disk the store may give a
/// number again that it had lost.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Below every number of the outbox.
const FROM_START: i64 = i64::MIN;

/// First try or a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Again,
}

/// What became of some records.
#[derive(Debug, Clone, Copy, Default)]
struct Tried {
    /// Some have to be repeated.
    failed: bool,
    /// By a failure that holds up the lane.
    held: bool,
}

/// A record whose device has no item yet.
#[derive(Debug, Clone, Copy)]
struct Homeless {
    tries: u32,
    next: Instant,
    seen_in_round: u64,
}

/// The lane's memory. All of it may be lost: the store still has what is not confirmed.
pub(in crate::sync) struct Executions<S, T> {
    context: Arc<Context<S, T>>,
    /// The highest number tried.
    tried_to: i64,
    /// Something may be left at or below it.
    left: bool,
    next_sweep: Instant,
    /// Where the round stands, and which it is.
    round_at: i64,
    round: u64,
    pace: Pace,
    /// By number. As many as the outbox holds; a round forgets those it did not meet.
    homeless: HashMap<i64, Homeless>,
    settling: Settling<S, T>,
}

impl<S: SyncSource, T: CloudTable> Executions<S, T> {
    pub(in crate::sync) fn new(context: Arc<Context<S, T>>) -> Self {
        Self {
            settling: Settling::new(Arc::clone(&context)),
            context,
            tried_to: FROM_START,
            left: false,
            next_sweep: Instant::now() + SWEEP_EVERY,
            round_at: FROM_START,
            round: 0,
            pace: Pace::new(),
            homeless: HashMap::new(),
        }
    }

    /// Writes until nothing is left, then waits for more. Ends when the store is closed.
    pub(in crate::sync) async fn run(mut self) {
        let mut trouble = StoreTrouble::new(LANE);
        loop {
            self.context.health.admitted(LANE).await;
            let step = self.step(self.pace.is_due()).await;
            if step.is_ok() {
                trouble.over();
            }
            match step {
                Ok(Step::More) => {}
                Ok(Step::Idle) => {
                    let due = self.settling.due().into_iter().chain(self.pace.due().filter(|_| self.left));
                    let wake = due.chain([super::idle_poll()]).min();
                    tokio::select! {
                        () = self.context.source.wakeups().tables.notified() => {}
                        () = tokio::time::sleep_until(wake.unwrap_or_else(super::idle_poll)) => {}
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => trouble.pause(&error).await,
            }
        }
    }

    /// One look at the outbox and what can be written of it; `again` also goes on with the round of later tries.
    pub(in crate::sync) async fn step(&mut self, again: bool) -> Result<Step, StoreError> {
        let context = Arc::clone(&self.context);
        let fresh = context.source.peek_executions(OutboxOrder::OutcomesFirst, self.tried_to, PEEK).await?;
        let (full, any) = (fresh.len() >= PEEK, !fresh.is_empty());
        let (old, old_full) = if again { self.next_of_round().await? } else { (Vec::new(), false) };
        context.health.waiting(LANE, fresh.len() + old.len());

        // Whatever breaks this off, a round will find what was left.
        self.left |= any;
        let mut tried = self.write(fresh, Turn::First).await?;
        let mut more = full;
        if !tried.held && !old.is_empty() {
            more |= old_full;
            let later = self.write(old, Turn::Again).await?;
            tried = Tried { failed: tried.failed | later.failed, held: later.held };
        }
        if !tried.failed {
            context.health.widen(LANE, self.pace.is_failing() || self.settling.is_failing());
        }
        if !tried.held {
            more |= self.settling.step().await?;
        }
        Ok(if more || tried.failed { Step::More } else { Step::Idle })
    }

    /// The next records of the round, without those that wait for their device; and whether there may be more behind.
    async fn next_of_round(&mut self) -> Result<(Vec<OutboxEntry>, bool), StoreError> {
        let now = Instant::now();
        if now >= self.next_sweep {
            (self.left, self.next_sweep) = (true, now + SWEEP_EVERY);
        }
        let tried_to = self.tried_to;
        let mut wrapped = false;
        while self.left {
            let mut old = self.context.source.peek_executions(OutboxOrder::ByNumber, self.round_at, PEEK).await?;
            let full = old.len() >= PEEK;
            old.retain(|entry| entry.seq <= tried_to);
            let Some(last) = old.last().map(|entry| entry.seq) else {
                self.left = self.round_at != FROM_START;
                self.end_round();
                if std::mem::replace(&mut wrapped, true) {
                    // Whatever is left waits.
                    break;
                }
                continue;
            };
            let (homeless, round) = (&mut self.homeless, self.round);
            old.retain(|entry| match homeless.get_mut(&entry.seq) {
                Some(waiting) => {
                    waiting.seen_in_round = round;
                    waiting.next <= now
                }
                None => true,
            });
            if !old.is_empty() {
                return Ok((old, full));
            }
            self.round_at = last;
        }
        Ok((Vec::new(), false))
    }

    fn end_round(&mut self) {
        let round = self.round;
        self.homeless.retain(|_, waiting| waiting.seen_in_round == round);
        (self.round, self.round_at) = (round + 1, FROM_START);
        if !self.left {
            self.pace.over();
        }
    }

    /// Writes records, as many at a time as the lane may; one alone, as a probe, while it fails.
    async fn write(&mut self, entries: Vec<OutboxEntry>, turn: Turn) -> Result<Tried, StoreError> {
        let context = Arc::clone(&self.context);
        let probing = turn == Turn::Again && self.pace.is_failing();
        let window = if probing { 1 } else { context.health.window(LANE) };
        let mut answers = futures_util::stream::iter(entries)
            .map(|entry| {
                let context = &context;
                async move {
                    context.health.budget.spend(Spending::Outcome, RECORD_UNITS).await;
                    (context.write(&entry).await, entry)
                }
            })
            .buffer_unordered(window);
        let mut tried = Tried::default();
        while let Some((answer, entry)) = answers.next().await {
            let position = if turn == Turn::First { &mut self.tried_to } else { &mut self.round_at };
            *position = (*position).max(entry.seq);
            let one = self.took(answer?, entry, turn).await?;
            tried = Tried { failed: tried.failed | one.failed, held: tried.held | one.held };
            if window == 1 && (one.held || (probing && one.failed)) {
                break;
            }
        }
        Ok(tried)
    }

    async fn took(
        &mut self,
        answer: Result<ExecutionWritten, TableError>,
        entry: OutboxEntry,
        turn: Turn,
    ) -> Result<Tried, StoreError> {
        let context = Arc::clone(&self.context);
        match answer {
            Ok(ExecutionWritten::NoDeviceItem) => {
                context.health.succeeded(LANE, 0);
                if turn == Turn::Again {
                    self.pace.over();
                }
                let next = Instant::now() + NO_ITEM_RETRY;
                let new = Homeless { tries: 0, next, seen_in_round: self.round };
                let waiting = self.homeless.entry(entry.seq).or_insert(new);
                (waiting.tries, waiting.next) = (waiting.tries + 1, next);
                if waiting.tries <= NO_ITEM_TRIES {
                    return Ok(Tried::default());
                }
            }
            Ok(ExecutionWritten::Done) => context.health.succeeded(LANE, 1),
            Err(error @ TableError::Permanent { .. }) => {
                let record = &entry.record;
                tracing::error!(device_id = %record.device_id, command_id = %record.command_id, %error, "record given up");
                context.health.refused(&error);
            }
            Err(error) => return Ok(self.failed(&error)),
        }
        if turn == Turn::Again {
            self.pace.over();
        }
        self.homeless.remove(&entry.seq);
        fail_point!(BeforeExecutionConfirm);
        context.source.confirm_executions(vec![entry.seq]).await?;
        fail_point!(AfterExecutionConfirm);
        if entry.record.status.is_terminal() {
            self.settling.add(entry.record);
        }
        Ok(Tried::default())
    }

    /// What is too much at once or concerns everything holds up the lane; any other failure is the record's own.
    fn failed(&mut self, error: &TableError) -> Tried {
        let health = &self.context.health;
        let held = concerns_everything(error) || matches!(error, TableError::Retry { cause: Cause::Throttled, .. });
        if held {
            health.failed(LANE, error);
        } else {
            health.failed_alone(LANE, error);
            self.pace.failed(error);
        }
        Tried { failed: true, held }
    }
}

impl<S: SyncSource, T: CloudTable> Context<S, T> {
    async fn write(&self, entry: &OutboxEntry) -> Result<Result<ExecutionWritten, TableError>, StoreError> {
        // Only an outcome is confirmed or taken back on the device's item.
        let ended = entry.record.status.is_terminal();
        let view = if ended { self.source.device(&entry.record.device_id).await? } else { None };
        let view = view.filter(|view| view.taken_over_by.is_none());
        Ok(self.table.write_execution(entry, view.as_ref()).await)
    }
}

//! Execution records to `iot-commands` and `iot-devices`: each at once, none behind another device's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::ExecutionRecord;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::{Context, Step, StoreTrouble};
use crate::shadow::OutboxEntry;
use crate::shadow::store::StoreError;
use crate::sync::health::LaneName;
use crate::sync::source::SyncSource;
use crate::sync::table::{CloudTable, ExecutionWritten, TableError};

const LANE: LaneName = LaneName::Executions;
/// Records taken at one look.
const PEEK: usize = 64;
/// A tool may write its optimistic state just after it sent the command; so long after an outcome it is looked at again.
pub(super) const SETTLE_AFTER: Duration = Duration::from_secs(2);
/// A second look that fails is given up this long after it was due; the device's next state does its work.
const SETTLE_UNTIL: Duration = Duration::from_secs(60);
/// Outcomes that wait for their second look; the oldest is dropped beyond.
const SETTLE_MAX: usize = 1_000;
/// How long a record waits for its device's first state, and between two tries.
const NO_ITEM_RETRY: Duration = Duration::from_secs(2);
/// Tries for a record whose device never gets an item (removed from the configuration); then `iot-commands` alone has it.
const NO_ITEM_TRIES: u32 = 30;

/// The lane's memory. All of it may be lost: the store still has what is not confirmed.
pub(in crate::sync) struct Executions<S, T> {
    context: Arc<Context<S, T>>,
    /// Failed last time: go behind the others.
    suspects: HashSet<i64>,
    /// No item yet: tries so far, next one.
    homeless: HashMap<i64, (u32, Instant)>,
    /// Outcomes for a second look, by due time.
    settling: VecDeque<(Instant, ExecutionRecord)>,
}

impl<S: SyncSource, T: CloudTable> Executions<S, T> {
    pub(in crate::sync) fn new(context: Arc<Context<S, T>>) -> Self {
        let (suspects, homeless, settling) = (HashSet::new(), HashMap::new(), VecDeque::new());
        Self { context, suspects, homeless, settling }
    }

    /// Writes until nothing is left, then waits for more. Ends when the store is closed.
    pub(in crate::sync) async fn run(mut self) {
        let mut trouble = StoreTrouble::new(LANE);
        loop {
            self.context.health.admitted(LANE).await;
            let step = self.step().await;
            if step.is_ok() {
                trouble.over();
            }
            match step {
                Ok(Step::More) => {}
                Ok(Step::Idle) => {
                    let settle = self.settling.front().map_or_else(super::idle_poll, |(due, _)| *due);
                    tokio::select! {
                        () = self.context.source.wakeups().tables.notified() => {}
                        () = tokio::time::sleep_until(settle.min(super::idle_poll())) => {}
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => trouble.pause(&error).await,
            }
        }
    }

    /// One look at the outbox and what can be written of it.
    pub(in crate::sync) async fn step(&mut self) -> Result<Step, StoreError> {
        let context = Arc::clone(&self.context);
        let limit = PEEK + self.homeless.len();
        let mut entries = context.source.peek_executions(limit).await?;
        context.health.waiting(LANE, entries.len());
        let full = entries.len() >= limit;
        let now = Instant::now();
        self.homeless.retain(|seq, _| entries.iter().any(|entry| entry.seq == *seq));
        entries.retain(|entry| self.homeless.get(&entry.seq).is_none_or(|(_, next)| *next <= now));
        entries.sort_by_key(|entry| self.suspects.contains(&entry.seq));
        self.suspects.clear();

        let window = context.health.window(LANE);
        let table = &context.table;
        let mut answers = futures_util::stream::iter(entries)
            .map(|entry| async move { (table.write_execution(&entry).await, entry) })
            .buffer_unordered(window);
        let mut failed = false;
        while let Some((answer, entry)) = answers.next().await {
            failed |= self.took(answer, entry).await?;
            if failed && window == 1 {
                break;
            }
        }
        drop(answers);
        failed |= self.settle_due().await?;
        if !failed {
            context.health.widen(LANE);
        }
        Ok(if full || failed { Step::More } else { Step::Idle })
    }

    /// Whether it failed and has to be repeated.
    async fn took(
        &mut self,
        answer: Result<ExecutionWritten, TableError>,
        entry: OutboxEntry,
    ) -> Result<bool, StoreError> {
        let context = Arc::clone(&self.context);
        match answer {
            Ok(ExecutionWritten::NoDeviceItem) => {
                context.health.succeeded(LANE, 0);
                let (tries, next) = self.homeless.entry(entry.seq).or_insert_with(|| (0, Instant::now()));
                *tries += 1;
                *next = Instant::now() + NO_ITEM_RETRY;
                if *tries <= NO_ITEM_TRIES {
                    return Ok(false);
                }
                self.homeless.remove(&entry.seq);
            }
            Ok(ExecutionWritten::Done) => {
                context.health.succeeded(LANE, 1);
                self.homeless.remove(&entry.seq);
            }
            Err(error @ TableError::Permanent { .. }) => {
                let record = &entry.record;
                tracing::error!(device = %record.device_id, command = %record.command_id, %error, "record given up");
                context.health.refused(&error);
            }
            Err(error) => {
                context.health.failed(LANE, &error);
                self.suspects.insert(entry.seq);
                return Ok(true);
            }
        }
        fail_point!(BeforeExecutionConfirm);
        context.source.confirm_executions(vec![entry.seq]).await?;
        fail_point!(AfterExecutionConfirm);
        if entry.record.status.is_terminal() {
            if self.settling.len() >= SETTLE_MAX {
                self.settling.pop_front();
            }
            self.settling.push_back((Instant::now() + SETTLE_AFTER, entry.record));
        }
        Ok(false)
    }

    async fn settle_due(&mut self) -> Result<bool, StoreError> {
        let context = Arc::clone(&self.context);
        let now = Instant::now();
        while let Some((due, record)) = self.settling.pop_front_if(|(due, _)| *due <= now) {
            let view = match context.source.device(&record.device_id).await {
                Ok(view) => view.filter(|view| view.taken_over_by.is_none()),
                Err(error) => {
                    self.settling.push_front((due, record));
                    return Err(error);
                }
            };
            match context.table.settle(&record, view.as_ref()).await {
                Ok(()) => context.health.succeeded(LANE, 0),
                Err(error @ TableError::Permanent { .. }) => context.health.refused(&error),
                Err(error) => {
                    context.health.failed(LANE, &error);
                    if now.duration_since(due) < SETTLE_UNTIL {
                        self.settling.push_front((due, record));
                    }
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

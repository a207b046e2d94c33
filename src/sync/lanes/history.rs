//! Closed blocks to `iot-telemetry-history`, in batches; a poisoned one is found and put aside.
//!
//! Oldest first, but with a backlog the newest go before it: a block that was just closed ([`LIVE_AGE`]) waits neither
//! behind a day of older ones nor for the ramp at which those begin ([`crate::sync::budget`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{Context, Step, StoreTrouble};
use crate::shadow::HistoryBlock;
use crate::shadow::store::StoreError;
use crate::sync::budget::Spending;
use crate::sync::health::LaneName;
use crate::sync::source::SyncSource;
use crate::sync::table::{BATCH_ITEMS_MAX, Cause, CloudTable, TableError};

const LANE: LaneName = LaneName::History;
/// Batches in flight at most: enough to hide a round trip, few enough to leave the link to live data.
const BATCHES_MAX: usize = 4;
/// Rounds of batches in one look: few enough that a block just closed is soon among them.
const ROUNDS: usize = 2;
/// A block whose first sample is younger than this is live: blocks close after 60 s.
const LIVE_AGE: Duration = Duration::from_secs(180);
/// Looks are at least this far apart when little waits: a record that grows until it is sent is not sent too often.
const LOOK_SPACING: Duration = Duration::from_millis(500);
/// How long the lane waits for a block when nobody tells of one.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The lane has no memory: blocks and their bytes never change.
pub(in crate::sync) struct History<S, T> {
    context: Arc<Context<S, T>>,
    /// When the budget has more for the backlog.
    funds_at: Option<Instant>,
}

impl<S: SyncSource, T: CloudTable> History<S, T> {
    pub(in crate::sync) fn new(context: Arc<Context<S, T>>) -> Self {
        Self { context, funds_at: None }
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
                Ok(Step::More) => {
                    if let Some(at) = self.funds_at.take() {
                        tokio::select! {
                            () = self.context.source.wakeups().blocks.notified() => {}
                            () = tokio::time::sleep_until(at) => {}
                        }
                    }
                }
                Ok(Step::Idle) => {
                    tokio::select! {
                        () = self.context.source.wakeups().blocks.notified() => {}
                        () = tokio::time::sleep(WAIT_MAX) => {}
                    }
                    tokio::time::sleep(LOOK_SPACING).await;
                }
                Err(StoreError::Closed) => return,
                Err(error) => trouble.pause(&error).await,
            }
        }
    }

    /// One look at the blocks; as many batches as window and budget allow.
    pub(in crate::sync) async fn step(&mut self) -> Result<Step, StoreError> {
        self.funds_at = None;
        let context = &self.context;
        let window = context.health.window(LANE).min(BATCHES_MAX);
        let limit = window * ROUNDS * BATCH_ITEMS_MAX;
        let oldest = context.source.peek_blocks(limit).await?;
        context.health.waiting(LANE, oldest.len());
        let full = oldest.len() >= limit;
        let live = if full { self.live(&oldest, window).await? } else { Vec::new() };
        let more_live = live.len() >= window * BATCH_ITEMS_MAX;
        let (batches, funds_at) = self.afford([&live[..], &oldest[..]]).await;
        let short = funds_at.is_some();
        // Made before they are polled: a lazy closure over borrowed blocks is not `Send` enough for a task.
        let writes: Vec<_> = batches.into_iter().map(|batch| self.write(batch)).collect();
        let mut batches = futures_util::stream::iter(writes).buffer_unordered(window);
        let mut failed = false;
        while let Some(done) = batches.next().await {
            failed |= !done?;
        }
        drop(batches);
        if !failed {
            context.health.widen(LANE, false);
        }
        if !full && !failed && !short {
            context.health.waiting(LANE, 0);
        }
        self.funds_at = funds_at.filter(|_| !more_live);
        Ok(if full || failed || short { Step::More } else { Step::Idle })
    }

    /// The blocks just closed that stand behind the oldest.
    async fn live(&self, oldest: &[HistoryBlock], window: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let mut newest = self.context.source.peek_newest_blocks(window * BATCH_ITEMS_MAX).await?;
        let among: HashSet<_> = oldest.iter().map(|block| block.id).collect();
        newest.retain(|block| self.is_live(block) && !among.contains(&block.id));
        Ok(newest)
    }

    fn is_live(&self, block: &HistoryBlock) -> bool {
        block.first.saturating_add(LIVE_AGE) >= self.context.health.now()
    }

    /// The batches there is a budget for, live ones first; and when there is more for the others.
    async fn afford<'a>(&self, blocks: [&'a [HistoryBlock]; 2]) -> (Vec<&'a [HistoryBlock]>, Option<Instant>) {
        let budget = &self.context.health.budget;
        let mut batches = Vec::new();
        for batch in blocks.into_iter().flat_map(|blocks| blocks.chunks(BATCH_ITEMS_MAX)) {
            let units = f64::from(u32::try_from(batch.len()).unwrap_or(u32::MAX));
            if batch.iter().all(|block| self.is_live(block)) {
                budget.spend(Spending::Live, units).await;
            } else if let Err(at) = budget.try_spend(Spending::Backlog, units) {
                return (batches, Some(at));
            }
            batches.push(batch);
        }
        (batches, None)
    }

    /// Writes one batch; one that holds a poisoned block is halved until that stands alone. False if some of it has to
    /// be repeated.
    async fn write(&self, batch: &[HistoryBlock]) -> Result<bool, StoreError> {
        let (health, source) = (&self.context.health, &self.context.source);
        let mut parts = vec![batch];
        let mut whole = true;
        while let Some(part) = parts.pop() {
            match self.context.table.write_blocks(part).await {
                Ok(written) => {
                    let accepted: Vec<_> = written.accepted.iter().filter_map(|at| Some(part.get(*at)?.id)).collect();
                    health.wrote(LANE, accepted.len());
                    let missing = part.len() - accepted.len();
                    if !accepted.is_empty() {
                        fail_point!(BeforeBlocksConfirm);
                        source.confirm_blocks(accepted).await?;
                        fail_point!(AfterBlocksConfirm);
                    }
                    if missing == 0 {
                        health.succeeded(LANE, 0);
                        continue;
                    }
                    let text = format!("the table left {missing} of {} blocks for later", part.len());
                    health.failed(LANE, &TableError::Retry { cause: Cause::Throttled, text });
                    whole = false;
                }
                Err(TableError::Permanent { .. }) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(error @ TableError::Permanent { .. }) => {
                    for block in part {
                        tracing::error!(device_id = %block.device_id, first = %block.first, %error, "block put aside");
                        source.park_block(block.id, error.to_string()).await?;
                    }
                    health.refused(&error);
                }
                Err(error) => {
                    health.failed(LANE, &error);
                    return Ok(false);
                }
            }
        }
        Ok(whole)
    }
}

//! Closed blocks to `iot-telemetry-history`, oldest first, in batches; a poisoned one is found and put aside.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::{Context, Step, StoreTrouble};
use crate::shadow::HistoryBlock;
use crate::shadow::store::StoreError;
use crate::sync::health::LaneName;
use crate::sync::source::SyncSource;
use crate::sync::table::{BATCH_ITEMS_MAX, Cause, CloudTable, TableError};

const LANE: LaneName = LaneName::History;
/// Batches in flight at most: enough to hide a round trip, few enough to leave the link to live data.
const BATCHES_MAX: usize = 4;
/// How long the lane waits for a block when nobody tells of one.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The lane has no memory: blocks and their bytes never change.
pub(in crate::sync) struct History<S, T> {
    context: Arc<Context<S, T>>,
}

impl<S: SyncSource, T: CloudTable> History<S, T> {
    pub(in crate::sync) fn new(context: Arc<Context<S, T>>) -> Self {
        Self { context }
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
                Ok(Step::Idle) => tokio::select! {
                    () = self.context.source.wakeups().blocks.notified() => {}
                    () = tokio::time::sleep(WAIT_MAX) => {}
                },
                Err(StoreError::Closed) => return,
                Err(error) => trouble.pause(&error).await,
            }
        }
    }

    /// One look at the blocks; as many batches as the window allows.
    pub(in crate::sync) async fn step(&mut self) -> Result<Step, StoreError> {
        let context = &self.context;
        let window = context.health.window(LANE).min(BATCHES_MAX);
        let limit = window * BATCH_ITEMS_MAX;
        let blocks = context.source.peek_blocks(limit).await?;
        context.health.waiting(LANE, blocks.len());
        // Made before they are polled: a lazy closure over borrowed blocks is not `Send` enough for a task.
        let writes: Vec<_> = blocks.chunks(BATCH_ITEMS_MAX).map(|batch| self.write(batch)).collect();
        let mut batches = futures_util::stream::iter(writes).buffer_unordered(window);
        let mut failed = false;
        while let Some(done) = batches.next().await {
            failed |= !done?;
        }
        drop(batches);
        if !failed {
            context.health.widen(LANE, false);
        }
        let full = blocks.len() >= limit;
        if !full && !failed {
            context.health.waiting(LANE, 0);
        }
        Ok(if full || failed { Step::More } else { Step::Idle })
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
                        tracing::error!(device = %block.device_id, first = %block.first, %error, "block put aside");
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

//! Takes journalled commands to their devices: one at a time per device, first in first out, devices side by side.
//!
//! The journal is the queue. [`Dispatcher::run`] looks at it when it is woken, starts a task for the oldest command of
//! each device that has none running, and forgets it when the task ends; at most 200 tasks, because the journal holds
//! no more open commands. A device that hangs keeps its own task waiting, and nobody else.
//!
//! What a task does is in `execution.rs`. A command's remaining time is measured on monotonic time too, from the
//! moment it is first seen waiting: a wall clock that is put back meanwhile does not make it younger.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{CommandId, DeviceId};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::execution::Hands;
use super::judge::Judge;
use super::log::CommandLog;
use super::recovery;
use crate::shadow::{Store, StoreError};

/// The journal is looked at this often even if nobody calls: a lost wake-up must not keep a command waiting.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Executes what the journal holds.
#[derive(Debug)]
pub struct Dispatcher<L = Store> {
    hands: Arc<Hands<L>>,
}

impl<L: CommandLog> Dispatcher<L> {
    /// A dispatcher over the journal `log`; drivers, profiles and clock are the judge's.
    #[must_use]
    pub fn new(log: L, judge: Judge) -> Self {
        Self { hands: Arc::new(Hands { log, judge }) }
    }

    /// Resolves what was interrupted, then executes what comes, until `shutdown`. What is in progress then stays so
    /// in the journal and is resolved at the next start.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut busy = Busy { astray: true, ..Busy::default() };
        while !shutdown.is_cancelled() {
            // Nothing new before it is known what is in progress already.
            if busy.astray {
                busy.astray = self.resolve_interrupted(&mut tasks, &mut busy).await.is_err();
            }
            if !busy.astray {
                self.start_waiting(&mut tasks, &mut busy).await;
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.hands.log.wakeups().journal.notified() => {}
                Some(ended) = tasks.join_next_with_id() => busy.remove(ended),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
        tasks.shutdown().await;
    }

    /// What is in progress and has no task: interrupted by a restart, or left by a task that was lost.
    async fn resolve_interrupted(&self, tasks: &mut JoinSet<bool>, busy: &mut Busy) -> Result<(), StoreError> {
        let interrupted = self.hands.log.in_progress().await;
        for execution in interrupted.inspect_err(|error| warn!(%error, "cannot read the journal; commands wait"))? {
            let device = execution.record.device_id.clone();
            if !busy.devices.contains(&device) {
                let hands = Arc::clone(&self.hands);
                let resolved = async move {
                    recovery::resolve(&hands, execution).await;
                    true
                };
                busy.add(device, tasks.spawn(resolved).id());
            }
        }
        Ok(())
    }

    async fn start_waiting(&self, tasks: &mut JoinSet<bool>, busy: &mut Busy) {
        let waiting = match self.hands.log.waiting().await {
            Ok(waiting) => waiting,
            Err(error) => return warn!(%error, "cannot read the journal; commands wait"),
        };
        let mut fresh = HashMap::with_capacity(waiting.len());
        for execution in waiting {
            let record = &execution.record;
            let (device, key) = (record.device_id.clone(), (record.device_id.clone(), record.command_id.clone()));
            let until = busy.fresh.get(&key).copied().unwrap_or_else(|| self.hands.fresh_until(record));
            fresh.insert(key, until);
            if !busy.devices.contains(&device) {
                let hands = Arc::clone(&self.hands);
                busy.add(device, tasks.spawn(async move { hands.execute(execution, until).await }).id());
            }
        }
        // What waits no longer is forgotten, so this holds no more than the journal's open commands.
        busy.fresh = fresh;
    }
}

/// Which devices have a task, and how long what waits may still be sent.
#[derive(Debug, Default)]
struct Busy {
    devices: HashSet<DeviceId>,
    tasks: HashMap<Id, DeviceId>,
    fresh: HashMap<(DeviceId, CommandId), Instant>,
    /// Something may be in progress that has no task.
    astray: bool,
}

impl Busy {
    fn add(&mut self, device: DeviceId, task: Id) {
        self.devices.insert(device.clone());
        self.tasks.insert(task, device);
    }

    fn remove(&mut self, ended: Result<(Id, bool), JoinError>) {
        let (task, in_order) = ended.unwrap_or_else(|lost| (lost.id(), false));
        self.astray |= !in_order;
        if let Some(device) = self.tasks.remove(&task) {
            self.devices.remove(&device);
        }
    }
}

#[cfg(test)]
mod tests;

//! Takes journalled commands to their devices: one at a time per device, first in first out, devices side by side.
//!
//! The journal is the queue. [`Dispatcher::run`] looks at it when it is woken, starts a task for the oldest command of
//! each device that has none running, and forgets it when the task ends; at most 200 tasks, because the journal holds
//! no more open commands. A device that hangs keeps its own task waiting, and nobody else.
//!
//! What a task does is in `execution.rs`. A command's remaining time is measured from its receipt on clocks that nothing
//! steps (`fresh.rs`): a wall clock that is put back meanwhile does not make it younger. One that expires behind
//! another is ended then, within a second, and not when its turn comes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{CommandId, DeviceId};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::execution::Hands;
use super::fresh::Fresh;
use super::judge::Judge;
use super::log::{CommandLog, tell};
use super::recovery;
use crate::shadow::store::OpenExecution;
use crate::shadow::{Store, StoreError};

/// The journal is looked at this often even if nobody calls: a lost wake-up must not keep a command waiting.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// On a stop, drivers with an order in their hands get this long to say what became of it; a driver that takes longer
/// leaves its command to the next start.
const HANDOVER_GRACE: Duration = Duration::from_secs(2);

/// Executes what the journal holds.
#[derive(Debug)]
pub struct Dispatcher<L = Store> {
    hands: Arc<Hands<L>>,
}

impl<L: CommandLog> Dispatcher<L> {
    /// A dispatcher over the journal `log`; drivers, profiles and clock are the judge's.
    #[must_use]
    pub fn new(log: L, judge: Judge) -> Self {
        Self { hands: Arc::new(Hands { log, judge, in_hand: TaskTracker::new() }) }
    }

    /// Resolves what was interrupted, then executes what comes, until `shutdown`. Then nothing new is sent; a driver
    /// that holds an order gets 2 s to say what became of it, and nothing else is waited for. What is in progress stays
    /// so in the journal and is resolved at the next start.
    ///
    /// # Cancel safety
    /// A drop ends every task at once: to the journal a crash, and resolved like one.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        let mut busy = Busy { astray: true, ..Busy::default() };
        while !shutdown.is_cancelled() {
            tokio::select! {
                // A store that hangs must not keep the gateway from stopping.
                () = shutdown.cancelled() => break,
                () = self.look(&mut tasks, &mut busy) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.hands.log.wakeups().journal.notified() => {}
                Some(ended) = tasks.join_next_with_id() => busy.remove(ended),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
        self.hands.in_hand.close();
        if tokio::time::timeout(HANDOVER_GRACE, self.hands.in_hand.wait()).await.is_err() {
            warn!("stopped while orders were being handed over; the next start resolves them");
        }
        tasks.shutdown().await;
    }

    async fn look(&self, tasks: &mut JoinSet<bool>, busy: &mut Busy) {
        // Nothing new before it is known what is in progress already.
        if busy.astray {
            busy.astray = self.resolve_interrupted(tasks, busy).await.is_err();
        }
        if !busy.astray {
            self.start_waiting(tasks, busy).await;
        }
    }

    /// What is in progress and has no task: interrupted by a restart, or left by a task that was lost.
    async fn resolve_interrupted(&self, tasks: &mut JoinSet<bool>, busy: &mut Busy) -> Result<(), StoreError> {
        let interrupted = self.hands.log.in_progress().await;
        for execution in interrupted.inspect_err(|error| tell(error, "cannot read the journal; commands wait"))? {
            let device = execution.record.device_id.clone();
            if !busy.devices.contains_key(&device) {
                let hands = Arc::clone(&self.hands);
                let resolved = async move {
                    recovery::resolve(&hands, execution).await;
                    true
                };
                busy.add(device, None, tasks.spawn(resolved).id());
            }
        }
        Ok(())
    }

    async fn start_waiting(&self, tasks: &mut JoinSet<bool>, busy: &mut Busy) {
        let waiting = match self.hands.log.waiting().await {
            Ok(waiting) => waiting,
            Err(error) => return tell(&error, "cannot read the journal; commands wait"),
        };
        self.note_ages(&waiting, busy);
        for execution in waiting {
            let record = &execution.record;
            let (device, id) = (record.device_id.clone(), record.command_id.clone());
            let Some(until) = busy.fresh.get(&(device.clone(), id.clone())).copied() else { continue };
            match busy.devices.get(&device) {
                None => {
                    let hands = Arc::clone(&self.hands);
                    let task = tasks.spawn(async move { hands.execute(execution, until).await });
                    busy.add(device, Some(id), task.id());
                }
                // Its own task ends it: it may be on its way to the device by now.
                Some(running) if running.as_ref() == Some(&id) => {}
                Some(_) => self.hands.expire(record, until).await,
            }
        }
    }

    /// What is seen for the first time gets its remaining time; what waits no longer is forgotten, so this holds no
    /// more than the journal's open commands.
    fn note_ages(&self, waiting: &[OpenExecution], busy: &mut Busy) {
        let before = std::mem::take(&mut busy.fresh);
        let aged = |execution: &OpenExecution| {
            let record = &execution.record;
            let key = (record.device_id.clone(), record.command_id.clone());
            let until = before.get(&key).copied().unwrap_or_else(|| self.hands.fresh(execution));
            (key, until)
        };
        busy.fresh = waiting.iter().map(aged).collect();
    }
}

/// Which devices have a task, and how long what waits may still be sent.
#[derive(Debug, Default)]
struct Busy {
    /// Each with the command its task began with; `None` if that had been in progress before.
    devices: HashMap<DeviceId, Option<CommandId>>,
    tasks: HashMap<Id, DeviceId>,
    fresh: HashMap<(DeviceId, CommandId), Fresh>,
    /// Something may be in progress that has no task.
    astray: bool,
}

impl Busy {
    fn add(&mut self, device: DeviceId, command: Option<CommandId>, task: Id) {
        self.devices.insert(device.clone(), command);
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

//! Takes journalled commands to their devices: one at a time per device, first in first out, devices side by side.
//!
//! The journal is the queue. [`Dispatcher::run`] looks at it when it is woken, starts a task for the oldest command of
//! each device that has none running, and forgets it when the task ends; at most 200 tasks, because the journal holds
//! no more open commands. A device that hangs keeps its own task waiting, and nobody else.
//!
//! A task decides again, commits the intent, looks at the expiry once more, lets the driver send, and waits for proof
//! ([`super::verify`]) until the profile's timeout, which runs on monotonic time. Nothing is sent without a committed
//! intent, and nothing twice.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{
    AdminState, CommandName, DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, Profile, Reason,
};
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::decision::{Decision, Refusal, effective_expiry, expired};
use super::judge::Judge;
use super::log::CommandLog;
use super::recovery;
use super::verify::{self, Verdict};
use crate::device::{Driver, NotSent, Order, Sent};
use crate::shadow::store::{Effect, Ending, OpenExecution};
use crate::shadow::{DeviceView, Store, StoreError};

/// The journal is looked at this often even if nobody calls: a lost wake-up must not keep a command waiting.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Between attempts to write to a store that cannot.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// Executes what the journal holds.
#[derive(Debug)]
pub struct Dispatcher<L = Store> {
    hands: Arc<Hands<L>>,
}

/// What one execution's task works with.
#[derive(Debug)]
pub(super) struct Hands<L> {
    pub(super) log: L,
    pub(super) judge: Judge,
}

/// What is to be done with a claimed execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Send it, then wait for proof.
    Send,
    /// It was interrupted: wait this long for proof, send nothing.
    OnlyWait(Duration),
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
        let mut busy = Busy::default();
        let interrupted = loop {
            match self.hands.log.in_progress().await {
                Ok(interrupted) => break interrupted,
                Err(error) => warn!(%error, "cannot read the journal; commands wait"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(STORE_RETRY) => {}
            }
        };
        for execution in interrupted {
            let (hands, device) = (Arc::clone(&self.hands), execution.record.device_id.clone());
            busy.add(device, tasks.spawn(async move { recovery::resolve(&hands, execution).await }).id());
        }
        while !shutdown.is_cancelled() {
            self.start_waiting(&mut tasks, &mut busy).await;
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.hands.log.wakeups().journal.notified() => {}
                Some(ended) = tasks.join_next_with_id() => busy.remove(ended.map_or_else(|error| error.id(), |(id, ())| id)),
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
        tasks.shutdown().await;
    }

    async fn start_waiting(&self, tasks: &mut JoinSet<()>, busy: &mut Busy) {
        let waiting = match self.hands.log.waiting().await {
            Ok(waiting) => waiting,
            Err(error) => return warn!(%error, "cannot read the journal; commands wait"),
        };
        for execution in waiting {
            let device = execution.record.device_id.clone();
            if !busy.devices.contains(&device) {
                let hands = Arc::clone(&self.hands);
                busy.add(device, tasks.spawn(async move { hands.execute(execution).await }).id());
            }
        }
    }
}

/// Which devices have a task.
#[derive(Debug, Default)]
struct Busy {
    devices: HashSet<DeviceId>,
    tasks: HashMap<Id, DeviceId>,
}

impl Busy {
    fn add(&mut self, device: DeviceId, task: Id) {
        self.devices.insert(device.clone());
        self.tasks.insert(task, device);
    }

    fn remove(&mut self, task: Id) {
        if let Some(device) = self.tasks.remove(&task) {
            self.devices.remove(&device);
        }
    }
}

impl<L: CommandLog> Hands<L> {
    /// One command from `created` to its end.
    async fn execute(&self, execution: OpenExecution) {
        let record = &execution.record;
        if let Err(error) = self.try_execute(&execution).await {
            warn!(device_id = %record.device_id, command_id = %record.command_id, %error, "the command waits");
            tokio::time::sleep(STORE_RETRY).await;
        }
    }

    async fn try_execute(&self, execution: &OpenExecution) -> Result<(), StoreError> {
        let record = &execution.record;
        let device = self.log.device(&record.device_id).await?;
        if let Decision::Refuse(refusal) = self.judge.before_dispatch(record, device.as_ref()) {
            self.finish(record, refused(refusal)).await;
            return Ok(());
        }
        // The intent. From here on, whatever happens, this execution is not sent a second time.
        if let Some(claimed) = self.log.claim(&record.device_id, &record.command_id).await? {
            self.carry_out(claimed, device.as_ref(), Step::Send).await;
        }
        Ok(())
    }

    /// A claimed execution to its end.
    pub(super) async fn carry_out(&self, execution: OpenExecution, device: Option<&DeviceView>, step: Step) {
        let record = &execution.record;
        let Ok(command) = record.command.parse::<CommandName>() else {
            return self.finish(record, interrupted("the journal holds a command that is none")).await;
        };
        if command == CommandName::SetStatus {
            return self.finish(record, overlay(&execution)).await;
        }
        let timeout = timeout_of(self.judge.profile_of(device).as_deref(), command);
        match step {
            Step::OnlyWait(patience) => {
                let over = interrupted("the gateway restarted while it ran, and nothing shows what became of it");
                let ending = self.wait(command, &execution, None, patience.min(timeout), over).await;
                self.finish_if(record, ending).await;
            }
            Step::Send => {
                let expiry = effective_expiry(record.issued_at, record.expires_at);
                let now = self.judge.clock.now();
                if now >= expiry {
                    return self.finish(record, refused(expired(expiry, now))).await;
                }
                let Some(driver) = self.judge.drivers.get(&record.device_id) else {
                    return self.finish(record, unreachable("nothing carries commands to this device")).await;
                };
                let order = Order {
                    device_id: record.device_id.clone(),
                    command_id: record.command_id.clone(),
                    command,
                    parameters: execution.checked_parameters.clone(),
                    issued_at: record.issued_at,
                    expires_at: expiry,
                };
                let over = no_response(command, timeout);
                let ending = self.wait(command, &execution, Some((&*driver, &order)), timeout, over).await;
                self.finish_if(record, ending).await;
            }
        }
    }

    /// Sends, if there is something to send, and waits for proof. `over` is the ending if none comes in time. `None` if
    /// the execution ended elsewhere.
    async fn wait(
        &self,
        command: CommandName,
        execution: &OpenExecution,
        sending: Option<(&dyn Driver, &Order)>,
        timeout: Duration,
        over: Ending,
    ) -> Option<Ending> {
        let started = Instant::now();
        let deadline = started + timeout;
        let (mut changes, mut over) = (self.log.floor_changes(), over);
        let mut unproved: Option<(Instant, Ending)> = None;
        let mut send = pin!(async {
            match sending {
                Some((driver, order)) => driver.send(order).await,
                None => Ok(Sent::Acknowledged),
            }
        });
        let mut sent = false;
        loop {
            changes.borrow_and_update();
            match self.look(command, execution).await {
                Ok(Some(Verdict::Ended(ending))) => return Some(ending),
                Ok(Some(Verdict::SaidOnly(ending))) => {
                    let until = unproved.map_or_else(|| Instant::now() + verify::grace(command), |(until, _)| until);
                    unproved = Some((until.min(deadline), ending));
                }
                Ok(Some(Verdict::Open)) => unproved = None,
                Ok(None) => return None,
                Err(error) => warn!(command_id = %execution.record.command_id, %error, "cannot look for an answer"),
            }
            let until = unproved.as_ref().map_or(deadline, |(until, _)| *until);
            if Instant::now() >= until {
                return Some(unproved.map_or(over, |(_, ending)| ending));
            }
            tokio::select! {
                outcome = &mut send, if !sent => match outcome {
                    Ok(Sent::Acknowledged) => sent = true,
                    Ok(Sent::Unknown) => {
                        sent = true;
                        over = Ending { status: ExecutionStatus::Indeterminate, ..over };
                    }
                    Err(NotSent::Offline(why)) => return Some(unreachable(&why)),
                    Err(NotSent::Expired) => {
                        let expiry = effective_expiry(execution.record.issued_at, execution.record.expires_at);
                        return Some(refused(expired(expiry, self.judge.clock.now())));
                    }
                },
                changed = changes.changed() => if changed.is_err() { return None; },
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn look(&self, command: CommandName, execution: &OpenExecution) -> Result<Option<Verdict>, StoreError> {
        let record = &execution.record;
        let Some(open) = self.log.open_execution(&record.device_id, &record.command_id).await? else {
            return Ok(None);
        };
        let device = self.log.device(&record.device_id).await?;
        Ok(Some(verify::weigh(command, &open, device.as_ref(), self.judge.clock.now())))
    }

    async fn finish_if(&self, record: &ExecutionRecord, ending: Option<Ending>) {
        if let Some(ending) = ending {
            self.finish(record, ending).await;
        }
    }

    /// Ends it in the journal; keeps at it while the store cannot, because the outcome is known only here.
    async fn finish(&self, record: &ExecutionRecord, ending: Ending) {
        let (device, id) = (&record.device_id, &record.command_id);
        loop {
            match self.log.finish(device, id, ending.clone()).await {
                Ok(ended) => {
                    let reason = ending.reason.map_or("", Reason::as_str);
                    if ended.is_some() {
                        info!(device_id = %device, command_id = %id, reason, command = record.command, status = %ending.status, "command ended");
                    }
                    return;
                }
                Err(StoreError::Closed) => return,
                Err(error) => warn!(device_id = %device, command_id = %id, %error, "cannot write an outcome yet"),
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
    }
}

/// How long the device has, by its profile.
pub(super) fn timeout_of(profile: Option<&Profile>, command: CommandName) -> Duration {
    let spec = profile.and_then(|profile| profile.commands.get(&command));
    spec.map_or_else(|| command.default_timeout(), |spec| spec.timeout)
}

fn ending(status: ExecutionStatus, reason: Reason, message: impl Into<String>) -> Ending {
    Ending { status, reason: Some(reason), message: Some(message.into()), details: None, effect: None }
}

fn refused(refusal: Refusal) -> Ending {
    ending(refusal.status, refusal.reason, refusal.message)
}

fn unreachable(why: &str) -> Ending {
    ending(ExecutionStatus::Failed, Reason::DeviceOffline, format!("{why}; nothing was sent"))
}

pub(super) fn interrupted(why: &str) -> Ending {
    ending(ExecutionStatus::Indeterminate, Reason::Interrupted, format!("{why}; look at the device before trying again"))
}

fn no_response(command: CommandName, timeout: Duration) -> Ending {
    let message = format!("no answer within {} s; look at the device before trying again", timeout.as_secs());
    let offline = || Effect::Offline("did not come back from its reboot".to_owned());
    let effect = (command == CommandName::Reboot).then(offline);
    Ending { effect, ..ending(ExecutionStatus::TimedOut, Reason::NoResponse, message) }
}

/// `set_status` is done here: the overlay changes with the outcome, in one transaction.
fn overlay(execution: &OpenExecution) -> Ending {
    let wanted = execution.checked_parameters.get("status").and_then(|status| status.as_str());
    let maintenance = wanted == Some(DeviceStatus::Maintenance.as_str());
    let state = if maintenance { AdminState::Maintenance } else { AdminState::InService };
    Ending {
        status: ExecutionStatus::Succeeded,
        reason: None,
        message: None,
        details: None,
        effect: Some(Effect::Admin(state)),
    }
}

#[cfg(test)]
mod tests;

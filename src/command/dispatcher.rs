//! Takes journalled commands to their devices: one at a time per device, first in first out, devices side by side.
//!
//! The journal is the queue. [`Dispatcher::run`] looks at it when it is woken, starts a task for the oldest command of
//! each device that has none running, and forgets it when the task ends; at most 200 tasks, because the journal holds
//! no more open commands. A device that hangs keeps its own task waiting, and nobody else.
//!
//! A task decides again, commits the intent, looks at the expiry once more, lets the driver send, and waits for proof
//! ([`super::verify`]) until the profile's timeout, which runs on monotonic time. Nothing is sent without a committed
//! intent, and nothing twice.
//!
//! A command's remaining time is also measured on monotonic time, from the moment it is first seen waiting: a wall
//! clock that is put back while it waits does not make it younger.

use std::collections::{HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{
    AdminState, CommandId, CommandName, DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, Profile, Reason,
};
use tokio::task::{Id, JoinError, JoinSet};
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
/// Wall clock and monotonic time may differ by this much over one wait in the queue (rounding, slewing); beyond, the
/// wall clock was put back, and the monotonic time counts.
const CLOCK_STEP: Duration = Duration::from_secs(1);

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
    /// Send it for the first time, then wait for proof.
    Send,
    /// It was interrupted, and doing it twice is the same as once: send it again, then wait for proof.
    SendAgain,
    /// It was interrupted: wait for proof, send nothing.
    OnlyWait,
}

/// One wait for proof, with or without something to send first.
struct Plan<'a> {
    command: CommandName,
    step: Step,
    sending: Option<(&'a dyn Driver, &'a Order)>,
    timeout: Duration,
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

impl<L: CommandLog> Hands<L> {
    /// Until when, on monotonic time, a command may go out, by what the wall clock says now.
    pub(super) fn fresh_until(&self, record: &ExecutionRecord) -> Instant {
        Instant::now() + effective_expiry(record.issued_at, record.expires_at).since(self.judge.clock.now())
    }

    /// One command from `created` to its end. False if it may be in progress all the same: the store failed, so nobody
    /// knows, or the device has one in progress that is not ours.
    async fn execute(&self, execution: OpenExecution, fresh_until: Instant) -> bool {
        let record = &execution.record;
        let in_order = self.try_execute(&execution, fresh_until).await.unwrap_or_else(|error| {
            warn!(device_id = %record.device_id, command_id = %record.command_id, %error, "the command waits");
            false
        });
        if !in_order {
            tokio::time::sleep(STORE_RETRY).await;
        }
        in_order
    }

    async fn try_execute(&self, execution: &OpenExecution, fresh_until: Instant) -> Result<bool, StoreError> {
        let record = &execution.record;
        let device = self.log.device(&record.device_id).await?;
        if let Decision::Refuse(refusal) = self.judge.before_dispatch(record, device.as_ref()) {
            self.finish(record, refused(refusal)).await;
        } else if Instant::now() >= fresh_until {
            self.finish(record, self.too_old(record)).await;
        } else if let Some(claimed) = self.log.claim(&record.device_id, &record.command_id).await? {
            // The intent. From here on, whatever happens, this execution is not sent a second time.
            self.carry_out(claimed, device.as_ref(), Step::Send, fresh_until).await;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// A claimed execution to its end.
    pub(super) async fn carry_out(
        &self,
        execution: OpenExecution,
        device: Option<&DeviceView>,
        step: Step,
        fresh_until: Instant,
    ) {
        let record = &execution.record;
        let Ok(command) = record.command.parse::<CommandName>() else {
            return self.finish(record, interrupted("the journal holds a command that is none")).await;
        };
        let (now, sends) = (self.judge.clock.now(), step != Step::OnlyWait);
        let stale = now >= effective_expiry(record.issued_at, record.expires_at) || Instant::now() >= fresh_until;
        // An overlay changes with its outcome: one that is in progress has certainly not been done.
        if stale && (step == Step::Send || command == CommandName::SetStatus) {
            return self.finish(record, self.too_old(record)).await;
        }
        if command == CommandName::SetStatus {
            let not_done = "the gateway restarted before it was done; send it again if it is still wanted";
            let not_done = || ending(ExecutionStatus::Failed, Reason::Interrupted, not_done);
            return self.finish(record, if sends { overlay(&execution) } else { not_done() }).await;
        }
        let driver = self.judge.drivers.get(&record.device_id).filter(|_| sends && !stale);
        if driver.is_none() && step == Step::Send {
            return self.finish(record, unreachable("nothing carries commands to this device")).await;
        }
        let order = self.order(&execution, command, fresh_until);
        let timeout = timeout_of(self.judge.profile_of(device).as_deref(), command);
        let sending = driver.as_deref().map(|driver| (driver, &order));
        let step = if sending.is_some() { step } else { Step::OnlyWait };
        if let Some(ending) = self.wait(&execution, Plan { command, step, sending, timeout }).await {
            self.finish(record, ending).await;
        }
    }

    fn order(&self, execution: &OpenExecution, command: CommandName, fresh_until: Instant) -> Order {
        let record = &execution.record;
        let expiry = effective_expiry(record.issued_at, record.expires_at);
        let by_monotonic = fresh_until.saturating_duration_since(Instant::now()).saturating_add(CLOCK_STEP);
        Order {
            device_id: record.device_id.clone(),
            command_id: record.command_id.clone(),
            command,
            parameters: execution.checked_parameters.clone(),
            issued_at: record.issued_at,
            expires_at: expiry.min(self.judge.clock.now().saturating_add(by_monotonic)),
        }
    }

    /// Sends, if there is something to send, and waits for proof. `None` if the execution ended elsewhere or the store
    /// is closed.
    async fn wait(&self, execution: &OpenExecution, plan: Plan<'_>) -> Option<Ending> {
        let patience = Instant::now() + plan.timeout.min(recovery::PATIENCE_MAX);
        let (mut deadline, mut over) = match plan.step {
            Step::OnlyWait => (patience, interrupted(UNSEEN)),
            Step::Send | Step::SendAgain => (Instant::now() + plan.timeout, no_response(plan.command, plan.timeout)),
        };
        let mut changes = self.log.floor_changes();
        let mut unproved: Option<(Instant, Ending)> = None;
        let mut send = pin!(async {
            match plan.sending {
                Some((driver, order)) => driver.send(order).await,
                None => Ok(Sent::Acknowledged),
            }
        });
        let mut sent = plan.sending.is_none();
        // Before the first byte, nothing can prove that it was done; after a restart, the proof may be there already.
        let mut may_look = plan.step != Step::Send;
        loop {
            changes.borrow_and_update();
            let mut looked = true;
            match if may_look { self.look(plan.command, execution).await } else { Ok(Some(Verdict::Open)) } {
                Ok(Some(Verdict::Ended(ending))) => return Some(ending),
                Ok(Some(Verdict::SaidOnly(ending))) => {
                    let grace = || Instant::now() + verify::grace(plan.command);
                    unproved = Some((unproved.map_or_else(grace, |(until, _)| until).min(deadline), ending));
                }
                Ok(Some(Verdict::Open)) => unproved = None,
                Ok(None) | Err(StoreError::Closed) => return None,
                Err(error) => {
                    warn!(command_id = %execution.record.command_id, %error, "cannot look for an answer yet");
                    looked = false;
                }
            }
            may_look = true;
            let mut until = unproved.as_ref().map_or(deadline, |(until, _)| *until);
            if !looked {
                until = Instant::now() + STORE_RETRY;
            } else if Instant::now() >= until {
                // An order that has not been acknowledged by now may still have left.
                let over = || if sent { over } else { unknown(over) };
                return Some(unproved.map_or_else(over, |(_, ending)| ending));
            }
            tokio::select! {
                biased;
                outcome = &mut send, if !sent => {
                    sent = true;
                    match (outcome, plan.step) {
                        (Ok(Sent::Acknowledged), _) => {}
                        (Ok(Sent::Unknown), _) => over = unknown(over),
                        // Not this time; but nobody knows of the time before the restart.
                        (Err(_), Step::SendAgain | Step::OnlyWait) => (deadline, over) = (patience, interrupted(UNSEEN)),
                        (Err(NotSent::Offline(why)), Step::Send) => return Some(unreachable(&why)),
                        (Err(NotSent::Expired), Step::Send) => return Some(self.too_old(&execution.record)),
                    }
                }
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

    fn too_old(&self, record: &ExecutionRecord) -> Ending {
        refused(expired(effective_expiry(record.issued_at, record.expires_at), self.judge.clock.now()))
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

/// Nothing the device reports shows what an interrupted execution came to.
const UNSEEN: &str = "the gateway restarted while it ran, and nothing shows what became of it";

/// How long the device has, by its profile.
fn timeout_of(profile: Option<&Profile>, command: CommandName) -> Duration {
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

fn interrupted(why: &str) -> Ending {
    ending(
        ExecutionStatus::Indeterminate,
        Reason::Interrupted,
        format!("{why}; look at the device before trying again"),
    )
}

fn no_response(command: CommandName, timeout: Duration) -> Ending {
    let message = format!("no answer within {} s; look at the device before trying again", timeout.as_secs());
    let offline = || Effect::Offline("did not come back from its reboot".to_owned());
    let effect = (command == CommandName::Reboot).then(offline);
    Ending { effect, ..ending(ExecutionStatus::TimedOut, Reason::NoResponse, message) }
}

/// Nobody knows whether it reached the device; so nothing is said of the device either.
fn unknown(over: Ending) -> Ending {
    Ending { status: ExecutionStatus::Indeterminate, effect: None, ..over }
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

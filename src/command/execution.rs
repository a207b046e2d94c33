//! One execution from `created` to its end: decided again, claimed, sent, proved.
//!
//! The steps, and what a crash after each leaves for [`super::recovery`]:
//!
//! 1. The decision is asked again. What it refuses ends here; nothing was sent.
//! 2. The intent is committed (`claim`): from here on this execution is never sent a second time, unless its profile
//!    calls it idempotent.
//! 3. The expiry is looked at once more, on the wall clock and on the others ([`super::fresh`]), and the driver sends.
//! 4. The device's word is waited for ([`super::wait`]) until the profile's timeout, on monotonic time.
//! 5. The outcome is written; while the store cannot, it is kept here and tried every second.

use std::time::Duration;

use floorgate_model::{AdminState, CommandName, DeviceStatus, ExecutionRecord, ExecutionStatus, Profile, Reason};
use tokio_util::task::TaskTracker;
use tracing::info;

use super::decision::{Decision, Refusal, effective_expiry, expired};
use super::fresh::Fresh;
use super::judge::Judge;
use super::log::{CommandLog, tell};
use super::recovery;
use super::wait::Plan;
use crate::device::Order;
use crate::shadow::store::{Effect, Ending, OpenExecution};
use crate::shadow::{DeviceView, StoreError};

/// Between attempts to read or write a store that cannot.
pub(super) const STORE_RETRY: Duration = Duration::from_secs(1);
/// Wall clock and monotonic time may differ by this much over one wait in the queue (rounding, slewing); beyond, the
/// wall clock was put back, and the monotonic time counts.
const CLOCK_STEP: Duration = Duration::from_secs(1);

/// What one execution's task works with.
#[derive(Debug)]
pub(super) struct Hands<L> {
    pub(super) log: L,
    pub(super) judge: Judge,
    /// Counts the orders that are in a driver's hands; closed when the dispatcher stops.
    pub(super) in_hand: TaskTracker,
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

impl<L: CommandLog> Hands<L> {
    /// Until when a command may go out, by all that is known now.
    pub(super) fn fresh(&self, execution: &OpenExecution) -> Fresh {
        Fresh::of(execution, &self.judge.clock)
    }

    /// One command from `created` to its end. False if it may be in progress all the same: the store failed, so nobody
    /// knows, or the device has one in progress that is not ours.
    pub(super) async fn execute(&self, execution: OpenExecution, fresh: Fresh) -> bool {
        let record = &execution.record;
        let in_order = self.try_execute(&execution, fresh).await.unwrap_or_else(|error| {
            tell(&error, &format!("command {} on {} waits", record.command_id, record.device_id));
            false
        });
        if !in_order {
            tokio::time::sleep(STORE_RETRY).await;
        }
        in_order
    }

    /// Ends a command that waits behind another if its time has passed. Tried once: it is seen again in a second.
    pub(super) async fn expire(&self, record: &ExecutionRecord, fresh: Fresh) {
        if fresh.is_over(&self.judge.clock) {
            let (device, id) = (&record.device_id, &record.command_id);
            match self.log.finish(device, id, self.too_old(record)).await {
                Ok(_) => info!(device_id = %device, command_id = %id, command = record.command, "command expired"),
                Err(error) => tell(&error, &format!("cannot write the outcome of command {id} on {device} yet")),
            }
        }
    }

    async fn try_execute(&self, execution: &OpenExecution, fresh: Fresh) -> Result<bool, StoreError> {
        let record = &execution.record;
        let device = self.log.device(&record.device_id).await?;
        if let Decision::Refuse(refusal) = self.judge.before_dispatch(execution, device.as_ref()) {
            self.finish(record, refused(refusal)).await;
        } else if fresh.is_over(&self.judge.clock) {
            self.finish(record, self.too_old(record)).await;
        } else if self.in_hand.is_closed() {
            // The gateway stops: it stays where it is.
        } else if let Some(claimed) = self.claim(record).await? {
            // The intent. From here on, whatever happens, this execution is not sent a second time.
            self.carry_out(claimed, device.as_ref(), Step::Send, fresh).await;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    async fn claim(&self, record: &ExecutionRecord) -> Result<Option<OpenExecution>, StoreError> {
        fail_point!(BeforeClaim);
        let claimed = self.log.claim(&record.device_id, &record.command_id).await;
        fail_point!(AfterClaim);
        claimed
    }

    /// A claimed execution to its end.
    pub(super) async fn carry_out(
        &self,
        execution: OpenExecution,
        device: Option<&DeviceView>,
        step: Step,
        fresh: Fresh,
    ) {
        let record = &execution.record;
        let Ok(command) = record.command.parse::<CommandName>() else {
            return self.finish(record, interrupted("the journal holds a command that is none")).await;
        };
        let (now, sends) = (self.judge.clock.now(), step != Step::OnlyWait);
        let stale = fresh.is_over(&self.judge.clock);
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
        let order = self.order(&execution, command, fresh);
        let timeout = timeout_of(self.judge.profile_of(device).as_deref(), command);
        let patience = recovery::patience(timeout, record.started_at, now);
        let sending = driver.as_deref().map(|driver| (driver, &order));
        let step = if sending.is_some() { step } else { Step::OnlyWait };
        // Counted before it is asked whether the gateway stops: so the stop either sees the order or prevents it. What
        // the driver says of an order that did not leave is written while it counts.
        let mut in_hand = sending.is_some().then(|| self.in_hand.token());
        if in_hand.is_some() && self.in_hand.is_closed() {
            return;
        }
        let plan = Plan { command, step, sending, timeout, patience, before: device };
        if let Some(ending) = self.wait(&execution, plan, &mut in_hand).await {
            self.finish(record, ending).await;
        }
    }

    fn order(&self, execution: &OpenExecution, command: CommandName, fresh: Fresh) -> Order {
        let record = &execution.record;
        let expiry = effective_expiry(record.issued_at, record.expires_at);
        let left = fresh.left(&self.judge.clock).saturating_add(CLOCK_STEP);
        Order {
            device_id: record.device_id.clone(),
            command_id: record.command_id.clone(),
            command,
            parameters: execution.checked_parameters.clone(),
            issued_at: record.issued_at,
            expires_at: expiry.min(self.judge.clock.now().saturating_add(left)),
        }
    }

    pub(super) fn too_old(&self, record: &ExecutionRecord) -> Ending {
        refused(expired(effective_expiry(record.issued_at, record.expires_at), self.judge.clock.now()))
    }

    /// Ends it in the journal; keeps at it while the store cannot, because the outcome is known only here.
    async fn finish(&self, record: &ExecutionRecord, ending: Ending) {
        let (device, id) = (&record.device_id, &record.command_id);
        fail_point!(BeforeFinish);
        loop {
            match self.log.finish(device, id, ending.clone()).await {
                Ok(ended) => {
                    fail_point!(AfterFinish);
                    let reason = ending.reason.map_or("", Reason::as_str);
                    if ended.is_some() {
                        info!(device_id = %device, command_id = %id, reason, command = record.command, status = %ending.status, "command ended");
                    }
                    return;
                }
                Err(StoreError::Closed) => return,
                Err(error) => tell(&error, &format!("cannot write the outcome of command {id} on {device} yet")),
            }
            tokio::time::sleep(STORE_RETRY).await;
        }
    }
}

/// Nothing the device reports shows what an interrupted execution came to.
pub(super) const UNSEEN: &str = "the gateway restarted while it ran, and nothing shows what became of it";

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

pub(super) fn unreachable(why: &str) -> Ending {
    ending(ExecutionStatus::Failed, Reason::DeviceOffline, format!("{why}; nothing was sent"))
}

pub(super) fn interrupted(why: &str) -> Ending {
    ending(
        ExecutionStatus::Indeterminate,
        Reason::Interrupted,
        format!("{why}; look at the device before trying again"),
    )
}

pub(super) fn no_response(command: CommandName, timeout: Duration) -> Ending {
    let message = format!("no answer within {} s; look at the device before trying again", timeout.as_secs());
    let offline = || Effect::Offline("did not come back from its reboot".to_owned());
    let effect = (command == CommandName::Reboot).then(offline);
    Ending { effect, ..ending(ExecutionStatus::TimedOut, Reason::NoResponse, message) }
}

/// Nobody knows whether it reached the device; so nothing is said of the device either.
pub(super) fn unknown(over: Ending) -> Ending {
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

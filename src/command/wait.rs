//! The wait for what becomes of a claimed execution: its order is handed over, if there is one, and the device's word
//! is looked for until something is proved ([`super::verify`]) or the time is up.
//!
//! * The time runs on the monotonic clock: the profile's timeout, or after a restart the patience of
//!   [`super::recovery`]. While the store cannot be read, nothing is over.
//! * It looks whenever something has come from the floor, but no more than 50 times a second after the first five
//!   looks: a floor where everybody reports at once costs each execution no more than that.
//! * No report that came while the driver held the order proves a reboot: the device cannot have had it yet. Only if
//!   it has answered meanwhile, it has. A `boot_count` above the one before the intent counts at any time.

use std::pin::pin;
use std::time::Duration;

use floorgate_model::{CommandName, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::execution::{Hands, STORE_RETRY, Step, UNSEEN, interrupted, no_response, unknown, unreachable};
use super::log::{CommandLog, tell};
use super::verify::{self, Known, Verdict};
use crate::device::{Driver, NotSent, Order, Sent};
use crate::shadow::store::{Ending, OpenExecution};
use crate::shadow::{DeviceView, StoreError};

/// On average one look in this time.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// So many looks may follow each other at once; an answer on a quiet floor is seen without delay.
const LOOKS_AT_ONCE: u32 = 5;

/// One wait for proof, with or without something to send first.
pub(super) struct Plan<'a> {
    pub(super) command: CommandName,
    pub(super) step: Step,
    pub(super) sending: Option<(&'a dyn Driver, &'a Order)>,
    /// How long the device has for something that was sent.
    pub(super) timeout: Duration,
    /// How long to wait for proof of something that was interrupted.
    pub(super) patience: Duration,
    /// The device as it was known before.
    pub(super) before: Option<&'a DeviceView>,
}

/// How a wait stands.
struct Watch<'a> {
    execution: &'a OpenExecution,
    command: CommandName,
    step: Step,
    /// When it is over without any word, and how.
    deadline: Instant,
    over: Ending,
    patience_ends: Instant,
    /// The driver has the order.
    held: bool,
    /// The device has answered.
    answered: bool,
    state_before: Option<Option<Timestamp>>,
    /// What the device said without proof, and until when it may still be proved.
    unproved: Option<(Instant, Ending)>,
    pace: Pace,
}

impl<L: CommandLog> Hands<L> {
    /// Sends, if there is something to send, and waits for proof. `None` if the execution ended elsewhere or the store
    /// is closed. `in_hand` is given back once the driver has said that the order left, or may have left.
    pub(super) async fn wait(
        &self,
        execution: &OpenExecution,
        plan: Plan<'_>,
        in_hand: &mut Option<TaskTrackerToken>,
    ) -> Option<Ending> {
        let mut watch = Watch::new(execution, &plan);
        let mut changes = self.log.floor_changes();
        let mut send = pin!(async {
            match plan.sending {
                Some((driver, order)) => {
                    fail_point!(BeforeSend);
                    let sent = driver.send(order).await;
                    fail_point!(AfterSend);
                    sent
                }
                None => Ok(Sent::Acknowledged),
            }
        });
        // Before the first byte, nothing can prove that it was done; after a restart, the proof may be there already.
        let mut may_look = plan.step != Step::Send;
        loop {
            changes.borrow_and_update();
            let looked = if may_look { self.look(&mut watch).await } else { Ok(Some(Verdict::Open)) };
            may_look = true;
            let until = match looked.map(|verdict| verdict.map(|verdict| watch.weighed(verdict))) {
                Ok(Some(Some(ending))) => return Some(ending),
                Ok(Some(None)) => watch.until(),
                Ok(None) | Err(StoreError::Closed) => return None,
                Err(error) => {
                    let id = &execution.record.command_id;
                    tell(&error, &format!("cannot look for an answer to command {id} yet"));
                    Instant::now() + STORE_RETRY
                }
            };
            if Instant::now() >= until {
                return Some(watch.ending());
            }
            let next_look = watch.pace.next();
            tokio::select! {
                biased;
                outcome = &mut send, if watch.held => {
                    let left_at = self.judge.clock.now();
                    if let Some(ending) = watch.heard_of_sending(outcome, || self.too_old(&execution.record)) {
                        return Some(ending);
                    }
                    *in_hand = None;
                    self.note_state(&mut watch, left_at).await;
                }
                open = changed(&mut changes, next_look) => if !open { return None; },
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn look(&self, watch: &mut Watch<'_>) -> Result<Option<Verdict>, StoreError> {
        watch.pace.looked();
        let record = &watch.execution.record;
        let Some(open) = self.log.open_execution(&record.device_id, &record.command_id).await? else {
            return Ok(None);
        };
        let device = self.log.device(&record.device_id).await?;
        watch.answered = open.answer.is_some();
        if let Some(device) = device.as_ref().filter(|_| watch.held) {
            watch.no_reboot_yet(device.last_state_at);
        }
        let clock = &self.judge.clock;
        let known = Known {
            today: clock.is_trusted().then(|| clock.now()),
            state_before: watch.state_before,
            interrupted: watch.step != Step::Send,
        };
        Ok(Some(verify::weigh(watch.command, &open, device.as_ref(), &known)))
    }

    /// The order has left: what the device reported until then proves no reboot. What carries this very time or a later
    /// one may be the proof already; if the store cannot tell, the last look counts.
    async fn note_state(&self, watch: &mut Watch<'_>, left_at: Timestamp) {
        if watch.command == CommandName::Reboot
            && let Ok(Some(device)) = self.log.device(&watch.execution.record.device_id).await
            && device.last_state_at.is_some_and(|report| report < left_at)
        {
            watch.no_reboot_yet(device.last_state_at);
        }
    }
}

impl<'a> Watch<'a> {
    fn new(execution: &'a OpenExecution, plan: &Plan<'_>) -> Self {
        let now = Instant::now();
        let patience_ends = now + plan.patience;
        let (deadline, over) = match plan.step {
            Step::OnlyWait => (patience_ends, interrupted(UNSEEN)),
            Step::Send | Step::SendAgain => (now + plan.timeout, no_response(plan.command, plan.timeout)),
        };
        Self {
            execution,
            command: plan.command,
            step: plan.step,
            deadline,
            over,
            patience_ends,
            held: plan.sending.is_some(),
            answered: false,
            state_before: plan.before.map(|device| device.last_state_at),
            unproved: None,
            pace: Pace { free: now },
        }
    }

    /// What was reported so far came before the order: a device that has answered has the order, though.
    fn no_reboot_yet(&mut self, last_state_at: Option<Timestamp>) {
        if self.command == CommandName::Reboot && !self.answered {
            self.state_before = Some(last_state_at);
        }
    }

    fn weighed(&mut self, verdict: Verdict) -> Option<Ending> {
        match verdict {
            Verdict::Ended(ending) => return Some(ending),
            Verdict::SaidOnly(ending) => {
                let grace = || Instant::now() + verify::grace(self.command);
                let until = self.unproved.take().map_or_else(grace, |(until, _)| until);
                self.unproved = Some((until.min(self.deadline), ending));
            }
            Verdict::Open => self.unproved = None,
        }
        None
    }

    fn heard_of_sending(&mut self, outcome: Result<Sent, NotSent>, too_old: impl FnOnce() -> Ending) -> Option<Ending> {
        self.held = false;
        match (outcome, self.step) {
            (Ok(Sent::Acknowledged), _) => {}
            (Ok(Sent::Unknown), _) => self.over = unknown(self.over.clone()),
            // Not this time; but nobody knows of the time before the restart.
            (Err(_), Step::SendAgain | Step::OnlyWait) => {
                (self.deadline, self.over) = (self.patience_ends, interrupted(UNSEEN));
            }
            (Err(NotSent::Offline(why)), Step::Send) => return Some(unreachable(&why)),
            (Err(NotSent::Expired), Step::Send) => return Some(too_old()),
        }
        None
    }

    fn until(&self) -> Instant {
        self.unproved.as_ref().map_or(self.deadline, |(until, _)| *until)
    }

    /// Nothing more came.
    fn ending(self) -> Ending {
        // An order that has not been acknowledged by now may still have left.
        let over = if self.held { unknown(self.over) } else { self.over };
        self.unproved.map_or(over, |(_, ending)| ending)
    }
}

/// Keeps the looks apart: each takes [`LOOK_EVERY`], and [`LOOKS_AT_ONCE`] may be taken in advance.
struct Pace {
    free: Instant,
}

impl Pace {
    fn looked(&mut self) {
        self.free = self.free.max(Instant::now()) + LOOK_EVERY;
    }

    fn next(&self) -> Instant {
        let now = Instant::now();
        now + self.free.saturating_duration_since(now).saturating_sub(LOOK_EVERY * LOOKS_AT_ONCE)
    }
}

/// Waits for a change, and then until the next look is due. False if the store is gone.
async fn changed(changes: &mut watch::Receiver<u64>, next_look: Instant) -> bool {
    let open = changes.changed().await.is_ok();
    if Instant::now() < next_look {
        tokio::time::sleep_until(next_look).await;
    }
    open
}

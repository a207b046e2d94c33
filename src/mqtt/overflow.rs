//! What a device sends beyond its limit over a link that carries many devices: the link must not stop for it.
//!
//! # Guarantees
//!
//! * **Readings** over the limit are taken from the broker, not stored, and declared lost (`rate_limited`): their PUBACK
//!   leaves after the declaration is committed, so acknowledged still means durable or declared. Declarations of all
//!   devices go together in one commit with the readings among which they came, once in [`DECLARE_EVERY`] or when the
//!   link says that the broker's window may be full ([`super::Intake::hasten`]): PUBACKs leave in the order of receipt, so
//!   the neighbours' messages would otherwise stay with the broker. So a flood costs no more flushes than as many
//!   readings within the limit. One is under way at a time; what comes meanwhile goes with the next.
//! * **States** have a limit of their own. Over it a device's newest state is held until its limit allows it, at most one
//!   message's interval or until the window is full; the ones it replaces are settled with it.
//! * **Answers** share the limit of the states. Over it the newest for each open command is held in the same way, and a
//!   final one is not replaced by a preliminary one: the answer to a command that waits is never lost. An answer that no
//!   open command waits for is refused (`rate_limited`).
//! * What the broker delivers again or because it was retained is not limited: it may be on disk already, and there is
//!   no more of it than the broker's window or one for each device.
//! * What the broker kept while nobody was connected is no flood either ([`super::limits`]).
//!
//! Bounds: for each device one state and [`ANSWERS_HELD_MAX`] answers; receipts, one for each message that the link has
//! not settled ([`super::link::INTAKE_MAX`]).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use floorgate_model::{DeviceId, Timestamp};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::BoxFuture;
use super::codec::Refused;
use super::intake::ReportSink;
use super::limits::{Limits, LiveRates, Silences};
use super::refusals::{Refusal, Refusals};
use crate::shadow::store::{Receipt, Taken};
use crate::shadow::{Answer, AnswerStatus, FloorReport, StateReport, StoreError};

/// Declarations are at most this often, unless the window is full.
pub const DECLARE_EVERY: Duration = Duration::from_secs(1);
/// Answers held for one device: as many as commands can be open for it.
pub const ANSWERS_HELD_MAX: usize = crate::shadow::store::DEVICE_QUEUE_MAX;

type Settled = Result<Taken, StoreError>;
type Waiters = Vec<oneshot::Sender<Settled>>;

/// Readings of one device that were taken and not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostReadings {
    /// Time of the first one.
    pub from: Timestamp,
    /// Time of the last one.
    pub to: Timestamp,
    /// How many.
    pub count: u64,
}

/// States and answers of one device that wait for its limit.
#[derive(Default)]
struct Words {
    state: Option<(StateReport, Waiters)>,
    answers: Vec<(Answer, Waiters)>,
    due: Option<Instant>,
}

#[derive(Default)]
struct Held {
    lost: BTreeMap<DeviceId, LostReadings>,
    declaring: Waiters,
    declare_at: Option<Instant>,
    /// The window may be full: nothing waits for its time.
    hastened: bool,
    words: BTreeMap<DeviceId, Words>,
}

/// What is over the limit and not settled yet. Shared by the intake and what runs it.
pub(super) struct Overflow {
    readings: Limits,
    words: Limits,
    refusals: Arc<Refusals>,
    held: Mutex<Held>,
    changed: Notify,
}

impl fmt::Debug for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overflow").field("readings", &self.readings).finish_non_exhaustive()
    }
}

impl Overflow {
    pub(super) fn new(rates: LiveRates, silences: Silences, refusals: Arc<Refusals>) -> Self {
        let (readings, words) = (Limits::new(rates.clone(), silences), Limits::new(rates, Silences::new()));
        Self { readings, words, refusals, held: Mutex::default(), changed: Notify::new() }
    }

    /// See [`super::Intake::connected`].
    pub(super) fn connected(&self) {
        self.readings.connected();
    }

    /// Hands a report to the sink, or keeps it back; the receipt says when it may be acknowledged. `None`: refused.
    pub(super) async fn submit<S: ReportSink>(
        &self,
        sink: &S,
        report: FloorReport,
        redelivered: bool,
    ) -> Result<Option<Receipt>, StoreError> {
        let now = Instant::now();
        match report {
            FloorReport::Telemetry(report) if !report.retained => {
                if redelivered || self.readings.take(&report.device_id, now).is_ok() {
                    return sink.submit(FloorReport::Telemetry(report)).await.map(Some);
                }
                Ok(Some(self.lose(&report.device_id, report.received_at, now)))
            }
            FloorReport::State(report) if !report.retained => match self.hold_state(report, redelivered, now) {
                Ok(receipt) => Ok(Some(receipt)),
                Err(report) => sink.submit(FloorReport::State(*report)).await.map(Some),
            },
            FloorReport::Answer(answer) if !redelivered => {
                let crowded = self.held().words.get(&answer.device_id).is_some_and(|words| !words.answers.is_empty());
                let due = self.words.take(&answer.device_id, now);
                if due.is_ok() && !crowded {
                    return sink.submit(FloorReport::Answer(answer)).await.map(Some);
                }
                if !sink.is_awaited(&answer).await? {
                    let detail = "an answer no command waits for, beyond the device's limit";
                    self.refusals.record(answer.device_id.as_str(), &Refused::new(Refusal::RateLimited, detail));
                    return Ok(None);
                }
                match self.hold_answer(answer, due.err().unwrap_or(now)) {
                    Ok(receipt) => Ok(Some(receipt)),
                    Err(answer) => sink.submit(FloorReport::Answer(*answer)).await.map(Some),
                }
            }
            other => sink.submit(other).await.map(Some),
        }
    }

    /// Lets go what is held; answers whether that declares losses, which commits the store's waiting readings too.
    pub(super) fn hasten(&self) -> bool {
        let mut held = self.held();
        let declares = !held.lost.is_empty();
        held.hastened = declares || !held.words.is_empty();
        let hastened = held.hastened;
        drop(held);
        if hastened {
            self.changed.notify_one();
        }
        declares
    }

    fn lose(&self, device: &DeviceId, at: Timestamp, now: Instant) -> Receipt {
        self.refusals.count(Refusal::RateLimited);
        let (settle, receipt) = oneshot::channel();
        let mut held = self.held();
        let lost = held.lost.entry(device.clone()).or_insert(LostReadings { from: at, to: at, count: 0 });
        (lost.from, lost.to, lost.count) = (lost.from.min(at), lost.to.max(at), lost.count + 1);
        held.declaring.push(settle);
        held.declare_at.get_or_insert(now + DECLARE_EVERY);
        drop(held);
        self.changed.notify_one();
        receipt
    }

    /// Holds a state if its device is over the limit or an older one is held; else gives it back.
    fn hold_state(&self, report: StateReport, redelivered: bool, now: Instant) -> Result<Receipt, Box<StateReport>> {
        let mut held = self.held();
        let behind = held.words.get(&report.device_id).is_some_and(|words| words.state.is_some());
        let due = match self.words.take(&report.device_id, now) {
            Ok(()) if !behind => return Err(Box::new(report)),
            _ if redelivered && !behind => return Err(Box::new(report)),
            Ok(()) => now,
            Err(due) => due,
        };
        let (settle, receipt) = oneshot::channel();
        let words = held.words.entry(report.device_id.clone()).or_default();
        words.due.get_or_insert(due);
        let mut waiters = words.state.take().map(|(_, waiters)| waiters).unwrap_or_default();
        if !waiters.is_empty() {
            self.refusals.count(Refusal::RateLimited);
        }
        waiters.push(settle);
        words.state = Some((report, waiters));
        drop(held);
        self.changed.notify_one();
        Ok(receipt)
    }

    fn hold_answer(&self, answer: Answer, due: Instant) -> Result<Receipt, Box<Answer>> {
        let (settle, receipt) = oneshot::channel();
        let mut held = self.held();
        let words = held.words.entry(answer.device_id.clone()).or_default();
        let full = words.answers.len() >= ANSWERS_HELD_MAX;
        match words.answers.iter_mut().find(|(known, _)| known.command_id == answer.command_id) {
            Some((known, waiters)) => {
                self.refusals.count(Refusal::RateLimited);
                if known.status == AnswerStatus::InProgress || answer.status != AnswerStatus::InProgress {
                    *known = answer;
                }
                waiters.push(settle);
            }
            // A command may have ended while its answer was held, and another begun.
            None if full => return Err(Box::new(answer)),
            None => words.answers.push((answer, vec![settle])),
        }
        words.due.get_or_insert(due);
        drop(held);
        self.changed.notify_one();
        Ok(receipt)
    }

    /// When something is due; losses are not while a declaration is under way.
    fn deadline(&self, declaring: bool) -> Option<Instant> {
        let held = self.held();
        if held.hastened {
            return Some(Instant::now());
        }
        let losses = held.declare_at.filter(|_| !declaring);
        held.words.values().filter_map(|words| words.due).chain(losses).min()
    }

    /// Whether nothing shall wait for its time, until this is asked again.
    fn is_hastened(&self) -> bool {
        std::mem::take(&mut self.held().hastened)
    }

    /// The losses to be declared, if it is time.
    fn due_losses(&self, hastened: bool, now: Instant) -> Option<(BTreeMap<DeviceId, LostReadings>, Waiters)> {
        let mut held = self.held();
        let due = hastened || held.declare_at.is_some_and(|at| at <= now);
        if !due || held.lost.is_empty() {
            return None;
        }
        held.declare_at = None;
        Some((std::mem::take(&mut held.lost), std::mem::take(&mut held.declaring)))
    }

    /// The next thing each device may say.
    fn due_words(&self, hastened: bool, now: Instant) -> Vec<(FloorReport, Waiters)> {
        let mut held = self.held();
        let mut due = Vec::new();
        for (device, words) in &mut held.words {
            if !hastened && words.due.is_none_or(|at| at > now) {
                continue;
            }
            match self.words.take(device, now) {
                Err(later) if !hastened => {
                    words.due = Some(later);
                    continue;
                }
                _ => {}
            }
            if words.answers.is_empty() {
                due.extend(words.state.take().map(|(report, waiters)| (FloorReport::State(report), waiters)));
            } else {
                let (answer, waiters) = words.answers.remove(0);
                due.push((FloorReport::Answer(answer), waiters));
            }
        }
        held.words.retain(|_, words| words.state.is_some() || !words.answers.is_empty());
        due
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Declares and hands over what [`Overflow`] holds.
pub struct OverflowRunner<S> {
    pub(super) overflow: Arc<Overflow>,
    pub(super) sink: S,
}

impl<S> fmt::Debug for OverflowRunner<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OverflowRunner").field("overflow", &self.overflow).finish_non_exhaustive()
    }
}

impl<S: ReportSink + Clone> OverflowRunner<S> {
    /// Runs until `stop`. What is held then is not acknowledged: the broker keeps it.
    ///
    /// # Cancel safety
    /// Dropping it leaves what is held unacknowledged.
    pub async fn run(self, stop: CancellationToken) {
        let mut settling: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
        // One declaration at a time. States and answers do not wait for it: while the disk refuses readings it lasts.
        let mut declaring: Option<BoxFuture<'static, ()>> = None;
        let mut losses_hastened = false;
        while !stop.is_cancelled() {
            let deadline = self.overflow.deadline(declaring.is_some());
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.overflow.changed.notified() => {}
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {}
                Some(()) = settling.next(), if !settling.is_empty() => {}
                () = finished(&mut declaring) => declaring = None,
            }
            let (now, hastened) = (Instant::now(), self.overflow.is_hastened());
            losses_hastened |= hastened;
            if declaring.is_none()
                && let Some((lost, waiters)) = self.overflow.due_losses(std::mem::take(&mut losses_hastened), now)
            {
                let sink = self.sink.clone();
                declaring = Some(Box::pin(async move {
                    let outcome = sink.declare_lost(lost).await;
                    settle(waiters, &outcome.map(|()| Taken::Stored));
                }));
            }
            for (report, waiters) in self.overflow.due_words(hastened, now) {
                let sink = self.sink.clone();
                settling.push(Box::pin(async move {
                    let outcome = match sink.submit(report).await {
                        Ok(receipt) => receipt.await.unwrap_or(Err(StoreError::Closed)),
                        Err(error) => Err(error),
                    };
                    settle(waiters, &outcome);
                }));
            }
        }
    }
}

/// Ends with the declaration that is under way; never, if there is none.
async fn finished(declaring: &mut Option<BoxFuture<'static, ()>>) {
    match declaring {
        Some(declaration) => declaration.await,
        None => std::future::pending().await,
    }
}

/// Whoever has gone does not want the answer: its connection is over, and the broker sends again.
fn settle(waiters: Waiters, outcome: &Settled) {
    for waiter in waiters {
        let _ = waiter.send(outcome.clone());
    }
}

#[cfg(test)]
mod tests;

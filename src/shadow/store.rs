//! The handle everyone holds; behind it one thread ([`super::writer`]) owns both files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use floorgate_model::{CommandId, DeviceId, ExecutionRecord, ExecutionStatus, GatewayId, Loss};
use tokio::sync::{mpsc, oneshot, watch};

use super::fault::StoreHealth;
use super::glance::Glance;
use super::held::Held;
use super::journal;
use super::report::FloorReport;
use super::request::{Ask, Instead, Kind, Pace, Request};
use super::rescue::{self, InhibitionWatch, Rescue};
use super::turn::Turn;
use super::view::{DeviceView, HistoryBlock, Lane, OutboxEntry, OutboxOrder, StateSnapshot, StoreStats};
use super::writer::Writer;
use super::{outbox, sessions};
use crate::clock::Clock;

pub use super::terms::{
    Attachment, COMMIT_BATCH, Config, DEVICE_QUEUE_MAX, Effect, Ending, GATEWAY_QUEUE_MAX, Journalled, NewExecution,
    OpenExecution, REQUESTS_MAX, Receipt, StoreError, Taken, Wakeups,
};

/// A cloneable handle on the store. All methods are cancel safe: a request that was handed over is carried out whether
/// or not its caller still waits.
#[derive(Debug, Clone)]
pub struct Store {
    wakeups: Arc<Wakeups>,
    floor_changes: watch::Receiver<u64>,
    pub(super) health: watch::Receiver<StoreHealth>,
    inhibition: InhibitionWatch,
    pub(super) held: Held,
    line: Arc<Line>,
}

/// The line to the thread. Dropping the last handle closes the store in order, too, but blocks meanwhile; rather call
/// [`Store::close`].
#[derive(Debug)]
struct Line {
    requests: Option<mpsc::Sender<Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Line {
    fn take_thread(&self) -> Option<JoinHandle<()>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.take_thread() {
            // An error here is a panic of the thread, which has told of itself.
            let _ = thread.join();
        }
    }
}

/// # Errors
/// Every method answers [`StoreError::Disk`] or [`StoreError::Io`] if the files cannot be read or written, and
/// [`StoreError::Closed`] after [`Store::close`]; only other errors are told apart below. Devices, figures, states and
/// refusals are answered from memory while the disk fails.
impl Store {
    /// Opens or makes both files, migrates, rescues what is damaged, and starts the writer thread. A disk that is full,
    /// read-only or failing is no error: the store is then not healthy ([`Self::health`]) and tries again by itself.
    pub fn open(config: Config, clock: Clock) -> Result<Self, StoreError> {
        let wakeups = Arc::new(Wakeups::default());
        let ((floor, floor_changes), (told, health)) = (watch::channel(0), watch::channel(StoreHealth::default()));
        let cannot = |cause: std::io::Error| StoreError::Open {
            path: config.state_dir.display().to_string(),
            cause: format!("no thread for the store: {cause}"),
            hint: "raise the limit of threads of floorgate's user or service",
        };
        let (writer, inhibition) = Writer::open(config.clone(), clock, Arc::clone(&wakeups), (floor, told), now())?;
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        let (started, whether_started) = std::sync::mpsc::sync_channel(1);
        // Its timer alone is used: the thread waits for requests and for the end of a window. It is made and dropped
        // in the thread, because a runtime must not be dropped inside another one.
        let run = move || match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                writer.run(receiver, &runtime);
            }
            Err(cause) => {
                let _ = started.send(Err(cause));
            }
        };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(run).map_err(cannot)?;
        whether_started.recv().unwrap_or_else(|_| Err(std::io::Error::other("it ended at once"))).map_err(cannot)?;
        let line = Line { requests: Some(requests), thread: Mutex::new(Some(thread)) };
        Ok(Self { wakeups, floor_changes, health, inhibition, held: Held::default(), line: Arc::new(line) })
    }

    /// Closes: commits what waits, checkpoints, ends the thread. Later requests answer [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        let Some(thread) = self.line.take_thread() else { return Ok(()) };
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Kind::Close(reply)).await;
        let outcome = match sent {
            Ok(()) => answer.await.unwrap_or(Err(StoreError::Closed)),
            Err(closed) => Err(closed),
        };
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if matches!(joined, Ok(Ok(()))) { outcome } else { Err(StoreError::Closed) }
    }

    // ---- floor in -------------------------------------------------------------------------------------------

    /// Hands a report over, waiting for room in the queue. The receipt resolves after its commit.
    pub async fn submit(&self, report: FloorReport) -> Result<Receipt, StoreError> {
        match report {
            FloorReport::Telemetry(report) if !report.retained => {
                let (reply, receipt) = oneshot::channel();
                self.send(Kind::Sample(Box::new(report), reply)).await?;
                Ok(receipt)
            }
            FloorReport::Telemetry(report) => {
                self.hand_over(Pace::AtOnce, move |turn| Ok(turn.retained_sample(&report))).await
            }
            FloorReport::State(report) => {
                self.hand_over(Pace::AtOnce, move |turn| Ok(turn.state_report(&report))).await
            }
            FloorReport::Answer(answer) => self.hand_over(Pace::AtOnce, move |turn| turn.answer(&answer)).await,
        }
    }

    /// Declares readings lost that were taken from their senders and never stored (`rate_limited`): they count as
    /// accepted and as lost, and a gap record of each device and reason tells the history table. Answers after the
    /// commit; on an error nothing is declared, and it may be called again. A loss of a device that is not attached, or
    /// of no reading, is left out. What *was* stored and is given up is declared by the store itself.
    pub async fn declare_lost(&self, losses: Vec<Loss>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Kind::Lost(losses, reply)).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Readings that wait for company are committed now: their sender can send nothing more before they are. Best
    /// effort: without it they are committed after `commit_interval`.
    pub async fn hasten(&self) {
        let _ = self.send(Kind::Hasten).await;
    }

    /// Tells that the floor's broker is reachable or not: while it is not (and for 60 s), silence proves nothing.
    pub async fn floor_reachable(&self, yes: bool) -> Result<(), StoreError> {
        self.ask(Pace::Lazy, move |turn| {
            turn.floor_reachable(yes);
            Ok(())
        })
        .await
    }

    /// A device has connected anew in the place of an older connection: it is there. Says nothing about its state, and
    /// proves no reboot.
    pub async fn device_returned(&self, id: &DeviceId) -> Result<(), StoreError> {
        let id = id.clone();
        self.ask(Pace::Lazy, move |turn| {
            turn.device_returned(&id);
            Ok(())
        })
        .await
    }

    /// One step of the timers: offline by silence, warning delays, blocks older than 60 s, overdue flushes.
    /// The gateway calls it every second; tests call it as they like.
    pub async fn tick(&self) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Kind::Tick(reply)).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    /// From now on these devices are attached (the gateway itself among them) and no others; all or nothing, on disk before
    /// the answer. Known ones keep what is known of them. What is not attached any more is no longer shown nor written to
    /// the tables; its history still goes there, and its open commands end as the judge and their timeouts have it.
    pub async fn attach(&self, devices: Vec<Attachment>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        self.send(Kind::Attach(devices, reply)).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    // ---- what is known --------------------------------------------------------------------------------------

    /// What the loops that move things on wait for.
    pub fn wakeups(&self) -> &Wakeups {
        &self.wakeups
    }

    /// Counts up after every committed state report and answer; for those who wait for a device's word.
    pub fn floor_changes(&self) -> watch::Receiver<u64> {
        self.floor_changes.clone()
    }

    /// How the store stands, at every change.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.health.clone()
    }

    /// Waits until a report of this kind is worth handing over: its file is in use. Whoever waits here instead of trying
    /// leaves what is not yet acknowledged with its sender. Cancel safe.
    pub async fn until_taken(&self, report: &FloorReport) {
        let live_reading = matches!(report, FloorReport::Telemetry(report) if !report.retained);
        let taken = |health: &StoreHealth| if live_reading { health.takes_readings } else { health.takes_reports };
        // An error means that the store is closed: whoever tries is told so.
        let _ = self.health.clone().wait_for(taken).await;
    }

    /// Whether commands are inhibited because the journal is in doubt.
    pub fn inhibition(&self) -> &InhibitionWatch {
        &self.inhibition
    }

    /// What was damaged and what came of it, newest first; the last 20.
    pub async fn rescues(&self) -> Result<Vec<Rescue>, StoreError> {
        self.ask(Pace::Lazy, |turn| rescue::state::rescues(turn.connection)).await
    }

    /// Every attached device, in the order of the ids.
    pub async fn devices(&self) -> Result<Vec<DeviceView>, StoreError> {
        self.look(|turn| Ok(turn.devices()), |glance| Ok(glance.devices())).await
    }

    /// One attached device; `None` if nothing is attached under this id.
    pub async fn device(&self, id: &DeviceId) -> Result<Option<DeviceView>, StoreError> {
        let (id, same) = (id.clone(), id.clone());
        self.look(move |turn| Ok(turn.device(&id)), move |glance| Ok(glance.device(&same))).await
    }

    /// Newest first, all devices or one.
    pub async fn executions(
        &self,
        device: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<ExecutionRecord>, StoreError> {
        let device = device.cloned();
        self.ask(Pace::Lazy, move |turn| journal::newest(turn.connection, device.as_ref(), limit)).await
    }

    /// Figures for `status`.
    pub async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.look(|turn| turn.stats(), |glance| Ok(glance.stats())).await
    }

    // ---- commands -------------------------------------------------------------------------------------------

    /// Inserts if absent, atomically with the queue bounds; commits at once. While the disk takes no writes, a command that
    /// was not tried before is answered as `rejected`, `INHIBITED`; that is announced, and journalled later.
    pub async fn journal(&self, entry: NewExecution) -> Result<Journalled, StoreError> {
        let same = entry.clone();
        let refused = move |glance: &mut Glance<'_>| glance.journal(same.clone());
        let instead = Instead { only_looks: false, work: Box::new(refused) };
        self.ask_or(Pace::AtOnce, move |turn| turn.journal(entry), instead).await
    }

    /// All `created` executions, first in first out.
    pub async fn waiting(&self) -> Result<Vec<OpenExecution>, StoreError> {
        self.ask(Pace::Lazy, |turn| journal::with_status(turn.connection, ExecutionStatus::Created)).await
    }

    /// All `in_progress` executions; at start, those that were interrupted.
    pub async fn in_progress(&self) -> Result<Vec<OpenExecution>, StoreError> {
        self.ask(Pace::Lazy, |turn| journal::with_status(turn.connection, ExecutionStatus::InProgress)).await
    }

    /// One open execution; `None` once it is terminal or if it is not known.
    pub async fn open_execution(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let (device, id) = (device.clone(), id.clone());
        self.ask(Pace::Lazy, move |turn| turn.open_execution(&device, &id)).await
    }

    /// Commits the intent: `created` → `in_progress`. `None` if it is not `created` any more, or the device already
    /// has one in progress.
    pub async fn claim(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let (device, id) = (device.clone(), id.clone());
        self.ask(Pace::AtOnce, move |turn| turn.claim(&device, &id)).await
    }

    /// Ends an execution, once: `None` if it was terminal already. Outcome, effect and announcements share the
    /// transaction, and the device's state becomes urgent (whatever the tools wrote optimistically is put right).
    pub async fn finish(
        &self,
        device: &DeviceId,
        id: &CommandId,
        ending: Ending,
    ) -> Result<Option<ExecutionRecord>, StoreError> {
        let (device, id) = (device.clone(), id.clone());
        self.ask(Pace::AtOnce, move |turn| turn.finish(&device, &id, ending)).await
    }

    // ---- lanes out ------------------------------------------------------------------------------------------

    /// The next due announcements of a lane: accepted commands before refused ones, each kind oldest first.
    pub async fn peek_outbox(&self, lane: Lane, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        self.peek_outbox_after(lane, OutboxOrder::OutcomesFirst, 0, limit).await
    }

    /// As [`Store::peek_outbox`], but in this order, and only entries with a higher number than `after`. Numbers only
    /// grow, so this is what came after an entry that was seen.
    pub async fn peek_outbox_after(
        &self,
        lane: Lane,
        order: OutboxOrder,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        // What is refused in memory has numbers below zero: it comes before everything.
        let refused = move |glance: &mut Glance<'_>| match lane {
            Lane::Result if after <= 0 => Ok(glance.peek_refused(limit)),
            Lane::Result | Lane::Table => Err(glance.cause.clone()),
        };
        self.look(move |turn| outbox::peek(turn.connection, lane, order, after, limit), refused).await
    }

    /// Announced. An entry that was renewed meanwhile has another number and stays.
    pub async fn confirm_outbox(&self, lane: Lane, seqs: Vec<i64>) -> Result<(), StoreError> {
        let (journalled, refused): (Vec<i64>, Vec<i64>) = seqs.into_iter().partition(|seq| *seq > 0);
        let in_memory = refused.clone();
        let work = move |turn: &mut Turn<'_>| {
            turn.memory.refused.confirm(&refused);
            outbox::confirm(turn.connection, lane, &journalled)
        };
        let instead = move |glance: &mut Glance<'_>| {
            glance.memory.refused.confirm(&in_memory);
            // The others go out once more; that is better than to believe them confirmed.
            Ok(())
        };
        self.look(work, instead).await
    }

    /// States newer than the table's, urgent ones first; `urgent_only` leaves the others for the next interval.
    pub async fn peek_states(&self, urgent_only: bool, limit: usize) -> Result<Vec<StateSnapshot>, StoreError> {
        let in_memory = move |glance: &mut Glance<'_>| glance.peek_states(urgent_only, limit);
        self.look(move |turn| Ok(turn.peek_states(urgent_only, limit)), in_memory).await
    }

    /// The table has this version (or a newer one of ours).
    pub async fn confirm_state(&self, device: &DeviceId, version: u64) -> Result<(), StoreError> {
        let (id, same) = (device.clone(), device.clone());
        let work = move |turn: &mut Turn<'_>| {
            turn.confirm_state(&id, version);
            Ok(())
        };
        let in_memory = move |glance: &mut Glance<'_>| {
            glance.confirm_state(&same, version);
            Ok(())
        };
        self.look(work, in_memory).await
    }

    /// The table had a higher version under our name: go on above it.
    pub async fn adopt_version(&self, device: &DeviceId, table_version: u64) -> Result<(), StoreError> {
        let id = device.clone();
        self.ask(Pace::AtOnce, move |turn| {
            turn.adopt_version(&id, table_version);
            Ok(())
        })
        .await
    }

    /// Another gateway writes this device's item: leave it alone (`None`: it is ours again).
    pub async fn taken_over(&self, device: &DeviceId, by: Option<GatewayId>) -> Result<(), StoreError> {
        let id = device.clone();
        self.ask(Pace::AtOnce, move |turn| {
            turn.taken_over(&id, by);
            Ok(())
        })
        .await
    }

    /// Closed blocks not yet accepted, oldest first.
    pub async fn peek_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        self.ask(Pace::Lazy, move |turn| turn.samples.peek_blocks(limit)).await
    }

    /// The newest closed blocks not yet accepted, newest first; no gap records. With a backlog, they need not wait
    /// behind it.
    pub async fn peek_newest_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        self.ask(Pace::Lazy, move |turn| turn.samples.peek_newest_blocks(limit)).await
    }

    /// Accepted by the table.
    pub async fn confirm_blocks(&self, ids: Vec<i64>) -> Result<(), StoreError> {
        self.ask(Pace::Lazy, move |turn| {
            turn.samples.confirm_blocks(&ids);
            Ok(())
        })
        .await
    }

    /// Refused by the table for good: kept aside with the reason, at most 1,000, never in the way of others.
    pub async fn park_block(&self, id: i64, reason: String) -> Result<(), StoreError> {
        self.ask(Pace::Lazy, move |turn| turn.samples.park_block(id, &reason)).await
    }

    // ---- sessions of the floor endpoint ---------------------------------------------------------------------

    /// Persistent sessions of MQTT clients of the floor endpoint: client id → topic filters. At most 1,000.
    pub async fn sessions(&self) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
        self.look(|turn| sessions::all(turn.connection), |glance| glance.sessions()).await
    }

    /// Keeps (or with `None` forgets) a client's persistent session.
    pub async fn save_session(&self, client: String, filters: Option<Vec<String>>) -> Result<(), StoreError> {
        self.ask(Pace::AtOnce, move |turn| sessions::save(turn.connection, &client, filters.as_deref())).await
    }

    // ---- the line -------------------------------------------------------------------------------------------

    async fn ask<T, F>(&self, pace: Pace, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.hand_over(pace, work).await?.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Something that only looks, and what is answered from memory while the file is out of use.
    async fn look<T, F, G>(&self, work: F, instead: G) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError> + Send + 'static,
        G: FnMut(&mut Glance<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.ask_or(Pace::Lazy, work, Instead { only_looks: true, work: Box::new(instead) }).await
    }

    async fn ask_or<T, F>(&self, pace: Pace, work: F, instead: Instead<T>) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (ask, answer) = Ask::new(work, Some(instead));
        self.send(Kind::Work(Box::new(ask), pace)).await?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn hand_over<T, F>(&self, pace: Pace, work: F) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Turn<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let (ask, answer) = Ask::new(work, None);
        self.send(Kind::Work(Box::new(ask), pace)).await?;
        Ok(answer)
    }

    pub(super) async fn send(&self, kind: Kind) -> Result<(), StoreError> {
        let requests = self.line.requests.as_ref().ok_or(StoreError::Closed)?;
        requests.send(Request { now: now(), kind }).await.map_err(|_| StoreError::Closed)
    }
}

/// The sender's monotonic clock: the runtime's, which tests can pause.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests;

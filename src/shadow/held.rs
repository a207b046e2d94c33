//! Readings that come while their file is out of use, so that whatever comes behind them on the same connection is read.
//!
//! A link or a connection takes messages in the order of their receipt. If a reading that cannot be stored stopped the
//! reading, the answer to a running command behind it would not be heard. So its receipt is given at once, and resolves
//! when the file is in use again: the reading stays unacknowledged with its sender meanwhile.
//!
//! # Guarantees
//!
//! * Receipts resolve after the commit, as ever; a device's readings go into the file in the order in which they came.
//! * Memory: readings of at most [`HELD_BYTES_MAX`], of one device [`HELD_DEVICE_BYTES_MAX`]. What is beyond is *turned
//!   away*: its content is dropped and its receipt fails once readings are taken again, so its connection ends then and
//!   the sender, which has it still, sends it again. So do the later readings of that device, which must not overtake it.
//! * At most [`TURNED_AWAY_MAX`] receipts of that kind; whoever brings one more waits for the file, and is not read.
//!
//! # What it does not do
//!
//! A sender, or a broker, with a window of unacknowledged messages sends nothing behind a window full of readings. What
//! was published with QoS 0 and is turned away is lost, as QoS 0 has it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use floorgate_model::DeviceId;
use tokio::sync::{Notify, oneshot};

use super::fault::{Fault, StoreHealth};
use super::report::TelemetryReport;
use super::request::Kind;
use super::store::Store;
use super::terms::{Receipt, StoreError, Taken};

/// Bytes of the readings of all devices that are held; beyond, they are turned away.
pub(super) const HELD_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Bytes of the readings of one device that are held; beyond, they are turned away.
pub(super) const HELD_DEVICE_BYTES_MAX: usize = 64 * 1024;
/// Readings turned away whose senders wait for the file; beyond, nothing more is read from who brings one.
pub(super) const TURNED_AWAY_MAX: usize = 20_000;
/// What a reading takes beside its names, bytes: a generous guess at its report, its receipt and its place in a map.
const REPORT_BYTES: usize = 512;

type Settle = oneshot::Sender<Result<Taken, StoreError>>;

/// Shared by all handles on the store.
#[derive(Debug, Clone, Default)]
pub(super) struct Held {
    inner: Arc<Mutex<Inner>>,
    /// Nothing waits any more.
    drained: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<(TelemetryReport, Settle)>,
    bytes: usize,
    bytes_of: HashMap<DeviceId, usize>,
    turned_away: Vec<Settle>,
    devices_turned_away: HashSet<DeviceId>,
    /// A task waits for the file, or hands over what waited.
    draining: bool,
}

/// What became of a reading.
enum Place {
    /// Held or turned away: here is its receipt. The flag asks for a task that drains.
    Taken(Receipt, bool),
    /// Its file is in use, and nothing waits before it.
    Direct(TelemetryReport),
    /// There is no place for a receipt either.
    Full(TelemetryReport),
}

fn bytes(report: &TelemetryReport) -> usize {
    REPORT_BYTES + report.readings.iter().map(|(name, _)| name.len() + REPORT_BYTES / 8).sum::<usize>()
}

impl Held {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, report: TelemetryReport, health: &StoreHealth) -> Place {
        let mut inner = self.inner();
        if health.takes_readings && !inner.draining {
            return Place::Direct(report);
        }
        let (settle, receipt) = oneshot::channel();
        let (size, device) = (bytes(&report), report.device_id.clone());
        let of_device = inner.bytes_of.get(&device).copied().unwrap_or(0);
        if inner.turned_away.len() >= TURNED_AWAY_MAX {
            // Connections end while the disk fails, and what they brought comes again on others.
            inner.turned_away.retain(|settle| !settle.is_closed());
        }
        let fits = inner.bytes + size <= HELD_BYTES_MAX && of_device + size <= HELD_DEVICE_BYTES_MAX;
        if fits && !inner.devices_turned_away.contains(&device) {
            inner.bytes += size;
            inner.bytes_of.insert(device, of_device + size);
            inner.waiting.push_back((report, settle));
        } else if inner.turned_away.len() < TURNED_AWAY_MAX {
            inner.devices_turned_away.insert(device);
            inner.turned_away.push(settle);
        } else {
            return Place::Full(report);
        }
        let first = !std::mem::replace(&mut inner.draining, true);
        Place::Taken(receipt, first)
    }

    /// The next one that waited; `None` after the last, and then those turned away are told so.
    fn next(&self) -> Option<(TelemetryReport, Settle)> {
        let mut inner = self.inner();
        let Some((report, settle)) = inner.waiting.pop_front() else {
            for settle in std::mem::take(&mut inner.turned_away) {
                // Whoever has gone does not want the answer.
                let _ = settle.send(Err(turned_away()));
            }
            *inner = Inner::default();
            drop(inner);
            self.drained.notify_waiters();
            return None;
        };
        let size = bytes(&report);
        inner.bytes -= size;
        if let Some(of_device) = inner.bytes_of.get_mut(&report.device_id) {
            *of_device -= size;
        }
        Some((report, settle))
    }
}

#[cfg(test)]
impl Held {
    pub(super) fn bytes(&self) -> usize {
        self.inner().bytes
    }

    pub(super) fn bytes_of(&self, device: &DeviceId) -> usize {
        self.inner().bytes_of.get(device).copied().unwrap_or(0)
    }

    pub(super) fn turned_away(&self) -> usize {
        self.inner().turned_away.len()
    }
}

fn turned_away() -> StoreError {
    let cause = "too many readings waited for its file; its sender is asked to send it again".to_owned();
    StoreError::Disk { doing: "keep a reading", cause, fault: Fault::Other }
}

impl Store {
    /// As [`Store::submit`] for a live reading, but while its file is out of use the receipt comes at once and resolves
    /// when it is in use again. Waits only while [`TURNED_AWAY_MAX`] others wait, and for room in the queue.
    ///
    /// # Errors
    /// [`StoreError::Closed`] after [`Store::close`].
    pub async fn submit_patiently(&self, mut report: TelemetryReport) -> Result<Receipt, StoreError> {
        loop {
            let drained = self.held.drained.notified();
            tokio::pin!(drained);
            // Before the look, so that an end of the waiting after it is not missed.
            drained.as_mut().enable();
            let placed = self.held.place(report, &self.health.borrow());
            match placed {
                Place::Taken(receipt, first) => {
                    if first {
                        tokio::spawn(drain(self.clone()));
                    }
                    return Ok(receipt);
                }
                Place::Direct(report) => {
                    let (settle, receipt) = oneshot::channel();
                    self.send(Kind::Sample(Box::new(report), settle)).await?;
                    return Ok(receipt);
                }
                Place::Full(back) => {
                    drained.await;
                    report = back;
                }
            }
        }
    }

    /// Waits until the file of the readings is in use. Cancel safe.
    pub async fn until_readings_taken(&self) {
        // An error means that the store is closed: whoever tries is told so.
        let _ = self.health.clone().wait_for(|health| health.takes_readings).await;
    }
}

/// Hands over what waited, once the file is in use; ends when nothing waits any more, or the store is closed.
async fn drain(store: Store) {
    loop {
        // It may be out of use again in between.
        store.until_readings_taken().await;
        let Some((report, settle)) = store.held.next() else { return };
        // If the store is closed, dropping the receipt tells it.
        let _ = store.send(Kind::Sample(Box::new(report), settle)).await;
    }
}

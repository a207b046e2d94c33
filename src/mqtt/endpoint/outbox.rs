//! The writing half of a connection: acknowledgements in order, orders once, forwards while there is room.
//!
//! * A PUBACK is written when its message and all before it are settled. PUBACKs that become due together leave in
//!   one write.
//! * An order is taken up only when everything before it is in the socket, its deadline is checked then and again
//!   while its first byte waits for room; once a byte has left it counts as sent, and is never sent again.
//! * [`Outbox::turn`] does one thing at a time and is cancel safe: a write that is cut short goes on where it stopped.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::connection::End;
use super::hub::Hub;
use super::stats::Refusal;
use super::wire;
use crate::clock::Deadline;
use crate::mqtt::Acceptance;
use crate::mqtt::handed::NotHanded;
use crate::shadow::store::Receipt;

/// Messages and orders that may wait for one connection. Beyond, forwards are left out and orders are not taken.
pub const QUEUE_MAX: usize = 64;
/// A write that makes no progress for this long ends the connection.
pub const WRITE_STALL: Duration = Duration::from_secs(10);
/// Bytes collected for one write; while more wait, nothing is read from the connection.
pub(super) const PENDING_BYTES: usize = 64 * 1024;

/// Something to be written.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A whole PUBLISH for a watcher.
    Forward(Bytes),
    /// An order for a device.
    Order(Order),
}

/// An order on its way.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    pub(super) qos: u8,
    /// No byte leaves from here on.
    pub(super) deadline: Deadline,
    /// Told when the first byte has left, or that none will; dropped if the connection ended before.
    pub(super) left: oneshot::Sender<Result<Acknowledgement, NotHanded>>,
}

/// Resolves when the device acknowledged; dropped if the connection ended before. `None`: QoS 0, it never will.
pub(super) type Acknowledgement = Option<oneshot::Receiver<()>>;

struct Staged {
    order: Order,
    packet: Bytes,
    pkid: Option<u16>,
}

struct Unsettled {
    pkid: u16,
    receipt: Option<Receipt>,
}

pub(super) struct Outbox<W> {
    writer: W,
    pending: BytesMut,
    flush_due: bool,
    stalled_at: Option<Instant>,
    /// Retained states for a watcher that has just subscribed.
    retained: VecDeque<Bytes>,
    unsettled: VecDeque<Unsettled>,
    queue: mpsc::Receiver<Outgoing>,
    staged: Option<Staged>,
    in_flight: HashMap<u16, oneshot::Sender<()>>,
    last_pkid: u16,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(super) fn new(writer: W, queue: mpsc::Receiver<Outgoing>) -> Self {
        Self {
            writer,
            pending: BytesMut::new(),
            flush_due: false,
            stalled_at: None,
            retained: VecDeque::new(),
            unsettled: VecDeque::new(),
            queue,
            staged: None,
            in_flight: HashMap::new(),
            last_pkid: 0,
        }
    }

    /// Where answers that need no waiting are written to.
    pub(super) fn pending(&mut self) -> &mut BytesMut {
        &mut self.pending
    }

    /// Adds retained states, after the SUBACK that is pending.
    pub(super) fn add_retained(&mut self, frames: Vec<Bytes>) {
        self.retained.extend(frames);
    }

    /// Messages not yet acknowledged.
    pub(super) fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    /// Whether so much waits to be written that nothing more should be read.
    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_BYTES || !self.retained.is_empty()
    }

    /// Whether an order was sent and not acknowledged.
    pub(super) fn owes_acknowledgement(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// A message was accepted; its PUBACK is due when it and those before it are settled.
    pub(super) fn owe(&mut self, pkid: u16, acceptance: Acceptance) {
        match acceptance {
            Acceptance::Settled if self.unsettled.is_empty() => wire::puback(&mut self.pending, pkid),
            Acceptance::Settled => self.unsettled.push_back(Unsettled { pkid, receipt: None }),
            Acceptance::Pending(receipt) => self.unsettled.push_back(Unsettled { pkid, receipt: Some(receipt) }),
        }
    }

    /// The device acknowledged an order.
    pub(super) fn acknowledged(&mut self, pkid: u16) {
        if let Some(waiting) = self.in_flight.remove(&pkid) {
            // Nobody waits any more if it came too late; that is the waiter's business.
            let _ = waiting.send(());
        }
    }

    /// Does the next thing there is to do, waiting for it if there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn turn(&mut self, hub: &Hub) -> Result<(), End> {
        self.settle()?;
        if !self.pending.is_empty() {
            return self.write().await;
        }
        if let Some(frame) = self.retained.pop_front() {
            self.pending.extend_from_slice(&frame);
            return Ok(());
        }
        if self.staged.is_some() {
            return self.send_staged(hub).await;
        }
        if self.flush_due {
            return self.flush().await;
        }
        let front = self.unsettled.front_mut();
        let outgoing = tokio::select! {
            settled = settled(front) => return settled,
            outgoing = self.queue.recv() => outgoing,
        };
        match outgoing {
            Some(outgoing) => self.take_up(outgoing),
            // The connection holds a sender itself, so the queue does not close.
            None => std::future::pending().await,
        }
        Ok(())
    }

    /// Writes the PUBACKs that are due.
    fn settle(&mut self) -> Result<(), End> {
        while let Some(front) = self.unsettled.front_mut() {
            match front.receipt.as_mut().map(Receipt::try_recv) {
                None | Some(Ok(Ok(_))) => wire::puback(&mut self.pending, front.pkid),
                Some(Err(oneshot::error::TryRecvError::Empty)) => break,
                Some(Ok(Err(error))) => return Err(not_stored(&error)),
                Some(Err(oneshot::error::TryRecvError::Closed)) => return Err(not_stored(&"the store went away")),
            }
            fail_point!(EndpointBeforePuback);
            self.unsettled.pop_front();
        }
        Ok(())
    }

    fn take_up(&mut self, outgoing: Outgoing) {
        let mut next = Some(outgoing);
        while let Some(outgoing) = next {
            match outgoing {
                Outgoing::Forward(frame) => self.pending.extend_from_slice(&frame),
                Outgoing::Order(order) => return self.stage(order),
            }
            next = if self.pending.len() < PENDING_BYTES { self.queue.try_recv().ok() } else { None };
        }
    }

    fn stage(&mut self, order: Order) {
        let pkid = (order.qos > 0).then(|| self.next_pkid());
        if self.in_flight.len() >= QUEUE_MAX {
            let reason = format!("{QUEUE_MAX} orders on `{}` are not acknowledged", order.topic);
            let _ = order.left.send(Err(NotHanded::Offline(reason)));
            return;
        }
        let packet = wire::publish(&order.topic, &order.payload, pkid, false);
        self.staged = Some(Staged { order, packet, pkid });
    }

    fn next_pkid(&mut self) -> u16 {
        loop {
            self.last_pkid = self.last_pkid.checked_add(1).unwrap_or(1);
            // At most QUEUE_MAX are taken, so one is free.
            if !self.in_flight.contains_key(&self.last_pkid) {
                return self.last_pkid;
            }
        }
    }

    /// Tries to get the first byte of an order out before its deadline.
    async fn send_staged(&mut self, hub: &Hub) -> Result<(), End> {
        let stall = self.stall();
        let Some(staged) = self.staged.as_ref() else { return Ok(()) };
        // Room that a machine finds when it wakes is none for what has expired while it slept.
        let written = staged.order.deadline.guard(timeout_at(stall, self.writer.write(&staged.packet))).await;
        let Some(written) = written else {
            self.stalled_at = None;
            let expired = self.staged.take().map(|staged| staged.order.left.send(Err(NotHanded::Expired)));
            drop(expired);
            return Ok(());
        };
        let Ok(written) = written else { return Err(slow_reader()) };
        match written {
            Ok(count) if count > 0 => self.sent(count, hub),
            _ => return Err(End::Lost),
        }
        Ok(())
    }

    /// An order's first bytes have left: from here on it is sent.
    fn sent(&mut self, count: usize, hub: &Hub) {
        (self.stalled_at, self.flush_due) = (None, true);
        let Some(Staged { order, packet, pkid }) = self.staged.take() else { return };
        let acknowledgement = pkid.map(|pkid| {
            let (acknowledge, acknowledged) = oneshot::channel();
            self.in_flight.insert(pkid, acknowledge);
            acknowledged
        });
        let _ = order.left.send(Ok(acknowledgement));
        self.pending.extend_from_slice(packet.get(count..).unwrap_or_default());
        hub.counters.orders.fetch_add(1, Ordering::Relaxed);
        hub.forward(&order.topic, &order.payload);
    }

    async fn write(&mut self) -> Result<(), End> {
        let stall = self.stall();
        match timeout_at(stall, self.writer.write(&self.pending)).await {
            Err(_) => Err(slow_reader()),
            Ok(Ok(count)) if count > 0 => {
                fail_point!(EndpointAfterWrite);
                self.pending.advance(count);
                (self.stalled_at, self.flush_due) = (None, true);
                Ok(())
            }
            Ok(_) => Err(End::Lost),
        }
    }

    /// TLS holds bytes of its own; TCP has nothing to do here.
    async fn flush(&mut self) -> Result<(), End> {
        let stall = self.stall();
        match timeout_at(stall, self.writer.flush()).await {
            Err(_) => Err(slow_reader()),
            Ok(Err(_)) => Err(End::Lost),
            Ok(Ok(())) => {
                (self.stalled_at, self.flush_due) = (None, false);
                Ok(())
            }
        }
    }

    /// When the write that is under way counts as stalled.
    fn stall(&mut self) -> Instant {
        *self.stalled_at.get_or_insert_with(|| Instant::now() + WRITE_STALL)
    }

    /// Writes what is pending and closes, as far as that goes within `wait`.
    pub(super) async fn close(&mut self, wait: Duration) {
        let closing = async {
            self.writer.write_all(&self.pending).await?;
            self.writer.shutdown().await
        };
        // Whatever fails here: the connection is over.
        let _ = tokio::time::timeout(wait, closing).await;
    }
}

/// Waits until the oldest message is settled; for ever if there is none.
async fn settled(front: Option<&mut Unsettled>) -> Result<(), End> {
    let Some(Unsettled { receipt, .. }) = front else { return std::future::pending().await };
    let Some(waiting) = receipt else { return Ok(()) };
    match waiting.await {
        Ok(Ok(_)) => {
            *receipt = None;
            Ok(())
        }
        Ok(Err(error)) => Err(not_stored(&error)),
        Err(_) => Err(not_stored(&"the store went away")),
    }
}

fn not_stored(error: &dyn std::fmt::Display) -> End {
    End::Refused(Refusal::NotStored, format!("a message is not stored: {error}"))
}

fn slow_reader() -> End {
    End::Refused(Refusal::SlowReader, format!("it took nothing for {} s", WRITE_STALL.as_secs()))
}

//! The books of one connection: what was handed to rumqttc, what is on its way, what may be acknowledged.
//!
//! Pure bookkeeping beside a client whose calls never wait: the task that polls the event loop must not wait for it.
//!
//! A request handed to rumqttc gets its packet id only when it is written; until then it stands in a queue here, in the
//! same order. That order is what tells them apart, so nothing else may use this client.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream::FuturesOrdered;
use rumqttc::{
    AsyncClient, ClientError, Event, Outgoing, Packet, Publish, QoS, SubAck, SubscribeFilter, SubscribeReasonCode,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{
    Announcement, FILTERS_PER_SUBSCRIBE, HASTEN_AFTER, Handed, INTAKE_MAX, LinkConfig, NotHanded, ONCE_WINDOW, Once,
    Presence,
};
use crate::clock::Deadline;
use crate::mqtt::{Acceptance, BoxFuture};
use crate::shadow::StoreError;

type Reply = oneshot::Sender<Result<Handed, NotHanded>>;

/// What a publish on its way is for.
enum Slot {
    /// Birth or farewell.
    Presence,
    /// An outbox entry.
    Owed(i64),
    /// A call that waits for the answer; not a byte may leave after the deadline.
    Once { reply: Reply, deadline: Deadline },
}

/// What the caller has to do about an event.
pub(super) enum Heard {
    /// Nothing.
    Nothing,
    /// A message came in.
    Message(Publish),
    /// The broker has this outbox entry.
    Acked(i64),
    /// Birth or farewell was acknowledged.
    PresenceAcked,
    /// The answer to a SUBSCRIBE: `filter: why` for each refused filter.
    Subscribed(Vec<String>),
    /// Every UNSUBSCRIBE has been answered.
    Unsubscribed,
    /// Our DISCONNECT was written.
    Disconnected,
    /// The connection cannot be trusted any more.
    Broken(String),
}

/// PUBACKs on their way out.
///
/// rumqttc writes one request for every ten packets it reads, so acknowledgements that went through its queue alone
/// would pile up without bound behind a broker that sends as fast as it can.
#[derive(Clone, Default)]
pub(super) struct Acks(Arc<Mutex<AcksInner>>);

#[derive(Default)]
struct AcksInner {
    /// In the client's queue.
    first: Option<u16>,
    /// Behind it, in order.
    following: Vec<u16>,
}

impl Acks {
    fn lock(&self) -> MutexGuard<'_, AcksInner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to write before the next poll: nothing while the first is still in the queue, or it would be overtaken.
    pub(super) fn take(&self) -> Vec<u16> {
        let mut acks = self.lock();
        if acks.first.is_some() { Vec::new() } else { std::mem::take(&mut acks.following) }
    }
}

/// Until when what was handed to the client and has not left yet may leave, in order.
///
/// The event loop asks before each of its steps: on a machine that wakes from a suspension, the network may have room at
/// once for what expired meanwhile, before any timer fires.
#[derive(Clone, Default)]
pub(super) struct Unsent(Arc<Mutex<VecDeque<Deadline>>>);

impl Unsent {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Deadline>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, deadline: Deadline) {
        self.lock().push_back(deadline);
    }

    /// Whether something has expired before it left.
    pub(super) fn has_expired(&self) -> bool {
        self.lock().iter().any(Deadline::is_over)
    }
}

pub(super) struct Session {
    client: AsyncClient,
    acks: Acks,
    unsent: Unsent,
    submitted: VecDeque<Slot>,
    outstanding: HashMap<u16, (Slot, Instant)>,
    subscribing: VecDeque<Vec<String>>,
    awaiting: HashMap<u16, (Vec<String>, Instant)>,
    /// UNSUBSCRIBEs that are not answered.
    unsubscribing: usize,
    /// When the ping left after which nothing has been heard.
    pinged: Option<Instant>,
    /// Receipts in the order of receipt; each yields the packet id to acknowledge (0 for QoS 0).
    pub(super) unsettled: FuturesOrdered<BoxFuture<'static, Result<u16, StoreError>>>,
    /// Messages since the intake was told to hasten.
    since_hastened: usize,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("outstanding", &self.outstanding.len()).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(client: AsyncClient, acks: Acks, unsent: Unsent) -> Self {
        Self {
            client,
            acks,
            unsent,
            submitted: VecDeque::new(),
            outstanding: HashMap::new(),
            subscribing: VecDeque::new(),
            awaiting: HashMap::new(),
            unsubscribing: 0,
            pinged: None,
            unsettled: FuturesOrdered::new(),
            since_hastened: 0,
        }
    }

    // ---- out ------------------------------------------------------------------------------------------------

    pub(super) fn subscribe(&mut self, filters: &[String]) -> Result<(), ClientError> {
        for group in filters.chunks(FILTERS_PER_SUBSCRIBE) {
            let filter = |path: &String| SubscribeFilter::new(path.clone(), QoS::AtLeastOnce);
            self.client.try_subscribe_many(group.iter().map(filter))?;
            self.subscribing.push_back(group.to_vec());
        }
        Ok(())
    }

    /// Nothing waits for the answers, and one that never comes costs nothing but asking again on the next connection.
    pub(super) fn unsubscribe(&mut self, filters: &[String]) -> Result<(), ClientError> {
        for filter in filters {
            self.client.try_unsubscribe(filter)?;
            self.unsubscribing += 1;
        }
        Ok(())
    }

    /// Whether every SUBSCRIBE has been answered.
    pub(super) fn is_subscribed(&self) -> bool {
        self.subscribing.is_empty() && self.awaiting.is_empty()
    }

    pub(super) fn announce(&mut self, presence: &Presence, online: bool) -> Result<(), ClientError> {
        self.client.try_publish(&presence.topic, QoS::AtLeastOnce, true, (presence.payload)(online).to_vec())?;
        self.submitted.push_back(Slot::Presence);
        Ok(())
    }

    /// Births and farewells not yet acknowledged.
    pub(super) fn presences_on_their_way(&self) -> usize {
        let on_their_way = self.outstanding.values().map(|(slot, _)| slot).chain(&self.submitted);
        on_their_way.filter(|slot| matches!(slot, Slot::Presence)).count()
    }

    pub(super) fn publish_owed(&mut self, entry: Announcement) -> Result<(), ClientError> {
        self.client.try_publish(entry.topic, QoS::AtLeastOnce, false, entry.payload.to_vec())?;
        self.submitted.push_back(Slot::Owed(entry.seq));
        Ok(())
    }

    pub(super) fn has_room_for_once(&self) -> bool {
        let on_their_way = self.outstanding.values().map(|(slot, _)| slot).chain(&self.submitted);
        on_their_way.filter(|slot| matches!(slot, Slot::Once { .. })).count() < ONCE_WINDOW
    }

    pub(super) fn publish_once(&mut self, once: Once) -> Result<(), ClientError> {
        let Once { topic, payload, deadline, reply } = once;
        if reply.is_closed() {
            return Ok(());
        }
        if deadline.is_over() {
            answer(reply, Err(NotHanded::Expired));
            return Ok(());
        }
        if let Err(error) = self.client.try_publish(topic, QoS::AtLeastOnce, false, payload.to_vec()) {
            answer(reply, Err(NotHanded::Offline(format!("the link cannot take it: {error}"))));
            return Err(error);
        }
        self.unsent.push(deadline.clone());
        self.submitted.push_back(Slot::Once { reply, deadline });
        Ok(())
    }

    pub(super) fn disconnect(&self) -> Result<(), ClientError> {
        self.client.try_disconnect()
    }

    // ---- in -------------------------------------------------------------------------------------------------

    /// Queues a message's receipt; its PUBACK leaves after those before it.
    ///
    /// Answers whether the intake is to hasten. Once for [`HASTEN_AFTER`] messages is enough: if fewer came since, some
    /// of the unsettled ones were hastened already, and their PUBACKs make room in the window.
    pub(super) fn settle_later(&mut self, pkid: u16, acceptance: Acceptance) -> bool {
        self.unsettled.push_back(Box::pin(async move {
            match acceptance {
                Acceptance::Settled => Ok(pkid),
                Acceptance::Pending(receipt) => match receipt.await {
                    Ok(committed) => committed.map(|_| pkid),
                    Err(_) => Err(StoreError::Closed),
                },
            }
        }));
        self.since_hastened += 1;
        let hasten = self.unsettled.len() >= HASTEN_AFTER && self.since_hastened >= HASTEN_AFTER;
        if hasten {
            self.since_hastened = 0;
        }
        hasten
    }

    /// Sends a PUBACK. The first goes through the client's queue and so ends a poll that waits; those that follow
    /// meanwhile are written together before the next poll ([`Acks`]).
    pub(super) fn acknowledge(&mut self, pkid: u16) -> Result<(), ClientError> {
        if pkid == 0 {
            return Ok(());
        }
        let mut acks = self.acks.lock();
        if acks.first.is_some() || !acks.following.is_empty() {
            acks.following.push(pkid);
            return Ok(());
        }
        acks.first = Some(pkid);
        drop(acks);
        let mut publish = Publish::new("", QoS::AtLeastOnce, Vec::new());
        publish.pkid = pkid;
        self.client.try_ack(&publish)
    }

    /// Whether to go on polling: the intake has room, or acknowledgements are on their way that make some.
    pub(super) fn may_read(&self) -> bool {
        let acks = self.acks.lock();
        self.unsettled.len() < INTAKE_MAX || acks.first.is_some() || !acks.following.is_empty()
    }

    // ---- events ---------------------------------------------------------------------------------------------

    pub(super) fn hear(&mut self, event: Event) -> Heard {
        match &event {
            // Whatever comes shows that the line is whole.
            Event::Incoming(_) => self.pinged = None,
            Event::Outgoing(Outgoing::PingReq) => self.pinged = Some(Instant::now()),
            Event::Outgoing(_) => {}
        }
        match event {
            Event::Incoming(Packet::Publish(publish)) => Heard::Message(publish),
            Event::Incoming(Packet::PubAck(ack)) => self.puback(ack.pkid),
            Event::Incoming(Packet::SubAck(ack)) => self.suback(&ack),
            Event::Incoming(Packet::UnsubAck(_)) => {
                self.unsubscribing = self.unsubscribing.saturating_sub(1);
                if self.unsubscribing == 0 { Heard::Unsubscribed } else { Heard::Nothing }
            }
            Event::Outgoing(Outgoing::Publish(pkid)) => match self.submitted.pop_front() {
                Some(slot) => {
                    if matches!(slot, Slot::Once { .. }) {
                        self.unsent.lock().pop_front();
                    }
                    self.outstanding.insert(pkid, (slot, Instant::now()));
                    Heard::Nothing
                }
                None => Heard::Broken("a publish left that nobody asked for".to_owned()),
            },
            Event::Outgoing(Outgoing::Subscribe(pkid)) => match self.subscribing.pop_front() {
                Some(filters) => {
                    self.awaiting.insert(pkid, (filters, Instant::now()));
                    Heard::Nothing
                }
                None => Heard::Broken("a SUBSCRIBE left that nobody asked for".to_owned()),
            },
            Event::Outgoing(Outgoing::PubAck(pkid)) => {
                let mut acks = self.acks.lock();
                acks.first = acks.first.filter(|first| *first != pkid);
                Heard::Nothing
            }
            Event::Outgoing(Outgoing::Disconnect) => Heard::Disconnected,
            // The client waits for an old acknowledgement before it reuses its packet id, and what it holds back
            // meanwhile it may lose.
            Event::Outgoing(Outgoing::AwaitAck(pkid)) => {
                Heard::Broken(format!("the broker never acknowledged packet {pkid}"))
            }
            _ => Heard::Nothing,
        }
    }

    fn puback(&mut self, pkid: u16) -> Heard {
        match self.outstanding.remove(&pkid) {
            Some((Slot::Owed(seq), _)) => Heard::Acked(seq),
            Some((Slot::Presence, _)) => Heard::PresenceAcked,
            Some((Slot::Once { reply, .. }, _)) => {
                answer(reply, Ok(Handed::Acknowledged));
                Heard::Nothing
            }
            None => Heard::Broken(format!("the broker acknowledged packet {pkid}, which was not on its way")),
        }
    }

    fn suback(&mut self, ack: &SubAck) -> Heard {
        let Some((filters, _)) = self.awaiting.remove(&ack.pkid) else {
            return Heard::Broken(format!("the broker answered SUBSCRIBE {}, which was not sent", ack.pkid));
        };
        if filters.len() != ack.return_codes.len() {
            return Heard::Broken("the broker's SUBACK answers another number of filters than were sent".to_owned());
        }
        let refused = filters.iter().zip(&ack.return_codes).filter_map(|(filter, code)| match code {
            SubscribeReasonCode::Success(QoS::AtMostOnce) => {
                Some(format!("{filter}: granted QoS 0 only, so messages can be lost"))
            }
            SubscribeReasonCode::Success(_) => None,
            SubscribeReasonCode::Failure => Some(format!("{filter}: refused; may this client subscribe it?")),
        });
        Heard::Subscribed(refused.collect())
    }

    // ---- time and end ---------------------------------------------------------------------------------------

    /// When something is overdue, and what to say then.
    pub(super) fn next_overdue(&self, config: &LinkConfig) -> Option<(Instant, &'static str)> {
        let publishes = self.outstanding.values().map(|(_, at)| (*at + config.ack_wait, "a PUBACK is missing"));
        let subscribes = self.awaiting.values().map(|(_, at)| (*at + config.ack_wait, "a SUBACK is missing"));
        // What the network does not take in time must not leave later.
        let unsent = self.submitted.iter().filter_map(|slot| match slot {
            Slot::Once { deadline, .. } => {
                Some((deadline.timer(), "the network takes nothing, and a message has expired"))
            }
            _ => None,
        });
        let ping =
            self.pinged.map(|at| (at + config.keep_alive / 2, "a ping is not answered, the line may be half open"));
        publishes.chain(subscribes).chain(unsent).chain(ping).min_by_key(|(at, _)| *at)
    }

    /// Whether something has expired before the network took it.
    pub(super) fn has_expired(&self) -> bool {
        self.unsent.has_expired()
    }

    /// Nothing is read for now, so the answer to a ping cannot be heard either: its time begins anew afterwards.
    pub(super) fn deafened(&mut self) {
        self.pinged = self.pinged.map(|_| Instant::now());
    }

    /// Answers the calls still open. With `exact`, what had got no packet id certainly did not leave; without (the
    /// connection was dropped in the middle of a poll), it may have.
    pub(super) fn close(self, exact: bool, why: &str) {
        for (slot, _) in self.outstanding.into_values() {
            if let Slot::Once { reply, .. } = slot {
                answer(reply, Ok(Handed::Unknown));
            }
        }
        for slot in self.submitted {
            if let Slot::Once { reply, .. } = slot {
                answer(reply, if exact { Err(NotHanded::Offline(why.to_owned())) } else { Ok(Handed::Unknown) });
            }
        }
    }
}

/// A caller that has gone does not want the answer.
pub(super) fn answer(reply: Reply, answer: Result<Handed, NotHanded>) {
    let _ = reply.send(answer);
}

//! What the broker keeps for one client: subscriptions, waiting messages, unacknowledged ones.

use std::collections::VecDeque;
use std::sync::Arc;

use rumqttc::{Packet, Publish, QoS};
use tokio::sync::Notify;

use super::{Message, QUEUE_MAX, WINDOW};

/// One client's session.
#[derive(Debug, Default)]
pub(crate) struct Session {
    filters: Vec<(String, QoS)>,
    waiting: VecDeque<Outgoing>,
    unacknowledged: VecDeque<(u16, Message)>,
    last_id: u16,
    /// The connection that serves it now.
    pub(crate) connection: Option<Attached>,
    /// Whether it outlives its connection.
    pub(crate) persistent: bool,
}

/// The connection that serves a session.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    /// Tells this connection from earlier and later ones of the same client.
    pub(crate) number: u64,
    /// Rung when there is something to send, or when another connection took over.
    pub(crate) bell: Arc<Notify>,
}

#[derive(Debug)]
struct Outgoing {
    message: Message,
    again: bool,
}

impl Session {
    pub(crate) fn subscribe(&mut self, filter: &str, qos: QoS) {
        self.unsubscribe(filter);
        self.filters.push((filter.to_owned(), qos));
    }

    pub(crate) fn unsubscribe(&mut self, filter: &str) {
        self.filters.retain(|(known, _)| known != filter);
    }

    /// The highest QoS at which this client wants the topic; `None` if it does not.
    pub(crate) fn wants(&self, topic: &str) -> Option<QoS> {
        let matching = self.filters.iter().filter(|(filter, _)| matches(topic, filter));
        matching.map(|(_, qos)| *qos).max_by_key(|qos| *qos as u8)
    }

    /// Queues a message; answers how many older ones had to be dropped for it.
    pub(crate) fn push(&mut self, mut message: Message, granted: QoS) -> u64 {
        if granted == QoS::AtMostOnce {
            message.qos = QoS::AtMostOnce;
        }
        // What nobody will acknowledge is not kept for later.
        if self.connection.is_none() && message.qos == QoS::AtMostOnce {
            return 0;
        }
        self.waiting.push_back(Outgoing { message, again: false });
        if let Some(connection) = &self.connection {
            connection.bell.notify_one();
        }
        let excess = self.waiting.len().saturating_sub(QUEUE_MAX);
        self.waiting.drain(..excess);
        u64::try_from(excess).unwrap_or(u64::MAX)
    }

    /// What may be sent now, as far as the window allows.
    pub(crate) fn due(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while packets.len() < WINDOW {
            let Some(next) = self.waiting.front() else { break };
            let acknowledged = next.message.qos != QoS::AtMostOnce;
            if acknowledged && self.unacknowledged.len() >= WINDOW {
                break;
            }
            let Some(Outgoing { message, again }) = self.waiting.pop_front() else { break };
            let mut publish = Publish::from_bytes(message.topic.clone(), message.qos, message.payload.clone());
            publish.retain = message.retain;
            publish.dup = again;
            if acknowledged {
                publish.pkid = self.free_id();
                self.unacknowledged.push_back((publish.pkid, message));
            }
            packets.push(Packet::Publish(publish));
        }
        packets
    }

    fn free_id(&mut self) -> u16 {
        // At most WINDOW ids are in use, so one is found at once.
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.unacknowledged.iter().all(|(id, _)| *id != self.last_id) {
                return self.last_id;
            }
        }
    }

    /// The client has it.
    pub(crate) fn acknowledged(&mut self, id: u16) {
        self.unacknowledged.retain(|(known, _)| *known != id);
    }

    /// The connection is gone: what it did not acknowledge comes first next time, and what nobody acknowledges, not.
    pub(crate) fn detach(&mut self) {
        self.connection = None;
        self.waiting.retain(|outgoing| outgoing.message.qos != QoS::AtMostOnce);
        while let Some((_, message)) = self.unacknowledged.pop_back() {
            self.waiting.push_front(Outgoing { message, again: true });
        }
    }
}

/// Whether a topic matches a filter [MQTT 4.7]: `+` is one level, `#` the rest, and neither begins a match of `$…`.
pub(crate) fn matches(topic: &str, filter: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    let mut wanted = filter.split('/');
    loop {
        match (wanted.next(), levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(want), Some(level)) if want == level => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_as_the_specification_says() {
        for (topic, filter) in [
            ("a/b/c", "a/b/c"),
            ("a/b/c", "a/+/c"),
            ("a/b/c", "#"),
            ("a/b/c", "a/#"),
            ("a", "a/#"),
            ("a/", "a/+"),
            ("/a", "+/+"),
            ("ä", "+"),
            ("$SYS/x", "$SYS/#"),
        ] {
            assert!(matches(topic, filter), "{topic} {filter}");
        }
        for (topic, filter) in
            [("a/b", "a"), ("a", "a/b"), ("a/b/c", "a/+"), ("a", "a/+"), ("$SYS/x", "#"), ("$SYS/x", "+/x"), ("A", "a")]
        {
            assert!(!matches(topic, filter), "{topic} {filter}");
        }
    }

    #[test]
    fn a_full_session_drops_its_oldest_message_and_says_so() {
        let mut session = Session { persistent: true, ..Session::default() };
        let message = |n: usize| Message {
            topic: n.to_string(),
            payload: bytes::Bytes::new(),
            retain: false,
            qos: QoS::AtLeastOnce,
        };
        let dropped: u64 = (0..QUEUE_MAX + 3).map(|n| session.push(message(n), QoS::AtLeastOnce)).sum();
        assert_eq!(dropped, 3);
        let Some(Packet::Publish(first)) = session.due().into_iter().next() else { panic!("nothing is due") };
        assert_eq!(first.topic, "3");
    }
}

//! The broker's state: sessions, retained messages, wills. No I/O, so every step is whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rumqttc::{LastWill, Packet, QoS};
use tokio::sync::{Notify, mpsc};

use super::session::{Attached, Session, matches};
use super::{Message, RETAINED_MAX, SESSIONS_MAX};

/// All sessions and retained messages.
#[derive(Debug, Default)]
pub(crate) struct Core {
    sessions: HashMap<String, Session>,
    retained: BTreeMap<String, Message>,
    watchers: Vec<(String, mpsc::Sender<Message>)>,
    connections: u64,
    dropped: u64,
}

/// A client's way in: what `attach` answers.
pub(crate) struct Ticket {
    pub(crate) attached: Attached,
    pub(crate) session_present: bool,
}

impl Core {
    /// Binds a new connection to the client's session; an older connection of the same client has to go.
    /// `None` if there are too many sessions.
    pub(crate) fn attach(&mut self, client_id: &str, clean: bool) -> Option<Ticket> {
        if !self.sessions.contains_key(client_id) && self.sessions.len() >= SESSIONS_MAX {
            return None;
        }
        self.connections += 1;
        let attached = Attached { number: self.connections, bell: Arc::new(Notify::new()) };
        let session = self.sessions.entry(client_id.to_owned()).or_default();
        if let Some(older) = session.connection.take() {
            session.detach();
            older.bell.notify_one();
        }
        let session_present = session.persistent && !clean;
        if !session_present {
            *session = Session::default();
        }
        session.persistent = !clean;
        session.connection = Some(attached.clone());
        // What waited from before is due at once.
        attached.bell.notify_one();
        Some(Ticket { attached, session_present })
    }

    /// The session, if this connection still serves it.
    pub(crate) fn session(&mut self, client_id: &str, connection: u64) -> Option<&mut Session> {
        let session = self.sessions.get_mut(client_id)?;
        session.connection.as_ref().is_some_and(|attached| attached.number == connection).then_some(session)
    }

    /// A connection ended; `will` is what its client left to be said.
    pub(crate) fn detach(&mut self, client_id: &str, connection: u64, will: Option<LastWill>) {
        if let Some(session) = self.session(client_id, connection) {
            session.detach();
            if !session.persistent {
                self.sessions.remove(client_id);
            }
        }
        if let Some(will) = will {
            let LastWill { topic, message, qos, retain } = will;
            self.publish(Message { topic, payload: message, retain, qos });
        }
    }

    /// What may be sent to this client now; `None` if the connection no longer serves it.
    pub(crate) fn due(&mut self, client_id: &str, connection: u64) -> Option<Vec<Packet>> {
        self.session(client_id, connection).map(Session::due)
    }

    /// Keeps it if it is to be retained, and queues it for everyone who wants it.
    pub(crate) fn publish(&mut self, message: Message) {
        if message.retain {
            self.retain(&message);
        }
        let live = Message { retain: false, ..message };
        for session in self.sessions.values_mut() {
            if let Some(qos) = session.wants(&live.topic) {
                self.dropped += session.push(live.clone(), qos);
            }
        }
        // A subscriber in this process that is gone is forgotten; one that does not read misses the message.
        self.watchers.retain(|(filter, sender)| {
            !matches(&live.topic, filter)
                || !matches!(sender.try_send(live.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    fn retain(&mut self, message: &Message) {
        if message.payload.is_empty() {
            self.retained.remove(&message.topic);
        } else if self.retained.len() < RETAINED_MAX || self.retained.contains_key(&message.topic) {
            self.retained.insert(message.topic.clone(), message.clone());
        }
    }

    /// Subscribes a connected client; retained messages that match are queued.
    pub(crate) fn subscribe(&mut self, client_id: &str, connection: u64, filter: &str, qos: QoS) {
        let Some(session) = self.sessions.get_mut(client_id) else { return };
        if session.connection.as_ref().is_none_or(|attached| attached.number != connection) {
            return;
        }
        session.subscribe(filter, qos);
        for message in self.retained.values().filter(|message| matches(&message.topic, filter)) {
            self.dropped += session.push(message.clone(), qos);
        }
    }

    pub(crate) fn watch(&mut self, filter: String, sender: mpsc::Sender<Message>) {
        for message in self.retained.values().filter(|message| matches(&message.topic, &filter)) {
            let _ = sender.try_send(message.clone());
        }
        self.watchers.push((filter, sender));
    }

    pub(crate) fn is_connected(&self, client_id: &str) -> bool {
        self.sessions.get(client_id).is_some_and(|session| session.connection.is_some())
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}

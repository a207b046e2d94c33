//! What all connections share: who is here, who watches, what is retained, which sessions exist.
//!
//! One lock, held for a few map operations and never across an await. Messages pass it only if somebody watches or a
//! retained state changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use floorgate_model::DeviceId;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::outbox::Outgoing;
use super::rights::Role;
use super::session::{self, SessionStore, Sessions, Subscriptions};
use super::stats::{Counters, EndpointStats, Refusal};
use super::{filter, wire};
use crate::mqtt::Intake;
use crate::mqtt::topics::{FloorTopic, Parsed, TopicScheme};

/// The queue of one connection.
pub(super) type Queue = mpsc::Sender<Outgoing>;

pub(super) struct Hub {
    pub(super) scheme: TopicScheme,
    pub(super) intake: Arc<dyn Intake>,
    pub(super) counters: Counters,
    store: Arc<dyn SessionStore>,
    connections_max: usize,
    watchers: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    attached: HashSet<DeviceId>,
    clients: HashMap<String, Client>,
    /// Device → its connections that asked for orders, the latest last.
    lines: HashMap<DeviceId, Vec<Line>>,
    watching: HashMap<u64, Watching>,
    /// Device → topic and the whole PUBLISH of its retained state.
    retained: BTreeMap<DeviceId, (String, Bytes)>,
    sessions: Sessions,
    last_number: u64,
}

struct Client {
    number: u64,
    device: Option<DeviceId>,
    kick: CancellationToken,
    gone: CancellationToken,
}

#[derive(Clone)]
struct Line {
    number: u64,
    qos: u8,
    queue: Queue,
}

struct Watching {
    filters: Vec<String>,
    queue: Queue,
}

/// What came of asking for a seat.
pub(super) enum Entry {
    /// Come in.
    Seated(Seat),
    /// The same client is connected; it has been told to go. Ask again when this is cancelled.
    Taken(CancellationToken),
    /// All seats are taken.
    Full,
}

/// A client's seat; when it drops, the client is gone and the next of the same name may enter.
pub(super) struct Seat {
    hub: Arc<Hub>,
    pub(super) key: String,
    pub(super) number: u64,
    /// Cancelled when another connection of the same client wants the seat.
    pub(super) kick: CancellationToken,
}

impl Hub {
    pub(super) fn new(
        scheme: TopicScheme,
        intake: Arc<dyn Intake>,
        store: Arc<dyn SessionStore>,
        stored: &BTreeMap<String, Vec<String>>,
        connections_max: usize,
        attached: HashSet<DeviceId>,
    ) -> Self {
        let state = State { attached, sessions: Sessions::restore(stored), ..State::default() };
        let (counters, watchers) = (Counters::default(), AtomicUsize::new(0));
        Self { scheme, intake, counters, store, connections_max, watchers, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_attached(&self, device: &DeviceId) -> bool {
        self.state().attached.contains(device)
    }

    /// Replaces the attached devices; retained states of others are forgotten, and their connections closed. Closed is
    /// also the connection of a local tool that bears the id of a device that is new: it comes back with that one's rights.
    pub(super) fn attach(&self, devices: HashSet<DeviceId>) {
        let mut state = self.state();
        state.retained.retain(|device, _| devices.contains(device));
        let is_new = |key: &str| {
            DeviceId::new(key).is_ok_and(|device| devices.contains(&device) && !state.attached.contains(&device))
        };
        for (key, client) in &state.clients {
            let other_rights = match &client.device {
                Some(device) => !devices.contains(device),
                None => is_new(key),
            };
            if other_rights {
                client.kick.cancel();
            }
        }
        state.attached = devices;
    }

    // ---- coming and going -----------------------------------------------------------------------------------

    pub(super) fn enter(self: &Arc<Self>, key: &str, role: &Role) -> Entry {
        let mut state = self.state();
        if let Some(there) = state.clients.get(key) {
            there.kick.cancel();
            return Entry::Taken(there.gone.clone());
        }
        if state.clients.len() >= self.connections_max {
            return Entry::Full;
        }
        state.last_number += 1;
        let (number, kick) = (state.last_number, CancellationToken::new());
        let device = if let Role::Device(id) = role { Some(id.clone()) } else { None };
        let client = Client { number, device, kick: kick.clone(), gone: CancellationToken::new() };
        state.clients.insert(key.to_owned(), client);
        Entry::Seated(Seat { hub: Arc::clone(self), key: key.to_owned(), number, kick })
    }

    /// Whether the device has a connection that is newer than this one.
    pub(super) fn has_newer(&self, device: &DeviceId, number: u64) -> bool {
        let state = self.state();
        state.clients.values().any(|client| client.number > number && client.device.as_ref() == Some(device))
    }

    /// The session of a client that connects: what it had subscribed to, and whether it was there.
    pub(super) async fn resume(&self, key: &str, clean: bool) -> (Subscriptions, bool) {
        let kept = self.state().sessions.get(key).cloned();
        if clean {
            if kept.is_some() {
                self.forget(key).await;
            }
            return (Subscriptions::new(), false);
        }
        let present = kept.is_some();
        (kept.unwrap_or_default(), present)
    }

    /// Keeps a session, in memory and on disk.
    pub(super) async fn keep(&self, key: &str, subscriptions: &Subscriptions) {
        let entries = session::entries(subscriptions);
        let (known, gone) = {
            let mut state = self.state();
            let State { sessions, clients, .. } = &mut *state;
            let known = sessions.get(key) == Some(subscriptions);
            (known, sessions.put(key, subscriptions.clone(), |key| clients.contains_key(key)))
        };
        if known {
            // A client that only comes back costs the flash nothing.
            return;
        }
        if let Some(gone) = gone {
            self.save(gone, None).await;
        }
        self.save(key.to_owned(), Some(entries)).await;
    }

    /// Forgets a session.
    pub(super) async fn forget(&self, key: &str) {
        if self.state().sessions.remove(key) {
            self.save(key.to_owned(), None).await;
        }
    }

    async fn save(&self, key: String, entries: Option<Vec<String>>) {
        if let Err(error) = self.store.save(key, entries).await {
            tracing::warn!(%error, "an MQTT session is not on disk; its client has to subscribe again after a restart");
        }
    }

    // ---- orders ---------------------------------------------------------------------------------------------

    /// Sets at which QoS a device's connection takes orders; `None` if it does not.
    pub(super) fn set_line(&self, device: &DeviceId, number: u64, qos: Option<u8>, queue: &Queue) {
        let mut state = self.state();
        let lines = state.lines.entry(device.clone()).or_default();
        lines.retain(|line| line.number != number);
        lines.extend(qos.map(|qos| Line { number, qos, queue: queue.clone() }));
        if lines.is_empty() {
            state.lines.remove(device);
        }
    }

    /// Where an order for this device goes, and at which QoS.
    pub(super) fn line(&self, device: &DeviceId) -> Result<(Queue, u8), String> {
        let state = self.state();
        if let Some(line) = state.lines.get(device).and_then(|lines| lines.last()) {
            return Ok((line.queue.clone(), line.qos));
        }
        let here = state.clients.values().any(|client| client.device.as_ref() == Some(device));
        let topic = self.scheme.topic(FloorTopic::Execute, device);
        Err(if here {
            format!("{device} is connected but has not subscribed to `{topic}`")
        } else {
            format!("{device} is not connected")
        })
    }

    // ---- watching -------------------------------------------------------------------------------------------

    /// Sets what a connection watches.
    pub(super) fn set_watching(&self, number: u64, filters: Vec<String>, queue: &Queue) {
        let mut state = self.state();
        if filters.is_empty() {
            state.watching.remove(&number);
        } else {
            state.watching.insert(number, Watching { filters, queue: queue.clone() });
        }
        self.watchers.store(state.watching.len(), Ordering::Relaxed);
    }

    pub(super) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Passes a message on to those who watch; once to each, whatever filters overlap.
    pub(super) fn forward(&self, topic: &str, payload: &[u8]) {
        if !self.is_watched() {
            return;
        }
        let state = self.state();
        let mut frame = None;
        for watching in state.watching.values() {
            if watching.filters.iter().any(|filter| filter::matches(filter, topic)) {
                let frame = frame.get_or_insert_with(|| wire::publish(topic, payload, None, false));
                if watching.queue.try_send(Outgoing::Forward(frame.clone())).is_err() {
                    self.counters.refuse(Refusal::ForwardDropped, &topic, &"a watcher's queue is full");
                }
            }
        }
    }

    /// Keeps a retained state; an empty payload removes it [MQTT-3.3.1-10]. Only for attached devices.
    pub(super) fn retain(&self, topic: &str, payload: &[u8]) {
        let Parsed::Device(FloorTopic::State, device) = self.scheme.parse(topic) else { return };
        let mut state = self.state();
        if payload.is_empty() {
            state.retained.remove(&device);
        } else if state.attached.contains(&device) {
            state.retained.insert(device, (topic.to_owned(), wire::publish(topic, payload, None, true)));
        }
    }

    /// The retained states a filter names, as whole packets.
    pub(super) fn retained(&self, named: &str) -> Vec<Bytes> {
        let state = self.state();
        let named = state.retained.values().filter(|(topic, _)| filter::matches(named, topic));
        named.map(|(_, frame)| frame.clone()).collect()
    }

    pub(super) fn stats(&self) -> EndpointStats {
        let state = self.state();
        let devices: HashSet<_> = state.clients.values().filter_map(|client| client.device.as_ref()).collect();
        EndpointStats {
            clients: state.clients.len(),
            devices: devices.len(),
            watchers: state.watching.len(),
            sessions: state.sessions.len(),
            accepted: self.counters.accepted.load(Ordering::Relaxed),
            messages: self.counters.messages.load(Ordering::Relaxed),
            orders: self.counters.orders.load(Ordering::Relaxed),
            refused: self.counters.refused(),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.hub.state();
        state.watching.remove(&self.number);
        self.hub.watchers.store(state.watching.len(), Ordering::Relaxed);
        if let Some(client) = state.clients.remove(&self.key) {
            if let Some(lines) = client.device.as_ref().and_then(|device| state.lines.get_mut(device)) {
                lines.retain(|line| line.number != client.number);
            }
            state.lines.retain(|_, lines| !lines.is_empty());
            client.gone.cancel();
        }
    }
}

//! A stand-in for the cloud's broker: a small, real MQTT 3.1.1 broker in this process.
//!
//! # What it does
//!
//! * Persistent sessions: with clean session off, subscriptions and undelivered QoS 1 messages outlive the connection,
//!   and unacknowledged ones are sent again with the DUP flag, in their order, before anything newer.
//! * QoS 0 and 1, retained messages, last wills, `+` and `#`, keep-alive, take-over of a client id.
//! * [`Broker::cut`] and [`Broker::restore`]: the link goes, sessions stay; the same address comes back.
//!
//! # Bounds
//!
//! A session keeps [`QUEUE_MAX`] messages (then its oldest waiting one is dropped and counted), has [`WINDOW`]
//! unacknowledged ones, and a packet has at most [`PACKET_MAX`] bytes. At most [`SESSIONS_MAX`] sessions and
//! [`RETAINED_MAX`] retained messages exist; more are refused.
//!
//! # What it does not do
//!
//! QoS 2, TLS, users, MQTT 5, anything on disk. It ends with the process.

mod connection;
mod core;
mod session;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rumqttc::QoS;
use tokio::sync::mpsc;

use crate::switch::Switch;
use core::Core;

/// Messages a session keeps for its client; beyond that the oldest waiting one is dropped.
pub const QUEUE_MAX: usize = 10_000;
/// Unacknowledged messages a client may have; more wait in its session.
pub const WINDOW: usize = 20;
/// Largest packet in or out, bytes; a larger one closes the connection. AWS IoT takes 128 KiB.
pub const PACKET_MAX: usize = 128 * 1024;
/// Sessions; a further client is refused with "server unavailable".
pub const SESSIONS_MAX: usize = 1_000;
/// Retained messages; a further topic is not retained.
pub const RETAINED_MAX: usize = 10_000;
/// Messages that wait for an in-process subscriber; beyond that it misses the newest ones.
pub const SUBSCRIPTION_MAX: usize = 1_024;

/// One application message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Sent because it was retained, or to be retained.
    pub retain: bool,
    /// 0 or 1.
    pub qos: QoS,
}

/// The broker. Dropping it closes every connection.
#[derive(Debug)]
pub struct Broker {
    switch: Switch,
    core: Shared,
}

/// Everything the broker knows, behind one lock that is never held across an await.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<Core>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic of one connection must not take the others down; the state stays usable at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Messages for a subscriber in this process.
#[derive(Debug)]
pub struct Subscription(mpsc::Receiver<Message>);

impl Subscription {
    /// The next message; `None` once the broker is gone.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Option<Message> {
        self.0.recv().await
    }
}

impl Broker {
    /// A broker on a free loopback port.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> io::Result<Self> {
        Self::start_on(0).await
    }

    /// A broker on 127.0.0.1:`port`.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn start_on(port: u16) -> io::Result<Self> {
        let core = Shared::default();
        let shared = core.clone();
        let switch = Switch::start(port, move |stream| connection::serve(stream, shared.clone())).await?;
        Ok(Self { switch, core })
    }

    /// Where it listens, also while it is cut.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.switch.address()
    }

    /// Its address as the gateway's configuration wants it: `mqtt://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address())
    }

    /// Closes every connection without a word and refuses new ones; sessions stay. Last wills are published.
    pub async fn cut(&self) {
        self.switch.cut().await;
    }

    /// Listens again at the same address.
    ///
    /// # Errors
    /// Somebody else took the port meanwhile.
    pub async fn restore(&self) -> io::Result<()> {
        self.switch.restore().await
    }

    /// Publishes with QoS 1 from inside, also while it is cut.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>, retain: bool) {
        let message = Message { topic: topic.to_owned(), payload: payload.into(), retain, qos: QoS::AtLeastOnce };
        self.core.lock().publish(message);
    }

    /// Subscribes from inside; retained messages that match come first.
    #[must_use]
    pub fn subscribe(&self, filter: &str) -> Subscription {
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_MAX);
        self.core.lock().watch(filter.to_owned(), sender);
        Subscription(receiver)
    }

    /// Whether a client of this id is connected now.
    #[must_use]
    pub fn is_connected(&self, client_id: &str) -> bool {
        self.core.lock().is_connected(client_id)
    }

    /// Messages dropped because a session was full, since start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.core.lock().dropped()
    }
}

#[cfg(test)]
mod tests;

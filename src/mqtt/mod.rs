//! The only room that knows rumqttc: links to brokers, the built-in floor endpoint, topics, payload codec.
//!
//! # Guarantees
//!
//! * A PUBACK leaves only after [`Acceptance`] is settled: after the commit of what was received, in the order of
//!   receipt [MQTT-4.6.0-2].
//! * What arrives and does not fit the contract is counted by reason, logged at most once a minute per device,
//!   acknowledged (it will never become valid), and changes nothing.
//! * Nothing of rumqttc's own replay is relied on: each connection has a fresh client, and what is owed upstream comes
//!   from the store's outbox.
//! * No device takes more than its limit ([`limits`]): on the endpoint its clients are read more slowly, on a link it
//!   shares with others its readings are declared lost ([`overflow`]).
//!
//! # What it does not do
//!
//! It judges no command, keeps no telemetry, and never publishes telemetry upstream.

pub mod codec;
pub mod endpoint;
pub mod handed;
pub mod intake;
pub mod limits;
pub mod link;
mod log_slots;
pub mod overflow;
mod pace;
pub mod probe;
pub mod refusals;
pub mod topics;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use floorgate_model::DeviceId;
use tokio::time::Instant;

use crate::shadow::StoreError;
use crate::shadow::store::Receipt;

/// A boxed future, so that intakes can stand behind one name.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One PUBLISH that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    /// Where it was published.
    pub topic: String,
    /// Its bytes.
    pub payload: Bytes,
    /// Delivered because it was retained, not because it was published now.
    pub retained: bool,
    /// The DUP flag.
    pub redelivered: bool,
}

/// When an inbound message may be acknowledged.
#[derive(Debug)]
pub enum Acceptance {
    /// Now: it is stored, or refused for ever.
    Settled,
    /// Once this resolves with `Ok`. On `Err` it must not be acknowledged: drop the connection, so that the sender
    /// keeps it and sends it again.
    Pending(Receipt),
}

/// Takes what a link or the endpoint receives.
pub trait Intake: Send + Sync + 'static {
    /// Parses and hands over one message; waits while the store's queue is full (the caller stops reading meanwhile).
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot take it: do not acknowledge, drop the connection.
    fn accept(&self, inbound: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>>;

    /// Whether a message for this topic may be taken now; else when. For a caller that can make its sender wait (the
    /// endpoint, which reads more slowly): asking takes the message's place in its device's limit.
    ///
    /// # Errors
    /// The time from which to ask again.
    fn admit(&self, topic: &str, now: Instant) -> Result<(), Instant> {
        let _ = (topic, now);
        Ok(())
    }

    /// A connection to a broker has been made: what it kept for us comes now.
    fn connected(&self) {}

    /// So many messages wait to be acknowledged that a sender with a window may send nothing more before: whatever waits
    /// only for company or for its time waits no longer. Best effort.
    fn hasten(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// A device has connected in the place of a connection of its own whose last will has just been handed over: it is
    /// there, whatever that said. Best effort; its next reports say it too.
    fn returned<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, ()> {
        let _ = device;
        Box::pin(std::future::ready(()))
    }
}

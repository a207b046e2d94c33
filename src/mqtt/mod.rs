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
//!
//! # What it does not do
//!
//! It judges no command, keeps no telemetry, and never publishes telemetry upstream.

pub mod codec;
pub mod endpoint;
pub mod handed;
pub mod intake;
pub mod link;
mod log_slots;
pub mod refusals;
pub mod topics;

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

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
}

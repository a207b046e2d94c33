//! How a command reaches a device.
//!
//! A [`Driver`] carries an [`Order`] to a device and comes back when the device's side has it. What the device then
//! does is seen elsewhere: in its answer and in the state it reports.
//!
//! # Guarantees
//!
//! * A driver sends one order at most once; it never repeats by itself, because a second reboot is not a safer first
//!   one.
//! * Not a byte leaves from `expires_at` on: the driver looks at the clock itself, immediately before handing over.
//! * [`NotSent`] is said only when certainly nothing left; every doubt is [`Sent::Unknown`].
//! * What a type of device allows is in its [`Profile`](floorgate_model::Profile): built in, or from `profiles.d`
//!   ([`profiles`], format in `docs/profiles.md`). No file opens a safety key.
//!
//! # What it does not do
//!
//! It decides about no command, keeps no journal, waits for no outcome, and knows no topic: the `mqtt` driver
//! ([`mqtt::MqttDriver`]) hands bytes to an [`mqtt::ExecuteChannel`], behind which the floor link or the endpoint stands.

pub mod mqtt;
pub mod profiles;
pub mod registry;

pub use mqtt::{ExecuteChannel, MqttDriver};
pub use profiles::{ProfileError, Profiles};
pub use registry::{DriverRegistry, LocalDriver};

use std::future::Future;
use std::pin::Pin;

use floorgate_model::{CommandId, CommandName, DeviceId, Timestamp};
use serde_json::{Map, Value};

/// What a driver is to carry out.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// For which device.
    pub device_id: DeviceId,
    /// The execution's id; the device repeats it in its answer.
    pub command_id: CommandId,
    /// What to do.
    pub command: CommandName,
    /// With what, in the device's types.
    pub parameters: Map<String, Value>,
    /// When it was asked for.
    pub issued_at: Timestamp,
    /// Not a byte may leave from here on.
    pub expires_at: Timestamp,
}

/// What is known after sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The device (or the plant's broker) acknowledged it.
    Acknowledged,
    /// It left, but the acknowledgement never came: the device may or may not have it.
    Unknown,
}

/// Why not a byte was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Nobody is there to take it.
    #[error("{0}")]
    Offline(String),
    /// The order expired before it could leave.
    #[error("expired before it could be sent")]
    Expired,
}

/// A boxed future, so that drivers can stand behind one name.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Carries orders to devices of one kind of attachment.
pub trait Driver: Send + Sync {
    /// Sends the order, at most once.
    ///
    /// # Errors
    /// [`NotSent`] if certainly nothing left.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a drop it is unknown whether the order left.
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>>;

    /// Whether this driver has a way to carry `command` at all; what the device then makes of it is its own affair.
    fn carries(&self, command: CommandName) -> bool {
        // The overlay is the gateway's own; no driver ever sees it.
        command != CommandName::SetStatus
    }
}

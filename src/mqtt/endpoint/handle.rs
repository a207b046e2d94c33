//! The endpoint, for the rest of the gateway.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use floorgate_model::DeviceId;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::admission::Proof;
use super::hub::Hub;
use super::outbox::{Order, Outgoing, QUEUE_MAX};
use super::stats::EndpointStats;
use super::users::Users;
use crate::clock::Deadline;
use crate::mqtt::handed::{Handed, NotHanded};
use crate::mqtt::topics::FloorTopic;

/// How long a device's PUBACK is waited for after the order has left; then what became of it is unknown.
pub(super) const ACKNOWLEDGEMENT_WAIT: Duration = Duration::from_secs(20);

/// Sends orders, and shows numbers. Cheap to clone.
#[derive(Clone)]
pub struct EndpointHandle {
    hub: Arc<Hub>,
    proof: Arc<Proof>,
}

impl EndpointHandle {
    pub(super) fn new(hub: Arc<Hub>, proof: Arc<Proof>) -> Self {
        Self { hub, proof }
    }

    /// Another connection of a device, under another client id.
    #[cfg(test)]
    pub(super) fn seat_again(&self, device: &DeviceId) -> Option<super::hub::Seat> {
        match self.hub.enter("another", &super::rights::Role::Device(device.clone())) {
            super::hub::Entry::Seated(seat) => Some(seat),
            _ => None,
        }
    }

    /// Puts an order on the `execute` topic of a device that is connected and has subscribed to it. Not a byte leaves
    /// after `deadline`, and it is never sent a second time. If the device subscribed with QoS 0 it is sent so, and
    /// what became of it is [`Handed::Unknown`].
    ///
    /// # Errors
    /// [`NotHanded`] if certainly nothing left: the device is not there, has not subscribed, has [`QUEUE_MAX`] orders
    /// waiting, or `deadline` passed.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a drop the order may still leave, before its deadline.
    pub async fn publish_once(
        &self,
        device: &DeviceId,
        payload: Bytes,
        deadline: impl Into<Deadline>,
    ) -> Result<Handed, NotHanded> {
        let deadline = deadline.into();
        if deadline.is_over() {
            return Err(NotHanded::Expired);
        }
        let (queue, qos) = self.hub.line(device).map_err(NotHanded::Offline)?;
        let topic = self.hub.scheme.topic(FloorTopic::Execute, device);
        let (left, leaving) = oneshot::channel();
        let order = Order { topic, payload, qos, deadline, left };
        queue.try_send(Outgoing::Order(order)).map_err(|error| {
            NotHanded::Offline(match error {
                TrySendError::Full(_) => format!("{device} does not take what is sent to it: {QUEUE_MAX} orders wait"),
                TrySendError::Closed(_) => format!("{device} has just disconnected"),
            })
        })?;
        drop(queue);
        // Bounded by the connection: it sends, or expires, or ends when a write stalls.
        let acknowledgement =
            leaving.await.unwrap_or_else(|_| Err(NotHanded::Offline(format!("{device} has just disconnected"))))?;
        let Some(acknowledgement) = acknowledgement else { return Ok(Handed::Unknown) };
        match timeout(ACKNOWLEDGEMENT_WAIT, acknowledgement).await {
            Ok(Ok(())) => Ok(Handed::Acknowledged),
            Ok(Err(_)) | Err(_) => Ok(Handed::Unknown),
        }
    }

    /// Replaces the devices that are attached; connections of devices that no longer are end.
    pub fn attach(&self, devices: HashSet<DeviceId>) {
        self.hub.attach(devices);
    }

    /// Replaces the users and their passwords, where passwords are demanded. A client that is connected stays so.
    pub fn set_users(&self, users: Users) {
        if let Some(shared) = &self.proof.users {
            *shared.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(users);
        }
    }

    /// What it did and refused until now.
    #[must_use]
    pub fn stats(&self) -> EndpointStats {
        self.hub.stats()
    }
}

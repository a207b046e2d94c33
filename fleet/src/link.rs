//! The way to the gateways: one command, published once to `devices/{id}/commands`.
//!
//! AWS IoT Core over HTTPS ([`Link::Iot`], SigV4 by the SDK) or any MQTT broker ([`Link::Mqtt`]). Both publish with
//! QoS 1 and never retained. That a broker took a message says nothing about its delivery: only the gateway's word in
//! the table does, so nobody calls a command delivered for what is answered here.

mod iot;
mod mqtt;

use std::time::Duration;

use floorgate_model::DeviceId;

pub use iot::IotLink;
pub use mqtt::{MqttLink, MqttSettings};

/// One publication, connection included.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to the gateways.
#[derive(Debug, Clone)]
pub enum Link {
    /// None is configured: what reads works, commands do not leave.
    Absent,
    /// AWS IoT Core's data plane.
    Iot(IotLink),
    /// Any MQTT broker.
    Mqtt(MqttLink),
}

/// Why a command may not have left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It did not leave.
    #[error("{0}")]
    NotSent(String),
    /// It may have left.
    #[error("{0}")]
    Unknown(String),
}

impl Link {
    /// Publishes one command. Not cancel safe: dropped, it may or may not have left.
    ///
    /// # Errors
    /// [`LinkError`], within some seconds.
    pub async fn publish(&self, device: &DeviceId, payload: &str) -> Result<(), LinkError> {
        // An id is made of letters, digits and `_.:-`, so it cannot change the topic.
        let topic = format!("devices/{device}/commands");
        match self {
            Self::Absent => Err(LinkError::NotSent("no way to the gateways is configured".to_owned())),
            Self::Iot(link) => link.publish(&topic, payload).await,
            Self::Mqtt(link) => link.publish(&topic, payload).await,
        }
    }
}

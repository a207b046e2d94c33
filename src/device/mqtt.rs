//! The `mqtt` driver: an order becomes one message on the device's execute topic.
//!
//! Payload (contract §3): `{command_id, command, parameters, issued_at, expires_at}`. The device gets the expiry too and
//! must look at it: between a plant's broker and a device with a persistent session a message may wait for days.

use std::sync::Arc;

use bytes::Bytes;
use floorgate_model::{CommandId, CommandName, DeviceId, Timestamp};
use serde_json::{Map, Value};

use super::{BoxFuture, Driver, NotSent, Order, Sent};
use crate::clock::{Clock, Deadline};

/// Publishes on a device's execute topic with QoS 1, through whatever the floor is: a link to the plant's broker or the
/// built-in endpoint.
pub trait ExecuteChannel: Send + Sync {
    /// Publishes `payload` once, not retained, and waits for the acknowledgement.
    ///
    /// The first byte leaves before `deadline` or none ever does; the acknowledgement may come after it. A message
    /// whose acknowledgement never comes (the connection is cut) is [`Sent::Unknown`]; it is never published again, not
    /// on the next connection either.
    ///
    /// # Errors
    /// [`NotSent::Offline`] if nobody can take it, [`NotSent::Expired`] if `deadline` passed while it waited for room
    /// or for the link: in both cases not a byte left and none will.
    ///
    /// # Cancel safety
    /// After a drop it is unknown whether it left; what has not left by `deadline` must still never leave.
    fn publish<'a>(
        &'a self,
        device: &'a DeviceId,
        payload: Bytes,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Sent, NotSent>>;
}

/// Carries orders over MQTT.
pub struct MqttDriver {
    channel: Arc<dyn ExecuteChannel>,
    clock: Clock,
}

#[derive(serde::Serialize)]
struct Payload<'a> {
    command_id: &'a CommandId,
    command: CommandName,
    parameters: &'a Map<String, Value>,
    issued_at: Timestamp,
    expires_at: Timestamp,
}

impl MqttDriver {
    /// A driver that publishes through `channel`; one serves all devices of the floor.
    #[must_use]
    pub fn new(channel: Arc<dyn ExecuteChannel>, clock: Clock) -> Self {
        Self { channel, clock }
    }
}

impl Driver for MqttDriver {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>> {
        Box::pin(async move {
            let payload = Payload {
                command_id: &order.command_id,
                command: order.command,
                parameters: &order.parameters,
                issued_at: order.issued_at,
                expires_at: order.expires_at,
            };
            let payload = serde_json::to_vec(&payload)
                .map_err(|error| NotSent::Offline(format!("the order cannot be written as JSON: {error}")))?;
            // The wall clock is read once, here; from now on the deadline runs on the clocks that nothing steps, and on
            // boot time while the machine is suspended.
            let remaining = order.expires_at.since(self.clock.now());
            if remaining.is_zero() {
                return Err(NotSent::Expired);
            }
            let deadline = Deadline::after(remaining, &self.clock);
            self.channel.publish(&order.device_id, payload.into(), deadline).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::Instant;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(DeviceId, Bytes, Deadline)>>);

    impl ExecuteChannel for Recorder {
        fn publish<'a>(
            &'a self,
            device: &'a DeviceId,
            payload: Bytes,
            deadline: Deadline,
        ) -> BoxFuture<'a, Result<Sent, NotSent>> {
            self.0.lock().unwrap().push((device.clone(), payload, deadline));
            Box::pin(async { Ok(Sent::Acknowledged) })
        }
    }

    fn order() -> Order {
        Order {
            device_id: DeviceId::new("PRESS-1").unwrap(),
            command_id: CommandId::new("c-1").unwrap(),
            command: CommandName::UpdateConfig,
            parameters: json!({"sample_rate_seconds": 10}).as_object().unwrap().clone(),
            issued_at: Timestamp::from_millis(1_000_000),
            expires_at: Timestamp::from_millis(1_060_000),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_leaves_as_the_contract_writes_it_with_its_deadline() {
        let (channel, clock) = (Arc::new(Recorder::default()), Clock::set_to(Timestamp::from_millis(1_010_000)));
        let driver = MqttDriver::new(Arc::clone(&channel) as Arc<dyn ExecuteChannel>, clock.clone());
        let started = Instant::now();
        assert_eq!(driver.send(&order()).await, Ok(Sent::Acknowledged));
        let published = channel.0.lock().unwrap();
        let [(device, payload, deadline)] = published.as_slice() else { panic!("{} published", published.len()) };
        assert_eq!(device.as_str(), "PRESS-1");
        assert_eq!(deadline.timer(), started + Duration::from_secs(50));
        clock.pass_boot(Duration::from_secs(50));
        assert!(deadline.is_over(), "a machine that was suspended sends nothing stale when it wakes");
        let payload: Value = serde_json::from_slice(payload).unwrap();
        let expected = json!({
            "command_id": "c-1", "command": "update_config", "parameters": {"sample_rate_seconds": 10},
            "issued_at": "1970-01-01T00:16:40.000Z", "expires_at": "1970-01-01T00:17:40.000Z",
        });
        assert_eq!(payload, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn from_its_expiry_on_an_order_does_not_reach_the_channel() {
        let channel = Arc::new(Recorder::default());
        for now in [1_060_000, 1_060_001, 900_000_000] {
            let clock = Clock::set_to(Timestamp::from_millis(now));
            let driver = MqttDriver::new(Arc::clone(&channel) as Arc<dyn ExecuteChannel>, clock);
            assert_eq!(driver.send(&order()).await, Err(NotSent::Expired), "at {now}");
        }
        assert!(channel.0.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_is_read_when_the_order_leaves_and_not_when_it_was_handed_in() {
        let (channel, clock) = (Arc::new(Recorder::default()), Clock::set_to(Timestamp::from_millis(1_010_000)));
        let driver = MqttDriver::new(Arc::clone(&channel) as Arc<dyn ExecuteChannel>, clock.clone());
        let order = order();
        let sending = driver.send(&order);
        clock.put(order.expires_at);
        assert_eq!(sending.await, Err(NotSent::Expired));
        assert!(channel.0.lock().unwrap().is_empty());
    }

    /// Answers with what it holds, and counts.
    struct Answers(Result<Sent, NotSent>, Mutex<u32>);

    impl ExecuteChannel for Answers {
        fn publish<'a>(&'a self, _: &'a DeviceId, _: Bytes, _: Deadline) -> BoxFuture<'a, Result<Sent, NotSent>> {
            *self.1.lock().unwrap() += 1;
            Box::pin(async { self.0.clone() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_channel_says_is_passed_on_and_nothing_is_tried_twice() {
        let clock = Clock::set_to(Timestamp::from_millis(1_010_000));
        let away = || NotSent::Offline("not connected".to_owned());
        for said in [Ok(Sent::Acknowledged), Ok(Sent::Unknown), Err(away()), Err(NotSent::Expired)] {
            let channel = Arc::new(Answers(said.clone(), Mutex::new(0)));
            let driver = MqttDriver::new(Arc::clone(&channel) as Arc<dyn ExecuteChannel>, clock.clone());
            assert_eq!(driver.send(&order()).await, said);
            assert_eq!(*channel.1.lock().unwrap(), 1, "{said:?}");
        }
        let driver = MqttDriver::new(Arc::new(Recorder::default()), clock);
        let carried: Vec<_> = CommandName::ALL.into_iter().filter(|command| driver.carries(*command)).collect();
        assert_eq!(carried, [CommandName::Recalibrate, CommandName::Reboot, CommandName::UpdateConfig]);
    }
}

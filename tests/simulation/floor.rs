//! Devices in memory: a driver that writes down what reached them, and what they answer in their own time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use floorgate::clock::Clock;
use floorgate::device::{BoxFuture, Driver, NotSent, Order, Sent};
use floorgate_model::{CommandName, DeviceId};

use crate::evidence::Executed;

/// What the devices have.
#[derive(Debug)]
pub struct Devices {
    pub random: fastrand::Rng,
    pub executed: Vec<Executed>,
    /// Done, not yet answered.
    pub unanswered: Vec<Order>,
    pub boots: BTreeMap<DeviceId, u64>,
    /// No device is reachable.
    pub away: bool,
}

#[derive(Debug, Clone)]
pub struct Floor {
    devices: Arc<Mutex<Devices>>,
    clock: Clock,
}

impl Floor {
    pub fn new(random: fastrand::Rng, clock: Clock) -> Self {
        let devices =
            Devices { random, executed: Vec::new(), unanswered: Vec::new(), boots: BTreeMap::new(), away: false };
        Self { devices: Arc::new(Mutex::new(devices)), clock }
    }

    pub fn lock(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap()
    }
}

impl Driver for Floor {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>> {
        Box::pin(async move {
            let now = self.clock.now();
            // As the real driver does with its deadline.
            if now >= order.expires_at {
                return Err(NotSent::Expired);
            }
            let mut devices = self.lock();
            if devices.away {
                return Err(NotSent::Offline("simulated".to_owned()));
            }
            // One in eight leaves, and nobody knows whether it arrived.
            let unknown = devices.random.u8(..8) == 0;
            if !unknown || devices.random.bool() {
                let id = order.command_id.to_string();
                devices.executed.push(Executed { id, at: now.as_millis(), done: true });
                if order.command == CommandName::Reboot {
                    *devices.boots.entry(order.device_id.clone()).or_insert(1) += 1;
                }
                devices.unanswered.push(order.clone());
            }
            Ok(if unknown { Sent::Unknown } else { Sent::Acknowledged })
        })
    }
}

//! Which driver carries commands to which device.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use floorgate_model::{CommandName, DeviceId};

use super::{BoxFuture, Driver, NotSent, Order, Sent};

/// Drivers by device. Cheap to clone; all clones show the same, and a reload replaces all of it at once.
#[derive(Clone, Default)]
pub struct DriverRegistry(Arc<RwLock<BTreeMap<DeviceId, Arc<dyn Driver>>>>);

impl DriverRegistry {
    /// Puts `driver` in charge of `device`, in place of the one before.
    pub fn attach(&self, device: DeviceId, driver: Arc<dyn Driver>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(device, driver);
    }

    /// Replaces all of them. An order that is on its way keeps the driver it has.
    pub fn replace(&self, drivers: BTreeMap<DeviceId, Arc<dyn Driver>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = drivers;
    }

    /// The driver of a device, if it has one.
    #[must_use]
    pub fn get(&self, device: &DeviceId) -> Option<Arc<dyn Driver>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(device).cloned()
    }
}

impl fmt::Debug for DriverRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.read().unwrap_or_else(PoisonError::into_inner).keys()).finish()
    }
}

/// The gateway as a device of its own: it carries nothing, so all that can be asked of it is what the gateway does
/// without a driver (`set_status`).
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDriver;

impl Driver for LocalDriver {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>> {
        let why = format!("{} is the gateway itself, which does not execute {}", order.device_id, order.command);
        Box::pin(async move { Err(NotSent::Offline(why)) })
    }

    fn carries(&self, _: CommandName) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_leaves_no_driver_of_before() {
        let (a, b) = (DeviceId::new("A").unwrap(), DeviceId::new("B").unwrap());
        let registry = DriverRegistry::default();
        let seen_elsewhere = registry.clone();
        registry.attach(a.clone(), Arc::new(LocalDriver));
        assert!(seen_elsewhere.get(&a).is_some());
        registry.replace(BTreeMap::from([(b.clone(), Arc::new(LocalDriver) as Arc<dyn Driver>)]));
        assert!(seen_elsewhere.get(&a).is_none());
        assert!(seen_elsewhere.get(&b).is_some());
    }

    #[test]
    fn the_gateway_carries_no_command_to_itself() {
        assert!(CommandName::ALL.into_iter().all(|command| !LocalDriver.carries(command)));
    }
}

//! How old is what is told of a command: by the lease of its device's gateway, as of everything of that device.
//!
//! A device that is gone has no gateway; then the one counts that took the command up, or that it was sent to.

use std::collections::{BTreeMap, BTreeSet};

use floorgate_model::DeviceId;
use floorgate_model::table::{commands, devices};
use futures_util::future::join_all;

use crate::age::{Leases, text};
use crate::error::ToolError;
use crate::fleet::{Call, put, record};
use crate::store::{Item, StoreError};

/// Items that are read again at once.
const AGAIN_AT_ONCE: usize = 16;

/// What is known of the devices of some commands, and of their gateways.
#[derive(Debug, Default)]
pub(super) struct Known {
    devices: BTreeMap<String, Item>,
    pub(super) leases: Leases,
}

impl Known {
    /// The device of a command; of one that is gone, what the command says of its gateway.
    pub(super) fn device_of(&self, command: &Item) -> Item {
        let there = text(command, devices::DEVICE_ID).and_then(|id| self.devices.get(id));
        there.cloned().unwrap_or_else(|| {
            let mut gone = Item::new();
            put(&mut gone, devices::GATEWAY_ID, gateway_of(command).map(Into::into).as_ref());
            gone
        })
    }

    /// Whether a device is in the table.
    pub(super) fn has(&self, device: &DeviceId) -> bool {
        self.devices.contains_key(device.as_str())
    }
}

/// The gateway that took a command up, or that it was sent to.
fn gateway_of(command: &Item) -> Option<&str> {
    text(command, devices::GATEWAY_ID).or_else(|| text(command, record::SENT_TO))
}

impl Call<'_> {
    /// The devices of some commands, and one more, and all their gateways.
    pub(super) async fn known_of(&self, items: &[Item], device: Option<&DeviceId>) -> Result<Known, ToolError> {
        let ids = items.iter().filter_map(|item| text(item, devices::DEVICE_ID));
        // What is no id is no key either, and would cost the whole list.
        let ids = ids.chain(device.map(DeviceId::as_str)).filter(|id| DeviceId::new(id).is_ok());
        let ids: Vec<_> = ids.collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect();
        let found = if ids.is_empty() { Vec::new() } else { self.parts.store.listed(&ids).await? };
        let gateways = items.iter().filter_map(gateway_of).map(str::to_owned).collect();
        let leases = Leases::of_and(&self.parts.store, &found, gateways).await?;
        let by_id = found.into_iter().filter_map(|item| Some((text(&item, devices::DEVICE_ID)?.to_owned(), item)));
        Ok(Known { devices: by_id.collect(), leases })
    }

    /// Reads those again that have lapsed by what their gateway said: it said so after they were read, and may have told of
    /// them in between.
    pub(super) async fn settle(&self, items: &mut [Item], known: &Known) -> Result<(), StoreError> {
        let lapsed = |item: &&mut Item| record::lapsed(item, self.now, &known.leases).is_some();
        let mut lapsed: Vec<_> = items.iter_mut().filter(lapsed).collect();
        for chunk in lapsed.chunks_mut(AGAIN_AT_ONCE) {
            let again = chunk.iter().map(|item| {
                let key = |attribute| text(item, attribute).unwrap_or_default();
                self.parts.store.command(key(devices::DEVICE_ID), key(commands::COMMAND_ID))
            });
            for (again, item) in join_all(again).await.into_iter().zip(chunk) {
                if let Some(again) = again? {
                    **item = again;
                }
            }
        }
        Ok(())
    }
}

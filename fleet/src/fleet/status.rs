//! `get_device_status`.

use floorgate_model::table::devices;
use serde_json::Value;

use super::{Call, put};
use crate::age::Leases;
use crate::arguments::Arguments;
use crate::error::ToolError;
use crate::store::Item;

/// What of an item is told as it is; the seed's fields first.
const TOLD: [&str; 13] = [
    devices::DEVICE_ID,
    devices::DEVICE_TYPE,
    devices::LOCATION,
    devices::STATUS,
    devices::FIRMWARE_VERSION,
    devices::STATUS_REASON,
    devices::STATUS_SINCE,
    devices::ADMIN_STATE,
    devices::REGISTERED_AT,
    devices::GATEWAY_ID,
    devices::LAST_COMMAND,
    devices::LAST_COMMAND_AT,
    devices::LAST_EXECUTION,
];

impl Call<'_> {
    pub(super) async fn get_device_status(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let (id, item) = self.device(&arguments.required("device_id")?).await?;
        let leases = Leases::of(&self.parts.store, std::slice::from_ref(&item)).await?;
        let mut answer = Item::new();
        for attribute in TOLD {
            put(&mut answer, attribute, item.get(attribute));
        }
        // The seed always answers both.
        for map in [devices::LAST_TELEMETRY, devices::CONFIGURATION] {
            let value = item.get(map).filter(|value| value.is_object()).cloned();
            answer.insert(map.to_owned(), value.unwrap_or_else(|| Value::Object(Item::new())));
        }
        if let Some(seen) = leases.gateway_seen(&item) {
            answer.insert("gateway_last_seen_at".to_owned(), seen.to_string().into());
        }
        if let Some((connected, since)) = leases.connected(&item) {
            answer.insert("gateway_connected".to_owned(), connected.into());
            answer.insert("gateway_connected_since".to_owned(), since.to_string().into());
        }
        leases.tell(&item, self.now, &mut answer);
        self.note_status_read(&id).await;
        Ok(answer)
    }
}

//! Who was told which device's status when, for the rule *status first* where no memory of a process lasts.
//!
//! One item for each operator and device in `iot-commands`, under a key that no device can have; a later read takes the
//! place of the earlier one, so there are never more than operators times devices. `forget_at` is for the table's own
//! expiry, where that is switched on for it (`deploy/aws`, `floorgate provision`); nothing depends on it.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use floorgate_model::table::{commands, devices};
use floorgate_model::{DeviceId, Timestamp};

use super::failure::failed;
use super::item::text;
use super::{Attributes, Store, StoreError, item};

/// The table may forget a read after so long; DynamoDB takes up to days more.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);
const READ_AT: &str = "read_at_ms";

impl Store {
    /// Notes that `reader` was told the status of a device at a time. One write.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn note_status_read(&self, reader: &str, device: &DeviceId, at: Timestamp) -> Result<(), StoreError> {
        let mut noted = key(reader, device);
        let seconds = at.saturating_add(FORGET_AFTER).as_millis().div_euclid(1_000);
        noted.insert(READ_AT.to_owned(), AttributeValue::N(at.as_millis().to_string()));
        noted.insert(commands::FORGET_AT.to_owned(), AttributeValue::N(seconds.to_string()));
        let put = self.client.put_item().table_name(&self.tables.commands).set_item(Some(noted));
        put.send().await.map(drop).map_err(|error| failed("note a read of a status", error))
    }

    /// When `reader` was last told the status of a device. One read.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn status_read(&self, reader: &str, device: &DeviceId) -> Result<Option<Timestamp>, StoreError> {
        let get = self.client.get_item().table_name(&self.tables.commands).consistent_read(true);
        let answer = get.set_key(Some(key(reader, device))).send().await;
        let found = answer.map_err(|error| failed("look for a read of a status", error))?.item.map(item::to_json);
        Ok(found.and_then(|item| item.get(READ_AT)?.as_i64()).map(Timestamp::from_millis))
    }
}

/// `#` is not allowed in an id, so this is no device's key.
fn key(reader: &str, device: &DeviceId) -> Attributes {
    Attributes::from([
        (devices::DEVICE_ID.to_owned(), text(format!("status_read#{reader}"))),
        (commands::COMMAND_ID.to_owned(), text(device)),
    ])
}

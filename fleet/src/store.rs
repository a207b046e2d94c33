//! The tables, by aws-sdk-dynamodb: the one place that knows the SDK's client.
//!
//! * A name or a value of a caller never becomes part of an expression: expressions are constants, attribute names are
//!   placeholders, values are values.
//! * Writes touch only what belongs to the tools (contract §4): `last_command` and `last_command_at` of a device that is
//!   there, new items of `iot-commands`, and items there that no gateway has taken up yet. Never `configuration`, never
//!   `status`.
//! * A read page is at most 1 MB, as DynamoDB cuts it; who reads many bounds their number.
//! * The SDK repeats what failed for a moment ([`ATTEMPTS`] in all); what still fails is logged here in full and leaves
//!   as [`StoreError`], which names no table.

mod failure;
mod item;
mod reads;
mod write;

use std::collections::HashMap;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::StalledStreamProtectionConfig;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use floorgate_model::table::{commands, devices, history};
use serde_json::{Map, Value};

pub use failure::StoreError;
pub use item::as_stored;
pub use write::{Created, LEFT, LastCommand, Over, PUBLISHED_AT};

use failure::failed;
use item::{expression_names, text};

/// An item as plain JSON: numbers are numbers.
pub type Item = Map<String, Value>;
/// An item as the SDK has it.
type Attributes = HashMap<String, AttributeValue>;

/// Tries of one request, the first included.
const ATTEMPTS: u32 = 3;
/// One try, from beginning to end.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// A request with all its tries.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(12);
/// To reach the endpoint, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Keys in one `BatchGetItem`, DynamoDB's limit.
const BATCH_MAX: usize = 100;
/// Requests for the rest of a batch that came back unprocessed.
const BATCH_TRIES: u32 = 5;
/// Before the first repeat for unprocessed keys; doubles.
const BATCH_PAUSE: Duration = Duration::from_millis(50);

/// What the lists show of a device.
const LISTED: [&str; 7] = [
    devices::DEVICE_ID,
    devices::DEVICE_TYPE,
    devices::LOCATION,
    devices::STATUS,
    devices::FIRMWARE_VERSION,
    devices::GATEWAY_ID,
    devices::LAST_SEEN_AT,
];

/// What is asked of a gateway, about its devices.
const OF_GATEWAYS: [&str; 5] =
    [devices::DEVICE_ID, devices::LAST_SEEN_AT, devices::LAST_TELEMETRY, crate::age::LEASE_UNTIL, crate::age::PRESENCE];

/// Names of the tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Devices.
    pub devices: String,
    /// History.
    pub history: String,
    /// Commands.
    pub commands: String,
}

impl Default for Tables {
    fn default() -> Self {
        let [devices, history, commands] = ["iot-devices", "iot-telemetry-history", "iot-commands"].map(str::to_owned);
        Self { devices, history, commands }
    }
}

/// One page of a read.
#[derive(Debug, Default)]
pub struct Page {
    /// What fits.
    pub items: Vec<Item>,
    /// How many items were looked at for it.
    pub examined: u64,
    /// There is more behind this key.
    pub last: Option<Item>,
}

/// Which devices a list is of; all that are given have to fit.
#[derive(Debug, Clone, Default)]
pub struct DeviceFilter {
    /// Exactly this location: read by the index.
    pub location: Option<String>,
    /// Locations that begin so.
    pub location_prefix: Option<String>,
    /// This status.
    pub status: Option<String>,
    /// This type.
    pub device_type: Option<String>,
}

/// Whose commands, and in which order of their ids.
#[derive(Debug, Clone, Copy)]
pub enum Commands<'a> {
    /// Everybody's, in no order.
    Fleet,
    /// One device's, from the least id on.
    Device(&'a str),
    /// One device's, from the greatest id down.
    Backwards {
        /// The device.
        device: &'a str,
        /// Only ids that are greater.
        above: Option<&'a str>,
    },
}

/// Which commands a list is of.
#[derive(Debug, Clone, Default)]
pub struct CommandFilter {
    /// This command.
    pub command: Option<String>,
    /// One of these statuses; any, if there is none.
    pub statuses: Vec<&'static str>,
    /// Issued at or after.
    pub since: Option<String>,
}

/// The tables. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
    tables: Tables,
}

impl Store {
    /// Nothing is sent yet.
    #[must_use]
    pub fn new(aws: &SdkConfig, endpoint_url: Option<&str>, tables: Tables) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(REQUEST_TIMEOUT)
            .build();
        let mut builder = aws_sdk_dynamodb::config::Builder::from(aws)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(url) = endpoint_url {
            builder = builder.endpoint_url(url);
        }
        Self { client: Client::from_conf(builder.build()), tables }
    }

    /// One device's item, as it is now.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn device(&self, id: &str) -> Result<Option<Item>, StoreError> {
        let get = self.client.get_item().table_name(&self.tables.devices).key(devices::DEVICE_ID, text(id));
        let answer = get.consistent_read(true).send().await.map_err(|error| failed("read a device", error))?;
        Ok(answer.item.map(item::to_json))
    }

    /// What the lists show of some devices, as it is now; those that are not there are missing. At most a few hundred.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn listed(&self, ids: &[String]) -> Result<Vec<Item>, StoreError> {
        self.parts_of(ids, &LISTED).await
    }

    /// What some gateways say of themselves, as it is now; those that are not there are missing. At most a few hundred.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn gateways(&self, ids: &[String]) -> Result<Vec<Item>, StoreError> {
        self.parts_of(ids, &OF_GATEWAYS).await
    }

    async fn parts_of(&self, ids: &[String], parts: &[&str]) -> Result<Vec<Item>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for chunk in ids.chunks(BATCH_MAX) {
            let keys = chunk.iter().map(|id| Attributes::from([(devices::DEVICE_ID.to_owned(), text(id))]));
            let mut wanted = Some(keys.collect::<Vec<_>>());
            let mut pause = BATCH_PAUSE;
            for _ in 0..BATCH_TRIES {
                let Some(keys) = wanted.take() else { break };
                let (items, rest) = self.batch(keys, parts).await?;
                found.extend(items);
                wanted = rest;
                if wanted.is_some() {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
            if wanted.is_some() {
                return Err(StoreError::Unavailable);
            }
        }
        Ok(found)
    }

    async fn batch(
        &self,
        keys: Vec<Attributes>,
        parts: &[&str],
    ) -> Result<(Vec<Item>, Option<Vec<Attributes>>), StoreError> {
        let (projection, names) = item::projection(parts);
        let request = KeysAndAttributes::builder()
            .set_keys(Some(keys))
            .consistent_read(true)
            .projection_expression(projection)
            .set_expression_attribute_names(Some(names))
            .build()
            .map_err(|_| StoreError::Misconfigured)?;
        let sent = self.client.batch_get_item().request_items(&self.tables.devices, request).send().await;
        let mut answer = sent.map_err(|error| failed("read devices", error))?;
        let items = answer.responses.take().unwrap_or_default().into_values().flatten().map(item::to_json).collect();
        let rest = answer.unprocessed_keys.take().unwrap_or_default().into_values().next();
        Ok((items, rest.map(|rest| rest.keys).filter(|keys| !keys.is_empty())))
    }

    /// One page of devices. By the index for an exact location (then only [`devices::DEVICE_ID`] is sure to be there),
    /// else by a scan. `limit` counts what is looked at, not what fits the filter.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn devices(
        &self,
        filter: &DeviceFilter,
        limit: Option<i32>,
        after: Option<Item>,
    ) -> Result<Page, StoreError> {
        let mut conditions = Vec::new();
        let mut values = Attributes::new();
        for (attribute, wanted) in [(devices::STATUS, &filter.status), (devices::DEVICE_TYPE, &filter.device_type)] {
            if let Some(wanted) = wanted {
                conditions.push(format!("#{attribute} = :{attribute}"));
                values.insert(format!(":{attribute}"), text(wanted));
            }
        }
        if let Some(prefix) = &filter.location_prefix {
            conditions.push(format!("begins_with(#{0}, :{0})", devices::LOCATION));
            values.insert(format!(":{}", devices::LOCATION), text(prefix));
        }
        let condition = (!conditions.is_empty()).then(|| conditions.join(" AND "));
        let after = after.map(item::from_json);
        if let Some(location) = &filter.location {
            values.insert(":location".to_owned(), text(location));
            let used = [devices::LOCATION, devices::STATUS, devices::DEVICE_TYPE];
            let used = used.into_iter().filter(|name| values.contains_key(&format!(":{name}")));
            let query = self.client.query().table_name(&self.tables.devices).index_name(devices::LOCATION_INDEX);
            let query = query.key_condition_expression("#location = :location").set_filter_expression(condition);
            let query = query.set_expression_attribute_names(Some(expression_names(used)));
            let query = query.set_expression_attribute_values(Some(values)).set_limit(limit);
            let answer = query.set_exclusive_start_key(after).send().await;
            let answer = answer.map_err(|error| failed("read the index of locations", error))?;
            return Ok(item::page(answer.items, answer.scanned_count, answer.last_evaluated_key));
        }
        let (projection, names) = item::projection(&LISTED);
        let scan = self.client.scan().table_name(&self.tables.devices).projection_expression(projection);
        let scan = scan.set_expression_attribute_names(Some(names)).set_filter_expression(condition);
        let values = (!values.is_empty()).then_some(values);
        let scan = scan.set_expression_attribute_values(values).set_limit(limit).set_exclusive_start_key(after);
        let answer = scan.send().await.map_err(|error| failed("read the devices", error))?;
        Ok(item::page(answer.items, answer.scanned_count, answer.last_evaluated_key))
    }

    /// One command's item, as it is now.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn command(&self, device: &str, id: &str) -> Result<Option<Item>, StoreError> {
        let get = self.client.get_item().table_name(&self.tables.commands).consistent_read(true);
        let get = get.key(devices::DEVICE_ID, text(device)).key(commands::COMMAND_ID, text(id));
        let answer = get.send().await.map_err(|error| failed("read a command", error))?;
        Ok(answer.item.map(item::to_json))
    }

    /// One page of commands. `limit` counts what is looked at, not what fits the filter.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn commands(
        &self,
        which: Commands<'_>,
        filter: &CommandFilter,
        limit: Option<i32>,
        after: Option<Item>,
    ) -> Result<Page, StoreError> {
        // Items without a command are the budgets'.
        let mut conditions = vec!["attribute_exists(#command)".to_owned()];
        let mut values = Attributes::new();
        let mut used = vec!["command"];
        for (attribute, sign, wanted) in [("command", "=", &filter.command), ("issued_at", ">=", &filter.since)] {
            if let Some(wanted) = wanted {
                conditions.push(format!("#{attribute} {sign} :{attribute}"));
                values.insert(format!(":{attribute}"), text(wanted));
                used.push(attribute);
            }
        }
        if !filter.statuses.is_empty() {
            let names: Vec<_> = (0..filter.statuses.len()).map(|n| format!(":status_{n}")).collect();
            conditions.push(format!("#status IN ({})", names.join(", ")));
            values.extend(names.into_iter().zip(filter.statuses.iter().copied().map(text)));
            used.push(commands::STATUS);
        }
        let condition = conditions.join(" AND ");
        let after = after.map(item::from_json);
        let (device, above) = match which {
            Commands::Fleet => (None, None),
            Commands::Device(device) => (Some((device, true)), None),
            Commands::Backwards { device, above } => (Some((device, false)), above),
        };
        if let Some((device, forward)) = device {
            used.push(devices::DEVICE_ID);
            values.insert(":device_id".to_owned(), text(device));
            let mut key = "#device_id = :device_id".to_owned();
            if let Some(above) = above {
                used.push(commands::COMMAND_ID);
                values.insert(":above".to_owned(), text(above));
                key.push_str(" AND #command_id > :above");
            }
            let query = self.client.query().table_name(&self.tables.commands).consistent_read(true);
            let query = query.key_condition_expression(key).filter_expression(condition).scan_index_forward(forward);
            let query = query.set_expression_attribute_names(Some(expression_names(used.into_iter())));
            let query = query.set_expression_attribute_values(Some(values)).set_limit(limit);
            let answer = query.set_exclusive_start_key(after).send().await;
            let answer = answer.map_err(|error| failed("read a device's commands", error))?;
            return Ok(item::page(answer.items, answer.scanned_count, answer.last_evaluated_key));
        }
        let scan = self.client.scan().table_name(&self.tables.commands).filter_expression(condition);
        let scan = scan.set_expression_attribute_names(Some(expression_names(used.into_iter())));
        let values = (!values.is_empty()).then_some(values);
        let scan = scan.set_expression_attribute_values(values).set_limit(limit).set_exclusive_start_key(after);
        let answer = scan.send().await.map_err(|error| failed("read the commands", error))?;
        Ok(item::page(answer.items, answer.scanned_count, answer.last_evaluated_key))
    }

    /// One page of a device's history: items whose key lies from `from` to `to`, both included, by time.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn history(
        &self,
        device: &str,
        from: &str,
        to: &str,
        newest_first: bool,
        limit: Option<i32>,
    ) -> Result<Page, StoreError> {
        let used = [devices::DEVICE_ID, history::TIMESTAMP];
        let query = self.client.query().table_name(&self.tables.history);
        let query = query.key_condition_expression("#device_id = :device_id AND #timestamp BETWEEN :from AND :to");
        let query = query.set_expression_attribute_names(Some(expression_names(used.into_iter())));
        let query = query.expression_attribute_values(":device_id", text(device));
        let query = query.expression_attribute_values(":from", text(from)).expression_attribute_values(":to", text(to));
        let answer = query.scan_index_forward(!newest_first).set_limit(limit).send().await;
        let answer = answer.map_err(|error| failed("read a device's history", error))?;
        Ok(item::page(answer.items, answer.scanned_count, answer.last_evaluated_key))
    }
}

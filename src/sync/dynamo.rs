//! The real tables, by aws-sdk-dynamodb: the one place that knows the SDK's client.
//!
//! The SDK retries nothing (one attempt): a second owner of retries would multiply requests just when the table asks
//! for fewer. Each request has a time limit ([`CONNECT_TIMEOUT`], [`READ_TIMEOUT`], [`ATTEMPT_TIMEOUT`]); a write that ran into it may have
//! been carried out, which the conditions make harmless. Stalled-stream protection is off: bodies are small, and it has
//! cut slow but living links. The `Date` of every answer goes to the gateway's clock.

mod classify;
pub(crate) mod date;
mod expression;
mod parts;
pub mod probe;
#[cfg(test)]
mod rights;
mod schema;
mod undo;
pub(crate) mod updates;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{
    BehaviorVersion, IdentityCache, Region, SharedCredentialsProvider, StalledStreamProtectionConfig,
};
use aws_sdk_dynamodb::types::{PutRequest, ReturnValuesOnConditionCheckFailure, WriteRequest};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_http_client::{Builder as HttpBuilder, tls};
use floorgate_model::table::{devices, history};
use floorgate_model::{DeviceId, ExecutionRecord, GatewayId, Timestamp};

use super::credentials::{CredentialSource, CredentialsConfig};
use super::item::{self, Item};
use super::table::{
    BlocksWritten, CloudTable, ExecutionWritten, Owner, Scope, Settled, StateWritten, SyncError, TableError,
};
use crate::clock::Clock;
use crate::shadow::{DeviceView, HistoryBlock, OutboxEntry, StateSnapshot};
use classify::Disposition;
use expression::Update;

/// To reach the endpoint, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// To the first byte of an answer; DynamoDB answers in milliseconds, a mobile link in seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// One request from beginning to end, name resolution and credentials included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// Which tables, where, as whom.
#[derive(Debug, Clone)]
pub struct DynamoConfig {
    /// AWS region; also signed for a compatible store.
    pub region: String,
    /// Only for a DynamoDB-compatible store.
    pub endpoint_url: Option<String>,
    /// Table of devices.
    pub devices_table: String,
    /// Table of history blocks.
    pub history_table: String,
    /// Table of commands; `None` switches it off.
    pub commands_table: Option<String>,
    /// Who we are to AWS.
    pub credentials: CredentialsConfig,
    /// Who we are to the devices' items.
    pub gateway_id: GatewayId,
    /// Longest time for one request; `None` for 20 s.
    pub request_timeout: Option<Duration>,
}

/// The tables of contract §4. Cheap to clone; clones share connections and credentials.
#[derive(Debug, Clone)]
pub struct DynamoTable {
    client: Client,
    config: Arc<DynamoConfig>,
    credentials: CredentialSource,
}

impl DynamoTable {
    /// Makes the client. Nothing is sent yet; the machine's certificate authorities are read (about 10 ms).
    ///
    /// # Errors
    /// [`SyncError::Settings`] if the settings make no client.
    pub fn new(config: DynamoConfig, clock: Clock) -> Result<Self, SyncError> {
        if config.region.is_empty() {
            return Err(SyncError::Settings("`region` is empty; give the tables' region, such as us-east-1".into()));
        }
        let credentials = CredentialSource::new(config.credentials.clone(), clock.clone());
        let limit = config.request_timeout.unwrap_or(ATTEMPT_TIMEOUT);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(limit))
            .read_timeout(READ_TIMEOUT.min(limit))
            .operation_attempt_timeout(limit)
            .operation_timeout(limit)
            .build();
        let http = HttpBuilder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let mut builder = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(config.region.clone()))
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .identity_cache(IdentityCache::no_cache())
            .http_client(http)
            .sleep_impl(TokioSleep::new())
            .time_source(date::SigningTime(clock.clone()))
            .timeout_config(timeouts)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .interceptor(date::ObserveDate(clock));
        if let Some(url) = &config.endpoint_url {
            builder = builder.endpoint_url(url);
        }
        Ok(Self { client: Client::from_conf(builder.build()), config: Arc::new(config), credentials })
    }

    /// A failure as the lanes know it; credentials that were rejected are fetched anew before the next request.
    fn failed(&self, error: TableError) -> TableError {
        if matches!(error, TableError::Misconfigured { scope: Scope::Everything, .. }) {
            self.credentials.rejected();
        }
        error
    }

    /// One conditional update: `None` when carried out, else the item that refused it (empty if there is none).
    async fn update(&self, table: &str, key: Item, update: Update) -> Result<Option<Item>, TableError> {
        let (expression, condition, names, values) = update.parts();
        let sent = self
            .client
            .update_item()
            .table_name(table)
            .set_key(Some(key.clone()))
            .update_expression(expression)
            .condition_expression(condition)
            .set_expression_attribute_names(Some(names))
            .set_expression_attribute_values(Some(values))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .send()
            .await;
        match sent.map_err(|error| Disposition::of(error, table)) {
            Ok(_) => Ok(None),
            Err(Disposition::Refused(Some(item))) => Ok(Some(item)),
            // Not every compatible store returns the item, and a missing item refuses without one.
            Err(Disposition::Refused(None)) => Ok(Some(self.get(table, key).await?.unwrap_or_default())),
            Err(Disposition::Failed(error)) => Err(self.failed(error)),
        }
    }

    async fn get(&self, table: &str, key: Item) -> Result<Option<Item>, TableError> {
        let sent = self.client.get_item().table_name(table).set_key(Some(key)).consistent_read(true).send().await;
        match sent.map_err(|error| Disposition::of(error, table)) {
            Ok(output) => Ok(output.item),
            Err(Disposition::Refused(_)) => Ok(None),
            Err(Disposition::Failed(error)) => Err(self.failed(error)),
        }
    }

    async fn write_command(&self, record: &ExecutionRecord) -> Result<(), TableError> {
        let Some(table) = &self.config.commands_table else { return Ok(()) };
        let mut key = item::device_key(&record.device_id);
        key.insert(floorgate_model::table::commands::COMMAND_ID.to_owned(), item::text(&record.command_id));
        // Refused: the table is as far or further along; a replay.
        self.update(table, key, updates::command(record)).await.map(drop)
    }

    async fn write_last_execution(&self, record: &ExecutionRecord) -> Result<ExecutionWritten, TableError> {
        let key = item::device_key(&record.device_id);
        let refused = self.update(&self.config.devices_table, key, updates::last_execution(record)).await?;
        let no_item = refused.is_some_and(|stored| !stored.contains_key(devices::DEVICE_ID));
        Ok(if no_item { ExecutionWritten::NoDeviceItem } else { ExecutionWritten::Done })
    }

    async fn write_last_command(&self, record: &ExecutionRecord) -> Result<(), TableError> {
        let key = item::device_key(&record.device_id);
        // Refused: the entry is another command's, or there is none.
        self.update(&self.config.devices_table, key, updates::last_command(record)).await.map(drop)
    }
}

impl CloudTable for DynamoTable {
    async fn write_state(&self, snapshot: &StateSnapshot) -> Result<StateWritten, TableError> {
        let (view, me) = (&snapshot.view, &self.config.gateway_id);
        let update = updates::state(view, me);
        let key = item::device_key(&view.device_id);
        match self.update(&self.config.devices_table, key, update.clone()).await? {
            None => Ok(StateWritten::Current),
            Some(stored) => updates::refused_state(&update, &stored, view, me),
        }
    }

    async fn write_execution(
        &self,
        entry: &OutboxEntry,
        view: Option<&DeviceView>,
    ) -> Result<ExecutionWritten, TableError> {
        let record = &entry.record;
        // The entry first: by it the other one tells what is this command's.
        let outcome = async {
            let last_command = self.write_last_command(record).await;
            // An item that goes on changing is left to the second look.
            (last_command, self.undo(record, view).await.map(drop))
        };
        // All are tried whatever becomes of the others: a missing table of commands does not hide an outcome.
        let (command, (last_command, undone), last_execution) = tokio::join!(
            Box::pin(self.write_command(record)),
            Box::pin(outcome),
            Box::pin(self.write_last_execution(record))
        );
        parts::of_execution(last_execution, [last_command, undone, command])
    }

    async fn settle(&self, record: &ExecutionRecord, view: Option<&DeviceView>) -> Result<Settled, TableError> {
        let last_command = self.write_last_command(record).await;
        let repaired = match view {
            Some(view) => {
                let update = updates::repair(view, &self.config.gateway_id);
                let key = item::device_key(&view.device_id);
                // Refused: nothing to repair, or a newer version is on its way and does it.
                self.update(&self.config.devices_table, key, update).await.map(drop)
            }
            None => Ok(()),
        };
        let undone = self.undo(record, view).await;
        parts::of_settling(undone, [last_command, repaired])
    }

    async fn write_blocks(&self, blocks: &[HistoryBlock]) -> Result<BlocksWritten, TableError> {
        let table = &self.config.history_table;
        let mut requests = Vec::with_capacity(blocks.len());
        for block in blocks {
            let put = PutRequest::builder().set_item(Some(item::block(block, &self.config.gateway_id))).build();
            let put = put.map_err(|error| TableError::Permanent { text: error.to_string() })?;
            requests.push(WriteRequest::builder().put_request(put).build());
        }
        let sent = self.client.batch_write_item().request_items(table, requests).send().await;
        match sent.map_err(|error| Disposition::of(error, table)) {
            Ok(output) => Ok(sort_out(blocks, &output.unprocessed_items.unwrap_or_default())),
            Err(Disposition::Failed(error)) => Err(self.failed(error)),
            Err(Disposition::Refused(_)) => {
                Err(TableError::Permanent { text: format!("table `{table}` refuses a batch by a condition") })
            }
        }
    }

    async fn read_owner(&self, device: &DeviceId) -> Result<Option<Owner>, TableError> {
        let stored = self.get(&self.config.devices_table, item::device_key(device)).await?;
        Ok(stored.and_then(|stored| {
            let gateway_id = GatewayId::new(item::text_of(&stored, devices::GATEWAY_ID)?).ok()?;
            let seen = item::text_of(&stored, devices::LAST_SEEN_AT);
            let last_seen_at = seen.and_then(|text| Timestamp::parse(text).ok());
            Some(Owner { gateway_id, last_seen_at, version: item::version_of(&stored) })
        }))
    }
}

/// Which blocks of a batch came back unprocessed, by their keys.
fn sort_out(blocks: &[HistoryBlock], unprocessed: &HashMap<String, Vec<WriteRequest>>) -> BlocksWritten {
    let items = unprocessed.values().flatten().filter_map(|request| Some(request.put_request()?.item()));
    let keys: Vec<_> = items
        .filter_map(|item| Some((item::text_of(item, devices::DEVICE_ID)?, item::text_of(item, history::TIMESTAMP)?)))
        .collect();
    let mut written = BlocksWritten::default();
    for (position, block) in blocks.iter().enumerate() {
        let first = block.first.to_string();
        let back = keys.contains(&(block.device_id.as_str(), first.as_str()));
        if back { written.unprocessed.push(position) } else { written.accepted.push(position) }
    }
    written
}

/// Runs a read-only or creating request of [`schema`] and names its table in the error.
async fn named<T>(table: &str, request: impl Future<Output = Result<T, TableError>>) -> Result<T, SyncError> {
    request.await.map_err(|error| SyncError::Table { table: table.to_owned(), error })
}

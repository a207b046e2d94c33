//! The three tables as they have to be: making them, and saying in one sentence what is wrong with one.
//!
//! Keys, names and the index are the seed's. Billing is on demand, and the index carries only what the seed's tools list
//! (`device_type`, `status`, `firmware_version`), so that a state write that changes readings alone does not also
//! rewrite the index.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
    ScalarAttributeType, TableDescription, TableStatus, TimeToLiveSpecification, TimeToLiveStatus,
};
use floorgate_model::table::{commands, devices, history};

use super::classify::Disposition;
use super::{DynamoTable, named};
use crate::sync::table::{Cause, SyncError, TableError};

/// How often a new table is asked whether it is ready.
const READY_POLL: Duration = Duration::from_millis(500);
/// How long a new table may take; DynamoDB takes seconds, seldom a minute.
const READY_TIMEOUT: Duration = Duration::from_secs(180);

/// One table as floorgate needs it.
pub(super) struct Wanted<'a> {
    pub(super) table: &'a str,
    partition: &'static str,
    sort: Option<&'static str>,
    index: Option<(&'static str, &'static str)>,
    ttl: Option<&'static str>,
}

impl DynamoTable {
    pub(super) fn wanted(&self) -> Vec<Wanted<'_>> {
        let partition = devices::DEVICE_ID;
        let mut tables = vec![
            Wanted {
                table: &self.config.devices_table,
                partition,
                sort: None,
                index: Some((devices::LOCATION_INDEX, devices::LOCATION)),
                ttl: None,
            },
            Wanted {
                table: &self.config.history_table,
                partition,
                sort: Some(history::TIMESTAMP),
                index: None,
                ttl: Some(history::EXPIRES_AT),
            },
        ];
        if let Some(table) = &self.config.commands_table {
            tables.push(Wanted {
                table,
                partition,
                sort: Some(commands::COMMAND_ID),
                index: None,
                ttl: Some(commands::FORGET_AT),
            });
        }
        tables
    }

    /// Compares the tables with what floorgate needs.
    ///
    /// # Errors
    /// [`SyncError::Schema`] naming the table, what is wrong and what to do; [`SyncError::Table`] if one did not answer.
    pub async fn check_schema(&self) -> Result<(), SyncError> {
        for wanted in self.wanted() {
            self.compare_one(&wanted).await?;
        }
        Ok(())
    }

    pub(super) async fn compare_one(&self, wanted: &Wanted<'_>) -> Result<(), SyncError> {
        match self.describe(wanted.table).await? {
            Some(found) => wanted.compare(&found),
            None => Err(wanted.missing()),
        }
    }

    /// Makes the tables that are missing and checks those that are there; one line for each. Can be repeated.
    ///
    /// # Errors
    /// As [`Self::check_schema`]; tables made before the error stay.
    pub async fn provision(&self) -> Result<Vec<String>, SyncError> {
        let mut lines = Vec::new();
        for wanted in self.wanted() {
            let created = match self.describe(wanted.table).await? {
                Some(found) => {
                    wanted.compare(&found)?;
                    false
                }
                None => named(wanted.table, self.create(&wanted)).await?,
            };
            self.await_ready(&wanted).await?;
            let ttl = self.enable_ttl(&wanted).await?;
            let did = if created { "created" } else { "is there, as it should be" };
            lines.push(format!("table `{}` {did}{ttl}", wanted.table));
        }
        Ok(lines)
    }

    async fn describe(&self, table: &str) -> Result<Option<TableDescription>, SyncError> {
        let sent = self.client.describe_table().table_name(table).send().await;
        match sent {
            Ok(output) => Ok(output.table),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => Ok(None),
            Err(error) => Err(SyncError::Table { table: table.to_owned(), error: self.failure(error, table) }),
        }
    }

    /// `false` when somebody else made it meanwhile.
    async fn create(&self, wanted: &Wanted<'_>) -> Result<bool, TableError> {
        match wanted.request(&self.client)?.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_resource_in_use_exception()) => Ok(false),
            Err(error) => Err(self.failure(error, wanted.table)),
        }
    }

    async fn await_ready(&self, wanted: &Wanted<'_>) -> Result<(), SyncError> {
        let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
        loop {
            let status = self.describe(wanted.table).await?.and_then(|found| found.table_status);
            if matches!(status, Some(TableStatus::Active | TableStatus::Updating)) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                let text = format!("is not ready after {} s; run `floorgate provision` again", READY_TIMEOUT.as_secs());
                let error = TableError::Retry { cause: Cause::Timeout, text };
                return Err(SyncError::Table { table: wanted.table.to_owned(), error });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Turns expiry on; what to add to the table's line. History that never expires is no reason to stop.
    async fn enable_ttl(&self, wanted: &Wanted<'_>) -> Result<String, SyncError> {
        let Some(attribute) = wanted.ttl else { return Ok(String::new()) };
        let there = self.client.describe_time_to_live().table_name(wanted.table).send().await;
        let status = there.ok().and_then(|output| output.time_to_live_description?.time_to_live_status);
        if matches!(status, Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)) {
            return Ok(format!(", items expire by `{attribute}`"));
        }
        let ttl = TimeToLiveSpecification::builder().enabled(true).attribute_name(attribute).build();
        let ttl = ttl.map_err(|error| SyncError::Settings(error.to_string()))?;
        let sent = self.client.update_time_to_live().table_name(wanted.table).time_to_live_specification(ttl).send();
        Ok(match sent.await {
            Ok(_) => format!(", items expire by `{attribute}`"),
            Err(error) => {
                let error = self.failure(error, wanted.table);
                format!(", but its items will not expire: {error}; enable TTL on `{attribute}` yourself")
            }
        })
    }

    fn failure<E>(
        &self,
        error: aws_sdk_dynamodb::error::SdkError<E, aws_sdk_dynamodb::config::http::HttpResponse>,
        table: &str,
    ) -> TableError
    where
        E: aws_sdk_dynamodb::error::ProvideErrorMetadata
            + Into<aws_sdk_dynamodb::Error>
            + std::error::Error
            + Send
            + Sync
            + 'static,
    {
        match Disposition::of(error, table) {
            Disposition::Failed(error) => self.failed(error),
            Disposition::Refused(_) => {
                TableError::Permanent { text: format!("table `{table}` refuses by a condition nobody set") }
            }
        }
    }
}

impl Wanted<'_> {
    fn missing(&self) -> SyncError {
        SyncError::Schema(format!(
            "table `{}` does not exist; create it with `floorgate provision`, or correct its name under [dynamodb]",
            self.table
        ))
    }

    fn compare(&self, found: &TableDescription) -> Result<(), SyncError> {
        let wrong = |what: String| {
            let table = self.table;
            Err(SyncError::Schema(format!(
                "table `{table}` {what}; give another table under [dynamodb], or delete it and run `floorgate provision`"
            )))
        };
        let keys = |schema: &[KeySchemaElement], kind: &KeyType| {
            schema.iter().find(|key| key.key_type() == kind).map(|key| key.attribute_name().to_owned())
        };
        let shown = |partition: Option<&str>, sort: Option<&str>| match sort {
            Some(sort) => format!("partition key `{}` and sort key `{sort}`", partition.unwrap_or("none")),
            None => format!("partition key `{}` and no sort key", partition.unwrap_or("none")),
        };
        let partition = keys(found.key_schema(), &KeyType::Hash);
        let sort = keys(found.key_schema(), &KeyType::Range);
        if partition.as_deref() != Some(self.partition) || sort.as_deref() != self.sort {
            let (has, needs) = (shown(partition.as_deref(), sort.as_deref()), shown(Some(self.partition), self.sort));
            return wrong(format!("has {has}, but floorgate needs {needs}"));
        }
        for key in [Some(self.partition), self.sort].into_iter().flatten() {
            let of_key = found.attribute_definitions().iter().find(|definition| definition.attribute_name() == key);
            if of_key.is_some_and(|definition| *definition.attribute_type() != ScalarAttributeType::S) {
                return wrong(format!("has a key `{key}` that is not a string"));
            }
        }
        let Some((index, attribute)) = self.index else { return Ok(()) };
        let there = found.global_secondary_indexes().iter().find(|gsi| gsi.index_name() == Some(index));
        match there.map(|gsi| keys(gsi.key_schema(), &KeyType::Hash)) {
            Some(Some(key)) if key == attribute => Ok(()),
            Some(key) => wrong(format!(
                "has an index `{index}` by `{}`, but the tools need it by `{attribute}`",
                key.as_deref().unwrap_or("nothing")
            )),
            None => wrong(format!("has no index `{index}` by `{attribute}`, which the tools use to list a location")),
        }
    }

    fn request(
        &self,
        client: &Client,
    ) -> Result<aws_sdk_dynamodb::operation::create_table::builders::CreateTableFluentBuilder, TableError> {
        let impossible = |error: aws_sdk_dynamodb::error::BuildError| TableError::Permanent { text: error.to_string() };
        let key = |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
        let is_text = |name: &str| {
            AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build()
        };
        let mut request = client
            .create_table()
            .table_name(self.table)
            .billing_mode(BillingMode::PayPerRequest)
            .key_schema(key(self.partition, KeyType::Hash).map_err(impossible)?)
            .attribute_definitions(is_text(self.partition).map_err(impossible)?);
        if let Some(sort) = self.sort {
            request = request
                .key_schema(key(sort, KeyType::Range).map_err(impossible)?)
                .attribute_definitions(is_text(sort).map_err(impossible)?);
        }
        if let Some((name, attribute)) = self.index {
            let listed = [devices::DEVICE_TYPE, devices::STATUS, devices::FIRMWARE_VERSION].map(str::to_owned);
            let projection = Projection::builder()
                .projection_type(ProjectionType::Include)
                .set_non_key_attributes(Some(listed.to_vec()))
                .build();
            let index = GlobalSecondaryIndex::builder()
                .index_name(name)
                .key_schema(key(attribute, KeyType::Hash).map_err(impossible)?)
                .projection(projection)
                .build();
            request = request
                .global_secondary_indexes(index.map_err(impossible)?)
                .attribute_definitions(is_text(attribute).map_err(impossible)?);
        }
        Ok(request)
    }
}

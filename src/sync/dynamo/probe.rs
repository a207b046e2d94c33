//! What the tables are like, tried from outside: for `floorgate doctor`.
//!
//! # Guarantees
//!
//! * Nothing is written. Whether an item may be written is tried with a condition that cannot hold: DynamoDB asks for the
//!   permission first and for the condition then, so "the condition does not hold" means "allowed".
//! * Each request has the time of [`REQUEST_WAIT`]; the tables are asked side by side.
//!
//! # What it cannot see
//!
//! `BatchWriteItem`, which writes history, knows no condition: whether it is allowed shows when the daemon writes.

use std::time::Duration;

use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use floorgate_model::table::{commands, devices};

use super::classify::Disposition;
use super::schema::Wanted;
use super::{DynamoConfig, DynamoTable};
use crate::clock::Clock;
use crate::sync::credentials::CredentialsError;
use crate::sync::item::{self, Item};
use crate::sync::table::{Scope, SyncError, TableError};

/// How long one request may take.
pub const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// An attribute that no item gets.
const NEVER_WRITTEN: &str = "floorgate_doctor";
/// The attributes whose update is tried, of a device and of a command: ones that a policy with `dynamodb:Attributes` has to allow.
pub(super) const TRIED: [&str; 2] = [devices::STATUS_REASON, "message"];

/// What was found.
#[derive(Debug, Clone)]
pub struct TablesFound {
    /// Whose keys they are, in words that hold no secret; or why there are none.
    pub credentials: Result<(), CredentialsError>,
    /// Each table; nothing if there are no credentials.
    pub tables: Vec<TableFound>,
}

/// One table.
#[derive(Debug, Clone)]
pub struct TableFound {
    /// Its name.
    pub table: String,
    /// Whether it is there with the keys and the index that are needed; `Err` with [`Scope::Table`] and "may not" is a
    /// missing permission to look.
    pub schema: Result<(), SyncError>,
    /// What the credentials may do with it.
    pub permissions: Vec<(&'static str, Permission)>,
}

/// Whether an action is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// It is.
    Allowed,
    /// It is not, in the service's words.
    Refused(String),
    /// That cannot be told, and why.
    Unknown(String),
}

/// Looks at the tables as the daemon would use them.
///
/// # Errors
/// [`SyncError::Settings`] if the settings make no client; everything else is in what is found.
///
/// # Cancel safety
/// Dropping it leaves nothing behind.
pub async fn probe(config: DynamoConfig, clock: Clock) -> Result<TablesFound, SyncError> {
    let config = DynamoConfig { request_timeout: Some(REQUEST_WAIT), ..config };
    let table = DynamoTable::new(config, clock)?;
    // The SDK's futures are large; callers keep theirs small.
    Box::pin(table.look()).await
}

impl DynamoTable {
    async fn look(&self) -> Result<TablesFound, SyncError> {
        if let Err(error) = self.credentials.credentials().await {
            return Ok(TablesFound { credentials: Err(error), tables: Vec::new() });
        }
        let wanted = self.wanted();
        let looks = wanted.iter().map(|wanted| self.look_at(wanted));
        let tables = futures_util::future::join_all(looks).await;
        Ok(TablesFound { credentials: Ok(()), tables })
    }

    async fn look_at(&self, wanted: &Wanted<'_>) -> TableFound {
        let table = wanted.table;
        let (schema, permissions) = tokio::join!(
            Box::pin(self.compare_one(wanted)),
            Box::pin(async {
                if table == self.config.history_table {
                    let why = "it knows no condition, so it cannot be tried without writing";
                    return vec![("dynamodb:BatchWriteItem", Permission::Unknown(why.to_owned()))];
                }
                let key = self.own_key(table);
                let (get, update) = tokio::join!(self.may_get(table, key.clone()), self.may_update(table, key));
                vec![("dynamodb:GetItem", get), ("dynamodb:UpdateItem", update)]
            })
        );
        TableFound { table: table.to_owned(), schema, permissions }
    }

    /// Of an item that a policy with `dynamodb:LeadingKeys` allows too: the gateway's own.
    fn own_key(&self, table: &str) -> Item {
        let mut key = item::device_key(&self.config.gateway_id.as_device());
        if Some(table) == self.config.commands_table.as_deref() {
            key.insert(commands::COMMAND_ID.to_owned(), item::text(NEVER_WRITTEN));
        }
        key
    }

    async fn may_get(&self, table: &str, key: Item) -> Permission {
        match self.client.get_item().table_name(table).set_key(Some(key)).send().await {
            Ok(_) => Permission::Allowed,
            Err(error) => permission(error, table),
        }
    }

    async fn may_update(&self, table: &str, key: Item) -> Permission {
        let tried = TRIED[usize::from(Some(table) == self.config.commands_table.as_deref())];
        let update = self.client.update_item().table_name(table).set_key(Some(key));
        let update = update
            .update_expression("SET #tried = :never")
            .condition_expression("attribute_exists(#id) AND attribute_not_exists(#id)")
            .expression_attribute_names("#tried", tried)
            .expression_attribute_names("#id", devices::DEVICE_ID)
            .expression_attribute_values(":never", item::text(NEVER_WRITTEN));
        match update.send().await {
            Ok(_) => Permission::Unknown("the table carried out what its condition forbids".to_owned()),
            Err(error) => permission(error, table),
        }
    }
}

fn permission<E>(error: SdkError<E, aws_sdk_dynamodb::config::http::HttpResponse>, table: &str) -> Permission
where
    E: ProvideErrorMetadata + Into<aws_sdk_dynamodb::Error> + std::error::Error + Send + Sync + 'static,
{
    match Disposition::of(error, table) {
        Disposition::Refused(_) => Permission::Allowed,
        Disposition::Failed(TableError::Misconfigured { scope: Scope::Table, text })
            if text.contains("may not use") =>
        {
            Permission::Refused(text)
        }
        Disposition::Failed(
            TableError::Retry { text, .. } | TableError::Permanent { text } | TableError::Misconfigured { text, .. },
        ) => Permission::Unknown(text),
    }
}

//! `floorgate provision` and the tables' part of `floorgate check`.

use super::dynamo::{DynamoConfig, DynamoTable};
use super::table::SyncError;
use crate::clock::Clock;

/// Makes the tables that are missing, checks those that are there; one line for each. Can be repeated.
///
/// # Errors
/// [`SyncError`], one sentence with what to do; tables made before it stay.
pub async fn provision(config: DynamoConfig, clock: Clock) -> Result<Vec<String>, SyncError> {
    let table = DynamoTable::new(config, clock)?;
    // The SDK's futures are large; callers keep theirs small.
    Box::pin(table.provision()).await
}

/// Compares the tables with what floorgate needs; changes nothing.
///
/// # Errors
/// [`SyncError`], one sentence with the table, what is wrong and what to do.
pub async fn check(config: DynamoConfig, clock: Clock) -> Result<(), SyncError> {
    DynamoTable::new(config, clock)?.check_schema().await
}

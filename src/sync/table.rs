//! What the lanes ask of the cloud's tables, and what can go wrong there: no vendor type appears here.

use std::future::Future;

use floorgate_model::{DeviceId, ExecutionRecord, GatewayId, Timestamp};

use crate::shadow::{DeviceView, HistoryBlock, OutboxEntry, StateSnapshot};

/// Most items of one batch of history; DynamoDB takes no more in one `BatchWriteItem`.
pub const BATCH_ITEMS_MAX: usize = 25;

/// The three tables. One real implementation ([`super::DynamoTable`]); tests script a double.
///
/// Every method may be repeated with the same arguments: the table then is as after one call. None retries by itself,
/// and dropping a call leaves it open whether it was carried out, as a time-out does.
pub trait CloudTable: Send + Sync + 'static {
    /// Writes a device's state to `iot-devices` if it is newer there and the device is ours.
    ///
    /// # Errors
    /// [`TableError`]; after a time-out the write may have been carried out all the same.
    fn write_state(&self, snapshot: &StateSnapshot) -> impl Future<Output = Result<StateWritten, TableError>> + Send;

    /// Writes an execution to `iot-commands` and to the command attributes of `iot-devices`, and takes back what a tool
    /// wrote there for one that did not succeed, if the device (`view`) never told its configuration; if it did, its
    /// state puts that right.
    ///
    /// # Errors
    /// [`TableError`]; some of the writes may have been carried out. What passes or can be repaired is told before
    /// [`ExecutionWritten::NoDeviceItem`], and both before [`TableError::Permanent`]: only when nothing but what will
    /// never be taken is left may the record be given up.
    fn write_execution(
        &self,
        entry: &OutboxEntry,
        view: Option<&DeviceView>,
    ) -> impl Future<Output = Result<ExecutionWritten, TableError>> + Send;

    /// Puts right what a tool wrote optimistically *after* we had announced the outcome: its `last_command`, the
    /// device's real status and configuration at the version the table has, and what [`CloudTable::write_execution`]
    /// takes back.
    ///
    /// # Errors
    /// [`TableError`].
    fn settle(
        &self,
        record: &ExecutionRecord,
        view: Option<&DeviceView>,
    ) -> impl Future<Output = Result<Settled, TableError>> + Send;

    /// Writes at most [`BATCH_ITEMS_MAX`] closed blocks to `iot-telemetry-history`.
    ///
    /// # Errors
    /// [`TableError`]; [`TableError::Permanent`] says that at least one of them will never be taken.
    fn write_blocks(&self, blocks: &[HistoryBlock]) -> impl Future<Output = Result<BlocksWritten, TableError>> + Send;

    /// Who writes a device's item; `None` when there is no item or nobody's name in it.
    ///
    /// # Errors
    /// [`TableError`].
    fn read_owner(&self, device: &DeviceId) -> impl Future<Output = Result<Option<Owner>, TableError>> + Send;
}

/// What became of a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateWritten {
    /// The table has it, from now on or already (an earlier attempt whose answer was lost).
    Current,
    /// The table is at this version or above with other content: go on above it.
    Behind {
        /// The table's version.
        table_version: u64,
    },
    /// Another gateway that is still alive for this device writes it.
    TakenOver {
        /// Which.
        by: GatewayId,
    },
}

/// What became of an execution record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecutionWritten {
    /// All of it is where it belongs.
    Done,
    /// The device has no item in `iot-devices` yet; its first state has to go first.
    NoDeviceItem,
}

/// What became of a second look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The table shows what is so, as far as this command goes.
    Done,
    /// The item changed meanwhile, or is newer than the view: look again, with a fresh view.
    Again,
}

/// What became of a batch; both lists hold positions in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BlocksWritten {
    /// Accepted.
    pub accepted: Vec<usize>,
    /// Not taken this time (throttling); to be sent again, unchanged.
    pub unprocessed: Vec<usize>,
}

/// Who writes a device's item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The gateway.
    pub gateway_id: GatewayId,
    /// When it last heard of the device.
    pub last_seen_at: Option<Timestamp>,
    /// The version of its last write.
    pub version: u64,
}

/// Why a passing failure happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No connection, or it broke.
    Network,
    /// No answer in time: the write may have been carried out.
    Timeout,
    /// The service failed (5xx), or something in between answered in its place.
    Server,
    /// Too much at once.
    Throttled,
}

/// Whose fault a configuration error is, which decides what else it holds up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One table: the other lanes go on.
    Table,
    /// The whole account or machine (credentials, clock): nothing will work.
    Everything,
}

/// Why the table did not take it. Retrying is a property of the error; [`super::health::Health`] alone acts on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// Will pass: try again with back-off.
    #[error("{text}; trying again")]
    Retry {
        /// Why.
        cause: Cause,
        /// What and which, in one sentence.
        text: String,
    },
    /// This item will never be taken.
    #[error("{text}")]
    Permanent {
        /// What and which, in one sentence.
        text: String,
    },
    /// Somebody has to change something: try again, but slowly.
    #[error("{text}")]
    Misconfigured {
        /// How far it reaches.
        scope: Scope,
        /// What, which one, what to do.
        text: String,
    },
}

/// Why sync could not be set up, or the tables cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// The settings make no client.
    #[error("the [dynamodb] settings cannot be used: {0}")]
    Settings(String),
    /// A table is missing or has other keys than floorgate needs.
    #[error("{0}")]
    Schema(String),
    /// A table did not answer as asked.
    #[error("table `{table}`: {error}")]
    Table {
        /// Which.
        table: String,
        /// Why.
        error: TableError,
    },
}

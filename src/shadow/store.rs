//! The handle everyone holds, and the thread behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::{
    AdminState, CommandId, DeviceId, ExecutionRecord, ExecutionStatus, GatewayId, Profile, Reason, Timestamp,
};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use super::report::{Answer, FloorReport};
use super::view::{DeviceView, HistoryBlock, Lane, OutboxEntry, StateSnapshot, StoreStats};
use crate::clock::Clock;

/// Telemetry messages that make a commit worth its flash: at 20 a second, one commit a second.
pub const COMMIT_BATCH: usize = 20;
/// Requests that may wait for the writer; beyond, senders wait, and the links stop reading.
pub const REQUESTS_MAX: usize = 4_096;
/// Open commands a device may have (contract §5).
pub const DEVICE_QUEUE_MAX: usize = 8;
/// Open commands the gateway may have (contract §5).
pub const GATEWAY_QUEUE_MAX: usize = 200;

/// What the store needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of both files; made if it is not there.
    pub state_dir: PathBuf,
    /// Who we are; also a device of its own.
    pub gateway_id: GatewayId,
    /// The devices that are attached, the gateway itself among them.
    pub devices: Vec<Attachment>,
    /// How long telemetry may wait for its commit.
    pub commit_interval: Duration,
    /// Most bytes of both files with their logs.
    pub quota_bytes: u64,
    /// How long the table keeps history (TTL of a block after its last sample).
    pub history_retention: Duration,
    /// Execution records go to the `Result` lane (there is a cloud link).
    pub announce_results: bool,
    /// Execution records, states and blocks go to the tables (there is a `[dynamodb]`).
    pub announce_tables: bool,
}

/// One attached device, from the configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// Its id.
    pub device_id: DeviceId,
    /// Its type.
    pub device_type: String,
    /// Where it stands.
    pub location: String,
    /// How often it reports.
    pub sample_interval: Duration,
    /// Configuration values known from commissioning, until the device reports its own.
    pub configuration: Option<BTreeMap<String, String>>,
    /// Alert deadband and delay.
    pub profile: Profile,
}

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A file cannot be opened or made.
    #[error("cannot open `{path}`: {cause}; {hint}")]
    Open {
        /// Which file or folder.
        path: String,
        /// What the system says.
        cause: String,
        /// What to do.
        hint: &'static str,
    },
    /// A file was written by a newer floorgate.
    #[error("`{path}` has schema {found}, this floorgate knows up to {known}; install the newer floorgate again")]
    Newer {
        /// Which file.
        path: String,
        /// Its schema.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// Reading or writing failed; nothing of this request is durable.
    #[error("the store could not {doing}: {cause}")]
    Io {
        /// What it was about.
        doing: &'static str,
        /// What SQLite says.
        cause: String,
    },
    /// The writer has stopped.
    #[error("the store is closed")]
    Closed,
}

/// Resolves when the report is committed. Dropping it changes nothing: the report is committed all the same.
pub type Receipt = tokio::sync::oneshot::Receiver<Result<Taken, StoreError>>;

/// What became of a committed report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// New, stored.
    Stored,
    /// Known already, folded.
    Duplicate,
    /// Nothing attached under this id (the configuration changed meanwhile), or an answer to an unknown command.
    Unknown,
}

/// Signals for the loops that move things on; each is given after the commit.
#[derive(Debug, Default)]
pub struct Wakeups {
    /// An execution waits for the dispatcher.
    pub journal: Notify,
    /// An announcement is due on [`Lane::Result`].
    pub results: Notify,
    /// An announcement is due on [`Lane::Table`].
    pub tables: Notify,
    /// An urgent state is due.
    pub states: Notify,
    /// A block was closed.
    pub blocks: Notify,
}

/// A new execution, already judged: `created`, or terminal (`rejected`, `expired`) with its reason.
#[derive(Debug, Clone, PartialEq)]
pub struct NewExecution {
    /// The record; its status is `created`, `rejected` or `expired`.
    pub record: ExecutionRecord,
    /// The parameters in the device's types, for the driver.
    pub checked_parameters: Map<String, Value>,
}

/// What the journal did with a new execution.
#[derive(Debug, Clone, PartialEq)]
pub enum Journalled {
    /// Stored; the record may have become `rejected` with `QUEUE_FULL`.
    New(ExecutionRecord),
    /// The same command again: this is its record, announced once more on [`Lane::Result`].
    Duplicate(ExecutionRecord),
    /// The id belongs to a different command; nothing stored.
    Conflict(ExecutionRecord),
}

/// An execution as the dispatcher needs it.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenExecution {
    /// The record.
    pub record: ExecutionRecord,
    /// The parameters in the device's types.
    pub checked_parameters: Map<String, Value>,
    /// The device's last word on it.
    pub answer: Option<Answer>,
    /// `boot_count` of the device when the intent was committed.
    pub boot_count_before: Option<u64>,
}

/// How an execution ends.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// A terminal status.
    pub status: ExecutionStatus,
    /// Why.
    pub reason: Option<Reason>,
    /// Why, for people.
    pub message: Option<String>,
    /// What the device told.
    pub details: Option<Map<String, Value>>,
    /// What changes on the device's shadow in the same transaction.
    pub effect: Option<Effect>,
}

/// What an ending changes on the device's shadow.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// The overlay.
    Admin(AdminState),
    /// Configuration values that are now known to hold (merged into the device's configuration).
    Configuration(BTreeMap<String, String>),
    /// Observed offline now (a reboot that did not come back).
    Offline(String),
}

/// A cloneable handle on the store. All methods are cancel safe: a request that was handed over is carried out whether
/// or not its caller still waits.
#[derive(Debug, Clone)]
pub struct Store {
    wakeups: Arc<Wakeups>,
    floor_changes: watch::Receiver<u64>,
}

#[expect(clippy::unused_async, clippy::missing_errors_doc, clippy::unimplemented, missing_docs, reason = "to be built")]
impl Store {
    /// Opens or makes both files, migrates, and starts the writer thread.
    pub fn open(config: Config, clock: Clock) -> Result<Self, StoreError> {
        let _ = (config, clock);
        unimplemented!()
    }

    /// Closes: commits what waits, checkpoints, ends the thread. Later requests answer [`StoreError::Closed`].
    pub async fn close(&self) -> Result<(), StoreError> {
        unimplemented!()
    }

    // ---- floor in -------------------------------------------------------------------------------------------

    /// Hands a report over, waiting for room in the queue. The receipt resolves after its commit.
    pub async fn submit(&self, report: FloorReport) -> Result<Receipt, StoreError> {
        let _ = report;
        unimplemented!()
    }

    /// Tells that the floor's broker is reachable or not: while it is not (and for 60 s), silence proves nothing.
    pub async fn floor_reachable(&self, yes: bool) -> Result<(), StoreError> {
        let _ = yes;
        unimplemented!()
    }

    /// One step of the timers: offline by silence, warning delays, blocks older than 60 s, overdue flushes.
    /// The gateway calls it every second; tests call it as they like.
    pub async fn tick(&self) -> Result<(), StoreError> {
        unimplemented!()
    }

    // ---- what is known --------------------------------------------------------------------------------------

    pub fn wakeups(&self) -> &Wakeups {
        &self.wakeups
    }

    /// Counts up after every committed state report and answer; for those who wait for a device's word.
    pub fn floor_changes(&self) -> watch::Receiver<u64> {
        self.floor_changes.clone()
    }

    pub async fn devices(&self) -> Result<Vec<DeviceView>, StoreError> {
        unimplemented!()
    }

    pub async fn device(&self, id: &DeviceId) -> Result<Option<DeviceView>, StoreError> {
        let _ = id;
        unimplemented!()
    }

    /// Newest first, all devices or one.
    pub async fn executions(
        &self,
        device: Option<&DeviceId>,
        limit: usize,
    ) -> Result<Vec<ExecutionRecord>, StoreError> {
        let _ = (device, limit);
        unimplemented!()
    }

    pub async fn stats(&self) -> Result<StoreStats, StoreError> {
        unimplemented!()
    }

    // ---- commands -------------------------------------------------------------------------------------------

    /// Inserts if absent, atomically with the queue bounds; commits at once.
    pub async fn journal(&self, entry: NewExecution) -> Result<Journalled, StoreError> {
        let _ = entry;
        unimplemented!()
    }

    /// All `created` executions, first in first out.
    pub async fn waiting(&self) -> Result<Vec<OpenExecution>, StoreError> {
        unimplemented!()
    }

    /// All `in_progress` executions; at start, those that were interrupted.
    pub async fn in_progress(&self) -> Result<Vec<OpenExecution>, StoreError> {
        unimplemented!()
    }

    /// One open execution; `None` once it is terminal or if it is not known.
    pub async fn open_execution(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let _ = (device, id);
        unimplemented!()
    }

    /// Commits the intent: `created` → `in_progress`. `None` if it is not `created` any more, or the device already
    /// has one in progress.
    pub async fn claim(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let _ = (device, id);
        unimplemented!()
    }

    /// Ends an execution, once: `None` if it was terminal already. Outcome, effect and announcements share the
    /// transaction, and the device's state becomes urgent (whatever the tools wrote optimistically is put right).
    pub async fn finish(
        &self,
        device: &DeviceId,
        id: &CommandId,
        ending: Ending,
    ) -> Result<Option<ExecutionRecord>, StoreError> {
        let _ = (device, id, ending);
        unimplemented!()
    }

    // ---- lanes out ------------------------------------------------------------------------------------------

    /// The oldest due announcements of a lane.
    pub async fn peek_outbox(&self, lane: Lane, limit: usize) -> Result<Vec<OutboxEntry>, StoreError> {
        let _ = (lane, limit);
        unimplemented!()
    }

    /// Announced. An entry that was renewed meanwhile has another number and stays.
    pub async fn confirm_outbox(&self, lane: Lane, seqs: Vec<i64>) -> Result<(), StoreError> {
        let _ = (lane, seqs);
        unimplemented!()
    }

    /// States newer than the table's, urgent ones first; `urgent_only` leaves the others for the next interval.
    pub async fn peek_states(&self, urgent_only: bool, limit: usize) -> Result<Vec<StateSnapshot>, StoreError> {
        let _ = (urgent_only, limit);
        unimplemented!()
    }

    /// The table has this version (or a newer one of ours).
    pub async fn confirm_state(&self, device: &DeviceId, version: u64) -> Result<(), StoreError> {
        let _ = (device, version);
        unimplemented!()
    }

    /// The table had a higher version under our name: go on above it.
    pub async fn adopt_version(&self, device: &DeviceId, table_version: u64) -> Result<(), StoreError> {
        let _ = (device, table_version);
        unimplemented!()
    }

    /// Another gateway writes this device's item: leave it alone (`None`: it is ours again).
    pub async fn taken_over(&self, device: &DeviceId, by: Option<GatewayId>) -> Result<(), StoreError> {
        let _ = (device, by);
        unimplemented!()
    }

    /// Closed blocks not yet accepted, oldest first.
    pub async fn peek_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let _ = limit;
        unimplemented!()
    }

    /// Accepted by the table.
    pub async fn confirm_blocks(&self, ids: Vec<i64>) -> Result<(), StoreError> {
        let _ = ids;
        unimplemented!()
    }

    /// Refused by the table for good: kept aside with the reason, at most 1,000, never in the way of others.
    pub async fn park_block(&self, id: i64, reason: String) -> Result<(), StoreError> {
        let _ = (id, reason);
        unimplemented!()
    }

    // ---- sessions of the floor endpoint ---------------------------------------------------------------------

    /// Persistent sessions of MQTT clients of the floor endpoint: client id → topic filters. At most 1,000.
    pub async fn sessions(&self) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
        unimplemented!()
    }

    /// Keeps (or with `None` forgets) a client's persistent session.
    pub async fn save_session(&self, client: String, filters: Option<Vec<String>>) -> Result<(), StoreError> {
        let _ = (client, filters);
        unimplemented!()
    }
}

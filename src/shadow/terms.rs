//! What the store is told and what it answers: plain values; [`super::store`] shows them all under its own name.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use floorgate_model::{AdminState, DeviceId, ExecutionRecord, ExecutionStatus, GatewayId, Profile, Reason};
use serde_json::{Map, Value};
use tokio::sync::Notify;

use super::report::Answer;

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
    /// The quota is used up by readings that the table does not have; this one stays with its sender. Everything but
    /// telemetry goes on.
    #[error(
        "the store's quota of {quota_bytes} bytes is full of readings not yet sent; free it by a connection to \
             the tables, or raise `[store] quota`"
    )]
    Full {
        /// The quota.
        quota_bytes: u64,
    },
    /// A file's contents cannot be read any more.
    #[error("`{path}` is damaged: {cause}; move it aside, floorgate makes a new one")]
    Damaged {
        /// Which file.
        path: String,
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
    /// Stored; the record may have become `rejected` with `QUEUE_FULL`, or with `RATE_LIMITED` if it may be one that was
    /// refused before and is forgotten.
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

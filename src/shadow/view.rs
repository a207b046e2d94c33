//! What others see of the store: plain values, no rows.

use std::collections::BTreeMap;

use floorgate_model::{
    AdminState, CommandName, DeviceId, DeviceStatus, ExecutionRecord, GatewayId, Readings, Timestamp,
};

use super::report::Answer;

/// One device, as the gateway knows it now.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceView {
    /// Its id.
    pub device_id: DeviceId,
    /// Its type.
    pub device_type: String,
    /// Where it stands.
    pub location: String,
    /// When this gateway first attached it.
    pub registered_at: Timestamp,
    /// What shows: the overlay if there is one, else the observed status.
    pub status: DeviceStatus,
    /// Without the overlay.
    pub observed: DeviceStatus,
    /// Why it has this status (`pressure_psi 152.3 > 150`, `silent for 15 s`, …).
    pub status_reason: Option<String>,
    /// Since when it shows this status.
    pub status_since: Timestamp,
    /// The overlay.
    pub admin_state: AdminState,
    /// As the device reports it.
    pub firmware_version: Option<String>,
    /// As the device reports it, else as commissioned; `None` while neither is known.
    pub configuration: Option<BTreeMap<String, String>>,
    /// When the device last said live what its configuration is: in a state report that is not retained or in an
    /// answer. Not stored: `None` after a start until it says so again, though `configuration` is known.
    pub last_configuration_at: Option<Timestamp>,
    /// As the device reports it.
    pub boot_count: Option<u64>,
    /// When the last live state report came: neither retained nor a last will.
    pub last_state_at: Option<Timestamp>,
    /// The commands the device says it can execute.
    pub declared_commands: Option<Vec<CommandName>>,
    /// Newest readings.
    pub last_readings: Readings,
    /// Their time.
    pub last_reading_at: Option<Timestamp>,
    /// When the gateway last heard anything live from it.
    pub last_seen_at: Option<Timestamp>,
    /// The version of this state; grows with every change worth sending.
    pub version: u64,
    /// Commands waiting or running.
    pub commands_open: usize,
    /// The last execution, waiting or running or ended.
    pub last_execution: Option<ExecutionRecord>,
    /// Another gateway writes this device's item.
    pub taken_over_by: Option<GatewayId>,
}

/// A device's state to be written to `iot-devices`.
#[derive(Debug, Clone, PartialEq)]
pub struct StateSnapshot {
    /// The state; `view.version` is the version to write.
    pub view: DeviceView,
    /// A status or configuration change, an outcome: goes at once, not at the next interval.
    pub urgent: bool,
}

/// A closed block of samples, exactly as it goes to `iot-telemetry-history`.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryBlock {
    /// Row in the store, for confirming.
    pub id: i64,
    /// Whose samples.
    pub device_id: DeviceId,
    /// Time of the first sample; with the device the key of the item.
    pub first: Timestamp,
    /// Each sample's distance from the first, milliseconds; the first is 0; strictly increasing.
    pub offsets_ms: Vec<u64>,
    /// Metric → one value a sample, `None` where the sample has no such reading.
    pub readings: BTreeMap<String, Vec<Option<floorgate_model::Reading>>>,
    /// TTL.
    pub expires_at: Timestamp,
}

/// Where an execution record is still to be announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// `devices/{id}/commands/result` on the cloud link.
    Result,
    /// `iot-commands` and the command attributes of `iot-devices`.
    Table,
}

/// In which order announcements are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxOrder {
    /// Accepted commands before refused ones, each kind by number.
    OutcomesFirst,
    /// By number alone: the oldest transition first.
    ByNumber,
}

/// One announcement that is due: the newest record of one execution.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxEntry {
    /// For confirming; a newer transition of the same execution gets a new number.
    pub seq: i64,
    /// The record as it stands now.
    pub record: ExecutionRecord,
    /// The device's last word on it, if any.
    pub answer: Option<Answer>,
}

/// Figures for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct StoreStats {
    /// Telemetry messages committed since start.
    pub telemetry_committed: u64,
    /// Duplicates folded since start.
    pub duplicates_folded: u64,
    /// Commits since start.
    pub commits: u64,
    /// Samples not yet in a closed block.
    pub samples_open: u64,
    /// Closed blocks not yet accepted by the table.
    pub blocks_waiting: u64,
    /// Samples in those blocks.
    pub samples_waiting: u64,
    /// Blocks the table refused for good.
    pub blocks_parked: u64,
    /// Announcements not yet confirmed, both lanes.
    pub outbox_waiting: u64,
    /// Commands refused on arrival that went before they were announced everywhere, since the file was made.
    pub refused_not_announced: u64,
    /// Devices whose state is newer here than in the table.
    pub states_waiting: u64,
    /// Age of the oldest thing that waits, seconds.
    pub oldest_waiting_seconds: u64,
    /// Bytes of both files with their logs.
    pub bytes_on_disk: u64,
    /// Messages left unacknowledged because the store could not take them, since start.
    pub store_failures: u64,
    /// The quota is used up by readings that the table does not have: no more are taken until some are sent.
    pub full: bool,
}

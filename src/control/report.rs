//! What is answered.

use std::collections::BTreeMap;

use floorgate_model::{
    AdminState, CommandName, DeviceId, DeviceLedger, DeviceStatus, ExecutionRecord, GatewayId, Timestamp,
};
use serde_json::Value;

use crate::clock::ClockState;
use crate::shadow::DeviceView;
use crate::shadow::rescue::Rescue;

/// How the gateway is.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct StatusReport {
    /// Who it is.
    pub gateway_id: GatewayId,
    /// The daemon's version.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// How long ago, on the clock nothing steps.
    pub uptime_seconds: u64,
    /// Its clock.
    pub clock: ClockState,
    /// [`crate::shadow::StoreStats`] as an object; read leniently, because a client may be older than its daemon.
    pub store: Value,
    /// The floor's side.
    pub floor: LinkReport,
    /// The cloud link, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud: Option<LinkReport>,
    /// Sending to the tables, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync: Option<SyncReport>,
    /// Refused messages since start, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Commands refused on arrival since start, by the contract's reason.
    #[serde(default)]
    pub commands_refused: BTreeMap<String, u64>,
    /// Device ids that were heard but are not attached.
    pub pending_devices: Vec<String>,
    /// Attached devices by status.
    pub devices: BTreeMap<DeviceStatus, u64>,
    /// Commands waiting or running.
    pub commands_open: u64,
    /// Commands are inhibited, because the journal is in doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inhibited: Option<InhibitionReport>,
    /// What became of the last reload (SIGHUP, `floorgate reload`) since start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<ReloadReport>,
    /// Files of the store that were damaged and what came of it, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rescues: Vec<Rescue>,
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReloadReport {
    /// When it was done.
    pub at: Timestamp,
    /// False: everything stays as it was.
    pub applied: bool,
    /// What changed, in numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub changes: String,
    /// Why it was refused; the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// What refused it, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_for: Option<RefusedFor>,
    /// Keys that differ and count only after a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs_restart: Vec<String>,
}

/// What refused a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedFor {
    /// The files: they cannot be used, or are those of another gateway.
    Configuration,
    /// The store, which cannot write now.
    Store,
}

/// Commands are refused with `INHIBITED`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InhibitionReport {
    /// For how much longer, if the gateway stays on.
    pub seconds_left: u64,
    /// Why.
    pub why: String,
}

/// Whether a link stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It works.
    Up,
    /// It does not; the gateway keeps trying.
    Down,
}

/// One side of the gateway.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LinkReport {
    /// The URL, or where the built-in endpoint listens.
    pub address: String,
    /// Whether it stands.
    pub state: LinkState,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Connected clients of the built-in endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// The last problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Sending to the tables.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SyncReport {
    /// Region, or the endpoint's URL.
    pub address: String,
    /// Whether the last request got through.
    pub state: LinkState,
    /// When one last did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_at: Option<Timestamp>,
    /// The last problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One device; the public face of [`DeviceView`].
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "each field is its namesake in `DeviceView`, where it is described")]
pub struct DeviceReport {
    pub device_id: DeviceId,
    pub device_type: String,
    pub location: String,
    pub registered_at: Timestamp,
    pub status: DeviceStatus,
    pub observed: DeviceStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    pub status_since: Timestamp,
    pub admin_state: AdminState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_count: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_state_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared_commands: Option<Vec<CommandName>>,
    /// Newest readings: metric → number.
    pub last_readings: BTreeMap<String, f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_reading_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_at: Option<Timestamp>,
    pub version: u64,
    pub commands_open: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_execution: Option<ExecutionRecord>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over_by: Option<GatewayId>,
    #[serde(default)]
    pub ledger: DeviceLedger,
}

impl From<DeviceView> for DeviceReport {
    fn from(view: DeviceView) -> Self {
        let last_readings =
            view.last_readings.iter().map(|(name, reading)| (name.to_owned(), reading.value())).collect();
        Self {
            device_id: view.device_id,
            device_type: view.device_type,
            location: view.location,
            registered_at: view.registered_at,
            status: view.status,
            observed: view.observed,
            status_reason: view.status_reason,
            status_since: view.status_since,
            admin_state: view.admin_state,
            firmware_version: view.firmware_version,
            configuration: view.configuration,
            boot_count: view.boot_count,
            last_state_at: view.last_state_at,
            declared_commands: view.declared_commands,
            last_readings,
            last_reading_at: view.last_reading_at,
            last_seen_at: view.last_seen_at,
            version: view.version,
            commands_open: u64::try_from(view.commands_open).unwrap_or(u64::MAX),
            last_execution: view.last_execution,
            taken_over_by: view.taken_over_by,
            ledger: view.ledger,
        }
    }
}

/// The answer to one query, as that query says.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `Status`.
    Status(Box<StatusReport>),
    /// To `Devices`.
    Devices(Vec<DeviceReport>),
    /// To `Device`.
    Device(Box<DeviceReport>),
    /// To `Commands`.
    Commands(Vec<ExecutionRecord>),
    /// To `Send`.
    Execution(Box<ExecutionRecord>),
    /// To `Reload`.
    Reload(Box<ReloadReport>),
}

//! What comes in from the floor, already parsed.

use std::collections::BTreeMap;

use floorgate_model::{CommandId, CommandName, DeviceId, Readings, Timestamp};
use serde_json::{Map, Value};

/// One message of a device.
#[derive(Debug, Clone, PartialEq)]
pub enum FloorReport {
    /// Readings.
    Telemetry(TelemetryReport),
    /// State, birth or last will.
    State(StateReport),
    /// The device's word on a command.
    Answer(Answer),
}

/// Readings of one device at one time.
#[derive(Debug, Clone, PartialEq)]
pub struct TelemetryReport {
    /// Who measured; must be attached.
    pub device_id: DeviceId,
    /// What.
    pub readings: Readings,
    /// When, by the device's clock, if it has one.
    pub device_time: Option<Timestamp>,
    /// The device's own counter, if it sends one; part of the content for folding duplicates.
    pub seq: Option<u64>,
    /// When, by the gateway's clock.
    pub received_at: Timestamp,
    /// [`crate::clock::Moment::guess_base`] of that look at the clock; `None` if the time was known.
    pub guess_base_ms: Option<i64>,
    /// MQTT DUP flag: without a device time, only such a report can be a duplicate.
    pub redelivered: bool,
    /// MQTT RETAIN flag: an old value; seeds `last_telemetry` if nothing newer is known, never history or presence.
    pub retained: bool,
}

/// What a device says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct StateReport {
    /// Who.
    pub device_id: DeviceId,
    /// False in its last will.
    pub online: bool,
    /// Firmware version.
    pub firmware_version: Option<String>,
    /// Its whole configuration, values as text.
    pub configuration: Option<BTreeMap<String, String>>,
    /// How often it has started.
    pub boot_count: Option<u64>,
    /// The commands it can execute, where it says so.
    pub commands: Option<Vec<CommandName>>,
    /// MQTT RETAIN flag: delivered on subscribing, so no proof of life now.
    pub retained: bool,
    /// When, by the gateway's clock.
    pub received_at: Timestamp,
}

/// A device's word on a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Who.
    pub device_id: DeviceId,
    /// On which command.
    pub command_id: CommandId,
    /// How it stands.
    pub status: AnswerStatus,
    /// Why, in the device's words.
    pub reason: Option<String>,
    /// Anything else it tells.
    pub details: Option<Map<String, Value>>,
    /// Its whole configuration afterwards, values as text.
    pub configuration: Option<BTreeMap<String, String>>,
    /// When, by the gateway's clock.
    pub received_at: Timestamp,
}

/// How a command stands at the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerStatus {
    /// Working on it.
    InProgress,
    /// Done.
    Succeeded,
    /// Not done.
    Failed,
}

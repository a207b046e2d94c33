//! Rows of devices in `state.db`.

use std::collections::BTreeMap;

use floorgate_model::{AdminState, DeviceId, DeviceLedger, DeviceStatus};
use rusqlite::{Connection, Row, params};

use super::device::{Device, Remembered};
use super::terms::StoreError;
use super::view::DeviceView;
use super::words::{
    if_readable, io, opt_json, opt_time, read_count, read_opt_json, read_opt_time, read_opt_word, read_readings,
    read_time, read_word, readings_json, signed,
};

const COLUMNS: &str = "device_id, device_type, location, registered_at, observed, status, status_reason, \
    status_since, offline_reason, admin_state, firmware_version, configuration, boot_count, last_state_at, \
    declared_commands, last_readings, last_reading_at, last_seen_at, version, synced_version, taken_over_by";

/// Every device the file knows, attached or not.
pub(super) fn all(connection: &Connection) -> Result<BTreeMap<DeviceId, Remembered>, StoreError> {
    let cannot = io("read the devices");
    let mut statement = connection.prepare(&format!("SELECT {COLUMNS} FROM device")).map_err(&cannot)?;
    let rows = statement.query_map([], remembered).map_err(&cannot)?;
    let readable = rows.filter_map(|row| if_readable(row, "a device").transpose());
    readable.map(|row| row.map(|row| (row.view.device_id.clone(), row))).collect::<Result<_, _>>().map_err(&cannot)
}

/// Writes a device as it is now; the caller tells it [`Device::saved`] once that is committed.
pub(super) fn save(connection: &Connection, device: &Device) -> Result<(), StoreError> {
    let cannot = io("write a device");
    let view = &device.view;
    let mut statement = connection
        .prepare_cached(&format!(
            "INSERT OR REPLACE INTO device ({COLUMNS}) VALUES \
            (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)"
        ))
        .map_err(&cannot)?;
    let row = params![
        view.device_id.as_str(),
        view.device_type,
        view.location,
        view.registered_at.as_millis(),
        view.observed.as_str(),
        view.status.as_str(),
        view.status_reason,
        view.status_since.as_millis(),
        device.observer.away_because(),
        view.admin_state.as_str(),
        view.firmware_version,
        opt_json(view.configuration.as_ref()),
        view.boot_count.map(signed),
        opt_time(view.last_state_at),
        opt_json(view.declared_commands.as_ref()),
        readings_json(&view.last_readings),
        opt_time(view.last_reading_at),
        opt_time(view.last_seen_at),
        signed(view.version),
        signed(device.synced_version),
        view.taken_over_by.as_ref().map(floorgate_model::GatewayId::as_str),
    ];
    statement.execute(row).map(drop).map_err(&cannot)
}

/// Only what has no id is no device: a value that cannot be read is as if it had never been known, and the device will
/// say it again.
fn remembered(row: &Row<'_>) -> rusqlite::Result<Remembered> {
    let admin: String = row.get(9).unwrap_or_default();
    let in_service = admin == AdminState::InService.as_str();
    let view = DeviceView {
        device_id: read_word(row, 0)?,
        device_type: row.get(1).unwrap_or_default(),
        location: row.get(2).unwrap_or_default(),
        registered_at: read_time(row, 3)?,
        observed: read_word(row, 4).unwrap_or(DeviceStatus::Offline),
        status: read_word(row, 5).unwrap_or(DeviceStatus::Offline),
        status_reason: row.get(6).unwrap_or_default(),
        status_since: read_time(row, 7)?,
        // A word nobody knows is the overlay that allows less.
        admin_state: if in_service { AdminState::InService } else { AdminState::Maintenance },
        firmware_version: row.get(10).unwrap_or_default(),
        configuration: read_opt_json(row, 11).unwrap_or_default(),
        last_configuration_at: None,
        boot_count: row.get::<_, Option<i64>>(12)?.and_then(|count| u64::try_from(count).ok()),
        last_state_at: read_opt_time(row, 13)?,
        declared_commands: read_opt_json(row, 14).unwrap_or_default(),
        last_readings: read_readings(row, 15).unwrap_or_default(),
        last_reading_at: read_opt_time(row, 16)?,
        last_seen_at: read_opt_time(row, 17)?,
        version: read_count(row, 18)?,
        commands_open: 0,
        last_execution: None,
        taken_over_by: read_opt_word(row, 20).unwrap_or_default(),
        // telemetry.db has it.
        ledger: DeviceLedger::default(),
    };
    Ok(Remembered { view, offline_reason: row.get(8).unwrap_or_default(), synced_version: read_count(row, 19)? })
}

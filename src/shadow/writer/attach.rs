//! At start: the devices of the configuration meet what the file remembers of them.

use std::collections::BTreeMap;
use std::time::Instant;

use floorgate_model::{DeviceId, ExecutionStatus};
use rusqlite::Connection;

use super::super::device::Device;
use super::super::samples::Newest;
use super::super::status::Limits;
use super::super::terms::{Attachment, Config, StoreError};
use super::super::{device_rows, journal, words};
use crate::clock::Clock;

/// The devices of the configuration, as the file knows them or new, written with their new versions.
pub(super) fn attach(
    connection: &mut Connection,
    config: &Config,
    clock: &Clock,
    newest: &Newest,
    now: Instant,
) -> Result<BTreeMap<DeviceId, Device>, StoreError> {
    let cannot = words::io("attach the devices");
    let transaction = connection.transaction().map_err(&cannot)?;
    let mut remembered = device_rows::all(&transaction)?;
    let own = config.gateway_id.as_device();
    let wall = clock.now();
    let mut devices = BTreeMap::new();
    for attachment in &config.devices {
        let limits = limits(attachment, attachment.device_id != own);
        let mut device = match remembered.remove(&attachment.device_id) {
            Some(mut known) => {
                if let Some((at, readings)) = newest.get(&attachment.device_id)
                    && known.view.last_reading_at.is_none_or(|last| last < *at)
                {
                    known.view.last_reading_at = Some(*at);
                    known.view.last_readings.clone_from(readings);
                }
                Device::resumed(known, attachment, limits, now, wall)
            }
            None => Device::new(attachment, limits, now, wall),
        };
        if let Some(last) = journal::newest_of(&transaction, &attachment.device_id)? {
            device.last_execution_seq = last.seq;
            device.view.last_execution = Some(last.open.record);
        }
        device.view.commands_open = journal::count_open(&transaction, &attachment.device_id)?.0;
        devices.insert(attachment.device_id.clone(), device);
    }
    for running in journal::with_status(&transaction, ExecutionStatus::InProgress)? {
        if let Some(device) = devices.get_mut(&running.record.device_id)
            && Device::is_reboot(&running.record)
        {
            device.observer.reboot(Some(running.record.command_id.as_str()), now);
        }
    }
    for device in devices.values_mut() {
        // Once, with everything known: a warning or a reboot that goes on has not begun now.
        device.refresh(wall);
        device_rows::save(&transaction, device)?;
        device.saved();
    }
    transaction.commit().map_err(&cannot)?;
    Ok(devices)
}

/// The devices of the configuration, while no file can be read.
pub(super) fn as_configured(config: &Config, clock: &Clock, now: Instant) -> BTreeMap<DeviceId, Device> {
    let (own, wall) = (config.gateway_id.as_device(), clock.now());
    let device = |attachment: &Attachment| {
        let limits = limits(attachment, attachment.device_id != own);
        (attachment.device_id.clone(), Device::new(attachment, limits, now, wall))
    };
    config.devices.iter().map(device).collect()
}

fn limits(attachment: &Attachment, behind_floor: bool) -> Limits {
    Limits {
        sample_interval: attachment.sample_interval,
        deadband_percent: attachment.profile.deadband_percent,
        warning_off_delay: attachment.profile.warning_off_delay,
        behind_floor,
    }
}

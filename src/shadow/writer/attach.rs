//! The devices of the configuration meet what the file remembers of them: at the start, and when others are attached
//! while the store is open.
//!
//! Attaching others is all or nothing: what is known of everyone is written first, then the new ones meet their rows in
//! one transaction, and only when that is committed do memory and the writer's configuration change. Rows of devices that
//! are not attached any more stay, so that one that comes back has its versions, its overlay and its last readings.

use std::collections::BTreeMap;
use std::time::Instant;

use floorgate_model::{DeviceId, ExecutionStatus};
use rusqlite::Connection;

use super::super::device::Device;
use super::super::samples::Newest;
use super::super::status::Limits;
use super::super::terms::{Attachment, Config, StoreError};
use super::super::{device_rows, journal, words};
use super::Writer;
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
        show_journal(&transaction, &mut device)?;
        devices.insert(attachment.device_id.clone(), device);
    }
    show_reboots(&transaction, &mut devices, now)?;
    for device in devices.values_mut() {
        // Once, with everything known: a warning or a reboot that goes on has not begun now.
        device.refresh(wall);
        device_rows::save(&transaction, device)?;
        device.saved();
    }
    transaction.commit().map_err(&cannot)?;
    Ok(devices)
}

/// What the journal knows of a device.
fn show_journal(connection: &Connection, device: &mut Device) -> Result<(), StoreError> {
    if let Some(last) = journal::newest_of(connection, device.id())? {
        device.last_execution_seq = last.seq;
        device.view.last_execution = Some(last.open.record);
    }
    device.view.commands_open = journal::count_open(connection, device.id())?.0;
    Ok(())
}

/// Reboots that run.
fn show_reboots(
    connection: &Connection,
    devices: &mut BTreeMap<DeviceId, Device>,
    now: Instant,
) -> Result<(), StoreError> {
    for running in journal::with_status(connection, ExecutionStatus::InProgress)? {
        if let Some(device) = devices.get_mut(&running.record.device_id)
            && Device::is_reboot(&running.record)
        {
            device.observer.reboot(Some(running.record.command_id.as_str()), now);
        }
    }
    Ok(())
}

impl Writer {
    /// Attaches these devices and no others. After an error nothing has changed.
    pub(super) fn attach_others(&mut self, attachments: Vec<Attachment>) -> Result<(), StoreError> {
        if let Some(cause) = self.state.broken() {
            return Err(cause.clone());
        }
        // Whoever leaves does so with everything that is known of it.
        self.flush_all()?;
        let attached = self.meet(&attachments).and_then(|met| {
            self.state.commit()?;
            Ok(met)
        });
        let mut devices = attached.inspect_err(|cause| self.gave_up(cause.clone(), &mut []))?;
        devices.values_mut().for_each(Device::saved);
        if self.clock.moment().quality.is_exact() {
            let newest = devices.values().filter_map(|device| Some((device.id(), device.view.last_reading_at?)));
            newest.for_each(|(id, at)| self.samples.known_newest(id, at));
        }
        if !(self.memory.floor_reachable && self.memory.health.takes_readings) {
            devices.values_mut().for_each(|device| device.observer.floor_reachable(false, self.now));
        }
        self.memory.devices = devices;
        self.config.devices = attachments;
        // Whoever carries states and commands looks anew.
        self.memory.signals.states = true;
        self.memory.signals.journal = true;
        Ok(())
    }

    /// All of them as they are to be, written and not yet committed.
    fn meet(&mut self, attachments: &[Attachment]) -> Result<BTreeMap<DeviceId, Device>, StoreError> {
        let (own, wall, now) = (self.config.gateway_id.as_device(), self.clock.now(), self.now);
        let connection = self.state.begin()?;
        let before: BTreeMap<_, _> = self.config.devices.iter().map(|before| (&before.device_id, before)).collect();
        let mut remembered = None;
        let (mut devices, mut come) = (BTreeMap::new(), BTreeMap::new());
        for attachment in attachments {
            let (id, limits) = (&attachment.device_id, limits(attachment, attachment.device_id != own));
            if let Some(mut device) = self.memory.devices.get(id).cloned() {
                if before.get(id) != Some(&attachment) {
                    device.attached_as(attachment, limits, wall);
                    device_rows::save(connection, &device)?;
                }
                devices.insert(id.clone(), device);
                continue;
            }
            let rows = match &mut remembered {
                Some(rows) => rows,
                none => none.insert(device_rows::all(connection)?),
            };
            let mut device = match rows.remove(id) {
                Some(known) => Device::resumed(known, attachment, limits, now, wall),
                None => Device::new(attachment, limits, now, wall),
            };
            show_journal(connection, &mut device)?;
            come.insert(id.clone(), device);
        }
        show_reboots(connection, &mut come, now)?;
        for device in come.values_mut() {
            device.refresh(wall);
            device_rows::save(connection, device)?;
        }
        devices.append(&mut come);
        Ok(devices)
    }
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

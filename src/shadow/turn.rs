//! One request's turn: what it may see and change, and everything that is asked outside floor reports and commands.
//!
//! A turn runs inside the writer's transaction. Devices it changes are noted, written before the commit, and put back
//! as they were if the turn or the commit fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use floorgate_model::{DeviceId, GatewayId, Timestamp};
use rusqlite::Connection;

use super::device::Device;
use super::samples::Samples;
use super::terms::{Config, StoreError, Wakeups};
use super::view::{DeviceView, Lane, StateSnapshot, StoreStats};
use super::{journal, outbox, refusals};

/// What the writer holds in memory.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) devices: BTreeMap<DeviceId, Device>,
    pub(super) signals: Signals,
    /// Counted since start; the rest of the figures is filled in when asked for.
    pub(super) counted: StoreStats,
    /// Devices as they were, newest last.
    undo: Vec<Device>,
    /// To be written with the next commit.
    pub(super) touched: BTreeSet<DeviceId>,
}

/// What to tell once it is committed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Signals {
    pub(super) journal: bool,
    pub(super) results: bool,
    pub(super) tables: bool,
    pub(super) states: bool,
    pub(super) blocks: bool,
    pub(super) floor_changes: u64,
}

impl Signals {
    /// Wakes whom it concerns. The count of floor changes is the caller's.
    pub(super) fn give(self, wakeups: &Wakeups) {
        let pairs = [
            (self.journal, &wakeups.journal),
            (self.results, &wakeups.results),
            (self.tables, &wakeups.tables),
            (self.states, &wakeups.states),
            (self.blocks, &wakeups.blocks),
        ];
        for (_, notify) in pairs.into_iter().filter(|(due, _)| *due) {
            notify.notify_one();
        }
    }
}

impl Memory {
    pub(super) fn new(devices: BTreeMap<DeviceId, Device>) -> Self {
        let signals = Signals::default();
        Self { devices, signals, counted: StoreStats::default(), undo: Vec::new(), touched: BTreeSet::new() }
    }

    /// How far the undo log is now.
    pub(super) fn mark(&self) -> usize {
        self.undo.len()
    }

    /// Puts back what changed since the mark.
    pub(super) fn undo_to(&mut self, mark: usize) {
        while self.undo.len() > mark {
            let Some(before) = self.undo.pop() else { return };
            self.devices.insert(before.id().clone(), before);
        }
    }

    /// A transaction is over: nothing of it can be put back any more.
    pub(super) fn settle(&mut self) {
        self.undo.clear();
        self.touched.clear();
    }
}

/// One request's turn.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pub(super) connection: &'a Connection,
    pub(super) memory: &'a mut Memory,
    pub(super) samples: &'a mut Samples,
    pub(super) config: &'a Config,
    /// Monotonic time, as the sender of the request saw it.
    pub(super) now: Instant,
    /// Time of day.
    pub(super) wall: Timestamp,
}

impl Turn<'_> {
    /// An attached device, to be changed and written with this transaction.
    pub(super) fn change(&mut self, id: &DeviceId) -> Option<&mut Device> {
        let device = self.memory.devices.get_mut(id)?;
        self.memory.undo.push(device.clone());
        self.memory.touched.insert(id.clone());
        Some(device)
    }

    pub(super) fn devices(&self) -> Vec<DeviceView> {
        self.memory.devices.values().map(|device| device.view.clone()).collect()
    }

    pub(super) fn device(&self, id: &DeviceId) -> Option<DeviceView> {
        self.memory.devices.get(id).map(|device| device.view.clone())
    }

    /// The floor's broker is there or not. Nothing of this is kept over a restart.
    pub(super) fn floor_reachable(&mut self, yes: bool) {
        for device in self.memory.devices.values_mut() {
            device.observer.floor_reachable(yes, self.now);
        }
    }

    pub(super) fn announce(&mut self, lane: Lane, execution: i64) -> Result<(), StoreError> {
        let (wanted, signal) = match lane {
            Lane::Result => (self.config.announce_results, &mut self.memory.signals.results),
            Lane::Table => (self.config.announce_tables, &mut self.memory.signals.tables),
        };
        if wanted {
            *signal = true;
            outbox::announce(self.connection, lane, execution, self.wall)?;
        }
        Ok(())
    }

    pub(super) fn peek_states(&self, urgent_only: bool, limit: usize) -> Vec<StateSnapshot> {
        let due = self.memory.devices.values().filter(|device| !urgent_only || device.is_urgent());
        let mut states: Vec<StateSnapshot> = due.filter_map(Device::snapshot).collect();
        // Stable: among equals the order of the ids.
        states.sort_by_key(|state| !state.urgent);
        states.truncate(limit);
        states
    }

    /// Memory alone: the next flush writes it, and a repeat after a crash is refused by the table as it should be.
    pub(super) fn confirm_state(&mut self, id: &DeviceId, version: u64) {
        if let Some(device) = self.memory.devices.get_mut(id) {
            device.synced(version);
        }
    }

    pub(super) fn adopt_version(&mut self, id: &DeviceId, table_version: u64) {
        let wall = self.wall;
        if let Some(device) = self.change(id) {
            device.adopt(table_version, wall);
            self.memory.signals.states = true;
        }
    }

    pub(super) fn taken_over(&mut self, id: &DeviceId, by: Option<GatewayId>) {
        let wall = self.wall;
        if let Some(device) = self.change(id) {
            device.taken_over(by, wall);
            self.memory.signals.states = true;
        }
    }

    pub(super) fn stats(&self) -> Result<StoreStats, StoreError> {
        // While the file is away, its figures are unknown; the others still count.
        let telemetry = self.samples.stats().unwrap_or_default();
        let (outbox_waiting, oldest_announcement) = outbox::waiting(self.connection)?;
        let states = || self.memory.devices.values().filter(|device| device.is_waiting());
        let oldest_state = states().filter_map(Device::waiting_since).min();
        // What goes nowhere does not wait.
        let to_tables = |time: Option<Timestamp>| time.filter(|_| self.config.announce_tables);
        let oldest = [oldest_announcement, to_tables(oldest_state), to_tables(telemetry.oldest)];
        let oldest = oldest.into_iter().flatten().min();
        let state_bytes = super::files::bytes_with_log(&self.config.state_dir.join(super::schema::STATE_FILE));
        Ok(StoreStats {
            samples_open: telemetry.samples_open,
            blocks_waiting: telemetry.blocks_waiting,
            samples_waiting: telemetry.samples_waiting,
            blocks_parked: telemetry.blocks_parked,
            outbox_waiting,
            refused_not_announced: refusals::not_announced(self.connection)?,
            states_waiting: if self.config.announce_tables { states().count() as u64 } else { 0 },
            oldest_waiting_seconds: oldest.map_or(0, |time| self.wall.since(time).as_secs()),
            bytes_on_disk: telemetry.bytes_on_disk + state_bytes,
            full: self.samples.is_full(),
            ..self.memory.counted
        })
    }

    /// The device's figures and last execution after a transition.
    pub(super) fn show_execution(&mut self, execution: &journal::Execution) -> Result<(), StoreError> {
        let record = execution.record().clone();
        let (open, _) = journal::count_open(self.connection, &record.device_id)?;
        let (wall, now) = (self.wall, self.now);
        if let Some(device) = self.change(&record.device_id) {
            let reboots = Device::is_reboot(&record) && !record.status.is_terminal() && record.started_at.is_some();
            if reboots {
                device.observer.reboot(Some(record.command_id.as_str()), now);
            } else if Device::is_reboot(&record) && record.started_at.is_some() {
                device.observer.reboot(None, now);
            }
            device.executing(&record, open);
            if record.status.is_terminal() {
                // The tools may have written to the table before they knew how it ends.
                device.changed_urgently(wall);
                self.memory.signals.states = true;
            } else {
                device.changed(wall);
            }
        }
        Ok(())
    }

    /// Lets a device show what its rules say now; a change of its status wakes the sync.
    pub(super) fn refresh(&mut self, id: &DeviceId) {
        if let Some(device) = self.memory.devices.get_mut(id) {
            self.memory.signals.states |= device.refresh(self.wall);
        }
    }
}

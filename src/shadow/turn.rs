//! One request's turn: what it may see and change, and everything that is asked outside floor reports and commands.
//!
//! A turn runs inside the writer's transaction. Devices it changes are noted, written before the commit, and put back
//! as they were if the turn or the commit fails.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, DeviceLedger, GatewayId, Timestamp};
use rusqlite::Connection;

use super::device::Device;
use super::fault::StoreHealth;
use super::refused::Refused;
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
    /// How the store stands.
    pub(super) health: StoreHealth,
    /// Commands refused while the journal could not be written.
    pub(super) refused: Refused,
    /// Whether the floor's broker is there, as last told.
    pub(super) floor_reachable: bool,
    /// `state.db` was never read since start, which was then: the devices are as the configuration has them.
    pub(super) blank_since: Option<Timestamp>,
    /// And there is a journal in it which could not even be looked at.
    pub(super) unread: bool,
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
        Self {
            devices,
            signals: Signals::default(),
            counted: StoreStats::default(),
            health: StoreHealth::default(),
            refused: Refused::default(),
            floor_reachable: true,
            blank_since: None,
            unread: false,
            undo: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Takes the devices as the file has them; what was not written is gone, but for the versions that may have been sent.
    pub(super) fn restart(&mut self, devices: BTreeMap<DeviceId, Device>, now: Instant, wall: Timestamp) {
        self.settle();
        let before = std::mem::replace(&mut self.devices, devices);
        for before in before.values() {
            if let Some(device) = self.devices.get_mut(before.id())
                && device.view.version < before.view.version
            {
                device.adopt(before.view.version, wall);
            }
        }
        (self.blank_since, self.unread) = (None, false);
        if !self.floor_reachable {
            self.devices.values_mut().for_each(|device| device.observer.floor_reachable(false, now));
        }
    }

    /// Goes on with the devices as they are known here: `saved` is what could be saved of a damaged file, and older. What
    /// it knows of the journal counts; all else is written over it.
    pub(super) fn resume_over(&mut self, saved: &BTreeMap<DeviceId, Device>) {
        self.settle();
        for (id, device) in &mut self.devices {
            if let Some(saved) = saved.get(id) {
                device.view.commands_open = saved.view.commands_open;
                device.view.last_execution.clone_from(&saved.view.last_execution);
                device.last_execution_seq = saved.last_execution_seq;
            }
            device.dirty = true;
        }
        self.touched.extend(self.devices.keys().cloned());
    }

    /// States newer than the table's, urgent ones first.
    pub(super) fn states(&self, urgent_only: bool, limit: usize) -> Vec<StateSnapshot> {
        let due = self.devices.values().filter(|device| !urgent_only || device.is_urgent());
        let mut states: Vec<StateSnapshot> = due.filter_map(Device::snapshot).collect();
        // Stable: among equals the order of the ids.
        states.sort_by_key(|state| !state.urgent);
        states.truncate(limit);
        states
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
    /// How much longer commands are inhibited.
    pub(super) inhibited: Duration,
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
        devices(self.memory, self.samples)
    }

    pub(super) fn device(&self, id: &DeviceId) -> Option<DeviceView> {
        device(self.memory, self.samples, id)
    }

    /// The floor's broker is there or not. Nothing of this is kept over a restart.
    pub(super) fn floor_reachable(&mut self, yes: bool) {
        self.memory.floor_reachable = yes;
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
        self.memory.states(urgent_only, limit)
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
        let waiting = outbox::waiting(self.connection)?;
        let state_path = self.config.state_dir.join(super::schema::STATE_FILE);
        Ok(StoreStats {
            refused_not_announced: refusals::not_announced(self.connection)?,
            inhibited_seconds: self.inhibited.as_secs(),
            rescues: super::rescue::record::count(self.connection).map_err(super::words::io("count the rescues"))?,
            backup_age_seconds: super::rescue::backup::newest_at(&state_path).map(|at| self.wall.since(at).as_secs()),
            ..figures(self.memory, self.samples, self.config, self.wall, waiting)
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
            device.executing(execution.seq, &record, open);
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

/// Every device, with its ledger.
pub(super) fn devices(memory: &Memory, samples: &Samples) -> Vec<DeviceView> {
    let mut ledgers = samples.ledgers();
    let view =
        |device: &Device| DeviceView { ledger: ledgers.remove(device.id()).unwrap_or_default(), ..device.view.clone() };
    memory.devices.values().map(view).collect()
}

/// One of them, with its ledger.
pub(super) fn device(memory: &Memory, samples: &Samples, id: &DeviceId) -> Option<DeviceView> {
    let device = memory.devices.get(id)?;
    Some(DeviceView { ledger: samples.ledger(id), ..device.view.clone() })
}

/// The figures; `outbox` is how many announcements wait, and since when the oldest.
/// The figures; `outbox` is how many announcements wait, and since when the oldest.
pub(super) fn figures(
    memory: &Memory,
    samples: &Samples,
    config: &Config,
    wall: Timestamp,
    outbox: (u64, Option<Timestamp>),
) -> StoreStats {
    // While the file is away, its figures are unknown; the others still count.
    let telemetry = samples.stats().unwrap_or_default();
    let (outbox_waiting, oldest_announcement) = outbox;
    let states = || memory.devices.values().filter(|device| device.is_waiting());
    let oldest_state = states().filter_map(Device::waiting_since).min();
    // What goes nowhere does not wait.
    let to_tables = |time: Option<Timestamp>| time.filter(|_| config.announce_tables);
    let oldest = [oldest_announcement, to_tables(oldest_state), to_tables(telemetry.oldest)];
    let oldest = oldest.into_iter().flatten().min();
    let bytes_beside = super::rescue::bytes_beside(&config.state_dir);
    let mut ledger = DeviceLedger::default();
    samples.ledgers().values().for_each(|device| ledger.add(device));
    let state_bytes = super::files::bytes_with_log(&config.state_dir.join(super::schema::STATE_FILE));
    StoreStats {
        samples_open: telemetry.samples_open,
        blocks_waiting: telemetry.blocks_waiting,
        samples_waiting: telemetry.samples_waiting,
        samples_provisional: telemetry.samples_provisional,
        blocks_parked: telemetry.blocks_parked,
        gaps_waiting: telemetry.gaps_waiting,
        ledger,
        outbox_waiting,
        states_waiting: if config.announce_tables { states().count() as u64 } else { 0 },
        oldest_waiting_seconds: oldest.map_or(0, |time| wall.since(time).as_secs()),
        bytes_on_disk: telemetry.bytes_on_disk + state_bytes + bytes_beside,
        bytes_beside,
        full: samples.is_full(),
        store_failures: memory.counted.store_failures + samples.turned_away(),
        commands_refused: memory.counted.commands_refused + memory.refused.count,
        health: memory.health,
        ..memory.counted
    }
}

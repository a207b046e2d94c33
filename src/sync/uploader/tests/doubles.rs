//! The store and the table in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use floorgate_model::{CommandId, DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, GatewayId, Timestamp};

use super::{device, me};
use crate::shadow::store::{StoreError, Wakeups};
use crate::shadow::{DeviceView, HistoryBlock, OutboxEntry, OutboxOrder, StateSnapshot};
use crate::sync::source::SyncSource;
use crate::sync::table::{
    BlocksWritten, Cause, CloudTable, ExecutionWritten, Owner, Scope, Settled, StateWritten, TableError,
};

#[derive(Default)]
pub(super) struct StoreData {
    pub(super) views: BTreeMap<DeviceId, DeviceView>,
    pub(super) synced: BTreeMap<DeviceId, u64>,
    pub(super) outbox: Vec<OutboxEntry>,
    pub(super) journal: Vec<ExecutionRecord>,
    pub(super) blocks: Vec<HistoryBlock>,
    pub(super) parked: Vec<i64>,
    /// Calls of the store that fail before it answers again.
    pub(super) io_errors: usize,
    pub(super) closed: bool,
}

/// A store in memory with the real one's rules on versions.
#[derive(Clone, Default)]
pub(super) struct MemoryStore(Arc<Mutex<StoreData>>, Arc<Wakeups>);

impl MemoryStore {
    pub(super) fn data(&self) -> MutexGuard<'_, StoreData> {
        self.0.lock().unwrap()
    }
    fn works(&self) -> Result<(), StoreError> {
        let mut data = self.data();
        if data.closed {
            return Err(StoreError::Closed);
        }
        if data.io_errors > 0 {
            data.io_errors -= 1;
            return Err(StoreError::Io { doing: "read", cause: "disk I/O error".into() });
        }
        Ok(())
    }
    pub(super) fn wake(&self) {
        self.1.tables.notify_one();
        self.1.states.notify_one();
    }
    pub(super) fn put(&self, view: DeviceView) {
        self.data().views.insert(view.device_id.clone(), view);
    }
    pub(super) fn change(&self, name: &str, status: DeviceStatus) {
        let mut data = self.data();
        let view = data.views.get_mut(&device(name)).unwrap();
        view.status = status;
        view.version += 1;
    }
}

impl SyncSource for MemoryStore {
    fn wakeups(&self) -> &Wakeups {
        &self.1
    }
    async fn devices(&self) -> Result<Vec<DeviceView>, StoreError> {
        self.works()?;
        Ok(self.data().views.values().cloned().collect())
    }
    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceView>, StoreError> {
        self.works()?;
        Ok(self.data().views.get(id).cloned())
    }
    async fn peek_executions(
        &self,
        order: OutboxOrder,
        after: i64,
        limit: usize,
    ) -> Result<Vec<OutboxEntry>, StoreError> {
        self.works()?;
        let mut entries: Vec<_> = self.data().outbox.iter().filter(|entry| entry.seq > after).cloned().collect();
        if order == OutboxOrder::OutcomesFirst {
            entries.sort_by_key(|entry| entry.record.status == ExecutionStatus::Rejected);
        }
        entries.truncate(limit);
        Ok(entries)
    }
    async fn newest_executions(&self, limit: usize) -> Result<Vec<ExecutionRecord>, StoreError> {
        self.works()?;
        Ok(self.data().journal.iter().rev().take(limit).cloned().collect())
    }
    async fn confirm_executions(&self, seqs: Vec<i64>) -> Result<(), StoreError> {
        self.works()?;
        self.data().outbox.retain(|entry| !seqs.contains(&entry.seq));
        Ok(())
    }
    async fn peek_states(&self, _urgent_only: bool, limit: usize) -> Result<Vec<StateSnapshot>, StoreError> {
        self.works()?;
        let data = self.data();
        let due = |view: &&DeviceView| {
            view.taken_over_by.is_none() && view.version > data.synced.get(&view.device_id).copied().unwrap_or(0)
        };
        let due = data.views.values().filter(due).take(limit);
        Ok(due.map(|view| StateSnapshot { view: view.clone(), urgent: true }).collect())
    }
    async fn confirm_state(&self, device: &DeviceId, version: u64) -> Result<(), StoreError> {
        self.works()?;
        let mut data = self.data();
        let synced = data.synced.entry(device.clone()).or_default();
        *synced = version.max(*synced);
        Ok(())
    }
    async fn adopt_version(&self, device: &DeviceId, version: u64) -> Result<(), StoreError> {
        self.works()?;
        let mut data = self.data();
        let view = data.views.get_mut(device).unwrap();
        view.version = view.version.max(version) + 1;
        Ok(())
    }
    async fn taken_over(&self, device: &DeviceId, by: Option<GatewayId>) -> Result<(), StoreError> {
        self.works()?;
        self.data().views.get_mut(device).unwrap().taken_over_by = by;
        Ok(())
    }
    async fn peek_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        self.works()?;
        Ok(self.data().blocks.iter().take(limit).cloned().collect())
    }
    async fn confirm_blocks(&self, ids: Vec<i64>) -> Result<(), StoreError> {
        self.works()?;
        self.data().blocks.retain(|block| !ids.contains(&block.id));
        Ok(())
    }
    async fn park_block(&self, id: i64, _reason: String) -> Result<(), StoreError> {
        self.works()?;
        let mut data = self.data();
        data.parked.push(id);
        data.blocks.retain(|block| block.id != id);
        Ok(())
    }
}

/// What the next request meets.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Refused before anything happened.
    Before(TableError),
    /// Carried out, and the answer lost.
    After,
}

#[derive(Default)]
pub(super) struct TableData {
    pub(super) items: BTreeMap<DeviceId, (GatewayId, DeviceView)>,
    pub(super) versions: Vec<(DeviceId, u64)>,
    pub(super) executions: Vec<ExecutionRecord>,
    pub(super) settled: usize,
    pub(super) looked_at: Vec<CommandId>,
    pub(super) settle_again: usize,
    /// The table of commands is missing: the devices' part of a record is written, the record stays.
    pub(super) no_commands_table: bool,
    /// Commands whose outcome the device's item shows.
    pub(super) outcomes: BTreeSet<CommandId>,
    /// Numbers of the records that were tried, in order.
    pub(super) tries: Vec<i64>,
    pub(super) blocks: BTreeMap<i64, HistoryBlock>,
    pub(super) faults: VecDeque<Option<Fault>>,
    /// Devices whose items fail.
    pub(super) sick: BTreeSet<DeviceId>,
    /// Devices whose state was tried, in order.
    pub(super) state_tries: Vec<DeviceId>,
    pub(super) poison: Option<i64>,
    pub(super) unprocessed: usize,
    pub(super) requests: usize,
}

#[derive(Clone, Default)]
pub(super) struct MemoryTable(Arc<Mutex<TableData>>);

impl MemoryTable {
    pub(super) fn data(&self) -> MutexGuard<'_, TableData> {
        self.0.lock().unwrap()
    }
    /// Looks at several things at once.
    pub(super) fn with<R>(&self, look: impl FnOnce(&TableData) -> R) -> R {
        look(&self.data())
    }
    pub(super) fn fails(&self, faults: impl IntoIterator<Item = Fault>) {
        self.data().faults.extend(faults.into_iter().map(Some));
    }
    /// Carries out `work` as the script wants it.
    fn answer<R>(&self, work: impl FnOnce(&mut TableData) -> R) -> Result<R, TableError> {
        let mut data = self.data();
        data.requests += 1;
        match data.faults.pop_front().flatten() {
            None => Ok(work(&mut data)),
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After) => {
                work(&mut data);
                Err(retry(Cause::Timeout))
            }
        }
    }
}

pub(super) fn retry(cause: Cause) -> TableError {
    TableError::Retry { cause, text: "scripted".into() }
}

pub(super) fn missing() -> TableError {
    TableError::Misconfigured { scope: Scope::Table, text: "no such table".into() }
}

impl CloudTable for MemoryTable {
    async fn write_state(&self, snapshot: &StateSnapshot) -> Result<StateWritten, TableError> {
        {
            let mut data = self.data();
            data.state_tries.push(snapshot.view.device_id.clone());
            if data.sick.contains(&snapshot.view.device_id) {
                return Err(retry(Cause::Server));
            }
        }
        self.answer(|data| {
            let view = &snapshot.view;
            if let Some((owner, stored)) = data.items.get(&view.device_id) {
                let silent = stored.last_seen_at.map_or(i64::MIN, Timestamp::as_millis) + 30_000
                    < view.last_seen_at.map_or(i64::MIN, Timestamp::as_millis);
                if *owner != me() && !silent {
                    return StateWritten::TakenOver { by: owner.clone() };
                }
                if stored.version >= view.version {
                    let same = stored == view;
                    let behind = StateWritten::Behind { table_version: stored.version };
                    return if same { StateWritten::Current } else { behind };
                }
            }
            data.versions.push((view.device_id.clone(), view.version));
            data.items.insert(view.device_id.clone(), (me(), view.clone()));
            StateWritten::Current
        })
    }
    async fn write_execution(
        &self,
        entry: &OutboxEntry,
        _view: Option<&DeviceView>,
    ) -> Result<ExecutionWritten, TableError> {
        let record = &entry.record;
        {
            let mut data = self.data();
            data.tries.push(entry.seq);
            let sick = data.sick.contains(&record.device_id);
            if data.no_commands_table && !sick {
                // Its other part is carried out all the same.
                data.outcomes.insert(record.command_id.clone());
            }
            if sick || data.no_commands_table {
                return Err(if sick { retry(Cause::Server) } else { missing() });
            }
        }
        self.answer(|data| {
            data.outcomes.insert(record.command_id.clone());
            if !data.items.contains_key(&entry.record.device_id) {
                return ExecutionWritten::NoDeviceItem;
            }
            let known = data.executions.iter_mut().find(|known| known.command_id == entry.record.command_id);
            match known {
                Some(known) if known.status.may_become(entry.record.status) => *known = entry.record.clone(),
                Some(_) => {}
                None => data.executions.push(entry.record.clone()),
            }
            ExecutionWritten::Done
        })
    }
    async fn settle(&self, record: &ExecutionRecord, _view: Option<&DeviceView>) -> Result<Settled, TableError> {
        self.answer(|data| {
            if data.settle_again > 0 {
                data.settle_again -= 1;
                return Settled::Again;
            }
            data.settled += 1;
            data.looked_at.push(record.command_id.clone());
            Settled::Done
        })
    }
    async fn write_blocks(&self, blocks: &[HistoryBlock]) -> Result<BlocksWritten, TableError> {
        let poison = self.data().poison;
        if blocks.iter().any(|block| Some(block.id) == poison) {
            return Err(TableError::Permanent { text: "too large".into() });
        }
        self.answer(|data| {
            let mut written = BlocksWritten::default();
            for (at, block) in blocks.iter().enumerate() {
                if data.unprocessed > 0 {
                    data.unprocessed -= 1;
                    written.unprocessed.push(at);
                } else {
                    let before = data.blocks.insert(block.id, block.clone());
                    assert!(before.is_none_or(|before| before == *block), "a block changed between two sends");
                    written.accepted.push(at);
                }
            }
            written
        })
    }
    async fn read_owner(&self, device: &DeviceId) -> Result<Option<Owner>, TableError> {
        self.answer(|data| {
            data.items.get(device).map(|(gateway, view)| Owner {
                gateway_id: gateway.clone(),
                last_seen_at: view.last_seen_at,
                version: view.version,
            })
        })
    }
}

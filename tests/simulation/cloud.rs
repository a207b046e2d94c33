//! The tables in memory: conditional as DynamoDB is, and with weather.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use floorgate::shadow::{DeviceView, HistoryBlock, OutboxEntry, StateSnapshot};
use floorgate::sync::table::{BlocksWritten, Cause, ExecutionWritten, Owner, Settled, StateWritten};
use floorgate::sync::{CloudTable, TableError};
use floorgate_model::{CommandId, DeviceId, ExecutionRecord, Timestamp};

/// How requests fare now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Calm,
    /// Nothing arrives.
    Down,
    /// Half of the requests are throttled, batches are taken in part.
    Throttled,
    /// Half of the requests are carried out and their answers lost.
    AnswersLost,
}

#[derive(Debug)]
pub struct Tables {
    pub weather: Weather,
    pub random: fastrand::Rng,
    pub items: BTreeMap<DeviceId, DeviceView>,
    /// Versions in the order in which they were written.
    pub versions: Vec<(DeviceId, u64)>,
    pub executions: BTreeMap<CommandId, ExecutionRecord>,
    pub blocks: BTreeMap<(DeviceId, Timestamp), HistoryBlock>,
    /// What must never happen, in words.
    pub broken: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Cloud(Arc<Mutex<Tables>>);

impl Cloud {
    pub fn new(random: fastrand::Rng) -> Self {
        Self(Arc::new(Mutex::new(Tables {
            weather: Weather::Calm,
            random,
            items: BTreeMap::new(),
            versions: Vec::new(),
            executions: BTreeMap::new(),
            blocks: BTreeMap::new(),
            broken: Vec::new(),
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap()
    }

    fn answer<R>(&self, work: impl FnOnce(&mut Tables) -> R) -> Result<R, TableError> {
        let mut tables = self.lock();
        let unlucky = tables.random.bool();
        let failed = |cause| Err(TableError::Retry { cause, text: "simulated".to_owned() });
        match tables.weather {
            Weather::Down => failed(Cause::Network),
            Weather::Throttled if unlucky => failed(Cause::Throttled),
            Weather::AnswersLost if unlucky => {
                work(&mut tables);
                failed(Cause::Timeout)
            }
            _ => Ok(work(&mut tables)),
        }
    }
}

impl Tables {
    fn put_block(&mut self, block: &HistoryBlock) {
        let key = (block.device_id.clone(), block.first);
        let content = |block: &HistoryBlock| (block.offsets_ms.clone(), block.readings.clone(), block.expires_at);
        if let Some(before) = self.blocks.get(&key)
            && content(before) != content(block)
        {
            self.broken.push(format!("the block {key:?} changed between two sends"));
        }
        self.blocks.insert(key, block.clone());
    }
}

impl CloudTable for Cloud {
    async fn write_state(&self, snapshot: &StateSnapshot) -> Result<StateWritten, TableError> {
        self.answer(|tables| {
            let view = &snapshot.view;
            if let Some(stored) = tables.items.get(&view.device_id)
                && stored.version >= view.version
            {
                let behind = StateWritten::Behind { table_version: stored.version };
                return if stored == view { StateWritten::Current } else { behind };
            }
            tables.versions.push((view.device_id.clone(), view.version));
            tables.items.insert(view.device_id.clone(), view.clone());
            StateWritten::Current
        })
    }

    async fn write_execution(
        &self,
        entry: &OutboxEntry,
        _: Option<&DeviceView>,
    ) -> Result<ExecutionWritten, TableError> {
        self.answer(|tables| {
            if !tables.items.contains_key(&entry.record.device_id) {
                return ExecutionWritten::NoDeviceItem;
            }
            let known =
                tables.executions.entry(entry.record.command_id.clone()).or_insert_with(|| entry.record.clone());
            if known.status.may_become(entry.record.status) {
                *known = entry.record.clone();
            }
            ExecutionWritten::Done
        })
    }

    async fn settle(&self, _: &ExecutionRecord, _: Option<&DeviceView>) -> Result<Settled, TableError> {
        self.answer(|_| Settled::Done)
    }

    async fn write_blocks(&self, blocks: &[HistoryBlock]) -> Result<BlocksWritten, TableError> {
        self.answer(|tables| {
            let mut written = BlocksWritten::default();
            for (at, block) in blocks.iter().enumerate() {
                if tables.weather == Weather::Throttled && tables.random.bool() {
                    written.unprocessed.push(at);
                } else {
                    tables.put_block(block);
                    written.accepted.push(at);
                }
            }
            written
        })
    }

    async fn read_owner(&self, device: &DeviceId) -> Result<Option<Owner>, TableError> {
        let gateway_id = super::world::gateway();
        self.answer(|tables| {
            let view = tables.items.get(device)?;
            Some(Owner { gateway_id, last_seen_at: view.last_seen_at, version: view.version })
        })
    }
}

//! The store's journal in memory, for tests of this room: the same rules, no disk, and every trouble at will.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use floorgate_model::{
    AdminState, CommandId, DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, GatewayId, Readings, Reason,
    Request, Timestamp,
};
use serde_json::Value;
use tokio::sync::watch;

use super::log::CommandLog;
use crate::clock::Clock;
use crate::shadow::store::{
    DEVICE_QUEUE_MAX, Effect, Ending, GATEWAY_QUEUE_MAX, Journalled, NewExecution, OpenExecution,
};
use crate::shadow::{Answer, AnswerStatus, DeviceView, StoreError, Wakeups};

/// What a method of the journal does instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Fails; nothing is stored.
    Fails,
    /// Never answers; nothing is stored.
    Hangs,
    /// Stores, then never answers: the moment before a crash.
    HangsAfter,
    /// Stores, then fails all the same.
    FailsAfter,
    /// Stores, then answers only after this long.
    Takes(Duration),
}

/// Longer than any command lives.
pub(crate) const LONG: Duration = Duration::from_secs(4_000);

/// The double. Clones share everything, as after a restart on the same files.
#[derive(Debug, Clone)]
pub(crate) struct Memory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    wakeups: Wakeups,
    changes: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<DeviceId, DeviceView>,
    executions: Vec<OpenExecution>,
    troubles: HashMap<&'static str, Trouble>,
    endings: HashMap<CommandId, u32>,
    calls: HashMap<&'static str, u32>,
    broken_rules: Vec<String>,
}

impl Memory {
    pub(crate) fn new(clock: Clock, devices: impl IntoIterator<Item = DeviceView>) -> Self {
        let devices = devices.into_iter().map(|view| (view.device_id.clone(), view)).collect();
        let state = Mutex::new(State { devices, ..State::default() });
        Self(Arc::new(Inner { clock, wakeups: Wakeups::default(), changes: watch::Sender::new(0), state }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    /// From now on `method` has this trouble; `None` ends it.
    pub(crate) fn trouble(&self, method: &'static str, trouble: Option<Trouble>) {
        match trouble {
            Some(trouble) => self.state().troubles.insert(method, trouble),
            None => self.state().troubles.remove(method),
        };
    }

    /// Every trouble ends.
    pub(crate) fn heal(&self) {
        self.state().troubles.clear();
    }

    /// A device's word comes in and is committed.
    pub(crate) fn take_answer(&self, device: &str, id: &CommandId, answer: Answer) {
        {
            let mut state = self.state();
            let found = state.executions.iter_mut().find(|open| is(open, device, id));
            if let Some(open) = found.filter(|open| !open.record.status.is_terminal()) {
                open.answer = Some(Answer {
                    device_id: open.record.device_id.clone(),
                    command_id: id.clone(),
                    received_at: self.0.clock.now(),
                    ..answer
                });
            }
        }
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// A live state report comes in and is committed; `change` is what it says.
    pub(crate) fn take_state(&self, device: &str, change: impl FnOnce(&mut DeviceView)) {
        let now = Some(self.0.clock.now());
        self.change_device(device, |view| {
            view.last_state_at = now;
            // Whether the report carries a configuration is seen by whether it puts one there.
            let before = view.configuration.take();
            change(view);
            match view.configuration {
                Some(_) => view.last_configuration_at = now,
                None => view.configuration = before,
            }
        });
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Changes what is known of a device without any report.
    pub(crate) fn change_device(&self, device: &str, change: impl FnOnce(&mut DeviceView)) {
        change(self.state().devices.get_mut(device).unwrap());
    }

    pub(crate) fn view(&self, device: &str) -> DeviceView {
        self.state().devices[device].clone()
    }

    pub(crate) fn records(&self) -> Vec<ExecutionRecord> {
        self.state().executions.iter().map(|open| open.record.clone()).collect()
    }

    pub(crate) fn record(&self, id: &CommandId) -> ExecutionRecord {
        self.records().into_iter().find(|record| record.command_id == *id).unwrap()
    }

    /// How often an execution has become terminal.
    pub(crate) fn endings(&self, id: &CommandId) -> u32 {
        self.state().endings.get(id).copied().unwrap_or(0)
    }

    /// Transitions somebody asked for that the model does not allow.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        self.state().broken_rules.clone()
    }

    /// How often a method was called.
    pub(crate) fn calls(&self, method: &'static str) -> u32 {
        self.state().calls.get(method).copied().unwrap_or(0)
    }

    /// Does `work` on the state, unless `method` is in trouble.
    async fn with<T>(&self, method: &'static str, work: impl FnOnce(&mut State) -> T) -> Result<T, StoreError> {
        *self.state().calls.entry(method).or_default() += 1;
        let trouble = self.state().troubles.get(method).copied();
        let fails = || StoreError::Io { doing: method, cause: "disk I/O error".to_owned() };
        match trouble {
            Some(Trouble::Fails) => return Err(fails()),
            Some(Trouble::Hangs) => std::future::pending().await,
            Some(_) | None => {}
        }
        let done = work(&mut self.state());
        match trouble {
            Some(Trouble::FailsAfter) => Err(fails()),
            Some(Trouble::HangsAfter) => std::future::pending().await,
            Some(Trouble::Takes(time)) => {
                tokio::time::sleep(time).await;
                Ok(done)
            }
            Some(_) | None => Ok(done),
        }
    }
}

impl State {
    fn in_status(&self, status: ExecutionStatus) -> Vec<OpenExecution> {
        self.executions.iter().filter(|open| open.record.status == status).cloned().collect()
    }

    fn open_count(&self, device: Option<&DeviceId>) -> usize {
        let counts = |record: &ExecutionRecord| {
            !record.status.is_terminal() && device.is_none_or(|device| record.device_id == *device)
        };
        self.executions.iter().filter(|open| counts(&open.record)).count()
    }

    fn journal(&mut self, entry: NewExecution) -> Journalled {
        let NewExecution { mut record, checked_parameters, received_boot } = entry;
        let known = self.executions.iter().find(|open| is(open, record.device_id.as_str(), &record.command_id));
        if let Some(known) = known.map(|open| open.record.clone()) {
            let same = known.command == record.command && known.parameters == record.parameters;
            return if same { Journalled::Duplicate(known) } else { Journalled::Conflict(known) };
        }
        let full =
            self.open_count(Some(&record.device_id)) >= DEVICE_QUEUE_MAX || self.open_count(None) >= GATEWAY_QUEUE_MAX;
        if full && !record.status.is_terminal() {
            (record.status, record.reason) = (ExecutionStatus::Rejected, Some(Reason::QueueFull));
            record.completed_at = Some(record.received_at);
        }
        if record.status.is_terminal() {
            *self.endings.entry(record.command_id.clone()).or_default() += 1;
        }
        let (answer, boot_count_before) = (None, None);
        let open =
            OpenExecution { record: record.clone(), checked_parameters, answer, boot_count_before, received_boot };
        self.executions.push(open);
        Journalled::New(record)
    }

    fn claim(&mut self, device: &DeviceId, id: &CommandId, now: Timestamp) -> Option<OpenExecution> {
        let boot_count_before = self.devices.get(device).and_then(|view| view.boot_count);
        let running = self.in_status(ExecutionStatus::InProgress);
        if running.iter().any(|open| open.record.device_id == *device) {
            return None;
        }
        let open = self.executions.iter_mut().find(|open| is(open, device.as_str(), id))?;
        if open.record.status != ExecutionStatus::Created {
            return None;
        }
        (open.record.status, open.record.started_at) = (ExecutionStatus::InProgress, Some(now));
        open.boot_count_before = boot_count_before;
        Some(open.clone())
    }

    fn finish(&mut self, device: &DeviceId, id: &CommandId, ending: Ending, now: Timestamp) -> Option<ExecutionRecord> {
        let open = self.executions.iter_mut().find(|open| is(open, device.as_str(), id))?;
        let record = &mut open.record;
        if record.status.is_terminal() {
            return None;
        }
        if !record.status.may_become(ending.status) || !ending.status.is_terminal() {
            self.broken_rules.push(format!("{id}: {} → {}", record.status, ending.status));
            return None;
        }
        (record.status, record.reason, record.message) = (ending.status, ending.reason, ending.message);
        (record.details, record.completed_at) = (ending.details, Some(now));
        let record = record.clone();
        *self.endings.entry(id.clone()).or_default() += 1;
        let view = self.devices.get_mut(device)?;
        match ending.effect {
            Some(Effect::Admin(state)) => view.admin_state = state,
            Some(Effect::Configuration(values)) => view.configuration.get_or_insert_default().extend(values),
            Some(Effect::Offline(why)) => {
                (view.observed, view.status, view.status_reason) =
                    (DeviceStatus::Offline, DeviceStatus::Offline, Some(why));
            }
            None => {}
        }
        Some(record)
    }
}

fn is(open: &OpenExecution, device: &str, id: &CommandId) -> bool {
    open.record.device_id.as_str() == device && open.record.command_id == *id
}

impl CommandLog for Memory {
    fn wakeups(&self) -> &Wakeups {
        &self.0.wakeups
    }

    fn floor_changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    async fn device(&self, id: &DeviceId) -> Result<Option<DeviceView>, StoreError> {
        self.with("device", |state| state.devices.get(id).cloned()).await
    }

    async fn journal(&self, entry: NewExecution) -> Result<Journalled, StoreError> {
        let journalled = self.with("journal", |state| state.journal(entry)).await;
        if self.with("wake", |_| ()).await.is_ok() {
            self.0.wakeups.journal.notify_one();
        }
        journalled
    }

    async fn waiting(&self) -> Result<Vec<OpenExecution>, StoreError> {
        self.with("waiting", |state| state.in_status(ExecutionStatus::Created)).await
    }

    async fn in_progress(&self) -> Result<Vec<OpenExecution>, StoreError> {
        self.with("in_progress", |state| state.in_status(ExecutionStatus::InProgress)).await
    }

    async fn open_execution(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let open = |open: &&OpenExecution| is(open, device.as_str(), id) && !open.record.status.is_terminal();
        self.with("open_execution", |state| state.executions.iter().find(open).cloned()).await
    }

    async fn claim(&self, device: &DeviceId, id: &CommandId) -> Result<Option<OpenExecution>, StoreError> {
        let now = self.0.clock.now();
        self.with("claim", |state| state.claim(device, id, now)).await
    }

    async fn finish(
        &self,
        device: &DeviceId,
        id: &CommandId,
        ending: Ending,
    ) -> Result<Option<ExecutionRecord>, StoreError> {
        let now = self.0.clock.now();
        self.with("finish", |state| state.finish(device, id, ending, now)).await
    }
}

/// A bare answer.
pub(crate) fn answer(status: AnswerStatus) -> Answer {
    Answer {
        device_id: DeviceId::new("A").unwrap(),
        command_id: CommandId::new("c-1").unwrap(),
        status,
        reason: None,
        details: None,
        configuration: None,
        received_at: Timestamp::EPOCH,
    }
}

/// A pressure sensor that is online and has said nothing of itself.
pub(crate) fn device(id: &str) -> DeviceView {
    DeviceView {
        device_id: DeviceId::new(id).unwrap(),
        device_type: "pressure_sensor".to_owned(),
        location: "factory-floor-1/line-7".to_owned(),
        registered_at: Timestamp::EPOCH,
        status: DeviceStatus::Online,
        observed: DeviceStatus::Online,
        status_reason: None,
        status_since: Timestamp::EPOCH,
        admin_state: AdminState::InService,
        firmware_version: None,
        configuration: None,
        last_configuration_at: None,
        boot_count: None,
        last_state_at: None,
        declared_commands: None,
        last_readings: Readings::new(),
        last_reading_at: None,
        last_seen_at: None,
        version: 1,
        commands_open: 0,
        last_execution: None,
        taken_over_by: None,
        ledger: floorgate_model::DeviceLedger::default(),
    }
}

/// A well-formed request for the device `A`, issued at `issued_at`.
pub(crate) fn request(command: &str, parameters: Value, issued_at: Timestamp) -> Request {
    Request {
        device_id: DeviceId::new("A").unwrap(),
        command: command.to_owned(),
        parameters: parameters.as_object().unwrap().clone(),
        issued_at,
        command_id: CommandId::new("c-1").unwrap(),
        expires_at: Request::expiry(command, issued_at, None),
        issuer: None,
        dry_run: false,
    }
}

/// An execution of the device `A` that is in progress since `started_at`.
pub(crate) fn open(command: &str, parameters: Value, started_at: Timestamp) -> OpenExecution {
    let asked = request(command, parameters, started_at.saturating_sub(Duration::from_secs(1)));
    let record = ExecutionRecord {
        command_id: asked.command_id,
        device_id: asked.device_id,
        command: asked.command,
        parameters: asked.parameters.clone(),
        issuer: None,
        issued_at: asked.issued_at,
        expires_at: asked.expires_at,
        received_at: asked.issued_at,
        status: ExecutionStatus::InProgress,
        reason: None,
        message: None,
        details: None,
        started_at: Some(started_at),
        completed_at: None,
        gateway_id: GatewayId::new("GATEWAY-1").unwrap(),
    };
    OpenExecution {
        record,
        checked_parameters: asked.parameters,
        answer: None,
        boot_count_before: None,
        received_boot: None,
    }
}

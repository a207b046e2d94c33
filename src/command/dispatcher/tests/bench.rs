//! A floor for the dispatcher: the journal in memory, a driver that does as it is told, time that the test moves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floorgate_model::{
    CommandId, CommandName, DeviceId, ExecutionRecord, ExecutionStatus, GatewayId, Reason, Request, Timestamp,
};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::command::memory::{Memory, answer, device};
use crate::command::{Admission, Admitted, Dispatcher, Judge, Source};
use crate::device::{BoxFuture, Driver, DriverRegistry, NotSent, Order, Profiles, Sent};
use crate::shadow::{Answer, AnswerStatus};

/// A minute of the year 2027; the tests' clock begins here.
const START_MS: i64 = 1_800_000_000_000;

/// What the driver does with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// Takes it, acknowledged.
    Acknowledges,
    /// Takes it, acknowledged after this long.
    Dawdles(Duration),
    /// Takes it; the acknowledgement never comes and nobody says so.
    Hangs,
    /// Takes it; the acknowledgement was lost.
    Loses,
    /// Refuses: nobody there.
    IsAway,
    /// Refuses after this long: nobody there.
    GoesAway(Duration),
    /// Refuses: too old.
    FindsItExpired,
    /// Takes it and falls over.
    Panics,
}

/// Does as it is told, and writes down what left.
#[derive(Debug, Default)]
pub(super) struct Script {
    manners: Mutex<HashMap<DeviceId, Manner>>,
    taken: Mutex<Vec<(Order, Instant)>>,
}

impl Driver for Script {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>> {
        Box::pin(async move {
            let manner = self.manners.lock().unwrap().get(&order.device_id).copied();
            let manner = manner.unwrap_or(Manner::Acknowledges);
            match manner {
                Manner::IsAway => return Err(NotSent::Offline("not connected".to_owned())),
                Manner::GoesAway(time) => {
                    tokio::time::sleep(time).await;
                    return Err(NotSent::Offline("gone".to_owned()));
                }
                Manner::FindsItExpired => return Err(NotSent::Expired),
                _ => self.taken.lock().unwrap().push((order.clone(), Instant::now())),
            }
            match manner {
                Manner::Hangs => std::future::pending().await,
                Manner::Loses => Ok(Sent::Unknown),
                Manner::Panics => panic!("the driver falls over, as the test asked for"),
                Manner::Dawdles(time) => {
                    tokio::time::sleep(time).await;
                    Ok(Sent::Acknowledged)
                }
                _ => Ok(Sent::Acknowledged),
            }
        })
    }
}

/// A dispatcher that runs.
pub(super) struct Running {
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// As a power cut: at once, wherever it stands.
    pub(super) async fn crash(self) {
        self.task.abort();
        assert!(self.task.await.is_err_and(|error| error.is_cancelled()));
    }

    /// As a service stop.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

/// The floor.
pub(super) struct Bench {
    pub(super) log: Memory,
    pub(super) clock: Clock,
    pub(super) script: Arc<Script>,
    pub(super) judge: Judge,
    asked: Mutex<u32>,
}

impl Bench {
    /// Pressure sensors of these names, each with a `boot_count` of 4.
    pub(super) fn with(devices: &[&str]) -> Self {
        let clock = Clock::set_to(Timestamp::from_millis(START_MS));
        let views = devices.iter().map(|id| crate::shadow::DeviceView { boot_count: Some(4), ..device(id) });
        let log = Memory::new(clock.clone(), views);
        let (script, drivers) = (Arc::new(Script::default()), DriverRegistry::default());
        for id in devices {
            drivers.attach(DeviceId::new(id).unwrap(), Arc::clone(&script) as Arc<dyn Driver>);
        }
        let judge =
            Judge { profiles: Profiles::default(), drivers, clock: clock.clone(), inhibition: Default::default() };
        Self { log, clock, script, judge, asked: Mutex::new(0) }
    }

    /// Starts a dispatcher on the journal as it is.
    pub(super) fn start(&self) -> Running {
        let shutdown = CancellationToken::new();
        let dispatcher = Dispatcher::new(self.log.clone(), self.judge.clone());
        Running { task: tokio::spawn(dispatcher.run(shutdown.clone())), shutdown }
    }

    /// The driver treats this device so from now on.
    pub(super) fn manner(&self, device: &str, manner: Manner) {
        self.script.manners.lock().unwrap().insert(DeviceId::new(device).unwrap(), manner);
    }

    /// A request issued now.
    pub(super) fn request(&self, device: &str, command: &str, parameters: Value) -> Request {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        let request = crate::command::memory::request(command, parameters, self.clock.now());
        let command_id = CommandId::new(&format!("c-{asked}")).unwrap();
        Request { device_id: DeviceId::new(device).unwrap(), command_id, ..request }
    }

    /// Comes in over the cloud link.
    pub(super) async fn admit(&self, request: Request) -> Admitted {
        let admission = Admission::new(self.log.clone(), self.judge.clone(), GatewayId::new("GATEWAY-1").unwrap());
        admission.admit(request, Source::Cloud { retained: false }).await.unwrap()
    }

    /// Asked for now, over the cloud link.
    pub(super) async fn ask(&self, device: &str, command: &str, parameters: Value) -> CommandId {
        let request = self.request(device, command, parameters);
        let id = request.command_id.clone();
        assert!(matches!(self.admit(request).await, Admitted::Journalled(_)));
        id
    }

    /// One of the commands, with parameters that fit.
    pub(super) async fn ask_for(&self, device: &str, command: CommandName) -> CommandId {
        self.ask(device, command.as_str(), parameters_of(command)).await
    }

    /// Asked for now, from the cloud or by an operator at the gateway.
    pub(super) async fn ask_from(&self, local: bool, device: &str, command: CommandName) -> CommandId {
        let request = self.request(device, command.as_str(), parameters_of(command));
        let id = request.command_id.clone();
        let admission = Admission::new(self.log.clone(), self.judge.clone(), GatewayId::new("GATEWAY-1").unwrap());
        let source = if local { Source::Local } else { Source::Cloud { retained: false } };
        let admitted = admission.admit(request, source).await.unwrap();
        assert!(matches!(admitted, Admitted::Journalled(_)));
        id
    }

    /// Asked for now, by somebody who does not wait for a store that hangs.
    pub(super) async fn ask_for_quietly(&self, device: &str, command: CommandName) {
        let request = self.request(device, command.as_str(), parameters_of(command));
        let _ = tokio::time::timeout(Duration::from_millis(10), self.admit(request)).await;
    }

    /// Until everybody waits.
    pub(super) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Both clocks go on together.
    pub(super) async fn pass(&self, time: Duration) {
        let step = Duration::from_millis(500);
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now()).min(step);
            if left.is_zero() {
                return self.settle().await;
            }
            self.clock.pass(left);
            tokio::time::sleep(left).await;
        }
    }

    /// The machine sleeps: boot time goes on, the runtime's clock does not; then the wall clock stands at `wall`.
    pub(super) async fn sleep_machine(&self, time: Duration, wall: Timestamp) {
        self.clock.put(wall);
        self.clock.pass_boot(time);
        self.settle().await;
    }

    /// Monotonic and boot time jump by `time`, the wall clock to `wall`.
    pub(super) async fn jump(&self, time: Duration, wall: Timestamp) {
        self.clock.put(wall);
        self.clock.pass_boot(time);
        tokio::time::advance(time).await;
        self.settle().await;
    }

    /// The device answers.
    pub(super) async fn answer(&self, device: &str, id: &CommandId, status: AnswerStatus) {
        self.answer_with(device, id, answer(status)).await;
    }

    /// The device answers so.
    pub(super) async fn answer_with(&self, device: &str, id: &CommandId, answer: Answer) {
        self.log.take_answer(device, id, answer);
        self.settle().await;
    }

    /// The device reports its state, counted up after a restart.
    pub(super) async fn comes_up(&self, device: &str) {
        self.log.take_state(device, |view| view.boot_count = view.boot_count.map(|count| count + 1));
        self.settle().await;
    }

    /// The record as it stands.
    pub(super) fn record(&self, id: &CommandId) -> ExecutionRecord {
        self.log.record(id)
    }

    /// Where an execution stands, and why.
    pub(super) fn outcome(&self, id: &CommandId) -> (ExecutionStatus, Option<Reason>) {
        let record = self.record(id);
        (record.status, record.reason)
    }

    /// What left, in its order.
    pub(super) fn taken(&self) -> Vec<Order> {
        self.taken_with_time().into_iter().map(|(order, _)| order).collect()
    }

    /// What left, and when.
    pub(super) fn taken_with_time(&self) -> Vec<(Order, Instant)> {
        self.script.taken.lock().unwrap().clone()
    }

    /// How often an order left.
    pub(super) fn sends(&self, id: &CommandId) -> usize {
        self.taken().iter().filter(|order| order.command_id == *id).count()
    }

    /// What has to hold at the end of every test: each command ended exactly once, by allowed steps.
    pub(super) fn assert_settled(&self) {
        for record in self.log.records() {
            assert!(record.status.is_terminal(), "{} is {}", record.command_id, record.status);
            assert_eq!(self.log.endings(&record.command_id), 1, "{}", record.command_id);
            assert!(record.completed_at.is_some(), "{}", record.command_id);
        }
        assert_eq!(self.log.broken_rules(), Vec::<String>::new());
    }
}

/// Parameters that fit a pressure sensor.
pub(super) fn parameters_of(command: CommandName) -> Value {
    match command {
        CommandName::Recalibrate | CommandName::Reboot => serde_json::json!({}),
        CommandName::UpdateConfig => serde_json::json!({"sample_rate_seconds": 10}),
        CommandName::SetStatus => serde_json::json!({"status": "maintenance"}),
    }
}

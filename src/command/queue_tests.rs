//! What must hold of the whole room, whatever its inside looks like; time is virtual.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use floorgate_model::{CommandId, DeviceId, ExecutionStatus, GatewayId, Reason, Request, Timestamp};
use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::memory::{Memory, answer, device, request};
use super::{Admission, Dispatcher, Judge, Source};
use crate::clock::Clock;
use crate::device::{BoxFuture, Driver, DriverRegistry, NotSent, Order, Profiles, Sent};
use crate::shadow::AnswerStatus;

/// Writes down every order it gets; takes `delay` to hand it over.
#[derive(Default)]
struct Recorder {
    orders: Mutex<Vec<CommandId>>,
    delay: Mutex<Duration>,
}

impl Driver for Recorder {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Result<Sent, NotSent>> {
        self.orders.lock().unwrap().push(order.command_id.clone());
        let delay = *self.delay.lock().unwrap();
        Box::pin(async move {
            sleep(delay).await;
            Ok(Sent::Acknowledged)
        })
    }
}

struct Room {
    clock: Clock,
    memory: Memory,
    judge: Judge,
    driver: Arc<Recorder>,
    shutdown: CancellationToken,
}

const START: i64 = 1_800_000_000_000;

impl Room {
    fn new() -> Self {
        let clock = Clock::set_to(Timestamp::from_millis(START));
        let memory = Memory::new(clock.clone(), [device("A")]);
        let (drivers, driver) = (DriverRegistry::default(), Arc::new(Recorder::default()));
        drivers.attach(DeviceId::new("A").unwrap(), Arc::clone(&driver) as Arc<dyn Driver>);
        let judge =
            Judge { profiles: Profiles::default(), drivers, clock: clock.clone(), inhibition: Default::default() };
        Self { clock, memory, judge, driver, shutdown: CancellationToken::new() }
    }

    fn start(&self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(Dispatcher::new(self.memory.clone(), self.judge.clone()).run(self.shutdown.clone()))
    }

    async fn admit(&self, id: &str, command: &str) -> CommandId {
        let asked = request(command, json!({}), self.clock.now());
        let id = CommandId::new(id).unwrap();
        let admission = Admission::new(self.memory.clone(), self.judge.clone(), GatewayId::new("G").unwrap());
        let asked = Request { command_id: id.clone(), ..asked };
        admission.admit(asked, Source::Cloud { retained: false }).await.unwrap();
        id
    }

    /// Virtual time passes, on both clocks.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            sleep(Duration::from_secs(1)).await;
            self.clock.put(self.clock.now().saturating_add(Duration::from_secs(1)));
        }
    }

    fn ended(&self, id: &CommandId) -> (ExecutionStatus, Option<Reason>) {
        let record = self.memory.record(id);
        assert_eq!(self.memory.endings(id), u32::from(record.status.is_terminal()));
        (record.status, record.reason)
    }

    fn sent(&self) -> Vec<String> {
        self.driver.orders.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_put_back_makes_no_waiting_command_young() {
    let room = Room::new();
    let _running = room.start();
    room.admit("first", "recalibrate").await;
    room.pass(1).await;
    let second = room.admit("second", "reboot").await;
    // The calibration takes 200 s; meanwhile the clock is put back to where the reboot looks 50 s old.
    room.pass(200).await;
    room.clock.put(Timestamp::from_millis(START + 51_000));
    room.memory.take_answer("A", &CommandId::new("first").unwrap(), answer(AnswerStatus::Succeeded));
    room.pass(5).await;
    assert_eq!(room.sent(), ["first"]);
    assert_eq!(room.ended(&second), (ExecutionStatus::Expired, Some(Reason::Expired)));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_expires_behind_another_is_told_then_and_not_when_its_turn_comes() {
    let room = Room::new();
    let _running = room.start();
    room.admit("first", "recalibrate").await;
    room.pass(1).await;
    let second = room.admit("second", "reboot").await;
    room.pass(123).await;
    assert_eq!(room.ended(&second), (ExecutionStatus::Expired, Some(Reason::Expired)));
}

#[tokio::test(start_paused = true)]
async fn a_state_report_before_the_order_has_left_proves_no_reboot() {
    let room = Room::new();
    *room.driver.delay.lock().unwrap() = Duration::from_secs(10);
    let _running = room.start();
    let id = room.admit("first", "reboot").await;
    room.pass(3).await;
    room.memory.take_state("A", |_| {});
    room.pass(1).await;
    assert_eq!(room.ended(&id), (ExecutionStatus::InProgress, None));
}

#[tokio::test(start_paused = true)]
async fn a_birth_after_the_gateways_own_restart_proves_no_reboot_without_a_count() {
    let room = Room::new();
    let running = room.start();
    let id = room.admit("first", "reboot").await;
    room.pass(1).await;
    running.abort();
    room.pass(2).await;
    let _running = room.start();
    room.pass(1).await;
    room.memory.take_state("A", |_| {});
    room.pass(200).await;
    assert_eq!(room.ended(&id), (ExecutionStatus::Indeterminate, Some(Reason::Interrupted)));
    assert_eq!(room.sent(), ["first"]);
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_calibration_may_answer_as_late_as_it_was_allowed_to() {
    let room = Room::new();
    let running = room.start();
    let id = room.admit("first", "recalibrate").await;
    room.pass(10).await;
    running.abort();
    let _running = room.start();
    room.pass(150).await;
    room.memory.take_answer("A", &id, answer(AnswerStatus::Succeeded));
    room.pass(1).await;
    assert_eq!(room.ended(&id), (ExecutionStatus::Succeeded, None));
    assert_eq!(room.sent(), ["first"]);
}

#[tokio::test(start_paused = true)]
async fn an_untrusted_clock_dates_no_calibration() {
    let room = Room::new();
    let _running = room.start();
    let id = room.admit("first", "recalibrate").await;
    room.pass(1).await;
    room.clock.set_trusted(false);
    room.memory.take_answer("A", &id, answer(AnswerStatus::Succeeded));
    room.pass(1).await;
    assert_eq!(room.ended(&id), (ExecutionStatus::Succeeded, None));
    assert_eq!(room.memory.view("A").configuration, None);
}

#[tokio::test(start_paused = true)]
async fn a_verified_reboot_survives_a_clock_that_steps_back_meanwhile() {
    let room = Room::new();
    let _running = room.start();
    let id = room.admit("first", "reboot").await;
    room.pass(2).await;
    room.clock.put(Timestamp::from_millis(START - 3_600_000));
    room.memory.take_state("A", |_| {});
    room.pass(1).await;
    assert_eq!(room.ended(&id), (ExecutionStatus::Succeeded, None));
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_the_driver_say_what_became_of_the_order_in_its_hands() {
    let room = Room::new();
    *room.driver.delay.lock().unwrap() = Duration::from_secs(1);
    let running = room.start();
    let id = room.admit("first", "recalibrate").await;
    sleep(Duration::from_millis(500)).await;
    room.shutdown.cancel();
    let started = tokio::time::Instant::now();
    running.await.unwrap();
    assert_eq!(started.elapsed(), Duration::from_millis(500));
    assert_eq!(room.ended(&id), (ExecutionStatus::InProgress, None));
}

//! One simulated gateway: the real store, dispatcher, admission and uploader; cloud and floor in memory; time that only
//! moves when it is told to.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use floorgate::clock::Clock;
use floorgate::command::{Admission, Dispatcher, Judge, Source};
use floorgate::device::{DriverRegistry, Profiles};
use floorgate::shadow::report::{Answer, AnswerStatus, FloorReport, StateReport, TelemetryReport};
use floorgate::shadow::store::{Attachment, Config};
use floorgate::shadow::{Lane, Store};
use floorgate::sync::{Settings, Uploader};
use floorgate_model::{
    CommandId, CommandName, DeviceId, ExecutionRecord, GatewayId, Profile, Reading as Value, Readings, Request,
    Timestamp,
};
use serde_json::{Map, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::checker::{Broken, check};
use crate::cloud::{Cloud, Weather};
use crate::evidence::{Asked, Evidence, Outcome, Reading};
use crate::floor::Floor;

const T0: i64 = 1_795_341_600_000;
const SENSORS: [&str; 2] = ["PRESS-1", "PRESS-2"];
const VALVES: [&str; 2] = ["VALVE-1", "VALVE-2"];
/// Events of one run before it calms down.
const EVENTS: usize = 120;
/// Rounds after the last fault in which everything has to arrive.
const CALM: usize = 400;

pub fn gateway() -> GatewayId {
    GatewayId::new("GW").unwrap()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn config(folder: &Path) -> Config {
    let attachment = |name: &str, device_type: &str| Attachment {
        device_id: id(name),
        device_type: device_type.to_owned(),
        location: "hall".to_owned(),
        sample_interval: Duration::from_secs(5),
        configuration: None,
        profile: Profile::built_in(device_type).unwrap(),
    };
    let sensors = SENSORS.iter().map(|name| attachment(name, "pressure_sensor"));
    let valves = VALVES.iter().map(|name| attachment(name, "valve_actuator"));
    let gateway_itself = attachment("GW", "edge_gateway");
    Config {
        state_dir: folder.to_owned(),
        gateway_id: gateway(),
        devices: sensors.chain(valves).chain([gateway_itself]).collect(),
        commit_interval: Duration::ZERO,
        quota_bytes: 512 << 20,
        history_retention: Duration::from_secs(90 * 86_400),
        announce_results: true,
        announce_tables: true,
    }
}

/// In memory where the machine has such a folder: power cuts are not what is simulated here.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What runs until the next crash.
struct Running {
    store: Store,
    admission: Admission,
    uploader: Uploader<Store, Cloud>,
    dispatcher: JoinHandle<()>,
}

pub struct World {
    random: fastrand::Rng,
    clock: Clock,
    folder: TempDir,
    running: Running,
    cloud: Cloud,
    floor: Floor,
    evidence: Evidence,
    numbers: BTreeMap<&'static str, u64>,
    /// What the cloud's broker keeps for the gateway until it acknowledges it.
    at_broker: Vec<Request>,
    link_up: bool,
    commands: u64,
    pub crashes: u64,
    pub simulated: Duration,
}

fn run(folder: &Path, clock: &Clock, cloud: &Cloud, floor: &Floor) -> Running {
    let store = Store::open(config(folder), clock.clone()).unwrap();
    let drivers = DriverRegistry::default();
    for name in VALVES.iter().chain(&SENSORS) {
        drivers.attach(id(name), std::sync::Arc::new(floor.clone()));
    }
    let judge = Judge {
        profiles: Profiles::new(Vec::new()),
        drivers,
        clock: clock.clone(),
        inhibition: store.inhibition().clone(),
    };
    let admission = Admission::new(store.clone(), judge.clone(), gateway());
    let settings = Settings { gateway_id: gateway(), state_interval: Duration::from_secs(10) };
    let uploader = Uploader::new(store.clone(), cloud.clone(), settings, clock.clone());
    let dispatcher = tokio::spawn(Dispatcher::new(store.clone(), judge).run(CancellationToken::new()));
    Running { store, admission, uploader, dispatcher }
}

/// Sync that has not gone on for so long, in real time, waits for its budget and not for the disk.
const REAL_PATIENCE: Duration = Duration::from_millis(20);
/// How far time goes on then.
const BUDGET_STEP: Duration = Duration::from_millis(500);

impl World {
    pub fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let clock = Clock::set_to(Timestamp::from_millis(T0));
        let (cloud, floor) = (Cloud::new(random.fork()), Floor::new(random.fork(), clock.clone()));
        let folder = folder();
        let running = run(folder.path(), &clock, &cloud, &floor);
        let (evidence, numbers) = (Evidence::default(), BTreeMap::new());
        let (at_broker, simulated) = (Vec::new(), Duration::ZERO);
        Self {
            random,
            clock,
            folder,
            running,
            cloud,
            floor,
            evidence,
            numbers,
            at_broker,
            link_up: true,
            commands: 0,
            crashes: 0,
            simulated,
        }
    }

    /// The run; answers what is broken.
    pub async fn live(&mut self) -> Vec<String> {
        for name in VALVES {
            self.say_state(&id(name), 1).await;
        }
        for _ in 0..EVENTS {
            self.event().await;
            self.pump().await;
        }
        self.calm_down().await
    }

    async fn event(&mut self) {
        match self.random.u8(..100) {
            0..30 => {
                let time = Duration::from_millis(self.random.u64(1..5_000));
                self.pass(time).await;
            }
            30..38 => {
                let time = Duration::from_secs(self.random.u64(5..600));
                self.pass(time).await;
            }
            38..40 => self.outage().await,
            40..70 => self.measure().await,
            70..80 => self.ask(),
            80..88 => self.answer().await,
            88..91 => self.link_up = !self.link_up,
            91..94 => {
                let kinds = [Weather::Calm, Weather::Down, Weather::Throttled, Weather::AnswersLost];
                self.cloud.lock().weather = self.random.choice(kinds).unwrap_or(Weather::Calm);
            }
            94..96 => {
                let away = !self.floor.lock().away;
                self.floor.lock().away = away;
            }
            _ => self.crash().await,
        }
    }

    /// Both clocks go on together, and whoever has to do something then does it.
    async fn pass(&mut self, time: Duration) {
        self.simulated += time;
        self.clock.pass(time);
        tokio::time::advance(time).await;
        self.running.store.tick().await.unwrap();
        self.settle().await;
    }

    /// The uplink is gone for seconds to 8 days, and the floor goes on.
    async fn outage(&mut self) {
        self.link_up = false;
        self.cloud.lock().weather = Weather::Down;
        let longest = self.random.choice([30, 3_600, 86_400, 8 * 86_400]).unwrap_or(30);
        let mut left = self.random.u64(5..longest);
        while left > 0 {
            let part = left.min((longest / 20).max(1));
            left -= part;
            self.pass(Duration::from_secs(part)).await;
            self.measure().await;
            if self.random.u8(..10) == 0 {
                self.ask();
            }
        }
        self.link_up = true;
        self.cloud.lock().weather = Weather::Calm;
    }

    /// Lets tasks and the store's thread do what they have to do now. Each question goes through the store's queue behind
    /// whatever they asked.
    async fn settle(&self) {
        for _ in 0..6 {
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            let _ = self.running.store.devices().await;
        }
    }

    async fn measure(&mut self) {
        for name in SENSORS {
            let n = self.numbers.entry(name).or_default();
            let reading = Reading { device: name.to_owned(), n: *n, at: self.clock.now().as_millis() };
            *n += 1;
            self.evidence.sent.push(reading.clone());
            if self.report(&reading, false).await {
                self.evidence.acknowledged.push(reading.clone());
            }
            // As a broker may: once more, because the acknowledgement was lost.
            if self.random.u8(..8) == 0 {
                self.report(&reading, true).await;
            }
        }
        // A valve that says nothing counts as offline, and gets no orders.
        for name in VALVES {
            let boots = self.floor.lock().boots.get(&id(name)).copied().unwrap_or(1);
            self.say_state(&id(name), boots).await;
        }
        // Two readings of a device have two times.
        self.clock.pass(Duration::from_millis(1));
    }

    async fn report(&self, reading: &Reading, redelivered: bool) -> bool {
        let mut readings = Readings::new();
        #[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
        readings.insert("n", Value::new(reading.n as f64).unwrap()).unwrap();
        let at = Timestamp::from_millis(reading.at);
        let report = TelemetryReport {
            guess_base_ms: None,
            device_id: id(&reading.device),
            readings,
            device_time: Some(at),
            seq: None,
            received_at: at,
            redelivered,
            retained: false,
        };
        let receipt = self.running.store.submit(FloorReport::Telemetry(report)).await.unwrap();
        receipt.await.is_ok_and(|taken| taken.is_ok())
    }

    fn ask(&mut self) {
        self.commands += 1;
        let name = VALVES[self.random.usize(..VALVES.len())];
        let command = if self.random.bool() { "reboot" } else { "update_config" };
        let parameters = match command {
            "reboot" => Map::new(),
            _ => json!({"sample_rate_seconds": self.random.u16(1..3_600)}).as_object().unwrap().clone(),
        };
        let issued_at = self.clock.now();
        let life = self.random.choice([1, 20, 120, 900, 3_600]).unwrap_or(120);
        let expires_at = issued_at.saturating_add(Duration::from_secs(life));
        let command_id = CommandId::new(&format!("c-{}", self.commands)).unwrap();
        let asked = Asked {
            id: command_id.to_string(),
            expires_at: expires_at.as_millis(),
            repeatable: command == "update_config",
        };
        self.evidence.asked.push(asked);
        self.at_broker.push(Request {
            device_id: id(name),
            command: command.to_owned(),
            parameters,
            issued_at,
            command_id,
            expires_at,
            issuer: None,
            dry_run: false,
        });
    }

    async fn say_state(&self, device: &DeviceId, boots: u64) {
        let state = StateReport {
            device_id: device.clone(),
            online: true,
            firmware_version: None,
            configuration: None,
            boot_count: Some(boots),
            commands: None,
            retained: false,
            received_at: self.clock.now(),
        };
        let receipt = self.running.store.submit(FloorReport::State(state)).await.unwrap();
        let _ = receipt.await;
    }

    /// Devices answer some of what they did; some they never answer.
    async fn answer(&mut self) {
        let orders = std::mem::take(&mut self.floor.lock().unanswered);
        for order in orders {
            if self.random.u8(..5) == 0 {
                continue;
            }
            if order.command == CommandName::Reboot {
                let boots = self.floor.lock().boots.get(&order.device_id).copied().unwrap_or(1);
                self.say_state(&order.device_id, boots).await;
            }
            let answer = Answer {
                device_id: order.device_id.clone(),
                command_id: order.command_id.clone(),
                status: AnswerStatus::Succeeded,
                reason: None,
                details: None,
                configuration: None,
                received_at: self.clock.now(),
            };
            let receipt = self.running.store.submit(FloorReport::Answer(answer)).await.unwrap();
            let _ = receipt.await;
        }
        self.settle().await;
    }

    /// The broker hands over, the outbox announces, the uploader takes a step.
    async fn pump(&mut self) {
        if self.link_up {
            let mut kept = Vec::new();
            for request in std::mem::take(&mut self.at_broker) {
                let admitted = self.running.admission.admit(request.clone(), Source::Cloud { retained: false }).await;
                // One acknowledgement in six gets lost, and it comes again.
                if admitted.is_err() || self.random.u8(..6) == 0 {
                    kept.push(request);
                }
            }
            self.at_broker = kept;
            let store = &self.running.store;
            let owed = store.peek_outbox(Lane::Result, 20).await.unwrap();
            self.evidence.results.extend(owed.iter().map(|entry| outcome(&entry.record)));
            if self.random.u8(..6) > 0 {
                store.confirm_outbox(Lane::Result, owed.iter().map(|entry| entry.seq).collect()).await.unwrap();
            }
        }
        self.sync().await;
        self.settle().await;
    }

    /// One round of sync. Where it waits for its budget, time goes on: it does not do so by itself here.
    async fn sync(&mut self) {
        let mut round = std::pin::pin!(self.running.uploader.sync_once());
        loop {
            let (patience, over) = std::sync::mpsc::channel::<()>();
            let a_while = tokio::task::spawn_blocking(move || over.recv_timeout(REAL_PATIENCE).is_err());
            tokio::select! {
                biased;
                done = &mut round => {
                    drop(patience);
                    done.unwrap();
                    return;
                }
                _ = a_while => {
                    self.simulated += BUDGET_STEP;
                    self.clock.pass(BUDGET_STEP);
                    tokio::time::advance(BUDGET_STEP).await;
                }
            }
        }
    }

    /// The process is gone between two instructions; its files are as the last commit left them.
    async fn crash(&mut self) {
        self.crashes += 1;
        let copy = folder();
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let entry = entry.unwrap();
            if !entry.file_name().to_string_lossy().ends_with("-shm") {
                std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
        }
        self.running.dispatcher.abort();
        let _ = (&mut self.running.dispatcher).await;
        self.running = run(copy.path(), &self.clock, &self.cloud, &self.floor);
        self.folder = copy;
        self.settle().await;
    }

    /// The weather is fine and time passes; everything arrives.
    async fn calm_down(&mut self) -> Vec<String> {
        self.link_up = true;
        self.floor.lock().away = false;
        self.cloud.lock().weather = Weather::Calm;
        let mut broken = Vec::new();
        for round in 0..CALM {
            self.pass(Duration::from_secs(if round < 20 { 1 } else { 10 })).await;
            self.answer().await;
            self.pump().await;
            if round % 10 == 9 {
                broken = self.judge();
                if broken.iter().all(|broken| !broken.may_come_right()) {
                    break;
                }
            }
        }
        let mut told: Vec<String> = broken.iter().map(Broken::to_string).collect();
        told.extend(self.out_of_order());
        told.append(&mut self.cloud.lock().broken);
        told
    }

    fn history(&self) -> Vec<Reading> {
        let tables = self.cloud.lock();
        let samples = tables.blocks.values().flat_map(|block| {
            let numbers = block.readings.get("n").into_iter().flatten();
            block.offsets_ms.iter().zip(numbers).filter_map(|(offset, n)| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
                let n = n.as_ref()?.value() as u64;
                let at = block.first.saturating_add(Duration::from_millis(*offset)).as_millis();
                Some(Reading { device: block.device_id.to_string(), n, at })
            })
        });
        samples.collect()
    }

    fn judge(&self) -> Vec<Broken> {
        let tables = self.cloud.lock();
        let shown = |view: &floorgate::shadow::DeviceView| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
            let n = view.last_readings.get("n")?.value() as u64;
            Some((view.device_id.to_string(), n))
        };
        let mut evidence = Evidence {
            shown: tables.items.values().filter_map(shown).collect(),
            records: tables.executions.values().map(outcome).collect(),
            versions: tables.versions.iter().map(|(device, version)| (device.to_string(), *version)).collect(),
            executed: self.floor.lock().executed.clone(),
            ..self.evidence.clone()
        };
        drop(tables);
        evidence.history = self.history();
        check(&evidence)
    }

    /// Readings keep their times, so the history of a device is in the order in which it measured.
    fn out_of_order(&self) -> Vec<String> {
        let sent: BTreeMap<(&str, u64), i64> =
            self.evidence.sent.iter().map(|reading| ((reading.device.as_str(), reading.n), reading.at)).collect();
        let moved = |reading: &Reading| {
            let at = *sent.get(&(reading.device.as_str(), reading.n))?;
            (at != reading.at).then(|| format!("{reading:?} was sent with the time {at}"))
        };
        self.history().iter().filter_map(moved).collect()
    }

    /// How much happened, for those who wonder whether it did.
    pub fn figures(&self) -> (usize, usize, usize) {
        let tables = self.cloud.lock();
        let succeeded = tables.executions.values().filter(|record| record.status.as_str() == "succeeded").count();
        (self.evidence.acknowledged.len(), self.evidence.asked.len(), succeeded)
    }
}

fn outcome(record: &ExecutionRecord) -> Outcome {
    let reason = record.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default();
    Outcome { id: record.command_id.to_string(), status: record.status.as_str().to_owned(), reason }
}

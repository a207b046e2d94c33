//! Load on a rig, and the judgement of what came of it: senders, machines, an agent, and watchers of the result topic
//! and the table write down what they see ([`evidence`]); [`checker`] joins it.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's own parts; each test uses some"
)]

pub mod agent;
pub mod checker;
pub mod evidence;
pub mod floor;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::rig::table::Items;
use crate::rig::{Options, Rig};
use agent::Agent;
use checker::Broken;
use evidence::{Book, Evidence, Gap, Outcome, Reading};
use floor::{Conduct, Machine, Sender};

/// Devices of the load; the profiles' short timeouts keep a run with many interrupted commands short.
const SENSORS: [&str; 5] = ["PRESS-001", "PRESS-002", "PRESS-003", "PRESS-004", "PRESS-005"];
const VALVES: [&str; 3] = ["VALVE-001", "VALVE-002", "VALVE-003"];
/// Numbers a sender has for itself.
const NUMBERS: usize = 1_000_000;
/// The type of the last valve: its `update_config` may be repeated.
const PROFILES: &str = "[[profile]]\ndevice_type = \"valve_once\"\nbased_on = \"valve_actuator\"\n\
    [profile.commands.reboot]\ntimeout = \"4s\"\n[profile.commands.update_config]\ntimeout = \"4s\"\nidempotent = false\n\
    [[profile]]\ndevice_type = \"valve_again\"\nbased_on = \"valve_actuator\"\n\
    [profile.commands.reboot]\ntimeout = \"4s\"\n[profile.commands.update_config]\ntimeout = \"4s\"\n";

/// A flag that is set once.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where everyone writes.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Evidence>>);

impl Log {
    pub fn lock(&self) -> MutexGuard<'_, Evidence> {
        self.0.lock().unwrap()
    }
}

/// Options of a rig that bears this load. Write the profiles ([`prepare`]) before the daemon starts.
pub fn options() -> Options {
    let sensors = SENSORS.iter().map(|suffix| (*suffix, "pressure_sensor", 5));
    let kind = |suffix: &str| if suffix == VALVES[2] { "valve_again" } else { "valve_once" };
    let valves = VALVES.iter().map(|suffix| (*suffix, kind(suffix), 5));
    Options { devices: sensors.chain(valves).collect(), ..Options::default() }
}

/// A rig for this load, its daemon not yet started.
pub async fn prepare(options: Options) -> Rig {
    let rig = Rig::prepare(options).await;
    let folder = rig.folder.path().join("profiles.d");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("load.toml"), PROFILES).unwrap();
    rig.daemon.provision().await;
    rig
}

/// Starts the daemon and waits until the cloud's broker has a session of its: what is sent before, nobody keeps.
pub async fn first_start(rig: &mut Rig) {
    rig.daemon.run().await;
    let up = || async { (rig.status().await["cloud"]["state"] == "up").then_some(()) };
    crate::rig::until("the cloud link is up", 30, up).await;
}

/// A running load.
pub struct Load {
    pub log: Log,
    stop: Stop,
    end: Stop,
    sending: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
    sensors: Vec<String>,
    valves: Vec<String>,
    items: Items,
    judge_settings: bool,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.sending.iter().chain(&self.others).for_each(JoinHandle::abort);
    }
}

/// The result topic, as someone who listens at the cloud's broker hears it.
pub type Results = mpsc::Receiver<Bytes>;

/// Results from the rig's own broker.
pub fn results(rig: &Rig) -> Results {
    let mut subscription = rig.broker.as_ref().expect("the rig's own broker").subscribe("devices/+/commands/result");
    let (give, take) = mpsc::channel(1_000);
    tokio::spawn(async move {
        while let Some(message) = subscription.next().await {
            if give.send(message.payload).await.is_err() {
                return;
            }
        }
    });
    take
}

impl Load {
    /// Load on a rig; `cloud` is where the agent finds the broker.
    pub fn start(rig: &Rig, cloud: SocketAddr, mut results: Results, conduct: Conduct, seed: u64) -> Self {
        let (log, stop, end) = (Log::default(), Stop::default(), Stop::default());
        let mut random = fastrand::Rng::with_seed(seed);
        let sensors: Vec<String> = SENSORS.iter().map(|suffix| rig.id(suffix)).collect();
        let valves: Vec<String> = VALVES.iter().map(|suffix| rig.id(suffix)).collect();
        let mut sending = Vec::new();
        for (id, first) in sensors.iter().zip((0..).step_by(NUMBERS)) {
            let (id, stop, log) = (id.clone(), stop.clone(), log.clone());
            let sender = Sender { floor: rig.floor, id, first, stop, log, random: random.fork() };
            sending.push(tokio::spawn(sender.run()));
        }
        let agent = Agent {
            cloud,
            valves: valves.iter().map(|id| (id.clone(), id.ends_with(VALVES[2]))).collect(),
            items: rig.items.clone(),
            stop: stop.clone(),
            log: log.clone(),
            random: random.fork(),
        };
        sending.push(tokio::spawn(agent.run()));
        let mut others = Vec::new();
        for id in &valves {
            let (id, end, log) = (id.clone(), end.clone(), log.clone());
            let (boots, rate, late) = (1, "5".to_owned(), Vec::new());
            let machine = Machine { floor: rig.floor, id, conduct, end, log, random: random.fork(), boots, rate, late };
            others.push(tokio::spawn(machine.run()));
        }
        let heard = log.clone();
        others.push(tokio::spawn(async move {
            while let Some(payload) = results.recv().await {
                if let Ok(record) = serde_json::from_slice(&payload) {
                    heard.lock().results.push(outcome(&record));
                }
            }
        }));
        others.push(tokio::spawn(watch_versions(rig.items.clone(), end.clone(), log.clone())));
        Self { log, stop, end, sending, others, sensors, valves, items: rig.items.clone(), judge_settings: true }
    }

    /// No more readings and commands; waits until all that were begun are acknowledged.
    pub async fn stop(&mut self) {
        self.stop.set();
        for task in self.sending.drain(..) {
            tokio::time::timeout(Duration::from_secs(120), task).await.expect("everything is acknowledged").unwrap();
        }
    }

    /// Whether it sends nothing any more.
    pub fn is_stopped(&self) -> bool {
        self.stop.is_set()
    }

    /// What the machines are set to is not judged.
    pub fn ignore_settings(&mut self) {
        self.judge_settings = false;
    }

    /// Reads the table until nothing is missing any more, at most `patience`; answers what is broken then.
    pub async fn judge(&mut self, patience: Duration) -> (Evidence, Vec<Broken>) {
        let deadline = Instant::now() + patience;
        loop {
            let evidence = self.collect().await;
            let broken = checker::check(&evidence);
            let hopeless = broken.iter().any(|broken| !broken.may_come_right());
            if broken.is_empty() || hopeless || Instant::now() > deadline {
                self.end.set();
                return (evidence, broken);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// What the gateway says of the readings, and then what there is: for [`checker::check`].
    pub async fn audit(&self, rig: &Rig) -> Evidence {
        let devices = rig.daemon.json(&["devices"]).await;
        let of_sensors = devices.as_array().into_iter().flatten().filter_map(|device| {
            let id = device["device_id"].as_str().filter(|id| self.sensors.iter().any(|sensor| sensor == id))?;
            let ledger = &device["ledger"];
            let count = |name: &str| ledger[name].as_u64().unwrap_or_else(|| panic!("no {name} in {device}"));
            let lost = ledger["lost"].as_object().into_iter().flatten().filter_map(|(_, lost)| lost.as_u64()).sum();
            let (accepted, delivered, stored) = (count("accepted"), count("delivered"), count("stored"));
            Some((id.to_owned(), Book { accepted, delivered, stored, lost }))
        });
        let books = of_sensors.collect();
        Evidence { books, ..self.collect().await }
    }

    async fn collect(&self) -> Evidence {
        let mut history = Vec::new();
        let mut gaps = Vec::new();
        for id in &self.sensors {
            for block in self.items.history(id).await {
                unfold(&block, &mut history, &mut gaps);
            }
        }
        let mut records = Vec::new();
        for id in &self.valves {
            records.extend(self.items.commands(id).await.iter().map(outcome));
        }
        let (mut shown, mut shown_configured) = (BTreeMap::new(), BTreeMap::new());
        for item in self.items.all_devices().await {
            let id = item["device_id"].as_str().unwrap_or_default().to_owned();
            let n = item["last_telemetry"]["n"].as_str().and_then(|n| n.parse().ok());
            if let Some(n) = n {
                shown.insert(id.clone(), n);
            }
            if let Some(rate) = item["configuration"]["sample_rate_seconds"].as_str() {
                shown_configured.insert(id, rate.to_owned());
            }
        }
        let mut evidence = self.log.lock().clone();
        if !self.judge_settings {
            evidence.configured.clear();
        }
        Evidence { history, gaps, records, shown, shown_configured, ..evidence }
    }
}

/// One item of the history, as the samples it holds or the loss it declares.
fn unfold(block: &Value, history: &mut Vec<Reading>, gaps: &mut Vec<Gap>) {
    let device = block["device_id"].as_str().unwrap_or_default().to_owned();
    let time = |name: &str| {
        let text = block[name].as_str().unwrap_or_default();
        text.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond)
    };
    let from = time("timestamp");
    if block["count"].as_u64() == Some(0) {
        let lost = block["lost"].as_u64().unwrap_or(0);
        // Its key is only unique; what it covers stands beside it.
        let reason = block["reason"].as_str().unwrap_or_default().to_owned();
        gaps.push(Gap { device, from: time("from"), to: time("end"), lost, reason });
        return;
    }
    let offsets = block["offsets_ms"].as_array().cloned().unwrap_or_default();
    let numbers = block["readings"]["n"].as_array().cloned().unwrap_or_default();
    for (offset, n) in offsets.iter().zip(&numbers) {
        let Some(n) = n.as_f64() else { continue };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
        history.push(Reading { device: device.clone(), n: n as u64, at: from + offset.as_i64().unwrap_or(0) });
    }
}

fn outcome(record: &Value) -> Outcome {
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    Outcome { id: text("command_id"), status: text("status"), reason: text("reason") }
}

async fn watch_versions(items: Items, end: Stop, log: Log) {
    while !end.is_set() {
        for item in items.try_all_devices().await.unwrap_or_default() {
            let id = item["device_id"].as_str().unwrap_or_default().to_owned();
            if let Some(version) = item["shadow_version"].as_u64() {
                log.lock().versions.push((id, version));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

//! A device at work: its connection, its clock, its orders.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use floorgate_model::Timestamp;
use rumqttc::{LastWill, MqttOptions, QoS};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::machine::{Machine, Reaction, Step};
use super::{BACKLOG_MAX, Executed, LOG_MAX, Log, Pace, Wishes, now};
use crate::link::{Happened, Link};

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Orders that wait while one is executed; the gateway sends one at a time, so more are a fault of its own.
const ORDERS_MAX: usize = 16;
/// How often a device with moods has one, and for how long.
const MOOD_EVERY: Duration = Duration::from_secs(120);
const MOOD_LASTS: Duration = Duration::from_secs(30);

/// A message that is not acknowledged yet.
struct Owed {
    number: u64,
    kind: &'static str,
    payload: Value,
    retain: bool,
    /// For a reading: its time.
    reading: Option<Timestamp>,
    /// Handed to the present connection.
    submitted: bool,
}

pub(crate) struct Runner {
    machine: Machine,
    floor: SocketAddr,
    pace: Pace,
    log: Arc<Mutex<Log>>,
    wished: watch::Receiver<Wishes>,
    link: Option<Link>,
    up: bool,
    /// When to connect next, while there is no link.
    connect_at: Instant,
    sample_at: Instant,
    started: Instant,
    owed: VecDeque<Owed>,
    numbers: u64,
    orders: VecDeque<Vec<u8>>,
    steps: VecDeque<Step>,
    /// When the next step may be done.
    step_at: Instant,
}

impl Runner {
    pub(crate) fn new(
        machine: Machine,
        floor: SocketAddr,
        pace: Pace,
        log: Arc<Mutex<Log>>,
        wished: watch::Receiver<Wishes>,
    ) -> Self {
        let now = Instant::now();
        let runner = Self {
            machine,
            floor,
            pace,
            log,
            wished,
            link: None,
            up: false,
            connect_at: now,
            sample_at: now,
            started: now,
            owed: VecDeque::new(),
            numbers: 0,
            orders: VecDeque::new(),
            steps: VecDeque::new(),
            step_at: now,
        };
        runner.note_state();
        runner
    }

    /// Runs until it is dropped, or until nobody holds the device any more.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                happened = next(&mut self.link) => self.on_link(happened),
                () = sleep_until(self.connect_at), if self.link.is_none() => self.connect(),
                () = sleep_until(self.sample_at) => self.sample(),
                () = sleep_until(self.step_at), if !self.steps.is_empty() => self.step(),
                changed = self.wished.changed() => if changed.is_err() { return },
            }
            self.send();
        }
    }

    fn with_log(&self, note: impl FnOnce(&mut Log)) {
        note(&mut self.log.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note_state(&self) {
        self.with_log(|log| {
            log.boot_count = self.machine.boot_count();
            log.configuration.clone_from(self.machine.configuration());
        });
    }

    fn topic(&self, kind: &str) -> String {
        format!("devices/{}/{kind}", self.machine.spec().id)
    }

    fn connect(&mut self) {
        let mut options = MqttOptions::new(self.machine.spec().id, self.floor.ip().to_string(), self.floor.port());
        let will = json!({"online": false}).to_string();
        options.set_keep_alive(KEEP_ALIVE).set_clean_session(false).set_last_will(LastWill::new(
            self.topic("state"),
            will,
            QoS::AtLeastOnce,
            true,
        ));
        self.link = Some(Link::open(options));
    }

    fn disconnect(&mut self, for_now: Duration) {
        self.link = None;
        self.up = false;
        self.connect_at = Instant::now() + for_now;
        for owed in &mut self.owed {
            owed.submitted = false;
        }
    }

    fn on_link(&mut self, happened: Happened) {
        match happened {
            Happened::Up => {
                self.up = true;
                if let Some(link) = &self.link {
                    link.subscribe(&self.topic("execute"));
                }
                self.report_state();
            }
            Happened::Message(publish) => {
                if self.orders.len() < ORDERS_MAX {
                    self.orders.push_back(publish.payload.to_vec());
                }
                self.take_order();
            }
            Happened::Confirmed(number) => self.confirmed(number),
            Happened::Down => self.disconnect(RECONNECT),
            Happened::Other => {}
        }
    }

    fn confirmed(&mut self, number: u64) {
        let Some(place) = self.owed.iter().position(|owed| owed.number == number) else { return };
        let Some(at) = self.owed.remove(place).and_then(|owed| owed.reading) else { return };
        self.with_log(|log| {
            log.acknowledged.insert(at);
            if log.acknowledged.len() > LOG_MAX {
                log.acknowledged.pop_first();
            }
        });
    }

    fn owe(&mut self, kind: &'static str, payload: Value, retain: bool, reading: Option<Timestamp>) {
        self.numbers += 1;
        let owed = Owed { number: self.numbers, kind, payload, retain, reading, submitted: false };
        // State goes first: after a start the gateway should know who speaks before it hears a backlog.
        if kind == "state" {
            self.owed.retain(|owed| owed.kind != "state");
            self.owed.push_front(owed);
        } else {
            self.owed.push_back(owed);
        }
        if self.owed.len() > BACKLOG_MAX
            && let Some(place) = self.owed.iter().position(|owed| owed.reading.is_some() && !owed.submitted)
        {
            self.owed.remove(place);
            self.with_log(|log| log.lost += 1);
        }
    }

    fn send(&mut self) {
        let Some(link) = self.link.as_mut().filter(|_| self.up) else { return };
        let id = self.machine.spec().id;
        for owed in self.owed.iter_mut().filter(|owed| !owed.submitted) {
            let topic = format!("devices/{id}/{}", owed.kind);
            owed.submitted = link.publish(owed.number, &topic, owed.payload.to_string().into_bytes(), owed.retain);
            if !owed.submitted {
                break;
            }
        }
    }

    fn report_state(&mut self) {
        self.note_state();
        self.owe("state", self.machine.state(), true, None);
    }

    fn sample(&mut self) {
        self.sample_at = Instant::now() + self.machine.sample_rate();
        let wishes = *self.wished.borrow();
        let mood = wishes.moods && (self.started.elapsed().as_secs() % MOOD_EVERY.as_secs()) < MOOD_LASTS.as_secs();
        let silent_mood = mood && self.machine.spec().moods_are_silent;
        let booting = self.steps.front() == Some(&Step::Reboot);
        if wishes.silent || silent_mood || booting {
            return;
        }
        let at = now();
        let report = self.machine.measure(at, wishes.surge || mood);
        self.with_log(|log| log.taken += 1);
        self.owe("telemetry", report, false, Some(at));
    }

    fn take_order(&mut self) {
        while self.steps.is_empty()
            && let Some(payload) = self.orders.pop_front()
        {
            let at = now();
            match self.machine.react(&payload, at) {
                Reaction::Ignore => {}
                Reaction::Repeat { command_id } => {
                    self.with_log(|log| log.repeats += 1);
                    if let Some(answer) = self.machine.last_answer(&command_id) {
                        self.owe("result", answer, false, None);
                    }
                }
                Reaction::Execute { command_id, command, steps } => {
                    self.with_log(|log| {
                        log.executed.push_back(Executed { command_id, command, at });
                        if log.executed.len() > LOG_MAX {
                            log.executed.pop_front();
                        }
                    });
                    self.begin(steps);
                }
            }
        }
    }

    fn begin(&mut self, steps: VecDeque<Step>) {
        self.steps = steps;
        self.step_at = Instant::now();
    }

    /// Does the step that is due. Work and reboots first wait (their time comes before), so `step_at` is set ahead.
    fn step(&mut self) {
        let Some(step) = self.steps.pop_front() else { return };
        if let Some(answer) = self.machine.perform(&step) {
            self.owe("result", answer, false, None);
        }
        match step {
            Step::Set { .. } => self.report_state(),
            Step::Reboot => self.note_state(),
            _ => {}
        }
        let wait = match self.steps.front() {
            Some(Step::Work(duration)) => *duration,
            Some(Step::Reboot) => {
                // Down without a good-bye: the last will tells. The first connection attempt comes after the boot.
                self.send();
                self.disconnect(self.pace.reboot);
                self.pace.reboot
            }
            _ => Duration::ZERO,
        };
        self.step_at = Instant::now() + wait;
        if self.steps.is_empty() {
            self.take_order();
        }
    }
}

/// The link's next event; never, while there is none.
async fn next(link: &mut Option<Link>) -> Happened {
    match link {
        Some(link) => link.next().await,
        None => std::future::pending().await,
    }
}

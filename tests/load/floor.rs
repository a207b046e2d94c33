//! The floor under load: senders that know what was acknowledged, and machines that write down what they did.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use floorgate_model::Timestamp;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::evidence::{Executed, Reading};
use super::{Log, Stop};
use crate::rig::client::Client;

/// Messages a sender has on their way.
const WINDOW: usize = 20;
/// Between two readings of one sender, milliseconds: within the rate any device may have.
const EVERY_MS: std::ops::Range<u64> = 50..90;
/// Without an acknowledgement for so long, a sender connects anew.
const PATIENCE: Duration = Duration::from_secs(5);
/// The last reading is this far ahead, so that the block before it closes at once.
const AHEAD_MS: i64 = 100_000;

pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

/// Sends readings, numbered one after the other, with their times, repeats what was not acknowledged, and writes down what was.
pub struct Sender {
    pub floor: SocketAddr,
    pub id: String,
    /// Its first number; no other sender has its numbers.
    pub first: u64,
    pub stop: Stop,
    pub log: Log,
    pub random: fastrand::Rng,
}

type Wait = (u64, Result<(), oneshot::error::RecvError>);

impl Sender {
    pub async fn run(mut self) {
        let mut unacknowledged: BTreeMap<u64, Reading> = BTreeMap::new();
        let mut next = self.first;
        while !(self.stop.is_set() && unacknowledged.is_empty()) {
            let Some(client) = Client::connect_with(self.floor, &format!("{}-sender", self.id), None).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            self.carry(&client, &mut unacknowledged, &mut next).await;
        }
        self.close_the_block(next).await;
    }

    async fn carry(&mut self, client: &Client, unacknowledged: &mut BTreeMap<u64, Reading>, next: &mut u64) {
        let mut waits = FuturesUnordered::new();
        for reading in unacknowledged.values() {
            waits.push(self.send(client, reading).await);
        }
        let mut due = tokio::time::Instant::now();
        while client.is_up() && !(self.stop.is_set() && unacknowledged.is_empty()) {
            let may_send = !self.stop.is_set() && unacknowledged.len() < WINDOW;
            tokio::select! {
                acknowledged = waits.next(), if !waits.is_empty() => {
                    let Some((n, Ok(()))) = acknowledged else { return };
                    self.log.lock().acknowledged.extend(unacknowledged.remove(&n));
                }
                () = tokio::time::sleep_until(due), if may_send => {
                    due += Duration::from_millis(self.random.u64(EVERY_MS));
                    let reading = Reading { device: self.id.clone(), n: *next, at: now_ms() };
                    *next += 1;
                    self.log.lock().sent.push(reading.clone());
                    waits.push(self.send(client, &reading).await);
                    unacknowledged.insert(reading.n, reading);
                }
                () = tokio::time::sleep(PATIENCE) => return,
            }
        }
    }

    async fn send(&self, client: &Client, reading: &Reading) -> impl Future<Output = Wait> + use<> {
        let payload = json!({"n": reading.n, "timestamp": reading.at}).to_string();
        let acknowledged = client.send(&format!("devices/{}/telemetry", self.id), payload, false).await;
        let n = reading.n;
        async move { (n, acknowledged.await) }
    }

    /// One more reading, far ahead: the gap closes the block that is open, which otherwise would take its minute.
    async fn close_the_block(&self, n: u64) {
        let reading = Reading { device: self.id.clone(), n, at: now_ms() + AHEAD_MS };
        self.log.lock().sent.push(reading.clone());
        loop {
            if let Some(client) = Client::connect_with(self.floor, &format!("{}-sender", self.id), None).await {
                let acknowledged = self.send(&client, &reading).await;
                if matches!(tokio::time::timeout(PATIENCE, acknowledged).await, Ok((_, Ok(())))) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a machine does with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// Does it at once and proves it.
    Obey,
    /// Something else each time: also never answering, answering late, twice, or for another id.
    Odd,
}

/// One order's fate at an odd machine.
const ODDITIES: [Oddity; 7] =
    [Oddity::Obey, Oddity::Never, Oddity::Late, Oddity::Twice, Oddity::OtherId, Oddity::Fail, Oddity::SayOnly];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Oddity {
    Obey,
    Never,
    Late,
    Twice,
    OtherId,
    Fail,
    SayOnly,
}

/// Executes, writes down each id, and comes back after each loss of the connection.
pub struct Machine {
    pub floor: SocketAddr,
    pub id: String,
    pub conduct: Conduct,
    pub end: Stop,
    pub log: Log,
    pub random: fastrand::Rng,
    /// Its own non-volatile memory.
    pub boots: u64,
    pub rate: String,
    /// Answers it is still to give, each with its time.
    pub late: Vec<(Instant, String)>,
}

/// A machine that is silent for three of its intervals would be offline.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// A late answer comes after the timeout of the load's profile ([`super::PROFILES`]).
const LATE: Duration = Duration::from_secs(6);

impl Machine {
    pub async fn run(mut self) {
        self.log.lock().configured.insert(self.id.clone(), self.rate.clone());
        while !self.end.is_set() {
            let Some(mut client) = Client::connect_with(self.floor, &self.id, None).await else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            if !client.try_subscribe(&self.topic("execute")).await {
                continue;
            }
            drop(client.send(&self.topic("state"), self.state(), true).await);
            let mut reported = Instant::now();
            while client.is_up() && !self.end.is_set() {
                if reported.elapsed() >= REPORT_EVERY {
                    reported = Instant::now();
                    let report = json!({"position_pct": 50, "timestamp": now_ms()}).to_string();
                    drop(client.send(&self.topic("telemetry"), report, false).await);
                }
                self.answer_late(&client).await;
                let Some(message) = client.next(1).await else { continue };
                let Ok(order) = serde_json::from_slice::<Value>(&message.payload) else { continue };
                self.obey(&client, &order).await;
            }
        }
    }

    fn topic(&self, leaf: &str) -> String {
        format!("devices/{}/{leaf}", self.id)
    }

    fn state(&self) -> String {
        json!({"online": true, "boot_count": self.boots, "configuration": {"sample_rate_seconds": self.rate}})
            .to_string()
    }

    async fn obey(&mut self, client: &Client, order: &Value) {
        let oddity = match self.conduct {
            Conduct::Obey => Oddity::Obey,
            Conduct::Odd => self.random.choice(ODDITIES).unwrap_or(Oddity::Obey),
        };
        let id = order["command_id"].as_str().unwrap_or_default().to_owned();
        let done = !matches!(oddity, Oddity::OtherId | Oddity::Fail);
        self.log.lock().executed.push(Executed { id: id.clone(), at: now_ms(), done });
        // The late one shows with its state at once that it did it, in half of the cases; else nothing shows it in time.
        let shows = matches!(oddity, Oddity::Obey | Oddity::Twice) || oddity == Oddity::Late && self.random.bool();
        match order["command"].as_str() {
            // A device that has started again says so, sooner than anything else. Whoever hides it has not counted it:
            // a count that is told later would be taken for the proof of the next reboot.
            Some("reboot") => self.boots += u64::from(shows),
            _ if done => {
                let rate = &order["parameters"]["sample_rate_seconds"];
                self.rate = rate.as_str().map_or_else(|| rate.to_string(), str::to_owned);
            }
            _ => {}
        }
        self.log.lock().configured.insert(self.id.clone(), self.rate.clone());
        let answer = |id: &str, status: &str| json!({"command_id": id, "status": status}).to_string();
        let result = self.topic("result");
        if shows {
            drop(client.send(&self.topic("state"), self.state(), true).await);
        }
        match oddity {
            Oddity::Never => {}
            Oddity::Obey | Oddity::SayOnly => drop(client.send(&result, answer(&id, "succeeded"), false).await),
            Oddity::Twice => {
                for status in ["succeeded", "succeeded", "failed"] {
                    drop(client.send(&result, answer(&id, status), false).await);
                }
            }
            Oddity::Fail => drop(client.send(&result, answer(&id, "failed"), false).await),
            Oddity::OtherId => drop(client.send(&result, answer(&format!("{id}-x"), "succeeded"), false).await),
            Oddity::Late => self.late.push((Instant::now() + LATE, answer(&id, "succeeded"))),
        }
    }

    async fn answer_late(&mut self, client: &Client) {
        let due = |(at, _): &mut (Instant, String)| *at <= Instant::now();
        for (_, answer) in self.late.extract_if(.., due).collect::<Vec<_>>() {
            drop(client.send(&self.topic("result"), answer, false).await);
        }
    }
}

/// As the daemon writes times.
pub fn timestamp(ms: i64) -> String {
    Timestamp::from_millis(ms).to_string()
}

//! The cloud's broker, or a plant's broker on the floor, and the wire to it: killed and restarted with and without its
//! sessions, half-open, refusing, silent, and delivering twice, late and out of order.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::ConnectReturnCode;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{judge, until_real};
use crate::Round;
use crate::broker::{Broker, Faults};
use crate::load::checker::RETURN_MAX;
use crate::load::floor::Conduct;
use crate::load::{self, Load};
use crate::rig::{Options, Rig};
use crate::wire::Wire;

#[derive(Debug, Clone, Copy)]
enum Storm {
    Restart,
    RestartForgetful,
    WireCut,
    HalfOpen,
    RefusesConnect,
    CutsAfterConnack,
    CutsInTheMiddle,
    WithholdsPubacks,
    DropsSubacks,
    Duplicates,
    LateAndReordered,
}

const STORMS: [(Storm, &str); 11] = [
    (Storm::Restart, "restart"),
    (Storm::RestartForgetful, "session-lost"),
    (Storm::WireCut, "wire-cut"),
    (Storm::HalfOpen, "half-open"),
    (Storm::RefusesConnect, "connect-refused"),
    (Storm::CutsAfterConnack, "cut-after-connack"),
    (Storm::CutsInTheMiddle, "cut-in-the-middle"),
    (Storm::WithholdsPubacks, "pubacks-withheld"),
    (Storm::DropsSubacks, "subacks-dropped"),
    (Storm::Duplicates, "duplicates"),
    (Storm::LateAndReordered, "late-and-reordered"),
];

/// What clients publish at the broker on the result topics, from now on.
fn results(broker: &Broker) -> load::Results {
    let (give, take) = mpsc::channel(10_000);
    let broker = broker.clone();
    tokio::spawn(async move {
        let mut read = 0;
        while !give.is_closed() {
            let new: Vec<Bytes> = {
                let inner = broker.lock();
                let published = inner.log.published[read..].iter();
                read = inner.log.published.len();
                published
                    .filter(|(topic, _, _)| topic.ends_with("/commands/result"))
                    .map(|(_, p, _)| p.clone())
                    .collect()
            };
            for payload in new {
                let _ = give.send(payload).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    take
}

async fn storm(storm: Storm, broker: &Broker, wire: &Wire, lasts: Duration) {
    let set = |change: fn(&mut Faults)| change(&mut broker.lock().faults);
    match storm {
        Storm::Restart | Storm::RestartForgetful | Storm::WireCut => {
            wire.switch.cut().await;
            if !matches!(storm, Storm::WireCut) {
                broker.cut();
            }
            if matches!(storm, Storm::RestartForgetful) {
                broker.forget();
            }
            tokio::time::sleep(lasts).await;
            wire.switch.restore().await.unwrap();
            return;
        }
        Storm::HalfOpen => {
            wire.die(true);
            tokio::time::sleep(lasts).await;
            wire.die(false);
            return;
        }
        Storm::RefusesConnect => {
            set(|faults| faults.refuse_connect = Some(ConnectReturnCode::ServiceUnavailable));
            broker.cut();
        }
        Storm::CutsAfterConnack => {
            set(|faults| faults.cut_after_connack = true);
            broker.cut();
        }
        Storm::DropsSubacks => {
            set(|faults| faults.drop_subacks = true);
            broker.cut();
        }
        Storm::CutsInTheMiddle => set(|faults| faults.cut_after = Some(3)),
        Storm::WithholdsPubacks => set(|faults| faults.withhold_pubacks = true),
        Storm::Duplicates => set(|faults| faults.duplicates = true),
        Storm::LateAndReordered => set(|faults| faults.late = Some(Duration::from_millis(900))),
    }
    tokio::time::sleep(lasts).await;
    broker.lock().faults = calm();
}

/// A broker as `deploy/mosquitto/floorgate.conf` sets it up, without faults. One with an endless window hands over twice,
/// after a cut, what a device reported in minutes: more than the daemon remembers of it (docs/limits.md).
fn calm() -> Faults {
    Faults { window: Some(1_000), ..Faults::default() }
}

/// On which side the broker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Cloud,
    Floor,
}

impl Side {
    fn scenario(self) -> &'static str {
        match self {
            Self::Cloud => "links",
            Self::Floor => "floor",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Floor => "floor",
        }
    }
}

/// Waits until that link is up; answers how long that took.
pub async fn back(rig: &Rig, side: Side) -> Duration {
    let begun = Instant::now();
    while begun.elapsed() < RETURN_MAX + Duration::from_secs(1) {
        let status = rig.status().await;
        if status[side.name()]["state"] == "up" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

/// The cloud's broker is the one that fails.
pub async fn cloud(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rig = load::prepare(load::options()).await;
    let broker = Broker::start().await;
    let wire = Wire::start(broker.address).await;
    rig.put_in_config(&rig.cloud_cable.address().to_string(), &wire.switch.address().to_string());
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, broker.address, results(&broker), Conduct::Obey, seed);
    let mut round = storms(&mut random, &rig, &broker, &wire, &load, Side::Cloud, STORMS.to_vec()).await;
    load.stop().await;
    // A broker that forgets its sessions loses what it had not handed over: that is its promise, not the daemon's.
    let handed = handed(&broker, |payload| Some(payload["command_id"].as_str()?.to_owned()));
    load.log.lock().asked.retain(|asked| handed.contains(&asked.id));
    finish(&mut load, &rig, &wire, Side::Cloud, &mut round).await;
    round
}

/// A plant's broker is the one that fails.
pub async fn floor(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let broker = Broker::start().await;
    let wire = Wire::start(broker.address).await;
    let options = Options { floor_broker: Some(wire.switch.address()), ..load::options() };
    let mut rig = load::prepare(options).await;
    // The devices have wires of their own.
    rig.floor = broker.address;
    load::first_start(&mut rig).await;
    back(&rig, Side::Floor).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    // A device that gets an order twice from its own broker would have to know it; here, each delivery is an execution.
    let storms_here = STORMS.into_iter().filter(|(storm, _)| !matches!(storm, Storm::Duplicates)).collect();
    let mut round = storms(&mut random, &rig, &broker, &wire, &load, Side::Floor, storms_here).await;
    load.stop().await;
    // What the broker acknowledged to a device and then forgot never reached the daemon.
    let handed = handed(&broker, |payload| payload["n"].as_u64());
    load.log.lock().acknowledged.retain(|reading| handed.contains(&reading.n));
    finish(&mut load, &rig, &wire, Side::Floor, &mut round).await;
    round
}

async fn storms(
    random: &mut fastrand::Rng,
    rig: &Rig,
    broker: &Broker,
    wire: &Wire,
    load: &Load,
    side: Side,
    mut storms: Vec<(Storm, &'static str)>,
) -> Round {
    let mut round = Round::default();
    broker.lock().faults = calm();
    random.shuffle(&mut storms);
    for (kind, name) in storms {
        storm(kind, broker, wire, Duration::from_millis(random.u64(500..3_000))).await;
        round.count(format!("{}/{name}", side.scenario()), 1);
        // Half-open wires are found by the keep-alive; others at once.
        if random.bool() && !matches!(kind, Storm::HalfOpen) {
            let took = back(rig, side).await;
            load.log.lock().returns.push(took);
        }
    }
    let took = back(rig, side).await;
    load.log.lock().returns.push(took);
    until_real(load).await;
    round
}

/// What the broker handed over and was acknowledged.
fn handed<T: std::hash::Hash + Eq>(broker: &Broker, what: impl Fn(&Value) -> Option<T>) -> HashSet<T> {
    let inner = broker.lock();
    inner.log.acknowledged.iter().filter_map(|payload| what(&serde_json::from_slice(payload).ok()?)).collect()
}

async fn finish(load: &mut Load, rig: &Rig, wire: &Wire, side: Side, round: &mut Round) {
    load.log.lock().connects = wire.connects();
    let evidence = judge(load, rig, round).await;
    let slowest = evidence.returns.iter().max().copied().unwrap_or_default();
    round.note(&format!("{}/restart", side.scenario()), format!("slowest return {} ms", slowest.as_millis()));
}

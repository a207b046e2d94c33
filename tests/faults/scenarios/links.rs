//! The cloud's broker and the wire to it: killed and restarted with and without its sessions, half-open, refusing,
//! silent, and delivering twice, late and out of order.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::ConnectReturnCode;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{PATIENCE, blame};
use crate::Round;
use crate::broker::{Broker, Faults};
use crate::load::checker::{self, RETURN_MAX};
use crate::load::floor::Conduct;
use crate::load::{self, Load};
use crate::rig::Rig;
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
        Storm::LateAndReordered => set(|faults| faults.late = Some(Duration::from_millis(1_500))),
    }
    tokio::time::sleep(lasts).await;
    broker.lock().faults = Faults::default();
}

async fn back(rig: &Rig) -> Duration {
    let begun = Instant::now();
    while begun.elapsed() < RETURN_MAX + Duration::from_secs(1) {
        let status = rig.status().await;
        if status["cloud"]["state"] == "up" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    begun.elapsed()
}

pub async fn storms(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    let broker = Broker::start().await;
    let wire = Wire::start(broker.address).await;
    rig.put_in_config(&rig.cloud_cable.address().to_string(), &wire.switch.address().to_string());
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, broker.address, results(&broker), Conduct::Obey, seed);
    let mut storms = STORMS;
    random.shuffle(&mut storms);
    for (kind, name) in storms {
        storm(kind, &broker, &wire, Duration::from_millis(random.u64(500..3_000))).await;
        round.count(format!("links/{name}"), 1);
        // Half-open wires are found by the keep-alive; others at once.
        if random.bool() && !matches!(kind, Storm::HalfOpen) {
            let took = back(&rig).await;
            load.log.lock().returns.push(took);
        }
    }
    let took = back(&rig).await;
    load.log.lock().returns.push(took);
    load.stop().await;
    // A broker that forgets its sessions loses what it had not handed over: that is its promise, not the daemon's.
    let handed: HashSet<String> = {
        let id =
            |payload: &Bytes| Some(serde_json::from_slice::<Value>(payload).ok()?["command_id"].as_str()?.to_owned());
        broker.lock().log.acknowledged.iter().filter_map(id).collect()
    };
    {
        let mut log = load.log.lock();
        log.asked.retain(|asked| handed.contains(&asked.id));
        log.connects = wire.connects();
    }
    let (evidence, broken) = load.judge(PATIENCE).await;
    blame(&rig, &broken, &mut round);
    let slowest = evidence.returns.iter().max().copied().unwrap_or_default();
    round.note("links/restart", format!("slowest return {} ms", slowest.as_millis()));
    if evidence.asked.len() < 5 || checker::CONNECT_APART.is_zero() {
        round.broken.push("the load was not real".to_owned());
    }
    round
}

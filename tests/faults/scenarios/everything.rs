//! Everything at once: the table storms, the wire to the broker breaks, and the daemon dies again and again.

use std::time::{Duration, Instant};

use super::{judge, kills};
use crate::Round;
use crate::gate::{Fault, Gate};
use crate::load::floor::Conduct;
use crate::load::{self, Load};
use crate::wire::Wire;

/// How long it goes on.
const LASTS: Duration = Duration::from_secs(25);

async fn bad_table(gate: &Gate, mut random: fastrand::Rng, until: Instant) {
    while Instant::now() < until {
        match random.u8(..4) {
            0 => gate.calm(),
            1 => {
                gate.switch.cut().await;
                tokio::time::sleep(Duration::from_millis(random.u64(100..1_500))).await;
                gate.switch.restore().await.unwrap();
            }
            _ => {
                let fault = random.choice(Fault::ALL).unwrap_or(Fault::Slow);
                gate.storm(fault, random.u8(20..=100));
            }
        }
        tokio::time::sleep(Duration::from_millis(random.u64(100..2_000))).await;
    }
    gate.calm();
}

async fn bad_wire(wire: &Wire, mut random: fastrand::Rng, until: Instant) {
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(random.u64(500..4_000))).await;
        let lasts = Duration::from_millis(random.u64(50..1_500));
        if random.bool() {
            wire.switch.cut().await;
            tokio::time::sleep(lasts).await;
            wire.switch.restore().await.unwrap();
        } else {
            wire.die(true);
            tokio::time::sleep(lasts).await;
            wire.die(false);
        }
    }
}

pub async fn at_once(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    let gate = Gate::start(rig.table_cable.address(), random.u64(..)).await;
    let wire = Wire::start(rig.cloud).await;
    rig.put_in_config(&rig.table_cable.address().to_string(), &gate.switch.address().to_string());
    rig.put_in_config(&rig.cloud_cable.address().to_string(), &wire.switch.address().to_string());
    load::first_start(&mut rig).await;
    rig.daemon.kill().await;
    let conduct = if random.bool() { Conduct::Obey } else { Conduct::Odd };
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), conduct, seed);
    if conduct == Conduct::Odd {
        load.ignore_settings();
    }
    let until = Instant::now() + LASTS;
    let (table, link) = (bad_table(&gate, random.fork(), until), bad_wire(&wire, random.fork(), until));
    let deaths = kills::at_random_points(&mut rig, &load, random.fork(), until);
    let ((), (), deaths) = tokio::join!(table, link, deaths);
    kills::start(&mut rig, &load).await;
    round.count("everything", 1);
    let requests: u64 = gate.injected().values().sum();
    round.note(
        "everything",
        format!("{deaths} deaths, {requests} requests and {} connections met a fault", wire.connects().len()),
    );
    judge(&mut load, &rig, &mut round).await;
    round
}

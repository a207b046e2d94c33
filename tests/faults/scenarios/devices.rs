//! Devices that never answer, answer late, twice, or for another id, or fail, or only say that they did it.

use std::time::Duration;

use super::judge;
use crate::Round;
use crate::load::floor::Conduct;
use crate::load::{self, Load};

pub async fn odd(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Odd, seed);
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(random.u64(5_000..10_000))).await;
        rig.daemon.kill().await;
        rig.daemon.run().await;
        load.log.lock().starts.push(rig.daemon.ready_after);
    }
    // What a silent machine is set to is for nobody to know; the other promises hold all the same.
    load.ignore_settings();
    let evidence = judge(&mut load, &rig, &mut round).await;
    round.count("devices", evidence.executed.len() as u64);
    round
}

//! `kill -9` at random moments under load: nothing acknowledged is lost, nothing runs twice.
//!
//! Judged from outside by [`load`]. `FLOORGATE_TEST_KILLS` sets the number (default 10; `cargo xtask kills` runs 50);
//! `FLOORGATE_TEST_SEED` repeats the choices of a run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops at the first surprise")]

mod load;
mod rig;

use std::time::Duration;

use load::Load;
use load::floor::Conduct;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_and_nothing_runs_twice_however_often_it_is_killed() {
    let kills = number("FLOORGATE_TEST_KILLS", 10);
    let seed = number("FLOORGATE_TEST_SEED", fastrand::u64(..));
    println!("FLOORGATE_TEST_SEED={seed} FLOORGATE_TEST_KILLS={kills}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rig = load::prepare(load::options()).await;
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    for _ in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.u64(20..900))).await;
        rig.daemon.kill().await;
        rig.daemon.run().await;
        load.log.lock().starts.push(rig.daemon.ready_after);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    load.stop().await;
    let (evidence, broken) = load.judge(Duration::from_secs(150)).await;
    assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    let broken = load::checker::check(&load.audit(&rig).await);
    assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    assert!(evidence.gaps.is_empty(), "seed {seed}: nothing was to be given up: {:?}", evidence.gaps);
    let succeeded = evidence.records.iter().filter(|record| record.status == "succeeded").count();
    println!(
        "{kills} kills: {} readings acknowledged, 0 lost; {} commands, {} executed, {succeeded} succeeded, 0 twice",
        evidence.acknowledged.len(),
        evidence.asked.len(),
        evidence.executed.len()
    );
    assert!(evidence.acknowledged.len() > 100 && succeeded > 0, "the load was real");
}

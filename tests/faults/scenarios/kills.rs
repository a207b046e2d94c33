//! The daemon dies: at every fail point, at random, during its first start, during its orderly stop.

use std::time::Duration;

use floorgate::fail_points::FailPoint;

use super::judge;
use super::links::{Side, back};
use crate::Round;
use crate::load::floor::Conduct;
use crate::load::{self, Load};
use crate::rig::Rig;
use crate::rig::disk::Disk;

/// A point that is not passed within so long is not waited for; the daemon is killed where it is.
const LIFE_MAX: Duration = Duration::from_millis(2_500);
/// A file that failed is opened again within this time after the next write.
const REOPEN_WITHIN: Duration = Duration::from_secs(15);
/// What was sent before has arrived.
const SETTLED: Duration = Duration::from_secs(1);
/// Points that a first start passes, and no other.
const AT_FIRST_START: [FailPoint; 5] = [
    FailPoint::StateBeforeMigration,
    FailPoint::StateInMigration,
    FailPoint::StateAfterMigration,
    FailPoint::TelemetryBeforeMigration,
    FailPoint::TelemetryAfterMigration,
];
/// Points that an orderly stop passes.
const AT_STOP: [FailPoint; 5] = [
    FailPoint::BeforeCheckpoint,
    FailPoint::AfterCheckpoint,
    FailPoint::StateBeforeCommit,
    FailPoint::TelemetryBeforeCommit,
    FailPoint::TelemetryAfterCommit,
];

fn is_in_the_middle(point: FailPoint) -> bool {
    let elsewhere = [FailPoint::BeforeCheckpoint, FailPoint::AfterCheckpoint, FailPoint::BeforeReopen];
    !AT_FIRST_START.contains(&point) && !elsewhere.contains(&point)
}

/// Starts the daemon and notes how long it took.
pub async fn start(rig: &mut Rig, load: &Load) {
    rig.daemon.run().await;
    load.log.lock().starts.push(rig.daemon.ready_after);
}

/// Starts the daemon with an armed point and lets it die there. False if it did not come by, and was killed instead.
async fn die_at(rig: &mut Rig, load: &Load, point: FailPoint, nth: u64) -> bool {
    rig.daemon.fail_point = Some(format!("{}:{nth}", point.name()));
    if rig.daemon.try_run().await.is_err() {
        return true;
    }
    load.log.lock().starts.push(rig.daemon.ready_after);
    let alive_until = tokio::time::Instant::now() + LIFE_MAX;
    while tokio::time::Instant::now() < alive_until {
        if rig.daemon.exited().is_some() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    rig.daemon.kill().await;
    false
}

/// Lets the disk fail under the load, and the daemon die when it opens a file again: at the first attempt or, the disk
/// failing still, at a later one. The next start finds a disk that works. How the commands ended that came in this time
/// is not asked: a refusal that no disk takes dies with the process.
async fn die_at_reopen(rig: &mut Rig, load: &Load, rules: &str, nth: u64) -> bool {
    let without = rig.daemon.environment.clone();
    let disk = Disk::under(rig);
    rig.daemon.fail_point = Some(format!("{}:{nth}", FailPoint::BeforeReopen.name()));
    start(rig, load).await;
    // What waited at the broker is journalled before.
    back(rig, Side::Cloud).await;
    let first = load.log.lock().asked.len();
    tokio::time::sleep(SETTLED).await;
    disk.fail(rules);
    let alive_until = tokio::time::Instant::now() + REOPEN_WITHIN;
    while rig.daemon.exited().is_none() && tokio::time::Instant::now() < alive_until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let died = rig.daemon.exited().is_some();
    rig.daemon.kill().await;
    rig.daemon.environment = without;
    // The agent notes what it has sent after the broker has it.
    tokio::time::sleep(SETTLED).await;
    let mut log = load.log.lock();
    let ids: Vec<_> = log.asked[first..].iter().map(|asked| asked.id.clone()).collect();
    log.forgotten.extend(ids);
    died
}

/// Every point that is passed while the daemon works, each twice, in random order and at a random pass.
pub async fn fail_points(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    load::first_start(&mut rig).await;
    rig.daemon.kill().await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    let mut points: Vec<FailPoint> = FailPoint::ALL.iter().copied().filter(|point| is_in_the_middle(*point)).collect();
    points.extend(points.clone());
    random.shuffle(&mut points);
    for point in points {
        let nth = if random.bool() { 1 } else { random.u64(2..8) };
        let fault = format!("fail-points/{}", point.name());
        if die_at(&mut rig, &load, point, nth).await {
            round.count(fault, 1);
        } else {
            round.count("kills", 1);
        }
    }
    for rules in ["ENOSPC write,open * 0", "EIO fsync * 0"] {
        if !die_at_reopen(&mut rig, &load, rules, random.u64(1..4)).await {
            round.broken.push(format!("G8: with `{rules}` no file was opened again within {REOPEN_WITHIN:?}"));
        }
        let fault = format!("fail-points/{}", FailPoint::BeforeReopen.name());
        round.count(&fault, 1);
        round.note(&fault, "commands refused by the failing disk are not in the table");
    }
    start(&mut rig, &load).await;
    judge(&mut load, &rig, &mut round).await;
    let missed = round.faults.get("kills").map_or(0, |(missed, _)| *missed);
    if missed > FailPoint::ALL.len() as u64 {
        round.broken.push(format!("{missed} points were not passed: is the daemon built with `fail_points`?"));
    }
    round
}

/// Dies at points and passes chosen at random until the time is up; answers how often.
pub async fn at_random_points(rig: &mut Rig, load: &Load, mut random: fastrand::Rng, until: std::time::Instant) -> u64 {
    let points: Vec<FailPoint> = FailPoint::ALL.iter().copied().filter(|point| is_in_the_middle(*point)).collect();
    let mut deaths = 0;
    while std::time::Instant::now() < until {
        let point = points[random.usize(..points.len())];
        die_at(rig, load, point, random.u64(1..30)).await;
        deaths += 1;
    }
    deaths
}

/// Plain `kill -9`, also with the links down, also twice in a moment.
pub async fn random(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    for _ in 0..20 {
        let cut = random.u8(..4) == 0;
        if cut {
            rig.cut().await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(10..1_200))).await;
        rig.daemon.kill().await;
        round.count("kills", 1);
        if cut && random.bool() {
            rig.restore().await;
        }
        start(&mut rig, &load).await;
        if random.u8(..5) == 0 {
            rig.daemon.kill().await;
            round.count("kills", 1);
            start(&mut rig, &load).await;
        }
        rig.restore().await;
    }
    judge(&mut load, &rig, &mut round).await;
    round
}

/// The first start of all dies at each of its steps; the next one finds its way.
pub async fn first_start(seed: u64) -> Round {
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    for point in AT_FIRST_START {
        let _ = std::fs::remove_dir_all(rig.state_dir());
        rig.daemon.fail_point = Some(format!("{}:1", point.name()));
        if rig.daemon.try_run().await.is_ok() {
            round.broken.push(format!("a first start does not come by {}", point.name()));
        }
        rig.daemon.run().await;
        if rig.daemon.ready_after > load::checker::START_MAX {
            round.broken.push(format!("G7: the start after {} took {:?}", point.name(), rig.daemon.ready_after));
        }
        rig.daemon.kill().await;
        round.count("first-start", 1);
    }
    load::first_start(&mut rig).await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    judge(&mut load, &rig, &mut round).await;
    round
}

/// SIGTERM under load, and it dies on the way out.
pub async fn stops(seed: u64) -> Round {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut round = Round::default();
    let mut rig = load::prepare(load::options()).await;
    load::first_start(&mut rig).await;
    rig.daemon.kill().await;
    let mut load = Load::start(&rig, rig.cloud, load::results(&rig), Conduct::Obey, seed);
    for point in AT_STOP.into_iter().map(Some).chain([None, None]) {
        // Commits come by all the time; those of the stop are the last.
        let nth = if point.is_some_and(|point| point.name().ends_with("commit")) { random.u64(5..40) } else { 1 };
        rig.daemon.fail_point = point.map(|point| format!("{}:{nth}", point.name()));
        if rig.daemon.try_run().await.is_ok() {
            load.log.lock().starts.push(rig.daemon.ready_after);
            tokio::time::sleep(Duration::from_millis(random.u64(200..1_000))).await;
        }
        if rig.daemon.exited().is_none() {
            let (code, took) = rig.daemon.terminate().await;
            if took > Duration::from_secs(5) || (code != Some(0) && point.is_none()) {
                round.broken.push(format!("a stop ended with {code:?} after {took:?}"));
            }
        }
        round.count("stops", 1);
    }
    start(&mut rig, &load).await;
    judge(&mut load, &rig, &mut round).await;
    round
}

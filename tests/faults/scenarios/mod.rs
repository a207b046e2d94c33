//! The scenarios. Each has a rig of its own, and one seed decides all its choices.

mod devices;
mod everything;
mod floods;
mod kills;
mod links;
mod table;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::load::{Load, checker::Broken, evidence::Evidence};
use crate::rig::Rig;
use crate::{Round, Scenario};

/// All, in the order in which they run.
pub const ALL: &[Scenario] = &[
    Scenario { name: "fail-points", run: |seed| Box::pin(kills::fail_points(seed)) },
    Scenario { name: "first-start", run: |seed| Box::pin(kills::first_start(seed)) },
    Scenario { name: "stops", run: |seed| Box::pin(kills::stops(seed)) },
    Scenario { name: "kills", run: |seed| Box::pin(kills::random(seed)) },
    Scenario { name: "table", run: |seed| Box::pin(table::storms(seed)) },
    Scenario { name: "links", run: |seed| Box::pin(links::cloud(seed)) },
    Scenario { name: "floor", run: |seed| Box::pin(links::floor(seed)) },
    Scenario { name: "everything", run: |seed| Box::pin(everything::at_once(seed)) },
    Scenario { name: "devices", run: |seed| Box::pin(devices::odd(seed)) },
    Scenario { name: "floods", run: |seed| Box::pin(floods::both(seed)) },
    Scenario { name: "broker-floods", run: |seed| Box::pin(floods::over_a_broker(seed)) },
];

/// How long the table may take to show everything after the last fault.
const PATIENCE: Duration = Duration::from_secs(75);

/// How long a load may go on after the faults for want of a success; a device counts as online with its next report.
const AFTER_FAULTS: Duration = Duration::from_secs(30);

/// Lets the load go on until a command has succeeded. Faults that follow one another closely, on a slow machine, may leave
/// no time for one, and what would be judged is a gateway that refused everything. If none succeeds, the judge says so.
async fn until_real(load: &Load) {
    let succeeded = || load.log.lock().results.iter().any(|result| result.status == "succeeded");
    let begun = Instant::now();
    while !succeeded() && begun.elapsed() < AFTER_FAULTS {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Ends the load and judges it; what is broken goes into the round.
async fn judge(load: &mut Load, rig: &Rig, round: &mut Round) -> Evidence {
    if !load.is_stopped() {
        until_real(load).await;
    }
    // Nothing is left to do if it has been stopped before.
    load.stop().await;
    let (evidence, mut broken) = load.judge(PATIENCE).await;
    if broken.is_empty() {
        broken = crate::load::checker::check(&load.audit(rig).await);
    }
    blame(rig, &broken, round);
    // The load stays within every limit, and no scenario damages a file: there is no reason to give anything up.
    for gap in &evidence.gaps {
        let (device, lost, reason) = (&gap.device, gap.lost, &gap.reason);
        round.broken.push(format!("G1: {lost} readings of {device} were given up ({reason}) without need"));
    }
    if evidence.acknowledged.is_empty() || !evidence.records.iter().any(|record| record.status == "succeeded") {
        round.broken.push(format!("the load was not real: {}", told(&evidence)));
    }
    evidence
}

/// What a load came to, in one line.
fn told(evidence: &Evidence) -> String {
    let mut ends = BTreeMap::<String, u64>::new();
    for record in &evidence.records {
        *ends.entry(format!("{} {}", record.status, record.reason)).or_default() += 1;
    }
    format!("{} readings acknowledged, {} commands asked, {ends:?}", evidence.acknowledged.len(), evidence.asked.len())
}

fn blame(rig: &Rig, broken: &[Broken], round: &mut Round) {
    // What cannot come right says most.
    let (missing, wrong): (Vec<_>, Vec<_>) = broken.iter().partition(|broken| broken.may_come_right());
    round.broken.extend(wrong.into_iter().chain(missing).map(Broken::to_string));
    if !broken.is_empty() {
        let log = rig.daemon.log();
        let lines: Vec<_> = log.lines().collect();
        println!("the daemon's last lines:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
    }
}

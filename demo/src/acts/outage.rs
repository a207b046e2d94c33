//! The outage: table and broker unreachable, the floor goes on, the buffer grows and drains, every reading accounted for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use floorgate_model::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{MINUTE, OUTAGE};
use crate::devices::{PRESSURE, now};
use crate::stage::Stage;

/// A block of samples stays open for 60 s at most; then it has to go up.
const ACCOUNTED_WITHIN: Duration = Duration::from_secs(120);
/// After the cut, what was under way has arrived or failed.
const SETTLED: Duration = Duration::from_secs(1);
/// After the link is back, the daemon's back-off may still run.
const BACK_WITHIN: Duration = MINUTE;

fn waiting(status: &Value) -> Result<u64> {
    let count = |name: &str| status["store"][name].as_u64().with_context(|| format!("`status` has no store.{name}"));
    Ok(count("samples_open")? + count("samples_waiting")? + count("states_waiting")? + count("outbox_waiting")?)
}

fn is_down(status: &Value) -> bool {
    status["cloud"]["state"] == "down" && status["sync"]["state"] == "down"
}

/// The act.
pub(super) async fn play(stage: &Stage) -> Result<()> {
    let began = now();
    stage.cloud_wire.cut().await;
    stage.table_wire.cut().await;
    stage.view.say("The link to the cloud is cut: neither its broker nor the table can be reached.");
    let during = outage(stage).await;
    // Mended whatever happened, so that what follows is not judged by this.
    stage.cloud_wire.restore().await.context("cannot mend the wire to the broker")?;
    stage.table_wire.restore().await.context("cannot mend the wire to the table")?;
    let ended = now();
    stage.view.say("The link is back.");
    during?;

    let back = async || {
        let status = stage.status().await?;
        Ok((status["cloud"]["state"] == "up" && status["sync"]["state"] == "up").then_some(()))
    };
    stage.until("`status` says that both links are up", BACK_WITHIN, back).await?;
    let current = async || {
        for device in stage.fleet.devices() {
            let told = stage.told(device.spec().id).await?;
            let seen = told["last_seen_at"].as_str().and_then(|at| Timestamp::parse(at).ok());
            if seen.is_none_or(|seen| seen < ended.saturating_sub(Duration::from_secs(15))) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    stage.until("the tools tell what is current again", BACK_WITHIN, current).await?;
    stage.view.say("The newest state of every device is up; now the samples follow, block by block (up to a minute).");
    let accounted = async || {
        let mut missing = 0;
        for device in stage.fleet.devices() {
            let acknowledged = device.log().acknowledged;
            let acknowledged: BTreeSet<_> = acknowledged.range(..=ended).copied().collect();
            missing += acknowledged.difference(&stage.history(device.spec().id).await?).count();
        }
        ensure!(missing == 0, "{missing} acknowledged readings are not in the history");
        Ok(Some(()))
    };
    stage.until("get_telemetry_history tells every acknowledged reading", ACCOUNTED_WITHIN, accounted).await?;
    let (mut total, mut cut) = (0, 0);
    for device in stage.fleet.devices() {
        let log = device.log();
        total += log.acknowledged.range(..=ended).count();
        cut += log.acknowledged.range(began..=ended).count();
    }
    stage.view.say(&format!(
        "Every reading is accounted for: {total} acknowledged on the floor so far, {cut} of them taken during the cut, all told by get_telemetry_history."
    ));
    Ok(())
}

async fn outage(stage: &Stage) -> Result<()> {
    let end = Instant::now() + OUTAGE;
    let counts = || -> BTreeMap<_, _> {
        let devices = stage.fleet.devices().iter();
        devices.map(|device| (device.spec().id, device.log().acknowledged.len())).collect()
    };
    let at_first = counts();
    // What was on its way when the wires were cut may still have arrived; from here on nothing does.
    sleep(SETTLED).await;
    let first = waiting(&stage.status().await?)?;
    let mut last = first;
    while Instant::now() < end {
        sleep(Duration::from_secs(5).min(end.saturating_duration_since(Instant::now()))).await;
        last = waiting(&stage.status().await?)?;
        stage.view.say(&format!("  {last} things wait in the gateway ({first} just after the cut)."));
    }
    let status = stage.status().await?;
    ensure!(is_down(&status), "`status` does not say that both links are down: {status}");
    ensure!(last > first, "the buffer did not grow: {first} just after the cut, {last} at its end");
    for (id, count) in counts() {
        ensure!(at_first.get(id).is_some_and(|first| count > *first), "{id} got no acknowledgement during the cut");
    }
    stage.view.say("Meanwhile the gateway took and acknowledged every device's readings.");
    let told = stage.told(PRESSURE).await?;
    let age = told["age_seconds"].as_u64().context("get_device_status does not say how old it is")?;
    ensure!(age >= OUTAGE.as_secs() / 2, "what the tools know of {PRESSURE} claims to be {age} s old");
    stage.view.say(&format!("The tools answer all along, and say how old it is: {age} s."));
    Ok(())
}

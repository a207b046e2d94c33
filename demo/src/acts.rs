//! The acts: what a newcomer should see happen, each with its check.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::devices::{PRESSURE, TEMPERATURE, VALVE, VIBRATION, now, seed};
use crate::stage::Stage;

mod outage;

/// How long the upstream link is cut.
pub const OUTAGE: Duration = Duration::from_secs(20);
/// How long a command may take to its outcome, with the demo's quick devices.
const OUTCOME: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);

/// Plays every act; answers how many did not end as they should.
pub async fn play(stage: &Stage) -> usize {
    play_some(stage, &[1, 2, 3, 4, 5, 6, 7]).await
}

/// Plays the acts of these numbers, in their order; answers how many did not end as they should.
pub async fn play_some(stage: &Stage, wanted: &[u8]) -> usize {
    let mut failed = Vec::new();
    let mut number = 0;
    macro_rules! act {
        ($title:literal, $act:expr) => {
            number += 1;
            if wanted.contains(&number) {
                act!(play $title, $act);
            }
        };
        (play $title:literal, $act:expr) => {
            stage.view.say(concat!("── ", $title));
            let began = Instant::now();
            let ended: Result<()> = Box::pin($act).await;
            stage.refresh().await;
            stage.view.show_table();
            match ended {
                Ok(()) => stage.view.say(&format!("   As it should be ({:.0} s).", began.elapsed().as_secs_f64())),
                Err(error) => {
                    stage.view.say(&format!("   NOT AS IT SHOULD BE: {error:#}"));
                    failed.push($title);
                }
            }
        };
    }
    act!("Act 1: readings arrive, and a pressure above its threshold shows as a warning", telemetry(stage));
    act!("Act 2: a recalibration, sent as the agent would", recalibration(stage));
    act!("Act 3: commands that fail are undone", undone(stage));
    act!("Act 4: a stale command is refused", stale(stage));
    act!("Act 5: a command delivered three times is executed once", duplicate(stage));
    act!("Act 6: a sensor falls silent and returns", silence(stage));
    act!("Act 7: the upstream link is cut for 20 s, and nothing is lost", outage::play(stage));
    if failed.is_empty() {
        let all = if wanted.len() == 7 { "seven".to_owned() } else { wanted.len().to_string() };
        stage.view.say(&format!("All {all} acts ended as they should."));
    } else {
        let (played, which) = (wanted.len(), failed.join("; "));
        stage.view.say(&format!("{} of {played} acts did not end as they should: {which}", failed.len()));
    }
    failed.len()
}

async fn telemetry(stage: &Stage) -> Result<()> {
    let current = async || {
        for spec in seed() {
            let item = stage.item(spec.id).await?;
            if spec.metrics.iter().any(|metric| !item["last_telemetry"][metric.name].is_string()) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    stage.until("the table has readings of all five devices", MINUTE, current).await?;
    stage.view.say("All five devices are in the table with their newest readings.");
    let pressure = stage.device(PRESSURE)?;
    pressure.surge(true);
    stage.view.say("The pressure on line 7 rises above its alert threshold of 150 psi.");
    let warned = stage.until_status(PRESSURE, "warning", MINUTE).await;
    pressure.surge(false);
    warned?;
    let item = stage.item(PRESSURE).await?;
    stage
        .view
        .say(&format!("The table says warning: {}.", item["status_reason"].as_str().unwrap_or("no reason given")));
    Ok(())
}

async fn recalibration(stage: &Stage) -> Result<()> {
    stage.view.say("First the pressure has to come down and stay there for 15 s; then the warning ends.");
    stage.until_status(PRESSURE, "online", MINUTE * 2).await?;
    let sent = stage.send(PRESSURE, "recalibrate", json!({}), now()).await?;
    let record = stage.outcome(&sent, "succeeded", OUTCOME).await?;
    let id = record["command_id"].as_str().context("the result has no command_id")?;
    let executions = stage.device(PRESSURE)?.log().executions(id);
    ensure!(executions == 1, "the sensor executed it {executions} times");
    stage.undone(PRESSURE).await?;
    stage.view.say("The sensor did it once; the result came back, and the table shows the new calibration date.");
    Ok(())
}

async fn undone(stage: &Stage) -> Result<()> {
    let sent = stage.send(TEMPERATURE, "recalibrate", json!({}), now()).await?;
    let date = &stage.item(TEMPERATURE).await?["configuration"]["calibration_date"];
    stage
        .view
        .say(&format!("For now the table claims that it was calibrated on {date}. The sensor sees it otherwise."));
    let record = stage.outcome(&sent, "failed", OUTCOME).await?;
    ensure!(record["reason"] == "DEVICE_ERROR", "the reason is {} instead of DEVICE_ERROR", record["reason"]);
    stage.undone(TEMPERATURE).await?;
    let date = &stage.item(TEMPERATURE).await?["configuration"]["calibration_date"];
    stage.view.say(&format!("It refused ({}); the table says {date} again, as the sensor does.", record["message"]));

    let before = stage.device(VALVE)?.log();
    let sent = stage.send(VALVE, "update_config", json!({"emergency_shutoff": "disabled"}), now()).await?;
    let record = stage.outcome(&sent, "rejected", OUTCOME).await?;
    ensure!(record["reason"] == "INVALID_PARAMETERS", "the reason is {}", record["reason"]);
    stage.undone(VALVE).await?;
    ensure!(stage.device(VALVE)?.log().executed == before.executed, "the valve executed something");
    stage
        .view
        .say("No command may switch off the emergency shut-off: rejected at the edge, and the table says enabled.");
    Ok(())
}

async fn stale(stage: &Stage) -> Result<()> {
    let before = stage.device(VALVE)?.log();
    let ten_minutes_ago = now().saturating_sub(MINUTE * 10);
    stage.view.say("A reboot that was asked for ten minutes ago arrives only now.");
    let sent = stage.send(VALVE, "reboot", json!({}), ten_minutes_ago).await?;
    stage.outcome(&sent, "expired", OUTCOME).await?;
    let after = stage.device(VALVE)?.log();
    ensure!(after.executed == before.executed && after.boot_count == before.boot_count, "the valve executed it");
    stage.until_status(VALVE, "online", OUTCOME).await?;
    stage.view.say("It is too old: expired, and the valve never heard of it.");
    Ok(())
}

async fn duplicate(stage: &Stage) -> Result<()> {
    let before = stage.device(VALVE)?.log().boot_count;
    let sent = stage.send(VALVE, "reboot", json!({}), now()).await?;
    stage.agent.publish(&sent).await;
    let record = stage.outcome(&sent, "succeeded", OUTCOME).await?;
    stage.agent.publish(&sent).await;
    stage.view.say("The broker delivered it twice, and once more after it was done.");
    // What the third delivery would do, it does at once; give it the time a reboot takes, and some.
    sleep(Duration::from_secs(3)).await;
    let log = stage.device(VALVE)?.log();
    let id = record["command_id"].as_str().context("the result has no command_id")?;
    ensure!(log.executions(id) == 1, "the valve executed it {} times", log.executions(id));
    ensure!(log.boot_count == before + 1, "the valve started {} times", log.boot_count - before);
    stage.until_status(VALVE, "online", OUTCOME).await?;
    stage.view.say("The valve rebooted once.");
    Ok(())
}

async fn silence(stage: &Stage) -> Result<()> {
    let sensor = stage.device(VIBRATION)?;
    stage.until_status(VIBRATION, "online", OUTCOME).await?;
    sensor.silence(true);
    stage.view.say("The vibration sensor stops reporting; after 15 s without a word it counts as offline.");
    let gone = stage.until_status(VIBRATION, "offline", MINUTE).await;
    sensor.silence(false);
    gone?;
    stage.view.say("The table says offline. Now it measures again.");
    match stage.until_status(VIBRATION, "online", MINUTE).await {
        Ok(()) => Ok(()),
        Err(error) => bail!("it did not come back: {error:#}"),
    }
}

//! The acts: what a newcomer should see happen, each with its check.
//!
//! What is read is read, and what is sent is sent, through the tools by MCP, as an agent of an operator or a senior operator
//! would. Beside them stand only: the devices' own logs, by which the acts judge from outside; the daemon's `status`, which
//! is a technician's; and [`crate::seed_tool`], for what no tool of today does: commands that are late by their own word,
//! that come twice, or whose success the table was told in advance.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tokio::time::Instant;

use crate::devices::{PRESSURE, VIBRATION, seed};
use crate::stage::Stage;

mod commands;
mod guards;
mod outage;

/// How long the upstream link is cut.
pub const OUTAGE: Duration = Duration::from_secs(20);
/// How long a command may take to its outcome, with the demo's quick devices.
const OUTCOME: Duration = Duration::from_secs(20);
const MINUTE: Duration = Duration::from_secs(60);

/// Plays every act; answers how many did not end as they should.
pub async fn play(stage: &Stage) -> usize {
    play_some(stage, &[1, 2, 3, 4, 5, 6, 7, 8]).await
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
    act!("Act 2: a recalibration, by an operator's agent", commands::recalibration(stage));
    act!("Act 3: a command that fails is told as failed, and what was claimed is undone", commands::failed(stage));
    act!("Act 4: a stale command is refused", commands::stale(stage));
    act!("Act 5: a command delivered three times is executed once", commands::duplicate(stage));
    act!("Act 6: a sensor falls silent and returns", silence(stage));
    act!("Act 7: the upstream link is cut for 20 s, and nothing is lost", outage::play(stage));
    act!("Act 8: what an agent may not do", guards::play(stage));
    if failed.is_empty() {
        let all = if wanted.len() == 8 { "eight".to_owned() } else { wanted.len().to_string() };
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
            let told = stage.told(spec.id).await?;
            if spec.metrics.iter().any(|metric| !told["last_telemetry"][metric.name].is_string()) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    stage.until("the tools tell readings of all five devices", MINUTE, current).await?;
    let listed = stage.tools.operator.call("list_devices", json!({"location": "factory-floor-1/*"})).await?.told()?;
    let listed: Vec<_> =
        listed["devices"].as_array().into_iter().flatten().map(|told| told["device_id"].clone()).collect();
    let missing = seed()
        .into_iter()
        .find(|spec| spec.location.starts_with("factory-floor-1/") && !listed.contains(&json!(spec.id)));
    ensure!(missing.is_none(), "list_devices tells {listed:?} of floor 1");
    stage
        .view
        .say("get_device_status tells the newest readings of all five devices, list_devices what stands on floor 1.");
    let pressure = stage.device(PRESSURE)?;
    pressure.surge(true);
    stage.view.say("The pressure on line 7 rises above its alert threshold of 150 psi.");
    let warned = stage.until_status(PRESSURE, "warning", MINUTE).await;
    pressure.surge(false);
    warned?;
    let told = stage.told(PRESSURE).await?;
    stage.view.say(&format!(
        "get_device_status tells a warning: {}.",
        told["status_reason"].as_str().unwrap_or("no reason given")
    ));
    Ok(())
}

async fn silence(stage: &Stage) -> Result<()> {
    let sensor = stage.device(VIBRATION)?;
    stage.until_status(VIBRATION, "online", OUTCOME).await?;
    sensor.silence(true);
    stage.view.say("The vibration sensor stops reporting; after 15 s without a word it counts as offline.");
    let gone = offline(stage).await;
    sensor.silence(false);
    stage
        .view
        .say(&format!("It is told as offline, and a command for it is not sent: {} Now it measures again.", gone?));
    match stage.until_status(VIBRATION, "online", MINUTE).await {
        Ok(()) => Ok(()),
        Err(error) => bail!("it did not come back: {error:#}"),
    }
}

/// Waits until the sensor counts as offline, and tries to command it; answers why it cannot be.
async fn offline(stage: &Stage) -> Result<String> {
    stage.until_status(VIBRATION, "offline", MINUTE).await?;
    let refusal = stage.send(&stage.tools.operator, VIBRATION, "recalibrate", json!({})).await?.refused()?;
    ensure!(refusal.code() == Some("DEVICE_OFFLINE"), "the refusal is {refusal}");
    Ok(refusal.text)
}

//! The guards: who may do what, no command without a look, and no batch that nobody meant.
//!
//! It is to be played at most once in five minutes: the senior operator's agent must not have read the status of the other
//! floor's gateway before.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::devices::{GATEWAY, PRESSURE, TEMPERATURE, VALVE, VIBRATION};
use crate::mcp::{Answer, Refusal};
use crate::stage::Stage;

/// How the policies' denials begin, here as in AgentCore.
const DENIED: &str = "Tool Execution Denied";
/// Recalibrations that one operator may send at once (`floorgate-fleet`'s default budget).
const RECALIBRATIONS: usize = 5;

/// The act.
pub(super) async fn play(stage: &Stage) -> Result<()> {
    reboots_are_for_seniors(stage).await?;
    no_command_without_a_look(stage).await?;
    batch(stage).await
}

async fn reboots_are_for_seniors(stage: &Stage) -> Result<()> {
    let before = stage.device(VALVE)?.log();
    let refusal = stage.send(&stage.tools.operator, VALVE, "reboot", json!({})).await?.refused()?;
    denied(&refusal)?;
    ensure!(stage.executed_since(VALVE, &before).await?.is_empty(), "the valve executed it all the same");
    stage.view.say(&format!("An operator may not: {}", refusal.text));
    Ok(())
}

async fn no_command_without_a_look(stage: &Stage) -> Result<()> {
    let before = stage.device(GATEWAY)?.log();
    let agent = &stage.tools.senior;
    stage.view.say("A senior operator's agent asks for the same of a device that it has not looked at.");
    let reboot = json!({"device_id": GATEWAY, "command": "reboot"});
    let refusal = agent.call("send_command", reboot).await?.refused()?;
    denied(&refusal)?;
    ensure!(refusal.text.contains("read it first"), "the denial does not say what to do: {refusal}");
    stage.view.say(&format!("Not so either: {}", refusal.text));
    let answer = stage.send(agent, GATEWAY, "reboot", json!({})).await?;
    let told = stage.ended_as(answer, "succeeded").await?;
    let executed = stage.executed_since(GATEWAY, &before).await?;
    ensure!(executed.len() == 1 && told["command_id"] == executed[0].command_id, "it executed {executed:?}");
    stage.view.say("It looks, asks again, and the device reboots: once, for the one that was permitted.");
    Ok(())
}

async fn batch(stage: &Stage) -> Result<()> {
    let sensors = [PRESSURE, TEMPERATURE, VIBRATION];
    let agent = &stage.tools.hasty;
    stage.view.say("Another operator's agent recalibrates every sensor, and then every sensor again.");
    let mut answers = Vec::new();
    for _ in 0..2 {
        let send = |sensor| stage.send(agent, sensor, "recalibrate", json!({}));
        let [first, second, third] = sensors;
        answers.extend(<[Answer; 3]>::from(tokio::try_join!(send(first), send(second), send(third))?));
    }
    let (mut sent, mut refusals) = (0, Vec::new());
    for answer in answers {
        match answer {
            Answer::Told(told) => {
                ensure!(told["delivered"] == true, "it was not delivered: {told}");
                sent += 1;
            }
            Answer::Refused(refusal) => refusals.push(refusal),
        }
    }
    ensure!(sent == RECALIBRATIONS, "{sent} recalibrations were sent instead of {RECALIBRATIONS}: {refusals:?}");
    let refusal = refusals.first().context("none was refused")?;
    ensure!(refusal.code() == Some("RATE_LIMITED"), "the refusal is {refusal}");
    ensure!(refusal.fields["retry_after_seconds"].is_u64(), "nobody says when to try again: {:?}", refusal.fields);
    stage.view.say(&format!("{sent} are done, the next is not sent: {}", refusal.text));
    Ok(())
}

fn denied(refusal: &Refusal) -> Result<()> {
    ensure!(refusal.code().is_none() && refusal.text.contains(DENIED), "that is no denial of the policies: {refusal}");
    Ok(())
}

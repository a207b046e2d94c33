//! Commands: one that succeeds, some that fail, one that is late, one that comes three times.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::time::sleep;

use super::{MINUTE, OUTCOME};
use crate::devices::{PRESSURE, TEMPERATURE, VALVE, now};
use crate::issuer::OPERATOR;
use crate::stage::Stage;

/// A reboot that waits longer than this at the broker is late.
const EXPIRES_SECONDS: u64 = 3;
/// So much later it arrives at the earliest: the clock of a gateway in a virtual machine may be a little behind.
const LATE_SECONDS: u64 = 3;
/// Time for the gateway to take up a third delivery, and for a reboot.
const REBOOTED_AGAIN: Duration = Duration::from_secs(3);

pub(super) async fn recalibration(stage: &Stage) -> Result<()> {
    let tools = stage.tools.operator.tools().await?;
    stage.view.say(&format!("An operator's agent asks what it can call: {}.", tools.join(", ")));
    ensure!(tools.iter().any(|tool| tool == "send_command"), "an operator sees no send_command");
    stage.view.say("First the pressure has to come down and stay there for 15 s; then the warning ends.");
    stage.until_status(PRESSURE, "online", MINUTE * 2).await?;
    let answer = stage.send(&stage.tools.operator, PRESSURE, "recalibrate", json!({})).await?;
    let told = stage.ended_as(answer, "succeeded").await?;
    let id = told["command_id"].as_str().context("the answer has no command_id")?;
    let executions = stage.device(PRESSURE)?.log().executions(id);
    ensure!(executions == 1, "the sensor executed it {executions} times");
    let issuer = told["issuer"].as_str().unwrap_or_default();
    ensure!(issuer == OPERATOR.issuer(), "the command's issuer is {issuer:?}");
    stage.undone(PRESSURE).await?;
    stage
        .view
        .say(&format!("The sensor did it once, for {issuer}; the tools tell that, and the new calibration date."));
    Ok(())
}

pub(super) async fn failed(stage: &Stage) -> Result<()> {
    let answer = stage.send(&stage.tools.operator, TEMPERATURE, "recalibrate", json!({})).await?;
    let told = stage.ended_as(answer, "failed").await?;
    ensure!(told["reason"] == "DEVICE_ERROR", "the reason is {} instead of DEVICE_ERROR", told["reason"]);
    stage.undone(TEMPERATURE).await?;
    stage
        .view
        .say(&format!("The sensor refused ({}); the agent is told so, and nothing else was claimed.", told["message"]));

    let shut_off = json!({"emergency_shutoff": "disabled"});
    let before = stage.device(VALVE)?.log();
    let answer = stage.send(&stage.tools.operator, VALVE, "update_config", shut_off.clone()).await?;
    let refusal = answer.refused()?;
    ensure!(refusal.code() == Some("INVALID_PARAMETERS"), "the refusal is {refusal}");
    stage
        .view
        .say(&format!("No command may switch off the emergency shut-off. The tool sends nothing: {}.", refusal.text));

    // The seed's tool writes the wish into the table as if it were so. Only it can show that the gateway undoes that.
    let sent = stage.send_as_the_seed(TEMPERATURE, "recalibrate", json!({}), now()).await?;
    let date = &stage.told(TEMPERATURE).await?["configuration"]["calibration_date"];
    stage
        .view
        .say(&format!("For now the table claims that it was calibrated on {date}. The sensor sees it otherwise."));
    let record = stage.outcome(&sent, "failed", OUTCOME).await?;
    ensure!(record["reason"] == "DEVICE_ERROR", "the reason is {} instead of DEVICE_ERROR", record["reason"]);
    stage.undone(TEMPERATURE).await?;
    let date = &stage.told(TEMPERATURE).await?["configuration"]["calibration_date"];
    stage.view.say(&format!("It refused ({}); the date is {date} again, as the sensor has it.", record["message"]));

    let sent = stage.send_as_the_seed(VALVE, "update_config", shut_off, now()).await?;
    let record = stage.outcome(&sent, "rejected", OUTCOME).await?;
    ensure!(record["reason"] == "INVALID_PARAMETERS", "the reason is {}", record["reason"]);
    stage.undone(VALVE).await?;
    ensure!(stage.executed_since(VALVE, &before).await?.is_empty(), "the valve executed something");
    stage
        .view
        .say("This tool does not look; the gateway does: rejected at the edge, and the shut-off is enabled as it was.");
    Ok(())
}

pub(super) async fn stale(stage: &Stage) -> Result<()> {
    let before = stage.device(VALVE)?.log();
    late(stage).await?;
    stage.view.say("A reboot that says itself that it was asked for ten minutes ago arrives only now.");
    // The tools stamp a command with the time of now, so one that claims another time has to come from elsewhere.
    let ten_minutes_ago = now().saturating_sub(MINUTE * 10);
    let sent = stage.send_as_the_seed(VALVE, "reboot", json!({}), ten_minutes_ago).await?;
    stage.outcome(&sent, "expired", OUTCOME).await?;
    let executed = stage.executed_since(VALVE, &before).await?;
    ensure!(executed.is_empty(), "the valve executed {executed:?}");
    stage.until_status(VALVE, "online", OUTCOME).await?;
    stage.view.say("It is too old: expired, and the valve never heard of either.");
    Ok(())
}

/// A reboot that waits at the broker until it is too late.
async fn late(stage: &Stage) -> Result<()> {
    let agent = &stage.tools.senior;
    agent.call("get_device_status", json!({"device_id": VALVE})).await?.told()?;
    stage.cloud_wire.cut().await;
    stage.view.say(&format!(
        "The gateway's link to the broker is cut. A senior operator's agent asks for a reboot that expires in {EXPIRES_SECONDS} s."
    ));
    let reboot = json!({
        "device_id": VALVE, "command": "reboot", "expires_in_seconds": EXPIRES_SECONDS, "wait_seconds": EXPIRES_SECONDS + LATE_SECONDS,
    });
    let answer = agent.call("send_command", reboot).await;
    // Mended whatever happened, so that what follows is not judged by this.
    stage.cloud_wire.restore().await.context("cannot mend the wire to the broker")?;
    let told = answer?.told()?;
    ensure!(told["delivered"] == false && told["final"] == false, "the tools claim to know what nobody can: {told}");
    stage
        .view
        .say(&format!("No gateway answers, and the agent is told: {}.", told["message"].as_str().unwrap_or("nothing")));
    stage.view.say("The link is back; the broker delivers what it kept.");
    let id = told["command_id"].as_str().context("the answer has no command_id")?;
    let question = json!({"device_id": VALVE, "command_id": id});
    let expired = async || {
        let told = agent.call("get_command_status", question.clone()).await?.told()?;
        ensure!(told["final"] != true || told["status"] == "expired", "it ended as {}", told["status"]);
        Ok((told["status"] == "expired").then_some(()))
    };
    stage.until("get_command_status tells that it expired", MINUTE, expired).await
}

pub(super) async fn duplicate(stage: &Stage) -> Result<()> {
    let before = stage.device(VALVE)?.log();
    let agent = &stage.tools.senior;
    agent.call("get_device_status", json!({"device_id": VALVE})).await?.told()?;
    stage.view.say("A senior operator's agent asks for a reboot, with an idempotency key.");
    let key = format!("demo-{}", now());
    let reboot = json!({"device_id": VALVE, "command": "reboot", "idempotency_key": key, "wait_seconds": 60});
    let passed = stage.seed_tool.commands_to(VALVE).len();
    // No tool delivers twice, but brokers may: the same bytes once more, as soon as they passed the first time.
    let again = async {
        let next = async || Ok(stage.seed_tool.commands_to(VALVE).into_iter().nth(passed));
        let (topic, payload) = stage.until("the command passes the cloud's broker", OUTCOME, next).await?;
        stage.seed_tool.publish(topic.clone(), payload.clone()).await;
        anyhow::Ok((topic, payload))
    };
    let (answer, (topic, payload)) = tokio::try_join!(agent.call("send_command", reboot.clone()), again)?;
    let told = stage.ended_as(answer, "succeeded").await?;
    stage.seed_tool.publish(topic, payload).await;
    stage.view.say("The broker delivered it twice, and once more after it was done.");
    // What the third delivery would do, it does at once; give it the time a reboot takes, and some.
    sleep(REBOOTED_AGAIN).await;
    let repeat = agent.call("send_command", reboot).await?.told()?;
    ensure!(
        repeat["repeated"] == true && repeat["command_id"] == told["command_id"],
        "a repeat is a new command: {repeat}"
    );
    stage.view.say("The agent asks again with the same key, and gets the first one's outcome.");
    let executed = stage.executed_since(VALVE, &before).await?;
    let once = executed.len() == 1 && told["command_id"] == executed[0].command_id;
    ensure!(once, "the valve executed {executed:?}");
    let log = stage.device(VALVE)?.log();
    let (boots, orders) = (log.boot_count - before.boot_count, log.executed.len() - before.executed.len());
    ensure!(usize::try_from(boots)? <= orders, "the valve started {boots} times for {orders} orders");
    stage.until_status(VALVE, "online", OUTCOME).await?;
    stage.view.say("The valve rebooted once.");
    Ok(())
}

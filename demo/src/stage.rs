//! Everything that runs, and the few ways in which the acts look at it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use floorgate_model::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::daemon::Daemon;
use crate::devices::{Device, Executed, Fleet, Log};
use crate::dynamo::{Client, DEVICES};
use crate::issuer::{YOUR_OPERATOR, YOUR_SENIOR};
use crate::mcp::{self, Answer};
use crate::proxy::Proxy;
use crate::seed_tool::{SeedTool, Sent};
use crate::tools::Tools;
use crate::view::View;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long `send_command` waits for a command to end, seconds; the longest it takes.
const WAIT_SECONDS: u64 = 60;
/// Samples in one answer of `get_telemetry_history`, the most it gives.
const SAMPLES: u64 = 2_000;

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    /// The table, from the cloud's side: reachable also while the gateway's wire is cut. For the view; the acts ask the tools.
    pub table: Client,
    /// The tools, and the agents that call them by MCP.
    pub tools: Tools,
    /// The tool of before, which the gateway has to put right.
    pub seed_tool: SeedTool,
    /// The devices.
    pub fleet: Fleet,
    /// The daemon.
    pub daemon: Daemon,
    /// The gateway's wire to the cloud's broker.
    pub cloud_wire: Proxy,
    /// The gateway's wire to the table.
    pub table_wire: Proxy,
    /// What the newcomer sees.
    pub view: View,
}

impl Stage {
    /// One of the seed's devices.
    ///
    /// # Errors
    /// There is none of this id.
    pub fn device(&self, id: &str) -> Result<&Device> {
        self.fleet.device(id).with_context(|| format!("no device {id} is simulated"))
    }

    /// What `get_device_status` tells an operator of a device, null while the tools do not know it.
    ///
    /// # Errors
    /// The tools do not answer, or refuse.
    pub async fn told(&self, id: &str) -> Result<Value> {
        match self.tools.operator.call("get_device_status", json!({"device_id": id})).await? {
            Answer::Refused(refusal) if refusal.code() == Some("UNKNOWN_DEVICE") => Ok(Value::Null),
            answer => answer.told(),
        }
    }

    /// What `floorgate status --json` says.
    ///
    /// # Errors
    /// It fails.
    pub async fn status(&self) -> Result<Value> {
        self.daemon.ask("status").await
    }

    /// Why the daemon or the tools' server ended, if one did.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.daemon.ended().or_else(|| self.tools.ended())
    }

    /// Looks every quarter of a second until `look` finds something.
    ///
    /// # Errors
    /// It found nothing within `limit`, or a program ended.
    pub async fn until<T>(&self, what: &str, limit: Duration, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            let looked = look().await;
            if let Ok(Some(found)) = looked {
                return Ok(found);
            }
            if let Some(reason) = self.ended() {
                bail!(reason);
            }
            if Instant::now() >= end {
                let reason = looked.err().map_or_else(String::new, |error| format!(" ({error:#})"));
                bail!("expected within {} s, and did not happen: {what}{reason}", limit.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the tools tell this status of a device.
    ///
    /// # Errors
    /// It did not within `limit`.
    pub async fn until_status(&self, id: &str, status: &str, limit: Duration) -> Result<()> {
        let shown = async || Ok((self.told(id).await?["status"] == status).then_some(()));
        self.until(&format!("the tools tell that {id} is {status}"), limit, shown).await
    }

    /// Sends a command as an agent does by MCP: reads the status, without which no command is permitted, sends, and waits
    /// for the end. Says so.
    ///
    /// # Errors
    /// The tools do not answer, or refuse the status; a refusal of the command is an [`Answer`].
    pub async fn send(&self, agent: &mcp::Client, device: &str, command: &str, parameters: Value) -> Result<Answer> {
        self.view
            .say(&format!("The agent reads the status of {device} and calls send_command: `{command}` {parameters}."));
        agent.call("get_device_status", json!({"device_id": device})).await?.told()?;
        let arguments =
            json!({"device_id": device, "command": command, "parameters": parameters, "wait_seconds": WAIT_SECONDS});
        agent.call("send_command", arguments).await
    }

    /// Sees that a command was delivered and ended with `status`, as `send_command` told and `get_device_status` does.
    ///
    /// # Errors
    /// It was refused, or ended otherwise.
    pub async fn ended_as(&self, answer: Answer, status: &str) -> Result<Value> {
        let told = answer.told()?;
        if told["status"] != status || told["delivered"] != true {
            bail!("the command ended as {} instead of {status}: {told}", told["status"]);
        }
        let id = told["device_id"].as_str().context("the answer names no device")?;
        self.until_last_command(id, status).await?;
        Ok(told)
    }

    /// Sends a command as the seed's tool does, and says so. `at` is the time it claims.
    ///
    /// # Errors
    /// The table refuses the optimistic update.
    pub async fn send_as_the_seed(
        &self,
        device: &str,
        command: &str,
        parameters: Value,
        at: Timestamp,
    ) -> Result<Sent> {
        let shown = parameters.to_string();
        let sent = self.seed_tool.send(device, command, parameters, at).await?;
        self.view
            .say(&format!("The seed's tool sends `{command}` {shown} to {device}: first to the table, then by MQTT."));
        Ok(sent)
    }

    /// Waits for the terminal record of a command of the seed's tool on `devices/{id}/commands/result`, and until the
    /// device's `last_command` has the same status; answers the record.
    ///
    /// # Errors
    /// Another status, or none within `limit`.
    pub async fn outcome(&self, sent: &Sent, status: &str, limit: Duration) -> Result<Value> {
        let terminal = |record: &Value| !matches!(record["status"].as_str(), Some("created" | "in_progress") | None);
        let ends = || self.seed_tool.results(sent).into_iter().filter(terminal).collect::<Vec<_>>();
        let what = format!("a result for {} on its topic", sent.device);
        let record = self.until(&what, limit, async || Ok(ends().into_iter().next())).await?;
        if record["status"] != status {
            bail!("the command ended as {} instead of {status}: {record}", record["status"]);
        }
        self.until_last_command(&sent.device, status).await?;
        Ok(record)
    }

    async fn until_last_command(&self, id: &str, status: &str) -> Result<()> {
        let shown = async || Ok((self.told(id).await?["last_command"]["status"] == status).then_some(()));
        self.until(&format!("the last_command of {id} is {status}"), Duration::from_secs(10), shown).await
    }

    /// What a device has executed since `before`, but for whoever tries the demo while the acts play.
    ///
    /// # Errors
    /// The tools do not answer, or there is no such device.
    pub async fn executed_since(&self, id: &str, before: &Log) -> Result<Vec<Executed>> {
        let visitors = [YOUR_OPERATOR, YOUR_SENIOR].map(|person| person.issuer());
        let mut ours = Vec::new();
        for executed in self.device(id)?.log().executed {
            if before.executed.contains(&executed) {
                continue;
            }
            let question = json!({"device_id": id, "command_id": executed.command_id});
            let issuer = match self.tools.operator.call("get_command_status", question).await? {
                Answer::Told(told) => told["issuer"].as_str().unwrap_or_default().to_owned(),
                Answer::Refused(_) => String::new(),
            };
            if !visitors.contains(&issuer) {
                ours.push(executed);
            }
        }
        Ok(ours)
    }

    /// Waits until the tools tell the device's configuration as the device itself has it.
    ///
    /// # Errors
    /// It did not within 10 s.
    pub async fn undone(&self, id: &str) -> Result<()> {
        let real = self.device(id)?.log().configuration;
        let shown = async || {
            let shown = &self.told(id).await?["configuration"];
            let alike = real.iter().all(|(key, value)| shown[key] == *value);
            Ok((alike && shown.as_object().is_some_and(|shown| shown.len() == real.len())).then_some(()))
        };
        let what = format!("the tools tell the real configuration of {id}");
        self.until(&what, Duration::from_secs(10), shown).await
    }

    /// The times of every sample of a device within the last hour that `get_telemetry_history` tells, over all its pages.
    ///
    /// # Errors
    /// The tools do not answer, or refuse.
    pub async fn history(&self, id: &str) -> Result<BTreeSet<Timestamp>> {
        let mut times = BTreeSet::new();
        let mut arguments = json!({"device_id": id, "limit": SAMPLES});
        loop {
            let mut page = self.tools.operator.call("get_telemetry_history", arguments.clone()).await?.told()?;
            for sample in page["samples"].as_array().into_iter().flatten() {
                times.insert(Timestamp::parse(sample["timestamp"].as_str().unwrap_or_default())?);
            }
            match page["next_cursor"].take() {
                Value::Null => return Ok(times),
                cursor => arguments["cursor"] = cursor,
            }
        }
    }

    /// Reads the table and the daemon's status, and shows them.
    pub async fn refresh(&self) {
        if let Ok(devices) = self.table.scan(DEVICES).await {
            self.view.update(devices, self.status().await.ok());
        }
    }
}

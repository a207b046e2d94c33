//! Everything that runs, and the few ways in which the acts look at it.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use floorgate_model::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::agent::{Agent, Sent};
use crate::daemon::Daemon;
use crate::devices::{Device, Fleet};
use crate::dynamo::{Client, DEVICES, HISTORY};
use crate::proxy::Proxy;
use crate::view::View;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    /// The table, from the cloud's side: reachable also while the gateway's wire is cut.
    pub table: Client,
    /// The agent.
    pub agent: Agent,
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

    /// One device's item in `iot-devices`, null while there is none.
    ///
    /// # Errors
    /// The table does not answer.
    pub async fn item(&self, id: &str) -> Result<Value> {
        Ok(self.table.device(id).await?.unwrap_or(Value::Null))
    }

    /// What `floorgate status --json` says.
    ///
    /// # Errors
    /// It fails.
    pub async fn status(&self) -> Result<Value> {
        self.daemon.ask("status").await
    }

    /// Looks every quarter of a second until `look` finds something.
    ///
    /// # Errors
    /// It found nothing within `limit`, or the daemon ended.
    pub async fn until<T>(&self, what: &str, limit: Duration, look: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            let looked = look().await;
            if let Ok(Some(found)) = looked {
                return Ok(found);
            }
            if let Some(reason) = self.daemon.ended() {
                bail!(reason);
            }
            if Instant::now() >= end {
                let reason = looked.err().map_or_else(String::new, |error| format!(" ({error:#})"));
                bail!("expected within {} s, and did not happen: {what}{reason}", limit.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until a device shows this status in the table.
    ///
    /// # Errors
    /// It did not within `limit`.
    pub async fn until_status(&self, id: &str, status: &str, limit: Duration) -> Result<()> {
        let shown = async || Ok((self.item(id).await?["status"] == status).then_some(()));
        self.until(&format!("the table shows {id} {status}"), limit, shown).await
    }

    /// Sends a command as the agent would, and says so.
    ///
    /// # Errors
    /// The table refuses the optimistic update.
    pub async fn send(&self, device: &str, command: &str, parameters: Value, at: Timestamp) -> Result<Sent> {
        let shown = parameters.to_string();
        let sent = self.agent.send(device, command, parameters, at).await?;
        self.view.say(&format!("The agent sends `{command}` {shown} to {device}: first to the table, then by MQTT."));
        Ok(sent)
    }

    /// Waits for the terminal record of a command on `devices/{id}/commands/result`, and for the same status in the
    /// table's `last_command`; answers the record.
    ///
    /// # Errors
    /// Another status, or none within `limit`.
    pub async fn outcome(&self, sent: &Sent, status: &str, limit: Duration) -> Result<Value> {
        let terminal = |record: &Value| !matches!(record["status"].as_str(), Some("created" | "in_progress") | None);
        let ends = || self.agent.results(sent).into_iter().filter(terminal).collect::<Vec<_>>();
        let what = format!("a result for {} on its topic", sent.device);
        let record = self.until(&what, limit, async || Ok(ends().into_iter().next())).await?;
        if record["status"] != status {
            bail!("the command ended as {} instead of {status}: {record}", record["status"]);
        }
        let what = format!("the table's last_command of {} says {status}", sent.device);
        let shown = async || {
            let item = self.item(&sent.device).await?;
            Ok((item["last_command"]["status"] == status).then_some(()))
        };
        self.until(&what, Duration::from_secs(10), shown).await?;
        Ok(record)
    }

    /// Waits until the table shows the device's configuration as the device itself has it.
    ///
    /// # Errors
    /// It did not within 10 s.
    pub async fn undone(&self, id: &str) -> Result<()> {
        let real = self.device(id)?.log().configuration;
        let shown = async || {
            let shown = &self.item(id).await?["configuration"];
            let alike = real.iter().all(|(key, value)| shown[key] == *value);
            Ok((alike && shown.as_object().is_some_and(|shown| shown.len() == real.len())).then_some(()))
        };
        let what = format!("the table shows the real configuration of {id}");
        self.until(&what, Duration::from_secs(10), shown).await
    }

    /// The times of every sample of a device that is in `iot-telemetry-history`.
    ///
    /// # Errors
    /// The table does not answer.
    pub async fn history(&self, id: &str) -> Result<BTreeSet<Timestamp>> {
        let mut times = BTreeSet::new();
        for block in self.table.of_device(HISTORY, id).await? {
            let first = Timestamp::parse(block["timestamp"].as_str().unwrap_or_default())?;
            let offsets = block["offsets_ms"].as_array().into_iter().flatten().filter_map(Value::as_u64);
            times.extend(offsets.map(|ms| first.saturating_add(Duration::from_millis(ms))));
        }
        Ok(times)
    }

    /// Reads the table and the daemon's status, and shows them.
    pub async fn refresh(&self) {
        if let Ok(devices) = self.table.scan(DEVICES).await {
            self.view.update(devices, self.status().await.ok());
        }
    }
}

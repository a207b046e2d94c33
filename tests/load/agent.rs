//! The agent's side: sends commands, some twice, some with a short life, some far too late, and writes optimistically into
//! the table what it hopes they will do, as the seed's Lambda does.

use std::net::SocketAddr;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Value, json};

use super::evidence::Asked;
use super::floor::{now_ms, timestamp};
use super::{Log, Stop};
use crate::rig::client::Client;
use crate::rig::table::Items;

/// How long a `reboot` and an `update_config` live if nothing else is said; milliseconds.
const REBOOT_LIFE_MS: i64 = 120_000;
const CONFIG_LIFE_MS: i64 = 900_000;
/// Without an acknowledgement for so long, the agent connects anew and sends again.
const PATIENCE: Duration = Duration::from_secs(3);

pub struct Agent {
    pub cloud: SocketAddr,
    /// With each, whether its `update_config` may be repeated.
    pub valves: Vec<(String, bool)>,
    pub items: Items,
    pub stop: Stop,
    pub log: Log,
    pub random: fastrand::Rng,
}

struct Command {
    device: String,
    asked: Asked,
    rate: Option<String>,
    issued: String,
    payload: Value,
}

impl Agent {
    pub async fn run(mut self) {
        let name = format!("agent-{:08x}", self.random.u32(..));
        let (mut client, mut n) = (None, 0u64);
        // Held back, to be sent after a newer one.
        let mut held: Option<Command> = None;
        while !self.stop.is_set() {
            n += 1;
            let command = self.invent(n);
            let overtaken = if self.random.u8(..10) == 0 { held.replace(command) } else { Some(command) };
            let again = self.random.u8(..2) == 0;
            let mut due: Vec<Command> = overtaken.into_iter().collect();
            if self.random.u8(..4) == 0 {
                due.extend(held.take());
            }
            for command in due {
                self.deliver(&mut client, &name, &command, again).await;
            }
            tokio::time::sleep(Duration::from_millis(self.random.u64(150..350))).await;
        }
    }

    fn invent(&mut self, n: u64) -> Command {
        let (device, again) = self.valves[self.random.usize(..self.valves.len())].clone();
        let (reboot, now) = (self.random.u8(..3) > 0, now_ms());
        // One in twelve was issued an hour ago and lay somewhere.
        let issued_at = if self.random.u8(..12) == 0 { now - 3_700_000 } else { now };
        let usual = if reboot { REBOOT_LIFE_MS } else { CONFIG_LIFE_MS };
        let short = (self.random.u8(..4) == 0).then(|| self.random.i64(300..3_000));
        let expires_at = issued_at + short.unwrap_or(usual);
        let id = format!("{device}-{n}");
        let issued = timestamp(issued_at);
        let rate = (!reboot).then(|| self.random.u16(1..3_600).to_string());
        let (command, parameters) = match &rate {
            None => ("reboot", json!({})),
            Some(rate) => ("update_config", json!({"sample_rate_seconds": rate})),
        };
        let mut payload = json!({"command": command, "parameters": parameters, "timestamp": issued, "command_id": id});
        if short.is_some() {
            payload["expires_at"] = timestamp(expires_at).into();
        }
        let repeatable = again && !reboot;
        Command { device, asked: Asked { id, expires_at, repeatable }, rate, issued, payload }
    }

    /// Publishes until the broker has acknowledged it, and once more if `again`.
    async fn deliver(&self, client: &mut Option<Client>, name: &str, command: &Command, again: bool) {
        let topic = format!("devices/{}/commands", command.device);
        let mut times = if again { 2 } else { 1 };
        while times > 0 {
            if client.as_ref().is_none_or(|client| !client.is_up()) {
                *client = Client::connect_with(self.cloud, name, None).await;
            }
            let Some(connected) = client.as_ref() else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let acknowledged = connected.send(&topic, command.payload.to_string(), false).await;
            match tokio::time::timeout(PATIENCE, acknowledged).await {
                Ok(Ok(())) => times -= 1,
                _ => *client = None,
            }
        }
        self.log.lock().asked.push(command.asked.clone());
        if let Some(rate) = &command.rate {
            self.hope(&command.device, rate, &command.issued).await;
        }
    }

    /// What the seed's Lambda writes beside the command, before anything is known of it.
    async fn hope(&self, device: &str, rate: &str, issued: &str) {
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let parameters = AttributeValue::M([("sample_rate_seconds".to_owned(), text(rate))].into());
        let entry = [("command", text("update_config")), ("parameters", parameters), ("status", text("delivered"))];
        let entry = AttributeValue::M(entry.map(|(name, value)| (name.to_owned(), value)).into());
        let update = self.items.client().update_item().table_name(self.items.name("devices"));
        let update = update.key("device_id", text(device)).condition_expression("attribute_exists(configuration)");
        let update = update.update_expression(
            "SET #command = :command, last_command_at = :at, configuration.sample_rate_seconds = :rate",
        );
        let update = update.expression_attribute_names("#command", "last_command");
        let update = update.expression_attribute_values(":command", entry);
        let update =
            update.expression_attribute_values(":at", text(issued)).expression_attribute_values(":rate", text(rate));
        // Before the device has an item there is nothing to hope in.
        let _ = update.send().await;
    }
}

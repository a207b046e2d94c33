//! What stands at the cloud's broker beside the tools: the seed's own tool, and whatever delivers a message again.
//!
//! The seed's `send_command` checks nothing, writes its wish into the table as if it were so, expression by expression, and
//! then publishes. Plants have it, and the gateway has to put right what it claims. It also hears every command and every
//! execution record, so that the acts can deliver a command of somebody else's a second time, byte for byte.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use floorgate_model::Timestamp;
use rumqttc::MqttOptions;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::dynamo::{Client, DEVICES, Error, attribute};
use crate::link::{Happened, Link};

/// Commands and execution records kept, of each; beyond that the oldest goes.
const HEARD_MAX: usize = 1_000;
/// Commands on their way to the broker.
const COMMANDS_MAX: usize = 64;
const RECONNECT: Duration = Duration::from_millis(500);

/// A command as the seed's tool sent it.
#[derive(Debug, Clone)]
pub struct Sent {
    /// To which device.
    pub device: String,
    /// Its topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// Its time, as the tables spell it.
    pub issued_at: Timestamp,
}

/// A message at the cloud's broker: its topic and its bytes.
type Message = (String, Vec<u8>);

/// What was heard, oldest first.
#[derive(Debug, Default)]
struct Heard {
    commands: VecDeque<Message>,
    records: VecDeque<Value>,
}

impl Heard {
    fn note(&mut self, topic: &str, payload: &[u8]) {
        if topic.ends_with("/commands") {
            self.commands.push_back((topic.to_owned(), payload.to_vec()));
        } else if let Ok(record) = serde_json::from_slice(payload) {
            self.records.push_back(record);
        }
        if self.commands.len() > HEARD_MAX {
            self.commands.pop_front();
        }
        if self.records.len() > HEARD_MAX {
            self.records.pop_front();
        }
    }
}

/// Sends commands in the seed's way and hears what passes the broker. Dropping it ends it.
#[derive(Debug)]
pub struct SeedTool {
    table: Client,
    commands: mpsc::Sender<Message>,
    heard: Arc<Mutex<Heard>>,
    running: JoinHandle<()>,
}

impl Drop for SeedTool {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl SeedTool {
    /// One at this broker and this table.
    #[must_use]
    pub fn start(broker: SocketAddr, table: Client) -> Self {
        let heard = Arc::default();
        let (commands, waiting) = mpsc::channel(COMMANDS_MAX);
        let running = tokio::spawn(run(broker, waiting, Arc::clone(&heard)));
        Self { table, commands, heard, running }
    }

    /// What the seed's tool does: the optimistic update of the table, then the publish.
    ///
    /// # Errors
    /// The table does not answer or refuses.
    pub async fn send(&self, device: &str, command: &str, parameters: Value, at: Timestamp) -> Result<Sent, Error> {
        // As Python's `datetime.isoformat()` writes it.
        let timestamp = at.to_string().replace('Z', "000+00:00");
        self.table.call("UpdateItem", &optimistic(device, command, &parameters, &timestamp)).await?;
        let payload = json!({"command": command, "parameters": parameters, "timestamp": timestamp});
        let topic = format!("devices/{device}/commands");
        let sent = Sent { device: device.to_owned(), topic, payload: payload.to_string().into_bytes(), issued_at: at };
        self.publish(sent.topic.clone(), sent.payload.clone()).await;
        Ok(sent)
    }

    /// Publishes bytes, for instance those of a command that was sent before.
    pub async fn publish(&self, topic: String, payload: Vec<u8>) {
        // It fails only when the task is gone, and then no result will come, which the act reports.
        let _ = self.commands.send((topic, payload)).await;
    }

    /// The commands to a device that passed the broker, oldest first: their topic and their bytes.
    #[must_use]
    pub fn commands_to(&self, device: &str) -> Vec<(String, Vec<u8>)> {
        let topic = format!("devices/{device}/commands");
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.commands.iter().filter(|(heard, _)| *heard == topic).cloned().collect()
    }

    /// The execution records heard for a command, oldest first.
    #[must_use]
    pub fn results(&self, sent: &Sent) -> Vec<Value> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let at = sent.issued_at.to_string();
        let ours = |record: &&Value| record["device_id"] == *sent.device && record["issued_at"] == *at;
        heard.records.iter().filter(ours).cloned().collect()
    }
}

/// `lambda_function.py`, `handle_send_command`.
fn optimistic(device: &str, command: &str, parameters: &Value, timestamp: &str) -> Value {
    let mut sets = vec!["#last_command = :cmd".to_owned(), "#last_command_at = :ts".to_owned()];
    let mut names = json!({"#last_command": "last_command", "#last_command_at": "last_command_at"});
    let last = json!({"command": command, "parameters": parameters, "status": "delivered"});
    let mut values =
        Map::from_iter([(":cmd".to_owned(), attribute(&last)), (":ts".to_owned(), json!({"S": timestamp}))]);
    match command {
        "recalibrate" => {
            sets.push("#config.#cal_date = :cal_date".to_owned());
            names["#config"] = json!("configuration");
            names["#cal_date"] = json!("calibration_date");
            values.insert(":cal_date".to_owned(), json!({"S": timestamp.split('T').next()}));
        }
        "update_config" => {
            for (key, value) in parameters.as_object().into_iter().flatten() {
                let safe = key.replace('-', "_");
                sets.push(format!("#config.#param_{safe} = :param_{safe}"));
                names["#config"] = json!("configuration");
                names[format!("#param_{safe}")] = json!(key);
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                values.insert(format!(":param_{safe}"), json!({"S": text}));
            }
        }
        "reboot" | "set_status" => {
            sets.push("#status = :status".to_owned());
            names["#status"] = json!("status");
            let asked = parameters["status"].as_str().unwrap_or("online");
            let status = if command == "reboot" { "rebooting" } else { asked };
            values.insert(":status".to_owned(), json!({"S": status}));
        }
        _ => {}
    }
    json!({
        "TableName": DEVICES,
        "Key": {"device_id": {"S": device}},
        "UpdateExpression": format!("SET {}", sets.join(", ")),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    })
}

async fn run(broker: SocketAddr, mut waiting: mpsc::Receiver<Message>, heard: Arc<Mutex<Heard>>) {
    let client_id = format!("demo-seed-tool-{:08x}", fastrand::u32(..));
    loop {
        let options = MqttOptions::new(client_id.as_str(), broker.ip().to_string(), broker.port());
        let mut link = Link::open(options);
        let mut up = false;
        loop {
            tokio::select! {
                happened = link.next() => match happened {
                    Happened::Up => {
                        up = true;
                        link.subscribe("devices/+/commands/result");
                        link.subscribe("devices/+/commands");
                    }
                    Happened::Message(publish) => {
                        heard.lock().unwrap_or_else(PoisonError::into_inner).note(&publish.topic, &publish.payload);
                    }
                    Happened::Down => break,
                    Happened::Confirmed(_) | Happened::Other => {}
                },
                command = waiting.recv(), if up && link.has_room() => {
                    let Some((topic, payload)) = command else { return };
                    link.publish(0, &topic, payload, false);
                }
            }
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::devices::now;
    use crate::table::Table;

    #[tokio::test]
    async fn it_updates_the_table_publishes_and_hears_the_record() {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::start(dir.path()).await.unwrap();
        let client = table.client();
        client.create_tables().await.unwrap();
        let item = json!({"device_id": {"S": "D"}, "configuration": {"M": {}}, "last_telemetry": {"M": {}}});
        client.call("PutItem", &json!({"TableName": DEVICES, "Item": item})).await.unwrap();
        let broker = Broker::start().await.unwrap();
        let mut commands = broker.subscribe("devices/+/commands");
        let tool = SeedTool::start(broker.address(), client.clone());
        let patience = Duration::from_secs(20);

        for (command, parameters) in
            [("recalibrate", json!({})), ("update_config", json!({"a-b": 5})), ("reboot", json!({}))]
        {
            let sent = tool.send("D", command, parameters.clone(), now()).await.unwrap();
            let message = tokio::time::timeout(patience, commands.next()).await.unwrap().unwrap();
            let payload: Value = serde_json::from_slice(&message.payload).unwrap();
            assert_eq!((&payload["command"], &payload["parameters"]), (&json!(command), &parameters));
            assert_eq!(Timestamp::parse(payload["timestamp"].as_str().unwrap()).unwrap(), sent.issued_at);
            let record = json!({"device_id": "D", "issued_at": sent.issued_at, "status": "succeeded"});
            // It may still be subscribing: a real gateway's result comes later, so it is repeated here.
            let heard = tokio::time::timeout(patience, async {
                while tool.results(&sent).is_empty() {
                    broker.publish("devices/D/commands/result", record.to_string(), false);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            heard.await.unwrap();
        }
        // Its own commands pass the broker too; the first may have before it had subscribed.
        let passed = tool.commands_to("D");
        assert!(passed.len() >= 2 && passed.iter().all(|(topic, _)| topic == "devices/D/commands"), "{passed:?}");
        assert!(tool.commands_to("E").is_empty());
        let item = client.device("D").await.unwrap().unwrap();
        assert_eq!(item["configuration"]["a-b"], "5");
        assert_eq!(item["configuration"]["calibration_date"], now().to_string()[..10]);
        assert_eq!(item["status"], "rebooting");
        assert_eq!(item["last_command"], json!({"command": "reboot", "parameters": {}, "status": "delivered"}));
    }
}

//! A device on the floor that writes down what it physically executed.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rumqttc::{LastWill, QoS};
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

use super::client::Client;

/// What a device does with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Does it and proves it.
    Obey,
    /// Says that it failed.
    Fail,
    /// Does it and says nothing.
    Silent,
    /// Says done, proves nothing.
    SayOnly,
}

pub struct Device {
    id: String,
    sender: Arc<Client>,
    executed: Arc<Mutex<Vec<Value>>>,
    task: JoinHandle<()>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn configuration() -> Map<String, Value> {
    let configuration =
        json!({"sample_rate_seconds": "5", "alert_threshold_psi": "150", "calibration_date": "2025-06-01"});
    configuration.as_object().unwrap().clone()
}

impl Device {
    pub async fn connect(floor: SocketAddr, id: &str, behaviour: Behaviour) -> Self {
        Self::announced(floor, id, behaviour, json!({"configuration": configuration()})).await
    }

    /// A device that never tells its configuration; it must not [`Behaviour::Obey`], which would.
    pub async fn connect_bare(floor: SocketAddr, id: &str, behaviour: Behaviour) -> Self {
        assert_ne!(behaviour, Behaviour::Obey);
        Self::announced(floor, id, behaviour, json!({})).await
    }

    async fn announced(floor: SocketAddr, id: &str, behaviour: Behaviour, told: Value) -> Self {
        let topic = |leaf: &str| format!("devices/{id}/{leaf}");
        let will = LastWill::new(topic("state"), r#"{"online":false}"#, QoS::AtLeastOnce, true);
        let sender = Client::connect_with(floor, id, Some(will)).await.expect("the floor takes the device");
        let mut orders = sender;
        orders.subscribe(&topic("execute")).await;
        let state = |boot: u64, configuration: &Map<String, Value>| {
            json!({"online": true, "firmware_version": "2.4.1", "configuration": configuration, "boot_count": boot})
                .to_string()
        };
        let mut announcement = json!({"online": true, "firmware_version": "2.4.1", "boot_count": 1});
        announcement.as_object_mut().unwrap().extend(told.as_object().unwrap().clone());
        orders.publish(&topic("state"), announcement.to_string(), true).await;
        let executed = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&executed);
        let (give, take) = tokio::sync::oneshot::channel();
        let (state_topic, result_topic) = (topic("state"), topic("result"));
        let task = tokio::spawn(async move {
            let (sender, mut messages) = orders.split();
            let sender = Arc::new(sender);
            let _ = give.send(Arc::clone(&sender));
            let (mut boot, mut configuration) = (1, configuration());
            while let Some(message) = messages.recv().await {
                let order: Value = serde_json::from_slice(&message.payload).unwrap();
                log.lock().unwrap().push(order.clone());
                let answer = |status: &str, more: Value| {
                    let mut answer = json!({"command_id": order["command_id"], "status": status});
                    answer.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                    answer.to_string()
                };
                match behaviour {
                    Behaviour::Silent => continue,
                    Behaviour::Fail => {
                        let failed = answer("failed", json!({"reason": "zero offset out of tolerance"}));
                        drop(sender.send(&result_topic, failed, false).await);
                        continue;
                    }
                    Behaviour::SayOnly => {
                        drop(sender.send(&result_topic, answer("succeeded", json!({})), false).await);
                        continue;
                    }
                    Behaviour::Obey => {}
                }
                drop(sender.send(&result_topic, answer("in_progress", json!({})), false).await);
                match order["command"].as_str() {
                    Some("reboot") => boot += 1,
                    Some("update_config") => {
                        for (key, value) in order["parameters"].as_object().unwrap() {
                            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                            configuration.insert(key.clone(), text.into());
                        }
                    }
                    _ => {}
                }
                drop(sender.send(&state_topic, state(boot, &configuration), true).await);
                drop(
                    sender
                        .send(&result_topic, answer("succeeded", json!({"configuration": configuration})), false)
                        .await,
                );
            }
        });
        let sender = take.await.expect("the device runs");
        Self { id: id.to_owned(), sender, executed, task }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Orders it received, in order.
    pub fn executed(&self) -> Vec<Value> {
        self.executed.lock().unwrap().clone()
    }

    /// Sends readings and waits for the PUBACK.
    pub async fn report(&self, readings: Value) {
        self.sender.publish(&format!("devices/{}/telemetry", self.id), readings.to_string(), false).await;
    }

    /// Sends anything to one of its topics and waits for the PUBACK.
    pub async fn send(&self, leaf: &str, payload: impl Into<Vec<u8>>) {
        self.sender.publish(&format!("devices/{}/{leaf}", self.id), payload, false).await;
    }

    pub fn client(&self) -> &Client {
        &self.sender
    }
}

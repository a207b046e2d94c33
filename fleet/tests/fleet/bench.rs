//! The tools over a real DynamoDB-compatible table and a real broker, with a gateway that says what a test wants.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use floorgate_demo::broker::Broker;
use floorgate_demo::dynamo::{self, Client};
use floorgate_demo::table::Table;
use floorgate_fleet::clock::Clock;
use floorgate_fleet::fleet::Budgets;
use floorgate_fleet::link::{Link, MqttLink, MqttSettings};
use floorgate_fleet::store::{Store, Tables};
use floorgate_fleet::{Caller, Fleet, ToolError};
use floorgate_model::Timestamp;
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

/// The time at which the tests' clock stands.
pub const NOW: &str = "2026-11-22T10:00:00.000Z";
pub const PRESSURE: &str = "SENSOR-LINE7-PRESS-001";
pub const VALVE: &str = "ACTUATOR-LINE3-VALVE-001";
pub const GATEWAY: &str = "GATEWAY-FLOOR1-001";

pub struct Bench {
    pub client: Client,
    pub broker: Broker,
    pub clock: Clock,
    pub fleet: Fleet,
    pub endpoint: String,
    table: Table,
    _folder: tempfile::TempDir,
}

/// AWS's settings for a stand-in on this machine.
pub fn aws() -> SdkConfig {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
            aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
        ))
        .build_https();
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test")))
        .http_client(super::rights::watched(http))
        .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
        .build()
}

pub fn at(text: &str) -> Timestamp {
    Timestamp::parse(text).unwrap()
}

pub fn kim() -> Caller {
    Caller { subject: "sub-kim".into(), name: "kim".into(), client_id: "tests".into(), ..Caller::default() }
}

impl Bench {
    /// Tables without an item.
    pub async fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let table = Table::start(&folder.path().join("table")).await.unwrap();
        let client = table.client();
        client.create_tables().await.unwrap();
        let broker = Broker::start().await.unwrap();
        let clock = Clock::standing_at(at(NOW));
        let endpoint = table.endpoint_url();
        let fleet = fleet(&endpoint, Tables::default(), link(&broker), &clock);
        Self { client, broker, clock, fleet, endpoint, table, _folder: folder }
    }

    /// With the seed's devices, all attached to one gateway that was just heard.
    pub async fn start() -> Self {
        let bench = Self::empty().await;
        bench.device(GATEWAY, "edge_gateway", "factory-floor-1", "online").await;
        bench.device(PRESSURE, "pressure_sensor", "factory-floor-1/line-7", "online").await;
        bench.device("SENSOR-LINE7-TEMP-002", "temperature_sensor", "factory-floor-1/line-7", "warning").await;
        bench.device(VALVE, "valve_actuator", "factory-floor-1/line-3", "online").await;
        bench.device("SENSOR-LINE3-VIBR-001", "vibration_sensor", "factory-floor-1/line-3", "offline").await;
        bench
    }

    /// Another instance of the tools over the same tables.
    pub fn another_fleet(&self) -> Fleet {
        fleet(&self.endpoint, Tables::default(), link(&self.broker), &self.clock)
    }

    /// The tools without a way to the gateways.
    pub fn fleet_without_link(&self) -> Fleet {
        fleet(&self.endpoint, Tables::default(), Link::Absent, &self.clock)
    }

    pub async fn device(&self, id: &str, device_type: &str, location: &str, status: &str) {
        self.put(
            dynamo::DEVICES,
            json!({
                "device_id": id, "device_type": device_type, "location": location, "status": status,
                "firmware_version": "2.4.1", "registered_at": "2024-11-20T08:00:00.000Z", "gateway_id": GATEWAY,
                "last_seen_at": NOW, "shadow_version": 7, "admin_state": "in_service",
                "last_telemetry": {"pressure_psi": "142.7", "timestamp": NOW},
                "configuration": {"sample_rate_seconds": "5", "calibration_date": "2025-06-01"},
            }),
        )
        .await;
    }

    pub async fn put(&self, table: &str, item: Value) {
        let item: Map<_, _> =
            item.as_object().unwrap().iter().map(|(name, value)| (name.clone(), dynamo::attribute(value))).collect();
        self.client.call("PutItem", &json!({"TableName": table, "Item": item})).await.unwrap();
    }

    /// Sets (or with `null` removes) one attribute of a device.
    pub async fn set(&self, device: &str, attribute: &str, value: Value) {
        let mut body = json!({"TableName": dynamo::DEVICES, "Key": {"device_id": {"S": device}},
            "ExpressionAttributeNames": {"#a": attribute}});
        if value.is_null() {
            body["UpdateExpression"] = json!("REMOVE #a");
        } else {
            body["UpdateExpression"] = json!("SET #a = :v");
            body["ExpressionAttributeValues"] = json!({":v": dynamo::attribute(&value)});
        }
        self.client.call("UpdateItem", &body).await.unwrap();
    }

    /// The gateway was heard at the time that the clock shows.
    pub async fn heard_now(&self) {
        self.set(GATEWAY, "last_seen_at", json!(self.clock.now().to_string())).await;
    }

    pub async fn item(&self, device: &str) -> Value {
        self.client.device(device).await.unwrap().unwrap_or_default()
    }

    /// Every item of a command; budgets left out.
    pub async fn commands(&self) -> Vec<Value> {
        let mut items = self.client.scan(dynamo::COMMANDS).await.unwrap();
        items.retain(|item| item.get("command").is_some());
        items
    }

    pub async fn call(&self, tool: &str, arguments: Value) -> Result<Value, ToolError> {
        call(&self.fleet, tool, arguments).await
    }

    /// A call that has to be refused with this code.
    pub async fn refused(&self, tool: &str, arguments: Value, code: &str) -> ToolError {
        let shown = arguments.to_string();
        let error = self.call(tool, arguments).await.expect_err(&shown);
        assert_eq!(error.code, code, "{shown:.300}: {error}");
        error
    }

    /// The table is gone.
    pub async fn stop_table(&mut self) {
        self.table.stop().await;
    }
}

/// Every answer has to fit its tool's schema, whatever a test asks for.
pub async fn call(fleet: &Fleet, tool: &str, arguments: Value) -> Result<Value, ToolError> {
    let answer = fleet.call(&kim(), tool, arguments.as_object().unwrap().clone()).await;
    if let Ok(answer) = &answer {
        misfit(&floorgate_fleet::tools::find(tool).unwrap().output_schema, answer, tool);
    }
    answer
}

/// Panics where a value does not fit a schema of the few keywords that ours have, or has a member that it does not name.
pub fn misfit(schema: &Value, value: &Value, at: &str) {
    let fits = match schema["type"].as_str().unwrap_or_else(|| panic!("{at} has no type")) {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: {other}"),
    };
    assert!(fits, "{at} is no {}: {value}", schema["type"]);
    for element in value.as_array().into_iter().flatten() {
        misfit(&schema["items"], element, &format!("{at}[]"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}: {value}");
    }
    let (named, other) = (schema.get("properties"), schema.get("additionalProperties"));
    for (name, member) in value.as_object().into_iter().flatten() {
        match (named.and_then(|named| named.get(name)), other) {
            (Some(schema), _) | (None, Some(schema)) => misfit(schema, member, &format!("{at}.{name}")),
            (None, None) => assert!(named.is_none(), "{at} has an unnamed member {name}"),
        }
    }
}

pub fn link(broker: &Broker) -> Link {
    Link::Mqtt(MqttLink::new(&MqttSettings { url: broker.url(), ..MqttSettings::default() }).unwrap())
}

pub fn fleet(endpoint: &str, tables: Tables, link: Link, clock: &Clock) -> Fleet {
    Fleet::new(Store::new(&aws(), Some(endpoint), tables), link, Budgets::default(), clock.clone())
}

/// A gateway that takes every command and says what it is told to say.
pub struct Gateway {
    received: Arc<Mutex<Vec<(String, Value)>>>,
    task: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateway {
    /// Writes `word` (status, reason, …) into the item of every command.
    pub fn saying(bench: &Bench, word: Value) -> Self {
        Self::answering(bench, move |_| Some(word.clone()))
    }

    /// Takes commands and says nothing.
    pub fn silent(bench: &Bench) -> Self {
        Self::answering(bench, |_| None)
    }

    pub fn answering(bench: &Bench, word: impl Fn(&Value) -> Option<Value> + Send + 'static) -> Self {
        let mut subscription = bench.broker.subscribe("devices/+/commands");
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, client) = (Arc::clone(&received), bench.client.clone());
        let task = tokio::spawn(async move {
            while let Some(message) = subscription.next().await {
                let payload: Value = serde_json::from_slice(&message.payload).unwrap();
                log.lock().unwrap().push((message.topic.clone(), payload.clone()));
                if let Some(word) = word(&payload) {
                    let device = message.topic.split('/').nth(1).unwrap().to_owned();
                    write_word(&client, &device, payload["command_id"].as_str().unwrap(), &word).await;
                }
            }
        });
        Self { received, task }
    }

    /// Topics and payloads, in the order of their coming.
    pub fn received(&self) -> Vec<(String, Value)> {
        self.received.lock().unwrap().clone()
    }
}

/// A gateway's word, as the daemon writes it into the item.
pub async fn write_word(client: &Client, device: &str, id: &str, word: &Value) {
    let mut set = vec!["gateway_id = :gateway_id".to_owned()];
    let (mut names, mut values) = (Map::new(), Map::new());
    values.insert(":gateway_id".into(), json!({ "S": GATEWAY }));
    for (name, value) in word.as_object().unwrap() {
        set.push(format!("#{name} = :{name}"));
        names.insert(format!("#{name}"), name.clone().into());
        values.insert(format!(":{name}"), dynamo::attribute(value));
    }
    let body = json!({"TableName": dynamo::COMMANDS, "Key": {"device_id": {"S": device}, "command_id": {"S": id}},
        "UpdateExpression": format!("SET {}", set.join(", ")), "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values});
    client.call("UpdateItem", &body).await.unwrap();
}

/// Waits until `fits`, at most some seconds.
pub async fn until(what: &str, mut fits: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !fits() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn address_of(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").parse().unwrap()
}

//! The tables, read as the agent's tools read them.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::{Map, Value};

#[derive(Clone)]
pub struct Items {
    client: Client,
    prefix: Option<String>,
}

/// An attribute as JSON: numbers as numbers, the rest as it is.
pub fn to_json(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::S(text) => text.clone().into(),
        AttributeValue::N(number) => serde_json::from_str(number).unwrap(),
        AttributeValue::Bool(yes) => (*yes).into(),
        AttributeValue::L(list) => list.iter().map(to_json).collect(),
        AttributeValue::M(map) => item(map),
        _ => Value::Null,
    }
}

fn item(map: &HashMap<String, AttributeValue>) -> Value {
    Value::Object(map.iter().map(|(key, value)| (key.clone(), to_json(value))).collect::<Map<_, _>>())
}

impl Items {
    pub fn new(endpoint: &str, prefix: Option<&str>) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(aws_smithy_http_client::tls::Provider::Rustls(
                aws_smithy_http_client::tls::rustls_provider::CryptoMode::Ring,
            ))
            .build_https();
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(http)
            .build();
        Self { client: Client::from_conf(config), prefix: prefix.map(str::to_owned) }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn name(&self, table: &str) -> String {
        match (&self.prefix, table) {
            (Some(prefix), table) => format!("{prefix}-{table}"),
            (None, "history") => "iot-telemetry-history".to_owned(),
            (None, table) => format!("iot-{table}"),
        }
    }

    pub async fn device(&self, id: &str) -> Option<Value> {
        let key = AttributeValue::S(id.to_owned());
        let get = self.client.get_item().table_name(self.name("devices")).key("device_id", key).consistent_read(true);
        get.send().await.unwrap().item.as_ref().map(item)
    }

    pub async fn all_devices(&self) -> Vec<Value> {
        self.try_all_devices().await.expect("the table answers")
    }

    /// `None` while the table does not answer.
    pub async fn try_all_devices(&self) -> Option<Vec<Value>> {
        let scan = self.client.scan().table_name(self.name("devices")).send().await.ok()?;
        Some(scan.items().iter().map(item).collect())
    }

    pub async fn commands(&self, device: &str) -> Vec<Value> {
        self.query("commands", device).await
    }

    /// Blocks of a device, by time.
    pub async fn history(&self, device: &str) -> Vec<Value> {
        self.query("history", device).await
    }

    /// Every value of one metric in the history of a device, by time of the sample.
    pub async fn samples(&self, device: &str, metric: &str) -> Vec<f64> {
        let blocks = self.history(device).await;
        let values = blocks.iter().filter_map(|block| block["readings"][metric].as_array());
        values.flatten().filter_map(Value::as_f64).collect()
    }

    async fn query(&self, table: &str, device: &str) -> Vec<Value> {
        let mut found = Vec::new();
        let mut from = None;
        loop {
            let query = self.client.query().table_name(self.name(table)).consistent_read(true);
            let query = query.key_condition_expression("device_id = :d");
            let query = query.expression_attribute_values(":d", AttributeValue::S(device.to_owned()));
            let page = query.set_exclusive_start_key(from).send().await.unwrap();
            found.extend(page.items().iter().map(item));
            match page.last_evaluated_key {
                Some(key) => from = Some(key),
                None => return found,
            }
        }
    }
}

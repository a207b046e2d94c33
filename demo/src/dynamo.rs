//! A very small DynamoDB client: JSON over HTTP/1.1, one connection a request, items as plain JSON.
//!
//! It signs nothing: the embedded store (and every other emulator tried) wants the headers of a signature, not a valid
//! one. It retries nothing. For the demo and the tests only; the daemon uses AWS's own client.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::http;

/// The table of devices.
pub const DEVICES: &str = "iot-devices";
/// The table of samples.
pub const HISTORY: &str = "iot-telemetry-history";
/// The table of commands.
pub const COMMANDS: &str = "iot-commands";

/// A request that takes longer has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Why there is no answer, or not the wanted one.
#[derive(Debug)]
pub enum Error {
    /// Nobody answers at the address, or not in time.
    Unreachable(String),
    /// The store says no.
    Refused {
        /// The exception's name, `ConditionalCheckFailedException` for example.
        kind: String,
        /// Its reason.
        message: String,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable(reason) => write!(f, "the table does not answer: {reason}"),
            Self::Refused { kind, message } => write!(f, "the table refuses: {kind}: {message}"),
        }
    }
}

impl std::error::Error for Error {}

/// A client of one endpoint.
#[derive(Debug, Clone)]
pub struct Client {
    address: SocketAddr,
}

impl Client {
    /// A client of the endpoint at this address.
    #[must_use]
    pub fn to(address: SocketAddr) -> Self {
        Self { address }
    }

    /// One request: `operation` as in `X-Amz-Target`, its body and the answer in DynamoDB's own JSON.
    ///
    /// # Errors
    /// [`Error`]: nobody answers within 10 s, or the answer is an exception.
    pub async fn call(&self, operation: &str, body: &Value) -> Result<Value, Error> {
        let target = format!("DynamoDB_20120810.{operation}");
        let signature = "AWS4-HMAC-SHA256 Credential=demo/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0";
        let headers = [
            ("content-type", "application/x-amz-json-1.0"),
            ("x-amz-target", target.as_str()),
            ("x-amz-date", "20260101T000000Z"),
            ("authorization", signature),
        ];
        let answer = http::post(self.address, "/", &headers, body.to_string().into_bytes(), ANSWER_WITHIN).await;
        let answer = answer.map_err(Error::Unreachable)?;
        let said: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| Error::Unreachable(format!("the answer is no JSON: {error}")))?;
        if (200..300).contains(&answer.status) {
            return Ok(said);
        }
        let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
        let kind = text("__type").rsplit('#').next().unwrap_or_default().to_owned();
        let message = if said["message"].is_string() { text("message") } else { text("Message") };
        Err(Error::Refused { kind, message })
    }

    /// One device's item, as plain JSON; `None` if there is none.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn device(&self, device_id: &str) -> Result<Option<Value>, Error> {
        let body = json!({"TableName": DEVICES, "Key": {"device_id": {"S": device_id}}, "ConsistentRead": true});
        let answer = self.call("GetItem", &body).await?;
        Ok(answer.get("Item").map(plain_item))
    }

    /// Every item of a table.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn scan(&self, table: &str) -> Result<Vec<Value>, Error> {
        self.pages("Scan", json!({"TableName": table, "ConsistentRead": true})).await
    }

    /// Every item a query finds, over all its pages.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn query(&self, body: Value) -> Result<Vec<Value>, Error> {
        self.pages("Query", body).await
    }

    /// Every item of one device in a table whose partition key is `device_id`.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn of_device(&self, table: &str, device_id: &str) -> Result<Vec<Value>, Error> {
        let body = json!({
            "TableName": table,
            "ConsistentRead": true,
            "KeyConditionExpression": "device_id = :d",
            "ExpressionAttributeValues": {":d": {"S": device_id}},
        });
        self.query(body).await
    }

    async fn pages(&self, operation: &str, mut body: Value) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        loop {
            let mut page = self.call(operation, &body).await?;
            items.extend(page["Items"].as_array().into_iter().flatten().map(plain_item));
            match page["LastEvaluatedKey"].take() {
                Value::Null => return Ok(items),
                last => body["ExclusiveStartKey"] = last,
            }
        }
    }

    /// Makes the three tables of the contract; those that exist stay as they are.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn create_tables(&self) -> Result<(), Error> {
        let key = |name: &str, kind: &str| json!({"AttributeName": name, "KeyType": kind});
        let text = |name: &str| json!({"AttributeName": name, "AttributeType": "S"});
        let with_sort_key = |table: &str, sort: &str| {
            json!({
                "TableName": table,
                "KeySchema": [key("device_id", "HASH"), key(sort, "RANGE")],
                "AttributeDefinitions": [text("device_id"), text(sort)],
                "BillingMode": "PAY_PER_REQUEST",
            })
        };
        let devices = json!({
            "TableName": DEVICES,
            "KeySchema": [key("device_id", "HASH")],
            "AttributeDefinitions": [text("device_id"), text("location")],
            "GlobalSecondaryIndexes": [{
                "IndexName": "location-index",
                "KeySchema": [key("location", "HASH")],
                "Projection": {"ProjectionType": "ALL"},
            }],
            "BillingMode": "PAY_PER_REQUEST",
        });
        for body in [devices, with_sort_key(HISTORY, "timestamp"), with_sort_key(COMMANDS, "command_id")] {
            match self.call("CreateTable", &body).await {
                Err(Error::Refused { kind, .. }) if kind == "ResourceInUseException" => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

fn plain_item(item: &Value) -> Value {
    let fields = item.as_object().into_iter().flatten();
    Value::Object(fields.map(|(name, value)| (name.clone(), plain(value))).collect())
}

/// An attribute value (`{"S": "x"}`) as plain JSON (`"x"`).
#[must_use]
pub fn plain(attribute: &Value) -> Value {
    let Some((kind, value)) = attribute.as_object().and_then(|typed| typed.iter().next()) else { return Value::Null };
    match (kind.as_str(), value) {
        ("N", Value::String(number)) => serde_json::from_str(number).unwrap_or_else(|_| value.clone()),
        ("M", value) => plain_item(value),
        ("L", Value::Array(list)) => list.iter().map(plain).collect(),
        ("NULL", _) => Value::Null,
        _ => value.clone(),
    }
}

/// Plain JSON as an attribute value.
#[must_use]
pub fn attribute(value: &Value) -> Value {
    match value {
        Value::Null => json!({"NULL": true}),
        Value::Bool(flag) => json!({"BOOL": flag}),
        Value::Number(number) => json!({"N": number.to_string()}),
        Value::String(text) => json!({"S": text}),
        Value::Array(list) => json!({"L": list.iter().map(attribute).collect::<Vec<_>>()}),
        Value::Object(fields) => {
            let fields: Map<_, _> = fields.iter().map(|(name, value)| (name.clone(), attribute(value))).collect();
            json!({"M": fields})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_values_survive_the_way_through_attributes() {
        let value = json!({"a": [1, 2.5, null, "x"], "b": {"c": true}, "d": -1e21});
        assert_eq!(plain(&attribute(&value)), value);
    }
}

//! The effective configuration, as `floorgate check` prints it: every value that counts, defaults included, no secrets.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::quantity::{duration_text, size_text};
use super::types::{
    BrokerConfig, CloudConfig, Config, CredentialsConfig, DeviceConfig, DynamoConfig, Floor, Identity, ListenConfig,
};
use crate::mqtt::limits::Rate;

impl Config {
    /// All values in the layout of the file. Certificates, keys and passwords are shown as the paths they came from; AWS
    /// keys, which no key of the file holds, as `access_key_id` of the environment, or as `file` and `profile`.
    #[must_use]
    pub fn effective(&self) -> Value {
        let mut root = Map::new();
        root.insert("gateway".into(), json!({"id": self.gateway.id, "location": self.gateway.location}));
        root.insert("floor".into(), self.floor_values());
        root.extend(self.cloud.iter().map(|cloud| ("cloud".to_owned(), cloud_values(cloud))));
        root.extend(self.dynamodb.iter().map(|tables| ("dynamodb".to_owned(), dynamodb_values(tables))));
        root.insert("clock".into(), json!({"trust": self.clock_trust.as_str()}));
        let store = json!({
            "state_dir": path(&self.store.state_dir),
            "quota": size_text(self.store.quota_bytes),
            "commit_interval": duration_text(self.store.commit_interval),
            "history_retention": duration_text(self.store.history_retention),
        });
        root.insert("store".into(), store);
        root.insert("sync".into(), json!({"state_interval": duration_text(self.sync.state_interval)}));
        root.insert("device".into(), self.devices.iter().map(device_values).collect());
        let mut root = Value::Object(root);
        // serde_json keeps keys in order or not, as any other package of the same build wishes.
        root.sort_all_objects();
        root
    }

    /// The same as TOML that floorgate reads; AWS keys become a comment.
    ///
    /// # Errors
    /// Never for a value that came from a file.
    pub fn effective_toml(&self) -> Result<String, toml::ser::Error> {
        let mut values = self.effective();
        let mut text = String::new();
        let comment = self.dynamodb.as_ref().and_then(|tables| match &tables.credentials {
            CredentialsConfig::IotRole(_) => None,
            CredentialsConfig::Keys(keys) => Some(format!("access key {} (environment)", keys.access_key_id)),
            CredentialsConfig::SharedFile { path, profile } => {
                Some(format!("profile {profile:?} of {:?}", path.display().to_string()))
            }
        });
        if let Some(comment) = comment {
            text = format!("# AWS credentials: {comment}\n");
            if let Some(tables) = values.get_mut("dynamodb").and_then(Value::as_object_mut) {
                tables.retain(|key, _| key != "credentials");
            }
        }
        text.push_str(&toml::to_string_pretty(&values)?);
        Ok(text)
    }

    fn floor_values(&self) -> Value {
        let mut values = match &self.floor {
            Floor::Listen(listen) => listen_values(listen),
            Floor::Broker(broker) => broker_values(broker),
        };
        values.extend(limit_values(self.floor_limit));
        let [telemetry, state, execute, result] = &self.topic_templates;
        let topics = json!({"telemetry": telemetry, "state": state, "execute": execute, "result": result});
        values.insert("topics".into(), topics);
        Value::Object(values)
    }
}

fn limit_values(limit: Rate) -> [(String, Value); 2] {
    [("messages_per_second".to_owned(), limit.per_second.into()), ("message_burst".to_owned(), limit.burst.into())]
}

fn listen_values(listen: &ListenConfig) -> Map<String, Value> {
    let mut values = Map::new();
    values.insert("listen".into(), listen.address.to_string().into());
    values.insert("max_connections".into(), listen.max_connections.into());
    values.insert("packets_per_second".into(), listen.packets_per_second.into());
    if let Some(users) = &listen.users {
        values.insert("users".into(), path(&users.path));
    }
    if !listen.watchers.is_empty() {
        values.insert("watchers".into(), listen.watchers.clone().into());
    }
    if let Some(tls) = &listen.tls {
        let mut inner = identity_values(&tls.identity);
        inner.extend(tls.client_ca.iter().map(|ca| ("client_ca".to_owned(), path(&ca.path))));
        values.insert("tls".into(), Value::Object(inner));
    }
    values
}

fn broker_values(broker: &BrokerConfig) -> Map<String, Value> {
    let mut values = Map::new();
    values.insert("url".into(), broker.url.to_string().into());
    values.insert("client_id".into(), broker.client_id.clone().into());
    values.insert("keep_alive".into(), duration_text(broker.keep_alive).into());
    if let Some(login) = &broker.login {
        values.insert("username".into(), login.username.clone().into());
        values.extend(login.password.iter().map(|file| ("password_file".to_owned(), path(&file.path))));
    }
    if let Some(tls) = &broker.tls {
        values.insert("ca".into(), path(&tls.ca.path));
        values.extend(tls.identity.iter().flat_map(identity_values));
    }
    values
}

fn identity_values(identity: &Identity) -> Map<String, Value> {
    Map::from_iter([("cert".to_owned(), path(&identity.cert.path)), ("key".to_owned(), path(&identity.key.path))])
}

fn cloud_values(cloud: &CloudConfig) -> Value {
    let mut values = broker_values(&cloud.broker);
    values.extend(cloud.command_filter.iter().map(|filter| ("command_filter".to_owned(), filter.clone().into())));
    Value::Object(values)
}

fn dynamodb_values(tables: &DynamoConfig) -> Value {
    let name = |table: &Option<String>| table.clone().map_or(Value::Bool(false), Value::String);
    let mut values = Map::new();
    values.insert("region".into(), tables.region.clone().into());
    values.extend(tables.endpoint_url.iter().map(|url| ("endpoint_url".to_owned(), url.clone().into())));
    values.insert("devices_table".into(), tables.devices_table.clone().into());
    values.insert("history_table".into(), tables.history_table.clone().into());
    values.insert("commands_table".into(), name(&tables.commands_table));
    let credentials = match &tables.credentials {
        CredentialsConfig::IotRole(role) => {
            let mut inner = identity_values(&role.identity);
            inner.insert("iot_endpoint".into(), role.iot_endpoint.clone().into());
            inner.insert("role_alias".into(), role.role_alias.clone().into());
            inner.insert("ca".into(), path(&role.ca.path));
            Value::Object(inner)
        }
        CredentialsConfig::Keys(keys) => json!({"access_key_id": keys.access_key_id, "source": "environment"}),
        CredentialsConfig::SharedFile { path: file, profile } => json!({"file": path(file), "profile": profile}),
    };
    values.insert("credentials".into(), credentials);
    Value::Object(values)
}

fn device_values(device: &DeviceConfig) -> Value {
    let mut values = Map::new();
    values.insert("id".into(), device.id.as_str().into());
    values.insert("type".into(), device.device_type.clone().into());
    values.insert("location".into(), device.location.clone().into());
    values.insert("driver".into(), device.driver.as_str().into());
    values.insert("sample_rate_seconds".into(), device.sample_interval.as_secs().into());
    values.extend(device.limit.into_iter().flat_map(limit_values));
    if let Some(configuration) = &device.configuration {
        values.insert("configuration".into(), json!(configuration));
    }
    Value::Object(values)
}

/// A path as it can stand in a file; absolute, so that the output means the same elsewhere.
fn path(path: &Path) -> Value {
    let absolute = std::path::absolute(path);
    absolute.as_deref().unwrap_or(path).to_string_lossy().into_owned().into()
}

//! What a configuration that is read again changes while the gateway runs: devices and profiles, and nothing else.
//!
//! [`Config::changes`] compares what runs with what the files say now. Every other key that differs keeps its old value
//! until a restart, and is named. A gateway that is called otherwise is no change but another gateway: refused.

use std::collections::BTreeMap;
use std::fmt;

use floorgate_model::DeviceId;
use serde_json::Value;

use super::types::{BrokerConfig, Config, CredentialsConfig, DynamoConfig, Floor, Identity};

/// What differs, and what of it may change while the gateway runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Devices that are new.
    pub added: Vec<DeviceId>,
    /// Devices that are gone.
    pub removed: Vec<DeviceId>,
    /// Devices of which something differs, their type's profile included.
    pub changed: Vec<DeviceId>,
    /// Types whose profile in `profiles.d` is new, gone or different.
    pub profiles: Vec<String>,
    /// Keys that differ and count only after a restart.
    pub needs_restart: Vec<String>,
}

impl Changes {
    /// Whether devices and profiles are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty() && self.profiles.is_empty()
    }
}

/// Numbers alone: a reload may concern ten thousand devices.
impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("devices and profiles are the same");
        }
        let numbers = [
            (self.added.len(), "added"),
            (self.removed.len(), "removed"),
            (self.changed.len(), "changed"),
            (self.profiles.len(), "profiles changed"),
        ];
        let told = numbers.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
        write!(f, "{}", told.collect::<Vec<_>>().join(", "))
    }
}

impl Config {
    /// What `new` changes.
    ///
    /// # Errors
    /// One sentence if it is the configuration of another gateway.
    pub fn changes(&self, new: &Self) -> Result<Changes, String> {
        if self.gateway.id != new.gateway.id {
            let (old, id, file) = (&self.gateway.id, &new.gateway.id, new.file.display());
            return Err(format!("{file}: `gateway.id` is {id} and was {old}; another gateway needs a restart"));
        }
        let mut changes = Changes { needs_restart: needs_restart(self, new), ..Changes::default() };
        let before: BTreeMap<_, _> = self.devices.iter().map(|device| (&device.id, device)).collect();
        let after: BTreeMap<_, _> = new.devices.iter().map(|device| (&device.id, device)).collect();
        for (id, device) in &after {
            match before.get(id) {
                None => changes.added.push((*id).clone()),
                Some(known) if known != device => changes.changed.push((*id).clone()),
                Some(_) => {}
            }
        }
        changes.removed.extend(before.keys().filter(|id| !after.contains_key(*id)).map(|id| (*id).clone()));
        let types = self.profiles.keys().chain(new.profiles.keys().filter(|name| !self.profiles.contains_key(*name)));
        changes.profiles.extend(types.filter(|name| self.profiles.get(*name) != new.profiles.get(*name)).cloned());
        Ok(changes)
    }

    /// What runs once `new` is applied: its devices and profiles, and everything else as it was.
    #[must_use]
    pub fn reloaded(&self, new: Self) -> Self {
        Self { devices: new.devices, profiles: new.profiles, ..self.clone() }
    }
}

fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let (mut before, mut after) = (old.effective(), new.effective());
    for values in [&mut before, &mut after] {
        if let Some(values) = values.as_object_mut() {
            values.retain(|key, _| key != "device");
        }
    }
    let mut keys = Vec::new();
    differing("", Some(&before), Some(&after), &mut keys);
    // The same path with other bytes behind it. Links read their certificates anew for each connection, and the users of
    // the endpoint are read with the devices.
    let endpoint = |config: &Config| match &config.floor {
        Floor::Listen(listen) => listen.tls.as_ref().map(|tls| (tls.identity.clone(), tls.client_ca.clone())),
        Floor::Broker(_) => None,
    };
    let renewed = match (endpoint(old), endpoint(new)) {
        (Some((old, old_ca)), Some((new, new_ca))) => !same(&old, &new) || old_ca != new_ca,
        _ => false,
    };
    let password = |broker: Option<&BrokerConfig>| broker.and_then(|broker| broker.login.clone()?.password);
    let plant = |config: &Config| match &config.floor {
        Floor::Broker(broker) => password(Some(broker)),
        Floor::Listen(_) => None,
    };
    let cloud = |config: &Config| password(config.cloud.as_ref().map(|cloud| &cloud.broker));
    let role = |config: &Config| config.dynamodb.as_ref().and_then(role_identity);
    let other_role = matches!((role(old), role(new)), (Some(old), Some(new)) if !same(&old, &new));
    for (differs, key) in [
        (renewed, "floor.tls"),
        (plant(old) != plant(new), "floor.password_file"),
        (cloud(old) != cloud(new), "cloud.password_file"),
        (other_role, "dynamodb"),
    ] {
        if differs && !keys.iter().any(|known| known.starts_with(key)) {
            keys.push(format!("{key} (what is in its files)"));
        }
    }
    keys
}

fn role_identity(tables: &DynamoConfig) -> Option<Identity> {
    match &tables.credentials {
        CredentialsConfig::IotRole(role) => Some(role.identity.clone()),
        CredentialsConfig::Keys(_) | CredentialsConfig::SharedFile { .. } => None,
    }
}

/// Other paths show among the keys.
fn same(one: &Identity, other: &Identity) -> bool {
    one.cert.bytes == other.cert.bytes && one.key.bytes == other.key.bytes
}

fn differing(key: &str, old: Option<&Value>, new: Option<&Value>, keys: &mut Vec<String>) {
    let (Some(Value::Object(before)), Some(Value::Object(after))) = (old, new) else {
        if old != new {
            keys.push(key.to_owned());
        }
        return;
    };
    for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
        let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        differing(&path, before.get(name), after.get(name), keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    fn load(text: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("floorgate.toml");
        std::fs::write(&file, text).unwrap();
        let environment = Environment::from_pairs::<&str, &str>([]);
        let mut config = Config::load(&file, &environment, &crate::gateway::read_profiles).unwrap();
        config.file = "floorgate.toml".into();
        config
    }

    fn device(id: &str, more: &str) -> String {
        format!("[[device]]\nid = \"{id}\"\ntype = \"pressure_sensor\"\n{more}\n")
    }

    const HEAD: &str = "[gateway]\nid = \"G\"\nlocation = \"hall\"\n[store]\nstate_dir = \"/tmp/s\"\n";

    #[test]
    fn devices_that_come_change_and_go_are_told_apart_and_nothing_else_counts() {
        let old = load(&format!("{HEAD}{}{}{}", device("A", ""), device("B", ""), device("C", "")));
        let new = load(&format!(
            "{}[sync]\nstate_interval = \"3s\"\n{}{}{}",
            HEAD.replace("hall", "yard"),
            device("A", "location = \"hall\""),
            device("B", "location = \"hall\"\nsample_rate_seconds = 7"),
            device("D", "")
        ));
        let changes = old.changes(&new).unwrap();
        let ids = |devices: &[DeviceId]| devices.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(
            (ids(&changes.added), ids(&changes.removed), ids(&changes.changed)),
            ("D".into(), "C".into(), "B".into())
        );
        assert_eq!(changes.needs_restart, ["gateway.location", "sync.state_interval"]);
        assert_eq!(changes.to_string(), "1 added, 1 removed, 1 changed");
        let running = old.reloaded(new);
        assert_eq!((running.gateway.location.as_str(), running.devices.len()), ("hall", 3));
        assert_eq!(running.sync, old.sync);
        assert!(old.changes(&old.clone()).unwrap().is_empty());
    }

    #[test]
    fn another_gateway_is_refused_by_name() {
        let (old, new) = (load(HEAD), load(&HEAD.replace("\"G\"", "\"H\"")));
        let why = old.changes(&new).unwrap_err();
        assert_eq!(why, "floorgate.toml: `gateway.id` is H and was G; another gateway needs a restart");
    }
}

//! `[[device]]`: the attached devices.

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::{DeviceId, Profile, profile::BUILT_IN_TYPES};

use super::section::Section;
use super::tree::{DEVICE_LIST, Node, Spot};
use super::types::{DeviceConfig, DriverKind, GatewayConfig};

/// Most devices of one gateway.
pub const DEVICES_MAX: usize = 10_000;
/// How often a device reports unless told, seconds.
pub const SAMPLE_RATE_SECONDS: u32 = 5;

/// Reads all devices.
///
/// `complete`: the profiles could all be read, so that a type without one is the device's mistake.
pub(super) fn devices(
    root: &Section<'_>,
    gateway: Option<&GatewayConfig>,
    profiles: &BTreeMap<String, Profile>,
    complete: bool,
) -> Vec<DeviceConfig> {
    let list = root.read(DEVICE_LIST, "tables: write [[device]] before each", |node| match node {
        Node::List(list) => Some(list.as_slice()),
        _ => None,
    });
    let list = list.unwrap_or_default();
    if list.len() > DEVICES_MAX {
        root.refuse(DEVICE_LIST, format_args!("{} devices; at most {DEVICES_MAX} are allowed", list.len()));
        return Vec::new();
    }
    let mut first: BTreeMap<DeviceId, &Spot> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for spot in list {
        let section = Section::element(DEVICE_LIST, spot, root.problems());
        if !section.exists() {
            continue;
        }
        let id = id(&section, gateway, &first);
        let device = rest(&section, id.clone(), gateway, profiles, complete);
        section.finish();
        if let Some(id) = id {
            first.insert(id.clone(), spot);
            found.extend(device.map(|device| (id, device)));
        }
    }
    found.into_values().collect()
}

fn id(section: &Section<'_>, gateway: Option<&GatewayConfig>, first: &BTreeMap<DeviceId, &Spot>) -> Option<DeviceId> {
    if !section.has("id") {
        section.missing("id", "every device needs an id, such as \"SENSOR-LINE7-PRESS-001\"");
    }
    let id = section.parsed("id", DeviceId::new)?;
    if gateway.is_some_and(|gateway| gateway.id.as_device() == id) {
        section.refuse("id", "is the gateway's own id; the gateway is a device of its own accord");
        return None;
    }
    if let Some(first) = first.get(&id) {
        let place = format!("{}:{}", first.file.display(), first.line);
        section.refuse("id", format_args!("is there twice, first at {place}; every device needs an id of its own"));
        return None;
    }
    Some(id)
}

fn rest(
    section: &Section<'_>,
    id: Option<DeviceId>,
    gateway: Option<&GatewayConfig>,
    profiles: &BTreeMap<String, Profile>,
    complete: bool,
) -> Option<DeviceConfig> {
    if !section.has("type") {
        section.missing("type", format_args!("one of {}", known_types(profiles)));
    }
    let profile = section.text("type").and_then(|name| {
        let profile = profiles.get(name).cloned().or_else(|| Profile::built_in(name));
        if profile.is_none() && complete {
            let known = known_types(profiles);
            section.refuse(
                "type",
                format_args!("has no profile; known are {known}; describe others in profiles.d/*.toml"),
            );
        }
        profile
    });
    let location = section.text("location").map(str::to_owned);
    let driver = section.read("driver", "\"mqtt\"", |node| match node {
        Node::Text(word) if word == DriverKind::Mqtt.as_str() => Some(DriverKind::Mqtt),
        _ => None,
    });
    let seconds = section.integer("sample_rate_seconds", 1, 86_400).unwrap_or(SAMPLE_RATE_SECONDS);
    let limit = super::link::limit(section);
    let configuration = section.optional_section("configuration").map(|inner| values(&inner));
    let profile = profile?;
    Some(DeviceConfig {
        id: id?,
        device_type: profile.device_type.clone(),
        location: location.or_else(|| gateway.map(|gateway| gateway.location.clone()))?,
        driver: driver.unwrap_or(DriverKind::Mqtt),
        sample_interval: Duration::from_secs(seconds.into()),
        limit,
        configuration,
        profile,
    })
}

/// Configuration values of a device, as text like everywhere else.
fn values(section: &Section<'_>) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    for (key, spot) in section.entries() {
        let text = match &spot.node {
            Node::Text(text) => text.clone(),
            Node::Integer(n) => n.to_string(),
            Node::Float(n) if n.is_finite() => n.to_string(),
            Node::Boolean(yes) => yes.to_string(),
            // A date (`calibration_date = 2026-01-15`) is written as it stands.
            Node::Other(text) if text.len() <= 40 => text.clone(),
            other => {
                let name = section.key_name(key);
                section.blame(format_args!("`{name}` = {other}: must be a text, a number, a date, true or false"));
                continue;
            }
        };
        values.insert(key.to_owned(), text);
    }
    values
}

fn known_types(profiles: &BTreeMap<String, Profile>) -> String {
    let own = profiles.keys().map(String::as_str).filter(|name| !BUILT_IN_TYPES.contains(name));
    BUILT_IN_TYPES.into_iter().chain(own).collect::<Vec<_>>().join(", ")
}

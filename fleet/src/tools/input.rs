//! The arguments of each tool.

use floorgate_model::Profile;
use floorgate_model::profile::{BUILT_IN_TYPES, ParameterKind};
use serde_json::{Map, Value, json};

/// Most devices or commands in one answer.
pub const LIMIT_MAX: u64 = 200;
/// Devices or commands in one answer, unless asked otherwise.
pub const LIMIT_DEFAULT: u64 = 100;
/// Most samples in one answer.
pub const SAMPLES_MAX: u64 = 2_000;
/// Samples in one answer, unless asked otherwise.
pub const SAMPLES_DEFAULT: u64 = 500;
/// Most intervals a range is down-sampled to.
pub const POINTS_MAX: u64 = 500;
/// Longest wait for a gateway's word, seconds.
pub const WAIT_SECONDS_MAX: u64 = 60;
/// Wait for a gateway's word, unless asked otherwise, seconds.
pub const WAIT_SECONDS_DEFAULT: u64 = 10;
/// Longest text argument, characters.
pub const TEXT_MAX: u64 = 256;

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description, "minLength": 1, "maxLength": TEXT_MAX})
}

fn number(description: &str, min: u64, max: u64, default: Option<u64>) -> Value {
    let mut schema = json!({"type": "integer", "description": description, "minimum": min, "maximum": max});
    if let (Some(default), Some(members)) = (default, schema.as_object_mut()) {
        members.insert("default".to_owned(), default.into());
    }
    schema
}

fn object(properties: Value, required: &[&str]) -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn device_id() -> Value {
    text(
        "Exact id of the device, for example SENSOR-LINE7-PRESS-001. An id that is not known is answered with did_you_mean.",
    )
}

fn cursor() -> Value {
    json!({
        "type": "string",
        "description": "next_cursor of the answer before, to go on; with the same other arguments.",
        "maxLength": 1_024,
    })
}

fn limit(what: &str) -> Value {
    number(&format!("Most {what} in one answer (default {LIMIT_DEFAULT})."), 1, LIMIT_MAX, Some(LIMIT_DEFAULT))
}

pub(super) fn get_device_status() -> Value {
    object(json!({"device_id": device_id()}), &["device_id"])
}

pub(super) fn list_devices() -> Value {
    let properties = json!({
        "location": text(
            "Exactly this location, for example factory-floor-1/line-7; with a * at the end everything that begins so, \
             for example factory-floor-1/*."
        ),
        "status": text("One of online, offline, warning, rebooting, maintenance."),
        "device_type": text("For example pressure_sensor, temperature_sensor, vibration_sensor, valve_actuator, edge_gateway."),
        "limit": limit("devices"),
        "cursor": cursor(),
    });
    object(properties, &[])
}

pub(super) fn send_command() -> Value {
    let properties = json!({
        "device_id": device_id(),
        "command": text(
            "One of recalibrate, reboot, update_config, set_status. set_status takes a device out of service \
             (status maintenance) or back (status online)."
        ),
        "parameters": parameters(),
        "dry_run": {
            "type": "boolean",
            "description": "true: the gateway runs every check and does nothing; the answer has reason DRY_RUN_OK if it would be accepted.",
            "default": false,
        },
        "idempotency_key": {
            "type": "string",
            "description": "Any text, at most 128 characters, that is the same for every try of one intention: a repeat within a day is not sent again, and later is refused. Make a new one for each intention, not one of device and command.",
            "minLength": 1,
            "maxLength": 128,
        },
        "wait_seconds": number(
            "How long to wait for the outcome (default 10); 0 only sends.", 0, WAIT_SECONDS_MAX, Some(WAIT_SECONDS_DEFAULT)
        ),
        "expires_in_seconds": number(
            "The command is not executed later than this after it was sent (default 120 for reboot and recalibrate, 900 for others).",
            1, 3_600, None
        ),
    });
    object(properties, &["device_id", "command"])
}

/// Every parameter that a built-in profile opens, so that a policy can see it by name. A plant's own profiles may open
/// more; its gateway judges those.
fn parameters() -> Value {
    let mut properties = Map::new();
    let profiles = BUILT_IN_TYPES.iter().filter_map(|device_type| Profile::built_in(device_type));
    for (command, spec) in profiles.flat_map(|profile| profile.commands) {
        for (name, parameter) in spec.parameters {
            let mut schema = match parameter.kind {
                ParameterKind::Number { min, max } => json!({"type": "number", "minimum": min, "maximum": max}),
                ParameterKind::Integer { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
                ParameterKind::Choice(words) => {
                    json!({"type": "string", "description": format!("One of {}.", words.join(", "))})
                }
                ParameterKind::Boolean => json!({"type": "boolean"}),
            };
            let said = schema.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
            if let Some(members) = schema.as_object_mut() {
                members.insert("description".to_owned(), format!("For {command}. {said}").trim_end().into());
            }
            properties.entry(name).or_insert(schema);
        }
    }
    json!({
        "type": "object",
        "description": "What the command needs; which parameters a device takes depends on its type.",
        "properties": properties,
    })
}

pub(super) fn get_telemetry_history() -> Value {
    let properties = json!({
        "device_id": device_id(),
        "from": text("Start of the range, RFC 3339 (2026-11-22T10:00:00Z); default one hour before `to`."),
        "to": text("End of the range, RFC 3339; default now."),
        "metric": text("Only this reading, for example pressure_psi; default all."),
        "points": number("Down-sample the range to so many intervals with min, max, mean and count.", 1, POINTS_MAX, None),
        "limit": number("Most samples in one answer (default 500).", 1, SAMPLES_MAX, Some(SAMPLES_DEFAULT)),
        "cursor": cursor(),
    });
    object(properties, &["device_id"])
}

pub(super) fn get_command_status() -> Value {
    let properties = json!({
        "device_id": device_id(),
        "command_id": text("The command_id that send_command answered."),
    });
    object(properties, &["device_id", "command_id"])
}

pub(super) fn list_commands() -> Value {
    let properties = json!({
        "device_id": text("Only commands of this device; without it those of the whole fleet, in no order over pages."),
        "command": text("Only this command: recalibrate, reboot, update_config or set_status."),
        "status": text(
            "Only those that stand at this status: created, in_progress, succeeded, failed, timed_out, indeterminate, rejected or expired."
        ),
        "since": text("Only those issued at or after this time, RFC 3339."),
        "limit": limit("commands"),
        "cursor": cursor(),
    });
    object(properties, &[])
}

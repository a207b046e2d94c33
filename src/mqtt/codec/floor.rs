//! What devices send: telemetry, state, answers.

use std::collections::BTreeMap;

use floorgate_model::reading::ReadingsError;
use floorgate_model::{CommandId, CommandName, DeviceId, Reading, Readings, Timestamp};
use serde_json::{Map, Value};

use super::{
    COMMAND_DEPTH_MAX, CONFIGURATION_KEYS_MAX, CONFIGURATION_TEXT_MAX, FIRMWARE_MAX, FLOOR_DEPTH_MAX,
    FLOOR_PAYLOAD_MAX, REASON_MAX, Refused, object, present, same_device, time,
};
use crate::mqtt::refusals::Refusal;
use crate::shadow::{Answer, AnswerStatus, StateReport, TelemetryReport};

/// Reads one telemetry payload of `device`. `redelivered` and `retained` are the message's MQTT flags.
///
/// # Errors
/// [`Refused`] if it does not fit the contract; nothing of it counts then, also not the readings that are right.
pub fn parse_telemetry(
    device: &DeviceId,
    payload: &[u8],
    received_at: Timestamp,
    redelivered: bool,
    retained: bool,
) -> Result<TelemetryReport, Refused> {
    let object = object(payload, FLOOR_PAYLOAD_MAX, FLOOR_DEPTH_MAX)?;
    same_device(&object, device)?;
    let device_time = present(&object, "timestamp").map(|value| time("timestamp", value)).transpose()?;
    let seq = present(&object, "seq").map(|value| whole("seq", value)).transpose()?;
    let mut readings = Readings::new();
    for (name, value) in &object {
        if matches!(name.as_str(), "timestamp" | "seq" | "device_id") {
            continue;
        }
        readings.insert(name, reading(name, value)?).map_err(|e| match e {
            ReadingsError::TooMany => Refused::new(Refusal::TooMany, e.to_string()),
            ReadingsError::Name(_) => Refused::new(Refusal::BadName, e.to_string()),
        })?;
    }
    if readings.is_empty() {
        return Err(Refused::new(Refusal::NoReadings, "the object has no reading"));
    }
    Ok(TelemetryReport {
        device_id: device.clone(),
        readings,
        device_time,
        seq,
        received_at,
        guess_base_ms: None,
        redelivered,
        retained,
    })
}

fn reading(name: &str, value: &Value) -> Result<Reading, Refused> {
    let refused = |reason, why: &str| Err(Refused::new(reason, format!("`{name}` {why}")));
    match value {
        Value::Number(number) => match number.as_f64().and_then(Reading::new) {
            Some(reading) => Ok(reading),
            None => refused(Refusal::NotFinite, "is not finite"),
        },
        Value::String(text) => match Reading::parse(text) {
            Some(reading) => Ok(reading),
            None => refused(Refusal::NotNumeric, "is a text that is no finite number"),
        },
        Value::Bool(_) => refused(Refusal::NotNumeric, "is true or false; send 1 or 0"),
        Value::Null => refused(Refusal::NotNumeric, "is null; leave it out"),
        Value::Array(_) | Value::Object(_) => refused(Refusal::NotFlat, "is nested; readings are one flat object"),
    }
}

/// Reads one state payload of `device`: its birth, a change, or its last will.
///
/// # Errors
/// [`Refused`] if it does not fit the contract.
pub fn parse_state(
    device: &DeviceId,
    payload: &[u8],
    received_at: Timestamp,
    retained: bool,
) -> Result<StateReport, Refused> {
    let object = object(payload, FLOOR_PAYLOAD_MAX, FLOOR_DEPTH_MAX)?;
    same_device(&object, device)?;
    let Some(Value::Bool(online)) = object.get("online") else {
        return Err(Refused::new(Refusal::BadField, "`online` must be true or false"));
    };
    let firmware_version = match present(&object, "firmware_version") {
        None => None,
        Some(Value::String(text)) if text.len() <= FIRMWARE_MAX => Some(text.clone()),
        Some(_) => {
            let detail = format!("`firmware_version` must be a text of at most {FIRMWARE_MAX} bytes");
            return Err(Refused::new(Refusal::BadField, detail));
        }
    };
    Ok(StateReport {
        device_id: device.clone(),
        online: *online,
        firmware_version,
        configuration: configuration(&object)?,
        boot_count: present(&object, "boot_count").map(|value| whole("boot_count", value)).transpose()?,
        commands: present(&object, "commands").map(commands).transpose()?,
        retained,
        received_at,
    })
}

/// The commands a device says it knows; words of a newer vocabulary are passed over.
fn commands(value: &Value) -> Result<Vec<CommandName>, Refused> {
    let words = value.as_array().and_then(|words| words.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
    let words = words.ok_or_else(|| Refused::new(Refusal::BadField, "`commands` must be a list of texts"))?;
    let mut known = Vec::with_capacity(CommandName::ALL.len());
    for command in words.into_iter().filter_map(|word| word.parse().ok()) {
        if !known.contains(&command) {
            known.push(command);
        }
    }
    Ok(known)
}

/// Reads a device's word on a command. A reason that is too long is cut: the word itself counts more.
///
/// # Errors
/// [`Refused`] if it does not fit the contract.
pub fn parse_answer(device: &DeviceId, payload: &[u8], received_at: Timestamp) -> Result<Answer, Refused> {
    let object = object(payload, FLOOR_PAYLOAD_MAX, COMMAND_DEPTH_MAX)?;
    same_device(&object, device)?;
    let bad = |detail: &str| Refused::new(Refusal::BadField, detail);
    let id = present(&object, "command_id").and_then(Value::as_str).ok_or_else(|| bad("`command_id` is missing"))?;
    let command_id = CommandId::new(id).map_err(|e| Refused::new(Refusal::BadId, format!("`command_id` {e}")))?;
    let status = match present(&object, "status").and_then(Value::as_str) {
        Some("in_progress") => AnswerStatus::InProgress,
        Some("succeeded") => AnswerStatus::Succeeded,
        Some("failed") => AnswerStatus::Failed,
        _ => return Err(bad("`status` must be in_progress, succeeded or failed")),
    };
    let reason = match present(&object, "reason") {
        None => None,
        Some(Value::String(text)) => Some(text.chars().take(REASON_MAX).collect()),
        Some(_) => return Err(bad("`reason` must be a text")),
    };
    let details = match present(&object, "details") {
        None => None,
        Some(Value::Object(details)) => Some(details.clone()),
        Some(_) => return Err(bad("`details` must be an object")),
    };
    let configuration = configuration(&object)?;
    Ok(Answer { device_id: device.clone(), command_id, status, reason, details, configuration, received_at })
}

/// The device's configuration, every value as text; `null` says the key is not there.
fn configuration(object: &Map<String, Value>) -> Result<Option<BTreeMap<String, String>>, Refused> {
    let bad = |detail: String| Err(Refused::new(Refusal::BadConfiguration, detail));
    let entries = match present(object, "configuration") {
        None => return Ok(None),
        Some(Value::Object(entries)) => entries,
        Some(_) => return bad("`configuration` must be an object".to_owned()),
    };
    if entries.len() > CONFIGURATION_KEYS_MAX {
        return bad(format!(
            "`configuration` has {} keys; at most {CONFIGURATION_KEYS_MAX} are allowed",
            entries.len()
        ));
    }
    let mut texts = BTreeMap::new();
    for (key, value) in entries {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(yes) => yes.to_string(),
            Value::Array(_) | Value::Object(_) => return bad(format!("`configuration.{key}` is nested")),
        };
        if key.is_empty() || key.len() > CONFIGURATION_TEXT_MAX || text.len() > CONFIGURATION_TEXT_MAX {
            return bad(format!("`configuration.{key}`: keys and values have 1 to {CONFIGURATION_TEXT_MAX} bytes"));
        }
        texts.insert(key.clone(), text);
    }
    Ok(Some(texts))
}

fn whole(name: &str, value: &Value) -> Result<u64, Refused> {
    value.as_u64().ok_or_else(|| {
        Refused::new(Refusal::BadField, format!("`{name}` must be a whole number from 0 to 2^64 - 1, not {value}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::EPOCH;

    fn device() -> DeviceId {
        DeviceId::new("PRESS-1").unwrap()
    }

    fn telemetry(value: &Value) -> Result<TelemetryReport, Refused> {
        parse_telemetry(&device(), value.to_string().as_bytes(), NOW, false, false)
    }

    fn refused<T: std::fmt::Debug>(result: Result<T, Refused>) -> Refusal {
        result.unwrap_err().reason
    }

    #[test]
    fn numbers_and_numeric_texts_are_readings() {
        let report =
            telemetry(&json!({"pressure_psi": "142.7", "temperature_c": 38.2, "seq": 7, "device_id": "PRESS-1",
            "timestamp": "2026-11-22T10:00:00.5+00:00"}))
            .unwrap();
        assert_eq!(report.readings.get("pressure_psi"), Reading::new(142.7));
        assert_eq!(report.readings.get("temperature_c"), Reading::new(38.2));
        assert_eq!((report.readings.len(), report.seq), (2, Some(7)));
        assert_eq!(report.device_time.unwrap().to_string(), "2026-11-22T10:00:00.500Z");
    }

    #[test]
    fn what_is_no_reading_refuses_the_whole_report() {
        for (field, reason) in [
            (json!("on"), Refusal::NotNumeric),
            (json!("NaN"), Refusal::NotNumeric),
            (json!("inf"), Refusal::NotNumeric),
            (json!(true), Refusal::NotNumeric),
            (json!(null), Refusal::NotNumeric),
            (json!([1]), Refusal::NotFlat),
            (json!({"x": 1}), Refusal::NotFlat),
        ] {
            assert_eq!(refused(telemetry(&json!({"good": 1, "bad": field}))), reason);
        }
        assert_eq!(refused(telemetry(&json!({"a/b": 1}))), Refusal::BadName);
        assert_eq!(refused(telemetry(&json!({"seq": 1}))), Refusal::NoReadings);
        assert_eq!(refused(telemetry(&json!({"x": 1, "seq": -1}))), Refusal::BadField);
        assert_eq!(refused(telemetry(&json!({"x": 1, "timestamp": "yesterday"}))), Refusal::BadTimestamp);
        assert_eq!(refused(telemetry(&json!({"x": 1, "timestamp": -5}))), Refusal::BadTimestamp);
        assert_eq!(refused(telemetry(&json!({"x": 1, "device_id": "OTHER"}))), Refusal::DeviceMismatch);
        let many: Map<_, _> = (0..65).map(|n| (format!("m{n}"), json!(n))).collect();
        assert_eq!(refused(telemetry(&Value::Object(many))), Refusal::TooMany);
    }

    #[test]
    fn of_two_fields_of_one_name_the_last_counts() {
        let report = parse_telemetry(&device(), br#"{"x":1,"x":2}"#, NOW, false, false).unwrap();
        assert_eq!(report.readings.get("x"), Reading::new(2.0));
    }

    #[test]
    fn a_state_has_its_configuration_as_text_and_passes_over_unknown_commands() {
        let payload = json!({"online": true, "firmware_version": "2.1.3", "boot_count": 4, "new_field": {},
            "configuration": {"rate": 5, "gain": 1.5, "mode": "auto", "on": false, "gone": null},
            "commands": ["reboot", "self_destruct", "reboot", "recalibrate"]});
        let state = parse_state(&device(), payload.to_string().as_bytes(), NOW, true).unwrap();
        let expected = [("gain", "1.5"), ("mode", "auto"), ("on", "false"), ("rate", "5")];
        let expected = expected.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(state.configuration, Some(expected));
        assert_eq!(state.commands, Some(vec![CommandName::Reboot, CommandName::Recalibrate]));
        assert!(state.online && state.retained && state.boot_count == Some(4));
        let will = parse_state(&device(), br#"{"online":false}"#, NOW, false).unwrap();
        assert_eq!((will.online, will.configuration, will.commands), (false, None, None));
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let state = |v: Value| refused(parse_state(&device(), v.to_string().as_bytes(), NOW, false));
        assert_eq!(state(json!({"firmware_version": "1"})), Refusal::BadField);
        assert_eq!(state(json!({"online": "yes"})), Refusal::BadField);
        assert_eq!(state(json!({"online": true, "boot_count": 1.5})), Refusal::BadField);
        assert_eq!(state(json!({"online": true, "commands": [1]})), Refusal::BadField);
        assert_eq!(state(json!({"online": true, "configuration": {"a": [1]}})), Refusal::BadConfiguration);
        let many: Map<_, _> = (0..65).map(|n| (format!("k{n}"), json!(n))).collect();
        assert_eq!(state(json!({"online": true, "configuration": many})), Refusal::BadConfiguration);
    }

    #[test]
    fn an_answer_names_its_command_and_a_long_reason_is_cut() {
        let answer = |v: Value| parse_answer(&device(), v.to_string().as_bytes(), NOW);
        let good = answer(json!({"command_id": "c-1", "status": "failed", "reason": "ä".repeat(1_000),
            "details": {"code": {"deep": [1]}}, "configuration": {"a": 1}}))
        .unwrap();
        assert_eq!(good.reason.unwrap().chars().count(), REASON_MAX);
        assert_eq!(good.status, AnswerStatus::Failed);
        assert_eq!(refused(answer(json!({"status": "failed"}))), Refusal::BadField);
        assert_eq!(refused(answer(json!({"command_id": "a/b", "status": "failed"}))), Refusal::BadId);
        assert_eq!(refused(answer(json!({"command_id": "c", "status": "done"}))), Refusal::BadField);
        assert_eq!(refused(answer(json!({"command_id": "c", "status": "failed", "details": 1}))), Refusal::BadField);
    }

    proptest! {
        #[test]
        fn readings_come_back_as_they_were_sent(
            sent in proptest::collection::btree_map("[a-z][a-z_]{0,20}", -1e9f64..1e9, 1..40),
            as_text in any::<bool>(),
        ) {
            let fields: Map<String, Value> = sent
                .iter()
                .filter(|(name, _)| !matches!(name.as_str(), "timestamp" | "seq" | "device_id"))
                .map(|(name, x)| (name.clone(), if as_text { json!(x.to_string()) } else { json!(x) }))
                .collect();
            prop_assume!(!fields.is_empty());
            let report = telemetry(&Value::Object(fields.clone())).unwrap();
            prop_assert_eq!(report.readings.len(), fields.len());
            for (name, _) in &fields {
                prop_assert_eq!(report.readings.get(name), Reading::new(sent[name]));
            }
        }
    }
}

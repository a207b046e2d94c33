//! What the cloud sends: commands, the seed's and ours.

use floorgate_model::command::{PARAMETERS_MAX, PAYLOAD_MAX};
use floorgate_model::{CommandId, DeviceId, Request};
use serde_json::{Map, Value};

use super::{COMMAND_DEPTH_MAX, ISSUER_MAX, Refused, object, present, same_device, time};
use crate::mqtt::refusals::Refusal;

/// Longest word for a command, bytes. Known or not is for the rules to say; it goes into records.
const COMMAND_WORD_MAX: usize = 64;

/// Reads one command for `device`: well-formed, not yet judged. The word may be unknown and the time long past.
///
/// Without a `command_id` the id is derived from the content with the time exactly as it was written, so a redelivery
/// has the same id.
///
/// # Errors
/// [`Refused`] if it is no command, or has no time to judge it by.
pub fn parse_command(device: &DeviceId, payload: &[u8]) -> Result<Request, Refused> {
    let object = object(payload, PAYLOAD_MAX, COMMAND_DEPTH_MAX)?;
    same_device(&object, device)?;
    let command = match present(&object, "command") {
        Some(Value::String(word)) if (1..=COMMAND_WORD_MAX).contains(&word.len()) => word.clone(),
        _ => return Err(malformed(format!("`command` must be a word of at most {COMMAND_WORD_MAX} bytes"))),
    };
    let parameters = parameters(&object)?;
    let sent = present(&object, "timestamp").ok_or_else(|| {
        Refused::new(Refusal::MissingTimestamp, "without `timestamp` nobody can tell whether it is stale")
    })?;
    let issued_at = time("timestamp", sent)?;
    let given = present(&object, "expires_at").map(|value| time("expires_at", value)).transpose()?;
    let command_id = match present(&object, "command_id") {
        Some(Value::String(id)) => {
            CommandId::new(id).map_err(|e| Refused::new(Refusal::BadId, format!("`command_id` {e}")))?
        }
        Some(_) => return Err(Refused::new(Refusal::BadId, "`command_id` must be a text")),
        None => {
            let written = sent.as_str().map_or_else(|| sent.to_string(), str::to_owned);
            Request::derived_id(device, &command, &parameters, &written)
        }
    };
    let issuer = match present(&object, "issuer") {
        None => None,
        Some(Value::String(name)) if name.chars().count() <= ISSUER_MAX => Some(name.clone()),
        Some(_) => return Err(malformed(format!("`issuer` must be a text of at most {ISSUER_MAX} characters"))),
    };
    let dry_run = match present(&object, "dry_run") {
        None => false,
        Some(Value::Bool(yes)) => *yes,
        // Guessing wrong here would execute what was meant as a question.
        Some(_) => return Err(malformed("`dry_run` must be true or false")),
    };
    let expires_at = Request::expiry(&command, issued_at, given);
    let device_id = device.clone();
    Ok(Request { device_id, command, parameters, issued_at, command_id, expires_at, issuer, dry_run })
}

/// A payload that is an object and no valid command: enough of it for a record of its refusal.
#[derive(Debug, Clone, PartialEq)]
pub struct MalformedCommand {
    /// The device of the topic.
    pub device_id: DeviceId,
    /// The one given, if it is an id; else derived from the payload, so a redelivery has the same one.
    pub command_id: CommandId,
    /// As far as it can be read, else empty.
    pub command: String,
    /// If they are an object of allowed size, else empty.
    pub parameters: Map<String, Value>,
    /// What is wrong, for people.
    pub problem: String,
}

/// What can be read of a payload that [`parse_command`] refused; `None` if it is no object within the limits.
#[must_use]
pub fn malformed_command(device: &DeviceId, payload: &[u8], refused: &Refused) -> Option<MalformedCommand> {
    let object = object(payload, PAYLOAD_MAX, COMMAND_DEPTH_MAX).ok()?;
    let given = present(&object, "command_id").and_then(Value::as_str).and_then(|id| CommandId::new(id).ok());
    let command = present(&object, "command").and_then(Value::as_str).filter(|word| word.len() <= COMMAND_WORD_MAX);
    let command = command.unwrap_or_default().to_owned();
    let text = std::str::from_utf8(payload).ok()?;
    Some(MalformedCommand {
        device_id: device.clone(),
        command_id: given.unwrap_or_else(|| Request::derived_id(device, &command, &Map::new(), text)),
        command,
        parameters: parameters(&object).unwrap_or_default(),
        problem: refused.to_string(),
    })
}

fn parameters(object: &Map<String, Value>) -> Result<Map<String, Value>, Refused> {
    match present(object, "parameters") {
        None => Ok(Map::new()),
        Some(Value::Object(parameters)) if parameters.len() <= PARAMETERS_MAX => Ok(parameters.clone()),
        Some(Value::Object(parameters)) => {
            let detail = format!("{} parameters; at most {PARAMETERS_MAX} are allowed", parameters.len());
            Err(Refused::new(Refusal::TooMany, detail))
        }
        Some(_) => Err(malformed("`parameters` must be an object")),
    }
}

fn malformed(detail: impl AsRef<str>) -> Refused {
    Refused::new(Refusal::MalformedCommand, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use floorgate_model::Timestamp;
    use serde_json::json;
    use std::time::Duration;

    fn command(value: &Value) -> Result<Request, Refused> {
        parse_command(&DeviceId::new("PRESS-1").unwrap(), value.to_string().as_bytes())
    }

    #[test]
    fn the_seeds_command_is_read_and_its_redelivery_has_the_same_id() {
        let sent = json!({"command": "recalibrate", "parameters": {"target_value": 100.0},
            "timestamp": "2026-11-22T10:00:00.123456+00:00"});
        let request = command(&sent).unwrap();
        assert_eq!(request.command, "recalibrate");
        assert_eq!(request.issued_at, Timestamp::parse("2026-11-22T10:00:00.123Z").unwrap());
        assert_eq!(request.expires_at, request.issued_at.saturating_add(Duration::from_secs(120)));
        assert_eq!(command(&sent).unwrap().command_id, request.command_id);
        // The microseconds tell two calls apart that share a millisecond.
        let other = json!({"command": "recalibrate", "parameters": {"target_value": 100.0},
            "timestamp": "2026-11-22T10:00:00.123999+00:00"});
        assert_ne!(command(&other).unwrap().command_id, request.command_id);
    }

    #[test]
    fn the_optional_fields_are_taken_and_null_means_absent() {
        let request = command(&json!({"command": "reboot", "parameters": null, "timestamp": 1_795_341_600,
            "command_id": "abc-1", "expires_at": "2026-11-22T10:00:10Z", "issuer": "agent:claims", "dry_run": true}))
        .unwrap();
        assert_eq!((request.command_id.as_str(), request.dry_run), ("abc-1", true));
        assert_eq!(request.expires_at, request.issued_at.saturating_add(Duration::from_secs(10)));
        let bare = command(&json!({"command": "reboot", "timestamp": 1_795_341_600, "command_id": null,
            "issuer": null, "dry_run": null}))
        .unwrap();
        assert_eq!((bare.issuer, bare.dry_run, bare.command_id.as_str().len()), (None, false, 64));
    }

    #[test]
    fn what_is_no_command_is_refused_with_its_reason() {
        let t = "2026-11-22T10:00:00Z";
        let many: Map<_, _> = (0..33).map(|n| (format!("p{n}"), json!(n))).collect();
        for (value, reason) in [
            (json!({"timestamp": t}), Refusal::MalformedCommand),
            (json!({"command": 5, "timestamp": t}), Refusal::MalformedCommand),
            (json!({"command": "", "timestamp": t}), Refusal::MalformedCommand),
            (json!({"command": "x".repeat(65), "timestamp": t}), Refusal::MalformedCommand),
            (json!({"command": "reboot"}), Refusal::MissingTimestamp),
            (json!({"command": "reboot", "timestamp": "soon"}), Refusal::BadTimestamp),
            (json!({"command": "reboot", "timestamp": t, "expires_at": true}), Refusal::BadTimestamp),
            (json!({"command": "reboot", "timestamp": t, "parameters": []}), Refusal::MalformedCommand),
            (json!({"command": "reboot", "timestamp": t, "parameters": many}), Refusal::TooMany),
            (json!({"command": "reboot", "timestamp": t, "command_id": "a b"}), Refusal::BadId),
            (json!({"command": "reboot", "timestamp": t, "issuer": "x".repeat(257)}), Refusal::MalformedCommand),
            (json!({"command": "reboot", "timestamp": t, "dry_run": "true"}), Refusal::MalformedCommand),
            (json!({"command": "reboot", "timestamp": t, "device_id": "OTHER"}), Refusal::DeviceMismatch),
            (json!({"command": "reboot", "timestamp": t, "x": "y".repeat(8_192)}), Refusal::TooLarge),
            (json!({"command": "reboot", "timestamp": t, "x": [[[[[[[[]]]]]]]]}), Refusal::TooDeep),
        ] {
            assert_eq!(command(&value).unwrap_err().reason, reason, "{value}");
        }
    }

    #[test]
    fn of_an_object_that_is_no_command_a_record_can_be_made_and_of_nothing_else() {
        let device = DeviceId::new("PRESS-1").unwrap();
        let read = |payload: &str| {
            let refused = parse_command(&device, payload.as_bytes()).unwrap_err();
            malformed_command(&device, payload.as_bytes(), &refused)
        };
        let given = read(r#"{"command":"reboot","command_id":"c-1","parameters":{"a":1}}"#).unwrap();
        assert_eq!((given.command_id.as_str(), given.command.as_str(), given.parameters.len()), ("c-1", "reboot", 1));
        assert!(given.problem.starts_with("missing_timestamp"), "{}", given.problem);
        let bare = read(r#"{"command":7,"command_id":"a b","parameters":[]}"#).unwrap();
        assert_eq!((bare.command.as_str(), bare.parameters.len(), bare.command_id.as_str().len()), ("", 0, 64));
        assert_ne!(read("{}").unwrap().command_id, bare.command_id);
        assert_eq!(read("{}"), read("{}"));
        for nothing in ["", "not json", "[1]", r#"{"x":[[[[[[[[[]]]]]]]]]}"#] {
            assert_eq!(read(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn an_unknown_word_passes_because_judging_it_is_the_rules_business() {
        let request = command(&json!({"command": "self_destruct", "timestamp": "2026-11-22T10:00:00Z"})).unwrap();
        assert_eq!(request.command, "self_destruct");
    }
}

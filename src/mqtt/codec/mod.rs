//! Payload bytes ↔ what they mean (contract §3). Pure: no clock, no I/O; never panics, whatever the bytes are.
//!
//! # In
//!
//! Every payload passes the same gates in the same order, so the reason given is the first that applies: size, UTF-8,
//! nesting depth (scanned before any parser recurses), JSON, being an object, then the fields.
//!
//! * Telemetry ([`parse_telemetry`]): 16 KiB, depth 4, 64 readings. A flat object; each field but `timestamp`, `seq` and
//!   `device_id` is a reading: a finite number, or a text that is one.
//! * State ([`parse_state`]) and answers ([`parse_answer`]): 16 KiB, depth 4 and 8. A configuration has at most 64 keys;
//!   its scalar values become text, `null` means the key is not there. Unknown fields are ignored.
//! * Commands ([`parse_command`]): 8 KiB, depth 8, 32 parameters. Without a readable `timestamp` a command cannot be judged
//!   for staleness and is refused.
//!
//! A field that is `null` counts as absent, except among readings. Of two fields of one name the last counts.
//!
//! # Out
//!
//! [`execute_payload`], [`record_payload`] and [`gateway_payload`] build what the gateway sends.

mod command;
mod floor;
mod outgoing;

pub use command::{MalformedCommand, malformed_command, parse_command};
pub use floor::{parse_answer, parse_state, parse_telemetry};
pub use outgoing::{GATEWAY_WILL, execute_payload, gateway_payload, record_payload};

use floorgate_model::{DeviceId, Timestamp};
use serde_json::{Map, Value};

use super::refusals::Refusal;

/// Largest payload from the floor, bytes (contract §3, hard). A larger one is refused unread.
pub const FLOOR_PAYLOAD_MAX: usize = 16 * 1024;
/// Deepest nesting of telemetry and state; a flat object has depth 1 (contract §3, hard).
pub const FLOOR_DEPTH_MAX: usize = 4;
/// Deepest nesting of commands and answers.
pub const COMMAND_DEPTH_MAX: usize = 8;
/// Most keys of a configuration; one more and the report is refused.
pub const CONFIGURATION_KEYS_MAX: usize = 64;
/// Longest key or value of a configuration, bytes; a longer one refuses the report.
pub const CONFIGURATION_TEXT_MAX: usize = 1_024;
/// Longest firmware version, bytes.
pub const FIRMWARE_MAX: usize = 128;
/// Longest reason of a device's answer, characters; the rest is cut off.
pub const REASON_MAX: usize = 256;
/// Longest name of an issuer, characters; a longer one refuses the command.
pub const ISSUER_MAX: usize = 256;
/// Longest detail of a refusal, characters; the rest is cut off, so a log line stays a line.
const DETAIL_MAX: usize = 160;

/// A payload that does not fit the contract: why, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    /// The stable word it is counted under.
    pub reason: Refusal,
    /// For people: what, which one. At most 160 characters, no control characters.
    pub detail: String,
}

impl Refused {
    pub(crate) fn new(reason: Refusal, detail: impl AsRef<str>) -> Self {
        Self { reason, detail: log_text(detail.as_ref()) }
    }
}

/// A text from outside as it may stand in a log line: at most 160 characters, no control characters.
pub(super) fn log_text(text: &str) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(DETAIL_MAX).map(printable).collect()
}

/// The gates every payload passes: size, UTF-8, depth, JSON, object.
fn object(payload: &[u8], size_max: usize, depth_max: usize) -> Result<Map<String, Value>, Refused> {
    if payload.len() > size_max {
        let detail = format!("{} bytes; at most {size_max} are allowed", payload.len());
        return Err(Refused::new(Refusal::TooLarge, detail));
    }
    if payload.is_empty() {
        return Err(Refused::new(Refusal::Empty, "no payload"));
    }
    let text = std::str::from_utf8(payload)
        .map_err(|e| Refused::new(Refusal::NotUtf8, format!("byte {} begins no UTF-8 character", e.valid_up_to())))?;
    if deeper_than(text, depth_max) {
        return Err(Refused::new(Refusal::TooDeep, format!("nested deeper than {depth_max} levels")));
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Refused::new(Refusal::NotObject, "JSON, but not an object")),
        // `1e999` is JSON by its grammar; the parser has no other kind for it.
        Err(e) if e.to_string().starts_with("number out of range") => {
            Err(Refused::new(Refusal::NotFinite, format!("a number is too large: {e}")))
        }
        Err(e) => Err(Refused::new(Refusal::NotJson, e.to_string())),
    }
}

/// Whether brackets outside texts nest deeper than `max`. What is not JSON may be judged wrongly; the parser sees to it.
fn deeper_than(text: &str, max: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    for byte in text.bytes() {
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_text = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The field, unless it is absent or `null`.
fn present<'o>(object: &'o Map<String, Value>, name: &str) -> Option<&'o Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// A `device_id` in the payload has to be the topic's: a device speaks for itself alone.
fn same_device(object: &Map<String, Value>, device: &DeviceId) -> Result<(), Refused> {
    match present(object, "device_id") {
        Some(Value::String(id)) if id == device.as_str() => Ok(()),
        Some(other) => {
            let detail = format!("`device_id` is {other}, the topic says {device}");
            Err(Refused::new(Refusal::DeviceMismatch, detail))
        }
        None => Ok(()),
    }
}

/// A time as the contract reads it: RFC 3339 text, or epoch seconds or milliseconds.
fn time(name: &str, value: &Value) -> Result<Timestamp, Refused> {
    let parsed = match value {
        Value::String(text) => Timestamp::parse(text).map_err(|e| e.to_string()),
        Value::Number(number) => {
            let number = number.as_f64().ok_or_else(|| "not a number".to_owned());
            number.and_then(|n| Timestamp::from_number(n).map_err(|e| e.to_string()))
        }
        _ => Err("is neither a text nor a number".to_owned()),
    };
    parsed.map_err(|e| Refused::new(Refusal::BadTimestamp, format!("`{name}`: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn depth_is_counted_outside_texts_only() {
        assert!(!deeper_than(r#"{"a":"[[[[[[[[","b":"\"{{{{{"}"#, 1));
        assert!(deeper_than(r#"{"a":[]}"#, 1));
        assert!(!deeper_than(r#"{"a":[],"b":{}}"#, 2));
    }

    #[test]
    fn a_hundred_thousand_brackets_reach_no_parser() {
        let brackets = "[".repeat(FLOOR_PAYLOAD_MAX);
        assert_eq!(object(brackets.as_bytes(), FLOOR_PAYLOAD_MAX, 4).unwrap_err().reason, Refusal::TooDeep);
        let more = "[".repeat(100_000);
        assert_eq!(object(more.as_bytes(), FLOOR_PAYLOAD_MAX, 4).unwrap_err().reason, Refusal::TooLarge);
    }

    #[test]
    fn the_first_gate_that_applies_gives_the_reason() {
        let reason = |payload: &[u8]| object(payload, 64, 4).unwrap_err().reason;
        assert_eq!(reason(&[0xff; 65]), Refusal::TooLarge);
        assert_eq!(reason(b""), Refusal::Empty);
        assert_eq!(reason(b"{\"a\":\xff}"), Refusal::NotUtf8);
        assert_eq!(reason(b"[[[[["), Refusal::TooDeep);
        assert_eq!(reason(b"{\"a\":NaN}"), Refusal::NotJson);
        assert_eq!(reason(b"{\"a\":1} x"), Refusal::NotJson);
        assert_eq!(reason(b"{\"a\":1e999}"), Refusal::NotFinite);
        assert_eq!(reason(b"[1]"), Refusal::NotObject);
    }

    #[test]
    fn a_refusal_fits_a_log_line() {
        let refused = Refused::new(Refusal::NotJson, "x\n\x1b[31m".repeat(1_000));
        assert!(refused.detail.chars().count() <= DETAIL_MAX && !refused.detail.chars().any(char::is_control));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(payload in proptest::collection::vec(any::<u8>(), 0..600)) {
            let device = DeviceId::new("D-1").unwrap();
            let _ = parse_telemetry(&device, &payload, Timestamp::EPOCH, false, false);
            let _ = parse_state(&device, &payload, Timestamp::EPOCH, false);
            let _ = parse_answer(&device, &payload, Timestamp::EPOCH);
            let _ = parse_command(&device, &payload);
        }

        #[test]
        fn nothing_that_looks_like_json_makes_a_parser_panic(
            payload in r#"[{}\[\]:,"a-z0-9.eE+\-\\ ]{0,200}"#,
            field in "(timestamp|seq|device_id|command|parameters|online|configuration|status|command_id|expires_at)",
            value in r#"(null|true|-1|1e308|"x"|\{\}|\[\]|\{"a":1\}|"2026-11-22T10:00:00Z"|18446744073709551616)"#,
        ) {
            let device = DeviceId::new("D-1").unwrap();
            for payload in [payload, format!("{{\"{field}\":{value}}}")] {
                let _ = parse_telemetry(&device, payload.as_bytes(), Timestamp::EPOCH, false, false);
                let _ = parse_state(&device, payload.as_bytes(), Timestamp::EPOCH, false);
                let _ = parse_answer(&device, payload.as_bytes(), Timestamp::EPOCH);
                let _ = parse_command(&device, payload.as_bytes());
            }
        }
    }
}

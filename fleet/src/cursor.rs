//! Where an answer ended, opaque to the caller.
//!
//! Base64 of a small JSON object: where to go on, and a digest of the question, so that a cursor of another question is
//! refused instead of answering nonsense. It is not signed: all it can name is a place in an answer that its bearer
//! may ask for anyway.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use floorgate_model::command::canonical;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{ToolError, code};

/// Longest cursor, characters.
pub(crate) const CURSOR_MAX: u64 = 1_024;

/// The digest of a question: its tool and arguments without the cursor and what only sizes the answer.
pub(crate) fn question(tool: &str, arguments: &Map<String, Value>) -> String {
    let kept: Map<_, _> = arguments
        .iter()
        .filter(|(name, value)| !matches!(name.as_str(), "cursor" | "limit") && !value.is_null())
        .map(|(name, value)| (name.clone(), whole(value)))
        .collect();
    // A model that repeats its arguments does so in another order.
    let digest = Sha256::digest(format!("{tool} {}", canonical(&kept)).as_bytes());
    URL_SAFE_NO_PAD.encode(&digest[..9])
}

/// `10.0` is `10`, as it is to [`crate::arguments`].
fn whole(value: &Value) -> Value {
    let number = value.as_f64().filter(|number| value.is_f64() && number.fract() == 0.0 && number.abs() <= 1e15);
    number.and_then(|number| format!("{number:.0}").parse::<i64>().ok()).map_or_else(|| value.clone(), Value::from)
}

/// The cursor for a place.
pub(crate) fn write(question: &str, place: Value) -> String {
    URL_SAFE_NO_PAD.encode(json!({"q": question, "at": place}).to_string())
}

/// The place of a cursor.
///
/// # Errors
/// [`code::INVALID_CURSOR`] if it is not one of this question's.
pub(crate) fn read(question: &str, cursor: &str) -> Result<Value, ToolError> {
    let decoded = URL_SAFE_NO_PAD.decode(cursor).ok();
    let mut value: Value = decoded.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    if value.get("q").and_then(Value::as_str) == Some(question) { Ok(value["at"].take()) } else { Err(invalid()) }
}

/// What is said of a cursor that names no place.
pub(crate) fn invalid() -> ToolError {
    ToolError::new(
        code::INVALID_CURSOR,
        "`cursor` does not belong to this question; repeat the arguments of the call that answered it, or begin anew without a cursor",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_arguments_and_a_point_zero_make_no_other_question() {
        let question = |text: &str| question("list_devices", &serde_json::from_str(text).unwrap());
        let one = question(r#"{"status": "online", "device_type": "x", "points": 10, "metric": null}"#);
        assert_eq!(one, question(r#"{"points": 10.0, "device_type": "x", "status": "online"}"#));
        assert_ne!(one, question(r#"{"points": 10.5, "device_type": "x", "status": "online"}"#));
    }

    #[test]
    fn a_cursor_belongs_to_its_question() {
        let arguments = |value: Value| value.as_object().unwrap().clone();
        let asked = question("list_devices", &arguments(json!({"status": "online", "limit": 5})));
        let again = question("list_devices", &arguments(json!({"status": "online", "limit": 9, "cursor": "x"})));
        let other = question("list_devices", &arguments(json!({"status": "offline"})));
        let cursor = write(&asked, json!({"k": "A-1"}));
        assert_eq!(read(&again, &cursor), Ok(json!({"k": "A-1"})));
        assert_eq!(read(&other, &cursor).unwrap_err().code, code::INVALID_CURSOR);
        for hostile in ["", "!!!!", "bnVsbA", "e30", &"A".repeat(5_000)] {
            assert!(read(&asked, hostile).is_err(), "{hostile}");
        }
    }
}

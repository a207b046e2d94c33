//! What is answered instead of a result.
//!
//! An error says what, which one, what now, and carries a stable code for programs. It never carries the text of a
//! failure below (an SDK's message names tables, ARNs and request ids): that goes to the log, once.

use std::borrow::Cow;

use floorgate_model::Reason;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

/// Codes that are the tools' own; all others are [`Reason`]'s.
pub mod code {
    /// An argument is missing, unknown, of the wrong type or too large.
    pub const INVALID_ARGUMENTS: &str = "INVALID_ARGUMENTS";
    /// No tool has this name.
    pub const UNKNOWN_TOOL: &str = "UNKNOWN_TOOL";
    /// No command of this id is known.
    pub const COMMAND_NOT_FOUND: &str = "COMMAND_NOT_FOUND";
    /// The cursor is not one of ours, or belongs to another question.
    pub const INVALID_CURSOR: &str = "INVALID_CURSOR";
    /// More would have to be read than one call may.
    pub const RANGE_TOO_LARGE: &str = "RANGE_TOO_LARGE";
    /// The command did not leave; it will not be executed.
    pub const NOT_SENT: &str = "NOT_SENT";
    /// The status of the device was not read shortly before the command.
    pub const STATUS_FIRST: &str = "STATUS_FIRST";
    /// Nobody says who asks, where somebody has to.
    pub const OPERATOR_UNKNOWN: &str = "OPERATOR_UNKNOWN";
    /// A table does not answer now.
    pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
    /// Something that is not the caller's doing.
    pub const INTERNAL: &str = "INTERNAL";
}

/// Serialises as `{"error": message, "error_code": code, …details}`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} [{code}]")]
pub struct ToolError {
    /// Stable, for programs: a constant of [`code`] or a [`Reason`].
    pub code: Cow<'static, str>,
    /// For people and models: what, which one, what now.
    pub message: String,
    /// More fields of the answer (`device_id`, `delivered`, `did_you_mean`, …).
    pub details: Map<String, Value>,
}

impl ToolError {
    /// An error without details.
    #[must_use]
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), details: Map::new() }
    }

    /// An error with a code of the contract.
    #[must_use]
    pub fn reason(reason: Reason, message: impl Into<String>) -> Self {
        Self::new(reason.as_str(), message)
    }

    /// The same with one more field.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.details.insert(field.to_owned(), value.into());
        self
    }

    /// The answer as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut answer = self.details.clone();
        answer.insert("error".to_owned(), self.message.clone().into());
        answer.insert("error_code".to_owned(), self.code.as_ref().into());
        Value::Object(answer)
    }
}

impl Serialize for ToolError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("error", &self.message)?;
        map.serialize_entry("error_code", &self.code)?;
        // The two above are not to be overwritten.
        for (field, value) in self.details.iter().filter(|(field, _)| !matches!(&***field, "error" | "error_code")) {
            map.serialize_entry(field, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_ways_to_json_are_the_same() {
        let error = ToolError::reason(Reason::DeviceOffline, "Device A is offline").with("delivered", false);
        let wanted = json!({"error": "Device A is offline", "error_code": "DEVICE_OFFLINE", "delivered": false});
        assert_eq!(error.to_json(), wanted);
        assert_eq!(serde_json::to_value(&error).unwrap(), wanted);
    }
}

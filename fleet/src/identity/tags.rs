//! Claims as AgentCore's Cedar principal has them: every claim a string. Numbers and truth values as they are written, lists
//! and objects as JSON text, `null` as no tag at all.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Claims by name, each as text.
pub(super) fn of(claims: &Map<String, Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    claims.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
}

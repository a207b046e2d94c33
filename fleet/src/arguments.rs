//! Arguments as they came, read one by one into valid types.
//!
//! What is missing, unknown, of the wrong type or too large is [`code::INVALID_ARGUMENTS`], with the name and what is
//! allowed. `null` is absent. Whole numbers may come as `10.0`, as some models write them; nothing else is bent.

use floorgate_model::Timestamp;
use serde_json::{Map, Value};

use crate::error::{ToolError, code};
use crate::tools::{TEXT_MAX, Tool};

/// The arguments of one call.
#[derive(Debug)]
pub(crate) struct Arguments {
    given: Map<String, Value>,
}

fn wrong(name: &str, wanted: &str, found: &Value) -> ToolError {
    let found = found.to_string();
    let shown: String = found.chars().take(60).collect();
    let more = if shown.len() < found.len() { "…" } else { "" };
    let message = format!("argument `{name}` must be {wanted}, not {shown}{more}");
    ToolError::new(code::INVALID_ARGUMENTS, message).with("argument", name)
}

impl Arguments {
    /// Refuses a name that the tool does not have: a filter that is silently left out answers another question.
    pub(crate) fn of(tool: &Tool, given: Map<String, Value>) -> Result<Self, ToolError> {
        let known = tool.input_schema.get("properties").and_then(Value::as_object);
        let names = || known.into_iter().flat_map(Map::keys).map(String::as_str);
        if let Some(stranger) = given.keys().find(|name| !names().any(|known| known == name.as_str())) {
            let shown: String = stranger.chars().take(60).collect();
            let allowed = names().collect::<Vec<_>>().join(", ");
            let message = format!("{} has no argument {shown:?}; it has {allowed}", tool.name);
            return Err(ToolError::new(code::INVALID_ARGUMENTS, message).with("argument", shown));
        }
        let given = given.into_iter().filter(|(_, value)| !value.is_null()).collect();
        Ok(Self { given })
    }

    /// A text of 1 to [`TEXT_MAX`] characters.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ToolError> {
        self.text_of(name, TEXT_MAX)
    }

    /// A text of 1 to `max` characters.
    pub(crate) fn text_of(&mut self, name: &str, max: u64) -> Result<Option<String>, ToolError> {
        match self.given.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.chars().count() as u64 <= max => Ok(Some(text)),
            Some(found) => Err(wrong(name, &format!("a text of 1 to {max} characters"), &found)),
        }
    }

    /// A text that has to be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<String, ToolError> {
        self.text(name)?.ok_or_else(|| {
            ToolError::new(code::INVALID_ARGUMENTS, format!("argument `{name}` is missing")).with("argument", name)
        })
    }

    /// One of some words.
    pub(crate) fn word(&mut self, name: &str, allowed: &[&str]) -> Result<Option<String>, ToolError> {
        match self.text(name)? {
            Some(word) if !allowed.contains(&word.as_str()) => {
                Err(wrong(name, &format!("one of {}", allowed.join(", ")), &word.into()))
            }
            word => Ok(word),
        }
    }

    /// A whole number within a range, ends included.
    pub(crate) fn whole(&mut self, name: &str, min: u64, max: u64) -> Result<Option<u64>, ToolError> {
        let Some(found) = self.given.remove(name) else { return Ok(None) };
        let whole = found.as_u64().or_else(|| {
            let number = found.as_f64().filter(|n| n.fract() == 0.0 && (0.0..=1e9).contains(n))?;
            // Exact: a whole number below 10⁹.
            format!("{number:.0}").parse().ok()
        });
        match whole.filter(|n| (min..=max).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &format!("a whole number from {min} to {max}"), &found)),
        }
    }

    /// `true` or `false`; guessing wrong would do what was meant as a question.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, ToolError> {
        match self.given.remove(name) {
            None => Ok(false),
            Some(Value::Bool(yes)) => Ok(yes),
            Some(found) => Err(wrong(name, "true or false", &found)),
        }
    }

    /// A point in time.
    pub(crate) fn time(&mut self, name: &str) -> Result<Option<Timestamp>, ToolError> {
        let Some(found) = self.given.remove(name) else { return Ok(None) };
        let time = match &found {
            Value::String(text) => Timestamp::parse(text).ok(),
            Value::Number(number) => number.as_f64().and_then(|number| Timestamp::from_number(number).ok()),
            _ => None,
        };
        let wanted = "a time: RFC 3339 with an offset (2026-11-22T10:00:00Z), or epoch seconds or milliseconds";
        time.map(Some).ok_or_else(|| wrong(name, wanted, &found))
    }

    /// An object; empty when absent.
    pub(crate) fn object(&mut self, name: &str) -> Result<Map<String, Value>, ToolError> {
        match self.given.remove(name) {
            None => Ok(Map::new()),
            Some(Value::Object(members)) => Ok(members),
            Some(found) => Err(wrong(name, "an object", &found)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn arguments(tool: &str, given: Value) -> Result<Arguments, ToolError> {
        Arguments::of(crate::tools::find(tool).unwrap(), given.as_object().unwrap().clone())
    }

    #[test]
    fn a_name_that_the_tool_does_not_have_is_refused() {
        let error = arguments("list_devices", json!({"loaction": "x"})).unwrap_err();
        assert!(error.message.contains("loaction") && error.message.contains("location"), "{error}");
    }

    #[test]
    fn whole_numbers_may_be_written_with_a_point_and_nothing_else_is_bent() {
        let limit = |value: Value| arguments("list_devices", json!({"limit": value})).unwrap().whole("limit", 1, 200);
        assert_eq!(limit(json!(10)), Ok(Some(10)));
        assert_eq!(limit(json!(10.0)), Ok(Some(10)));
        assert_eq!(limit(json!(null)), Ok(None));
        for bad in [json!(0), json!(201), json!(-1), json!(1.5), json!("10"), json!(1e300), json!([]), json!(true)] {
            assert_eq!(limit(bad).unwrap_err().code, code::INVALID_ARGUMENTS);
        }
    }

    #[test]
    fn an_error_shows_little_of_what_was_sent() {
        let error = arguments("list_devices", json!({"limit": "ä".repeat(10_000)})).unwrap().whole("limit", 1, 2);
        assert!(error.unwrap_err().message.len() < 300);
    }
}

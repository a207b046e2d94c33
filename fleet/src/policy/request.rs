//! Arguments as Cedar values, by the tool's declared types: `string` a String, `integer` a Long, `boolean` a Bool, `number` a
//! decimal of four places, `object` a record of its declared members, `array` a set. `null` counts as absent.
//!
//! Values are built one by one, never parsed from JSON, so nothing in an argument can pass for an entity or a function.

use cedar_policy::{Context, RestrictedExpression};
use serde_json::{Map, Value};

/// A decimal of Cedar's has 64 bits, the last four places behind the point.
const DECIMAL_MAX: f64 = 922_337_203_685_477.0;
/// Deepest argument; the tools declare two levels.
const DEPTH_MAX: usize = 8;

/// An argument that is not of its declared type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{argument}` {wrong}")]
pub struct Misfit {
    /// Which one: `parameters.interval_seconds`.
    pub argument: String,
    /// What is wrong with it.
    pub wrong: String,
}

impl Misfit {
    pub(super) fn new(argument: &str, wrong: &str) -> Self {
        Self { argument: argument.to_owned(), wrong: wrong.to_owned() }
    }
}

/// `context.input` and `context.system` of a call.
pub(super) fn context(shape: &Value, arguments: &Map<String, Value>, now: &str) -> Result<Context, Misfit> {
    let input = record(shape, arguments, "", 0)?;
    let now = [("now".to_owned(), RestrictedExpression::new_datetime(now))];
    let wrong = |error: &dyn std::fmt::Display| Misfit::new("arguments", &error.to_string());
    let system = RestrictedExpression::new_record(now).map_err(|error| wrong(&error))?;
    Context::from_pairs([("input".to_owned(), input), ("system".to_owned(), system)]).map_err(|error| wrong(&error))
}

fn record(
    shape: &Value,
    members: &Map<String, Value>,
    path: &str,
    depth: usize,
) -> Result<RestrictedExpression, Misfit> {
    let named = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    let required = shape.get("required").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for name in required.iter().filter_map(Value::as_str) {
        if members.get(name).is_none_or(Value::is_null) {
            return Err(Misfit::new(&named(name), "is required"));
        }
    }
    let declared = shape.get("properties").and_then(Value::as_object);
    let mut fields = Vec::new();
    for (name, shape) in declared.into_iter().flatten() {
        if let Some(value) = members.get(name).filter(|value| !value.is_null()) {
            fields.push((name.clone(), expression(shape, value, &named(name), depth + 1)?));
        }
    }
    RestrictedExpression::new_record(fields).map_err(|error| Misfit::new(path, &error.to_string()))
}

fn expression(shape: &Value, value: &Value, path: &str, depth: usize) -> Result<RestrictedExpression, Misfit> {
    if depth > DEPTH_MAX {
        return Err(Misfit::new(path, "is nested too deeply"));
    }
    let kind = shape.get("type").and_then(Value::as_str).unwrap_or("object");
    let wanted = || Misfit::new(path, &format!("must be of type {kind}"));
    match kind {
        "string" => value.as_str().map(|text| RestrictedExpression::new_string(text.to_owned())).ok_or_else(wanted),
        "boolean" => value.as_bool().map(RestrictedExpression::new_bool).ok_or_else(wanted),
        "integer" => value.as_i64().map(RestrictedExpression::new_long).ok_or_else(wanted),
        "number" => {
            let number = value.as_f64().ok_or_else(wanted)?;
            if number.abs() > DECIMAL_MAX {
                return Err(Misfit::new(path, "is too large"));
            }
            Ok(RestrictedExpression::new_decimal(format!("{number:.4}")))
        }
        "array" => {
            let items = value.as_array().ok_or_else(wanted)?;
            let shape = shape.get("items").unwrap_or(&Value::Null);
            let item = |(at, item): (usize, &Value)| expression(shape, item, &format!("{path}[{at}]"), depth + 1);
            let items = items.iter().enumerate().map(item).collect::<Result<Vec<_>, _>>()?;
            Ok(RestrictedExpression::new_set(items))
        }
        _ => record(shape, value.as_object().ok_or_else(wanted)?, path, depth),
    }
}

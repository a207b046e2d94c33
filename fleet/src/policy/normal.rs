//! Arguments in the one spelling by which they are both judged and executed.
//!
//! The tools take what models write: `10.0` for a whole number, epoch seconds for a time, `"145"` for a number. Policies know
//! exact types. So a call is put into the declared types first, and what was judged is what is executed. Nothing is guessed:
//! what does not stand for a value of its declared type stays as it is, and is refused by whoever looks at it.

use floorgate_model::Timestamp;
use serde_json::{Map, Value};

/// Arguments that are times, and so may be numbers.
const TIMES: [&str; 3] = ["from", "to", "since"];

/// The arguments of a call by the schema of its tool (`type`, `properties`).
pub fn normal(schema: &Value, mut arguments: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in &mut arguments {
        let shape = &schema["properties"][name.as_str()];
        let time = TIMES.contains(&name.as_str()) && value.is_number();
        let taken = std::mem::take(value);
        *value = if time { as_time(taken) } else { as_declared(shape, taken) };
    }
    arguments
}

fn as_time(value: Value) -> Value {
    let time = value.as_f64().and_then(|number| Timestamp::from_number(number).ok());
    time.map_or(value, |time| time.to_string().into())
}

fn as_declared(shape: &Value, value: Value) -> Value {
    match (shape["type"].as_str(), value) {
        (Some("object"), Value::Object(members)) => Value::Object(normal(shape, members)),
        (Some("integer"), Value::Number(number)) => whole(&number).unwrap_or(Value::Number(number)),
        (Some("number"), Value::String(text)) => {
            let read = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            let read = read.and_then(serde_json::Number::from_f64);
            read.map_or(Value::String(text), |number| whole(&number).unwrap_or(Value::Number(number)))
        }
        (_, value) => value,
    }
}

/// `10.0` as `10`; exact below 10^15.
fn whole(number: &serde_json::Number) -> Option<Value> {
    let float = number.as_f64().filter(|f| number.is_f64() && f.fract() == 0.0 && f.abs() <= 1e15)?;
    format!("{float:.0}").parse::<i64>().ok().map(Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::find;
    use serde_json::json;

    fn normalised(tool: &str, arguments: &Value) -> Value {
        Value::Object(normal(&find(tool).unwrap().input_schema, arguments.as_object().unwrap().clone()))
    }

    #[test]
    fn what_models_write_becomes_what_is_declared() {
        let history =
            json!({"device_id": "A", "from": 1_795_341_600, "to": 1_795_341_660_000_i64, "limit": 10.0, "points": 5});
        let wanted = json!({"device_id": "A", "from": "2026-11-22T10:00:00.000Z", "to": "2026-11-22T10:01:00.000Z",
            "limit": 10, "points": 5});
        assert_eq!(normalised("get_telemetry_history", &history), wanted);
        let command = json!({"command": "update_config", "wait_seconds": 5.0,
            "parameters": {"alert_threshold_psi": "145", "own": "7", "sample_rate_seconds": 10.0}});
        let read = normalised("send_command", &command);
        assert_eq!((&read["wait_seconds"], &read["parameters"]["alert_threshold_psi"]), (&json!(5), &json!(145)));
        assert_eq!(read["parameters"]["own"], "7", "what is not declared is nobody's to bend");
    }

    #[test]
    fn what_stands_for_nothing_declared_stays_to_be_refused() {
        for odd in [
            json!({"limit": 1.5, "from": "then", "cursor": 7, "metric": null}),
            json!({"limit": "10", "device_id": 7, "points": 1e300, "from": [1], "nobody": {"a": 1.0}}),
        ] {
            assert_eq!(normalised("get_telemetry_history", &odd), odd);
        }
        let odd = json!({"parameters": {"alert_threshold_psi": "NaN"}, "dry_run": "true"});
        assert_eq!(normalised("send_command", &odd), odd);
    }
}

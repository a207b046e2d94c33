//! Our words as DynamoDB's attribute values. Pure; equal input gives equal bytes, so a retry is a no-op.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use floorgate_model::{DeviceId, ExecutionRecord, GatewayId, Reading, table};
use serde_json::{Map, Value};

use crate::shadow::{DeviceView, GapRecord, HistoryBlock, MetricSummary};

/// An item, or a map inside one.
pub(super) type Item = HashMap<String, AttributeValue>;

/// DynamoDB nests at most 32 levels; what a sender nested deeper than this below an attribute is kept as JSON text.
const NESTING_MAX: usize = 24;

/// A text.
pub(super) fn text(value: impl ToString) -> AttributeValue {
    AttributeValue::S(value.to_string())
}

/// A number.
pub(super) fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// The key of a device's item.
pub(super) fn device_key(device: &DeviceId) -> Item {
    Item::from([(table::devices::DEVICE_ID.to_owned(), text(device))])
}

/// The text of an attribute, if it is one.
pub(super) fn text_of<'a>(item: &'a Item, attribute: &str) -> Option<&'a str> {
    item.get(attribute)?.as_s().ok().map(String::as_str)
}

/// `shadow_version`; zero where it is missing or no number of ours.
pub(super) fn version_of(item: &Item) -> u64 {
    let stored = item.get(table::devices::SHADOW_VERSION).and_then(|value| value.as_n().ok());
    stored.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// A map of strings.
pub(super) fn text_map(values: &BTreeMap<String, String>) -> AttributeValue {
    AttributeValue::M(values.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

/// `last_telemetry`: readings as texts, as the seed has them, and their time; `None` before the first reading.
pub(super) fn last_telemetry(view: &DeviceView) -> Option<AttributeValue> {
    if view.last_readings.is_empty() {
        return None;
    }
    let mut map: Item = view.last_readings.iter().map(|(name, reading)| (name.to_owned(), text(reading))).collect();
    if let Some(at) = view.last_reading_at {
        map.insert("timestamp".to_owned(), text(at));
    }
    Some(AttributeValue::M(map))
}

/// A reading as a number; as a text where DynamoDB has no such number.
fn reading(value: Reading) -> AttributeValue {
    if value.fits_table_number() { number(value) } else { text(value) }
}

/// An item of `iot-telemetry-history`: a block of samples, or a gap record.
pub(super) fn block(block: &HistoryBlock, gateway: &GatewayId) -> Item {
    if let Some(record) = &block.gap {
        return gap(block, record, gateway);
    }
    let last = block.offsets_ms.last().copied().unwrap_or(0);
    let end = block.first.saturating_add(std::time::Duration::from_millis(last));
    let column = |values: &Vec<Option<Reading>>| {
        let cells = values.iter().map(|cell| cell.map_or(AttributeValue::Null(true), reading));
        AttributeValue::L(cells.collect())
    };
    let readings = block.readings.iter().map(|(metric, values)| (metric.clone(), column(values))).collect();
    let clock = (table::history::CLOCK.to_owned(), text(table::history::UNSYNCHRONISED));
    let mut item = Item::from([
        (table::devices::DEVICE_ID.to_owned(), text(&block.device_id)),
        (table::history::TIMESTAMP.to_owned(), text(block.first)),
        (table::history::END.to_owned(), text(end)),
        (table::history::COUNT.to_owned(), number(block.offsets_ms.len())),
        (table::devices::GATEWAY_ID.to_owned(), text(gateway)),
        (table::history::OFFSETS_MS.to_owned(), AttributeValue::L(block.offsets_ms.iter().map(number).collect())),
        (table::history::READINGS.to_owned(), AttributeValue::M(readings)),
        (table::history::EXPIRES_AT.to_owned(), number(block.expires_at.as_seconds())),
    ]);
    item.extend(block.unsynchronised.then_some(clock));
    item
}

/// A gap record: no samples, but how many are missing, since when, and what is left of them.
fn gap(block: &HistoryBlock, record: &GapRecord, gateway: &GatewayId) -> Item {
    let mut item = Item::from([
        (table::devices::DEVICE_ID.to_owned(), text(&block.device_id)),
        (table::history::TIMESTAMP.to_owned(), text(block.first)),
        (table::history::FROM.to_owned(), text(record.from)),
        (table::history::END.to_owned(), text(record.to)),
        (table::history::COUNT.to_owned(), number(0)),
        (table::history::LOST.to_owned(), number(record.lost)),
        (table::history::REASON.to_owned(), text(record.reason)),
        (table::devices::GATEWAY_ID.to_owned(), text(gateway)),
        (table::history::EXPIRES_AT.to_owned(), number(block.expires_at.as_seconds())),
    ]);
    if !record.summary.is_empty() {
        let figures = |figures: &MetricSummary| {
            AttributeValue::M(Item::from([
                (table::history::MIN.to_owned(), reading(figures.min)),
                (table::history::MAX.to_owned(), reading(figures.max)),
                (table::history::MEAN.to_owned(), reading(figures.mean)),
                (table::history::COUNT.to_owned(), number(figures.count)),
            ]))
        };
        let summary = record.summary.iter().map(|(metric, left)| (metric.clone(), figures(left))).collect();
        item.insert(table::history::SUMMARY.to_owned(), AttributeValue::M(summary));
    }
    item
}

/// An execution record, field by field as it is published.
pub(super) fn execution(record: &ExecutionRecord) -> Item {
    match serde_json::to_value(record) {
        Ok(Value::Object(fields)) => fields.iter().map(|(name, value)| (name.clone(), json(value, 1))).collect(),
        // A record is a struct of texts and JSON, which always becomes an object.
        _ => Item::new(),
    }
}

/// Parameters as boto3 writes them from the same JSON, so that both can be compared inside the table.
pub(super) fn parameters(map: &Map<String, Value>) -> AttributeValue {
    json(&Value::Object(map.clone()), 1)
}

fn json(value: &Value, level: usize) -> AttributeValue {
    match value {
        Value::Null => AttributeValue::Null(true),
        Value::Bool(yes) => AttributeValue::Bool(*yes),
        Value::String(content) => text(content),
        Value::Number(n) if n.is_f64() => {
            let value = n.as_f64().and_then(Reading::new);
            value.map_or_else(|| text(n), reading)
        }
        Value::Number(n) => number(n),
        Value::Array(_) | Value::Object(_) if level > NESTING_MAX => text(value),
        Value::Array(list) => AttributeValue::L(list.iter().map(|inner| json(inner, level + 1)).collect()),
        // DynamoDB refuses an empty name.
        Value::Object(map) if map.contains_key("") => text(value),
        Value::Object(map) => {
            AttributeValue::M(map.iter().map(|(name, inner)| (name.clone(), json(inner, level + 1))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(value: &AttributeValue) -> &Item {
        value.as_m().unwrap()
    }

    #[test]
    fn parameters_have_the_types_that_boto3_gives_the_same_json() {
        let given =
            json!({"n": 5, "f": 2.5, "s": "x", "b": true, "z": null, "l": [1, "a"], "m": {"k": -3}, "huge": 1e300});
        let value = parameters(given.as_object().unwrap());
        let value = map(&value);
        assert_eq!(value["n"], AttributeValue::N("5".into()));
        assert_eq!(value["f"], AttributeValue::N("2.5".into()));
        assert_eq!(value["s"], AttributeValue::S("x".into()));
        assert_eq!(value["b"], AttributeValue::Bool(true));
        assert_eq!(value["z"], AttributeValue::Null(true));
        assert_eq!(value["l"], AttributeValue::L(vec![number(1), text("a")]));
        assert_eq!(map(&value["m"])["k"], AttributeValue::N("-3".into()));
        assert_eq!(value["huge"], AttributeValue::S("1e300".into()), "beyond DynamoDB's numbers");
    }

    #[test]
    fn a_gap_record_has_no_samples_and_says_what_is_missing() {
        let at = |seconds: i64| floorgate_model::Timestamp::from_millis(1_795_341_600_000 + seconds * 1_000);
        let figure = |value| Reading::new(value).unwrap();
        let figures = MetricSummary { min: figure(1.5), max: figure(9.0), mean: figure(4.25), count: 240 };
        let record = GapRecord {
            from: at(0),
            to: at(3_600),
            lost: 240,
            reason: floorgate_model::LossReason::Thinned,
            summary: [("pressure_psi".to_owned(), figures)].into(),
        };
        let told = HistoryBlock {
            id: 7,
            device_id: DeviceId::new("S1").unwrap(),
            first: at(0),
            offsets_ms: Vec::new(),
            readings: BTreeMap::new(),
            expires_at: at(7_200),
            unsynchronised: false,
            gap: Some(record),
        };
        let gateway = GatewayId::new("GW").unwrap();
        let guessed = block(&HistoryBlock { unsynchronised: true, gap: None, ..told.clone() }, &gateway);
        assert_eq!(guessed["clock"], text("unsynchronised"));
        let item = block(&told, &gateway);
        assert!(!item.contains_key("clock"));
        assert_eq!(item["timestamp"], text("2026-11-22T10:00:00.000Z"));
        assert_eq!((&item["from"], &item["end"]), (&item["timestamp"], &text("2026-11-22T11:00:00.000Z")));
        assert_eq!((&item["count"], &item["lost"], &item["reason"]), (&number(0), &number(240), &text("thinned")));
        assert_eq!((&item["gateway_id"], &item["expires_at"]), (&text("GW"), &number(1_795_348_800)));
        let summary = map(&map(&item["summary"])["pressure_psi"]);
        assert_eq!((&summary["min"], &summary["max"]), (&number("1.5"), &number(9)));
        assert_eq!((&summary["mean"], &summary["count"]), (&number("4.25"), &number(240)));
        assert!(!item.contains_key("readings") && !item.contains_key("offsets_ms"));
        let mut bare = told;
        bare.gap.as_mut().unwrap().summary.clear();
        assert!(!block(&bare, &gateway).contains_key("summary"));
    }

    #[test]
    fn what_dynamodb_would_refuse_is_kept_as_text() {
        let mut deep = json!("bottom");
        for _ in 0..60 {
            deep = json!({ "down": deep });
        }
        let value = parameters(deep.as_object().unwrap());
        let (mut at, mut levels) = (&value, 1);
        while let AttributeValue::M(inner) = at {
            (at, levels) = (&inner["down"], levels + 1);
        }
        assert!(levels < 30, "{levels} levels");
        assert!(at.as_s().unwrap().ends_with("\"bottom\"}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}"), "{at:?}");
        let unnamed = json!({"": 1});
        assert_eq!(parameters(unnamed.as_object().unwrap()), AttributeValue::S("{\"\":1}".into()));
    }
}

//! Items as JSON, and JSON as items. Pure.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use floorgate_model::Reading;
use serde_json::{Number, Value};

use super::{Attributes, Item, Page};

/// A text.
pub(super) fn text(value: impl ToString) -> AttributeValue {
    AttributeValue::S(value.to_string())
}

/// `#a, #b` and what the placeholders stand for: many of our names are reserved words of DynamoDB.
pub(super) fn projection(attributes: &[&str]) -> (String, HashMap<String, String>) {
    let placeholders: Vec<_> = attributes.iter().map(|name| format!("#{name}")).collect();
    (placeholders.join(", "), expression_names(attributes.iter().copied()))
}

/// What the placeholders `#name` stand for.
pub(super) fn expression_names<'a>(attributes: impl Iterator<Item = &'a str>) -> HashMap<String, String> {
    attributes.map(|name| (format!("#{name}"), name.to_owned())).collect()
}

/// A page of an answer.
pub(super) fn page(items: Option<Vec<Attributes>>, examined: i32, last: Option<Attributes>) -> Page {
    Page {
        items: items.unwrap_or_default().into_iter().map(to_json).collect(),
        examined: u64::try_from(examined).unwrap_or(0),
        last: last.filter(|key| !key.is_empty()).map(to_json),
    }
}

/// An item as JSON.
pub(super) fn to_json(item: Attributes) -> Item {
    item.into_iter().map(|(name, value)| (name, value_to_json(value))).collect()
}

fn value_to_json(value: AttributeValue) -> Value {
    match value {
        AttributeValue::S(text) => text.into(),
        AttributeValue::N(digits) => number(digits),
        AttributeValue::Bool(yes) => yes.into(),
        AttributeValue::L(list) => list.into_iter().map(value_to_json).collect(),
        AttributeValue::M(map) => Value::Object(to_json(map)),
        AttributeValue::Ss(texts) => texts.into(),
        AttributeValue::Ns(numbers) => numbers.into_iter().map(number).collect(),
        // Nobody of ours writes bytes; null is null.
        _ => Value::Null,
    }
}

/// A number stays one. Up to 38 digits come from DynamoDB; what JSON's readers would round stays a text.
fn number(digits: String) -> Value {
    if let Ok(whole) = digits.parse::<i64>() {
        return whole.into();
    }
    let parsed = digits.parse::<f64>().ok().and_then(Number::from_f64);
    parsed.map_or(Value::String(digits), Value::Number)
}

/// JSON as an item.
pub(super) fn from_json(item: Item) -> Attributes {
    item.into_iter().map(|(name, value)| (name, value_from_json(value))).collect()
}

/// JSON as it comes back from a table: `145.0` as `145`, a number beyond DynamoDB's as a text.
pub fn as_stored(item: Item) -> Item {
    to_json(from_json(item))
}

/// A value as an attribute. A number beyond DynamoDB's stays readable as a text, as the gateway writes it.
pub(super) fn value_from_json(value: Value) -> AttributeValue {
    match value {
        Value::Null => AttributeValue::Null(true),
        Value::Bool(yes) => AttributeValue::Bool(yes),
        Value::String(content) => AttributeValue::S(content),
        Value::Number(n) if n.is_f64() => match n.as_f64().and_then(Reading::new) {
            Some(reading) if reading.fits_table_number() => AttributeValue::N(reading.to_string()),
            Some(reading) => text(reading),
            None => text(n),
        },
        Value::Number(n) => AttributeValue::N(n.to_string()),
        Value::Array(list) => AttributeValue::L(list.into_iter().map(value_from_json).collect()),
        Value::Object(map) => AttributeValue::M(from_json(map)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let value =
            json!({"t": "x", "n": 5, "f": 2.5, "neg": -1e-7, "b": true, "z": null, "l": [1, "a"], "m": {"k": 3}});
        assert_eq!(Value::Object(to_json(from_json(value.as_object().unwrap().clone()))), value);
    }

    #[test]
    fn numbers_stay_numbers_and_what_json_would_round_to_infinity_a_text() {
        assert_eq!(number("142.7".to_owned()), json!(142.7));
        assert_eq!(number("9007199254740993".to_owned()), json!(9_007_199_254_740_993_i64));
        assert_eq!(number("1e400".to_owned()), json!("1e400"));
        assert_eq!(value_from_json(json!(1e300)), AttributeValue::S("1e300".into()));
    }
}

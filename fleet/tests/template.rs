//! The AWS template declares the tools as they are defined. Read here without its generator: the check of the check.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use serde_json::{Map, Value};

/// CloudFormation's names as the API's; the names of a tool's arguments are left alone.
fn as_the_api(value: &Value, arguments: bool) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| as_the_api(item, arguments)).collect(),
        Value::Object(members) => {
            let renamed = members.iter().map(|(name, value)| {
                let (first, rest) = name.split_at(1);
                let api = if arguments { name.clone() } else { first.to_lowercase() + rest };
                (api, as_the_api(value, !arguments && name == "Properties"))
            });
            Value::Object(renamed.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

#[test]
fn the_aws_template_declares_the_tools_as_they_are_defined() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/aws/template.yaml");
    let template = std::fs::read_to_string(file).unwrap();
    let (_, after) = template.split_once("# generated: tools").unwrap();
    let (section, _) = after.split_once("# end of tools").unwrap();
    let (_, json) = section.split_once('\n').unwrap();
    let declared: Value = serde_json::from_str(json).expect("JSON between the marks");
    let defined = floorgate_fleet::tools::agentcore();
    assert!(defined.as_array().is_some_and(|tools| tools.len() >= 6));
    assert!(as_the_api(&declared, false) == defined, "the tools changed; run `cargo xtask aws --write`");
}

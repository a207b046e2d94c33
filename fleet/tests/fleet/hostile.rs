//! Arguments that nobody meant well: types, sizes, unicode, pieces of expressions. Nothing is written, nothing leaves,
//! and the answer is one of the tools' own refusals.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::bench::{Bench, Gateway, PRESSURE};
use floorgate_fleet::tools;

const PIECES: [&str; 14] = [
    ":v",
    "#status",
    "SET #a = :b",
    "attribute_exists(device_id)",
    "'; DROP TABLE x; --",
    "\u{0}",
    "\u{202e}",
    "💥",
    "devices/+/commands",
    "${jndi:ldap://x}",
    "../../etc/passwd",
    "budget#everyone",
    "NaN",
    "arn:aws:iam::1:role/x",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        proptest::sample::select(PIECES.to_vec()).prop_map(str::to_owned),
        "\\PC{0,40}",
        (1_usize..3).prop_map(|n| "ä".repeat(n * 3_000)),
        Just(PRESSURE.to_owned()),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        proptest::num::f64::NORMAL.prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(text(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// Some of the tool's own arguments, and sometimes a stranger.
fn arguments(tool: &'static str) -> impl Strategy<Value = Value> {
    let properties = tools::find(tool).unwrap().input_schema["properties"].as_object().unwrap();
    let names: Vec<String> = properties.keys().cloned().collect();
    let name = prop_oneof![9 => proptest::sample::select(names), 1 => text()];
    proptest::collection::btree_map(name, value(), 0..6)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn call() -> impl Strategy<Value = (&'static str, Value)> {
    let tools: Vec<&'static str> = tools::definitions().iter().map(|tool| tool.name).collect();
    proptest::sample::select(tools).prop_flat_map(|tool| (Just(tool), arguments(tool)))
}

/// Codes that an argument alone can lead to.
const REFUSALS: [&str; 9] = [
    "INVALID_ARGUMENTS",
    "UNKNOWN_DEVICE",
    "UNKNOWN_COMMAND",
    "INVALID_PARAMETERS",
    "UNSUPPORTED",
    "INVALID_CURSOR",
    "COMMAND_NOT_FOUND",
    "DEVICE_OFFLINE",
    "RANGE_TOO_LARGE",
];

#[test]
fn hostile_arguments_are_refused_in_words_of_ours_and_nothing_is_written() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::start());
    let gateway = runtime.block_on(async { Gateway::silent(&bench) });
    let before = runtime.block_on(bench.client.scan("iot-devices")).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&call(), |(tool, arguments)| {
        let answer = runtime.block_on(bench.call(tool, arguments.clone()));
        if let Err(error) = answer {
            prop_assert!(REFUSALS.contains(&error.code.as_ref()), "{tool} {arguments}: {error}");
            let told = error.to_json().to_string();
            prop_assert!(told.len() < 4_096, "{} bytes", told.len());
            prop_assert!(!told.contains("Exception"), "{told}");
        } else {
            prop_assert!(tool != "send_command", "{arguments}");
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(gateway.received().is_empty());
    assert!(runtime.block_on(bench.client.scan("iot-commands")).unwrap().is_empty());
    assert_eq!(runtime.block_on(bench.client.scan("iot-devices")).unwrap(), before);
}

#[tokio::test]
async fn what_looks_like_a_command_and_is_too_large_does_not_leave() {
    let bench = Bench::start().await;
    let gateway = Gateway::silent(&bench);
    let many: serde_json::Map<_, _> = (0..33).map(|n| (format!("p{n}"), json!(n))).collect();
    let long: serde_json::Map<_, _> = (0..30).map(|n| (format!("p{n}"), json!("x".repeat(200)))).collect();
    for parameters in
        [json!(many), json!(long), json!({"p": "x".repeat(257)}), json!({"p": {"q": 1}}), json!({"p": null})]
    {
        let ask = json!({"device_id": PRESSURE, "command": "update_config", "parameters": parameters});
        bench.refused("send_command", ask, "INVALID_PARAMETERS").await;
    }
    assert!(gateway.received().is_empty());
}

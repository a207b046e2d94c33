//! The role of `docs/operations.md` against what is really sent: a list of attributes that lacks one would lock every gateway out,
//! one that has too many would be no limit.

use std::collections::{BTreeMap, BTreeSet};

use floorgate_model::table::{commands, devices};
use floorgate_model::{ExecutionRecord, ExecutionStatus, Reason};
use serde_json::Value;

use super::expression::Update;
use super::updates::tests::{me, record, view};
use super::{probe, undo, updates};
use crate::shadow::DeviceView;
use crate::sync::item::{Item, number, text};

/// Attributes by their names in the item, and members of maps as `map.*`, wherever an update or its condition names them.
fn named(update: Update) -> BTreeSet<String> {
    let (expression, condition, names, _) = update.parts();
    let of = |placeholder: &str| names[placeholder].clone();
    let part_of_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '#' | '_' | '.');
    let all = format!("{expression} {condition}");
    let paths = all.split(|c| !part_of_path(c)).filter(|word| word.starts_with('#'));
    paths
        .flat_map(|path| match path.split_once('.') {
            Some((map, _)) => vec![of(map), format!("{}.*", of(map))],
            None => vec![of(path)],
        })
        .collect()
}

fn views() -> Vec<DeviceView> {
    let told = DeviceView { status_reason: Some("why".into()), firmware_version: Some("1".into()), ..view() };
    let silent = DeviceView { configuration: None, last_seen_at: None, ..view() };
    vec![told, silent, view()]
}

/// With everything that a record may have.
fn records() -> Vec<ExecutionRecord> {
    let full = |status| {
        let record = record(status);
        let at = Some(record.received_at);
        ExecutionRecord {
            issuer: Some("kim".into()),
            reason: Some(Reason::Interrupted),
            message: Some("m".into()),
            details: Some(serde_json::json!({ "a": 1 }).as_object().unwrap().clone()),
            started_at: at,
            completed_at: at,
            ..record
        }
    };
    ExecutionStatus::ALL.iter().flat_map(|status| [record(*status), full(*status)]).collect()
}

fn on_devices() -> BTreeSet<String> {
    let mut updates: Vec<_> =
        views().iter().flat_map(|view| [updates::state(view, &me()), updates::repair(view, &me())]).collect();
    updates
        .extend(records().iter().flat_map(|record| [updates::last_execution(record), updates::last_command(record)]));
    let nothing = Item::new();
    let stored = Item::from([(devices::SHADOW_VERSION.to_owned(), number(7)), ("x".into(), text("y"))]);
    updates.extend([undo::removal(&nothing, &stored, &["x"]), undo::removal(&stored, &stored, &["x", "z"])]);
    let keys = [devices::DEVICE_ID, probe::TRIED[0]].map(str::to_owned);
    updates.into_iter().flat_map(named).chain(keys).collect()
}

fn on_commands() -> BTreeSet<String> {
    let keys = [devices::DEVICE_ID, commands::COMMAND_ID, probe::TRIED[1]].map(str::to_owned);
    records().iter().flat_map(|record| named(updates::command(record))).chain(keys).collect()
}

/// The statements of the role that a gateway has, by `Sid`.
fn role() -> BTreeMap<String, Value> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, after) = text.split_once("and what it may do:").unwrap();
    let block = after.split("```json\n").nth(1).unwrap().split("```").next().unwrap();
    let policy: Value = serde_json::from_str(block).unwrap();
    let statements = policy["Statement"].as_array().unwrap();
    statements.iter().map(|statement| (statement["Sid"].as_str().unwrap().to_owned(), statement.clone())).collect()
}

/// The attributes that a statement allows in one table.
fn allowed(statement: &Value, table: &str) -> BTreeSet<String> {
    assert_eq!(statement["Action"], "dynamodb:UpdateItem");
    assert!(statement["Resource"].as_str().unwrap().ends_with(&format!(":table/{table}")), "{statement}");
    let condition = statement["Condition"].as_object().unwrap();
    assert_eq!(condition.len(), 1, "another condition may refuse what is sent: {condition:?}");
    let keys = condition["ForAllValues:StringLike"].as_object().unwrap();
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys["dynamodb:Attributes"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_gateways_role_may_update_the_attributes_that_are_written_or_judged_and_no_other() {
    let role = role();
    assert_eq!(allowed(&role["States"], "iot-devices"), on_devices());
    assert_eq!(allowed(&role["Outcomes"], "iot-commands"), on_commands());
    let updating = role.values().filter(|statement| statement["Action"].to_string().contains("UpdateItem")).count();
    assert_eq!(updating, 2, "a statement without attributes would allow what the others do not");
}

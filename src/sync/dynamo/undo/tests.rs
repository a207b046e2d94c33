//! What is taken back, and what is left alone.

use aws_sdk_dynamodb::types::AttributeValue;
use floorgate_model::CommandId;
use serde_json::json;

use super::super::updates::tests::{me, record, view};
use super::*;
use crate::sync::item::{number, text};

const AT: &str = "2026-11-22T10:00:00.100000+00:00";

fn map(members: &[(&str, &str)]) -> AttributeValue {
    AttributeValue::M(members.iter().map(|(name, value)| ((*name).to_owned(), text(value))).collect())
}

fn refused(command: &str, parameters: Value) -> ExecutionRecord {
    let parameters = parameters.as_object().unwrap().clone();
    ExecutionRecord { command: command.into(), parameters, ..record(ExecutionStatus::Rejected) }
}

/// The tools' entry; `id` once an outcome was written into it.
fn entry(command: &str, parameters: &[(&str, &str)], id: Option<&str>) -> AttributeValue {
    let mut entry = Item::from([("command".into(), text(command)), ("parameters".into(), map(parameters))]);
    entry.extend(id.map(|id| ("command_id".to_owned(), text(id))));
    AttributeValue::M(entry)
}

fn stored(configuration: &[(&str, &str)], entry: AttributeValue) -> Item {
    Item::from([
        ("gateway_id".into(), text(me())),
        ("shadow_version".into(), number(7)),
        ("configuration".into(), map(configuration)),
        ("last_command".into(), entry),
        ("last_command_at".into(), text(AT)),
    ])
}

fn unknown() -> DeviceView {
    DeviceView { configuration: None, ..view() }
}

/// The names that are removed; none where nothing is.
fn removed(stored: &Item, record: &ExecutionRecord) -> Vec<String> {
    match judge(stored, record, &unknown(), &me()) {
        Judgement::Clean => Vec::new(),
        Judgement::Newer => panic!("newer"),
        Judgement::Remove(update) => {
            let (expression, _, names, _) = update.parts();
            let paths = expression.strip_prefix("REMOVE ").expect("it only removes").split(", ");
            paths.map(|path| names[path.strip_prefix("#configuration.").unwrap()].clone()).collect()
        }
    }
}

#[test]
fn the_members_of_a_command_that_did_not_succeed_are_taken_back_and_no_other() {
    let wild = refused("update_config", json!({"rate": "9", "a.b c#": "1"}));
    let item = stored(&[("rate", "9"), ("a.b c#", "1"), ("commissioned", "by hand")], {
        entry("update_config", &[("rate", "9"), ("a.b c#", "1")], Some("c1"))
    });
    assert_eq!(removed(&item, &wild), ["a.b c#", "rate"]);
    let item = stored(&[("calibration_date", "2026-11-22"), ("rate", "9")], entry("recalibrate", &[], Some("c1")));
    assert_eq!(removed(&item, &refused("recalibrate", json!({}))), ["calibration_date"]);
    let item = stored(&[("rate", "9")], entry("reboot", &[], Some("c1")));
    assert_eq!(removed(&item, &refused("reboot", json!({}))), [""; 0]);
}

#[test]
fn every_placeholder_of_a_removal_is_used_and_the_item_must_be_as_it_was_judged() {
    let item = stored(&[("rate", "9")], entry("update_config", &[("rate", "9")], Some("c1")));
    let wild = refused("update_config", json!({"rate": "9"}));
    let Judgement::Remove(update) = judge(&item, &wild, &unknown(), &me()) else { panic!("nothing to remove") };
    let (expression, condition, names, values) = update.parts();
    assert_eq!(expression, "REMOVE #configuration.#member_0");
    assert_eq!(
        condition,
        "#gateway_id = :gateway_id AND #shadow_version = :shadow_version AND #last_command = :last_command AND \
         #last_command_at = :last_command_at AND #configuration.#member_0 = :member_0"
    );
    assert_eq!((names.len(), values.len()), (6, 5));
    assert_eq!(values[":last_command"], item["last_command"]);
}

#[test]
fn an_entry_without_an_id_is_this_commands_by_content_and_time() {
    let members = [("rate", "what the tool made of it")];
    let given = refused("update_config", json!({"rate": "9"}));
    let item = stored(&members, entry("update_config", &[("rate", "9")], None));
    assert_eq!(removed(&item, &given), ["rate"]);
    let mut late = item.clone();
    late.insert("last_command_at".into(), text("2026-11-22T10:00:06.000000+00:00"));
    assert_eq!(removed(&late, &given), [""; 0], "another, equal command's");
    let other = stored(&members, entry("update_config", &[("rate", "9")], Some("c2")));
    assert_eq!(removed(&other, &given), [""; 0]);
}

#[test]
fn what_a_later_command_wrote_stays_until_its_own_end() {
    let given = refused("update_config", json!({"rate": 9, "mode": true, "gone": "x"}));
    let members = [("rate", "9"), ("mode", "True"), ("gone", "y"), ("calibration_date", "2026-11-22")];
    let later = stored(&members, entry("update_config", &[("rate", "9")], None));
    let later = |entry: AttributeValue| [later.clone(), Item::from([("last_command".into(), entry)])].concat_items();
    assert_eq!(removed(&later(entry("update_config", &[("rate", "9")], None)), &given), ["mode"]);
    assert_eq!(removed(&later(entry("recalibrate", &[], None)), &given), ["mode", "rate"]);
    let calibration = refused("recalibrate", json!({}));
    assert_eq!(removed(&later(entry("reboot", &[], Some("c2"))), &calibration), ["calibration_date"]);
    let newer = ExecutionRecord { command_id: CommandId::new("c0").unwrap(), ..calibration.clone() };
    assert_eq!(removed(&later(entry("recalibrate", &[], Some("c2"))), &newer), [""; 0]);
}

trait ConcatItems {
    fn concat_items(self) -> Item;
}

impl ConcatItems for [Item; 2] {
    fn concat_items(self) -> Item {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn nothing_is_taken_back_without_an_entry_on_anothers_device_or_from_a_newer_item() {
    let given = refused("update_config", json!({"rate": "9"}));
    let item = stored(&[("rate", "9")], entry("update_config", &[("rate", "9")], Some("c1")));
    assert_eq!(removed(&item, &given), ["rate"]);
    for attribute in ["configuration", "last_command", "gateway_id"] {
        let mut without = item.clone();
        without.remove(attribute);
        assert_eq!(judge(&without, &given, &unknown(), &me()), Judgement::Clean, "{attribute}");
    }
    let mut theirs = item.clone();
    theirs.insert("gateway_id".into(), text("GW-2"));
    assert_eq!(judge(&theirs, &given, &unknown(), &me()), Judgement::Clean);
    let mut newer = item;
    newer.insert("shadow_version".into(), number(8));
    assert_eq!(judge(&newer, &given, &unknown(), &me()), Judgement::Newer);
}

#[test]
fn only_the_end_of_a_command_that_did_not_succeed_leaves_something_to_take_back() {
    for status in ExecutionStatus::ALL {
        let ended = ExecutionRecord { status: *status, ..refused("recalibrate", json!({})) };
        let badly = status.is_terminal() && *status != ExecutionStatus::Succeeded;
        assert_eq!(may_have_been_written(&ended), badly, "{status}");
    }
    assert!(!may_have_been_written(&refused("update_config", json!({"": 1}))));
    assert!(!may_have_been_written(&refused("set_status", json!({"status": "offline"}))));
}

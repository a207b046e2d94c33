//! The expressions, word by word: what is sent is what the contract says, and an accident shows.

use std::collections::BTreeMap;

use floorgate_model::{AdminState, CommandId, DeviceId, DeviceStatus, Readings, Timestamp};

use super::*;

pub(in super::super) fn me() -> GatewayId {
    GatewayId::new("GW-1").unwrap()
}

pub(in super::super) fn view() -> DeviceView {
    let at = Timestamp::from_millis(1_795_341_600_000);
    DeviceView {
        device_id: DeviceId::new("PRESS-1").unwrap(),
        device_type: "pressure_sensor".into(),
        location: "line-7".into(),
        registered_at: at,
        status: DeviceStatus::Online,
        observed: DeviceStatus::Online,
        status_reason: None,
        status_since: at,
        admin_state: AdminState::InService,
        firmware_version: None,
        configuration: Some(BTreeMap::from([("rate".to_owned(), "5".to_owned())])),
        last_configuration_at: None,
        boot_count: None,
        last_state_at: None,
        declared_commands: None,
        last_readings: Readings::new(),
        last_reading_at: None,
        last_seen_at: Some(at),
        version: 7,
        commands_open: 0,
        last_execution: None,
        taken_over_by: None,
    }
}

pub(in super::super) fn record(status: ExecutionStatus) -> ExecutionRecord {
    let at = Timestamp::from_millis(1_795_341_600_000);
    ExecutionRecord {
        command_id: CommandId::new("c1").unwrap(),
        device_id: DeviceId::new("PRESS-1").unwrap(),
        command: "reboot".into(),
        parameters: serde_json::Map::new(),
        issuer: None,
        issued_at: at,
        expires_at: at,
        received_at: at,
        status,
        reason: None,
        message: None,
        details: None,
        started_at: None,
        completed_at: None,
        gateway_id: me(),
    }
}

#[test]
fn a_state_sets_exactly_the_gateways_attributes() {
    let (expression, condition, _, values) = state(&view(), &me()).parts();
    assert_eq!(
        expression,
        "SET #device_type = if_not_exists(#device_type, :device_type), #location = if_not_exists(#location, :location), \
         #registered_at = if_not_exists(#registered_at, :registered_at), #status = :status, \
         #status_since = :status_since, #admin_state = :admin_state, #gateway_id = :gateway_id, \
         #shadow_version = :shadow_version, #last_telemetry = if_not_exists(#last_telemetry, :last_telemetry), \
         #configuration = :configuration, #last_seen_at = :last_seen_at REMOVE #status_reason"
    );
    assert_eq!(
        condition,
        "attribute_not_exists(#shadow_version) OR (#shadow_version < :shadow_version AND \
         (attribute_not_exists(#gateway_id) OR #gateway_id = :gateway_id OR attribute_not_exists(#last_seen_at) OR \
         #last_seen_at < :silent_since))"
    );
    assert_eq!(values[":shadow_version"], number(7));
    assert_eq!(values[":silent_since"], text("2026-11-22T09:59:30.000Z"));
}

#[test]
fn the_tools_entry_is_matched_by_id_or_by_content_and_time() {
    let (expression, condition, _, values) = last_command(&record(ExecutionStatus::Succeeded)).parts();
    assert_eq!(expression, "SET #last_command.#status = :status, #last_command.#command_id = :command_id");
    assert_eq!(
        condition,
        "#last_command.#command = :command AND (#last_command.#command_id = :command_id OR \
         (#last_command.#parameters = :parameters AND (#last_command_at BETWEEN :same AND :same_end OR \
         (attribute_not_exists(#last_command.#command_id) AND #last_command_at BETWEEN :low AND :high))))"
    );
    assert_eq!(values[":same"], text("2026-11-22T10:00:00.000"));
    assert_eq!(values[":same_end"], text("2026-11-22T10:00:00.000~"));
    assert_eq!(values[":low"], text("2026-11-22T09:59:55.000Z"));
    assert_eq!(values[":high"], text("2026-11-22T10:00:05.000Z"));
}

#[test]
fn every_placeholder_of_every_update_is_used_and_every_use_has_one() {
    let mut updates = vec![state(&view(), &me()), repair(&view(), &me())];
    let unknown = DeviceView { configuration: None, last_seen_at: None, ..view() };
    updates.extend([state(&unknown, &me()), repair(&unknown, &me())]);
    for status in ExecutionStatus::ALL {
        let record = record(*status);
        updates.extend([command(&record), last_execution(&record), last_command(&record)]);
    }
    for update in updates {
        let (expression, condition, names, values) = update.parts();
        let text = format!("{expression} {condition}");
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '#' | ':');
        let used: Vec<_> = text.split(|c| !is_part(c)).filter(|word| word.starts_with(['#', ':'])).collect();
        for placeholder in names.keys().chain(values.keys()) {
            assert!(used.contains(&placeholder.as_str()), "{placeholder} is not used in {text}");
        }
        for word in used {
            assert!(names.contains_key(word) || values.contains_key(word), "{word} is not defined for {text}");
        }
    }
}

#[test]
fn a_stored_item_is_current_only_with_our_name_version_and_content() {
    let (view, me) = (view(), me());
    let update = state(&view, &me);
    let stored = |change: &[(&str, AttributeValue)]| {
        let (_, _, names, values) = update.clone().parts();
        let mut item: Item =
            names.values().filter_map(|name| Some((name.clone(), values.get(&format!(":{name}"))?.clone()))).collect();
        item.extend(change.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        refused_state(&update, &item, &view, &me).unwrap()
    };
    let behind = |table_version| StateWritten::Behind { table_version };
    assert_eq!(stored(&[]), StateWritten::Current);
    assert_eq!(stored(&[("status", text("rebooting"))]), behind(7), "a tool wrote in between");
    assert_eq!(stored(&[("shadow_version", number(9))]), behind(9));
    let other = ("gateway_id", text("GW-2"));
    assert_eq!(stored(std::slice::from_ref(&other)), StateWritten::TakenOver { by: GatewayId::new("GW-2").unwrap() });
    let old = ("last_seen_at", text("2026-11-22T09:59:00.000Z"));
    assert_eq!(stored(&[other, old]), behind(7), "it lost the device");
}

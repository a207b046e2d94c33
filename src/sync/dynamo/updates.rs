//! The conditional writes of contract §4, as data; and what a refused one means. Pure.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use floorgate_model::table::{commands, devices};
use floorgate_model::{ExecutionRecord, ExecutionStatus, GatewayId};

use super::expression::Update;
use crate::shadow::DeviceView;
use crate::sync::item::{self, Item, number, text, text_of};
use crate::sync::table::{StateWritten, TableError};

/// A device moves to us when we heard it this much later than its other gateway did. Two gateways that both hear a
/// device would otherwise take it from each other at every write.
pub(crate) const OTHER_SILENT_AFTER: Duration = Duration::from_secs(30);
/// How far apart the tools' `last_command_at` and the command's own time may lie. The seed's Lambda takes the two
/// one after the other and gives no id.
const SAME_COMMAND_WITHIN: Duration = Duration::from_secs(5);

/// A device's state: our attributes alone, only forward, only while the device is ours.
pub(super) fn state(view: &DeviceView, me: &GatewayId) -> Update {
    let mut update = Update::default();
    update.set_once(devices::DEVICE_TYPE, text(&view.device_type));
    update.set_once(devices::LOCATION, text(&view.location));
    update.set_once(devices::REGISTERED_AT, text(view.registered_at));
    update.set(devices::STATUS, text(view.status));
    update.set(devices::STATUS_SINCE, text(view.status_since));
    update.set(devices::ADMIN_STATE, text(view.admin_state));
    update.set(devices::GATEWAY_ID, text(me));
    update.set(devices::SHADOW_VERSION, number(view.version));
    match &view.status_reason {
        Some(reason) => update.set(devices::STATUS_REASON, text(reason)),
        None => update.remove(devices::STATUS_REASON),
    }
    if let Some(version) = &view.firmware_version {
        update.set(devices::FIRMWARE_VERSION, text(version));
    }
    // The parent maps have to exist, or the seed's Lambda fails to set a member of them.
    let nothing = || AttributeValue::M(Item::new());
    match item::last_telemetry(view) {
        Some(readings) => update.set(devices::LAST_TELEMETRY, readings),
        None => update.set_once(devices::LAST_TELEMETRY, nothing()),
    }
    match &view.configuration {
        Some(values) => update.set(devices::CONFIGURATION, item::text_map(values)),
        None => update.set_once(devices::CONFIGURATION, nothing()),
    }
    let mut ours = format!("attribute_not_exists(#{0}) OR #{0} = :{0}", devices::GATEWAY_ID);
    if let Some(seen) = view.last_seen_at {
        update.set(devices::LAST_SEEN_AT, text(seen));
        let silent = update.value("silent_since", text(seen.saturating_sub(OTHER_SILENT_AFTER)));
        let last_seen = update.name(devices::LAST_SEEN_AT);
        ours.push_str(&format!(" OR attribute_not_exists({last_seen}) OR {last_seen} < {silent}"));
    }
    update.only_if(format!("attribute_not_exists(#{0}) OR (#{0} < :{0} AND ({ours}))", devices::SHADOW_VERSION));
    update
}

/// What the item says that refused a state.
pub(super) fn refused_state(
    update: &Update,
    stored: &Item,
    view: &DeviceView,
    me: &GatewayId,
) -> Result<StateWritten, TableError> {
    let table_version = item::version_of(stored);
    let behind = StateWritten::Behind { table_version };
    let Some(owner) = text_of(stored, devices::GATEWAY_ID) else { return Ok(behind) };
    if owner == me.as_str() {
        // Equal version and content: an attempt whose answer was lost. Equal version alone may be a fresh store's
        // accident, or a tool wrote in between; both are put right by a newer version.
        let there = table_version == view.version && update.is_in(stored);
        return Ok(if there { StateWritten::Current } else { behind });
    }
    if other_is_silent(text_of(stored, devices::LAST_SEEN_AT), view) {
        return Ok(behind);
    }
    let by = GatewayId::new(owner).map_err(|error| TableError::Permanent {
        text: format!(
            "the item of device {} belongs to gateway {owner:?}, whose name {error}; correct or remove its `gateway_id`",
            view.device_id
        ),
    })?;
    Ok(StateWritten::TakenOver { by })
}

/// Whether the gateway that wrote `last_seen_at` has lost the device that we hear.
pub(crate) fn other_is_silent(their_last_seen: Option<&str>, view: &DeviceView) -> bool {
    let Some(ours) = view.last_seen_at else { return false };
    let limit = ours.saturating_sub(OTHER_SILENT_AFTER).to_string();
    their_last_seen.is_none_or(|theirs| theirs < limit.as_str())
}

/// Status and configuration as they really are, at the version the table has.
pub(super) fn repair(view: &DeviceView, me: &GatewayId) -> Update {
    let mut update = Update::default();
    update.set(devices::STATUS, text(view.status));
    let mut differs = format!("#{0} <> :{0}", devices::STATUS);
    if let Some(values) = &view.configuration {
        update.set(devices::CONFIGURATION, item::text_map(values));
        differs.push_str(&format!(" OR #{0} <> :{0}", devices::CONFIGURATION));
    }
    let (owner, me) = (update.name(devices::GATEWAY_ID), update.value(devices::GATEWAY_ID, text(me)));
    let (at, version) =
        (update.name(devices::SHADOW_VERSION), update.value(devices::SHADOW_VERSION, number(view.version)));
    update.only_if(format!("{owner} = {me} AND {at} = {version} AND ({differs})"));
    update
}

/// The item of `iot-commands`: every field of the record, only forward along the life of a command.
pub(super) fn command(record: &ExecutionRecord) -> Update {
    let mut update = Update::default();
    for (field, value) in item::execution(record) {
        if field != devices::DEVICE_ID && field != commands::COMMAND_ID {
            update.set(&field, value);
        }
    }
    let status = format!("#{}", commands::STATUS);
    // A tool may have made the item as `created` before we knew of it; without our name it is not our record yet.
    let unclaimed = format!("attribute_not_exists({status}) OR attribute_not_exists(#{})", devices::GATEWAY_ID);
    let before = earlier(&mut update, record.status);
    update.only_if(if before.is_empty() { unclaimed } else { format!("{unclaimed} OR {status} IN ({before})") });
    update
}

/// `last_execution`: the newest command's record, by the time of receipt; the same command only forward.
pub(super) fn last_execution(record: &ExecutionRecord) -> Update {
    let mut update = Update::default();
    update.set(devices::LAST_EXECUTION, AttributeValue::M(item::execution(record)));
    let key = update.name(devices::DEVICE_ID);
    let path = format!("#{}", devices::LAST_EXECUTION);
    let [id, received] = ["command_id", "received_at"].map(|field| update.name(field));
    let (this, at) =
        (update.value("command_id", text(&record.command_id)), update.value("received_at", text(record.received_at)));
    let mut newer = format!("{path}.{received} < {at} OR ({path}.{received} = {at} AND {path}.{id} < {this})");
    let before = earlier(&mut update, record.status);
    if !before.is_empty() {
        // Named only where it is used: an unused placeholder is a validation error.
        let status = update.name(commands::STATUS);
        newer.push_str(&format!(" OR ({path}.{id} = {this} AND {path}.{status} IN ({before}))"));
    }
    update.only_if(format!("attribute_exists({key}) AND (attribute_not_exists({path}) OR {newer})"));
    update
}

/// The outcome in the tools' `last_command`, if that entry is still this command's.
pub(super) fn last_command(record: &ExecutionRecord) -> Update {
    let mut update = Update::default();
    let map = devices::LAST_COMMAND;
    update.set_member(map, "status", text(record.status));
    update.set_member(map, "command_id", text(&record.command_id));
    if let Some(reason) = record.reason {
        update.set_member(map, "reason", text(reason));
    }
    if let Some(at) = record.completed_at {
        update.set_member(map, "completed_at", text(at));
    }
    let [path, command, given, at] =
        [map, "command", "parameters", devices::LAST_COMMAND_AT].map(|attribute| update.name(attribute));
    let name = update.value("command", text(&record.command));
    let parameters = update.value("parameters", item::parameters(&record.parameters));
    let (low, high) = entry_window(record);
    let (low, high) = (update.value("low", text(low)), update.value("high", text(high)));
    let (same, same_end) = entry_moment(record);
    let (same, same_end) = (update.value("same", text(same)), update.value("same_end", text(same_end)));
    // Two equal commands within the window: the time alone may have given the entry to the other one; its own time
    // takes it back.
    let by_time = format!(
        "{at} BETWEEN {same} AND {same_end} OR (attribute_not_exists({path}.#command_id) AND {at} BETWEEN {low} AND {high})"
    );
    let by_content = format!("{path}.{given} = {parameters} AND ({by_time})");
    let mut condition = format!("{path}.{command} = {name} AND ({path}.#command_id = :command_id OR ({by_content}))");
    if !record.status.is_terminal() {
        // A late `in_progress` must not cover the outcome.
        let terminal: Vec<_> = ExecutionStatus::ALL.iter().filter(|status| status.is_terminal()).collect();
        let list = in_list(&mut update, terminal.into_iter().copied());
        condition.push_str(&format!(" AND NOT {path}.#status IN ({list})"));
    }
    update.only_if(condition);
    update
}

/// When the tools' entry of a command may have been written. As text: the Lambda's `…00.123456+00:00` sorts beside our
/// `…00.123Z` to within a second.
pub(super) fn entry_window(record: &ExecutionRecord) -> (String, String) {
    let (low, high) =
        (record.issued_at.saturating_sub(SAME_COMMAND_WITHIN), record.issued_at.saturating_add(SAME_COMMAND_WITHIN));
    (low.to_string(), high.to_string())
}

/// The command's own millisecond: a tool that publishes the time it wrote names one command by it.
fn entry_moment(record: &ExecutionRecord) -> (String, String) {
    let moment: String = record.issued_at.to_string().chars().take_while(|c| *c != 'Z').collect();
    // Above every digit and zone that may follow.
    let end = format!("{moment}~");
    (moment, end)
}

/// Whether `last_command` is this command's: what the condition of [`last_command`] says, of an item that was read.
pub(super) fn is_entry_of(stored: &Item, entry: &Item, record: &ExecutionRecord) -> bool {
    let id = text_of(entry, "command_id");
    if text_of(entry, "command") != Some(record.command.as_str()) {
        return false;
    }
    let same_content = || entry.get("parameters") == Some(&item::parameters(&record.parameters));
    let at = text_of(stored, devices::LAST_COMMAND_AT);
    let within = |(low, high): (String, String)| at.is_some_and(|at| low.as_str() <= at && at <= high.as_str());
    let same_time = || within(entry_moment(record)) || (id.is_none() && within(entry_window(record)));
    id == Some(record.command_id.as_str()) || (same_content() && same_time())
}

/// Placeholders of the statuses that may come before `status`.
fn earlier(update: &mut Update, status: ExecutionStatus) -> String {
    let before = ExecutionStatus::ALL.iter().copied().filter(|earlier| earlier.may_become(status));
    in_list(update, before)
}

fn in_list(update: &mut Update, statuses: impl Iterator<Item = ExecutionStatus>) -> String {
    let names: Vec<_> = statuses.map(|status| update.value(&format!("is_{status}"), text(status))).collect();
    names.join(", ")
}

#[cfg(test)]
pub(super) mod tests;

//! What a tool wrote optimistically for a command that did not succeed, on a device that never told its configuration.
//!
//! Where the device's configuration is known, its state overwrites the whole map and that is that. Where it is not, the
//! map belongs to nobody, and the members that the seed's Lambda set in advance (`calibration_date`, or one for each
//! parameter of `update_config`) would stand there as if they were so. Here they are taken back:
//!
//! * by an update of their own: it overlaps the `SET` of a state, and DynamoDB refuses a `REMOVE` below a map that is
//!   missing. The item is read, judged by a pure function, and changed only if what was judged is still there;
//! * all of them, whatever their values, while `last_command` is this command's: nobody wrote after it;
//! * once another command's entry stands there: only those which that one does not claim and which still have the value
//!   of this one. What a later command wrote stays until its own end;
//! * nothing without any `last_command` (no tool ever wrote), on another gateway's device, or when the item is newer
//!   than the view: the configuration may be known by now.
//!
//! What stood in the map before the tool wrote is not known here and does not come back.

use std::collections::BTreeSet;

use floorgate_model::table::devices;
use floorgate_model::{CommandName, ExecutionRecord, ExecutionStatus, GatewayId, Reading};
use serde_json::Value;

use super::expression::Update;
use super::{DynamoTable, updates};
use crate::shadow::DeviceView;
use crate::sync::item::{self, Item, text_of};
use crate::sync::table::{Settled, TableError};

/// What the Lambda sets in advance for a calibration.
const CALIBRATION_DATE: &str = "calibration_date";
/// How often an item that changes between the look and the write is judged anew at one go.
const TRIES: usize = 3;

/// What is to be done with an item.
#[derive(Debug, PartialEq)]
enum Judgement {
    /// Nothing of this command stands there.
    Clean,
    /// Newer than what we know of the device.
    Newer,
    /// Take these back.
    Remove(Box<Update>),
}

impl DynamoTable {
    /// Takes back what a tool wrote for this command, if it did not succeed and nothing else puts it right.
    pub(super) async fn undo(
        &self,
        record: &ExecutionRecord,
        view: Option<&DeviceView>,
    ) -> Result<Settled, TableError> {
        let Some(view) = view.filter(|view| view.configuration.is_none()) else { return Ok(Settled::Done) };
        if !may_have_been_written(record) {
            return Ok(Settled::Done);
        }
        let table = &self.config.devices_table;
        let mut stored = self.get(table, item::device_key(&record.device_id)).await?.unwrap_or_default();
        for _ in 0..TRIES {
            match judge(&stored, record, view, &self.config.gateway_id) {
                Judgement::Clean => return Ok(Settled::Done),
                Judgement::Newer => return Ok(Settled::Again),
                Judgement::Remove(update) => {
                    match self.update(table, item::device_key(&record.device_id), *update).await? {
                        None => return Ok(Settled::Done),
                        Some(now) => stored = now,
                    }
                }
            }
        }
        Ok(Settled::Again)
    }
}

fn may_have_been_written(record: &ExecutionRecord) -> bool {
    let ended_badly = record.status.is_terminal() && record.status != ExecutionStatus::Succeeded;
    ended_badly && !claimed(&record.command, record.parameters.keys()).is_empty()
}

/// The members of `configuration` that a tool writes for a command.
fn claimed<'a>(command: &str, parameters: impl Iterator<Item = &'a String>) -> BTreeSet<&'a str> {
    if command == CommandName::Recalibrate.as_str() {
        BTreeSet::from([CALIBRATION_DATE])
    } else if command == CommandName::UpdateConfig.as_str() {
        // DynamoDB knows no member without a name.
        parameters.map(String::as_str).filter(|name| !name.is_empty()).collect()
    } else {
        BTreeSet::new()
    }
}

fn judge(stored: &Item, record: &ExecutionRecord, view: &DeviceView, me: &GatewayId) -> Judgement {
    let maps = [devices::CONFIGURATION, devices::LAST_COMMAND].map(|name| stored.get(name)?.as_m().ok());
    let [Some(configuration), Some(entry)] = maps else { return Judgement::Clean };
    if text_of(stored, devices::GATEWAY_ID) != Some(me.as_str()) {
        return Judgement::Clean;
    }
    let ours = updates::is_entry_of(stored, entry, record);
    let theirs = entry.get("parameters").and_then(|value| value.as_m().ok());
    let theirs = claimed(text_of(entry, "command").unwrap_or_default(), theirs.into_iter().flat_map(Item::keys));
    let stands = |name: &&str| match text_of(configuration, name) {
        Some(value) => ours || (!theirs.contains(name) && is_written_by(record, name, value)),
        // No text: not the Lambda's, unless nobody wrote after it.
        None => ours && configuration.contains_key(*name),
    };
    let names: Vec<_> = claimed(&record.command, record.parameters.keys()).into_iter().filter(stands).collect();
    if names.is_empty() {
        return Judgement::Clean;
    }
    if item::version_of(stored) > view.version {
        return Judgement::Newer;
    }
    Judgement::Remove(Box::new(removal(stored, configuration, &names)))
}

/// Removes members while everything that was judged is as it was.
pub(super) fn removal(stored: &Item, configuration: &Item, names: &[&str]) -> Update {
    let mut update = Update::default();
    let mut unchanged = Vec::new();
    for attribute in [devices::GATEWAY_ID, devices::SHADOW_VERSION, devices::LAST_COMMAND, devices::LAST_COMMAND_AT] {
        let name = update.name(attribute);
        match stored.get(attribute) {
            Some(value) => unchanged.push(format!("{name} = {}", update.value(attribute, value.clone()))),
            None => unchanged.push(format!("attribute_not_exists({name})")),
        }
    }
    for (number, name) in names.iter().enumerate() {
        let placeholder = format!("member_{number}");
        let path = update.remove_member(devices::CONFIGURATION, &placeholder, name);
        if let Some(value) = configuration.get(*name) {
            unchanged.push(format!("{path} = {}", update.value(&placeholder, value.clone())));
        }
    }
    update.only_if(unchanged.join(" AND "));
    update
}

/// Whether a member has the value that a tool writes for this command.
fn is_written_by(record: &ExecutionRecord, name: &str, found: &str) -> bool {
    if record.command == CommandName::Recalibrate.as_str() {
        let (low, high) = updates::entry_window(record);
        return [low, high].iter().any(|day| day.get(..10) == Some(found));
    }
    match record.parameters.get(name) {
        // As python's `str` has them.
        Some(Value::String(given)) => found == given,
        Some(Value::Bool(given)) => found == if *given { "True" } else { "False" },
        Some(Value::Null) => found == "None",
        Some(Value::Number(given)) => {
            let given = given.to_string();
            found == given || Reading::parse(found).is_some_and(|number| Some(number) == Reading::parse(&given))
        }
        Some(Value::Array(_) | Value::Object(_)) | None => false,
    }
}

#[cfg(test)]
mod tests;

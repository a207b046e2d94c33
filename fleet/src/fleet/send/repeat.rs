//! Is this a command that was asked for before?
//!
//! * With a key: the id follows from caller, device and key. Two calls at the same moment have one id, the table takes it
//!   once, and the second call answers the first one's outcome.
//! * Without: an identical command (caller, device, command, parameters) that is the device's last one is joined while it is
//!   open. Calls at the same moment all find none; they differ when they note theirs as the device's last one, which each
//!   does only over the entry it has read. Who finds another's there joins it, if it is identical, *whether or not it has
//!   ended*: it was not there when this call began, so this call cannot have been made for its outcome. The loser's own
//!   item ends as `NOT_SENT` and names the one it joined.
//! * What this does not see: an identical command when another one was sent to the device in between (the entry is one), and a
//!   dry run, which is never noted and changes nothing. A key is the safe way.

use std::time::Duration;

use floorgate_model::table::{commands, devices};
use floorgate_model::{CommandId, DeviceId, Reason};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{ANSWER_TAKES, Asked, CALLER_KEY, Command, is_final, new_id};
use crate::age::{text, time};
use crate::error::ToolError;
use crate::fleet::{Call, record};
use crate::store::Item;

/// A key means the same intention for so long. Models make keys of what they do, and do the same again next month.
pub(crate) const KEY_COUNTS_FOR: Duration = Duration::from_secs(24 * 3_600);

/// Looks for an equal call that has used the budget up and not yet made its item, or noted it.
const LOOKS: u32 = 4;
/// Before the second look; twice as long before the third one, and so on.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The id of a device's last command.
pub(super) fn last_command_id(device: &Item) -> Option<String> {
    let last = device.get(devices::LAST_COMMAND)?.as_object()?;
    text(last, commands::COMMAND_ID).map(str::to_owned)
}

impl Call<'_> {
    /// The id: of caller, device and key where there is a key, else a new one.
    pub(super) fn command_id(&self, asked: &Asked, device: &DeviceId) -> CommandId {
        let id = match &asked.key {
            None => new_id(self.now),
            Some(key) => keyed_id(&self.caller.subject, device, key, asked.dry_run),
        };
        #[expect(
            clippy::expect_used,
            reason = "hex digits and a dash, 29 or 64 bytes, fit the pattern of a command id"
        )]
        CommandId::new(&id).expect("hex digits are a command id")
    }

    /// The item of the same intention, if there is one.
    pub(super) async fn earlier(&self, command: &Command<'_>, device: &Item) -> Result<Option<Item>, ToolError> {
        if command.asked.key.is_some() {
            return self.same(command).await;
        }
        let Some(last) = device.get(devices::LAST_COMMAND).and_then(Value::as_object) else { return Ok(None) };
        let Some(id) = text(last, commands::COMMAND_ID).filter(|_| !command.asked.dry_run) else { return Ok(None) };
        let found = self.parts.store.command(command.device_id.as_str(), id).await?;
        Ok(found.filter(|item| self.is_open_and_same(item, command.asked)))
    }

    fn is_open_and_same(&self, item: &Item, asked: &Asked) -> bool {
        !is_final(item) && !record::is_overdue(item, self.now) && self.is_own_and_same(item, asked)
    }

    fn is_own_and_same(&self, item: &Item, asked: &Asked) -> bool {
        text(item, CALLER_KEY) == Some(&self.caller.key()) && is_same(item, asked)
    }

    /// The item of a command that was noted since this call began, if it asks for the same and may have left.
    pub(super) async fn at_the_same_moment(
        &self,
        command: &Command<'_>,
        noted: Option<&str>,
    ) -> Result<Option<Item>, ToolError> {
        let Some(noted) = noted.filter(|_| command.asked.key.is_none()) else { return Ok(None) };
        let found = self.parts.store.command(command.device_id.as_str(), noted).await?;
        Ok(found.filter(|item| self.is_own_and_same(item, command.asked) && !record::is_unsent(item)))
    }

    /// The item of the same intention that another call makes at this moment, looked for [`LOOKS`] times. A table that fails
    /// here finds none.
    pub(super) async fn made_meanwhile(&self, command: &Command<'_>, device: &Item) -> Option<Item> {
        let keyed = command.asked.key.is_some();
        if command.asked.dry_run && !keyed {
            return None;
        }
        let was = last_command_id(device);
        for look in 0..LOOKS {
            let pause = LOOK_AGAIN * look;
            if Instant::now() + pause + ANSWER_TAKES >= self.deadline {
                break;
            }
            tokio::time::sleep(pause).await;
            let found = if keyed {
                self.same(command).await.ok()?.filter(|item| !record::is_unsent(item))
            } else {
                let now = self.parts.store.device(command.device_id.as_str()).await.ok()?;
                let noted = now.as_ref().and_then(last_command_id).filter(|noted| Some(noted) != was.as_ref());
                self.at_the_same_moment(command, noted.as_deref()).await.ok()?
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The item of this very id, if it is there and means the same.
    pub(super) async fn same(&self, command: &Command<'_>) -> Result<Option<Item>, ToolError> {
        let id = command.command_id.as_str();
        let Some(item) = self.parts.store.command(command.device_id.as_str(), id).await? else { return Ok(None) };
        let issued = time(&item, "issued_at");
        if issued.is_none_or(|issued| issued.saturating_add(KEY_COUNTS_FOR) < self.now) {
            let when = issued.map_or_else(|| "before".to_owned(), |issued| format!("at {issued}"));
            let message = format!(
                "this idempotency_key was used on {} {when} and counted for {} hours; nothing was sent: what is meant anew needs a new key",
                command.device_id,
                KEY_COUNTS_FOR.as_secs() / 3_600
            );
            return Err(ToolError::reason(Reason::DuplicateId, message).with(commands::COMMAND_ID, id));
        }
        if is_same(&item, command.asked) {
            return Ok(Some(item));
        }
        let before = text(&item, "command").unwrap_or("another command");
        let message = format!(
            "this idempotency_key was used for {before} with other content on {}; nothing was sent: a new intention needs a new key",
            command.device_id
        );
        Err(ToolError::reason(Reason::DuplicateId, message).with(commands::COMMAND_ID, id))
    }
}

/// Whether an item asks for the same.
fn is_same(item: &Item, asked: &Asked) -> bool {
    let dry_run = item.get("dry_run") == Some(&Value::Bool(true));
    let same_parameters = match item.get("parameters").and_then(Value::as_object) {
        // Numbers come back from the table as they are, not as they were written: 5.0 is 5.
        Some(stored) => {
            stored.len() == asked.parameters.len()
                && asked.parameters.iter().all(|(name, value)| stored.get(name).is_some_and(|s| same_value(s, value)))
        }
        None => asked.parameters.is_empty(),
    };
    text(item, "command") == Some(asked.command.as_str()) && dry_run == asked.dry_run && same_parameters
}

fn same_value(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        #[expect(clippy::float_cmp, reason = "the same number read twice, or not the same")]
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// Another caller's key and another device's are other intentions, so a batch may use one key for all its devices; and
/// to ask with a key whether something would be accepted does not use the key up.
fn keyed_id(subject: &str, device: &DeviceId, key: &str, dry_run: bool) -> String {
    let mut hash = Sha256::new();
    let kind = if dry_run { "dry_run" } else { "" };
    for field in [subject, device.as_str(), key, kind] {
        // The lengths keep the fields apart.
        hash.update((field.len() as u64).to_be_bytes());
        hash.update(field.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

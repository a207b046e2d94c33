//! From a command's item to its message: it is noted in its device's item, then published.

use std::time::Duration;

use floorgate_model::command::canonical;
use floorgate_model::table::{commands, devices};
use floorgate_model::{DeviceId, Reason};
use serde_json::{Map, Value};

use super::budget::step_aside;
use super::repeat::last_command_id;
use super::{Begun, Command, is_final};
use crate::age::{text, time};
use crate::error::{ToolError, code};
use crate::fleet::{Call, put, record};
use crate::link::LinkError;
use crate::store::{Item, LEFT, LastCommand, Over, StoreError};

/// The same message is published again at most so often, whoever repeats the command.
pub(crate) const PUBLISHED_EVERY: Duration = Duration::from_secs(10);
/// The table may forget what did not leave after so long (DynamoDB takes up to days more): as long as its key counts.
const UNSENT_KEPT_FOR: Duration = super::repeat::KEY_COUNTS_FOR;
/// Tries to note a command over the one that was read, against others that do so at the same time.
const NOTE_TRIES: u32 = 8;

impl Call<'_> {
    /// From the new item to the message. An error means that it did not leave, and its item ends so; and so it does when
    /// another call sends the same at this moment.
    pub(super) async fn begin(&self, command: &Command<'_>, device: &Item, item: Item) -> Result<Begun, ToolError> {
        if !command.asked.dry_run {
            match self.note_or_join(command, device, &item).await {
                Ok(None) => {}
                Ok(Some(other)) => {
                    let id = text(&other, commands::COMMAND_ID).unwrap_or_default();
                    let why =
                        format!("the same command was asked for at the same moment, and this one joined it: {id}");
                    // Without a key nobody else knows this command: nobody sends it.
                    let _ = self.end_unsent(command, &not_sent(&why)).await;
                    return Ok(Begun::Joined(other));
                }
                Err(error) => return self.did_not_leave(command, item, &not_sent(&error.message), error).await,
            }
        }
        match self.parts.link.publish(command.device_id, &payload(&item)).await {
            Ok(()) => Ok(Begun::Sent { item, left: true }),
            // It may be on its way: the gateway's word tells.
            Err(LinkError::Unknown(_)) => Ok(Begun::Sent { item, left: false }),
            Err(LinkError::NotSent(why)) => {
                let message = not_sent(&why);
                let id = command.command_id.as_str();
                let error = ToolError::new(code::NOT_SENT, message.as_str()).with(commands::COMMAND_ID, id);
                self.did_not_leave(command, item, &message, error).await
            }
        }
    }

    /// Ends what this call did not send, in both tables; but what a repeat has sent meanwhile is that one's.
    async fn did_not_leave(
        &self,
        command: &Command<'_>,
        item: Item,
        message: &str,
        error: ToolError,
    ) -> Result<Begun, ToolError> {
        let (device, id) = (command.device_id.as_str(), command.command_id.as_str());
        // A table that fails here does not hide why the command was not sent; its failure is in the log.
        if matches!(self.end_unsent(command, message).await, Ok(false)) {
            let now = self.parts.store.command(device, id).await.ok().flatten();
            return Ok(Begun::Overtaken(now.unwrap_or(item)));
        }
        // It may be noted, also where only the answers were lost; nobody else would ever say that it does not stand at
        // `created`.
        let _ = self.parts.store.end_last_command(device, id, code::NOT_SENT).await;
        Err(error)
    }

    /// Notes the command; answers the item of the same one that another call noted since `device` was read.
    async fn note_or_join(&self, command: &Command<'_>, device: &Item, item: &Item) -> Result<Option<Item>, ToolError> {
        let mut was = last_command_id(device);
        for try_number in 0..NOTE_TRIES {
            // What has a key is an intention of its own, whatever else is asked for at the same moment.
            let over = if command.asked.key.is_some() { Over::Any } else { Over::This(was.as_deref()) };
            if self.note(item, over).await? {
                return Ok(None);
            }
            let Some(now) = self.parts.store.device(command.device_id.as_str()).await? else {
                let message = format!("Device {} not found; it was removed a moment ago", command.device_id);
                return Err(ToolError::reason(Reason::UnknownDevice, message));
            };
            was = last_command_id(&now);
            // An answer of the table was lost: the entry is this command's own.
            if was.as_deref() == Some(command.command_id.as_str()) {
                return Ok(None);
            }
            if let Some(other) = self.at_the_same_moment(command, was.as_deref()).await? {
                return Ok(Some(other));
            }
            step_aside(try_number).await;
        }
        let message = "too many commands are being sent to this device at the same moment; try again in a second";
        Err(ToolError::new(code::STORE_UNAVAILABLE, message))
    }

    /// Notes a command as its device's last one; `false` if there is no such device, or what stands there is not to be
    /// covered.
    async fn note(&self, item: &Item, over: Over<'_>) -> Result<bool, ToolError> {
        let of = |attribute| text(item, attribute).unwrap_or_default();
        let parameters = item.get("parameters").cloned().unwrap_or_else(|| Value::Object(Map::new()));
        let last = LastCommand {
            device_id: of(devices::DEVICE_ID),
            command_id: of(commands::COMMAND_ID),
            command: of("command"),
            parameters: &parameters,
            issued_at: time(item, "issued_at").unwrap_or(self.now),
        };
        Ok(self.parts.store.note_last_command(&last, over).await?)
    }

    /// Once more what no gateway has taken up, if nobody did so a moment ago; whether it left now.
    pub(super) async fn publish_again(&self, device: &DeviceId, item: &Item) -> bool {
        if record::has_gateway(item) || record::is_overdue(item, self.now) || is_final(item) {
            return false;
        }
        let id = text(item, commands::COMMAND_ID).unwrap_or_default();
        let (now, every) = (self.now.as_millis(), i64::try_from(PUBLISHED_EVERY.as_millis()).unwrap_or(i64::MAX));
        let before = now.saturating_sub(every);
        // It may have left before: that a table or the way fails now says nothing about it.
        if !self.parts.store.claim_publication((device.as_str(), id), before, now).await.unwrap_or(false) {
            return false;
        }
        // The first call may have died before it was noted. What was asked for later stays the last one.
        if item.get("dry_run") != Some(&Value::Bool(true)) {
            let _ = self.note(item, Over::Earlier).await;
        }
        self.parts.link.publish(device, &payload(item)).await.is_ok()
    }

    /// Notes that the command left, while its word is waited for. A table that fails here leaves it open for others whether it
    /// did; this call knows.
    pub(super) async fn noting_that_it_left(
        &self,
        device: &DeviceId,
        id: &str,
        word: impl Future<Output = Result<Item, ToolError>>,
    ) -> Result<Item, ToolError> {
        let note = Box::pin(self.parts.store.note_left(device.as_str(), id));
        let (_, word) = tokio::join!(note, word);
        word.map(|mut item| {
            item.insert(LEFT.to_owned(), true.into());
            item
        })
    }

    /// `false` if somebody else has sent the command, or a gateway has it.
    async fn end_unsent(&self, command: &Command<'_>, message: &str) -> Result<bool, StoreError> {
        let key = (command.device_id.as_str(), command.command_id.as_str());
        let (now, published) = (self.parts.clock.now(), self.now.as_millis());
        let forget_at = now.saturating_add(UNSENT_KEPT_FOR);
        self.parts.store.end_unsent(key, code::NOT_SENT, message, (now, published, forget_at)).await
    }
}

fn not_sent(why: &str) -> String {
    format!("the command was not sent, and will not be executed: {why}")
}

/// What goes to the gateway: from the item alone, so that a repeat has the same bytes.
fn payload(item: &Item) -> String {
    let mut payload = Map::new();
    for (field, attribute) in [
        ("command", "command"),
        ("parameters", "parameters"),
        ("timestamp", "issued_at"),
        ("command_id", commands::COMMAND_ID),
        ("expires_at", "expires_at"),
        ("issuer", "issuer"),
        ("dry_run", "dry_run"),
    ] {
        put(&mut payload, field, item.get(attribute));
    }
    // A table keeps no order.
    canonical(&payload)
}

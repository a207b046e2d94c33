//! What the tools write, each conditional.

use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure};
use floorgate_model::Timestamp;
use floorgate_model::table::{commands, devices};
use serde_json::{Value, json};

use super::failure::failed;
use super::item::{self, expression_names, text};
use super::{Attributes, Item, Store, StoreError};
use crate::error::code;

/// When a call last took it upon itself to publish a command, milliseconds since 1970.
pub const PUBLISHED_AT: &str = "published_at_ms";
/// That a command left: the way to the gateways has taken it.
pub const LEFT: &str = "left";

/// What became of a new command's item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It is there now.
    New,
    /// One of this id was there before.
    AlreadyThere,
}

/// What a device's item says of the last command.
#[derive(Debug, Clone)]
pub struct LastCommand<'a> {
    /// The device.
    pub device_id: &'a str,
    /// The command's id.
    pub command_id: &'a str,
    /// The command.
    pub command: &'a str,
    /// Its parameters.
    pub parameters: &'a Value,
    /// When it was asked for.
    pub issued_at: Timestamp,
}

/// Over which entry a last command may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over<'a> {
    /// Whatever stands there.
    Any,
    /// The one of this id, or one without.
    This(Option<&'a str>),
    /// One that was asked for before.
    Earlier,
}

impl Store {
    /// Makes a command's item, if none of its id is there, or one that certainly never left.
    ///
    /// # Errors
    /// [`StoreError`]; it may be there all the same.
    pub async fn create_command(&self, record: Item) -> Result<Created, StoreError> {
        let put = self.client.put_item().table_name(&self.tables.commands).set_item(Some(item::from_json(record)));
        let put = put.condition_expression(
            "attribute_not_exists(#command_id) OR (#status = :failed AND #reason = :not_sent AND attribute_not_exists(#gateway_id))",
        );
        let used = [commands::COMMAND_ID, commands::STATUS, "reason", devices::GATEWAY_ID];
        let put = put.set_expression_attribute_names(Some(expression_names(used.into_iter())));
        let put = put.expression_attribute_values(":failed", text("failed"));
        match put.expression_attribute_values(":not_sent", text(code::NOT_SENT)).send().await {
            Ok(_) => Ok(Created::New),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(Created::AlreadyThere)
            }
            Err(error) => Err(failed("write a command", error)),
        }
    }

    /// Notes the last command in its device's item; `false` if there is no such device (none is made), or another entry
    /// than `over` says.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn note_last_command(&self, last: &LastCommand<'_>, over: Over<'_>) -> Result<bool, StoreError> {
        let entry = json!({
            "command": last.command, "parameters": last.parameters, "status": "created", "command_id": last.command_id,
        });
        let update = self.client.update_item().table_name(&self.tables.devices);
        let update = update.key(devices::DEVICE_ID, text(last.device_id));
        let update = update.update_expression("SET #last_command = :entry, #last_command_at = :at");
        let update = update.condition_expression(match over {
            Over::Any => "attribute_exists(#device_id)",
            Over::This(None) => "attribute_exists(#device_id) AND attribute_not_exists(#last_command.#command_id)",
            Over::This(Some(_)) => "attribute_exists(#device_id) AND #last_command.#command_id = :was",
            Over::Earlier => {
                "attribute_exists(#device_id) AND (attribute_not_exists(#last_command_at) OR #last_command_at < :at)"
            }
        });
        // A name or value that is not used is an error.
        let (id, was) = match over {
            Over::This(was) => (Some(commands::COMMAND_ID), was),
            Over::Any | Over::Earlier => (None, None),
        };
        let used = [devices::DEVICE_ID, devices::LAST_COMMAND, devices::LAST_COMMAND_AT].into_iter().chain(id);
        let update = update.set_expression_attribute_names(Some(expression_names(used)));
        let update = update.expression_attribute_values(":entry", item::value_from_json(entry));
        let update = was.into_iter().fold(update, |u, was| u.expression_attribute_values(":was", text(was)));
        match update.expression_attribute_values(":at", text(last.issued_at)).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(false)
            }
            Err(error) => Err(failed("note a last command", error)),
        }
    }

    /// Ends the entry of a command that never left, if it is still this command's and nobody has said anything of it.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end_last_command(&self, device: &str, id: &str, reason: &str) -> Result<(), StoreError> {
        let update = self.client.update_item().table_name(&self.tables.devices);
        let update = update.key(devices::DEVICE_ID, text(device));
        let update = update.update_expression("SET #last_command.#status = :failed, #last_command.#reason = :reason");
        let update = update.condition_expression(
            "#last_command.#command_id = :id AND #last_command.#status = :created AND attribute_exists(#device_id)",
        );
        let used = [devices::DEVICE_ID, devices::LAST_COMMAND, commands::COMMAND_ID, commands::STATUS, "reason"];
        let update = update.set_expression_attribute_names(Some(expression_names(used.into_iter())));
        let values = [(":failed", "failed"), (":reason", reason), (":id", id), (":created", "created")];
        let update =
            values.into_iter().fold(update, |u, (name, value)| u.expression_attribute_values(name, text(value)));
        match update.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(()),
            Err(error) => Err(failed("end a last command that was not sent", error)),
        }
    }

    /// Takes it upon this call to publish a command once more, if nobody has since `before` and it has not ended; `false` if
    /// somebody has.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn claim_publication(
        &self,
        (device, id): (&str, &str),
        before: i64,
        now: i64,
    ) -> Result<bool, StoreError> {
        let update = self.client.update_item().table_name(&self.tables.commands);
        let update = update.key(devices::DEVICE_ID, text(device)).key(commands::COMMAND_ID, text(id));
        let update = update.update_expression("SET #published_at_ms = :now").condition_expression(
            "attribute_exists(#command_id) AND #status <> :failed AND (attribute_not_exists(#published_at_ms) OR #published_at_ms <= :before)",
        );
        let update = update.expression_attribute_values(":failed", text("failed"));
        let used = [commands::COMMAND_ID, commands::STATUS, PUBLISHED_AT];
        let update = update.set_expression_attribute_names(Some(expression_names(used.into_iter())));
        let update = update.expression_attribute_values(":before", AttributeValue::N(before.to_string()));
        match update.expression_attribute_values(":now", AttributeValue::N(now.to_string())).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(false)
            }
            Err(error) => Err(failed("note that a command is published again", error)),
        }
    }

    /// Notes that a command left.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn note_left(&self, device: &str, id: &str) -> Result<(), StoreError> {
        let update = self.client.update_item().table_name(&self.tables.commands);
        let update = update.key(devices::DEVICE_ID, text(device)).key(commands::COMMAND_ID, text(id));
        let update =
            update.update_expression("SET #left = :true").condition_expression("attribute_exists(#command_id)");
        let used = [commands::COMMAND_ID, LEFT];
        let update = update.set_expression_attribute_names(Some(expression_names(used.into_iter())));
        match update.expression_attribute_values(":true", AttributeValue::Bool(true)).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(failed("note that a command left", error)),
        }
    }

    /// Ends a command that never left, if no gateway has taken it up and nobody has published it since `published`; the
    /// table may forget it after `forget_at`. `false` if somebody has: their word counts.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn end_unsent(
        &self,
        (device, id): (&str, &str),
        reason: &str,
        message: &str,
        (at, published, forget_at): (Timestamp, i64, Timestamp),
    ) -> Result<bool, StoreError> {
        let update = self.client.update_item().table_name(&self.tables.commands);
        let update = update.key(devices::DEVICE_ID, text(device)).key(commands::COMMAND_ID, text(id));
        let update = update
            .update_expression("SET #status = :failed, #reason = :reason, #message = :message, #completed_at = :at, #forget_at = :forget_at");
        let update = update.condition_expression(
            "attribute_exists(#command_id) AND attribute_not_exists(#gateway_id) AND #published_at_ms = :published",
        );
        let update = update.expression_attribute_values(":published", AttributeValue::N(published.to_string()));
        let used = [commands::STATUS, commands::COMMAND_ID, devices::GATEWAY_ID, "reason", "message", "completed_at"];
        let forget_at = AttributeValue::N(forget_at.as_seconds().to_string());
        let update = update.expression_attribute_values(":forget_at", forget_at);
        let used = used.into_iter().chain([PUBLISHED_AT, commands::FORGET_AT]);
        let update = update.set_expression_attribute_names(Some(expression_names(used)));
        let values = [(":failed", "failed"), (":reason", reason), (":message", message)];
        let update =
            values.into_iter().fold(update, |u, (name, value)| u.expression_attribute_values(name, text(value)));
        match update.expression_attribute_values(":at", text(at)).send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(false)
            }
            Err(error) => Err(failed("end a command that was not sent", error)),
        }
    }

    /// Where a budget stands; `None` before its first use.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn budget(&self, owner: &str, command: &str) -> Result<Option<i64>, StoreError> {
        let get = self.client.get_item().table_name(&self.tables.commands).consistent_read(true);
        let get = get.set_key(Some(budget_key(owner, command)));
        let answer = get.send().await.map_err(|error| failed("read a budget", error))?;
        let stored = answer.item.map(item::to_json);
        Ok(stored.and_then(|item| item.get("used_until_ms")?.as_i64()))
    }

    /// Moves a budget on, if it still stands where it was read; `false` if somebody else moved it meanwhile.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn spend(&self, owner: &str, command: &str, was: Option<i64>, becomes: i64) -> Result<bool, StoreError> {
        let update = self.client.update_item().table_name(&self.tables.commands);
        let update = update.set_key(Some(budget_key(owner, command)));
        let number = |n: i64| AttributeValue::N(n.to_string());
        let mut update = update
            .update_expression("SET #used_until_ms = :becomes")
            .set_expression_attribute_names(Some(expression_names(["used_until_ms"].into_iter())))
            .expression_attribute_values(":becomes", number(becomes))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::None);
        update = match was {
            Some(was) => {
                update.condition_expression("#used_until_ms = :was").expression_attribute_values(":was", number(was))
            }
            None => update.condition_expression("attribute_not_exists(#used_until_ms)"),
        };
        match update.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => {
                Ok(false)
            }
            Err(error) => Err(failed("write a budget", error)),
        }
    }
}

/// A key that no device can have: `#` is not allowed in an id.
fn budget_key(owner: &str, command: &str) -> Attributes {
    Attributes::from([
        (devices::DEVICE_ID.to_owned(), text(format!("budget#{owner}"))),
        (commands::COMMAND_ID.to_owned(), text(command)),
    ])
}

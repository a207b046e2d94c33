//! `get_command_status` and `list_commands`.
//!
//! Ids of commands are not in order of time, and the table has no index by time: commands of one device are read whole
//! (as far as a call may read) and sorted, those of the fleet come page by page as the table has them.

use floorgate_model::table::{commands, devices};
use floorgate_model::{CommandId, CommandName, DeviceId, ExecutionStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Call, put, record};
use crate::age::{Leases, text};
use crate::arguments::Arguments;
use crate::cursor;
use crate::error::{ToolError, code};
use crate::store::{CommandFilter, Item};
use crate::tools::{LIMIT_DEFAULT, LIMIT_MAX};

impl Call<'_> {
    pub(super) async fn get_command_status(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let (device, id) = (arguments.required("device_id")?, arguments.required("command_id")?);
        let unknown = || {
            let message = format!(
                "no command {id:.128} of device {device:.64} is known; list_commands with this device_id names what is there"
            );
            ToolError::new(code::COMMAND_NOT_FOUND, message)
        };
        let (Ok(device), Ok(id)) = (DeviceId::new(&device), CommandId::new(&id)) else { return Err(unknown()) };
        let found = self.parts.store.command(device.as_str(), id.as_str()).await?.ok_or_else(unknown)?;
        let mut answer = record::told(&found, self.now);
        answer.insert("as_of".to_owned(), self.now.to_string().into());
        self.tell_age(&device, &mut answer).await?;
        Ok(answer)
    }

    /// How old what is known of a device is; nothing of a device that is gone.
    pub(super) async fn tell_age(&self, device: &DeviceId, answer: &mut Item) -> Result<(), ToolError> {
        let Some(item) = self.parts.store.device(device.as_str()).await? else { return Ok(()) };
        let leases = Leases::of(&self.parts.store, std::slice::from_ref(&item)).await?;
        answer.insert("stale".to_owned(), leases.stale(&item, self.now).is_some().into());
        put(answer, devices::LAST_SEEN_AT, item.get(devices::LAST_SEEN_AT));
        Ok(())
    }

    pub(super) async fn list_commands(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let filter = CommandFilter {
            command: arguments.word("command", &CommandName::ALL.map(CommandName::as_str))?,
            status: arguments.word("status", &ExecutionStatus::ALL.iter().map(|s| s.as_str()).collect::<Vec<_>>())?,
            since: arguments.time("since")?.map(|since| since.to_string()),
        };
        let limit = arguments.whole("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let after = match arguments.text_of("cursor", cursor::CURSOR_MAX)? {
            None => None,
            Some(given) => Some(cursor::read(&self.question, &given)?),
        };
        match arguments.text("device_id")? {
            Some(named) => {
                // A device that is gone may still have commands.
                let Ok(device) = DeviceId::new(&named) else { return Err(self.unknown_device(&named).await) };
                let answer = self.of_device(&device, &filter, limit, after).await?;
                if answer["count"] == 0 && self.parts.store.device(device.as_str()).await?.is_none() {
                    return Err(self.unknown_device(&named).await);
                }
                Ok(answer)
            }
            None => self.of_fleet(&filter, limit, after).await,
        }
    }

    /// Newest first; the cursor names the last one told by time and id.
    async fn of_device(
        &self,
        device: &DeviceId,
        filter: &CommandFilter,
        limit: usize,
        after: Option<Value>,
    ) -> Result<Item, ToolError> {
        let after = match after {
            None => None,
            Some(at) => Some(order_of(at.as_object().ok_or_else(cursor::invalid)?)),
        };
        let (began, mut items, mut examined, mut from) = (Instant::now(), Vec::new(), 0, None);
        for pages in 1.. {
            let page = self.parts.store.commands(Some(device.as_str()), filter, from).await?;
            items.extend(page.items);
            examined += page.examined;
            from = page.last;
            if from.is_none() {
                break;
            }
            if !self.may_read_more(began, pages) {
                let message = format!(
                    "{device} has more commands than one call may read, so the newest are not known; give `since`, `command` or `status`"
                );
                return Err(ToolError::new(code::RANGE_TOO_LARGE, message));
            }
        }
        items.sort_by_cached_key(|item| std::cmp::Reverse(order_of(item)));
        if let Some(after) = after {
            items.retain(|item| order_of(item) < after);
        }
        let complete = items.len() <= limit;
        items.truncate(limit);
        let place = items.last().filter(|_| !complete).map(|last| {
            let (issued_at, command_id) = order_of(last);
            json!({"issued_at": issued_at, "command_id": command_id})
        });
        Ok(self.told(&items, examined, complete, place))
    }

    async fn of_fleet(&self, filter: &CommandFilter, limit: usize, after: Option<Value>) -> Result<Item, ToolError> {
        let mut last = match after {
            None => None,
            Some(at) => Some(key(at.as_object().ok_or_else(cursor::invalid)?).ok_or_else(cursor::invalid)?),
        };
        let (began, mut items, mut examined) = (Instant::now(), Vec::new(), 0);
        for pages in 1.. {
            let page = self.parts.store.commands(None, filter, last).await?;
            examined += page.examined;
            items.extend(page.items);
            last = page.last;
            if items.len() > limit {
                items.truncate(limit);
                last = items.last().and_then(key);
            }
            if last.is_none() || items.len() == limit || !self.may_read_more(began, pages) {
                break;
            }
        }
        // Before the sorting: the place is the table's.
        let place = last.map(Value::Object);
        items.sort_by_cached_key(|item| std::cmp::Reverse(order_of(item)));
        Ok(self.told(&items, examined, place.is_none(), place))
    }

    fn told(&self, items: &[Item], examined: u64, complete: bool, place: Option<Value>) -> Item {
        let told: Vec<_> = items.iter().map(|item| Value::Object(record::told(item, self.now))).collect();
        let mut answer = Item::new();
        answer.insert("count".to_owned(), told.len().into());
        answer.insert("commands".to_owned(), told.into());
        answer.insert("complete".to_owned(), complete.into());
        answer.insert("examined".to_owned(), examined.into());
        answer.insert("as_of".to_owned(), self.now.to_string().into());
        if let Some(place) = place {
            answer.insert("next_cursor".to_owned(), cursor::write(&self.question, place).into());
        }
        answer
    }
}

/// Time of asking, and the id where that is the same.
fn order_of(item: &Item) -> (String, String) {
    let of = |attribute| text(item, attribute).unwrap_or_default().to_owned();
    (of("issued_at"), of(commands::COMMAND_ID))
}

/// The key of a command's item; `None` if it is none.
fn key(item: &Item) -> Option<Item> {
    let of = |attribute: &str| {
        let value = text(item, attribute).filter(|text| (1..=256).contains(&text.len()))?;
        Some((attribute.to_owned(), value.into()))
    };
    Some(Item::from_iter([of(devices::DEVICE_ID)?, of(commands::COMMAND_ID)?]))
}

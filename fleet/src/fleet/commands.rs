//! `get_command_status` and `list_commands`.
//!
//! # Order
//!
//! The table has no index by time, and its ids are in order of time only in part: the tools make them of the time, but of
//! the key where there is an idempotency key, and other senders' are digests. So:
//!
//! * Commands of a device are read whole and sorted as long as a call may read that many ([`SORTED_PAGES_MAX`] pages of 1 MB,
//!   about twenty thousand commands): newest first over all pages, `newest_first` true.
//! * A device with more is walked down its ids, from the newest that the tools make of a time to the oldest, then through
//!   the rest; each page is sorted in itself. Commands without a key come newest first so, those with one in no order;
//!   `newest_first` is false. Every command comes once, however many there are.
//! * Commands of the fleet come as the table has them, each page sorted in itself. Only if one answer holds them all is
//!   `newest_first` true.

mod ages;

use std::time::Duration;

use floorgate_model::table::{commands, devices};
use floorgate_model::{CommandId, CommandName, DeviceId, ExecutionStatus, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

use self::ages::Known;
use super::pace::look_at;
use super::room::Room;
use super::{Call, put, record};
use crate::age::{Leases, text};
use crate::arguments::Arguments;
use crate::cursor;
use crate::error::{ToolError, code};
use crate::store::{CommandFilter, Commands, Item};
use crate::tools::{LIMIT_DEFAULT, LIMIT_MAX};

/// Pages of 1 MB that are read to sort the commands of a device; the rest of a call's pages are for the walk.
const SORTED_PAGES_MAX: u32 = 16;
/// Ids that the tools make of a time are below the one of so much later than now.
const IDS_AHEAD: Duration = Duration::from_secs(24 * 3_600);

/// In which order the commands of all pages come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    NewestFirst,
    /// Each page is sorted in itself.
    ByPage,
}

/// What an answer tells, before it is told.
struct Found {
    items: Vec<Item>,
    examined: u64,
    order: Order,
    /// Where to go on; `None` when there is no more.
    place: Option<Value>,
}

/// What was read for an answer so far.
#[derive(Debug, Clone, Copy)]
struct Reading {
    began: Instant,
    /// The number of the page that comes.
    pages: u32,
    examined: u64,
}

/// A way through the ids of a device: from `start` down to the least, then from the greatest down to `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Walk {
    start: String,
    /// The id behind which it goes on; `None` at the beginning of either part.
    last: Option<String>,
    /// In the second part.
    around: bool,
}

impl Walk {
    fn begin(now: Timestamp) -> Self {
        // Behind every id of this millisecond; `~` is in none.
        let start = format!("{:012x}~", now.saturating_add(IDS_AHEAD).as_millis());
        Self { start, last: None, around: false }
    }

    /// The key behind which the next page begins.
    fn after(&self, device: &DeviceId) -> Option<Item> {
        let id = self.last.as_ref().or_else(|| (!self.around).then_some(&self.start))?;
        Some(Item::from_iter([
            (devices::DEVICE_ID.to_owned(), device.as_str().into()),
            (commands::COMMAND_ID.to_owned(), id.as_str().into()),
        ]))
    }

    fn place(&self) -> Value {
        json!({"start": self.start, "last": self.last, "around": self.around})
    }

    /// `None` if it is another kind of place.
    fn read(at: &Item) -> Option<Self> {
        let id = |name| text(at, name).filter(|id| (1..=256).contains(&id.len())).map(str::to_owned);
        let walk = Self { start: id("start")?, last: id("last"), around: at.get("around")?.as_bool()? };
        // DynamoDB refuses to go on from a key that the condition rules out.
        Some(walk).filter(|walk| !walk.around || walk.last.as_ref().is_none_or(|last| *last > walk.start))
    }
}

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
        let mut found = [found];
        let known = self.known_of(&found, None).await?;
        self.settle(&mut found, &known).await?;
        let [found] = found;
        let mut answer = record::told(&found, self.now, &known.leases);
        answer.insert("as_of".to_owned(), self.now.to_string().into());
        known.leases.tell(&known.device_of(&found), self.now, &mut answer);
        Ok(answer)
    }

    pub(super) async fn list_commands(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let status = arguments.word("status", &ExecutionStatus::ALL.iter().map(|s| s.as_str()).collect::<Vec<_>>())?;
        let status: Option<ExecutionStatus> = status.and_then(|status| status.parse().ok());
        let filter = CommandFilter {
            command: arguments.word("command", &CommandName::ALL.map(CommandName::as_str))?,
            statuses: stored_as(status),
            since: arguments.time("since")?.map(|since| since.to_string()),
        };
        let limit = arguments.whole("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let after = match arguments.text_of("cursor", cursor::CURSOR_MAX)? {
            None => None,
            Some(given) => Some(cursor::read(&self.question, &given)?),
        };
        let Some(named) = arguments.text("device_id")? else {
            let found = self.of_fleet(&filter, limit, after).await?;
            return Ok(self.told(found, status, None).await?.0);
        };
        let Ok(device) = DeviceId::new(&named) else { return Err(self.unknown_device(&named).await) };
        let found = self.of_device(&device, &filter, limit, after).await?;
        let newest = found.items.first().cloned();
        let (mut answer, known) = self.told(found, status, Some(&device)).await?;
        // A device that is gone may still have commands.
        if newest.is_none() && answer["complete"] == true && !known.has(&device) {
            return Err(self.unknown_device(&named).await);
        }
        let newest =
            newest.unwrap_or_else(|| Item::from_iter([(devices::DEVICE_ID.to_owned(), device.as_str().into())]));
        known.leases.tell(&known.device_of(&newest), self.now, &mut answer);
        Ok(answer)
    }

    /// All of a device's commands, as far as a call may read that many, else page by page.
    async fn of_device(
        &self,
        device: &DeviceId,
        filter: &CommandFilter,
        limit: usize,
        after: Option<Value>,
    ) -> Result<Found, ToolError> {
        let (began, mut examined) = (Instant::now(), 0);
        let after = after.as_ref().map(|at| at.as_object().ok_or_else(cursor::invalid)).transpose()?;
        if let Some(walk) = after.and_then(Walk::read) {
            return self.walk(device, filter, limit, walk, Reading { began, pages: 1, examined }).await;
        }
        let after = after.map(order_of);
        let (mut items, mut from) = (Vec::new(), None);
        for pages in 1.. {
            let page = self.parts.store.commands(Commands::Device(device.as_str()), filter, None, from).await?;
            examined += page.examined;
            items.extend(
                page.items.into_iter().filter(|item| after.as_ref().is_none_or(|after| order_of(item) < *after)),
            );
            items.sort_by_cached_key(|item| std::cmp::Reverse(order_of(item)));
            from = page.last;
            if from.is_none() {
                let cut = self.cut(&mut items, limit);
                let place = items.last().filter(|_| cut).map(|last| {
                    let (issued_at, command_id) = order_of(last);
                    json!({"issued_at": issued_at, "command_id": command_id})
                });
                return Ok(Found { items, examined, order: Order::NewestFirst, place });
            }
            // One more than is told says that there is more.
            items.truncate(limit + 1);
            if pages >= SORTED_PAGES_MAX || !self.may_read_more(began, pages) {
                let reading = Reading { began, pages: pages + 1, examined };
                return match after {
                    None => self.walk(device, filter, limit, Walk::begin(self.now), reading).await,
                    Some(_) => Err(ToolError::new(
                        code::RANGE_TOO_LARGE,
                        format!(
                            "{device} has too many commands to go on newest first; begin anew without the cursor, and they come page by page"
                        ),
                    )),
                };
            }
        }
        Err(cursor::invalid())
    }

    /// One page of a device's commands from the newest id that the tools make downwards, and around.
    async fn walk(
        &self,
        device: &DeviceId,
        filter: &CommandFilter,
        limit: usize,
        mut walk: Walk,
        mut reading: Reading,
    ) -> Result<Found, ToolError> {
        let (mut items, before) = (Vec::new(), reading.examined);
        loop {
            let above = walk.around.then_some(walk.start.as_str());
            let which = Commands::Backwards { device: device.as_str(), above };
            let wanted = look_at(limit - items.len(), items.len(), reading.examined - before);
            let page = self.parts.store.commands(which, filter, wanted, walk.after(device)).await?;
            reading.examined += page.examined;
            items.extend(page.items);
            walk.last = page.last.as_ref().and_then(|last| text(last, commands::COMMAND_ID)).map(str::to_owned);
            let cut = self.cut(&mut items, limit);
            if cut {
                walk.last = items.last().and_then(|item| text(item, commands::COMMAND_ID)).map(str::to_owned);
            }
            let ended = walk.last.is_none() && walk.around;
            if walk.last.is_none() {
                walk.around = true;
            }
            if cut || ended || items.len() == limit || !self.may_read_more(reading.began, reading.pages) {
                items.sort_by_cached_key(|item| std::cmp::Reverse(order_of(item)));
                let place = (!ended).then(|| walk.place());
                return Ok(Found { items, examined: reading.examined, order: Order::ByPage, place });
            }
            reading.pages += 1;
        }
    }

    async fn of_fleet(&self, filter: &CommandFilter, limit: usize, after: Option<Value>) -> Result<Found, ToolError> {
        let whole = after.is_none();
        let mut last = match after {
            None => None,
            Some(at) => Some(key(at.as_object().ok_or_else(cursor::invalid)?).ok_or_else(cursor::invalid)?),
        };
        let (began, mut items, mut examined) = (Instant::now(), Vec::new(), 0);
        for pages in 1.. {
            let wanted = look_at(limit - items.len(), items.len(), examined);
            let page = self.parts.store.commands(Commands::Fleet, filter, wanted, last).await?;
            examined += page.examined;
            items.extend(page.items);
            last = page.last;
            let cut = self.cut(&mut items, limit);
            if cut {
                last = items.last().and_then(key);
            }
            if cut || last.is_none() || items.len() == limit || !self.may_read_more(began, pages) {
                break;
            }
        }
        // Before the sorting: the place is the table's.
        let place = last.map(Value::Object);
        items.sort_by_cached_key(|item| std::cmp::Reverse(order_of(item)));
        let order = if whole && place.is_none() { Order::NewestFirst } else { Order::ByPage };
        Ok(Found { items, examined, order, place })
    }

    /// Leaves what fits into an answer; `true` if something did not.
    fn cut(&self, items: &mut Vec<Item>, limit: usize) -> bool {
        let mut room = Room::new();
        let fitting = items
            .iter()
            .take(limit)
            .take_while(|item| room.takes(&record::told(item, self.now, &Leases::default())))
            .count();
        let cut = fitting < items.len();
        items.truncate(fitting);
        cut
    }

    /// The answer, each command with how old that is; and what is known of their devices.
    async fn told(
        &self,
        mut found: Found,
        status: Option<ExecutionStatus>,
        device: Option<&DeviceId>,
    ) -> Result<(Item, Known), ToolError> {
        let known = self.known_of(&found.items, device).await?;
        self.settle(&mut found.items, &known).await?;
        let told = found.items.iter().filter_map(|item| {
            let mut told = record::told(item, self.now, &known.leases);
            // The status that is told is the one that was asked for, whatever stands in the item.
            if status.is_some_and(|status| text(&told, commands::STATUS) != Some(status.as_str())) {
                return None;
            }
            let device = known.device_of(item);
            told.insert("stale".to_owned(), known.leases.stale(&device, self.now).is_some().into());
            put(&mut told, devices::LAST_SEEN_AT, device.get(devices::LAST_SEEN_AT));
            Some(Value::Object(told))
        });
        let told: Vec<_> = told.collect();
        let mut answer = Item::new();
        answer.insert("count".to_owned(), told.len().into());
        answer.insert("commands".to_owned(), told.into());
        answer.insert("complete".to_owned(), found.place.is_none().into());
        answer.insert("newest_first".to_owned(), (found.order == Order::NewestFirst).into());
        answer.insert("examined".to_owned(), found.examined.into());
        answer.insert("as_of".to_owned(), self.now.to_string().into());
        if let Some(place) = found.place {
            answer.insert("next_cursor".to_owned(), cursor::write(&self.question, place).into());
        }
        Ok((answer, known))
    }
}

/// The statuses that items may have which are told to stand at one: nobody writes that a command has lapsed.
fn stored_as(status: Option<ExecutionStatus>) -> Vec<&'static str> {
    match status {
        None => Vec::new(),
        Some(ExecutionStatus::Expired) => vec![ExecutionStatus::Expired.as_str(), ExecutionStatus::Created.as_str()],
        Some(status) => vec![status.as_str()],
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

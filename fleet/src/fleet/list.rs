//! `list_devices`.
//!
//! An exact location is read by `location-index`, the rest by a scan of what the list shows; both with the filters as
//! conditions, so that a page holds only what fits, and no more are looked at than it takes where many fit ([`look_at`]). The
//! index lags behind its table and does not know when a device was last heard, so its devices are read again by their keys and judged again: one that has changed meanwhile is left out,
//! and `count` is always the number of devices in the answer.

use floorgate_model::table::devices;
use floorgate_model::{DeviceStatus, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::pace::look_at;
use super::{Call, put};
use crate::age::{Leases, text};
use crate::arguments::Arguments;
use crate::cursor;
use crate::error::{ToolError, code};
use crate::store::{DeviceFilter, Item};
use crate::tools::{LIMIT_DEFAULT, LIMIT_MAX};

/// What is told of each device.
const TOLD: [&str; 6] = [
    devices::DEVICE_ID,
    devices::DEVICE_TYPE,
    devices::LOCATION,
    devices::STATUS,
    devices::FIRMWARE_VERSION,
    devices::GATEWAY_ID,
];

/// What was found so far.
struct Found {
    items: Vec<Item>,
    examined: u64,
    /// To go on behind this item; `None` when there is no more.
    last: Option<Item>,
}

impl Call<'_> {
    pub(super) async fn list_devices(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let filter = filter(arguments)?;
        let limit = arguments.whole("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let after = match arguments.text_of("cursor", cursor::CURSOR_MAX)? {
            None => None,
            Some(given) => Some(place(&cursor::read(&self.question, &given)?, &filter)?),
        };
        let mut found = self.find(&filter, limit, after).await?;
        if filter.location.is_some() {
            found.items = self.again(&filter, &found.items).await?;
        }
        let leases = Leases::of(&self.parts.store, &found.items).await?;
        let told = found.items.iter().map(|item| told(item, &leases, self.now)).collect::<Vec<_>>();
        let mut answer = Item::new();
        answer.insert("count".to_owned(), told.len().into());
        answer.insert("devices".to_owned(), told.into());
        answer.insert("complete".to_owned(), found.last.is_none().into());
        answer.insert("examined".to_owned(), found.examined.into());
        answer.insert("as_of".to_owned(), self.now.to_string().into());
        if let Some(last) = found.last.as_ref().and_then(|last| last.get(devices::DEVICE_ID)) {
            answer.insert("next_cursor".to_owned(), cursor::write(&self.question, json!({ "k": last })).into());
        }
        Ok(answer)
    }

    async fn find(&self, filter: &DeviceFilter, limit: usize, after: Option<Item>) -> Result<Found, ToolError> {
        let began = Instant::now();
        let mut found = Found { items: Vec::new(), examined: 0, last: after };
        let unfiltered = filter.status.is_none() && filter.device_type.is_none() && filter.location_prefix.is_none();
        for pages in 0.. {
            let missing = limit - found.items.len();
            let wanted = if unfiltered {
                // Every item that is looked at is one of the answer.
                i32::try_from(missing).ok()
            } else {
                look_at(missing, found.items.len(), found.examined)
            };
            let page = self.parts.store.devices(filter, wanted, found.last.take()).await?;
            found.examined += page.examined;
            found.items.extend(page.items);
            found.last = page.last;
            if found.items.len() > limit {
                found.items.truncate(limit);
                found.last = found.items.last().map(|item| key(item, filter));
            }
            if found.last.is_none() || found.items.len() == limit || !self.may_read_more(began, pages + 1) {
                break;
            }
        }
        Ok(found)
    }

    /// The items as they are now, in the same order, without those that no longer fit.
    async fn again(&self, filter: &DeviceFilter, found: &[Item]) -> Result<Vec<Item>, ToolError> {
        let ids: Vec<_> = found.iter().filter_map(|item| text(item, devices::DEVICE_ID)).map(str::to_owned).collect();
        let mut now = self.parts.store.listed(&ids).await?;
        now.retain(|item| fits(filter, item));
        let at = |item: &Item| ids.iter().position(|id| Some(id.as_str()) == text(item, devices::DEVICE_ID));
        now.sort_by_cached_key(at);
        Ok(now)
    }
}

fn filter(arguments: &mut Arguments) -> Result<DeviceFilter, ToolError> {
    let words = DeviceStatus::ALL.map(DeviceStatus::as_str);
    let status = arguments.word("status", &words)?;
    let device_type = arguments.text("device_type")?;
    let (location, location_prefix) = match arguments.text("location")? {
        None => (None, None),
        Some(text) => match text.strip_suffix('*') {
            // DynamoDB refuses an empty text to compare with, and everything begins with it anyway.
            Some("") => (None, None),
            Some(prefix) => (None, Some(prefix.to_owned())),
            None => (Some(text), None),
        },
    };
    let stray = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains('*'));
    if stray(&location) || stray(&location_prefix) {
        let message = "argument `location` may have a * only at its end, for example factory-floor-1/*";
        return Err(ToolError::new(code::INVALID_ARGUMENTS, message).with("argument", "location"));
    }
    Ok(DeviceFilter { location, location_prefix, status, device_type })
}

fn fits(filter: &DeviceFilter, item: &Item) -> bool {
    let equal = |wanted: &Option<String>, attribute| wanted.is_none() || wanted.as_deref() == text(item, attribute);
    equal(&filter.location, devices::LOCATION)
        && equal(&filter.status, devices::STATUS)
        && equal(&filter.device_type, devices::DEVICE_TYPE)
}

/// The key of an item in what is read: the table, or the index.
fn key(item: &Item, filter: &DeviceFilter) -> Item {
    let mut key = Item::new();
    put(&mut key, devices::DEVICE_ID, item.get(devices::DEVICE_ID));
    if let Some(location) = &filter.location {
        key.insert(devices::LOCATION.to_owned(), location.clone().into());
    }
    key
}

/// The key behind which a cursor goes on.
fn place(at: &Value, filter: &DeviceFilter) -> Result<Item, ToolError> {
    let id = at.get("k").filter(|id| id.as_str().is_some_and(|id| (1..=256).contains(&id.len())));
    let item = Item::from_iter([(devices::DEVICE_ID.to_owned(), id.ok_or_else(cursor::invalid)?.clone())]);
    Ok(key(&item, filter))
}

fn told(item: &Item, leases: &Leases, now: Timestamp) -> Value {
    let mut told = Item::new();
    for attribute in TOLD {
        put(&mut told, attribute, item.get(attribute));
    }
    leases.tell(item, now, &mut told);
    Value::Object(told)
}

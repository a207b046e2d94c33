//! [`Fleet`]: does what a tool says, for a caller.
//!
//! * Arguments are read into valid types before any table is asked. A device id that is none never becomes a key; it is
//!   only compared with the ids that are there, for `did_you_mean`.
//! * Every answer is bounded: [`LIMIT_MAX`](crate::tools::LIMIT_MAX) devices or commands, 2,000 samples, about 1 MB of
//!   samples, intervals, gaps or commands ([`room`]); and so is the
//!   work for it: [`PAGES_MAX`] pages of 1 MB, and no new page after [`READ_TIME_MAX`]. What does not fit is behind
//!   `next_cursor`, and `complete` is false.
//! * Every answer says how old it is ([`crate::age`]).
//! * One line in the log for each call: who, which tool, what came of it, how long.

mod commands;
mod history;
mod list;
mod pace;
mod record;
mod room;
mod send;
mod status;
mod status_first;

use std::sync::Arc;
use std::time::Duration;

use floorgate_model::table::devices;
use floorgate_model::{DeviceId, Reason, Timestamp};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::info;

pub use send::budget::{Budget, Budgets};

use crate::arguments::Arguments;
use crate::caller::Caller;
use crate::clock::Clock;
use crate::error::{ToolError, code};
use crate::link::Link;
use crate::names;
use crate::store::{DeviceFilter, Item, Store};
use crate::tools;

/// Pages of at most 1 MB that are read for one answer.
pub const PAGES_MAX: u32 = 20;
/// After this no new page is begun.
pub const READ_TIME_MAX: Duration = Duration::from_secs(8);
/// Pages that are looked through for `did_you_mean`.
const NAMES_PAGES_MAX: u32 = 4;
/// After this no new page is begun for it.
const NAMES_TIME_MAX: Duration = Duration::from_secs(2);
/// Searches for it at once; who comes meanwhile gets no suggestions.
const NAMES_SEARCHES_MAX: usize = 2;
/// Most characters of a caller's word in the log.
const LOGGED_MAX: usize = 64;
/// Longest call, unless the door has less time: the longest wait for a gateway and what is read before and after.
const CALL_TIME_MAX: Duration = Duration::from_secs(90);

/// The tools at work. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Fleet {
    parts: Arc<Parts>,
    status_first: bool,
}

#[derive(Debug)]
struct Parts {
    store: Store,
    link: Link,
    budgets: Budgets,
    clock: Clock,
    /// For [`NAMES_SEARCHES_MAX`].
    searches: Semaphore,
}

/// One call, as the tools see it.
struct Call<'a> {
    parts: &'a Parts,
    /// Whether a command needs a status read before it ([`status_first`]).
    status_first: bool,
    caller: &'a Caller,
    now: Timestamp,
    /// The answer has to be on its way before.
    deadline: Instant,
    /// [`crate::cursor::question`] of the arguments.
    question: String,
}

impl Fleet {
    /// The tools over these tables, this way to the gateways and these budgets.
    #[must_use]
    pub fn new(store: Store, link: Link, budgets: Budgets, clock: Clock) -> Self {
        let searches = Semaphore::new(NAMES_SEARCHES_MAX);
        Self { parts: Arc::new(Parts { store, link, budgets, clock, searches }), status_first: false }
    }

    /// The same tools, but a command needs that its caller read the status of the same device within the last five minutes;
    /// the table remembers it. For doors that have no memory of their own.
    #[must_use]
    pub fn with_status_first(&self) -> Self {
        Self { parts: Arc::clone(&self.parts), status_first: true }
    }

    /// Does what a tool says; the answer fits the tool's `output_schema`. Cancel safe: a command whose call is dropped
    /// has been sent or not, and `get_command_status` tells.
    ///
    /// # Errors
    /// [`ToolError`], also for a name that is no tool and for arguments that do not fit.
    pub async fn call(&self, caller: &Caller, tool: &str, arguments: Map<String, Value>) -> Result<Value, ToolError> {
        self.call_within(caller, tool, arguments, CALL_TIME_MAX).await
    }

    /// As [`Self::call`], for a door whose own caller waits only so long: a wait for a gateway ends early enough.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn call_within(
        &self,
        caller: &Caller,
        tool: &str,
        arguments: Map<String, Value>,
        time: Duration,
    ) -> Result<Value, ToolError> {
        let began = Instant::now();
        let [device, command] =
            ["device_id", "command"].map(|name| loggable(arguments.get(name).and_then(Value::as_str)));
        let question = crate::cursor::question(tool, &arguments);
        let now = self.parts.clock.now();
        let status_first = self.status_first;
        let call = Call { parts: &self.parts, status_first, caller, now, deadline: began + time, question };
        let answer = Box::pin(call.answer(tool, arguments)).await;
        let outcome = answer.as_ref().map_or_else(|error| error.code.to_string(), |_| "ok".to_owned());
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (tool, subject, name) = (loggable(Some(tool)), &*caller.subject, &*caller.name);
        let client_id = &*caller.client_id;
        info!(tool, device, command, subject, name, client_id, outcome, ms, "tool called");
        answer
    }
}

impl Call<'_> {
    async fn answer(&self, name: &str, given: Map<String, Value>) -> Result<Value, ToolError> {
        let Some(tool) = tools::find(name) else {
            let known: Vec<_> = tools::definitions().iter().map(|tool| tool.name).collect();
            let shown: String = name.chars().take(64).collect();
            let message = format!("no tool is named {shown:?}; there are {}", known.join(", "));
            return Err(ToolError::new(code::UNKNOWN_TOOL, message).with("tools", known));
        };
        let mut arguments = Arguments::of(tool, given)?;
        let answer = match tool.name {
            "get_device_status" => self.get_device_status(&mut arguments).await,
            "list_devices" => self.list_devices(&mut arguments).await,
            "send_command" => self.send_command(&mut arguments).await,
            "get_telemetry_history" => self.get_telemetry_history(&mut arguments).await,
            "get_command_status" => self.get_command_status(&mut arguments).await,
            _ => self.list_commands(&mut arguments).await,
        };
        answer.map(Value::Object)
    }

    /// Whether another page may be read for this answer.
    fn may_read_more(&self, began: Instant, pages: u32) -> bool {
        pages < PAGES_MAX && began.elapsed() < READ_TIME_MAX && Instant::now() < self.deadline
    }

    /// The item of the device that is named, exactly.
    async fn device(&self, named: &str) -> Result<(DeviceId, Item), ToolError> {
        if let Ok(id) = DeviceId::new(named)
            && let Some(item) = self.parts.store.device(id.as_str()).await?
        {
            return Ok((id, item));
        }
        Err(self.unknown_device(named).await)
    }

    async fn unknown_device(&self, named: &str) -> ToolError {
        let near = self.near(named).await;
        let shown: String = named.chars().take(names::SUGGESTIONS_MAX * 20).collect();
        let advice = if near.is_empty() {
            "list_devices names all".to_owned()
        } else {
            format!("ids that are near: {}; choose one, none was assumed", near.join(", "))
        };
        ToolError::reason(Reason::UnknownDevice, format!("Device {shown} not found; {advice}"))
            .with(devices::DEVICE_ID, shown)
            .with("did_you_mean", near)
    }

    /// Ids near a name, as far as some pages of devices tell. A table that fails here does not hide the first answer.
    async fn near(&self, named: &str) -> Vec<String> {
        // It reads up to 4 MB for a word that names nothing: a flood of such words gets no suggestions.
        let Ok(_search) = self.parts.searches.try_acquire() else { return Vec::new() };
        let (filter, mut after, mut near) = (DeviceFilter::default(), None, Vec::<Item>::new());
        let began = Instant::now();
        for _ in 0..NAMES_PAGES_MAX {
            let Ok(page) = self.parts.store.devices(&filter, None, after).await else { break };
            // Comparing a page takes milliseconds of the thread; others may want it.
            tokio::task::yield_now().await;
            let best = names::near(named, &page.items);
            near.extend(page.items.into_iter().filter(|item| {
                crate::age::text(item, devices::DEVICE_ID).is_some_and(|id| best.iter().any(|best| best == id))
            }));
            after = page.last;
            if after.is_none() || began.elapsed() >= NAMES_TIME_MAX {
                break;
            }
        }
        names::near(named, &near)
    }
}

/// A caller's word as it may stand in a log: one line, short.
fn loggable(word: Option<&str>) -> String {
    word.unwrap_or_default().chars().filter(|c| !c.is_control()).take(LOGGED_MAX).collect()
}

/// Adds a member, if there is a value.
fn put(answer: &mut Item, name: &str, value: Option<&Value>) {
    if let Some(value) = value.filter(|value| !value.is_null()) {
        answer.insert(name.to_owned(), value.clone());
    }
}

//! `send_command`.
//!
//! In this order; whatever ends it before the last step but one has sent nothing:
//!
//! 1. The words: command and parameters, by the catalogue of `floorgate-model`. A type that has no built-in profile is
//!    described at its gateway alone, which then judges the parameters.
//!    Then, for doors without a memory of their own: the caller read this device's status shortly before
//!    ([`super::status_first`]).
//! 2. The device: it is there, not offline, not in maintenance, its gateway not silent. `set_status` is done at the
//!    gateway, so it goes to a device in any state.
//! 3. A repeat: with an idempotency key the command's id follows from caller, device and key, so a second call finds the
//!    first one's item and answers its outcome. Without a key, an identical command of the same caller that is the device's
//!    last one and still open is joined instead of sent a second time: a model or a proxy that tries again reboots once.
//! 4. The budget ([`budget`]). Who finds it used up looks for a while whether an equal call of the same moment has used it.
//! 5. The item in `iot-commands`, then `last_command` of the device. Never `configuration`, never `status`. Without a key
//!    it is written only over the entry that was read in step 3: of identical calls at the same moment one writes, and the
//!    others join it ([`repeat`]).
//! 6. The message. If it certainly did not leave, the item ends as `failed`, `NOT_SENT`.
//! 7. The wait: the item is read until it is final, the time is over, or the door's own caller would give up.
//!
//! That it left is noted in the item (`left`) as soon as the way to the gateways has taken the message, by whichever call. Without
//! that note nobody is told that it was sent: what dies before 6, or between the message and the note, may not have left.
//!
//! A call that dies between 5 and 6 leaves an item that nobody executes. A repeat with the same key publishes it again,
//! byte for byte the same, at most every [`leave::PUBLISHED_EVERY`] and to no gateway that is silent: the gateway takes an id once,
//! so this is safe also if it had left. What certainly did not leave (`NOT_SENT`) is begun anew by a repeat with its key.

pub(super) mod budget;
mod leave;
mod repeat;

use std::time::Duration;

use floorgate_model::command::{LIFETIME_MAX, PARAMETERS_MAX, PAYLOAD_MAX};
use floorgate_model::table::{commands, devices};
use floorgate_model::{CommandId, CommandName, DeviceId, DeviceStatus, Profile, Reason, Timestamp};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::{Call, record};
use crate::age::{Leases, text};
use crate::arguments::Arguments;
use crate::error::{ToolError, code};
use crate::link::Link;
use crate::store::{Created, Item, PUBLISHED_AT, as_stored};
use crate::tools::{WAIT_SECONDS_DEFAULT, WAIT_SECONDS_MAX};

/// Between two looks at a command's item, at first; half as much longer each time.
const LOOK_EVERY_FIRST: Duration = Duration::from_millis(50);
/// Longest time between two looks.
const LOOK_EVERY_LAST: Duration = Duration::from_millis(500);
/// Kept for the answer itself when the door's own caller waits only so long.
const ANSWER_TAKES: Duration = Duration::from_millis(500);
/// Longest text among the parameters, characters.
const PARAMETER_TEXT_MAX: usize = 256;
/// Whose command it is, in its item: [`Caller::key`](crate::Caller::key). Names change and are not unique.
const CALLER_KEY: &str = "caller_key";
/// Which call made an item.
const CALL: &str = "call";
/// The table may forget a dry run after so long (DynamoDB takes up to days more). A gateway that was away from the tables writes
/// its word when it is back, and makes an item anew that was forgotten meanwhile, without the mark that it is a dry run; so this
/// is as long as an outage may last of which people still say "the gateway is away" and not "it is gone".
const DRY_RUN_KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
/// AWS IoT keeps the session of a gateway that is not connected, and what waits in it, so long unless its account says
/// otherwise.
const IOT_SESSION_LASTS: Duration = Duration::from_secs(3_600);
/// Longest idempotency key, characters.
pub(super) const KEY_MAX: u64 = 128;

/// A command as it was asked for, its words checked.
struct Asked {
    command: CommandName,
    parameters: Map<String, Value>,
    dry_run: bool,
    key: Option<String>,
    wait: Duration,
    lifetime: Duration,
}

/// A command that may be sent.
struct Command<'a> {
    device_id: &'a DeviceId,
    command_id: CommandId,
    asked: &'a Asked,
}

/// What became of a command that was not asked for before.
enum Begun {
    /// It was published; whether it left is not known where not `left`.
    Sent { item: Item, left: bool },
    /// Another call sends it, or has sent it: its item.
    Joined(Item),
    /// This call could not send it, but a repeat has sent it meanwhile: its item.
    Overtaken(Item),
}

impl Call<'_> {
    pub(super) async fn send_command(&self, arguments: &mut Arguments) -> Result<Item, ToolError> {
        let named = arguments.required(devices::DEVICE_ID)?;
        let given = arguments.required("command")?;
        let asked = asked(arguments, &given).map_err(|error| {
            error.with(devices::DEVICE_ID, named.as_str()).with("command", given.as_str()).with("delivered", false)
        })?;
        self.status_was_read(&named).await.map_err(|error| asked.refused(&named, error))?;
        let (device_id, device) = self.device(&named).await.map_err(|error| asked.refused(&named, error))?;
        let sent = self.send(&asked, &device_id, &device).await;
        sent.map_err(|error| if error.details.contains_key("status") { error } else { asked.refused(&named, error) })
    }

    async fn send(&self, asked: &Asked, device_id: &DeviceId, device: &Item) -> Result<Item, ToolError> {
        let leases = Leases::of(&self.parts.store, std::slice::from_ref(device)).await?;
        let stale = leases.stale(device, self.now);
        let command = Command { device_id, command_id: self.command_id(asked, device_id), asked };
        let (mut repeated, mut left) = (true, false);
        let earlier = self.earlier(&command, device).await?;
        let item = match earlier.filter(|item| !record::is_unsent(item)) {
            Some(item) => item,
            None => {
                check_parameters(asked, device)?;
                check_state(asked, device_id, device, stale.as_deref())?;
                match self.send_new(&command, device).await? {
                    Begun::Sent { item, left: known } => {
                        (repeated, left) = (false, known);
                        item
                    }
                    Begun::Joined(item) | Begun::Overtaken(item) => item,
                }
            }
        };
        if repeated && stale.is_none() {
            left = self.publish_again(device_id, &item).await;
        }
        // What has lapsed is not waited for.
        let wait = if record::lapsed(&item, self.now, &leases).is_some() { Duration::ZERO } else { asked.wait };
        let id = text(&item, commands::COMMAND_ID).unwrap_or_default().to_owned();
        let word = Box::pin(self.word_on(item, device_id, wait));
        let item = if left { self.noting_that_it_left(device_id, &id, word).await? } else { word.await? };
        let now = self.parts.clock.now();
        let mut answer = record::told(&item, now, &leases);
        let waits = !is_final(&item) && !record::has_gateway(&item) && !record::is_overdue(&item, now);
        if waits
            && record::has_left(&item)
            && let Some(message) = self.waits_for_gateway(&item, leases.connected(device))
        {
            answer.insert("message".to_owned(), message.into());
        }
        answer.insert("repeated".to_owned(), repeated.into());
        answer.insert("stale".to_owned(), stale.is_some().into());
        super::put(&mut answer, devices::LAST_SEEN_AT, device.get(devices::LAST_SEEN_AT));
        answer.insert("as_of".to_owned(), now.to_string().into());
        verdict(answer)
    }

    /// What is said of a command that went to AWS IoT, which does not see its gateway.
    fn waits_for_gateway(&self, item: &Item, connected: Option<(bool, Timestamp)>) -> Option<String> {
        // Another broker is another way: nothing is known of it.
        let (Link::Iot(_), Some((false, since))) = (&self.parts.link, connected) else { return None };
        let expires = text(item, "expires_at").unwrap_or("its expiry");
        let sent = format!("sent, but its gateway has not been connected to AWS IoT since {since}");
        Some(if self.now.since(since) < IOT_SESSION_LASTS {
            format!(
                "{sent}: the command may wait there until it connects, and will not be executed after {expires}; ask \
                 get_command_status with this command_id"
            )
        } else {
            format!(
                "{sent}: AWS IoT has probably not kept the command; repeat it when the gateway is connected. It will not be \
                 executed after {expires}"
            )
        })
    }

    /// Budget, item and message of a command that was not asked for before.
    async fn send_new(&self, command: &Command<'_>, device: &Item) -> Result<Begun, ToolError> {
        let spent = match self.spend(command.asked).await {
            Ok(spent) => spent,
            Err(refused) if refused.code == Reason::RateLimited.as_str() => {
                return self.made_meanwhile(command, device).await.map(Begun::Joined).ok_or(refused);
            }
            Err(error) => return Err(error),
        };
        let new = self.record(command, device);
        // That the table fails here leaves open whether the item is there, which a repeat would send for nothing.
        let begun = match self.create(command, &new).await? {
            Some(others) => Ok(Begun::Joined(others)),
            None => self.begin(command, device, new).await,
        };
        match &begun {
            // The repeat paid nothing.
            Ok(Begun::Sent { .. } | Begun::Overtaken(_)) => {}
            Ok(Begun::Joined(_)) => self.give_back(&spent).await,
            Err(_) => self.give_back_unsent(&spent).await,
        }
        begun
    }

    /// Makes the command's item; answers the one that another call with the same key made at the same time, and sends.
    async fn create(&self, command: &Command<'_>, new: &Item) -> Result<Option<Item>, ToolError> {
        let created = self.parts.store.create_command(new.clone()).await?;
        // Without a key the id is this call's alone.
        if created == Created::New || command.asked.key.is_none() {
            return Ok(None);
        }
        let there = self.same(command).await?.ok_or_else(gone)?;
        // What is there may be this call's: an answer of the table was lost, and the second try found the first one's item.
        Ok(Some(there).filter(|there| there.get(CALL) != new.get(CALL)))
    }

    /// Everything that is known of a command before it leaves.
    fn record(&self, command: &Command<'_>, device: &Item) -> Item {
        let asked = command.asked;
        let mut new = Item::new();
        new.insert(devices::DEVICE_ID.to_owned(), command.device_id.as_str().into());
        new.insert(commands::COMMAND_ID.to_owned(), command.command_id.as_str().into());
        new.insert("command".to_owned(), asked.command.as_str().into());
        new.insert("parameters".to_owned(), Value::Object(asked.parameters.clone()));
        new.insert("issuer".to_owned(), self.caller.issuer().into());
        new.insert(CALLER_KEY.to_owned(), self.caller.key().into());
        new.insert(CALL.to_owned(), format!("{:016x}", fastrand::u64(..)).into());
        super::put(&mut new, record::SENT_TO, device.get(devices::GATEWAY_ID));
        new.insert("issued_at".to_owned(), self.now.to_string().into());
        new.insert("expires_at".to_owned(), self.now.saturating_add(asked.lifetime).to_string().into());
        new.insert(commands::STATUS.to_owned(), "created".into());
        new.insert(PUBLISHED_AT.to_owned(), self.now.as_millis().into());
        if asked.dry_run {
            new.insert("dry_run".to_owned(), true.into());
            let forget_at = self.now.saturating_add(DRY_RUN_KEPT_FOR).as_seconds();
            new.insert(commands::FORGET_AT.to_owned(), forget_at.into());
        }
        new
    }

    /// The item as soon as it is final, or as it is when the wait is over.
    async fn word_on(&self, mut item: Item, device: &DeviceId, wait: Duration) -> Result<Item, ToolError> {
        let id = text(&item, commands::COMMAND_ID).unwrap_or_default().to_owned();
        let until = (Instant::now() + wait).min(self.deadline.checked_sub(ANSWER_TAKES).unwrap_or(self.deadline));
        let mut pause = LOOK_EVERY_FIRST;
        while !is_final(&item) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 3 / 2).min(LOOK_EVERY_LAST);
            // It was sent: a table that fails now must not make it look as if it was not.
            if let Ok(Some(now)) = self.parts.store.command(device.as_str(), &id).await {
                item = now;
            }
        }
        Ok(item)
    }
}

impl Asked {
    /// A refusal with what was asked for, as the seed answers one.
    fn refused(&self, device: &str, error: ToolError) -> ToolError {
        error
            .with(devices::DEVICE_ID, device)
            .with("command", self.command.as_str())
            .with("parameters", Value::Object(self.parameters.clone()))
            .with("delivered", false)
    }
}

fn is_final(item: &Item) -> bool {
    record::status(item).is_terminal()
}

fn gone() -> ToolError {
    ToolError::new(
        code::INTERNAL,
        "the command's item disappeared while it was read; ask list_commands before sending it again",
    )
}

/// A refusal of the gateway is an error for the caller, with the whole record, and so is what never left; all else is what
/// really happened.
fn verdict(answer: Item) -> Result<Item, ToolError> {
    let refused = matches!(text(&answer, commands::STATUS), Some("rejected" | "expired")) || record::is_unsent(&answer);
    if !refused || record::is_dry_run_ok(&answer) {
        return Ok(answer);
    }
    let reason = text(&answer, "reason").unwrap_or(code::INTERNAL).to_owned();
    let message = text(&answer, "message").unwrap_or("the gateway refused the command").to_owned();
    Err(ToolError { code: reason.into(), message, details: answer })
}

/// The words of a question, checked without any table.
fn asked(arguments: &mut Arguments, given: &str) -> Result<Asked, ToolError> {
    let command: CommandName = given.parse().map_err(|unknown: floorgate_model::command::UnknownCommand| {
        ToolError::reason(Reason::UnknownCommand, unknown.to_string())
    })?;
    let parameters = arguments.object("parameters")?;
    let invalid = |message: String| Err(ToolError::reason(Reason::InvalidParameters, message));
    if parameters.len() > PARAMETERS_MAX {
        return invalid(format!("{} parameters are given; at most {PARAMETERS_MAX} are allowed", parameters.len()));
    }
    for (name, value) in &parameters {
        let shown: String = name.chars().take(60).collect();
        let fits = match value {
            Value::String(text) => text.chars().count() <= PARAMETER_TEXT_MAX,
            Value::Number(_) | Value::Bool(_) => true,
            _ => false,
        };
        if !fits || name.is_empty() || name.len() > PARAMETER_TEXT_MAX {
            return invalid(format!(
                "parameter {shown:?} must have a name and be a number, true or false, or a text of at most {PARAMETER_TEXT_MAX} characters"
            ));
        }
    }
    if Value::Object(parameters.clone()).to_string().len() > PAYLOAD_MAX / 2 {
        return invalid(format!("the parameters are larger than {} bytes", PAYLOAD_MAX / 2));
    }
    let wait = arguments.whole("wait_seconds", 0, WAIT_SECONDS_MAX)?.unwrap_or(WAIT_SECONDS_DEFAULT);
    let lifetime = arguments.whole("expires_in_seconds", 1, LIFETIME_MAX.as_secs())?;
    Ok(Asked {
        command,
        // As the table gives them back: a repeat, which is made from there, has to be the same message.
        parameters: as_stored(parameters),
        dry_run: arguments.flag("dry_run")?,
        key: arguments.text_of("idempotency_key", KEY_MAX)?,
        wait: Duration::from_secs(wait),
        lifetime: lifetime.map_or_else(|| command.default_lifetime(), Duration::from_secs),
    })
}

fn check_parameters(asked: &Asked, device: &Item) -> Result<(), ToolError> {
    let Some(profile) = text(device, devices::DEVICE_TYPE).and_then(Profile::built_in) else { return Ok(()) };
    let device_type = &profile.device_type;
    let Some(spec) = profile.commands.get(&asked.command) else {
        let allowed: Vec<_> = profile.commands.keys().map(|command| command.as_str()).collect();
        let message =
            format!("{} is not allowed on a {device_type}; allowed are {}", asked.command, allowed.join(", "));
        return Err(ToolError::reason(Reason::Unsupported, message).with("allowed_commands", allowed));
    };
    let checked = spec.check(device_type, &asked.parameters);
    checked.map(drop).map_err(|error| ToolError::reason(Reason::InvalidParameters, error.to_string()))
}

fn check_state(asked: &Asked, id: &DeviceId, device: &Item, stale: Option<&str>) -> Result<(), ToolError> {
    if let Some(why) = stale {
        let message = format!("Device {id} cannot be reached: {why}. Command cannot be delivered.");
        return Err(ToolError::reason(Reason::Stale, message).with("stale", true));
    }
    if asked.command == CommandName::SetStatus {
        return Ok(());
    }
    let status = text(device, devices::STATUS).and_then(|word| word.parse().ok());
    match status {
        Some(DeviceStatus::Offline) => {
            let message = format!("Device {id} is offline. Command cannot be delivered.");
            Err(ToolError::reason(Reason::DeviceOffline, message))
        }
        Some(DeviceStatus::Maintenance) => {
            let message = format!(
                "Device {id} is in maintenance: somebody may be working at it. Only set_status is accepted until it is back in service."
            );
            Err(ToolError::reason(Reason::Maintenance, message))
        }
        _ => Ok(()),
    }
}

/// A new id: ids of later commands are greater, so a device's items lie in the order of their asking.
fn new_id(now: Timestamp) -> String {
    format!("{:012x}-{:016x}", now.as_millis(), fastrand::u64(..))
}

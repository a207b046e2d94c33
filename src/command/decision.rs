//! The one decision: may this command be executed, on what is known now?
//!
//! [`decide`] is pure: the same request and the same [`Facts`] give the same answer. It is asked at receipt, before the
//! command is journalled, and again immediately before dispatch, because a command may have waited meanwhile.
//!
//! The checks, in this order; the first that refuses gives the reason:
//!
//! 1. `UNKNOWN_DEVICE`: not attached here.
//! 2. `RETAINED`: came as a retained message, so nobody knows when it was meant.
//! 3. `UNKNOWN_COMMAND`: not one of the four.
//! 4. `UNSUPPORTED`: the profile does not name it, the device says it cannot, or no driver carries it there.
//! 5. `INVALID_PARAMETERS`: with the profile's words.
//! 6. [`RULES`], in their order: `INHIBITED`, `UNSUPPORTED` for a device that another gateway has taken over,
//!    `CLOCK_UNTRUSTED`, `CLOCK_SKEW`, `EXPIRED`, `MAINTENANCE`, `DEVICE_OFFLINE`, and last `DRY_RUN_OK`.
//!
//! A refusal has the status `rejected`; a command whose time has passed is `expired`. A dry run that passes every
//! check is `rejected` with `DRY_RUN_OK`: nothing was touched, and no status says "succeeded" of what was not done.

use floorgate_model::command::{CLOCK_AHEAD_MAX, LIFETIME_MAX};
use floorgate_model::profile::CommandSpec;
use floorgate_model::{AdminState, CommandName, DeviceStatus, ExecutionStatus, Profile, Reason, Request, Timestamp};
use serde_json::{Map, Value};

use crate::shadow::DeviceView;
use crate::shadow::rescue::Inhibition;

/// Where a command came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Over the cloud link.
    Cloud {
        /// As a retained message.
        retained: bool,
    },
    /// From an operator at this gateway, who also vouches for its being wanted now: no trusted clock is needed.
    Local,
}

/// When the question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// On arrival, before it is journalled.
    Receipt,
    /// Immediately before it goes to the device.
    Dispatch,
}

/// All that a decision may depend on, besides the request itself. What later rules need (time of the last reboot,
/// live readings for interlocks, approvals, quarantine, the inhibit switch) becomes a field here.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The device, if it is attached here.
    pub device: Option<&'a DeviceView>,
    /// The profile of its type, if there is one.
    pub profile: Option<&'a Profile>,
    /// The device's driver can carry this command. Not asked for `set_status`, which is done here.
    pub driver_carries: bool,
    /// The gateway's time.
    pub now: Timestamp,
    /// Whether it can be relied on.
    pub clock_trusted: bool,
    /// The journal is in doubt: why, and for how much longer.
    pub inhibition: Option<&'a Inhibition>,
    /// When the command was received, by the gateway's clock.
    pub received_at: Timestamp,
    /// It was received in this boot of the machine, so its age is known whatever the wall clock says.
    pub same_boot: bool,
    /// Where it came from.
    pub source: Source,
    /// When the question is asked.
    pub phase: Phase,
}

/// The answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It may be executed.
    Accept {
        /// The parameters in the device's types.
        checked_parameters: Map<String, Value>,
    },
    /// It must not be executed.
    Refuse(Refusal),
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `rejected` or `expired`.
    pub status: ExecutionStatus,
    /// For programs.
    pub reason: Reason,
    /// For people: what, which one, what now.
    pub message: String,
}

/// A command that is well formed and possible, on its way through [`RULES`].
#[derive(Debug, Clone, Copy)]
pub struct Judged<'a> {
    /// As asked for.
    pub request: &'a Request,
    /// What is known.
    pub facts: &'a Facts<'a>,
    /// The device.
    pub device: &'a DeviceView,
    /// The command.
    pub command: CommandName,
    /// What the profile says of it.
    pub spec: &'a CommandSpec,
}

/// One rule: a refusal, or nothing to object.
pub type Rule = fn(&Judged<'_>) -> Option<Refusal>;

/// The rules in their order. **This is the place for more**: inhibit and quarantine before the device's state,
/// cool-downs, budgets, interlocks and approval after it; the dry run stays last.
pub const RULES: &[Rule] = &[
    journal_is_whole,
    ours,
    clock_is_trusted,
    not_from_the_future,
    not_expired,
    in_service,
    reachable,
    meant_seriously,
];

/// Decides; see the module for the order of the checks.
#[must_use]
pub fn decide(request: &Request, facts: &Facts<'_>) -> Decision {
    match judge(request, facts) {
        Ok(checked_parameters) => Decision::Accept { checked_parameters },
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// From when on a command must not be executed: as it says, but never later than [`LIFETIME_MAX`] after it was issued.
#[must_use]
pub fn effective_expiry(issued_at: Timestamp, expires_at: Timestamp) -> Timestamp {
    expires_at.min(issued_at.saturating_add(LIFETIME_MAX))
}

fn judge(request: &Request, facts: &Facts<'_>) -> Result<Map<String, Value>, Refusal> {
    let id = &request.device_id;
    let device = facts.device.ok_or_else(|| {
        let message = format!("no device {id} is attached to this gateway; add it to devices.d or correct the id");
        Refusal::rejected(Reason::UnknownDevice, message)
    })?;
    if facts.source == (Source::Cloud { retained: true }) {
        let message = "came as a retained message, which may be of any age; publish commands without the retain flag";
        return Err(Refusal::rejected(Reason::Retained, message));
    }
    let command: CommandName = match request.command.parse() {
        Ok(command) => command,
        Err(unknown) => {
            let unknown: floorgate_model::command::UnknownCommand = unknown;
            return Err(Refusal::rejected(Reason::UnknownCommand, unknown.to_string()));
        }
    };
    let spec = supported(command, device, facts)?;
    let checked = spec
        .check(&device.device_type, &request.parameters)
        .map_err(|error| Refusal::rejected(Reason::InvalidParameters, error.to_string()))?;
    let judged = Judged { request, facts, device, command, spec };
    match RULES.iter().find_map(|rule| rule(&judged)) {
        Some(refusal) => Err(refusal),
        None => Ok(checked),
    }
}

fn supported<'a>(command: CommandName, device: &DeviceView, facts: &Facts<'a>) -> Result<&'a CommandSpec, Refusal> {
    let unsupported = |message: String| Refusal::rejected(Reason::Unsupported, message);
    let device_type = &device.device_type;
    let profile = facts.profile.ok_or_else(|| {
        unsupported(format!("no profile describes the type {device_type}; write one in profiles.d to allow commands"))
    })?;
    let spec = profile.commands.get(&command).ok_or_else(|| {
        let allowed = names(profile.commands.keys());
        unsupported(format!("{command} is not allowed on a {device_type}; allowed are {allowed}"))
    })?;
    // `set_status` is done at the gateway: neither the device nor its driver has a say.
    if command == CommandName::SetStatus {
        return Ok(spec);
    }
    if let Some(declared) = &device.declared_commands
        && !declared.contains(&command)
    {
        let known = names(declared.iter());
        return Err(unsupported(format!("{} says it cannot {command}; it can {known}", device.device_id)));
    }
    if !facts.driver_carries {
        return Err(unsupported(format!("nothing carries {command} to {}; see its `driver`", device.device_id)));
    }
    Ok(spec)
}

fn names<'a>(commands: impl Iterator<Item = &'a CommandName>) -> String {
    let words: Vec<_> = commands.map(|command| command.as_str()).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

/// After damage to the journal nobody knows which commands have run, so none does until all from before have expired;
/// an operator's neither, because scripts send the same id again, and something may be running. Only his `set_status`
/// goes: it is done here, and a technician must be able to take a device out of service.
fn journal_is_whole(judged: &Judged<'_>) -> Option<Refusal> {
    let inhibition = judged.facts.inhibition?;
    let overlay = judged.command == CommandName::SetStatus && judged.facts.source == Source::Local;
    (!overlay).then(|| {
        let (why, left) = (&inhibition.why, inhibition.left.as_secs().max(1));
        let message = format!(
            "commands are inhibited for {left} s more, because a command from before might run twice: {why}; \
             see `floorgate status`, and send it again then"
        );
        Refusal::rejected(Reason::Inhibited, message)
    })
}

/// A device that another gateway has taken over is left to it: two gateways on one floor would both send.
fn ours(judged: &Judged<'_>) -> Option<Refusal> {
    let other = judged.device.taken_over_by.as_ref()?;
    let id = &judged.device.device_id;
    let message = format!("{id} is attached to gateway {other} now; send the command there, or detach it there first");
    Some(Refusal::rejected(Reason::Unsupported, message))
}

/// Without the time of day nobody can tell whether a command from afar is still wanted; nor whether one is that an
/// operator gave before the machine started again.
fn clock_is_trusted(judged: &Judged<'_>) -> Option<Refusal> {
    let needed = matches!(judged.facts.source, Source::Cloud { .. }) || !judged.facts.same_boot;
    (needed && !judged.facts.clock_trusted).then(|| {
        let message = "the gateway does not know the time, so it cannot tell whether this command is still wanted; \
                       see `floorgate status`, or send it at the gateway";
        Refusal::rejected(Reason::ClockUntrusted, message)
    })
}

/// A time that has not come yet means that one of two clocks is wrong. Before dispatch the command's own receipt is
/// such a time: if it lies ahead, the gateway's clock was put back and its expiry means nothing any more.
fn not_from_the_future(judged: &Judged<'_>) -> Option<Refusal> {
    let facts = judged.facts;
    let limit = facts.now.saturating_add(CLOCK_AHEAD_MAX);
    let received_ahead = facts.phase == Phase::Dispatch && facts.received_at > limit;
    let (what, time) = if judged.request.issued_at > limit {
        ("issued", judged.request.issued_at)
    } else if received_ahead {
        ("received", facts.received_at)
    } else {
        return None;
    };
    let ahead = time.since(facts.now).as_secs();
    let most = CLOCK_AHEAD_MAX.as_secs();
    let message =
        format!("{what} at {time}, {ahead} s ahead of the gateway's clock (at most {most} s); set the clocks");
    Some(Refusal::rejected(Reason::ClockSkew, message))
}

fn not_expired(judged: &Judged<'_>) -> Option<Refusal> {
    let expiry = effective_expiry(judged.request.issued_at, judged.request.expires_at);
    (judged.facts.now >= expiry).then(|| expired(expiry, judged.facts.now))
}

/// The refusal of a command whose time has passed.
#[must_use]
pub fn expired(expiry: Timestamp, now: Timestamp) -> Refusal {
    let late = now.since(expiry).as_secs();
    let message = format!("expired at {expiry}, {late} s ago; send it again if it is still wanted");
    Refusal { status: ExecutionStatus::Expired, reason: Reason::Expired, message }
}

fn in_service(judged: &Judged<'_>) -> Option<Refusal> {
    let overlaid = judged.device.admin_state == AdminState::Maintenance;
    (overlaid && judged.command != CommandName::SetStatus).then(|| {
        let id = &judged.device.device_id;
        let message = format!("{id} is in maintenance; set_status online puts it back in service");
        Refusal::rejected(Reason::Maintenance, message)
    })
}

fn reachable(judged: &Judged<'_>) -> Option<Refusal> {
    let offline = judged.device.observed == DeviceStatus::Offline;
    (offline && judged.command != CommandName::SetStatus).then(|| {
        let id = &judged.device.device_id;
        let seen = judged.device.last_seen_at.map_or_else(|| "never".to_owned(), |time| time.to_string());
        let message = format!("{id} is offline, last heard {seen}; send it again once the device is back");
        Refusal::rejected(Reason::DeviceOffline, message)
    })
}

fn meant_seriously(judged: &Judged<'_>) -> Option<Refusal> {
    judged.request.dry_run.then(|| {
        let message = "dry run: every check passed, nothing was done";
        Refusal::rejected(Reason::DryRunOk, message)
    })
}

impl Refusal {
    fn rejected(reason: Reason, message: impl Into<String>) -> Self {
        Self { status: ExecutionStatus::Rejected, reason, message: message.into() }
    }
}

#[cfg(test)]
mod tests;

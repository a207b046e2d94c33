//! A command's item as an answer. Pure.
//!
//! `delivered` is true only if a gateway accepted the command: its name stands in the item, and what it wrote is neither
//! a refusal nor that the time had passed. Until then the item is only what a tool asked for.
//!
//! # What no gateway took up
//!
//! Nobody writes the end of a command that never reached its gateway. A gateway executes nothing after `expires_at`, but one
//! that is away may have executed it before and tell so later. So it stays `created`, not final, until the gateway it was
//! sent to says of itself that at a time [`SETTLED_AFTER`] past the expiry it had nothing left to tell: then this command
//! was not among what it had, and never will be but as `expired`. It is told as `expired`, `EXPIRED`, final, whatever stands
//! in the item. The gateway's own clock is counted; the five minutes are what it may be ahead. A gateway that was replaced
//! under the same name, its store lost, has nothing to tell either: what it did before is not known to anybody.

use std::time::Duration;

use floorgate_model::table::{commands, devices};
use floorgate_model::{ExecutionStatus, Reason, Timestamp};
use serde_json::Value;

use super::put;
use crate::age::{Leases, text, time};
use crate::error::code;
use crate::store::{Item, LEFT};

/// So long after its expiry a gateway that has nothing left to tell has not taken a command up: what its clock may be ahead.
pub(crate) const SETTLED_AFTER: Duration = crate::age::AHEAD_MAX;
/// The gateway that a command was sent to, in its item. (`gateway_id` is the one that took it up.)
pub(super) const SENT_TO: &str = "sent_to";

/// What is told as it stands in the item.
const TOLD: [&str; 14] = [
    commands::COMMAND_ID,
    devices::DEVICE_ID,
    "command",
    "parameters",
    commands::STATUS,
    "reason",
    "message",
    "issuer",
    "expires_at",
    "received_at",
    "started_at",
    "completed_at",
    "details",
    devices::GATEWAY_ID,
];

/// Where a command's item stands.
pub(super) fn status(item: &Item) -> ExecutionStatus {
    // A word nobody knows is not taken for an end.
    text(item, commands::STATUS).and_then(|word| word.parse().ok()).unwrap_or(ExecutionStatus::Created)
}

/// Whether a gateway has taken it up.
pub(super) fn has_gateway(item: &Item) -> bool {
    text(item, devices::GATEWAY_ID).is_some()
}

/// Whether a gateway accepted it.
pub(super) fn is_delivered(item: &Item) -> bool {
    has_gateway(item) && !matches!(status(item), ExecutionStatus::Rejected | ExecutionStatus::Expired)
}

/// Whether it certainly never left, and no gateway has it after all.
pub(super) fn is_unsent(item: &Item) -> bool {
    status(item) == ExecutionStatus::Failed && text(item, "reason") == Some(code::NOT_SENT) && !has_gateway(item)
}

/// Whether it is known to have left. What is not known to have may be on its way all the same.
pub(super) fn has_left(item: &Item) -> bool {
    item.get(LEFT) == Some(&Value::Bool(true))
}

/// Whether it would have been accepted, had it been meant.
pub(super) fn is_dry_run_ok(item: &Item) -> bool {
    text(item, "reason") == Some(Reason::DryRunOk.as_str())
}

/// Whether its time has passed.
pub(super) fn is_overdue(item: &Item, now: Timestamp) -> bool {
    time(item, "expires_at").is_none_or(|expires| expires < now)
}

/// As of when its gateway had told everything, if that settles that no gateway has taken it up or ever will.
pub(super) fn lapsed(item: &Item, now: Timestamp, leases: &Leases) -> Option<Timestamp> {
    if status(item) != ExecutionStatus::Created || has_gateway(item) {
        return None;
    }
    let settled = time(item, "expires_at")?.saturating_add(SETTLED_AFTER);
    // A word from the future is of a clock that was wrong: it may be older than the expiry.
    let credible = settled..=now.saturating_add(crate::age::AHEAD_MAX);
    let told_all = leases.told_all(text(item, devices::DEVICE_ID)?, text(item, SENT_TO)?);
    told_all.filter(|told_all| credible.contains(told_all) && settled <= now)
}

/// The answer.
pub(super) fn told(item: &Item, now: Timestamp, leases: &Leases) -> Item {
    let mut answer = as_stored(item, now);
    if let Some(told_all) = lapsed(item, now, leases) {
        let expires = text(item, "expires_at").unwrap_or("its expiry");
        let gateway = text(item, SENT_TO).unwrap_or("its gateway");
        let message = format!(
            "no gateway took it up: by {told_all} {gateway} had told everything it knew, and this was not among it. It \
             expired at {expires} and will not be executed any more"
        );
        answer.insert(commands::STATUS.to_owned(), ExecutionStatus::Expired.as_str().into());
        answer.insert("reason".to_owned(), Reason::Expired.as_str().into());
        answer.insert("message".to_owned(), message.into());
        answer.insert("final".to_owned(), true.into());
    }
    answer
}

fn as_stored(item: &Item, now: Timestamp) -> Item {
    let mut answer = Item::new();
    for attribute in TOLD {
        put(&mut answer, attribute, item.get(attribute));
    }
    put(&mut answer, "timestamp", item.get("issued_at"));
    let status = status(item);
    answer.insert(commands::STATUS.to_owned(), status.as_str().into());
    answer.insert("delivered".to_owned(), is_delivered(item).into());
    answer.insert("final".to_owned(), status.is_terminal().into());
    if item.get("dry_run") == Some(&Value::Bool(true)) {
        answer.insert("dry_run".to_owned(), true.into());
    }
    if !answer.contains_key("parameters") {
        answer.insert("parameters".to_owned(), Value::Object(Item::new()));
    }
    if !answer.contains_key("message")
        && let Some(message) = message(item, status, now)
    {
        answer.insert("message".to_owned(), message.into());
    }
    answer
}

/// What a gateway that says nothing leaves to be said.
fn message(item: &Item, status: ExecutionStatus, now: Timestamp) -> Option<String> {
    let expires = text(item, "expires_at").unwrap_or("its expiry");
    match (status, has_gateway(item)) {
        (ExecutionStatus::Created, false) if is_overdue(item, now) => Some(format!(
            "no gateway has said anything about it; it was not executed after {expires}, and whether before is not \
             known as long as its gateway cannot write to the table: look at the device before sending it again"
        )),
        (ExecutionStatus::Created, false) if !has_left(item) => Some(format!(
            "it is not known whether the command left, and no gateway has answered; it will not be executed after {expires}: \
             ask get_command_status with this command_id, or repeat it with the same idempotency_key"
        )),
        (ExecutionStatus::Created, false) => Some(format!(
            "sent, and the gateway has not answered yet; it will not be executed after {expires}: ask \
             get_command_status with this command_id, do not send it again"
        )),
        (ExecutionStatus::Created, true) => {
            Some("the gateway has accepted it and it waits for its turn: ask get_command_status".to_owned())
        }
        (ExecutionStatus::InProgress, _) => Some("the device is at it: ask get_command_status".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn item(value: Value) -> Item {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn delivered_is_only_what_a_gateway_accepted() {
        for status in ExecutionStatus::ALL {
            let ours = item(json!({"status": status}));
            assert!(!is_delivered(&ours), "{status} without a gateway");
            let theirs = item(json!({"status": status, "gateway_id": "GW"}));
            let refused = matches!(status, ExecutionStatus::Rejected | ExecutionStatus::Expired);
            assert_eq!(is_delivered(&theirs), !refused, "{status}");
        }
        assert!(
            !told(&item(json!({"status": "delivered"})), Timestamp::EPOCH, &Leases::default())["final"]
                .as_bool()
                .unwrap()
        );
    }

    #[test]
    fn what_the_gateway_does_not_say_is_said_for_it() {
        let sent = item(json!({"status": "created", "expires_at": "2026-11-22T10:02:00.000Z"}));
        let at = |text: &str| {
            told(&sent, Timestamp::parse(text).unwrap(), &Leases::default())["message"].as_str().unwrap().to_owned()
        };
        assert!(at("2026-11-22T10:00:00Z").contains("will not be executed after 2026-11-22T10:02:00.000Z"));
        assert!(at("2026-11-22T10:03:00Z").contains("whether before is not known"));
    }
}

//! What admission refuses, counted and told: the same for commands from the cloud and from an operator here.

use floorgate_model::{CommandId, DeviceId, ExecutionRecord, Reason};

use crate::command::Admitted;
use crate::mqtt::refusals::{Refusal, Refusals};

/// Why a command that came in for `device` is not executed. What was known already was counted when it came first, and
/// a dry run that would have been executed is no refusal.
pub(super) fn note(refusals: &Refusals, device: &DeviceId, admitted: &Admitted) {
    match admitted {
        Admitted::Journalled(record) => journalled(refusals, record),
        Admitted::Conflict(known) => conflict(refusals, device, &known.command_id),
        Admitted::UnknownDevice => refusals.count(Refusal::UnknownDevice),
        Admitted::Duplicate(_) => {}
    }
}

/// A new record: refused, if it is terminal at once.
pub(super) fn journalled(refusals: &Refusals, record: &ExecutionRecord) {
    let Some(reason) = record.reason.filter(|reason| record.status.is_terminal() && *reason != Reason::DryRunOk) else {
        return;
    };
    refusals.command(
        &record.device_id,
        Some(&record.command_id),
        reason,
        record.message.as_deref().unwrap_or_default(),
    );
}

/// A command, or what was to be one, that bears the id of a different one.
pub(super) fn conflict(refusals: &Refusals, device: &DeviceId, id: &CommandId) {
    refusals.count(Refusal::DuplicateId);
    refusals.command(device, Some(id), Reason::DuplicateId, "its id belongs to another command; give each a new one");
}

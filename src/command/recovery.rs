//! What becomes of commands that were in progress when the gateway stopped.
//!
//! None is sent again, because nobody knows how far it got: unless its profile calls it idempotent and it could be sent
//! for the first time now. Whatever the device has reported meanwhile decides at once; what comes later is waited for,
//! as long as the command may take, but [`PATIENCE_MAX`] at most; then it is `indeterminate` with `INTERRUPTED`. The
//! device's queue waits meanwhile.
//!
//! How long the gateway was away does not shorten the wait: the device's answer may lie at the plant's broker, and comes
//! only once the link is back.

use std::time::Duration;

use floorgate_model::CommandName;

use super::decision::Decision;
use super::execution::{Hands, Step};
use super::log::CommandLog;
use crate::shadow::DeviceView;
use crate::shadow::store::OpenExecution;

/// Longest wait for late proof after a restart. Devices announce themselves within seconds of the gateway's return;
/// longer would only keep the next command waiting.
pub const PATIENCE_MAX: Duration = Duration::from_secs(60);

/// Brings one interrupted execution to its end.
pub(super) async fn resolve<L: CommandLog>(hands: &Hands<L>, execution: OpenExecution) {
    // A store that cannot answer now is asked again by the wait itself; without the view, nothing is sent.
    let device = hands.log.device(&execution.record.device_id).await.ok().flatten();
    let step = step(hands, &execution, device.as_ref());
    let fresh_until = hands.fresh_until(&execution.record);
    hands.carry_out(execution, device.as_ref(), step, fresh_until).await;
}

fn step<L: CommandLog>(hands: &Hands<L>, execution: &OpenExecution, device: Option<&DeviceView>) -> Step {
    let record = &execution.record;
    let Ok(command) = record.command.parse::<CommandName>() else { return Step::OnlyWait };
    let profile = hands.judge.profile_of(device);
    let idempotent = profile.is_some_and(|profile| profile.commands.get(&command).is_some_and(|spec| spec.idempotent));
    let accepted = matches!(hands.judge.before_dispatch(record, device), Decision::Accept { .. });
    // With the device's word recorded there is nothing to ask it for.
    if execution.answer.is_none() && accepted && idempotent { Step::SendAgain } else { Step::OnlyWait }
}

//! What becomes of commands that were in progress when the gateway stopped.
//!
//! None is sent again, because nobody knows how far it got: unless its profile calls it idempotent and it could be sent
//! for the first time now. The others are resolved by what the device reports, for as long as they would have had,
//! [`PATIENCE_MAX`] at most; then they are `indeterminate`. The device's queue waits meanwhile.

use std::time::Duration;

use floorgate_model::CommandName;

use super::decision::Decision;
use super::dispatcher::{Hands, Step, timeout_of};
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
    hands.carry_out(execution, device.as_ref(), step).await;
}

fn step<L: CommandLog>(hands: &Hands<L>, execution: &OpenExecution, device: Option<&DeviceView>) -> Step {
    let record = &execution.record;
    let profile = hands.judge.profile_of(device);
    let command = record.command.parse::<CommandName>().ok();
    let spec = command.and_then(|command| profile.as_ref()?.commands.get(&command).cloned());
    let accepted = matches!(hands.judge.before_dispatch(record, device), Decision::Accept { .. });
    // With the device's word recorded there is nothing to ask it for.
    if execution.answer.is_none() && accepted && spec.is_some_and(|spec| spec.idempotent) {
        return Step::Send;
    }
    let timeout = command.map_or(PATIENCE_MAX, |command| timeout_of(profile.as_deref(), command));
    let passed = record.started_at.map_or(Duration::ZERO, |start| hands.judge.clock.now().since(start));
    Step::OnlyWait(timeout.saturating_sub(passed).min(PATIENCE_MAX))
}

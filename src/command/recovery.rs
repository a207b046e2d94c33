//! What becomes of commands that were in progress when the gateway stopped.
//!
//! None is sent again, because nobody knows how far it got: unless its profile calls it idempotent and it could be sent
//! for the first time now. Whatever the device has reported meanwhile decides at once; what comes later is waited for
//! ([`patience`]); then it is `indeterminate` with `INTERRUPTED`. The device's queue waits meanwhile.

use std::time::Duration;

use floorgate_model::{CommandName, Timestamp};

use super::decision::Decision;
use super::execution::{Hands, Step};
use super::log::CommandLog;
use crate::shadow::DeviceView;
use crate::shadow::store::OpenExecution;

/// Shortest wait for late proof after a restart, unless the command's own timeout is shorter. However long the gateway
/// was away: an answer may lie at the plant's broker, and comes only once the link is back.
pub const PATIENCE_MIN: Duration = Duration::from_secs(60);

/// How long to wait for late proof of an execution that began at `started_at`: as long as it would have had, because
/// the device may still be at work and must not get its next command meanwhile; at least [`PATIENCE_MIN`]; never longer
/// than its timeout, whatever the wall clock says.
#[must_use]
pub fn patience(timeout: Duration, started_at: Option<Timestamp>, now: Timestamp) -> Duration {
    let passed = started_at.map_or(Duration::ZERO, |start| now.since(start));
    timeout.saturating_sub(passed).max(PATIENCE_MIN.min(timeout))
}

/// Brings one interrupted execution to its end.
pub(super) async fn resolve<L: CommandLog>(hands: &Hands<L>, execution: OpenExecution) {
    // A store that cannot answer now is asked again by the wait itself; without the view, nothing is sent.
    let device = hands.log.device(&execution.record.device_id).await.ok().flatten();
    let step = step(hands, &execution, device.as_ref());
    let fresh = hands.fresh(&execution);
    hands.carry_out(execution, device.as_ref(), step, fresh).await;
}

fn step<L: CommandLog>(hands: &Hands<L>, execution: &OpenExecution, device: Option<&DeviceView>) -> Step {
    let record = &execution.record;
    let Ok(command) = record.command.parse::<CommandName>() else { return Step::OnlyWait };
    let profile = hands.judge.profile_of(device);
    let idempotent = profile.is_some_and(|profile| profile.commands.get(&command).is_some_and(|spec| spec.idempotent));
    let accepted = matches!(hands.judge.before_dispatch(execution, device), Decision::Accept { .. });
    // With the device's word recorded there is nothing to ask it for.
    if execution.answer.is_none() && accepted && idempotent { Step::SendAgain } else { Step::OnlyWait }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patience_is_what_remains_of_the_timeout_and_a_minute_at_least_and_the_timeout_at_most() {
        let now = Timestamp::from_millis(1_800_000_000_000);
        let waits = |timeout, started_ago: i64| {
            let start = Timestamp::from_millis(now.as_millis() - started_ago * 1_000);
            patience(Duration::from_secs(timeout), Some(start), now).as_secs()
        };
        assert_eq!([waits(300, 0), waits(300, 100), waits(300, 250), waits(300, 86_400)], [300, 200, 60, 60]);
        assert_eq!([waits(30, 0), waits(30, 20), waits(30, 86_400)], [30, 30, 30]);
        assert_eq!(waits(300, -86_400), 300, "the wall clock was put back");
        assert_eq!(patience(Duration::from_secs(300), None, now).as_secs(), 300);
    }
}

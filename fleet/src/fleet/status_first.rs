//! *Status first* where no process lasts: a command needs that the same caller was told the same device's status within
//! [`STATUS_FIRST_WITHIN`], and the table remembers it ([`crate::store`]).
//!
//! The MCP server has the same rule in its own memory ([`crate::policy`]); a Lambda function sleeps, dies and runs in many
//! places at once. It costs one write for each `get_device_status` and one read for each `send_command`.
//!
//! * The caller is whom the door names: the operator, or, where nobody tells who asks, the AgentCore gateway as a whole.
//! * What cannot be found out is not permitted: a read that could not be noted has to be repeated, a table that does not
//!   answer is an error of the command, and a read from the future ([`AHEAD_MAX`]) is none.
//! * A dry run is a command as well: AgentCore's temporal policies know no difference either.

use std::time::Duration;

use floorgate_model::{DeviceId, Timestamp};

use super::Call;
use crate::error::{ToolError, code};
use crate::policy::{STATUS_FIRST_WITHIN, status_first_denial};

/// How far the clocks of two instances may be apart.
const AHEAD_MAX: Duration = Duration::from_secs(60);

impl Call<'_> {
    /// The caller was just told this device's status. That it cannot be noted costs the caller another read, not this one.
    pub(super) async fn note_status_read(&self, device: &DeviceId) {
        if self.status_first {
            let reader = self.caller.key();
            // The failure is in the log.
            let _ = self.parts.store.note_status_read(&reader, device, self.now).await;
        }
    }

    /// Refuses a command without a status read before it.
    pub(super) async fn status_was_read(&self, named: &str) -> Result<(), ToolError> {
        // What is no id is no device either, and is told so later.
        let Some(device) = DeviceId::new(named).ok().filter(|_| self.status_first) else { return Ok(()) };
        let read = self.parts.store.status_read(&self.caller.key(), &device).await?;
        if read.is_some_and(|at| is_recent(at, self.now)) {
            return Ok(());
        }
        Err(ToolError::new(code::STATUS_FIRST, status_first_denial()))
    }
}

fn is_recent(at: Timestamp, now: Timestamp) -> bool {
    at <= now.saturating_add(AHEAD_MAX) && now <= at.saturating_add(STATUS_FIRST_WITHIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_counts_for_five_minutes_and_one_from_the_future_does_not() {
        let now = Timestamp::parse("2026-11-22T10:00:00Z").unwrap();
        let before = |ms: i64| Timestamp::from_millis(now.as_millis() - ms);
        assert!(is_recent(before(0), now) && is_recent(before(300_000), now) && is_recent(before(-60_000), now));
        assert!(!is_recent(before(300_001), now) && !is_recent(before(-60_001), now));
    }
}

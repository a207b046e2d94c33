//! How long a command may still be sent, on the clocks that nothing steps.
//!
//! The wall clock says when a command expires, and it is asked again before every step. But it can be put back, and
//! then calls something fresh that is not. So what is left of a command's life is also measured:
//!
//! * from its receipt, by boot time, which the journal keeps: in the same boot of the machine this holds over restarts
//!   of the gateway, and goes on while the machine is suspended;
//! * in another boot from when it is first looked at, by what the wall clock says then, which must be trusted (see
//!   [`super::decision`]);
//! * from then on by the runtime's monotonic time too.
//!
//! The strictest counts. A wall clock that is put forward ends a life early, none ever prolongs it.

use std::time::Duration;

use floorgate_model::Timestamp;
use tokio::time::Instant;

use super::decision::effective_expiry;
use crate::clock::Clock;
use crate::shadow::store::OpenExecution;

/// Until when a command may go out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fresh {
    /// By the wall clock.
    expiry: Timestamp,
    /// By the runtime's clock.
    until: Instant,
    /// By boot time, milliseconds.
    until_boot_ms: i64,
}

impl Fresh {
    /// What a command has left now.
    pub(super) fn of(execution: &OpenExecution, clock: &Clock) -> Self {
        let (record, moment) = (&execution.record, clock.moment());
        let expiry = effective_expiry(record.issued_at, record.expires_at);
        let by_wall = expiry.since(moment.wall);
        let same_boot = execution.received_boot.filter(|received| received.boot_id == moment.boot.boot_id);
        let by_boot = same_boot.map(|received| {
            let passed = u64::try_from(moment.boot.ms.saturating_sub(received.ms)).unwrap_or(0);
            expiry.since(record.received_at).saturating_sub(Duration::from_millis(passed))
        });
        let left = by_boot.map_or(by_wall, |by_boot| by_boot.min(by_wall));
        let left_ms = i64::try_from(left.as_millis()).unwrap_or(i64::MAX);
        Self { expiry, until: Instant::now() + left, until_boot_ms: moment.boot.ms.saturating_add(left_ms) }
    }

    /// Whether its time has passed, by any clock.
    pub(super) fn is_over(&self, clock: &Clock) -> bool {
        clock.now() >= self.expiry || self.left(clock).is_zero()
    }

    /// What is left by the clocks that nothing steps.
    pub(super) fn left(&self, clock: &Clock) -> Duration {
        let by_boot = u64::try_from(self.until_boot_ms.saturating_sub(clock.boot_ms())).unwrap_or(0);
        self.until.saturating_duration_since(Instant::now()).min(Duration::from_millis(by_boot))
    }
}

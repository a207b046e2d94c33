//! Until when something may leave, by the clocks that nothing steps.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::{Clock, as_ms};

/// A time after which nothing may leave any more.
///
/// The runtime's clock stands still while the machine is suspended, and its timers fire late by as much. So boot time,
/// which goes on, is asked too at each look; whichever is over first counts.
#[derive(Debug, Clone)]
pub struct Deadline {
    timer: Instant,
    boot: Option<(Clock, i64)>,
}

impl Deadline {
    /// After this time from now.
    #[must_use]
    pub fn after(left: Duration, clock: &Clock) -> Self {
        let boot_ms = clock.boot_ms().saturating_add(as_ms(left));
        Self { timer: Instant::now() + left, boot: Some((clock.clone(), boot_ms)) }
    }

    /// Whether it has passed, by either clock.
    #[must_use]
    pub fn is_over(&self) -> bool {
        Instant::now() >= self.timer || self.boot.as_ref().is_some_and(|(clock, at)| clock.boot_ms() >= *at)
    }

    /// When the runtime is to look again at the latest.
    #[must_use]
    pub fn timer(&self) -> Instant {
        self.timer
    }

    /// Does `work`, but begins no step of it once this has passed: `None` then.
    ///
    /// # Cancel safety
    /// As `work`.
    pub async fn guard<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let (mut work, mut timer) = (pin!(work), pin!(tokio::time::sleep_until(self.timer)));
        poll_fn(|context| {
            if self.is_over() || timer.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            work.as_mut().poll(context).map(Some)
        })
        .await
    }
}

/// By the runtime's clock alone: for what expires by nobody's clock but ours.
impl From<Instant> for Deadline {
    fn from(timer: Instant) -> Self {
        Self { timer, boot: None }
    }
}

#[cfg(test)]
mod tests {
    use floorgate_model::Timestamp;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_passes_by_whichever_clock_is_first() {
        let clock = Clock::set_to(Timestamp::EPOCH);
        let (a, b) = (Deadline::after(Duration::from_secs(9), &clock), Deadline::after(Duration::from_secs(9), &clock));
        clock.pass_boot(Duration::from_millis(8_999));
        assert!(!a.is_over());
        clock.pass_boot(Duration::from_millis(1));
        assert!(a.is_over(), "the machine was suspended: the runtime's clock stood still");
        clock.pass_boot(Duration::ZERO);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(b.is_over() && Deadline::from(Instant::now()).is_over());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_suspended_machine_would_have_done_late_is_not_done_when_it_wakes() {
        let clock = Clock::set_to(Timestamp::EPOCH);
        let deadline = Deadline::after(Duration::from_secs(60), &clock);
        let (room, has_room) = oneshot::channel::<()>();
        let mut done = false;
        let work = async {
            let _ = has_room.await;
            done = true;
        };
        let mut guarded = Box::pin(deadline.guard(work));
        assert!(futures_util::poll!(guarded.as_mut()).is_pending());
        clock.pass_boot(Duration::from_secs(3_600));
        room.send(()).unwrap();
        assert_eq!(guarded.await, None);
        assert!(!done);
    }
}

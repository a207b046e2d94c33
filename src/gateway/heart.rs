//! The daemon's pulse: the store's timers every second, and the watchdog, fed by their answers.
//!
//! The sign of life is the writer's answer and no bare timer: a writer that is stuck answers nothing, nothing is fed, and
//! the service manager starts the process anew. A disk that fails is answered, and none of the watchdog's business: a
//! restart would not mend it. Links that cannot connect are none either. What hangs the runtime hangs this task with it.

use std::future::Future;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::shadow::StoreError;

/// How often the store's timers are looked at.
const TICK: Duration = Duration::from_secs(1);

/// Beats until `stop`: each answer of `beat` but "closed" is fed to the watchdog.
pub(super) async fn run<F>(beat: impl Fn() -> F + Send, feed: impl Fn() + Send, stop: CancellationToken)
where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let mut every = tokio::time::interval(TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        // A beat that never ends must not keep the task from stopping.
        let Some(outcome) = stop.run_until_cancelled(beat()).await else { return };
        if !matches!(outcome, Err(StoreError::Closed)) {
            feed();
        }
        match outcome.map_err(|error| error.to_string()) {
            Ok(()) => said = None,
            Err(error) if said.as_ref() != Some(&error) => {
                warn!(error, "the store's timers");
                said = Some(error);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Beats for a minute of paused time with a writer that answers `answers` times and then hangs; tells how often the
    /// watchdog was fed.
    async fn fed(answers: u32, outcome: Result<(), StoreError>) -> u32 {
        let (asked, fed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (stop, counted) = (CancellationToken::new(), Arc::clone(&fed));
        let beat = move || {
            let (nth, outcome) = (asked.fetch_add(1, Ordering::Relaxed), outcome.clone());
            async move {
                if nth >= answers {
                    std::future::pending::<()>().await;
                }
                outcome
            }
        };
        let feed = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let task = tokio::spawn(run(beat, feed, stop.clone()));
        tokio::time::sleep(Duration::from_millis(59_500)).await;
        stop.cancel();
        task.await.unwrap();
        fed.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_is_stuck_starves_the_watchdog_and_one_that_answers_feeds_it_every_second() {
        assert_eq!(fed(u32::MAX, Ok(())).await, 60);
        assert_eq!(fed(3, Ok(())).await, 3);
        assert_eq!(fed(0, Ok(())).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_fails_is_no_reason_to_restart_and_a_closed_store_is_no_life() {
        let failing = StoreError::Io { doing: "tick", cause: "no room".to_owned() };
        assert_eq!(fed(u32::MAX, Err(failing)).await, 60);
        assert_eq!(fed(u32::MAX, Err(StoreError::Closed)).await, 0);
    }
}

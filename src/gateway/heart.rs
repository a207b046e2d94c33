//! The daemon's pulse: the store's timers every second, and the watchdog, fed by their answers.
//!
//! The sign of life is the writer's answer and no bare timer: a writer that is stuck answers nothing, nothing is fed, and
//! the service manager starts the process anew. A disk that fails is answered, and none of the watchdog's business: a
//! restart would not mend it. Links that cannot connect are none either. A link or another part that is stuck feeds nothing
//! ([`unless_stuck`], `pulse.rs`), and what hangs the runtime hangs this task with it.
//!
//! A writer that rebuilds a large damaged file answers nothing for minutes. While it takes steps
//! ([`crate::shadow::rescue::steps`]), at least one between two looks a second apart, it is alive too. At the start, before
//! there is a watchdog, such steps ask the service manager for more time ([`start_with`]); one that takes no steps gets none.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::pulse::Pulse;
use crate::shadow::StoreError;

/// How often the store's timers are looked at.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// A start that rebuilds a file is given so much time from its last step; a service manager's own limit is 90 s in all.
pub(super) const STEP_WITHIN: Duration = Duration::from_secs(60);

/// Does the part of the start that may rebuild files; while `steps` grow, `extend` is called every second.
pub(super) fn start_with<T>(
    work: impl FnOnce() -> T,
    steps: impl Fn() -> u64 + Send,
    extend: impl Fn() + Send,
    every: Duration,
) -> T {
    let (done, ended) = std::sync::mpsc::channel::<()>();
    // Before the work begins, so that its first step is one.
    let mut seen = steps();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(every) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                if std::mem::replace(&mut seen, steps()) != seen {
                    extend();
                }
            }
        });
        let outcome = work();
        drop(done);
        outcome
    })
}

/// Waits for an answer; while there is none and `steps` grow, that is fed to the watchdog.
async fn answer<T>(beat: impl Future<Output = T>, steps: &impl Fn() -> u64, feed: &impl Fn()) -> T {
    let mut beat = std::pin::pin!(beat);
    let mut seen = steps();
    loop {
        match tokio::time::timeout(TICK, beat.as_mut()).await {
            Ok(outcome) => return outcome,
            Err(_) if std::mem::replace(&mut seen, steps()) != seen => feed(),
            Err(_) => {}
        }
    }
}

/// Feeds by `feed` while no part is stuck; one that is stuck is named in the log, once. While
/// `store_holds_up` whoever hands it something, because the disk fails or a file is rebuilt, nobody's silence counts.
pub(super) fn unless_stuck(
    pulse: Pulse,
    store_holds_up: impl Fn() -> bool + Send + Sync,
    feed: impl Fn() + Send + Sync,
) -> impl Fn() + Send + Sync {
    let told = AtomicBool::new(false);
    move || {
        if store_holds_up() {
            pulse.excuse();
        }
        match pulse.stuck() {
            None => {
                told.store(false, Ordering::Relaxed);
                feed();
            }
            Some(part) => {
                if !told.swap(true, Ordering::Relaxed) {
                    error!("{part}; the service manager is to start floorgate again");
                }
            }
        }
    }
}

/// Beats until `stop`: each answer of `beat` but "closed" is fed to the watchdog, and so are `steps` while it is waited for.
pub(super) async fn run<F>(
    beat: impl Fn() -> F + Send,
    steps: impl Fn() -> u64 + Send + Sync,
    feed: impl Fn() + Send + Sync,
    stop: CancellationToken,
) where
    F: Future<Output = Result<(), StoreError>> + Send,
{
    let mut every = tokio::time::interval(TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    while stop.run_until_cancelled(every.tick()).await.is_some() {
        // A beat that never ends must not keep the task from stopping.
        let Some(outcome) = stop.run_until_cancelled(answer(beat(), &steps, &feed)).await else { return };
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
    use std::sync::atomic::AtomicU32;

    const SILENCE_MAX: Duration = Duration::from_secs(180);

    /// Beats for a minute of paused time with a writer that answers `answers` times and then hangs; tells how often the
    /// watchdog was fed.
    async fn fed(answers: u32, outcome: Result<(), StoreError>) -> u32 {
        fed_beside(answers, outcome, || 7).await
    }

    async fn fed_beside(
        answers: u32,
        outcome: Result<(), StoreError>,
        steps: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> u32 {
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
        let task = tokio::spawn(run(beat, steps, feed, stop.clone()));
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
    async fn a_writer_that_rebuilds_a_file_feeds_the_watchdog_as_long_as_it_takes_steps() {
        let started = tokio::time::Instant::now();
        // A step each 10 ms for 40 s, and then none.
        let steps = move || u64::try_from(started.elapsed().as_millis().min(40_000) / 10).unwrap();
        let fed = fed_beside(0, Ok(()), steps).await;
        assert!((39..=41).contains(&fed), "{fed}");
    }

    #[test]
    fn a_start_that_takes_steps_gets_more_time_and_one_that_is_stuck_does_not() {
        let (step, asked) = (std::sync::mpsc::channel(), AtomicU32::new(0));
        let steps = AtomicU32::new(0);
        let extend = || {
            asked.fetch_add(1, Ordering::Relaxed);
            let _ = step.0.send(());
        };
        let every = Duration::from_millis(5);
        let work = || {
            for _ in 0..3 {
                steps.fetch_add(1, Ordering::Relaxed);
                step.1.recv().unwrap();
            }
            // No further step: nobody asks any more.
            let stuck = step.1.recv_timeout(10 * every).is_err();
            (stuck, asked.load(Ordering::Relaxed))
        };
        assert_eq!(start_with(work, || steps.load(Ordering::Relaxed).into(), extend, every), (true, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_fails_is_no_reason_to_restart_and_a_closed_store_is_no_life() {
        let failing = StoreError::Io { doing: "tick", cause: "no room".to_owned() };
        assert_eq!(fed(u32::MAX, Err(failing)).await, 60);
        assert_eq!(fed(u32::MAX, Err(StoreError::Closed)).await, 0);
    }
    #[tokio::test(start_paused = true)]
    async fn a_link_that_is_stuck_starves_the_watchdog_although_the_writer_answers() {
        let (pulse, fed) = (Pulse::default(), Arc::new(AtomicU32::new(0)));
        let (counted, fails) = (Arc::clone(&fed), Arc::new(AtomicBool::new(false)));
        let failing = Arc::clone(&fails);
        let store_holds_up = move || failing.load(Ordering::Relaxed);
        let feed = unless_stuck(pulse.clone(), store_holds_up, move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(|| async { Ok(()) }, || 7, feed, stop.clone()));
        // It connects, and then waits: for a disk that fails, which is no matter, and then for something that never comes.
        tokio::spawn(pulse.watch("link cloud", Some(SILENCE_MAX), std::future::pending::<()>()));
        fails.store(true, Ordering::Relaxed);
        tokio::time::sleep(10 * SILENCE_MAX).await;
        assert!(fed.swap(0, Ordering::Relaxed) >= 1_800, "a disk that fails is no reason to restart");
        fails.store(false, Ordering::Relaxed);
        tokio::time::sleep(SILENCE_MAX + Duration::from_millis(500)).await;
        let before = fed.load(Ordering::Relaxed);
        assert!(before >= 180, "{before}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(fed.load(Ordering::Relaxed) <= before + 1, "it is fed beside a link that is stuck");
        stop.cancel();
        task.await.unwrap();
    }
}

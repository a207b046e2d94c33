//! A failure that repeats is tried again more and more seldom.
//!
//! A service manager starts what failed anew, and older ones (systemd before 254) know only one pause, always the same. So the
//! daemon itself waits before it ends with a failure: not the first time, then 2 s, 4 s and so on up to [`PAUSE_MAX`]. How
//! often it failed in a row stands in the folder that the service manager keeps for it while it starts it again
//! (`$RUNTIME_DIRECTORY`, in memory); without one there is no pause. A run of [`GOOD_RUN`] or an end without a failure begins
//! anew.
//!
//! Everything is closed by then. A stop is heard at once, and the watchdog is fed: it is no hang.
//!
//! # What it does not do
//!
//! It does not count what ended the process from outside: a crash, the watchdog, a lack of memory.

use std::path::Path;
use std::time::Duration;

use tracing::warn;

use super::RunError;
use super::ending::Ending;
use crate::systemd;

/// The second failure in a row waits so long.
const PAUSE_FIRST: Duration = Duration::from_secs(2);
/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// After a run of this length a failure is the first one.
const GOOD_RUN: Duration = Duration::from_secs(300);
/// How often the watchdog is fed meanwhile.
const FEED_EVERY: Duration = Duration::from_secs(1);
/// The count, in the service's folder.
const FILE: &str = "failures";

/// Waits, if a run that lasted so long ended with a failure by itself and others before it did.
pub(super) async fn pause(ended: &Result<(), RunError>, lasted: Duration, folder: Option<&Path>, ending: &mut Ending) {
    // Who was told to stop is waited for; what went wrong on the way out is no reason to stay.
    let Some(folder) = folder.filter(|_| !ending.was_told()) else { return };
    let pause = note(folder, ended, lasted);
    let (Err(error), false) = (ended, pause.is_zero()) else { return };
    let seconds = pause.as_secs();
    warn!(%error, "floorgate failed as it did before; it ends in {seconds} s, to be started again");
    systemd::status(&format!("failed again, waits {seconds} s"));
    tokio::select! {
        () = ending.told() => {}
        () = wait(pause, systemd::watchdog_ping) => {}
    }
}

async fn wait(pause: Duration, feed: impl Fn()) {
    let mut every = tokio::time::interval(FEED_EVERY);
    let feeding = async {
        loop {
            every.tick().await;
            feed();
        }
    };
    let _: Result<(), _> = tokio::time::timeout(pause, feeding).await;
}

/// Counts, and answers the pause. A count that cannot be read or written is none.
fn note(folder: &Path, ended: &Result<(), RunError>, lasted: Duration) -> Duration {
    let file = folder.join(FILE);
    if !matches!(ended, Err(RunError::Failed(_))) {
        let _ = std::fs::remove_file(file);
        return Duration::ZERO;
    }
    let counted = || std::fs::read_to_string(&file).ok()?.trim().parse::<u32>().ok();
    let before = if lasted < GOOD_RUN { counted().unwrap_or(0) } else { 0 };
    let _ = std::fs::write(&file, before.saturating_add(1).to_string());
    before.checked_sub(1).map_or(Duration::ZERO, |n| PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(n)).min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::from_millis(20);

    fn failed() -> Result<(), RunError> {
        Err(RunError::Failed("the port is in use".to_owned()))
    }

    #[test]
    fn pauses_grow_from_none_to_a_minute_and_a_good_run_or_a_good_end_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let seconds = |lasted| note(folder.path(), &failed(), lasted).as_secs();
        let grown: Vec<_> = (0..9).map(|_| seconds(AT_ONCE)).collect();
        assert_eq!(grown, [0, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!((seconds(GOOD_RUN), seconds(AT_ONCE)), (0, 2));
        for good in [Ok(()), Err(RunError::Configuration("another try changes nothing".to_owned()))] {
            assert_eq!(note(folder.path(), &good, AT_ONCE), Duration::ZERO);
            assert_eq!((seconds(AT_ONCE), seconds(AT_ONCE)), (0, 2));
        }
        std::fs::write(folder.path().join(FILE), "4294967295").unwrap();
        assert_eq!(seconds(AT_ONCE), 60);
        std::fs::write(folder.path().join(FILE), "no number").unwrap();
        assert_eq!(seconds(AT_ONCE), 0);
        assert_eq!(note(Path::new("/nonexistent"), &failed(), AT_ONCE), Duration::ZERO);
    }

    /// Closing may fail on the way out; whoever stops the gateway does not wait for that.
    #[tokio::test(start_paused = true)]
    async fn a_failure_after_a_stop_was_asked_for_neither_waits_nor_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        std::fs::write(&file, "5").unwrap();
        let began = tokio::time::Instant::now();
        let mut told = Ending::told_for_tests().unwrap();
        pause(&failed(), AT_ONCE, Some(folder.path()), &mut told).await;
        assert_eq!((began.elapsed(), std::fs::read_to_string(&file).unwrap().as_str()), (Duration::ZERO, "5"));
        let mut ending = Ending::new().unwrap();
        pause(&failed(), AT_ONCE, Some(folder.path()), &mut ending).await;
        assert_eq!((began.elapsed().as_secs(), std::fs::read_to_string(&file).unwrap().as_str()), (32, "6"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_no_hang() {
        let fed = std::cell::Cell::new(0);
        let began = tokio::time::Instant::now();
        wait(PAUSE_MAX, || fed.set(fed.get() + 1)).await;
        assert_eq!(began.elapsed(), PAUSE_MAX);
        // Once a second; whether the last one is at the very end does not matter.
        assert!((60..=61).contains(&fed.get()), "{}", fed.get());
    }
}

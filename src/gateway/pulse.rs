//! Whether the daemon's parts still move: a part that is stuck starves the watchdog, as a stuck writer does.
//!
//! Every task of the [`crew`](super::crew) notes when it is polled. It is stuck
//!
//! * when one poll has not come back for [`POLL_MAX`]: it blocks its thread, in a lock that nobody gives back, an endless
//!   loop, a call that does not return;
//! * if it is a link, which has timers of its own: when it has not been polled for [`link_silence_max`]: it waits for
//!   something that will never come.
//!
//! A link that is down is not stuck: it keeps trying. Nor is one that waits for a disk that fails or a file that is rebuilt
//! ([`Pulse::excuse`]): what its broker hands over stays unread until the store takes it again, hours later perhaps. What a
//! part has spawned by itself is not seen here. Monotonic time, which stands still while the machine sleeps; a look costs
//! two atomic loads a part, a poll three stores.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use crate::mqtt::link::REFUSED_RETRY;

/// A poll takes microseconds; one that waits for the disk of a dying card, or for its turn on a busy machine, is not this long.
pub(super) const POLL_MAX: Duration = Duration::from_secs(10);
/// Pings that a link may fail to send.
pub(super) const PINGS_MISSED_MAX: u32 = 2;

/// A link pings its broker each `keep_alive`, and its longest other wait is that of a refused subscription.
pub(super) fn link_silence_max(keep_alive: Duration) -> Duration {
    PINGS_MISSED_MAX * keep_alive + REFUSED_RETRY
}

/// The marks of all parts. Cheap to clone; all clones see the same.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    began: Instant,
    marks: Arc<Mutex<Vec<Arc<Mark>>>>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { began: Instant::now(), marks: Arc::default() }
    }
}

/// Milliseconds since the pulse began, plus one; 0 is "not".
#[derive(Debug)]
struct Mark {
    name: String,
    /// How long it may not be polled.
    silence_max: Option<Duration>,
    entered: AtomicU64,
    left: AtomicU64,
    ended: AtomicU64,
}

impl Pulse {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// A task whose polls are noted, and after `silence_max` missed.
    pub(super) fn watch<F>(&self, name: &str, silence_max: Option<Duration>, task: F) -> Watched<F> {
        let (entered, left) = (AtomicU64::new(0), AtomicU64::new(self.now()));
        let mark = Arc::new(Mark { name: name.to_owned(), silence_max, entered, left, ended: AtomicU64::new(0) });
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        // Links may come with each reload; those that ended need no mark.
        marks.retain(|mark| mark.ended.load(Ordering::Relaxed) == 0);
        marks.push(Arc::clone(&mark));
        Watched { task: Box::pin(task), mark, pulse: self.clone() }
    }

    /// Whoever does nothing has a reason; the time that it may do nothing begins anew.
    pub(super) fn excuse(&self) {
        let now = self.now();
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.iter().for_each(|mark| mark.left.store(now, Ordering::Relaxed));
    }

    /// The first part that is stuck, and how.
    pub(super) fn stuck(&self) -> Option<String> {
        let now = self.now();
        let since = |mark: u64| Duration::from_millis(now.saturating_sub(mark));
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.iter().filter(|mark| mark.ended.load(Ordering::Relaxed) == 0).find_map(|mark| {
            match (mark.entered.load(Ordering::Relaxed), since(mark.left.load(Ordering::Relaxed))) {
                (0, silent) if mark.silence_max.is_some_and(|most| silent > most) => {
                    Some(format!("`{}` has not moved for {} s", mark.name, silent.as_secs()))
                }
                (entered, _) if entered > 0 && since(entered) > POLL_MAX => {
                    Some(format!("`{}` has blocked its thread for {} s", mark.name, since(entered).as_secs()))
                }
                _ => None,
            }
        })
    }
}

/// A task whose polls are noted.
pub(super) struct Watched<F> {
    task: Pin<Box<F>>,
    mark: Arc<Mark>,
    pulse: Pulse,
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        self.mark.ended.store(1, Ordering::Relaxed);
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.mark.entered.store(self.pulse.now(), Ordering::Relaxed);
        let outcome = self.task.as_mut().poll(context);
        self.mark.left.store(self.pulse.now(), Ordering::Relaxed);
        self.mark.entered.store(0, Ordering::Relaxed);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE_MAX: Duration = Duration::from_secs(180);

    #[tokio::test(start_paused = true)]
    async fn a_part_that_waits_is_not_stuck_and_a_link_that_waits_longer_than_its_timers_is() {
        let pulse = Pulse::default();
        let waits = tokio::spawn(pulse.watch("floor endpoint", None, std::future::pending::<()>()));
        let paced = tokio::spawn(pulse.watch("link cloud", Some(SILENCE_MAX), async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            std::future::pending::<()>().await;
        }));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert_eq!(pulse.stuck(), None);
        }
        tokio::time::sleep(SILENCE_MAX - Duration::from_secs(1)).await;
        assert_eq!(pulse.stuck(), None);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(pulse.stuck().as_deref(), Some("`link cloud` has not moved for 181 s"));
        // It waits for the disk: not before that works again is it looked at anew.
        pulse.excuse();
        assert_eq!(pulse.stuck(), None);
        tokio::time::sleep(SILENCE_MAX + Duration::from_secs(1)).await;
        assert!(pulse.stuck().is_some());
        // One that has ended is nobody's business any more.
        paced.abort();
        let _ = paced.await;
        assert_eq!(pulse.stuck(), None);
        waits.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_blocks_its_thread_is_stuck_until_it_comes_back() {
        let pulse = Pulse::default();
        let looker = pulse.clone();
        let polled =
            std::future::poll_fn(move |_| Poll::Ready(looker.marks.lock().unwrap()[0].entered.load(Ordering::Relaxed)));
        assert!(pulse.watch("dispatcher", None, polled).await > 0, "a poll under way is noted");

        let mark = pulse.watch("link cloud", Some(SILENCE_MAX), std::future::pending::<()>());
        mark.mark.entered.store(pulse.now(), Ordering::Relaxed);
        tokio::time::advance(POLL_MAX).await;
        assert_eq!(pulse.stuck(), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(pulse.stuck().as_deref(), Some("`link cloud` has blocked its thread for 11 s"));
        mark.mark.entered.store(0, Ordering::Relaxed);
        mark.mark.left.store(pulse.now(), Ordering::Relaxed);
        assert_eq!(pulse.stuck(), None);
    }
}

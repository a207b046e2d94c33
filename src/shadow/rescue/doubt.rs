//! How long commands stay inhibited, on the monotonic clock alone.
//!
//! What was really waited is noted in the file at every flush; the time the gateway is off does not count, because
//! nothing but the wall clock could tell how long that was. So a restart makes it up to half a minute longer and never
//! shorter.

use std::sync::Arc;
use std::time::{Duration, Instant};

use floorgate_model::command::{CLOCK_AHEAD_MAX, LIFETIME_MAX};
use tokio::sync::watch;

/// From a doubt about the journal until no command from before can still be alive: the longest life, begun by a
/// sender whose clock runs ahead as far as is allowed.
pub const INHIBITED_FOR: Duration = Duration::from_secs(LIFETIME_MAX.as_secs() + CLOCK_AHEAD_MAX.as_secs());

/// Commands are inhibited: the gateway cannot be sure to know all that it was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibition {
    /// For how much longer, as of the last tick (a second ago at most).
    pub left: Duration,
    /// What happened to the journal.
    pub why: Arc<str>,
}

/// Tells whether commands are inhibited; cheap to clone and to ask.
#[derive(Debug, Clone)]
pub struct InhibitionWatch(watch::Receiver<Option<Inhibition>>);

impl InhibitionWatch {
    /// The inhibition in force, if any.
    #[must_use]
    pub fn now(&self) -> Option<Inhibition> {
        self.0.borrow().clone()
    }
}

/// Nothing is inhibited, ever; for tests of what does not concern this.
impl Default for InhibitionWatch {
    fn default() -> Self {
        Self(watch::channel(None).1)
    }
}

/// The writer's side.
#[derive(Debug)]
pub(in crate::shadow) struct Doubt {
    shown: watch::Sender<Option<Inhibition>>,
    counted_at: Instant,
    /// What the file said is left when it was last read or written.
    in_file: Duration,
    /// What the file says is left differs from what is.
    unsaved: bool,
}

impl Doubt {
    pub(in crate::shadow) fn new(now: Instant) -> (Self, InhibitionWatch) {
        let (shown, watch) = watch::channel(None);
        (Self { shown, counted_at: now, in_file: Duration::ZERO, unsaved: false }, InhibitionWatch(watch))
    }

    /// Whether a file that was opened again says something that was not written here: it was rebuilt, though the opening
    /// went no further then.
    pub(in crate::shadow) fn is_news(&self, left: Duration) -> bool {
        left > self.in_file
    }

    /// The file says so, or damage has just been met. A doubt that is known already is never cut short by it.
    pub(in crate::shadow) fn begin(&mut self, left: Duration, why: &str, now: Instant) {
        self.pass(now);
        self.in_file = left;
        if left < self.left() {
            self.unsaved = true;
            return;
        }
        self.unsaved = false;
        let inhibition = (!left.is_zero()).then(|| Inhibition { left, why: why.into() });
        self.shown.send_replace(inhibition);
    }

    /// Counts what was waited since the last time.
    pub(in crate::shadow) fn pass(&mut self, now: Instant) {
        let waited = now.saturating_duration_since(self.counted_at);
        self.counted_at = now;
        let mut ended = false;
        self.unsaved |= self.shown.send_if_modified(|shown| {
            let Some(inhibition) = shown else { return false };
            inhibition.left = inhibition.left.saturating_sub(waited);
            if inhibition.left.is_zero() {
                *shown = None;
                ended = true;
            }
            true
        });
        if ended {
            tracing::info!("every command from before the damage has expired: commands are taken again");
        }
    }

    pub(in crate::shadow) fn left(&self) -> Duration {
        self.shown.borrow().as_ref().map_or(Duration::ZERO, |inhibition| inhibition.left)
    }

    /// What must be written, if the file says something else.
    pub(in crate::shadow) fn to_save(&self) -> Option<Duration> {
        self.unsaved.then(|| self.left())
    }

    pub(in crate::shadow) fn saved(&mut self) {
        if std::mem::take(&mut self.unsaved) {
            self.in_file = self.left();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rebuilt_file_says_is_news_until_it_is_taken_over_and_never_cuts_a_doubt_short() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let (mut doubt, watch) = Doubt::new(start);
        assert!(!doubt.is_news(Duration::ZERO));
        assert!(doubt.is_news(INHIBITED_FOR), "a rebuilding wrote it, and the opening failed after that");
        doubt.begin(INHIBITED_FOR, "damaged", start);
        doubt.pass(start + 10 * second);
        assert!(!doubt.is_news(INHIBITED_FOR), "it is counted down already");
        assert_eq!(doubt.to_save(), Some(INHIBITED_FOR - 10 * second));
        doubt.saved();
        assert!(doubt.is_news(INHIBITED_FOR), "rebuilt once more");
        doubt.begin(second, "of an older copy", start + 20 * second);
        let left = INHIBITED_FOR - 20 * second;
        assert_eq!((watch.now().unwrap().left, doubt.to_save()), (left, Some(left)));
        doubt.begin(INHIBITED_FOR, "damaged again", start + 30 * second);
        assert_eq!((watch.now().unwrap().left, doubt.to_save()), (INHIBITED_FOR, None));
    }
}

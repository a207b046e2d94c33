//! What is owed to the broker: from the store, with a window and a pace, until it is acknowledged.
//!
//! [`Pump`] outlives connections. It knows the numbers of its entries in three places: ready to go, on their way, and
//! acknowledged but not yet confirmed in the store. A lost connection empties the first two, and their entries are read
//! from the store again; the third it keeps, because those need no repeating.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{OUTBOX_WINDOW, PACKET_MAX};
use crate::mqtt::{BoxFuture, codec, topics};
use crate::shadow::{Lane, Store, StoreError};

/// The store is asked again this often without being told to: a missed wake-up delays, it does not lose.
const PEEK_EVERY: Duration = Duration::from_secs(10);
/// Pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Room for the headers of a PUBLISH beside topic and payload, bytes.
const HEADERS_MAX: usize = 16;

/// One message that is owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// For confirming.
    pub seq: i64,
    /// Where it goes.
    pub topic: String,
    /// What it says.
    pub payload: Bytes,
}

/// Where what is owed is kept: the store, or a double of it in tests.
pub trait Outbox: Send + Sync + 'static {
    /// The next entries in the order they are to go, at most `limit`, those included that were peeked before and not yet confirmed.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read; the link asks again.
    fn peek(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Announcement>, StoreError>>;

    /// The broker has these; they are not to be peeked again.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be written; the link asks again.
    fn confirm(&self, seqs: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Resolves when there may be something new. Cancel safe.
    fn notified(&self) -> BoxFuture<'_, ()>;
}

/// The store's [`Lane::Result`]: execution records for `devices/{id}/commands/result`.
#[derive(Debug, Clone)]
pub struct ResultLane(pub Store);

impl Outbox for ResultLane {
    fn peek(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Announcement>, StoreError>> {
        Box::pin(async move {
            let entries = self.0.peek_outbox(Lane::Result, limit).await?;
            let announcement = |entry: &crate::shadow::OutboxEntry| Announcement {
                seq: entry.seq,
                topic: topics::command_result(&entry.record.device_id),
                payload: codec::record_payload(&entry.record),
            };
            Ok(entries.iter().map(announcement).collect())
        })
    }

    fn confirm(&self, seqs: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.0.confirm_outbox(Lane::Result, seqs))
    }

    fn notified(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.wakeups().results.notified())
    }
}

enum Done {
    Peeked(Result<Vec<Announcement>, StoreError>),
    Confirmed(Vec<i64>, Result<(), StoreError>),
}

/// Moves entries from the store to the connection and confirms them.
pub(super) struct Pump {
    outbox: Arc<dyn Outbox>,
    name: String,
    ours: HashSet<i64>,
    ready: VecDeque<Announcement>,
    acked: Vec<i64>,
    job: Option<BoxFuture<'static, Done>>,
    due: bool,
    peek_at: Instant,
    paused_until: Option<Instant>,
    pace: Pace,
}

impl fmt::Debug for Pump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pump").field("ours", &self.ours.len()).field("acked", &self.acked.len()).finish_non_exhaustive()
    }
}

impl Pump {
    pub(super) fn new(outbox: Arc<dyn Outbox>, name: String, per_second: u32) -> Self {
        Self {
            outbox,
            name,
            ours: HashSet::new(),
            ready: VecDeque::new(),
            acked: Vec::new(),
            job: None,
            due: true,
            peek_at: Instant::now(),
            paused_until: None,
            pace: Pace::new(per_second),
        }
    }

    /// The next entry to be published. Cancel safe: nothing is taken until it is returned.
    pub(super) async fn next(&mut self) -> Announcement {
        loop {
            if let Some(until) = self.paused_until {
                tokio::time::sleep_until(until).await;
                self.paused_until = None;
            }
            self.start_job();
            if let Some(job) = &mut self.job {
                let done = job.await;
                self.job = None;
                self.absorb(done);
            } else if !self.ready.is_empty() {
                self.pace.wait().await;
                if let Some(announcement) = self.ready.pop_front() {
                    self.pace.take();
                    return announcement;
                }
            } else if self.ours.len() >= OUTBOX_WINDOW {
                // Only an acknowledgement makes room, and it comes from outside.
                return std::future::pending().await;
            } else {
                // An error of the timeout says it passed; either way it is time to ask.
                let _ = tokio::time::timeout_at(self.peek_at, self.outbox.notified()).await;
                self.due = true;
            }
        }
    }

    fn start_job(&mut self) {
        if self.job.is_some() {
            return;
        }
        let outbox = Arc::clone(&self.outbox);
        if !self.acked.is_empty() {
            let seqs = std::mem::take(&mut self.acked);
            self.job = Some(Box::pin(async move {
                fail_point!(BeforeResultConfirm);
                let result = outbox.confirm(seqs.clone()).await;
                fail_point!(AfterResultConfirm);
                Done::Confirmed(seqs, result)
            }));
        } else if self.due && self.ready.is_empty() && self.ours.len() < OUTBOX_WINDOW {
            self.due = false;
            self.peek_at = Instant::now() + PEEK_EVERY;
            // As many as the window: fewer are ours, so whatever their places, some of the others are among them.
            self.job = Some(Box::pin(async move { Done::Peeked(outbox.peek(OUTBOX_WINDOW).await) }));
        }
    }

    fn absorb(&mut self, done: Done) {
        match done {
            Done::Peeked(Ok(entries)) => {
                for entry in entries {
                    if self.ours.len() < OUTBOX_WINDOW && self.ours.insert(entry.seq) {
                        self.enqueue(entry);
                    }
                }
            }
            Done::Confirmed(seqs, Ok(())) => {
                for seq in seqs {
                    self.ours.remove(&seq);
                }
                self.due = true;
            }
            Done::Peeked(Err(error)) => {
                self.due = true;
                self.pause(&error);
            }
            Done::Confirmed(seqs, Err(error)) => {
                self.acked.extend(seqs);
                self.pause(&error);
            }
        }
    }

    fn enqueue(&mut self, entry: Announcement) {
        if entry.topic.len() + entry.payload.len() + HEADERS_MAX > PACKET_MAX {
            // It would end every connection for ever, and everything behind it would wait.
            tracing::error!(link = self.name, topic = entry.topic, bytes = entry.payload.len(), "too large, given up");
            self.acked.push(entry.seq);
        } else {
            self.ready.push_back(entry);
        }
    }

    fn pause(&mut self, error: &StoreError) {
        tracing::warn!(link = self.name, "the outbox waits: {error}");
        self.paused_until = Some(Instant::now() + STORE_PAUSE);
    }

    /// The broker acknowledged an entry.
    pub(super) fn acked(&mut self, seq: i64) {
        self.acked.push(seq);
    }

    /// The connection is gone: what was on its way is owed again.
    pub(super) fn connection_lost(&mut self) {
        self.ready.clear();
        self.ours.clear();
        self.ours.extend(&self.acked);
        self.due = true;
    }

    /// Confirms what was acknowledged, so that a back-off does not turn it into duplicates after a restart.
    pub(super) async fn settle(&mut self) {
        self.paused_until = None;
        for _ in 0..2 {
            if let Some(job) = &mut self.job {
                let done = job.await;
                self.job = None;
                match done {
                    // Read for a connection that is gone.
                    Done::Peeked(_) => self.due = true,
                    confirmed @ Done::Confirmed(..) => self.absorb(confirmed),
                }
            }
            self.due = false;
            self.start_job();
        }
        self.due = true;
    }

    #[cfg(test)]
    fn on_their_way(&self) -> usize {
        self.ours.len()
    }
}

/// A token bucket of one window.
#[derive(Debug)]
struct Pace {
    per_second: f64,
    tokens: f64,
    at: Instant,
}

const BURST: f64 = 20.0;

impl Pace {
    fn new(per_second: u32) -> Self {
        Self { per_second: f64::from(per_second.max(1)), tokens: BURST, at: Instant::now() }
    }

    fn refill(&mut self) {
        let now = Instant::now();
        self.tokens = ((now - self.at).as_secs_f64() * self.per_second + self.tokens).min(BURST);
        self.at = now;
    }

    async fn wait(&mut self) {
        self.refill();
        // The clock of the timer counts whole milliseconds, so one wait may be short of a token by a rounding.
        while self.tokens < 1.0 {
            let missing = (1.0 - self.tokens) / self.per_second;
            tokio::time::sleep(Duration::from_secs_f64(missing).max(Duration::from_millis(1))).await;
            self.refill();
        }
    }

    fn take(&mut self) {
        self.tokens -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use tokio::sync::Notify;

    #[derive(Default)]
    struct Fake {
        entries: Mutex<BTreeSet<i64>>,
        fail: Mutex<bool>,
        changed: Notify,
    }

    impl Fake {
        fn with(n: i64) -> Arc<Self> {
            let fake = Self::default();
            fake.entries.lock().unwrap().extend(0..n);
            Arc::new(fake)
        }

        fn answer(&self) -> Result<(), StoreError> {
            let failing = std::mem::take(&mut *self.fail.lock().unwrap());
            if failing { Err(StoreError::Closed) } else { Ok(()) }
        }
    }

    impl Outbox for Fake {
        fn peek(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Announcement>, StoreError>> {
            let announcement = |seq: &i64| Announcement { seq: *seq, topic: "t".into(), payload: Bytes::new() };
            let entries = self.entries.lock().unwrap().iter().take(limit).map(announcement).collect();
            let answer = self.answer();
            Box::pin(async { answer.map(|()| entries) })
        }

        fn confirm(&self, seqs: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
            let answer = self.answer();
            if answer.is_ok() {
                self.entries.lock().unwrap().retain(|seq| !seqs.contains(seq));
            }
            Box::pin(async { answer })
        }

        fn notified(&self) -> BoxFuture<'_, ()> {
            Box::pin(self.changed.notified())
        }
    }

    async fn soon(pump: &mut Pump) -> Option<Announcement> {
        tokio::time::timeout(Duration::from_secs(3), pump.next()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_window_is_on_its_way() {
        let fake = Fake::with(100);
        let mut pump = Pump::new(fake.clone(), "cloud".into(), 1_000);
        let mut sent = Vec::new();
        while let Some(entry) = soon(&mut pump).await {
            sent.push(entry.seq);
        }
        assert_eq!(sent, (0..20).collect::<Vec<_>>());
        pump.acked(7);
        assert_eq!(soon(&mut pump).await.unwrap().seq, 20);
        assert!(soon(&mut pump).await.is_none());
        assert!(!fake.entries.lock().unwrap().contains(&7), "confirmed");
    }

    #[tokio::test(start_paused = true)]
    async fn in_no_second_are_more_than_the_pace_and_one_burst() {
        let mut pump = Pump::new(Fake::with(1_000), "cloud".into(), 60);
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < 500 {
            let entry = pump.next().await;
            times.push(start.elapsed());
            pump.acked(entry.seq);
        }
        let second = Duration::from_secs(1);
        let busiest = times.iter().map(|t| times.iter().filter(|u| *u >= t && **u < *t + second).count()).max();
        assert!(busiest.unwrap() <= 81, "{busiest:?}");
        assert!(start.elapsed() >= Duration::from_millis(7_900), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_is_asked_again_and_nothing_is_forgotten() {
        let fake = Fake::with(1);
        *fake.fail.lock().unwrap() = true;
        let mut pump = Pump::new(fake.clone(), "cloud".into(), 60);
        assert_eq!(pump.next().await.seq, 0);
        pump.acked(0);
        *fake.fail.lock().unwrap() = true;
        assert!(soon(&mut pump).await.is_none());
        assert!(fake.entries.lock().unwrap().is_empty());
        assert_eq!(pump.on_their_way(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_entry_goes_at_once_and_a_missed_wake_up_costs_ten_seconds_at_most() {
        let fake = Fake::with(0);
        let mut pump = Pump::new(fake.clone(), "cloud".into(), 60);
        assert!(soon(&mut pump).await.is_none());
        fake.entries.lock().unwrap().insert(1);
        fake.changed.notify_one();
        assert_eq!(soon(&mut pump).await.unwrap().seq, 1);
        fake.entries.lock().unwrap().insert(2);
        let start = Instant::now();
        assert_eq!(pump.next().await.seq, 2);
        assert!(start.elapsed() <= PEEK_EVERY);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_no_packet_can_hold_does_not_stand_in_the_way() {
        let fake = Fake::with(1);
        let mut pump = Pump::new(fake.clone(), "cloud".into(), 60);
        let payload = Bytes::from(vec![0; PACKET_MAX]);
        pump.ours.insert(0);
        pump.enqueue(Announcement { seq: 0, topic: "t".into(), payload });
        assert!(soon(&mut pump).await.is_none());
        assert!(fake.entries.lock().unwrap().is_empty());
    }

    proptest! {
        /// Whatever the order of acknowledgements and cuts, every entry is seen and the outbox ends empty.
        #[test]
        fn nothing_is_lost_across_cuts(steps in proptest::collection::vec(0u8..10, 1..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let fake = Fake::with(60);
                let mut pump = Pump::new(fake.clone(), "cloud".into(), 1_000);
                let (mut seen, mut flying) = (BTreeSet::new(), VecDeque::new());
                for step in steps {
                    match step {
                        0 => {
                            flying.clear();
                            pump.connection_lost();
                            pump.settle().await;
                        }
                        1..=4 => {
                            if let Some(seq) = flying.pop_front() {
                                pump.acked(seq);
                            }
                        }
                        _ => {
                            if let Some(entry) = soon(&mut pump).await {
                                assert!(!flying.contains(&entry.seq), "sent twice on one connection");
                                seen.insert(entry.seq);
                                flying.push_back(entry.seq);
                            }
                        }
                    }
                    assert!(pump.on_their_way() <= OUTBOX_WINDOW);
                }
                loop {
                    for seq in flying.drain(..) {
                        pump.acked(seq);
                    }
                    let Some(entry) = soon(&mut pump).await else { break };
                    seen.insert(entry.seq);
                    flying.push_back(entry.seq);
                }
                assert_eq!(seen, (0..60).collect());
                assert!(fake.entries.lock().unwrap().is_empty());
            });
        }
    }
}

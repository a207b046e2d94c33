//! A link that runs against the test's broker, with an intake and an outbox in the test's hands.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use floorgate::backoff::Backoff;
use floorgate::clock::Clock;
use floorgate::mqtt::link::{Address, Announcement, Link, LinkConfig, LinkState, Outbox};
use floorgate::mqtt::{Acceptance, BoxFuture, Inbound, Intake};
use floorgate::shadow::StoreError;
use floorgate::shadow::store::Taken;
use floorgate_model::Timestamp;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;

pub type Commit = oneshot::Sender<Result<Taken, StoreError>>;

/// An intake whose receipts the test gives.
#[derive(Default)]
pub struct Held {
    pub messages: Mutex<Vec<(Inbound, Option<Commit>)>>,
    pub changed: Notify,
    pub settle_at_once: bool,
    /// How often the link asked for haste.
    pub hastened: AtomicUsize,
}

impl Intake for Held {
    fn accept(&self, inbound: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        let (commit, receipt) = oneshot::channel();
        let acceptance = if self.settle_at_once { Acceptance::Settled } else { Acceptance::Pending(receipt) };
        self.messages.lock().unwrap().push((inbound, Some(commit)));
        self.changed.notify_one();
        Box::pin(async { Ok(acceptance) })
    }

    fn hasten(&self) -> BoxFuture<'_, ()> {
        self.hastened.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Box::pin(std::future::ready(()))
    }
}

impl Held {
    pub async fn received(&self, n: usize) {
        while self.messages.lock().unwrap().len() < n {
            tokio::time::timeout(Duration::from_secs(30), self.changed.notified()).await.expect("no message");
        }
    }

    pub async fn hastened(&self, n: usize) {
        while self.hastened.load(Ordering::Relaxed) < n {
            tokio::time::timeout(Duration::from_secs(30), self.changed.notified()).await.expect("no haste");
        }
    }

    pub fn commit(&self, n: usize, result: Result<Taken, StoreError>) {
        let commit = self.messages.lock().unwrap()[n].1.take().unwrap();
        let _ = commit.send(result);
    }

    pub fn payloads(&self) -> Vec<Bytes> {
        self.messages.lock().unwrap().iter().map(|(inbound, _)| inbound.payload.clone()).collect()
    }
}

/// An outbox in memory.
#[derive(Default)]
pub struct Owed {
    pub entries: Mutex<BTreeMap<i64, Bytes>>,
    pub changed: Notify,
    pub emptied: Notify,
}

impl Owed {
    pub fn with(n: i64) -> Arc<Self> {
        let owed = Self::default();
        owed.entries.lock().unwrap().extend((0..n).map(|seq| (seq, Bytes::from(format!("entry {seq}")))));
        Arc::new(owed)
    }
}

impl Outbox for Owed {
    fn peek(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Announcement>, StoreError>> {
        let entries = self.entries.lock().unwrap();
        let announcement =
            |(seq, payload): (&i64, &Bytes)| Announcement { seq: *seq, topic: "out".into(), payload: payload.clone() };
        let oldest = entries.iter().take(limit).map(announcement).collect();
        Box::pin(async { Ok(oldest) })
    }

    fn confirm(&self, seqs: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
        let mut entries = self.entries.lock().unwrap();
        entries.retain(|seq, _| !seqs.contains(seq));
        if entries.is_empty() {
            self.emptied.notify_one();
        }
        Box::pin(async { Ok(()) })
    }

    fn notified(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.changed.notified())
    }
}

pub struct Running {
    pub link: Link,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Running {
    pub async fn until(&self, what: &str, shown: impl FnMut(&LinkState) -> bool) -> LinkState {
        let mut state = self.link.state();
        let shown = tokio::time::timeout(Duration::from_secs(30), state.wait_for(shown)).await;
        shown.unwrap_or_else(|_| panic!("never: {what}: {:?}", self.link.state().borrow())).unwrap().clone()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

pub fn config(broker: &Broker, filters: &[&str]) -> LinkConfig {
    let address: Address = format!("mqtt://{}", broker.address).parse().unwrap();
    let mut config = LinkConfig::new("test", address, "GW-1");
    config.filters = filters.iter().map(|&filter| filter.to_owned()).collect();
    let quick = Duration::from_millis(10);
    config.backoff = Backoff::new(quick, quick, Duration::from_secs(30));
    config.connect_spacing = Duration::ZERO;
    config.rival_wait = (quick, quick);
    config.outbox_per_second = 100_000;
    config
}

pub fn run(config: LinkConfig, intake: &Arc<Held>, outbox: Option<Arc<Owed>>) -> Running {
    let outbox = outbox.map(|outbox| outbox as Arc<dyn Outbox>);
    let clock = Clock::set_to(Timestamp::EPOCH);
    let (link, runner) = Link::new(config, Arc::clone(intake) as Arc<dyn Intake>, outbox, clock);
    let stop = CancellationToken::new();
    let task = tokio::spawn(runner.run(stop.clone()));
    Running { link, stop, task }
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

impl Running {
    /// Like [`Self::until`] for paused time, in which hours pass.
    pub async fn until_long(&self, shown: impl FnMut(&LinkState) -> bool) {
        self.link.state().wait_for(shown).await.unwrap();
    }
}

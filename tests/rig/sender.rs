//! A sender of readings that writes down which PUBACKs it got, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::client::Client;

/// Messages on their way at a time.
const WINDOW: usize = 10;

type Log = BTreeSet<u64>;

pub struct Sender {
    log: Arc<Mutex<Log>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Sender {
    /// Sends readings `{"n": 0}`, `{"n": 1}`, … of a device, about 100 a second; what is not acknowledged when a
    /// connection ends it sends again on the next.
    pub fn start(floor: SocketAddr, device: &str) -> Self {
        let (log, stop) = (Arc::<Mutex<Log>>::default(), Arc::<AtomicBool>::default());
        let task = tokio::spawn(send(floor, device.to_owned(), Arc::clone(&log), Arc::clone(&stop)));
        Self { log, stop, task }
    }

    pub fn count(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// Waits for a PUBACK after now; answers how long that took.
    pub async fn next(&self, seconds: u64) -> Duration {
        self.more(1, seconds).await
    }

    /// Waits for so many PUBACKs after now; answers how long that took.
    pub async fn more(&self, count: usize, seconds: u64) -> Duration {
        let (started, before) = (Instant::now(), self.count());
        while self.count() < before + count {
            assert!(started.elapsed() < Duration::from_secs(seconds), "too few PUBACKs within {seconds} s");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    }

    /// Ends when everything that was begun is acknowledged; answers all that was.
    pub async fn stop(self) -> BTreeSet<u64> {
        self.stop.store(true, Ordering::Relaxed);
        tokio::time::timeout(Duration::from_secs(30), self.task).await.expect("the sender is done").unwrap();
        self.log.lock().unwrap().clone()
    }
}

async fn answered(n: u64, puback: oneshot::Receiver<()>) -> (u64, bool) {
    (n, puback.await.is_ok())
}

async fn send(floor: SocketAddr, device: String, log: Arc<Mutex<Log>>, stop: Arc<AtomicBool>) {
    let topic = format!("devices/{device}/telemetry");
    let mut unacknowledged: BTreeMap<u64, String> = BTreeMap::new();
    let mut next = 0u64;
    while !(stop.load(Ordering::Relaxed) && unacknowledged.is_empty()) {
        let Some(client) = Client::connect_with(floor, &format!("{device}-sender"), None).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut waits = FuturesUnordered::new();
        for (n, payload) in &unacknowledged {
            waits.push(answered(*n, client.send(&topic, payload.clone(), false).await));
        }
        while client.is_up() {
            while waits.len() < WINDOW && !stop.load(Ordering::Relaxed) {
                let at = jiff::Timestamp::now().as_millisecond();
                let payload = json!({"n": next, "timestamp": at}).to_string();
                unacknowledged.insert(next, payload.clone());
                waits.push(answered(next, client.send(&topic, payload, false).await));
                next += 1;
                // Every reading has a time of its own.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            match waits.next().await {
                Some((n, true)) => {
                    unacknowledged.remove(&n);
                    log.lock().unwrap().insert(n);
                }
                Some((_, false)) | None => break,
            }
        }
    }
}

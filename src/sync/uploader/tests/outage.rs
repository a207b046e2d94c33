//! The figures of "current first" (G6), in paused time: a day's backlog of 500 devices, an outage, a table that takes
//! what it can.

use tokio::time::{Instant, sleep, timeout};

use super::*;

const DEVICES: usize = 500;
/// A day of blocks of 60 s would be 720,000; what is drained within the test is far less than these.
const BACKLOG: i64 = 20_000;

fn name(n: usize) -> String {
    format!("D{n:03}")
}

fn old_block(id: i64) -> HistoryBlock {
    let mut block = block(id, &name(usize::try_from(id).unwrap() % DEVICES));
    block.first = Timestamp::from_millis(START - 86_400_000 + id * 1_000);
    block
}

fn backlog() -> (MemoryStore, MemoryTable) {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    for n in 0..DEVICES {
        store.put(view(&name(n), 1));
    }
    store.data().blocks = (0..BACKLOG).map(old_block).collect();
    table.data().latency = Duration::from_millis(20);
    (store, table)
}

/// Lets the network fail for ten minutes; how long after it is back the table has every device's newest state.
async fn current_after_an_outage(store: &MemoryStore, table: &MemoryTable) -> Duration {
    table.fails((0..100_000).map(|_| Fault::Before(retry(Cause::Network))));
    sleep(Duration::from_secs(600)).await;
    for n in 0..DEVICES {
        store.change(&name(n), DeviceStatus::Warning);
    }
    let back = Instant::now();
    table.data().faults.clear();
    let current = async {
        loop {
            let all = {
                let data = table.data();
                data.items.len() == DEVICES && data.items.values().all(|(_, view)| view.version == 2)
            };
            if all {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), current).await.expect("never current");
    back.elapsed()
}

/// One device's state changes and one block closes every 100 ms for a minute; how long each took to arrive, p95.
async fn live_for_a_minute(store: &MemoryStore, table: &MemoryTable) -> (Duration, Duration) {
    let (mut changed, mut closed) = (Vec::new(), Vec::new());
    for n in 0..600 {
        let who = name(n % DEVICES);
        store.change(&who, if n < DEVICES { DeviceStatus::Offline } else { DeviceStatus::Online });
        let version = store.data().views[&device(&who)].version;
        changed.push(((device(&who), version), Instant::now()));
        let id = BACKLOG + i64::try_from(n).unwrap();
        let mut live = block(id, &who);
        live.first = Timestamp::from_millis(START - 1_000 + i64::try_from(n).unwrap());
        store.data().blocks.push(live);
        closed.push((id, Instant::now()));
        SyncSource::wakeups(store).states.notify_one();
        SyncSource::wakeups(store).blocks.notify_one();
        sleep(Duration::from_millis(100)).await;
    }
    sleep(Duration::from_secs(10)).await;
    let data = table.data();
    let p95 = |mut all: Vec<Duration>| {
        all.sort();
        all[all.len() * 95 / 100]
    };
    let states = changed.iter().map(|(version, at)| data.versions_at[version] - *at).collect();
    let blocks = closed.iter().map(|(id, at)| data.blocks_at[id] - *at).collect();
    (p95(states), p95(blocks))
}

async fn outage(capacity: Option<f64>) -> (Duration, Duration, Duration, usize) {
    let (store, table) = backlog();
    table.data().capacity = capacity;
    let running = tokio::spawn(uploader(&store, &table).run(CancellationToken::new()));
    let current = current_after_an_outage(&store, &table).await;
    let (states, blocks) = live_for_a_minute(&store, &table).await;
    let drained = table.data().blocks.len() - 600;
    running.abort();
    println!("capacity {capacity:?}: current after {current:?}; live p95 {states:?}, {blocks:?}; drained {drained}");
    (current, states, blocks, drained)
}

#[tokio::test(start_paused = true)]
async fn five_hundred_devices_are_current_five_seconds_after_an_outage_and_live_data_waits_for_no_backlog() {
    let (current, states, blocks, drained) = outage(None).await;
    assert!(current <= Duration::from_secs(5), "{current:?}");
    assert!(states <= Duration::from_secs(2) && blocks <= Duration::from_secs(2), "{states:?}, {blocks:?}");
    assert!(drained > 15_000, "the backlog is drained too: {drained}");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_throttles_the_backlog_delays_no_live_data() {
    let (_, states, blocks, drained) = outage(Some(150.0)).await;
    assert!(states <= Duration::from_secs(2) && blocks <= Duration::from_secs(2), "{states:?}, {blocks:?}");
    assert!(drained > 1_500, "{drained}");
}

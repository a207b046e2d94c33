//! Current first (G6) with a real store, a day of backlog, and the table over HTTP behind a cable that is pulled.

use std::time::Instant;

use floorgate::shadow::store::Attachment;
use floorgate::shadow::{Config, FloorReport, StateReport, Store, TelemetryReport};
use floorgate::sync::{Settings, Uploader};
use floorgate_demo::proxy::Proxy;
use floorgate_model::Profile;
use futures_util::StreamExt;
use tokio_util::sync::CancellationToken;

use super::*;

fn device(n: usize) -> DeviceId {
    DeviceId::new(&format!("D{n:03}")).unwrap()
}

fn open(folder: &std::path::Path, devices: usize, clock: Clock) -> Store {
    let attachment = |n| Attachment {
        device_id: device(n),
        device_type: "pressure_sensor".into(),
        location: "hall".into(),
        sample_interval: Duration::from_secs(1_800),
        configuration: None,
        profile: Profile::built_in("pressure_sensor").unwrap(),
    };
    let config = Config {
        state_dir: folder.to_owned(),
        gateway_id: GatewayId::new("GW-1").unwrap(),
        devices: (0..devices).map(attachment).collect(),
        commit_interval: Duration::from_millis(100),
        quota_bytes: 512 << 20,
        history_retention: Duration::from_secs(86_400),
        announce_results: false,
        announce_tables: true,
    };
    Store::open(config, clock).unwrap()
}

async fn report(store: &Store, n: usize, time: Timestamp) -> floorgate::shadow::store::Receipt {
    let mut readings = Readings::new();
    // So many that a sample fills a block: a day of blocks without a day of samples.
    for metric in 0..40 {
        let value = 100.0 + f64::from(fastrand::u16(..)) / 1_000.0;
        readings.insert(&format!("pressure_of_place_{metric:02}"), Reading::new(value).unwrap()).unwrap();
    }
    let report = TelemetryReport {
        guess_base_ms: None,
        device_id: device(n),
        readings,
        device_time: Some(time),
        seq: None,
        received_at: time,
        redelivered: false,
        retained: false,
    };
    store.submit(FloorReport::Telemetry(report)).await.unwrap()
}

/// A day of it: a sample every `minutes` of each device, each a block of its own.
async fn backlog(store: &Store, clock: &Clock, devices: usize, minutes: i64) {
    let start = clock.now().as_millis();
    for step in 0..24 * 60 / minutes {
        let now = Timestamp::from_millis(start + step * minutes * 60_000);
        clock.put(now);
        let mut receipts = Vec::new();
        for n in 0..devices {
            receipts.push(report(store, n, now).await);
        }
        for receipt in receipts {
            receipt.await.unwrap().unwrap();
        }
    }
}

async fn until(what: &str, store: &Store, shown: impl Fn(&floorgate::shadow::StoreStats) -> bool) -> Duration {
    let begun = Instant::now();
    while !shown(&store.stats().await.unwrap()) {
        assert!(begun.elapsed() < Duration::from_secs(120), "never: {what}: {:?}", store.stats().await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    begun.elapsed()
}

/// Starts sync with the cable pulled, lets it fail, and plugs it in.
async fn outage(
    name: &str,
    devices: usize,
    minutes: i64,
) -> (Bench, Store, Clock, tokio::task::JoinHandle<()>, tempfile::TempDir, Proxy) {
    let (bench, folder) = (Bench::new(name).await, tempfile::tempdir().unwrap());
    let clock = Clock::set_to(at(-86_400_000));
    let store = open(folder.path(), devices, clock.clone());
    backlog(&store, &clock, devices, minutes).await;
    let address = bench.config.endpoint_url.as_ref().unwrap().trim_start_matches("http://").parse().unwrap();
    let cable = Proxy::start(address).await.unwrap();
    cable.cut().await;
    let behind = DynamoConfig { endpoint_url: Some(format!("http://{}", cable.address())), ..bench.config.clone() };
    let table = DynamoTable::new(behind, clock.clone()).unwrap();
    let settings = Settings { gateway_id: GatewayId::new("GW-1").unwrap(), state_interval: Duration::from_secs(1) };
    let uploader = Uploader::new(store.clone(), table, settings, clock.clone());
    let running = tokio::spawn(uploader.run(CancellationToken::new()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    cable.restore().await.unwrap();
    (bench, store, clock, running, folder, cable)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_a_hundred_devices_are_current_before_their_day_of_backlog_is() {
    let (bench, store, clock, running, _folder, _cable) = outage("current", 100, 60).await;
    let waiting = store.stats().await.unwrap().blocks_waiting;
    let current = until("states are current", &store, |stats| stats.states_waiting == 0).await;
    let left = store.stats().await.unwrap().blocks_waiting;
    println!("current after {current:?}; of {waiting} blocks {left} still wait");
    assert!(current <= Duration::from_secs(5), "{current:?}");
    assert!(left > waiting / 2, "history went first: {left} of {waiting} blocks wait");
    assert!(bench.item(&bench.config.devices_table, &[("device_id", "D099")]).await.is_some());

    until("the backlog drains", &store, |stats| stats.blocks_waiting < waiting).await;
    // While the backlog drains, a change of state is in the table at once.
    let mut live = Vec::new();
    for n in 0..40 {
        let state = StateReport {
            device_id: device(n),
            online: true,
            firmware_version: Some(format!("1.{n}")),
            configuration: None,
            boot_count: None,
            commands: None,
            retained: false,
            received_at: clock.now(),
        };
        store.submit(FloorReport::State(state)).await.unwrap().await.unwrap().unwrap();
        live.push(until("the change is there", &store, |stats| stats.states_waiting == 0).await);
    }
    live.sort();
    println!("live p95 {:?}, {} blocks wait", live[38], store.stats().await.unwrap().blocks_waiting);
    assert!(live[38] <= Duration::from_secs(2), "{live:?}");
    until("the backlog is drained", &store, |stats| stats.blocks_waiting == 0).await;
    running.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a minute, prints the ratio of the budget; `cargo xtask measure` runs it"]
async fn history_drains_nearly_as_fast_as_the_endpoint_takes_batches() {
    let (_bench, store, _, running, _folder, _cable) = outage("drain", 200, 60).await;
    let sample = store.peek_blocks(2_000).await.unwrap();
    let rate = |count: u64, took: Duration| f64::from(u32::try_from(count).unwrap()) / took.as_secs_f64();
    // The ramp is politeness, not speed: the second half is measured.
    let all = store.stats().await.unwrap().blocks_waiting;
    until("the ramp is over", &store, |stats| stats.blocks_waiting < all / 2).await;
    let left = store.stats().await.unwrap().blocks_waiting;
    let drain = rate(left, until("drained", &store, |stats| stats.blocks_waiting == 0).await);
    running.abort();

    // What the endpoint itself sustains: the same blocks in batches of 25 with nothing behind them, four at a time.
    let bare = Bench::new("drain-bare").await;
    let begun = Instant::now();
    let mut writes =
        futures_util::stream::iter(sample.chunks(25).map(|batch| bare.table.write_blocks(batch))).buffer_unordered(4);
    while let Some(written) = writes.next().await {
        assert!(written.unwrap().unprocessed.is_empty());
    }
    let bare = rate(sample.len() as u64, begun.elapsed());
    println!("drain {drain:.0} blocks/s, the endpoint itself {bare:.0}, ratio {:.2}", drain / bare);
    assert!(drain / bare >= 0.8, "budget 0.8");
}

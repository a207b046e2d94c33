//! Figures that `cargo xtask measure` prints: they need a quiet machine and a real file system, so plain `cargo test`
//! leaves them out (feature `suites`).

use super::*;

#[tokio::test]
async fn ingest_rate_of_one_submitter_200_deep() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        Store::open(Config { commit_interval: Duration::from_secs(1), ..config(folder.path()) }, clock()).unwrap();
    let (begun, total) = (Instant::now(), 100_000);
    let mut receipts = std::collections::VecDeque::new();
    for n in 0..total {
        receipts.push_back(store.submit(sample(if n % 2 == 0 { "A" } else { "B" }, n, 140.0)).await.unwrap());
        if receipts.len() >= 200 {
            receipts.pop_front().unwrap().await.unwrap().unwrap();
        }
    }
    for receipt in receipts {
        receipt.await.unwrap().unwrap();
    }
    println!("{:.0} messages a second", f64::from(i32::try_from(total).unwrap()) / begun.elapsed().as_secs_f64());
}

fn bytes_written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn bytes_a_message_at_20_a_second_of_50_devices() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let model = config.devices[0].clone();
    config.devices = (0..50).map(|n| Attachment { device_id: id(&format!("D{n}")), ..model.clone() }).collect();
    let clock = clock();
    let store = Store::open(config, clock.clone()).unwrap();
    let (before, seconds) = (bytes_written(), 1_800);
    for second in 0..seconds {
        tokio::time::advance(Duration::from_secs(1)).await;
        clock.put(Timestamp::from_millis(T0 + second * 1_000));
        let mut receipts = Vec::new();
        for n in 0..20 {
            let device = format!("D{}", (second * 20 + n) % 50);
            let FloorReport::Telemetry(mut report) =
                sample(&device, second * 1_000 + n * 50, 140.0 + f64::from(i32::try_from(n % 7).unwrap()) / 10.0)
            else {
                return;
            };
            report.received_at = clock.now();
            receipts.push(store.submit(FloorReport::Telemetry(report)).await.unwrap());
        }
        for receipt in receipts {
            receipt.await.unwrap().unwrap();
        }
        store.tick().await.unwrap();
        if second % 5 == 0 {
            let blocks = store.peek_blocks(100).await.unwrap();
            store.confirm_blocks(blocks.iter().map(|block| block.id).collect()).await.unwrap();
        }
        if second % 10 == 0 {
            for state in store.peek_states(false, 100).await.unwrap() {
                store.confirm_state(&state.view.device_id, state.view.version).await.unwrap();
            }
        }
    }
    let stats = store.stats().await.unwrap();
    store.close().await.unwrap();
    println!("{} bytes a message; {stats:?}", (bytes_written() - before) / (u64::try_from(seconds).unwrap() * 20));
}

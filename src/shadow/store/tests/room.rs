//! The quota, and that files shrink again.

use super::*;

/// The smallest quota that holds both files when they are empty, their logs cut, and some blocks.
const TINY: u64 = 400 * 1024;

/// A reading that packs badly, so that a small file is soon full.
fn odd(n: i64) -> FloorReport {
    let FloorReport::Telemetry(mut report) = sample("A", n * 1_000, 0.0) else { panic!("a sample is telemetry") };
    for k in 0..12 {
        let value = f64::from(i32::try_from((n * 7_919 + k * 104_729) % 1_000_003).unwrap()) / 7.0;
        report.readings.insert(&format!("m{k}"), Reading::new(value).unwrap()).unwrap();
    }
    report.received_at = Timestamp::from_millis(T0 + n * 1_000);
    FloorReport::Telemetry(report)
}

/// Submits and takes what comes back; one full batch at a time.
async fn twenty(store: &Store, from: i64) -> Vec<Result<Taken, StoreError>> {
    let mut receipts = Vec::new();
    for n in from..from + 20 {
        receipts.push(store.submit(odd(n)).await.unwrap());
    }
    let mut answers = Vec::new();
    for receipt in receipts {
        answers.push(receipt.await.unwrap());
    }
    answers
}

async fn second(store: &Store) {
    tokio::time::advance(Duration::from_secs(1)).await;
    store.tick().await.unwrap();
}

/// Fills it with readings that nobody fetches; answers how many were acknowledged.
async fn fill(store: &Store) -> i64 {
    for round in 0..1_000 {
        let answers = twenty(store, round * 20).await;
        let taken = answers.iter().filter(|answer| matches!(answer, Ok(Taken::Stored))).count();
        if taken < 20 {
            let refused = answers.iter().filter(|answer| matches!(answer, Err(StoreError::Full { quota_bytes: TINY })));
            assert_eq!(refused.count(), 20 - taken, "{answers:?}");
            return round * 20 + i64::try_from(taken).unwrap();
        }
        second(store).await;
    }
    panic!("it was never full");
}

#[tokio::test(start_paused = true)]
async fn beyond_the_quota_no_reading_is_acknowledged_and_everything_else_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { quota_bytes: TINY, ..config(folder.path()) };
    let store = Store::open(config, clock()).unwrap();
    assert!(!store.stats().await.unwrap().full);
    let acknowledged = fill(&store).await;
    let stats = store.stats().await.unwrap();
    assert!(stats.full && stats.store_failures > 0);
    assert_eq!(stats.samples_open + stats.samples_waiting, u64::try_from(acknowledged).unwrap());
    assert!(stats.bytes_on_disk <= TINY + TINY / 4, "{}", stats.bytes_on_disk);

    let c1 = CommandId::new("c1").unwrap();
    assert_eq!(take(&store, state("B", true)).await, Taken::Stored);
    assert!(matches!(store.journal(command("A", "reboot", "c1")).await.unwrap(), Journalled::New(_)));
    assert!(store.claim(&id("A"), &c1).await.unwrap().is_some());
    assert_eq!(take(&store, FloorReport::Answer(answer("c1", AnswerStatus::Succeeded))).await, Taken::Stored);
    assert!(store.finish(&id("A"), &c1, ending(ExecutionStatus::Succeeded, None)).await.unwrap().is_some());

    // The refused reading is a live sign all the same, and its value is not shown.
    let shown = store.device(&id("A")).await.unwrap().unwrap().last_reading_at.unwrap();
    assert!(twenty(&store, acknowledged).await.iter().all(Result::is_err));
    let view = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!((view.status, view.last_reading_at), (DeviceStatus::Online, Some(shown)));
    assert_eq!(view.last_seen_at, Some(Timestamp::from_millis(T0 + (acknowledged + 19) * 1_000)));
}

#[tokio::test(start_paused = true)]
async fn once_the_table_has_some_readings_are_taken_again_and_none_is_lost_or_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { quota_bytes: TINY, ..config(folder.path()) };
    let store = Store::open(config, clock()).unwrap();
    let acknowledged = fill(&store).await;
    let (mut sent, mut next) = (0, acknowledged);
    loop {
        let blocks = store.peek_blocks(25).await.unwrap();
        if blocks.is_empty() {
            break;
        }
        sent += blocks.iter().map(|block| block.offsets_ms.len()).sum::<usize>();
        store.confirm_blocks(blocks.iter().map(|block| block.id).collect()).await.unwrap();
        second(&store).await;
    }
    assert!(!store.stats().await.unwrap().full);
    for _ in 0..5 {
        assert!(twenty(&store, next).await.iter().all(|answer| matches!(answer, Ok(Taken::Stored))));
        next += 20;
        second(&store).await;
    }
    let stats = store.stats().await.unwrap();
    let all = u64::try_from(sent).unwrap() + stats.samples_waiting + stats.samples_open;
    assert_eq!(all, u64::try_from(next).unwrap());
}

fn file_bytes(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("telemetry.db")).unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn after_a_backlog_is_drained_the_files_shrink_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for round in 0..1_500 {
        assert!(twenty(&store, round * 20).await.iter().all(Result::is_ok));
        if round % 3 == 2 {
            tokio::time::advance(Duration::from_secs(60)).await;
            store.tick().await.unwrap();
        }
    }
    second(&store).await;
    let full = store.stats().await.unwrap();
    let before = file_bytes(folder.path());
    assert!(before > 1 << 20, "{before}");
    loop {
        let blocks = store.peek_blocks(1_000).await.unwrap();
        if blocks.is_empty() {
            break;
        }
        store.confirm_blocks(blocks.iter().map(|block| block.id).collect()).await.unwrap();
    }
    for _ in 0..60 {
        second(&store).await;
    }
    let drained = store.stats().await.unwrap();
    assert_eq!(drained.blocks_waiting, 0);
    let after = file_bytes(folder.path());
    println!("{before} -> {after} bytes in the file, {} -> {} in all", full.bytes_on_disk, drained.bytes_on_disk);
    assert!(after < before / 2, "{after} of {before}");
    assert!(drained.bytes_on_disk < full.bytes_on_disk / 2, "{} of {}", drained.bytes_on_disk, full.bytes_on_disk);
}

//! The quota, what is given up for it, and that files shrink again.

use super::*;

/// The smallest quota that holds both files when they are empty, their logs cut, and some blocks.
const TINY: u64 = 400 * 1024;

/// A reading that packs badly, so that a small file is soon full.
fn odd(n: i64, metrics: i64) -> FloorReport {
    let FloorReport::Telemetry(mut report) = sample("A", n * 1_000, 0.0) else { panic!("a sample is telemetry") };
    for k in 0..metrics {
        let value = f64::from(i32::try_from((n * 7_919 + k * 104_729) % 1_000_003).unwrap()) / 7.0;
        report.readings.insert(&format!("m{k}"), Reading::new(value).unwrap()).unwrap();
    }
    report.received_at = Timestamp::from_millis(T0 + n * 1_000);
    FloorReport::Telemetry(report)
}

/// Submits and takes what comes back; one full batch at a time.
async fn twenty(store: &Store, from: i64) -> Vec<Result<Taken, StoreError>> {
    twenty_of(store, from, 12).await
}

async fn twenty_of(store: &Store, from: i64, metrics: i64) -> Vec<Result<Taken, StoreError>> {
    let mut receipts = Vec::new();
    for n in from..from + 20 {
        receipts.push(store.submit(odd(n, metrics)).await.unwrap());
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

/// Fills it with readings that are all on their way to the table, which never answers, so that none may be given up;
/// answers how many were acknowledged.
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
        store.peek_blocks(10_000).await.unwrap();
    }
    panic!("it was never full");
}

#[tokio::test(start_paused = true)]
async fn when_nothing_more_may_be_given_up_no_reading_is_acknowledged_and_everything_else_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { quota_bytes: TINY, ..config(folder.path()) };
    let store = Store::open(config, clock()).unwrap();
    assert!(!store.stats().await.unwrap().full);
    let acknowledged = fill(&store).await;
    let stats = store.stats().await.unwrap();
    assert!(stats.full && stats.store_failures > 0);
    assert_eq!(stats.ledger.accepted, u64::try_from(acknowledged).unwrap());
    assert!(stats.ledger.balances() && stats.ledger.stored == stats.samples_open + stats.samples_waiting);
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
    let (mut sent, mut missing, mut next) = (0, 0, acknowledged);
    loop {
        let blocks = store.peek_blocks(25).await.unwrap();
        if blocks.is_empty() {
            break;
        }
        sent += blocks.iter().map(|block| block.offsets_ms.len()).sum::<usize>();
        missing += blocks.iter().filter_map(|block| Some(block.gap.as_ref()?.lost)).sum::<u64>();
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
    let all = u64::try_from(sent).unwrap() + missing + stats.samples_waiting + stats.samples_open;
    assert_eq!(all, u64::try_from(next).unwrap());
    assert_eq!((stats.ledger.delivered, stats.ledger.lost.total()), (u64::try_from(sent).unwrap(), missing));
}

fn all_bytes(folder: &Path) -> u64 {
    let files = ["state.db", "state.db-wal", "telemetry.db", "telemetry.db-wal"];
    files.iter().filter_map(|name| std::fs::metadata(folder.join(name)).ok()).map(|file| file.len()).sum()
}

#[tokio::test(start_paused = true)]
async fn at_the_quota_readings_are_still_taken_and_the_oldest_are_thinned_and_declared() {
    const QUOTA: u64 = 8 * 1024 * 1024;
    const ROUNDS: i64 = 1_000;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(Config { quota_bytes: QUOTA, ..config(folder.path()) }, clock()).unwrap();
    let mut most = 0;
    for round in 0..ROUNDS {
        let answers = twenty_of(&store, round * 20, 60).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Taken::Stored))), "round {round}: {answers:?}");
        most = most.max(all_bytes(folder.path()));
        second(&store).await;
        let stats = store.stats().await.unwrap();
        assert!(stats.ledger.balances() && !stats.full, "{stats:?}");
        assert_eq!(stats.ledger.stored, stats.samples_open + stats.samples_waiting);
    }
    println!("at most {most} bytes on disk of {QUOTA}");
    assert!(most <= QUOTA + QUOTA / 100, "{most}");
    let view = store.device(&id("A")).await.unwrap().unwrap();
    let accepted = u64::try_from(ROUNDS * 20).unwrap();
    assert_eq!((view.ledger.accepted, view.ledger.delivered), (accepted, 0));
    assert!(view.ledger.lost.of(LossReason::Thinned) > 1_000 && view.ledger.stored > 1_000, "{:?}", view.ledger);

    // Everything goes up: what is left and what is missing make up what was accepted.
    let (mut delivered, mut lost, mut newest) = (0, 0, Timestamp::from_millis(0));
    tokio::time::advance(Duration::from_secs(61)).await;
    store.tick().await.unwrap();
    loop {
        let blocks = store.peek_blocks(100).await.unwrap();
        if blocks.is_empty() {
            break;
        }
        for block in &blocks {
            delivered += block.offsets_ms.len() as u64;
            newest = newest.max(block.first);
            if let Some(gap) = &block.gap {
                assert!(gap.to < newest || delivered == 0, "what is thinned is older than what is not");
                assert_eq!((gap.from, gap.reason), (block.first, LossReason::Thinned));
                assert_eq!(gap.summary["m3"].count, gap.lost);
                lost += gap.lost;
            }
        }
        store.confirm_blocks(blocks.iter().map(|block| block.id).collect()).await.unwrap();
    }
    assert_eq!(delivered + lost, accepted);
    let ledger = store.stats().await.unwrap().ledger;
    assert_eq!((ledger.delivered, ledger.stored, ledger.lost.total()), (delivered, 0, lost));
}

#[tokio::test(start_paused = true)]
async fn readings_that_were_never_stored_are_accepted_and_lost_and_the_table_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, sample("A", 0, 140.0)).await;
    let loss = |device: &str, from: i64, to: i64, count| Loss {
        device_id: id(device),
        from: Timestamp::from_millis(T0 + from),
        to: Timestamp::from_millis(T0 + to),
        count,
        reason: LossReason::RateLimited,
    };
    let losses = vec![loss("A", 10, 500, 7), loss("B", 20, 30, 2), loss("A", 600, 900, 3), loss("X", 0, 1, 9)];
    store.declare_lost(losses).await.unwrap();
    let again = open_killed(&store, folder.path());
    for store in [&store, &again] {
        let ledger = store.device(&id("A")).await.unwrap().unwrap().ledger;
        assert_eq!((ledger.accepted, ledger.stored, ledger.lost.of(LossReason::RateLimited)), (11, 1, 10));
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.ledger.accepted, stats.ledger.lost.total(), stats.gaps_waiting), (13, 12, 2));
    }
    let told = again.peek_blocks(10).await.unwrap();
    let gaps: Vec<_> = told.iter().filter_map(|block| Some((block.device_id.as_str(), block.gap.as_ref()?))).collect();
    let span = |gap: &GapRecord| (gap.from.as_millis() - T0, gap.to.as_millis() - T0, gap.lost);
    let spans: Vec<_> = gaps.iter().map(|(device, gap)| (*device, span(gap))).collect();
    assert_eq!(spans, [("A", (10, 900, 10)), ("B", (20, 30, 2))]);
}

fn open_killed(_alive: &Store, folder: &Path) -> Store {
    Store::open(config(killed(folder).keep().as_path()), clock()).unwrap()
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

//! The copy of the ledgers in `state.db`, and what it is for.

use super::*;

fn lose_telemetry(folder: &Path) {
    for end in ["telemetry.db", "telemetry.db-wal", "telemetry.db-shm"] {
        let _ = std::fs::remove_file(folder.join(end));
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_telemetry_file_is_lost_its_readings_are_declared_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..30 {
        take(&store, sample("A", n, 140.0)).await;
    }
    tokio::time::advance(Duration::from_secs(31)).await;
    store.tick().await.unwrap();
    // After the copy was written: nobody will know of it.
    take(&store, sample("A", 30, 140.0)).await;
    let left = killed(folder.path());
    lose_telemetry(left.path());
    let store = open(left.path());
    let ledger = store.device(&id("A")).await.unwrap().unwrap().ledger;
    assert_eq!((ledger.accepted, ledger.stored, ledger.lost.of(LossReason::Damaged)), (30, 0, 30));
    let told = store.peek_blocks(10).await.unwrap();
    let gap = told[0].gap.as_ref().unwrap();
    let (from, to) = (Timestamp::from_millis(T0), Timestamp::from_millis(T0 + 29));
    assert_eq!((told.len(), gap.from, gap.to, gap.lost, gap.reason), (1, from, to, 30, LossReason::Damaged));
    assert!(told[0].first > to, "a block under `from` may be in the table");
    store.close().await.unwrap();
    let again = open(left.path());
    assert_eq!(again.device(&id("A")).await.unwrap().unwrap().ledger, ledger, "once");
}

#[tokio::test(start_paused = true)]
async fn a_store_closed_in_order_knows_to_the_last_reading_what_a_lost_file_held() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..7 {
        take(&store, sample("B", n, 140.0)).await;
    }
    store.close().await.unwrap();
    lose_telemetry(folder.path());
    let store = open(folder.path());
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.ledger.lost.of(LossReason::Damaged), stats.gaps_waiting), (7, 1));
    assert!(stats.ledger.balances());
    assert_eq!(take(&store, sample("B", 3, 150.0)).await, Taken::Stored, "it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_declares_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, sample("A", 0, 140.0)).await;
    let file = folder.path().join("telemetry.db");
    let trigger = "CREATE TRIGGER t BEFORE INSERT ON segment BEGIN SELECT raise(ROLLBACK, 'no room'); END;
                   CREATE TRIGGER u BEFORE UPDATE ON segment BEGIN SELECT raise(ROLLBACK, 'no room'); END";
    rusqlite::Connection::open(&file).unwrap().execute_batch(trigger).unwrap();
    let refused = store.submit(sample("A", 1, 141.0)).await.unwrap().await.unwrap();
    assert!(matches!(refused, Err(StoreError::Io { .. })), "{refused:?}");
    let view = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!((view.ledger.accepted, view.ledger.stored), (1, 1), "the file is away, its books are known");
    rusqlite::Connection::open(&file).unwrap().execute_batch("DROP TRIGGER t; DROP TRIGGER u").unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(take(&store, sample("A", 1, 141.0)).await, Taken::Stored);
    let ledger = store.device(&id("A")).await.unwrap().unwrap().ledger;
    assert_eq!((ledger.accepted, ledger.stored, ledger.lost.total()), (2, 2, 0));
}

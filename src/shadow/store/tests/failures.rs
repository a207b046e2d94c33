//! Files that cannot be written or read.

use super::*;

/// Makes every insertion into a table fail as a full disk would.
fn sabotage(file: &Path, table: &str) {
    let other = rusqlite::Connection::open(file).unwrap();
    let trigger = format!("CREATE TRIGGER t BEFORE INSERT ON {table} BEGIN SELECT raise(ROLLBACK, 'no room'); END");
    other.execute_batch(&trigger).unwrap();
}

fn mend(file: &Path) {
    rusqlite::Connection::open(file).unwrap().execute_batch("DROP TRIGGER t").unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_the_state_file_cannot_be_written_nothing_is_acknowledged_and_then_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let file = folder.path().join("state.db");
    sabotage(&file, "execution");
    assert!(matches!(store.journal(command("A", "reboot", "c1")).await, Err(StoreError::Io { .. })));
    mend(&file);
    let again = store.journal(command("A", "reboot", "c1")).await;
    assert!(matches!(again, Err(StoreError::Io { .. })), "it is not opened again at once: {again:?}");
    let failing = store.stats().await.unwrap().health;
    assert_eq!((failing.ok, failing.takes_reports), (false, false), "figures are told all the same");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().commands_open, 0);
    assert!(matches!(store.journal(command("A", "reboot", "c1")).await.unwrap(), Journalled::New(_)));
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().commands_open, 1);
    assert!(store.stats().await.unwrap().store_failures > 0);
}

#[tokio::test(start_paused = true)]
async fn while_the_telemetry_file_cannot_be_written_no_reading_is_acknowledged_or_shown_and_then_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(take(&store, sample("A", 0, 140.0)).await, Taken::Stored);
    let file = folder.path().join("telemetry.db");
    sabotage(&file, "segment");
    let mut receipts = Vec::new();
    for n in 1..=20 {
        receipts.push(store.submit(sample("A", n, 199.0)).await.unwrap());
    }
    for receipt in receipts {
        assert!(matches!(receipt.await.unwrap(), Err(StoreError::Io { .. })));
    }
    let view = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!((view.last_readings.get("pressure_psi"), view.status), (Reading::new(140.0), DeviceStatus::Online));
    assert_eq!(store.stats().await.unwrap().store_failures, 20);
    assert_eq!(take(&store, state("B", true)).await, Taken::Stored, "the other file is not concerned");

    mend(&file);
    assert!(store.submit(sample("A", 1, 199.0)).await.unwrap().await.unwrap().is_err(), "not opened again at once");
    tokio::time::advance(Duration::from_secs(1)).await;
    for n in 1..=20 {
        assert_eq!(take(&store, sample("A", n, 199.0)).await, Taken::Stored, "its sender sends it again");
    }
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.samples_open, stats.telemetry_committed, stats.store_failures), (21, 21, 21));
    let again = open(killed(folder.path()).path());
    assert_eq!(again.stats().await.unwrap().samples_open, 21);
}

#[tokio::test]
async fn a_damaged_telemetry_file_is_moved_aside_and_costs_history_alone() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, state("A", true)).await;
    take(&store, sample("A", 5, 142.5)).await;
    store.close().await.unwrap();
    let file = folder.path().join("telemetry.db");
    let whole = std::fs::read(&file).unwrap();
    let mut overwritten = whole.clone();
    overwritten[4_096..].fill(0xa5);
    let foreign = {
        let other = folder.path().join("other");
        let connection = rusqlite::Connection::open(&other).unwrap();
        connection.execute_batch("CREATE TABLE tally (one); PRAGMA user_version = 1").unwrap();
        drop(connection);
        std::fs::read(other).unwrap()
    };
    let damages = [b"no database at all".repeat(500), whole[..6_000].to_vec(), overwritten, foreign];
    for (round, damage) in damages.into_iter().enumerate() {
        std::fs::write(&file, &damage).unwrap();
        let clock = Clock::set_to(Timestamp::from_millis(T0 + i64::try_from(round).unwrap() * 60_000));
        let store = Store::open(config(folder.path()), clock).unwrap();
        let view = store.device(&id("A")).await.unwrap().unwrap();
        let n = i64::try_from(round).unwrap();
        let newest = Timestamp::from_millis(T0 + 5 + 10 * n);
        assert_eq!(view.last_reading_at, Some(newest), "the state does not stand in it");
        assert_eq!(take(&store, sample("A", 15 + 10 * n, 143.0)).await, Taken::Stored);
        assert_eq!(store.stats().await.unwrap().samples_open, 1);
        store.close().await.unwrap();
        let aside = folder.path().join(format!("telemetry.db.damaged-20261122T100{round}00000Z"));
        // The header aside, in which SQLite notes how it was opened.
        assert!(std::fs::read(aside).unwrap()[100..] == damage[100..], "round {round}");
    }
    let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let aside = entries.filter(|name| name.to_string_lossy().contains("damaged")).count();
    assert_eq!(aside, 2, "the oldest go");
}

#[tokio::test]
async fn a_damaged_state_file_is_said_in_one_sentence_with_what_to_do_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.journal(command("A", "reboot", "c1")).await.unwrap();
    store.close().await.unwrap();
    let file = folder.path().join("state.db");
    let mut overwritten = std::fs::read(&file).unwrap();
    overwritten[4_096..].fill(0xa5);
    for (damage, cause) in [(b"no database at all".repeat(500), "not a database"), (overwritten, "malformed")] {
        std::fs::write(&file, &damage).unwrap();
        let error = Store::open(config(folder.path()), clock()).unwrap_err();
        assert!(matches!(error, StoreError::Open { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot open `{}`: ", file.display())), "{text}");
        assert!(text.contains(cause) && text.contains("no longer knows which commands have run"), "{text}");
        assert!(std::fs::read(&file).unwrap() == damage, "the file was written to: {cause}");
    }
}

#[tokio::test]
async fn an_unreadable_execution_is_left_out_and_the_others_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for (device, name) in [("A", "c1"), ("A", "c2"), ("B", "c3")] {
        store.journal(command(device, "recalibrate", name)).await.unwrap();
    }
    store.close().await.unwrap();
    let other = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    other.execute("UPDATE execution SET parameters = '{' WHERE command_id IN ('c1', 'c2')", []).unwrap();
    drop(other);
    let store = open(folder.path());
    let ids = |records: &[ExecutionRecord]| records.iter().map(|r| r.command_id.to_string()).collect::<Vec<_>>();
    let waiting: Vec<_> = store.waiting().await.unwrap().into_iter().map(|open| open.record).collect();
    assert_eq!(ids(&waiting), ["c3"]);
    assert_eq!(ids(&store.executions(None, 10).await.unwrap()), ["c3"]);
    let announced = store.peek_outbox(Lane::Table, 1).await.unwrap();
    assert_eq!(announced[0].record.command_id.as_str(), "c3", "they do not use up the limit");
    assert!(store.journal(command("A", "recalibrate", "c1")).await.is_err(), "nor does its id ever run again");
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().commands_open, 2);
}

//! A disk that is full, read-only or failing. Whole processes on such a disk are in `tests/disk.rs`.

use super::*;
use crate::shadow::Fault;

pub(super) fn disk(fault: Fault) -> StoreError {
    StoreError::Disk { doing: "write a test", cause: "as told".to_owned(), fault }
}

/// A turn fails as a disk in this state makes it.
async fn fail(store: &Store, fault: Fault) {
    let failed: Result<(), _> = store.ask(Pace::AtOnce, move |_| Err(disk(fault))).await;
    assert_eq!(failed.unwrap_err().fault(), Some(fault));
    // Its health is told after the answers.
    store.stats().await.unwrap();
}

async fn second(store: &Store) {
    tokio::time::advance(Duration::from_secs(1)).await;
    store.tick().await.unwrap();
}

fn is_refused(record: &ExecutionRecord) {
    assert_eq!((record.status, record.reason), (ExecutionStatus::Rejected, Some(Reason::Inhibited)), "{record:?}");
}

fn ids(entries: &[OutboxEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.record.command_id.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn while_the_disk_takes_no_writes_a_command_is_refused_and_announced_and_later_journalled() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.journal(command("A", "reboot", "before")).await.unwrap();
    fail(&store, Fault::ReadOnly).await;
    let Journalled::New(record) = store.journal(command("A", "reboot", "c1")).await.unwrap() else { panic!() };
    is_refused(&record);
    let again = store.journal(command("A", "reboot", "c1")).await.unwrap();
    assert_eq!(again, Journalled::Duplicate(record.clone()));
    assert!(
        store.journal(command("A", "reboot", "before")).await.is_err(),
        "this one may run: it stays with its sender"
    );
    assert!(store.claim(&id("A"), &CommandId::new("c1").unwrap()).await.is_err());

    let announced = store.peek_outbox(Lane::Result, 10).await.unwrap();
    assert_eq!(ids(&announced), ["c1"]);
    store.confirm_outbox(Lane::Result, vec![announced[0].seq]).await.unwrap();
    assert!(store.peek_outbox(Lane::Result, 10).await.unwrap().is_empty());
    assert_eq!(store.devices().await.unwrap().len(), 3);
    let own = store.device(&id("GW")).await.unwrap().unwrap();
    assert_eq!(own.status_reason.as_deref(), Some("cannot write to its disk: the disk is read-only"));
    assert!(store.peek_states(true, 10).await.unwrap().iter().any(|state| state.view.device_id == id("GW")));
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.health.ok, stats.health.reason, stats.commands_refused), (false, Some(Fault::ReadOnly), 1));
    assert_eq!(*store.health().borrow(), stats.health);

    second(&store).await;
    assert!(store.health().borrow().ok);
    let records = store.executions(None, 10).await.unwrap();
    assert_eq!(records.iter().map(|r| r.command_id.as_str()).collect::<Vec<_>>(), ["c1", "before"]);
    is_refused(&records[0]);
    assert_eq!(ids(&store.peek_outbox(Lane::Table, 10).await.unwrap()), ["before", "c1"]);
    assert_eq!(ids(&store.peek_outbox(Lane::Result, 10).await.unwrap()), ["before"], "once is enough");
    assert_eq!(store.journal(command("A", "reboot", "c1")).await.unwrap(), Journalled::Duplicate(records[0].clone()));
    assert_eq!(store.waiting().await.unwrap().len(), 1, "only what was accepted runs");
    assert_ne!(store.device(&id("GW")).await.unwrap().unwrap().status_reason, own.status_reason);
}

#[tokio::test]
async fn a_journal_is_looked_at_without_changing_a_byte_and_only_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in ["c1", "c2"] {
        store.journal(command("A", "reboot", n)).await.unwrap();
    }
    let look = |folder: &Path| {
        let bytes = |folder: &Path| {
            let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            files.map(|file| (file.clone(), std::fs::read(&file).unwrap())).collect::<BTreeMap<_, _>>()
        };
        let before = bytes(folder);
        let ids = rescue::peek::journal_ids(folder);
        assert!(before == bytes(folder), "something was written");
        ids.map(|ids| ids.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let with_index = || {
        let copy = killed(folder.path());
        let index = "state.db-shm";
        std::fs::copy(folder.path().join(index), copy.path().join(index)).unwrap();
        copy
    };
    assert!(std::fs::metadata(folder.path().join("state.db-wal")).unwrap().len() > 0, "there is a log to be read");
    assert_eq!(look(killed(folder.path()).path()), None, "a log without its index");
    assert_eq!(look(with_index().path()).unwrap(), ["c2", "c1"]);

    let replaced = with_index();
    std::fs::write(replaced.path().join("state.db.rebuilt"), "").unwrap();
    assert_eq!(look(replaced.path()), None);
    let cut = with_index();
    std::fs::write(cut.path().join("state.db-wal"), "").unwrap();
    assert_eq!(look(cut.path()), None, "its witness knows of more");
    let unseen = with_index();
    std::fs::remove_file(unseen.path().join("witness")).unwrap();
    assert_eq!(look(unseen.path()), None);

    store.close().await.unwrap();
    assert_eq!(look(folder.path()).unwrap(), ["c2", "c1"], "no log at all");
    std::fs::write(folder.path().join("state.db"), vec![7; 20_000]).unwrap();
    assert_eq!(look(folder.path()), None);
}

/// Journals `c1` in one transaction with a turn that fails; answers what became of it.
async fn journal_beside(store: &Store, fault: Fault) -> Result<Journalled, StoreError> {
    let ((go, wait), (here, reached)) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel::<()>());
    let hold = move |_: &mut Turn<'_>| {
        here.send(()).unwrap();
        Ok(wait.recv().is_ok())
    };
    // The writer waits in this turn until the other two are in the queue behind it. It must be there before them: it
    // takes what waits at once, and one of the two alone would get a transaction of its own.
    let held = store.hand_over(Pace::Lazy, hold).await.unwrap();
    reached.recv().unwrap();
    let (one, other) = (store.clone(), store.clone());
    let journalled = tokio::spawn(async move { one.journal(command("A", "reboot", "c1")).await });
    tokio::task::yield_now().await;
    let failed = tokio::spawn(async move { fail(&other, fault).await });
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    let _ = held.await;
    failed.await.unwrap();
    journalled.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_commit_finds_no_space_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let Journalled::New(record) = journal_beside(&store, Fault::DiskFull).await.unwrap() else { panic!() };
    is_refused(&record);
    second(&store).await;
    assert!(store.waiting().await.unwrap().is_empty());
    is_refused(&store.executions(None, 1).await.unwrap()[0]);
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_commit_may_or_may_not_be_on_disk_stays_with_its_sender_until_the_journal_says() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert!(journal_beside(&store, Fault::IoError).await.is_err());
    assert!(store.journal(command("A", "reboot", "c1")).await.is_err(), "and as long as the file is out of use");
    assert!(matches!(store.journal(command("A", "reboot", "c2")).await, Ok(Journalled::New(_))), "the next is refused");
    second(&store).await;
    let Journalled::New(record) = store.journal(command("A", "reboot", "c1")).await.unwrap() else { panic!() };
    assert_eq!(record.status, ExecutionStatus::Created);
}

#[tokio::test(start_paused = true)]
async fn without_space_for_readings_what_runs_is_brought_to_its_end_and_new_commands_are_journalled_as_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert!(folder.path().join("reserve").exists());
    let running = CommandId::new("running").unwrap();
    store.journal(command("A", "reboot", "running")).await.unwrap();
    store.claim(&id("A"), &running).await.unwrap().unwrap();
    let waiting = store.submit(sample("A", 1, 140.0)).await.unwrap();
    let cut = |turn: &mut Turn<'_>| {
        turn.samples.shut(&disk(Fault::DiskFull));
        Ok(())
    };
    store.ask(Pace::Lazy, cut).await.unwrap();
    // Committed before, or told that it is not.
    let answered = waiting.await.unwrap();
    store.stats().await.unwrap();
    assert!(!folder.path().join("reserve").exists(), "its space is for what runs");
    let health = *store.health().borrow();
    assert_eq!((health.takes_readings, health.takes_reports), (false, true));
    assert!(store.submit(sample("A", 2, 141.0)).await.unwrap().await.unwrap().is_err());
    let Journalled::New(record) = store.journal(command("B", "reboot", "c1")).await.unwrap() else { panic!() };
    is_refused(&record);
    assert_eq!(store.executions(None, 1).await.unwrap(), [record], "with the reserve's space");
    assert!(store.finish(&id("A"), &running, ending(ExecutionStatus::Succeeded, None)).await.unwrap().is_some());
    assert_eq!(store.stats().await.unwrap().commands_refused, 1);
    second(&store).await;
    assert!(store.health().borrow().ok);
    assert!(folder.path().join("reserve").exists());
    assert_eq!(take(&store, sample("A", 2, 141.0)).await, Taken::Stored);
    assert_eq!(store.stats().await.unwrap().samples_open, 1 + u64::from(answered.is_ok()));
    assert!(
        matches!(store.journal(command("B", "reboot", "c2")).await, Ok(Journalled::New(r)) if r.status == ExecutionStatus::Created)
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_the_disk_goes_on_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    fail(&store, Fault::IoError).await;
    let report = state("A", true);
    let waiting = {
        let store = store.clone();
        let report = report.clone();
        tokio::spawn(async move { store.until_taken(&report).await })
    };
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    store.until_taken(&sample("A", 1, 140.0)).await;
    second(&store).await;
    waiting.await.unwrap();
    assert_eq!(take(&store, report).await, Taken::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_stays_away_is_tried_at_growing_distances_of_at_most_four_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder.path().join("state"));
    fail(&store, Fault::IoError).await;
    let (here, away) = (folder.path().join("state"), folder.path().join("away"));
    std::fs::rename(&here, &away).unwrap();
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(1)).await;
        let _ = store.tick().await;
        assert!(!store.health().borrow().ok);
    }
    std::fs::rename(&away, &here).unwrap();
    let mut seconds = 0;
    while !store.health().borrow().ok {
        tokio::time::advance(Duration::from_secs(1)).await;
        let _ = store.tick().await;
        seconds += 1;
    }
    assert!(seconds <= 4, "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn a_log_beyond_its_bound_is_copied_at_the_next_tick() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, state("A", true)).await;
    let file = folder.path().join("state.db");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    other.execute_batch("CREATE TABLE ballast (bytes)").unwrap();
    for _ in 0..18 {
        other.execute("INSERT INTO ballast VALUES (zeroblob(1048576))", []).unwrap();
    }
    drop(other);
    let log = || crate::shadow::files::log_bytes(&file);
    assert!(log() > 12 << 20, "{}", log());
    second(&store).await;
    assert_eq!(log(), 0);
}

#[tokio::test(start_paused = true)]
async fn while_the_state_file_is_away_every_device_still_shows_its_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..5 {
        take(&store, sample("A", n, 140.0)).await;
    }
    let before = store.device(&id("A")).await.unwrap().unwrap().ledger;
    assert_eq!(before.accepted, 5);
    fail(&store, Fault::IoError).await;
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().ledger, before);
    assert!(store.devices().await.unwrap().iter().any(|view| view.ledger == before));
}

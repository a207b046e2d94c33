//! A damaged or lost `state.db`: what comes back, what is inhibited, what is told.

use super::*;
use crate::shadow::rescue::INHIBITED_FOR;

/// A store with devices that said something, ended, running and waiting commands, and a session.
async fn lived_in(folder: &Path) -> Store {
    let store = open(folder);
    for device in ["A", "B"] {
        take(&store, state(device, true)).await;
        take(&store, sample(device, 5, 142.5)).await;
    }
    for n in 0..40 {
        let name = format!("done-{n}");
        store.journal(command("A", "recalibrate", &name)).await.unwrap();
        let id = CommandId::new(&name).unwrap();
        store.claim(&super::id("A"), &id).await.unwrap().unwrap();
        store.finish(&super::id("A"), &id, ending(ExecutionStatus::Succeeded, None)).await.unwrap().unwrap();
    }
    store.journal(command("A", "recalibrate", "running")).await.unwrap();
    store.claim(&id("A"), &CommandId::new("running").unwrap()).await.unwrap().unwrap();
    store.journal(command("A", "reboot", "waiting")).await.unwrap();
    store.save_session("C".to_owned(), Some(vec!["a/+".to_owned()])).await.unwrap();
    store
}

/// Lets the first backup be taken and put in place.
pub(super) async fn backed_up(store: &Store, folder: &Path) {
    tokio::time::advance(Duration::from_secs(11)).await;
    let started = Instant::now();
    while !folder.join("state.db.backup").exists() {
        store.tick().await.unwrap();
        std::thread::yield_now();
        assert!(started.elapsed() < Duration::from_secs(20), "no backup is taken");
    }
}

async fn statuses(store: &Store) -> BTreeMap<String, String> {
    let records = store.executions(None, 1_000).await.unwrap();
    records.into_iter().map(|r| (r.command_id.to_string(), r.status.to_string())).collect()
}

#[tokio::test(start_paused = true)]
async fn a_state_file_that_is_no_database_comes_back_from_its_backup_and_commands_are_inhibited() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    backed_up(&store, folder.path()).await;
    store.journal(command("B", "recalibrate", "since")).await.unwrap();
    store.close().await.unwrap();
    std::fs::write(folder.path().join("state.db"), b"no database at all".repeat(500)).unwrap();

    let store = open(folder.path());
    let known = statuses(&store).await;
    assert_eq!(known.len(), 42, "all of the backup, nothing of what came since: {known:?}");
    assert_eq!((known["running"].as_str(), known["waiting"].as_str()), ("in_progress", "indeterminate"));
    assert_eq!(known["done-7"], "succeeded");
    assert_eq!(store.sessions().await.unwrap().len(), 1);
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().boot_count, Some(7));
    let inhibition = store.inhibition().now().expect("inhibited");
    assert_eq!(inhibition.left, INHIBITED_FOR);
    assert!(inhibition.why.contains("not a database"), "{inhibition:?}");
    let told = store.rescues().await.unwrap();
    let aside = told[0].aside.clone().unwrap();
    assert!(std::fs::read(&aside).unwrap().starts_with(b"no database at all"), "{told:?}");
    assert!(aside.contains("state.db.damaged-20261122T1000"), "{aside}");
    assert_eq!((told.len(), told[0].saved["execution_from_backup"]), (1, 42), "{told:?}");
    assert_eq!(store.stats().await.unwrap().blocks_waiting + store.stats().await.unwrap().samples_open, 2, "untouched");
}

#[tokio::test(start_paused = true)]
async fn the_inhibition_is_waited_out_on_monotonic_time_and_a_restart_does_not_shorten_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    store.close().await.unwrap();
    std::fs::remove_file(folder.path().join("state.db")).unwrap();
    let store = open(folder.path());
    assert_eq!(store.inhibition().now().unwrap().left, INHIBITED_FOR);
    tokio::time::advance(Duration::from_secs(1_000)).await;
    store.tick().await.unwrap();
    let left = store.inhibition().now().unwrap().left;
    assert_eq!(left, INHIBITED_FOR - Duration::from_secs(1_000));
    let crashed = killed(folder.path());
    drop(store);
    // However long it was off, by whatever the wall clock says.
    let clock = Clock::set_to(Timestamp::from_millis(T0 + 30 * 86_400_000));
    let store = Store::open(config(crashed.path()), clock).unwrap();
    let after = store.inhibition().now().unwrap().left;
    assert!(after >= left && after <= left + Duration::from_secs(31), "{after:?}");
    tokio::time::advance(left - Duration::from_secs(1)).await;
    store.tick().await.unwrap();
    assert!(store.inhibition().now().is_some());
    tokio::time::advance(Duration::from_secs(32)).await;
    store.tick().await.unwrap();
    assert_eq!(store.inhibition().now(), None);
    store.close().await.unwrap();
    assert_eq!(open(crashed.path()).inhibition().now(), None, "it is over for good");
}

#[tokio::test(start_paused = true)]
async fn a_first_start_and_a_lost_folder_are_not_inhibited_and_nor_is_a_store_that_never_had_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(store.inhibition().now(), None);
    take(&store, sample("A", 5, 142.5)).await;
    store.close().await.unwrap();
    std::fs::write(folder.path().join("state.db"), "x").unwrap();
    let store = open(folder.path());
    assert_eq!(store.inhibition().now(), None, "no command was ever journalled, so none is forgotten");
    assert_eq!(store.rescues().await.unwrap().len(), 1, "but it is told");
}

#[tokio::test(start_paused = true)]
async fn a_log_that_vanished_is_noticed_by_the_witness_and_what_was_claimed_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    store.close().await.unwrap();
    let store = open(folder.path());
    // All of this is in the log alone.
    store
        .finish(&id("A"), &CommandId::new("running").unwrap(), ending(ExecutionStatus::Succeeded, None))
        .await
        .unwrap();
    store.claim(&id("A"), &CommandId::new("waiting").unwrap()).await.unwrap().unwrap();
    for damage in ["deleted", "cut", "garbage", "flipped"] {
        let crashed = killed(folder.path());
        let log = crashed.path().join("state.db-wal");
        let mut bytes = std::fs::read(&log).unwrap();
        match damage {
            "deleted" => std::fs::remove_file(&log).unwrap(),
            "cut" => std::fs::write(&log, &bytes[..bytes.len() / 2]).unwrap(),
            "garbage" => std::fs::write(&log, b"garbage!".repeat(1_000)).unwrap(),
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                std::fs::write(&log, &bytes).unwrap();
            }
        }
        let again = open(crashed.path());
        let known = statuses(&again).await;
        assert!(again.waiting().await.unwrap().is_empty(), "{damage}: {known:?}");
        assert_eq!(again.inhibition().now().map(|inhibition| inhibition.left), Some(INHIBITED_FOR), "{damage}");
        assert_eq!(known.len(), 42, "{damage}");
    }
    let sound = open(killed(folder.path()).path());
    assert_eq!((sound.inhibition().now(), sound.rescues().await.unwrap()), (None, vec![]), "a crash is no damage");
}

#[tokio::test(start_paused = true)]
async fn damage_outside_of_the_journal_costs_neither_commands_nor_trust_in_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    store.close().await.unwrap();
    let file = folder.path().join("state.db");
    let page = page_of(&file, "session");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[page..page + 4_096].fill(0);
    std::fs::write(&file, &bytes).unwrap();
    let store = open(folder.path());
    assert_eq!(store.inhibition().now(), None);
    let known = statuses(&store).await;
    assert_eq!((known.len(), known["running"].as_str(), known["waiting"].as_str()), (42, "in_progress", "created"));
    assert!(store.sessions().await.unwrap().is_empty(), "that was the damaged page");
    let told = store.rescues().await.unwrap();
    assert!(told[0].lost.contains_key("session_unreadable_places") && told[0].outcome.contains("whole"), "{told:?}");
    assert!(matches!(store.journal(command("B", "reboot", "new")).await.unwrap(), Journalled::New(_)));
}

/// Where the first page of a table begins in the file.
fn page_of(file: &Path, table: &str) -> usize {
    let connection = rusqlite::Connection::open(file).unwrap();
    let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
    let page: usize = connection.query_row(sql, [table], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap();
    (page - 1) * 4_096
}

#[tokio::test(start_paused = true)]
async fn damage_met_while_running_is_rescued_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    backed_up(&store, folder.path()).await;
    store.close().await.unwrap();
    let store = open(folder.path());
    let file = folder.path().join("state.db");
    // The index by which ids are looked up now begins at a page of another table.
    let other = rusqlite::Connection::open(&file).unwrap();
    let damage = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = \
        (SELECT rootpage FROM sqlite_schema WHERE name = 'execution') WHERE name = 'sqlite_autoindex_execution_1'; \
        PRAGMA schema_version = 999";
    other.execute_batch(damage).unwrap();
    drop(other);
    let refused = store.journal(command("B", "recalibrate", "done-3")).await;
    assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    tokio::time::advance(Duration::from_secs(1)).await;
    let again = store.journal(command("A", "recalibrate", "done-3")).await.unwrap();
    assert!(matches!(again, Journalled::Duplicate(_)), "{again:?}");
    assert!(store.inhibition().now().is_some());
    assert_eq!(store.rescues().await.unwrap().len(), 1);
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().commands_open, 1);
    take(&store, state("A", true)).await;
}

#[tokio::test]
async fn what_is_no_file_or_may_not_be_read_does_not_keep_it_from_starting() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).close().await.unwrap();
    for name in ["state.db", "telemetry.db"] {
        let file = folder.path().join(name);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o0)).unwrap();
        open(folder.path()).close().await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o600, 0o600, "{name}");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        open(folder.path()).close().await.unwrap();
        assert!(file.is_file(), "{name}");
        std::fs::create_dir(folder.path().join(format!("{name}-wal"))).unwrap();
        open(folder.path()).close().await.unwrap();
    }
}

fn edit(file: &Path, sql: &str) {
    rusqlite::Connection::open(file).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_id_that_is_no_text_does_not_keep_it_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    store.close().await.unwrap();
    let sql = "UPDATE execution SET command_id = CAST(x'ff' AS TEXT) WHERE command_id = 'done-39'";
    edit(&folder.path().join("state.db"), sql);
    Store::open(config(folder.path()), clock()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_flipped_bit_in_a_text_does_not_keep_it_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    let store = lived_in(folder.path()).await;
    store.close().await.unwrap();
    let file = folder.path().join("state.db");
    let sound = std::fs::read(&file).unwrap();
    let words: [&[u8]; 2] = [b"reboot", b"recalibrate"];
    let places = (0..sound.len()).filter(|at| words.iter().any(|word| sound[*at..].starts_with(word)));
    let mut tried = 0;
    for at in places.take(40) {
        let flipped = tempfile::tempdir().unwrap();
        let mut bytes = sound.clone();
        bytes[at] ^= 0x80;
        std::fs::write(flipped.path().join("state.db"), bytes).unwrap();
        std::fs::copy(folder.path().join("witness"), flipped.path().join("witness")).unwrap();
        Store::open(config(flipped.path()), clock()).unwrap_or_else(|cause| panic!("at {at}: {cause}"));
        tried += 1;
    }
    assert!(tried > 10, "{tried}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_log_and_the_file_that_move_aside_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..50 {
        take(&store, sample("A", n * 10, 142.0)).await;
    }
    let (crashed, other) = (killed(folder.path()), killed(folder.path()));
    // The rebuilt file has its name, and only the log of the damaged one was moved.
    let rebuilt = crashed.path().join("telemetry.db.rebuilt");
    edit(&other.path().join("telemetry.db"), &format!("VACUUM INTO '{}'", rebuilt.display()));
    let log = crashed.path().join("telemetry.db-wal");
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    std::fs::rename(&log, crashed.path().join("telemetry.db.damaged-20261122T100000000Z-wal")).unwrap();
    let again = open(crashed.path());
    assert_eq!(again.stats().await.unwrap().ledger.accepted, 50);
    let copy = crashed.path().join("telemetry.db.damaged-20261122T100000000Z");
    assert!(copy.exists(), "the damaged file stands beside its log");
}

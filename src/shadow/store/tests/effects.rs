//! What the end of a command changes, and what the journal forgets.

use super::*;

/// Runs a command on A and ends it with this effect.
pub(super) async fn end_with(store: &Store, name: &str, command_id: &str, effect: Effect) -> DeviceView {
    let c = CommandId::new(command_id).unwrap();
    store.journal(command("A", name, command_id)).await.unwrap();
    store.claim(&id("A"), &c).await.unwrap().unwrap();
    let end = ending(ExecutionStatus::Succeeded, Some(effect));
    assert!(store.finish(&id("A"), &c, end).await.unwrap().is_some());
    store.device(&id("A")).await.unwrap().unwrap()
}

#[tokio::test]
async fn configuration_known_to_hold_is_merged_and_its_thresholds_count_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, state("A", true)).await;
    let values = [("alert_threshold_psi".to_owned(), "100".to_owned()), ("interval".to_owned(), "7".to_owned())];
    let view = end_with(&store, "update_config", "c1", Effect::Configuration(values.clone().into())).await;
    assert_eq!(view.configuration, Some(values.into()));
    let more = [("interval".to_owned(), "9".to_owned())];
    let view = end_with(&store, "update_config", "c2", Effect::Configuration(more.into())).await;
    let configuration = view.configuration.unwrap();
    assert_eq!((configuration["alert_threshold_psi"].as_str(), configuration["interval"].as_str()), ("100", "9"));
    let urgent = store.peek_states(true, 10).await.unwrap();
    assert!(urgent.iter().any(|state| state.view.configuration.as_ref() == Some(&configuration)));

    take(&store, sample("A", 0, 120.0)).await;
    take(&store, sample("A", 1, 120.0)).await;
    let view = open(killed(folder.path()).path()).device(&id("A")).await.unwrap().unwrap();
    assert_eq!(view.configuration, Some(configuration));
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().status, DeviceStatus::Warning);
}

#[tokio::test]
async fn a_reboot_that_does_not_come_back_leaves_the_device_offline_until_it_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, state("A", true)).await;
    let view = end_with(&store, "reboot", "c1", Effect::Offline("did not come back".to_owned())).await;
    assert_eq!((view.status, view.status_reason.as_deref()), (DeviceStatus::Offline, Some("did not come back")));
    store.close().await.unwrap();
    let store = open(folder.path());
    let view = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!((view.status, view.status_reason.as_deref()), (DeviceStatus::Offline, Some("did not come back")));
    take(&store, state("A", true)).await;
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().status, DeviceStatus::Online);
}

/// Multiplies the one ended execution of the file to `count`, all ended `age` before T0.
fn multiply(file: &Path, count: usize, age: Duration) {
    let connection = rusqlite::Connection::open(file).unwrap();
    let names =
        "device_id, command, parameters, issued_at, expires_at, received_at, status, gateway_id, checked_parameters";
    let ended = T0 - i64::try_from(age.as_millis()).unwrap();
    connection
        .execute_batch(&format!(
            "DELETE FROM outbox;
             UPDATE execution SET completed_at = {ended};
             WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
             INSERT INTO execution (command_id, completed_at, {names})
             SELECT 'x' || n, {ended}, {names} FROM execution, n WHERE seq = 1"
        ))
        .unwrap();
}

/// A store with so many ended executions; the first of them, `c0`, is still announced nowhere else.
async fn with_ended(folder: &Path, count: usize, age: Duration) -> Store {
    let store = open(folder);
    let mut entry = command("A", "reboot", "x1");
    entry.record.status = ExecutionStatus::Rejected;
    store.journal(entry).await.unwrap();
    store.close().await.unwrap();
    multiply(&folder.join("state.db"), count, age);
    open(folder)
}

async fn after_minutes(store: &Store, minutes: usize) -> usize {
    for _ in 0..minutes {
        tokio::time::advance(Duration::from_secs(60)).await;
        store.tick().await.unwrap();
    }
    store.executions(None, 20_000).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn of_the_executions_older_than_seven_days_the_newest_ten_thousand_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_ended(folder.path(), 10_250, Duration::from_secs(7 * 86_400 + 1)).await;
    assert_eq!(after_minutes(&store, 1).await, 10_150, "a hundred a minute");
    assert_eq!(after_minutes(&store, 4).await, 10_000);
    let kept = store.executions(None, 20_000).await.unwrap();
    assert_eq!(kept.last().unwrap().command_id.as_str(), "x251", "the oldest went");
}

#[tokio::test(start_paused = true)]
async fn what_is_younger_than_seven_days_open_or_not_announced_is_kept_beyond_ten_thousand() {
    let folder = tempfile::tempdir().unwrap();
    let store = with_ended(folder.path(), 10_250, Duration::from_secs(7 * 86_400 - 3_600)).await;
    assert_eq!(after_minutes(&store, 3).await, 10_250, "all are young");
    store.close().await.unwrap();

    let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    connection
        .execute_batch(&format!(
            "UPDATE execution SET completed_at = {} WHERE seq <= 250;
             UPDATE execution SET status = 'created', completed_at = NULL WHERE seq = 1;
             INSERT INTO outbox (lane, execution, since) VALUES ('table', 2, 0)",
            T0 - 8 * 86_400_000
        ))
        .unwrap();
    drop(connection);
    let store = open(folder.path());
    assert_eq!(after_minutes(&store, 5).await, 10_002);
    let kept = store.executions(None, 20_000).await.unwrap();
    let oldest: Vec<&str> = kept.iter().rev().take(3).map(|record| record.command_id.as_str()).collect();
    assert_eq!(oldest, ["x1", "x2", "x251"]);
}

mod attached;
mod clocks;
mod disk;
mod effects;
mod failures;
mod figures;
mod held;
mod ledgers;
#[cfg(feature = "suites")]
mod measures;
mod model;
mod mutations;
mod readings;
mod refusals;
mod reported;
mod rescued;
mod room;

use std::path::Path;
use std::time::Duration;

use floorgate_model::{AdminState, DeviceStatus, LossReason, Profile, Reading, Readings, Reason, Timestamp};
use serde_json::{Map, json};

use super::*;
use crate::shadow::GapRecord;
use crate::shadow::report::{Answer, AnswerStatus, StateReport, TelemetryReport};

const T0: i64 = 1_795_341_600_000;

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn config(folder: &Path) -> Config {
    let device = |name: &str| Attachment {
        device_id: id(name),
        device_type: "pressure_sensor".to_owned(),
        location: "hall".to_owned(),
        sample_interval: Duration::from_secs(5),
        configuration: Some([("alert_threshold_psi".to_owned(), "150".to_owned())].into()),
        profile: Profile::built_in("pressure_sensor").unwrap(),
    };
    Config {
        state_dir: folder.to_owned(),
        gateway_id: GatewayId::new("GW").unwrap(),
        devices: vec![device("A"), device("B"), device("GW")],
        commit_interval: Duration::from_millis(1),
        quota_bytes: 512 << 20,
        history_retention: Duration::from_secs(86_400),
        announce_results: true,
        announce_tables: true,
    }
}

fn clock() -> Clock {
    Clock::set_to(Timestamp::from_millis(T0))
}

fn open(folder: &Path) -> Store {
    Store::open(config(folder), clock()).unwrap()
}

/// The files as a killed process leaves them.
fn killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            // A backup that is being taken gets another name meanwhile; the reserve and a probe come and go.
            let copied = std::fs::copy(entry.path(), copy.path().join(entry.file_name()));
            let name = entry.file_name().to_string_lossy().into_owned();
            let stays = ["state.db", "state.db-wal", "telemetry.db", "telemetry.db-wal", "witness"].contains(&&*name);
            assert!(copied.is_ok() || !stays, "{name}: {copied:?}");
        }
    }
    copy
}

fn sample(device: &str, n: i64, psi: f64) -> FloorReport {
    let mut readings = Readings::new();
    readings.insert("pressure_psi", Reading::new(psi).unwrap()).unwrap();
    let at = Timestamp::from_millis(T0 + n);
    FloorReport::Telemetry(TelemetryReport {
        device_id: id(device),
        readings,
        device_time: Some(at),
        seq: None,
        received_at: Timestamp::from_millis(T0),
        guess_base_ms: None,
        redelivered: false,
        retained: false,
    })
}

async fn take(store: &Store, report: FloorReport) -> Taken {
    store.submit(report).await.unwrap().await.unwrap().unwrap()
}

fn state(device: &str, online: bool) -> FloorReport {
    FloorReport::State(StateReport {
        device_id: id(device),
        online,
        firmware_version: Some("1.0".to_owned()),
        configuration: None,
        boot_count: Some(7),
        commands: None,
        retained: false,
        received_at: Timestamp::from_millis(T0),
    })
}

#[tokio::test]
async fn neither_a_last_will_nor_a_retained_state_is_the_devices_own_word_now() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let told = |online, retained, at: i64| {
        let FloorReport::State(report) = state("A", online) else { unreachable!() };
        FloorReport::State(StateReport { retained, received_at: Timestamp::from_millis(T0 + at), ..report })
    };
    for (online, retained, at, known) in
        [(true, true, 1, None), (false, false, 2, None), (true, false, 3, Some(3)), (false, false, 4, Some(3))]
    {
        assert_eq!(take(&store, told(online, retained, at)).await, Taken::Stored);
        let last = store.device(&id("A")).await.unwrap().unwrap().last_state_at;
        assert_eq!(last, known.map(|at| Timestamp::from_millis(T0 + at)), "online: {online}, retained: {retained}");
    }
}

fn command(device: &str, name: &str, text: &str) -> NewExecution {
    let parameters: Map<_, _> = json!({"k": 1}).as_object().unwrap().clone();
    let record = ExecutionRecord {
        command_id: CommandId::new(text).unwrap(),
        device_id: id(device),
        command: name.to_owned(),
        parameters: parameters.clone(),
        issuer: None,
        issued_at: Timestamp::from_millis(T0),
        expires_at: Timestamp::from_millis(T0 + 120_000),
        received_at: Timestamp::from_millis(T0),
        status: ExecutionStatus::Created,
        reason: None,
        message: None,
        details: None,
        started_at: None,
        completed_at: None,
        gateway_id: GatewayId::new("GW").unwrap(),
    };
    NewExecution { record, checked_parameters: parameters, received_boot: None }
}

fn ending(status: ExecutionStatus, effect: Option<Effect>) -> Ending {
    Ending { status, reason: None, message: None, details: None, effect }
}

fn answer(command: &str, status: AnswerStatus) -> Answer {
    Answer {
        device_id: id("A"),
        command_id: CommandId::new(command).unwrap(),
        status,
        reason: None,
        details: None,
        configuration: None,
        received_at: Timestamp::from_millis(T0),
    }
}

#[tokio::test]
async fn a_receipt_waits_for_its_window_or_for_a_full_batch() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { commit_interval: Duration::from_secs(3_600), ..config(folder.path()) };
    let store = Store::open(config, clock()).unwrap();
    let mut receipts = Vec::new();
    for n in 0..19 {
        receipts.push(store.submit(sample("A", n, 140.0)).await.unwrap());
    }
    store.stats().await.unwrap();
    assert!(receipts.iter_mut().all(|receipt| receipt.try_recv().is_err()), "nothing is committed yet");
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().last_reading_at, None);
    receipts.push(store.submit(sample("A", 19, 140.0)).await.unwrap());
    for receipt in receipts {
        assert_eq!(receipt.await.unwrap().unwrap(), Taken::Stored);
    }
}

#[tokio::test]
async fn a_sender_that_can_send_no_more_ends_the_window() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { commit_interval: Duration::from_secs(3_600), ..config(folder.path()) };
    let store = Store::open(config, clock()).unwrap();
    // Nothing waits: nothing happens, nor is the next window shorter for it.
    store.hasten().await;
    let mut receipt = store.submit(sample("A", 0, 140.0)).await.unwrap();
    store.stats().await.unwrap();
    assert!(receipt.try_recv().is_err(), "nothing is committed yet");
    store.hasten().await;
    assert_eq!(receipt.await.unwrap().unwrap(), Taken::Stored);
    assert_eq!(store.stats().await.unwrap().telemetry_committed, 1);
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(take(&store, state("A", true)).await, Taken::Stored);
    assert_eq!(take(&store, sample("A", 5, 142.5)).await, Taken::Stored);
    store.journal(command("A", "reboot", "c1")).await.unwrap();
    store.claim(&id("A"), &CommandId::new("c1").unwrap()).await.unwrap().unwrap();
    let version = store.device(&id("A")).await.unwrap().unwrap().version;
    let copy = killed(folder.path());
    let again = open(copy.path());
    let view = again.device(&id("A")).await.unwrap().unwrap();
    assert_eq!(view.last_readings.get("pressure_psi"), Reading::new(142.5));
    assert_eq!((view.firmware_version.as_deref(), view.boot_count), (Some("1.0"), Some(7)));
    assert_eq!(view.status, DeviceStatus::Rebooting);
    assert!(view.version > version, "{} is no newer than {version}", view.version);
    let open = again.in_progress().await.unwrap();
    assert_eq!(open.len(), 1);
    assert_eq!(open[0].boot_count_before, Some(7));
    assert_eq!(take(&again, sample("A", 5, 142.5)).await, Taken::Duplicate);
}

#[tokio::test]
async fn a_version_is_never_used_again_after_a_kill_even_when_nothing_was_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let mut image = killed(folder.path());
    let mut highest = 0;
    for round in 0..3 {
        let store = open(image.path());
        let view = store.device(&id("A")).await.unwrap().unwrap();
        assert!(view.version > highest, "round {round}");
        for n in 0..50 {
            take(&store, sample("A", round * 1_000 + n, 140.0)).await;
        }
        highest = store.device(&id("A")).await.unwrap().unwrap().version;
        let next = killed(image.path());
        drop(store);
        image = next;
    }
}

#[tokio::test]
async fn a_second_floorgate_on_the_folder_is_refused_in_a_clear_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let error = Store::open(config(folder.path()), clock()).unwrap_err().to_string();
    let file = folder.path().join("state.db");
    assert_eq!(error, format!("cannot open `{}`: database is locked; is another floorgate running?", file.display()));
    store.close().await.unwrap();
    assert!(matches!(store.devices().await, Err(StoreError::Closed)));
    open(folder.path());
}

#[tokio::test]
async fn a_late_reading_is_history_and_does_not_move_the_newest_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, sample("A", 0, 141.0)).await;
    assert_eq!(take(&store, sample("A", -60_000, 199.0)).await, Taken::Stored);
    assert_eq!(take(&store, sample("A", -59_000, 199.0)).await, Taken::Stored);
    let view = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!(view.last_readings.get("pressure_psi"), Reading::new(141.0));
    assert_eq!(view.status, DeviceStatus::Online);
    assert_eq!(take(&store, sample("nobody", 0, 1.0)).await, Taken::Unknown);
}

#[tokio::test]
async fn a_command_is_journalled_once_claimed_once_and_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let (device, c1) = (id("A"), CommandId::new("c1").unwrap());
    assert!(matches!(store.journal(command("A", "reboot", "c1")).await.unwrap(), Journalled::New(_)));
    assert!(matches!(store.journal(command("A", "reboot", "c1")).await.unwrap(), Journalled::Duplicate(_)));
    assert!(matches!(store.journal(command("B", "reboot", "c1")).await.unwrap(), Journalled::Conflict(_)));
    store.journal(command("A", "recalibrate", "c2")).await.unwrap();
    take(&store, FloorReport::Answer(answer("c1", AnswerStatus::Succeeded))).await;
    let claimed = store.claim(&device, &c1).await.unwrap().unwrap();
    assert_eq!(claimed.answer, None, "an answer from before the intent is none");
    assert!(store.claim(&device, &c1).await.unwrap().is_none());
    assert!(store.claim(&device, &CommandId::new("c2").unwrap()).await.unwrap().is_none(), "one at a time");
    assert_eq!(store.device(&device).await.unwrap().unwrap().status, DeviceStatus::Rebooting);
    take(&store, FloorReport::Answer(answer("c1", AnswerStatus::Failed))).await;
    take(&store, FloorReport::Answer(answer("c1", AnswerStatus::InProgress))).await;
    let word = store.open_execution(&device, &c1).await.unwrap().unwrap().answer.unwrap();
    assert_eq!(word.status, AnswerStatus::Failed);
    assert!(store.finish(&device, &c1, ending(ExecutionStatus::Rejected, None)).await.is_err());
    let end = ending(ExecutionStatus::Succeeded, Some(Effect::Admin(AdminState::Maintenance)));
    assert!(store.finish(&device, &c1, end).await.unwrap().is_some());
    assert!(store.finish(&device, &c1, ending(ExecutionStatus::Failed, None)).await.unwrap().is_none());
    assert_eq!(take(&store, FloorReport::Answer(answer("c1", AnswerStatus::Failed))).await, Taken::Stored);
    assert_eq!(take(&store, FloorReport::Answer(answer("c9", AnswerStatus::Failed))).await, Taken::Unknown);
    let records = store.executions(Some(&device), 10).await.unwrap();
    assert_eq!(records.iter().map(|r| r.status.as_str()).collect::<Vec<_>>(), ["created", "succeeded"]);
    let view = store.device(&device).await.unwrap().unwrap();
    assert_eq!((view.status, view.commands_open), (DeviceStatus::Maintenance, 1));
    assert!(store.peek_states(true, 10).await.unwrap().iter().any(|state| state.view.device_id == device));
}

#[tokio::test]
async fn the_queue_of_a_device_and_of_the_gateway_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let model = config.devices[0].clone();
    config.devices.extend((0..30).map(|n| Attachment { device_id: id(&format!("D{n}")), ..model.clone() }));
    let store = Store::open(config, clock()).unwrap();
    let mut created = 0;
    for n in 0..270 {
        let entry = command(&format!("D{}", n / 9), "recalibrate", &format!("c{n}"));
        let Journalled::New(record) = store.journal(entry).await.unwrap() else { panic!("a new id is new") };
        let full = n % 9 == 8 || created >= GATEWAY_QUEUE_MAX;
        assert_eq!(record.reason == Some(Reason::QueueFull), full, "{n}");
        created += usize::from(record.status == ExecutionStatus::Created);
    }
    assert_eq!((created, store.waiting().await.unwrap().len()), (200, 200));
}

#[tokio::test]
async fn a_confirmation_leaves_an_entry_that_was_renewed_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.journal(command("A", "recalibrate", "c1")).await.unwrap();
    let seen = store.peek_outbox(Lane::Table, 10).await.unwrap();
    store.claim(&id("A"), &CommandId::new("c1").unwrap()).await.unwrap().unwrap();
    store.confirm_outbox(Lane::Table, vec![seen[0].seq]).await.unwrap();
    let renewed = store.peek_outbox(Lane::Table, 10).await.unwrap();
    let after = store.peek_outbox_after(Lane::Table, OutboxOrder::ByNumber, seen[0].seq, 10).await.unwrap();
    assert_eq!(after, renewed, "a renewed entry comes after the one that was seen");
    assert!(store.peek_outbox_after(Lane::Table, OutboxOrder::ByNumber, renewed[0].seq, 10).await.unwrap().is_empty());
    assert_eq!(renewed[0].record.status, ExecutionStatus::InProgress);
    store.confirm_outbox(Lane::Table, vec![renewed[0].seq]).await.unwrap();
    assert!(store.peek_outbox(Lane::Table, 10).await.unwrap().is_empty());
    assert_eq!(store.peek_outbox(Lane::Result, 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn states_are_confirmed_by_version_and_adopt_a_higher_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(store.peek_states(true, 10).await.unwrap().len(), 3, "after a start everything goes at once");
    for state in store.peek_states(false, 10).await.unwrap() {
        store.confirm_state(&state.view.device_id, state.view.version).await.unwrap();
    }
    assert!(store.peek_states(false, 10).await.unwrap().is_empty());
    store.adopt_version(&id("A"), 1_000_000).await.unwrap();
    let states = store.peek_states(true, 10).await.unwrap();
    assert_eq!((states.len(), states[0].view.version), (1, 1_000_001));
    store.taken_over(&id("A"), Some(GatewayId::new("OTHER").unwrap())).await.unwrap();
    assert!(store.peek_states(false, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn sessions_are_kept_over_a_restart_and_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..1_000 {
        store.save_session(format!("c{n}"), Some(vec!["a/+".to_owned()])).await.unwrap();
    }
    assert!(store.save_session("more".to_owned(), Some(vec![])).await.is_err());
    store.save_session("c5".to_owned(), None).await.unwrap();
    store.save_session("more".to_owned(), Some(vec!["b".to_owned()])).await.unwrap();
    store.close().await.unwrap();
    let sessions = open(folder.path()).sessions().await.unwrap();
    assert_eq!((sessions.len(), sessions["more"].clone()), (1_000, vec!["b".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn silence_shows_at_the_next_tick_and_its_return_wakes_the_sync() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, state("A", true)).await;
    for state in store.peek_states(false, 10).await.unwrap() {
        store.confirm_state(&state.view.device_id, state.view.version).await.unwrap();
    }
    tokio::time::advance(Duration::from_secs(15)).await;
    store.tick().await.unwrap();
    let urgent = store.peek_states(true, 10).await.unwrap();
    assert_eq!((urgent.len(), urgent[0].view.status), (1, DeviceStatus::Offline));
    assert_eq!(urgent[0].view.status_reason.as_deref(), Some("silent for 15 s"));
    take(&store, state("A", true)).await;
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().status, DeviceStatus::Online);
}

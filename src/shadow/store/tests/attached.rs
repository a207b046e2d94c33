//! Devices that come, change and go while the store is open.

use super::*;
use crate::shadow::Fault;

async fn view(store: &Store, device: &str) -> Option<DeviceView> {
    store.device(&id(device)).await.unwrap()
}

fn without(devices: &[Attachment], gone: &str) -> Vec<Attachment> {
    devices.iter().filter(|device| device.device_id != id(gone)).cloned().collect()
}

#[tokio::test(start_paused = true)]
async fn a_device_that_left_is_no_longer_heard_and_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let (store, devices) = (open(folder.path()), config(folder.path()).devices);
    assert_eq!(take(&store, sample("A", 0, 140.0)).await, Taken::Stored);
    assert_eq!(take(&store, state("A", true)).await, Taken::Stored);
    let before = view(&store, "A").await.unwrap();

    store.attach(without(&devices, "A")).await.unwrap();
    assert_eq!(view(&store, "A").await, None);
    assert_eq!(take(&store, sample("A", 1, 141.0)).await, Taken::Unknown);
    assert!(store.peek_states(false, 10).await.unwrap().iter().all(|state| state.view.device_id != id("A")));
    assert_eq!(take(&store, sample("B", 0, 120.0)).await, Taken::Stored, "the others go on");
    assert_eq!(store.stats().await.unwrap().ledger.accepted, 2, "its history is still accounted for");

    store.attach(devices).await.unwrap();
    let back = view(&store, "A").await.unwrap();
    assert_eq!((&back.last_readings, back.boot_count), (&before.last_readings, Some(7)));
    assert_eq!(back.registered_at, before.registered_at);
    assert!(back.version > before.version, "no version is used twice");
    assert!(store.peek_states(true, 10).await.unwrap().iter().any(|state| state.view.device_id == id("A")));
    assert_eq!(take(&store, sample("A", 0, 140.0)).await, Taken::Duplicate, "it is still known what was taken");
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_attached_later_is_kept_over_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut devices) = (open(folder.path()), config(folder.path()).devices);
    assert_eq!(take(&store, sample("NEW", 0, 140.0)).await, Taken::Unknown);
    devices.push(Attachment { device_id: id("NEW"), ..devices[0].clone() });
    store.attach(devices.clone()).await.unwrap();
    assert_eq!(take(&store, sample("NEW", 0, 140.0)).await, Taken::Stored);
    let version = view(&store, "NEW").await.unwrap().version;
    let copy = killed(folder.path());
    let again = Store::open(Config { devices, ..config(copy.path()) }, clock()).unwrap();
    let known = again.device(&id("NEW")).await.unwrap().unwrap();
    assert!(known.version > version && known.last_reading_at.is_some(), "{known:?}");
}

#[tokio::test(start_paused = true)]
async fn what_changes_on_a_device_counts_at_once_and_goes_out_urgently() {
    let folder = tempfile::tempdir().unwrap();
    let (store, mut devices) = (open(folder.path()), config(folder.path()).devices);
    assert_eq!(take(&store, sample("A", 0, 140.0)).await, Taken::Stored);
    assert_eq!(take(&store, sample("B", 0, 140.0)).await, Taken::Stored);
    for state in store.peek_states(false, 10).await.unwrap() {
        store.confirm_state(&state.view.device_id, state.view.version).await.unwrap();
    }
    devices[0].location = "yard".to_owned();
    devices[0].device_type = "temperature_sensor".to_owned();
    devices[0].sample_interval = Duration::from_secs(60);
    devices[0].configuration = Some([("alert_threshold_psi".to_owned(), "139".to_owned())].into());
    store.attach(devices).await.unwrap();
    let urgent = store.peek_states(true, 10).await.unwrap();
    let ids: Vec<_> = urgent.iter().map(|state| state.view.device_id.clone()).collect();
    assert_eq!(ids, [id("A")], "nobody else is concerned");
    let now = &urgent[0].view;
    assert_eq!((now.location.as_str(), now.device_type.as_str()), ("yard", "temperature_sensor"));
    assert_eq!(now.configuration.as_ref().unwrap()["alert_threshold_psi"], "139");
    assert!(now.last_reading_at.is_some() && now.status == DeviceStatus::Online);

    tokio::time::advance(Duration::from_secs(30)).await;
    store.tick().await.unwrap();
    assert_eq!(view(&store, "B").await.unwrap().status, DeviceStatus::Offline, "15 s of silence");
    assert_eq!(view(&store, "A").await.unwrap().status, DeviceStatus::Online, "its own limit is 180 s now");
}

#[tokio::test(start_paused = true)]
async fn open_commands_of_a_device_that_left_stay_in_the_journal_until_someone_ends_them() {
    let folder = tempfile::tempdir().unwrap();
    let (store, devices) = (open(folder.path()), config(folder.path()).devices);
    store.journal(command("A", "reboot", "running")).await.unwrap();
    store.journal(command("A", "recalibrate", "waiting")).await.unwrap();
    store.claim(&id("A"), &CommandId::new("running").unwrap()).await.unwrap().unwrap();
    store.attach(without(&devices, "A")).await.unwrap();
    assert_eq!((store.waiting().await.unwrap().len(), store.in_progress().await.unwrap().len()), (1, 1));
    let ends = |name: &str| (CommandId::new(name).unwrap(), ending(ExecutionStatus::TimedOut, None));
    let (running, timed_out) = ends("running");
    assert!(store.finish(&id("A"), &running, timed_out).await.unwrap().is_some());
    let announced = store.peek_outbox(Lane::Table, 10).await.unwrap();
    assert_eq!(announced.len(), 2, "whoever sent them is told");

    store.attach(devices).await.unwrap();
    let back = view(&store, "A").await.unwrap();
    assert_eq!((back.commands_open, back.last_execution.unwrap().command_id.as_str()), (1, "waiting"));
}

#[tokio::test(start_paused = true)]
async fn while_the_disk_takes_no_writes_the_devices_stay_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let (store, devices) = (open(folder.path()), config(folder.path()).devices);
    let cause = StoreError::Disk { doing: "write a test", cause: "as told".to_owned(), fault: Fault::ReadOnly };
    let failed: Result<(), _> = store.ask(Pace::AtOnce, move |_| Err(cause)).await;
    assert!(failed.is_err());
    store.stats().await.unwrap();
    let refused = store.attach(without(&devices, "A")).await.unwrap_err();
    assert_eq!(refused.fault(), Some(Fault::ReadOnly));
    assert!(view(&store, "A").await.is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    store.tick().await.unwrap();
    assert!(view(&store, "A").await.is_some(), "and after the file was opened again");
    store.attach(without(&devices, "A")).await.unwrap();
    assert_eq!(view(&store, "A").await, None);
}

//! The lanes against a store and a table in memory. The table keeps the conditions of contract §4 and fails as scripted:
//! before or after it has carried a write out.

mod doubles;
mod second_tries;

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::{
    AdminState, CommandId, DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, GatewayId, Readings, Timestamp,
};
use proptest::prelude::*;

use super::*;
use crate::shadow::{DeviceView, HistoryBlock, OutboxEntry};
use crate::sync::table::{Cause, Scope, TableError};
use doubles::{Fault, MemoryStore, MemoryTable, retry};

const START: i64 = 1_795_341_600_000;

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn me() -> GatewayId {
    GatewayId::new("GW-1").unwrap()
}

fn view(name: &str, version: u64) -> DeviceView {
    let at = Timestamp::from_millis(START);
    DeviceView {
        device_id: device(name),
        device_type: "pressure_sensor".into(),
        location: "floor-1".into(),
        registered_at: at,
        status: DeviceStatus::Online,
        observed: DeviceStatus::Online,
        status_reason: None,
        status_since: at,
        admin_state: AdminState::InService,
        firmware_version: None,
        configuration: None,
        last_configuration_at: None,
        boot_count: None,
        last_state_at: None,
        declared_commands: None,
        last_readings: Readings::new(),
        last_reading_at: None,
        last_seen_at: Some(at),
        version,
        commands_open: 0,
        last_execution: None,
        taken_over_by: None,
    }
}

fn record(name: &str, id: &str, status: ExecutionStatus) -> ExecutionRecord {
    let at = Timestamp::from_millis(START);
    ExecutionRecord {
        command_id: CommandId::new(id).unwrap(),
        device_id: device(name),
        command: "reboot".into(),
        parameters: serde_json::Map::new(),
        issuer: None,
        issued_at: at,
        expires_at: at.saturating_add(Duration::from_secs(120)),
        received_at: at,
        status,
        reason: None,
        message: None,
        details: None,
        started_at: None,
        completed_at: None,
        gateway_id: me(),
    }
}

fn block(id: i64, name: &str) -> HistoryBlock {
    let first = Timestamp::from_millis(START + id * 60_000);
    HistoryBlock {
        id,
        device_id: device(name),
        first,
        offsets_ms: vec![0],
        readings: BTreeMap::new(),
        expires_at: first,
    }
}

fn settings() -> Settings {
    Settings { gateway_id: me(), state_interval: Duration::from_secs(10) }
}

fn uploader(store: &MemoryStore, table: &MemoryTable) -> Uploader<MemoryStore, MemoryTable> {
    let clock = Clock::set_to(Timestamp::from_millis(START));
    Uploader::new(store.clone(), table.clone(), settings(), clock)
}

fn entry(seq: i64, record: ExecutionRecord) -> OutboxEntry {
    OutboxEntry { seq, record, answer: None }
}

#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_confirmed_by_its_repetition() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    table.fails([Fault::After]);
    let mut uploader = uploader(&store, &table);
    assert!(uploader.sync_once().await.unwrap());
    assert_eq!(store.data().synced.get(&device("A")), None, "the answer was lost");
    uploader.sync_once().await.unwrap();
    assert_eq!(store.data().synced[&device("A")], 1);
    assert_eq!(table.data().versions, [(device("A"), 1)], "written once");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_store_goes_on_above_the_tables_version() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    table.data().items.insert(device("A"), (me(), view("A", 900)));
    let mut newer = view("A", 1);
    newer.status = DeviceStatus::Warning;
    store.put(newer);
    let mut uploader = uploader(&store, &table);
    while uploader.sync_once().await.unwrap() {}
    let (_, stored) = table.data().items[&device("A")].clone();
    assert_eq!((stored.version, stored.status), (901, DeviceStatus::Warning));
}

#[tokio::test(start_paused = true)]
async fn a_device_of_a_living_gateway_is_left_alone_until_that_one_falls_silent() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    let other = GatewayId::new("GW-2").unwrap();
    table.data().items.insert(device("A"), (other.clone(), view("A", 7)));
    store.put(view("A", 1));
    let mut uploader = uploader(&store, &table);
    uploader.sync_once().await.unwrap();
    assert_eq!(store.data().views[&device("A")].taken_over_by, Some(other.clone()));
    uploader.sync_once().await.unwrap();
    assert_eq!(table.data().items[&device("A")].0, other, "still alive, still its");
    assert_eq!(uploader.watch().borrow().taken_over, 1);

    let later = Timestamp::from_millis(START + 31_000);
    store.data().views.get_mut(&device("A")).unwrap().last_seen_at = Some(later);
    while uploader.sync_once().await.unwrap() {}
    assert_eq!(table.data().items[&device("A")].0, me());
    assert_eq!(uploader.watch().borrow().taken_over, 0);
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_item_fails_holds_up_no_other() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    for number in 0..50 {
        store.put(view(&format!("D{number:02}"), 1));
    }
    table.data().sick.insert(device("D00"));
    let mut uploader = uploader(&store, &table);
    for _ in 0..60 {
        uploader.sync_once().await.unwrap();
    }
    assert_eq!(table.data().items.len(), 49);
    table.data().sick.clear();
    while uploader.sync_once().await.unwrap() {}
    assert_eq!(table.data().items.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_block_is_put_aside_and_all_others_arrive() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.data().blocks = (0..60).map(|id| block(id, "A")).collect();
    table.data().poison = Some(33);
    let mut uploader = uploader(&store, &table);
    while uploader.sync_once().await.unwrap() {}
    assert_eq!(table.data().blocks.len(), 59);
    assert_eq!(store.data().parked, [33]);
    assert!(store.data().blocks.is_empty());
    assert_eq!(uploader.watch().borrow().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn unprocessed_blocks_are_sent_again_and_the_window_narrows() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.data().blocks = (0..30).map(|id| block(id, "A")).collect();
    table.data().unprocessed = 10;
    let mut uploader = uploader(&store, &table);
    assert!(uploader.sync_once().await.unwrap());
    assert_eq!(store.data().blocks.len(), 10);
    let state = uploader.watch().borrow().clone();
    assert_eq!((state.throttled, state.lanes[2].window), (1, 4));
    while uploader.sync_once().await.unwrap() {}
    assert_eq!(table.data().blocks.len(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_record_waits_for_its_devices_first_state_and_is_looked_at_again_after_its_outcome() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.data().outbox.push(entry(1, record("A", "c1", ExecutionStatus::Succeeded)));
    let mut uploader = uploader(&store, &table);
    uploader.sync_once().await.unwrap();
    assert_eq!(store.data().outbox.len(), 1, "no item yet");
    store.put(view("A", 1));
    uploader.sync_once().await.unwrap();
    tokio::time::advance(Duration::from_secs(3)).await;
    uploader.sync_once().await.unwrap();
    assert!(store.data().outbox.is_empty());
    assert_eq!(table.data().executions.len(), 1);
    assert_eq!(table.data().settled, 0);
    tokio::time::advance(Duration::from_secs(3)).await;
    uploader.sync_once().await.unwrap();
    assert_eq!(table.data().settled, 1);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_refused_for_good_blocks_nothing_and_is_counted() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    store.put(view("B", 1));
    let refusal = TableError::Permanent { text: "no".into() };
    table.fails([Fault::Before(refusal)]);
    let mut uploader = uploader(&store, &table);
    while uploader.sync_once().await.unwrap() {}
    assert_eq!(table.data().items.len(), 1);
    assert_eq!(uploader.watch().borrow().refused, 1);
    store.change("A", DeviceStatus::Warning);
    while uploader.sync_once().await.unwrap() {}
    assert_eq!(table.data().items.len(), 2, "its next version is tried again");
}

#[tokio::test(start_paused = true)]
async fn a_dead_link_is_probed_with_pauses_and_everything_arrives_when_it_is_back() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    for number in 0..100 {
        store.put(view(&format!("D{number:02}"), 1));
    }
    store.data().blocks = (0..200).map(|id| block(id, "D00")).collect();
    table.fails((0..100_000).map(|_| Fault::Before(retry(Cause::Network))));
    let uploader = uploader(&store, &table);
    let state = uploader.watch();
    let stop = CancellationToken::new();
    let running = tokio::spawn(uploader.run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let requests = table.data().requests;
    assert!((50..2_000).contains(&requests), "{requests} requests in ten minutes");
    assert!(!state.borrow().up);
    assert!(state.borrow().last_error.as_deref().is_some_and(|text| text.contains("trying again")));

    table.data().faults.clear();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(table.data().items.len(), 100, "states are current within the longest pause");
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(table.data().blocks.len(), 200);
    assert!(state.borrow().up);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_asked_again_and_only_a_closed_one_ends_sync() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    store.data().outbox.push(entry(1, record("A", "c1", ExecutionStatus::Failed)));
    store.data().blocks.push(block(1, "A"));
    store.data().io_errors = 40;
    let running = tokio::spawn(uploader(&store, &table).run(CancellationToken::new()));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(store.data().io_errors > 20, "a failing store is not asked in a loop");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!running.is_finished());
    assert_eq!(store.data().io_errors, 0);
    {
        let table = table.data();
        assert_eq!((table.items.len(), table.executions.len(), table.blocks.len(), table.settled), (1, 1, 1, 1));
    }
    store.data().closed = true;
    tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_look_that_was_given_up_leaves_no_table_down() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    let mut uploader = uploader(&store, &table);
    let state = uploader.watch();
    while uploader.sync_once().await.unwrap() {}
    store.data().outbox.push(entry(1, record("A", "c1", ExecutionStatus::Succeeded)));
    uploader.sync_once().await.unwrap();
    assert!(state.borrow().up && store.data().outbox.is_empty());
    // `SETTLE_TRIES`.
    let tries = 30;
    table.fails((0..tries + 8).map(|_| Fault::Before(retry(Cause::Server))));
    for number in 1..=tries {
        tokio::time::advance(Duration::from_secs(10)).await;
        uploader.sync_once().await.unwrap();
        assert!(!state.borrow().up, "look {number} fails");
    }
    // Nothing is asked of the table any more.
    uploader.sync_once().await.unwrap();
    assert!(state.borrow().up);
    let table = table.data();
    assert_eq!((table.faults.len(), table.settled), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn a_missing_history_table_holds_up_no_state() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    let uploader = uploader(&store, &table);
    let missing = TableError::Misconfigured { scope: Scope::Table, text: "no such table".into() };
    let health = &uploader.context.health;
    health.states_current();
    health.failed(crate::sync::health::LaneName::History, &missing);
    tokio::time::timeout(Duration::ZERO, health.admitted(crate::sync::health::LaneName::States)).await.unwrap();
    assert_eq!(health.window(crate::sync::health::LaneName::States), 8);
    assert_eq!(health.window(crate::sync::health::LaneName::History), 1);
}

fn any_fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        4 => Just(None),
        1 => Just(Some(Fault::After)),
        1 => Just(Some(Fault::Before(retry(Cause::Network)))),
        1 => Just(Some(Fault::Before(retry(Cause::Throttled)))),
        1 => Just(Some(Fault::Before(retry(Cause::Server)))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn whatever_fails_the_table_ends_as_the_store_and_never_went_backwards(
        faults in proptest::collection::vec(any_fault(), 0..60),
        changes in proptest::collection::vec((0usize..4, 0usize..5), 1..40),
        restart_every in 1usize..8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (store, table) = <(MemoryStore, MemoryTable)>::default();
            let names = ["A", "B", "C", "D"];
            for name in names {
                store.put(view(name, 1));
            }
            table.data().faults.extend(faults);
            let mut current = uploader(&store, &table);
            for (number, (who, status)) in changes.into_iter().enumerate() {
                store.change(names[who], DeviceStatus::ALL[status]);
                let seq = i64::try_from(number).unwrap();
                store.data().blocks.push(block(seq, names[who]));
                store.data().outbox.push(entry(seq, record(names[who], &format!("c{number}"), ExecutionStatus::Failed)));
                if number % restart_every == 0 {
                    current = uploader(&store, &table);
                }
                current.sync_once().await.unwrap();
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            for _ in 0..200 {
                current.sync_once().await.unwrap();
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            let (store, table) = (store.data(), table.data());
            for (id, view) in &store.views {
                assert_eq!(&table.items[id].1, view);
            }
            assert!(store.outbox.is_empty() && store.blocks.is_empty());
            let mut last: BTreeMap<&DeviceId, u64> = BTreeMap::new();
            for (id, version) in &table.versions {
                assert!(last.insert(id, *version).is_none_or(|before| before < *version), "{id} went back to {version}");
            }
        });
    }
}

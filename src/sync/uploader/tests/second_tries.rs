//! What fails is tried again in turns and holds up nobody; what was written is looked at again.

use super::*;
use crate::sync::health::LaneName;

/// Fills the outbox with records of B, numbers 1 to `count`.
fn records_of_b(store: &MemoryStore, count: i64) {
    let records = (1..=count).map(|seq| entry(seq, record("B", &format!("b{seq}"), ExecutionStatus::Failed)));
    store.data().outbox.extend(records);
}

/// How often each number was tried: the least and the most.
fn least_and_most(tries: &[i64], numbers: std::ops::RangeInclusive<i64>) -> (usize, usize) {
    let counts = numbers.map(|number| tries.iter().filter(|tried| **tried == number).count());
    counts.fold((usize::MAX, 0), |(least, most), count| (least.min(count), most.max(count)))
}

#[tokio::test(start_paused = true)]
async fn of_records_that_all_fail_each_gets_its_turn_and_a_new_one_goes_before_them() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    table.data().sick.insert(device("B"));
    records_of_b(&store, 300);
    let mut uploader = uploader(&store, &table);
    for _ in 0..700 {
        uploader.sync_once().await.unwrap();
    }
    let (least, most) = least_and_most(&table.data().tries, 1..=300);
    assert!(least >= 3 && most <= least + 1, "tried {least} to {most} times");

    store.data().outbox.push(entry(301, record("A", "a", ExecutionStatus::Succeeded)));
    let before = table.data().tries.len();
    uploader.sync_once().await.unwrap();
    assert_eq!(table.data().tries[before], 301, "before all that failed");
    assert_eq!(table.data().executions.len(), 1);

    table.data().sick.clear();
    store.put(view("B", 1));
    for _ in 0..20 {
        uploader.sync_once().await.unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    assert!(store.data().outbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_outcomes_go_before_refusals_and_no_refusal_is_forgotten() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    let mut uploader = uploader(&store, &table);
    uploader.sync_once().await.unwrap();
    for seq in 1..=300 {
        let status = if seq % 30 == 0 { ExecutionStatus::Failed } else { ExecutionStatus::Rejected };
        store.data().outbox.push(entry(seq, record("A", &format!("a{seq}"), status)));
    }
    for _ in 0..20 {
        uploader.sync_once().await.unwrap();
    }
    assert!(table.data().tries[..10].iter().all(|seq| seq % 30 == 0), "{:?}", &table.data().tries[..12]);
    assert_eq!(table.data().executions.len(), 300);
    assert!(store.data().outbox.is_empty());
}

#[tokio::test(start_paused = true)]
async fn records_that_wait_for_their_device_hide_no_other() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    records_of_b(&store, 300);
    store.data().outbox.push(entry(301, record("A", "a", ExecutionStatus::Succeeded)));
    store.put(view("A", 1));
    table.data().sick.insert(device("A"));
    let mut uploader = uploader(&store, &table);
    for _ in 0..10 {
        uploader.sync_once().await.unwrap();
    }
    assert!(table.data().tries.iter().filter(|tried| **tried == 301).count() >= 3, "behind 300 that wait");
    table.data().sick.clear();
    for _ in 0..10 {
        uploader.sync_once().await.unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    assert_eq!(store.data().outbox.len(), 300, "all of B, which has no item");
    for _ in 0..40 {
        tokio::time::advance(Duration::from_secs(2)).await;
        while uploader.sync_once().await.unwrap() {}
    }
    assert!(store.data().outbox.is_empty(), "given up after a minute, each by its own count");
}

#[tokio::test(start_paused = true)]
async fn while_one_device_fails_the_records_and_states_of_others_are_written_at_once() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    for name in ["A", "B"] {
        store.put(view(name, 1));
    }
    table.data().sick.insert(device("B"));
    records_of_b(&store, 20);
    let stop = CancellationToken::new();
    let running = tokio::spawn(uploader(&store, &table).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(120)).await;
    let requests = table.with(|table| table.tries.len() + table.state_tries.len());
    assert!((40..400).contains(&requests), "{requests} tries in two minutes");
    for number in 0..50 {
        store.change("A", DeviceStatus::ALL[number % 5]);
        let seq = 100 + i64::try_from(number).unwrap();
        store.data().outbox.push(entry(seq, record("A", &format!("a{number}"), ExecutionStatus::Failed)));
        store.wake();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let shown = table.with(|table| table.items[&device("A")].1.clone());
        assert_eq!(shown, store.data().views[&device("A")], "{number}");
        let id = CommandId::new(&format!("a{number}")).unwrap();
        assert!(table.with(|table| table.outcomes.contains(&id)), "{number}");
        tokio::time::sleep(Duration::from_millis(1_337)).await;
    }
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_a_table_of_commands_every_outcome_is_shown_at_once_and_no_record_is_lost() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("B", 1));
    table.data().no_commands_table = true;
    records_of_b(&store, 500);
    let uploader = uploader(&store, &table);
    let state = uploader.watch();
    let stop = CancellationToken::new();
    let running = tokio::spawn(uploader.run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(table.data().outcomes.len(), 500);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(store.data().outbox.len(), 500);
    assert!(state.borrow().lanes[LaneName::Executions as usize].failing);
    let tries = table.data().tries.len();
    assert!((510..800).contains(&tries), "{tries} tries in ten minutes");
    table.data().no_commands_table = false;
    tokio::time::sleep(Duration::from_secs(65)).await;
    assert!(store.data().outbox.is_empty());
    assert!(state.borrow().up);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn of_devices_that_fail_each_gets_its_turn_behind_the_others() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    for number in 0..100 {
        store.put(view(&format!("S{number:03}"), 1));
        table.data().sick.insert(device(&format!("S{number:03}")));
    }
    store.put(view("T", 1));
    let mut uploader = uploader(&store, &table);
    for _ in 0..500 {
        uploader.sync_once().await.unwrap();
    }
    let tries = table.data().state_tries.clone();
    let counts: Vec<_> =
        (0..100).map(|number| tries.iter().filter(|id| id.as_str() == format!("S{number:03}")).count()).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(*least >= 3 && most - least <= 1, "tried {least} to {most} times");
    assert_eq!(tries.iter().filter(|id| id.as_str() == "T").count(), 1, "behind a hundred that fail");
    table.data().sick.clear();
    for _ in 0..10 {
        uploader.sync_once().await.unwrap();
    }
    assert_eq!(table.data().items.len(), 101);
}

#[tokio::test(start_paused = true)]
async fn a_start_looks_again_at_the_outcomes_of_the_last_hour() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("A", 1));
    let ended = |id: &str, before: u64| {
        let at = Timestamp::from_millis(START).saturating_sub(Duration::from_secs(before));
        ExecutionRecord { completed_at: Some(at), ..record("A", id, ExecutionStatus::Failed) }
    };
    let open = record("A", "open", ExecutionStatus::InProgress);
    store.data().journal = vec![ended("old", 3_601), ended("first", 3_600), ended("second", 1), open];
    let mut uploader = uploader(&store, &table);
    uploader.sync_once().await.unwrap();
    assert!(table.data().looked_at.is_empty(), "a tool may still write");
    tokio::time::advance(Duration::from_secs(2)).await;
    uploader.sync_once().await.unwrap();
    assert_eq!(table.data().looked_at.iter().map(CommandId::as_str).collect::<Vec<_>>(), ["first", "second"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_look_that_comes_too_early_is_repeated_and_an_outage_does_not_end_it() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("B", 1));
    records_of_b(&store, 1);
    table.data().settle_again = 5;
    let stop = CancellationToken::new();
    let running = tokio::spawn(uploader(&store, &table).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(store.data().outbox.is_empty());
    assert!(table.with(|table| table.settle_again < 5 && table.settled == 0));
    table.fails((0..100_000).map(|_| Fault::Before(retry(Cause::Network))));
    tokio::time::sleep(Duration::from_secs(900)).await;
    table.data().faults.clear();
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(table.with(|table| (table.settle_again, table.settled)), (0, 1));
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_second_look_is_made_thirty_times_at_most() {
    let (store, table) = <(MemoryStore, MemoryTable)>::default();
    store.put(view("B", 1));
    records_of_b(&store, 1_010);
    table.data().settle_again = 100_000;
    let stop = CancellationToken::new();
    let running = tokio::spawn(uploader(&store, &table).run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(600)).await;
    let looks = 100_000 - table.data().settle_again;
    assert_eq!(looks, 1_000 * 30, "of the thousand newest");
    stop.cancel();
    running.await.unwrap();
}

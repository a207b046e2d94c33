//! Readings while their file is out of use.

use super::*;
use crate::shadow::fault::Fault;
use crate::shadow::held::{HELD_BYTES_MAX, HELD_DEVICE_BYTES_MAX, TURNED_AWAY_MAX};

async fn refuse_readings(store: &Store) {
    let shut = |turn: &mut Turn<'_>| {
        let cause = StoreError::Disk { doing: "write", cause: "test".to_owned(), fault: Fault::DiskFull };
        turn.samples.shut(&cause);
        Ok(())
    };
    store.ask(Pace::Lazy, shut).await.unwrap();
    store.stats().await.unwrap();
    let health = *store.health().borrow();
    assert_eq!((health.takes_readings, health.takes_reports), (false, true));
}

async fn second(store: &Store) {
    tokio::time::advance(Duration::from_secs(1)).await;
    let _ = store.tick().await;
}

fn reading(device: &str, n: i64) -> TelemetryReport {
    let FloorReport::Telemetry(report) = sample(device, n, 140.0) else { unreachable!() };
    report
}

/// A reading as large as the contract allows, nearly.
fn large(device: &str, n: i64) -> TelemetryReport {
    let mut report = reading(device, n);
    for field in 0..60 {
        report.readings.insert(&format!("{field:0>60}"), Reading::new(1.0).unwrap()).unwrap();
    }
    report
}

#[tokio::test(start_paused = true)]
async fn a_reading_whose_file_is_out_of_use_has_its_receipt_at_once_and_is_stored_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    refuse_readings(&store).await;
    let mut receipts = Vec::new();
    for n in 0..50 {
        receipts.push(store.submit_patiently(reading("A", n)).await.unwrap());
    }
    assert!(receipts.iter_mut().all(|receipt| receipt.try_recv().is_err()), "acknowledged while nothing is written");
    assert_eq!(take(&store, state("A", true)).await, Taken::Stored, "what comes behind them is taken");
    second(&store).await;
    for receipt in receipts {
        assert_eq!(receipt.await.unwrap().unwrap(), Taken::Stored);
    }
    assert_eq!(store.stats().await.unwrap().samples_open, 50);
    assert_eq!(store.submit_patiently(reading("A", 60)).await.unwrap().await.unwrap().unwrap(), Taken::Stored);
}

#[tokio::test(start_paused = true)]
async fn a_device_whose_readings_find_no_place_is_told_so_when_readings_are_taken_again_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    refuse_readings(&store).await;
    let mut of_a = Vec::new();
    for n in 0..200 {
        of_a.push(store.submit_patiently(large("A", n)).await.unwrap());
    }
    let of_b = store.submit_patiently(reading("B", 1)).await.unwrap();
    let held = store.held.bytes_of(&id("A"));
    assert!(held <= HELD_DEVICE_BYTES_MAX && held > HELD_DEVICE_BYTES_MAX / 2, "{held} bytes");
    second(&store).await;
    assert_eq!(of_b.await.unwrap().unwrap(), Taken::Stored);
    let mut stored = Vec::new();
    for receipt in of_a {
        stored.push(receipt.await.unwrap().is_ok());
    }
    let held = stored.iter().take_while(|stored| **stored).count();
    assert!((5..100).contains(&held), "{held} were held");
    assert!(stored[held..].iter().all(|stored| !stored), "a later one has overtaken those that were turned away");
    assert_eq!(store.submit_patiently(reading("A", 300)).await.unwrap().await.unwrap().unwrap(), Taken::Stored);
}

#[tokio::test(start_paused = true)]
async fn however_many_readings_wait_their_memory_is_bounded_and_the_rest_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    refuse_readings(&store).await;
    let mut receipts = Vec::new();
    let mut n = 0;
    // Many devices: no single one reaches its own bound.
    while store.held.turned_away() < TURNED_AWAY_MAX {
        let mut report = reading("A", n);
        report.device_id = id(&format!("D{n}"));
        receipts.push(store.submit_patiently(report).await.unwrap());
        n += 1;
    }
    assert!(store.held.bytes() <= HELD_BYTES_MAX && store.held.bytes() > HELD_BYTES_MAX / 2);
    let late = store.submit_patiently(reading("B", 1));
    tokio::pin!(late);
    assert!(futures_util::poll!(late.as_mut()).is_pending(), "no place for one receipt more");
    drop(receipts);
    let after = store.submit_patiently(reading("A", 2));
    assert!(after.await.unwrap().try_recv().is_err(), "whose senders have gone give their places");
    second(&store).await;
    assert_eq!(late.await.unwrap().await.unwrap().unwrap(), Taken::Stored);
}

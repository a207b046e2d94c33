//! Readings through the whole store: late, retained, and over a restart.

use super::*;

fn retained(n: i64, psi: f64, timed: bool) -> FloorReport {
    let FloorReport::Telemetry(mut report) = sample("A", n, psi) else { panic!("a sample is telemetry") };
    report.retained = true;
    if !timed {
        report.device_time = None;
    }
    FloorReport::Telemetry(report)
}

async fn newest(store: &Store) -> (Option<Timestamp>, Option<Reading>) {
    let view = store.device(&id("A")).await.unwrap().unwrap();
    (view.last_reading_at, view.last_readings.get("pressure_psi"))
}

fn at(n: i64) -> Option<Timestamp> {
    Some(Timestamp::from_millis(T0 + n))
}

#[tokio::test(start_paused = true)]
async fn a_retained_reading_shows_if_it_has_a_time_and_nothing_newer_is_known_and_says_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let before = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!(take(&store, retained(0, 1.0, false)).await, Taken::Duplicate);
    assert_eq!(newest(&store).await, (None, None), "without a time it may be of any day");
    assert_eq!(take(&store, retained(300_001, 1.0, true)).await, Taken::Duplicate);
    assert_eq!(newest(&store).await, (None, None), "a time that far ahead is not believed");

    for psi in [190.0, 191.0] {
        let n = if psi > 190.0 { -50_000 } else { -60_000 };
        assert_eq!(take(&store, retained(n, psi, true)).await, Taken::Stored);
        assert_eq!(newest(&store).await, (at(n), Reading::new(psi)));
    }
    assert_eq!(take(&store, retained(-55_000, 5.0, true)).await, Taken::Duplicate);
    assert_eq!(newest(&store).await, (at(-50_000), Reading::new(191.0)));

    let after = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!((after.status, after.observed, after.last_seen_at), (before.status, before.observed, None));
    assert_eq!(after.status_reason, before.status_reason, "no alarm, no presence");
    tokio::time::advance(Duration::from_secs(61)).await;
    store.tick().await.unwrap();
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.samples_open, stats.blocks_waiting, stats.telemetry_committed), (0, 0, 0), "no history");

    let again = open(killed(folder.path()).path());
    assert_eq!(newest(&again).await, (at(-50_000), Reading::new(191.0)), "it was acknowledged, so it is on disk");
}

#[tokio::test]
async fn the_newest_reading_never_moves_back_whatever_comes_and_however_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, sample("A", 0, 141.0)).await;
    let late = [sample("A", -60_000, 199.0), sample("A", -1, 199.0), retained(-1, 199.0, true)];
    for report in late.clone() {
        take(&store, report).await;
        assert_eq!(newest(&store).await, (at(0), Reading::new(141.0)));
    }
    let image = killed(folder.path());
    let killed_store = open(image.path());
    store.close().await.unwrap();
    let closed_store = open(folder.path());
    for store in [&killed_store, &closed_store] {
        assert_eq!(newest(store).await, (at(0), Reading::new(141.0)));
        for n in [-30_000, -2] {
            assert_eq!(take(store, sample("A", n, 198.0)).await, Taken::Stored);
        }
        for report in late.clone() {
            assert_eq!(take(store, report).await, Taken::Duplicate);
        }
        assert_eq!(newest(store).await, (at(0), Reading::new(141.0)));
        let states = store.peek_states(false, 10).await.unwrap();
        let sent = states.iter().find(|state| state.view.device_id == id("A")).unwrap();
        assert_eq!(sent.view.last_reading_at, at(0), "what goes to the table, too");
        assert_ne!(sent.view.status, DeviceStatus::Warning, "late ones above the threshold are no alarm");
        take(store, sample("A", 1, 142.0)).await;
        assert_eq!(newest(store).await, (at(1), Reading::new(142.0)));
    }
}

#[tokio::test]
async fn a_warning_goes_on_over_a_restart_with_its_beginning_and_ends_by_a_reading() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    take(&store, state("A", true)).await;
    for n in 0..2 {
        take(&store, sample("A", n, 160.0)).await;
    }
    let warned = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!(
        (warned.status, warned.status_reason.as_deref()),
        (DeviceStatus::Warning, Some("pressure_psi 160 > 150"))
    );
    store.close().await.unwrap();

    clock.put(Timestamp::from_millis(T0 + 60_000));
    let store = Store::open(config(folder.path()), clock).unwrap();
    let view = store.device(&id("A")).await.unwrap().unwrap();
    assert_eq!((view.status, view.status_reason.as_deref()), (warned.status, warned.status_reason.as_deref()));
    assert_eq!(view.status_since, warned.status_since);
    // Below the threshold but not below its deadband: it goes on; nothing comes that would end it at once.
    take(&store, sample("A", 2, 149.9)).await;
    assert_eq!(store.device(&id("A")).await.unwrap().unwrap().status, DeviceStatus::Warning);
}

//! The store under clocks that are not known, put back, or wrong.

use super::*;
use crate::clock::{BootTime, Quality};

const YEAR_MS: i64 = 365 * 86_400_000;

/// A machine without a battery for its clock has just started.
fn booted_in_1970() -> Clock {
    let clock = Clock::set_to(Timestamp::EPOCH);
    clock.reboot(Timestamp::EPOCH);
    clock
}

/// Time passes on every clock.
async fn pass(clock: &Clock, time: Duration) {
    clock.pass(time);
    tokio::time::advance(time).await;
}

/// A reading without a time of its own, as the intake stamps it.
fn reading(clock: &Clock, psi: f64) -> FloorReport {
    let FloorReport::Telemetry(report) = sample("A", 0, psi) else { unreachable!() };
    let moment = clock.moment();
    FloorReport::Telemetry(TelemetryReport {
        device_time: None,
        received_at: moment.wall,
        guess_base_ms: moment.guess_base(),
        ..report
    })
}

async fn view(store: &Store) -> DeviceView {
    store.device(&id("A")).await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_time_goes_on_from_where_it_was_known_after_a_power_cut() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    store.tick().await.unwrap();
    for _ in 0..120 {
        pass(&clock, Duration::from_secs(1)).await;
        store.tick().await.unwrap();
    }
    let copy = killed(folder.path());
    let after = booted_in_1970();
    let store = Store::open(config(copy.path()), after.clone()).unwrap();
    let (now, last) = (after.now().as_millis(), T0 + 120_000);
    assert!((last - 60_000..=last).contains(&now), "{} s before the cut", (last - now) / 1_000);
    assert_eq!(after.moment().quality, Quality::Unsynchronised);
    store.close().await.unwrap();
    let again = booted_in_1970();
    drop(Store::open(config(copy.path()), again.clone()).unwrap());
    assert!(again.now().as_millis() >= now, "a stop keeps it too");
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_the_gateway_alone_still_knows_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let before = clock();
    let store = Store::open(config(folder.path()), before.clone()).unwrap();
    before.pass_boot(Duration::from_secs(5));
    store.close().await.unwrap();
    let after = clock();
    after.pass_boot(Duration::from_secs(65));
    after.set_trusted(false);
    after.put(Timestamp::EPOCH);
    drop(Store::open(config(folder.path()), after.clone()).unwrap());
    assert_eq!((after.now(), after.moment().quality), (Timestamp::from_millis(T0 + 60_000), Quality::HeldOver));
}

#[tokio::test]
async fn the_journal_tells_when_a_command_came_on_the_clock_that_nothing_steps() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    let received = BootTime { ms: 4_711, ..clock.boot() };
    store.journal(NewExecution { received_boot: Some(received), ..command("A", "reboot", "c1") }).await.unwrap();
    store.journal(command("B", "reboot", "c2")).await.unwrap();
    store.close().await.unwrap();
    let store = open(folder.path());
    let received_at: Vec<_> = store.waiting().await.unwrap().iter().map(|open| open.received_boot).collect();
    assert_eq!(received_at, [Some(received), None]);
}

#[tokio::test(start_paused = true)]
async fn what_a_device_shows_moves_with_the_clock_once_the_time_is_known() {
    for ahead in [-YEAR_MS, YEAR_MS] {
        let folder = tempfile::tempdir().unwrap();
        let clock = booted_in_1970();
        clock.put(Timestamp::from_millis(T0 + ahead));
        let store = Store::open(config(folder.path()), clock.clone()).unwrap();
        take(&store, reading(&clock, 140.0)).await;
        pass(&clock, Duration::from_secs(70)).await;
        store.tick().await.unwrap();
        assert_eq!(store.stats().await.unwrap().samples_provisional, 1);
        assert_eq!(store.peek_blocks(10).await.unwrap(), [], "nothing goes up under a guess");
        let guess = view(&store).await;
        assert_eq!(guess.last_seen_at, Some(Timestamp::from_millis(T0 + ahead)));
        clock.put(Timestamp::from_millis(T0 + 70_000));
        clock.set_trusted(true);
        store.tick().await.unwrap();
        let known = view(&store).await;
        let t0 = Timestamp::from_millis(T0);
        assert_eq!((known.last_seen_at, known.last_reading_at), (Some(t0), Some(t0)));
        // Online at the reading, offline by silence 70 s later.
        assert_eq!(known.status_since, Timestamp::from_millis(T0 + 70_000));
        assert!(known.version > guess.version, "the table learns it");
        let blocks = store.peek_blocks(10).await.unwrap();
        assert_eq!((blocks.len(), blocks[0].first, blocks[0].unsynchronised), (1, t0, false));
        let stats = store.stats().await.unwrap();
        assert_eq!((stats.samples_provisional, stats.oldest_waiting_seconds), (0, 70), "ahead by {ahead}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_put_back_hides_neither_the_newest_reading_nor_the_newest_command() {
    for back in [1_000, 60_000, 3_600_000, 86_400_000, YEAR_MS] {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock();
        let store = Store::open(config(folder.path()), clock.clone()).unwrap();
        let journal = async |text: &str, at: Timestamp| {
            let mut entry = command("A", "update_config", text);
            (entry.record.received_at, entry.record.expires_at) = (at, at.saturating_add(Duration::from_secs(9)));
            store.journal(entry).await.unwrap();
        };
        take(&store, reading(&clock, 140.0)).await;
        journal("c1", clock.now()).await;
        clock.step(-back);
        take(&store, reading(&clock, 141.0)).await;
        journal("c2", clock.now()).await;
        let view = view(&store).await;
        assert_eq!(view.last_readings.get("pressure_psi"), Reading::new(141.0), "put back by {back}");
        assert_eq!(view.last_seen_at, Some(clock.now()));
        assert_eq!(view.last_execution.unwrap().command_id.as_str(), "c2", "put back by {back}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_step_of_the_wall_clock_makes_a_device_silent_or_keeps_it_present() {
    for step in [1_000, 60_000, 3_600_000, 86_400_000, YEAR_MS] {
        for step in [step, -step] {
            let folder = tempfile::tempdir().unwrap();
            let clock = clock();
            let store = Store::open(config(folder.path()), clock.clone()).unwrap();
            take(&store, reading(&clock, 140.0)).await;
            clock.step(step);
            pass(&clock, Duration::from_millis(14_900)).await;
            store.tick().await.unwrap();
            assert_eq!(view(&store).await.status, DeviceStatus::Online, "stepped by {step}");
            clock.step(step);
            pass(&clock, Duration::from_millis(200)).await;
            store.tick().await.unwrap();
            assert_eq!(view(&store).await.status, DeviceStatus::Offline, "stepped by {step}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_is_closed_by_its_age_and_no_sooner_or_later_for_a_step() {
    for step in [60_000, -60_000, YEAR_MS, -YEAR_MS] {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock();
        let store = Store::open(config(folder.path()), clock.clone()).unwrap();
        take(&store, reading(&clock, 140.0)).await;
        clock.step(step);
        pass(&clock, Duration::from_millis(59_500)).await;
        store.tick().await.unwrap();
        assert_eq!(store.stats().await.unwrap().blocks_waiting, 0, "stepped by {step}");
        pass(&clock, Duration::from_millis(500)).await;
        store.tick().await.unwrap();
        assert_eq!(store.stats().await.unwrap().blocks_waiting, 1, "stepped by {step}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_floor_with_a_flipped_bit_tells_nothing_and_costs_no_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(config(folder.path()), clock()).unwrap();
    store.tick().await.unwrap();
    store.close().await.unwrap();
    for damage in ["boot_id = CAST(x'3034ff34' AS TEXT)", "boot_id = 'no id'", "boot_ms = -1"] {
        let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
        assert_eq!(connection.execute(&format!("UPDATE clock_floor SET {damage}"), []).unwrap(), 1);
        drop(connection);
        let after = booted_in_1970();
        let store =
            Store::open(config(folder.path()), after.clone()).unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert!(store.inhibition().now().is_none(), "{damage}");
        // The next floor takes its place.
        pass(&after, Duration::from_secs(120)).await;
        store.tick().await.unwrap();
        store.close().await.unwrap();
    }
}

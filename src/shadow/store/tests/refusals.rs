//! Floods of refused commands: what is kept, what is forgotten, and that nothing of it runs or hides an outcome.

use floorgate_model::command::LIFETIME_MAX;
use proptest::prelude::*;

use super::*;
use crate::shadow::journal::{KEPT_MAX, OUTCOMES_WAITING_MAX};
use crate::shadow::refusals::{DEVICE_REFUSALS_MAX, REFUSAL_BYTES_MAX, REFUSALS_MAX};

const WEEK: i64 = 7 * 86_400_000;

fn cid(text: &str) -> CommandId {
    CommandId::new(text).unwrap()
}

/// Refused on arrival at `at` (milliseconds after T0), issued then.
fn refused(device: &str, text: &str, at: i64, parameter_bytes: usize) -> NewExecution {
    let mut entry = command(device, "reboot", text);
    let record = &mut entry.record;
    record.parameters.insert("p".to_owned(), "x".repeat(parameter_bytes).into());
    (record.status, record.reason) = (ExecutionStatus::Rejected, Some(Reason::Maintenance));
    record.issued_at = Timestamp::from_millis(T0 + at);
    record.expires_at = Timestamp::from_millis(T0 + at + 120_000);
    record.received_at = record.issued_at;
    entry
}

fn issued(device: &str, text: &str, at: i64) -> NewExecution {
    let mut entry = command(device, "reboot", text);
    entry.record.issued_at = Timestamp::from_millis(T0 + at);
    entry.record.expires_at = Timestamp::from_millis(T0 + at + 120_000);
    entry
}

async fn reason_of(store: &Store, entry: NewExecution) -> Option<Reason> {
    match store.journal(entry).await.unwrap() {
        Journalled::New(record) => record.reason,
        known => panic!("{known:?}"),
    }
}

async fn succeed(store: &Store, device: &str, text: &str) {
    store.claim(&id(device), &cid(text)).await.unwrap().unwrap();
    store.finish(&id(device), &cid(text), ending(ExecutionStatus::Succeeded, None)).await.unwrap().unwrap();
}

/// What waits for a lane, in its order.
async fn waiting(store: &Store, lane: Lane) -> Vec<ExecutionRecord> {
    store.peek_outbox(lane, 100_000).await.unwrap().into_iter().map(|entry| entry.record).collect()
}

fn kept(folder: &Path) -> (i64, i64) {
    let connection = rusqlite::Connection::open(folder.join("state.db")).unwrap();
    let text = "SELECT count(*), coalesce(sum(length(parameters)), 0) FROM execution WHERE refused > 0";
    connection.query_row(text, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2))]
    /// The table is away for a week; a sender never stops sending what is refused, now and then a command is executed.
    #[test]
    fn a_week_of_refused_commands_fills_no_disk_and_hides_no_outcome(
        sizes in proptest::collection::vec(0usize..8_000, 7),
        executed_every in 20usize..60,
        results_are_away in any::<bool>(),
    ) {
        const STEPS: usize = 2_000;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let clock = clock();
            let store = Store::open(config(folder.path()), clock.clone()).unwrap();
            let (mut executed, mut flooded) = (Vec::new(), 0);
            for step in 0..STEPS {
                let at = WEEK / i64::try_from(STEPS).unwrap() * i64::try_from(step).unwrap();
                clock.put(Timestamp::from_millis(T0 + at));
                if step % executed_every == 0 {
                    let name = format!("e{step}");
                    assert_eq!(reason_of(&store, issued("B", &name, at)).await, None, "accepted in the flood");
                    succeed(&store, "B", &name).await;
                    executed.push(name);
                } else {
                    let device = if step % 7 == 0 { "B" } else { "A" };
                    let entry = refused(device, &format!("r{step}"), at, 8_000 - sizes[step % sizes.len()] / 4);
                    store.journal(entry).await.unwrap();
                    flooded += 1;
                }
                if step % 50 == 0 {
                    tokio::time::advance(Duration::from_secs(60)).await;
                    store.tick().await.unwrap();
                }
                if !results_are_away {
                    let seqs = store.peek_outbox(Lane::Result, 20).await.unwrap().iter().map(|entry| entry.seq).collect();
                    store.confirm_outbox(Lane::Result, seqs).await.unwrap();
                }
            }
            let records = waiting(&store, Lane::Table).await;
            let (outcomes, refusals) = records.split_at(executed.len());
            let names: Vec<_> = outcomes.iter().map(|record| record.command_id.as_str()).collect();
            assert_eq!(names, executed, "every outcome, in order, before the first refusal");
            assert!(outcomes.iter().all(|record| record.status == ExecutionStatus::Succeeded));
            assert!(refusals.iter().all(|record| record.status == ExecutionStatus::Rejected));
            let stats = store.stats().await.unwrap();
            assert_eq!(stats.refused_not_announced + refusals.len() as u64, flooded, "each is kept or counted");
            store.close().await.unwrap();
            let (count, bytes) = kept(folder.path());
            assert!(count <= 2 * DEVICE_REFUSALS_MAX, "{count}");
            assert!(bytes <= REFUSAL_BYTES_MAX, "{bytes}");
            let file = std::fs::metadata(folder.path().join("state.db")).unwrap().len();
            assert!(file < 5 << 20, "{file} bytes after {flooded} refusals");
            let again = open(folder.path());
            assert_eq!(again.stats().await.unwrap().refused_not_announced, stats.refused_not_announced);
        });
    }
}

#[tokio::test]
async fn a_forgotten_refusal_that_comes_again_does_not_run_and_a_newer_command_does() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    for n in 0..DEVICE_REFUSALS_MAX + 10 {
        store.journal(refused("A", &format!("r{n}"), n, 10)).await.unwrap();
    }
    clock.put(Timestamp::from_millis(T0 + 5_000));
    // What spoke against them is over; the same messages are delivered once more.
    let again = |n: i64| NewExecution {
        record: ExecutionRecord {
            status: ExecutionStatus::Created,
            reason: None,
            ..refused("A", &format!("r{n}"), n, 10).record
        },
        checked_parameters: Map::new(),
    };
    let known = store.journal(again(60)).await.unwrap();
    assert!(matches!(known, Journalled::Duplicate(record) if record.reason == Some(Reason::Maintenance)));
    for n in [9, 0] {
        let Journalled::New(record) = store.journal(again(n)).await.unwrap() else { panic!("it was forgotten") };
        assert_eq!((record.status, record.reason), (ExecutionStatus::Rejected, Some(Reason::RateLimited)), "{n}");
        assert!(record.message.unwrap().contains("send it again with the time of now"));
    }
    assert!(store.waiting().await.unwrap().is_empty());
    assert_eq!(reason_of(&store, issued("A", "newer", 4_000)).await, None);
    assert_eq!(reason_of(&store, issued("B", "other", 0)).await, None, "another device's");
    store.close().await.unwrap();
    let store = Store::open(config(folder.path()), clock).unwrap();
    assert_eq!(reason_of(&store, issued("A", "after-restart", 5)).await, Some(Reason::RateLimited));
}

#[tokio::test]
async fn neither_nonsense_nor_a_time_far_ahead_closes_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    for n in 0..DEVICE_REFUSALS_MAX * 2 {
        let mut nonsense = refused("A", &format!("m{n}"), 30_000, 10);
        nonsense.record.reason = Some(Reason::Malformed);
        store.journal(nonsense).await.unwrap();
        store.journal(refused("A", &format!("f{n}"), 61_000, 10)).await.unwrap();
    }
    assert_eq!(reason_of(&store, issued("A", "c1", 0)).await, None);
    succeed(&store, "A", "c1").await;
    // Believable when they were forgotten; then our clock is put back by a day.
    for n in 0..DEVICE_REFUSALS_MAX * 2 {
        store.journal(refused("A", &format!("b{n}"), 10_000, 10)).await.unwrap();
    }
    assert_eq!(reason_of(&store, issued("A", "c2", 0)).await, Some(Reason::RateLimited));
    clock.put(Timestamp::from_millis(T0 - 86_400_000));
    assert_eq!(reason_of(&store, issued("A", "c3", -86_400_000)).await, None);
}

#[tokio::test]
async fn a_flood_for_many_devices_costs_those_that_have_most() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let model = config.devices[0].clone();
    config.devices.extend((0..12).map(|n| Attachment { device_id: id(&format!("D{n}")), ..model.clone() }));
    let store = Store::open(config, clock()).unwrap();
    store.journal(refused("A", "small", 0, 10)).await.unwrap();
    for n in 0..1_300 {
        store.journal(refused(&format!("D{}", n % 12), &format!("r{n}"), 0, 10)).await.unwrap();
    }
    let records = waiting(&store, Lane::Table).await;
    assert_eq!(records.len(), usize::try_from(REFUSALS_MAX).unwrap());
    assert_eq!(records[0].command_id.as_str(), "small", "the neighbour's, though the oldest of all");
    for n in 0..1_000 {
        store.journal(refused(&format!("D{}", n % 12), &format!("l{n}"), 0, 8_000)).await.unwrap();
    }
    let records = waiting(&store, Lane::Result).await;
    assert_eq!(records[0].command_id.as_str(), "small");
    store.close().await.unwrap();
    let (count, bytes) = kept(folder.path());
    assert!((450..=520).contains(&count) && bytes <= REFUSAL_BYTES_MAX, "{count}, {bytes}");
}

#[tokio::test]
async fn an_outcome_goes_before_every_refusal_and_a_terminal_status_is_never_followed_by_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for n in 0..50 {
        store.journal(refused("A", &format!("r{n}"), n, 10)).await.unwrap();
    }
    store.journal(issued("A", "c1", 1_000)).await.unwrap();
    store.journal(issued("A", "c2", 1_000)).await.unwrap();
    for lane in [Lane::Result, Lane::Table] {
        let first: Vec<_> = waiting(&store, lane).await.into_iter().take(3).map(|record| record.command_id).collect();
        assert_eq!(first, [cid("c1"), cid("c2"), cid("r0")], "{lane:?}");
    }
    let read_before = store.peek_outbox(Lane::Table, 1).await.unwrap();
    succeed(&store, "A", "c1").await;
    store.confirm_outbox(Lane::Table, vec![read_before[0].seq]).await.unwrap();
    let of_c1: Vec<_> = waiting(&store, Lane::Table).await.into_iter().filter(|r| r.command_id == cid("c1")).collect();
    assert_eq!(of_c1.iter().map(|record| record.status).collect::<Vec<_>>(), [ExecutionStatus::Succeeded]);
}

/// Multiplies the one ended execution of the file to `count`.
fn multiply(folder: &Path, count: i64, announced: bool) {
    let connection = rusqlite::Connection::open(folder.join("state.db")).unwrap();
    let names = "device_id, command, parameters, issued_at, expires_at, received_at, status, completed_at, gateway_id, \
        checked_parameters";
    let text = format!(
        "WITH RECURSIVE n (n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < {count})
         INSERT INTO execution (command_id, {names}) SELECT 'x' || n, {names} FROM execution, n WHERE seq = 1;
         DELETE FROM outbox;"
    );
    connection.execute_batch(&text).unwrap();
    if !announced {
        let text = "INSERT INTO outbox (lane, execution, since) SELECT 'table', seq, 0 FROM execution";
        connection.execute_batch(text).unwrap();
    }
}

#[tokio::test]
async fn while_ten_thousand_outcomes_wait_no_further_command_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    assert_eq!(reason_of(&store, issued("A", "x1", 0)).await, None);
    succeed(&store, "A", "x1").await;
    store.close().await.unwrap();
    multiply(folder.path(), i64::try_from(OUTCOMES_WAITING_MAX).unwrap(), false);
    let store = open(folder.path());
    let Journalled::New(record) = store.journal(issued("A", "one-more", 0)).await.unwrap() else { panic!("new") };
    assert_eq!(record.reason, Some(Reason::QueueFull));
    assert!(record.message.unwrap().contains("10000 outcomes wait"));
    let seqs = store.peek_outbox(Lane::Table, 1).await.unwrap().iter().map(|entry| entry.seq).collect();
    store.confirm_outbox(Lane::Table, seqs).await.unwrap();
    assert_eq!(reason_of(&store, issued("A", "and-another", 0)).await, None);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_most_that_is_kept_an_id_still_protects_for_the_longest_life_of_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    assert_eq!(reason_of(&store, issued("A", "x1", 0)).await, None);
    succeed(&store, "A", "x1").await;
    store.close().await.unwrap();
    multiply(folder.path(), KEPT_MAX + 50, true);
    // A flood of refusals pushes no outcome out: those are not counted.
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    for n in 0..200 {
        store.journal(refused("A", &format!("r{n}"), n, 10)).await.unwrap();
    }
    let life = i64::try_from(LIFETIME_MAX.as_millis()).unwrap();
    for (at, left) in [(life, KEPT_MAX + 50), (life + 1, KEPT_MAX), (life + 2, KEPT_MAX)] {
        clock.put(Timestamp::from_millis(T0 + at));
        tokio::time::advance(Duration::from_secs(60)).await;
        store.tick().await.unwrap();
        // Commits at once and takes what was tidied along.
        store.save_session("c".to_owned(), Some(vec![])).await.unwrap();
        let connection = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
        let text = "SELECT count(*) FROM execution WHERE refused = 0";
        assert_eq!(connection.query_row(text, [], |row| row.get::<_, i64>(0)).unwrap(), left, "after {at} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_that_were_announced_go_after_seven_days() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let store = Store::open(config(folder.path()), clock.clone()).unwrap();
    for n in 0..20 {
        store.journal(refused("A", &format!("r{n}"), n, 10)).await.unwrap();
    }
    for lane in [Lane::Result, Lane::Table] {
        let seqs = store.peek_outbox(lane, 19).await.unwrap().iter().map(|entry| entry.seq).collect();
        store.confirm_outbox(lane, seqs).await.unwrap();
    }
    for (at, left) in [(WEEK - 1_000, 20), (WEEK + 1_000, 1)] {
        clock.put(Timestamp::from_millis(T0 + at));
        tokio::time::advance(Duration::from_secs(60)).await;
        store.tick().await.unwrap();
        assert_eq!(store.executions(None, 100).await.unwrap().len(), left);
    }
}

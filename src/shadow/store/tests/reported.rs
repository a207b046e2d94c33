//! What a device says of itself, live, in an answer, or long ago.

use std::collections::BTreeMap;

use super::*;

fn values(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn says(retained: bool, boot_count: u64, firmware: &str, rate: &str) -> FloorReport {
    let FloorReport::State(report) = state("A", true) else { unreachable!() };
    FloorReport::State(StateReport {
        retained,
        boot_count: Some(boot_count),
        firmware_version: Some(firmware.to_owned()),
        configuration: Some(values(&[("rate", rate)])),
        ..report
    })
}

/// Boot count, firmware, rate.
async fn known(store: &Store) -> (Option<u64>, Option<String>, Option<String>) {
    let view = store.device(&id("A")).await.unwrap().unwrap();
    let rate = view.configuration.and_then(|configuration| configuration.get("rate").cloned());
    (view.boot_count, view.firmware_version, rate)
}

fn expected(boot_count: u64, firmware: &str, rate: &str) -> (Option<u64>, Option<String>, Option<String>) {
    (Some(boot_count), Some(firmware.to_owned()), Some(rate.to_owned()))
}

#[tokio::test]
async fn a_retained_state_fills_what_is_unknown_and_replaces_nothing_newer() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, says(true, 3, "1.0", "5")).await;
    assert_eq!(known(&store).await, expected(3, "1.0", "5"), "more than how it was commissioned");
    take(&store, says(false, 4, "1.1", "6")).await;
    let told = Answer { configuration: Some(values(&[("rate", "9")])), ..answer("c1", AnswerStatus::Succeeded) };
    take(&store, FloorReport::Answer(told)).await;
    for boot_count in [3, 4] {
        take(&store, says(true, boot_count, "1.0", "5")).await;
        assert_eq!(known(&store).await, expected(4, "1.1", "9"));
    }
    store.close().await.unwrap();
    let store = open(folder.path());
    take(&store, says(true, 4, "1.1", "6")).await;
    assert_eq!(known(&store).await, expected(4, "1.1", "9"), "nor after a restart");
}

#[tokio::test]
async fn a_retained_state_of_a_later_boot_is_news() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, says(false, 4, "1.1", "6")).await;
    take(&store, says(true, 5, "2.0", "7")).await;
    assert_eq!(known(&store).await, expected(5, "2.0", "7"));
}

#[tokio::test]
async fn only_a_live_word_counts_as_reported_since_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, state("A", true)).await;
    take(&store, says(true, 8, "1.0", "5")).await;
    let at = async || store.device(&id("A")).await.unwrap().unwrap().last_configuration_at;
    assert_eq!(at().await, None);
    let told = Answer { configuration: Some(values(&[("rate", "9")])), ..answer("c1", AnswerStatus::Succeeded) };
    take(&store, FloorReport::Answer(told)).await;
    assert_eq!(at().await, Some(Timestamp::from_millis(T0)));
}

#[tokio::test]
async fn the_date_of_a_calibration_stays_until_the_device_reports_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    take(&store, says(false, 4, "1.0", "5")).await;
    let date = values(&[("calibration_date", "2026-11-22")]);
    effects::end_with(&store, "recalibrate", "c1", Effect::Configuration(date)).await;
    take(&store, says(false, 4, "1.0", "6")).await;
    let configuration = async || store.device(&id("A")).await.unwrap().unwrap().configuration.unwrap();
    assert_eq!(configuration().await, values(&[("calibration_date", "2026-11-22"), ("rate", "6")]));
    let own = values(&[("calibration_date", "2026-11-23")]);
    let told = Answer { configuration: Some(own.clone()), ..answer("c1", AnswerStatus::Succeeded) };
    take(&store, FloorReport::Answer(told)).await;
    assert_eq!(configuration().await, own, "other keys follow the device");
}

#[tokio::test]
async fn a_repeated_command_is_announced_on_both_lanes_and_its_device_goes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store.journal(command("A", "recalibrate", "c1")).await.unwrap();
    for lane in [Lane::Result, Lane::Table] {
        let seqs = store.peek_outbox(lane, 10).await.unwrap().iter().map(|entry| entry.seq).collect();
        store.confirm_outbox(lane, seqs).await.unwrap();
    }
    for state in store.peek_states(false, 10).await.unwrap() {
        store.confirm_state(&state.view.device_id, state.view.version).await.unwrap();
    }
    assert!(matches!(store.journal(command("A", "recalibrate", "c1")).await.unwrap(), Journalled::Duplicate(_)));
    for lane in [Lane::Result, Lane::Table] {
        assert_eq!(store.peek_outbox(lane, 10).await.unwrap().len(), 1, "{lane:?}");
    }
    let urgent = store.peek_states(true, 10).await.unwrap();
    assert_eq!(urgent.iter().map(|state| state.view.device_id.as_str()).collect::<Vec<_>>(), ["A"]);
}

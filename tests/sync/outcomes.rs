//! Outcomes on the real table: what is taken back, whose entry it is, and what a missing table hides.

use floorgate::sync::table::Settled;

use super::*;

#[tokio::test]
async fn where_no_configuration_is_known_a_refused_commands_members_are_taken_back() {
    let bench = Bench::new("bare").await;
    let bare = |version| {
        let mut state = state(version);
        state.view.configuration = None;
        state
    };
    bench.table.write_state(&bare(1)).await.unwrap();
    bench.lambda("update_config", &[("rate", "999"), ("mode", "x")], "2026-11-22T10:00:00.100000+00:00").await;
    let mut refused = execution("update_config", json!({"rate": "999", "mode": "x"}), ExecutionStatus::Rejected);
    refused.record.command_id = CommandId::new("first").unwrap();
    let view = bare(1).view;
    // A later command claims one of them before the first one's end is written.
    bench.lambda("update_config", &[("rate", "7")], "2026-11-22T10:00:20.000000+00:00").await;
    assert_eq!(bench.table.write_execution(&refused, Some(&view)).await, Ok(ExecutionWritten::Done));
    let item = bench.device().await;
    assert_eq!(text(&item, &["configuration", "rate"]), Some("7"), "the later one's");
    assert_eq!(text(&item, &["configuration", "mode"]), None);
    assert_eq!(text(&item, &["last_command", "status"]), Some("delivered"));

    let mut later = execution("update_config", json!({"rate": "7"}), ExecutionStatus::TimedOut);
    later.record.issued_at = at(20_100);
    assert_eq!(bench.table.write_execution(&later, Some(&view)).await, Ok(ExecutionWritten::Done));
    let item = bench.device().await;
    assert!(item["configuration"].as_m().unwrap().is_empty(), "the map itself stays");
    assert_eq!(text(&item, &["last_command", "status"]), Some("timed_out"));
    assert_eq!(bench.table.write_state(&bare(2)).await, Ok(StateWritten::Current));

    // Written once more after the outcome; an older view leaves it to a fresher one.
    bench.lambda("update_config", &[("rate", "7")], "2026-11-22T10:00:20.000000+00:00").await;
    assert_eq!(bench.table.settle(&later.record, Some(&view)).await, Ok(Settled::Again));
    assert_eq!(bench.table.settle(&later.record, Some(&bare(2).view)).await, Ok(Settled::Done));
    assert!(bench.device().await["configuration"].as_m().unwrap().is_empty());
}

#[tokio::test]
async fn equal_commands_of_a_tool_that_publishes_its_time_are_told_apart() {
    let bench = Bench::new("equal").await;
    bench.table.write_state(&state(1)).await.unwrap();
    let mut first = execution("reboot", json!({}), ExecutionStatus::Failed);
    first.record.command_id = CommandId::new("first").unwrap();
    let mut second = execution("reboot", json!({}), ExecutionStatus::Succeeded);
    second.record.issued_at = at(3_000);
    bench.lambda("reboot", &[], "2026-11-22T10:00:03.000456+00:00").await;
    // The first one's end finds the second one's entry within its window, and takes it for its own.
    for (entry, shown) in [(&first, "failed"), (&second, "succeeded"), (&first, "succeeded")] {
        bench.table.write_execution(entry, None).await.unwrap();
        assert_eq!(text(&bench.device().await, &["last_command", "status"]), Some(shown));
    }
}

#[tokio::test]
async fn a_missing_table_of_commands_hides_no_outcome_and_keeps_the_record() {
    let bench = Bench::new("lacking").await;
    let lacking = DynamoConfig { commands_table: Some("lacking-nowhere".into()), ..bench.config.clone() };
    let table = DynamoTable::new(lacking, Clock::set_to(at(0))).unwrap();
    let failed = execution("reboot", json!({}), ExecutionStatus::Failed);
    let missing = |written| matches!(written, Err(TableError::Misconfigured { .. }));
    assert!(missing(table.write_execution(&failed, None).await), "no item either: told as what can be repaired");
    table.write_state(&state(1)).await.unwrap();
    bench.lambda("reboot", &[], "2026-11-22T10:00:00.100000+00:00").await;
    assert!(missing(table.write_execution(&failed, None).await));
    let item = bench.device().await;
    assert_eq!(text(&item, &["last_command", "status"]), Some("failed"));
    assert_eq!(text(&item, &["last_execution", "status"]), Some("failed"));
}

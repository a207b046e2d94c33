//! What the wait for proof counts and costs, and what a stop waits for.

use super::*;

/// How long a stop takes.
async fn time_to_stop(running: bench::Running) -> Duration {
    let before = Instant::now();
    running.stop().await;
    before.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_floor_where_everybody_reports_costs_an_execution_fifty_looks_a_second() {
    let bench = Bench::with(&["A", "B"]);
    let running = bench.start();
    let id = bench.ask_for("A", Recalibrate).await;
    bench.settle().await;
    let before = bench.log.calls("open_execution");
    for _ in 0..2_000 {
        bench.log.take_state("B", |_| {});
        bench.settle().await;
    }
    let looks = bench.log.calls("open_execution") - before;
    assert!((90..=106).contains(&looks), "{looks} looks in two seconds");
    bench.answer("A", &id, AnswerStatus::Succeeded).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(bench.outcome(&id), (Succeeded, None), "and none is late");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_a_count_a_report_proves_a_reboot_only_after_the_order_left() {
    for unreadable in [false, true] {
        let bench = Bench::with(&["A"]);
        bench.log.change_device("A", |view| view.boot_count = None);
        let running = bench.start();
        bench.manner("A", Manner::Dawdles(seconds(5)));
        let id = bench.ask_for("A", Reboot).await;
        bench.settle().await;
        bench.log.trouble("open_execution", unreadable.then_some(Trouble::Fails));
        bench.pass(seconds(2)).await;
        bench.log.take_state("A", |_| {});
        bench.pass(seconds(4)).await;
        bench.log.heal();
        bench.pass(seconds(2)).await;
        assert_eq!(bench.outcome(&id), (InProgress, None), "unreadable meanwhile: {unreadable}");
        bench.log.take_state("A", |_| {});
        bench.settle().await;
        assert_eq!(bench.outcome(&id), (Succeeded, None), "unreadable meanwhile: {unreadable}");
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_that_answers_has_the_order_whatever_its_driver_knows() {
    let bench = Bench::with(&["A"]);
    bench.log.change_device("A", |view| view.boot_count = None);
    let running = bench.start();
    bench.manner("A", Manner::Hangs);
    let id = bench.ask_for("A", Reboot).await;
    bench.pass(seconds(1)).await;
    bench.answer("A", &id, AnswerStatus::InProgress).await;
    bench.pass(seconds(20)).await;
    bench.log.take_state("A", |_| {});
    bench.settle().await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_about_to_be_sent_is_not_ended_behind_its_own_back() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    bench.log.trouble("claim", Some(Trouble::Hangs));
    let id = bench.ask_for("A", Reboot).await;
    let behind = bench.ask_for("A", Reboot).await;
    bench.pass(seconds(122)).await;
    assert_eq!(bench.outcome(&id).0, ExecutionStatus::Created, "its claim may still be written");
    assert_eq!(bench.outcome(&behind), (Expired, Some(Reason::Expired)));
    running.crash().await;
}

#[tokio::test(start_paused = true)]
async fn an_expiry_that_cannot_be_written_is_written_later_and_sends_nothing() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let first = bench.ask_for("A", Recalibrate).await;
    bench.settle().await;
    let behind = bench.ask_for("A", Reboot).await;
    bench.log.trouble("finish", Some(Trouble::Fails));
    bench.pass(seconds(130)).await;
    assert_eq!(bench.outcome(&behind).0, ExecutionStatus::Created);
    bench.log.heal();
    bench.pass(seconds(1)).await;
    assert_eq!(bench.outcome(&behind), (Expired, Some(Reason::Expired)));
    bench.answer("A", &first, AnswerStatus::Succeeded).await;
    bench.pass(seconds(2)).await;
    assert_eq!(bench.sends(&behind), 0);
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_two_seconds_for_a_driver_and_for_nothing_else() {
    for (manner, longest) in [
        (Manner::Acknowledges, 0),
        (Manner::Loses, 0),
        (Manner::Dawdles(seconds(1)), 1_000),
        (Manner::Dawdles(seconds(60)), 2_000),
        (Manner::Hangs, 2_000),
    ] {
        let bench = Bench::with(&["A"]);
        let running = bench.start();
        bench.manner("A", manner);
        let id = bench.ask_for("A", Recalibrate).await;
        let behind = bench.ask_for("A", Recalibrate).await;
        bench.settle().await;
        let took = time_to_stop(running).await;
        assert!(took <= Duration::from_millis(longest), "{manner:?}: {took:?}");
        assert_eq!((bench.outcome(&id).0, bench.sends(&id)), (InProgress, 1), "{manner:?}");
        assert_eq!((bench.outcome(&behind).0, bench.sends(&behind)), (ExecutionStatus::Created, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_says_during_a_stop_that_nothing_left_is_believed() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    bench.manner("A", Manner::GoesAway(seconds(1)));
    let id = bench.ask_for("A", Reboot).await;
    bench.settle().await;
    let took = time_to_stop(running).await;
    assert!(took <= seconds(1), "{took:?}");
    assert_eq!(bench.outcome(&id), (Failed, Some(Reason::DeviceOffline)));
}

#[tokio::test(start_paused = true)]
async fn during_a_stop_nothing_new_is_sent() {
    let bench = Bench::with(&["A", "B"]);
    let running = bench.start();
    bench.manner("A", Manner::Hangs);
    bench.ask_for("A", Recalibrate).await;
    bench.settle().await;
    bench.log.trouble("claim", Some(Trouble::Takes(seconds(1))));
    let id = bench.ask_for("B", Recalibrate).await;
    bench.settle().await;
    assert_eq!(bench.outcome(&id), (InProgress, None), "the intent is written");
    let took = time_to_stop(running).await;
    assert!(took >= seconds(1), "the other driver was waited for: {took:?}");
    assert_eq!((bench.outcome(&id), bench.sends(&id)), ((InProgress, None), 0));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_keeps_no_gateway_from_stopping() {
    for method in ["in_progress", "waiting", "device", "claim", "open_execution", "finish"] {
        let bench = Bench::with(&["A"]);
        bench.log.trouble(method, Some(Trouble::Hangs));
        let running = bench.start();
        for command in [SetStatus, Recalibrate, Reboot] {
            bench.ask_for_quietly("A", command).await;
        }
        bench.pass(seconds(130)).await;
        let took = time_to_stop(running).await;
        assert!(took <= Duration::from_millis(2_500), "{method}: {took:?}");
    }
}

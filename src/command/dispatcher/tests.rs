//! What becomes of commands on a floor that does as the test says. Crashes are in `crash`, old commands in `stale`, what
//! the wait for proof costs and what a stop waits for in `wait`, everything at once in `model`.

mod bench;
mod crash;
mod model;
mod stale;
mod wait;

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::{AdminState, CommandName, DeviceStatus, ExecutionStatus, Reason};
use serde_json::json;
use tokio::time::Instant;

use crate::command::memory::{Trouble, answer};
use crate::command::{Admitted, CommandLog, verify};
use crate::shadow::{Answer, AnswerStatus};
use bench::{Bench, Manner, parameters_of};

use CommandName::{Reboot, Recalibrate, SetStatus, UpdateConfig};
use ExecutionStatus::{Expired, Failed, InProgress, Indeterminate, Succeeded, TimedOut};

/// Commands that reach a device.
const CARRIED: [CommandName; 3] = [Recalibrate, Reboot, UpdateConfig];

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test(start_paused = true)]
async fn a_recalibration_ends_with_the_devices_word_and_is_dated() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let id = bench.ask("A", "recalibrate", json!({"reference_value": "12.5"})).await;
    bench.settle().await;
    assert_eq!(bench.outcome(&id), (InProgress, None));
    let order = bench.taken().remove(0);
    assert_eq!((order.command, order.command_id.clone()), (Recalibrate, id.clone()));
    assert_eq!(serde_json::Value::from(order.parameters), json!({"reference_value": 12.5}), "in the device's types");
    assert_eq!(order.expires_at, bench.record(&id).expires_at);
    bench.answer("A", &id, AnswerStatus::InProgress).await;
    bench.pass(seconds(290)).await;
    assert_eq!(bench.outcome(&id), (InProgress, None));
    let details = json!({"offset": 0.2}).as_object().unwrap().clone();
    bench.answer_with("A", &id, Answer { details: Some(details.clone()), ..answer(AnswerStatus::Succeeded) }).await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    assert_eq!(bench.record(&id).details, Some(details));
    assert_eq!(bench.log.view("A").configuration.unwrap()["calibration_date"], "2027-01-15");
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_reboot_ends_when_the_device_has_counted_up() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let id = bench.ask_for("A", Reboot).await;
    bench.settle().await;
    bench.log.take_state("A", |_| {});
    bench.pass(seconds(60)).await;
    assert_eq!(bench.outcome(&id), (InProgress, None), "a report of the same count proves nothing");
    bench.comes_up("A").await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_configuration_ends_when_the_device_reports_it() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let id = bench.ask("A", "update_config", json!({"alert_threshold_psi": 145})).await;
    bench.pass(seconds(1)).await;
    let holding = |value: &str| Some(BTreeMap::from([("alert_threshold_psi".to_owned(), value.to_owned())]));
    bench.log.take_state("A", |view| view.configuration = holding("150"));
    bench.settle().await;
    assert_eq!(bench.outcome(&id), (InProgress, None));
    bench.log.take_state("A", |view| view.configuration = holding("145.0"));
    bench.settle().await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_status_is_set_here_and_nothing_reaches_the_device() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    bench.manner("A", Manner::IsAway);
    bench.log.change_device("A", |view| view.observed = DeviceStatus::Offline);
    for (word, state) in [("maintenance", AdminState::Maintenance), ("online", AdminState::InService)] {
        let id = bench.ask("A", "set_status", json!({"status": word})).await;
        bench.settle().await;
        assert_eq!((bench.outcome(&id), bench.log.view("A").admin_state), ((Succeeded, None), state));
    }
    running.stop().await;
    assert!(bench.taken().is_empty());
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_device_that_says_it_failed_ends_the_command_in_its_words() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    for command in CARRIED {
        let id = bench.ask_for("A", command).await;
        bench.settle().await;
        let why = Some("drift exceeds range".to_owned());
        bench.answer_with("A", &id, Answer { reason: why.clone(), ..answer(AnswerStatus::Failed) }).await;
        assert_eq!(bench.outcome(&id), (Failed, Some(Reason::DeviceError)), "{command}");
        assert_eq!(bench.record(&id).message, why);
    }
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nothing_shows_is_unverified_after_its_grace() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    for (command, grace) in [(Reboot, verify::REBOOT_GRACE), (UpdateConfig, verify::CONFIG_GRACE)] {
        let id = bench.ask_for("A", command).await;
        bench.settle().await;
        bench.answer("A", &id, AnswerStatus::Succeeded).await;
        bench.pass(grace - seconds(1)).await;
        assert_eq!(bench.outcome(&id), (InProgress, None), "{command}: the proof may still come");
        bench.pass(seconds(2)).await;
        assert_eq!(bench.outcome(&id), (Succeeded, Some(Reason::Unverified)), "{command}");
    }
    assert_eq!(bench.log.view("A").configuration.unwrap()["sample_rate_seconds"], "10", "what the device said it has");
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn an_unverified_answer_lays_nothing_over_what_the_device_reports_itself() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let id = bench.ask_for("A", UpdateConfig).await;
    bench.pass(seconds(1)).await;
    let reported = BTreeMap::from([("sample_rate_seconds".to_owned(), "5".to_owned())]);
    bench.log.take_state("A", |view| view.configuration = Some(reported.clone()));
    bench.answer("A", &id, AnswerStatus::Succeeded).await;
    bench.pass(seconds(6)).await;
    assert_eq!(bench.outcome(&id), (Succeeded, Some(Reason::Unverified)));
    assert_eq!(bench.log.view("A").configuration, Some(reported));
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn proof_within_the_grace_makes_it_verified() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let id = bench.ask_for("A", Reboot).await;
    bench.settle().await;
    bench.answer("A", &id, AnswerStatus::Succeeded).await;
    bench.pass(seconds(29)).await;
    bench.comes_up("A").await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn silence_ends_at_the_profiles_timeout_and_a_reboot_leaves_its_device_offline() {
    for (command, timeout) in [(Recalibrate, 300), (Reboot, 180), (UpdateConfig, 30)] {
        let bench = Bench::with(&["A"]);
        let running = bench.start();
        let id = bench.ask_for("A", command).await;
        bench.settle().await;
        bench.pass(seconds(timeout - 1)).await;
        assert_eq!(bench.outcome(&id), (InProgress, None), "{command}");
        bench.pass(seconds(1)).await;
        assert_eq!(bench.outcome(&id), (TimedOut, Some(Reason::NoResponse)), "{command}");
        assert_eq!(bench.log.view("A").observed == DeviceStatus::Offline, command == Reboot, "{command}");
        bench.answer("A", &id, AnswerStatus::Succeeded).await;
        assert_eq!(
            bench.outcome(&id),
            (TimedOut, Some(Reason::NoResponse)),
            "{command}: a late answer changes nothing"
        );
        running.stop().await;
        assert_eq!(bench.sends(&id), 1);
        bench.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_driver_says_decides_where_the_device_is_silent() {
    let expected = [
        (Manner::IsAway, (Failed, Some(Reason::DeviceOffline)), 0),
        (Manner::FindsItExpired, (Expired, Some(Reason::Expired)), 0),
        (Manner::Loses, (Indeterminate, Some(Reason::NoResponse)), 300),
        (Manner::Hangs, (Indeterminate, Some(Reason::NoResponse)), 300),
        (Manner::Dawdles(seconds(5)), (TimedOut, Some(Reason::NoResponse)), 300),
    ];
    for (manner, outcome, wait) in expected {
        for command in CARRIED {
            let bench = Bench::with(&["A"]);
            let running = bench.start();
            bench.manner("A", manner);
            let id = bench.ask_for("A", command).await;
            bench.settle().await;
            bench.pass(seconds(wait)).await;
            assert_eq!(bench.outcome(&id), outcome, "{manner:?} {command}");
            let offline = bench.log.view("A").observed == DeviceStatus::Offline;
            assert_eq!(offline, command == Reboot && outcome.0 == TimedOut, "{manner:?} {command}");
            running.stop().await;
            bench.assert_settled();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_acknowledgement_does_not_matter_once_there_is_proof() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    for manner in [Manner::Loses, Manner::Hangs] {
        bench.manner("A", manner);
        let id = bench.ask_for("A", Reboot).await;
        bench.pass(seconds(20)).await;
        bench.comes_up("A").await;
        assert_eq!(bench.outcome(&id), (Succeeded, None), "{manner:?}");
    }
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_report_from_before_the_first_byte_keeps_no_reboot_from_being_sent() {
    let bench = Bench::with(&["A"]);
    bench.log.change_device("A", |view| view.boot_count = None);
    // The report lies between the intent and the sending, by the clock after the start.
    bench.log.change_device("A", |view| view.last_state_at = Some(bench.clock.now().saturating_add(seconds(1))));
    let running = bench.start();
    let id = bench.ask_for("A", Reboot).await;
    bench.settle().await;
    assert_eq!(bench.sends(&id), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_gets_its_commands_one_at_a_time_in_their_order() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let mut ids = Vec::new();
    for command in [UpdateConfig, Recalibrate, UpdateConfig, Recalibrate] {
        ids.push(bench.ask_for("A", command).await);
    }
    for (index, id) in ids.iter().enumerate() {
        bench.pass(seconds(3)).await;
        let sent: Vec<_> = bench.taken().into_iter().map(|order| order.command_id).collect();
        assert_eq!(sent, ids[..=index], "the next one only after the end of the one before");
        bench.answer("A", id, AnswerStatus::Failed).await;
    }
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_device_that_hangs_delays_nobody_else() {
    let names: Vec<String> = (0..20).map(|n| format!("D{n}")).collect();
    let bench = Bench::with(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let running = bench.start();
    bench.manner("D0", Manner::Hangs);
    let hung = bench.ask_for("D0", Recalibrate).await;
    let behind = bench.ask_for("D0", UpdateConfig).await;
    let before = Instant::now();
    for name in &names[1..] {
        let id = bench.ask_for(name, Recalibrate).await;
        bench.settle().await;
        bench.answer(name, &id, AnswerStatus::Succeeded).await;
        assert_eq!(bench.outcome(&id), (Succeeded, None));
    }
    assert!(before.elapsed() < seconds(1), "{:?}", before.elapsed());
    assert_eq!((bench.sends(&hung), bench.sends(&behind)), (1, 0));
    bench.manner("D0", Manner::Acknowledges);
    bench.pass(seconds(340)).await;
    assert_eq!(bench.sends(&behind), 1);
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn neither_wake_ups_nor_redeliveries_send_anything_twice() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let request = bench.request("A", "recalibrate", json!({}));
    let id = request.command_id.clone();
    for round in 0..60 {
        let admitted = bench.admit(request.clone()).await;
        assert_eq!(matches!(admitted, Admitted::Journalled(_)), round == 0);
        bench.log.wakeups().journal.notify_one();
        bench.settle().await;
        if round == 30 {
            bench.answer("A", &id, AnswerStatus::Succeeded).await;
        }
        bench.pass(seconds(1)).await;
    }
    running.stop().await;
    assert_eq!((bench.sends(&id), bench.outcome(&id)), (1, (Succeeded, None)));
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_lost_wake_up_costs_a_second_at_most() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    bench.settle().await;
    bench.log.trouble("wake", Some(Trouble::Fails));
    let id = bench.ask_for("A", Reboot).await;
    bench.settle().await;
    assert_eq!(bench.sends(&id), 0, "nobody was told");
    bench.pass(seconds(1)).await;
    assert_eq!(bench.sends(&id), 1);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_while_a_command_waited_is_judged_again() {
    let bench = Bench::with(&["A"]);
    let ids = [bench.ask_for("A", UpdateConfig).await, bench.ask_for("A", SetStatus).await];
    bench.log.change_device("A", |view| view.observed = DeviceStatus::Offline);
    let running = bench.start();
    bench.pass(seconds(3)).await;
    assert_eq!(bench.outcome(&ids[0]), (ExecutionStatus::Rejected, Some(Reason::DeviceOffline)));
    assert_eq!(bench.outcome(&ids[1]), (Succeeded, None));
    running.stop().await;
    assert!(bench.taken().is_empty());
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_falls_over_takes_its_own_command_with_it_and_no_other() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    bench.manner("A", Manner::Panics);
    let id = bench.ask_for("A", Recalibrate).await;
    bench.pass(seconds(2)).await;
    bench.manner("A", Manner::Acknowledges);
    let next = bench.ask_for("A", UpdateConfig).await;
    bench.pass(seconds(300)).await;
    assert_eq!((bench.outcome(&id), bench.sends(&id)), ((Indeterminate, Some(Reason::Interrupted)), 1));
    bench.answer("A", &next, AnswerStatus::Failed).await;
    assert_eq!((bench.outcome(&next), bench.sends(&next)), ((Failed, Some(Reason::DeviceError)), 1));
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn no_failure_of_the_store_sends_anything_twice() {
    let methods = ["device", "waiting", "in_progress", "open_execution", "claim", "finish"];
    for method in methods {
        for trouble in [Trouble::Fails, Trouble::FailsAfter] {
            for command in CARRIED {
                let bench = Bench::with(&["A"]);
                let running = bench.start();
                let id = bench.ask_for("A", command).await;
                bench.log.trouble(method, Some(trouble));
                bench.pass(seconds(7)).await;
                bench.answer("A", &id, AnswerStatus::Failed).await;
                bench.pass(seconds(7)).await;
                bench.log.heal();
                bench.pass(seconds(5)).await;
                bench.answer("A", &id, AnswerStatus::Failed).await;
                bench.pass(seconds(310)).await;
                assert!(bench.sends(&id) <= 1, "{method} {trouble:?} {command}: {} sends", bench.sends(&id));
                running.stop().await;
                bench.assert_settled();
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_could_not_be_read_is_found_as_soon_as_the_store_can() {
    for method in ["open_execution", "device"] {
        let bench = Bench::with(&["A"]);
        let running = bench.start();
        let id = bench.ask_for("A", Recalibrate).await;
        bench.settle().await;
        bench.log.trouble(method, Some(Trouble::Fails));
        bench.answer("A", &id, AnswerStatus::Succeeded).await;
        bench.pass(seconds(1_000)).await;
        assert_eq!(bench.outcome(&id), (InProgress, None), "{method}: not over while nobody could look");
        bench.log.heal();
        bench.pass(seconds(1)).await;
        assert_eq!(bench.outcome(&id), (Succeeded, None), "{method}");
        running.stop().await;
        bench.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn an_outcome_is_kept_until_the_store_can_take_it() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    let id = bench.ask("A", "recalibrate", parameters_of(Recalibrate)).await;
    bench.settle().await;
    bench.log.trouble("finish", Some(Trouble::Fails));
    bench.answer("A", &id, AnswerStatus::Succeeded).await;
    bench.pass(seconds(3_600)).await;
    assert_eq!(bench.outcome(&id), (InProgress, None));
    bench.log.heal();
    bench.pass(seconds(1)).await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    running.stop().await;
    bench.assert_settled();
}

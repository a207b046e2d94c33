//! Power cuts at every step of an execution, and what the next start makes of them.

use super::*;
use crate::command::recovery::PATIENCE_MIN;

/// Where the power is cut: before a call of the journal, after it, or in the driver.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Journal(&'static str, Trouble),
    Driver(Manner),
}

const CUTS: [Cut; 9] = [
    Cut::Journal("waiting", Trouble::HangsAfter),
    Cut::Journal("device", Trouble::Hangs),
    Cut::Journal("claim", Trouble::Hangs),
    Cut::Journal("claim", Trouble::HangsAfter),
    Cut::Journal("open_execution", Trouble::Hangs),
    Cut::Journal("finish", Trouble::Hangs),
    Cut::Journal("finish", Trouble::HangsAfter),
    Cut::Driver(Manner::Hangs),
    Cut::Driver(Manner::Acknowledges),
];

/// What the device does about an order it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Device {
    Silent,
    Fails,
}

/// One life until the cut, a second one until everything is over. Returns the bench and the command.
async fn cut_and_start_again(cut: Cut, command: CommandName, does: Device) -> (Bench, floorgate_model::CommandId) {
    let bench = Bench::with(&["A"]);
    let id = bench.ask_for("A", command).await;
    match cut {
        Cut::Journal(method, trouble) => bench.log.trouble(method, Some(trouble)),
        Cut::Driver(manner) => bench.manner("A", manner),
    }
    let first = bench.start();
    bench.pass(seconds(2)).await;
    if does == Device::Fails && bench.sends(&id) > 0 {
        bench.answer("A", &id, AnswerStatus::Failed).await;
        bench.pass(seconds(1)).await;
    }
    first.crash().await;
    bench.log.heal();
    bench.manner("A", Manner::Acknowledges);
    let second = bench.start();
    bench.pass(seconds(400)).await;
    second.stop().await;
    (bench, id)
}

#[tokio::test(start_paused = true)]
async fn a_cut_at_any_step_sends_nothing_twice_and_leaves_exactly_one_outcome() {
    for cut in CUTS {
        for command in CommandName::ALL {
            for does in [Device::Silent, Device::Fails] {
                let (bench, id) = cut_and_start_again(cut, command, does).await;
                let most = if command == UpdateConfig { 2 } else { 1 };
                assert!(bench.sends(&id) <= most, "{cut:?} {command} {does:?}: {} sends", bench.sends(&id));
                bench.assert_settled();
                let (status, reason) = bench.outcome(&id);
                let plausible = match status {
                    Succeeded => command == SetStatus,
                    Failed => command == SetStatus || reason == Some(Reason::DeviceError),
                    TimedOut => reason == Some(Reason::NoResponse) && bench.sends(&id) > 0,
                    Indeterminate => reason == Some(Reason::Interrupted),
                    _ => false,
                };
                assert!(plausible, "{cut:?} {command} {does:?}: {status} {reason:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_intent_nothing_has_happened_and_the_command_runs_as_if_new() {
    for cut in [Cut::Journal("claim", Trouble::Hangs), Cut::Journal("device", Trouble::Hangs)] {
        for command in CARRIED {
            let (bench, id) = cut_and_start_again(cut, command, Device::Silent).await;
            assert_eq!((bench.sends(&id), bench.outcome(&id).0), (1, TimedOut), "{cut:?} {command}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_intent_only_what_may_be_repeated_is_sent_again() {
    for (command, sends) in [(Recalibrate, 0), (Reboot, 0), (UpdateConfig, 1)] {
        let (bench, id) =
            cut_and_start_again(Cut::Journal("claim", Trouble::HangsAfter), command, Device::Silent).await;
        assert_eq!(bench.sends(&id), sends, "{command}");
    }
    for (command, sends) in [(Recalibrate, 1), (Reboot, 1), (UpdateConfig, 2)] {
        let (bench, id) = cut_and_start_again(Cut::Driver(Manner::Hangs), command, Device::Silent).await;
        assert_eq!(bench.sends(&id), sends, "{command}");
    }
}

/// Claimed and sent, then the gateway was away for `away`.
async fn interrupted(command: CommandName, away: Duration) -> (Bench, floorgate_model::CommandId) {
    let bench = Bench::with(&["A"]);
    let id = bench.ask_for("A", command).await;
    let first = bench.start();
    bench.settle().await;
    assert_eq!(bench.sends(&id), 1);
    first.crash().await;
    bench.jump(away, bench.clock.now().saturating_add(away)).await;
    (bench, id)
}

#[tokio::test(start_paused = true)]
async fn what_the_device_showed_meanwhile_decides_at_once() {
    for away in [seconds(1), seconds(86_400)] {
        let (bench, id) = interrupted(Reboot, away).await;
        bench.comes_up("A").await;
        let running = bench.start();
        bench.settle().await;
        assert_eq!((bench.outcome(&id), bench.sends(&id)), ((Succeeded, None), 1));
        running.stop().await;

        let (bench, id) = interrupted(UpdateConfig, away).await;
        let reported = BTreeMap::from([("sample_rate_seconds".to_owned(), "10".to_owned())]);
        bench.log.take_state("A", |view| view.configuration = Some(reported));
        let running = bench.start();
        bench.settle().await;
        assert_eq!((bench.outcome(&id), bench.sends(&id)), ((Succeeded, None), 1), "nothing to repeat");
        running.stop().await;

        let (bench, id) = interrupted(Recalibrate, away).await;
        bench.answer("A", &id, AnswerStatus::Succeeded).await;
        let running = bench.start();
        bench.settle().await;
        assert_eq!((bench.outcome(&id), bench.sends(&id)), ((Succeeded, None), 1));
        running.stop().await;
        bench.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_device_shows_after_the_start_counts_too_however_long_the_gateway_was_away() {
    let (bench, id) = interrupted(Reboot, seconds(86_400)).await;
    let running = bench.start();
    bench.pass(seconds(20)).await;
    assert_eq!(bench.outcome(&id), (InProgress, None));
    bench.comes_up("A").await;
    assert_eq!(bench.outcome(&id), (Succeeded, None));
    running.stop().await;
    bench.assert_settled();
}

#[tokio::test(start_paused = true)]
async fn without_any_sign_it_is_indeterminate_within_the_patience_and_the_next_command_runs() {
    for command in [Recalibrate, Reboot] {
        let (bench, id) = interrupted(command, seconds(280)).await;
        let next = bench.ask_for("A", UpdateConfig).await;
        let running = bench.start();
        bench.pass(PATIENCE_MIN - seconds(1)).await;
        assert_eq!((bench.outcome(&id), bench.sends(&next)), ((InProgress, None), 0));
        bench.pass(seconds(3)).await;
        assert_eq!(bench.outcome(&id), (Indeterminate, Some(Reason::Interrupted)), "{command}");
        assert_eq!((bench.sends(&id), bench.sends(&next)), (1, 1));
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_repetition_that_cannot_be_sent_says_nothing_of_the_first_time() {
    for manner in [Manner::IsAway, Manner::FindsItExpired] {
        let (bench, id) = interrupted(UpdateConfig, seconds(10)).await;
        bench.manner("A", manner);
        let running = bench.start();
        bench.pass(seconds(5)).await;
        assert_eq!(bench.outcome(&id), (InProgress, None), "the proof may still come");
        bench.pass(PATIENCE_MIN).await;
        assert_eq!(bench.outcome(&id), (Indeterminate, Some(Reason::Interrupted)), "{manner:?}");
        running.stop().await;
        bench.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_command_that_has_expired_is_not_repeated_even_if_it_could_be() {
    let (bench, id) = interrupted(UpdateConfig, seconds(901)).await;
    let running = bench.start();
    bench.pass(seconds(70)).await;
    assert_eq!((bench.sends(&id), bench.outcome(&id)), (1, (Indeterminate, Some(Reason::Interrupted))));
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_overlay_that_was_interrupted_is_set_while_it_is_wanted_and_not_later() {
    let cases = [(10, true, Succeeded), (900, true, Expired), (691_200, true, Expired), (10, false, Failed)];
    for (away, trusted, status) in cases {
        let bench = Bench::with(&["A"]);
        let id = bench.ask_for("A", SetStatus).await;
        bench.log.trouble("claim", Some(Trouble::HangsAfter));
        let first = bench.start();
        bench.settle().await;
        first.crash().await;
        bench.log.heal();
        bench.jump(seconds(away), bench.clock.now().saturating_add(seconds(away))).await;
        bench.clock.set_trusted(trusted);
        let second = bench.start();
        bench.settle().await;
        assert_eq!(bench.outcome(&id).0, status, "{away} s, trusted: {trusted}");
        let set = bench.log.view("A").admin_state == AdminState::Maintenance;
        assert_eq!(set, status == Succeeded, "{away} s, trusted: {trusted}");
        second.stop().await;
        bench.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_leaves_what_runs_to_the_next_start() {
    let bench = Bench::with(&["A"]);
    let id = bench.ask_for("A", Reboot).await;
    let first = bench.start();
    bench.settle().await;
    first.stop().await;
    assert_eq!(bench.outcome(&id), (InProgress, None));
    let second = bench.start();
    bench.comes_up("A").await;
    assert_eq!((bench.outcome(&id), bench.sends(&id)), ((Succeeded, None), 1));
    second.stop().await;
    bench.assert_settled();
}

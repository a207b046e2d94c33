//! Commands that grow old while they wait: none is sent after its time, whatever delayed it and whatever the clock says.

use super::*;
use crate::command::memory::LONG;
use floorgate_model::Timestamp;

/// From a second to eight days.
const DELAYS: [u64; 14] = [1, 5, 29, 119, 120, 121, 300, 899, 900, 901, 3_599, 3_600, 86_400, 691_200];
/// By how much the wall clock is wrong after the delay, seconds.
const CLOCK_ERRORS: [i64; 15] =
    [0, -1, 1, -5, 5, -59, 59, -61, 61, -3_600, 3_600, -86_400, 86_400, -691_200, -31_536_000];

fn shifted(time: Timestamp, by: i64) -> Timestamp {
    Timestamp::from_millis(time.as_millis() + by * 1_000)
}

/// Whether anything was done: sent, or the overlay set.
fn done(bench: &Bench, id: &floorgate_model::CommandId) -> bool {
    bench.sends(id) > 0 || bench.log.view("A").admin_state == AdminState::Maintenance
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_a_running_gateway_is_never_done_after_its_time_whatever_the_clock_does() {
    let (mut in_time, mut too_late) = (0, 0);
    for command in CommandName::ALL {
        for delay in DELAYS {
            for error in CLOCK_ERRORS {
                let bench = Bench::with(&["A"]);
                let running = bench.start();
                bench.log.trouble("claim", Some(Trouble::Fails));
                let id = bench.ask_for("A", command).await;
                bench.settle().await;
                let wall = shifted(bench.clock.now(), i64::try_from(delay).unwrap() + error);
                bench.log.heal();
                bench.jump(seconds(delay), wall).await;
                bench.pass(seconds(2)).await;
                let fresh = seconds(delay) < command.default_lifetime();
                assert!(fresh || !done(&bench, &id), "{command} after {delay} s, clock {error:+} s");
                if error == 0 && delay != 119 && delay != 899 {
                    assert_eq!(done(&bench, &id), fresh, "{command} after {delay} s");
                }
                if done(&bench, &id) {
                    in_time += 1
                } else {
                    too_late += 1
                }
                bench.jump(seconds(310), bench.clock.now()).await;
                running.stop().await;
                bench.assert_settled();
            }
        }
    }
    assert!(in_time > 50 && too_late > 200, "{in_time} in time, {too_late} too late");
}

#[tokio::test(start_paused = true)]
async fn what_waited_while_the_machine_was_off_is_done_only_by_a_clock_that_calls_it_fresh() {
    for command in CommandName::ALL {
        for delay in DELAYS {
            for error in CLOCK_ERRORS {
                for trusted in [true, false] {
                    let bench = Bench::with(&["A"]);
                    let id = bench.ask_for("A", command).await;
                    let received = bench.clock.now();
                    let wall = shifted(received, i64::try_from(delay).unwrap() + error);
                    bench.jump(seconds(delay), wall).await;
                    bench.clock.reboot(wall);
                    bench.clock.set_trusted(trusted);
                    let running = bench.start();
                    bench.settle().await;
                    let ahead = received > wall.saturating_add(seconds(60));
                    let fresh = trusted && !ahead && wall < bench.record(&id).expires_at;
                    assert_eq!(done(&bench, &id), fresh, "{command} after {delay} s, clock {error:+} s, {trusted}");
                    running.crash().await;
                }
            }
        }
    }
}

/// How the time went by while a command waited for the gateway to run again.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outage {
    /// The gateway restarted, the machine did not.
    Restart,
    /// The machine slept with the gateway running.
    Sleep,
    /// The machine started again; the clock was trusted afterwards, or not.
    Reboot { trusted: bool },
}

#[tokio::test(start_paused = true)]
async fn no_command_is_done_after_its_time_whatever_the_outage_and_the_clock_did() {
    let outages = [Outage::Restart, Outage::Sleep, Outage::Reboot { trusted: true }, Outage::Reboot { trusted: false }];
    let (mut done_in_time, mut refused) = (0, 0);
    for (command, outage) in CommandName::ALL.into_iter().flat_map(|command| outages.map(|outage| (command, outage))) {
        for delay in DELAYS {
            for error in CLOCK_ERRORS {
                for local in [false, true] {
                    let case = format!("{command}, {outage:?}, {delay} s, clock {error:+} s, local {local}");
                    let bench = Bench::with(&["A"]);
                    let running = (outage == Outage::Sleep).then(|| bench.start());
                    bench.log.trouble("claim", Some(Trouble::Fails));
                    let id = bench.ask_from(local, "A", command).await;
                    bench.settle().await;
                    let wall = shifted(bench.clock.now(), i64::try_from(delay).unwrap() + error);
                    match outage {
                        Outage::Reboot { trusted } => {
                            let floor = bench.clock.floor();
                            bench.clock.reboot(wall);
                            bench.clock.resume(floor);
                            bench.clock.set_trusted(trusted);
                        }
                        Outage::Restart | Outage::Sleep => bench.sleep_machine(seconds(delay), wall).await,
                    }
                    bench.log.heal();
                    let running = running.unwrap_or_else(|| bench.start());
                    bench.pass(seconds(2)).await;
                    let done = done(&bench, &id);
                    let lived = seconds(delay) < command.default_lifetime();
                    // Another boot has only its wall clock: what it calls fresh is done if it is trusted, and one that
                    // is trusted and wrong is the one thing nobody can see.
                    let seen = !matches!(outage, Outage::Reboot { trusted: true }) || error >= 0;
                    assert!(lived || !done || !seen, "{case}: done too late");
                    if outage == (Outage::Reboot { trusted: false }) {
                        assert!(!done, "{case}: done without knowing the time");
                    }
                    if error == 0
                        && lived
                        && outage != (Outage::Reboot { trusted: false })
                        && ![119, 899].contains(&delay)
                    {
                        assert!(done, "{case}: not done though it was fresh");
                    }
                    if done {
                        done_in_time += 1
                    } else {
                        refused += 1
                    }
                    running.crash().await;
                }
            }
        }
    }
    assert!(done_in_time > 500 && refused > 2_000, "{done_in_time} done, {refused} refused");
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_a_slow_device_expires_in_the_queue() {
    for (command, slow) in [(Reboot, Recalibrate), (Recalibrate, Recalibrate), (Recalibrate, Reboot)] {
        let bench = Bench::with(&["A"]);
        let running = bench.start();
        bench.ask_for("A", slow).await;
        bench.settle().await;
        let id = bench.ask_for("A", command).await;
        bench.pass(seconds(310)).await;
        assert_eq!((bench.outcome(&id).0, bench.sends(&id)), (Expired, 0), "{command} behind {slow}");
        running.stop().await;
        bench.assert_settled();
    }
}

#[tokio::test(start_paused = true)]
async fn what_expires_between_the_intent_and_the_sending_is_not_sent_whichever_clock_tells() {
    for command in CommandName::ALL {
        for wall_stands_still in [true, false] {
            let bench = Bench::with(&["A"]);
            bench.log.trouble("claim", Some(Trouble::Takes(LONG)));
            let running = bench.start();
            let id = bench.ask_for("A", command).await;
            bench.settle().await;
            assert_eq!(bench.outcome(&id).0, InProgress);
            let wall = if wall_stands_still { bench.clock.now() } else { bench.record(&id).expires_at };
            bench.jump(LONG, wall).await;
            assert_eq!(bench.outcome(&id), (Expired, Some(Reason::Expired)), "{command}, {wall_stands_still}");
            assert!(!done(&bench, &id), "{command}, {wall_stands_still}");
            running.stop().await;
            bench.assert_settled();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_that_waited_under_a_clock_put_back_carries_the_time_it_really_has() {
    let bench = Bench::with(&["A"]);
    let running = bench.start();
    bench.log.trouble("claim", Some(Trouble::Fails));
    let id = bench.ask_for("A", Reboot).await;
    bench.settle().await;
    bench.log.heal();
    // 100 s of its 120 s are gone, and the clock stands where it stood.
    bench.jump(seconds(100), bench.clock.now()).await;
    let order = bench.taken().remove(0);
    let left = order.expires_at.since(bench.clock.now());
    assert!(left <= seconds(21), "{left:?} left");
    assert_eq!(bench.sends(&id), 1);
    running.stop().await;
}

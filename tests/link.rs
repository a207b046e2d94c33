//! The client link against a broker that misbehaves: nothing is lost upstream, nothing is acknowledged too early, and
//! coming back is polite.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, dead_code, reason = "support code is shared by several tests")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/running.rs"]
mod running;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use broker::Broker;
use bytes::Bytes;
use floorgate::backoff::Backoff;
use floorgate::clock::Clock;
use floorgate::mqtt::intake::{Attached, CloudIntake, CommandSink};
use floorgate::mqtt::link::{Handed, Link, LinkConfig, Login, NotHanded, Presence};
use floorgate::mqtt::refusals::Refusals;
use floorgate::shadow::StoreError;
use floorgate::shadow::store::Taken;
use floorgate_model::{DeviceId, Timestamp};
use running::{Held, Owed, config, run, soon};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

// ---- upstream -----------------------------------------------------------------------------------------------

#[tokio::test]
async fn of_five_thousand_entries_none_is_lost_across_cuts_lost_sessions_and_reused_packet_ids() {
    let broker = Broker::start().await;
    // An odd number, so that cuts fall at every place of the window; some sessions are lost, some are not.
    broker.lock().faults.cut_after = Some(83);
    broker.lock().faults.duplicates = true;
    let owed = Owed::with(5_000);
    let running = run(config(&broker, &["in"]), &Arc::default(), Some(Arc::clone(&owed)));
    let mut connects = 0;
    while !owed.entries.lock().unwrap().is_empty() {
        tokio::select! {
            () = broker.until("another connection", |inner| inner.log.connects.len() > connects) => {}
            () = owed.emptied.notified() => break,
        }
        connects = broker.lock().log.connects.len();
        broker.lock().faults.lose_sessions = connects % 3 == 0;
        let _ = tokio::time::timeout(Duration::from_millis(5), owed.emptied.notified()).await;
        if connects % 5 == 0 {
            broker.cut();
        }
        // Enough of it: the rest goes over a broker that behaves.
        if connects > 70 {
            broker.lock().faults.cut_after = None;
            if owed.entries.lock().unwrap().is_empty() {
                break;
            }
            tokio::time::timeout(Duration::from_secs(30), owed.emptied.notified()).await.unwrap();
            break;
        }
    }
    assert!(owed.entries.lock().unwrap().is_empty());
    assert_all_arrived(&broker.lock().log);
    running.stop().await;
}

fn assert_all_arrived(log: &broker::Log) {
    let seen: HashSet<_> = log.published.iter().map(|(_, payload, _)| payload.clone()).collect();
    let missing: Vec<_> = (0..5_000).filter(|n| !seen.contains(&Bytes::from(format!("entry {n}")))).collect();
    assert_eq!(missing, Vec::<i32>::new());
    let ids: BTreeSet<_> = log.packet_ids.iter().collect();
    assert!(log.connects.len() > 40, "{} connections", log.connects.len());
    assert!(ids.len() < 200, "packet ids were reused: {}", ids.len());
    let repeated = log.published.len() - 5_000;
    assert!(repeated > 0 && repeated < 5_000, "{repeated} duplicates");
}

#[tokio::test]
async fn a_broker_that_takes_and_never_acknowledges_is_left_and_gets_everything_again() {
    let broker = Broker::start().await;
    broker.lock().faults.withhold_pubacks = true;
    let owed = Owed::with(5);
    let mut config = config(&broker, &[]);
    config.ack_wait = Duration::from_millis(50);
    let running = run(config, &Arc::default(), Some(Arc::clone(&owed)));
    broker.until("a second attempt", |inner| inner.log.published.len() >= 10).await;
    let state = running.until("down", |state| state.last_error.is_some()).await;
    assert!(state.last_error.unwrap().contains("a PUBACK is missing"));
    assert_eq!(owed.entries.lock().unwrap().len(), 5, "nothing confirmed without an acknowledgement");
    broker.lock().faults.withhold_pubacks = false;
    tokio::time::timeout(Duration::from_secs(30), owed.emptied.notified()).await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn a_message_for_once_is_acknowledged_unknown_offline_or_expired_and_never_sent_twice() {
    let broker = Broker::start().await;
    let running = run(config(&broker, &[]), &Arc::default(), None);
    running.until("up", |state| state.up).await;
    let publish = |payload: &'static str, deadline| {
        let link = running.link.clone();
        async move { link.publish_once("devices/D/execute".into(), Bytes::from_static(payload.as_bytes()), deadline).await }
    };
    assert_eq!(publish("a", soon()).await, Ok(Handed::Acknowledged));
    assert_eq!(publish("late", Instant::now()).await, Err(NotHanded::Expired));

    broker.lock().faults.withhold_pubacks = true;
    let unknown = tokio::spawn(publish("b", soon()));
    broker.until("b arrives", |inner| inner.log.published.len() == 2).await;
    broker.lock().faults.withhold_pubacks = false;
    broker.lock().faults.refuse_connect = Some(rumqttc::ConnectReturnCode::ServiceUnavailable);
    broker.cut();
    assert_eq!(unknown.await.unwrap(), Ok(Handed::Unknown));
    running.until("down", |state| !state.up).await;
    assert!(matches!(publish("c", soon()).await, Err(NotHanded::Offline(why)) if why.contains("link is down")));

    broker.lock().faults.refuse_connect = None;
    running.until("up again", |state| state.up).await;
    assert_eq!(publish("d", soon()).await, Ok(Handed::Acknowledged));
    let sent: Vec<_> = broker.lock().log.published.iter().map(|(_, payload, _)| payload.clone()).collect();
    assert_eq!(sent, ["a", "b", "d"]);
    running.stop().await;
}

// ---- inbound ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_settled_and_then_in_the_order_of_receipt() {
    let broker = Broker::start().await;
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &["in/+"]), &held, None);
    running.until("up", |state| state.up).await;
    for payload in ["1", "2", "3"] {
        broker.publish("in/x", payload, false);
    }
    held.received(3).await;
    held.commit(2, Ok(Taken::Stored));
    held.commit(1, Ok(Taken::Duplicate));
    // A publish out and back shows that everything due before it has been sent.
    running.link.publish_once("flush".into(), Bytes::new(), soon()).await.unwrap();
    assert_eq!(broker.lock().log.acknowledged, Vec::<Bytes>::new());
    held.commit(0, Ok(Taken::Unknown));
    broker.until("three acknowledgements", |inner| inner.log.acknowledged.len() == 3).await;
    assert_eq!(broker.lock().log.acknowledged, ["1", "2", "3"]);
    running.stop().await;
}

#[tokio::test]
async fn what_was_not_settled_comes_again_after_a_cut() {
    let broker = Broker::start().await;
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &["in"]), &held, None);
    running.until("up", |state| state.up).await;
    broker.publish("in", "1", false);
    broker.publish("in", "2", false);
    held.received(2).await;
    held.commit(0, Ok(Taken::Stored));
    broker.until("the first is acknowledged", |inner| inner.log.acknowledged.len() == 1).await;
    broker.cut();
    held.received(3).await;
    // The old receipt resolves on the new connection's time: it acknowledges nothing there.
    held.commit(1, Ok(Taken::Stored));
    running.until("up again", |state| state.up && state.connects == 2).await;
    running.link.publish_once("flush".into(), Bytes::new(), soon()).await.unwrap();
    assert_eq!(broker.lock().log.acknowledged, ["1"]);
    assert!(held.messages.lock().unwrap()[2].0.redelivered);
    held.commit(2, Ok(Taken::Duplicate));
    broker.until("both are acknowledged", |inner| inner.log.acknowledged.len() == 2).await;
    assert_eq!(held.payloads(), ["1", "2", "2"]);
    running.stop().await;
}

#[tokio::test]
async fn a_store_that_fails_leaves_the_message_with_the_broker() {
    let broker = Broker::start().await;
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &["in"]), &held, None);
    running.until("up", |state| state.up).await;
    broker.publish("in", "1", false);
    held.received(1).await;
    held.commit(0, Err(StoreError::Closed));
    let state = running.until("the connection is dropped", |state| state.last_error.is_some()).await;
    assert!(state.last_error.unwrap().contains("could not be stored"));
    held.received(2).await;
    assert_eq!(broker.lock().log.acknowledged, Vec::<Bytes>::new());
    held.commit(1, Ok(Taken::Stored));
    broker.until("acknowledged", |inner| inner.log.acknowledged.len() == 1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_window_full_of_messages_hastens_the_intake_once() {
    let broker = Broker::start().await;
    broker.lock().faults.window = Some(20);
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &["in"]), &held, None);
    running.until("up", |state| state.up).await;
    for n in 0..19 {
        broker.publish("in", n.to_string(), false);
    }
    held.received(19).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.hastened.load(Ordering::Relaxed), 0, "there is room in the window");
    for n in 19..60 {
        broker.publish("in", n.to_string(), false);
    }
    held.hastened(1).await;
    assert_eq!(held.payloads().len(), 20);
    for n in 0..5 {
        held.commit(n, Ok(Taken::Stored));
    }
    held.received(25).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.hastened.load(Ordering::Relaxed), 1, "those at the head are hastened already");
    for n in 5..25 {
        held.commit(n, Ok(Taken::Stored));
    }
    held.hastened(2).await;
    held.received(45).await;
    running.stop().await;
}

#[tokio::test]
async fn a_full_intake_stops_the_reading_and_goes_on_afterwards() {
    let broker = Broker::start().await;
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &["in"]), &held, None);
    running.until("up", |state| state.up).await;
    for n in 0..3_000 {
        broker.publish("in", n.to_string(), false);
    }
    held.received(1_024).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.payloads().len(), 1_024);
    for n in 0..1_024 {
        held.commit(n, Ok(Taken::Stored));
    }
    held.received(2_048).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    let unsettled = held.payloads().len() - 1_024;
    assert!(unsettled <= 1_024 + 100, "{unsettled} unsettled");
    for n in 1_024..3_000 {
        held.received(n + 1).await;
        held.commit(n, Ok(Taken::Stored));
    }
    broker.until("all acknowledged", |inner| inner.log.acknowledged.len() == 3_000).await;
    let order: Vec<_> = (0..3_000).map(|n| Bytes::from(n.to_string())).collect();
    assert_eq!(broker.lock().log.acknowledged, order);
    assert_eq!(broker.lock().log.connects.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn a_payload_far_too_large_is_refused_counted_and_acknowledged_and_the_next_one_arrives() {
    let broker = Broker::start().await;
    let clock = Clock::set_to(Timestamp::EPOCH);
    let refusals = Arc::new(Refusals::new(clock.clone()));
    let commands = Arc::new(AtomicUsize::new(0));
    let taken = Arc::clone(&commands);
    let sink: CommandSink = Arc::new(move |_| {
        taken.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    });
    let attached = Attached::new([DeviceId::new("D-1").unwrap()]);
    let intake = Arc::new(CloudIntake::new(attached, sink, Arc::clone(&refusals)));
    let (link, runner) = Link::new(config(&broker, &["devices/+/commands"]), intake, None, clock);
    let stop = CancellationToken::new();
    let task = tokio::spawn(runner.run(stop.clone()));
    link.state().wait_for(|state| state.up).await.unwrap();
    broker.publish("devices/D-1/commands", vec![b' '; 200_000], false);
    broker.publish("devices/D-1/commands", r#"{"command":"reboot","timestamp":"2026-11-22T10:00:00Z"}"#, false);
    broker.until("both are acknowledged", |inner| inner.log.acknowledged.len() == 2).await;
    assert_eq!(refusals.snapshot().by_reason["too_large"], 1);
    assert_eq!(commands.load(Ordering::Relaxed), 1);
    assert_eq!(broker.lock().log.connects.len(), 1);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_packet_no_link_can_read_costs_the_session_and_not_the_link() {
    let broker = Broker::start().await;
    let held = Arc::new(Held { settle_at_once: true, ..Held::default() });
    let running = run(config(&broker, &["in"]), &held, None);
    running.until("up", |state| state.up).await;
    broker.publish("in", vec![0; 5 * 1024 * 1024], false);
    let state = running.until("up in a new session", |state| state.up && state.sessions_lost == 1).await;
    // Two that the packet ended, one that dropped the session, one that works.
    assert_eq!(state.connects, 4);
    assert!(state.last_error.unwrap().contains("was dropped to be rid of it"));
    broker.publish("in", "good", false);
    broker.until("acknowledged", |inner| inner.log.acknowledged.len() == 1).await;
    assert_eq!(held.payloads(), ["good"]);
    running.stop().await;
}

// ---- subscriptions ------------------------------------------------------------------------------------------

#[tokio::test]
async fn filters_go_eight_at_a_time_and_again_on_every_connection() {
    let broker = Broker::start().await;
    let filters: Vec<_> = (0..19).map(|n| format!("in/{n}")).collect();
    let names: Vec<_> = filters.iter().map(String::as_str).collect();
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &names), &held, None);
    running.until("up", |state| state.up).await;
    let sizes = |broker: &Broker| broker.lock().log.subscribes.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(&broker), [8, 8, 3]);
    broker.lock().faults.lose_sessions = true;
    broker.cut();
    let state = running.until("up again", |state| state.up && state.connects == 2).await;
    assert_eq!(state.sessions_lost, 1);
    assert_eq!(sizes(&broker), [8, 8, 3, 8, 8, 3]);
    broker.publish("in/18", "x", false);
    held.received(1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_refused_filter_shows_the_others_work_and_the_next_connection_asks_again() {
    let broker = Broker::start().await;
    broker.lock().faults.refuse.insert("forbidden".into());
    let held = Arc::new(Held::default());
    let running = run(config(&broker, &["forbidden", "allowed"]), &held, None);
    let state = running.until("up", |state| state.up).await;
    assert_eq!(state.refused_filters, ["forbidden: refused; may this client subscribe it?"]);
    broker.publish("allowed", "x", false);
    held.received(1).await;
    broker.lock().faults.refuse.clear();
    broker.cut();
    let state = running.until("up again", |state| state.up && state.connects == 2).await;
    assert_eq!(state.refused_filters, Vec::<String>::new());
    running.stop().await;
}

#[tokio::test]
async fn a_missing_suback_is_not_waited_for_for_ever() {
    let broker = Broker::start().await;
    broker.lock().faults.drop_subacks = true;
    let mut config = config(&broker, &["in"]);
    config.ack_wait = Duration::from_millis(50);
    let running = run(config, &Arc::default(), None);
    let state = running.until("given up", |state| state.last_error.is_some()).await;
    assert!(state.last_error.unwrap().contains("a SUBACK is missing") && !state.up);
    broker.lock().faults.drop_subacks = false;
    running.until("up", |state| state.up).await;
    running.stop().await;
}

// ---- presence, politeness -----------------------------------------------------------------------------------

fn with_presence(mut config: LinkConfig) -> LinkConfig {
    config.presence = Some(Presence {
        topic: "gateways/GW-1/state".into(),
        will: Bytes::from_static(b"will"),
        payload: Arc::new(|online| Bytes::from_static(if online { b"birth" } else { b"farewell" })),
    });
    config
}

#[tokio::test]
async fn birth_will_and_farewell_say_who_is_there() {
    let broker = Broker::start().await;
    let running = run(with_presence(config(&broker, &["in"])), &Arc::default(), None);
    let retained = |broker: &Broker| broker.retained("gateways/GW-1/state");
    broker.until("birth", |inner| inner.log.published.iter().any(|p| p.1 == "birth" && p.2)).await;
    broker.lock().faults.refuse_connect = Some(rumqttc::ConnectReturnCode::ServiceUnavailable);
    broker.cut();
    running.until("down", |state| !state.up && state.last_error.is_some()).await;
    assert_eq!(retained(&broker).unwrap(), "will");
    broker.lock().faults.refuse_connect = None;
    running.until("up again", |state| state.up).await;
    running.stop().await;
    broker.until("a clean end", |inner| inner.log.disconnects == 1).await;
    assert_eq!(retained(&broker).unwrap(), "farewell");
}

#[tokio::test]
async fn a_clean_stop_acknowledges_what_is_being_stored_and_takes_nothing_new() {
    let broker = Broker::start().await;
    let held = Arc::new(Held::default());
    let running = run(with_presence(config(&broker, &["in"])), &held, None);
    running.until("up", |state| state.up).await;
    broker.publish("in", "1", false);
    held.received(1).await;
    running.stop.cancel();
    broker.until("farewell", |inner| inner.log.published.iter().any(|p| p.1 == "farewell")).await;
    broker.publish("in", "2", false);
    held.commit(0, Ok(Taken::Stored));
    running.task.await.unwrap();
    broker.until("a clean end", |inner| inner.log.disconnects == 1).await;
    assert_eq!(broker.lock().log.acknowledged, ["1"]);
    assert_eq!(held.payloads(), ["1"]);
}

#[tokio::test(start_paused = true)]
async fn a_flapping_broker_sees_less_than_one_connect_a_second_and_hears_a_suspicion() {
    let broker = Broker::start().await;
    broker.lock().faults.cut_after_connack = true;
    let mut config = config(&broker, &["in"]);
    config.backoff = Backoff::standard();
    config.connect_spacing = Duration::from_secs(1);
    let running = run(config, &Arc::default(), None);
    let start = Instant::now();
    running.until_long(|state| state.connects >= 200).await;
    let state = running.link.state().borrow().clone();
    let connects = broker.lock().log.connects.clone();
    assert!(start.elapsed() >= Duration::from_secs(199), "{:?}", start.elapsed());
    for pair in connects.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(apart >= Duration::from_millis(990) && apart <= Duration::from_secs(61), "{apart:?}");
    }
    assert!(state.last_error.unwrap().contains("does another client use the id `GW-1`?"));
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_and_a_closed_port_are_told_in_words() {
    let broker = Broker::start().await;
    broker.lock().faults.refuse_connect = Some(rumqttc::ConnectReturnCode::NotAuthorized);
    let mut config = config(&broker, &[]);
    config.login = Some(Login { user: "u".into(), password: "p".into() });
    let running = run(config.clone(), &Arc::default(), None);
    let state = running.until("refused", |state| state.last_error.is_some()).await;
    let error = state.last_error.unwrap();
    assert!(error.contains("refused the connection of `GW-1`: not authorized"), "{error}");
    running.stop().await;

    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    config.address = format!("mqtt://{free}").parse().unwrap();
    let running = run(config, &Arc::default(), None);
    let state = running.until("refused", |state| state.last_error.is_some()).await;
    let error = state.last_error.unwrap();
    assert!(error.starts_with(&format!("cannot reach `{free}`: Connection refused")), "{error}");
    running.stop().await;
}

#[tokio::test]
async fn other_filters_are_subscribed_and_old_ones_unsubscribed_on_the_connection_that_stands() {
    let broker = Broker::start().await;
    let intake = Arc::<Held>::default();
    let running = run(config(&broker, &["a", "b"]), &intake, None);
    running.until("up", |state| state.up).await;
    running.link.listen_to(vec!["b".to_owned(), "c".to_owned()]);
    broker.until("c is subscribed", |inner| inner.log.subscribes.last().is_some_and(|last| *last == ["c"])).await;
    assert_eq!(broker.filters("GW-1"), ["b", "c"]);
    assert_eq!(broker.lock().log.connects.len(), 1, "the connection stands");
    broker.publish("c", "from c", false);
    broker.publish("a", "from a", false);
    broker.publish("b", "from b", false);
    intake.received(2).await;
    assert_eq!(intake.payloads(), ["from c", "from b"]);
    running.stop().await;
}

#[tokio::test]
async fn what_a_broker_did_not_unlearn_is_unsubscribed_again_on_the_next_connection() {
    let broker = Broker::start().await;
    let running = run(config(&broker, &["a", "b"]), &Arc::default(), None);
    running.until("up", |state| state.up).await;
    broker.lock().faults.refuse.insert("x".to_owned());
    broker.cut();
    // Told while nobody may be connected: whichever connection comes carries it out.
    running.link.listen_to(vec!["b".to_owned(), "x".to_owned()]);
    running.until("up with b and a refused x", |state| state.up && state.refused_filters.len() == 1).await;
    assert_eq!(broker.filters("GW-1"), ["b"]);
    running.link.listen_to(vec!["b".to_owned()]);
    running.until("nothing is refused", |state| state.refused_filters.is_empty()).await;
    running.stop().await;
}

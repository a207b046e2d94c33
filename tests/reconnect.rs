//! Coming back after every kind of loss, in paused time: politely, soon, and with everything subscribed (G13).
//!
//! `FLOORGATE_DISCONNECTS=N` and `FLOORGATE_SEED=S` set the number of forced disconnects (1,000 by default) and the seed.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unreachable_pub, dead_code, reason = "support code is shared by several tests")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/running.rs"]
mod running;

use std::sync::Arc;
use std::time::Duration;

use broker::{Broker, Faults};
use floorgate::mqtt::link::retry::{BACK_WITHIN, RIVAL_WAIT};
use floorgate::mqtt::link::{KEEP_ALIVE, LinkConfig};
use running::{Held, Owed, Running, run};
use tokio::time::{Instant, sleep, timeout};

/// As in production.
fn config(broker: &Broker) -> LinkConfig {
    let mut config = LinkConfig::new("floor", format!("mqtt://{}", broker.address).parse().unwrap(), "GW-1");
    config.filters = vec!["in/#".into(), "more/+".into()];
    config
}

fn seconds(random: &mut fastrand::Rng, most: u64) -> Duration {
    Duration::from_millis(random.u64(0..=most * 1_000))
}

/// Ten ways to lose a connection.
const KINDS: [&str; 10] = [
    "cut",
    "cut after CONNACK",
    "CONNECT refused",
    "hung up",
    "no CONNACK",
    "half open",
    "no SUBACK",
    "no PUBACK",
    "garbage",
    "another client with our id",
];

/// Brings one loss about, keeps it up for a while, and mends the broker.
async fn lose(kind: &str, broker: &Broker, owed: &Owed, random: &mut fastrand::Rng) {
    {
        let faults = &mut broker.lock().faults;
        match kind {
            "cut after CONNACK" => faults.cut_after_connack = true,
            "CONNECT refused" => faults.refuse_connect = Some(rumqttc::ConnectReturnCode::ServiceUnavailable),
            "hung up" => faults.hang_up = true,
            "no CONNACK" => faults.no_connack = true,
            "half open" => faults.deaf = true,
            "no SUBACK" => faults.drop_subacks = true,
            "no PUBACK" => faults.withhold_pubacks = true,
            "garbage" => faults.garbage = true,
            _ => {}
        }
        faults.lose_sessions = random.bool();
        faults.lose_subscriptions = random.bool();
    }
    let until = Instant::now() + seconds(random, 120);
    match kind {
        "no PUBACK" => {
            owed.entries.lock().unwrap().insert(random.i64(0..i64::MAX), "x".into());
            owed.changed.notify_one();
        }
        "half open" => {}
        "another client with our id" => {
            while Instant::now() < until {
                broker.cut();
                sleep(seconds(random, 20)).await;
            }
        }
        _ => broker.cut(),
    }
    // A half-open line shows with the next packet; each keep-alive interval has one.
    let least = if kind == "half open" { Instant::now() + KEEP_ALIVE } else { Instant::now() };
    tokio::time::sleep_until(until.max(least)).await;
    broker.lock().faults = Faults::default();
}

/// Waits until everything is as it should be, on a connection that is not dead; how long that took.
async fn back(broker: &Broker, running: &Running, held: &Held, what: &str) -> Duration {
    let mended = Instant::now();
    let mark = format!("{what} {}", fastrand::u64(..));
    // Something published now comes through exactly if the link is up and has its subscriptions.
    let through = async {
        loop {
            broker.publish("in/mark", mark.clone(), false);
            sleep(Duration::from_millis(100)).await;
            if held.payloads().iter().any(|payload| *payload == mark) && running.link.state().borrow().up {
                return;
            }
        }
    };
    timeout(Duration::from_secs(600), through).await.unwrap_or_else(|_| panic!("{what}: never back"));
    held.messages.lock().unwrap().clear();
    mended.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_thousand_disconnects_of_ten_kinds_are_at_most_a_connect_a_second_and_back_within_a_minute() {
    let number = |name: &str, standard| std::env::var(name).map_or(standard, |text| text.parse().unwrap());
    let (count, seed) = (number("FLOORGATE_DISCONNECTS", 1_000), number("FLOORGATE_SEED", 13));
    let mut random = fastrand::Rng::with_seed(seed);
    let broker = Broker::start().await;
    let (held, owed) = (Arc::new(Held { settle_at_once: true, ..Held::default() }), Arc::new(Owed::default()));
    let running = run(config(&broker), &held, Some(Arc::clone(&owed)));
    let mut longest = Duration::ZERO;
    for n in 0..count {
        let kind = KINDS[random.usize(..KINDS.len())];
        let what = format!("seed {seed}, disconnect {n}, {kind}");
        back(&broker, &running, &held, &what).await;
        sleep(seconds(&mut random, 60)).await;
        lose(kind, &broker, &owed, &mut random).await;
        let took = back(&broker, &running, &held, &what).await;
        assert!(took <= BACK_WITHIN, "{what}: back after {took:?}: {:?}", running.link.state().borrow());
        longest = longest.max(took);
    }
    let connects = broker.lock().log.connects.clone();
    let closest = connects.windows(2).map(|pair| pair[1] - pair[0]).min().unwrap();
    println!(
        "{count} disconnects, {} CONNECTs, closest {closest:?} apart, longest way back {longest:?}",
        connects.len()
    );
    // The timer counts whole milliseconds.
    assert!(closest >= Duration::from_millis(998), "seed {seed}: two CONNECTs {closest:?} apart");
    running.stop().await;
    println!("faults: reconnect runs={count} ok={count} slowest return {} s", longest.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_half_open_link_is_found_within_one_and_a_half_keep_alives() {
    for phase in 0..12 {
        let broker = Broker::start().await;
        let running = run(config(&broker), &Arc::default(), None);
        running.until_long(|state| state.up).await;
        sleep(KEEP_ALIVE * phase / 8 + Duration::from_millis(500)).await;
        assert!(running.link.state().borrow().up);
        broker.lock().faults.deaf = true;
        let deaf = Instant::now();
        running.until_long(|state| !state.up).await;
        assert!(deaf.elapsed() <= KEEP_ALIVE * 3 / 2, "phase {phase}: {:?}", deaf.elapsed());
        assert!(running.link.state().borrow().last_error.as_ref().unwrap().contains("half open"));
        running.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_lost_its_subscriptions_gets_them_again() {
    let broker = Broker::start().await;
    let held = Arc::new(Held { settle_at_once: true, ..Held::default() });
    let running = run(config(&broker), &held, None);
    running.until_long(|state| state.up).await;
    broker.lock().faults.lose_subscriptions = true;
    broker.cut();
    running.until_long(|state| state.up && state.connects == 2).await;
    assert_eq!(running.link.state().borrow().sessions_lost, 0, "the broker says it kept it");
    broker.publish("more/x", "x", false);
    held.received(1).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_links_with_one_id_do_not_throw_each_other_out_every_second() {
    let broker = Broker::start().await;
    let running = run(config(&broker), &Arc::default(), None);
    running.until_long(|state| state.up).await;
    // The other one comes back a second after it was thrown out, as simple clients do.
    let rival = {
        let (broker, link) = (broker.clone(), running.link.clone());
        tokio::spawn(async move {
            loop {
                link.state().wait_for(|state| state.up).await.unwrap();
                sleep(Duration::from_secs(1)).await;
                broker.cut();
                link.state().wait_for(|state| !state.up).await.unwrap();
            }
        })
    };
    sleep(Duration::from_secs(30)).await;
    let (early, start) = (broker.lock().log.connects.len(), Instant::now());
    sleep(Duration::from_secs(3_600)).await;
    let connects = broker.lock().log.connects.len() - early;
    let expected = start.elapsed().as_secs() / RIVAL_WAIT.0.as_secs();
    assert!((60..=usize::try_from(expected).unwrap()).contains(&connects), "{connects} in an hour");
    running.until_long(|state| state.up).await;
    let told = running.link.state().borrow().rival.clone().expect("told while it is up");
    assert!(told.contains("another client use the id `GW-1`"), "{told}");

    rival.abort();
    sleep(Duration::from_secs(120)).await;
    assert!(running.link.state().borrow().up);
    assert_eq!(running.link.state().borrow().rival, None, "nobody else uses it any more");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_retained_message_no_link_can_read_does_not_turn_it_over_faster_than_its_bounds() {
    let broker = Broker::start().await;
    let held = Arc::new(Held { settle_at_once: true, ..Held::default() });
    let running = run(config(&broker), &held, None);
    running.until_long(|state| state.up).await;
    broker.publish("in/big", vec![0; 5 * 1024 * 1024], true);
    sleep(Duration::from_secs(60)).await;
    let early = broker.lock().log.connects.len();
    sleep(Duration::from_secs(3_600)).await;
    let connects = broker.lock().log.connects.len() - early;
    assert!((60..=200).contains(&connects), "{connects} connections in an hour");
    let state = running.link.state().borrow().clone();
    assert!(state.sessions_lost <= 8, "{} sessions dropped", state.sessions_lost);
    assert!(state.last_error.unwrap().contains("it is retained there"));
    broker.forget_retained("in/big");
    // The session still holds a copy; it is dropped when its time has come.
    timeout(Duration::from_secs(700), async {
        while !held.payloads().iter().any(|payload| payload == "good") {
            broker.publish("in/x", "good", false);
            sleep(Duration::from_secs(1)).await;
        }
    })
    .await
    .expect("never well again");
    running.stop().await;
}

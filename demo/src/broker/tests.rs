//! The broker against a client nobody here wrote: rumqttc.

use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, LastWill, MqttOptions, Packet, Publish, QoS};
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn options(broker: &Broker, id: &str, clean: bool) -> MqttOptions {
    let mut options = MqttOptions::new(id, "127.0.0.1", broker.address().port());
    options.set_clean_session(clean).set_manual_acks(true).set_keep_alive(Duration::from_secs(30));
    options
}

/// Connects and subscribes; answers whether a session was there.
async fn connect(options: MqttOptions, filter: Option<&str>) -> (AsyncClient, EventLoop, bool) {
    let (client, mut events) = AsyncClient::new(options, 64);
    let mut present = None;
    if let Some(filter) = filter {
        client.try_subscribe(filter, QoS::AtLeastOnce).unwrap();
    }
    let mut subscribed = filter.is_none();
    while present.is_none() || !subscribed {
        match timeout(PATIENCE, events.poll()).await.unwrap().unwrap() {
            Event::Incoming(Packet::ConnAck(ack)) => present = Some(ack.session_present),
            Event::Incoming(Packet::SubAck(_)) => subscribed = true,
            _ => {}
        }
    }
    (client, events, present.unwrap())
}

async fn next_publish(events: &mut EventLoop) -> Publish {
    loop {
        if let Event::Incoming(Packet::Publish(publish)) = timeout(PATIENCE, events.poll()).await.unwrap().unwrap() {
            return publish;
        }
    }
}

/// Turns the loop until the broker answers a ping-like exchange: everything sent before has arrived.
async fn settle(client: &AsyncClient, events: &mut EventLoop) {
    client.try_publish("settle", QoS::AtLeastOnce, false, "x").unwrap();
    while !matches!(timeout(PATIENCE, events.poll()).await.unwrap().unwrap(), Event::Incoming(Packet::PubAck(_))) {}
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not come true");
}

#[tokio::test]
async fn a_persistent_session_keeps_messages_and_repeats_unacknowledged_ones_first() {
    let broker = Broker::start().await.unwrap();
    let (client, mut events, present) = connect(options(&broker, "keeper", false), Some("devices/+/commands")).await;
    assert!(!present);
    broker.publish("devices/a/commands", "1", false);
    broker.publish("devices/a/commands", "2", false);
    let first = next_publish(&mut events).await;
    assert_eq!(next_publish(&mut events).await.payload, "2");
    client.try_ack(&first).unwrap();
    settle(&client, &mut events).await;
    drop((client, events));
    until("the client is gone", || !broker.is_connected("keeper")).await;
    broker.publish("devices/b/commands", "3", false);

    let (client, mut events, present) = connect(options(&broker, "keeper", false), None).await;
    assert!(present);
    let second = next_publish(&mut events).await;
    assert_eq!((second.payload.as_ref(), second.dup), (b"2".as_ref(), true));
    let third = next_publish(&mut events).await;
    assert_eq!((third.payload.as_ref(), third.dup), (b"3".as_ref(), false));
    for publish in [&second, &third] {
        client.try_ack(publish).unwrap();
    }
    settle(&client, &mut events).await;
    drop((client, events));

    // A clean session forgets everything.
    let (.., present) = connect(options(&broker, "keeper", true), None).await;
    assert!(!present);
}

#[tokio::test]
async fn retained_messages_reach_later_subscribers_and_an_empty_one_clears_them() {
    let broker = Broker::start().await.unwrap();
    broker.publish("gateways/g/state", "on", true);
    let (_client, mut events, _) = connect(options(&broker, "late", true), Some("gateways/#")).await;
    let publish = next_publish(&mut events).await;
    assert_eq!((publish.payload.as_ref(), publish.retain), (b"on".as_ref(), true));
    broker.publish("gateways/g/state", "off", true);
    let publish = next_publish(&mut events).await;
    assert_eq!((publish.payload.as_ref(), publish.retain), (b"off".as_ref(), false));
    broker.publish("gateways/g/state", "", true);
    broker.publish("gateways/h/state", "here", true);
    let mut later = broker.subscribe("gateways/#");
    assert_eq!(later.next().await.unwrap().payload, "here");
}

#[tokio::test]
async fn a_will_is_published_after_a_cut_and_not_after_a_good_bye() {
    let broker = Broker::start().await.unwrap();
    let mut wills = broker.subscribe("wills/#");
    let with_will = |id: &str| {
        let mut options = options(&broker, id, true);
        options.set_last_will(LastWill::new(format!("wills/{id}"), "gone", QoS::AtLeastOnce, false));
        options
    };
    let (polite, mut events, _) = connect(with_will("polite"), None).await;
    polite.try_disconnect().unwrap();
    while events.poll().await.is_ok() {}
    until("the polite one is gone", || !broker.is_connected("polite")).await;

    let (_client, mut events, _) = connect(with_will("torn"), None).await;
    broker.cut().await;
    assert!(timeout(PATIENCE, events.poll()).await.unwrap().is_err(), "the connection outlived the cut");
    assert!(timeout(PATIENCE, events.poll()).await.unwrap().is_err(), "a cut broker took a connection");
    assert_eq!(wills.next().await.unwrap().topic, "wills/torn");
    broker.restore().await.unwrap();
    connect(options(&broker, "again", true), None).await;
}

#[tokio::test]
async fn more_than_a_window_of_messages_arrives_in_order_and_once() {
    let broker = Broker::start().await.unwrap();
    let (client, mut events, _) = connect(options(&broker, "reader", false), Some("t")).await;
    for n in 0..200 {
        broker.publish("t", n.to_string(), false);
    }
    for n in 0..200 {
        let publish = next_publish(&mut events).await;
        assert_eq!(publish.payload, n.to_string().as_bytes());
        assert!(!publish.dup);
        client.try_ack(&publish).unwrap();
    }
    assert_eq!(broker.dropped(), 0);
}

#[tokio::test]
async fn a_second_connection_of_the_same_client_takes_the_session_over() {
    let broker = Broker::start().await.unwrap();
    let (_first, mut first_events, _) = connect(options(&broker, "twin", false), Some("t")).await;
    let (_second, mut second_events, present) = connect(options(&broker, "twin", false), None).await;
    assert!(present);
    assert!(timeout(PATIENCE, first_events.poll()).await.unwrap().is_err(), "the older connection was kept");
    broker.publish("t", "x", false);
    assert_eq!(next_publish(&mut second_events).await.payload, "x");
}

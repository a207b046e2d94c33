//! PUBACKs, and when reading pauses.

use super::*;

#[tokio::test]
async fn pubacks_leave_in_order_of_receipt_whatever_is_settled_first() {
    let fixture = start(|_| {}, true).await;
    let mut device = Client::named(&fixture, "A").await;
    for pkid in [11, 7, 9] {
        device.publish("devices/A/telemetry", pkid, "{}").await;
    }
    device.ping().await;
    let [first, second, third] = std::mem::take(&mut *fixture.desk.undecided.lock().unwrap()).try_into().unwrap();
    third.send(Ok(Taken::Stored)).unwrap();
    second.send(Ok(Taken::Duplicate)).unwrap();
    device.ping().await; // Nothing but the answer came: the oldest is not settled.
    first.send(Ok(Taken::Stored)).unwrap();
    for pkid in [11, 7, 9] {
        assert_eq!(device.hear().await, Some(Packet::PubAck(PubAck::new(pkid))));
    }
}

#[tokio::test]
async fn what_is_not_stored_is_never_acknowledged_and_the_connection_ends() {
    for gone in [false, true] {
        let fixture = start(|_| {}, true).await;
        let mut device = Client::named(&fixture, "A").await;
        device.publish("devices/A/telemetry", 1, "{}").await;
        device.ping().await;
        let decide = fixture.desk.undecided.lock().unwrap().pop().unwrap();
        if gone {
            drop(decide)
        } else {
            decide.send(Err(StoreError::Closed)).unwrap()
        }
        assert_eq!(device.hear().await, None);
        assert_eq!(fixture.handle.stats().refused["not_stored"], 1);
    }
}

#[tokio::test]
async fn reading_stops_while_200_messages_are_unsettled() {
    let fixture = start(|_| {}, true).await;
    let mut device = Client::named(&fixture, "A").await;
    for pkid in 1..=300 {
        device.publish("devices/A/telemetry", pkid, "{}").await;
    }
    let count = || fixture.desk.undecided.lock().unwrap().len();
    until("200 messages", || count() == connection::UNSETTLED_MAX).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(count(), connection::UNSETTLED_MAX);
    for decide in std::mem::take(&mut *fixture.desk.undecided.lock().unwrap()) {
        decide.send(Ok(Taken::Stored)).unwrap();
    }
    until("the other 100", || count() == 100).await;
    assert_eq!(device.hear().await, Some(Packet::PubAck(PubAck::new(1))));
}

#[tokio::test]
async fn packets_over_the_rate_wait_and_none_is_lost() {
    let change = |config: &mut EndpointConfig| (config.rate_per_second, config.rate_burst) = (100, 5);
    let fixture = start(change, false).await;
    let mut device = Client::named(&fixture, "A").await;
    let begun = Instant::now();
    for pkid in 1..=25 {
        device.publish("devices/A/telemetry", pkid, "{}").await;
    }
    for pkid in 1..=25 {
        assert_eq!(device.hear().await, Some(Packet::PubAck(PubAck::new(pkid))));
    }
    assert!(begun.elapsed() >= Duration::from_millis(190), "{:?}", begun.elapsed());
}

//! Orders leave once or not at all.

use super::*;
use crate::mqtt::endpoint::outbox::{Order, Outbox, Outgoing};
use crate::mqtt::endpoint::wire;

#[tokio::test]
async fn an_order_needs_a_device_that_is_there_and_has_subscribed() {
    let fixture = start(|_| {}, false).await;
    let (later, past) = (Instant::now() + Duration::from_secs(5), Instant::now());
    let order = async |deadline| fixture.handle.publish_once(&id("A"), "{}".into(), deadline).await;
    assert_eq!(order(later).await, Err(NotHanded::Offline("A is not connected".to_owned())));
    let mut device = Client::named(&fixture, "A").await;
    let text = "A is connected but has not subscribed to `devices/A/execute`";
    assert_eq!(order(later).await, Err(NotHanded::Offline(text.to_owned())));
    device.subscribe("devices/A/execute", QoS::AtMostOnce).await;
    assert_eq!(order(past).await, Err(NotHanded::Expired));
    assert_eq!(order(later).await, Ok(Handed::Unknown));
    let Some(Packet::Publish(got)) = device.hear().await else { panic!("no order") };
    assert_eq!(got.qos, QoS::AtMostOnce);
}

#[tokio::test]
async fn an_order_whose_acknowledgement_never_came_is_not_sent_again() {
    let fixture = start(|_| {}, false).await;
    let (mut device, _) = Client::connect(&fixture, lasting("A")).await;
    device.subscribe("devices/A/execute", QoS::AtLeastOnce).await;
    let (handle, deadline) = (fixture.handle.clone(), Instant::now() + Duration::from_secs(5));
    let order = tokio::spawn(async move { handle.publish_once(&id("A"), "{}".into(), deadline).await });
    assert!(matches!(device.hear().await, Some(Packet::Publish(_))));
    drop(device);
    assert_eq!(order.await.unwrap(), Ok(Handed::Unknown));
    let (mut device, ack) = Client::connect(&fixture, lasting("A")).await;
    assert!(!ack.unwrap().session_present);
    device.subscribe("devices/A/execute", QoS::AtLeastOnce).await;
    device.ping().await;
    assert_eq!(fixture.handle.stats().orders, 1);
}

#[tokio::test(start_paused = true)]
async fn an_order_that_finds_no_room_expires_and_a_stalled_reader_is_closed() {
    let intake: Arc<dyn Intake> = Arc::new(Desk::default());
    let sessions = Arc::new(MemorySessions::default());
    let attached = [id("A")].into();
    let hub = Arc::new(Hub::new(TopicScheme::default(), intake, sessions, &BTreeMap::new(), 10, attached));
    let house = House {
        hub: Arc::clone(&hub),
        proof: Arc::new(Proof { certificates: false, users: None, watchers: HashSet::new() }),
        doorman: Doorman::default(),
        packet_max: PACKET_MAX,
        rate_per_second: RATE_PER_SECOND,
        rate_burst: RATE_BURST,
        shutdown: CancellationToken::new(),
    };
    let address = Ipv4Addr::LOCALHOST.into();
    let place = house.doorman.admit(address).unwrap();
    // Room for the CONNACK and the SUBACK, nine bytes, and one more: an order of more gets its first byte in, no second.
    let (mut device, served) = tokio::io::duplex(10);
    let serving = tokio::spawn(connection::attend(house, served, address, None, place));
    let mut bytes = BytesMut::new();
    Packet::Connect(hello("A")).write(&mut bytes, 1_000).unwrap();
    let mut subscribe = Subscribe::new("devices/A/execute", QoS::AtLeastOnce);
    subscribe.pkid = 1;
    Packet::Subscribe(subscribe).write(&mut bytes, 1_000).unwrap();
    device.write_all(&bytes).await.unwrap();
    let proof = Proof { certificates: false, users: None, watchers: HashSet::new() };
    let handle = EndpointHandle::new(Arc::clone(&hub), Arc::new(proof));
    while hub.line(&id("A")).is_err() {
        tokio::task::yield_now().await;
    }
    let soon = || Instant::now() + Duration::from_secs(3);
    let first = handle.clone();
    let first = tokio::spawn(async move { first.publish_once(&id("A"), "{}".into(), soon()).await });
    while hub.stats().orders == 0 {
        tokio::task::yield_now().await;
    }
    // The second waits behind the first, which is stuck; the reader is closed, so the second never left.
    let second = handle.publish_once(&id("A"), "{}".into(), soon()).await;
    assert_eq!(second, Err(NotHanded::Offline("A has just disconnected".to_owned())));
    assert_eq!(first.await.unwrap(), Ok(Handed::Unknown));
    serving.await.unwrap();
    assert_eq!(hub.stats().refused, [("slow_reader", 1)].into());
}

#[tokio::test(start_paused = true)]
async fn an_order_that_expired_while_the_machine_was_suspended_does_not_leave_when_it_wakes() {
    let intake: Arc<dyn Intake> = Arc::new(Desk::default());
    let sessions = Arc::new(MemorySessions::default());
    let hub = Hub::new(TopicScheme::default(), intake, sessions, &BTreeMap::new(), 10, [id("A")].into());
    let (mut device, served) = tokio::io::duplex(4);
    let (queue, waiting) = tokio::sync::mpsc::channel(1);
    let mut outbox = Outbox::new(served, waiting);
    // Nothing is read at the other end: there is no room for the order.
    wire::puback(outbox.pending(), 1);
    outbox.turn(&hub).await.unwrap();
    let clock = crate::clock::Clock::set_to(floorgate_model::Timestamp::EPOCH);
    let (left, mut leaving) = oneshot::channel();
    let deadline = crate::clock::Deadline::after(Duration::from_secs(5), &clock);
    let order = Order { topic: "devices/A/execute".to_owned(), payload: "{}".into(), qos: 1, deadline, left };
    queue.try_send(Outgoing::Order(order)).unwrap();
    while futures_util::FutureExt::now_or_never(outbox.turn(&hub)).is_some() {}
    clock.pass_boot(Duration::from_secs(3_600));
    let mut read = [0; 64];
    let puback = AsyncReadExt::read(&mut device, &mut read).await.unwrap();
    assert_eq!(puback, 4);
    outbox.turn(&hub).await.unwrap();
    assert!(matches!(leaving.try_recv(), Ok(Err(NotHanded::Expired))));
    drop(outbox);
    assert_eq!(AsyncReadExt::read(&mut device, &mut read).await.unwrap(), 0, "not a byte of it");
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_closed_after_ten_seconds() {
    let fixture = start(|_| {}, false).await;
    let mut client = Client::dial(&fixture).await;
    let begun = Instant::now();
    assert_eq!(client.hear().await, None);
    assert!(begun.elapsed() >= CONNECT_WAIT);
    assert_eq!(fixture.handle.stats().refused["no_connect"], 1);
}

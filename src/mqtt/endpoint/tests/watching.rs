//! Rights, watching, wills and sessions.

use super::*;

#[tokio::test]
async fn a_device_that_speaks_for_another_is_closed_and_counted() {
    let fixture = start(|_| {}, false).await;
    let mut device = Client::named(&fixture, "A").await;
    device.publish("devices/B/telemetry", 1, "{}").await;
    assert_eq!(device.hear().await, None);
    assert_eq!(fixture.handle.stats().refused["forbidden_publish"], 1);
    assert!(fixture.desk.topics().is_empty());
}

#[tokio::test]
async fn a_filter_without_right_or_over_the_limit_is_refused_in_the_suback() {
    let fixture = start(|_| {}, false).await;
    let mut device = Client::named(&fixture, "A").await;
    assert_eq!(device.subscribe("devices/B/execute", QoS::AtLeastOnce).await, SubscribeReasonCode::Failure);
    let granted = SubscribeReasonCode::Success(QoS::AtLeastOnce);
    assert_eq!(device.subscribe("devices/A/execute", QoS::ExactlyOnce).await, granted);
    let mut tool = Client::named(&fixture, "tool").await;
    for n in 0..connection::FILTERS_MAX {
        let code = tool.subscribe(&format!("devices/{n}/state"), QoS::AtLeastOnce).await;
        assert_eq!(code, SubscribeReasonCode::Success(QoS::AtMostOnce));
    }
    assert_eq!(tool.subscribe("devices/more/state", QoS::AtMostOnce).await, SubscribeReasonCode::Failure);
}

#[tokio::test]
async fn a_watcher_gets_the_retained_state_then_what_comes_and_nothing_after_unsubscribe() {
    let fixture = start(|_| {}, false).await;
    let mut device = Client::named(&fixture, "A").await;
    let mut state = Publish::new("devices/A/state", QoS::AtLeastOnce, "on");
    (state.retain, state.pkid) = (true, 1);
    device.say(Packet::Publish(state)).await;
    assert_eq!(device.hear().await, Some(Packet::PubAck(PubAck::new(1))));
    let mut watcher = Client::named(&fixture, "tool").await;
    // Filters that overlap: one copy of what comes.
    watcher.subscribe("devices/+/telemetry", QoS::AtMostOnce).await;
    watcher.subscribe("devices/#", QoS::AtMostOnce).await;
    let Some(Packet::Publish(kept)) = watcher.hear().await else { panic!("no retained state") };
    assert_eq!((kept.topic.as_str(), &kept.payload[..], kept.retain), ("devices/A/state", &b"on"[..], true));
    device.publish("devices/A/telemetry", 0, "1").await;
    let Some(Packet::Publish(live)) = watcher.hear().await else { panic!("nothing forwarded") };
    assert_eq!((&live.payload[..], live.retain), (&b"1"[..], false));
    let topics = vec!["devices/#".to_owned(), "devices/+/telemetry".to_owned()];
    watcher.say(Packet::Unsubscribe(Unsubscribe { pkid: 3, topics })).await;
    assert!(matches!(watcher.hear().await, Some(Packet::UnsubAck(ack)) if ack.pkid == 3));
    device.publish("devices/A/telemetry", 0, "2").await;
    device.ping().await;
    watcher.ping().await;
}

#[tokio::test]
async fn a_last_will_is_for_abnormal_ends_alone() {
    let fixture = start(|_| {}, false).await;
    let (mut polite, _) = Client::connect(&fixture, willing("A", "devices/A/state")).await;
    polite.say(Packet::Disconnect).await;
    assert_eq!(polite.hear().await, None);
    let (lost, _) = Client::connect(&fixture, willing("B", "devices/B/state")).await;
    drop(lost);
    until("the will of B", || !fixture.desk.topics().is_empty()).await;
    assert_eq!(fixture.desk.topics(), ["devices/B/state"]);
    let (_running, _) = Client::connect(&fixture, willing("A", "devices/A/state")).await;
    fixture.stop.cancel();
    timeout(Duration::from_secs(1), fixture.ended).await.expect("stops within a second").unwrap();
    assert_eq!(fixture.desk.topics(), ["devices/B/state"]);
}

#[tokio::test]
async fn a_takeover_ends_the_older_connection_and_its_will_comes_before_the_successor() {
    let fixture = start(|_| {}, false).await;
    let (mut old, _) = Client::connect(&fixture, willing("A", "devices/A/state")).await;
    let mut new = Client::named(&fixture, "A").await;
    new.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(new.hear().await, Some(Packet::PubAck(PubAck::new(1))));
    assert_eq!(old.hear().await, None);
    assert_eq!(fixture.desk.topics(), ["devices/A/state", "devices/A/telemetry"]);
    assert_eq!(fixture.handle.stats().clients, 1);
}

#[tokio::test]
async fn the_will_of_a_half_open_connection_does_not_end_a_device_that_is_back() {
    let fixture = start(|_| {}, false).await;
    // Half open: this end is silent, the device is back under another client id of its identity.
    let connect = Connect { keep_alive: 1, ..willing("A", "devices/A/state") };
    let (mut old, _) = Client::connect(&fixture, connect).await;
    let seat = fixture.handle.seat_again(&id("A"));
    assert_eq!(old.hear().await, None, "closed after one and a half keep-alives");
    until("gone", || fixture.handle.stats().clients == 1).await;
    assert_eq!(fixture.desk.topics(), Vec::<String>::new(), "no will");
    drop(seat);

    // Alone, its will is what there is to say.
    let (lost, _) = Client::connect(&fixture, willing("A", "devices/A/state")).await;
    drop(lost);
    until("the will", || fixture.desk.topics() == ["devices/A/state"]).await;
}

#[tokio::test]
async fn a_device_that_took_its_connection_over_is_noted_as_there_after_the_older_ones_will() {
    let fixture = start(|_| {}, false).await;
    let (_old, _) = Client::connect(&fixture, willing("A", "devices/A/state")).await;
    let (_new, _) = Client::connect(&fixture, willing("A", "devices/A/state")).await;
    assert_eq!(fixture.desk.topics(), ["devices/A/state"]);
    assert_eq!(*fixture.desk.returned.lock().unwrap(), [(id("A"), 1)]);
}

#[tokio::test]
async fn a_silent_client_is_closed_after_one_and_a_half_keep_alives() {
    let fixture = start(|_| {}, false).await;
    let connect = Connect { keep_alive: 1, ..willing("A", "devices/A/state") };
    let begun = Instant::now();
    let (mut device, _) = Client::connect(&fixture, connect).await;
    assert_eq!(device.hear().await, None);
    assert!(begun.elapsed() >= Duration::from_millis(1_490), "{:?}", begun.elapsed());
    until("the will", || fixture.desk.topics() == ["devices/A/state"]).await;
    assert_eq!(fixture.handle.stats().refused["keep_alive"], 1);
}

#[tokio::test]
async fn a_session_outlives_connection_and_restart_until_a_clean_one() {
    let sessions = Arc::new(MemorySessions::default());
    let fixture = start_with(|_| {}, false, sessions.clone()).await;
    let (mut device, ack) = Client::connect(&fixture, lasting("A")).await;
    assert!(!ack.unwrap().session_present);
    device.subscribe("devices/A/execute", QoS::AtLeastOnce).await;
    drop(device);
    fixture.stop.cancel();
    fixture.ended.await.unwrap();

    let fixture = start_with(|_| {}, false, sessions.clone()).await;
    let (device, ack) = Client::connect(&fixture, lasting("A")).await;
    assert!(ack.unwrap().session_present);
    let (handle, deadline) = (fixture.handle.clone(), Instant::now() + Duration::from_secs(5));
    let order = tokio::spawn(async move { handle.publish_once(&id("A"), "{}".into(), deadline).await });
    let mut device = device;
    let Some(Packet::Publish(got)) = device.hear().await else { panic!("no order") };
    device.say(Packet::PubAck(PubAck::new(got.pkid))).await;
    assert_eq!(order.await.unwrap(), Ok(Handed::Acknowledged));

    let _clean = Client::named(&fixture, "A").await;
    assert_eq!(sessions.load().await.unwrap(), BTreeMap::new());
    let (_device, ack) = Client::connect(&fixture, lasting("A")).await;
    assert!(!ack.unwrap().session_present);
}

/// Counts what is written.
#[derive(Default)]
struct Ledger(std::sync::atomic::AtomicUsize);

impl SessionStore for Ledger {
    fn load(&self) -> BoxFuture<'_, Result<BTreeMap<String, Vec<String>>, StoreError>> {
        Box::pin(std::future::ready(Ok(BTreeMap::new())))
    }

    fn save(&self, _: String, _: Option<Vec<String>>) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::test]
async fn a_client_that_only_comes_back_writes_nothing_to_disk() {
    let ledger = Arc::new(Ledger::default());
    let fixture = start_with(|_| {}, false, ledger.clone()).await;
    for _ in 0..5 {
        let (mut device, _) = Client::connect(&fixture, lasting("A")).await;
        device.subscribe("devices/A/execute", QoS::AtLeastOnce).await;
    }
    assert_eq!(ledger.0.load(std::sync::atomic::Ordering::Relaxed), 2);
}

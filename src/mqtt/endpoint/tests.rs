//! The rules, one test each, over a real socket with the codec in the client's hand.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use floorgate_model::DeviceId;
use proptest::prelude::*;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, Publish, Subscribe, SubscribeReasonCode, Unsubscribe,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::*;
use crate::mqtt::handed::{Handed, NotHanded};
use crate::mqtt::{Acceptance, BoxFuture, Inbound};
use crate::shadow::store::Taken;

type Decision = oneshot::Sender<Result<Taken, StoreError>>;

/// Keeps what comes; settles at once, or when the test says so.
#[derive(Default)]
struct Desk {
    taken: Mutex<Vec<(String, Bytes, bool)>>,
    undecided: Mutex<Vec<Decision>>,
    wait: bool,
}

impl Intake for Desk {
    fn accept(&self, inbound: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        self.taken.lock().unwrap().push((inbound.topic, inbound.payload, inbound.redelivered));
        let acceptance = if self.wait {
            let (decide, receipt) = oneshot::channel();
            self.undecided.lock().unwrap().push(decide);
            Acceptance::Pending(receipt)
        } else {
            Acceptance::Settled
        };
        Box::pin(std::future::ready(Ok(acceptance)))
    }
}

impl Desk {
    fn topics(&self) -> Vec<String> {
        self.taken.lock().unwrap().iter().map(|(topic, ..)| topic.clone()).collect()
    }
}

struct Fixture {
    address: SocketAddr,
    handle: EndpointHandle,
    desk: Arc<Desk>,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

async fn start(change: impl FnOnce(&mut EndpointConfig), wait: bool) -> Fixture {
    start_with(change, wait, Arc::new(MemorySessions::default())).await
}

async fn start_with(change: impl FnOnce(&mut EndpointConfig), wait: bool, sessions: Arc<dyn SessionStore>) -> Fixture {
    let mut config = EndpointConfig::new((Ipv4Addr::LOCALHOST, 0).into());
    change(&mut config);
    let desk = Arc::new(Desk { wait, ..Desk::default() });
    let attached = [id("A"), id("B")].into();
    let intake: Arc<dyn Intake> = desk.clone();
    let endpoint = Endpoint::bind(config, intake, TopicScheme::default(), attached, sessions).await.unwrap();
    let (address, handle, stop) = (endpoint.local_addr(), endpoint.handle(), CancellationToken::new());
    let ended = tokio::spawn(endpoint.run(stop.clone()));
    Fixture { address, handle, desk, stop, ended }
}

/// The test's end of a connection.
struct Client {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Client {
    async fn dial(fixture: &Fixture) -> Self {
        Self { stream: TcpStream::connect(fixture.address).await.unwrap(), buffer: BytesMut::new() }
    }

    async fn raw(&mut self, bytes: &[u8]) {
        // The endpoint may have closed already; the test then sees the end when it reads.
        let _ = self.stream.write_all(bytes).await;
    }

    async fn say(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, usize::MAX).unwrap();
        self.raw(&bytes).await;
    }

    /// The next packet; `None` when the endpoint closed.
    async fn hear(&mut self) -> Option<Packet> {
        loop {
            if let Ok(packet) = Packet::read(&mut self.buffer, 100_000) {
                return Some(packet);
            }
            let read = timeout(Duration::from_secs(20), self.stream.read_buf(&mut self.buffer)).await;
            if read.expect("the endpoint said nothing for 20 s").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    async fn connect(fixture: &Fixture, connect: Connect) -> (Self, Option<ConnAck>) {
        let mut client = Self::dial(fixture).await;
        client.say(Packet::Connect(connect)).await;
        match client.hear().await {
            Some(Packet::ConnAck(ack)) => (client, Some(ack)),
            None => (client, None),
            other => panic!("{other:?}"),
        }
    }

    /// Connected with a clean session.
    async fn named(fixture: &Fixture, name: &str) -> Self {
        let (client, ack) = Self::connect(fixture, hello(name)).await;
        assert_eq!(ack, Some(ConnAck::new(ConnectReturnCode::Success, false)));
        client
    }

    async fn publish(&mut self, topic: &str, pkid: u16, payload: &str) {
        let qos = if pkid == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let mut publish = Publish::new(topic, qos, payload);
        publish.pkid = pkid;
        self.say(Packet::Publish(publish)).await;
    }

    async fn subscribe(&mut self, filter: &str, qos: QoS) -> SubscribeReasonCode {
        let mut subscribe = Subscribe::new(filter, qos);
        subscribe.pkid = 9;
        self.say(Packet::Subscribe(subscribe)).await;
        let Some(Packet::SubAck(ack)) = self.hear().await else { panic!("no SUBACK") };
        assert_eq!(ack.pkid, 9);
        ack.return_codes[0]
    }

    /// Everything said before has been dealt with once the answer is here.
    async fn ping(&mut self) {
        self.say(Packet::PingReq).await;
        assert_eq!(self.hear().await, Some(Packet::PingResp));
    }
}

fn hello(name: &str) -> Connect {
    Connect { keep_alive: 60, ..Connect::new(name) }
}

fn lasting(name: &str) -> Connect {
    Connect { clean_session: false, ..hello(name) }
}

fn willing(name: &str, topic: &str) -> Connect {
    Connect { last_will: Some(LastWill::new(topic, "gone", QoS::AtLeastOnce, true)), ..hello(name) }
}

async fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let waiting = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

// ---- acknowledgement ----------------------------------------------------------------------------------------

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

// ---- CONNECT ------------------------------------------------------------------------------------------------

#[tokio::test]
async fn connects_are_answered_as_the_specification_says() {
    let fixture = start(|_| {}, false).await;
    for (what, connect, code) in [
        ("no name, lasting", lasting(""), ConnectReturnCode::BadClientId),
        ("control characters", hello("a\tb"), ConnectReturnCode::BadClientId),
        ("a long name", hello(&"x".repeat(300)), ConnectReturnCode::BadClientId),
        ("no name, clean", hello(""), ConnectReturnCode::Success),
        ("a tool with a will for a device", willing("tool", "devices/B/state"), ConnectReturnCode::Success),
        ("a tool with a foreign will", willing("tool", "elsewhere"), ConnectReturnCode::NotAuthorized),
        ("a device's own will", willing("A", "devices/A/state"), ConnectReturnCode::Success),
        ("another's will", willing("A", "devices/B/state"), ConnectReturnCode::NotAuthorized),
        ("a will on the order topic", willing("A", "devices/A/execute"), ConnectReturnCode::NotAuthorized),
    ] {
        let (_client, ack) = Client::connect(&fixture, connect).await;
        assert_eq!(ack, Some(ConnAck::new(code, false)), "{what}");
    }
    for level in [3, 5] {
        let mut client = Client::dial(&fixture).await;
        client.raw(&[0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', level, 2, 0, 60, 0, 1, b'a']).await;
        let expected = ConnAck::new(ConnectReturnCode::RefusedProtocolVersion, false);
        assert_eq!(client.hear().await, Some(Packet::ConnAck(expected)));
        assert_eq!(client.hear().await, None);
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_closes_the_connection() {
    let qos2 = wire::publish("devices/A/telemetry", b"{}", Some(1), false);
    let mut qos2 = qos2.to_vec();
    qos2[0] = 0x34;
    let mut second = BytesMut::new();
    Packet::Connect(hello("A")).write(&mut second, 1_000).unwrap();
    for (what, bytes, reason) in [
        ("QoS 2", &qos2[..], "unsupported"),
        ("PUBREL", &[0x62, 2, 0, 1], "unsupported"),
        ("a second CONNECT", &second[..], "malformed"),
        ("a CONNACK", &[0x20, 2, 0, 0], "malformed"),
        ("QoS 3", &[0x36, 5, 0, 1, b'a', 0, 1], "malformed"),
        ("a huge packet", &[0x30, 0xff, 0xff, 0x7f], "packet_too_large"),
    ] {
        let fixture = start(|_| {}, false).await;
        let mut device = Client::named(&fixture, "A").await;
        device.raw(bytes).await;
        assert_eq!(device.hear().await, None, "{what}");
        until(what, || fixture.handle.stats().refused.contains_key(reason)).await;
        assert!(fixture.desk.topics().is_empty());
    }
    let fixture = start(|_| {}, false).await;
    let mut early = Client::dial(&fixture).await;
    early.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(early.hear().await, None);
    assert_eq!(fixture.handle.stats().refused["no_connect"], 1);
}

#[tokio::test]
async fn beyond_the_limit_of_clients_the_answer_is_server_unavailable() {
    let fixture = start(|config| config.clients_max = 1, false).await;
    let _first = Client::named(&fixture, "one").await;
    let (_second, ack) = Client::connect(&fixture, hello("two")).await;
    assert_eq!(ack.unwrap().code, ConnectReturnCode::ServiceUnavailable);
}

#[tokio::test]
async fn a_password_decides_who_a_client_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    let secret = "$7$101$6NjKSEb5ZYkqS0xS$\
        YlnidZRKxdsAFNTHW26CkjtjWmo0ownFxcZW6VJwh6wZ46rNIXVJS1NbJNV7jdwzW+6EEwMXYhok1fMeXt9bkA==";
    let lines = ["A", "technician", "stranger"].map(|user| format!("{user}:{secret}\n"));
    std::fs::write(&file, lines.concat()).unwrap();
    let change = |config: &mut EndpointConfig| {
        config.password_file = Some(file);
        config.watchers = vec!["technician".to_owned()];
    };
    let fixture = start(change, false).await;
    let login = |name: &str, user: &str, password: &str| {
        let mut connect = hello(name);
        connect.set_login(user, password);
        connect
    };
    for (connect, code) in [
        (hello("A"), ConnectReturnCode::NotAuthorized),
        (login("x", "A", "wrong"), ConnectReturnCode::BadUserNamePassword),
        (login("x", "nobody", "secret"), ConnectReturnCode::BadUserNamePassword),
        (login("x", "stranger", "secret"), ConnectReturnCode::NotAuthorized),
        (login("x", "A", "secret"), ConnectReturnCode::Success),
        (login("x", "technician", "secret"), ConnectReturnCode::Success),
    ] {
        let (_client, ack) = Client::connect(&fixture, connect.clone()).await;
        assert_eq!(ack.unwrap().code, code, "{connect:?}");
    }
    // The same client id under two names: nobody is thrown out.
    let (mut device, _) = Client::connect(&fixture, login("same", "A", "secret")).await;
    let (mut watcher, _) = Client::connect(&fixture, login("same", "technician", "secret")).await;
    assert_eq!(watcher.subscribe("#", QoS::AtLeastOnce).await, SubscribeReasonCode::Success(QoS::AtMostOnce));
    device.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(device.hear().await, Some(Packet::PubAck(PubAck::new(1))));
    let Some(Packet::Publish(seen)) = watcher.hear().await else { panic!("nothing forwarded") };
    assert_eq!((seen.topic.as_str(), seen.qos), ("devices/A/telemetry", QoS::AtMostOnce));
    watcher.publish("devices/A/telemetry", 1, "{}").await;
    assert_eq!(watcher.hear().await, None);
}

#[tokio::test]
async fn a_busy_port_and_an_open_address_are_one_clear_sentence_each() {
    let fixture = start(|_| {}, false).await;
    let bind = async |listen: SocketAddr| {
        let desk: Arc<dyn Intake> = Arc::new(Desk::default());
        let sessions = Arc::new(MemorySessions::default());
        Endpoint::bind(EndpointConfig::new(listen), desk, TopicScheme::default(), HashSet::new(), sessions).await
    };
    let busy = bind(fixture.address).await.err().unwrap().to_string();
    let expected = format!(
        "cannot listen on {}: the port is in use; is another MQTT broker or floorgate running?",
        fixture.address
    );
    assert_eq!(busy, expected);
    let open = bind((Ipv4Addr::UNSPECIFIED, 0).into()).await.err().unwrap();
    assert!(matches!(open, BindError::Open(_)));
}

// ---- rights, watching, sessions -----------------------------------------------------------------------------

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

// ---- orders -------------------------------------------------------------------------------------------------

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
    let handle = EndpointHandle::new(Arc::clone(&hub));
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
async fn who_says_nothing_is_closed_after_ten_seconds() {
    let fixture = start(|_| {}, false).await;
    let mut client = Client::dial(&fixture).await;
    let begun = Instant::now();
    assert_eq!(client.hear().await, None);
    assert!(begun.elapsed() >= CONNECT_WAIT);
    assert_eq!(fixture.handle.stats().refused["no_connect"], 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_bring_the_endpoint_down(
        bytes in proptest::collection::vec(any::<u8>(), 1..300),
        connected in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fixture = start(|_| {}, false).await;
            let mut client = if connected { Client::named(&fixture, "A").await } else { Client::dial(&fixture).await };
            client.raw(&bytes).await;
            let _ = client.stream.shutdown().await;
            while client.stream.read_buf(&mut client.buffer).await.unwrap_or(0) > 0 {}
            let mut other = Client::named(&fixture, "B").await;
            other.ping().await;
            assert!(!fixture.ended.is_finished());
        });
    }
}

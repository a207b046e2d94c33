//! The rules, one test each, over a real socket with the codec in the client's hand.

mod acknowledgement;
mod connect;
mod orders;
mod watching;

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
    /// Devices that took their connection over, and how many messages had come before.
    returned: Mutex<Vec<(DeviceId, usize)>>,
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

    fn returned<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, ()> {
        let before = self.taken.lock().unwrap().len();
        self.returned.lock().unwrap().push((device.clone(), before));
        Box::pin(std::future::ready(()))
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

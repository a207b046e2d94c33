//! An MQTT 3.1.1 broker for tests, in the test's own process, that misbehaves on demand.
//!
//! It keeps sessions, redelivers QoS 1, keeps retained messages, publishes wills and matches wildcards. Every switch of
//! [`Faults`] may be turned while clients are connected; everything clients do is written down in [`Log`].

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::matches;
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, QoS, SubAck, Subscribe, SubscribeReasonCode, UnsubAck,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

const PACKET_MAX: usize = 8 * 1024 * 1024;

/// What goes wrong.
#[derive(Debug, Default)]
pub struct Faults {
    /// Publishes are taken and never acknowledged.
    pub withhold_pubacks: bool,
    /// SUBSCRIBE is not answered.
    pub drop_subacks: bool,
    /// Every CONNECT finds its session forgotten.
    pub lose_sessions: bool,
    /// Every QoS 1 delivery comes twice, the second with DUP.
    pub duplicates: bool,
    /// These filters are refused.
    pub refuse: HashSet<String>,
    /// The connection is cut right after CONNACK.
    pub cut_after_connack: bool,
    /// The connection is cut after so many publishes were taken on it; the last of them is not acknowledged.
    pub cut_after: Option<usize>,
    /// Messages reach their subscribers up to so much later, each topic by a time of its own: late, and out of order
    /// across topics.
    pub late: Option<Duration>,
    /// CONNECT is answered with this.
    pub refuse_connect: Option<ConnectReturnCode>,
    /// New connections are closed before anything is said.
    pub hang_up: bool,
    /// CONNECT is read and never answered.
    pub no_connack: bool,
    /// So many deliveries are on their way to a session before their PUBACKs come; the others wait. None: no limit.
    pub window: Option<usize>,
    /// Connections on which something comes are half open from then on, for ever: what comes is read and forgotten.
    pub deaf: bool,
    /// After CONNACK comes what is no MQTT.
    pub garbage: bool,
    /// Sessions are kept, and said to be, without their subscriptions.
    pub lose_subscriptions: bool,
}

/// What clients did.
#[derive(Debug, Default)]
pub struct Log {
    /// When each CONNECT came.
    pub connects: Vec<Instant>,
    /// The filters of each SUBSCRIBE.
    pub subscribes: Vec<Vec<String>>,
    /// Every publish taken: topic, payload, retain flag.
    pub published: Vec<(String, Bytes, bool)>,
    /// Payloads of deliveries, in the order in which clients acknowledged them.
    pub acknowledged: Vec<Bytes>,
    /// Packet ids publishes came with.
    pub packet_ids: Vec<u16>,
    /// Clean DISCONNECTs.
    pub disconnects: usize,
}

#[derive(Default)]
struct Session {
    filters: Vec<String>,
    waiting: BTreeMap<u16, Publish>,
    beyond_window: VecDeque<Publish>,
    next_pkid: u16,
    line: Option<Line>,
}

#[derive(Clone)]
struct Line {
    number: u64,
    out: mpsc::Sender<Packet>,
}

#[derive(Default)]
pub struct Inner {
    pub faults: Faults,
    pub log: Log,
    sessions: HashMap<String, Session>,
    retained: HashMap<String, Bytes>,
    lines: u64,
}

#[derive(Clone)]
pub struct Broker {
    pub address: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    changed: watch::Sender<u64>,
    cuts: watch::Sender<u64>,
}

impl Broker {
    /// Listens on a free port of the loopback.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// The same behind TLS.
    pub async fn start_with(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Self {
            address: listener.local_addr().unwrap(),
            inner: Arc::default(),
            changed: watch::channel(0).0,
            cuts: watch::channel(0).0,
        };
        let accepting = broker.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (broker, tls) = (accepting.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => broker.serve(stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                broker.serve(stream).await;
                            }
                        }
                    }
                });
            }
        });
        broker
    }

    /// What a client's session listens to.
    pub fn filters(&self, client: &str) -> Vec<String> {
        self.lock().sessions.get(client).map(|session| session.filters.clone()).unwrap_or_default()
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Tells whenever something was published, delivered or acknowledged.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }

    /// Publishes as some other client would.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>, retain: bool) {
        let payload = payload.into();
        if retain {
            self.lock().retained.insert(topic.to_owned(), payload.clone());
        }
        let late = self.lock().faults.late;
        let Some(late) = late else { return self.route(topic, &payload) };
        // One time for a topic, so that its own messages stay in order.
        let part = topic.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 8;
        let (broker, topic) = (self.clone(), topic.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(late * part / 8).await;
            broker.route(&topic, &payload);
        });
    }

    /// Forgets every session and retained message, as a broker does that comes back without its disk.
    pub fn forget(&self) {
        let mut inner = self.lock();
        inner.sessions.clear();
        inner.retained.clear();
    }

    /// The retained message of a topic.
    pub fn retained(&self, topic: &str) -> Option<Bytes> {
        self.lock().retained.get(topic).cloned()
    }

    /// Removes it.
    pub fn forget_retained(&self, topic: &str) {
        self.lock().retained.remove(topic);
    }

    /// Waits until something shows, at most 30 s.
    pub async fn until(&self, what: &str, mut shown: impl FnMut(&Inner) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !shown(&self.lock()) {
                changed.changed().await.unwrap();
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(30), waiting).await.is_ok(), "never: {what}");
    }

    fn tell(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    fn route(&self, topic: &str, payload: &Bytes) {
        let mut inner = self.lock();
        let (twice, window) = (inner.faults.duplicates, inner.faults.window);
        for session in inner.sessions.values_mut() {
            if session.filters.iter().any(|filter| matches(topic, filter)) {
                let room = window.is_none_or(|window| session.waiting.len() < window);
                if room {
                    session.deliver(topic, payload.clone(), false, twice);
                } else {
                    session.beyond_window.push_back(Publish::new(topic, QoS::AtLeastOnce, payload.to_vec()));
                }
            }
        }
        drop(inner);
        self.tell();
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(&self, mut stream: S) {
        let mut buffer = BytesMut::new();
        if self.lock().faults.hang_up {
            return;
        }
        let Some(Packet::Connect(connect)) = read(&mut stream, &mut buffer).await else { return };
        if self.lock().faults.no_connack || self.lock().faults.deaf {
            self.lock().log.connects.push(Instant::now());
            return swallow(&mut stream).await;
        }
        let (out, mut lines) = mpsc::channel(10_000);
        let mut cuts = self.cuts.subscribe();
        let Some(number) = self.connect(&connect, &out) else {
            let refused = self.lock().faults.refuse_connect.unwrap_or(ConnectReturnCode::ServiceUnavailable);
            let _ = write(&mut stream, Packet::ConnAck(ConnAck { session_present: false, code: refused })).await;
            return;
        };
        let mut taken = 0;
        let mut clean = false;
        loop {
            tokio::select! {
                packet = read(&mut stream, &mut buffer) => match packet {
                    Some(Packet::Disconnect) => {
                        clean = true;
                        self.lock().log.disconnects += 1;
                        self.tell();
                        break;
                    }
                    Some(_) if self.lock().faults.deaf => {
                        swallow(&mut stream).await;
                        break;
                    }
                    Some(packet) => if !self.packet(&connect.client_id, packet, &out, &mut taken) { break },
                    None => break,
                },
                packet = lines.recv() => match packet {
                    Some(packet) => {
                        let connack = matches!(packet, Packet::ConnAck(_));
                        if !connack && self.lock().faults.garbage {
                            let _ = stream.write_all(&[0xff; 64]).await;
                            break;
                        }
                        if !write(&mut stream, packet).await || (connack && self.lock().faults.cut_after_connack) {
                            break;
                        }
                    }
                    None => break,
                },
                _ = cuts.changed() => break,
            }
        }
        self.disconnected(&connect, number, clean);
    }

    fn connect(&self, connect: &Connect, out: &mpsc::Sender<Packet>) -> Option<u64> {
        let mut inner = self.lock();
        inner.log.connects.push(Instant::now());
        if inner.faults.refuse_connect.is_some() {
            return None;
        }
        inner.lines += 1;
        let number = inner.lines;
        if connect.clean_session || inner.faults.lose_sessions {
            inner.sessions.remove(&connect.client_id);
        }
        if inner.faults.lose_subscriptions {
            inner.sessions.values_mut().for_each(|session| session.filters.clear());
        }
        let session_present = inner.sessions.contains_key(&connect.client_id);
        let session = inner.sessions.entry(connect.client_id.clone()).or_default();
        // The older connection of this client sees its queue end.
        session.line = Some(Line { number, out: out.clone() });
        out.try_send(Packet::ConnAck(ConnAck { session_present, code: ConnectReturnCode::Success })).unwrap();
        for publish in session.waiting.values_mut() {
            publish.dup = true;
            let _ = out.try_send(Packet::Publish(publish.clone()));
        }
        drop(inner);
        self.tell();
        Some(number)
    }

    fn disconnected(&self, connect: &Connect, number: u64, clean: bool) {
        let mut inner = self.lock();
        let session = inner.sessions.get_mut(&connect.client_id);
        if let Some(session) = session.filter(|s| s.line.as_ref().is_some_and(|line| line.number == number)) {
            session.line = None;
        }
        drop(inner);
        if let Some(will) = connect.last_will.as_ref().filter(|_| !clean) {
            self.publish(&will.topic, will.message.clone(), will.retain);
        }
        self.tell();
    }

    /// Carries out one packet; false: cut the connection.
    fn packet(&self, client: &str, packet: Packet, out: &mpsc::Sender<Packet>, taken: &mut usize) -> bool {
        match packet {
            Packet::Publish(publish) => return self.take(publish, out, taken),
            Packet::PubAck(ack) => {
                let mut inner = self.lock();
                let acknowledged = inner.sessions.get_mut(client).and_then(|session| {
                    let acknowledged = session.waiting.remove(&ack.pkid);
                    if let Some(next) = session.beyond_window.pop_front() {
                        session.deliver(&next.topic, next.payload, false, false);
                    }
                    acknowledged
                });
                inner.log.acknowledged.extend(acknowledged.map(|publish| publish.payload));
            }
            Packet::Subscribe(subscribe) => self.subscribe(client, &subscribe, out),
            Packet::Unsubscribe(unsubscribe) => {
                let mut inner = self.lock();
                if let Some(session) = inner.sessions.get_mut(client) {
                    session.filters.retain(|filter| !unsubscribe.topics.contains(filter));
                }
                if !inner.faults.drop_subacks {
                    out.try_send(Packet::UnsubAck(UnsubAck { pkid: unsubscribe.pkid })).unwrap();
                }
            }
            Packet::PingReq => out.try_send(Packet::PingResp).unwrap(),
            _ => {}
        }
        self.tell();
        true
    }

    fn take(&self, publish: Publish, out: &mpsc::Sender<Packet>, taken: &mut usize) -> bool {
        let mut inner = self.lock();
        inner.log.published.push((publish.topic.clone(), publish.payload.clone(), publish.retain));
        inner.log.packet_ids.push(publish.pkid);
        *taken += 1;
        let cut = inner.faults.cut_after.is_some_and(|after| *taken >= after);
        let silent = inner.faults.withhold_pubacks;
        drop(inner);
        if !cut && !silent && publish.qos == QoS::AtLeastOnce {
            out.try_send(Packet::PubAck(PubAck::new(publish.pkid))).unwrap();
        }
        self.publish(&publish.topic, publish.payload, publish.retain);
        !cut
    }

    fn subscribe(&self, client: &str, subscribe: &Subscribe, out: &mpsc::Sender<Packet>) {
        let mut inner = self.lock();
        let filters: Vec<String> = subscribe.filters.iter().map(|filter| filter.path.clone()).collect();
        inner.log.subscribes.push(filters.clone());
        if inner.faults.drop_subacks {
            return;
        }
        let refuse = |filter: &String| inner.faults.refuse.contains(filter);
        let (refused, granted): (Vec<_>, Vec<_>) = filters.iter().cloned().partition(refuse);
        let code = |filter: &String| match refused.contains(filter) {
            true => SubscribeReasonCode::Failure,
            false => SubscribeReasonCode::Success(QoS::AtLeastOnce),
        };
        out.try_send(Packet::SubAck(SubAck::new(subscribe.pkid, filters.iter().map(code).collect()))).unwrap();
        let retained: VecDeque<_> = inner.retained.iter().map(|(t, p)| (t.clone(), p.clone())).collect();
        let session = inner.sessions.entry(client.to_owned()).or_default();
        for filter in granted {
            for (topic, payload) in retained.iter().filter(|(topic, _)| matches(topic, &filter)) {
                session.deliver(topic, payload.clone(), true, false);
            }
            if !session.filters.contains(&filter) {
                session.filters.push(filter);
            }
        }
    }
}

impl Session {
    fn deliver(&mut self, topic: &str, payload: Bytes, retain: bool, twice: bool) {
        self.next_pkid = self.next_pkid % u16::MAX + 1;
        let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, payload);
        (publish.pkid, publish.retain) = (self.next_pkid, retain);
        self.waiting.insert(publish.pkid, publish.clone());
        if let Some(line) = &self.line {
            let _ = line.out.try_send(Packet::Publish(publish.clone()));
            if twice {
                publish.dup = true;
                let _ = line.out.try_send(Packet::Publish(publish));
            }
        }
    }
}

/// Reads until the other side goes, and answers nothing.
async fn swallow<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut nothing = [0; 4_096];
    while matches!(stream.read(&mut nothing).await, Ok(n) if n > 0) {}
}

/// Cancel safe: what was read stays in the buffer.
async fn read<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut BytesMut) -> Option<Packet> {
    loop {
        match Packet::read(buffer, PACKET_MAX) {
            Ok(packet) => return Some(packet),
            Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
            Err(error) => panic!("a client sent what is no MQTT: {error}"),
        }
        if !matches!(stream.read_buf(buffer).await, Ok(n) if n > 0) {
            return None;
        }
    }
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, packet: Packet) -> bool {
    let mut bytes = BytesMut::new();
    packet.write(&mut bytes, PACKET_MAX).unwrap();
    stream.write_all(&bytes).await.is_ok() && stream.flush().await.is_ok()
}

//! One connection, from its first byte to its last will.
//!
//! One task serves it. All packets of a read are taken before anything is written, so PUBACKs leave in batches.
//! Reading pauses while [`UNSETTLED_MAX`] messages wait for the store, while the store's queue is full, while the
//! client's packets or its device's messages come faster than allowed, or while it does not take what is written to it. The keep-alive does not
//! run while reading pauses: a client is not silent because nobody listens.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use floorgate_model::DeviceId;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, ConnectReturnCode, LastWill, Packet, Publish, Subscribe, SubscribeReasonCode, Unsubscribe,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::admission::{self, Admitted, Proof, Rejection};
use super::doorman::{Doorman, Place};
use super::hub::{Hub, Queue};
use super::inbox::Inbox;
use super::outbox::{Outbox, QUEUE_MAX};
use super::rights::{Grant, Role};
use super::session::Subscriptions;
use super::stats::Refusal;
use super::wire::{self, WireError};
use crate::mqtt::pace::Pace;
use crate::mqtt::{Acceptance, Inbound};

/// Accepted messages of one connection that may wait for the store; beyond, nothing more is read from it.
pub const UNSETTLED_MAX: usize = 200;
/// Topic filters of one client; beyond, SUBACK 0x80.
pub const FILTERS_MAX: usize = 32;
/// How long a client may take for its CONNECT; then it is closed.
pub const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How long a last will may take to be stored; then it is given up, and silence tells the rest.
pub const WILL_WAIT: Duration = Duration::from_secs(10);
/// How long a last answer may take to leave before the connection is closed.
const CLOSING_WAIT: Duration = Duration::from_secs(1);
/// When keep-alive is 0 the connection's timer still needs a time to look at.
const NEVER: Duration = Duration::from_secs(24 * 3_600);

/// Why a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// DISCONNECT: no last will.
    Goodbye,
    /// The gateway stops: no last will, because the device is not gone.
    Shutdown,
    /// The network connection ended.
    Lost,
    /// Another connection of the same client came, or its device is no longer attached.
    Replaced,
    /// We closed it.
    Refused(Refusal, String),
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        let reason = if matches!(error, WireError::TooLarge(_)) { Refusal::PacketTooLarge } else { Refusal::Malformed };
        Self::Refused(reason, error.to_string())
    }
}

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct House {
    pub(super) hub: Arc<Hub>,
    pub(super) proof: Arc<Proof>,
    pub(super) doorman: Doorman,
    pub(super) packet_max: usize,
    pub(super) rate_per_second: u32,
    pub(super) rate_burst: u32,
    pub(super) shutdown: CancellationToken,
}

impl House {
    fn refuse(&self, reason: Refusal, who: &dyn std::fmt::Display, what: &str) {
        self.hub.counters.refuse(reason, who, &what);
    }
}

/// Serves a connection until it ends. `certificate` is the common name of a verified client certificate.
pub(super) async fn attend<S>(house: House, stream: S, address: IpAddr, certificate: Option<String>, place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (reader, writer) = tokio::io::split(stream);
    let (queue, waiting) = mpsc::channel(QUEUE_MAX);
    let (mut outbox, mut inbox) = (Outbox::new(writer, waiting), Inbox::new(reader, house.packet_max));
    let rejection = match first_packet(&house, &mut inbox, &address).await {
        Ok(Some(connect)) => {
            let admitted = tokio::select! {
                admitted = admission::admit(
                    &house.hub, &house.proof, &house.doorman, &connect, address, certificate.as_deref(),
                ) => admitted,
                () = house.shutdown.cancelled() => return,
            };
            match admitted {
                Ok(admitted) => {
                    drop(place);
                    return Connection::open(&house, &connect, admitted, inbox, outbox, queue).await.live(&house).await;
                }
                Err(rejection) => rejection,
            }
        }
        Ok(None) => return,
        Err(rejection) => rejection,
    };
    house.refuse(rejection.refusal, &address, &rejection.text);
    wire::connack(outbox.pending(), rejection.code, false);
    outbox.close(CLOSING_WAIT).await;
    // Closing with bytes unread would reset the connection and could destroy the CONNACK on its way.
    let _ = timeout(CLOSING_WAIT, inbox.drain()).await;
}

/// The CONNECT; `None` if the connection is to be closed without a word.
async fn first_packet<R: AsyncRead + Unpin>(
    house: &House,
    inbox: &mut Inbox<R>,
    address: &IpAddr,
) -> Result<Option<Connect>, Rejection> {
    let packet = tokio::select! {
        packet = timeout(CONNECT_WAIT, inbox.packet()) => packet,
        () = house.shutdown.cancelled() => return Ok(None),
    };
    let (reason, what) = match packet {
        Ok(Ok(Some(Packet::Connect(connect)))) => return Ok(Some(connect)),
        Ok(Ok(Some(_))) => (Refusal::NoConnect, "its first packet is no CONNECT".to_owned()),
        // Closed before it said anything: a port check.
        Ok(Ok(None)) => return Ok(None),
        Ok(Err(error @ WireError::Level(_))) => {
            let (code, refusal) = (ConnectReturnCode::RefusedProtocolVersion, Refusal::ProtocolLevel);
            return Err(Rejection { code, refusal, text: error.to_string() });
        }
        Ok(Err(error @ WireError::TooLarge(_))) => (Refusal::PacketTooLarge, error.to_string()),
        Ok(Err(error)) => (Refusal::Malformed, error.to_string()),
        Err(_) => (Refusal::NoConnect, format!("no CONNECT within {} s", CONNECT_WAIT.as_secs())),
    };
    house.refuse(reason, address, &what);
    Ok(None)
}

/// What has to happen before the next packet is taken.
enum Wait {
    /// Bytes have to come.
    Bytes,
    /// The pace allows the next at this time.
    Pace(Instant),
    /// The outbox has to get on.
    Outbox,
}

/// A packet that has to wait for its time.
struct Held {
    packet: Packet,
    /// The connection's own limit has let it pass already; its device's has not.
    paced: bool,
}

/// An admitted client's connection.
struct Connection<R, W> {
    admitted: Admitted,
    will: Option<LastWill>,
    clean: bool,
    /// One and a half times the client's keep-alive; `None` if it is 0.
    silence_max: Option<Duration>,
    subscriptions: Subscriptions,
    inbox: Inbox<R>,
    /// A packet that came faster than allowed.
    held: Option<Held>,
    pace: Pace,
    outbox: Outbox<W>,
    queue: Queue,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Connection<R, W> {
    /// Resumes the session and answers CONNECT.
    async fn open(
        house: &House,
        connect: &Connect,
        admitted: Admitted,
        inbox: Inbox<R>,
        mut outbox: Outbox<W>,
        queue: Queue,
    ) -> Self {
        let (hub, key) = (&house.hub, &admitted.seat.key);
        let (mut subscriptions, present) = hub.resume(key, connect.clean_session).await;
        // The role may have changed since: no right outlives it.
        subscriptions.retain(|filter, _| admitted.role.may_subscribe(&hub.scheme, filter).is_some());
        if !connect.clean_session {
            hub.keep(key, &subscriptions).await;
        }
        if let (Role::Device(device), true) = (&admitted.role, admitted.took_over) {
            hub.intake.returned(device).await;
        }
        hub.counters.accepted.fetch_add(1, Ordering::Relaxed);
        wire::connack(outbox.pending(), ConnectReturnCode::Success, present);
        let silence_max = Duration::from_millis(u64::from(connect.keep_alive) * 1_500);
        let connection = Self {
            admitted,
            will: connect.last_will.clone(),
            clean: connect.clean_session,
            silence_max: (!silence_max.is_zero()).then_some(silence_max),
            subscriptions,
            inbox,
            held: None,
            pace: Pace::new(house.rate_per_second, house.rate_burst, Instant::now()),
            outbox,
            queue,
        };
        connection.register(hub);
        connection
    }

    /// Serves until the end, and then does what the end asks for.
    async fn live(mut self, house: &House) {
        let kick = self.admitted.seat.kick.clone();
        let end = tokio::select! {
            biased;
            () = house.shutdown.cancelled() => End::Shutdown,
            () = kick.cancelled() => End::Replaced,
            end = self.serve(&house.hub) => end,
        };
        let Self { admitted: Admitted { role, seat, .. }, outbox, will, clean, .. } = self;
        if let End::Refused(reason, what) = &end {
            house.refuse(*reason, &seat.key, what);
        }
        tracing::debug!(client = %seat.key, ?end, "floor client gone");
        if let Role::Device(device) = &role {
            // The queue goes with the outbox: orders in it are told that they did not leave.
            house.hub.unset_line(device, seat.number);
        }
        // An order is never repeated, so the session that should repeat it ends: the client sees session_present = 0.
        if !clean && outbox.owes_acknowledgement() {
            house.hub.forget(&seat.key).await;
        }
        drop(outbox);
        // A half-open connection ends long after its device has come back under another client id: that it is gone is
        // not so, and the newer connection wins.
        let newer = matches!(&role, Role::Device(device) if house.hub.has_newer(device, seat.number));
        if let Some(will) = will.filter(|_| !newer && !matches!(end, End::Goodbye | End::Shutdown)) {
            publish_will(&house.hub, will, &seat.key).await;
        }
        // The seat goes last: a successor's first message comes after this client's last will.
        drop(seat);
    }

    async fn serve(&mut self, hub: &Hub) -> End {
        match self.serve_until_error(hub).await {
            Err(end) => end,
            Ok(never) => match never {},
        }
    }

    async fn serve_until_error(&mut self, hub: &Hub) -> Result<std::convert::Infallible, End> {
        let mut heard = Instant::now();
        let patience = self.silence_max.unwrap_or(NEVER);
        let silence = sleep_until(heard + patience);
        tokio::pin!(silence);
        loop {
            let wait = self.take_packets(hub).await?;
            let reading = matches!(wait, Wait::Bytes);
            tokio::select! {
                turned = self.outbox.turn(hub) => turned?,
                read = self.inbox.read(), if reading => match read {
                    Ok(0) | Err(_) => return Err(End::Lost),
                    Ok(_) => heard = Instant::now(),
                },
                () = pause(&wait) => {}
                () = silence.as_mut() => {
                    let now = Instant::now();
                    if !reading || self.silence_max.is_none() {
                        heard = now;
                    } else if now >= heard + patience {
                        let text = format!("silent for {} ms", patience.as_millis());
                        return Err(End::Refused(Refusal::KeepAlive, text));
                    }
                    silence.as_mut().reset(heard + patience);
                }
            }
        }
    }

    /// Takes the packets that are there, as far as it may.
    async fn take_packets(&mut self, hub: &Hub) -> Result<Wait, End> {
        loop {
            if self.outbox.unsettled() >= UNSETTLED_MAX || self.outbox.is_full() {
                return Ok(Wait::Outbox);
            }
            let Held { packet, paced } = match self.held.take() {
                Some(held) => held,
                None => match self.inbox.buffered()? {
                    Some(packet) => Held { packet, paced: false },
                    None => return Ok(Wait::Bytes),
                },
            };
            let now = Instant::now();
            if let Err(later) = if paced { Ok(()) } else { self.pace.take(now) } {
                self.held = Some(Held { packet, paced: false });
                return Ok(Wait::Pace(later));
            }
            if let Packet::Publish(publish) = &packet
                && let Err(later) = hub.intake.admit(&publish.topic, now)
            {
                self.held = Some(Held { packet, paced: true });
                return Ok(Wait::Pace(later));
            }
            self.take(hub, packet).await?;
        }
    }

    async fn take(&mut self, hub: &Hub, packet: Packet) -> Result<(), End> {
        let unsupported = |what: &str| Err(End::Refused(Refusal::Unsupported, what.to_owned()));
        match packet {
            Packet::Publish(publish) if publish.qos == QoS::ExactlyOnce => unsupported("QoS 2 is not spoken here"),
            Packet::Publish(publish) => self.take_publish(hub, publish).await,
            Packet::PubAck(ack) => {
                self.outbox.acknowledged(ack.pkid);
                Ok(())
            }
            Packet::Subscribe(subscribe) => self.take_subscribe(hub, &subscribe).await,
            Packet::Unsubscribe(unsubscribe) => self.take_unsubscribe(hub, &unsubscribe).await,
            Packet::PingReq => {
                wire::pingresp(self.outbox.pending());
                Ok(())
            }
            Packet::Disconnect => Err(End::Goodbye),
            Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => unsupported("QoS 2 is not spoken here"),
            Packet::Connect(_) => Err(WireError::Malformed("a second CONNECT").into()),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(WireError::Malformed("a packet only a server sends").into())
            }
        }
    }

    async fn take_publish(&mut self, hub: &Hub, publish: Publish) -> Result<(), End> {
        let Publish { dup, qos, retain, topic, pkid, payload } = publish;
        if !self.admitted.role.may_publish(&hub.scheme, &topic) {
            return Err(End::Refused(Refusal::ForbiddenPublish, format!("no right to publish to `{topic}`")));
        }
        let shown = (retain || hub.is_watched()).then(|| (topic.clone(), payload.clone()));
        let inbound = Inbound { topic, payload, retained: false, redelivered: dup };
        let mut accepting = hub.intake.accept(inbound);
        let accepted = loop {
            // While the store's queue is full, PUBACKs and orders go on.
            tokio::select! {
                biased;
                accepted = &mut accepting => break accepted,
                turned = self.outbox.turn(hub) => turned?,
            }
        };
        let acceptance =
            accepted.map_err(|error| End::Refused(Refusal::NotStored, format!("a message is not stored: {error}")))?;
        hub.counters.messages.fetch_add(1, Ordering::Relaxed);
        if let Some((topic, payload)) = shown {
            show(hub, &topic, &payload, retain);
        }
        if qos == QoS::AtLeastOnce {
            self.outbox.owe(pkid, acceptance);
        }
        Ok(())
    }

    async fn take_subscribe(&mut self, hub: &Hub, subscribe: &Subscribe) -> Result<(), End> {
        let mut codes = Vec::with_capacity(subscribe.filters.len());
        let mut retained = Vec::new();
        for asked in &subscribe.filters {
            let full = self.subscriptions.len() >= FILTERS_MAX && !self.subscriptions.contains_key(&asked.path);
            let grant = self.admitted.role.may_subscribe(&hub.scheme, &asked.path).filter(|_| !full);
            let (qos, level) = match grant {
                Some(Grant::Orders) if asked.qos != QoS::AtMostOnce => (QoS::AtLeastOnce, 1),
                Some(_) => (QoS::AtMostOnce, 0),
                None => {
                    let what = format!("no right to subscribe to `{}`, or over {FILTERS_MAX} filters", asked.path);
                    hub.counters.refuse(Refusal::ForbiddenSubscribe, &self.admitted.seat.key, &what);
                    codes.push(SubscribeReasonCode::Failure);
                    continue;
                }
            };
            codes.push(SubscribeReasonCode::Success(qos));
            self.subscriptions.insert(asked.path.clone(), level);
            if grant == Some(Grant::Watching) {
                retained.extend(hub.retained(&asked.path));
            }
        }
        self.subscriptions_changed(hub).await;
        wire::suback(self.outbox.pending(), subscribe.pkid, codes);
        self.outbox.add_retained(retained);
        Ok(())
    }

    async fn take_unsubscribe(&mut self, hub: &Hub, unsubscribe: &Unsubscribe) -> Result<(), End> {
        for filter in &unsubscribe.topics {
            self.subscriptions.remove(filter);
        }
        self.subscriptions_changed(hub).await;
        wire::unsuback(self.outbox.pending(), unsubscribe.pkid);
        Ok(())
    }

    async fn subscriptions_changed(&self, hub: &Hub) {
        self.register(hub);
        if !self.clean {
            hub.keep(&self.admitted.seat.key, &self.subscriptions).await;
        }
    }

    /// Tells the hub what this connection takes.
    fn register(&self, hub: &Hub) {
        let number = self.admitted.seat.number;
        match &self.admitted.role {
            // A device's only filter is its execute topic.
            Role::Device(device) => {
                hub.set_line(device, number, self.subscriptions.values().next().copied(), &self.queue)
            }
            Role::Watcher | Role::Local => {
                hub.set_watching(number, self.subscriptions.keys().cloned().collect(), &self.queue);
            }
        }
    }
}

impl Hub {
    fn unset_line(&self, device: &DeviceId, number: u64) {
        let (nobody, _) = mpsc::channel(1);
        self.set_line(device, number, None, &nobody);
    }
}

/// Ends when the pace allows the next packet; never, if that is not what is waited for.
async fn pause(wait: &Wait) {
    match wait {
        Wait::Pace(later) => sleep_until(*later).await,
        Wait::Bytes | Wait::Outbox => std::future::pending().await,
    }
}

/// Shows an accepted message to watchers, and keeps it if it is a retained state.
fn show(hub: &Hub, topic: &str, payload: &Bytes, retain: bool) {
    if retain {
        hub.retain(topic, payload);
    }
    hub.forward(topic, payload);
}

/// Hands a last will to the intake.
async fn publish_will(hub: &Hub, will: LastWill, client: &str) {
    let inbound =
        Inbound { topic: will.topic.clone(), payload: will.message.clone(), retained: false, redelivered: false };
    let handed = async {
        match hub.intake.accept(inbound).await.map_err(|error| error.to_string())? {
            Acceptance::Pending(receipt) if will.qos != QoS::AtMostOnce => match receipt.await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the store went away".to_owned()),
            },
            Acceptance::Settled | Acceptance::Pending(_) => Ok(()),
        }
    };
    match timeout(WILL_WAIT, handed).await.unwrap_or_else(|_| Err(format!("not within {} s", WILL_WAIT.as_secs()))) {
        Ok(()) => show(hub, &will.topic, &will.message, will.retain),
        Err(cause) => tracing::warn!(%client, topic = %will.topic, %cause, "a last will is not stored"),
    }
}

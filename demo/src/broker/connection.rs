//! One client's connection, from CONNECT to its end.

use std::io;
use std::time::Duration;

use rumqttc::mqttbytes::valid_filter;
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, QoS, SubAck, Subscribe, SubscribeReasonCode,
    UnsubAck,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::core::Ticket;
use super::session::Attached;
use super::wire::Wire;
use super::{Message, Shared};

/// A client that has not said CONNECT by then is cut off.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// A client that does not take what is sent to it for so long is cut off.
const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// Without a keep-alive, a silent connection is kept this long.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 3_600);

/// Serves one client until it leaves, breaks the rules, or the link is cut.
pub(crate) async fn serve(stream: TcpStream, core: Shared) {
    let mut wire = Wire::new(stream);
    let Ok(Ok(Packet::Connect(connect))) = timeout(CONNECT_WITHIN, wire.read()).await else { return };
    // [MQTT-3.1.3-8]: without a name of its own, a client cannot have a session to come back to.
    if connect.client_id.is_empty() && !connect.clean_session {
        let _ = wire.write([Packet::ConnAck(ConnAck::new(ConnectReturnCode::BadClientId, false))]).await;
        return;
    }
    let client_id = if connect.client_id.is_empty() {
        format!("anonymous-{:016x}", fastrand::u64(..))
    } else {
        connect.client_id.clone()
    };
    let ticket = core.lock().attach(&client_id, connect.clean_session);
    let Some(Ticket { attached, session_present }) = ticket else {
        let _ = wire.write([Packet::ConnAck(ConnAck::new(ConnectReturnCode::ServiceUnavailable, false))]).await;
        return;
    };
    let mut client = Client { core, client_id, attached, will: connect.last_will.clone() };
    if wire.write([Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, session_present))]).await.is_ok() {
        // The reason is of no use to anyone: the client sees its connection closed and comes back.
        let _ = client.converse(&mut wire, &connect).await;
    }
}

/// A connected client. Dropping it, for whatever reason, detaches its session and publishes its will.
struct Client {
    core: Shared,
    client_id: String,
    attached: Attached,
    will: Option<LastWill>,
}

impl Drop for Client {
    fn drop(&mut self) {
        let will = self.will.take();
        self.core.lock().detach(&self.client_id, self.attached.number, will);
    }
}

impl Client {
    async fn converse(&mut self, wire: &mut Wire, connect: &Connect) -> io::Result<()> {
        let patience = match connect.keep_alive {
            0 => SILENCE_MAX,
            seconds => Duration::from_secs(u64::from(seconds)) * 3 / 2,
        };
        let mut heard = Instant::now();
        loop {
            let packets = tokio::select! {
                packet = wire.read() => {
                    heard = Instant::now();
                    let Some(packets) = self.take(packet?)? else { return Ok(()) };
                    packets
                }
                () = self.attached.bell.notified() => Vec::new(),
                () = sleep_until(heard + patience) => return Err(io::ErrorKind::TimedOut.into()),
            };
            self.send(wire, packets).await?;
            // An acknowledgement may have made room in the window: send until nothing is due.
            loop {
                let due = self.core.lock().due(&self.client_id, self.attached.number);
                let due = due.ok_or(io::ErrorKind::ConnectionReset)?;
                if due.is_empty() {
                    break;
                }
                self.send(wire, due).await?;
            }
        }
    }

    async fn send(&self, wire: &mut Wire, packets: Vec<Packet>) -> io::Result<()> {
        if packets.is_empty() {
            return Ok(());
        }
        timeout(WRITE_WITHIN, wire.write(packets)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// Takes one packet; answers what to send for it, or `None` when the client said good-bye.
    fn take(&mut self, packet: Packet) -> io::Result<Option<Vec<Packet>>> {
        let mut core = self.core.lock();
        let answer = match packet {
            Packet::Publish(publish) if publish.qos != QoS::ExactlyOnce && is_topic(&publish.topic) => {
                let acknowledge = (publish.qos == QoS::AtLeastOnce).then(|| Packet::PubAck(PubAck::new(publish.pkid)));
                core.publish(Message {
                    topic: publish.topic,
                    payload: publish.payload,
                    retain: publish.retain,
                    qos: publish.qos,
                });
                acknowledge
            }
            Packet::PubAck(ack) => {
                let session = core.session(&self.client_id, self.attached.number);
                session.ok_or(io::ErrorKind::ConnectionReset)?.acknowledged(ack.pkid);
                None
            }
            Packet::Subscribe(Subscribe { pkid, filters }) => {
                let mut codes = Vec::with_capacity(filters.len());
                for filter in filters {
                    // QoS 2 is granted as 1 [MQTT-3.8.4-6].
                    let qos = if filter.qos == QoS::AtMostOnce { QoS::AtMostOnce } else { QoS::AtLeastOnce };
                    codes.push(if valid_filter(&filter.path) {
                        core.subscribe(&self.client_id, self.attached.number, &filter.path, qos);
                        SubscribeReasonCode::Success(qos)
                    } else {
                        SubscribeReasonCode::Failure
                    });
                }
                Some(Packet::SubAck(SubAck::new(pkid, codes)))
            }
            Packet::Unsubscribe(unsubscribe) => {
                let session = core.session(&self.client_id, self.attached.number);
                let session = session.ok_or(io::ErrorKind::ConnectionReset)?;
                unsubscribe.topics.iter().for_each(|filter| session.unsubscribe(filter));
                Some(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)))
            }
            Packet::PingReq => Some(Packet::PingResp),
            Packet::Disconnect => {
                drop(core);
                self.will = None;
                return Ok(None);
            }
            // QoS 2, a second CONNECT, a topic with wild cards, packets only a server sends.
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        Ok(Some(answer.into_iter().collect()))
    }
}

fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

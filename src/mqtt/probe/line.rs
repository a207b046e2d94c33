//! One connection of a probe: packets out, packets in, one after the other.

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{ConnAck, Connect, Packet, PubAck, Publish};
use rumqttc::mqttbytes::{Error, QoS};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::ProbeError;
use crate::mqtt::link::{LinkConfig, PACKET_MAX};

/// A connection, with TLS or without.
pub(super) type Stream = Box<dyn Duplex>;

/// Both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

pub(super) struct Line {
    stream: Stream,
    read: BytesMut,
}

fn broken(what: impl std::fmt::Display) -> ProbeError {
    ProbeError::Broken(format!("the connection broke: {what}"))
}

impl Line {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, read: BytesMut::new() }
    }

    /// CONNECT with the link's login and no last will.
    pub(super) async fn connect(&mut self, link: &LinkConfig, id: &str, clean: bool) -> Result<ConnAck, ProbeError> {
        let mut connect = Connect::new(id);
        connect.clean_session = clean;
        connect.keep_alive = 60;
        if let Some(login) = &link.login {
            connect.set_login(&login.user, &login.password);
        }
        self.send(&Packet::Connect(connect)).await?;
        match self.receive().await? {
            Packet::ConnAck(answer) => Ok(answer),
            _ => Err(ProbeError::Broken("its first packet is no CONNACK".to_owned())),
        }
    }

    pub(super) async fn send(&mut self, packet: &Packet) -> Result<(), ProbeError> {
        self.send_all([packet]).await
    }

    /// Several packets in one go.
    pub(super) async fn send_all<'a>(
        &mut self,
        packets: impl IntoIterator<Item = &'a Packet>,
    ) -> Result<(), ProbeError> {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, PACKET_MAX).map_err(broken)?;
        }
        self.stream.write_all(&bytes).await.map_err(broken)?;
        self.stream.flush().await.map_err(broken)
    }

    /// The next packet. Cancel safe: what was read stays.
    pub(super) async fn receive(&mut self) -> Result<Packet, ProbeError> {
        loop {
            match Packet::read(&mut self.read, PACKET_MAX) {
                Ok(packet) => return Ok(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(ProbeError::Broken(format!("what it says is no MQTT: {error}"))),
            }
            if self.stream.read_buf(&mut self.read).await.map_err(broken)? == 0 {
                return Err(ProbeError::Broken("it closed the connection".to_owned()));
            }
        }
    }

    pub(super) async fn acknowledge(&mut self, pkid: u16) -> Result<(), ProbeError> {
        self.send(&Packet::PubAck(PubAck::new(pkid))).await
    }

    /// Says farewell; nobody is to be told if that fails.
    pub(super) async fn disconnect(mut self) {
        let _ = self.send(&Packet::Disconnect).await;
        let _ = self.stream.shutdown().await;
    }
}

/// A message with QoS 1.
pub(super) fn message(topic: &str, pkid: u16, payload: String) -> Packet {
    let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, Bytes::from(payload));
    publish.pkid = pkid;
    Packet::Publish(publish)
}

//! Packets on a TCP stream, with rumqttc's codec.

use std::io;

use bytes::BytesMut;
use rumqttc::Packet;
use rumqttc::mqttbytes::Error as CodecError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::PACKET_MAX;

/// A connection as packets.
pub(crate) struct Wire {
    stream: TcpStream,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, incoming: BytesMut::with_capacity(4096), outgoing: BytesMut::new() }
    }

    /// The next packet. Cancel safe: what was read stays in the buffer.
    ///
    /// # Errors
    /// The connection ended, or what came is no MQTT.
    pub(crate) async fn read(&mut self) -> io::Result<Packet> {
        loop {
            match Packet::read(&mut self.incoming, PACKET_MAX) {
                Ok(packet) => return Ok(packet),
                Err(CodecError::InsufficientBytes(_)) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Sends packets. Not cancel safe: the connection is of no use afterwards.
    ///
    /// # Errors
    /// The connection ended, or a packet is too large.
    pub(crate) async fn write(&mut self, packets: impl IntoIterator<Item = Packet>) -> io::Result<()> {
        self.outgoing.clear();
        for packet in packets {
            packet.write(&mut self.outgoing, PACKET_MAX).map_err(|error| io::Error::other(error.to_string()))?;
        }
        self.stream.write_all(&self.outgoing).await
    }
}

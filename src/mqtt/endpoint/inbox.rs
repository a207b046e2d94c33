//! The reading half of a connection.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::Packet;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::wire::{self, WireError};

/// Bytes asked for in one read.
const READ_BYTES: usize = 16 * 1024;

/// The reading half.
pub(super) struct Inbox<R> {
    reader: R,
    buffer: BytesMut,
    packet_max: usize,
}

impl<R: AsyncRead + Unpin> Inbox<R> {
    pub(super) fn new(reader: R, packet_max: usize) -> Self {
        Self { reader, buffer: BytesMut::new(), packet_max }
    }

    /// A packet that is there already.
    pub(super) fn buffered(&mut self) -> Result<Option<Packet>, WireError> {
        wire::decode(&mut self.buffer, self.packet_max)
    }

    /// Reads what has come. Cancel safe.
    pub(super) async fn read(&mut self) -> std::io::Result<usize> {
        self.buffer.reserve(READ_BYTES);
        self.reader.read_buf(&mut self.buffer).await
    }

    /// The next packet; `None` if the connection ended. Cancel safe.
    pub(super) async fn packet(&mut self) -> Result<Option<Packet>, WireError> {
        loop {
            if let Some(packet) = self.buffered()? {
                return Ok(Some(packet));
            }
            if self.read().await.unwrap_or(0) == 0 {
                return Ok(None);
            }
        }
    }

    pub(super) async fn drain(&mut self) {
        while self.read().await.unwrap_or(0) > 0 {
            self.buffer.clear();
        }
    }
}

//! A TCP proxy that can be cut: the wire between the gateway and the cloud.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpStream;

use crate::switch::Switch;

/// Forwards a loopback port to `upstream`, byte by byte, until it is cut.
#[derive(Debug)]
pub struct Proxy {
    switch: Switch,
}

impl Proxy {
    /// A proxy on a free loopback port.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let forward = move |mut near: TcpStream| async move {
            // A dead upstream shows as a closed connection, as it would without the proxy.
            if let Ok(mut far) = TcpStream::connect(upstream).await {
                let _ = far.set_nodelay(true);
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        };
        Ok(Self { switch: Switch::start(0, forward).await? })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.switch.address()
    }

    /// Cuts the wire: open connections are closed, new ones refused. Returns when that is so.
    pub async fn cut(&self) {
        self.switch.cut().await;
    }

    /// Mends it.
    ///
    /// # Errors
    /// Somebody else took the port meanwhile.
    pub async fn restore(&self) -> io::Result<()> {
        self.switch.restore().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_cut_wire_closes_and_refuses_and_a_mended_one_carries_again() {
        let echo = |mut stream: TcpStream| async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        };
        let upstream = Switch::start(0, echo).await.unwrap();
        let proxy = Proxy::start(upstream.address()).await.unwrap();
        let mut buffer = [0; 2];

        let mut first = TcpStream::connect(proxy.address()).await.unwrap();
        first.write_all(b"ab").await.unwrap();
        first.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"ab");

        proxy.cut().await;
        assert!(matches!(first.read(&mut buffer).await, Ok(0) | Err(_)), "an open connection outlived the cut");
        assert!(TcpStream::connect(proxy.address()).await.is_err(), "a cut wire took a connection");

        proxy.restore().await.unwrap();
        let mut second = TcpStream::connect(proxy.address()).await.unwrap();
        second.write_all(b"cd").await.unwrap();
        second.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"cd");
    }
}

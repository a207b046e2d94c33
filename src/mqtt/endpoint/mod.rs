//! The built-in floor endpoint: a documented subset of an MQTT 3.1.1 server, for attached devices (`docs/endpoint.md`).
//!
//! # Guarantees
//!
//! * A PUBACK leaves only after the message is settled (committed, or refused for ever), in the order of receipt
//!   [MQTT-4.6.0-2]. If the store cannot take a message, the connection is closed without its PUBACK, so that the
//!   sender keeps it.
//! * An order ([`EndpointHandle::publish_once`]) is put on a socket at most once, and not a byte of it after its
//!   deadline. It is not repeated on a later connection; instead the session ends, and the client's next CONNECT gets
//!   `session_present = 0` (a deliberate deviation from [MQTT-4.4.0-1]: a second reboot is not a safer first one).
//! * A client has the rights of its identity (table in `rights.rs`) and no others; it cannot take over the connection
//!   or the session of another identity.
//! * A slow, silent or flooding client delays no other: each has its own task, its own bounds, and its own pauses.
//! * A last will is handed to the intake unless the client said DISCONNECT or the gateway stops, and before a
//!   successor of the same client id is let in; that one is then noted as there ([`Intake::returned`]). The will of a
//!   device that has a newer connection by then (under another client id) is not true, and not published.
//! * A device over its limit ([`Intake::admit`]) is read more slowly, on all its connections together; nothing is lost.
//!
//! # Limits
//!
//! | what | limit | at the limit |
//! |---|---|---|
//! | clients | [`CLIENTS_MAX`] by default | CONNACK 0x03 |
//! | connections without CONNECT | [`doorman::PENDING_MAX`], per address [`doorman::PENDING_PER_ADDRESS_MAX`] | closed |
//! | time to CONNECT, TLS handshake | [`CONNECT_WAIT`], [`HANDSHAKE_WAIT`] | closed |
//! | packet | [`PACKET_MAX`] | closed |
//! | packets a second of a connection | [`RATE_PER_SECOND`], bursts of [`RATE_BURST`] | reading pauses |
//! | unsettled messages of a connection | [`connection::UNSETTLED_MAX`] | reading pauses |
//! | queue to a client | [`outbox::QUEUE_MAX`] | a watcher misses messages, an order is not handed over |
//! | a write without progress | [`outbox::WRITE_STALL`] | closed |
//! | filters of a client | [`connection::FILTERS_MAX`] | SUBACK 0x80 |
//! | persistent sessions | [`session::SESSIONS_MAX`] | the one longest away is forgotten |
//! | wrong passwords of an address | – | the answer waits 250 ms, doubling to 8 s |
//!
//! # What it does not do
//!
//! It is no broker: nothing passes from client to client but to watchers, at most once. No QoS 2, no queueing for
//! clients that are away, no retained messages but each device's state, no MQTT 5, no WebSocket.

mod admission;
pub mod connection;
pub mod doorman;
mod filter;
mod handle;
mod hub;
mod inbox;
pub mod outbox;
mod rights;
pub mod session;
mod stats;
#[cfg(test)]
mod tests;
mod tls;
#[cfg(test)]
mod tls_tests;
pub mod users;
mod wire;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use floorgate_model::DeviceId;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::admission::Proof;
pub use self::connection::CONNECT_WAIT;
use self::connection::House;
use self::doorman::{Doorman, Place};
pub use self::handle::EndpointHandle;
use self::hub::Hub;
pub use self::session::{MemorySessions, SessionStore};
pub use self::stats::{EndpointStats, Refusal};
pub use self::tls::{EndpointTls, TlsError};
use self::users::{Users, UsersError};
use super::Intake;
use super::topics::TopicScheme;
use crate::shadow::StoreError;

/// Clients connected at once, by default.
pub const CLIENTS_MAX: usize = 1_000;
/// Longest packet, bytes: the contract's longest telemetry (16 KiB) with its topic and some room.
pub const PACKET_MAX: usize = 20 * 1_024;
/// Packets one connection may send in a second, by default.
pub const RATE_PER_SECOND: u32 = 200;
/// Packets one connection may send at once after a pause, by default.
pub const RATE_BURST: u32 = 400;
/// How long a TLS handshake may take; then the connection is closed.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// How long connections may take to end when the gateway stops; then they are cut.
pub const SHUTDOWN_WAIT: Duration = Duration::from_millis(900);
/// Pause after an `accept` that failed, for want of file descriptors for example.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the endpoint is set up (`[floor]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// TLS; without it, plain TCP.
    pub tls: Option<EndpointTls>,
    /// Users with their hashes, as `mosquitto_passwd` writes them; not asked where client certificates are.
    pub password_file: Option<PathBuf>,
    /// Identities (user names or common names) that may watch.
    pub watchers: Vec<String>,
    /// Clients connected at once.
    pub clients_max: usize,
    /// Longest packet, bytes.
    pub packet_max: usize,
    /// Packets one connection may send in a second.
    pub rate_per_second: u32,
    /// Packets one connection may send at once after a pause.
    pub rate_burst: u32,
}

impl EndpointConfig {
    /// Plain TCP with the default limits.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            tls: None,
            password_file: None,
            watchers: Vec::new(),
            clients_max: CLIENTS_MAX,
            packet_max: PACKET_MAX,
            rate_per_second: RATE_PER_SECOND,
            rate_burst: RATE_BURST,
        }
    }
}

/// Why the endpoint cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program has the port.
    #[error("cannot listen on {0}: the port is in use; is another MQTT broker or floorgate running?")]
    Busy(SocketAddr),
    /// It cannot be listened there for another reason.
    #[error("cannot listen on {listen}: {cause}; give an address of this machine and a port its user may take")]
    Listen {
        /// Where.
        listen: SocketAddr,
        /// What the system says.
        cause: io::Error,
    },
    /// Reachable from outside, and nobody would be asked who it is.
    #[error(
        "cannot listen on {0}: it is reachable from other machines; give a client CA or a password file, or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// The password file cannot be used.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Sessions cannot be read.
    #[error("cannot read the MQTT sessions: {0}")]
    Sessions(#[from] StoreError),
}

/// The endpoint: bound, and running once [`Endpoint::run`] is polled.
pub struct Endpoint {
    listener: TcpListener,
    local: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    house: House,
}

impl Endpoint {
    /// Reads the files and sessions and binds the port. Clients can connect from here on; they are served by
    /// [`Endpoint::run`].
    ///
    /// # Errors
    /// [`BindError`], one clear sentence.
    pub async fn bind(
        config: EndpointConfig,
        intake: Arc<dyn Intake>,
        scheme: TopicScheme,
        attached: HashSet<DeviceId>,
        sessions: Arc<dyn SessionStore>,
    ) -> Result<Self, BindError> {
        let listen = config.listen;
        let certificates = config.tls.as_ref().is_some_and(|files| files.client_ca.is_some());
        if !listen.ip().is_loopback() && !certificates && config.password_file.is_none() {
            return Err(BindError::Open(listen));
        }
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let users = config.password_file.as_deref().map(Users::load).transpose()?;
        let users = users.map(|users| RwLock::new(Arc::new(users)));
        let stored = sessions.load().await?;
        let listener = TcpListener::bind(listen).await.map_err(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse => BindError::Busy(listen),
            _ => BindError::Listen { listen, cause },
        })?;
        let local = listener.local_addr().map_err(|cause| BindError::Listen { listen, cause })?;
        let watchers = config.watchers.into_iter().collect();
        let house = House {
            hub: Arc::new(Hub::new(scheme, intake, sessions, &stored, config.clients_max, attached)),
            proof: Arc::new(Proof { certificates, users, watchers }),
            doorman: Doorman::default(),
            packet_max: config.packet_max,
            rate_per_second: config.rate_per_second,
            rate_burst: config.rate_burst,
            shutdown: CancellationToken::new(),
        };
        Ok(Self { listener, local, acceptor, house })
    }

    /// Where it listens; with the port that was chosen if 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// For sending orders and looking at the numbers; outlives the endpoint.
    #[must_use]
    pub fn handle(&self) -> EndpointHandle {
        EndpointHandle::new(Arc::clone(&self.house.hub), Arc::clone(&self.house.proof))
    }

    /// Serves clients until `shutdown` is cancelled; then ends all connections within a second, without last wills.
    ///
    /// # Cancel safety
    /// Dropping it cuts all connections.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.house.shutdown = shutdown.clone();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => self.greet(stream, peer, &mut connections),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection on {}", self.local);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        let all_gone = async { while connections.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_WAIT, all_gone).await.is_err() {
            connections.shutdown().await;
        }
    }

    fn greet(&self, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
        let house = self.house.clone();
        let Some(place) = house.doorman.admit(peer.ip()) else {
            house.hub.counters.refuse(Refusal::TooManyPending, &peer.ip(), &"too many connections without CONNECT");
            return;
        };
        // Without it a PUBACK could wait for the acknowledgement of the one before; failing costs speed alone.
        let _ = stream.set_nodelay(true);
        match self.acceptor.clone() {
            None => connections.spawn(connection::attend(house, stream, peer.ip(), None, place)),
            Some(acceptor) => connections.spawn(secure(house, acceptor, stream, peer, place)),
        };
    }
}

/// Does the TLS handshake, then serves.
async fn secure(house: House, acceptor: TlsAcceptor, stream: TcpStream, peer: SocketAddr, place: Place) {
    let shaken = tokio::select! {
        shaken = timeout(HANDSHAKE_WAIT, acceptor.accept(stream)) => shaken,
        () = house.shutdown.cancelled() => return,
    };
    let what = match shaken {
        Ok(Ok(stream)) => {
            let name = stream.get_ref().1.peer_certificates().and_then(|chain| tls::common_name(chain.first()?));
            return connection::attend(house, stream, peer.ip(), name, place).await;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no TLS handshake within {} s", HANDSHAKE_WAIT.as_secs()),
    };
    house.hub.counters.refuse(Refusal::Tls, &peer.ip(), &what);
}

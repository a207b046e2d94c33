//! What the endpoint did and refused, as numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A reason is logged at most once in this time; it is counted every time.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),* $(,)?) => {
        /// Why a connection or a packet was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Refusal { $($(#[$doc])* $variant),* }

        impl Refusal {
            /// All of them.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// The name under which it is counted.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

refusals! {
    /// All connections are taken; CONNACK 0x03.
    TooManyConnections = "too_many_connections",
    /// Too many connections of one address, or of all, that have not said CONNECT.
    TooManyPending = "too_many_pending",
    /// The first packet did not come in time, or was no CONNECT.
    NoConnect = "no_connect",
    /// The TLS handshake failed or took too long.
    Tls = "tls_handshake",
    /// Not MQTT 3.1.1; CONNACK 0x01.
    ProtocolLevel = "protocol_level",
    /// An empty client id with a persistent session, or one that is too long; CONNACK 0x02.
    ClientId = "client_id",
    /// Wrong user name or password; CONNACK 0x04.
    Credentials = "credentials",
    /// No identity that has any right here, or a will without the right to publish it; CONNACK 0x05.
    NotAuthorized = "not_authorized",
    /// Against the specification; closed.
    Malformed = "malformed",
    /// A packet over the size limit; closed.
    PacketTooLarge = "packet_too_large",
    /// QoS 2 and everything else outside the subset; closed.
    Unsupported = "unsupported",
    /// A PUBLISH to a topic the client has no right to; closed.
    ForbiddenPublish = "forbidden_publish",
    /// A filter the client has no right to, or one too many; SUBACK 0x80.
    ForbiddenSubscribe = "forbidden_subscribe",
    /// Silent for one and a half times its keep-alive; closed.
    KeepAlive = "keep_alive",
    /// It does not read what is written to it; closed.
    SlowReader = "slow_reader",
    /// The store could not take a message; closed without PUBACK, so that the sender keeps it.
    NotStored = "not_stored",
    /// A message for a watcher whose queue is full; left out.
    ForwardDropped = "forward_dropped",
}

/// A snapshot of the endpoint, for `status` and the metrics.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EndpointStats {
    /// Clients connected now.
    pub clients: usize,
    /// Devices with at least one client connected now.
    pub devices: usize,
    /// Clients connected now that watch something.
    pub watchers: usize,
    /// Persistent sessions kept.
    pub sessions: usize,
    /// Connections that were accepted with CONNACK 0 since the start.
    pub accepted: u64,
    /// Messages handed to the intake since the start.
    pub messages: u64,
    /// Orders that left since the start.
    pub orders: u64,
    /// Refusals since the start, by reason; reasons that did not occur are left out.
    pub refused: BTreeMap<&'static str, u64>,
}

/// The counters behind [`EndpointStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) messages: AtomicU64,
    pub(super) orders: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    logged: Mutex<[Option<Instant>; Refusal::ALL.len()]>,
}

impl Counters {
    /// Counts a refusal and logs it, unless the same reason was logged within the last minute.
    pub(super) fn refuse(&self, reason: Refusal, who: &dyn std::fmt::Display, what: &dyn std::fmt::Display) {
        let index = reason as usize;
        let count = self.refused[index].fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged[index].is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL) {
            logged[index] = Some(now);
            drop(logged);
            tracing::warn!(reason = reason.name(), %who, count, "floor endpoint refused: {what}");
        }
    }

    pub(super) fn refused(&self) -> BTreeMap<&'static str, u64> {
        let counted = Refusal::ALL.iter().map(|r| (r.name(), self.refused[*r as usize].load(Ordering::Relaxed)));
        counted.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_reason() {
        let counters = Counters::default();
        for _ in 0..3 {
            counters.refuse(Refusal::KeepAlive, &"a", &"silent");
        }
        counters.refuse(Refusal::TooManyConnections, &"b", &"full");
        let expected = [("keep_alive", 3), ("too_many_connections", 1)];
        assert_eq!(counters.refused(), expected.into_iter().collect());
    }
}

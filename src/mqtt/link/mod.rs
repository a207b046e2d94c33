//! One client link to an MQTT broker: to the plant's on the floor, to AWS IoT Core or any other in the cloud. The same
//! code, configured differently.
//!
//! # Guarantees
//!
//! * **In.** A PUBACK leaves only after the intake's receipt, in the order of receipt. A failed receipt drops the
//!   connection without acknowledging, and the broker sends again 2 s later, as often as it takes. At most [`INTAKE_MAX`] messages are unsettled: then
//!   the link stops reading.
//!   PUBACKs go in order and a broker sends no more than its window before them, so one message that waits would keep
//!   back everybody's: at [`HASTEN_AFTER`] unsettled ones the intake lets none wait any longer.
//! * **Out, owed** ([`Outbox`]): an entry is confirmed only after the PUBACK of the connection it left on. After a cut, a
//!   lost session or a reused packet id it goes out again: nothing is lost, duplicates are possible. At most
//!   [`OUTBOX_WINDOW`] are on their way, at the pace of [`LinkConfig::outbox_per_second`].
//! * **Out, once** ([`Link::publish_once`]): handed over at most once, never sent again, and not after its deadline.
//! * Filters are subscribed on every connection, [`FILTERS_PER_SUBSCRIBE`] at a time, and each SUBACK is read; a refused
//!   filter shows in [`LinkState`] and is asked for again on the next connection and every [`REFUSED_RETRY`].
//! * Filters may change while it runs ([`Link::listen_to`]). What is not wanted any more is unsubscribed until the broker
//!   has said so, over as many connections as it takes; a session that outlives this process keeps it until then, and
//!   the intake refuses what comes of it.
//! * A connection is given up when a PUBACK or SUBACK is missing for [`ACK_WAIT`] (AWS IoT discards silently what is over
//!   its rate) or anything at all for half a keep-alive interval after a ping: a half-open link is noticed within 1.5
//!   intervals. rumqttc alone would take two. While a full intake stops the reading, its answer is not waited for.
//! * A packet over [`INCOMING_MAX`] cannot stop the link for ever: after [`OVERSIZED_MAX`] connections ended by one, the
//!   session is dropped, counted and logged, and a new one begins. One that comes back all the same (it is retained, or
//!   published again and again) slows the link down and is told in [`LinkState::last_error`].
//! * Reconnecting waits with full jitter, forgets failures only after a stable period, never connects twice within
//!   [`LinkConfig::connect_spacing`], and backs off further from another client that uses the same id ([`retry`]). The
//!   link is up within [`retry::BACK_WITHIN`] after its broker can be reached.
//! * Filters are sent also to a broker that says it kept the session: one that lost them without telling would otherwise
//!   stay silent.
//!
//! # How
//!
//! rumqttc's own replay loses messages when a session is lost or its queue is longer than its window, so each connection
//! has a fresh client and event loop: whatever it still held is gone with it, and what is owed comes from the store.
//! Certificates are read for each connection, so renewed ones need no restart.
//!
//! # What it does not do
//!
//! QoS 2, MQTT 5, WebSocket. It never publishes telemetry, and it knows nothing of what it carries.

mod address;
mod broken;
mod cloud;
mod events;
mod options;
mod outbox;
pub mod retry;
mod runner;
mod session;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floorgate_model::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};

pub use super::handed::{Handed, NotHanded};
pub use address::{Address, AddressError};
pub use cloud::{CloudDevices, FILTERS_PER_CONNECTION, cloud_links, further_link, gateway_presence, spread};
pub(in crate::mqtt) use options::tls_words;
pub use outbox::{Announcement, Outbox, ResultLane};
pub use runner::LinkRunner;
pub use tls::{ALPN_AWS_443, SYSTEM_CA, TlsFiles};

use super::Intake;
use crate::backoff::Backoff;
use crate::clock::{Clock, Deadline};

/// Messages received and not yet settled; at the limit the link stops reading, and the broker keeps the rest.
pub const INTAKE_MAX: usize = 1_024;
/// So many unsettled messages may be all that the broker sends before a PUBACK (the window of mosquitto, and the smallest
/// of the usual ones): the intake is told, once for so many that came ([`Intake::hasten`]).
pub const HASTEN_AFTER: usize = 20;
/// Outbox entries on their way and not yet confirmed; at the limit the others wait in the store.
pub const OUTBOX_WINDOW: usize = 20;
/// [`Link::publish_once`] calls on their way; at the limit further ones wait until their deadline.
pub const ONCE_WINDOW: usize = 32;
/// [`Link::publish_once`] calls waiting for their turn; at the limit a further one is refused as offline.
pub const ONCE_QUEUE: usize = 64;
/// Filters in one SUBSCRIBE (AWS IoT's limit).
pub const FILTERS_PER_SUBSCRIBE: usize = 8;
/// Outbox publishes a second. AWS IoT allows 100 in and out together and discards the rest silently; with a burst of one
/// window this stays within it and leaves room for what comes in.
pub const OUTBOX_PER_SECOND: u32 = 60;
/// Largest packet read, bytes: far above what the contract accepts, so that too large a payload reaches the codec, is
/// counted there and acknowledged, instead of coming again on every connection. The client reads ten packets in one go,
/// which bounds the memory at 40 MiB; none of it is kept. A larger packet ends the connection.
pub const INCOMING_MAX: usize = 4 * 1024 * 1024;
/// So many connections in a row ended by a packet over [`INCOMING_MAX`] show that the broker sends it again each time:
/// then the session is dropped deliberately, and with it everything the broker kept for us.
pub const OVERSIZED_MAX: u32 = 2;
/// Largest packet sent, bytes (AWS IoT's limit). A larger entry is dropped.
pub const PACKET_MAX: usize = 128 * 1024;
/// How long a PUBACK or SUBACK may take; then the connection is given up.
pub const ACK_WAIT: Duration = Duration::from_secs(20);
/// How long connecting may take, TLS and CONNACK included; also the time for one flush.
pub const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// How often a refused filter is asked for again on a connection that lasts.
pub const REFUSED_RETRY: Duration = Duration::from_secs(300);
/// How long a clean stop waits for receipts and for the last publish; the daemon has 5 s in all.
pub const STOP_WAIT: Duration = Duration::from_secs(2);
/// Keep-alive interval; AWS IoT allows none below 30 s.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// First ceiling of the wait between two attempts; it doubles up to [`retry::RECONNECT_MAX`].
const RECONNECT_BASE: Duration = Duration::from_secs(1);
/// CONNECTs are at least this far apart (AWS IoT: one a second and client id).
pub const CONNECT_SPACING: Duration = Duration::from_secs(1);

/// How one link is set up.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// For logs and `status`: `floor`, `cloud`, `cloud-2`.
    pub name: String,
    /// Where the broker is.
    pub address: Address,
    /// Fixed, because the persistent session hangs on it; must not be empty.
    pub client_id: String,
    /// User name and password.
    pub login: Option<Login>,
    /// Certificates, for `mqtts://`; read for each connection.
    pub tls: Option<TlsFiles>,
    /// Set up by the AWS IoT device SDK: for cloud links with a client certificate.
    pub aws_iot: bool,
    /// What to subscribe, QoS 1.
    pub filters: Vec<String>,
    /// Birth, last will and farewell.
    pub presence: Option<Presence>,
    /// Ping interval; at least 1 s.
    pub keep_alive: Duration,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// Shortest and longest wait while another client seems to use our id; see [`retry::RIVAL_WAIT`].
    pub rival_wait: (Duration, Duration),
    /// Least time between two CONNECTs.
    pub connect_spacing: Duration,
    /// See [`OUTBOX_PER_SECOND`].
    pub outbox_per_second: u32,
    /// See [`ACK_WAIT`].
    pub ack_wait: Duration,
}

impl LinkConfig {
    /// A link with the defaults: nothing subscribed, no presence, no TLS.
    #[must_use]
    pub fn new(name: impl Into<String>, address: Address, client_id: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            address,
            client_id: client_id.into(),
            login: None,
            tls: None,
            aws_iot: false,
            filters: Vec::new(),
            presence: None,
            keep_alive: KEEP_ALIVE,
            backoff: Backoff::new(RECONNECT_BASE, retry::RECONNECT_MAX, retry::STABLE_AFTER),
            rival_wait: retry::RIVAL_WAIT,
            connect_spacing: CONNECT_SPACING,
            outbox_per_second: OUTBOX_PER_SECOND,
            ack_wait: ACK_WAIT,
        }
    }
}

/// User name and password of a link. Its debug form shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Who.
    pub user: String,
    /// The secret.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("password", &"…").finish()
    }
}

/// The retained message that says whether this client is there.
#[derive(Clone)]
pub struct Presence {
    /// Where it goes.
    pub topic: String,
    /// What the broker says when we vanish.
    pub will: Bytes,
    /// What we say: `true` after each connect, `false` at a clean stop.
    pub payload: Arc<dyn Fn(bool) -> Bytes + Send + Sync>,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("topic", &self.topic).field("will", &self.will).finish_non_exhaustive()
    }
}

/// How a link stands, for `status`, `doctor` and the store's `floor_reachable`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LinkState {
    /// The link's name.
    pub name: String,
    /// Connected, and every SUBSCRIBE answered.
    pub up: bool,
    /// Since when it is up or down.
    pub since: Timestamp,
    /// Why the last connection ended or failed; kept while the next one works.
    pub last_error: Option<String>,
    /// Connections that got a CONNACK, since start.
    pub connects: u64,
    /// Sessions lost with what the broker kept for us: connections after the first on which it had forgotten ours, and
    /// sessions dropped because of a packet over [`INCOMING_MAX`].
    pub sessions_lost: u64,
    /// Filters the broker refuses, each with what it answered.
    pub refused_filters: Vec<String>,
    /// Connections end as if another client used our id; in words, also while the link is up, until one is stable.
    pub rival: Option<String>,
}

/// A message to be handed over once.
#[derive(Debug)]
struct Once {
    topic: String,
    payload: Bytes,
    deadline: Deadline,
    reply: oneshot::Sender<Result<Handed, NotHanded>>,
}

/// A handle on a running link. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    once: mpsc::Sender<Once>,
    filters: watch::Sender<Vec<String>>,
    state: watch::Receiver<LinkState>,
}

impl Link {
    /// A link and what runs it. Nothing happens before [`LinkRunner::run`].
    #[must_use]
    pub fn new(
        config: LinkConfig,
        intake: Arc<dyn Intake>,
        outbox: Option<Arc<dyn Outbox>>,
        clock: Clock,
    ) -> (Self, LinkRunner) {
        let (once, once_rx) = mpsc::channel(ONCE_QUEUE);
        let (state_tx, state) = watch::channel(LinkState {
            name: config.name.clone(),
            up: false,
            since: clock.now(),
            last_error: None,
            connects: 0,
            sessions_lost: 0,
            refused_filters: Vec::new(),
            rival: None,
        });
        let (filters, wanted) = watch::channel(config.filters.clone());
        let link = Self { once, filters, state };
        (link, LinkRunner::new(config, intake, outbox, clock, (once_rx, wanted), state_tx))
    }

    /// What is to be subscribed from now on, in place of what was. On a connection that stands, what is new is subscribed
    /// and what is not wanted any more unsubscribed; else the next connection does it. Never waits.
    pub fn listen_to(&self, filters: Vec<String>) {
        // Without a runner there is nobody to listen.
        let _ = self.filters.send(filters);
    }

    /// What is to be subscribed.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        self.filters.borrow().clone()
    }

    /// How the link stands; the receiver sees every change.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Publishes with QoS 1, at most once: neither this nor a later connection repeats it.
    ///
    /// # Errors
    /// [`NotHanded`] if certainly nothing left.
    ///
    /// # Cancel safety
    /// Not cancel safe: after a drop it is unknown whether the message left.
    pub async fn publish_once(
        &self,
        topic: String,
        payload: Bytes,
        deadline: impl Into<Deadline>,
    ) -> Result<Handed, NotHanded> {
        let deadline = deadline.into();
        let offline = {
            let state = self.state.borrow();
            (!state.up).then(|| match &state.last_error {
                Some(error) => format!("the {} link is down: {error}", state.name),
                None => format!("the {} link is down", state.name),
            })
        };
        if let Some(why) = offline {
            return Err(NotHanded::Offline(why));
        }
        let (reply, answer) = oneshot::channel();
        self.once.try_send(Once { topic, payload, deadline, reply }).map_err(|e| {
            NotHanded::Offline(match e {
                mpsc::error::TrySendError::Full(_) => format!("{ONCE_QUEUE} messages wait for this link already"),
                mpsc::error::TrySendError::Closed(_) => "the link is stopped".to_owned(),
            })
        })?;
        // Without an answer the runner was dropped at an unknown point: it may have left.
        answer.await.unwrap_or(Ok(Handed::Unknown))
    }
}

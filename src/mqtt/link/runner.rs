//! The loop of a link: connect, carry, wait, again.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, StreamExt, stream};
use rumqttc::{AsyncClient, ConnectionError, Event, EventLoop, NetworkOptions, Packet, PubAck, Publish, QoS, Request};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::options::{explain, is_oversized, options};
use super::outbox::Pump;
use super::session::{Acks, Heard, Session, answer};
use super::{
    CONNECT_WAIT, INCOMING_MAX, LinkConfig, LinkState, NotHanded, ONCE_WINDOW, OUTBOX_WINDOW, OVERSIZED_MAX, Once,
    Outbox, REFUSED_RETRY, STOP_WAIT,
};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::mqtt::{Inbound, Intake};
use crate::shadow::StoreError;

/// Requests rumqttc holds for us: every publish and SUBSCRIBE that can be due at once, and one acknowledgement, so that
/// handing one over never fails for want of room.
const REQUESTS_MAX: usize = OUTBOX_WINDOW + ONCE_WINDOW + 64;
/// A connection that ends sooner than this after its CONNACK is a short one.
const SHORT_LIVED: Duration = Duration::from_secs(5);
/// So many short connections in a row look like two clients with one id.
const TAKEOVER_AFTER: u32 = 3;

/// One poll of the event loop; after a failure, the events that were still to be told.
type Polled = Result<Event, (ConnectionError, VecDeque<Event>)>;
type Events = Pin<Box<dyn Stream<Item = Polled> + Send>>;

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    /// We were asked to stop.
    Stopped,
    /// It broke, or was given up.
    Lost(String),
}

/// Runs one link; made by [`super::Link::new`].
pub struct LinkRunner {
    config: LinkConfig,
    intake: Arc<dyn Intake>,
    pump: Option<Pump>,
    clock: Clock,
    once: mpsc::Receiver<Once>,
    state: watch::Sender<LinkState>,
    backoff: Backoff,
    short_lived: u32,
    /// Connections in a row that a packet over the limit ended.
    oversized: u32,
    /// The last connection dropped the session: that the next one finds none is no news.
    dropped: bool,
}

impl std::fmt::Debug for LinkRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkRunner").field("config", &self.config).field("pump", &self.pump).finish_non_exhaustive()
    }
}

impl LinkRunner {
    pub(super) fn new(
        config: LinkConfig,
        intake: Arc<dyn Intake>,
        outbox: Option<Arc<dyn Outbox>>,
        clock: Clock,
        once: mpsc::Receiver<Once>,
        state: watch::Sender<LinkState>,
    ) -> Self {
        let pump = outbox.map(|outbox| Pump::new(outbox, config.name.clone(), config.outbox_per_second));
        let backoff = config.backoff.clone();
        Self { config, intake, pump, clock, once, state, backoff, short_lived: 0, oversized: 0, dropped: false }
    }

    /// Connects and carries until `stop`; then ends cleanly within [`STOP_WAIT`]: settles what came in, says farewell,
    /// disconnects.
    ///
    /// # Cancel safety
    /// Dropping it is like pulling the plug: nothing acknowledged is lost, the broker publishes the last will.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let attempt = Instant::now();
            let ended = self.connection(&stop).await;
            if let Some(pump) = &mut self.pump {
                pump.connection_lost();
                // The store answers soon; if not, the entries go out once more.
                let _ = timeout_at(Instant::now() + STOP_WAIT, pump.settle()).await;
            }
            match ended {
                Ended::Stopped => break,
                Ended::Lost(why) => self.lost(why),
            }
            self.wait(attempt, &stop).await;
        }
        self.set_down(Some("the link was stopped".to_owned()));
        self.once.close();
        self.refuse_waiting("the link is stopped");
    }

    fn lost(&self, why: String) {
        let news = self.state.borrow().last_error.as_ref() != Some(&why);
        if news {
            tracing::warn!(link = self.config.name, "down: {why}");
        } else {
            tracing::debug!(link = self.config.name, "still down: {why}");
        }
        self.set_down(Some(why));
    }

    fn set_down(&self, why: Option<String>) {
        let now = self.clock.now();
        self.state.send_modify(|state| {
            if state.up {
                (state.up, state.since) = (false, now);
            }
            state.last_error = why.or_else(|| state.last_error.take());
        });
    }

    /// Sleeps until the next attempt, telling everyone meanwhile that nobody is there.
    async fn wait(&mut self, attempt: Instant, stop: &CancellationToken) {
        let delay = self.backoff.next_delay(fastrand::f64());
        let until = (Instant::now() + delay).max(attempt + self.config.connect_spacing);
        loop {
            let why = self.state.borrow().last_error.clone().unwrap_or_default();
            self.refuse_waiting(&why);
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(until) => return,
                Some(once) = self.once.recv() => answer(once.reply, Err(NotHanded::Offline(why))),
            }
        }
    }

    fn refuse_waiting(&mut self, why: &str) {
        while let Ok(once) = self.once.try_recv() {
            answer(once.reply, Err(NotHanded::Offline(why.to_owned())));
        }
    }

    /// One connection, from its options to its end.
    async fn connection(&mut self, stop: &CancellationToken) -> Ended {
        let dropping = self.oversized >= OVERSIZED_MAX;
        let mut config = self.config.clone();
        if dropping {
            // It ends at once: neither a birth nor a last will belongs to it.
            config.presence = None;
        }
        let mut options = match options(&config).await {
            Ok(options) => options,
            Err(why) => return Ended::Lost(why),
        };
        options.set_clean_session(dropping);
        let (client, mut event_loop) = AsyncClient::new(options, REQUESTS_MAX);
        let mut network = NetworkOptions::new();
        network.set_connection_timeout(CONNECT_WAIT.as_secs()).set_tcp_nodelay(true);
        event_loop.set_network_options(network);
        let acks = Acks::default();
        let mut events = events(event_loop, acks.clone());

        let first = tokio::select! {
            () = stop.cancelled() => return Ended::Stopped,
            first = events.next() => first,
        };
        let session_present = match first {
            Some(Ok(Event::Incoming(Packet::ConnAck(ack)))) => ack.session_present,
            Some(Err((error, _))) => return Ended::Lost(explain(&error, &self.config)),
            other => return Ended::Lost(format!("the broker began with {other:?} instead of CONNACK")),
        };
        if dropping {
            return Ended::Lost(self.session_dropped());
        }
        let connected = Instant::now();
        self.connected(session_present);

        let mut session = Session::new(client, acks);
        let (ended, exact) = self.carry(&mut session, &mut events, stop).await;
        drop(events);
        let why = match &ended {
            Ended::Stopped => "the link is stopped",
            Ended::Lost(why) => why,
        };
        session.close(exact, why);
        self.backoff.lasted(connected.elapsed());
        match ended {
            Ended::Lost(why) => Ended::Lost(self.suspect_takeover(why, connected.elapsed())),
            Ended::Stopped => Ended::Stopped,
        }
    }

    /// A clean session replaced ours: the packet that cannot be read is gone, and everything else the broker kept.
    fn session_dropped(&mut self) -> String {
        (self.oversized, self.dropped) = (0, true);
        self.state.send_modify(|state| {
            state.connects += 1;
            state.sessions_lost += 1;
        });
        let broker = &self.config.address;
        let why = format!(
            "`{broker}` sent a packet over {INCOMING_MAX} bytes again and again; our session there was dropped to be rid of \
             it, and everything it kept for us is gone: find who publishes it"
        );
        tracing::error!(link = self.config.name, "{why}");
        why
    }

    fn connected(&mut self, session_present: bool) {
        let dropped = std::mem::take(&mut self.dropped);
        self.state.send_modify(|state| {
            state.connects += 1;
            if state.connects > 1 && !session_present && !dropped {
                state.sessions_lost += 1;
                tracing::warn!(link = self.config.name, "the broker had forgotten our session; what it kept is gone");
            }
        });
    }

    /// Brokers drop the older of two clients with one id, without a word.
    fn suspect_takeover(&mut self, why: String, lasted: Duration) -> String {
        self.short_lived = if lasted < SHORT_LIVED { self.short_lived.saturating_add(1) } else { 0 };
        if self.short_lived < TAKEOVER_AFTER {
            return why;
        }
        format!(
            "{why}; soon after connecting, several times: does another client use the id `{}`?",
            self.config.client_id
        )
    }

    /// Carries until the end; tells with it whether the session knows exactly what left.
    async fn carry(&mut self, session: &mut Session, events: &mut Events, stop: &CancellationToken) -> (Ended, bool) {
        match self.carry_on(session, events, stop).await {
            Ok(()) => (Ended::Stopped, false),
            Err(Broken { why, exact, oversized }) => {
                self.oversized = if oversized { self.oversized + 1 } else { 0 };
                (Ended::Lost(why), exact)
            }
        }
    }

    async fn carry_on(
        &mut self,
        session: &mut Session,
        events: &mut Events,
        stop: &CancellationToken,
    ) -> Result<(), Broken> {
        session.subscribe(&self.config.filters)?;
        if session.is_subscribed() {
            self.up(session)?;
        }
        let mut ready = session.is_subscribed();
        let mut refused = Vec::new();
        let mut retry_at = Instant::now() + REFUSED_RETRY;
        loop {
            // Before anything else is read: `accept` may have left a message with the broker because of the stop, and
            // nothing behind it may be taken and acknowledged.
            if stop.is_cancelled() {
                return self.farewell(session, events).await;
            }
            let overdue = session.next_overdue(&self.config);
            let timer = overdue.map_or(retry_at, |(at, _)| at.min(retry_at));
            tokio::select! {
                () = stop.cancelled() => return self.farewell(session, events).await,
                // A full intake stops the reading, and with it everything the broker sends.
                polled = events.next(), if session.may_read() => {
                    match hear(session, polled, &self.config)? {
                        Heard::Message(publish) => accept(&*self.intake, session, publish, stop).await?,
                        Heard::Acked(seq) => self.pump.iter_mut().for_each(|pump| pump.acked(seq)),
                        Heard::Subscribed(more) => {
                            refused.extend(more);
                            if session.is_subscribed() {
                                self.subscribed(std::mem::take(&mut refused));
                                if !std::mem::replace(&mut ready, true) {
                                    self.up(session)?;
                                }
                            }
                        }
                        _ => {}
                    }
                }
                Some(settled) = session.unsettled.next(), if !session.unsettled.is_empty() => {
                    acknowledge(session, settled)?;
                }
                Some(once) = self.once.recv(), if ready && session.has_room_for_once() => session.publish_once(once)?,
                entry = next_owed(&mut self.pump), if ready => session.publish_owed(entry)?,
                () = sleep_until(timer) => {
                    if let Some((_, why)) = overdue.filter(|(at, _)| *at <= Instant::now()) {
                        return Err(Broken::inexact(format!("the connection to `{}` is given up: {why}", self.config.address)));
                    }
                    retry_at = Instant::now() + REFUSED_RETRY;
                    if ready {
                        session.subscribe(&self.refused_filters())?;
                    }
                }
            }
        }
    }

    /// Everything is subscribed that can be: the link is up.
    fn up(&self, session: &mut Session) -> Result<(), Broken> {
        if let Some(presence) = &self.config.presence {
            session.announce(presence, true)?;
        }
        let now = self.clock.now();
        self.state.send_modify(|state| (state.up, state.since) = (true, now));
        tracing::info!(link = self.config.name, broker = %self.config.address, "up");
        Ok(())
    }

    fn subscribed(&self, refused: Vec<String>) {
        self.state.send_modify(|state| {
            if !refused.is_empty() && refused != state.refused_filters {
                tracing::error!(link = self.config.name, "the broker refused filters: {}", refused.join("; "));
            }
            state.refused_filters = refused;
        });
    }

    /// The filters to ask for again.
    fn refused_filters(&self) -> Vec<String> {
        let state = self.state.borrow();
        let refused = |filter: &&String| state.refused_filters.iter().any(|text| is_about(text, filter));
        self.config.filters.iter().filter(refused).cloned().collect()
    }

    /// The clean end: acknowledge what is settled, say that we go, disconnect.
    async fn farewell(&mut self, session: &mut Session, events: &mut Events) -> Result<(), Broken> {
        let until = Instant::now() + STOP_WAIT;
        let mut farewell_acked = self.config.presence.is_none();
        let mut disconnecting = false;
        if let Some(presence) = &self.config.presence {
            session.announce(presence, false)?;
        }
        // Of two presence messages (birth and farewell) the last one counts.
        let mut presences = session.presences_on_their_way();
        loop {
            if farewell_acked && session.unsettled.is_empty() && !disconnecting {
                session.disconnect()?;
                disconnecting = true;
            }
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                polled = events.next() => match hear(session, polled, &self.config)? {
                    Heard::Disconnected => return Ok(()),
                    Heard::PresenceAcked => {
                        presences = presences.saturating_sub(1);
                        farewell_acked = presences == 0;
                    }
                    Heard::Acked(seq) => self.pump.iter_mut().for_each(|pump| pump.acked(seq)),
                    // New messages stay with the broker.
                    _ => {}
                },
                Some(settled) = session.unsettled.next(), if !session.unsettled.is_empty() => {
                    acknowledge(session, settled)?;
                }
            }
        }
    }
}

/// Why a connection ends, and whether the session knows exactly what left on it.
struct Broken {
    why: String,
    exact: bool,
    /// A packet over the limit ended it.
    oversized: bool,
}

impl Broken {
    /// Given up by us in the middle of a poll.
    fn inexact(why: String) -> Self {
        Self { why, exact: false, oversized: false }
    }
}

impl From<rumqttc::ClientError> for Broken {
    fn from(error: rumqttc::ClientError) -> Self {
        Self::inexact(format!("the client took no request: {error}"))
    }
}

fn unstored(error: StoreError) -> Broken {
    Broken::inexact(format!("a message could not be stored and stays with the broker: {error}"))
}

/// The event loop as a stream: a poll that was begun survives being waited for by `select!`, which a bare `poll()` would
/// not, losing a request that was taken from the queue and not yet written.
fn events(event_loop: EventLoop, acks: Acks) -> Events {
    Box::pin(stream::unfold(Some((event_loop, acks)), |running| async move {
        let (mut event_loop, acks) = running?;
        let polled = match write_acks(&mut event_loop, &acks).await {
            Ok(()) => event_loop.poll().await,
            Err(error) => Err(error),
        };
        match polled {
            Ok(event) => Some((Ok(event), Some((event_loop, acks)))),
            Err(error) => Some((Err((error, std::mem::take(&mut event_loop.state.events))), None)),
        }
    }))
}

/// Writes the acknowledgements that wait, all together.
async fn write_acks(event_loop: &mut EventLoop, acks: &Acks) -> Result<(), ConnectionError> {
    let Some(network) = &mut event_loop.network else { return Ok(()) };
    let waiting = acks.take();
    if waiting.is_empty() {
        return Ok(());
    }
    fail_point!(LinkBeforePuback);
    let write = async {
        for pkid in waiting {
            if let Some(packet) = event_loop.state.handle_outgoing_packet(Request::PubAck(PubAck::new(pkid)))? {
                network.write(packet).await?;
            }
        }
        network.flush().await
    };
    match timeout_at(Instant::now() + CONNECT_WAIT, write).await {
        Ok(written) => {
            fail_point!(LinkAfterPuback);
            Ok(written?)
        }
        Err(_) => Err(ConnectionError::FlushTimeout),
    }
}

/// One event, or the end: then what was still to be told is entered into the books first.
fn hear(session: &mut Session, polled: Option<Polled>, config: &LinkConfig) -> Result<Heard, Broken> {
    match polled {
        Some(Ok(event)) => match session.hear(event) {
            Heard::Broken(why) => Err(Broken::inexact(why)),
            heard => Ok(heard),
        },
        Some(Err((error, rest))) => {
            for event in rest {
                session.hear(event);
            }
            Err(Broken { why: explain(&error, config), exact: true, oversized: is_oversized(&error) })
        }
        None => Err(Broken::inexact("the client ended".to_owned())),
    }
}

/// Hands a message to the intake, waiting while the store has no room: nothing is read meanwhile.
async fn accept(
    intake: &dyn Intake,
    session: &mut Session,
    publish: Publish,
    stop: &CancellationToken,
) -> Result<(), Broken> {
    let pkid = if publish.qos == QoS::AtMostOnce { 0 } else { publish.pkid };
    let inbound =
        Inbound { topic: publish.topic, payload: publish.payload, retained: publish.retain, redelivered: publish.dup };
    tokio::select! {
        accepted = intake.accept(inbound) => session.settle_later(pkid, accepted.map_err(unstored)?),
        // Not taken, not acknowledged: the broker keeps it. Nothing after it may be acknowledged either, and the
        // caller stops reading now.
        () = stop.cancelled() => {}
    }
    Ok(())
}

/// Sends the PUBACK of the oldest unsettled message, and of those behind it that are settled too.
fn acknowledge(session: &mut Session, settled: Result<u16, StoreError>) -> Result<(), Broken> {
    session.acknowledge(settled.map_err(unstored)?)?;
    while let Some(Some(settled)) = session.unsettled.next().now_or_never() {
        session.acknowledge(settled.map_err(unstored)?)?;
    }
    Ok(())
}

/// The next owed entry; never, if this link has no outbox.
async fn next_owed(pump: &mut Option<Pump>) -> super::Announcement {
    match pump {
        Some(pump) => pump.next().await,
        None => std::future::pending().await,
    }
}

/// Whether a text of [`LinkState::refused_filters`] is about this filter.
fn is_about(text: &str, filter: &str) -> bool {
    text.strip_prefix(filter).is_some_and(|rest| rest.starts_with(": "))
}

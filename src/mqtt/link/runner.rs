//! The loop of a link: connect, carry, wait, again.

use std::sync::Arc;

use std::collections::BTreeSet;

use futures_util::{FutureExt, StreamExt};
use rumqttc::{AsyncClient, Event, NetworkOptions, Packet, Publish, QoS};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::broken::{Broken, unstored};
use super::events::{Events, Polled, events};
use super::options::{cut, explain, options};
use super::outbox::Pump;
use super::retry::{Retry, STABLE_AFTER};
use super::session::{Acks, Heard, Session, Unsent, answer};
use super::{
    CONNECT_WAIT, INCOMING_MAX, LinkConfig, LinkState, NotHanded, ONCE_WINDOW, OUTBOX_WINDOW, Once, Outbox,
    REFUSED_RETRY, STOP_WAIT,
};
use crate::clock::Clock;
use crate::mqtt::{Inbound, Intake};
use crate::shadow::StoreError;

/// Requests rumqttc holds for us: every publish and SUBSCRIBE that can be due at once, and one acknowledgement, so that
/// handing one over never fails for want of room.
const REQUESTS_MAX: usize = OUTBOX_WINDOW + ONCE_WINDOW + 64;

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
    /// What is to be subscribed; `config.filters` is what has been asked for on this connection.
    wanted: watch::Receiver<Vec<String>>,
    /// Not wanted any more, and the broker has not said yet that it forgot them.
    unwanted: BTreeSet<String>,
    state: watch::Sender<LinkState>,
    retry: Retry,
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
        (once, wanted): (mpsc::Receiver<Once>, watch::Receiver<Vec<String>>),
        state: watch::Sender<LinkState>,
    ) -> Self {
        let pump = outbox.map(|outbox| Pump::new(outbox, config.name.clone(), config.outbox_per_second));
        let retry = Retry::new(&config);
        Self { config, intake, pump, clock, once, wanted, unwanted: BTreeSet::new(), state, retry, dropped: false }
    }

    /// Connects and carries until `stop`; then ends cleanly within [`STOP_WAIT`]: settles what came in, says farewell,
    /// disconnects.
    ///
    /// # Cancel safety
    /// Dropping it is like pulling the plug: nothing acknowledged is lost, the broker publishes the last will.
    pub async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
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
            self.wait(&stop).await;
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
    async fn wait(&mut self, stop: &CancellationToken) {
        let until = self.retry.next(Instant::now(), fastrand::f64());
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
        let dropping = self.retry.shall_drop(Instant::now());
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
        let (acks, unsent) = (Acks::default(), Unsent::default());
        let mut events = events(event_loop, acks.clone(), unsent.clone());

        let first = tokio::select! {
            () = stop.cancelled() => return Ended::Stopped,
            first = events.next() => first,
        };
        self.retry.connect_left(Instant::now());
        let session_present = match first {
            Some(Ok(Event::Incoming(Packet::ConnAck(ack)))) => ack.session_present,
            Some(Err((error, _))) => {
                self.retry.not_accepted();
                return Ended::Lost(explain(&error, &self.config));
            }
            other => return Ended::Lost(format!("the broker began with {other:?} instead of CONNACK")),
        };
        if dropping {
            return Ended::Lost(self.session_dropped());
        }
        let connected = Instant::now();
        self.connected(session_present);

        let mut session = Session::new(client, acks, unsent);
        let carried = self.carry_on(&mut session, &mut events, stop).await;
        drop(events);
        match carried {
            Ok(()) => {
                session.close(false, "the link is stopped");
                Ended::Stopped
            }
            Err(Broken { why, exact, cut }) => {
                session.close(exact, &why);
                self.retry.ended(connected.elapsed(), cut);
                Ended::Lost(self.suspicion(why))
            }
        }
    }

    /// A clean session replaced ours: the packet that cannot be read is gone, and everything else the broker kept.
    fn session_dropped(&mut self) -> String {
        self.retry.dropped(Instant::now());
        self.dropped = true;
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
        self.intake.connected();
        self.state.send_modify(|state| {
            state.connects += 1;
            if state.connects > 1 && !session_present && !dropped {
                state.sessions_lost += 1;
                tracing::warn!(link = self.config.name, "the broker had forgotten our session; what it kept is gone");
            }
        });
    }

    /// Adds to a reason what the last connections have in common.
    fn suspicion(&mut self, why: String) -> String {
        if self.retry.is_stuck(Instant::now()) {
            return format!(
                "{why} again although our session was dropped: it is retained there, or published again and again; find it and \
                 remove it. Meanwhile this link comes and goes"
            );
        }
        let rival = self.retry.suspects_rival().then(|| {
            let id = &self.config.client_id;
            format!(
                "the broker closes our connections soon after accepting them: does another client use the id `{id}`? Give \
                 each its own; until then this link waits longer before it connects"
            )
        });
        let told = match &rival {
            Some(rival) => format!("{why}; {rival}"),
            None => why,
        };
        if rival.is_some() {
            self.state.send_modify(|state| state.rival = rival);
        }
        told
    }

    /// A connection has lasted: nobody else uses our id.
    fn proved_stable(&self) {
        self.state.send_if_modified(|state| state.rival.take().is_some());
    }

    async fn carry_on(
        &mut self,
        session: &mut Session,
        events: &mut Events,
        stop: &CancellationToken,
    ) -> Result<(), Broken> {
        self.take_filters();
        let unwanted: Vec<_> = self.unwanted.iter().cloned().collect();
        session.unsubscribe(&unwanted)?;
        session.subscribe(&self.config.filters)?;
        if session.is_subscribed() {
            self.up(session)?;
        }
        let mut ready = session.is_subscribed();
        let mut refused = Vec::new();
        let mut retry_at = Instant::now() + REFUSED_RETRY;
        let mut stable_at = Some(Instant::now() + STABLE_AFTER);
        loop {
            // Before anything else is read: `accept` may have left a message with the broker because of the stop, and
            // nothing behind it may be taken and acknowledged.
            if stop.is_cancelled() {
                return self.farewell(session, events).await;
            }
            if !session.may_read() {
                session.deafened();
            }
            let overdue = session.next_overdue(&self.config);
            let timer = overdue.map(|(at, _)| at).into_iter().chain(stable_at).fold(retry_at, Instant::min);
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
                        Heard::Unsubscribed => self.unwanted.clear(),
                        _ => {}
                    }
                }
                Some(settled) = session.unsettled.next(), if !session.unsettled.is_empty() => {
                    acknowledge(session, settled)?;
                }
                Ok(()) = self.wanted.changed() => self.listen_to_others(session)?,
                Some(once) = self.once.recv(), if ready && session.has_room_for_once() => session.publish_once(once)?,
                entry = next_owed(&mut self.pump), if ready => session.publish_owed(entry)?,
                () = sleep_until(timer) => {
                    if let Some((_, why)) = overdue.filter(|(at, _)| *at <= Instant::now()) {
                        return Err(Broken::inexact(format!("the connection to `{}` is given up: {why}", self.config.address)));
                    }
                    if stable_at.take_if(|at| *at <= Instant::now()).is_some() {
                        self.proved_stable();
                    }
                    if retry_at <= Instant::now() {
                        retry_at = Instant::now() + REFUSED_RETRY;
                        if ready {
                            session.subscribe(&self.refused_filters())?;
                        }
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

    /// Takes over what is to be subscribed; answers what of it is new, and what is not wanted any more.
    fn take_filters(&mut self) -> (Vec<String>, Vec<String>) {
        let wanted = self.wanted.borrow_and_update().clone();
        let before = std::mem::replace(&mut self.config.filters, wanted);
        let not_in = |some: &[String], others: &[String]| -> Vec<String> {
            some.iter().filter(|filter| !others.contains(filter)).cloned().collect()
        };
        let gone = not_in(&before, &self.config.filters);
        self.unwanted.extend(gone.iter().cloned());
        self.unwanted.retain(|filter| !self.config.filters.contains(filter));
        (not_in(&self.config.filters, &before), gone)
    }

    /// The configuration was read again: other devices.
    fn listen_to_others(&mut self, session: &mut Session) -> Result<(), Broken> {
        let (mut new, gone) = self.take_filters();
        // With them what is refused: the next answer says of all that are.
        new.extend(self.refused_filters().into_iter().filter(|filter| !new.contains(filter)).collect::<Vec<_>>());
        session.unsubscribe(&gone)?;
        session.subscribe(&new)?;
        if new.is_empty() {
            self.state.send_if_modified(|state| {
                let refused = state.refused_filters.len();
                state.refused_filters.retain(|text| !gone.iter().any(|filter| is_about(text, filter)));
                state.refused_filters.len() != refused
            });
        }
        Ok(())
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
            Err(Broken { why: explain(&error, config), exact: true, cut: cut(&error) })
        }
        None if session.has_expired() => {
            let broker = &config.address;
            Err(Broken::inexact(format!("`{broker}` took nothing from us until a message to it had expired")))
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
        accepted = intake.accept(inbound) => {
            if session.settle_later(pkid, accepted.map_err(unstored)?) {
                intake.hasten().await;
            }
        }
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

//! One MQTT connection as the simulated devices and the seed's tool use it: rumqttc, with every publish accounted for.
//!
//! A [`Link`] lives as long as one TCP connection. What it did not confirm before it went down has to be published
//! again on the next one, by its owner. Dropping it closes the connection without a good-bye: the broker publishes the
//! last will.

use std::collections::{HashMap, VecDeque};

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, Publish, QoS};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Publishes that may be unconfirmed at a time; more wait with the owner.
pub(crate) const WINDOW: usize = 10;
/// Events on their way to the owner; while it is full, the connection is not read.
const EVENTS: usize = 64;
/// Largest packet in or out, bytes.
const PACKET_MAX: usize = 128 * 1024;

/// What happened on a link.
#[derive(Debug)]
pub(crate) enum Happened {
    /// The broker took the connection.
    Up,
    /// A message came; it is acknowledged.
    Message(Publish),
    /// The broker has the publish that was given this number.
    Confirmed(u64),
    /// The connection is gone; nothing follows.
    Down,
    /// Nothing of interest.
    Other,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    client: AsyncClient,
    events: mpsc::Receiver<Result<Event, ()>>,
    turning: JoinHandle<()>,
    submitted: VecDeque<u64>,
    unconfirmed: HashMap<u16, u64>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.turning.abort();
    }
}

impl Link {
    /// Begins to connect.
    pub(crate) fn open(mut options: MqttOptions) -> Self {
        options.set_max_packet_size(PACKET_MAX, PACKET_MAX);
        let (client, mut turning) = AsyncClient::new(options, WINDOW * 2);
        let (sender, events) = mpsc::channel(EVENTS);
        // `poll` must not be dropped half-way, so it has a task of its own.
        let turning = tokio::spawn(async move {
            loop {
                let event = turning.poll().await.map_err(drop);
                let ended = event.is_err();
                if sender.send(event).await.is_err() || ended {
                    break;
                }
            }
        });
        Self { client, events, turning, submitted: VecDeque::new(), unconfirmed: HashMap::new() }
    }

    /// Subscribes with QoS 1.
    pub(crate) fn subscribe(&self, filter: &str) {
        // The channel has room for it: it is asked for at most twice a connection, right after [`Happened::Up`].
        let _ = self.client.try_subscribe(filter, QoS::AtLeastOnce);
    }

    /// Whether another publish fits.
    pub(crate) fn has_room(&self) -> bool {
        self.submitted.len() + self.unconfirmed.len() < WINDOW
    }

    /// Publishes with QoS 1; `number` comes back in [`Happened::Confirmed`]. Answers whether it was taken.
    pub(crate) fn publish(&mut self, number: u64, topic: &str, payload: Vec<u8>, retain: bool) -> bool {
        let taken = self.has_room() && self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload).is_ok();
        if taken {
            self.submitted.push_back(number);
        }
        taken
    }

    /// The next thing that happens. Cancel safe.
    pub(crate) async fn next(&mut self) -> Happened {
        match self.events.recv().await {
            Some(Ok(Event::Incoming(Packet::ConnAck(_)))) => Happened::Up,
            Some(Ok(Event::Incoming(Packet::Publish(publish)))) => Happened::Message(publish),
            Some(Ok(Event::Incoming(Packet::PubAck(ack)))) => {
                self.unconfirmed.remove(&ack.pkid).map_or(Happened::Other, Happened::Confirmed)
            }
            Some(Ok(Event::Outgoing(Outgoing::Publish(id)))) => {
                if let Some(number) = self.submitted.pop_front() {
                    self.unconfirmed.insert(id, number);
                }
                Happened::Other
            }
            Some(Ok(_)) => Happened::Other,
            Some(Err(())) | None => Happened::Down,
        }
    }
}

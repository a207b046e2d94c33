//! An MQTT client that knows which of its messages were acknowledged.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use rumqttc::{AsyncClient, Event, Incoming, LastWill, MqttOptions, Outgoing, Publish, QoS};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub struct Client {
    id: String,
    mqtt: AsyncClient,
    acknowledgements: mpsc::Sender<oneshot::Sender<()>>,
    messages: mpsc::Receiver<Publish>,
    subscribed: mpsc::Receiver<()>,
    task: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Client {
    pub async fn connect(address: SocketAddr, id: &str) -> Self {
        Self::connect_with(address, id, None).await.expect("connection")
    }

    /// One connection; it is not renewed. `None` if it cannot be made.
    pub async fn connect_with(address: SocketAddr, id: &str, will: Option<LastWill>) -> Option<Self> {
        let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
        options.set_keep_alive(Duration::from_secs(30)).set_max_packet_size(1 << 20, 1 << 20).set_inflight(1_000);
        if let Some(will) = will {
            options.set_last_will(will);
        }
        let (mqtt, mut events) = AsyncClient::new(options, 2_000);
        // Without it a PUBLISH waits up to 40 ms for the acknowledgement of the PUBACK before it.
        events.network_options.set_tcp_nodelay(true);
        match events.poll().await {
            Ok(Event::Incoming(Incoming::ConnAck(_))) => {}
            _ => return None,
        }
        let (acknowledgements, mut waiting) = mpsc::channel::<oneshot::Sender<()>>(4_000);
        let (deliver, messages) = mpsc::channel(100_000);
        let (suback, subscribed) = mpsc::channel(100);
        let task = tokio::spawn(async move {
            let mut sent: HashMap<u16, oneshot::Sender<()>> = HashMap::new();
            let mut early: VecDeque<u16> = VecDeque::new();
            while let Ok(event) = events.poll().await {
                match event {
                    Event::Outgoing(Outgoing::Publish(id)) if id != 0 => match waiting.try_recv() {
                        Ok(waiter) => drop(sent.insert(id, waiter)),
                        Err(_) => early.push_back(id),
                    },
                    Event::Incoming(Incoming::PubAck(ack)) => {
                        if let Some(waiter) = sent.remove(&ack.pkid) {
                            let _ = waiter.send(());
                        }
                    }
                    Event::Incoming(Incoming::Publish(message)) => drop(deliver.try_send(message)),
                    Event::Incoming(Incoming::SubAck(_)) => drop(suback.try_send(())),
                    _ => {}
                }
            }
        });
        Some(Self { id: id.to_owned(), mqtt, acknowledgements, messages, subscribed, task })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub async fn subscribe(&mut self, filter: &str) {
        assert!(self.try_subscribe(filter).await, "no SUBACK");
    }

    /// False if the connection ends before the SUBACK, or it does not come within 5 s.
    pub async fn try_subscribe(&mut self, filter: &str) -> bool {
        let asked = self.mqtt.subscribe(filter, QoS::AtLeastOnce).await;
        let answered = tokio::time::timeout(Duration::from_secs(5), self.subscribed.recv()).await;
        asked.is_ok() && matches!(answered, Ok(Some(())))
    }

    /// Sends with QoS 1; the answer resolves when the PUBACK comes, and fails if the connection ends before.
    pub async fn send(&self, topic: &str, payload: impl Into<Vec<u8>>, retain: bool) -> oneshot::Receiver<()> {
        let (waiter, acknowledged) = oneshot::channel();
        // The waiter goes first, so that it is there when the event loop reports the packet id.
        let _ = self.acknowledgements.send(waiter).await;
        let _ = self.mqtt.publish(topic, QoS::AtLeastOnce, retain, payload.into()).await;
        acknowledged
    }

    /// Sends with QoS 1 and waits for the PUBACK.
    pub async fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>, retain: bool) {
        let acknowledged = self.send(topic, payload, retain).await;
        tokio::time::timeout(Duration::from_secs(10), acknowledged).await.expect("a PUBACK").expect("connection");
    }

    /// Whether the connection still stands.
    pub fn is_up(&self) -> bool {
        !self.task.is_finished()
    }

    pub async fn next(&mut self, seconds: u64) -> Option<Publish> {
        tokio::time::timeout(Duration::from_secs(seconds), self.messages.recv()).await.ok().flatten()
    }

    /// The next message whose JSON fits.
    pub async fn json(&mut self, what: &str, seconds: u64, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        let mut seen = Vec::new();
        loop {
            let message = tokio::time::timeout_at(deadline, self.messages.recv()).await;
            let Ok(Some(message)) = message else { panic!("no {what} within {seconds} s; seen {seen:?}") };
            let value: Value = serde_json::from_slice(&message.payload).unwrap();
            if fits(&value) {
                return value;
            }
            seen.push(value.to_string());
        }
    }

    /// The terminal record of a command on a device.
    pub async fn outcome(&mut self, device: &str, seconds: u64) -> Value {
        let terminal =
            |v: &Value| v["device_id"] == device && !matches!(v["status"].as_str(), Some("created" | "in_progress"));
        self.json("terminal result", seconds, terminal).await
    }

    /// Takes the incoming messages out, so that one task can read while others send.
    pub fn split(mut self) -> (Self, mpsc::Receiver<Publish>) {
        let (_, nothing) = mpsc::channel(1);
        let messages = std::mem::replace(&mut self.messages, nothing);
        (self, messages)
    }

    pub async fn disconnect(self) {
        let _ = self.mqtt.disconnect().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

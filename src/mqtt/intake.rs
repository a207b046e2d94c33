//! From messages to the store (floor) and to the rules (cloud).
//!
//! [`FloorIntake`] parses what devices send and hands it to the store; a message may be acknowledged once the store's
//! receipt says so. [`CloudIntake`] parses commands and hands them to whoever judges and journals them. What does not fit
//! is counted by [`Refusals`] and settled at once: it will never become valid.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use floorgate_model::{DeviceId, Loss, LossReason, Request};
use tokio::time::Instant;

use super::codec::{
    MalformedCommand, Refused, malformed_command, parse_answer, parse_command, parse_state, parse_telemetry,
};
use super::limits::{Limits, LiveRates, Silences};
use super::overflow::{LostReadings, Overflow, OverflowRunner};
use super::refusals::{Refusal, Refusals};
use super::topics::{FloorTopic, Parsed, TopicScheme, command_device};
use super::{Acceptance, BoxFuture, Inbound, Intake};
use crate::clock::Clock;
use crate::shadow::store::Receipt;
use crate::shadow::{Answer, FloorReport, Store, StoreError, TelemetryReport};

/// The devices that are attached. Cheap to clone; all clones see a reload at once.
///
/// The gateway itself is not among them: nobody on the floor may speak in its name.
#[derive(Debug, Clone, Default)]
pub struct Attached(Arc<RwLock<HashSet<DeviceId>>>);

impl Attached {
    /// These devices.
    #[must_use]
    pub fn new(devices: impl IntoIterator<Item = DeviceId>) -> Self {
        Self(Arc::new(RwLock::new(devices.into_iter().collect())))
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn contains(&self, device: &DeviceId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(device)
    }

    /// Puts others in their place (a reload of the configuration).
    pub fn replace(&self, devices: impl IntoIterator<Item = DeviceId>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = devices.into_iter().collect();
    }
}

/// Where parsed reports go: the store, or a double of it in tests.
pub trait ReportSink: Send + Sync + 'static {
    /// Takes one report; the receipt resolves after its commit. A live reading waits for its file within the receipt, so
    /// that what comes behind it is read; anything else waits for a disk that works, and all for room.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be taken.
    fn submit(&self, report: FloorReport) -> BoxFuture<'_, Result<Receipt, StoreError>>;

    /// Commits that these readings were taken and are not kept (`rate_limited`), waiting for their file.
    ///
    /// # Errors
    /// [`StoreError`] if that is not durable: they must not be acknowledged.
    fn declare_lost(&self, lost: BTreeMap<DeviceId, LostReadings>) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = lost;
        Box::pin(std::future::ready(Ok(())))
    }

    /// Whether a command waits for this answer.
    ///
    /// # Errors
    /// [`StoreError`] if that cannot be read.
    fn is_awaited<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<bool, StoreError>> {
        let _ = answer;
        Box::pin(std::future::ready(Ok(true)))
    }

    /// See [`Intake::hasten`].
    fn hasten(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// See [`Intake::returned`].
    fn returned<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, ()> {
        let _ = device;
        Box::pin(std::future::ready(()))
    }
}

impl ReportSink for Store {
    fn submit(&self, report: FloorReport) -> BoxFuture<'_, Result<Receipt, StoreError>> {
        Box::pin(async move {
            match report {
                FloorReport::Telemetry(report) if !report.retained => self.submit_patiently(report).await,
                report => {
                    // While the disk fails, what comes stays unread with its sender instead of coming again and again.
                    self.until_taken(&report).await;
                    Self::submit(self, report).await
                }
            }
        })
    }

    fn declare_lost(&self, lost: BTreeMap<DeviceId, LostReadings>) -> BoxFuture<'_, Result<(), StoreError>> {
        let loss = |(device_id, lost): (DeviceId, LostReadings)| Loss {
            device_id,
            from: lost.from,
            to: lost.to,
            count: lost.count,
            reason: LossReason::RateLimited,
        };
        let losses = lost.into_iter().map(loss).collect();
        Box::pin(async move {
            self.until_readings_taken().await;
            Self::declare_lost(self, losses).await
        })
    }

    fn is_awaited<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(self.open_execution(&answer.device_id, &answer.command_id).await?.is_some()) })
    }

    fn hasten(&self) -> BoxFuture<'_, ()> {
        Box::pin(Self::hasten(self))
    }

    fn returned<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(error) = self.device_returned(device).await {
                tracing::debug!(%device, %error, "that it has connected again is not noted");
            }
        })
    }
}

/// Takes what the floor sends, from a link or from the endpoint.
#[derive(Debug)]
pub struct FloorIntake<S> {
    attached: Attached,
    sink: S,
    topics: TopicScheme,
    clock: Clock,
    refusals: Arc<Refusals>,
    limiting: Limiting,
}

/// What happens to a device that sends more than it may.
#[derive(Debug)]
enum Limiting {
    /// Nothing: there is no limit.
    Off,
    /// Whoever carries its messages makes it wait ([`Intake::admit`]).
    Slowing(Limits),
    /// Its readings are declared lost.
    Declaring(Arc<Overflow>),
}

impl<S: ReportSink> FloorIntake<S> {
    /// An intake for these devices and topics.
    #[must_use]
    pub fn new(attached: Attached, sink: S, topics: TopicScheme, clock: Clock, refusals: Arc<Refusals>) -> Self {
        Self { attached, sink, topics, clock, refusals, limiting: Limiting::Off }
    }

    /// For a carrier that can make a device wait.
    #[must_use]
    pub fn slowing(self, rates: impl Into<LiveRates>) -> Self {
        Self { limiting: Limiting::Slowing(Limits::new(rates, Silences::new())), ..self }
    }

    /// For a link that many devices share, whose broker keeps what comes while it is not connected: a device that had been
    /// silent may bring in more than it may send. What is beyond the limits is settled only while the runner runs.
    #[must_use]
    pub fn declaring(self, rates: impl Into<LiveRates>, silences: Silences) -> (Self, OverflowRunner<S>)
    where
        S: Clone,
    {
        let overflow = Arc::new(Overflow::new(rates.into(), silences, Arc::clone(&self.refusals)));
        let runner = OverflowRunner { overflow: Arc::clone(&overflow), sink: self.sink.clone() };
        (Self { limiting: Limiting::Declaring(overflow), ..self }, runner)
    }

    /// The report, or `None` if the message was refused (and counted).
    fn parse(&self, inbound: &Inbound) -> Option<FloorReport> {
        let (topic, device) = match self.topics.parse(&inbound.topic) {
            Parsed::Device(FloorTopic::Execute, _) | Parsed::Foreign => {
                self.refuse("(foreign topic)", Refusal::ForeignTopic, &inbound.topic);
                return None;
            }
            Parsed::BadId(_) => {
                self.refuse("(bad id)", Refusal::BadId, &inbound.topic);
                return None;
            }
            Parsed::Device(topic, device) => (topic, device),
        };
        if !self.attached.contains(&device) {
            self.refusals.unknown_device(&device);
            return None;
        }
        let moment = self.clock.moment();
        let (payload, now, guess_base_ms) = (&inbound.payload[..], moment.wall, moment.guess_base());
        let report = match topic {
            FloorTopic::State => parse_state(&device, payload, now, inbound.retained).map(FloorReport::State),
            FloorTopic::Result => parse_answer(&device, payload, now).map(FloorReport::Answer),
            FloorTopic::Telemetry | FloorTopic::Execute => {
                parse_telemetry(&device, payload, now, inbound.redelivered, inbound.retained)
                    .map(|report| FloorReport::Telemetry(TelemetryReport { guess_base_ms, ..report }))
            }
        };
        match report {
            Ok(report) => Some(report),
            Err(refused) => {
                self.refusals.record(device.as_str(), &refused);
                None
            }
        }
    }

    fn refuse(&self, whose: &str, reason: Refusal, detail: &str) {
        self.refusals.record(whose, &Refused::new(reason, detail));
    }
}

impl<S: ReportSink> Intake for FloorIntake<S> {
    fn accept(&self, inbound: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        Box::pin(async move {
            let Some(report) = self.parse(&inbound) else { return Ok(Acceptance::Settled) };
            let Limiting::Declaring(overflow) = &self.limiting else {
                return self.sink.submit(report).await.map(Acceptance::Pending);
            };
            let receipt = overflow.submit(&self.sink, report, inbound.redelivered).await?;
            Ok(receipt.map_or(Acceptance::Settled, Acceptance::Pending))
        })
    }

    fn admit(&self, topic: &str, now: Instant) -> Result<(), Instant> {
        let Limiting::Slowing(limits) = &self.limiting else { return Ok(()) };
        let Parsed::Device(_, device) = self.topics.parse(topic) else { return Ok(()) };
        if !self.attached.contains(&device) {
            return Ok(());
        }
        let admitted = limits.take(&device, now);
        if admitted.is_err() {
            self.refusals.count(Refusal::SlowedDown);
        }
        admitted
    }

    fn connected(&self) {
        if let Limiting::Declaring(overflow) = &self.limiting {
            overflow.connected();
        }
    }

    fn hasten(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A declaration of losses takes the readings that wait along.
            let declares = matches!(&self.limiting, Limiting::Declaring(overflow) if overflow.hasten());
            if !declares {
                self.sink.hasten().await;
            }
        })
    }

    fn returned<'a>(&'a self, device: &'a DeviceId) -> BoxFuture<'a, ()> {
        self.sink.returned(device)
    }
}

/// A command that came in, well-formed.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandMessage {
    /// What is asked for.
    pub request: Request,
    /// It came as a retained message: to be refused, with a record.
    pub retained: bool,
}

/// What the cloud sent for an attached device.
#[derive(Debug, Clone, PartialEq)]
pub enum CloudCommand {
    /// A command, to be judged and journalled.
    Request(CommandMessage),
    /// An object that is none, to be journalled as rejected: its sender waits for an answer.
    Malformed(MalformedCommand),
}

/// Judges and journals a command; resolves after the journal's commit.
pub type CommandSink = Arc<dyn Fn(CloudCommand) -> BoxFuture<'static, Result<(), StoreError>> + Send + Sync>;

/// Takes commands from the cloud, one after another, so that they are journalled in the order of their receipt.
pub struct CloudIntake {
    attached: Attached,
    sink: CommandSink,
    refusals: Arc<Refusals>,
}

impl fmt::Debug for CloudIntake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudIntake").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl CloudIntake {
    /// An intake for commands to these devices.
    #[must_use]
    pub fn new(attached: Attached, sink: CommandSink, refusals: Arc<Refusals>) -> Self {
        Self { attached, sink, refusals }
    }

    fn parse(&self, inbound: &Inbound) -> Option<CloudCommand> {
        let Some(id) = command_device(&inbound.topic) else {
            let foreign = Refused::new(Refusal::ForeignTopic, &inbound.topic);
            self.refusals.record("(foreign topic)", &foreign);
            return None;
        };
        let Ok(device) = DeviceId::new(id) else {
            self.refusals.record("(bad id)", &Refused::new(Refusal::BadId, &inbound.topic));
            return None;
        };
        if !self.attached.contains(&device) {
            // With a wildcard filter these are commands for another gateway's devices: no news, and none pending.
            self.refusals.count(Refusal::UnknownDevice);
            return None;
        }
        match parse_command(&device, &inbound.payload) {
            Ok(request) => Some(CloudCommand::Request(CommandMessage { request, retained: inbound.retained })),
            Err(refused) => {
                self.refusals.record(device.as_str(), &refused);
                malformed_command(&device, &inbound.payload, &refused).map(CloudCommand::Malformed)
            }
        }
    }
}

impl Intake for CloudIntake {
    fn accept(&self, inbound: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        Box::pin(async move {
            if let Some(message) = self.parse(&inbound) {
                if let CloudCommand::Request(CommandMessage { request, retained: true }) = &message {
                    let refused = Refused::new(Refusal::RetainedCommand, "a retained command says nothing about now");
                    self.refusals.record(request.device_id.as_str(), &refused);
                }
                (self.sink)(message).await?;
            }
            Ok(Acceptance::Settled)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shadow::store::Taken;
    use bytes::Bytes;
    use floorgate_model::Timestamp;
    use std::sync::Mutex;
    use tokio::sync::oneshot;

    #[derive(Default, Clone)]
    struct Taker(Arc<Mutex<Vec<FloorReport>>>);

    impl ReportSink for Taker {
        fn submit(&self, report: FloorReport) -> BoxFuture<'_, Result<Receipt, StoreError>> {
            self.0.lock().unwrap().push(report);
            let (done, receipt) = oneshot::channel();
            done.send(Ok(Taken::Stored)).unwrap();
            Box::pin(async { Ok(receipt) })
        }
    }

    fn inbound(topic: &str, payload: &str) -> Inbound {
        Inbound {
            topic: topic.to_owned(),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            redelivered: false,
        }
    }

    fn attached() -> Attached {
        Attached::new([DeviceId::new("D-1").unwrap()])
    }

    fn floor() -> (FloorIntake<Taker>, Taker, Arc<Refusals>) {
        let clock = Clock::set_to(Timestamp::EPOCH);
        let (taker, refusals) = (Taker::default(), Arc::new(Refusals::new(clock.clone())));
        let intake = FloorIntake::new(attached(), taker.clone(), TopicScheme::default(), clock, Arc::clone(&refusals));
        (intake, taker, refusals)
    }

    #[tokio::test]
    async fn what_fits_goes_to_the_store_and_waits_for_its_receipt() {
        let (intake, taker, refusals) = floor();
        for (topic, payload) in [
            ("devices/D-1/telemetry", r#"{"x":1}"#),
            ("devices/D-1/state", r#"{"online":true}"#),
            ("devices/D-1/result", r#"{"command_id":"c","status":"succeeded"}"#),
        ] {
            assert!(matches!(intake.accept(inbound(topic, payload)).await, Ok(Acceptance::Pending(_))), "{topic}");
        }
        let taken = taker.0.lock().unwrap();
        assert!(
            matches!(&taken[..], [FloorReport::Telemetry(_), FloorReport::State(_), FloorReport::Answer(_)]),
            "{taken:?}"
        );
        assert_eq!(refusals.snapshot().total, 0);
    }

    #[tokio::test]
    async fn what_does_not_fit_is_settled_counted_and_changes_nothing() {
        let (intake, taker, refusals) = floor();
        for (topic, payload) in [
            ("devices/D-1/telemetry", "not json"),
            ("devices/D-2/telemetry", r#"{"x":1}"#),
            ("devices/+/telemetry", r#"{"x":1}"#),
            ("devices/D-1/execute", r#"{"x":1}"#),
            ("somewhere/else", r#"{"x":1}"#),
        ] {
            assert!(matches!(intake.accept(inbound(topic, payload)).await, Ok(Acceptance::Settled)), "{topic}");
        }
        assert!(taker.0.lock().unwrap().is_empty());
        let snapshot = refusals.snapshot();
        let counts: Vec<_> = snapshot.by_reason.iter().map(|(reason, n)| (*reason, *n)).collect();
        assert_eq!(counts, [("bad_id", 1), ("foreign_topic", 2), ("not_json", 1), ("unknown_device", 1)]);
        assert_eq!(snapshot.pending.len(), 1);
    }

    #[tokio::test]
    async fn a_reload_attaches_a_device_without_a_new_intake() {
        let (intake, taker, _) = floor();
        intake.attached.replace([DeviceId::new("D-2").unwrap()]);
        intake.accept(inbound("devices/D-2/telemetry", r#"{"x":1}"#)).await.unwrap();
        intake.accept(inbound("devices/D-1/telemetry", r#"{"x":1}"#)).await.unwrap();
        assert_eq!(taker.0.lock().unwrap().len(), 1);
    }

    fn cloud(answer: Result<(), StoreError>) -> (CloudIntake, Arc<Mutex<Vec<CloudCommand>>>, Arc<Refusals>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let refusals = Arc::new(Refusals::new(Clock::set_to(Timestamp::EPOCH)));
        let log = Arc::clone(&seen);
        let sink: CommandSink = Arc::new(move |message| {
            log.lock().unwrap().push(message);
            let answer = answer.clone();
            Box::pin(async move { answer })
        });
        (CloudIntake::new(attached(), sink, Arc::clone(&refusals)), seen, refusals)
    }

    const REBOOT: &str = r#"{"command":"reboot","timestamp":"2026-11-22T10:00:00Z"}"#;

    #[tokio::test]
    async fn a_command_is_settled_once_the_journal_has_it() {
        let (intake, seen, _) = cloud(Ok(()));
        let accepted = intake.accept(inbound("devices/D-1/commands", REBOOT)).await;
        assert!(matches!(accepted, Ok(Acceptance::Settled)));
        assert!(matches!(&seen.lock().unwrap()[0], CloudCommand::Request(m) if m.request.command == "reboot"));
        let (intake, ..) = cloud(Err(StoreError::Closed));
        assert!(intake.accept(inbound("devices/D-1/commands", REBOOT)).await.is_err());
    }

    #[tokio::test]
    async fn a_retained_command_is_handed_over_marked_so_that_its_refusal_is_recorded() {
        let (intake, seen, refusals) = cloud(Ok(()));
        intake.accept(Inbound { retained: true, ..inbound("devices/D-1/commands", REBOOT) }).await.unwrap();
        assert!(matches!(&seen.lock().unwrap()[0], CloudCommand::Request(m) if m.retained));
        assert_eq!(refusals.snapshot().by_reason["retained_command"], 1);
    }

    #[tokio::test]
    async fn an_object_that_is_no_command_is_counted_and_handed_over_for_its_record() {
        let (intake, seen, refusals) = cloud(Ok(()));
        intake.accept(inbound("devices/D-1/commands", r#"{"command":7}"#)).await.unwrap();
        assert!(matches!(&seen.lock().unwrap()[..], [CloudCommand::Malformed(m)] if m.device_id.as_str() == "D-1"));
        assert_eq!(refusals.snapshot().by_reason["malformed_command"], 1);
        let (intake, ..) = cloud(Err(StoreError::Closed));
        assert!(intake.accept(inbound("devices/D-1/commands", "{}")).await.is_err(), "not acknowledged unrecorded");
    }

    #[tokio::test]
    async fn commands_of_other_gateways_and_nonsense_are_only_counted() {
        let (intake, seen, refusals) = cloud(Ok(()));
        for (topic, payload) in [
            ("devices/D-9/commands", REBOOT),
            ("devices/D-1/commands", "not json"),
            ("devices/D-9/commands", "{}"),
            ("devices/a b/commands", REBOOT),
            ("devices/D-1/commands/result", REBOOT),
        ] {
            assert!(matches!(intake.accept(inbound(topic, payload)).await, Ok(Acceptance::Settled)), "{topic}");
        }
        assert!(seen.lock().unwrap().is_empty());
        let snapshot = refusals.snapshot();
        assert_eq!((snapshot.total, snapshot.pending.len()), (5, 0));
    }
}

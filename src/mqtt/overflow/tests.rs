//! The intake of a shared link with its runner, in paused time, against a sink that commits as a store does.

use std::collections::HashSet;

use bytes::Bytes;
use floorgate_model::CommandId;
use proptest::prelude::*;

use super::*;
use crate::clock::Clock;
use crate::mqtt::intake::{Attached, FloorIntake};
use crate::mqtt::limits::Rate;
use crate::mqtt::topics::TopicScheme;
use crate::mqtt::{Acceptance, Inbound, Intake};

#[derive(Default)]
struct Books {
    /// Reports in the order of their commit.
    stored: Vec<FloorReport>,
    declared: BTreeMap<DeviceId, u64>,
    declarations: usize,
    open: HashSet<CommandId>,
    failing: bool,
}

/// Commits a millisecond after it was asked.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Books>>);

impl Sink {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap()
    }
}

impl ReportSink for Sink {
    fn submit(&self, report: FloorReport) -> BoxFuture<'_, Result<Receipt, StoreError>> {
        let (settle, receipt) = oneshot::channel();
        let books = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            books.books().stored.push(report);
            let _ = settle.send(Ok(Taken::Stored));
        });
        Box::pin(std::future::ready(Ok(receipt)))
    }

    fn declare_lost(&self, lost: BTreeMap<DeviceId, LostReadings>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let mut books = self.books();
            if books.failing {
                return Err(StoreError::Closed);
            }
            books.declarations += 1;
            for (device, lost) in lost {
                *books.declared.entry(device).or_default() += lost.count;
            }
            Ok(())
        })
    }

    fn is_awaited<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(std::future::ready(Ok(self.books().open.contains(&answer.command_id))))
    }
}

struct Link {
    intake: FloorIntake<Sink>,
    sink: Sink,
    refusals: Arc<Refusals>,
    stop: CancellationToken,
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn link(devices: &[&str]) -> Link {
    let clock = Clock::set_to(Timestamp::from_millis(1_795_341_600_000));
    let (sink, refusals) = (Sink::default(), Arc::new(Refusals::new(clock.clone())));
    let attached = Attached::new(devices.iter().map(|name| id(name)));
    let intake = FloorIntake::new(attached, sink.clone(), TopicScheme::default(), clock, Arc::clone(&refusals));
    let (intake, runner) = intake.declaring(crate::mqtt::limits::Rates::default(), Silences::new());
    let stop = CancellationToken::new();
    tokio::spawn(runner.run(stop.clone()));
    Link { intake, sink, refusals, stop }
}

impl Link {
    async fn say(&self, device: &str, kind: &str, payload: &str) -> Acceptance {
        let inbound = Inbound {
            topic: format!("devices/{device}/{kind}"),
            payload: Bytes::from(payload.to_owned()),
            retained: false,
            redelivered: false,
        };
        self.intake.accept(inbound).await.unwrap()
    }

    async fn reading(&self, device: &str) -> Receipt {
        match self.say(device, "telemetry", r#"{"x":1}"#).await {
            Acceptance::Pending(receipt) => receipt,
            Acceptance::Settled => panic!("acknowledged before anything was committed"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_acknowledged_reading_of_a_flood_is_stored_or_declared() {
    let link = link(&["A", "flood"]);
    let mut receipts = Vec::new();
    for n in 0..1_000 {
        receipts.push(link.reading("flood").await);
        if n % 10 == 0 {
            receipts.push(link.reading("A").await);
        }
    }
    for receipt in receipts {
        receipt.await.unwrap().unwrap();
    }
    let books = link.sink.books();
    assert_eq!((books.stored.len(), books.declared[&id("flood")]), (200, 900));
    assert!(!books.declared.contains_key(&id("A")));
    assert_eq!(link.refusals.snapshot().by_reason["rate_limited"], 900);
    link.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_little_over_the_limit_is_declared_once_a_second_and_a_brokers_window_never_waits_for_it() {
    let link = link(&["A", "flood"]);
    for _ in 0..100 {
        link.reading("flood").await;
    }
    let start = Instant::now();
    let first = link.reading("flood").await;
    for _ in 0..5 {
        link.reading("flood").await;
    }
    first.await.unwrap().unwrap();
    assert!((1_000..=1_010).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(link.sink.books().declarations, 1);

    // Twenty messages fill the window of the usual broker, whoever sent them: the link says so.
    let start = Instant::now();
    let mut window: Vec<_> = Vec::new();
    while !link.overflow_pending() {
        // In the meantime the flooding device may send some again.
        window.push(link.reading("flood").await);
    }
    window.push(link.reading("A").await);
    link.intake.hasten().await;
    for receipt in window {
        receipt.await.unwrap().unwrap();
    }
    assert!(start.elapsed() <= Duration::from_millis(20), "{:?}", start.elapsed());
}

impl Link {
    fn overflow_pending(&self) -> bool {
        self.refusals.snapshot().by_reason.get("rate_limited").is_some_and(|n| *n > 6)
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_window_lets_go_of_states_and_answers_that_are_held() {
    let link = link(&["A", "B"]);
    link.sink.books().open.insert(CommandId::new("mine").unwrap());
    let mut window = Vec::new();
    for n in 0..200 {
        window.push(link.say("A", "state", &format!(r#"{{"online":true,"boot_count":{n}}}"#)).await);
        window.push(link.say("B", "result", r#"{"command_id":"mine","status":"in_progress"}"#).await);
    }
    let start = Instant::now();
    link.intake.hasten().await;
    for acceptance in window {
        let Acceptance::Pending(receipt) = acceptance else { panic!("acknowledged before anything was committed") };
        receipt.await.unwrap().unwrap();
    }
    assert!(start.elapsed() <= Duration::from_millis(5), "{:?}", start.elapsed());
    let books = link.sink.books();
    let newest = books.stored.iter().rev().find_map(|report| match report {
        FloorReport::State(state) => state.boot_count,
        _ => None,
    });
    assert_eq!(newest, Some(199));
}

/// At any speed: taken in at once, or hardly faster than what needs no exemption because many share the link.
#[tokio::test(start_paused = true)]
async fn of_a_days_backlog_of_a_device_that_sends_once_a_second_nothing_is_declared_lost() {
    for pause in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(45)] {
        let link = link(&["A"]);
        link.intake.connected();
        let mut window = Vec::new();
        for n in 0..86_400 {
            window.push(link.reading("A").await);
            if n % 20 == 19 {
                link.intake.hasten().await;
                for receipt in window.drain(..) {
                    receipt.await.unwrap().unwrap();
                }
                tokio::time::sleep(pause * 20).await;
            }
        }
        let books = link.sink.books();
        assert_eq!((books.stored.len(), books.declared.len()), (86_400, 0), "with {pause:?} between messages");
        link.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn a_declaration_that_fails_acknowledges_nothing() {
    let link = link(&["flood"]);
    link.sink.books().failing = true;
    for _ in 0..100 {
        link.reading("flood").await;
    }
    assert!(link.reading("flood").await.await.unwrap().is_err());
    assert!(link.sink.books().declared.is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_a_flood_of_states_the_newest_counts_and_all_are_acknowledged() {
    let link = link(&["A"]);
    let mut receipts = Vec::new();
    for n in 0..1_000 {
        let Acceptance::Pending(receipt) =
            link.say("A", "state", &format!(r#"{{"online":true,"boot_count":{n}}}"#)).await
        else {
            panic!("acknowledged before anything was committed")
        };
        receipts.push(receipt);
    }
    let start = Instant::now();
    for receipt in receipts {
        receipt.await.unwrap().unwrap();
    }
    assert!(start.elapsed() <= Duration::from_millis(60), "one message's interval: {:?}", start.elapsed());
    let books = link.sink.books();
    let last = books.stored.last().unwrap();
    assert!(matches!(last, FloorReport::State(state) if state.boot_count == Some(999)), "{last:?}");
    assert!(books.stored.len() <= 102, "{}", books.stored.len());
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_an_open_command_survives_a_flood_of_other_answers() {
    let link = link(&["A"]);
    link.sink.books().open.insert(CommandId::new("mine").unwrap());
    let answer = |id: &str, status: &str| format!(r#"{{"command_id":"{id}","status":"{status}"}}"#);
    for n in 0..500 {
        link.say("A", "result", &answer(&format!("other-{n}"), "succeeded")).await;
    }
    let Acceptance::Pending(first) = link.say("A", "result", &answer("mine", "succeeded")).await else {
        panic!("lost")
    };
    let Acceptance::Pending(late) = link.say("A", "result", &answer("mine", "in_progress")).await else {
        panic!("lost")
    };
    for n in 0..500 {
        link.say("A", "result", &answer(&format!("later-{n}"), "failed")).await;
    }
    first.await.unwrap().unwrap();
    late.await.unwrap().unwrap();
    let books = link.sink.books();
    let mine: Vec<_> = books
        .stored
        .iter()
        .filter(|report| matches!(report, FloorReport::Answer(a) if a.command_id.as_str() == "mine"))
        .collect();
    assert!(matches!(mine[..], [FloorReport::Answer(Answer { status: AnswerStatus::Succeeded, .. })]), "{mine:?}");
    assert!(books.stored.len() <= 102, "{}", books.stored.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever comes when: accepted readings are stored or declared, nothing waits for ever, and the last state and
    /// the final answer of a device are what the store has in the end.
    #[test]
    fn nothing_is_acknowledged_that_is_neither_stored_nor_declared(
        messages in proptest::collection::vec((0usize..3, 0u8..4, 0u64..8), 1..600),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let names = ["A", "B", "C"];
            let link = link(&names);
            link.sink.books().open.insert(CommandId::new("c").unwrap());
            let (mut receipts, mut readings) = (Vec::new(), 0);
            let mut last = BTreeMap::new();
            for (n, (who, kind, wait)) in messages.into_iter().enumerate() {
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let acceptance = match kind {
                    0 => {
                        last.insert(names[who], n as u64);
                        link.say(names[who], "state", &format!(r#"{{"online":true,"boot_count":{n}}}"#)).await
                    }
                    1 => link.say(names[who], "result", r#"{"command_id":"c","status":"succeeded"}"#).await,
                    _ => {
                        readings += 1;
                        link.say(names[who], "telemetry", r#"{"x":1}"#).await
                    }
                };
                let Acceptance::Pending(receipt) = acceptance else { panic!("acknowledged too early") };
                receipts.push(receipt);
            }
            for receipt in receipts {
                tokio::time::timeout(Duration::from_secs(2), receipt).await.expect("it waits for ever").unwrap().unwrap();
            }
            let books = link.sink.books();
            let stored = books.stored.iter().filter(|report| matches!(report, FloorReport::Telemetry(_))).count() as u64;
            assert_eq!(stored + books.declared.values().sum::<u64>(), readings);
            for (name, boot_count) in last {
                let newest = books.stored.iter().rev().find_map(|report| match report {
                    FloorReport::State(state) if state.device_id == id(name) => state.boot_count,
                    _ => None,
                });
                assert_eq!(newest, Some(boot_count));
            }
        });
    }
}

#[test]
fn the_limits_are_those_of_the_documentation() {
    assert_eq!(Rate::default(), Rate { per_second: 20, burst: 100 });
}

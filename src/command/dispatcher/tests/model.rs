//! Everything at once: random commands, redeliveries, devices, drivers, clocks, failing stores and power cuts.

use std::collections::HashMap;

use floorgate_model::{CommandId, Request, Timestamp};
use proptest::prelude::*;

use super::bench::Running;
use super::*;
use crate::command::Source;

const DEVICES: [&str; 3] = ["A", "B", "C"];
/// Where the store may fail. Not where the queue is read: a command that was never seen waiting has no monotonic age.
const METHODS: [&str; 4] = ["device", "open_execution", "claim", "finish"];

#[derive(Debug, Clone)]
enum Act {
    Ask(usize, CommandName),
    Redeliver(usize),
    Answer(usize, AnswerStatus),
    ComesUp(usize),
    ReportsConfiguration(usize, &'static str),
    Behaves(usize, Manner),
    StoreFails(&'static str, Trouble),
    StoreHeals,
    PowerCut,
    Passes(u64),
    ClockJumps(i64),
}

fn act() -> impl Strategy<Value = Act> {
    use prop::sample::select;
    let manners = [
        Manner::Acknowledges,
        Manner::Dawdles(Duration::from_secs(3)),
        Manner::Hangs,
        Manner::Loses,
        Manner::IsAway,
        Manner::FindsItExpired,
    ];
    let words = [AnswerStatus::InProgress, AnswerStatus::Succeeded, AnswerStatus::Failed];
    let troubles = [Trouble::Fails, Trouble::FailsAfter, Trouble::Hangs, Trouble::HangsAfter];
    prop_oneof![
        6 => (0..3usize, select(CommandName::ALL.to_vec())).prop_map(|(device, command)| Act::Ask(device, command)),
        2 => any::<usize>().prop_map(Act::Redeliver),
        4 => (any::<usize>(), select(words.to_vec())).prop_map(|(which, word)| Act::Answer(which, word)),
        2 => (0..3usize).prop_map(Act::ComesUp),
        1 => (0..3usize, select(vec!["5", "10"])).prop_map(|(device, rate)| Act::ReportsConfiguration(device, rate)),
        2 => (0..3usize, select(manners.to_vec())).prop_map(|(device, manner)| Act::Behaves(device, manner)),
        2 => (select(METHODS.to_vec()), select(troubles.to_vec())).prop_map(|(method, how)| Act::StoreFails(method, how)),
        3 => Just(Act::StoreHeals),
        2 => Just(Act::PowerCut),
        6 => select(vec![1, 2, 7, 31, 100, 200, 1_000]).prop_map(Act::Passes),
        1 => select(vec![-86_400, -130, -30, 30, 130, 86_400]).prop_map(Act::ClockJumps),
    ]
}

/// What is known of a command besides its record.
struct Asked {
    request: Request,
    at: Instant,
    cuts_before: usize,
}

struct World {
    bench: Bench,
    running: Option<Running>,
    asked: Vec<Asked>,
    cuts: usize,
}

impl World {
    async fn admit(&mut self, request: Request) {
        let admission = crate::command::Admission::new(
            self.bench.log.clone(),
            self.bench.judge.clone(),
            floorgate_model::GatewayId::new("GATEWAY-1").unwrap(),
        );
        // A store that hangs keeps the link waiting; it gives up, and the broker delivers again.
        let admitting = admission.admit(request, Source::Cloud { retained: false });
        let _ = tokio::time::timeout(Duration::from_millis(10), admitting).await;
    }

    async fn restart(&mut self) {
        if let Some(running) = self.running.take() {
            running.crash().await;
        }
        self.running = Some(self.bench.start());
    }

    async fn act(&mut self, act: Act) {
        let picked = |which: usize| self.asked.get(which % self.asked.len().max(1)).map(|asked| asked.request.clone());
        match act {
            Act::Ask(device, command) => {
                let request = self.bench.request(DEVICES[device], command.as_str(), parameters_of(command));
                self.asked.push(Asked { request: request.clone(), at: Instant::now(), cuts_before: self.cuts });
                self.admit(request).await;
            }
            Act::Redeliver(which) => {
                if let Some(request) = picked(which) {
                    self.admit(request).await;
                }
            }
            Act::Answer(which, word) => {
                if let Some(request) = picked(which) {
                    self.bench.answer(request.device_id.as_str(), &request.command_id, word).await;
                }
            }
            Act::ComesUp(device) => self.bench.comes_up(DEVICES[device]).await,
            Act::ReportsConfiguration(device, rate) => self.bench.log.take_state(DEVICES[device], |view| {
                view.configuration = Some(BTreeMap::from([("sample_rate_seconds".to_owned(), rate.to_owned())]));
                view.observed = DeviceStatus::Online;
            }),
            Act::Behaves(device, manner) => self.bench.manner(DEVICES[device], manner),
            Act::StoreFails(method, how) => self.bench.log.trouble(method, Some(how)),
            Act::StoreHeals => self.heal().await,
            Act::PowerCut => {
                self.cuts += 1;
                self.restart().await;
            }
            Act::Passes(time) => self.pass(time).await,
            Act::ClockJumps(by) => {
                let now = self.bench.clock.now().as_millis();
                self.bench.clock.put(Timestamp::from_millis(now + by * 1_000));
            }
        }
        self.bench.settle().await;
    }

    /// A store that hung is one that a restart freed.
    async fn heal(&mut self) {
        self.bench.log.heal();
        self.cuts += 1;
        self.restart().await;
    }

    async fn pass(&mut self, time: u64) {
        for step in std::iter::repeat_n(5, usize::try_from(time / 5).unwrap()).chain([time % 5]) {
            let wall = self.bench.clock.now().saturating_add(seconds(step));
            self.bench.jump(seconds(step), wall).await;
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mut sends: HashMap<CommandId, usize> = HashMap::new();
        for (order, at) in self.bench.taken_with_time() {
            let asked = self.asked.iter().find(|asked| asked.request.command_id == order.command_id).unwrap();
            let count = sends.entry(order.command_id.clone()).or_default();
            *count += 1;
            let repeats = if order.command == UpdateConfig { self.cuts } else { 0 };
            prop_assert!(*count <= 1 + repeats, "{} {} was sent {count} times", order.command, order.command_id);
            // While no restart came between, the age is known whatever the wall clock did.
            if asked.cuts_before == self.cuts {
                let age = at.duration_since(asked.at);
                prop_assert!(age < order.command.default_lifetime(), "{} was sent {age:?} old", order.command);
            }
        }
        prop_assert_eq!(self.bench.log.broken_rules(), Vec::<String>::new());
        Ok(())
    }
}

async fn play(acts: Vec<Act>) -> Result<(), TestCaseError> {
    let bench = Bench::with(&DEVICES);
    let mut world = World { bench, running: None, asked: Vec::new(), cuts: 0 };
    world.restart().await;
    for act in acts {
        world.act(act).await;
        world.check()?;
    }
    DEVICES.into_iter().for_each(|device| world.bench.manner(device, Manner::Acknowledges));
    world.heal().await;
    // Eight commands, none of which takes longer than a recalibration, and the patience before them.
    world.pass(8 * 300 + 60 + 30).await;
    world.check()?;
    world.running.take().unwrap().stop().await;
    world.bench.assert_settled();
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_nothing_runs_twice_or_late_and_everything_ends_once(
        acts in prop::collection::vec(act(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(acts))?;
    }
}

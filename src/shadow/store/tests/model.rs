//! The whole store against a plain model, through random lives with small quotas, kills, reopenings, a disk that fails, a
//! time that is not known from the beginning, and a file that is overwritten.
//!
//! The model knows what was acknowledged, what the table was given, and where each command stands. A reading must be in
//! the table, in the store, or declared lost, and the books must say so after every step; nothing in the table is ever
//! overwritten with anything else.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::disk::disk;
use super::*;
use crate::shadow::{Fault, HistoryBlock};

const DEVICES: [&str; 2] = ["A", "B"];

#[derive(Debug, Clone)]
enum Step {
    /// So many readings of a device; late ones lie before those sent last.
    Submit { device: usize, count: usize, late: bool },
    /// Its last reading again.
    Again { device: usize },
    /// Time passes, tick by tick.
    Pass { ticks: usize, seconds: u64 },
    /// Handed out and written to the table; with `answered` that is confirmed.
    Send { blocks: usize, answered: bool },
    /// The table refuses the oldest for good.
    Park,
    /// Readings were taken and not stored.
    Declare { device: usize, count: u64 },
    /// A new command.
    Journal { device: usize },
    /// The oldest waiting command of a device is claimed.
    Claim { device: usize },
    /// What runs on a device ends.
    Finish { device: usize },
    /// A turn, or the file of the readings, fails as a disk in this state makes it; then the disk is back.
    Fail { fault: Fault, telemetry: bool },
    /// A time that was a guess until now is known: the clock was behind by so much.
    Know { behind: u64 },
    /// The file of the readings is overwritten while the store is closed.
    Overwrite,
    /// Closed and opened.
    Reopen,
    /// Killed and opened.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let device = || 0_usize..DEVICES.len();
    prop_oneof![
        8 => (device(), 1_usize..60, proptest::bool::weighted(0.1))
            .prop_map(|(device, count, late)| Step::Submit { device, count, late }),
        1 => device().prop_map(|device| Step::Again { device }),
        4 => (1_usize..4, 1_u64..40).prop_map(|(ticks, seconds)| Step::Pass { ticks, seconds }),
        2 => (1_usize..20, any::<bool>()).prop_map(|(blocks, answered)| Step::Send { blocks, answered }),
        1 => Just(Step::Park),
        1 => (device(), 1_u64..50).prop_map(|(device, count)| Step::Declare { device, count }),
        2 => device().prop_map(|device| Step::Journal { device }),
        2 => device().prop_map(|device| Step::Claim { device }),
        1 => device().prop_map(|device| Step::Finish { device }),
        2 => (fault(), any::<bool>()).prop_map(|(fault, telemetry)| Step::Fail { fault, telemetry }),
        1 => (0_u64..4_000).prop_map(|behind| Step::Know { behind }),
        1 => Just(Step::Overwrite),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![Just(Fault::IoError), Just(Fault::DiskFull), Just(Fault::ReadOnly)]
}

#[derive(Default)]
struct Model {
    /// Acknowledged readings by the number in them, and whose they are.
    acknowledged: BTreeMap<usize, usize>,
    declared: [u64; 2],
    /// What the table has.
    table: BTreeMap<(DeviceId, Timestamp), HistoryBlock>,
    /// What it refused for good.
    refused: Vec<HistoryBlock>,
    /// Commands in the order they came.
    commands: Vec<(CommandId, usize, ExecutionStatus)>,
    /// The last reading of a device.
    last: [Option<FloorReport>; 2],
    numbers: usize,
    offset_ms: i64,
    /// The keys of what was sent before are not known any more: late readings might take them again.
    overwritten: bool,
}

struct Life {
    /// Every folder there was; the last is in use.
    folders: Vec<tempfile::TempDir>,
    store: Store,
    clock: Clock,
    quota: u64,
    model: Model,
}

impl Life {
    fn new(quota: u64, time_known: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = clock();
        clock.set_trusted(time_known);
        let store = Store::open(Config { quota_bytes: quota, ..config(folder.path()) }, clock.clone()).unwrap();
        Self { folders: vec![folder], store, clock, quota, model: Model::default() }
    }

    fn reopen(&mut self) {
        let folder = self.folders.last().unwrap().path();
        let config = Config { quota_bytes: self.quota, ..config(folder) };
        self.store = Store::open(config, self.clock.clone()).unwrap();
    }

    /// A reading with a number of its own, and others that pack badly.
    fn report(&mut self, device: usize, late: bool) -> FloorReport {
        self.model.numbers += 1;
        self.model.offset_ms += 700;
        let number = i32::try_from(self.model.numbers).unwrap();
        let at = self.model.offset_ms - if late { 90_000 } else { 0 };
        let FloorReport::Telemetry(mut report) = sample(DEVICES[device], at, f64::from(number)) else { unreachable!() };
        for k in 0..20 {
            let value = f64::from((number.wrapping_mul(7_919) + k * 104_729) % 1_000_003) / 7.0;
            report.readings.insert(&format!("m{k}"), Reading::new(value).unwrap()).unwrap();
        }
        let moment = self.clock.moment();
        (report.received_at, report.guess_base_ms) = (moment.wall, moment.guess_base());
        FloorReport::Telemetry(report)
    }

    async fn submit(&mut self, device: usize, count: usize, late: bool) {
        let mut waiting = Vec::new();
        for _ in 0..count {
            let report = self.report(device, late && !self.model.overwritten);
            self.model.last[device] = None;
            waiting.push((self.model.numbers, report.clone(), self.store.submit(report).await.unwrap()));
        }
        tokio::time::advance(Duration::from_millis(5)).await;
        for (number, report, receipt) in waiting {
            match receipt.await.unwrap() {
                Ok(taken) => {
                    assert_eq!(taken, Taken::Stored);
                    self.model.acknowledged.insert(number, device);
                    self.model.last[device] = Some(report);
                }
                Err(StoreError::Full { .. }) => assert!(self.store.stats().await.unwrap().full),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Time passes on every clock.
    async fn advance(&mut self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
        self.clock.pass(Duration::from_secs(seconds));
        self.model.offset_ms = self.clock.now().as_millis() - T0;
    }

    async fn pass(&mut self, seconds: u64) {
        self.advance(seconds).await;
        self.store.tick().await.unwrap();
        // So small a quota leaves hardly room for the logs of a commit and of the commands since the last tick.
        let bytes = self.store.stats().await.unwrap().bytes_on_disk;
        assert!(bytes <= self.quota + self.quota / 4, "{bytes} of {}", self.quota);
    }

    /// The table takes them, or has them already, byte for byte.
    async fn send(&mut self, blocks: usize, answered: bool) -> usize {
        let blocks = self.store.peek_blocks(blocks).await.unwrap();
        for block in &blocks {
            let known = self.model.table.entry((block.device_id.clone(), block.first)).or_insert_with(|| block.clone());
            assert_eq!(known, block, "an item of the table is overwritten");
        }
        if answered {
            self.store.confirm_blocks(blocks.iter().map(|block| block.id).collect()).await.unwrap();
        }
        blocks.len()
    }

    async fn park(&mut self) {
        let Some(block) = self.store.peek_blocks(1).await.unwrap().pop() else { return };
        // One that was written though nobody heard of it is not refused.
        if !self.model.table.contains_key(&(block.device_id.clone(), block.first)) {
            self.store.park_block(block.id, "refused".to_owned()).await.unwrap();
            self.model.refused.push(block);
        }
    }

    async fn declare(&mut self, device: usize, count: u64) {
        let now = self.clock.now();
        let reason = LossReason::RateLimited;
        let loss = Loss { device_id: id(DEVICES[device]), from: now, to: now, count, reason };
        self.store.declare_lost(vec![loss]).await.unwrap();
        self.model.declared[device] += count;
    }

    async fn journal(&mut self, device: usize) {
        let name = format!("c{}", self.model.commands.len());
        let open = self.model.commands.iter().filter(|(_, of, status)| *of == device && !status.is_terminal()).count();
        let journalled = self.store.journal(command(DEVICES[device], "reboot", &name)).await.unwrap();
        let Journalled::New(record) = journalled else { panic!("{journalled:?}") };
        let expected = if open < DEVICE_QUEUE_MAX { ExecutionStatus::Created } else { ExecutionStatus::Rejected };
        assert_eq!(record.status, expected);
        let again = self.store.journal(command(DEVICES[device], "reboot", &name)).await.unwrap();
        assert!(matches!(again, Journalled::Duplicate(_)), "{again:?}");
        self.model.commands.push((record.command_id, device, expected));
    }

    async fn claim(&mut self, device: usize) {
        let running = |model: &Model| {
            model.commands.iter().any(|(_, of, status)| *of == device && *status == ExecutionStatus::InProgress)
        };
        let busy = running(&self.model);
        let oldest =
            self.model.commands.iter_mut().find(|(_, of, status)| *of == device && *status == ExecutionStatus::Created);
        let Some((command, _, status)) = oldest else { return };
        let claimed = self.store.claim(&id(DEVICES[device]), command).await.unwrap();
        assert_eq!(claimed.is_some(), !busy, "one at a time");
        if claimed.is_some() {
            *status = ExecutionStatus::InProgress;
        }
    }

    async fn finish(&mut self, device: usize) {
        let running = self
            .model
            .commands
            .iter_mut()
            .find(|(_, of, status)| *of == device && *status == ExecutionStatus::InProgress);
        let Some((command, _, status)) = running else { return };
        let (device, command) = (id(DEVICES[device]), command.clone());
        *status = ExecutionStatus::Failed;
        let end = || ending(ExecutionStatus::Failed, None);
        assert!(self.store.finish(&device, &command, end()).await.unwrap().is_some());
        assert!(self.store.finish(&device, &command, end()).await.unwrap().is_none(), "once");
    }

    /// Nobody is told what is not so, and a few seconds later it goes on.
    async fn fail(&mut self, fault: Fault, telemetry: bool) {
        let broken = move |turn: &mut Turn<'_>| {
            if telemetry {
                turn.samples.shut(&disk(fault));
                return Ok(());
            }
            Err(disk(fault))
        };
        let _ = self.store.ask(Pace::AtOnce, broken).await;
        let _ = self.store.stats().await;
        assert!(!self.store.health().borrow().ok);
        let report = self.report(0, false);
        if self.store.submit(report).await.unwrap().await.unwrap().is_ok() {
            self.model.acknowledged.insert(self.model.numbers, 0);
        }
        for _ in 0..10 {
            self.advance(1).await;
            let _ = self.store.tick().await;
        }
        let health = *self.store.health().borrow();
        assert!(health.ok, "{health:?}");
        self.model.last = [None, None];
    }

    async fn know(&mut self, behind: u64) {
        if !self.clock.is_trusted() {
            self.clock.put(self.clock.now().saturating_add(Duration::from_secs(behind)));
            self.clock.set_trusted(true);
            self.model.last = [None, None];
            self.pass(1).await;
        }
    }

    /// What was to be told is told, so that what the file takes with it are readings alone.
    async fn overwrite(&mut self) {
        // With less, the close itself may give something up, which the table is not told of then.
        if self.quota < 100 << 20 || !self.clock.is_trusted() {
            return;
        }
        while self.send(500, true).await > 0 {}
        self.store.close().await.unwrap();
        std::fs::write(self.folders.last().unwrap().path().join("telemetry.db"), b"no database".repeat(999)).unwrap();
        self.reopen();
        self.model.last = [None, None];
        self.model.overwritten = true;
        // They went with it, and are told of as lost.
        self.model.refused.clear();
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Submit { device, count, late } => self.submit(device, count, late).await,
            Step::Again { device } => {
                if let Some(report) = self.model.last[device].clone() {
                    match self.store.submit(report).await.unwrap().await.unwrap() {
                        Ok(taken) => assert_eq!(taken, Taken::Duplicate),
                        Err(error) => assert!(matches!(error, StoreError::Full { .. }), "{error}"),
                    }
                }
            }
            Step::Pass { ticks, seconds } => {
                for _ in 0..ticks {
                    self.pass(seconds).await;
                }
            }
            Step::Send { blocks, answered } => drop(self.send(blocks, answered).await),
            Step::Park => self.park().await,
            Step::Declare { device, count } => self.declare(device, count).await,
            Step::Journal { device } => self.journal(device).await,
            Step::Claim { device } => self.claim(device).await,
            Step::Finish { device } => self.finish(device).await,
            Step::Fail { fault, telemetry } => self.fail(fault, telemetry).await,
            Step::Know { behind } => self.know(behind).await,
            Step::Overwrite => self.overwrite().await,
            Step::Reopen => {
                self.store.close().await.unwrap();
                self.reopen();
                self.model.last = [None, None];
            }
            Step::Kill => {
                let left = killed(self.folders.last().unwrap().path());
                self.folders.push(left);
                self.reopen();
                self.model.last = [None, None];
            }
        }
        self.check().await;
    }

    /// After every step: the books balance and agree with what was acknowledged, the journal with what was asked.
    async fn check(&self) {
        let model = &self.model;
        let parked: usize = model.refused.iter().map(|block| block.offsets_ms.len()).sum();
        let stats = self.store.stats().await.unwrap();
        let ledger = stats.ledger;
        assert!(ledger.balances(), "{ledger:?}");
        assert_eq!(ledger.stored, stats.samples_open + stats.samples_waiting + parked as u64);
        for (which, name) in DEVICES.into_iter().enumerate() {
            let ledger = self.store.device(&id(name)).await.unwrap().unwrap().ledger;
            assert!(ledger.balances(), "{name}: {ledger:?}");
            let acknowledged = model.acknowledged.values().filter(|of| **of == which).count() as u64;
            assert_eq!(ledger.accepted, acknowledged + model.declared[which], "{name}");
            assert_eq!(ledger.lost.of(LossReason::RateLimited), model.declared[which]);
            let in_table = model.table.values().filter(|block| block.device_id == id(name));
            let in_table: usize = in_table.map(|block| block.offsets_ms.len()).sum();
            assert!(ledger.delivered <= in_table as u64, "{name}: {ledger:?}, but the table has {in_table}");
        }
        let mut executions = self.store.executions(None, 10_000).await.unwrap();
        executions.reverse();
        let known: Vec<_> = executions.iter().map(|record| (&record.command_id, record.status)).collect();
        let told: Vec<_> = model.commands.iter().map(|(command, _, status)| (command, *status)).collect();
        assert_eq!(known, told);
        for entry in self.store.peek_outbox(Lane::Table, 1_000).await.unwrap() {
            assert!(executions.contains(&entry.record), "{entry:?}");
        }
    }

    /// Everything goes up. Then every reading acknowledged is in the table, or it was refused, or declared.
    async fn drain(&mut self) {
        self.know(0).await;
        loop {
            self.pass(61).await;
            if self.send(500, true).await == 0 {
                break;
            }
        }
        self.check().await;
        let model = &self.model;
        let all = || model.table.values().chain(&model.refused);
        let mut seen = BTreeSet::new();
        for block in all() {
            for number in block.readings.get("pressure_psi").into_iter().flatten().flatten() {
                let number: usize = number.to_string().parse().unwrap();
                assert!(seen.insert(number), "{number} is there twice");
                let of = model.acknowledged.get(&number).map(|of| DEVICES[*of]);
                assert_eq!(of, Some(block.device_id.as_str()), "{number}");
            }
        }
        for (which, name) in DEVICES.into_iter().enumerate() {
            let lost: u64 = all()
                .filter(|block| block.device_id == id(name))
                .filter_map(|block| Some(block.gap.as_ref()?.lost))
                .sum();
            let there = seen.iter().filter(|number| model.acknowledged.get(number) == Some(&which)).count() as u64;
            let acknowledged = model.acknowledged.values().filter(|of| **of == which).count() as u64;
            assert_eq!(there + lost, acknowledged + model.declared[which], "{name}: all is there or told of");
            let ledger = self.store.device(&id(name)).await.unwrap().unwrap().ledger;
            let refused: usize = model
                .refused
                .iter()
                .filter(|block| block.device_id == id(name))
                .map(|block| block.offsets_ms.len())
                .sum();
            assert_eq!((ledger.stored, ledger.lost.total()), (refused as u64, lost), "{name}");
        }
        for gap in all().filter_map(|block| block.gap.as_ref()).filter(|gap| gap.reason == LossReason::Thinned) {
            assert_eq!(gap.summary["pressure_psi"].count, gap.lost);
        }
    }
}

fn live(quota: u64, time_known: bool, steps: Vec<Step>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut life = Life::new(quota, time_known);
        for step in steps {
            life.take(step).await;
        }
        life.drain().await;
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_reading_is_accounted_for_and_every_command_stands_where_it_should(
        quota in prop_oneof![4 => Just(400_u64 << 10), 1 => Just(800_u64 << 10), 1 => Just(512_u64 << 20)],
        time_known in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        live(quota, time_known, steps);
    }
}

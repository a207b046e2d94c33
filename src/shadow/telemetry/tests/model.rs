//! A model that cannot lose anything, beside the real file, through random lives: every reading is where the model says
//! it is, the books say so too, and nothing that may be in the table is given up, changed or overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floorgate_model::{DeviceId, Loss, LossReason, Reading};
use proptest::prelude::*;

use super::giving_up::audit;
use super::{Bench, at, device, report};
use crate::shadow::store::Taken;
use crate::shadow::view::HistoryBlock;

/// What may happen.
#[derive(Debug, Clone)]
enum Step {
    /// A device reports: which, how much its clock moves on (or back), what, and whether it is counted.
    Report {
        device: usize,
        moved_ms: i64,
        value: i32,
        counted: bool,
        timeless: bool,
    },
    /// Its last report comes again.
    Again {
        device: usize,
    },
    Commit,
    FailedCommit,
    Wait {
        seconds: u64,
    },
    Kill,
    Close,
    Confirm {
        blocks: usize,
    },
    Park,
    /// Handed out; no answer ever comes.
    Peek {
        blocks: usize,
    },
    /// The quota asks for room.
    GiveUp {
        steps: usize,
    },
    /// Readings of a device were taken and not stored.
    Declare {
        device: usize,
        count: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let moved = prop_oneof![6 => 500_i64..5_000, 1 => Just(0_i64), 1 => -600_000_i64..0, 1 => 60_000_i64..400_000];
    prop_oneof![
        12 => (0_usize..3, moved, 0..50, any::<bool>(), proptest::bool::weighted(0.1))
            .prop_map(|(device, moved_ms, value, counted, timeless)| Step::Report { device, moved_ms, value, counted, timeless }),
        1 => (0_usize..3).prop_map(|device| Step::Again { device }),
        4 => Just(Step::Commit),
        1 => Just(Step::FailedCommit),
        2 => (0_u64..70).prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Kill),
        1 => Just(Step::Close),
        1 => (0_usize..5).prop_map(|blocks| Step::Confirm { blocks }),
        1 => Just(Step::Park),
        1 => (0_usize..4).prop_map(|blocks| Step::Peek { blocks }),
        2 => (1_usize..4).prop_map(|steps| Step::GiveUp { steps }),
        1 => (0_usize..3, 1_u64..9).prop_map(|(device, count)| Step::Declare { device, count }),
    ]
}

/// A sample: device, time kept, readings.
type Kept = (DeviceId, i64, Vec<(String, String)>);

#[derive(Default)]
struct Model {
    /// Since the last commit.
    staged: Vec<Kept>,
    /// Acknowledged.
    committed: Vec<Kept>,
    /// Left through a confirmed or parked block.
    gone: Vec<Kept>,
    /// The quota asked for room.
    made_room: bool,
    /// What went for it.
    given_up: Vec<Kept>,
    /// Never stored.
    declared: BTreeMap<usize, u64>,
    /// Of them and of those given up, how many the table was told of, or refused to hear of.
    told: u64,
    /// Every closed block ever seen, by its row.
    seen: BTreeMap<i64, HistoryBlock>,
    /// Everything that was ever handed out: the table may have it.
    handed_out: BTreeMap<i64, HistoryBlock>,
    /// The newest time after a declaration.
    raised: BTreeMap<usize, i64>,
}

impl Model {
    fn commit(&mut self) {
        self.committed.append(&mut self.staged);
    }

    /// Looks at every block and gap record: no block ever changes, nothing that was handed out does, no two of either
    /// share a key.
    fn look(&mut self, waiting: &[HistoryBlock]) {
        for block in waiting {
            if let Some(handed_out) = self.handed_out.get(&block.id) {
                assert_eq!(handed_out, block, "it was handed out and changed");
            }
        }
        let mut keys: Vec<_> = waiting
            .iter()
            .chain(self.handed_out.values())
            .map(|block| (&block.device_id, block.first, block.id))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        assert!(
            keys.windows(2).all(|pair| (pair[0].0, pair[0].1) != (pair[1].0, pair[1].1)),
            "two share a key: {keys:?}"
        );
        for block in waiting.iter().filter(|block| block.gap.is_none()) {
            let seen = self.seen.entry(block.id).or_insert_with(|| block.clone());
            assert_eq!(seen, block, "a block changed");
            assert_eq!(block.offsets_ms.first(), Some(&0));
            assert!(block.offsets_ms.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }

    /// Takes what was handed out.
    fn hand_out(&mut self, blocks: &[HistoryBlock]) {
        assert!(blocks.windows(2).all(|pair| pair[0].first <= pair[1].first), "oldest first");
        self.look(blocks);
        self.handed_out.extend(blocks.iter().map(|block| (block.id, block.clone())));
    }

    /// It will not come again: the table has it, or refused it for good.
    fn over(&mut self, block: &HistoryBlock) {
        self.gone.extend(samples(block));
        self.told += block.gap.as_ref().map_or(0, |gap| gap.lost);
    }
}

/// Everything that waits, without handing it out.
fn waiting(bench: &mut Bench) -> Vec<HistoryBlock> {
    let mut waiting = bench.db().waiting_blocks(usize::MAX).unwrap();
    waiting.extend(bench.db().waiting_gaps(usize::MAX).unwrap());
    waiting
}

fn samples(block: &HistoryBlock) -> Vec<Kept> {
    let text = |name: &String, value: Reading| (name.clone(), value.to_string());
    let readings = |place: usize| {
        block.readings.iter().filter_map(|(name, column)| column[place].map(|value| text(name, value))).collect()
    };
    let time = |offset: u64| block.first.as_millis() + i64::try_from(offset).unwrap();
    let all = block.offsets_ms.iter().enumerate();
    all.map(|(place, offset)| (block.device_id.clone(), time(*offset), readings(place))).collect()
}

#[expect(clippy::too_many_lines, reason = "one arm a step reads best in one place")]
fn live(steps: Vec<Step>) {
    let mut bench = Bench::new();
    let mut model = Model::default();
    let mut clocks = [0_i64; 3];
    let mut newest = BTreeMap::new();
    let mut last: BTreeMap<usize, (crate::shadow::TelemetryReport, bool)> = BTreeMap::new();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Report { device: which, moved_ms, value, counted, timeless } => {
                let mut sent = report(clocks[which] + moved_ms, f64::from(value) / 10.0);
                clocks[which] = clocks[which].max(clocks[which] + moved_ms);
                sent.device_id = device(which);
                sent.received_at = at(clocks[which]);
                // The number of the step makes each content its own, so that nothing folds by chance.
                sent.seq = counted.then_some(number as u64);
                if !counted {
                    sent.readings.insert("step", Reading::parse(&number.to_string()).unwrap()).unwrap();
                }
                if timeless {
                    sent.device_time = None;
                }
                let staged = bench.stage(&sent);
                assert_eq!(staged.taken, Taken::Stored);
                let known = newest.entry(which).or_insert(0);
                assert_eq!(staged.is_newest, staged.at.as_millis() > *known, "newest as told");
                *known = staged.at.as_millis().max(*known);
                let readings = sent.readings.iter().map(|(name, value)| (name.to_owned(), value.to_string())).collect();
                model.staged.push((sent.device_id.clone(), staged.at.as_millis(), readings));
                last.insert(which, (sent, true));
            }
            Step::Again { device: which } => {
                if let Some((sent, true)) = last.get(&which).filter(|(sent, _)| sent.device_time.is_some()) {
                    assert_eq!(bench.stage(sent).taken, Taken::Duplicate);
                }
            }
            Step::Commit => {
                bench.commit();
                model.commit();
            }
            Step::FailedCommit => {
                let other = bench.block_writes();
                let now = bench.now;
                if bench.db().commit(now).is_err() {
                    forget(&mut model, &mut newest, &mut last);
                }
                drop(other);
                bench.db().conn.busy_timeout(Duration::from_secs(2)).unwrap();
            }
            Step::Wait { seconds } => bench.pass(Duration::from_secs(seconds)),
            Step::Kill => {
                bench.reopen();
                forget(&mut model, &mut newest, &mut last);
                forget_given_up(&model, &mut last);
                as_opened(&mut bench, &mut model, &mut newest);
            }
            Step::Close => {
                let now = bench.now;
                bench.db.take().unwrap().close(now).unwrap();
                model.commit();
                bench.reopen();
                forget_given_up(&model, &mut last);
                as_opened(&mut bench, &mut model, &mut newest);
            }
            Step::Confirm { blocks } => {
                let sent = bench.db().peek_blocks(blocks).unwrap();
                let ids = sent.iter().map(|block| block.id).collect();
                bench.db().confirm_blocks(&ids).unwrap();
                model.hand_out(&sent);
                sent.iter().for_each(|block| model.over(block));
            }
            Step::Park => {
                let first = bench.db().peek_blocks(1).unwrap();
                model.hand_out(&first);
                for block in &first {
                    bench.db().park_block(block.id, "refused").unwrap();
                    model.over(block);
                }
            }
            Step::Peek { blocks } => {
                let blocks = bench.db().peek_blocks(blocks).unwrap();
                model.hand_out(&blocks);
            }
            Step::GiveUp { steps } => {
                let before = waiting(&mut bench);
                model.made_room = true;
                // Since the last start their reports may not have been looked up yet.
                forget_given_up(&model, &mut last);
                for _ in 0..steps {
                    bench.db().give_up_some(3 * 64 * 1024).unwrap();
                }
                let after: BTreeMap<_, _> = waiting(&mut bench).into_iter().map(|block| (block.id, block)).collect();
                for block in before.iter().filter(|block| !after.contains_key(&block.id)) {
                    assert!(!model.handed_out.contains_key(&block.id), "the table may have it: {block:?}");
                    model.given_up.extend(samples(block));
                }
            }
            Step::Declare { device: which, count } => {
                let (from, to) = (at(clocks[which] - 1_000), at(clocks[which]));
                let loss = Loss { device_id: device(which), from, to, count, reason: LossReason::RateLimited };
                bench.db().declare_lost(&[loss]).unwrap();
                *model.declared.entry(which).or_default() += count;
                if let Some(time) = bench.db().tracks[&device(which)].newest {
                    newest.insert(which, time);
                    model.raised.insert(which, time);
                }
            }
        }
        check(&mut bench, &mut model);
    }
    bench.reopen();
    model.staged.clear();
    bench.close_blocks();
    let mut kept: Vec<Kept> = waiting(&mut bench).iter().flat_map(samples).collect();
    kept.extend(model.gone.iter().chain(&model.given_up).cloned());
    check(&mut bench, &mut model);
    kept.sort_unstable();
    model.committed.sort_unstable();
    assert_eq!(kept, model.committed, "every committed sample is in exactly one block, or was given up");
}

/// What was not committed never happened.
fn forget(
    model: &mut Model,
    newest: &mut BTreeMap<usize, i64>,
    last: &mut BTreeMap<usize, (crate::shadow::TelemetryReport, bool)>,
) {
    let staged = std::mem::take(&mut model.staged);
    for (which, known) in newest.iter_mut() {
        let of_device = |kept: &&Kept| kept.0 == device(*which);
        if staged.iter().any(|kept| of_device(&kept)) {
            *known = model.committed.iter().filter(of_device).map(|kept| kept.1).max().unwrap_or(0);
            *known = model.raised.get(which).copied().unwrap_or(0).max(*known);
            if let Some(entry) = last.get_mut(which) {
                entry.1 = false;
            }
        }
    }
}

/// A restart replays the journal: its newest sample is the newest time, and the key of a gap record after it is known by
/// the record alone.
fn as_opened(bench: &mut Bench, model: &mut Model, newest: &mut BTreeMap<usize, i64>) {
    for which in std::mem::take(&mut model.raised).into_keys() {
        if let Some(time) = bench.db().tracks.get(&device(which)).and_then(|track| track.newest) {
            newest.insert(which, time);
        }
    }
}

/// A restart knows reports by their blocks; when room was made, those that were sent went first.
fn forget_given_up(model: &Model, last: &mut BTreeMap<usize, (crate::shadow::TelemetryReport, bool)>) {
    for entry in last.values_mut() {
        entry.1 &= !model.made_room;
    }
}

fn check(bench: &mut Bench, model: &mut Model) {
    audit(bench);
    let blocks = waiting(bench);
    model.look(&blocks);
    for which in 0..3 {
        let of_device = |kept: &&Kept| kept.0 == device(which);
        let ledger = bench.db().ledger(&device(which), &BTreeSet::new()).unwrap();
        let (declared, given_up) =
            (model.declared.get(&which).copied().unwrap_or(0), model.given_up.iter().filter(of_device).count() as u64);
        assert_eq!(ledger.accepted, model.committed.iter().filter(of_device).count() as u64 + declared);
        assert_eq!(ledger.lost.total(), declared + given_up);
        assert_eq!(ledger.lost.of(LossReason::RateLimited), declared);
    }
    let stats = bench.stats();
    let lost: u64 = blocks.iter().filter_map(|block| Some(block.gap.as_ref()?.lost)).sum();
    let declared: u64 = model.declared.values().sum();
    assert_eq!(lost + model.told, model.given_up.len() as u64 + declared, "each loss is told of once");
    let (blocks, gaps): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.gap.is_none());
    assert_eq!(stats.gaps_waiting, gaps.len() as u64);
    let waiting: usize = blocks.iter().map(|block| block.offsets_ms.len()).sum();
    assert_eq!((stats.blocks_waiting, stats.samples_waiting), (blocks.len() as u64, waiting as u64));
    let known = model.committed.len() + model.staged.len();
    let left = known - model.gone.len() - model.given_up.len();
    assert_eq!(stats.samples_open + stats.samples_waiting, left as u64);
    let left = |kept: &&Kept| !model.gone.contains(kept) && !model.given_up.contains(kept);
    let oldest = model.committed.iter().chain(&model.staged).filter(left).map(|kept| kept.1).min();
    assert_eq!(stats.oldest.map(|time| time.as_millis()), oldest);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_committed_sample_is_in_exactly_one_block(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        live(steps);
    }
}

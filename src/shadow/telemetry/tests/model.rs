//! A model that cannot lose anything, beside the real file, through random lives.

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::{DeviceId, Reading};
use proptest::prelude::*;

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
    /// Every closed block ever seen, by its row.
    seen: BTreeMap<i64, HistoryBlock>,
}

impl Model {
    fn commit(&mut self) {
        self.committed.append(&mut self.staged);
    }

    /// Looks at every block: none ever changes, none shares its key, all are in order.
    fn look(&mut self, blocks: &[HistoryBlock]) {
        assert!(blocks.windows(2).all(|pair| pair[0].first <= pair[1].first), "oldest first");
        for block in blocks {
            let seen = self.seen.entry(block.id).or_insert_with(|| block.clone());
            assert_eq!(seen, block, "a block changed");
            assert_eq!(block.offsets_ms.first(), Some(&0));
            assert!(block.offsets_ms.windows(2).all(|pair| pair[0] < pair[1]));
        }
        let mut keys: Vec<_> = self.seen.values().map(|block| (&block.device_id, block.first)).collect();
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "two blocks share a key");
    }
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
            }
            Step::Close => {
                let now = bench.now;
                bench.db.take().unwrap().close(now).unwrap();
                model.commit();
                bench.reopen();
            }
            Step::Confirm { blocks } => {
                let sent = bench.db().peek_blocks(blocks).unwrap();
                let ids = sent.iter().map(|block| block.id).collect();
                bench.db().confirm_blocks(&ids).unwrap();
                model.look(&sent);
                model.gone.extend(sent.iter().flat_map(samples));
            }
            Step::Park => {
                let first = bench.db().peek_blocks(1).unwrap();
                model.look(&first);
                for block in &first {
                    bench.db().park_block(block.id, "refused").unwrap();
                    model.gone.extend(samples(block));
                }
            }
        }
        check(&mut bench, &mut model);
    }
    bench.reopen();
    model.staged.clear();
    bench.close_blocks();
    let mut kept: Vec<Kept> = bench.blocks().iter().flat_map(samples).chain(model.gone.clone()).collect();
    model.look(&bench.blocks());
    kept.sort_unstable();
    model.committed.sort_unstable();
    assert_eq!(kept, model.committed, "every committed sample is in exactly one block");
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
            if let Some(entry) = last.get_mut(which) {
                entry.1 = false;
            }
        }
    }
}

fn check(bench: &mut Bench, model: &mut Model) {
    let blocks = bench.blocks();
    model.look(&blocks);
    let stats = bench.stats();
    let waiting: usize = blocks.iter().map(|block| block.offsets_ms.len()).sum();
    assert_eq!((stats.blocks_waiting, stats.samples_waiting), (blocks.len() as u64, waiting as u64));
    let known = model.committed.len() + model.staged.len();
    assert_eq!(stats.samples_open + stats.samples_waiting + model.gone.len() as u64, known as u64);
    let left = |kept: &&Kept| !model.gone.contains(kept);
    let oldest = model.committed.iter().chain(&model.staged).filter(left).map(|kept| kept.1).min();
    assert_eq!(stats.oldest.map(|time| time.as_millis()), oldest);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_committed_sample_is_in_exactly_one_block(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        live(steps);
    }
}

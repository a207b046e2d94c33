//! Samples under clocks that are wrong, stepped, or not known: their times, their order, their keys.

mod damage;

use proptest::prelude::*;

use super::*;
use crate::clock::{Clock, Floor};
use crate::shadow::telemetry::restamp::{ERAS_MAX, SETTLE_STEP};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

/// A gateway whose clock the test moves; `truth` is what time it really is.
struct Site {
    bench: Bench,
    clock: Clock,
    truth: i64,
    sent: u64,
}

impl Site {
    /// Boots with its clock in 1970, the floor a day before the truth.
    fn booted_in_1970() -> Self {
        let mut bench = Bench::new();
        let clock = Clock::set_to(at(-DAY));
        let floor = clock.floor();
        clock.reboot(Timestamp::EPOCH);
        clock.resume(floor);
        bench.db().booted(clock.boot().boot_id);
        Self { bench, clock, truth: START_MS, sent: 0 }
    }

    fn pass(&mut self, time: Duration) {
        self.clock.pass(time);
        self.bench.pass(time);
        self.truth += i64::try_from(time.as_millis()).unwrap();
    }

    /// The wall clock is set right, or wrong by so much, and the kernel calls it synchronised.
    fn synchronise(&self, wrong_by: i64) {
        self.clock.put(Timestamp::from_millis(self.truth + wrong_by));
        self.clock.set_trusted(true);
    }

    /// Now, as a device sends it, with its own time if it has one. The value tells which one it was.
    fn report(&mut self, device_time: Option<i64>) -> Staged {
        let moment = self.clock.moment();
        self.sent += 1;
        #[expect(clippy::cast_precision_loss, reason = "small")]
        let value = self.sent as f64;
        let report = TelemetryReport {
            device_time: device_time.map(Timestamp::from_millis),
            received_at: moment.wall,
            guess_base_ms: moment.guess_base(),
            ..report(0, value)
        };
        self.bench.stage(&report)
    }

    fn settle(&mut self, must_do: bool) -> usize {
        let (moment, now) = (self.clock.moment(), self.bench.now);
        self.bench.db().settle(&moment, must_do, now).unwrap()
    }

    /// Power cut and boot: the clock knows what was kept of it.
    fn reboot(&mut self, wall: i64) {
        let floor: Floor = self.clock.floor();
        self.clock.reboot(Timestamp::from_millis(wall));
        self.clock.resume(floor);
        self.restart();
    }

    /// The gateway alone restarts.
    fn restart(&mut self) {
        self.bench.reopen();
        let boot_id = self.clock.boot().boot_id;
        self.bench.db().booted(boot_id);
    }

    /// Each sample to be sent: its value and its time after the start, in the order of the blocks.
    fn samples(&mut self) -> Vec<(u64, i64, bool)> {
        self.bench.blocks().iter().flat_map(samples_of).collect()
    }
}

/// The samples of a block: value, time after the start, whether it is marked.
fn samples_of(block: &HistoryBlock) -> Vec<(u64, i64, bool)> {
    let values = block.readings["pressure_psi"].iter();
    let one = |(value, offset): (&Option<Reading>, &u64)| {
        let at = block.first.as_millis() + i64::try_from(*offset).unwrap() - START_MS;
        (value.unwrap().to_string().parse().unwrap(), at, block.unsynchronised)
    };
    values.zip(&block.offsets_ms).map(one).collect()
}

#[test]
fn what_came_before_the_time_was_known_waits_and_is_sent_under_its_right_time() {
    for wrong in [-DAY, -HOUR, 0, HOUR, YEAR] {
        let mut site = Site::booted_in_1970();
        // With a battery the clock may also be ahead.
        site.clock.put(at(wrong));
        let first = site.report(None);
        assert_eq!(first.at, at(wrong), "a device shows the guess");
        site.pass(MINUTE / 2);
        site.report(None);
        site.bench.commit();
        site.pass(MINUTE);
        site.bench.commit();
        assert_eq!((site.settle(false), site.bench.blocks().len()), (0, 0), "nothing is sent under a guess");
        assert_eq!(site.bench.stats().samples_provisional, 2);
        site.report(None);
        site.bench.commit();
        site.synchronise(0);
        assert_eq!(site.settle(false), 1);
        assert_eq!(site.samples(), [(1, 0, false), (2, 30_000, false)], "the guess was wrong by {wrong}");
        site.pass(Duration::from_secs(1));
        site.report(None);
        site.bench.close_blocks();
        site.settle(false);
        let expected = [(1, 0, false), (2, 30_000, false), (3, 90_000, false), (4, 91_000, false)];
        assert_eq!(site.samples(), expected);
        assert_eq!(site.bench.stats().samples_provisional, 0);
    }
}

#[test]
fn a_floor_older_than_the_last_readings_costs_neither_their_order_nor_an_instant() {
    for known_at_last in [true, false] {
        let mut site = Site::booted_in_1970();
        site.synchronise(0);
        let old = site.clock.floor();
        site.pass(Duration::from_secs(50));
        site.report(None);
        site.bench.commit();
        site.clock.reboot(Timestamp::EPOCH);
        site.clock.resume(old);
        site.restart();
        for _ in 0..3 {
            site.report(None);
            site.pass(Duration::from_secs(10));
        }
        site.bench.close_blocks();
        site.settle(!known_at_last);
        site.synchronise(0);
        site.report(None);
        site.bench.close_blocks();
        while site.settle(false) > 0 {}
        let samples = site.samples();
        let order: Vec<u64> = samples.iter().map(|(value, ..)| *value).collect();
        assert_eq!(order, [1, 2, 3, 4, 5], "{samples:?}");
        if known_at_last {
            let times: Vec<i64> = samples.iter().map(|(_, at, _)| *at).collect();
            assert_eq!(times, [50_000, 50_000 + 1, 60_000, 70_000, 80_000], "{samples:?}");
        }
    }
}

#[test]
fn a_devices_own_time_is_judged_once_the_time_is_known() {
    let mut site = Site::booted_in_1970();
    let years_ahead = START_MS + 70 * YEAR;
    for device_time in [Some(START_MS - 5_000), Some(years_ahead), Some(86_400_000), None, Some(START_MS - HOUR)] {
        assert_eq!(site.report(device_time).taken, Taken::Stored);
        site.pass(Duration::from_secs(1));
    }
    site.bench.close_blocks();
    site.restart();
    assert_eq!(site.report(Some(years_ahead)).taken, Taken::Stored, "another content");
    site.synchronise(0);
    site.settle(false);
    let mut times = site.samples();
    times.sort_unstable();
    let expected = [(1, -5_000, false), (2, 1_000, false), (3, 2_000, false), (4, 3_000, false), (5, -HOUR, false)];
    assert_eq!(times, expected);
}

#[test]
fn a_duplicate_is_known_by_the_time_its_device_sent_whatever_became_of_it() {
    let mut site = Site::booted_in_1970();
    let reports: Vec<TelemetryReport> = [START_MS - 5_000, START_MS + 70 * YEAR]
        .map(|device_time| TelemetryReport {
            device_time: Some(Timestamp::from_millis(device_time)),
            received_at: site.clock.now(),
            guess_base_ms: site.clock.moment().guess_base(),
            ..report(0, 1.0)
        })
        .to_vec();
    let again = |site: &mut Site, what: &str| {
        for report in &reports {
            assert_eq!(site.bench.stage(report).taken, Taken::Duplicate, "{what}");
        }
        site.bench.commit();
    };
    for report in &reports {
        assert_eq!(site.bench.stage(report).taken, Taken::Stored);
    }
    site.bench.close_blocks();
    site.restart();
    again(&mut site, "provisional");
    site.synchronise(0);
    site.restart();
    site.settle(false);
    site.restart();
    again(&mut site, "settled");
}

#[test]
fn what_an_earlier_boot_never_knew_the_time_of_keeps_its_order_and_says_so() {
    let mut site = Site::booted_in_1970();
    for _ in 0..3 {
        site.report(None);
        site.pass(MINUTE / 4);
    }
    site.report(Some(START_MS + 20_000));
    // One boot after the other without the time.
    for _ in 0..2 {
        site.bench.commit();
        site.reboot(0);
        site.report(None);
        site.pass(MINUTE / 4);
    }
    site.bench.close_blocks();
    assert_eq!(site.samples(), []);
    site.reboot(0);
    site.synchronise(0);
    site.settle(false);
    let times = site.samples();
    let guesses: Vec<u64> = times.iter().filter(|(.., marked)| *marked).map(|(value, ..)| *value).collect();
    assert!(guesses.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    // The fifth lies in a block of its own by then, which may hold a minute.
    assert!(times.contains(&(1, -DAY, true)) && times.contains(&(6, 105_002 - DAY, true)), "{times:?}");
    assert!(times.contains(&(4, 20_000, false)), "the device knew better: {times:?}");
    for block in site.bench.blocks().iter().filter(|block| block.unsynchronised) {
        assert!(block.expires_at >= Timestamp::from_millis(site.truth).saturating_add(RETENTION), "kept from now on");
    }
}

#[test]
fn when_the_time_never_comes_they_are_sent_marked_and_keep_their_key_when_it_does() {
    let mut site = Site::booted_in_1970();
    site.report(Some(START_MS));
    site.bench.close_blocks();
    assert_eq!(site.settle(true), 1);
    let sent = site.bench.blocks();
    assert_eq!(samples_of(&sent[0]), [(1, -DAY, true)]);
    site.synchronise(0);
    site.settle(false);
    site.restart();
    assert_eq!(site.bench.blocks(), sent);
}

#[test]
fn settling_goes_in_steps_and_a_crash_between_them_loses_nothing() {
    let mut site = Site::booted_in_1970();
    let blocks = usize::try_from(SETTLE_STEP).unwrap() + 10;
    for _ in 0..blocks {
        site.report(None);
        site.pass(MINUTE + Duration::from_secs(1));
        site.bench.commit();
    }
    site.synchronise(0);
    assert_eq!(site.settle(false), blocks - 10);
    site.restart();
    assert_eq!(site.bench.stats().samples_provisional, 10);
    assert_eq!(site.settle(false), 10);
    assert_eq!(site.settle(false), 0);
    let expected: Vec<_> = (0..blocks).map(|n| (n as u64 + 1, i64::try_from(n).unwrap() * 61_000, false)).collect();
    assert_eq!(site.samples(), expected);
}

#[test]
fn the_thousand_and_first_guess_counts_as_the_newest() {
    let mut site = Site::booted_in_1970();
    for n in 0..=ERAS_MAX {
        site.clock.put(at(i64::try_from(n).unwrap() * HOUR));
        site.report(None);
        site.pass(Duration::from_secs(1));
    }
    assert_eq!(site.bench.db().eras.known.len(), ERAS_MAX);
    site.bench.close_blocks();
    site.synchronise(0);
    while site.settle(false) > 0 {}
    let expected: Vec<_> = (0..=ERAS_MAX).map(|n| (n as u64 + 1, i64::try_from(n).unwrap() * 1_000, false)).collect();
    assert_eq!(site.samples(), expected);
    assert_eq!(site.bench.db().eras.known.len(), 1, "all but the newest are forgotten");
}

#[test]
fn a_clock_put_back_does_not_freeze_what_a_device_shows() {
    for back in [1_000, 60_000, 299_000, HOUR, DAY, YEAR] {
        let mut site = Site::booted_in_1970();
        site.synchronise(back);
        let device_has_none = site.report(None);
        assert!(device_has_none.is_newest);
        site.pass(Duration::from_millis(10));
        site.synchronise(0);
        let after = site.report(None);
        assert!(after.is_newest, "put back by {back}");
        let ahead = after.at.as_millis() - site.truth;
        assert!((0..=300_000).contains(&ahead), "put back by {back}: {ahead} ms ahead");
        site.pass(Duration::from_secs(1));
        let own = site.truth;
        assert!(back < 300_000 || site.report(Some(own)).is_newest, "put back by {back}, with the device's time");
    }
}

/// What happens at a site.
#[derive(Debug, Clone)]
enum Event {
    /// Some samples, one every second; with the device's own time, or without.
    Report {
        samples: u8,
        own_time: bool,
    },
    Pass {
        seconds: u32,
    },
    /// The wall clock is stepped; nobody tells.
    Step {
        ms: i64,
    },
    /// NTP sets the clock right.
    Synchronise,
    /// NTP says it is right, and is wrong.
    Mislead {
        ms: i64,
    },
    /// NTP is gone.
    Lose,
    Commit,
    Restart,
    Boot {
        wall: i64,
    },
    /// Blocks go to the table.
    Send {
        blocks: u8,
    },
}

fn step() -> impl Strategy<Value = i64> {
    let sizes = prop_oneof![Just(1_000), Just(60_000), Just(HOUR), Just(DAY), Just(YEAR)];
    (sizes, any::<bool>()).prop_map(|(size, back)| if back { -size } else { size })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1_u8..8, any::<bool>()).prop_map(|(samples, own_time)| Event::Report { samples, own_time }),
        2 => prop_oneof![Just(1), Just(60), Just(3_600)].prop_map(|seconds| Event::Pass { seconds }),
        2 => step().prop_map(|ms| Event::Step { ms }),
        1 => Just(Event::Synchronise),
        1 => step().prop_map(|ms| Event::Mislead { ms }),
        1 => Just(Event::Lose),
        3 => Just(Event::Commit),
        1 => Just(Event::Restart),
        1 => prop_oneof![Just(0), Just(START_MS - YEAR), Just(START_MS + YEAR)].prop_map(|wall| Event::Boot { wall }),
        2 => (1_u8..5).prop_map(|blocks| Event::Send { blocks }),
    ]
}

/// What the table got: by its key, and each sample once.
#[derive(Default)]
struct Table {
    items: std::collections::BTreeMap<i64, HistoryBlock>,
    got: std::collections::BTreeMap<u64, i64>,
}

impl Table {
    fn take(&mut self, block: &HistoryBlock) {
        assert_eq!(block.offsets_ms.first(), Some(&0));
        assert!(block.offsets_ms.windows(2).all(|pair| pair[0] < pair[1]), "{block:?}");
        if let Some(before) = self.items.insert(block.first.as_millis(), block.clone()) {
            panic!("two blocks under one key: {before:?} and {block:?}");
        }
        for (value, at, _) in samples_of(block) {
            assert_eq!(self.got.insert(value, at), None, "sample {value} came twice");
        }
    }
}

/// Lives through the events; answers the table and, for each sample of the last boot, its true time after the start.
fn live(events: Vec<Event>) {
    let mut site = Site::booted_in_1970();
    let (mut table, mut committed, mut waiting) = (Table::default(), Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Report { samples, own_time } => {
                for _ in 0..samples {
                    let own = own_time.then_some(site.truth);
                    assert_eq!(site.report(own).taken, Taken::Stored);
                    waiting.push((site.sent, site.truth - START_MS));
                    site.pass(Duration::from_secs(1));
                }
            }
            Event::Pass { seconds } => site.pass(Duration::from_secs(seconds.into())),
            Event::Step { ms } => site.clock.step(ms),
            Event::Synchronise => site.synchronise(0),
            Event::Mislead { ms } => site.synchronise(ms),
            Event::Lose => site.clock.set_trusted(false),
            Event::Commit => {
                site.bench.commit();
                committed.append(&mut waiting);
                site.settle(false);
            }
            Event::Restart => {
                waiting.clear();
                site.restart();
            }
            Event::Boot { wall } => {
                waiting.clear();
                site.reboot(wall);
            }
            Event::Send { blocks } => {
                let due = site.bench.db().peek_blocks(usize::from(blocks)).unwrap();
                due.iter().for_each(|block| table.take(block));
                let ids = due.iter().map(|block| block.id).collect();
                site.bench.db().confirm_blocks(&ids).unwrap();
            }
        }
    }
    // In the end everything goes up.
    site.bench.close_blocks();
    committed.append(&mut waiting);
    site.synchronise(0);
    while site.settle(false) > 0 {}
    site.bench.blocks().iter().for_each(|block| table.take(block));
    let values: Vec<u64> = committed.iter().map(|(value, _)| *value).collect();
    assert_eq!(table.got.keys().copied().collect::<Vec<_>>(), values, "each committed sample once, and no other");
    assert_eq!(site.bench.stats().samples_provisional, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_the_clocks_do_every_sample_is_sent_once_under_a_key_of_its_own(
        events in proptest::collection::vec(event(), 1..80)
    ) {
        live(events);
    }

    #[test]
    fn steps_before_the_time_is_known_leave_no_trace_in_what_is_sent(
        steps in proptest::collection::vec((step(), 1_u32..100), 0..12)
    ) {
        let mut site = Site::booted_in_1970();
        let mut truth = Vec::new();
        for (ms, seconds) in steps {
            site.report(None);
            truth.push((site.sent, site.truth - START_MS));
            site.bench.commit();
            site.clock.step(ms);
            site.pass(Duration::from_secs(seconds.into()));
        }
        site.bench.close_blocks();
        site.synchronise(0);
        while site.settle(false) > 0 {}
        let mut sent: Vec<(u64, i64)> = site.samples().into_iter().map(|(value, at, _)| (value, at)).collect();
        sent.sort_unstable();
        for ((value, at), (_, right)) in sent.iter().zip(&truth) {
            prop_assert!((at - right).abs() <= 5_000, "sample {value} at {at}, really {right}");
        }
        prop_assert!(sent.windows(2).all(|pair| pair[0].1 < pair[1].1), "the order is kept: {:?}", sent);
        prop_assert_eq!(sent.len(), truth.len());
    }
}

//! The promises that are numbers.

use std::collections::BTreeSet;
use std::time::Duration;

use floorgate_model::Reading;

use super::{Bench, at, device};
use crate::shadow::report::TelemetryReport;

pub(super) const DEVICES: usize = 50;
pub(super) const PER_SECOND: usize = 20;
/// The log: its header, then frames, each a page and a header.
const LOG_HEADER_BYTES: usize = 32;
const FRAME_BYTES: usize = 4_096 + 24;
/// What a disk writes at least.
const DISK_BLOCK: usize = 4_096;

/// Pressure and temperature as they walk, with one decimal; device times with some jitter.
pub(super) struct Floor {
    random: fastrand::Rng,
    values: Vec<(i32, i32)>,
}

impl Floor {
    pub(super) fn new() -> Self {
        Self { random: fastrand::Rng::with_seed(2), values: vec![(1_427, 382); DEVICES] }
    }

    pub(super) fn report(&mut self, number: usize) -> TelemetryReport {
        let which = number % DEVICES;
        let (pressure, temperature) = &mut self.values[which];
        *pressure += self.random.i32(-9..=9);
        *temperature += self.random.i32(-2..=2);
        let (pressure, temperature) = (f64::from(*pressure) / 10.0, f64::from(*temperature) / 10.0);
        let due = i64::try_from(number * 1_000 / PER_SECOND).unwrap();
        let values = [("pressure_psi", pressure), ("temperature_c", temperature)];
        let mut readings = floorgate_model::Readings::new();
        for (name, value) in values {
            readings.insert(name, Reading::new(value).unwrap()).unwrap();
        }
        TelemetryReport {
            device_id: device(which),
            readings,
            device_time: Some(at(due + self.random.i64(0..20))),
            seq: Some(u64::try_from(number / DEVICES).unwrap()),
            received_at: at(due + 30),
            guess_base_ms: None,
            redelivered: false,
            retained: false,
        }
    }
}

/// Counts what goes to the block device, from the log itself: a commit costs every disk block that its frames touch, a
/// checkpoint every page that it copies.
#[derive(Default)]
pub(super) struct Meter {
    frames: usize,
    copied: usize,
    pub(super) log_bytes: usize,
    pub(super) checkpoint_bytes: usize,
}

impl Meter {
    /// Looks at the log after a commit.
    fn read(&mut self, bench: &Bench) {
        let index = std::fs::read(bench.path().with_extension("db-shm")).unwrap();
        let word = |at: usize| u32::from_ne_bytes(index[at..at + 4].try_into().unwrap()) as usize;
        // The layout of the log's index: frames in the log at byte 16, frames copied into the file at byte 96.
        let (frames, copied) = (word(16), word(96));
        let from = if frames < self.frames { 0 } else { self.frames };
        let byte = |frame: usize| LOG_HEADER_BYTES + frame * FRAME_BYTES;
        self.log_bytes += (byte(frames).div_ceil(DISK_BLOCK) - byte(from) / DISK_BLOCK) * DISK_BLOCK;
        if copied > self.copied || (copied > 0 && from == 0) {
            let log = std::fs::read(bench.path().with_extension("db-wal")).unwrap();
            let pages: BTreeSet<&[u8]> = (0..copied).map(|frame| &log[byte(frame)..byte(frame) + 4]).collect();
            self.checkpoint_bytes += pages.len() * DISK_BLOCK;
        }
        (self.frames, self.copied) = (frames, copied);
    }
}

/// `seconds` of 20 messages each from 50 devices, a commit a second; what is closed is confirmed as the table takes it,
/// 25 at a time.
pub(super) fn live(bench: &mut Bench, seconds: usize, meter: &mut Meter) {
    let mut floor = Floor::new();
    for second in 0..seconds {
        for number in 0..PER_SECOND {
            bench.stage(&floor.report(second * PER_SECOND + number));
        }
        bench.pass(Duration::from_secs(1));
        bench.commit();
        meter.read(bench);
        let ids = bench.db().peek_blocks(25).unwrap().iter().map(|block| block.id).collect();
        bench.db().confirm_blocks(&ids).unwrap();
        bench.db().shrink_some(u64::MAX).unwrap();
    }
}

#[test]
fn at_twenty_messages_a_second_the_disk_gets_at_most_600_bytes_a_message() {
    let mut bench = Bench::new();
    let (seconds, mut meter) = (3_600, Meter::default());
    live(&mut bench, seconds, &mut meter);
    let messages = seconds * PER_SECOND;
    let (log, checkpoint) = (meter.log_bytes / messages, meter.checkpoint_bytes / messages);
    println!("{log} B a message in the log, {checkpoint} B copied into the file");
    assert!(checkpoint > 0, "the hour has checkpoints");
    assert!(log + checkpoint <= 600, "{log} + {checkpoint} B a message");
}

#[test]
fn most_commits_change_one_page() {
    let mut bench = Bench::new();
    live(&mut bench, 120, &mut Meter::default());
    let mut floor = Floor::new();
    let mut single = 0;
    for second in 120..170 {
        for number in 0..PER_SECOND {
            bench.stage(&floor.report(second * PER_SECOND + number));
        }
        let mut before = Meter::default();
        before.read(&bench);
        bench.commit();
        let mut after = Meter::default();
        after.read(&bench);
        single += usize::from(after.frames == before.frames + 1);
    }
    assert!(single >= 40, "{single} of 50");
}

#[test]
fn three_days_without_the_table_fit_into_a_hundred_megabytes() {
    let mut bench = Bench::new();
    let mut floor = Floor::new();
    // Two hours, written as they would be; the file grows evenly from there.
    let seconds = 7_200;
    for second in 0..seconds {
        for number in 0..PER_SECOND {
            bench.stage(&floor.report(second * PER_SECOND + number));
        }
        if second % 60 == 59 {
            bench.close_blocks();
        }
    }
    bench.db().empty_log().unwrap();
    let bytes = bench.stats().bytes_on_disk;
    let samples = u64::try_from(seconds * PER_SECOND).unwrap();
    let three_days = bytes * (72 * 3_600) / u64::try_from(seconds).unwrap();
    println!("{bytes} B for {samples} samples: {} a thousand, {three_days} in three days", bytes * 1_000 / samples);
    assert!(three_days <= 100_000_000, "{three_days}");
}

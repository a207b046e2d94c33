//! The whole of `telemetry.db` on real files: promises, figures, and a model that cannot lose anything.

mod figures;
mod giving_up;
mod lifecycle;
#[cfg(feature = "suites")]
mod measures;
mod model;
mod packing;
mod rescue;
mod restamp;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Reading, Readings, Timestamp};
use tempfile::TempDir;

use super::{How, Staged, TelemetryDb, TelemetryStats};
use crate::shadow::report::TelemetryReport;
use crate::shadow::store::Taken;
use crate::shadow::view::HistoryBlock;

/// 2026-11-22T10:00:00Z.
const START_MS: i64 = 1_795_341_600_000;
const RETENTION: Duration = Duration::from_secs(30 * 86_400);

fn at(offset_ms: i64) -> Timestamp {
    Timestamp::from_millis(START_MS + offset_ms)
}

fn device(number: usize) -> DeviceId {
    DeviceId::new(&format!("SENSOR-LINE7-PRESS-{number:03}")).unwrap()
}

fn readings(values: &[(&str, f64)]) -> Readings {
    let mut readings = Readings::new();
    for (name, value) in values {
        readings.insert(name, Reading::new(*value).unwrap()).unwrap();
    }
    readings
}

/// A report as the first device would send it, its own time being `offset_ms` after the start.
fn report(offset_ms: i64, value: f64) -> TelemetryReport {
    TelemetryReport {
        device_id: device(1),
        readings: readings(&[("pressure_psi", value)]),
        device_time: Some(at(offset_ms)),
        seq: None,
        received_at: at(offset_ms),
        guess_base_ms: None,
        redelivered: false,
        retained: false,
    }
}

/// A file of its own, a monotonic clock that tests move, and the database that is open on it.
struct Bench {
    dir: TempDir,
    now: Instant,
    db: Option<TelemetryDb>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self { dir: tempfile::tempdir().unwrap(), now: Instant::now(), db: None };
        bench.reopen();
        bench
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("telemetry.db")
    }

    fn db(&mut self) -> &mut TelemetryDb {
        self.db.as_mut().unwrap()
    }

    /// As after `kill -9`: dropped without a word, opened again.
    fn reopen(&mut self) -> std::collections::BTreeMap<DeviceId, (Timestamp, Readings)> {
        drop(self.db.take());
        let (db, newest) = TelemetryDb::open(&self.path(), RETENTION, self.now).unwrap();
        self.db = Some(db);
        newest
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn stage(&mut self, report: &TelemetryReport) -> Staged {
        let now = self.now;
        self.db().stage(report, now)
    }

    fn commit(&mut self) -> usize {
        let now = self.now;
        self.db().commit(now).unwrap()
    }

    /// Lets every open block grow old and writes it.
    fn close_blocks(&mut self) -> usize {
        self.pass(super::BLOCK_AGE_MAX);
        self.commit()
    }

    fn stats(&mut self) -> TelemetryStats {
        self.db().stats(&BTreeSet::new()).unwrap()
    }

    fn blocks(&mut self) -> Vec<HistoryBlock> {
        self.db().peek_blocks(usize::MAX).unwrap()
    }

    /// Makes every commit fail until [`Self::mend`]: someone else holds the write lock.
    fn block_writes(&mut self) -> rusqlite::Connection {
        self.db().conn.busy_timeout(Duration::ZERO).unwrap();
        let other = rusqlite::Connection::open(self.path()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }
}

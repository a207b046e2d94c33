//! The clock's floor in `state.db`: one row, so that a machine without a battery for its clock goes on from the last
//! time that was known to be right (`crate::clock`).
//!
//! It travels with commits that are made anyway, at most every [`SAVED_EVERY`], and gets a commit of its own after
//! [`SAVED_AT_LEAST_EVERY`]. So a guess after a power cut is at most that much older than what was known before it;
//! the order of a device's samples does not depend on it.

use std::time::{Duration, Instant};

use floorgate_model::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::terms::StoreError;
use super::words::{self, io};
use crate::clock::{BootId, BootTime, Clock, Floor};

/// Written with another commit at most this often: each costs a page of the log.
const SAVED_EVERY: Duration = Duration::from_secs(30);
/// Written on its own after so long without.
const SAVED_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

/// When it was written last.
#[derive(Debug, Default)]
pub(super) struct Saved(Option<Instant>);

impl Saved {
    /// Whether it is worth taking along.
    pub(super) fn may_travel(&self, now: Instant) -> bool {
        self.0.is_none_or(|saved| now.saturating_duration_since(saved) >= SAVED_EVERY)
    }

    /// Whether it must be written now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.0.is_none_or(|saved| now.saturating_duration_since(saved) >= SAVED_AT_LEAST_EVERY)
    }

    pub(super) fn saved(&mut self, now: Instant) {
        self.0 = Some(now);
    }
}

/// Tells the clock what an earlier start knew. A row that cannot be read tells nothing.
pub(super) fn resume(connection: &Connection, clock: &Clock) -> Result<(), StoreError> {
    let cannot = io("read the clock's floor");
    let mut statement =
        connection.prepare("SELECT wall, boot_id, boot_ms, right FROM clock_floor WHERE one = 1").map_err(&cannot)?;
    let row = words::if_readable(statement.query_row([], read), "the clock's floor").optional().map_err(&cannot)?;
    if let Some(floor) = row.flatten().flatten() {
        clock.resume(floor);
    }
    Ok(())
}

/// Writes what the clock knows, inside the caller's transaction.
pub(super) fn save(connection: &Connection, clock: &Clock) -> Result<(), StoreError> {
    let cannot = io("keep the clock's floor");
    let floor = clock.floor();
    let text = "INSERT INTO clock_floor VALUES (1, ?1, ?2, ?3, ?4) ON CONFLICT (one) DO UPDATE SET \
                wall = ?1, boot_id = ?2, boot_ms = ?3, right = ?4";
    let mut statement = connection.prepare_cached(text).map_err(&cannot)?;
    let row = params![floor.wall.as_millis(), floor.boot.boot_id.to_string(), floor.boot.ms, floor.right];
    statement.execute(row).map(drop).map_err(&cannot)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Option<Floor>> {
    let (wall, ms, right) = (Timestamp::from_millis(row.get(0)?), row.get(2)?, row.get(3)?);
    let boot_id = BootId::parse(row.get_ref(1)?.as_str()?);
    Ok(boot_id.map(|boot_id| Floor { wall, boot: BootTime { boot_id, ms }, right }))
}

//! What was handed out to be sent, in this run or an earlier one.
//!
//! A block that was handed out may be in the table, whatever was answered: a time-out may come after the write. So it
//! keeps its key and its bytes, and only a confirmation or a final refusal ends it; the quota never gives it up, or its
//! readings could be both delivered and declared lost. That it was handed out is on disk *before* it is
//! (`synchronous=FULL`), so it holds after a power cut too.
//!
//! Marking blocks ahead of need ([`AHEAD_MAX`]) keeps that at one flush for about a thousand blocks of a backlog; they
//! are few beside those that the quota may still give up.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::books::Flush;
use super::{TelemetryDb, rows};
use crate::shadow::store::StoreError;

/// Blocks marked at once at most, beyond those that were asked for.
const AHEAD_MAX: usize = 1_024;
/// Blocks are marked ahead up to this part of those that wait.
const AHEAD_PART: i64 = 16;

/// Numbers of the blocks and gap records that were handed out and neither confirmed nor refused.
#[derive(Debug, Default)]
pub(super) struct Offered(BTreeSet<i64>);

impl Offered {
    pub(super) fn read(conn: &Connection) -> rusqlite::Result<Self> {
        rows::offered(conn).map(Self)
    }

    pub(super) fn has(&self, id: i64) -> bool {
        self.0.contains(&id)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        self.0.iter().copied()
    }

    pub(super) fn forget<'a>(&mut self, ids: impl IntoIterator<Item = &'a i64>) {
        for id in ids {
            self.0.remove(id);
        }
    }
}

impl TelemetryDb {
    /// Notes that these are handed out, durably, before they are.
    pub(super) fn offer(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.iter().all(|id| self.offered.has(*id)) {
            return Ok(());
        }
        let part = usize::try_from(self.tally.blocks_waiting / AHEAD_PART).unwrap_or(0);
        let ahead = rows::waiting_ids(&self.conn, part.min(AHEAD_MAX)).map_err(super::io("look ahead"))?;
        let new: BTreeSet<i64> = ids.iter().chain(&ahead).copied().filter(|id| !self.offered.has(*id)).collect();
        self.change(Flush::Now, "note what is handed out", |tx, _| new.iter().try_for_each(|id| rows::offer(tx, *id)))?;
        self.offered.0.extend(new);
        Ok(())
    }
}

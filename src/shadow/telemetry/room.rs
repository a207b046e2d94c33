//! Keeping the file small: sent blocks go, free pages are given back.

use super::dedup::REPORTS_REMEMBERED;
use super::{TelemetryDb, io, rows};
use crate::shadow::files;
use crate::shadow::store::StoreError;

/// Sent blocks dropped in one step while shedding.
const SHED_STEP: i64 = 1_024;
/// Shedding goes on to this part below the quota, so that it is not due again after the next block.
const SHED_BELOW: u64 = 64;

impl TelemetryDb {
    /// Sheds sent blocks, oldest first, until the file with its log is within `bytes`, or none are left.
    pub(crate) fn keep_within(&mut self, bytes: u64) -> Result<(), StoreError> {
        if self.bytes_on_disk() <= bytes {
            return Ok(());
        }
        self.empty_log()?;
        let target = bytes - bytes / SHED_BELOW;
        while self.bytes_in_use()? > target && self.tally.blocks_sent > 0 {
            self.shed()?;
        }
        if self.bytes_on_disk() > bytes {
            self.cheaply("give free pages back", files::give_back_all)?;
            self.empty_log()?;
        }
        Ok(())
    }

    /// One small step: sheds sent blocks that nobody will look at again, or gives back some of many free pages.
    /// Answers whether there was anything to do.
    pub(crate) fn shrink_some(&mut self) -> Result<bool, StoreError> {
        if self.tally.blocks_sent >= self.sent_kept() + SHED_STEP {
            return self.shed().map(|()| true);
        }
        self.cheaply("give free pages back", files::give_back_some)
    }

    /// Copies the log into the file and cuts it, without waiting for anyone.
    pub(crate) fn empty_log(&self) -> Result<(), StoreError> {
        files::empty_log(&self.conn).map_err(io("copy the log into telemetry.db"))
    }

    /// Sent blocks that are kept: after a restart duplicates are known by them. A device closes about one a minute, so
    /// these are its last [`REPORTS_REMEMBERED`] reports and more, if it reports as often as the others.
    fn sent_kept(&self) -> i64 {
        i64::try_from(self.names.len().saturating_mul(REPORTS_REMEMBERED)).unwrap_or(i64::MAX)
    }

    /// Drops the oldest sent blocks, [`SHED_STEP`] at most.
    fn shed(&mut self) -> Result<(), StoreError> {
        let from = self.sent_from;
        let mut shed = Vec::new();
        self.tally = self.change("shed sent blocks", |tx, tally| {
            shed = rows::shed_sent(tx, from, SHED_STEP)?;
            // Fewer than a step: whatever the tally says, there are no more.
            let left = tally.blocks_sent - i64::try_from(shed.len()).unwrap_or(0);
            tally.blocks_sent = if shed.is_empty() { 0 } else { left.max(0) };
            Ok(())
        })?;
        self.sent_from = shed.into_iter().max().map_or(from, |last| last + 1);
        Ok(())
    }

    /// The file without its free pages, and the log.
    fn bytes_in_use(&self) -> Result<u64, StoreError> {
        let free = files::free_pages(&self.conn).map_err(io("count free pages"))?;
        Ok(self.bytes_on_disk().saturating_sub(u64::from(free) * files::PAGE_BYTES))
    }

    /// Without a flush of its own: nothing is lost if a power cut undoes it.
    fn cheaply<T>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&rusqlite::Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let lazily = self.conn.pragma_update(None, "synchronous", "NORMAL");
        lazily.and_then(|()| work(&self.conn)).map_err(io(doing))
    }
}

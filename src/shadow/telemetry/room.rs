//! Keeping the file small: what the table has goes, what matters least is given up, free pages are given back.

use super::books::Flush;
use super::dedup::REPORTS_REMEMBERED;
use super::{TelemetryDb, gap, io, rows};
use crate::shadow::files;
use crate::shadow::store::StoreError;

/// Sent blocks dropped in one step while shedding.
const SHED_STEP: i64 = 1_024;
/// At the quota, room is made down to this part below it, so that it is not due again after the next block.
const ROOM_PART: u64 = 64;
/// From this part below the quota on, every tick gives up a little, so that commits need not stop for it.
const EASE_PART: u64 = 32;
/// Steps of giving up, and of giving pages back, that one commit waits for at most; about a hundred milliseconds. If
/// that is not enough, readings are refused until the ticks have done the rest.
const STEPS_AT_ONCE: usize = 16;
/// While room is made, the log is copied when it has grown to this part of the quota, so that it stays within 1 %.
const LOG_PART: u64 = 256;

impl TelemetryDb {
    /// Gives up what matters least ([`super::give_up`]) until the file with its log is within `bytes`, or as far as
    /// [`STEPS_AT_ONCE`] go. The caller looks whether it was enough.
    pub(crate) fn keep_within(&mut self, bytes: u64) -> Result<(), StoreError> {
        // Copying the log makes the file grow before the log is cut.
        if self.bytes_on_disk() + files::log_bytes(&self.path) <= bytes {
            return Ok(());
        }
        self.empty_log()?;
        let target = bytes - bytes / ROOM_PART;
        for _ in 0..STEPS_AT_ONCE {
            if self.bytes_in_use()? <= target || !self.give_up_some(bytes)? {
                break;
            }
            self.empty_long_log(bytes)?;
        }
        self.empty_log()?;
        for _ in 0..STEPS_AT_ONCE {
            if self.bytes_on_disk() <= bytes || !self.give_pages_back(0, pages_at_once(bytes))? {
                break;
            }
            self.empty_log()?;
        }
        Ok(())
    }

    /// One small step: what comes near to `bytes` gives something up, sent blocks that nobody will look at again go,
    /// or some of many free pages are given back. Answers whether there was anything to do.
    pub(crate) fn shrink_some(&mut self, bytes: u64) -> Result<bool, StoreError> {
        if self.bytes_on_disk() > bytes - bytes / EASE_PART
            && self.bytes_in_use()? > bytes - bytes / EASE_PART
            && self.give_up_some(bytes)?
        {
            self.empty_long_log(bytes)?;
            return Ok(true);
        }
        if self.tally.blocks_sent >= self.sent_kept() + SHED_STEP {
            return self.shed().map(|()| true);
        }
        self.give_pages_back(files::FREE_PAGES_KEPT, pages_at_once(bytes))
    }

    /// Copies the log into the file and cuts it, without waiting for anyone.
    pub(crate) fn empty_log(&self) -> Result<(), StoreError> {
        files::empty_log(&self.conn).map_err(io("copy the log into telemetry.db"))
    }

    fn empty_long_log(&self, bytes: u64) -> Result<(), StoreError> {
        if files::log_bytes(&self.path) >= bytes / LOG_PART { self.empty_log() } else { Ok(()) }
    }

    /// Sent blocks that are kept: after a restart duplicates are known by them. A device closes about one a minute, so
    /// these are its last [`REPORTS_REMEMBERED`] reports and more, if it reports as often as the others.
    fn sent_kept(&self) -> i64 {
        i64::try_from(self.names.len().saturating_mul(REPORTS_REMEMBERED)).unwrap_or(i64::MAX)
    }

    /// Drops the oldest sent blocks, [`SHED_STEP`] at most, and the oldest sent gap records beyond those that are kept
    /// for their keys.
    pub(super) fn shed(&mut self) -> Result<(), StoreError> {
        let from = self.sent_from;
        let last = self.change(Flush::Later, "shed sent blocks", |tx, books| {
            // No more than there are: looking for others would read the whole file.
            let shed = rows::shed_sent(tx, from, SHED_STEP.min(books.tally.blocks_sent))?;
            // Fewer than a step: whatever the tally says, there are no more.
            let left = books.tally.blocks_sent - i64::try_from(shed.len()).unwrap_or(0);
            books.tally.blocks_sent = if shed.is_empty() { 0 } else { left.max(0) };
            gap::shed_sent(tx, books, gap::SENT_KEPT)?;
            Ok(shed.into_iter().max())
        })?;
        self.sent_from = last.map_or(from, |last| last + 1);
        Ok(())
    }

    /// The file's pages that hold something, the log's among them.
    fn bytes_in_use(&self) -> Result<u64, StoreError> {
        let pages = files::pages_in_use(&self.conn).map_err(io("count pages"))?;
        Ok(u64::from(pages) * files::PAGE_BYTES)
    }

    /// Gives some of the free pages back, if there are more than `keep`. Without a flush of its own: nothing is lost
    /// if a power cut undoes it.
    fn give_pages_back(&self, keep: u32, most: u32) -> Result<bool, StoreError> {
        let lazily = self.conn.pragma_update(None, "synchronous", "NORMAL");
        lazily.and_then(|()| files::give_back_some(&self.conn, keep, most)).map_err(io("give free pages back"))
    }
}

/// Pages given back in one step: each is written to the log, which must stay a small part of the quota.
fn pages_at_once(bytes: u64) -> u32 {
    let pages = u32::try_from(bytes / LOG_PART / files::PAGE_BYTES).unwrap_or(u32::MAX);
    pages.clamp(1, files::PAGES_PER_STEP)
}

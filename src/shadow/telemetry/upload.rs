//! Closed blocks on their way out: waiting, sent, parked, shed.

use floorgate_model::Timestamp;
use rusqlite::{Transaction, TransactionBehavior};

use super::rows::{self, BlockRow, Tally};
use super::{PARKED_MAX, TelemetryDb, body, io};
use crate::shadow::store::StoreError;
use crate::shadow::view::HistoryBlock;

/// Sent blocks dropped in one step while shedding.
const SHED_STEP: i64 = 1_024;
/// Shedding goes on to this part below the quota, so that it is not due again after the next block.
const SHED_BELOW: u64 = 64;

impl TelemetryDb {
    /// Waiting blocks, oldest first.
    pub(crate) fn peek_blocks(&self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let waiting = rows::waiting(&self.conn, limit).map_err(io("read waiting blocks"))?;
        waiting.into_iter().map(|row| self.history_block(row)).collect()
    }

    /// The table has these blocks. They are kept for a look back until [`Self::keep_within`] sheds them.
    ///
    /// Durable with the next commit: a confirmation lost in a power cut only sends the block once more, which changes
    /// nothing, so it is not worth a flush of its own.
    pub(crate) fn confirm_blocks(&mut self, ids: &[i64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let tally = self.change("mark blocks as sent", |tx, tally| {
            for id in ids {
                if let Some(samples) = rows::mark_sent(tx, *id)? {
                    tally.blocks_waiting -= 1;
                    tally.samples_waiting -= samples;
                    tally.blocks_sent += 1;
                }
            }
            Ok(())
        })?;
        self.tally = tally;
        self.sent_from = ids.iter().copied().fold(self.sent_from, i64::min);
        Ok(())
    }

    /// Keeps a waiting block aside with the reason; beyond [`PARKED_MAX`] the oldest is dropped and counted.
    pub(crate) fn park_block(&mut self, id: i64, reason: &str) -> Result<(), StoreError> {
        self.tally = self.change("park a block", |tx, tally| {
            let Some(samples) = rows::park(tx, id, reason)? else { return Ok(()) };
            tally.blocks_waiting -= 1;
            tally.samples_waiting -= samples;
            if tally.blocks_parked < PARKED_MAX {
                tally.blocks_parked += 1;
            } else {
                rows::drop_oldest_parked(tx)?;
                tally.parked_dropped += 1;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Sheds sent blocks, oldest first, until the file with its log is within `quota_bytes`.
    pub(crate) fn keep_within(&mut self, quota_bytes: u64) -> Result<(), StoreError> {
        if self.bytes_on_disk() <= quota_bytes {
            return Ok(());
        }
        self.checkpoint()?;
        let target = quota_bytes - quota_bytes / SHED_BELOW;
        while self.bytes_in_use()? > target && self.tally.blocks_sent > 0 {
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
        }
        if self.bytes_on_disk() > quota_bytes {
            self.give_free_pages_back().map_err(io("give free pages back"))?;
            self.checkpoint()?;
        }
        Ok(())
    }

    fn give_free_pages_back(&self) -> rusqlite::Result<()> {
        // One step of the statement frees one page.
        let mut statement = self.conn.prepare("PRAGMA incremental_vacuum")?;
        let mut steps = statement.query([])?;
        while steps.next()?.is_some() {}
        Ok(())
    }

    /// The file without its free pages, and the log.
    fn bytes_in_use(&self) -> Result<u64, StoreError> {
        let free: i64 =
            self.conn.pragma_query_value(None, "freelist_count", |row| row.get(0)).map_err(io("count free pages"))?;
        Ok(self.bytes_on_disk().saturating_sub(u64::try_from(free).unwrap_or(0) * 4_096))
    }

    /// One transaction that changes rows and the tally with them; it is flushed with the next commit of samples.
    fn change(
        &self,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>, &mut Tally) -> rusqlite::Result<()>,
    ) -> Result<Tally, StoreError> {
        let mut tally = self.tally;
        let attempt = || {
            self.conn.pragma_update(None, "synchronous", "NORMAL")?;
            let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
            change(&tx, &mut tally)?;
            rows::save_tally(&tx, &tally)?;
            tx.commit()
        };
        attempt().map_err(io(doing))?;
        Ok(tally)
    }

    fn history_block(&self, row: BlockRow) -> Result<HistoryBlock, StoreError> {
        let damaged =
            || StoreError::Io { doing: "read a waiting block", cause: format!("block {} is damaged", row.id) };
        let device_id = self.names.get(&row.device).ok_or_else(damaged)?.clone();
        let (samples, retention) = body::decode(row.first, &row.body).ok_or_else(damaged)?;
        let end = samples.last().ok_or_else(damaged)?;
        Ok(HistoryBlock {
            id: row.id,
            device_id,
            first: Timestamp::from_millis(row.first),
            offsets_ms: samples.times.iter().map(|at| at.abs_diff(row.first)).collect(),
            readings: samples.columns,
            expires_at: Timestamp::from_millis(end).saturating_add(retention),
        })
    }
}

//! Closed blocks on their way out: waiting, sent, parked.

use std::collections::BTreeSet;

use floorgate_model::Timestamp;
use rusqlite::{Transaction, TransactionBehavior};

use super::rows::{self, BlockRow, Tally};
use super::{PARKED_MAX, TelemetryDb, body, io};
use crate::shadow::store::StoreError;
use crate::shadow::view::HistoryBlock;

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
    pub(crate) fn confirm_blocks(&mut self, ids: &BTreeSet<i64>) -> Result<(), StoreError> {
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
        self.sent_from = ids.first().copied().map_or(self.sent_from, |first| first.min(self.sent_from));
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

    /// One transaction that changes rows and the tally with them; it is flushed with the next commit of samples.
    pub(super) fn change(
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

//! Closed blocks on their way out: waiting, sent, parked.

use std::collections::BTreeSet;

use floorgate_model::Timestamp;
use rusqlite::{Transaction, TransactionBehavior};

use super::rows::{self, BlockRow, Tally};
use super::{PARKED_MAX, TelemetryDb, body, io};
use crate::shadow::store::StoreError;
use crate::shadow::view::HistoryBlock;

impl TelemetryDb {
    /// Waiting blocks, oldest first. A damaged one is parked and logged; the others go on.
    pub(crate) fn peek_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        loop {
            let waiting = rows::waiting(&self.conn, limit).map_err(io("read waiting blocks"))?;
            let mut blocks = Vec::with_capacity(waiting.len());
            let mut parked = false;
            for row in waiting {
                let id = row.id;
                match self.history_block(row) {
                    Some(block) => blocks.push(block),
                    None => parked |= self.park_damaged(id),
                }
            }
            // If all were damaged, intact ones may stand behind them.
            if !blocks.is_empty() || !parked {
                return Ok(blocks);
            }
        }
    }

    /// Answers whether it could be parked; else it is met again at the next look.
    fn park_damaged(&mut self, id: i64) -> bool {
        tracing::warn!(block = id, "a waiting block of telemetry cannot be read; it is parked and never sent");
        let parked = self.park_block(id, "damaged: its body cannot be read");
        if let Err(cause) = &parked {
            tracing::warn!(block = id, %cause, "the damaged block could not be parked");
        }
        parked.is_ok()
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

    /// `None` if the block is damaged.
    fn history_block(&self, row: BlockRow) -> Option<HistoryBlock> {
        let device_id = self.names.get(&row.device)?.clone();
        let (samples, retention) = body::decode(row.first, &row.body)?;
        let end = samples.last()?;
        Some(HistoryBlock {
            id: row.id,
            device_id,
            first: Timestamp::from_millis(row.first),
            offsets_ms: samples.times.iter().map(|at| at.abs_diff(row.first)).collect(),
            readings: samples.columns,
            expires_at: Timestamp::from_millis(end).saturating_add(retention),
            unsynchronised: body::is_guessed(&row.body),
        })
    }
}

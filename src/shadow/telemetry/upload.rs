//! Closed blocks on their way out: waiting, sent, parked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floorgate_model::{LossReason, Timestamp};

use super::books::Flush;
use super::gap::{self, Gap};
use super::rows::{self, BlockRow};
use super::summary::Summary;
use super::{PARKED_MAX, TelemetryDb, body, give_up, io};
use crate::shadow::store::StoreError;
use crate::shadow::view::{GapRecord, HistoryBlock};

impl TelemetryDb {
    /// Waiting blocks and gap records, oldest first; from now on their keys and bytes are fixed ([`super::offer`]).
    /// A damaged block is parked and logged; the others go on.
    pub(crate) fn peek_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let gaps = if self.tally.gaps_waiting > 0 { self.waiting_gaps(limit)? } else { Vec::new() };
        let mut blocks = self.waiting_blocks(limit)?;
        blocks.extend(gaps);
        blocks.sort_by_key(|block| (block.first, block.id));
        blocks.truncate(limit);
        let ids: Vec<i64> = blocks.iter().map(|block| block.id).collect();
        self.offer(&ids)?;
        Ok(blocks)
    }

    /// The newest waiting blocks, newest first, fixed from now on too. Damaged ones are left to [`Self::peek_blocks`].
    pub(crate) fn peek_newest_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let waiting = rows::waiting_newest(&self.conn, limit).map_err(io("read the newest waiting blocks"))?;
        let blocks: Vec<_> = waiting.into_iter().filter_map(|row| self.history_block(row)).collect();
        let ids: Vec<i64> = blocks.iter().map(|block| block.id).collect();
        self.offer(&ids)?;
        Ok(blocks)
    }

    pub(super) fn waiting_gaps(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
        let waiting = gap::waiting(&self.conn, limit).map_err(io("read waiting gap records"))?;
        let (known, nameless): (Vec<Gap>, Vec<Gap>) =
            waiting.into_iter().partition(|gap| self.names.contains_key(&gap.device));
        if !nameless.is_empty() {
            tracing::warn!(records = nameless.len(), "gap records of a device whose name cannot be read are set aside");
            self.change(Flush::Later, "set gap records aside", |tx, books| {
                nameless.iter().try_for_each(|gap| gap::refuse(tx, books, gap.id))
            })?;
        }
        Ok(known.into_iter().filter_map(|gap| self.gap_record(gap)).collect())
    }

    pub(super) fn waiting_blocks(&mut self, limit: usize) -> Result<Vec<HistoryBlock>, StoreError> {
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

    /// The table has these blocks and gap records. They are kept for a look back until [`Self::keep_within`] sheds them.
    ///
    /// Durable with the next commit: a confirmation lost in a power cut only sends the block once more, which changes
    /// nothing, so it is not worth a flush of its own.
    pub(crate) fn confirm_blocks(&mut self, ids: &BTreeSet<i64>) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.change(Flush::Later, "mark blocks as sent", |tx, books| {
            for id in ids {
                if let Some(block) = rows::mark_sent(tx, *id)? {
                    books.tally.blocks_waiting -= 1;
                    books.tally.samples_waiting -= block.samples;
                    books.tally.blocks_sent += 1;
                    books.account(block.device).deliver(block.samples, block.first);
                } else {
                    gap::mark_sent(tx, books, *id)?;
                }
                rows::no_longer_offered(tx, *id)?;
            }
            Ok(())
        })?;
        self.offered.forget(ids);
        self.sent_from = ids.first().copied().map_or(self.sent_from, |first| first.min(self.sent_from));
        Ok(())
    }

    /// Keeps a waiting block aside with the reason; beyond [`PARKED_MAX`] the oldest is dropped and declared lost. A
    /// gap record is set aside among its like.
    pub(crate) fn park_block(&mut self, id: i64, reason: &str) -> Result<(), StoreError> {
        let retention = self.history_retention;
        let offered = std::mem::take(&mut self.offered);
        let parked = self.change(Flush::Later, "park a block", |tx, books| {
            rows::no_longer_offered(tx, id)?;
            let Some(block) = rows::if_waiting(tx, id)? else { return gap::refuse(tx, books, id) };
            rows::park(tx, id, reason)?;
            books.tally.blocks_waiting -= 1;
            books.tally.samples_waiting -= block.samples;
            if books.tally.blocks_parked < PARKED_MAX {
                books.tally.blocks_parked += 1;
                return Ok(());
            }
            books.tally.parked_dropped += 1;
            let Some(dropped) = rows::drop_oldest_parked(tx)? else { return Ok(()) };
            let gap = give_up::gap_of(&dropped, LossReason::Refused, retention);
            books.account(dropped.device).lose(dropped.samples, dropped.first, gap.reason);
            gap::add(tx, books, &offered, &Gap { summary: Summary::new(), ..gap }, gap::SPAN_MS)
        });
        self.offered = offered;
        parked?;
        self.offered.forget([&id]);
        Ok(())
    }

    /// `None` if its device cannot be read.
    fn gap_record(&self, gap: Gap) -> Option<HistoryBlock> {
        let device_id = self.names.get(&gap.device)?.clone();
        let until = Timestamp::from_millis(gap.until);
        Some(HistoryBlock {
            id: gap.id,
            device_id,
            first: Timestamp::from_millis(gap.key),
            offsets_ms: Vec::new(),
            readings: BTreeMap::new(),
            expires_at: until.saturating_add(Duration::from_millis(gap.retention_ms)),
            unsynchronised: false,
            gap: Some(GapRecord {
                from: Timestamp::from_millis(gap.from),
                to: until,
                lost: gap.lost,
                reason: gap.reason,
                summary: gap.summary,
            }),
        })
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
            gap: None,
        })
    }
}

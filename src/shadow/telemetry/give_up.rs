//! What is given up at the quota, and in which order.
//!
//! 1. Blocks that the table has: nothing is lost.
//! 2. The oldest blocks that were never handed out are *thinned*: of their readings minimum, maximum, mean and count
//!    stay, one record a device and hour ([`gap::SPAN_MS`]), declared lost as `thinned`.
//! 3. Such records become coarser: one a device and day ([`COARSE_SPAN_MS`]).
//! 4. The oldest of them are *dropped*: one record a device stays that says when and how many, declared lost as `quota`.
//! 5. Other gap records of a device and reason become one.
//!
//! After that there is at most one record a device and reason, besides what was handed out already and may therefore be
//! in the table ([`super::offer`]); if that is still too much, no more readings are taken.
//!
//! Each call is one transaction over at most [`STEP`] blocks or [`RECORDS_STEP`] records, a few milliseconds; books and
//! rows change together, so a reading is at every instant either stored or declared lost, never both. A power cut may
//! undo a step, whole.

use std::collections::BTreeMap;
use std::time::Duration;

use floorgate_model::LossReason;
use rusqlite::Connection;

use super::books::{Books, Flush};
use super::gap::{self, Gap};
use super::offer::Offered;
use super::rows::{self, BlockRow};
use super::{TelemetryDb, body, io, summary};
use crate::shadow::store::StoreError;

/// Blocks thinned in one step at most.
const STEP: u64 = 256;
/// Bytes of the quota for one block of a step, so that with a small quota too the log of a step stays a small part of it.
const QUOTA_PER_BLOCK: u64 = 256 * 1024;
/// Records of thinned readings dropped in one step.
const DROP_STEP: usize = 256;
/// Gap records looked at in one step.
const RECORDS_STEP: i64 = 1_024;
/// Thinned readings come into one record while it stays within this time, if the quota asks for it; milliseconds: a day.
const COARSE_SPAN_MS: i64 = 86_400_000;

impl TelemetryDb {
    /// Gives up a little of what matters least, for a file of at most `bytes`. Answers whether there was anything.
    pub(super) fn give_up_some(&mut self, bytes: u64) -> Result<bool, StoreError> {
        if self.tally.blocks_sent > 0 {
            self.shed()?;
            return Ok(true);
        }
        Ok(self.thin(bytes)?
            || self.coarsen(COARSE_SPAN_MS, true)?
            || self.drop_thinned()?
            || self.coarsen(i64::MAX, false)?)
    }

    #[cfg(test)]
    pub(super) fn thin_one(&mut self) -> bool {
        self.thin(0).unwrap()
    }

    /// Makes gap records of the oldest blocks that were never handed out.
    fn thin(&mut self, bytes: u64) -> Result<bool, StoreError> {
        let step = (bytes / QUOTA_PER_BLOCK).clamp(1, STEP).cast_signed();
        let mut blocks = rows::never_offered(&self.conn, step).map_err(io("read blocks to thin"))?;
        if blocks.is_empty() {
            // Those whose times are a guess still were never handed out either.
            blocks = rows::provisional(&self.conn, step).map_err(io("read blocks to thin"))?;
        }
        if blocks.is_empty() {
            return Ok(false);
        }
        let retention = self.history_retention;
        self.giving_up("thin blocks", |conn, books, offered| {
            let mut gathered: BTreeMap<(i64, LossReason), Gap> = BTreeMap::new();
            for block in &blocks {
                let gap = gap_of(block, LossReason::Thinned, retention);
                rows::delete_block(conn, block.id)?;
                books.tally.blocks_waiting -= 1;
                books.tally.samples_waiting -= block.samples;
                books.account(block.device).lose(block.samples, block.first, gap.reason);
                match gathered.get_mut(&(gap.device, gap.reason)) {
                    Some(known) if known.spans_with(&gap, gap::SPAN_MS) => known.absorb(&gap),
                    _ => {
                        if let Some(full) = gathered.insert((gap.device, gap.reason), gap) {
                            gap::add(conn, books, offered, &full, gap::SPAN_MS)?;
                        }
                    }
                }
            }
            gathered.values().try_for_each(|gap| gap::add(conn, books, offered, gap, gap::SPAN_MS))
        })?;
        for guessed in blocks.iter().filter(|block| block.era.is_some()) {
            self.eras.gone(1, super::count(guessed.samples));
        }
        Ok(true)
    }

    /// Makes fewer records of the oldest ones: those of a device and reason become one while it stays within `span`.
    fn coarsen(&mut self, span: i64, thinned: bool) -> Result<bool, StoreError> {
        let mut records = gap::open(&self.conn, RECORDS_STEP).map_err(io("read gap records"))?;
        records.retain(|gap| (gap.reason == LossReason::Thinned) == thinned);
        let (kept, gone) = join(records, span);
        if gone.is_empty() {
            return Ok(false);
        }
        self.giving_up("join gap records", |conn, books, _| {
            gone.iter().try_for_each(|id| gap::delete(conn, books, *id))?;
            kept.iter().try_for_each(|gap| gap::update(conn, gap))
        })?;
        Ok(true)
    }

    /// Drops what is left of the oldest thinned readings; that they are missing stays.
    fn drop_thinned(&mut self) -> Result<bool, StoreError> {
        let records = gap::open(&self.conn, RECORDS_STEP).map_err(io("read gap records"))?;
        let thinned: Vec<Gap> =
            records.into_iter().filter(|gap| gap.reason == LossReason::Thinned).take(DROP_STEP).collect();
        if thinned.is_empty() {
            return Ok(false);
        }
        self.giving_up("drop thinned readings", |conn, books, offered| {
            for gap in thinned {
                gap::delete(conn, books, gap.id)?;
                let lost = &mut books.account(gap.device).ledger.lost;
                lost.move_over(LossReason::Thinned, LossReason::Quota, gap.lost);
                let dropped = Gap { reason: LossReason::Quota, summary: summary::Summary::new(), ..gap };
                gap::add(conn, books, offered, &dropped, i64::MAX)?;
            }
            Ok(())
        })?;
        Ok(true)
    }

    fn giving_up<T>(
        &mut self,
        doing: &'static str,
        change: impl FnOnce(&Connection, &mut Books<'_>, &Offered) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let offered = std::mem::take(&mut self.offered);
        let outcome = self.change(Flush::Later, doing, |tx, books| change(tx, books, &offered));
        self.offered = offered;
        outcome
    }
}

/// Joins records, oldest first, while each stays within `span`. Answers those that grew, and the numbers of those that
/// are in them now.
fn join(records: Vec<Gap>, span: i64) -> (Vec<Gap>, Vec<i64>) {
    let mut latest: BTreeMap<(i64, LossReason), (Gap, bool)> = BTreeMap::new();
    let (mut grown, mut gone) = (Vec::new(), Vec::new());
    for gap in records {
        match latest.get_mut(&(gap.device, gap.reason)) {
            Some((known, grew)) if known.spans_with(&gap, span) => {
                known.absorb(&gap);
                gone.push(gap.id);
                *grew = true;
            }
            _ => {
                let before = latest.insert((gap.device, gap.reason), (gap, false));
                grown.extend(before.filter(|(_, grew)| *grew).map(|(gap, _)| gap));
            }
        }
    }
    grown.extend(latest.into_values().filter(|(_, grew)| *grew).map(|(gap, _)| gap));
    (grown, gone)
}

/// The record of one block's readings; of a block that cannot be read, only that they are missing is left.
pub(super) fn gap_of(block: &BlockRow, reason: LossReason, retention: Duration) -> Gap {
    let decoded = body::decode(block.first, &block.body);
    let retention = decoded.as_ref().map_or(retention, |(_, retention)| *retention);
    Gap {
        id: 0,
        device: block.device,
        key: block.first,
        from: block.first,
        until: decoded.as_ref().and_then(|(samples, _)| samples.last()).unwrap_or(block.first),
        lost: super::books::count(block.samples),
        reason: if decoded.is_some() { reason } else { LossReason::Damaged },
        retention_ms: u64::try_from(retention.as_millis()).unwrap_or(u64::MAX),
        summary: decoded.map(|(samples, _)| summary::of(&samples)).unwrap_or_default(),
    }
}

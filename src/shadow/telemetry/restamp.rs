//! Samples taken before the gateway knew the time: stamped with a guess, kept back, stamped again, sent.
//!
//! # Eras
//!
//! A guess is boot time plus a constant ([`crate::clock::Moment::guess_base`]). One boot of the machine with one such
//! constant is an [`Era`]. A block is of one era or of none; one of an era is *provisional*: its row is marked
//! [`rows::PROVISIONAL`], so it is not among those that wait to be sent. Its samples carry the time of their receipt
//! by the guess; the time that a device sent is kept beside it and not judged yet, because there is nothing to judge
//! it by.
//!
//! # Settling
//!
//! [`TelemetryDb::settle`] makes some provisional blocks final, oldest first, [`SETTLE_STEP`] in a durable transaction
//! of their own, so that a block's key is fixed before it can be sent, and stays so over a power cut:
//!
//! * The time is known and the era is of this boot: every sample moves by the difference between the true and the
//!   guessed constant. A device's own time is taken if it can be right by then ([`DEVICE_AHEAD_MAX`]).
//! * The time is known and the era is of an earlier boot, which ended without knowing it: the guess stays, because
//!   nobody knows how long the machine was off; a device's own time is taken if it does not lie ahead. Samples with a
//!   guess get blocks of their own, marked as unsynchronised, and kept in the table for as long as if taken now.
//! * The time is not known, but they have waited for it long enough ([`crate::clock::Clock::guess_must_do`]): all
//!   guesses stay, marked.
//!
//! The samples of a block stay in one block, unless the devices' own times tear them apart; then they become several.
//! Times within a block strictly increase, and no block begins at a time at which another block kept here begins.
//!
//! # What it does not do
//!
//! A block once sent is never touched. Blocks that a split adds are not in the chain by which duplicates are known
//! after a restart. The open blocks of an era are settled when they are closed, 60 s after they began.

use std::collections::BTreeMap;
use std::time::Instant;

use floorgate_model::{DeviceId, Timestamp};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::books::Books;
use super::open_block::OpenBlock;
use super::rows::{self, BlockRow, Tally};
use super::samples::{Sample, Samples};
use super::track::{DEVICE_AHEAD_MAX, DEVICE_TIME_MIN, origin_of};
use super::{TelemetryDb, body, io};
use crate::clock::{BootId, Moment};
use crate::shadow::store::StoreError;

/// Blocks settled in one transaction: some ten milliseconds, for which nothing else is written.
pub(crate) const SETTLE_STEP: i64 = 512;
/// Eras that are remembered; beyond, the guess of the newest goes on, whatever the clock shows. An era is a start of the
/// gateway, or a hand that sets the clock; all but the newest are forgotten when nothing is provisional.
pub(crate) const ERAS_MAX: usize = 1_000;

/// Samples stamped with one guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Era {
    pub(super) id: i64,
    pub(super) boot_id: BootId,
    /// The guessed time of day less the time since the boot, milliseconds.
    pub(super) base: i64,
    /// The row is in the file.
    pub(super) stored: bool,
}

/// The eras, and what still is of them.
#[derive(Debug, Default)]
pub(super) struct Eras {
    pub(super) known: BTreeMap<i64, Era>,
    /// No row and no sample of the journal is of a later one, though it may be of one that damage took: a new era with
    /// that number would move it by its own error.
    pub(super) highest: i64,
    /// This boot; every era that begins is of it.
    pub(super) boot_id: Option<BootId>,
    /// The guess that samples come with now, and its era.
    current: Option<(i64, Era)>,
    /// No provisional row holds a later time; as the file was opened.
    pub(super) newest_kept: Option<i64>,
    /// Provisional rows and their samples.
    pub(super) blocks: u64,
    pub(super) samples: u64,
}

impl Eras {
    /// A new era with this base; the newest one if there are too many. `None` if the boot is not known.
    fn begin(&mut self, base: i64) -> Option<Era> {
        let boot_id = self.boot_id?;
        let last = self.known.last_key_value().map(|(_, era)| *era);
        let full = self.known.len() >= ERAS_MAX;
        if let Some(newest) = last.filter(|newest| full && newest.boot_id == boot_id) {
            return Some(newest);
        }
        self.highest += 1;
        let era = Era { id: self.highest, boot_id, base, stored: false };
        self.known.insert(era.id, era);
        Some(era)
    }

    /// Writes those that the file does not have.
    pub(super) fn save(&self, tx: &Connection) -> rusqlite::Result<()> {
        self.known.values().filter(|era| !era.stored).try_for_each(|era| rows::save_era(tx, era))
    }

    /// Provisional rows are none any more.
    pub(super) fn gone(&mut self, blocks: u64, samples: u64) {
        self.blocks = self.blocks.saturating_sub(blocks);
        self.samples = self.samples.saturating_sub(samples);
    }

    /// They are in the file now.
    pub(super) fn saved(&mut self) {
        self.known.values_mut().for_each(|era| era.stored = true);
    }
}

/// A sample and the time it gets.
type Timed = (i64, Sample);

impl TelemetryDb {
    /// Tells in which boot of the machine this runs; before the first sample.
    pub(crate) fn booted(&mut self, boot_id: BootId) {
        self.eras.boot_id = Some(boot_id);
    }

    /// The era of this guess, and the time by it of what was received at `received` by the clock.
    ///
    /// An era's guess lies after all that is kept from before, where that lies ahead by no more than the age of the
    /// clock's floor and of a device's clock may explain: so the order holds even if the time never becomes known.
    pub(super) fn guess(&mut self, base: i64, received: i64) -> Option<(i64, i64)> {
        let era = match self.eras.current.filter(|(guess, _)| *guess == base) {
            Some((_, era)) => era,
            None => {
                let ahead = received.saturating_add(i64::try_from(DEVICE_AHEAD_MAX.as_millis()).unwrap_or(0));
                let kept = self.tracks.values().flat_map(|track| [track.newest, track.newest_guess]).flatten();
                let kept = kept.chain(self.eras.newest_kept);
                let newest = kept.filter(|newest| (received..=ahead).contains(newest)).max();
                let lift = newest.map_or(0, |newest| newest.saturating_add(1).saturating_sub(received));
                self.eras.begin(base.saturating_add(lift))?
            }
        };
        self.eras.current = Some((base, era));
        // The same time since the boot, by the guess of the era.
        Some((era.id, received.saturating_sub(base).saturating_add(era.base)))
    }

    /// Whether some rows are provisional.
    pub(crate) fn is_provisional(&self) -> bool {
        self.eras.blocks > 0
    }

    /// One step of settling, if the time is known by now or `must_do`. Answers how many blocks may be sent.
    pub(crate) fn settle(&mut self, moment: &Moment, must_do: bool, now: Instant) -> Result<usize, StoreError> {
        if !self.is_provisional() || !(moment.quality.is_exact() || must_do) {
            return Ok(0);
        }
        let doing = io("give samples their right time");
        let provisional = rows::provisional(&self.conn, SETTLE_STEP).map_err(&doing)?;
        if provisional.is_empty() {
            // Whatever the count says: there are no more.
            (self.eras.blocks, self.eras.samples) = (0, 0);
            return Ok(0);
        }
        self.conn.pragma_update(None, "synchronous", "FULL").map_err(&doing)?;
        let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate).map_err(&doing)?;
        let mut books = Books::new(self.tally, &self.accounts);
        let (mut ready, mut samples) = (0, 0);
        let last = (provisional.len() as u64) < SETTLE_STEP.unsigned_abs();
        let kept_from = if last { self.first_era_in_use() } else { 0 };
        for row in &provisional {
            ready += self.settle_row(&tx, &mut books.tally, row, moment, now).map_err(&doing)?;
            samples += u64::try_from(row.samples).unwrap_or(0);
        }
        let balance = books.save(&tx).map_err(&doing)?;
        rows::drop_eras(&tx, kept_from).map_err(&doing)?;
        tx.commit().map_err(&doing)?;
        self.keep_balance(balance);
        self.eras.known.retain(|id, _| *id >= kept_from);
        self.eras.gone(provisional.len() as u64, samples);
        Ok(ready)
    }

    /// The first era that a block not yet written is of, or the newest: no row is of an earlier one once all are settled.
    fn first_era_in_use(&self) -> i64 {
        let newest = self.eras.known.last_key_value().map_or(0, |(id, _)| *id);
        self.unwritten().filter_map(|block| block.era).min().unwrap_or(newest)
    }

    /// Rewrites one row. One that cannot be read is left for the sender to find, who parks it.
    fn settle_row(
        &self,
        tx: &Connection,
        tally: &mut Tally,
        row: &BlockRow,
        moment: &Moment,
        now: Instant,
    ) -> rusqlite::Result<usize> {
        let read = self.names.get(&row.device).zip(body::decode(row.first, &row.body));
        let Some((device, (kept, retention))) = read else {
            rows::settle_block(tx, row)?;
            return Ok(1);
        };
        let era = row.era.and_then(|era| self.eras.known.get(&era));
        let shift = era.filter(|era| era.boot_id == moment.boot.boot_id && moment.quality.is_exact());
        let shift = shift.map(|era| moment.base_ms().saturating_sub(era.base));
        let (known, guessed) = times(&kept, shift, moment);
        let mut blocks: Vec<OpenBlock> = Vec::new();
        self.pack(tx, device, row, None, known, &mut blocks, now)?;
        self.pack(tx, device, row, row.era.or(Some(0)), guessed, &mut blocks, now)?;
        for (place, block) in blocks.iter().enumerate() {
            let samples = i64::try_from(block.samples().len()).unwrap_or(i64::MAX);
            let late = moment.wall.since(Timestamp::from_millis(block.last()));
            let from_now = block.era.is_some() && moment.quality.is_exact();
            let kept_for = if from_now { retention.saturating_add(late) } else { retention };
            let mut body = body::encode(block.samples(), kept_for);
            if block.era.is_some() {
                body::mark_guessed(&mut body);
            }
            let new = BlockRow { first: block.first(), samples, body, era: None, ..row.clone() };
            if place == 0 {
                rows::settle_block(tx, &new)?;
            } else {
                rows::insert_block(tx, &BlockRow { id: tally.next_block, previous: None, ..new })?;
                tally.next_block += 1;
                tally.blocks_waiting += 1;
            }
        }
        Ok(blocks.len())
    }

    /// Packs samples under their final times into blocks that the row becomes; `era` is there if the times are a guess.
    #[expect(clippy::too_many_arguments, reason = "one row with all that its blocks must not collide with")]
    fn pack(
        &self,
        tx: &Connection,
        device: &DeviceId,
        row: &BlockRow,
        era: Option<i64>,
        samples: Vec<Timed>,
        blocks: &mut Vec<OpenBlock>,
        now: Instant,
    ) -> rusqlite::Result<()> {
        let usual = usual_distance(&samples);
        let mut last = None;
        for (mut at, sample) in samples {
            at = last.map_or(at, |last: i64| at.max(last.saturating_add(1)));
            let placed = |at| Sample { at, origin: origin_of(sample.device_time(), at), ..sample.clone() };
            match blocks.last_mut().filter(|block| block.takes(&placed(at), usual, era)) {
                Some(block) => block.push(&placed(at)),
                None => {
                    while blocks.iter().any(|block| block.first() == at)
                        || at != row.first && self.is_key_taken_by(tx, device, row.device, at)?
                    {
                        at = at.saturating_add(1);
                    }
                    blocks.push(OpenBlock::new(device.as_str(), false, era, &placed(at), now));
                }
            }
            last = Some(at);
        }
        Ok(())
    }

    /// Whether another block of the device begins at this time, written or not.
    fn is_key_taken_by(&self, tx: &Connection, device: &DeviceId, row: i64, at: i64) -> rusqlite::Result<bool> {
        Ok(self.is_open_key(device, at) || rows::key_taken(tx, row, at)?)
    }
}

/// The samples of a block in the order of their final times: those whose time is known, and those where it stays a
/// guess. `shift` is what the guess was wrong by, if that is known.
fn times(samples: &Samples, shift: Option<i64>, moment: &Moment) -> (Vec<Timed>, Vec<Timed>) {
    let (mut known, mut guessed) = (Vec::new(), Vec::new());
    for sample in samples.iter() {
        let received = shift.map(|shift| sample.at.saturating_add(shift));
        let told = sample.device_time().filter(|time| can_be_right(*time, received, moment));
        match told.or(received) {
            Some(at) => known.push((at, sample)),
            None => guessed.push((sample.at, sample)),
        }
    }
    known.sort_by_key(|(at, _)| *at);
    (known, guessed)
}

/// The distance on average: what was one block shall not fall apart because its device reports seldom.
fn usual_distance(samples: &[Timed]) -> Option<i64> {
    let ((first, _), (last, _)) = samples.first().zip(samples.last())?;
    last.saturating_sub(*first).checked_div(i64::try_from(samples.len()).ok()?.saturating_sub(1))
}

/// Whether a device's own time may be taken: the time is known, and it is not ahead of the receipt, or where that is
/// not known, of now.
fn can_be_right(time: i64, received: Option<i64>, moment: &Moment) -> bool {
    let latest = received.unwrap_or(moment.wall.as_millis());
    let ahead = i64::try_from(DEVICE_AHEAD_MAX.as_millis()).unwrap_or(0);
    moment.quality.is_exact() && time >= DEVICE_TIME_MIN && time <= latest.saturating_add(ahead)
}

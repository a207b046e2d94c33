//! Making staged samples durable, and blocks of what has gathered.

use std::collections::BTreeMap;
use std::time::Instant;

use floorgate_model::DeviceId;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::books::Books;
use super::open_block::OpenBlock;
use super::rows::{self, BlockRow, DeviceRow, Tally};
use super::segment::{Packer, Tail};
use super::track::Track;
use super::{TelemetryDb, body, io};
use crate::shadow::store::StoreError;

/// Pages that the journal keeps for the next round; more come from a burst and are given back.
const PAGES_KEPT: i64 = 256;

/// Which blocks a commit writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    /// None: the samples go to the journal.
    Nothing,
    /// Those that are closed; what is open stays open.
    Closed,
    /// All.
    All,
}

impl TelemetryDb {
    /// Writes everything staged and every block that is due (age, size, gap), in one transaction. On an error nothing
    /// of it is durable and everything staged is forgotten (its senders will send it again). Answers how many blocks
    /// were closed.
    pub(crate) fn commit(&mut self, now: Instant) -> Result<usize, StoreError> {
        let committed = match self.unreadable.take() {
            Some(cause) => Err(cause),
            None => self.write(self.due(now)),
        };
        if committed.is_err() {
            self.forget_staged();
        }
        committed
    }

    /// Closed blocks wait until they hold as many samples as stay open and are written again, so that on average no
    /// sample is written to the journal more than twice.
    fn due(&self, now: Instant) -> Writes {
        let samples = |block: &OpenBlock| block.samples().len();
        let closed: usize = self.closed.iter().map(|closed| samples(&closed.block)).sum();
        let open: usize = self.tracks.values().flat_map(Track::open_blocks).map(samples).sum();
        if self.has_due_blocks(now) {
            Writes::All
        } else if closed > 0 && closed >= open {
            Writes::Closed
        } else {
            Writes::Nothing
        }
    }

    fn write(&mut self, writes: Writes) -> Result<usize, StoreError> {
        if self.staged.count() == 0 && writes == Writes::Nothing {
            self.forget_staged();
            return Ok(0);
        }
        let doing = io("write telemetry");
        self.conn.pragma_update(None, "synchronous", "FULL").map_err(&doing)?;
        let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate).map_err(&doing)?;
        let (mut books, mut tail, mut heads) = (Books::new(self.tally, &self.accounts), self.tail.clone(), Vec::new());
        let (before, mut balance) = (self.tally.next_block, None);
        for device in self.before.keys() {
            if let Some(track) = self.tracks.get(device).filter(|track| !track.stored) {
                rows::save_device(&tx, &device_row(device, track)).map_err(&doing)?;
            }
        }
        self.eras.save(&tx).map_err(&doing)?;
        if writes == Writes::Nothing {
            append(&tx, &mut tail, &books.tally, self.staged.segments()).map_err(&doing)?;
        } else {
            heads = self.write_blocks(&tx, writes, &mut books).map_err(&doing)?;
            tail = Tail::default();
            if writes == Writes::Closed {
                append(&tx, &mut tail, &books.tally, self.still_open().segments()).map_err(&doing)?;
            }
            rows::drop_pages_from(&tx, PAGES_KEPT.max(tail.page + 1)).map_err(&doing)?;
            balance = Some(books.save(&tx).map_err(&doing)?);
        }
        fail_point!(TelemetryBeforeCommit);
        tx.commit().map_err(&doing)?;
        fail_point!(TelemetryAfterCommit);
        self.tail = tail;
        if let Some(balance) = balance {
            self.keep_balance(balance);
        }
        let written = usize::try_from(self.tally.next_block - before).unwrap_or(0);
        self.eras.saved();
        self.count_provisional(writes);
        self.keep_committed(writes, heads);
        Ok(written)
    }

    /// Writes closed blocks, and with [`Writes::All`] the open ones. Answers the devices with their new chain heads.
    fn write_blocks(
        &self,
        tx: &Connection,
        writes: Writes,
        books: &mut Books<'_>,
    ) -> rusqlite::Result<Vec<(DeviceId, DeviceRow)>> {
        let closed = self.closed.iter().map(|closed| (&closed.device, &closed.block));
        let open = self.tracks.iter().filter(|_| writes == Writes::All);
        let open = open.flat_map(|(device, track)| track.open_blocks().map(move |block| (device, block)));
        let mut heads: BTreeMap<DeviceId, DeviceRow> = BTreeMap::new();
        for (device, block) in closed.chain(open) {
            let Some(track) = self.tracks.get(device) else { continue };
            let head = heads.entry(device.clone()).or_insert_with(|| device_row(device, track));
            let samples = i64::try_from(block.samples().len()).unwrap_or(i64::MAX);
            let row = BlockRow {
                id: books.next_id(),
                device: track.row,
                first: block.first(),
                previous: head.last_block,
                samples,
                body: body::encode(block.samples(), self.history_retention),
                era: block.era,
            };
            rows::insert_block(tx, &row)?;
            fail_point!(InBlockClose);
            head.last_block = Some(row.id);
            if !block.late {
                head.last_live = Some(row.id);
            }
            books.tally.blocks_waiting += 1;
            books.tally.samples_waiting += samples;
            books.account(track.row).close(samples, row.first);
        }
        heads.values().try_for_each(|head| rows::save_device(tx, head))?;
        books.tally.epoch += 1;
        Ok(heads.into_iter().collect())
    }

    /// What is in no block after the closed ones are written.
    fn still_open(&self) -> Packer {
        let mut packer = Packer::default();
        for track in self.tracks.values() {
            for block in track.open_blocks() {
                for (place, sample) in block.samples().iter().enumerate() {
                    packer.push(track.row, (block.late, block.era), place == 0, &sample);
                }
            }
        }
        packer
    }

    /// The provisional ones among the blocks that were just written.
    fn count_provisional(&mut self, writes: Writes) {
        let closed = self.closed.iter().filter(|_| writes != Writes::Nothing).map(|closed| &closed.block);
        let open = self.tracks.values().filter(|_| writes == Writes::All).flat_map(Track::open_blocks);
        let written = closed.chain(open).filter(|block| block.era.is_some());
        for samples in written.map(|block| block.samples().len() as u64).collect::<Vec<_>>() {
            self.eras.blocks += 1;
            self.eras.samples += samples;
        }
    }

    /// The commit holds: memory follows.
    fn keep_committed(&mut self, writes: Writes, heads: Vec<(DeviceId, DeviceRow)>) {
        for device in std::mem::take(&mut self.before).into_keys() {
            if let Some(track) = self.tracks.get_mut(&device) {
                track.stored = true;
            }
        }
        for (device, head) in heads {
            if let Some(track) = self.tracks.get_mut(&device) {
                (track.last_block, track.last_live) = (head.last_block, head.last_live);
            }
        }
        if writes != Writes::Nothing {
            self.closed.clear();
        }
        if writes == Writes::All {
            self.tracks.values_mut().for_each(Track::drop_open_blocks);
        }
        self.closed_before = self.closed.len();
        self.clear_staged();
    }

    fn clear_staged(&mut self) {
        self.staged.clear();
        self.staged_of.clear();
    }

    /// The commit does not hold: memory is as it was before the first staged sample.
    fn forget_staged(&mut self) {
        self.tracks.append(&mut self.before);
        self.closed.truncate(self.closed_before);
        self.clear_staged();
    }
}

fn device_row(device: &DeviceId, track: &Track) -> DeviceRow {
    DeviceRow {
        row: track.row,
        name: device.as_str().to_owned(),
        newest: track.newest,
        newest_asked: track.newest_asked,
        last_block: track.last_block,
        last_live: track.last_live,
    }
}

fn append(tx: &Connection, tail: &mut Tail, tally: &Tally, segments: &[Vec<u8>]) -> rusqlite::Result<()> {
    tail.extend(segments).iter().try_for_each(|(page, body)| rows::save_page(tx, *page, tally.epoch, body))
}

//! `telemetry.db`: samples on their way to the history table.
//!
//! # Guarantees
//!
//! * A sample is on disk if and only if the [`TelemetryDb::commit`] after its [`TelemetryDb::stage`] answered `Ok`; then
//!   it is in exactly one block, whatever happens in between.
//! * A commit that fails leaves nothing behind, neither in the file nor in memory: not the sample, not the memory of
//!   having seen it, not its time. Its sender sends it again and it is taken as if for the first time.
//! * A closed block never changes, unless its times are a guess: then it is not sent either until it has its right ones,
//!   once and for good ([`restamp`]). Its key (device, time of its first sample) is its own among all blocks and gap
//!   records kept here.
//! * For every device, at every instant, `accepted = delivered + stored + lost` ([`books`]): accepted are the samples
//!   that were committed and not folded, and those declared lost without having been stored ([`declare`]); delivered
//!   those whose block was confirmed; stored those in the journal, in blocks that wait or are parked; lost those given
//!   up, by reason. The books change in the transaction that moves the samples. A retained report is no sample: it is
//!   shown, never accepted.
//! * Every loss is a gap record ([`gap`]) that goes the way of a block to the history table. Their number is bounded:
//!   a device and reason has one an hour, and when the quota asks for it one in all.
//! * What may be in the table, because it was handed out ([`offer`]), is never given up, changed or overwritten by a
//!   gap record, so nothing is both delivered and declared lost, across kills and power cuts.
//! * A report equal to one of the last 256 of its device is folded ([`dedup`]); after a restart, as far as their
//!   blocks are still kept: sent ones are shed beyond 256 a device, and sooner if the quota asks for it.
//! * At 20 messages a second of 50 devices and a commit a second, the block device gets at most 600 bytes a message;
//!   72 hours of that wait in at most 100 MB. Tests hold both figures.
//!
//! # Layout
//!
//! * `segment`: the journal. Every commit packs its samples into one page or few ([`segment`]), overwritten in place.
//! * `block`: one row a closed block, waiting or sent ([`body`]); `parked`: those that the table refused.
//! * `device`: one row a device: its newest time, and where the chain of its blocks begins. Blocks have no index by
//!   device, because closing the blocks of 50 devices would change 50 of its pages; the chain costs one page.
//! * `ledger`: one row a device, its account. `gap`: gap records, waiting, sent or refused. `offered`: the numbers of
//!   blocks and gap records that were handed out.
//! * `tally`: counts that would be too dear to take.
//!
//! A sample is first in the journal and in its device's open block in memory. A block is closed 60 s after it was
//! opened, when it is full ([`open_block`]), or on a gap. When the oldest open block is 60 s old, all are closed
//! together; full ones go earlier, as soon as they hold as many samples as stay open. The transaction that writes
//! blocks also empties the journal, and writes what stays open into it anew; so the journal always holds exactly the
//! samples that are in no block, and opening replays it.
//!
//! # What it does not do
//!
//! It owns no thread and no clock; the writer calls it, one call at a time. It gives nothing up by itself: the writer
//! asks for room ([`give_up`] says in which order it is made), and stops taking ([`StoreError::Full`]) when there is
//! nothing left to give.
//!
//! It knows the keys of blocks as long as it keeps their rows. A late sample that names, to the millisecond, the first
//! time of a block that was sent *and* shed begins a block under the same key, and its item replaces the older one.

mod body;
mod books;
mod bytes;
mod commit;
mod declare;
mod dedup;
mod gap;
mod give_up;
mod offer;
mod open_block;
mod replay;
pub(crate) mod restamp;
mod room;
mod rows;
mod salvage;
mod samples;
pub(super) mod schema;
mod segment;
mod stage;
mod summary;
mod track;
mod upload;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Timestamp};
use rusqlite::Connection;

use self::books::{Account, count};
use self::offer::Offered;
use self::open_block::OpenBlock;
use self::restamp::Eras;
use self::rows::Tally;
use self::segment::{Packer, Tail};
use self::track::Track;
use super::rescue::Rescue;
use super::store::{StoreError, Taken};
use super::{files, log};

pub(crate) use self::salvage::How;
pub(in crate::shadow) use self::salvage::{NO_ROOM_MAX, RESCUING};

/// How long a block stays open, by the monotonic clock.
pub(crate) const BLOCK_AGE_MAX: Duration = Duration::from_secs(60);
/// Blocks kept aside at most; beyond, the oldest is dropped and counted.
pub(crate) const PARKED_MAX: i64 = 1_000;

/// What the writer learns from staging a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Staged {
    /// New or folded.
    pub(crate) taken: Taken,
    /// The time under which it is kept: the device's if it can be right, else the gateway's; unique per device.
    pub(crate) at: Timestamp,
    /// Nothing newer is known of this device.
    pub(crate) is_newest: bool,
}

/// Figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TelemetryStats {
    pub(crate) samples_open: u64,
    pub(crate) blocks_waiting: u64,
    pub(crate) samples_waiting: u64,
    /// Samples among them, and among the open ones, whose time is a guess still.
    pub(crate) samples_provisional: u64,
    pub(crate) blocks_parked: u64,
    pub(crate) gaps_waiting: u64,
    /// Time of the oldest sample that the table does not have.
    pub(crate) oldest: Option<Timestamp>,
    pub(crate) bytes_on_disk: u64,
}

/// A block that takes no more samples and is not yet written as one.
#[derive(Debug)]
struct ClosedBlock {
    device: DeviceId,
    block: OpenBlock,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct TelemetryDb {
    conn: Connection,
    path: PathBuf,
    history_retention: Duration,
    /// What is known of each device, with its open blocks.
    tracks: BTreeMap<DeviceId, Track>,
    /// Row → device.
    names: BTreeMap<i64, DeviceId>,
    /// Closed in memory, still in the journal.
    closed: Vec<ClosedBlock>,
    tally: Tally,
    /// The devices' accounts, by their rows.
    accounts: BTreeMap<i64, Account>,
    /// What was handed out to be sent.
    offered: Offered,
    /// Where the journal ends.
    tail: Tail,
    /// Samples staged for the next commit.
    staged: Packer,
    /// How many of them are of which device, by its row.
    staged_of: BTreeMap<i64, u64>,
    /// The devices that staging has touched, as they were before.
    before: BTreeMap<DeviceId, Track>,
    /// How many of `closed` the last commit knows.
    closed_before: usize,
    /// Staging could not read something; the next commit fails with it.
    unreadable: Option<StoreError>,
    /// No sent block has a lower id.
    sent_from: i64,
    /// Guesses at the time, and the blocks that wait for the right one.
    eras: Eras,
}

impl TelemetryDb {
    /// Opens or makes the file, migrates, replays. Also answers the newest sample of every device found in it.
    /// Answers [`StoreError::Damaged`] if it is there but cannot be read.
    #[cfg(test)]
    pub(crate) fn open(
        path: &Path,
        history_retention: Duration,
        now: Instant,
    ) -> Result<(Self, replay::Newest), StoreError> {
        replay::open(path, history_retention, now)
    }

    /// As [`Self::open`], but what can be read of a damaged file is put in its place, and the file is moved aside under a
    /// name with the date `wall`. Also answers what was damaged.
    pub(crate) fn open_or_rescue(
        path: &Path,
        history_retention: Duration,
        now: Instant,
        wall: Timestamp,
        how: How,
    ) -> Result<(Self, replay::Newest, Option<Rescue>), StoreError> {
        salvage::open(path, history_retention, now, wall, how)
    }

    /// Tells the newest time known of a device from elsewhere (`state.db`), so that time never moves back.
    pub(crate) fn known_newest(&mut self, device: &DeviceId, at: Timestamp) {
        self.track_mut(device).raise_newest(at.as_millis());
        if let Some(track) = self.before.get_mut(device) {
            track.raise_newest(at.as_millis());
        }
    }

    /// How many samples are staged.
    pub(crate) fn staged(&self) -> usize {
        self.staged.count()
    }

    /// Whether some open block is due although nothing is staged.
    pub(crate) fn has_due_blocks(&self, now: Instant) -> bool {
        self.unwritten().any(|block| now.saturating_duration_since(block.opened) >= BLOCK_AGE_MAX)
    }

    /// Figures, as if the blocks in `confirmed` were marked as sent; cheap enough to ask for after every commit.
    pub(crate) fn stats(&self, confirmed: &BTreeSet<i64>) -> Result<TelemetryStats, StoreError> {
        let doing = io("find the oldest block");
        let Tally { blocks_waiting: mut blocks, samples_waiting: mut samples, gaps_waiting: mut gaps, .. } = self.tally;
        for id in confirmed {
            if let Some(confirmed) = rows::if_waiting(&self.conn, *id).map_err(&doing)? {
                blocks -= 1;
                samples -= confirmed.samples;
            } else if gap::is_waiting(&self.conn, *id).map_err(&doing)? {
                gaps -= 1;
            }
        }
        let waiting = if blocks > 0 { rows::oldest_waiting(&self.conn, confirmed).map_err(&doing)? } else { None };
        let provisional =
            if self.is_provisional() { rows::oldest_provisional(&self.conn).map_err(&doing)? } else { None };
        let open = self.unwritten().map(OpenBlock::first).min();
        let guessed = self.unwritten().filter(|block| block.era.is_some()).map(|block| block.samples().len() as u64);
        Ok(TelemetryStats {
            samples_open: self.unwritten().map(|block| block.samples().len() as u64).sum(),
            blocks_waiting: count(blocks),
            samples_waiting: count(samples),
            samples_provisional: self.eras.samples + guessed.sum::<u64>(),
            blocks_parked: count(self.tally.blocks_parked),
            gaps_waiting: count(gaps),
            oldest: waiting.into_iter().chain(provisional).chain(open).min().map(Timestamp::from_millis),
            bytes_on_disk: self.bytes_on_disk(),
        })
    }

    /// Commits, empties the log and closes.
    pub(crate) fn close(mut self, now: Instant) -> Result<(), StoreError> {
        let done = self.commit(now).and_then(|_| self.empty_log());
        if let Err(cause) = done {
            self.abandon();
            return Err(cause);
        }
        self.conn.close().map_err(|(_, cause)| io("close telemetry.db")(cause))
    }

    /// Closes after the disk failed, leaving the log as it is ([`log::write_again`]).
    pub(crate) fn abandon(self) {
        log::abandon(self.conn);
    }

    /// Writes something small, flushes it and copies the log: all that a disk can fail at.
    pub(crate) fn prove(mut self) -> Result<Self, StoreError> {
        let proved = self.change(books::Flush::Now, "write to telemetry.db again", |_, _| Ok(()));
        let proved = proved.and_then(|()| self.empty_log());
        match proved {
            Ok(()) => Ok(self),
            Err(cause) => {
                self.abandon();
                Err(cause)
            }
        }
    }

    /// The file and its log.
    fn bytes_on_disk(&self) -> u64 {
        files::bytes_with_log(&self.path)
    }

    /// Every block that is not yet a row: closed or open.
    fn unwritten(&self) -> impl Iterator<Item = &OpenBlock> {
        let closed = self.closed.iter().map(|closed| &closed.block);
        closed.chain(self.tracks.values().flat_map(Track::open_blocks))
    }

    fn track_mut(&mut self, device: &DeviceId) -> &mut Track {
        let next_row = self.names.last_key_value().map_or(1, |(row, _)| row + 1);
        self.tracks.entry(device.clone()).or_insert_with(|| {
            self.names.insert(next_row, device.clone());
            Track::new(next_row)
        })
    }
}

/// What SQLite says, as an error of the store.
fn io(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |cause| super::words::io_of("telemetry.db", doing, &cause)
}

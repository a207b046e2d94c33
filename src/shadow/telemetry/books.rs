//! The accounts of the devices, and the one way in which rows, tally and accounts change: together.
//!
//! An account counts the samples that were ever put into a block, and those declared lost without having been stored.
//! Samples of the journal count themselves: the commit that makes them durable puts them there, and the one that puts
//! them into blocks takes them out of there. So a commit of samples alone writes no account, and
//! [`TelemetryDb::ledger`] adds what is in the journal to both sides, `accepted` and `stored`.

use std::collections::{BTreeMap, BTreeSet};

use floorgate_model::{DeviceId, DeviceLedger, LossReason, LostCounts, Timestamp};
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::open_block::OpenBlock;
use super::rows::{self, Tally};
use super::track::Track;
use super::{TelemetryDb, io};
use crate::shadow::ledgers::KnownLedger;
use crate::shadow::store::StoreError;

/// One device's account, without the samples of the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Account {
    pub(super) ledger: DeviceLedger,
    /// About when the oldest sample stored in a block was taken, epoch milliseconds: never later than it was, unless
    /// it came late.
    pub(super) since: Option<i64>,
}

impl Account {
    /// Samples went into a block that begins at `first`.
    pub(super) fn close(&mut self, samples: i64, first: i64) {
        let samples = count(samples);
        self.ledger.accepted = self.ledger.accepted.saturating_add(samples);
        self.ledger.stored = self.ledger.stored.saturating_add(samples);
        self.since = Some(self.since.map_or(first, |since| since.min(first)));
    }

    /// The table has a block that begins at `first`.
    pub(super) fn deliver(&mut self, samples: i64, first: i64) {
        let samples = self.take_out(samples, first);
        self.ledger.delivered = self.ledger.delivered.saturating_add(samples);
    }

    /// A stored block that begins at `first` is given up.
    pub(super) fn lose(&mut self, samples: i64, first: i64, reason: LossReason) {
        let samples = self.take_out(samples, first);
        self.ledger.lost.add(reason, samples);
    }

    /// Readings were taken from their sender and never stored.
    pub(super) fn declare(&mut self, samples: u64, reason: LossReason) {
        self.ledger.accepted = self.ledger.accepted.saturating_add(samples);
        self.ledger.lost.add(reason, samples);
    }

    /// The account as it was known elsewhere, with `missing` readings lost to damage: as much was delivered and lost
    /// as either knows, and what is stored is what is here.
    pub(super) fn restore(&mut self, known: &DeviceLedger, missing: u64) {
        let (delivered, mut lost) = at_least(&self.ledger, known);
        lost.add(LossReason::Damaged, missing);
        let stored = self.ledger.stored;
        let accepted = delivered.saturating_add(stored).saturating_add(lost.total());
        self.ledger = DeviceLedger { accepted, delivered, stored, lost };
    }

    fn take_out(&mut self, samples: i64, first: i64) -> u64 {
        let samples = count(samples).min(self.ledger.stored);
        self.ledger.stored -= samples;
        // Blocks go oldest first.
        self.since = self.since.filter(|_| self.ledger.stored > 0).map(|since| since.max(first));
        samples
    }
}

/// How soon a change must be on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flush {
    /// Before the answer.
    Now,
    /// With the next commit of samples: a power cut that undoes it only lets it happen again.
    Later,
}

/// Tally and accounts while a transaction changes them.
pub(super) struct Books<'a> {
    pub(super) tally: Tally,
    accounts: &'a BTreeMap<i64, Account>,
    changed: BTreeMap<i64, Account>,
}

impl<'a> Books<'a> {
    pub(super) fn new(tally: Tally, accounts: &'a BTreeMap<i64, Account>) -> Self {
        Self { tally, accounts, changed: BTreeMap::new() }
    }

    /// The account of the device in this row, to be changed.
    pub(super) fn account(&mut self, device: i64) -> &mut Account {
        let accounts = self.accounts;
        self.changed.entry(device).or_insert_with(|| accounts.get(&device).copied().unwrap_or_default())
    }

    /// A number for a block or a gap record; none is ever given twice.
    pub(super) fn next_id(&mut self) -> i64 {
        let id = self.tally.next_block;
        self.tally.next_block += 1;
        id
    }

    /// Writes what changed; the caller commits.
    pub(super) fn save(self, conn: &Connection) -> rusqlite::Result<Balance> {
        rows::save_tally(conn, &self.tally)?;
        for (device, account) in &self.changed {
            rows::save_account(conn, *device, account)?;
        }
        Ok(Balance { tally: self.tally, changed: self.changed })
    }
}

/// What is true once the transaction is committed.
pub(super) struct Balance {
    tally: Tally,
    changed: BTreeMap<i64, Account>,
}

impl TelemetryDb {
    /// One transaction that changes rows, and the books with them.
    pub(super) fn change<T>(
        &mut self,
        flush: Flush,
        doing: &'static str,
        change: impl FnOnce(&Transaction<'_>, &mut Books<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let attempt = || {
            let level = if flush == Flush::Now { "FULL" } else { "NORMAL" };
            self.conn.pragma_update(None, "synchronous", level)?;
            let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate)?;
            let mut books = Books::new(self.tally, &self.accounts);
            let outcome = change(&tx, &mut books)?;
            let balance = books.save(&tx)?;
            tx.commit()?;
            Ok((outcome, balance))
        };
        let (outcome, balance) = attempt().map_err(io(doing))?;
        self.keep_balance(balance);
        Ok(outcome)
    }

    /// The transaction holds: memory follows.
    pub(super) fn keep_balance(&mut self, balance: Balance) {
        self.tally = balance.tally;
        self.accounts.extend(balance.changed);
    }

    /// Where the committed readings of a device are, as if the blocks in `confirmed` were marked as sent.
    pub(crate) fn ledger(&self, device: &DeviceId, confirmed: &BTreeSet<i64>) -> Result<DeviceLedger, StoreError> {
        let Some(track) = self.tracks.get(device) else { return Ok(DeviceLedger::default()) };
        let mut account = self.committed(device, track);
        for delivered in self.confirmed_blocks(confirmed)?.iter().filter(|block| block.device == track.row) {
            account.deliver(delivered.samples, delivered.first);
        }
        Ok(account.ledger)
    }

    /// [`Self::ledger`] of every device.
    pub(crate) fn ledgers(&self, confirmed: &BTreeSet<i64>) -> Result<BTreeMap<DeviceId, DeviceLedger>, StoreError> {
        let delivered = self.confirmed_blocks(confirmed)?;
        let ledger = |(device, track): (&DeviceId, &Track)| {
            let mut account = self.committed(device, track);
            for block in delivered.iter().filter(|block| block.device == track.row) {
                account.deliver(block.samples, block.first);
            }
            (device.clone(), account.ledger)
        };
        Ok(self.tracks.iter().map(ledger).collect())
    }

    /// The accounts as they shall be remembered elsewhere, should this file be lost.
    pub(crate) fn known_ledgers(&self) -> BTreeMap<DeviceId, KnownLedger> {
        let known = |(device, track): (&DeviceId, &Track)| {
            let Account { ledger, since } = self.committed(device, track);
            let open = self.unwritten_of(device, track).map(OpenBlock::first);
            let oldest = open.chain(since).min().map(Timestamp::from_millis);
            (device.clone(), KnownLedger { ledger, oldest, newest: track.newest.map(Timestamp::from_millis) })
        };
        self.tracks.iter().map(known).collect()
    }

    /// How many readings the quota has cost since the file was made.
    pub(crate) fn given_up(&self) -> u64 {
        let of = |account: &Account| {
            account.ledger.lost.of(LossReason::Thinned).saturating_add(account.ledger.lost.of(LossReason::Quota))
        };
        self.accounts.values().map(of).fold(0, u64::saturating_add)
    }

    /// The account with the samples of the journal, but not those that are only staged.
    fn committed(&self, device: &DeviceId, track: &Track) -> Account {
        let mut account = self.accounts.get(&track.row).copied().unwrap_or_default();
        let open: usize = self.unwritten_of(device, track).map(|block| block.samples().len()).sum();
        let staged = self.staged_of.get(&track.row).copied().unwrap_or(0);
        let in_journal = (open as u64).saturating_sub(staged);
        account.ledger.accepted = account.ledger.accepted.saturating_add(in_journal);
        account.ledger.stored = account.ledger.stored.saturating_add(in_journal);
        account
    }

    fn unwritten_of<'a>(&'a self, device: &'a DeviceId, track: &'a Track) -> impl Iterator<Item = &'a OpenBlock> {
        let closed = self.closed.iter().filter(move |closed| closed.device == *device).map(|closed| &closed.block);
        closed.chain(track.open_blocks())
    }

    fn confirmed_blocks(&self, confirmed: &BTreeSet<i64>) -> Result<Vec<rows::Waiting>, StoreError> {
        let waiting = |id: &i64| rows::if_waiting(&self.conn, *id).transpose();
        confirmed.iter().filter_map(waiting).collect::<rusqlite::Result<_>>().map_err(io("look up confirmed blocks"))
    }
}

/// What was delivered and lost at least, as two ledgers of one device know it.
pub(super) fn at_least(one: &DeviceLedger, other: &DeviceLedger) -> (u64, LostCounts) {
    let mut lost = LostCounts::default();
    for reason in LossReason::ALL {
        lost.add(reason, one.lost.of(reason).max(other.lost.of(reason)));
    }
    (one.delivered.max(other.delivered), lost)
}

/// A count as SQLite has it.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Counts everything anew from the rows: for a file that was put together from what could be saved of another. What
/// was delivered and shed, and what was lost, is not in the rows; [`TelemetryDb::reconcile`] brings it back from the
/// copy in `state.db`. Every block that waits counts as handed out, because nobody knows any more whether it was.
pub(crate) fn rebuild(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch(
        "DELETE FROM ledger;
         INSERT INTO ledger
             SELECT device, sum(samples), sum(samples * (sent = 1)), sum(samples * (sent <> 1)), min(first), '{}'
             FROM (SELECT device, samples, sent, first FROM block
                   UNION ALL SELECT device, samples, 0, first FROM parked)
             GROUP BY device;
         INSERT OR IGNORE INTO offered
             SELECT id FROM block WHERE sent = 0 UNION ALL SELECT id FROM gap WHERE sent = 0;
         UPDATE tally SET
             next_block = 1 + max(next_block - 1, (SELECT coalesce(max(id), 0) FROM block),
                 (SELECT coalesce(max(id), 0) FROM parked), (SELECT coalesce(max(id), 0) FROM gap)),
             blocks_waiting = (SELECT count(*) FROM block WHERE sent <> 1),
             samples_waiting = (SELECT coalesce(sum(samples), 0) FROM block WHERE sent <> 1),
             blocks_sent = (SELECT count(*) FROM block WHERE sent = 1),
             blocks_parked = (SELECT count(*) FROM parked),
             gaps_waiting = (SELECT count(*) FROM gap WHERE sent = 0),
             gaps_sent = (SELECT count(*) FROM gap WHERE sent = 1);",
    )
}

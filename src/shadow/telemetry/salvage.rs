//! Opening `telemetry.db`, whatever became of it.
//!
//! Header, schema, accounts, devices and the journal are read at every open; every page and index up to
//! [`CHECKED_BYTES_MAX`], so that the start of a full file stays quick. What lies deeper in a larger one is met when it
//! is read, and the file is then salvaged as well.
//!
//! A damaged file is read into a new one as far as SQLite can (`rescue/salvage.rs`), the new one takes its place, and
//! the damaged one is moved aside. The books are counted anew; what the damaged file's own books say of readings that
//! are not there is declared lost. A crash on the way starts over at the next start, but for one between the two
//! renames, which is finished then.
//!
//! That takes as much space as the damaged file has. Where it is not free, older damaged copies go first; if that is not
//! enough, blocks that the table has already are left behind. If even the rest finds no space, readings are refused, as on
//! any full disk, until there is some; after [`NO_ROOM_MAX`] the file is begun anew from its books and its journal, the
//! blocks that waited are declared lost, and the damaged file keeps it under its dated name. The store starts in any case.
//!
//! Large files take minutes on a slow card. Every [`FLUSHED_ROWS`] rows are committed and flushed, so that no single step is
//! long, and each counts for the watchdog (`rescue/progress.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Timestamp};
use rusqlite::Connection;

use super::books::{self, Account};
use super::replay::Newest;
use super::{TelemetryDb, replay, rows, schema};
use crate::shadow::fault::Fault;
use crate::shadow::ledgers::KnownLedger;
use crate::shadow::rescue::salvage::{self, Copied};
use crate::shadow::rescue::{Rescue, aside, backup, progress};
use crate::shadow::store::StoreError;

/// Up to this size of file and log everything is checked at open, bytes.
pub(super) const CHECKED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long a rescue that finds no space is waited for, readings being refused; then what waited is declared lost.
pub(in crate::shadow) const NO_ROOM_MAX: Duration = Duration::from_secs(600);
/// What a rescue that found no space was doing, in its error.
pub(in crate::shadow) const RESCUING: &str = "find space to rebuild telemetry.db";
/// Rows that are committed and flushed together on the way into the new file: blocks of 1 KB, 4 MiB.
const FLUSHED_ROWS: u64 = 4_000;
/// Space beyond the damaged file's size that a whole rebuilding wants, bytes: what its indexes may grow.
const SPACE_BESIDE: u64 = 1024 * 1024;
/// Numbers of blocks that are lost are never given again: they go on so far above the highest that is known.
const SEQUENCE_JUMP: i64 = 1_000_000;

/// How a file is opened that may be damaged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct How {
    /// Damage was met in it: it is rebuilt whatever its check says.
    pub(crate) suspect: bool,
    /// There was no space for [`NO_ROOM_MAX`]: what waits in it is given up.
    pub(crate) books_alone: bool,
    /// Free space, bytes, in the place of what the disk says.
    #[cfg(test)]
    pub(crate) free: Option<u64>,
}

impl How {
    /// While it runs.
    pub(crate) fn again(suspect: bool, books_alone: bool) -> Self {
        Self {
            suspect,
            books_alone,
            #[cfg(test)]
            free: None,
        }
    }

    fn free(self, path: &Path) -> Option<u64> {
        #[cfg(test)]
        if self.free.is_some() {
            return self.free;
        }
        path.parent().and_then(Fault::free_space)
    }
}

/// What of a damaged file goes into the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Whole,
    /// Without blocks that the table has.
    Waiting,
    /// Devices, accounts, gaps and the journal of open blocks, all of them small.
    Books,
}

impl Extent {
    /// What there is space for; older copies of damaged files go for it.
    fn that_fits(path: &Path, how: How) -> Self {
        if how.books_alone {
            return Self::Books;
        }
        let wanted = crate::shadow::files::bytes_with_log(path) + SPACE_BESIDE;
        let mut short = how.free(path).map_or(0, |free| wanted.saturating_sub(free));
        for copy in aside::copies(path) {
            if short == 0 {
                break;
            }
            let bytes = crate::shadow::files::bytes_with_log(&copy);
            tracing::warn!(copy = %copy.display(), bytes, "an older damaged copy is removed: the rebuilding needs its space");
            if aside::remove(&copy).is_ok() {
                short = short.saturating_sub(bytes);
            }
        }
        if short == 0 { Self::Whole } else { Self::Waiting }
    }

    /// Which rows of a table; `None`: none at all.
    fn rows(self, table: &str) -> Option<&'static str> {
        match (self, table) {
            (Self::Books, "block" | "parked" | "offered") => None,
            (Self::Waiting, "block") => Some("sent <> 1"),
            _ => Some("true"),
        }
    }
}

/// Opens the file; if it is damaged, puts in its place what can be read of it.
pub(super) fn open(
    path: &Path,
    history_retention: Duration,
    now: Instant,
    wall: Timestamp,
    how: How,
) -> Result<(TelemetryDb, Newest, Option<Rescue>), StoreError> {
    let cannot = |cause: std::io::Error| StoreError::Open {
        path: path.display().to_string(),
        cause: cause.to_string(),
        hint: "check that floorgate may write to its folder",
    };
    let damaged = |cause: &str| Err(StoreError::Damaged { path: path.display().to_string(), cause: cause.to_owned() });
    aside::finish(path, wall).map_err(cannot)?;
    let unusable = aside::mend(path, wall).map_err(cannot)?;
    let lasting = how.suspect || unusable.is_some();
    let attempt = match unusable {
        Some(cause) => damaged(cause),
        // Damage was met in it: what its check says does not matter.
        None if how.suspect => damaged("it was met while it was read"),
        None => replay::open(path, history_retention, now),
    };
    let cause = match attempt {
        Ok((db, newest)) => return Ok((db, newest, None)),
        Err(StoreError::Damaged { cause, .. }) => cause,
        Err(other) => return Err(other),
    };
    let new = aside::beside(path, ".new");
    let extent = Extent::that_fits(path, how);
    let gathered = gather(path, &new, lasting, extent).map_err(|cause| {
        // What is half done takes space until the next attempt.
        aside::forget_new(path);
        match schema::fault(&new, &cause) {
            StoreError::Disk { cause, fault: Fault::DiskFull, .. } => {
                StoreError::Disk { doing: RESCUING, cause, fault: Fault::DiskFull }
            }
            other => other,
        }
    })?;
    let copy = aside::free_copy_name(path, wall);
    aside::replace(path, &new, &copy).map_err(cannot)?;
    let (mut db, newest) = replay::open(path, history_retention, now)?;
    let known = db.with_journal(&gathered.accounts)?;
    let lost = db.reconcile(&known)?;
    let declared = lost.iter().map(|loss| loss.count).sum();
    let rescue = gathered.told(path, cause, &copy, declared, wall, extent);
    rescue.log();
    Ok((db, newest, Some(rescue)))
}

/// Whether every page and index of a small file is as it should be.
pub(super) fn check(conn: &Connection, path: &Path) -> Result<(), StoreError> {
    if crate::shadow::files::bytes_with_log(path) > CHECKED_BYTES_MAX {
        return Ok(());
    }
    match backup::check(conn, None).map_err(|cause| schema::fault(path, &cause))? {
        None => Ok(()),
        Some(cause) => Err(StoreError::Damaged { path: path.display().to_string(), cause }),
    }
}

/// What went into the new file.
struct Gathered {
    copied: BTreeMap<String, Copied>,
    /// The damaged file's own books.
    accounts: BTreeMap<i64, Account>,
    /// Samples in blocks of devices that nothing names any more.
    nameless: i64,
}

fn gather(path: &Path, new: &Path, lasting: bool, extent: Extent) -> rusqlite::Result<Gathered> {
    let mut target = schema::make(new)?;
    progress::watch(&mut target)?;
    target.execute_batch("BEGIN")?;
    salvage::begin(&target)?;
    let mut copied = BTreeMap::new();
    if let Some(source) = salvage::open_source(path, lasting)? {
        let mut tables = salvage::tables(&target)?;
        // Names before devices, for which a trigger notes them again.
        tables.sort_by_key(|table| table.name != "name");
        let mut written = 0_u64;
        let mut between = || {
            written += 1;
            if written.is_multiple_of(FLUSHED_ROWS) { flush(&target, new) } else { Ok(()) }
        };
        for table in tables {
            let Some(rows) = extent.rows(&table.name) else { continue };
            let done = salvage::copy_where(&source, &target, &table, rows, &mut between)?;
            copied.insert(table.name, done);
        }
    }
    salvage::end(&target)?;
    target.execute_batch("INSERT OR IGNORE INTO device (row, name) SELECT row, name FROM name")?;
    let nameless = target.query_row(
        "SELECT coalesce(sum(samples), 0) FROM block WHERE device NOT IN (SELECT row FROM device) AND sent <> 1",
        [],
        |row| row.get(0),
    )?;
    for table in ["block", "parked", "gap"] {
        target.execute(&format!("DELETE FROM {table} WHERE device NOT IN (SELECT row FROM device)"), [])?;
    }
    let accounts = rows::readable_accounts(&target)?;
    // The journal's pages belong together by their epoch; without the tally the newest is theirs.
    let journal = "UPDATE tally SET epoch = max(epoch, (SELECT coalesce(max(epoch), 1) FROM segment))";
    target.execute(journal, [])?;
    books::rebuild(&target)?;
    target.execute("UPDATE tally SET next_block = next_block + ?1", [SEQUENCE_JUMP])?;
    target.execute_batch("COMMIT")?;
    target.close().map_err(|(_, cause)| cause)?;
    Ok(Gathered { copied, accounts, nameless })
}

/// Commits what is written until now, and puts it on the disk: no flush has more to do than a few MiB.
fn flush(target: &Connection, new: &Path) -> rusqlite::Result<()> {
    target.execute_batch("COMMIT")?;
    let flushed = std::fs::File::open(new).and_then(|file| file.sync_data());
    flushed.map_err(|cause| {
        let code = match Fault::of_io(&cause) {
            Some(Fault::DiskFull) => rusqlite::ffi::SQLITE_FULL,
            _ => rusqlite::ffi::SQLITE_IOERR_FSYNC,
        };
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), Some(cause.to_string()))
    })?;
    progress::step();
    target.execute_batch("BEGIN")
}

impl Gathered {
    fn told(&self, path: &Path, cause: String, copy: &Path, declared: u64, wall: Timestamp, extent: Extent) -> Rescue {
        let mut saved: BTreeMap<String, u64> =
            self.copied.iter().map(|(name, copied)| (name.clone(), copied.rows)).collect();
        saved
            .retain(|name, rows| *rows > 0 && ["block", "device", "gap", "parked", "segment"].contains(&name.as_str()));
        let holes = self.copied.iter().map(|(name, copied)| (format!("{name}_unreadable_places"), copied.holes));
        let mut lost: BTreeMap<String, u64> = holes.collect();
        lost.insert("samples".to_owned(), declared);
        lost.insert("samples_of_nameless_devices".to_owned(), u64::try_from(self.nameless).unwrap_or(0));
        lost.retain(|_, count| *count > 0);
        let outcome = match extent {
            Extent::Books => "begun anew, because there was no space to rebuild it",
            Extent::Whole | Extent::Waiting if saved.is_empty() => "begun anew",
            Extent::Waiting => "rebuilt from what could be read, without what the table has, because space is short",
            Extent::Whole => "rebuilt from what could be read",
        };
        Rescue {
            at: wall,
            file: path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            cause,
            aside: copy.symlink_metadata().is_ok().then(|| copy.display().to_string()),
            saved,
            lost,
            outcome: format!("{outcome}; missing readings are declared lost"),
        }
    }
}

impl TelemetryDb {
    /// Accounts of the damaged file, as if its journal had been what is here of it.
    fn with_journal(&self, accounts: &BTreeMap<i64, Account>) -> Result<BTreeMap<DeviceId, KnownLedger>, StoreError> {
        let mut known = BTreeMap::new();
        for (row, account) in accounts {
            let Some(device) = self.names.get(row) else { continue };
            let here = self.ledger(device, &std::collections::BTreeSet::new())?;
            let closed = self.accounts.get(row).map_or(0, |account| account.ledger.accepted);
            let in_journal = here.accepted.saturating_sub(closed);
            let mut ledger = account.ledger;
            ledger.accepted = ledger.accepted.saturating_add(in_journal);
            ledger.stored = ledger.stored.saturating_add(in_journal);
            let newest = self.tracks.get(device).and_then(|track| track.newest).map(Timestamp::from_millis);
            known.insert(
                device.clone(),
                KnownLedger { ledger, oldest: account.since.map(Timestamp::from_millis), newest },
            );
        }
        Ok(known)
    }
}

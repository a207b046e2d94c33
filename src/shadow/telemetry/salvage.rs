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

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use floorgate_model::{DeviceId, Timestamp};
use rusqlite::Connection;

use super::books::{self, Account};
use super::replay::Newest;
use super::{TelemetryDb, replay, rows, schema};
use crate::shadow::ledgers::KnownLedger;
use crate::shadow::rescue::salvage::{self, Copied};
use crate::shadow::rescue::{Rescue, aside, backup};
use crate::shadow::store::StoreError;

/// Up to this size of file and log everything is checked at open, bytes.
pub(super) const CHECKED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Numbers of blocks that are lost are never given again: they go on so far above the highest that is known.
const SEQUENCE_JUMP: i64 = 1_000_000;

/// Opens the file; if it is damaged, puts in its place what can be read of it.
pub(super) fn open(
    path: &Path,
    history_retention: Duration,
    now: Instant,
    wall: Timestamp,
    suspect: bool,
) -> Result<(TelemetryDb, Newest, Option<Rescue>), StoreError> {
    let cannot = |cause: std::io::Error| StoreError::Open {
        path: path.display().to_string(),
        cause: cause.to_string(),
        hint: "check that floorgate may write to its folder",
    };
    let damaged = |cause: &str| Err(StoreError::Damaged { path: path.display().to_string(), cause: cause.to_owned() });
    aside::finish(path).map_err(cannot)?;
    let unusable = aside::mend(path, wall).map_err(cannot)?;
    let lasting = suspect || unusable.is_some();
    let attempt = match unusable {
        Some(cause) => damaged(cause),
        // Damage was met in it: what its check says does not matter.
        None if suspect => damaged("it was met while it was read"),
        None => replay::open(path, history_retention, now),
    };
    let cause = match attempt {
        Ok((db, newest)) => return Ok((db, newest, None)),
        Err(StoreError::Damaged { cause, .. }) => cause,
        Err(other) => return Err(other),
    };
    let new = aside::beside(path, ".new");
    let gathered = gather(path, &new, lasting).map_err(|cause| {
        // What is half done takes space until the next attempt.
        aside::forget_new(path);
        schema::fault(&new, &cause)
    })?;
    let copy = aside::free_copy_name(path, wall);
    aside::replace(path, &new, &copy).map_err(cannot)?;
    let (mut db, newest) = replay::open(path, history_retention, now)?;
    let known = db.with_journal(&gathered.accounts)?;
    let lost = db.reconcile(&known)?;
    let declared = lost.iter().map(|loss| loss.count).sum();
    let rescue = gathered.told(path, cause, &copy, declared, wall);
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

fn gather(path: &Path, new: &Path, lasting: bool) -> rusqlite::Result<Gathered> {
    let target = schema::make(new)?;
    target.execute_batch("BEGIN")?;
    salvage::begin(&target)?;
    let mut copied = BTreeMap::new();
    if let Some(source) = salvage::open_source(path, lasting)? {
        let mut tables = salvage::tables(&target)?;
        // Names before devices, for which a trigger notes them again.
        tables.sort_by_key(|table| table.name != "name");
        for table in tables {
            copied.insert(table.name.clone(), salvage::copy(&source, &target, &table.name, &table.key)?);
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

impl Gathered {
    fn told(&self, path: &Path, cause: String, copy: &Path, declared: u64, wall: Timestamp) -> Rescue {
        let mut saved: BTreeMap<String, u64> =
            self.copied.iter().map(|(name, copied)| (name.clone(), copied.rows)).collect();
        saved
            .retain(|name, rows| *rows > 0 && ["block", "device", "gap", "parked", "segment"].contains(&name.as_str()));
        let holes = self.copied.iter().map(|(name, copied)| (format!("{name}_unreadable_places"), copied.holes));
        let mut lost: BTreeMap<String, u64> = holes.collect();
        lost.insert("samples".to_owned(), declared);
        lost.insert("samples_of_nameless_devices".to_owned(), u64::try_from(self.nameless).unwrap_or(0));
        lost.retain(|_, count| *count > 0);
        let outcome = if saved.is_empty() { "begun anew" } else { "rebuilt from what could be read" };
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

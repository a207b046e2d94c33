//! Opening `state.db`, whatever became of it.
//!
//! # Checks
//!
//! Header and schema always; every page and index (`integrity_check`) up to [`CHECKED_BYTES_MAX`], so that the start
//! stays quick; a larger file is checked by the first backup. Then the journal is held against its witness.
//!
//! # Rebuilding
//!
//! A new file is filled beside the damaged one, from what can be read of that and then, for rows that are missing,
//! from the newest backup that passes its check. Flushed, it gets the name `.rebuilt`; then the damaged one is moved
//! aside and the rebuilt one put in place. A crash before the first rename starts over, one after it is finished at
//! the next start.
//!
//! # What is done about commands
//!
//! The journal is *whole* if its table and indexes pass their check, no row is missing by the file's own count, and it
//! is not behind the witness. Otherwise it is in doubt: commands are inhibited for [`INHIBITED_FOR`], what had been
//! accepted and not begun ends as `indeterminate`, `INTERRUPTED` (it may have been begun since), and what was in
//! progress is verified as after any crash, and not sent again.

use std::collections::BTreeMap;
use std::path::Path;

use floorgate_model::Timestamp;
use rusqlite::{Connection, params};

use super::super::fault::Fault;
use super::super::log;
use super::super::schema::{self, STATE_FILE};
use super::super::terms::{Config, StoreError};
use super::super::words::io;
use super::doubt::INHIBITED_FOR;
use super::life::{self, Life};
use super::salvage::{self, Copied};
use super::witness::{Testimony, Witness};
use super::{Rescue, aside, backup, record};

/// Up to this size of file and log everything is checked at open, bytes. Larger files are checked by the backup.
pub(in crate::shadow) const CHECKED_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// SQLite takes what is shorter for an empty file, and begins anew.
const FILE_BYTES_MIN: u64 = 512;
/// Rows lost with the numbers they had: numbers go on so far above the highest that is known.
const SEQUENCE_JUMP: i64 = 1_000_000;
/// If announcements may be lost, so many of the newest executions are announced again.
const ANNOUNCED_AGAIN: i64 = 1_000;
/// What an execution says that nobody can follow up.
const LOST_TRACK: &str = "the gateway's journal was damaged: whether this was sent to the device is not known";

/// The open file and what was done for it.
#[derive(Debug)]
pub(in crate::shadow) struct Opened {
    pub(in crate::shadow) connection: Connection,
    pub(in crate::shadow) witness: Witness,
    pub(in crate::shadow) life: Life,
    /// Nothing, if nothing was wrong.
    pub(in crate::shadow) rescue: Option<Rescue>,
}

/// Opens or makes the file, and rebuilds it if it is damaged or lost. `met`: the damage that was met in it while it was
/// used, so that it is rebuilt whatever its check says.
pub(in crate::shadow) fn open(config: &Config, wall: Timestamp, met: Option<&str>) -> Result<Opened, StoreError> {
    let path = config.state_dir.join(STATE_FILE);
    let mut room = Room { config, path: &path, wall, met: met.is_some() };
    aside::finish(&path).map_err(|cause| room.cannot(&cause))?;
    let witness = Witness::of(&config.state_dir);
    let testimony = witness.read();
    let unusable = aside::mend(&path, wall).map_err(|cause| room.cannot(&cause))?;
    room.met |= unusable.is_some();
    StoreError::unless_there_is_room(&path)?;
    match log::write_again(&path) {
        // What the log is otherwise, is judged below; what is only read to be rebuilt needs none.
        Err(cause) if met.is_none() && Fault::of_io(&cause).is_some_and(Fault::may_pass) => {
            return Err(StoreError::system("write the log of state.db again", &cause));
        }
        _ => {}
    }
    let found = match unusable.or(met) {
        Some(cause) => Err(cause.to_owned()),
        None if room.is_there() || !room.has_trace(testimony) => match room.attempt() {
            Ok(connection) => Ok(connection),
            Err(StoreError::Damaged { cause, .. }) => Err(cause),
            Err(other) => return Err(other),
        },
        None => Err("it is gone or empty".to_owned()),
    };
    match found {
        Ok(connection) => match room.vouch(connection, witness, testimony) {
            Err(StoreError::Damaged { cause, .. }) => room.rebuild(&cause, Witness::of(&config.state_dir), testimony),
            vouched => vouched,
        },
        Err(cause) => room.rebuild(&cause, witness, testimony),
    }
}

struct Room<'a> {
    config: &'a Config,
    path: &'a Path,
    wall: Timestamp,
    /// The damage was met before: a read that fails now is part of it.
    met: bool,
}

/// What went into a new file.
#[derive(Debug, Default)]
struct Gathered {
    salvaged: BTreeMap<String, Copied>,
    from_backup: BTreeMap<String, u64>,
    backup: bool,
    life: Option<Life>,
    /// The journal's table and indexes pass their check.
    sound: bool,
}

impl Room<'_> {
    fn cannot(&self, cause: &dyn std::fmt::Display) -> StoreError {
        StoreError::Open {
            path: self.path.display().to_string(),
            cause: cause.to_string(),
            hint: "the folder and its files must belong to the user floorgate runs as, on a disk that can be written",
        }
    }

    fn is_there(&self) -> bool {
        std::fs::metadata(self.path).is_ok_and(|metadata| metadata.len() >= FILE_BYTES_MIN)
    }

    /// Whether there was a store here before.
    fn has_trace(&self, testimony: Testimony) -> bool {
        let besides = [super::super::samples::TELEMETRY_FILE, "state.db.backup"];
        testimony != Testimony::Missing
            || besides.iter().any(|name| self.config.state_dir.join(name).exists())
            || !aside::copies(self.path).is_empty()
    }

    fn attempt(&self) -> Result<Connection, StoreError> {
        let damaged = |cause: String| StoreError::Damaged { path: self.path.display().to_string(), cause };
        let connection = schema::open(self.path)?;
        let failed = |cause: rusqlite::Error| schema::fault(self.path, &cause);
        let small = super::super::files::bytes_with_log(self.path) <= CHECKED_BYTES_MAX;
        if small && let Some(cause) = backup::check(&connection, None).map_err(failed)? {
            return Err(damaged(cause));
        }
        match life::read(&connection).map_err(failed)? {
            Some(_) => Ok(connection),
            None => Err(damaged("it does not say what its journal has been through".to_owned())),
        }
    }

    /// Holds an intact file against its witness.
    fn vouch(&self, connection: Connection, mut witness: Witness, said: Testimony) -> Result<Opened, StoreError> {
        let cannot = io("check the journal");
        let known = life::read(&connection).map_err(&cannot)?.ok_or(StoreError::Closed)?;
        let doubt = match said {
            // No command ever: none can be forgotten.
            Testimony::Saw { transitions: 0, .. } => None,
            Testimony::Saw { store, .. } if store != known.store => {
                Some("the journal is another one than was here before".to_owned())
            }
            Testimony::Saw { transitions, .. } if transitions > known.transitions => {
                Some(format!("the last {} changes of the journal are lost", transitions - known.transitions))
            }
            Testimony::Missing | Testimony::Unreadable if known.transitions > 0 => {
                Some("nothing shows whether the journal is whole: its witness is lost".to_owned())
            }
            _ => None,
        };
        let rescue = match doubt {
            None => None,
            Some(why) => {
                tracing::error!(file = %self.path.display(), why, "state.db is not what it was; commands are inhibited");
                let highest = if let Testimony::Saw { transitions, .. } = said { transitions } else { 0 };
                Some(self.settle_in_place(&connection, &why, highest).map_err(&cannot)?)
            }
        };
        let life = life::read(&connection).map_err(&cannot)?.ok_or(StoreError::Closed)?;
        // What is in force already needs no flush.
        witness.vouch(life.store, life.transitions).map_err(|cause| self.cannot(&cause))?;
        schema::trust(&connection).map_err(&cannot)?;
        Ok(Opened { connection, witness, life, rescue })
    }

    fn settle_in_place(&self, connection: &Connection, why: &str, highest: i64) -> rusqlite::Result<Rescue> {
        let mut gathered = Gathered::default();
        // Attaching does not work inside a transaction; what a crash leaves undone is done at the next start, because
        // the witness is written last.
        self.fill_from_backup(connection, &mut gathered)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        self.settle(connection)?;
        jump_sequences(connection)?;
        connection.execute("UPDATE life SET transitions = max(transitions, ?1) + 1", [highest])?;
        life::doubt(connection, INHIBITED_FOR, why)?;
        let rescue = self.told(why, None, &gathered, true);
        record::write(connection, &rescue)?;
        connection.execute_batch("COMMIT")?;
        Ok(rescue)
    }

    fn rebuild(&self, cause: &str, mut witness: Witness, said: Testimony) -> Result<Opened, StoreError> {
        let new = aside::beside(self.path, ".new");
        let target = schema::make(&new)?;
        let failed = |cause: rusqlite::Error| schema::fault(&new, &cause);
        let gathered = self.gather(&target).map_err(|cause| {
            // What is half done takes space until the next attempt.
            aside::forget_new(self.path);
            failed(cause)
        })?;
        let whole = is_whole(&gathered, said);
        let moved = if let Testimony::Saw { transitions, .. } = said { transitions } else { 0 };
        let known = gathered.life.as_ref().map_or(0, |life| life.transitions);
        let doubted = gathered.life.as_ref().map(|life| (life.doubt_left, life.doubt_why.clone().unwrap_or_default()));
        let aside = aside::free_copy_name(self.path, self.wall);
        let rescue =
            self.told(cause, self.path.symlink_metadata().is_ok().then_some(aside.as_path()), &gathered, !whole);
        let fill = || {
            let (left, why) = match (whole, doubted) {
                (true, before) => before.unwrap_or_default(),
                (false, _) => (INHIBITED_FOR, format!("state.db was damaged: {cause}")),
            };
            if !whole {
                self.settle(&target)?;
                self.announce_again(&target)?;
            } else if gathered.salvaged.get("outbox").is_none_or(|copied| !copied.is_whole()) {
                self.announce_again(&target)?;
            }
            jump_sequences(&target)?;
            let counted = "UPDATE life SET transitions = ?1, executions = (SELECT count(*) FROM execution)";
            // Ahead of whatever was seen; but a journal without any transition proves that it forgot none.
            let ever = known.max(moved);
            target.execute(counted, [ever.saturating_add(i64::from(ever > 0 || !whole))])?;
            life::doubt(&target, left, &why)?;
            record::write(&target, &rescue)
        };
        fill().map_err(failed)?;
        target.close().map_err(|(_, cause)| failed(cause))?;
        aside::replace(self.path, &new, &aside).map_err(|cause| self.cannot(&cause))?;
        let connection = schema::open(self.path)?;
        let life = life::read(&connection).map_err(failed)?.ok_or(StoreError::Closed)?;
        witness.vouch(life.store, life.transitions).map_err(|cause| self.cannot(&cause))?;
        schema::trust(&connection).map_err(failed)?;
        rescue.log();
        Ok(Opened { connection, witness, life, rescue: Some(rescue) })
    }

    /// Fills a new file from the damaged one and from the backup.
    fn gather(&self, target: &Connection) -> rusqlite::Result<Gathered> {
        let mut gathered = Gathered::default();
        target.execute_batch("BEGIN")?;
        salvage::begin(target)?;
        let source = self.is_there().then(|| salvage::open_source(self.path, self.met)).transpose()?.flatten();
        if let Some(source) = source {
            gathered.life = life::read(&source).ok().flatten();
            gathered.sound = matches!(backup::check(&source, Some("execution")), Ok(None));
            for table in salvage::tables(target)? {
                let copied = salvage::copy(&source, target, &table.name, &table.key)?;
                gathered.salvaged.insert(table.name.clone(), copied);
            }
        }
        target.execute_batch("COMMIT")?;
        self.fill_from_backup(target, &mut gathered)?;
        salvage::end(target)?;
        target.execute_batch("DELETE FROM outbox WHERE execution NOT IN (SELECT seq FROM execution)")?;
        Ok(gathered)
    }

    /// Adds the rows that only the backup has.
    fn fill_from_backup(&self, target: &Connection, gathered: &mut Gathered) -> rusqlite::Result<()> {
        let Some(backup) = backup::verified(self.path) else { return Ok(()) };
        target.execute("ATTACH ?1 AS backup", [backup.display().to_string()])?;
        gathered.backup = true;
        let mut filled = || {
            for table in salvage::tables(target)? {
                let name = &table.name;
                let wanted = salvage::columns(target, name)?;
                let found = salvage::columns_in(target, "backup", name)?;
                let shared: Vec<&str> =
                    wanted.iter().filter(|column| found.contains(*column)).map(String::as_str).collect();
                if shared.is_empty() {
                    continue;
                }
                // One at a time per device: what ran at the time of the backup and something else runs now, has ended.
                let running = "CASE WHEN b.status = 'in_progress' AND EXISTS (SELECT 1 FROM main.execution e \
                    WHERE e.device_id = b.device_id AND e.status = 'in_progress') THEN 'created' ELSE b.status END";
                let values = shared.iter().map(|column| match (name.as_str(), *column) {
                    ("execution", "status") => running.to_owned(),
                    (_, column) => format!("b.{column}"),
                });
                let values = values.collect::<Vec<_>>().join(", ");
                let columns = shared.join(", ");
                let sql = format!("INSERT OR IGNORE INTO main.{name} ({columns}) SELECT {values} FROM backup.{name} b");
                // A row whose parent is missing goes below; with keys enforced it may stand in the way of the others.
                let added = match target.execute(&sql, []) {
                    Ok(added) => added,
                    Err(cause) if cause.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) => 0,
                    Err(cause) => return Err(cause),
                };
                if added > 0 {
                    gathered.from_backup.insert(name.clone(), u64::try_from(added).unwrap_or(0));
                }
            }
            Ok(())
        };
        let outcome = filled();
        target.execute_batch("DETACH backup")?;
        outcome
    }

    /// Ends what was accepted and may have been begun since.
    fn settle(&self, target: &Connection) -> rusqlite::Result<()> {
        let wall = self.wall.as_millis();
        for lane in self.lanes() {
            let sql = "INSERT OR REPLACE INTO outbox (lane, execution, since, refused) SELECT ?1, seq, ?2, refused > 0 FROM execution \
                       WHERE status = 'created'";
            target.execute(sql, params![lane, wall])?;
        }
        let sql = "UPDATE execution SET status = 'indeterminate', reason = 'INTERRUPTED', message = ?1, \
                   completed_at = ?2 WHERE status = 'created'";
        target.execute(sql, params![LOST_TRACK, wall]).map(drop)
    }

    /// Announces the newest executions once more: which were announced is not known any more.
    fn announce_again(&self, target: &Connection) -> rusqlite::Result<()> {
        for lane in self.lanes() {
            let sql = "INSERT OR IGNORE INTO outbox (lane, execution, since, refused) \
                       SELECT ?1, seq, ?2, refused > 0 FROM execution ORDER BY seq DESC LIMIT ?3";
            target.execute(sql, params![lane, self.wall.as_millis(), ANNOUNCED_AGAIN])?;
        }
        Ok(())
    }

    fn lanes(&self) -> impl Iterator<Item = &'static str> {
        let lanes = [(self.config.announce_results, "result"), (self.config.announce_tables, "table")];
        lanes.into_iter().filter_map(|(wanted, lane)| wanted.then_some(lane))
    }

    fn told(&self, cause: &str, aside: Option<&Path>, gathered: &Gathered, doubt: bool) -> Rescue {
        let mut saved: BTreeMap<String, u64> =
            gathered.salvaged.iter().map(|(name, copied)| (name.clone(), copied.rows)).collect();
        for (name, rows) in &gathered.from_backup {
            saved.insert(format!("{name}_from_backup"), *rows);
        }
        saved.retain(|_, rows| *rows > 0);
        let mut lost: BTreeMap<String, u64> = gathered
            .salvaged
            .iter()
            .map(|(name, copied)| (format!("{name}_unreadable_places"), copied.holes))
            .collect();
        if let (Some(life), Some(copied)) = (&gathered.life, gathered.salvaged.get("execution")) {
            let counted = u64::try_from(life.executions).unwrap_or(0);
            lost.insert("execution".to_owned(), counted.saturating_sub(copied.rows));
        }
        lost.retain(|_, count| *count > 0);
        let source = match (saved.is_empty(), gathered.backup) {
            (true, _) => "begun anew",
            (false, true) => "rebuilt from what could be read and from the backup",
            (false, false) => "rebuilt from what could be read",
        };
        let then =
            if doubt { "commands are inhibited until none from before can be alive" } else { "the journal is whole" };
        Rescue {
            at: self.wall,
            file: STATE_FILE.to_owned(),
            cause: cause.to_owned(),
            aside: aside.map(|path| path.display().to_string()),
            saved,
            lost,
            outcome: format!("{source}; {then}"),
        }
    }
}

fn is_whole(gathered: &Gathered, said: Testimony) -> bool {
    let none_ever = matches!(said, Testimony::Saw { transitions: 0, .. });
    let (Some(life), Some(copied)) = (&gathered.life, gathered.salvaged.get("execution")) else { return none_ever };
    let witnessed = match said {
        Testimony::Saw { store, transitions } => store == life.store && transitions <= life.transitions,
        Testimony::Missing | Testimony::Unreadable => life.transitions == 0,
    };
    let counted = u64::try_from(life.executions).is_ok_and(|executions| executions == copied.rows);
    none_ever || (gathered.sound && copied.is_whole() && counted && witnessed)
}

/// Numbers of rows that are lost are never given again.
fn jump_sequences(target: &Connection) -> rusqlite::Result<()> {
    for table in ["execution", "outbox"] {
        let sql = format!(
            "DELETE FROM temp.jump; INSERT INTO temp.jump SELECT max(coalesce((SELECT max(seq) FROM {table}), 0), \
             coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = '{table}'), 0)) + {SEQUENCE_JUMP}; \
             DELETE FROM sqlite_sequence WHERE name = '{table}'; \
             INSERT INTO sqlite_sequence SELECT '{table}', seq FROM temp.jump"
        );
        target.execute_batch("CREATE TEMP TABLE IF NOT EXISTS jump (seq INTEGER)")?;
        target.execute_batch(&sql)?;
    }
    target.execute_batch("DROP TABLE temp.jump")
}

/// What the file tells of earlier rescues, newest first.
pub(in crate::shadow) fn rescues(connection: &Connection) -> Result<Vec<Rescue>, StoreError> {
    record::newest(connection).map_err(io("read what was rescued"))
}

//! Opening `telemetry.db`: how SQLite keeps it, and its tables.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::shadow::fault::Fault;
use crate::shadow::log;
use crate::shadow::rescue::header::{self, Header, Mark};
use crate::shadow::store::StoreError;
use crate::shadow::words;

/// Frames in the log before SQLite copies it into the file: about ten minutes at one commit a second. A page that
/// changes in each of those commits is copied once.
const CHECKPOINT_FRAMES: u32 = 1_000;
/// The log is cut to this many bytes after a burst. It is not cut further: overwriting costs less than growing.
const LOG_BYTES_KEPT: u32 = 8 * 1024 * 1024;
/// Memory for pages, KiB: the upper levels of both indexes and the pages in use.
const CACHE_KIB: i32 = 1_024;
/// How long to wait for someone who reads or copies the file.
const BUSY_MAX: std::time::Duration = std::time::Duration::from_secs(2);

/// Each entry takes the file from the schema of its number to the next. The list only grows.
pub(super) const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE device (
        row INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        newest INTEGER,
        newest_asked INTEGER,
        last_block INTEGER,
        last_live INTEGER
    ) STRICT;
    CREATE TABLE segment (
        page INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE TABLE block (
        id INTEGER PRIMARY KEY,
        device INTEGER NOT NULL,
        first INTEGER NOT NULL,
        sent INTEGER NOT NULL,
        previous INTEGER,
        samples INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX block_key ON block (first, device);
    CREATE INDEX block_waiting ON block (first) WHERE sent = 0;
    CREATE TABLE parked (
        id INTEGER PRIMARY KEY,
        device INTEGER NOT NULL,
        first INTEGER NOT NULL,
        previous INTEGER,
        samples INTEGER NOT NULL,
        body BLOB NOT NULL,
        reason TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX parked_key ON parked (first, device);
    CREATE TABLE tally (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL,
        next_block INTEGER NOT NULL,
        blocks_waiting INTEGER NOT NULL,
        samples_waiting INTEGER NOT NULL,
        blocks_sent INTEGER NOT NULL,
        blocks_parked INTEGER NOT NULL,
        parked_dropped INTEGER NOT NULL
    ) STRICT;
    INSERT INTO tally VALUES (1, 1, 1, 0, 0, 0, 0, 0);
",
    "
    CREATE TABLE ledger (
        device INTEGER PRIMARY KEY,
        accepted INTEGER NOT NULL,
        delivered INTEGER NOT NULL,
        stored INTEGER NOT NULL,
        since INTEGER,
        lost TEXT NOT NULL
    ) STRICT;
    CREATE TABLE gap (
        id INTEGER PRIMARY KEY,
        device INTEGER NOT NULL,
        key INTEGER NOT NULL,
        since INTEGER NOT NULL,
        until INTEGER NOT NULL,
        lost INTEGER NOT NULL,
        reason TEXT NOT NULL,
        retention_ms INTEGER NOT NULL,
        summary BLOB NOT NULL,
        sent INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX gap_key ON gap (key, device);
    CREATE INDEX gap_waiting ON gap (key) WHERE sent = 0;
    CREATE INDEX gap_of_device ON gap (device, reason, key) WHERE sent = 0;
    CREATE TABLE offered (id INTEGER PRIMARY KEY) STRICT;
    ALTER TABLE tally ADD COLUMN gaps_waiting INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tally ADD COLUMN gaps_sent INTEGER NOT NULL DEFAULT 0;
    -- The books begin with what is here: what was shed before was delivered and is not known any more.
    INSERT INTO ledger
        SELECT device, sum(samples), sum(samples * (sent = 1)), sum(samples * (sent = 0)), min(first), '{}'
        FROM (SELECT device, samples, sent, first FROM block
              UNION ALL SELECT device, samples, 0, first FROM parked)
        GROUP BY device;
    -- No more than a hundred of the oldest were ever on their way at once; ten times ten as many, since late ones
    -- may have come in before them.
    INSERT INTO offered SELECT id FROM block WHERE sent = 0 ORDER BY first, id LIMIT 10000;
",
    "
    -- Guesses at the time: one boot of the machine, and what was added to the time since.
    CREATE TABLE era (
        id INTEGER PRIMARY KEY,
        boot_id TEXT NOT NULL,
        base INTEGER NOT NULL
    ) STRICT;
    -- The era of a block whose times are a guess still; `sent` is 2 as long.
    ALTER TABLE block ADD COLUMN era INTEGER;
    CREATE INDEX block_provisional ON block (first) WHERE sent = 2;
",
    "
    -- Whose blocks they are, once more on another page: without the names no block could be sent.
    CREATE TABLE name (row INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
    INSERT INTO name SELECT row, name FROM device;
    CREATE TRIGGER device_came AFTER INSERT ON device BEGIN
        INSERT OR REPLACE INTO name VALUES (new.row, new.name);
    END;
",
];

/// The newest schema known here.
pub(in crate::shadow) fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Opens or makes the file and brings it to the newest schema.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |cause: rusqlite::Error| fault(path, &cause);
    StoreError::unless_there_is_room(path)?;
    log::write_again(path).map_err(|cause| StoreError::system("write the log of telemetry.db again", &cause))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    conn.busy_timeout(BUSY_MAX).map_err(failed)?;
    // Until it is known to be sound, closing it shall leave it as it is.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    let known = newest();
    let found = match header::read(&conn, Mark::Telemetry, known).map_err(failed)? {
        Header::Ours(found) => found,
        Header::Newer(found) => return Err(StoreError::Newer { path: path.display().to_string(), found, known }),
        Header::Damaged(cause) => return Err(StoreError::Damaged { path: path.display().to_string(), cause }),
    };
    // Only now: some of these write to the file.
    configure(&conn).map_err(failed)?;
    fail_point!(TelemetryBeforeMigration);
    migrate(&conn, found).map_err(failed)?;
    fail_point!(TelemetryAfterMigration);
    Ok(conn)
}

/// The file is sound: closing it may tidy it up.
pub(super) fn trust(conn: &Connection) -> rusqlite::Result<()> {
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop)
}

/// A new file to be filled and then put in place; nothing of it is durable until it is synced as a whole.
pub(super) fn make(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open(path)?;
    configure(&conn)?;
    conn.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "OFF")?;
    migrate(&conn, 0)?;
    Ok(conn)
}

fn migrate(conn: &Connection, found: i64) -> rusqlite::Result<()> {
    for (version, migration) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        conn.execute_batch("BEGIN IMMEDIATE")?;
        conn.execute_batch(migration)?;
        header::write(conn, Mark::Telemetry, version)?;
        conn.execute_batch("COMMIT")?;
    }
    Ok(())
}

fn configure(conn: &Connection) -> rusqlite::Result<()> {
    // Both only take effect in a file without tables; in another one the second would be a write.
    if conn.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))? == 0 {
        conn.pragma_update(None, "page_size", 4_096)?;
        conn.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update_and_check(None, "journal_size_limit", LOG_BYTES_KEPT, |_| Ok(()))?;
    conn.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_FRAMES, |_| Ok(()))?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    conn.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Why the file cannot be opened: its disk or folder, or what stands in it.
pub(super) fn fault(path: &Path, cause: &rusqlite::Error) -> StoreError {
    let (path, text) = (path.display().to_string(), cause.to_string());
    // First: a file that ends too early is an error of reading to SQLite, and does not pass.
    if words::is_damage(cause) {
        return StoreError::Damaged { path, cause: text };
    }
    if let Some(fault) = Fault::of(cause).filter(|fault| fault.may_pass()) {
        return StoreError::Disk { doing: "open telemetry.db", cause: text, fault };
    }
    StoreError::Open { path, cause: text, hint: hint(cause) }
}

/// What to do, if the fault is not in the file.
fn hint(cause: &rusqlite::Error) -> &'static str {
    match cause.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "is another floorgate running?",
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
            "check that its folder exists and that floorgate may write there"
        }
        _ => "check its disk",
    }
}

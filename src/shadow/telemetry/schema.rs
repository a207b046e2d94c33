//! Opening `telemetry.db`: how SQLite keeps it, and its tables.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::shadow::store::StoreError;

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
const MIGRATIONS: &[&str] = &["
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
"];

/// Opens or makes the file and brings it to the newest schema.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |cause: rusqlite::Error| fault(path, &cause);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags).map_err(failed)?;
    conn.busy_timeout(BUSY_MAX).map_err(failed)?;
    let found: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    if found > known {
        return Err(StoreError::Newer { path: path.display().to_string(), found, known });
    }
    // Only now: some of these write to the file.
    configure(&conn).map_err(failed)?;
    fail_point!(TelemetryBeforeMigration);
    for (version, migration) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        let step = format!("BEGIN IMMEDIATE; {migration} PRAGMA user_version = {version}; COMMIT;");
        conn.execute_batch(&step).map_err(failed)?;
    }
    fail_point!(TelemetryAfterMigration);
    Ok(conn)
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
    conn.set_prepared_statement_cache_capacity(32);
    Ok(())
}

/// Why the file cannot be opened: its disk or folder, or what stands in it.
pub(super) fn fault(path: &Path, cause: &rusqlite::Error) -> StoreError {
    let (path, text) = (path.display().to_string(), cause.to_string());
    match hint(cause) {
        Some(hint) => StoreError::Open { path, cause: text, hint },
        None => StoreError::Damaged { path, cause: text },
    }
}

/// What to do, if the fault is not in the file.
fn hint(cause: &rusqlite::Error) -> Option<&'static str> {
    let hint = match cause.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "is another floorgate running?",
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            "check that its folder exists and that floorgate may write there"
        }
        Some(ErrorCode::DiskFull) => "free some space on its disk",
        Some(ErrorCode::SystemIoFailure | ErrorCode::OutOfMemory | ErrorCode::FileLockingProtocolFailed) => {
            "check its disk"
        }
        // Not a database, malformed, a table or column that is not there, a value of a wrong kind.
        _ => return None,
    };
    Some(hint)
}

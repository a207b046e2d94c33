//! `state.db`: how it is opened, and how it became what it is.
//!
//! # Durability
//!
//! WAL with `synchronous=FULL`: a commit that returned survives a power cut. The log is not truncated at checkpoints
//! up to [`LOG_BYTES_KEPT`], so that commits overwrite blocks the file already has and cost no metadata on the flash.
//!
//! # Migrations
//!
//! [`MIGRATIONS`] only ever grows; `user_version` counts how many of them a file has. Each runs in a transaction of
//! its own together with its count. A file with a higher count was written by a newer floorgate and is left alone.
//!
//! What is done with a damaged file stands in [`super::rescue`].

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::fault::Fault;
use super::rescue::header::{self, Header, Mark};
use super::terms::StoreError;
use super::words;

/// The file.
pub(super) const STATE_FILE: &str = "state.db";
/// Held by whoever uses the folder; the kernel gives it back when the process ends, however it ends.
const LOCK_FILE: &str = "lock";
/// The log is cut to this after a checkpoint, bytes; below it, its blocks are used again.
const LOG_BYTES_KEPT: i64 = 8 * 1024 * 1024;
/// How long to wait for someone who looks at the file with another tool.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Prepared statements kept; more than this room has.
const STATEMENTS_KEPT: usize = 64;

/// Every change to the schema since the first, oldest first. Never edit one that was released; append.
const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE device (
    device_id TEXT PRIMARY KEY,
    device_type TEXT NOT NULL,
    location TEXT NOT NULL,
    registered_at INTEGER NOT NULL,
    observed TEXT NOT NULL,
    status TEXT NOT NULL,
    status_reason TEXT,
    status_since INTEGER NOT NULL,
    -- Why it was observed offline, though another status showed.
    offline_reason TEXT,
    admin_state TEXT NOT NULL,
    firmware_version TEXT,
    configuration TEXT,
    boot_count INTEGER,
    last_state_at INTEGER,
    declared_commands TEXT,
    last_readings TEXT NOT NULL,
    last_reading_at INTEGER,
    last_seen_at INTEGER,
    version INTEGER NOT NULL,
    synced_version INTEGER NOT NULL,
    taken_over_by TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE execution (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    command_id TEXT NOT NULL UNIQUE,
    device_id TEXT NOT NULL,
    command TEXT NOT NULL,
    parameters TEXT NOT NULL,
    issuer TEXT,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    reason TEXT,
    message TEXT,
    details TEXT,
    started_at INTEGER,
    completed_at INTEGER,
    gateway_id TEXT NOT NULL,
    checked_parameters TEXT NOT NULL,
    answer TEXT,
    late_answer TEXT,
    boot_count_before INTEGER
) STRICT;
CREATE INDEX execution_of_device ON execution (device_id, seq);
CREATE INDEX execution_open ON execution (status, seq) WHERE status IN ('created', 'in_progress');
-- One at a time per device, whatever the code above does.
CREATE UNIQUE INDEX execution_running ON execution (device_id) WHERE status = 'in_progress';

-- Numbers are never used twice, so a confirmation of an older transition cannot remove a newer one.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    lane TEXT NOT NULL,
    execution INTEGER NOT NULL REFERENCES execution (seq),
    since INTEGER NOT NULL,
    UNIQUE (lane, execution)
) STRICT;
CREATE INDEX outbox_of_lane ON outbox (lane, seq);
CREATE INDEX outbox_of_execution ON outbox (execution);

CREATE TABLE session (
    client TEXT PRIMARY KEY,
    filters TEXT NOT NULL
) STRICT, WITHOUT ROWID;
",
    "
-- Bytes of a command that was refused on arrival; 0 for one that was accepted.
ALTER TABLE execution ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
UPDATE execution SET refused = 500 + length(command) + length(parameters) + coalesce(length(message), 0)
    WHERE status IN ('rejected', 'expired') AND started_at IS NULL AND completed_at <= received_at;
CREATE INDEX execution_refused ON execution (device_id, seq, refused) WHERE refused > 0;
CREATE INDEX execution_accepted ON execution (seq) WHERE refused = 0;

ALTER TABLE outbox ADD COLUMN refused INTEGER NOT NULL DEFAULT 0;
UPDATE outbox SET refused = execution IN (SELECT seq FROM execution WHERE refused > 0);
DROP INDEX outbox_of_lane;
CREATE INDEX outbox_in_order ON outbox (lane, refused, seq);

-- What is left of refusals that had to go: how late the latest was issued, how many nobody heard of.
CREATE TABLE forgotten (
    device_id TEXT PRIMARY KEY,
    issued_through INTEGER NOT NULL,
    not_announced INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
",
    "
-- A copy of what telemetry.db knows, for the day that file is lost.
CREATE TABLE ledger (
    device_id TEXT PRIMARY KEY,
    ledger TEXT NOT NULL,
    oldest INTEGER,
    newest INTEGER
) STRICT, WITHOUT ROWID;
",
    "
-- When a command was received by the clock that nothing steps; it counts in the same boot of the machine alone.
ALTER TABLE execution ADD COLUMN received_boot_id TEXT;
ALTER TABLE execution ADD COLUMN received_boot_ms INTEGER;

-- The time of day cannot be earlier than this.
CREATE TABLE clock_floor (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    wall INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    boot_ms INTEGER NOT NULL,
    right INTEGER NOT NULL
) STRICT;
",
    "
-- One row: what proves that the journal is whole, and for how long it is doubted (rescue/life.rs).
CREATE TABLE life (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    store INTEGER NOT NULL,
    transitions INTEGER NOT NULL,
    executions INTEGER NOT NULL,
    doubt_left_ms INTEGER NOT NULL,
    doubt_why TEXT
) STRICT;
INSERT INTO life SELECT 1, random(), 0, count(*), 0, NULL FROM execution;
CREATE TRIGGER execution_came AFTER INSERT ON execution BEGIN
    UPDATE life SET transitions = transitions + 1, executions = executions + 1;
END;
CREATE TRIGGER execution_moved AFTER UPDATE OF status ON execution BEGIN
    UPDATE life SET transitions = transitions + 1;
END;
CREATE TRIGGER execution_went AFTER DELETE ON execution BEGIN
    UPDATE life SET executions = executions - 1;
END;
-- What was damaged, and what came of it.
CREATE TABLE rescue (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    file TEXT NOT NULL,
    cause TEXT NOT NULL,
    aside TEXT,
    saved TEXT NOT NULL,
    lost TEXT NOT NULL,
    outcome TEXT NOT NULL
) STRICT;
",
];

/// Makes the folder if need be and locks it; the lock lives as long as the file that is answered.
pub(super) fn own_folder(folder: &Path) -> Result<File, StoreError> {
    let cannot = |path: &Path, cause: &dyn std::fmt::Display| StoreError::Open {
        path: path.display().to_string(),
        cause: cause.to_string(),
        hint: "the folder and its files must belong to the user floorgate runs as",
    };
    let made = DirBuilder::new().recursive(true).mode(0o750).create(folder);
    made.map_err(|cause| cannot(folder, &cause))?;
    let path = folder.join(LOCK_FILE);
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o640).open(&path);
    // A lock needs no writing, only a file.
    let file =
        file.or_else(
            |cause| if Fault::of_io(&cause).is_some() { File::open(&path).map_err(|_| cause) } else { Err(cause) },
        );
    let file = file.map_err(|cause| match Fault::of_io(&cause) {
        Some(_) => StoreError::system("lock its folder", &cause),
        None => cannot(&path, &cause),
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Open {
            path: folder.join(STATE_FILE).display().to_string(),
            cause: "database is locked".to_owned(),
            hint: "is another floorgate running?",
        }),
        Err(TryLockError::Error(cause)) => Err(cannot(&path, &cause)),
    }
}

/// The newest schema known here.
pub(super) fn newest() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

/// Opens or makes the file and brings its schema up to date. Answers [`StoreError::Damaged`] if it is there but is not
/// what it should be; that nothing deeper in it is damaged is not looked at here.
pub(super) fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |cause: rusqlite::Error| fault(path, &cause);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    // Until it is known to be sound, closing it shall leave it as it is.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    let known = newest();
    let found = match header::read(&connection, Mark::State, known).map_err(failed)? {
        Header::Ours(found) => found,
        Header::Newer(found) => return Err(StoreError::Newer { path: path.display().to_string(), found, known }),
        Header::Damaged(cause) => return Err(StoreError::Damaged { path: path.display().to_string(), cause }),
    };
    // Only now: some of these write to the file.
    fail_point!(StateBeforeMigration);
    prepare(&connection).map_err(failed)?;
    migrate(&mut connection, found).map_err(failed)?;
    if let Some(missing) = missing(&connection).map_err(failed)? {
        return Err(StoreError::Damaged { path: path.display().to_string(), cause: format!("it has no {missing}") });
    }
    fail_point!(StateAfterMigration);
    Ok(connection)
}

/// The file is sound: closing it may tidy it up.
pub(super) fn trust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop)
}

/// A new file to be filled and then put in place; nothing of it is durable until it is synced as a whole.
pub(super) fn make(path: &Path) -> Result<Connection, StoreError> {
    let failed = |cause: rusqlite::Error| fault(path, &cause);
    let mut connection = Connection::open(path).map_err(failed)?;
    prepare(&connection).map_err(failed)?;
    connection.pragma_update(None, "journal_mode", "DELETE").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "OFF").map_err(failed)?;
    connection.pragma_update(None, "foreign_keys", false).map_err(failed)?;
    migrate(&mut connection, 0).map_err(failed)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, found: i64) -> rusqlite::Result<()> {
    for (version, migration) in (1_i64..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        header::write(&transaction, Mark::State, version)?;
        fail_point!(StateInMigration);
        transaction.commit()?;
    }
    Ok(())
}

/// The first table, column, index or trigger that should be there and is not.
fn missing(connection: &Connection) -> rusqlite::Result<Option<String>> {
    let mut sound = Connection::open_in_memory()?;
    migrate(&mut sound, 0)?;
    let parts = |connection: &Connection| -> rusqlite::Result<BTreeSet<String>> {
        let mut statement = connection.prepare(
            "SELECT type || ' ' || name FROM sqlite_schema UNION ALL \
             SELECT 'column ' || t.name || '.' || c.name FROM sqlite_schema t, pragma_table_info(t.name) c \
             WHERE t.type = 'table'",
        )?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    let (wanted, found) = (parts(&sound)?, parts(connection)?);
    Ok(wanted.difference(&found).next().cloned())
}

/// Why the file cannot be opened or read: its disk or folder, or what stands in it.
pub(super) fn fault(path: &Path, cause: &rusqlite::Error) -> StoreError {
    let (path, text) = (path.display().to_string(), cause.to_string());
    if words::is_damage(cause) {
        return StoreError::Damaged { path, cause: text };
    }
    if let Some(fault) = Fault::of(cause).filter(|fault| fault.may_pass()) {
        return StoreError::Disk { doing: "open state.db", cause: text, fault };
    }
    let hint = match cause.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => "another program holds it; end that first",
        _ => "it must be readable and writable, with its folder, for the user floorgate runs as",
    };
    StoreError::Open { path, cause: text, hint }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    // Only has an effect before the first table; later it would write to a file that may be damaged.
    if connection.pragma_query_value(None, "page_count", |row| row.get::<_, i64>(0))? == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "journal_size_limit", LOG_BYTES_KEPT)?;
    connection.pragma_update(None, "trusted_schema", false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_newer_floorgate_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE_FILE);
        drop(open(&path).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        let error = open(&path).unwrap_err();
        let newest = i64::try_from(MIGRATIONS.len()).unwrap();
        assert!(matches!(error, StoreError::Newer { found: 99, known, .. } if known == newest), "{error}");
    }

    #[test]
    fn what_an_older_floorgate_refused_on_arrival_is_known_as_refused_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE_FILE);
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        for (id, status, completed) in
            [("a", "rejected", 10), ("b", "expired", 99), ("c", "failed", 10), ("d", "expired", 10)]
        {
            old.execute(
                "INSERT INTO execution (command_id, device_id, command, parameters, issued_at, expires_at, received_at, \
                 status, completed_at, gateway_id, checked_parameters) \
                 VALUES (?1, 'A', 'reboot', '{}', 1, 2, 10, ?2, ?3, 'GW', '{}')",
                rusqlite::params![id, status, completed],
            )
            .unwrap();
        }
        old.execute_batch("INSERT INTO outbox (lane, execution, since) SELECT 'table', seq, 0 FROM execution").unwrap();
        drop(old);
        let new = open(&path).unwrap();
        let ids = |text: &str| {
            let mut statement = new.prepare(text).unwrap();
            statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap).collect::<String>()
        };
        assert_eq!(ids("SELECT command_id FROM execution WHERE refused > 0 ORDER BY seq"), "ad");
        let announced =
            "SELECT command_id FROM outbox o JOIN execution e ON e.seq = o.execution ORDER BY o.refused, o.seq";
        assert_eq!(ids(announced), "bcad");
    }

    #[test]
    fn a_commit_is_synced_in_full_and_the_log_is_a_wal() {
        let folder = tempfile::tempdir().unwrap();
        let connection = open(&folder.path().join(STATE_FILE)).unwrap();
        let text = |name: &str| {
            connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0)).unwrap()
        };
        assert_eq!(text("journal_mode"), rusqlite::types::Value::Text("wal".to_owned()));
        assert_eq!(text("synchronous"), rusqlite::types::Value::Integer(2));
        assert_eq!(text("foreign_keys"), rusqlite::types::Value::Integer(1));
        assert_eq!(text("auto_vacuum"), rusqlite::types::Value::Integer(2));
    }

    #[test]
    fn what_is_no_database_is_said_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STATE_FILE);
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let text = open(&path).unwrap_err().to_string();
        assert!(text.starts_with(&format!("`{}` is damaged: ", path.display())), "{text}");
        assert!(text.contains("not a database"), "{text}");
    }
}

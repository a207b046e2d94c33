//! Making sure that what the log shows is what the disk has.
//!
//! # Why
//!
//! When a flush fails, Linux tells so once and then takes the pages for clean: whoever reads the file sees what was
//! written, the next `fsync` succeeds, and the disk has neither. A log (`-wal`) read back after that would count a
//! commit as done that a power cut undoes, with everything that was appended behind it. So before a database is opened,
//! after a failure and after a start (the process that saw the failure may be dead, its pages are not), the live part of
//! its log is written again, byte for byte where it stands, and flushed. After that both are the same: what was
//! acknowledged was there before, and what was not may as well stay.
//!
//! The database itself needs none of this: what a failed checkpoint has written there stands in the log until a
//! checkpoint succeeds, which writes it all again.
//!
//! # What it does not do
//!
//! It writes nothing after a stop in order, which leaves the log empty, and it judges nothing: what is no log is SQLite's
//! business.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::config::DbConfig;

/// Bytes read and written at a time.
const STEP: usize = 256 * 1024;
/// Bytes of the log's header, and of the header of each page in it.
const HEADER: u64 = 32;
const PAGE_HEADER: u64 = 24;

/// The log of a database.
pub(super) fn path_of(database: &Path) -> PathBuf {
    let mut log: OsString = database.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}

/// Writes the live part of a database's log again and flushes it. Nobody may have the database open for writing.
pub(super) fn write_again(database: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).write(true).open(path_of(database)) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(cause),
    };
    let live = live_bytes(&file)?;
    if live == 0 {
        return Ok(());
    }
    let (mut at, mut bytes) = (0, vec![0; STEP]);
    while at < live {
        let step = usize::try_from(live - at).map_or(STEP, |rest| rest.min(STEP));
        let Some(part) = bytes.get_mut(..step) else { break };
        file.read_exact_at(part, at)?;
        file.write_all_at(part, at)?;
        at += step as u64;
    }
    file.sync_all()
}

/// How far the pages of the log's current round reach: each carries the two salts of the header.
fn live_bytes(file: &File) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut header = [0; 32];
    if length < HEADER || file.read_exact_at(&mut header, 0).is_err() {
        return Ok(length);
    }
    let [.., a, b, c, d] = header[..12] else { return Ok(length) };
    let frame = PAGE_HEADER + u64::from(u32::from_be_bytes([a, b, c, d]));
    let mut end = HEADER;
    while end + frame <= length {
        let mut salts = [0; 8];
        file.read_exact_at(&mut salts, end + 8)?;
        if salts != header[16..24] {
            break;
        }
        end += frame;
    }
    // The rest of a page that was being written when everything ended, or what stood there before: one page more does
    // no harm.
    Ok((end + frame).min(length))
}

/// Closes a connection whose file failed: without the usual checkpoint, which would copy pages of a log that may not be on
/// the disk as it is read.
pub(super) fn abandon(connection: Connection) {
    // Only if SQLite had no such setting, and then closing is as it always was.
    let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    drop(connection);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path, rows: i64) -> (PathBuf, Connection) {
        let path = folder.join("x.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE t (a)").unwrap();
        for row in 0..rows {
            connection.execute("INSERT INTO t VALUES (?1)", [row]).unwrap();
        }
        (path, connection)
    }

    #[test]
    fn the_log_is_the_same_after_it_was_written_again_and_only_its_live_part_is() {
        let folder = tempfile::tempdir().unwrap();
        let (path, connection) = written(folder.path(), 200);
        abandon(connection);
        let before = std::fs::read(path_of(&path)).unwrap();
        let file = File::open(path_of(&path)).unwrap();
        assert_eq!(live_bytes(&file).unwrap(), before.len() as u64);
        write_again(&path).unwrap();
        assert!(std::fs::read(path_of(&path)).unwrap() == before);
        // A second round in the same file is shorter; what is left of the first is not live.
        let connection = Connection::open(&path).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
        connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
        abandon(connection);
        let file = File::open(path_of(&path)).unwrap();
        assert_eq!(file.metadata().unwrap().len(), before.len() as u64);
        assert!(live_bytes(&file).unwrap() < 20_000);
        write_again(&path).unwrap();
        let again = Connection::open(&path).unwrap();
        let rows: i64 = again.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, 201);
    }

    #[test]
    fn an_abandoned_database_keeps_its_log_and_one_without_needs_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (path, connection) = written(folder.path(), 3);
        drop(connection);
        assert!(!path_of(&path).exists());
        write_again(&path).unwrap();
        let connection = Connection::open(&path).unwrap();
        connection.execute("INSERT INTO t VALUES (1)", []).unwrap();
        abandon(connection);
        assert!(path_of(&path).exists());
        std::fs::write(path_of(&path), b"no log").unwrap();
        write_again(&path).unwrap();
        assert_eq!(std::fs::read(path_of(&path)).unwrap(), b"no log");
    }
}

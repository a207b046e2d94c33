//! What a database file weighs, and how it is made to weigh less.

use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::log;

/// Bytes of a page of both files.
pub(super) const PAGE_BYTES: u64 = 4_096;
/// Free pages that a file keeps: using them again costs less than growing.
pub(super) const FREE_PAGES_KEPT: u32 = 256;
/// Free pages given back in one step at most, a few milliseconds of work.
pub(super) const PAGES_PER_STEP: u32 = 256;

/// Bytes of a database with its write-ahead log; zero for what is not there.
pub(super) fn bytes_with_log(database: &Path) -> u64 {
    bytes(database) + log_bytes(database)
}

/// Bytes of the log alone.
pub(super) fn log_bytes(database: &Path) -> u64 {
    bytes(&log::path_of(database))
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Pages that hold nothing.
fn free_pages(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "freelist_count", |row| row.get(0))
}

/// Pages that hold something, in the file or in its log.
pub(super) fn pages_in_use(connection: &Connection) -> rusqlite::Result<u32> {
    let pages: u32 = connection.pragma_query_value(None, "page_count", |row| row.get(0))?;
    Ok(pages.saturating_sub(free_pages(connection)?))
}

/// Copies the log into the file and cuts it to nothing. Whoever reads the file with another tool meanwhile is not
/// waited for: then the log stays as it is.
pub(super) fn empty_log(connection: &Connection) -> rusqlite::Result<()> {
    let patience: u32 = connection.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
    connection.busy_timeout(Duration::ZERO)?;
    fail_point!(BeforeCheckpoint);
    let outcome = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    fail_point!(AfterCheckpoint);
    connection.busy_timeout(Duration::from_millis(u64::from(patience)))?;
    match outcome {
        Err(cause) if cause.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy) => Ok(()),
        outcome => outcome,
    }
}

/// Gives some of the free pages back, if there are more than `keep`, `most` of them. Answers whether there were; the file is shorter once its log
/// is copied.
pub(super) fn give_back_some(connection: &Connection, keep: u32, most: u32) -> rusqlite::Result<bool> {
    let surplus = free_pages(connection)?.saturating_sub(keep);
    if surplus > 0 {
        give_back(connection, surplus.min(most))?;
    }
    Ok(surplus > 0)
}

fn give_back(connection: &Connection, pages: u32) -> rusqlite::Result<()> {
    // Each step of the statement frees one page.
    let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({pages})"))?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}

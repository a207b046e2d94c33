//! What is wrong with the disk, in words that stay the same, and how the store stands.

use std::fmt;
use std::io;
use std::path::Path;

use floorgate_model::Timestamp;
use rusqlite::ErrorCode;

use super::terms::StoreError;

/// Bytes of the file that is written to find out whether the folder takes anything.
const PROBE_BYTES: usize = 4_096;
/// Free space, bytes, without which no database is opened. SQLite keeps the index of a log in memory that is mapped from
/// a file; on some file systems (blocks smaller than a page, copies on write) a page of it that finds no space kills the
/// process instead of failing.
const SPACE_TO_OPEN: u64 = 512 * 1024;
/// `EIO`, which the standard library has no word for.
const EIO: i32 = 5;

/// Why a file cannot be written or read. The codes are stable; they stand in `status --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// No space, or a quota of the file system is used up.
    DiskFull,
    /// The file system, or the file, takes no writes.
    ReadOnly,
    /// The disk fails: a read, a write or a flush (`fsync`).
    IoError,
    /// What stands in the file is no database any more.
    Damaged,
    /// Anything else; the log has the words.
    Other,
}

impl Fault {
    /// What an error of SQLite says of the disk; `None` if it says nothing of it.
    pub(super) fn of(cause: &rusqlite::Error) -> Option<Self> {
        match cause.sqlite_error_code()? {
            ErrorCode::DiskFull => Some(Self::DiskFull),
            ErrorCode::ReadOnly => Some(Self::ReadOnly),
            ErrorCode::SystemIoFailure => Some(Self::IoError),
            ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(Self::Damaged),
            _ => None,
        }
    }

    /// What an error of the system says of the disk.
    pub(super) fn of_io(cause: &io::Error) -> Option<Self> {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Self::DiskFull),
            io::ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            _ if cause.raw_os_error() == Some(EIO) => Some(Self::IoError),
            _ => None,
        }
    }

    /// What a folder says of its disk when something small is written there and flushed.
    pub(super) fn of_folder(folder: &Path) -> Option<Self> {
        let path = folder.join(".probe");
        let probed = std::fs::write(&path, [0x5a; PROBE_BYTES]).and_then(|()| std::fs::File::open(&path)?.sync_all());
        // Gone or never there: both are what is wanted.
        let _ = std::fs::remove_file(&path);
        Self::of_io(&probed.err()?)
    }

    /// Bytes that are free on a folder's disk; `None` if it does not say.
    pub(super) fn free_space(folder: &Path) -> Option<u64> {
        let disk = rustix::fs::statvfs(folder).ok().filter(|disk| disk.f_blocks > 0)?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// It passes without anyone touching the files: space comes back, a disk is mounted writable again.
    pub(super) fn may_pass(self) -> bool {
        matches!(self, Self::DiskFull | Self::ReadOnly | Self::IoError)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskFull => "the disk is full",
            Self::ReadOnly => "the disk is read-only",
            Self::IoError => "the disk fails",
            Self::Damaged => "a file is damaged",
            Self::Other => "a file cannot be used",
        })
    }
}

/// How the store stands. While it is not `ok` it tries again by itself; commands are refused with [`INHIBITED`] while it
/// takes no reports, or the disk is full or read-only.
///
/// [`INHIBITED`]: floorgate_model::Reason::Inhibited
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct StoreHealth {
    /// Everything that is asked of it is written.
    pub ok: bool,
    /// Since when not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Timestamp>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Fault>,
    /// Live readings are taken; else they are best left with their senders.
    pub takes_readings: bool,
    /// State reports, answers and outcomes are taken.
    pub takes_reports: bool,
}

impl Default for StoreHealth {
    fn default() -> Self {
        Self { ok: true, failing_since: None, reason: None, takes_readings: true, takes_reports: true }
    }
}

impl StoreError {
    /// What an error of SQLite means while `doing`.
    pub(super) fn sqlite(doing: &'static str, cause: &rusqlite::Error) -> Self {
        let text = cause.to_string();
        match Fault::of(cause) {
            Some(fault) => Self::Disk { doing, cause: text, fault },
            None => Self::Io { doing, cause: text },
        }
    }

    /// What an error of the system means while `doing`.
    pub(super) fn system(doing: &'static str, cause: &io::Error) -> Self {
        Self::Disk { doing, cause: cause.to_string(), fault: Fault::of_io(cause).unwrap_or(Fault::Other) }
    }

    /// Fails if there is not enough space to open a database.
    pub(super) fn unless_there_is_room(database: &Path) -> Result<(), Self> {
        let free = database.parent().and_then(Fault::free_space);
        match free.filter(|free| *free < SPACE_TO_OPEN) {
            None => Ok(()),
            Some(free) => {
                let cause = format!("{free} bytes are free, and {SPACE_TO_OPEN} are needed");
                Err(Self::Disk { doing: "open its files", cause, fault: Fault::DiskFull })
            }
        }
    }

    /// What is wrong with the disk, if that is why.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Disk { fault, .. } => Some(*fault),
            Self::Damaged { .. } => Some(Fault::Damaged),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_a_read_only_and_a_failing_disk_are_told_apart() {
        let of = |code: i32| Fault::of_io(&io::Error::from_raw_os_error(code));
        assert_eq!(
            [of(28), of(122), of(30), of(5), of(13)],
            [Some(Fault::DiskFull), Some(Fault::DiskFull), Some(Fault::ReadOnly), Some(Fault::IoError), None]
        );
        let sqlite = |code: i32| Fault::of(&rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None));
        // FULL, READONLY, IOERR_FSYNC, IOERR_WRITE, CORRUPT, NOTADB, CONSTRAINT, BUSY.
        let expected = [
            Some(Fault::DiskFull),
            Some(Fault::ReadOnly),
            Some(Fault::IoError),
            Some(Fault::IoError),
            Some(Fault::Damaged),
            Some(Fault::Damaged),
            None,
            None,
        ];
        assert_eq!([13, 8, 1034, 778, 11, 26, 19, 5].map(sqlite), expected);
    }
}

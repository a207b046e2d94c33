//! The ids of a journal whose file takes no writes, read without changing anything.
//!
//! A gateway that starts on a full or read-only disk cannot open `state.db` as it must, to go on. But it can read which
//! commands stand in it: those may have run and stay with their senders, and any other is new and can be refused at once.
//!
//! # Guarantees
//!
//! * Nothing is written: not the file, not its log, not the index of the log.
//! * What is read is the whole journal or nothing: the log counts, the file passes the check it gets when it is opened
//!   ([`CHECKED_BYTES_MAX`]), and it is not behind its witness.
//!
//! # What it does not do
//!
//! A log without its index (`-shm`, which only a folder that was copied lacks) is not read: SQLite would have to make
//! one. Nor is a file that is being replaced. Then the answer is `None`, and commands stay with their senders.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use floorgate_model::CommandId;
use rusqlite::{Connection, OpenFlags};

use super::super::refused::KNOWN_MAX;
use super::super::schema::STATE_FILE;
use super::super::{files, journal};
use super::state::CHECKED_BYTES_MAX;
use super::witness::{Testimony, Witness};
use super::{aside, backup, life};

/// The newest ids of the journal in this folder, newest first; `None` if they cannot be read for certain.
pub(in crate::shadow) fn journal_ids(folder: &Path) -> Option<Vec<CommandId>> {
    let path = folder.join(STATE_FILE);
    if aside::is_being_replaced(&path) {
        return None;
    }
    let connection = open(&path).ok()?;
    let (store, transitions) = match Witness::of(folder).read() {
        Testimony::Saw { store, transitions } => (store, transitions),
        Testimony::Missing | Testimony::Unreadable => return None,
    };
    let life = life::read(&connection).ok()??;
    let whole = life.store == store && life.transitions >= transitions;
    let small = std::fs::metadata(&path).ok()?.len() <= CHECKED_BYTES_MAX;
    let sound = whole && (!small || backup::check(&connection, None).ok()?.is_none());
    if sound { journal::newest_ids(&connection, KNOWN_MAX).ok() } else { None }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    // With a log its index is needed, too: only read here, and taken for what it may be, out of date. Without one the
    // file alone is everything, and nobody else writes to it: its folder is locked.
    let how = if files::log_bytes(path) > 0 { "readonly_shm=1" } else { "immutable=1" };
    let mut name = String::from("file:");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("{name}?mode=ro&{how}"), flags)
}

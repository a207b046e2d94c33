//! How far rescues have come: what a watchdog believes that must not end one in its middle.
//!
//! A large file is read, written and flushed for minutes on a slow card, on the one thread that answers. Each step of
//! that counts here, and each is short: a row, some thousand rows flushed, some ten thousand operations of SQLite.
//! A rescue that is stuck takes no steps.

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter for the process: it is told to one service manager.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Operations of SQLite's machine that are a step; some milliseconds.
const OPERATIONS: i32 = 50_000;

/// Steps of all rescues since the process began.
#[must_use]
pub fn steps() -> u64 {
    STEPS.load(Ordering::Relaxed)
}

pub(in crate::shadow) fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
}

/// What runs on this connection counts.
pub(in crate::shadow) fn watch(connection: &mut rusqlite::Connection) -> rusqlite::Result<()> {
    let count = || {
        step();
        // To go on.
        false
    };
    connection.progress_handler(OPERATIONS, Some(count))
}

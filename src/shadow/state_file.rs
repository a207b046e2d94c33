//! `state.db` as the writer uses it: one transaction at a time, opened when something wants a turn, and opened anew
//! after a failure.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::schema;
use super::terms::StoreError;
use super::words::io;

/// After a failure the file is opened again at most this often; meanwhile every request is refused.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

/// The file, open or broken.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    connection: Option<Connection>,
    broken_at: Option<(Instant, StoreError)>,
    /// SQLite's count of changed rows when the transaction began; `None` outside of one.
    changes_at_begin: Option<u64>,
}

impl StateFile {
    pub(super) fn new(path: PathBuf, connection: Connection) -> Self {
        Self { path, connection: Some(connection), broken_at: None, changes_at_begin: None }
    }

    /// The connection with a transaction open on it; `now` is the senders' clock, on which the waiting runs.
    pub(super) fn begin(&mut self, now: Instant) -> Result<&Connection, StoreError> {
        if self.connection.is_none() {
            self.reopen(now)?;
        }
        if self.changes_at_begin.is_none()
            && let Some(connection) = &self.connection
        {
            match connection.execute_batch("BEGIN") {
                Ok(()) => self.changes_at_begin = Some(connection.total_changes()),
                Err(cause) => return Err(self.broke(io("begin a transaction")(cause), now)),
            }
        }
        self.connection.as_ref().ok_or(StoreError::Closed)
    }

    /// Whether a transaction is open.
    pub(super) fn is_open(&self) -> bool {
        self.changes_at_begin.is_some()
    }

    /// Whether the open transaction changed anything.
    pub(super) fn has_changes(&self) -> bool {
        let changes = self.connection.as_ref().map(Connection::total_changes);
        self.changes_at_begin.is_some() && self.changes_at_begin != changes
    }

    /// Whether SQLite gave the transaction up by itself, as it does on a full disk.
    pub(super) fn lost_transaction(&self) -> bool {
        self.is_open() && self.connection.as_ref().is_none_or(Connection::is_autocommit)
    }

    /// Commits; on an error nothing of the transaction is there any more.
    pub(super) fn commit(&mut self, now: Instant) -> Result<(), StoreError> {
        let Some(connection) = &self.connection else { return Err(StoreError::Closed) };
        fail_point!(StateBeforeCommit);
        match connection.execute_batch("COMMIT") {
            Ok(()) => {
                fail_point!(StateAfterCommit);
                self.changes_at_begin = None;
                Ok(())
            }
            Err(cause) => Err(self.broke(io("commit")(cause), now)),
        }
    }

    /// Gives the transaction and the connection up; the next request tries a new one.
    pub(super) fn broke(&mut self, cause: StoreError, now: Instant) -> StoreError {
        // Closing a connection rolls back what it had begun.
        self.connection = None;
        self.changes_at_begin = None;
        self.broken_at = Some((now, cause.clone()));
        cause
    }

    /// Moves the log into the database and closes.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        let cannot = io("close state.db");
        fail_point!(BeforeCheckpoint);
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).map_err(&cannot)?;
        connection.close().map_err(|(_, cause)| cannot(cause))
    }

    /// Does something that needs no transaction to be open; nothing while one is, or while the file is away.
    pub(super) fn between<T: Default>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        match &self.connection {
            Some(connection) if !self.is_open() => work(connection).map_err(io(doing)),
            _ => Ok(T::default()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn reopen(&mut self, now: Instant) -> Result<(), StoreError> {
        if let Some((at, cause)) = &self.broken_at
            && now.saturating_duration_since(*at) < REOPEN_WAIT
        {
            return Err(cause.clone());
        }
        fail_point!(BeforeReopen);
        match schema::open(&self.path) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.broken_at = None;
                Ok(())
            }
            Err(cause) => Err(self.broke(cause, now)),
        }
    }
}

//! `state.db` as the writer uses it: one transaction at a time, opened when something wants a turn; after a failure out
//! of use until the writer brings a new connection.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::fault::Fault;
use super::log;
use super::rescue::life;
use super::rescue::witness::Witness;
use super::schema::STATE_FILE;
use super::terms::StoreError;
use super::words::io;

/// The file, open or out of use.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Or why there is none.
    connection: Result<Connection, StoreError>,
    /// `None` until the file was open once.
    witness: Option<Witness>,
    /// SQLite's count of changed rows when the transaction began; `None` outside of one.
    changes_at_begin: Option<u64>,
}

impl StateFile {
    pub(super) fn new(path: PathBuf, opened: Result<(Connection, Witness), StoreError>) -> Self {
        let mut file = Self { path, connection: Err(StoreError::Closed), witness: None, changes_at_begin: None };
        match opened {
            Ok((connection, witness)) => file.renew(connection, witness),
            Err(cause) => file.connection = Err(cause),
        }
        file
    }

    /// The connection with a transaction open on it.
    pub(super) fn begin(&mut self) -> Result<&Connection, StoreError> {
        if self.changes_at_begin.is_none() {
            let connection = self.connection.as_ref().map_err(Clone::clone)?;
            match connection.execute_batch("BEGIN") {
                Ok(()) => self.changes_at_begin = Some(connection.total_changes()),
                Err(cause) => return Err(self.broke(io("begin a transaction")(cause))),
            }
        }
        self.connection.as_ref().map_err(Clone::clone)
    }

    /// Why it is out of use, if it is.
    pub(super) fn broken(&self) -> Option<&StoreError> {
        self.connection.as_ref().err()
    }

    /// Puts a fresh connection in the place of the broken one.
    pub(super) fn renew(&mut self, connection: Connection, witness: Witness) {
        (self.connection, self.witness, self.changes_at_begin) = (Ok(connection), Some(witness), None);
    }

    /// Whether a transaction is open.
    pub(super) fn is_open(&self) -> bool {
        self.changes_at_begin.is_some()
    }

    /// Whether the open transaction changed anything.
    pub(super) fn has_changes(&self) -> bool {
        let changes = self.connection.as_ref().ok().map(Connection::total_changes);
        self.changes_at_begin.is_some() && self.changes_at_begin != changes
    }

    /// Whether SQLite gave the transaction up by itself, as it does on a full disk.
    pub(super) fn lost_transaction(&self) -> bool {
        self.is_open() && self.connection.as_ref().map_or(true, Connection::is_autocommit)
    }

    /// Commits; on an error nothing of the transaction counts any more.
    pub(super) fn commit(&mut self) -> Result<(), StoreError> {
        let connection = self.connection.as_ref().map_err(Clone::clone)?;
        fail_point!(StateBeforeCommit);
        let moved = if self.has_changes() { life::transitions(connection).map(Some) } else { Ok(None) };
        let outcome = moved.and_then(|moved| connection.execute_batch("COMMIT").map(|()| moved));
        match outcome {
            Ok(moved) => {
                fail_point!(StateAfterCommit);
                self.changes_at_begin = None;
                if let Some((store, transitions)) = moved
                    && let Some(witness) = &mut self.witness
                    && let Err(cause) = witness.saw(store, transitions)
                {
                    // It is too low then, which is harmless, and the next commit tries again.
                    tracing::debug!(%cause, "the witness of the journal could not be written");
                }
                Ok(())
            }
            Err(cause) => Err(self.broke(io("commit")(cause))),
        }
    }

    /// Gives the transaction and the connection up.
    pub(super) fn broke(&mut self, cause: StoreError) -> StoreError {
        // Closing a connection rolls back what it had begun.
        if let Ok(connection) = std::mem::replace(&mut self.connection, Err(cause.clone())) {
            log::abandon(connection);
        }
        self.changes_at_begin = None;
        cause
    }

    /// Whether an error may lie in this file, so that it must be opened anew: damage tells its file, a disk does not.
    pub(super) fn is_failing(cause: &StoreError) -> bool {
        match cause {
            StoreError::Damaged { path, .. } => path.ends_with(STATE_FILE),
            cause => cause.fault().is_some(),
        }
    }

    /// Moves the log into the database and closes.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let closed = std::mem::replace(&mut self.connection, Err(StoreError::Closed));
        let Ok(connection) = closed else { return Ok(()) };
        let cannot = io("close state.db");
        fail_point!(BeforeCheckpoint);
        if let Err(cause) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            log::abandon(connection);
            return Err(cannot(cause));
        }
        connection.close().map_err(|(_, cause)| cannot(cause))
    }

    /// Does something that needs no transaction to be open; nothing while one is, or while the file is out of use. If
    /// the disk fails at it, the file is out of use.
    pub(super) fn between<T: Default>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        match &self.connection {
            Ok(connection) if !self.is_open() => match work(connection).map_err(io(doing)) {
                Err(cause) if cause.fault().is_some() => Err(self.broke(cause)),
                outcome => outcome,
            },
            _ => Ok(T::default()),
        }
    }

    /// What is wrong with the disk, if that is why it is out of use.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.broken().map(|cause| cause.fault().unwrap_or(Fault::Other))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

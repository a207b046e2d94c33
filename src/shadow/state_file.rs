//! `state.db` as the writer uses it: one transaction at a time, opened when something wants a turn, and opened anew
//! after a failure; if that was damage, it is rebuilt then ([`super::rescue`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use floorgate_model::Timestamp;
use rusqlite::Connection;

use super::rescue::Rescue;
use super::rescue::life::{self, Life};
use super::rescue::state::{self, Opened};
use super::rescue::witness::Witness;
use super::schema::STATE_FILE;
use super::terms::{Config, StoreError};
use super::words::io;

/// After a failure the file is opened again at most this often; meanwhile every request is refused.
const REOPEN_WAIT: Duration = Duration::from_secs(1);

/// The file, open or broken.
#[derive(Debug)]
pub(super) struct StateFile {
    config: Config,
    path: PathBuf,
    connection: Option<Connection>,
    witness: Witness,
    /// What was done while opening it again, and what its journal says since; until somebody asks.
    rescued: Option<(Rescue, Life)>,
    broken_at: Option<(Instant, StoreError)>,
    /// SQLite's count of changed rows when the transaction began; `None` outside of one.
    changes_at_begin: Option<u64>,
}

impl StateFile {
    /// Opens or makes the file; a damaged one is rebuilt, and so is one in which damage was `met`.
    pub(super) fn open(config: &Config, wall: Timestamp, met: Option<&str>) -> Result<(Self, Life), StoreError> {
        let Opened { connection, witness, life, rescue } = state::open(config, wall, met)?;
        let file = Self {
            config: config.clone(),
            path: config.state_dir.join(STATE_FILE),
            connection: Some(connection),
            witness,
            rescued: rescue.map(|rescue| (rescue, life.clone())),
            broken_at: None,
            changes_at_begin: None,
        };
        Ok((file, life))
    }

    /// The connection, between two transactions.
    pub(super) fn connection_mut(&mut self) -> Option<&mut Connection> {
        self.connection.as_mut()
    }

    /// What was rescued since the last time this was asked.
    pub(super) fn take_rescued(&mut self) -> Option<(Rescue, Life)> {
        self.rescued.take()
    }

    /// The connection with a transaction open on it; `now` is the senders' clock, on which the waiting runs.
    pub(super) fn begin(&mut self, now: Instant, wall: Timestamp) -> Result<&Connection, StoreError> {
        if self.connection.is_none() {
            self.reopen(now, wall)?;
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
        let moved = if self.has_changes() { life::transitions(connection).map(Some) } else { Ok(None) };
        let outcome = moved.and_then(|moved| connection.execute_batch("COMMIT").map(|()| moved));
        match outcome {
            Ok(moved) => {
                self.changes_at_begin = None;
                if let Some((store, transitions)) = moved
                    && let Err(cause) = self.witness.saw(store, transitions)
                {
                    // It is too low then, which is harmless, and the next commit tries again.
                    tracing::debug!(%cause, "the witness of the journal could not be written");
                }
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

    /// Whether an error was met in this file and not in the other one.
    pub(super) fn is_cause(cause: &StoreError) -> bool {
        matches!(cause, StoreError::Damaged { path, .. } if path.ends_with(STATE_FILE))
    }

    /// Moves the log into the database and closes.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        let cannot = io("close state.db");
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

    fn reopen(&mut self, now: Instant, wall: Timestamp) -> Result<(), StoreError> {
        if let Some((at, cause)) = &self.broken_at
            && now.saturating_duration_since(*at) < REOPEN_WAIT
        {
            return Err(cause.clone());
        }
        let met = match &self.broken_at {
            Some((_, StoreError::Damaged { cause, .. })) => Some(cause.as_str()),
            _ => None,
        };
        match state::open(&self.config, wall, met) {
            Ok(Opened { connection, witness, life, rescue }) => {
                self.connection = Some(connection);
                self.witness = witness;
                self.rescued = rescue.map(|rescue| (rescue, life));
                self.broken_at = None;
                Ok(())
            }
            Err(cause) => Err(self.broke(cause, now)),
        }
    }
}

//! The one row of `state.db` that says what the journal has been through, and how long it is still doubted.
//!
//! Triggers count every transition and every execution, whatever the code does. Against the witness the first count
//! shows whether commits are missing; the second whether rows are.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

/// What the row says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::shadow) struct Life {
    /// Drawn when the file was made: two files with the same are one store.
    pub(in crate::shadow) store: i64,
    /// Insertions and changes of status, ever.
    pub(in crate::shadow) transitions: i64,
    /// Rows of `execution`.
    pub(in crate::shadow) executions: i64,
    /// How long commands stay inhibited; zero if the journal is not in doubt.
    pub(in crate::shadow) doubt_left: Duration,
    /// Why.
    pub(in crate::shadow) doubt_why: Option<String>,
}

pub(in crate::shadow) fn read(connection: &Connection) -> rusqlite::Result<Option<Life>> {
    let sql = "SELECT store, transitions, executions, doubt_left_ms, doubt_why FROM life WHERE one = 1";
    let mut statement = connection.prepare_cached(sql)?;
    let life = statement.query_row([], |row| {
        Ok(Life {
            store: row.get(0)?,
            transitions: row.get(1)?,
            executions: row.get(2)?,
            doubt_left: Duration::from_millis(u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0)),
            doubt_why: row.get(4)?,
        })
    });
    life.optional()
}

/// The store and its transitions; cheap enough for every commit.
pub(in crate::shadow) fn transitions(connection: &Connection) -> rusqlite::Result<(i64, i64)> {
    let mut statement = connection.prepare_cached("SELECT store, transitions FROM life WHERE one = 1")?;
    statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
}

/// From now on commands are inhibited for so long, and because of this.
pub(in crate::shadow) fn doubt(connection: &Connection, left: Duration, why: &str) -> rusqlite::Result<()> {
    let sql = "UPDATE life SET doubt_left_ms = ?1, doubt_why = ?2 WHERE one = 1";
    connection.execute(sql, params![millis(left), why]).map(drop)
}

/// So much of the doubt is left.
pub(in crate::shadow) fn wait(connection: &Connection, left: Duration) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("UPDATE life SET doubt_left_ms = ?1 WHERE one = 1")?;
    statement.execute([millis(left)]).map(drop)
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

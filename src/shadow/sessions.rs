//! Persistent sessions of the floor endpoint's clients, so that a device that slept through a restart still gets what
//! it subscribed to.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::terms::StoreError;
use super::words::{if_readable, io, json, read_json};

/// Most sessions kept; a client more than that gets an error instead of a promise.
pub(super) const SESSIONS_MAX: i64 = 1_000;

pub(super) fn all(connection: &Connection) -> Result<BTreeMap<String, Vec<String>>, StoreError> {
    let cannot = io("read the sessions");
    let mut statement = connection.prepare_cached("SELECT client, filters FROM session").map_err(&cannot)?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, read_json(row, 1)?))).map_err(&cannot)?;
    let readable = rows.filter_map(|row| if_readable(row, "a session").transpose());
    readable.collect::<Result<_, _>>().map_err(&cannot)
}

pub(super) fn save(connection: &Connection, client: &str, filters: Option<&[String]>) -> Result<(), StoreError> {
    let cannot = io("keep a session");
    let Some(filters) = filters else {
        let mut statement = connection.prepare_cached("DELETE FROM session WHERE client = ?1").map_err(&cannot)?;
        return statement.execute([client]).map(drop).map_err(&cannot);
    };
    let mut statement = connection
        .prepare_cached("SELECT count(*) >= ?2 AND NOT EXISTS (SELECT 1 FROM session WHERE client = ?1) FROM session")
        .map_err(&cannot)?;
    let full: bool = statement.query_row(params![client, SESSIONS_MAX], |row| row.get(0)).map_err(&cannot)?;
    if full {
        let cause = format!("{SESSIONS_MAX} sessions are kept already; end one first");
        return Err(StoreError::Io { doing: "keep a session", cause });
    }
    let mut statement = connection
        .prepare_cached("INSERT OR REPLACE INTO session (client, filters) VALUES (?1, ?2)")
        .map_err(&cannot)?;
    statement.execute(params![client, json(&filters)]).map(drop).map_err(&cannot)
}

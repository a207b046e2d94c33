//! Announcements that are due, in `state.db`: which executions a lane has not heard the newest of.
//!
//! An entry holds no record; peeking joins the newest one. A transition replaces the entry of its execution under a
//! new, never used number, so whoever confirms the older one leaves it in place. No entry is ever dropped: there is at
//! most one an execution and lane, and executions are bounded.

use floorgate_model::Timestamp;
use rusqlite::{Connection, params};

use super::journal;
use super::terms::StoreError;
use super::view::{Lane, OutboxEntry};
use super::words::{io, read_opt_time};

fn word(lane: Lane) -> &'static str {
    match lane {
        Lane::Result => "result",
        Lane::Table => "table",
    }
}

/// Announces an execution once more.
pub(super) fn announce(connection: &Connection, lane: Lane, execution: i64, now: Timestamp) -> Result<(), StoreError> {
    let cannot = io("announce an execution");
    let mut statement = connection
        .prepare_cached("INSERT OR REPLACE INTO outbox (lane, execution, since) VALUES (?1, ?2, ?3)")
        .map_err(&cannot)?;
    statement.execute(params![word(lane), execution, now.as_millis()]).map(drop).map_err(&cannot)
}

/// The oldest of a lane after this number, each with the record as it stands now.
pub(super) fn peek(
    connection: &Connection,
    lane: Lane,
    after: i64,
    limit: usize,
) -> Result<Vec<OutboxEntry>, StoreError> {
    let cannot = io("read the outbox");
    // The limit counts what can be read: unreadable ones do not hide the others.
    let rest = "FROM outbox o JOIN execution e ON e.seq = o.execution WHERE o.lane = ?1 AND o.seq > ?2 ORDER BY o.seq";
    let mut statement = connection.prepare_cached(&journal::select(", o.seq", rest)).map_err(&cannot)?;
    let rows = statement.query_map(params![word(lane), after], |row| {
        let Some(execution) = journal::read_readable(row)? else { return Ok(None) };
        let seq = row.get(journal::RECORD_COLUMNS)?;
        Ok(Some(OutboxEntry { seq, record: execution.open.record, answer: execution.open.answer }))
    });
    let readable = rows.map_err(&cannot)?.filter_map(Result::transpose);
    readable.take(limit).collect::<Result<_, _>>().map_err(&cannot)
}

/// Removes what was announced.
pub(super) fn confirm(connection: &Connection, lane: Lane, seqs: &[i64]) -> Result<(), StoreError> {
    let cannot = io("confirm announcements");
    let mut statement =
        connection.prepare_cached("DELETE FROM outbox WHERE lane = ?1 AND seq = ?2").map_err(&cannot)?;
    for seq in seqs {
        statement.execute(params![word(lane), seq]).map_err(&cannot)?;
    }
    Ok(())
}

/// How many wait in both lanes, and since when the oldest.
pub(super) fn waiting(connection: &Connection) -> Result<(u64, Option<Timestamp>), StoreError> {
    let cannot = io("count the outbox");
    let mut statement = connection.prepare_cached("SELECT count(*), min(since) FROM outbox").map_err(&cannot)?;
    let figures = statement.query_row([], |row| {
        let count: i64 = row.get(0)?;
        Ok((u64::try_from(count).unwrap_or(0), read_opt_time(row, 1)?))
    });
    figures.map_err(&cannot)
}

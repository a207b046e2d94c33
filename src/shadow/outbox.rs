//! Announcements that are due, in `state.db`: which executions a lane has not heard the newest of.
//!
//! An entry holds no record; peeking joins the newest one. A transition replaces the entry of its execution under a
//! new, never used number, so whoever confirms the older one leaves it in place. There is at most one entry an execution
//! and lane. No entry of an accepted command is ever dropped, and [`super::journal`] bounds them; entries of commands
//! that were refused on arrival go with those ([`super::refusals`]).
//!
//! # Order
//!
//! * Accepted commands first, whatever their age: after an outage nobody waits for the outcome of what a device did
//!   behind a thousand refusals.
//! * Within each of the two kinds the oldest transition first, over all devices: so a device's executions are announced
//!   in the order of their newest transitions, and none is passed over for ever by newer ones. Refusals do wait while
//!   outcomes are due; a lane empties faster than devices execute.
//! * Of one execution no earlier status can follow a later one: it has one entry, which is read together with the
//!   status as it stands then, and a lane reads again only when what it read before is settled or given up. A request
//!   that was given up and arrives all the same is held back by its condition (tables) or its connection (results).
//! * A refusal may therefore be announced after a younger command's outcome. Whoever shows the last command of a device
//!   goes by the time of receipt in the record, as the tables' conditions do.

use floorgate_model::Timestamp;
use rusqlite::{Connection, params};

use super::journal;
use super::terms::StoreError;
use super::view::{Lane, OutboxEntry, OutboxOrder};
use super::words::{io, read_opt_time, read_size};

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
        .prepare_cached(
            "INSERT OR REPLACE INTO outbox (lane, execution, since, refused) \
             SELECT ?1, seq, ?3, refused > 0 FROM execution WHERE seq = ?2",
        )
        .map_err(&cannot)?;
    statement.execute(params![word(lane), execution, now.as_millis()]).map(drop).map_err(&cannot)
}

/// The next of a lane after this number, each with the record as it stands now.
pub(super) fn peek(
    connection: &Connection,
    lane: Lane,
    order: OutboxOrder,
    after: i64,
    limit: usize,
) -> Result<Vec<OutboxEntry>, StoreError> {
    let cannot = io("read the outbox");
    // The limit counts what can be read: unreadable ones do not hide the others.
    let columns = match order {
        OutboxOrder::OutcomesFirst => "o.refused, o.seq",
        OutboxOrder::ByNumber => "o.seq",
    };
    let rest = format!(
        "FROM outbox o JOIN execution e ON e.seq = o.execution WHERE o.lane = ?1 AND o.seq > ?2 ORDER BY {columns}"
    );
    let mut statement = connection.prepare_cached(&journal::select(", o.seq", &rest)).map_err(&cannot)?;
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

/// How many accepted commands a lane has not heard the newest of, the longer lane of the two; counted up to `most`.
pub(super) fn outcomes_waiting(connection: &Connection, most: usize) -> Result<usize, StoreError> {
    let cannot = io("count the outcomes that wait");
    let mut statement = connection
        .prepare_cached("SELECT count(*) FROM (SELECT 1 FROM outbox WHERE lane = ?1 AND refused = 0 LIMIT ?2)")
        .map_err(&cannot)?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut count = |lane| statement.query_row(params![word(lane), most], |row| read_size(row, 0));
    let [results, tables] = [count(Lane::Result), count(Lane::Table)];
    Ok(results.map_err(&cannot)?.max(tables.map_err(&cannot)?))
}

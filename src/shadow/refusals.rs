//! Commands that were refused on arrival: few are kept, and a forgotten one does not run.
//!
//! A refusal costs its sender nothing, so their number is the sender's to choose, also while the table is away and none
//! can be announced. An accepted command is another matter: it had a place in a queue, and its outcome is owed.
//!
//! # Guarantees
//!
//! * At most [`DEVICE_REFUSALS_MAX`] refusals of a device and [`REFUSALS_MAX`] in all are kept, with at most
//!   [`REFUSAL_BYTES_MAX`] in all, announced or not. Beyond, the oldest of the device goes; beyond the bounds of the
//!   gateway, the oldest of the device that has most, so a flood costs its own device's refusals and no neighbour's.
//! * One that goes before it was announced everywhere is counted, over restarts too ([`not_announced`]).
//! * Never counted here and never dropped: a command that was accepted, however it ended. The journal keeps those.
//!
//! # Why a forgotten refusal does not run
//!
//! Its message may be delivered again (its PUBACK was lost), and its id is no longer known. Running it then would be
//! wrong even if nothing spoke against it any more: its sender was told that it was refused, and may have sent another.
//! So for each device the latest `issued_at` of what was forgotten is kept, and an unknown command that was issued no
//! later is refused again, as [`floorgate_model::Reason::RateLimited`]. Whoever still wants it sends it with the time
//! of now. That holds for all of a device's commands up to then, also for one never seen that was long on its way: in
//! a flood nobody can tell them apart, and refusing is safe. It ends by itself, as older commands expire in any case.
//!
//! Two kinds do not raise that time, and are judged anew if they come again:
//!
//! * What was no command at all (`MALFORMED`): the same bytes are refused for the same reason.
//! * What was issued more than [`CLOCK_AHEAD_MAX`] ahead of our clock: one message from the year 2100 must not close a
//!   device to everybody. When its time has come it is fresh by its own word, and it has never run. For the same reason
//!   a kept time that lies so far ahead, because our clock was put back, says nothing.

use floorgate_model::command::CLOCK_AHEAD_MAX;
use floorgate_model::{DeviceId, ExecutionRecord, Reason, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::journal::KEPT_FOR;
use super::terms::StoreError;
use super::words::{io, json, opt_json, read_count};

/// Refusals of one device that are kept.
pub(super) const DEVICE_REFUSALS_MAX: i64 = 100;
/// Refusals that are kept in all.
pub(super) const REFUSALS_MAX: i64 = 1_000;
/// Bytes of all refusals that are kept; some 500 of the largest allowed.
pub(super) const REFUSAL_BYTES_MAX: i64 = 4 * 1024 * 1024;
/// Bytes that a row takes beside its texts, in the table, its indexes and both lanes.
const ROW_BYTES: usize = 500;
/// No time at all: older than any.
const NEVER: i64 = i64::MIN;

/// What a refusal takes on disk, about; never 0, which marks what was accepted.
pub(super) fn bytes(record: &ExecutionRecord) -> i64 {
    let optional = |text: Option<&String>| text.map_or(0, String::len);
    let texts = [
        record.command_id.as_str().len() * 2,
        record.command.len(),
        json(&record.parameters).len(),
        optional(record.issuer.as_ref()),
        optional(record.message.as_ref()),
        optional(opt_json(record.details.as_ref()).as_ref()),
    ];
    i64::try_from(ROW_BYTES + texts.iter().sum::<usize>()).unwrap_or(i64::MAX)
}

/// Forgets as many as it takes, after `device` got one more. `now` is the time of day.
pub(super) fn keep_few(connection: &Connection, device: &DeviceId, now: Timestamp) -> Result<(), StoreError> {
    while let Some(crowded) = crowded(connection, device)? {
        if !forget_oldest(connection, &crowded, now)? {
            break;
        }
    }
    Ok(())
}

/// Which device has too many, if any has.
fn crowded(connection: &Connection, device: &DeviceId) -> Result<Option<String>, StoreError> {
    let cannot = io("count the refused commands");
    let mut statement = connection
        .prepare_cached(
            "SELECT count(*), coalesce(sum(refused), 0), coalesce(sum(device_id = ?1), 0) FROM execution \
             WHERE refused > 0",
        )
        .map_err(&cannot)?;
    let count = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let (all, bytes, own): (i64, i64, i64) = statement.query_row([device.as_str()], count).map_err(&cannot)?;
    if own > DEVICE_REFUSALS_MAX {
        return Ok(Some(device.to_string()));
    }
    let most = if bytes > REFUSAL_BYTES_MAX {
        "SELECT device_id FROM execution WHERE refused > 0 GROUP BY device_id ORDER BY sum(refused) DESC LIMIT 1"
    } else if all > REFUSALS_MAX {
        "SELECT device_id FROM execution WHERE refused > 0 GROUP BY device_id ORDER BY count(*) DESC LIMIT 1"
    } else {
        return Ok(None);
    };
    let mut statement = connection.prepare_cached(most).map_err(&cannot)?;
    statement.query_row([], |row| row.get(0)).optional().map_err(&cannot)
}

/// Answers whether there was one.
fn forget_oldest(connection: &Connection, device: &str, now: Timestamp) -> Result<bool, StoreError> {
    let cannot = io("forget a refused command");
    let mut oldest = connection
        .prepare_cached(
            "SELECT seq, issued_at, reason FROM execution WHERE refused > 0 AND device_id = ?1 ORDER BY seq LIMIT 1",
        )
        .map_err(&cannot)?;
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let found: Option<(i64, i64, Option<String>)> = oldest.query_row([device], read).optional().map_err(&cannot)?;
    let Some((seq, issued_at, reason)) = found else { return Ok(false) };
    let run = |text: &str| connection.prepare_cached(text).and_then(|mut statement| statement.execute([seq]));
    let unannounced = run("DELETE FROM outbox WHERE execution = ?1").map_err(&cannot)? > 0;
    run("DELETE FROM execution WHERE seq = ?1").map_err(&cannot)?;
    let believable = now.saturating_add(CLOCK_AHEAD_MAX).as_millis();
    let counts = reason.as_deref() != Some(Reason::Malformed.as_str()) && issued_at <= believable;
    let mut note = connection
        .prepare_cached(
            "INSERT INTO forgotten (device_id, issued_through, not_announced) VALUES (?1, ?2, ?3) \
             ON CONFLICT (device_id) DO UPDATE SET not_announced = not_announced + excluded.not_announced, \
             issued_through = CASE WHEN issued_through > ?4 THEN excluded.issued_through \
             ELSE max(issued_through, excluded.issued_through) END",
        )
        .map_err(&cannot)?;
    let through = if counts { issued_at } else { NEVER };
    note.execute(params![device, through, unannounced, believable]).map_err(&cannot)?;
    Ok(true)
}

/// Why a command that is unknown here may be one that was refused and forgotten; `None` if it cannot be.
pub(super) fn may_be_forgotten(
    connection: &Connection,
    record: &ExecutionRecord,
    now: Timestamp,
) -> Result<Option<String>, StoreError> {
    let cannot = io("look for a forgotten command");
    let mut statement = connection
        .prepare_cached("SELECT issued_through FROM forgotten WHERE device_id = ?1 AND issued_through <= ?2")
        .map_err(&cannot)?;
    let believable = now.saturating_add(CLOCK_AHEAD_MAX).as_millis();
    let through = statement.query_row(params![record.device_id.as_str(), believable], |row| row.get(0));
    let through = through.optional().map_err(&cannot)?.map(Timestamp::from_millis);
    Ok(through.filter(|through| record.issued_at <= *through).map(|through| {
        format!(
            "too many commands for {} were refused to remember each, and this one, issued no later than {through}, \
             may be one of them; send it again with the time of now if it is still wanted",
            record.device_id
        )
    }))
}

/// How many refusals went before they were announced everywhere, since the file was made.
pub(super) fn not_announced(connection: &Connection) -> Result<u64, StoreError> {
    let cannot = io("count the forgotten commands");
    let mut statement =
        connection.prepare_cached("SELECT coalesce(sum(not_announced), 0) FROM forgotten").map_err(&cannot)?;
    statement.query_row([], |row| read_count(row, 0)).map_err(&cannot)
}

/// Removes at most `limit` that are announced and as old as ended commands get. Answers how many.
pub(super) fn prune(connection: &Connection, now: Timestamp, limit: i64) -> Result<usize, StoreError> {
    let cannot = io("tidy the refused commands");
    let mut statement = connection
        .prepare_cached(
            "DELETE FROM execution WHERE seq IN (SELECT e.seq FROM execution e INDEXED BY execution_refused WHERE e.refused > 0 \
             AND e.status NOT IN ('created', 'in_progress') AND e.completed_at < ?1 \
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.execution = e.seq) ORDER BY e.seq LIMIT ?2)",
        )
        .map_err(&cannot)?;
    statement.execute(params![now.saturating_sub(KEPT_FOR).as_millis(), limit]).map_err(&cannot)
}

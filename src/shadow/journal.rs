//! The journal of executions in `state.db`: every command that was accepted, the newest that were refused, and how each
//! ended.
//!
//! # Guarantees
//!
//! * A command id stands here once; the same id again is a duplicate or a conflict.
//! * A status only moves as [`ExecutionStatus::may_become`] allows, so exactly one terminal status is ever written.
//! * At most [`DEVICE_QUEUE_MAX`] commands of a device and [`GATEWAY_QUEUE_MAX`] in all are open; one more is stored as
//!   rejected.
//! * While [`OUTCOMES_WAITING_MAX`] outcomes wait to be announced, no further command is accepted, so that each that
//!   is can be kept until its outcome is announced.
//! * Executions that were accepted and have ended are kept for [`KEPT_FOR`] and until [`KEPT_MIN`] newer ones exist,
//!   refusals not counted. Beyond [`KEPT_MAX`] the oldest go sooner, but never before they expired, nor within the
//!   longest life of a command after they ended: until then their id protects from running them again. None goes before
//!   it is announced.
//! * Commands that were refused on arrival have bounds of their own, see [`super::refusals`].
//!
//! Each function runs inside the caller's transaction.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use floorgate_model::command::LIFETIME_MAX;
use floorgate_model::{CommandId, DeviceId, ExecutionRecord, ExecutionStatus, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};

use super::answers::{read_answer, write_answer};
use super::report::Answer;
use super::terms::{DEVICE_QUEUE_MAX, Ending, GATEWAY_QUEUE_MAX, NewExecution, OpenExecution, StoreError};
use super::words::{io, json, opt_json, opt_time, read_json, read_opt_json, read_opt_time, read_opt_word, read_time};
use super::words::{is_bad_value, read_size, read_word, signed};
use super::{outbox, refusals};
use crate::clock::{BootId, BootTime};

/// Ended executions are kept at least this long.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3_600);
/// So many of the newest are kept, however old.
pub(super) const KEPT_MIN: i64 = 10_000;
/// More than this are never kept, however young, once they have expired.
pub(super) const KEPT_MAX: i64 = 100_000;
/// Outcomes of accepted commands that may wait for a lane; none of them is ever dropped.
pub(super) const OUTCOMES_WAITING_MAX: usize = 10_000;
/// Executions removed in one step, so that no step is long.
pub(super) const REMOVED_PER_STEP: i64 = 100;

/// So many unreadable executions are logged, each once; beyond, they are left out without a word.
const WARNED_MAX: usize = 1_000;

const RECORD: &str = "e.seq, e.command_id, e.device_id, e.command, e.parameters, e.issuer, e.issued_at, e.expires_at, \
    e.received_at, e.status, e.reason, e.message, e.details, e.started_at, e.completed_at, e.gateway_id, \
    e.checked_parameters, e.answer, e.boot_count_before, e.received_boot_id, e.received_boot_ms";

/// An execution with everything the file knows of it.
#[derive(Debug, Clone)]
pub(super) struct Execution {
    pub(super) seq: i64,
    pub(super) open: OpenExecution,
}

impl Execution {
    pub(super) fn record(&self) -> &ExecutionRecord {
        &self.open.record
    }
}

/// Columns of [`RECORD`] with `more` columns after them.
pub(super) fn select(more: &str, rest: &str) -> String {
    format!("SELECT {RECORD}{more} {rest}")
}

/// How many columns [`RECORD`] has: the index of the first one after it.
pub(super) const RECORD_COLUMNS: usize = 21;

pub(super) fn read_execution(row: &Row<'_>) -> rusqlite::Result<Execution> {
    let record = ExecutionRecord {
        command_id: read_word(row, 1)?,
        device_id: read_word(row, 2)?,
        command: row.get(3)?,
        parameters: read_json(row, 4)?,
        issuer: row.get(5)?,
        issued_at: read_time(row, 6)?,
        expires_at: read_time(row, 7)?,
        received_at: read_time(row, 8)?,
        status: read_word(row, 9)?,
        reason: read_opt_word(row, 10)?,
        message: row.get(11)?,
        details: read_opt_json(row, 12)?,
        started_at: read_opt_time(row, 13)?,
        completed_at: read_opt_time(row, 14)?,
        gateway_id: read_word(row, 15)?,
    };
    let answer = read_answer(row, 17, &record)?;
    let boot_count_before = row.get::<_, Option<i64>>(18)?.and_then(|count| u64::try_from(count).ok());
    let checked_parameters: Map<String, Value> = read_json(row, 16)?;
    let boot_id = row.get_ref(19)?.as_str_or_null()?.and_then(BootId::parse);
    let boot_ms: Option<i64> = row.get(20)?;
    let received_boot = boot_id.zip(boot_ms).map(|(boot_id, ms)| BootTime { boot_id, ms });
    let open = OpenExecution { record, checked_parameters, answer, boot_count_before, received_boot };
    Ok(Execution { seq: row.get(0)?, open })
}

/// As [`read_execution`], but a row whose words cannot be read is left out, so that the others go on. It still counts as
/// open if it is, and never runs again.
pub(super) fn read_readable(row: &Row<'_>) -> rusqlite::Result<Option<Execution>> {
    match read_execution(row) {
        Ok(execution) => Ok(Some(execution)),
        Err(cause) if is_bad_value(&cause) => {
            warn_once(row.get(0)?, &cause);
            Ok(None)
        }
        Err(cause) => Err(cause),
    }
}

fn warn_once(seq: i64, cause: &rusqlite::Error) {
    static WARNED: Mutex<BTreeSet<i64>> = Mutex::new(BTreeSet::new());
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if warned.len() < WARNED_MAX && warned.insert(seq) {
        tracing::warn!(execution = seq, %cause, "an execution in the journal cannot be read; it is left out");
    }
}

/// The execution of this id, on whatever device.
pub(super) fn find(connection: &Connection, id: &CommandId) -> Result<Option<Execution>, StoreError> {
    let cannot = io("read the journal");
    let text = select("", "FROM execution e WHERE e.command_id = ?1");
    let mut statement = connection.prepare_cached(&text).map_err(&cannot)?;
    statement.query_row([id.as_str()], read_execution).optional().map_err(&cannot)
}

/// The execution of this id on this device.
pub(super) fn find_on(
    connection: &Connection,
    device: &DeviceId,
    id: &CommandId,
) -> Result<Option<Execution>, StoreError> {
    Ok(find(connection, id)?.filter(|found| found.record().device_id == *device))
}

/// All of one open status, first in first out.
pub(super) fn with_status(connection: &Connection, status: ExecutionStatus) -> Result<Vec<OpenExecution>, StoreError> {
    let cannot = io("read the journal");
    // The words stand in the text: only so does SQLite see that the index of open executions serves.
    let rest = format!("FROM execution e WHERE e.status = '{status}' ORDER BY e.seq");
    let mut statement = connection.prepare_cached(&select("", &rest)).map_err(&cannot)?;
    let rows = statement.query_map([], read_readable).map_err(&cannot)?;
    rows.filter_map(Result::transpose).map(|found| Ok(found?.open)).collect::<Result<_, _>>().map_err(&cannot)
}

/// The newest one of a device that can be read.
pub(super) fn newest_of(connection: &Connection, device: &DeviceId) -> Result<Option<Execution>, StoreError> {
    let cannot = io("read the journal");
    let rest = "FROM execution e WHERE e.device_id = ?1 ORDER BY e.seq DESC LIMIT 1";
    let mut statement = connection.prepare_cached(&select("", rest)).map_err(&cannot)?;
    let found = statement.query_row([device.as_str()], read_readable).optional().map_err(&cannot)?;
    Ok(found.flatten())
}

/// Newest first, of all devices or one.
pub(super) fn newest(
    connection: &Connection,
    device: Option<&DeviceId>,
    limit: usize,
) -> Result<Vec<ExecutionRecord>, StoreError> {
    let cannot = io("read the journal");
    let rest = match device {
        Some(_) => "FROM execution e WHERE e.device_id = ?2 ORDER BY e.seq DESC LIMIT ?1",
        None => "FROM execution e WHERE ?2 IS NULL ORDER BY e.seq DESC LIMIT ?1",
    };
    let mut statement = connection.prepare_cached(&select("", rest)).map_err(&cannot)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_map(params![limit, device.map(DeviceId::as_str)], read_readable).map_err(&cannot)?;
    rows.filter_map(Result::transpose).map(|found| Ok(found?.open.record)).collect::<Result<_, _>>().map_err(&cannot)
}

/// The newest ids, newest first.
pub(super) fn newest_ids(connection: &Connection, limit: usize) -> Result<Vec<CommandId>, StoreError> {
    let cannot = io("read the journal");
    let mut statement =
        connection.prepare("SELECT command_id FROM execution ORDER BY seq DESC LIMIT ?1").map_err(&cannot)?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let ids = statement.query_map([limit], |row| row.get::<_, String>(0)).map_err(&cannot)?;
    // One that is no id can come again under no id either.
    let ids = ids.filter(|id| !id.as_ref().is_err_and(is_bad_value));
    ids.filter_map(|id| id.map(|id| CommandId::new(&id).ok()).transpose()).collect::<Result<_, _>>().map_err(&cannot)
}

/// How many are open: of the device, and of all.
pub(super) fn count_open(connection: &Connection, device: &DeviceId) -> Result<(usize, usize), StoreError> {
    let cannot = io("count the open commands");
    let mut statement = connection
        .prepare_cached(
            "SELECT coalesce(sum(device_id = ?1), 0), count(*) FROM execution \
             WHERE status IN ('created', 'in_progress')",
        )
        .map_err(&cannot)?;
    statement.query_row([device.as_str()], |row| Ok((read_size(row, 0)?, read_size(row, 1)?))).map_err(&cannot)
}

/// Whether one more would be too many, and why.
pub(super) fn queue_is_full(connection: &Connection, device: &DeviceId) -> Result<Option<String>, StoreError> {
    let (of_device, of_all) = count_open(connection, device)?;
    let waiting = outbox::outcomes_waiting(connection, OUTCOMES_WAITING_MAX)?;
    Ok(if of_device >= DEVICE_QUEUE_MAX {
        Some(format!("{of_device} commands are open on {device} already; send it again when one has ended"))
    } else if of_all >= GATEWAY_QUEUE_MAX {
        Some(format!("{of_all} commands are open on this gateway already; send it again when some have ended"))
    } else if waiting >= OUTCOMES_WAITING_MAX {
        Some(format!(
            "{waiting} outcomes wait for their way to the cloud already, and no more can be kept; send it again when \
             the connection is back"
        ))
    } else {
        None
    })
}

/// Writes a new execution; its id must not be there yet. `refused` is 0, or the bytes of one that is refused on arrival.
/// Answers its row.
pub(super) fn insert(connection: &Connection, entry: &NewExecution, refused: i64) -> Result<i64, StoreError> {
    let cannot = io("journal a command");
    let record = &entry.record;
    let mut statement = connection
        .prepare_cached(
            "INSERT INTO execution (command_id, device_id, command, parameters, issuer, issued_at, expires_at, \
             received_at, status, reason, message, details, started_at, completed_at, gateway_id, checked_parameters, \
             refused, received_boot_id, received_boot_ms) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
        )
        .map_err(&cannot)?;
    let row = params![
        record.command_id.as_str(),
        record.device_id.as_str(),
        record.command,
        json(&record.parameters),
        record.issuer,
        record.issued_at.as_millis(),
        record.expires_at.as_millis(),
        record.received_at.as_millis(),
        record.status.as_str(),
        record.reason.map(floorgate_model::Reason::as_str),
        record.message,
        opt_json(record.details.as_ref()),
        opt_time(record.started_at),
        opt_time(record.completed_at),
        record.gateway_id.as_str(),
        json(&entry.checked_parameters),
        refused,
        entry.received_boot.map(|at| at.boot_id.to_string()),
        entry.received_boot.map(|at| at.ms),
    ];
    statement.insert(row).map_err(&cannot)
}

/// `created` → `in_progress`, unless it is not `created` or another one of its device runs. An answer that came
/// before the device could have the command is none, and goes.
pub(super) fn claim(
    connection: &Connection,
    seq: i64,
    started_at: Timestamp,
    boot_count: Option<u64>,
) -> Result<bool, StoreError> {
    let cannot = io("commit the intent of a command");
    let mut statement = connection
        .prepare_cached(
            "UPDATE execution SET status = 'in_progress', started_at = ?2, boot_count_before = ?3, answer = NULL \
             WHERE seq = ?1 AND status = 'created' AND NOT EXISTS (SELECT 1 FROM execution other \
             WHERE other.device_id = execution.device_id AND other.status = 'in_progress')",
        )
        .map_err(&cannot)?;
    let changed = statement.execute(params![seq, started_at.as_millis(), boot_count.map(signed)]).map_err(&cannot)?;
    Ok(changed == 1)
}

/// Writes the terminal status, if the execution is still open.
pub(super) fn finish(connection: &Connection, seq: i64, ending: &Ending, at: Timestamp) -> Result<bool, StoreError> {
    let cannot = io("end a command");
    let mut statement = connection
        .prepare_cached(
            "UPDATE execution SET status = ?2, reason = ?3, message = ?4, details = ?5, completed_at = ?6 \
             WHERE seq = ?1 AND status IN ('created', 'in_progress')",
        )
        .map_err(&cannot)?;
    let row = params![
        seq,
        ending.status.as_str(),
        ending.reason.map(floorgate_model::Reason::as_str),
        ending.message,
        opt_json(ending.details.as_ref()),
        at.as_millis(),
    ];
    Ok(statement.execute(row).map_err(&cannot)? == 1)
}

/// Keeps the device's word on an open execution.
pub(super) fn answer(connection: &Connection, seq: i64, answer: &Answer) -> Result<(), StoreError> {
    write(connection, "UPDATE execution SET answer = ?2 WHERE seq = ?1", seq, answer)
}

/// Keeps a word that came after the end, for whoever looks into it.
pub(super) fn late_answer(connection: &Connection, seq: i64, answer: &Answer) -> Result<(), StoreError> {
    write(connection, "UPDATE execution SET late_answer = ?2 WHERE seq = ?1", seq, answer)
}

fn write(connection: &Connection, text: &str, seq: i64, answer: &Answer) -> Result<(), StoreError> {
    let cannot = io("keep an answer");
    let mut statement = connection.prepare_cached(text).map_err(&cannot)?;
    statement.execute(params![seq, write_answer(answer)]).map(drop).map_err(&cannot)
}

/// Removes some of what need not be kept any more. Answers how many. With `by_age` false, only what is too much goes: a
/// clock that is not known to be right must not make anything old.
pub(super) fn prune(connection: &Connection, now: Timestamp, by_age: bool) -> Result<usize, StoreError> {
    let refused = if by_age { refusals::prune(connection, now, REMOVED_PER_STEP)? } else { 0 };
    let left = REMOVED_PER_STEP - i64::try_from(refused).unwrap_or(REMOVED_PER_STEP);
    let Some(beyond_min) = beyond(connection, KEPT_MIN)? else { return Ok(refused) };
    let beyond_max = beyond(connection, KEPT_MAX)?.unwrap_or(0);
    let cannot = io("tidy the journal");
    let mut statement = connection
        .prepare_cached(
            "DELETE FROM execution WHERE seq IN (SELECT e.seq FROM execution e \
             WHERE e.seq <= ?1 AND e.refused = 0 AND e.status NOT IN ('created', 'in_progress') \
             AND (e.completed_at < ?2 OR (e.seq <= ?3 AND e.expires_at < ?4 AND e.completed_at < ?5)) \
             AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.execution = e.seq) ORDER BY e.seq LIMIT ?6)",
        )
        .map_err(&cannot)?;
    let [oldest, protected] = [KEPT_FOR, LIFETIME_MAX].map(|time| now.saturating_sub(time).as_millis());
    let oldest = if by_age { oldest } else { 0 };
    let row = params![beyond_min, oldest, beyond_max, now.as_millis(), protected, left];
    Ok(refused + statement.execute(row).map_err(&cannot)?)
}

/// The newest accepted execution that has `count` newer accepted ones, if there are so many.
fn beyond(connection: &Connection, count: i64) -> Result<Option<i64>, StoreError> {
    let cannot = io("count the journal");
    // Counting on the table itself would read all of it.
    let mut statement = connection
        .prepare_cached(
            "SELECT seq FROM execution INDEXED BY execution_accepted WHERE refused = 0 \
             ORDER BY seq DESC LIMIT 1 OFFSET ?1",
        )
        .map_err(&cannot)?;
    statement.query_row([count], |row| row.get(0)).optional().map_err(&cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_may_be_wrong_makes_no_command_old() {
        let folder = tempfile::tempdir().unwrap();
        let connection = crate::shadow::schema::open(&folder.path().join("state.db")).unwrap();
        let rows = format!(
            "INSERT INTO execution (command_id, device_id, command, parameters, issued_at, expires_at, received_at, status, \
             completed_at, gateway_id, checked_parameters) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n \
             WHERE i < {KEPT_MIN} + 5) SELECT i, 'A', 'reboot', '{{}}', 0, 0, 0, 'succeeded', 0, 'GW', '{{}}' FROM n"
        );
        connection.execute_batch(&rows).unwrap();
        let in_a_year = Timestamp::from_millis(365 * 86_400_000);
        assert_eq!(prune(&connection, in_a_year, false).unwrap(), 0);
        assert_eq!(prune(&connection, in_a_year, true).unwrap(), 5);
    }
}

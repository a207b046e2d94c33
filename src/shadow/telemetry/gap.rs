//! Gap records: what is told of readings that were given up (`gap` rows).
//!
//! # Keys
//!
//! A gap record's key in the table (device, time) must never be that of a block's item, or of another gap's, which it
//! would overwrite. A record whose readings were in blocks takes over the earliest of their keys: those blocks were
//! never handed out ([`super::offer`]), so the table cannot have an item under any of them, and their rows go in the
//! same transaction. A record of readings that were in no block, or in one that nobody knows any more, gets the first
//! millisecond after the device's newest time, which no earlier sample had, and that becomes the newest time, so that
//! no later one gets it; after a restart, or when a clock was put back, the record itself keeps a block from beginning
//! there. The keys of records that were sent stay known for as long as their rows are kept
//! ([`SENT_KEPT`]), which keeps a late sample from asking for one.
//!
//! A record may grow (more readings, a wider time) until it is handed out; from then on its key and its bytes are
//! fixed, as a block's are.

use floorgate_model::LossReason;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::books::Books;
use super::offer::Offered;
use super::summary::{self, Summary};

/// Readings given up for one reason come into one record while it stays within this time, milliseconds: an hour.
pub(super) const SPAN_MS: i64 = 3_600_000;
/// Records that the table has and that are kept here for their keys; beyond, the oldest goes.
pub(super) const SENT_KEPT: i64 = 4_096;
/// Records that the table refused for good and that are kept; beyond, the oldest goes.
pub(super) const REFUSED_KEPT: i64 = 1_000;

const WAITING: i64 = 0;
const SENT: i64 = 1;
const REFUSED: i64 = 2;

/// A gap record.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gap {
    /// Its number, from the same row of numbers as the blocks'; zero until it is written.
    pub(super) id: i64,
    /// Row of its device.
    pub(super) device: i64,
    /// The time it is kept under in the table.
    pub(super) key: i64,
    /// Time of the first reading given up.
    pub(super) from: i64,
    /// Time of the last one.
    pub(super) until: i64,
    /// How many.
    pub(super) lost: u64,
    pub(super) reason: LossReason,
    /// How long the table shall keep it after `until`.
    pub(super) retention_ms: u64,
    pub(super) summary: Summary,
}

impl Gap {
    /// Whether another one of the same device and reason lies so near that both stay within `span` milliseconds.
    pub(super) fn spans_with(&self, other: &Self, span: i64) -> bool {
        let (from, until) = (self.from.min(other.from), self.until.max(other.until));
        self.device == other.device && self.reason == other.reason && until.saturating_sub(from) <= span
    }

    /// Takes another one's readings in. The earlier key stays: both are this record's own.
    pub(super) fn absorb(&mut self, other: &Self) {
        self.key = self.key.min(other.key);
        self.widen(other.from, other.until, other.lost);
        self.retention_ms = self.retention_ms.max(other.retention_ms);
        summary::merge(&mut self.summary, &other.summary);
    }

    /// Takes in readings that bring no key.
    pub(super) fn widen(&mut self, from: i64, until: i64, lost: u64) {
        (self.from, self.until) = (self.from.min(from), self.until.max(until));
        self.lost = self.lost.saturating_add(lost);
    }
}

const COLUMNS: &str = "id, device, key, since, until, lost, reason, retention_ms, summary";

/// Adds readings given up to the device's newest record of that reason, if that was not handed out yet and stays
/// within `span`; else writes a new one.
pub(super) fn add(
    conn: &Connection,
    books: &mut Books<'_>,
    offered: &Offered,
    gap: &Gap,
    span: i64,
) -> rusqlite::Result<()> {
    match newest_open(conn, gap.device, gap.reason, offered)? {
        Some(mut known) if known.spans_with(gap, span) => {
            known.absorb(gap);
            update(conn, &known)
        }
        _ => insert(conn, books, gap),
    }
}

/// The newest record of a device and reason, if it was not handed out yet.
pub(super) fn newest_open(
    conn: &Connection,
    device: i64,
    reason: LossReason,
    offered: &Offered,
) -> rusqlite::Result<Option<Gap>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM gap WHERE sent = {WAITING} AND device = ?1 AND reason = ?2 ORDER BY key DESC LIMIT 1"
    );
    let found = conn.prepare_cached(&sql)?.query_row(params![device, reason.as_str()], read).optional()?;
    Ok(found.filter(|gap| !offered.has(gap.id)))
}

/// Writes a new record.
pub(super) fn insert(conn: &Connection, books: &mut Books<'_>, gap: &Gap) -> rusqlite::Result<()> {
    let sql = format!("INSERT INTO gap ({COLUMNS}, sent) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, {WAITING})");
    conn.prepare_cached(&sql)?.execute(params![
        books.next_id(),
        gap.device,
        gap.key,
        gap.from,
        gap.until,
        gap.lost.cast_signed(),
        gap.reason.as_str(),
        gap.retention_ms.cast_signed(),
        summary::encode(&gap.summary),
    ])?;
    books.tally.gaps_waiting += 1;
    Ok(())
}

/// Writes a record anew that was not handed out yet.
pub(super) fn update(conn: &Connection, gap: &Gap) -> rusqlite::Result<()> {
    let sql = "UPDATE gap SET key = ?2, since = ?3, until = ?4, lost = ?5, retention_ms = ?6, summary = ?7
               WHERE id = ?1";
    conn.prepare_cached(sql)?.execute(params![
        gap.id,
        gap.key,
        gap.from,
        gap.until,
        gap.lost.cast_signed(),
        gap.retention_ms.cast_signed(),
        summary::encode(&gap.summary),
    ])?;
    Ok(())
}

/// The oldest records that wait.
pub(super) fn waiting(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<Gap>> {
    let sql = format!("SELECT {COLUMNS} FROM gap WHERE sent = {WAITING} ORDER BY key, id LIMIT ?1");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(&sql)?.query_map([limit], read)?.collect()
}

/// The oldest records that wait and were not handed out yet.
pub(super) fn open(conn: &Connection, limit: i64) -> rusqlite::Result<Vec<Gap>> {
    let sql = format!(
        "SELECT {COLUMNS} FROM gap WHERE sent = {WAITING} AND id NOT IN (SELECT id FROM offered)
         ORDER BY key, id LIMIT ?1"
    );
    conn.prepare_cached(&sql)?.query_map([limit], read)?.collect()
}

pub(super) fn is_waiting(conn: &Connection, id: i64) -> rusqlite::Result<bool> {
    let sql = format!("SELECT EXISTS (SELECT 1 FROM gap WHERE id = ?1 AND sent = {WAITING})");
    conn.prepare_cached(&sql)?.query_row([id], |row| row.get(0))
}

pub(super) fn delete(conn: &Connection, books: &mut Books<'_>, id: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM gap WHERE id = ?1")?.execute([id])?;
    books.tally.gaps_waiting -= 1;
    Ok(())
}

/// The table has it. Answers whether it waited.
pub(super) fn mark_sent(conn: &Connection, books: &mut Books<'_>, id: i64) -> rusqlite::Result<bool> {
    let marked = mark(conn, id, SENT)?;
    if marked {
        books.tally.gaps_waiting -= 1;
        books.tally.gaps_sent += 1;
    }
    Ok(marked)
}

/// The table refuses it for good: its readings stay counted as lost, and the newest of such records are kept.
pub(super) fn refuse(conn: &Connection, books: &mut Books<'_>, id: i64) -> rusqlite::Result<()> {
    if mark(conn, id, REFUSED)? {
        books.tally.gaps_waiting -= 1;
        let sql = format!(
            "DELETE FROM gap WHERE sent = {REFUSED} AND id NOT IN
             (SELECT id FROM gap WHERE sent = {REFUSED} ORDER BY id DESC LIMIT {REFUSED_KEPT})"
        );
        conn.prepare_cached(&sql)?.execute([])?;
    }
    Ok(())
}

/// Drops the oldest records that were sent, beyond `keep`; answers whether there were any.
pub(super) fn shed_sent(conn: &Connection, books: &mut Books<'_>, keep: i64) -> rusqlite::Result<bool> {
    let surplus = books.tally.gaps_sent - keep;
    if surplus <= 0 {
        return Ok(false);
    }
    let sql = format!("DELETE FROM gap WHERE id IN (SELECT id FROM gap WHERE sent = {SENT} ORDER BY id LIMIT ?1)");
    let shed = conn.prepare_cached(&sql)?.execute([surplus])?;
    // Fewer than counted: whatever the tally says, there are no more.
    let shed = i64::try_from(shed).unwrap_or(0);
    books.tally.gaps_sent = if shed < surplus { 0 } else { books.tally.gaps_sent - shed };
    Ok(shed > 0)
}

fn mark(conn: &Connection, id: i64, state: i64) -> rusqlite::Result<bool> {
    // Its key is all that is needed of it now.
    let sql = format!("UPDATE gap SET sent = ?2, summary = x'00' WHERE id = ?1 AND sent = {WAITING}");
    Ok(conn.prepare_cached(&sql)?.execute([id, state])? > 0)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Gap> {
    let reason: String = row.get(6)?;
    let body: Vec<u8> = row.get(8)?;
    Ok(Gap {
        id: row.get(0)?,
        device: row.get(1)?,
        key: row.get(2)?,
        from: row.get(3)?,
        until: row.get(4)?,
        lost: row.get::<_, i64>(5)?.cast_unsigned(),
        // A word that nobody knows was damaged; so is a summary that cannot be read: that readings are missing still
        // holds.
        reason: reason.parse().unwrap_or(LossReason::Damaged),
        retention_ms: row.get::<_, i64>(7)?.cast_unsigned(),
        summary: summary::decode(&body).unwrap_or_default(),
    })
}

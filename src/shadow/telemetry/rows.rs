//! The SQL: one function a statement, rows in and out.

use std::collections::{BTreeMap, BTreeSet};

use floorgate_model::DeviceLedger;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::books::{Account, count};
use super::restamp::Era;
use crate::clock::BootId;
use crate::shadow::words;

/// Figures that would be too dear to count: kept beside what they count, changed in the same transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    /// Pages of the journal with this epoch hold samples; others are empty.
    pub(super) epoch: i64,
    /// The next block's id; none is ever given twice.
    pub(super) next_block: i64,
    pub(super) blocks_waiting: i64,
    pub(super) samples_waiting: i64,
    pub(super) blocks_sent: i64,
    pub(super) blocks_parked: i64,
    /// Parked blocks that were dropped to make room, since the file was made.
    pub(super) parked_dropped: i64,
    /// Gap records that wait.
    pub(super) gaps_waiting: i64,
    /// Gap records that the table has and that are kept for their keys.
    pub(super) gaps_sent: i64,
}

/// A block's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockRow {
    pub(super) id: i64,
    pub(super) device: i64,
    pub(super) first: i64,
    /// The block of the same device that was closed before.
    pub(super) previous: Option<i64>,
    pub(super) samples: i64,
    pub(super) body: Vec<u8>,
    /// Its times are a guess still ([`super::restamp`]).
    pub(super) era: Option<i64>,
}

/// `sent` of a block that must not be sent yet; 0 is one that waits, 1 one that was sent.
pub(super) const PROVISIONAL: i64 = 2;

/// A device's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceRow {
    pub(super) row: i64,
    pub(super) name: String,
    pub(super) newest: Option<i64>,
    pub(super) newest_asked: Option<i64>,
    pub(super) last_block: Option<i64>,
    pub(super) last_live: Option<i64>,
}

pub(super) fn tally(conn: &Connection) -> rusqlite::Result<Tally> {
    let sql = "SELECT epoch, next_block, blocks_waiting, samples_waiting, blocks_sent, blocks_parked, parked_dropped,
               gaps_waiting, gaps_sent FROM tally WHERE one = 1";
    conn.query_row(sql, [], |row| {
        Ok(Tally {
            epoch: row.get(0)?,
            next_block: row.get(1)?,
            blocks_waiting: row.get(2)?,
            samples_waiting: row.get(3)?,
            blocks_sent: row.get(4)?,
            blocks_parked: row.get(5)?,
            parked_dropped: row.get(6)?,
            gaps_waiting: row.get(7)?,
            gaps_sent: row.get(8)?,
        })
    })
}

pub(super) fn save_tally(conn: &Connection, tally: &Tally) -> rusqlite::Result<()> {
    let sql = "UPDATE tally SET epoch = ?1, next_block = ?2, blocks_waiting = ?3, samples_waiting = ?4,
               blocks_sent = ?5, blocks_parked = ?6, parked_dropped = ?7, gaps_waiting = ?8, gaps_sent = ?9 WHERE one = 1";
    conn.prepare_cached(sql)?.execute(params![
        tally.epoch,
        tally.next_block,
        tally.blocks_waiting,
        tally.samples_waiting,
        tally.blocks_sent,
        tally.blocks_parked,
        tally.parked_dropped,
        tally.gaps_waiting,
        tally.gaps_sent
    ])?;
    Ok(())
}

pub(super) fn devices(conn: &Connection) -> rusqlite::Result<Vec<DeviceRow>> {
    let sql = "SELECT row, name, newest, newest_asked, last_block, last_live FROM device ORDER BY row";
    let read = |row: &Row<'_>| {
        Ok(DeviceRow {
            row: row.get(0)?,
            name: row.get(1)?,
            newest: row.get(2)?,
            newest_asked: row.get(3)?,
            last_block: row.get(4)?,
            last_live: row.get(5)?,
        })
    };
    conn.prepare(sql)?.query_map([], read)?.collect()
}

pub(super) fn save_device(conn: &Connection, device: &DeviceRow) -> rusqlite::Result<()> {
    let sql = "INSERT INTO device VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (row) DO UPDATE SET
               newest = ?3, newest_asked = ?4, last_block = ?5, last_live = ?6";
    conn.prepare_cached(sql)?.execute(params![
        device.row,
        device.name,
        device.newest,
        device.newest_asked,
        device.last_block,
        device.last_live
    ])?;
    Ok(())
}

/// The journal's pages of an epoch, in order.
pub(super) fn pages(conn: &Connection, epoch: i64) -> rusqlite::Result<Vec<(i64, Vec<u8>)>> {
    let sql = "SELECT page, body FROM segment WHERE epoch = ?1 ORDER BY page";
    conn.prepare(sql)?.query_map([epoch], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

pub(super) fn save_page(conn: &Connection, page: i64, epoch: i64, body: &[u8]) -> rusqlite::Result<()> {
    let sql = "INSERT INTO segment VALUES (?1, ?2, ?3) ON CONFLICT (page) DO UPDATE SET epoch = ?2, body = ?3";
    conn.prepare_cached(sql)?.execute(params![page, epoch, body])?;
    Ok(())
}

pub(super) fn drop_pages_from(conn: &Connection, page: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM segment WHERE page >= ?1")?.execute([page])?;
    Ok(())
}

pub(super) fn insert_block(conn: &Connection, block: &BlockRow) -> rusqlite::Result<()> {
    let sql = "INSERT INTO block VALUES (?1, ?2, ?3, ?7, ?4, ?5, ?6, ?8)";
    conn.prepare_cached(sql)?.execute(params![
        block.id,
        block.device,
        block.first,
        block.previous,
        block.samples,
        block.body,
        if block.era.is_some() { PROVISIONAL } else { 0 },
        block.era
    ])?;
    Ok(())
}

/// The oldest provisional blocks.
pub(super) fn provisional(conn: &Connection, limit: i64) -> rusqlite::Result<Vec<BlockRow>> {
    let sql = "SELECT id, device, first, previous, samples, body, era FROM block WHERE sent = 2
               ORDER BY first LIMIT ?1";
    conn.prepare_cached(sql)?.query_map([limit], read_block)?.collect()
}

/// How many provisional blocks there are, and their samples.
pub(super) fn count_provisional(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    let sql = "SELECT count(*), coalesce(sum(samples), 0) FROM block WHERE sent = 2";
    let count = |number: i64| u64::try_from(number).unwrap_or(0);
    conn.query_row(sql, [], |row| Ok((count(row.get(0)?), count(row.get(1)?))))
}

/// The latest era that a provisional block is of, whether it is known or not.
pub(super) fn newest_era(conn: &Connection) -> rusqlite::Result<Option<i64>> {
    conn.query_row("SELECT max(era) FROM block WHERE sent = 2", [], |row| row.get(0))
}

/// When the oldest provisional block begins.
pub(super) fn oldest_provisional(conn: &Connection) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT min(first) FROM block WHERE sent = 2")?.query_row([], |row| row.get(0))
}

/// When the newest provisional block begins.
pub(super) fn newest_provisional(conn: &Connection) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT max(first) FROM block WHERE sent = 2")?.query_row([], |row| row.get(0))
}

/// A provisional block gets its final form, and waits to be sent.
pub(super) fn settle_block(conn: &Connection, block: &BlockRow) -> rusqlite::Result<()> {
    let sql = "UPDATE block SET first = ?2, samples = ?3, body = ?4, sent = 0, era = NULL WHERE id = ?1";
    conn.prepare_cached(sql)?.execute(params![block.id, block.first, block.samples, block.body])?;
    Ok(())
}

/// The eras that some block or sample may be of.
pub(super) fn eras(conn: &Connection) -> rusqlite::Result<Vec<Era>> {
    let read = |row: &Row<'_>| {
        let boot_id = row.get_ref(1)?.as_str()?;
        let Some(boot_id) = BootId::parse(boot_id) else { return Ok(None) };
        Ok(Some(Era { id: row.get(0)?, boot_id, base: row.get(2)?, stored: true }))
    };
    let found: Vec<Option<Era>> = conn
        .prepare("SELECT id, boot_id, base FROM era ORDER BY id")?
        .query_map([], read)?
        .collect::<Result<_, _>>()?;
    Ok(found.into_iter().flatten().collect())
}

pub(super) fn save_era(conn: &Connection, era: &Era) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO era VALUES (?1, ?2, ?3)";
    conn.prepare_cached(sql)?.execute(params![era.id, era.boot_id.to_string(), era.base])?;
    Ok(())
}

/// Forgets the eras before `from`.
pub(super) fn drop_eras(conn: &Connection, from: i64) -> rusqlite::Result<()> {
    conn.execute("DELETE FROM era WHERE id < ?1", [from])?;
    Ok(())
}

/// Whether some block or gap record of the device has this key.
pub(super) fn key_taken(conn: &Connection, device: i64, first: i64) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM block WHERE first = ?1 AND device = ?2)
               OR EXISTS (SELECT 1 FROM parked WHERE first = ?1 AND device = ?2)
               OR EXISTS (SELECT 1 FROM gap WHERE key = ?1 AND device = ?2)";
    conn.prepare_cached(sql)?.query_row([first, device], |row| row.get(0))
}

/// One block, wherever it is kept.
pub(super) fn block(conn: &Connection, id: i64) -> rusqlite::Result<Option<BlockRow>> {
    let sql = "SELECT id, device, first, previous, samples, body, era FROM block WHERE id = ?1 UNION ALL
               SELECT id, device, first, previous, samples, body, NULL FROM parked WHERE id = ?1";
    conn.prepare_cached(sql)?.query_row([id], read_block).optional()
}

/// The oldest blocks that wait.
pub(super) fn waiting(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<BlockRow>> {
    let sql = "SELECT id, device, first, previous, samples, body, era FROM block
               WHERE sent = 0 ORDER BY first, id LIMIT ?1";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(sql)?.query_map([limit], read_block)?.collect()
}

/// The newest blocks that wait, newest first.
pub(super) fn waiting_newest(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<BlockRow>> {
    let sql = "SELECT id, device, first, previous, samples, body, era FROM block WHERE sent = 0
               ORDER BY first DESC, id DESC LIMIT ?1";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(sql)?.query_map([limit], read_block)?.collect()
}

/// When the oldest block begins that waits and is not among `besides`.
pub(super) fn oldest_waiting(conn: &Connection, besides: &BTreeSet<i64>) -> rusqlite::Result<Option<i64>> {
    let mut statement = conn.prepare_cached("SELECT id, first FROM block WHERE sent = 0 ORDER BY first, id")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if !besides.contains(&row.get(0)?) {
            return row.get(1).map(Some);
        }
    }
    Ok(None)
}

/// What the books need of a block that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) device: i64,
    pub(super) first: i64,
    pub(super) samples: i64,
}

fn read_waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    Ok(Waiting { device: row.get(0)?, first: row.get(1)?, samples: row.get(2)? })
}

/// A block, if it waits.
pub(super) fn if_waiting(conn: &Connection, id: i64) -> rusqlite::Result<Option<Waiting>> {
    let sql = "SELECT device, first, samples FROM block WHERE id = ?1 AND sent = 0";
    conn.prepare_cached(sql)?.query_row([id], read_waiting).optional()
}

/// Answers the block, if it was waiting.
pub(super) fn mark_sent(conn: &Connection, id: i64) -> rusqlite::Result<Option<Waiting>> {
    let sql = "UPDATE block SET sent = 1 WHERE id = ?1 AND sent = 0 RETURNING device, first, samples";
    conn.prepare_cached(sql)?.query_row([id], read_waiting).optional()
}

/// The numbers of the oldest blocks that wait.
pub(super) fn waiting_ids(conn: &Connection, limit: usize) -> rusqlite::Result<Vec<i64>> {
    let sql = "SELECT id FROM block WHERE sent = 0 ORDER BY first, id LIMIT ?1";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    conn.prepare_cached(sql)?.query_map([limit], |row| row.get(0))?.collect()
}

/// The oldest blocks that wait and were never handed out.
pub(super) fn never_offered(conn: &Connection, limit: i64) -> rusqlite::Result<Vec<BlockRow>> {
    let sql = "SELECT id, device, first, previous, samples, body, era FROM block
               WHERE sent = 0 AND id NOT IN (SELECT id FROM offered) ORDER BY first, id LIMIT ?1";
    conn.prepare_cached(sql)?.query_map([limit], read_block)?.collect()
}

pub(super) fn delete_block(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM block WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// What was handed out and neither confirmed nor refused.
pub(super) fn offered(conn: &Connection) -> rusqlite::Result<BTreeSet<i64>> {
    conn.prepare("SELECT id FROM offered")?.query_map([], |row| row.get(0))?.collect()
}

pub(super) fn offer(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR IGNORE INTO offered VALUES (?1)")?.execute([id])?;
    Ok(())
}

pub(super) fn no_longer_offered(conn: &Connection, id: i64) -> rusqlite::Result<()> {
    conn.prepare_cached("DELETE FROM offered WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// The accounts, by the devices' rows.
pub(super) fn accounts(conn: &Connection) -> rusqlite::Result<BTreeMap<i64, Account>> {
    each_account(conn, Some)
}

/// As [`accounts`], without those that damage has made unreadable.
pub(super) fn readable_accounts(conn: &Connection) -> rusqlite::Result<BTreeMap<i64, Account>> {
    each_account(conn, |account| words::if_readable(account, "the account of a device").transpose())
}

/// An account by its device's row, as read.
type Read = rusqlite::Result<(i64, Account)>;

fn each_account(conn: &Connection, keep: impl Fn(Read) -> Option<Read>) -> rusqlite::Result<BTreeMap<i64, Account>> {
    let sql = "SELECT device, accepted, delivered, stored, since, lost FROM ledger";
    let read = |row: &Row<'_>| {
        let number = |index| row.get(index).map(count);
        let ledger = DeviceLedger {
            accepted: number(1)?,
            delivered: number(2)?,
            stored: number(3)?,
            lost: words::read_json(row, 5)?,
        };
        Ok((row.get(0)?, Account { ledger, since: row.get(4)? }))
    };
    conn.prepare(sql)?.query_map([], read)?.filter_map(keep).collect()
}

pub(super) fn save_account(conn: &Connection, device: i64, account: &Account) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO ledger (device, accepted, delivered, stored, since, lost)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let Account { ledger, since } = account;
    conn.prepare_cached(sql)?.execute(params![
        device,
        words::signed(ledger.accepted),
        words::signed(ledger.delivered),
        words::signed(ledger.stored),
        since,
        words::json(&ledger.lost)
    ])?;
    Ok(())
}

/// A device that is not in the file yet.
pub(super) fn add_device(conn: &Connection, row: i64, name: &str) -> rusqlite::Result<()> {
    conn.prepare_cached("INSERT OR IGNORE INTO device (row, name) VALUES (?1, ?2)")?.execute(params![row, name])?;
    Ok(())
}

/// Time of the device never moves back before this.
pub(super) fn raise_newest(conn: &Connection, device: i64, newest: i64) -> rusqlite::Result<()> {
    let sql = "UPDATE device SET newest = max(coalesce(newest, ?2), ?2) WHERE row = ?1";
    conn.prepare_cached(sql)?.execute([device, newest])?;
    Ok(())
}

/// Moves a waiting block aside; answers whether it waited.
pub(super) fn park(conn: &Connection, id: i64, reason: &str) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO parked SELECT id, device, first, previous, samples, body, ?2 FROM block
               WHERE id = ?1 AND sent = 0";
    let parked = conn.prepare_cached(sql)?.execute(params![id, reason])? > 0;
    if parked {
        delete_block(conn, id)?;
    }
    Ok(parked)
}

/// Answers the block that was dropped.
pub(super) fn drop_oldest_parked(conn: &Connection) -> rusqlite::Result<Option<BlockRow>> {
    let sql = "DELETE FROM parked WHERE id = (SELECT min(id) FROM parked)
               RETURNING id, device, first, previous, samples, body, NULL";
    conn.prepare_cached(sql)?.query_row([], read_block).optional()
}

/// Drops the oldest sent blocks from `from` on; answers how many, and the last id dropped.
pub(super) fn shed_sent(conn: &Connection, from: i64, limit: i64) -> rusqlite::Result<Vec<i64>> {
    let sql = "DELETE FROM block WHERE id IN
               (SELECT id FROM block WHERE id >= ?1 AND sent = 1 ORDER BY id LIMIT ?2) RETURNING id";
    conn.prepare_cached(sql)?.query_map([from, limit], |row| row.get(0))?.collect()
}

fn read_block(row: &Row<'_>) -> rusqlite::Result<BlockRow> {
    Ok(BlockRow {
        id: row.get(0)?,
        device: row.get(1)?,
        first: row.get(2)?,
        previous: row.get(3)?,
        samples: row.get(4)?,
        body: row.get(5)?,
        era: row.get(6)?,
    })
}

//! Rows out of a damaged database, as far as SQLite can read them.
//!
//! A table is read in the order of its key. Where a page cannot be read, the reading goes on behind it: for whole
//! numbers the next readable key is searched for in growing steps and then closed in on, so that no more is left out
//! than the damaged pages held (and what lies between two of them, if they are close); for other keys the rest is read
//! from the other end. Rows that the new file refuses (a value of a wrong kind, a key twice) are left out, too.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, params_from_iter};

use super::super::fault::Fault;
use super::super::words::is_damage;

/// Looks for a readable key, over all holes of a table; then its rest is given up.
const PROBES_MAX: u32 = 20_000;

/// What became of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::shadow) struct Copied {
    /// Rows that are in the new file.
    pub(in crate::shadow) rows: u64,
    /// Places where rows may have been and could not be read, or were refused.
    pub(in crate::shadow) holes: u64,
}

impl Copied {
    pub(in crate::shadow) fn is_whole(self) -> bool {
        self.holes == 0
    }
}

/// A damaged database, opened so that nothing in it changes; `None` if nothing of it can be read.
///
/// # Errors
/// The disk fails in a way that may pass, unless `lasting`: it has been tried for long enough.
pub(in crate::shadow) fn open_source(path: &Path, lasting: bool) -> rusqlite::Result<Option<Connection>> {
    match source(path) {
        Ok(source) => Ok(Some(source)),
        Err(cause) if !lasting && !is_damage(&cause) && Fault::of(&cause).is_some_and(Fault::may_pass) => Err(cause),
        Err(cause) => {
            tracing::warn!(file = %path.display(), %cause, "nothing can be read of the damaged file");
            Ok(None)
        }
    }
}

fn source(path: &Path) -> rusqlite::Result<Connection> {
    let mut source =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    source.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    source.pragma_update(None, "trusted_schema", false)?;
    // An unreadable line of the schema shall not hide the other tables.
    source.pragma_update(None, "writable_schema", true)?;
    super::progress::watch(&mut source)?;
    // The first query reads header, schema and log.
    source.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(source)
}

/// Copies what can be read of a table with the key `key` into the table of the same name in `target`, where rows with
/// a key that is there already stay as they are. Columns that the source lacks get their defaults.
///
/// # Errors
/// The target cannot be written.
pub(in crate::shadow) fn copy(
    source: &Connection,
    target: &Connection,
    table: &str,
    key: &str,
) -> rusqlite::Result<Copied> {
    copy_where(source, target, &Table { name: table.to_owned(), key: key.to_owned() }, "true", &mut || Ok(()))
}

/// As [`copy`], of the rows for which `only` holds; `between` is called after each that was written.
///
/// # Errors
/// The target cannot be written, or `between` fails.
pub(in crate::shadow) fn copy_where(
    source: &Connection,
    target: &Connection,
    table: &Table,
    only: &str,
    between: &mut dyn FnMut() -> rusqlite::Result<()>,
) -> rusqlite::Result<Copied> {
    let Table { name: table, key } = table;
    let wanted = columns(target, table)?;
    let found = columns(source, table).unwrap_or_default();
    let shared: Vec<&str> = wanted.iter().filter(|name| found.contains(*name)).map(String::as_str).collect();
    if shared.is_empty() || (key != "rowid" && !found.contains(key.as_str())) {
        return Ok(Copied { rows: 0, holes: 1 });
    }
    let places = (1..=shared.len()).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
    let insert = format!("INSERT OR IGNORE INTO {table} ({}) VALUES ({places})", shared.join(", "));
    let mut reader = Reader {
        source,
        select: format!("SELECT {key}, {} FROM {table} WHERE ({only})", shared.join(", ")),
        key,
        probes: 0,
        copied: Copied::default(),
    };
    let mut statement = target.prepare(&insert)?;
    let mut write = |values: &[Value]| match statement.execute(params_from_iter(values)) {
        Ok(changed) => {
            super::progress::step();
            between()?;
            Ok(changed == 1)
        }
        Err(cause) if cause.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => Ok(false),
        Err(cause) => Err(cause),
    };
    reader.all(&mut write)?;
    Ok(reader.copied)
}

/// Empties a new file of what its migrations wrote, so that rows of the same keys can come in.
pub(in crate::shadow) fn begin(target: &Connection) -> rusqlite::Result<()> {
    for Table { name, .. } in tables(target)? {
        let sql = format!("CREATE TEMP TABLE first_{name} AS SELECT * FROM {name}; DELETE FROM {name}");
        target.execute_batch(&sql)?;
    }
    Ok(())
}

/// Puts back what [`begin`] took out of tables for which nothing was found.
pub(in crate::shadow) fn end(target: &Connection) -> rusqlite::Result<()> {
    for Table { name, .. } in tables(target)? {
        target.execute_batch(&format!(
            "INSERT INTO {name} SELECT * FROM temp.first_{name} WHERE NOT EXISTS (SELECT 1 FROM {name}); \
             DROP TABLE temp.first_{name}"
        ))?;
    }
    Ok(())
}

/// A table and the column in whose order it lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::shadow) struct Table {
    pub(in crate::shadow) name: String,
    pub(in crate::shadow) key: String,
}

/// Every table but the one row of [`super::life`], which is never copied but judged.
pub(in crate::shadow) fn tables(connection: &Connection) -> rusqlite::Result<Vec<Table>> {
    let sql = "SELECT t.name, iif(t.wr, (SELECT c.name FROM pragma_table_info(t.name) c WHERE c.pk = 1), 'rowid')
               FROM pragma_table_list t WHERE t.schema = 'main' AND t.type = 'table'
               AND t.name NOT LIKE 'sqlite_%' AND t.name <> 'life' ORDER BY t.name";
    let mut statement = connection.prepare(sql)?;
    statement.query_map([], |row| Ok(Table { name: row.get(0)?, key: row.get(1)? }))?.collect()
}

/// The columns of a table; empty if it is not there.
pub(in crate::shadow) fn columns(connection: &Connection, table: &str) -> rusqlite::Result<BTreeSet<String>> {
    columns_in(connection, "main", table)
}

/// As [`columns`], of an attached database.
pub(in crate::shadow) fn columns_in(
    connection: &Connection,
    schema: &str,
    table: &str,
) -> rusqlite::Result<BTreeSet<String>> {
    let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1, ?2)")?;
    statement.query_map([table, schema], |row| row.get(0))?.collect()
}

type Write<'a> = dyn FnMut(&[Value]) -> rusqlite::Result<bool> + 'a;

/// How a walk through a table ended.
enum Walk {
    /// At its end.
    Done,
    /// Behind this key, the last that was read (`None`: none was), something cannot be read.
    Stopped(Option<Value>),
}

struct Reader<'a> {
    source: &'a Connection,
    select: String,
    key: &'a str,
    probes: u32,
    copied: Copied,
}

impl Reader<'_> {
    fn all(&mut self, write: &mut Write<'_>) -> rusqlite::Result<()> {
        // How far to look ahead: more each time a walk reads nothing, though a look there succeeded.
        let (mut from, mut skip) = (None, 0_i64);
        loop {
            let Walk::Stopped(last) = self.walk(from, false, write)? else { return Ok(()) };
            self.copied.holes += 1;
            skip = if last.is_none() && from.is_some() { skip.saturating_mul(2).saturating_add(1) } else { 0 };
            let behind = match (&last, from) {
                (Some(Value::Integer(key)), _) => self.behind(*key),
                (None, from) => self.behind(from.unwrap_or(0).saturating_add(skip)),
                (Some(_), _) => None,
            };
            match behind {
                Some(key) => from = Some(key),
                None => {
                    // Whatever lies at the other end; what is there already stays.
                    self.walk(None, true, write)?;
                    return Ok(());
                }
            }
        }
    }

    /// Reads on from a key, or all from the end backwards.
    fn walk(&mut self, from: Option<i64>, backwards: bool, write: &mut Write<'_>) -> rusqlite::Result<Walk> {
        // From the key itself on: to look for what is greater would begin in the page before.
        let (condition, order) =
            (if from.is_some() { "" } else { "?1 IS NULL OR" }, if backwards { "DESC" } else { "" });
        let (select, key) = (&self.select, self.key);
        let text = format!("{select} AND ({condition} {key} >= ?1) ORDER BY {key} {order}");
        let mut last = None;
        let stopped = |last| Ok(Walk::Stopped(last));
        let Ok(mut statement) = self.source.prepare(&text) else { return stopped(last) };
        let width = statement.column_count();
        let Ok(mut rows) = statement.query([from]) else { return stopped(last) };
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(Walk::Done),
                Err(_) => return stopped(last),
            };
            let Ok(key) = row.get::<_, Value>(0) else { return stopped(last) };
            // Keys that do not grow are a page in a wrong place; going on might never end.
            if !backwards && !follows(last.as_ref(), &key) {
                return stopped(last);
            }
            let values: Result<Vec<Value>, _> = (1..width).map(|index| row.get(index)).collect();
            last = Some(key);
            match values {
                Ok(values) if write(&values)? => self.copied.rows += 1,
                // Read twice, from both ends: no hole.
                _ if backwards => {}
                _ => self.copied.holes += 1,
            }
        }
    }

    /// The smallest readable place behind `key`, where something cannot be read; `None` if nothing is readable there.
    fn behind(&mut self, key: i64) -> Option<i64> {
        let (mut bad, mut step) = (key.checked_add(1)?, 1_i64);
        if self.probes >= PROBES_MAX {
            return None;
        }
        if self.readable(bad) {
            return Some(bad);
        }
        let mut good = loop {
            let next = bad.checked_add(step)?;
            if self.probes >= PROBES_MAX {
                return None;
            }
            if self.readable(next) {
                break next;
            }
            (bad, step) = (next, step.checked_mul(2)?);
        };
        while good - bad > 1 {
            let middle = bad + (good - bad) / 2;
            if self.readable(middle) {
                good = middle;
            } else {
                bad = middle;
            }
        }
        Some(good)
    }

    /// Whether the first row from this key on can be read, or there is none.
    fn readable(&mut self, from: i64) -> bool {
        self.probes += 1;
        super::progress::step();
        let (select, key) = (&self.select, self.key);
        let text = format!("{select} AND {key} >= ?1 ORDER BY {key} LIMIT 1");
        let Ok(mut statement) = self.source.prepare_cached(&text) else { return false };
        let Ok(mut rows) = statement.query([from]) else { return false };
        match rows.next() {
            Ok(None) => true,
            // The whole row, with what lies on overflow pages.
            Ok(Some(row)) => (0..row.as_ref().column_count()).all(|index| row.get_ref(index).is_ok()),
            Err(_) => false,
        }
    }
}

fn follows(last: Option<&Value>, key: &Value) -> bool {
    match (last, key) {
        (None, _) => true,
        (Some(Value::Integer(last)), Value::Integer(key)) => last < key,
        (Some(Value::Text(last)), Value::Text(key)) => last < key,
        _ => false,
    }
}

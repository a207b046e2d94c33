//! What was damaged and what came of it, kept for `status`.

use std::collections::BTreeMap;

use floorgate_model::Timestamp;
use rusqlite::{Connection, params};

use super::super::words::{json, read_json, read_time};

/// Rescues that are remembered.
pub(in crate::shadow) const RESCUES_KEPT: i64 = 20;

/// One damage and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rescue {
    /// When it was found.
    pub at: Timestamp,
    /// Which file.
    pub file: String,
    /// What was wrong.
    pub cause: String,
    /// Where the damaged copy lies; `None` if there was nothing to move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<String>,
    /// What is there again: rows a table, `…_from_backup` those that only the backup had.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub saved: BTreeMap<String, u64>,
    /// What is not: rows or samples as far as they are counted, `…_unreadable_places` where something could not be read.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: BTreeMap<String, u64>,
    /// In a sentence.
    pub outcome: String,
}

impl Rescue {
    pub(in crate::shadow) fn log(&self) {
        let list = |map: &BTreeMap<String, u64>| {
            let items: Vec<_> = map.iter().map(|(name, count)| format!("{name} {count}")).collect();
            if items.is_empty() { "nothing".to_owned() } else { items.join(", ") }
        };
        tracing::error!(
            file = self.file,
            cause = self.cause,
            aside = self.aside.as_deref().unwrap_or("nothing"),
            saved = list(&self.saved),
            lost = list(&self.lost),
            "a file of the store was damaged: {}",
            self.outcome
        );
    }
}

pub(in crate::shadow) fn write(connection: &Connection, rescue: &Rescue) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO rescue (at, file, cause, aside, saved, lost, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            rescue.at.as_millis(),
            rescue.file,
            rescue.cause,
            rescue.aside,
            json(&rescue.saved),
            json(&rescue.lost),
            rescue.outcome
        ],
    )?;
    let sql = "DELETE FROM rescue WHERE seq <= (SELECT max(seq) FROM rescue) - ?1";
    connection.execute(sql, [RESCUES_KEPT]).map(drop)
}

/// Newest first; one that cannot be read is left out.
pub(in crate::shadow) fn newest(connection: &Connection) -> rusqlite::Result<Vec<Rescue>> {
    let sql = "SELECT at, file, cause, aside, saved, lost, outcome FROM rescue ORDER BY seq DESC";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut rescues = Vec::new();
    while let Some(row) = rows.next()? {
        let read = || -> rusqlite::Result<Rescue> {
            Ok(Rescue {
                at: read_time(row, 0)?,
                file: row.get(1)?,
                cause: row.get(2)?,
                aside: row.get(3)?,
                saved: read_json(row, 4)?,
                lost: read_json(row, 5)?,
                outcome: row.get(6)?,
            })
        };
        rescues.extend(read().ok());
    }
    Ok(rescues)
}

pub(in crate::shadow) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached("SELECT count(*) FROM rescue")?;
    statement.query_row([], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs)
}

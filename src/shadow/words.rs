//! How values are spelt in SQLite: times as milliseconds, vocabularies as their words, structures as JSON.

use floorgate_model::{Reading, Readings, Timestamp};
use rusqlite::Row;
use rusqlite::types::Type;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::terms::StoreError;

/// Turns an error of SQLite into one that says what it was about.
pub(super) fn io(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |cause| StoreError::sqlite(doing, &cause)
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> String {
    // Only maps with keys that are not text fail, and none of ours has such.
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn opt_json<T: Serialize>(value: Option<&T>) -> Option<String> {
    value.map(json)
}

pub(super) fn read_json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(index)?.as_str()?;
    serde_json::from_str(text).map_err(|cause| unreadable(index, cause))
}

pub(super) fn read_opt_json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>> {
    if row.get_ref(index)?.as_str_or_null()?.is_none() { Ok(None) } else { read_json(row, index).map(Some) }
}

/// A value of one of our vocabularies, by its word.
pub(super) fn read_word<T: std::str::FromStr>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    row.get_ref(index)?.as_str()?.parse().map_err(|cause| unreadable(index, cause))
}

pub(super) fn read_opt_word<T: std::str::FromStr>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    if row.get_ref(index)?.as_str_or_null()?.is_none() { Ok(None) } else { read_word(row, index).map(Some) }
}

pub(super) fn read_time(row: &Row<'_>, index: usize) -> rusqlite::Result<Timestamp> {
    row.get(index).map(Timestamp::from_millis)
}

pub(super) fn read_opt_time(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(Timestamp::from_millis))
}

pub(super) fn opt_time(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_millis)
}

/// Readings as a JSON object of texts: each reads back as the very same number.
pub(super) fn readings_json(readings: &Readings) -> String {
    json(&readings.iter().map(|(name, value)| (name, value.to_string())).collect::<std::collections::BTreeMap<_, _>>())
}

pub(super) fn read_readings(row: &Row<'_>, index: usize) -> rusqlite::Result<Readings> {
    let texts: std::collections::BTreeMap<String, String> = read_json(row, index)?;
    let mut readings = Readings::new();
    for (name, text) in texts {
        if let Some(reading) = Reading::parse(&text) {
            readings.insert(&name, reading).map_err(|cause| unreadable(index, cause))?;
        }
    }
    Ok(readings)
}

/// Numbers that only count up; SQLite's are signed, and none of ours comes near the end.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn read_count(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

/// A count of things that are in memory or in a bounded table.
pub(super) fn read_size(row: &Row<'_>, index: usize) -> rusqlite::Result<usize> {
    Ok(usize::try_from(row.get::<_, i64>(index)?).unwrap_or(0))
}

fn unreadable(index: usize, cause: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(cause))
}

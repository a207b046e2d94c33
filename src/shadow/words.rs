//! How values are spelt in SQLite: times as milliseconds, vocabularies as their words, structures as JSON.

use floorgate_model::{Reading, Readings, Timestamp};
use rusqlite::types::Type;
use rusqlite::{ErrorCode, Row};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::terms::StoreError;

/// Turns an error of SQLite on `state.db` into one that says what it was about; damage is told apart.
pub(super) fn io(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |cause| io_of("state.db", doing, &cause)
}

/// As [`io`], of any file.
pub(super) fn io_of(file: &str, doing: &'static str, cause: &rusqlite::Error) -> StoreError {
    match cause.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path: file.to_owned(), cause: format!("cannot {doing}: {cause}") }
        }
        _ => StoreError::sqlite(doing, cause),
    }
}

/// Whether an error met while opening or checking a file lies in what stands in it, and not in its disk, its folder or
/// another program. A read that fails is tried again: it may be the cable.
pub(super) fn is_damage(cause: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    if let Some(error) = cause.sqlite_error()
        && [ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS, ffi::SQLITE_IOERR_DATA]
            .contains(&error.extended_code)
    {
        return true;
    }
    !matches!(
        cause.sqlite_error_code(),
        Some(
            ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::CannotOpen
                | ErrorCode::PermissionDenied
                | ErrorCode::ReadOnly
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::NoLargeFileSupport
        )
    )
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

/// A row whose values cannot be read is left out and told; what SQLite itself cannot read is an error.
pub(super) fn if_readable<T>(row: rusqlite::Result<T>, what: &str) -> rusqlite::Result<Option<T>> {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType, Utf8Error};
    match row {
        Ok(row) => Ok(Some(row)),
        Err(
            cause
            @ (FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..) | Utf8Error(..)),
        ) => {
            tracing::warn!(what, %cause, "a row cannot be read; it is left out");
            Ok(None)
        }
        Err(cause) => Err(cause),
    }
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

//! Whose file is it, and of which schema: what the header says twice, so that one flipped bit is not believed.
//!
//! `user_version` counts the migrations; `application_id` holds the file's mark and the same count once more. A file
//! of a newer floorgate is left alone, a damaged count is damage: without the second note nobody could tell the two
//! apart, and a flipped bit would keep floorgate from starting.

use rusqlite::Connection;

/// No floorgate will ever have so many migrations: a higher count is damage.
const SCHEMA_BELIEVED_MAX: i64 = 1_000;
const COUNT_BITS: i64 = 0xffff;

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shadow) enum Mark {
    State,
    Telemetry,
}

impl Mark {
    fn bits(self) -> i64 {
        // "FS" and "FT".
        match self {
            Self::State => 0x4653_0000,
            Self::Telemetry => 0x4654_0000,
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::shadow) enum Header {
    /// Ours, with so many migrations done.
    Ours(i64),
    /// A newer floorgate's, with so many.
    Newer(i64),
    /// Neither can be.
    Damaged(String),
}

/// Reads the header; `known` is how many migrations this floorgate has.
pub(in crate::shadow) fn read(connection: &Connection, mark: Mark, known: i64) -> rusqlite::Result<Header> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    Ok(judge(version, application, mark, known))
}

/// Notes both; the caller commits.
pub(in crate::shadow) fn write(connection: &Connection, mark: Mark, version: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "user_version", version)?;
    connection.pragma_update(None, "application_id", mark.bits() | version)
}

fn judge(version: i64, application: i64, mark: Mark, known: i64) -> Header {
    let damaged = |cause: &str| Header::Damaged(cause.to_owned());
    if !(0..=SCHEMA_BELIEVED_MAX).contains(&version) {
        return damaged("its header names a schema that cannot be");
    }
    // Not noted: made before there was a second note, or by SQLite a moment ago.
    if application == 0 {
        return if version > known { Header::Newer(version) } else { Header::Ours(version) };
    }
    if application & !COUNT_BITS != mark.bits() {
        return damaged("its header is not that of this file");
    }
    let noted = application & COUNT_BITS;
    let apart = (version ^ noted).count_ones();
    match (apart, version > known) {
        (0, false) => Header::Ours(version),
        (0, true) => Header::Newer(version),
        (1, _) | (_, false) => damaged("its header contradicts itself"),
        // More than damage does: somebody wrote it.
        (_, true) => Header::Newer(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_of_the_header_passes_for_a_newer_floorgate() {
        let good = Mark::State.bits() | 2;
        assert_eq!(judge(2, good, Mark::State, 2), Header::Ours(2));
        for bit in 0..31 {
            let flipped = judge(2 ^ 1 << bit, good, Mark::State, 2);
            assert!(matches!(flipped, Header::Damaged(_)), "user_version, bit {bit}: {flipped:?}");
            let flipped = judge(2, good ^ 1 << bit, Mark::State, 2);
            assert!(matches!(flipped, Header::Damaged(_)), "application_id, bit {bit}: {flipped:?}");
        }
    }

    #[test]
    fn a_newer_file_is_newer_and_the_other_file_is_not_ours() {
        assert_eq!(judge(3, Mark::State.bits() | 3, Mark::State, 2), Header::Newer(3));
        assert_eq!(judge(999, Mark::State.bits() | 2, Mark::State, 2), Header::Newer(999));
        assert_eq!(judge(1, 0, Mark::State, 2), Header::Ours(1), "from before the second note");
        assert!(matches!(judge(1, Mark::Telemetry.bits() | 1, Mark::State, 2), Header::Damaged(_)));
    }
}

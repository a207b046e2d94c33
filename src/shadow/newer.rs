//! Was a state folder written by a newer floorgate? Asked before one version takes the place of another.
//!
//! Nothing is written, and a daemon that runs is not disturbed. A file with a log is read through SQLite, because the log of
//! a version that was installed a minute ago may hold what tells it apart; its index is there already. A file without one is
//! read as it lies, so that no log is made for it. What cannot be read is no answer: opening it will tell.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::rescue::header::{self, Header, Mark};
use super::samples::TELEMETRY_FILE;
use super::schema::{self, STATE_FILE};
use super::store::StoreError;
use super::telemetry::schema as telemetry_schema;

/// Whether this floorgate knows the schemas of the files in a folder; a file that is not there is no hindrance.
///
/// # Errors
/// [`StoreError::Newer`], and nothing else.
pub fn unless_newer(state_dir: &Path) -> Result<(), StoreError> {
    for (name, mark, known) in
        [(STATE_FILE, Mark::State, schema::newest()), (TELEMETRY_FILE, Mark::Telemetry, telemetry_schema::newest())]
    {
        let path = state_dir.join(name);
        if let Some(Header::Newer(found)) = look(&path, mark, known) {
            return Err(StoreError::Newer { path: path.display().to_string(), found, known });
        }
    }
    Ok(())
}

fn look(path: &Path, mark: Mark, known: i64) -> Option<Header> {
    if std::fs::metadata(path).ok()?.len() == 0 {
        return None;
    }
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let has_log = std::fs::metadata(log).is_ok_and(|log| log.len() > 0);
    let connection = if has_log {
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)
    } else {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        Connection::open_with_flags(as_it_lies(path)?, flags)
    };
    header::read(&connection.ok()?, mark, known).ok()
}

/// The address of a file that SQLite takes for one nobody changes.
fn as_it_lies(path: &Path) -> Option<String> {
    let path = path.to_str()?.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    Some(format!("file:{path}?immutable=1"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(folder: &Path) -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_newer_schema_is_found_at_rest_and_in_the_log_of_one_that_runs_and_nothing_is_written() {
        for (name, newest) in [(STATE_FILE, schema::newest()), (TELEMETRY_FILE, telemetry_schema::newest())] {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("of 100% #1?");
            std::fs::create_dir(&folder).unwrap();
            unless_newer(&folder).unwrap();
            let path = folder.join(name);
            let running = Connection::open(&path).unwrap();
            running.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE one (two)").unwrap();
            running.pragma_update(None, "user_version", newest).unwrap();
            unless_newer(&folder).unwrap();
            running.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            running.pragma_update(None, "user_version", newest + 1).unwrap();
            let before = names(&folder);
            let told = unless_newer(&folder).unwrap_err().to_string();
            assert!(told.contains(&format!("has schema {}, ", newest + 1)) && told.contains(name), "{told}");
            assert_eq!(names(&folder), before, "in the log");
            drop(running);
            assert_eq!(names(&folder), BTreeSet::from([name.to_owned()]));
            assert!(matches!(unless_newer(&folder), Err(StoreError::Newer { .. })), "at rest");
            assert_eq!(names(&folder), BTreeSet::from([name.to_owned()]), "at rest");
            std::fs::write(&path, "no database at all").unwrap();
            unless_newer(&folder).unwrap();
        }
    }
}

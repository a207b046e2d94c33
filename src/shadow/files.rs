//! What the store's files weigh.

use std::ffi::OsString;
use std::path::Path;

/// Bytes of a database with its write-ahead log; zero for what is not there.
pub(super) fn bytes_with_log(database: &Path) -> u64 {
    let mut log: OsString = database.as_os_str().to_owned();
    log.push("-wal");
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    bytes(database) + bytes(Path::new(&log))
}

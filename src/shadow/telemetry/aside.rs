//! What is done with a file that cannot be read: it is moved aside under a dated name, and an empty one takes its
//! place. It holds history alone, so floorgate starts all the same; nothing is thrown away that someone might save.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use floorgate_model::Timestamp;

use super::replay::Newest;
use super::{TelemetryDb, replay};
use crate::shadow::store::StoreError;

/// Damaged files that are kept beside the good one; beyond, the oldest goes.
const KEPT_ASIDE: usize = 2;

/// Opens the file; if it is damaged, moves it aside and opens an empty one.
pub(super) fn open_or_replace(
    path: &Path,
    history_retention: Duration,
    now: Instant,
    wall: Timestamp,
) -> Result<(TelemetryDb, Newest), StoreError> {
    match replay::open(path, history_retention, now) {
        Err(StoreError::Damaged { cause, .. }) => {
            let aside = move_aside(path, wall).map_err(|failed| StoreError::Open {
                path: path.display().to_string(),
                cause: format!("it is damaged ({cause}) and could not be moved aside: {failed}"),
                hint: "check that floorgate may write to its folder",
            })?;
            tracing::warn!(
                file = %path.display(),
                aside = %aside.display(),
                cause,
                "the telemetry file was damaged: readings not yet sent are in the file moved aside, a new one is begun"
            );
            replay::open(path, history_retention, now)
        }
        opened => opened,
    }
}

fn move_aside(path: &Path, wall: Timestamp) -> std::io::Result<PathBuf> {
    let digits: String = wall.to_string().chars().filter(|letter| !"-:.".contains(*letter)).collect();
    let aside = beside(path, &format!(".damaged-{digits}"));
    // The log first: one that stayed would be taken for the new file's.
    let missing = |cause: &std::io::Error| cause.kind() == std::io::ErrorKind::NotFound;
    let moved = std::fs::rename(beside(path, "-wal"), beside(&aside, "-wal"));
    moved.or_else(|cause| if missing(&cause) { Ok(()) } else { Err(cause) })?;
    let index = std::fs::remove_file(beside(path, "-shm"));
    index.or_else(|cause| if missing(&cause) { Ok(()) } else { Err(cause) })?;
    std::fs::rename(path, &aside)?;
    drop_oldest(path)?;
    Ok(aside)
}

/// Keeps the newest [`KEPT_ASIDE`].
fn drop_oldest(path: &Path) -> std::io::Result<()> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let prefix = format!("{}.damaged-", name.to_string_lossy());
    let mut aside: Vec<PathBuf> = std::fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .filter(|path| !path.to_string_lossy().ends_with("-wal"))
        .collect();
    // The date makes the order.
    aside.sort();
    for old in aside.iter().rev().skip(KEPT_ASIDE) {
        std::fs::remove_file(old)?;
        // Most have none.
        let _ = std::fs::remove_file(beside(old, "-wal"));
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

//! Damaged files are moved aside under a dated name, never deleted on the spot: someone may save more from them than
//! floorgate can. At most [`KEPT_ASIDE`] of each file are kept, and the oldest goes when the quota needs its room.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use floorgate_model::Timestamp;

/// Damaged copies of each file that are kept beside the good one; beyond, the oldest goes.
pub(in crate::shadow) const KEPT_ASIDE: usize = 2;
/// Between a file's name and the date.
const INFIX: &str = ".damaged-";
/// What a file's owner needs of it.
const OWNER_MAY: u32 = 0o600;
/// SQLite's companions of a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// `path` with more at its end.
pub(in crate::shadow) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a database and its companions what SQLite can open, if that takes no more than permissions of our own file
/// or moving something away that is no file. Answers what was wrong, if that was the database itself and no file.
pub(in crate::shadow) fn mend(path: &Path, wall: Timestamp) -> std::io::Result<Option<&'static str>> {
    if path.symlink_metadata().is_err() && super::super::files::log_bytes(path) > 0 {
        File::create(path)?;
    }
    for file in std::iter::once(path.to_owned()).chain(COMPANIONS.map(|suffix| beside(path, suffix))) {
        let Ok(metadata) = std::fs::symlink_metadata(&file) else { continue };
        // A link of the operator's to another disk is followed.
        let metadata = if metadata.is_symlink() { std::fs::metadata(&file).unwrap_or(metadata) } else { metadata };
        if !metadata.is_file() {
            if file == path {
                return Ok(Some("it is not a file"));
            }
            let aside = free_copy_name(&file, wall);
            tracing::warn!(file = %file.display(), aside = %aside.display(), "not a file; it is moved aside");
            std::fs::rename(&file, &aside)?;
            continue;
        }
        if file == path && metadata.len() == 0 && super::super::files::log_bytes(path) > 0 {
            // SQLite throws the log of an empty file away, and it may hold every page: let it find one page of zeros.
            OpenOptions::new().write(true).open(path)?.set_len(super::super::files::PAGE_BYTES)?;
        }
        let mode = metadata.permissions().mode();
        if mode & OWNER_MAY != OWNER_MAY {
            // Fails if it is not ours; then opening it says so.
            let _ = std::fs::set_permissions(&file, Permissions::from_mode(mode | OWNER_MAY));
        }
    }
    Ok(None)
}

/// Where a copy that is moved aside now will lie.
pub(in crate::shadow) fn free_copy_name(path: &Path, wall: Timestamp) -> PathBuf {
    let digits: String = wall.to_string().chars().filter(|letter| !"-:.".contains(*letter)).collect();
    let first = beside(path, &format!("{INFIX}{digits}"));
    // The same moment twice: a clock that stands, or two damages in one start.
    let taken = |name: &PathBuf| name.symlink_metadata().is_ok() || beside(name, "-wal").symlink_metadata().is_ok();
    let mut names = std::iter::once(first.clone()).chain((2..100).map(|n| beside(&first, &format!(".{n}"))));
    names.find(|name| !taken(name)).unwrap_or(first)
}

/// Moves a database with its log aside. Nothing happens for what is not there.
fn move_to(path: &Path, aside: &Path) -> std::io::Result<()> {
    // The log first: one that stayed would be taken for the new file's.
    for companion in COMPANIONS {
        let from = beside(path, companion);
        // An empty log is none.
        let empty = std::fs::metadata(&from).is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0);
        let moved = if companion == "-shm" || empty {
            std::fs::remove_file(&from)
        } else {
            std::fs::rename(&from, beside(aside, companion))
        };
        match moved {
            Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
    }
    match std::fs::rename(path, aside) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    sync_folder(path)
}

/// Whether a [`replace`] was interrupted and is not finished yet.
pub(in crate::shadow) fn is_being_replaced(path: &Path) -> bool {
    beside(path, ".rebuilt").exists()
}

/// Puts a rebuilt file `new` in the place of a damaged one, which is moved to `aside`.
pub(in crate::shadow) fn replace(path: &Path, new: &Path, aside: &Path) -> std::io::Result<()> {
    let rebuilt = beside(path, ".rebuilt");
    File::open(new)?.sync_all()?;
    std::fs::rename(new, &rebuilt)?;
    sync_folder(path)?;
    move_to(path, aside)?;
    std::fs::rename(&rebuilt, path)?;
    sync_folder(path)?;
    keep_newest(path)
}

/// Finishes a [`replace`] that a crash interrupted. A file of this name was whole and flushed before it got the name, and
/// the log of the damaged one may be gone already: so it always goes forward.
pub(in crate::shadow) fn finish(path: &Path, wall: Timestamp) -> std::io::Result<()> {
    let rebuilt = beside(path, ".rebuilt");
    forget_new(path);
    if !is_being_replaced(path) {
        return Ok(());
    }
    let left = COMPANIONS.iter().map(|companion| beside(path, companion)).chain([path.to_owned()]);
    if left.into_iter().any(|file| file.symlink_metadata().is_ok()) {
        let aside = half_moved(path).unwrap_or_else(|| free_copy_name(path, wall));
        move_to(path, &aside)?;
    }
    std::fs::rename(rebuilt, path)?;
    sync_folder(path)?;
    keep_newest(path)
}

/// The copy whose log was moved aside, and it not yet.
fn half_moved(path: &Path) -> Option<PathBuf> {
    let prefix = format!("{}{INFIX}", path.file_name()?.to_string_lossy());
    let names = std::fs::read_dir(path.parent()?).ok()?.flatten().map(|entry| entry.path());
    let mut logs = names.filter(|name| {
        let name = name.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&prefix) && name.ends_with("-wal")
    });
    logs.find_map(|log| {
        let copy = PathBuf::from(log.to_string_lossy().strip_suffix("-wal")?);
        copy.symlink_metadata().is_err().then_some(copy)
    })
}

/// Removes what a rebuilding that did not come to its end has left.
pub(in crate::shadow) fn forget_new(path: &Path) {
    for suffix in [".new", ".new-journal"] {
        let _ = std::fs::remove_file(beside(path, suffix));
    }
}

/// The copies of a database that were moved aside, oldest first, without their logs.
pub(in crate::shadow) fn copies(path: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let prefix = format!("{}{INFIX}", name.to_string_lossy());
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let is_copy = |path: &PathBuf| {
        path.file_name()
            .map(|name| name.to_string_lossy())
            .is_some_and(|name| name.starts_with(&prefix) && !COMPANIONS.iter().any(|suffix| name.ends_with(suffix)))
    };
    let mut copies: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_copy).collect();
    // The date makes the order.
    copies.sort();
    copies
}

/// Bytes of all copies of a database with their logs.
pub(in crate::shadow) fn bytes(path: &Path) -> u64 {
    copies(path).iter().map(|copy| super::super::files::bytes_with_log(copy)).sum()
}

/// Removes a copy and its log.
pub(in crate::shadow) fn remove(copy: &Path) -> std::io::Result<()> {
    // Most have none.
    for companion in COMPANIONS {
        let _ = std::fs::remove_file(beside(copy, companion));
    }
    if copy.is_dir() { std::fs::remove_dir_all(copy) } else { std::fs::remove_file(copy) }
}

/// Makes names in the folder of `path` durable.
pub(in crate::shadow) fn sync_folder(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Removes all but the newest [`KEPT_ASIDE`].
fn keep_newest(path: &Path) -> std::io::Result<()> {
    for old in copies(path).iter().rev().skip(KEPT_ASIDE) {
        tracing::warn!(copy = %old.display(), kept = KEPT_ASIDE, "an older damaged copy is removed for newer ones");
        remove(old)?;
    }
    Ok(())
}

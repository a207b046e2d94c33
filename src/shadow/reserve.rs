//! Space kept back for what must be written when others have filled the disk.
//!
//! A file of [`RESERVE_MAX`] bytes or a 256th of the quota, whichever is less, lies in the state folder. When a write
//! finds no space, it is given up: what runs can still be brought to its end in `state.db`, while readings and new
//! commands are refused. They are taken again once the file could be written anew; so the return of space is not
//! believed for the sake of a few bytes, and the store does not flicker at the edge.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The most that is kept back, bytes: some hundred outcomes with their announcements.
const RESERVE_MAX: u64 = 2 * 1024 * 1024;
/// No more than this part of the quota.
const PART: u64 = 256;
/// The file.
const FILE: &str = "reserve";
/// Bytes written at a time; unlike each other, so that no file system packs them.
const STEP: usize = 16 * 1024;

/// The reserve, there or given up.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Reserve {
    /// Finds the file as it was left, or not.
    pub(super) fn new(folder: &Path, quota_bytes: u64) -> Self {
        let (path, bytes) = (folder.join(FILE), RESERVE_MAX.min(quota_bytes / PART));
        let held = std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == bytes);
        Self { path, bytes, held }
    }

    /// Whether the space is there.
    pub(super) fn is_held(&self) -> bool {
        self.held
    }

    /// Takes the space, if it is not taken. On an error none of it is.
    pub(super) fn hold(&mut self) -> io::Result<()> {
        if self.held {
            return Ok(());
        }
        let taken = self.take();
        if taken.is_err() {
            self.give_up();
        }
        self.held = taken.is_ok();
        taken
    }

    /// Gives the space to whoever writes next.
    pub(super) fn give_up(&mut self) {
        // If it cannot be removed, it cannot help either.
        let _ = std::fs::remove_file(&self.path);
        self.held = false;
    }

    fn take(&self) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(&self.path)?;
        let (mut random, mut left) = (fastrand::Rng::with_seed(self.bytes), self.bytes);
        let mut part = vec![0; STEP];
        while left > 0 {
            random.fill(&mut part);
            let step = usize::try_from(left).map_or(STEP, |left| left.min(STEP));
            file.write_all(part.get(..step).unwrap_or_default())?;
            left -= step as u64;
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_256th_of_a_small_quota_and_two_mebibytes_of_a_large_one_and_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let length = || std::fs::metadata(folder.path().join(FILE)).map(|metadata| metadata.len()).ok();
        for (quota, bytes) in [(1 << 20, 4_096), (512 << 20, 2 << 20)] {
            let mut reserve = Reserve::new(folder.path(), quota);
            assert!(!reserve.is_held());
            reserve.hold().unwrap();
            assert!(reserve.is_held());
            assert_eq!(length(), Some(bytes));
            assert!(Reserve::new(folder.path(), quota).is_held());
        }
        let mut reserve = Reserve::new(folder.path(), 512 << 20);
        reserve.give_up();
        assert_eq!((reserve.is_held(), length()), (false, None));
        let mut nowhere = Reserve::new(&folder.path().join("missing"), 512 << 20);
        assert!(nowhere.hold().is_err() && !nowhere.is_held());
    }
}

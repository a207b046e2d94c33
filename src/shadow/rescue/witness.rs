//! The witness: a small file that says how far the journal had come, so that commits that vanished are noticed.
//!
//! A log (`-wal`) that is cut off, deleted or overwritten does not look damaged: SQLite takes the rest for the whole,
//! and a command that was claimed would be sent again. So after each commit that moved the journal its count of
//! transitions is written here, in place, without a flush: that costs microseconds, survives the death of the process,
//! and after a power cut may only be too low, never too high. A journal behind its witness has lost commits.
//!
//! It is also the mark that there was a store: a folder with a witness and without `state.db` is no first start.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::aside;

/// The file.
const WITNESS_FILE: &str = "witness";
/// Its whole length: numbers have fixed widths, so that it is always overwritten by as much.
const BYTES: usize = 55;

/// What the witness says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::shadow) enum Testimony {
    /// There is none.
    Missing,
    /// It cannot be read.
    Unreadable,
    /// It saw this store's journal make so many transitions.
    Saw { store: i64, transitions: i64 },
}

/// The open file.
#[derive(Debug)]
pub(in crate::shadow) struct Witness {
    path: PathBuf,
    file: Option<File>,
    last: Option<(i64, i64)>,
}

impl Witness {
    pub(in crate::shadow) fn of(folder: &Path) -> Self {
        Self { path: folder.join(WITNESS_FILE), file: None, last: None }
    }

    /// What it says.
    pub(in crate::shadow) fn read(&self) -> Testimony {
        match std::fs::read(&self.path) {
            Ok(bytes) => parse(&bytes)
                .map_or(Testimony::Unreadable, |(store, transitions)| Testimony::Saw { store, transitions }),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => Testimony::Missing,
            Err(_) => Testimony::Unreadable,
        }
    }

    /// After opening: from now on it stands for this store. On disk before this returns, if it said anything else.
    pub(in crate::shadow) fn vouch(&mut self, store: i64, transitions: i64) -> std::io::Result<()> {
        if self.read() != (Testimony::Saw { store, transitions }) {
            return self.begin(store, transitions);
        }
        self.file = Some(OpenOptions::new().write(true).open(&self.path)?);
        self.last = Some((store, transitions));
        Ok(())
    }

    /// Begins a new one, whatever is in its place.
    fn begin(&mut self, store: i64, transitions: i64) -> std::io::Result<()> {
        self.file = None;
        let new = aside::beside(&self.path, ".new");
        let file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o640).open(&new)?;
        file.write_all_at(text(store, transitions).as_bytes(), 0)?;
        file.sync_all()?;
        if self.path.is_dir() {
            std::fs::remove_dir(&self.path)?;
        }
        std::fs::rename(&new, &self.path)?;
        aside::sync_folder(&self.path)?;
        (self.file, self.last) = (Some(file), Some((store, transitions)));
        Ok(())
    }

    /// After a commit: the journal has come so far. Nothing happens if that is known.
    pub(in crate::shadow) fn saw(&mut self, store: i64, transitions: i64) -> std::io::Result<()> {
        if self.last == Some((store, transitions)) {
            return Ok(());
        }
        let Some(file) = &self.file else { return self.begin(store, transitions) };
        file.write_all_at(text(store, transitions).as_bytes(), 0)?;
        self.last = Some((store, transitions));
        Ok(())
    }
}

fn text(store: i64, transitions: i64) -> String {
    let said = format!("{:016x} {transitions:020}", store.cast_unsigned());
    format!("{said} {:016x}\n", fingerprint(said.as_bytes()))
}

fn parse(bytes: &[u8]) -> Option<(i64, i64)> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() == BYTES)?;
    let (said, print) = (text.get(..37)?, text.get(38..54)?);
    if u64::from_str_radix(print, 16).ok()? != fingerprint(said.as_bytes()) {
        return None;
    }
    let store = u64::from_str_radix(said.get(..16)?, 16).ok()?.cast_signed();
    Some((store, said.get(17..)?.parse().ok()?))
}

/// FNV-1a: not against an enemy, but no changed byte passes.
pub(in crate::shadow) fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_it_saw_last_and_a_changed_byte_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let mut witness = Witness::of(folder.path());
        assert_eq!(witness.read(), Testimony::Missing);
        witness.saw(-7, 3).unwrap();
        witness.saw(-7, 4).unwrap();
        assert_eq!(Witness::of(folder.path()).read(), Testimony::Saw { store: -7, transitions: 4 });
        let file = folder.path().join(WITNESS_FILE);
        let good = std::fs::read(&file).unwrap();
        assert_eq!(good.len(), BYTES);
        for place in 0..54 {
            let mut bad = good.clone();
            bad[place] ^= 1;
            std::fs::write(&file, &bad).unwrap();
            // All but the blank before the fingerprint.
            assert!(place == 37 || witness.read() == Testimony::Unreadable, "byte {place}");
        }
        std::fs::write(&file, &good[..20]).unwrap();
        assert_eq!(witness.read(), Testimony::Unreadable);
    }
}

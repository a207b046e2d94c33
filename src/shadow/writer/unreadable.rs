//! A file that cannot be read for good, on a disk that works otherwise: a bad sector, not a cable.
//!
//! A read that fails at opening is tried again, because it may pass. After [`UNREADABLE_MAX`] it does not: then the file
//! is rebuilt from what can be read of it, as one that is damaged. While the folder itself takes no writes nothing is
//! rebuilt, because the whole disk is away; and not again within [`AGAIN_AFTER`], so that a disk that fails at one name
//! does not push the first damaged copy out with later ones.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::fault::Fault;
use super::super::terms::StoreError;

/// So long a file is tried to be read before it counts as damaged.
pub(super) const UNREADABLE_MAX: Duration = Duration::from_secs(30);
/// Between two rebuildings for that reason.
const AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// What is known of one file.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    since: Option<Instant>,
    /// When it was given up as unreadable last.
    given_up: Option<Instant>,
    /// The damage that was met in it, until it is rebuilt: the attempts between may fail for other reasons.
    met: Option<String>,
}

impl Unreadable {
    /// The file `name` in `folder` could not be used, or opened.
    pub(super) fn failed(&mut self, cause: &StoreError, name: &str, folder: &Path, now: Instant) {
        if let StoreError::Damaged { path, cause } = cause {
            if path.ends_with(name) {
                self.met = Some(cause.clone());
            }
            return;
        }
        if cause.fault() != Some(Fault::IoError) || Fault::of_folder(folder).is_some() {
            self.since = None;
            return;
        }
        let since = *self.since.get_or_insert(now);
        let again = self.given_up.is_none_or(|at| now.saturating_duration_since(at) >= AGAIN_AFTER);
        if now.saturating_duration_since(since) >= UNREADABLE_MAX && again && self.met.is_none() {
            self.given_up = Some(now);
            tracing::error!(file = name, %cause, "it cannot be read for good; it is rebuilt from what can be");
            self.met = Some(format!("it could not be read for {} s: {cause}", UNREADABLE_MAX.as_secs()));
        }
    }

    /// Why the file is to be rebuilt whatever its check says, if it is.
    pub(super) fn met(&self) -> Option<&str> {
        self.met.as_deref()
    }

    /// It is open, or another file is in its place.
    pub(super) fn opened(&mut self) {
        (self.since, self.met) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failing(fault: Fault) -> StoreError {
        StoreError::Disk { doing: "open state.db", cause: "disk I/O error".to_owned(), fault }
    }

    #[test]
    fn a_file_whose_reads_fail_for_half_a_minute_on_a_sound_disk_is_rebuilt_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, start) = (Unreadable::default(), Instant::now());
        let mut failed = |after: u64, fault, folder: &Path| {
            file.failed(&failing(fault), "state.db", folder, start + Duration::from_secs(after));
            file.met().map(ToOwned::to_owned)
        };
        assert_eq!(failed(0, Fault::IoError, folder.path()), None);
        assert_eq!(failed(29, Fault::IoError, folder.path()), None);
        assert_eq!(failed(40, Fault::DiskFull, folder.path()), None, "something else: it begins again");
        assert_eq!(failed(41, Fault::IoError, folder.path()), None);
        assert_eq!(failed(70, Fault::IoError, folder.path()), None);
        let met = failed(71, Fault::IoError, folder.path()).unwrap();
        assert!(met.contains("could not be read for 30 s"), "{met}");
        file.opened();
        assert_eq!(file.met(), None);
        let fails_at = |file: &mut Unreadable, after: u64| {
            file.failed(&failing(Fault::IoError), "state.db", folder.path(), start + Duration::from_secs(after));
            file.met().is_some()
        };
        assert_eq!([80, 200, 3_600, 3_672].map(|after| fails_at(&mut file, after)), [false, false, false, true]);
    }

    #[test]
    fn damage_is_remembered_until_the_file_is_open_whatever_fails_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let (mut file, now) = (Unreadable::default(), Instant::now());
        let damaged = |path: &str| StoreError::Damaged { path: path.to_owned(), cause: "a page is missing".to_owned() };
        file.failed(&damaged("/x/telemetry.db"), "state.db", folder.path(), now);
        assert_eq!(file.met(), None, "that is the other one");
        file.failed(&damaged("/x/state.db"), "state.db", folder.path(), now);
        file.failed(&failing(Fault::DiskFull), "state.db", folder.path(), now);
        assert_eq!(file.met(), Some("a page is missing"));
    }
}

//! Where the control socket is: in the state folder, or, if its disk takes no new file, in a folder that is not on it.
//!
//! The other folder is `/run/floorgate/HASH` or else `floorgate-HASH` in the folder for temporary files, HASH being the
//! state folder's. It belongs to the daemon's user alone. A client believes it only if it does: others may write in the
//! folder around it.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::socket_path;

/// Where a service keeps what lives as long as it runs.
const RUN_FOLDER: &str = "/run/floorgate";
/// `EIO`, which the standard library has no word for.
const EIO: i32 = 5;

/// Whether it is the disk that takes no new file.
pub(super) fn is_disk(cause: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(cause.kind(), QuotaExceeded | ReadOnlyFilesystem | StorageFull) || cause.raw_os_error() == Some(EIO)
}

/// The other folders, best first.
fn elsewhere(state_dir: &Path) -> [PathBuf; 2] {
    let folder = state_dir.canonicalize().unwrap_or_else(|_| state_dir.to_owned());
    let digest = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    [Path::new(RUN_FOLDER).join(&hash), std::env::temp_dir().join(format!("floorgate-{hash}"))]
}

/// Makes the first of the other folders that can be made, for us alone.
pub(super) fn make_elsewhere(state_dir: &Path) -> io::Result<PathBuf> {
    let mut outcome = Err(io::ErrorKind::NotFound.into());
    for folder in elsewhere(state_dir) {
        outcome = match DirBuilder::new().mode(0o700).create(&folder) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                if is_private(&folder, &[rustix::process::geteuid().as_raw()]) { Ok(()) } else { Err(cause) }
            }
            made => made,
        }
        .map(|()| folder);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Every place where the daemon of this state folder may listen, likeliest first.
pub(super) fn candidates(state_dir: &Path) -> Vec<PathBuf> {
    let mut owners = vec![0, rustix::process::geteuid().as_raw()];
    owners.extend(std::fs::metadata(state_dir).map(|folder| folder.uid()));
    let private = elsewhere(state_dir).into_iter().filter(|folder| is_private(folder, &owners));
    std::iter::once(socket_path(state_dir)).chain(private.map(|folder| socket_path(&folder))).collect()
}

/// Whether a folder, and no link to one, belongs to one of these users and to nobody else.
fn is_private(folder: &Path, owners: &[u32]) -> bool {
    std::fs::symlink_metadata(folder)
        .is_ok_and(|found| found.is_dir() && found.mode() & 0o077 == 0 && owners.contains(&found.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn another_place_is_made_for_one_state_folder_and_believed_only_while_it_is_private() {
        let state = tempfile::tempdir().unwrap();
        let made = make_elsewhere(state.path()).unwrap();
        assert_eq!(made, make_elsewhere(state.path()).unwrap(), "it is found again");
        assert_eq!(candidates(state.path()), [socket_path(state.path()), socket_path(&made)]);
        std::fs::set_permissions(&made, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(candidates(state.path()), [socket_path(state.path())]);
        std::fs::remove_dir(made).unwrap();
    }
}

//! A small file system for the daemon alone, filled and emptied by `tests/disk.rs`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::tools::{self, cargo, run};

/// Large enough for both files, their logs and the reserve; small enough to be filled in a moment.
const BYTES: u64 = 64 * 1024 * 1024;

/// A mounted image; dropping it unmounts it.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, so that a daemon that is not quite gone does not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Runs the disk's tests: those with injected faults everywhere, those on a real file system where it may be mounted.
pub(crate) fn suite() -> Result<()> {
    run(cargo().args(["test", "--test", "disk", "--", "--test-threads=1", "--nocapture"]))?;
    let folder = tempfile::tempdir()?;
    let mounted = match mounted(folder.path()) {
        Ok(mounted) => mounted,
        Err(why) => {
            println!("skipped: the small file system, because {why}; run it as root on a machine with loop devices");
            return Ok(());
        }
    };
    let mut test = cargo();
    test.args(["test", "--features", "suites", "--test", "disk", "a_real_file_system", "--", "--nocapture"]);
    run(test.env("FLOORGATE_TEST_MOUNT", mounted.path()))
}

/// A small file system of its own in `folder`, or why there is none.
pub(crate) fn mounted(folder: &Path) -> Result<Mounted, String> {
    let (image, mount) = (folder.join("image"), folder.join("mount"));
    for program in ["mkfs.ext4", "mount", "umount"] {
        if !tools::is_there(program) {
            return Err(format!("`{program}` is not there"));
        }
    }
    let made = std::fs::create_dir(&mount).and_then(|()| std::fs::File::create(&image)?.set_len(BYTES));
    made.map_err(|cause| format!("the image cannot be made: {cause}"))?;
    quietly(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
    quietly(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount))?;
    Ok(Mounted(mount))
}

fn quietly(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|cause| format!("{command:?}: {cause}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

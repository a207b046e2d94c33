//! A disk that fails on demand under the daemon's state folder (`tests/faultfs/shim.rs`).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::Rig;

/// The shim, compiled once for each test program; `None` without a compiler at hand.
fn shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faultfs/shim.rs");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("faultfs-{}.so", std::process::id()));
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args([
            "--edition",
            "2024",
            "--crate-type",
            "cdylib",
            "-O",
            "-C",
            "strip=symbols",
            "-A",
            "warnings",
            "-o",
        ]);
        let status = rustc.arg(&built).arg(source).status().expect("rustc is there");
        assert!(status.success(), "the shim compiles");
        built
    })
}

/// What the daemon of a rig sees of its disk.
pub struct Disk {
    control: PathBuf,
    image: PathBuf,
    state: PathBuf,
}

impl Disk {
    /// Puts the daemon of the next start on this disk.
    pub fn under(rig: &mut Rig) -> Self {
        let control = rig.folder.path().join("faults");
        let image = rig.folder.path().join("image");
        std::fs::write(&control, "").unwrap();
        let (state, shim) = (rig.state_dir(), shim().to_owned());
        let environment =
            [("LD_PRELOAD", shim), ("FAULTFS_FOLDER", state.clone()), ("FAULTFS_CONTROL", control.clone())];
        rig.daemon.environment.extend(environment);
        Self { control, image, state }
    }

    /// Also keeps what would be on it after a power cut.
    pub fn with_image(self, rig: &mut Rig) -> Self {
        std::fs::create_dir_all(&self.image).unwrap();
        rig.daemon.environment.push(("FAULTFS_DISK", self.image.clone()));
        self
    }

    /// From now on this fails: `ERRNO OPERATIONS FILES LIMIT` a line.
    pub fn fail(&self, rules: &str) {
        // In one step, so that nobody reads half of it.
        let new = self.control.with_extension("new");
        std::fs::write(&new, rules).unwrap();
        std::fs::rename(new, &self.control).unwrap();
    }

    pub fn mend(&self) {
        self.fail("");
    }

    /// The power was cut: the state folder is what the disk had. The daemon must not run.
    pub fn cut(&self) {
        let image = std::fs::read_dir(&self.image).unwrap();
        for entry in std::fs::read_dir(&self.state).unwrap() {
            let path = entry.unwrap().path();
            let _ = std::fs::remove_file(path);
        }
        for entry in image {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), self.state.join(entry.file_name())).unwrap();
        }
    }
}

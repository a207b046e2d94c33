//! The tools' package for AWS Lambda: `cargo xtask lambda`.
//!
//! # What comes out
//!
//! `target/lambda/floorgate-fleet-arm64.zip`, what `CodeUri` of `deploy/aws/template.yaml` wants: `bootstrap`, which
//! `provided.al2023` starts, and the program. Asserted:
//!
//! * the program is one for arm64, and needs no C library newer than [`GLIBC`];
//! * zipped it is no larger than [`ZIP_MAX`];
//! * unpacked and started by its `bootstrap`, under qemu, it answers what a played Runtime API asks (`fleet/tests`).
//!
//! Built as [`cross`] builds the daemon, in a profile of its own (`Cargo.toml` says why). The same program gives the same
//! zip: files in it have no time of this machine's.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use crate::cross;
use crate::platform::Platform;
use crate::tools::{self, cargo, run};

/// Amazon Linux 2023's C library.
const GLIBC: (u32, u32) = (2, 34);
/// What Lambda takes without a bucket, bytes.
const ZIP_MAX: u64 = 50 * 1024 * 1024;
/// ELF's number for arm64.
const MACHINE: u16 = 183;
const PROGRAM: &str = "floorgate-fleet";
/// 2000-01-01: the format's own times begin in 1980, and zones shift them.
const PACKED_AT: Duration = Duration::from_secs(946_684_800);

/// Builds, packs, checks and runs it.
pub(crate) fn lambda() -> Result<()> {
    let platform = Platform::named("arm64")?;
    let program = release(platform)?;
    let newest = judge(&program)?;
    let folder = tools::target().join("lambda");
    let zip = pack(&program, &folder)?;
    let size = std::fs::metadata(&zip)?.len();
    ensure!(size <= ZIP_MAX, "{} has {size} bytes, Lambda takes {ZIP_MAX} at most", zip.display());
    println!("{}: {size} bytes, needs glibc {}.{}", zip.display(), newest.0, newest.1);
    try_it(platform, &zip)
}

fn release(platform: &Platform) -> Result<PathBuf> {
    let mut build = cross::cargo(platform, &tools::root(), &tools::target(), "zigbuild")?;
    run(build.args(["--profile", "function", "--locked", "--package", PROGRAM, "--bin", PROGRAM]))?;
    Ok(tools::target().join(platform.target).join("function").join(PROGRAM))
}

/// What machine and C library it is for.
fn judge(program: &Path) -> Result<(u32, u32)> {
    let mut head = [0; 20];
    let mut file = File::open(program).with_context(|| format!("cannot read {}", program.display()))?;
    file.read_exact(&mut head)?;
    ensure!(machine(&head) == Some(MACHINE), "{} is no program for arm64", program.display());
    let newest = cross::needed_glibc(program)?;
    if newest > GLIBC {
        bail!("{} needs glibc {}.{}, above {}.{}", program.display(), newest.0, newest.1, GLIBC.0, GLIBC.1);
    }
    Ok(newest)
}

/// The machine that an ELF file of 64 bits, lowest byte first, is for.
fn machine(head: &[u8; 20]) -> Option<u16> {
    head.starts_with(b"\x7fELF\x02\x01").then(|| u16::from_le_bytes([head[18], head[19]]))
}

fn pack(program: &Path, folder: &Path) -> Result<PathBuf> {
    let contents = folder.join("package");
    if contents.exists() {
        std::fs::remove_dir_all(&contents).with_context(|| format!("cannot empty {}", contents.display()))?;
    }
    std::fs::create_dir_all(&contents).with_context(|| format!("cannot make {}", contents.display()))?;
    let bootstrap = tools::root().join("deploy/aws/bootstrap");
    for (from, name) in [(bootstrap.as_path(), "bootstrap"), (program, PROGRAM)] {
        let to = contents.join(name);
        std::fs::copy(from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755))?;
        File::options().write(true).open(&to)?.set_modified(SystemTime::UNIX_EPOCH + PACKED_AT)?;
    }
    let zip = folder.join("floorgate-fleet-arm64.zip");
    // Python's: it is needed here anyway, and writes nothing but what it is told.
    let mut packer = Command::new("python3");
    packer.args(["-m", "zipfile", "--create"]).arg(&zip).args(["bootstrap", PROGRAM]);
    run(packer.current_dir(&contents).env("TZ", "UTC"))?;
    Ok(zip)
}

/// Unpacks the zip as Lambda does, and lets the tests start it.
fn try_it(platform: &Platform, zip: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    tools::need("unzip", "unzip")?;
    run(Command::new("unzip").args(["-q"]).arg(zip).arg("-d").arg(folder.path()))?;
    let Some(emulation) = &platform.emulated else { bail!("arm64 is no machine of another kind here") };
    emulation.need()?;
    // `bootstrap` starts the program by its name, so qemu takes that name.
    let (named, real) = (folder.path().join(PROGRAM), folder.path().join("arm64"));
    std::fs::rename(&named, &real)?;
    let line = format!("#!/bin/sh\nexec {} -L {} {:?} \"$@\"\n", emulation.qemu, emulation.libraries, real);
    std::fs::write(&named, line)?;
    std::fs::set_permissions(&named, std::fs::Permissions::from_mode(0o755))?;
    let mut test = cargo();
    test.args(["test", "--package", PROGRAM, "--test", "fleet", "what_is_packaged_for_lambda", "--", "--ignored"]);
    run(test.env("FLOORGATE_TEST_LAMBDA", folder.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_for_another_machine_is_none_for_arm64() {
        let mut head = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\xb7\0";
        assert_eq!(machine(&head), Some(MACHINE));
        head[18] = 62;
        assert_eq!(machine(&head), Some(62));
        head[0] = b'#';
        assert_eq!(machine(&head), None);
    }
}

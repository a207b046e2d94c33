//! Release binaries for gateways: `cargo xtask cross TARGET`.
//!
//! # What comes out
//!
//! * One file that needs no C library newer than [`GLIBC`]: Debian 11 and Ubuntu 20.04 take it. Asserted on the file.
//! * The same bytes for the same sources and compiler, wherever they lie: folders are left out of them
//!   (`cargo xtask reproducible` shows it).
//!
//! # With what
//!
//! zig's C compiler and linker, from PyPI in a virtual environment, by cargo-zigbuild: they know the symbols of every glibc.
//! Rust's standard library for the target comes with the pinned toolchain if `rustup target add TARGET` has brought it; else
//! Debian's rustc-web builds it from rust-web-src. `docs/decisions/0017` says why not a C cross compiler, musl or Docker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::platform::Platform;
use crate::tools::{self, run};

/// The newest C library that may be needed: Ubuntu 20.04 and Debian 11 have 2.31.
pub(crate) const GLIBC: (u32, u32) = (2, 31);
/// What pip installs. Pinned: another linker may give other bytes.
const ZIG: [&str; 2] = ["ziglang==0.15.2", "cargo-zigbuild==0.24.0"];
/// Debian's compiler, whose version is that of the sources beside it.
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_RUSTDOC: &str = "/usr/bin/rustdoc";
const DEBIAN_STD: &str = "/usr/lib/rustlib/src/rust/library/std/Cargo.toml";

/// Builds the release, checks it and says what it is.
pub(crate) fn cross(name: &str) -> Result<()> {
    let platform = Platform::named(name)?;
    let program = release(platform)?;
    println!("{}", program.display());
    Ok(())
}

/// The release binary of a platform; answers where it is.
///
/// # Errors
/// If something is missing and cannot be installed, it does not build, or needs a newer C library.
pub(crate) fn release(platform: &Platform) -> Result<PathBuf> {
    release_of(platform, &tools::root(), &tools::target())
}

/// The same of sources that lie elsewhere.
fn release_of(platform: &Platform, sources: &Path, target: &Path) -> Result<PathBuf> {
    let mut build = cargo(platform, sources, target, "zigbuild")?;
    run(build.args(["--release", "--locked", "--package", "floorgate", "--bin", "floorgate"]))?;
    let program = target.join(platform.target).join("release/floorgate");
    let newest = needed_glibc(&program)?;
    let size = std::fs::metadata(&program).with_context(|| format!("cannot read {}", program.display()))?.len();
    println!("{}: {size} bytes, needs glibc {}.{}", platform.target, newest.0, newest.1);
    if newest > GLIBC {
        bail!("{} needs glibc {}.{}, above {}.{}", program.display(), newest.0, newest.1, GLIBC.0, GLIBC.1);
    }
    Ok(program)
}

/// Builds the release twice, the second time from a copy of the sources in another folder, into another one, and compares.
///
/// # Errors
/// If it cannot be built, or the bytes differ.
pub(crate) fn reproducible(name: &str) -> Result<()> {
    let platform = Platform::named(name)?;
    let first = release(platform)?;
    let elsewhere = tempfile::tempdir()?;
    let sources = elsewhere.path().join("a copy");
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(tools::root())
        .output()
        .context("cannot start git")?;
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        let to = sources.join(name);
        std::fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        std::fs::copy(tools::root().join(name), &to).with_context(|| format!("cannot copy {name}"))?;
    }
    let second = release_of(platform, &sources, &elsewhere.path().join("built"))?;
    if std::fs::read(&first)? != std::fs::read(&second)? {
        let kept = tools::target().join("not-reproduced");
        std::fs::copy(&second, &kept)?;
        bail!("{} and {} differ", first.display(), kept.display());
    }
    println!("{}: the same bytes twice", platform.target);
    Ok(())
}

/// `cargo-zigbuild TASK` for a platform, with whichever toolchain has what it takes.
///
/// # Errors
/// If something is missing and cannot be installed.
pub(crate) fn cargo(platform: &Platform, sources: &Path, target: &Path, task: &str) -> Result<Command> {
    let python = tools::python("zig", &ZIG)?;
    let bin = python.parent().context("a Python without a folder")?.to_owned();
    let mut command = Command::new(bin.join("cargo-zigbuild"));
    command.arg(task).current_dir(sources);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        // What cargo says of this very program, and its folder of libraries, are nothing to the other compiler.
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "LD_LIBRARY_PATH" {
            command.env_remove(&name);
        }
    }
    let mut path = vec![bin];
    if !has_std(platform)? {
        debian_toolchain()?;
        for (name, value) in [("CARGO", DEBIAN_CARGO), ("RUSTC", DEBIAN_RUSTC), ("RUSTDOC", DEBIAN_RUSTDOC)] {
            command.env(name, value);
        }
        // -Zbuild-std is not stable; the compiler and its sources are from one package, so they fit.
        command.env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN").arg("-Zbuild-std=std,panic_abort");
        path.push(PathBuf::from("/usr/bin"));
    }
    let old = std::env::var_os("PATH").unwrap_or_default();
    command.env("PATH", std::env::join_paths(path.into_iter().chain(std::env::split_paths(&old)))?);
    command.env("CARGO_INCREMENTAL", "0").env("CARGO_TARGET_DIR", target);
    command.env("CARGO_ENCODED_RUSTFLAGS", without_folders(sources, target)?).env_remove("RUSTFLAGS");
    command.arg("--target").arg(format!("{}.{}.{}", platform.target, GLIBC.0, GLIBC.1));
    Ok(command)
}

/// Whether the pinned toolchain has the target's standard library.
fn has_std(platform: &Platform) -> Result<bool> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let asked = ["--print", "target-libdir", "--target", platform.target];
    let output = Command::new(rustc).args(asked).current_dir(tools::root()).output().context("cannot start rustc")?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok(output.status.success() && Path::new(&folder).is_dir())
}

fn debian_toolchain() -> Result<()> {
    for (file, package) in [(DEBIAN_RUSTC, "rustc-web"), (DEBIAN_CARGO, "cargo-web"), (DEBIAN_STD, "rust-web-src")] {
        tools::need_file(Path::new(file), package).with_context(|| {
            "the pinned toolchain has no standard library for this target: \
             `rustup target add TARGET`, or Debian's rustc-web, cargo-web and rust-web-src"
        })?;
    }
    Ok(())
}

/// Flags by which the places of sources on this machine do not get into the binary, in cargo's encoding.
fn without_folders(sources: &Path, target: &Path) -> Result<OsString> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let mut flags = OsString::new();
    let mut leave_out = |folder: &Path, name: &str| {
        if !flags.is_empty() {
            flags.push("\u{1f}");
        }
        flags.push("--remap-path-prefix=");
        flags.push(folder);
        flags.push(format!("={name}"));
    };
    // One folder for each registry; a mirror's has another name.
    for folder in std::fs::read_dir(&registry).into_iter().flatten() {
        leave_out(&folder?.path(), "/cargo");
    }
    leave_out(sources, "/floorgate");
    // Last, so that it wins where the target folder is inside.
    leave_out(target, "/target");
    Ok(flags)
}

/// The newest C library whose symbols a program needs.
///
/// # Errors
/// If binutils are missing, or it needs none at all, which cannot be.
pub(crate) fn needed_glibc(program: &Path) -> Result<(u32, u32)> {
    tools::need("readelf", "binutils")?;
    let output = Command::new("readelf").args(["--version-info", "--wide"]).arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    newest_glibc(&text).with_context(|| format!("readelf finds no glibc in {}", program.display()))
}

fn newest_glibc(versions: &str) -> Option<(u32, u32)> {
    let numbers = versions.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let mut parts = rest[..end].split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    numbers.max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_found_by_number_and_not_by_text() {
        let said = "  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 5\n  Name: GLIBC_2.28 \n Name: GLIBC_2.3.4\n";
        assert_eq!(newest_glibc(said), Some((2, 28)));
        assert_eq!(newest_glibc("Name: GCC_3.0"), None);
        assert_eq!(newest_glibc("GLIBC_PRIVATE GLIBC_2.4"), Some((2, 4)));
    }

    #[test]
    fn folders_of_this_machine_are_left_out_the_innermost_last() {
        let flags = without_folders(Path::new("/somewhere"), Path::new("/somewhere/target")).unwrap_or_default();
        let flags = flags.to_string_lossy();
        assert!(flags.ends_with("\u{1f}--remap-path-prefix=/somewhere/target=/target"), "{flags}");
        assert!(flags.contains("--remap-path-prefix=/somewhere=/floorgate\u{1f}"), "{flags}");
    }
}

//! Running commands, and finding or installing the tools that are not Rust's.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A cargo command in the workspace's folder.
///
/// It does not inherit what cargo says of this very program: build scripts (ring's) look at these variables, and all that
/// depends on them would be built anew here and once more after the next plain `cargo test`.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end, its output to ours.
///
/// # Errors
/// If it cannot be started, or ends with anything but 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} ended with {status}");
    }
    Ok(())
}

/// The target this machine's compiler builds for, such as `x86_64-unknown-linux-gnu`.
///
/// # Errors
/// If `rustc` cannot be asked.
pub(crate) fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    // In the workspace's folder, where the toolchain is pinned.
    let output = Command::new(rustc).arg("-vV").current_dir(root()).output().context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}

/// Whether a program is on the path.
pub(crate) fn is_there(program: &str) -> bool {
    let found = |folder: PathBuf| folder.join(program).is_file();
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).any(found)
}

/// Makes sure that a program is there, from a Debian package if need be and possible.
///
/// # Errors
/// If it is missing and cannot be installed; the text says which package to install.
pub(crate) fn need(program: &str, package: &str) -> Result<()> {
    if is_there(program) {
        return Ok(());
    }
    install(program, package)?;
    if is_there(program) { Ok(()) } else { bail!("{program} is missing; install the package {package}") }
}

/// The same for a file that is no program on the path.
///
/// # Errors
/// As [`need`].
pub(crate) fn need_file(file: &Path, package: &str) -> Result<()> {
    if file.exists() {
        return Ok(());
    }
    install(&file.display().to_string(), package)?;
    if file.exists() { Ok(()) } else { bail!("{} is missing; install the package {package}", file.display()) }
}

/// Installs a Debian package where there is apt.
fn install(what_for: &str, package: &str) -> Result<()> {
    if !is_there("apt-get") {
        return Ok(());
    }
    // Steps run side by side, and apt does not wait for another apt's lists.
    let turn = File::create(target().join("apt.lock"))?;
    turn.lock().context("cannot wait for another installation")?;
    eprintln!("installing the Debian package {package} for {what_for}");
    let quiet = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").stdout(Stdio::null());
        run(&mut command)
    };
    quiet(&["update", "-qq"])?;
    quiet(&["install", "-y", "-qq", "--no-install-recommends", package])
}

/// A Python with these packages, in a virtual environment under the target folder.
///
/// # Errors
/// If there is no python3, or pip cannot install them.
pub(crate) fn python(name: &str, packages: &[&str]) -> Result<PathBuf> {
    need("python3", "python3-venv")?;
    let folder = target().join("venv").join(name);
    let python = folder.join("bin/python");
    let done = folder.join("installed");
    if std::fs::read_to_string(&done).is_ok_and(|text| text == packages.join(" ")) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let pip = [OsStr::new("-m"), "pip".as_ref(), "install".as_ref(), "--quiet".as_ref()];
    run(Command::new(&python).args(pip).arg("--disable-pip-version-check").args(packages))?;
    std::fs::write(&done, packages.join(" ")).with_context(|| format!("cannot write {}", done.display()))?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cargo_command_knows_nothing_of_this_package() {
        // Cargo sets it for this test.
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
        assert!(cargo().get_envs().any(|(name, value)| name == "CARGO_MANIFEST_DIR" && value.is_none()));
    }
}

//! The Debian package: `cargo xtask deb amd64|arm64|armhf`.
//!
//! Builds the release binary, writes what is derived from other files (the configuration as shipped, man pages,
//! completions), packs both with cargo-deb by `[package.metadata.deb]` in `Cargo.toml`, and checks the result:
//!
//! * it depends on no C library newer than [`cross::GLIBC`], and its program needs none;
//! * its configuration, as shipped, is refused with 78 and exactly the keys that nobody but the operator can know, and is
//!   complete once these are given;
//! * its version is that of its changelog; its units, users and folders are there; lintian finds no errors.
//!
//! The same sources give the same package: times are those of the changelog.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

use crate::cross;
use crate::platform::Platform;
use crate::tools::{self, cargo, run};

/// Pinned, so that packages are the same.
const CARGO_DEB: &str = "3.8.0";
/// Keys of the example that stand for something real; as shipped they are left to the operator.
const LEFT_OPEN: [&str; 2] = ["id", "location"];
/// What stands before the example's text.
const PREFACE: &str = "\
# floorgate's configuration. It does not start before `[gateway]` has an id and a location, here or in a file of conf.d.
# A file such as conf.d/gateway.toml is the better place for all that is this gateway's own: a later file wins key by key, and
# upgrades then ask no questions about this one. `sudo floorgate check` says what is missing, or what counts in the end.
#
";

/// Builds and checks the package of an architecture.
pub(crate) fn deb(name: &str) -> Result<()> {
    let platform = Platform::named(name)?;
    for (program, package) in [("dpkg-deb", "dpkg"), ("lintian", "lintian")] {
        tools::need(program, package)?;
    }
    let program = cross::release(platform)?;
    // Where cargo-deb looks for what `target/release/` means in Cargo.toml.
    let folder = program.parent().context("a program without a folder")?.join("package");
    derive(&folder)?;
    let package = pack(platform)?;
    check(platform, &package)?;
    let size = std::fs::metadata(&package)?.len();
    println!("{}: {size} bytes", package.display());
    Ok(())
}

/// Writes what is packed and is not in the sources as it is.
fn derive(folder: &Path) -> Result<()> {
    // A page of a task that is gone must not be packed.
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let example = std::fs::read_to_string(tools::root().join("deploy/floorgate.example.toml"))?;
    let shipped = as_shipped(&example)?;
    std::fs::write(folder.join("floorgate.toml"), shipped).context("cannot write floorgate.toml")?;
    // Made by a program of this machine's, whatever the package is for.
    run(cargo().args(["run", "--quiet", "--locked", "--example", "manual", "--"]).arg(folder))?;
    for page in std::fs::read_dir(folder.join("man"))? {
        let page = page?.path();
        // Without name and time, so that the same page gives the same bytes.
        if page.extension().is_some_and(|ending| ending != "gz") {
            run(Command::new("gzip").args(["--best", "--no-name", "--force"]).arg(page))?;
        }
    }
    Ok(())
}

/// The example with a preface and without the values that only the operator can know.
fn as_shipped(example: &str) -> Result<String> {
    let mut text = String::from(PREFACE);
    let mut section = "";
    let mut open = 0;
    for line in example.lines() {
        if line.trim_start_matches("# ").starts_with('[') {
            section = line.trim_start_matches("# ");
        }
        let is_open = |key: &&&str| line.strip_prefix(**key).is_some_and(|rest| rest.starts_with(" ="));
        if section == "[gateway]" && LEFT_OPEN.iter().any(|key| is_open(&key)) {
            text.push_str("# ");
            open += 1;
        }
        text.push_str(line);
        text.push('\n');
    }
    ensure!(open == LEFT_OPEN.len(), "the example sets {open} of {LEFT_OPEN:?} under [gateway]");
    Ok(text)
}

/// Runs cargo-deb; answers where the package is.
fn pack(platform: &Platform) -> Result<PathBuf> {
    let installed = tools::target().join("tools/cargo-deb");
    let program = installed.join("bin/cargo-deb");
    if !program.is_file() {
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--root"]).arg(&installed);
        // It runs for seconds; its own optimisation would take longer than that.
        install.args(["--debug", "--target-dir"]).arg(tools::target().join("tools/build"));
        run(install.arg(format!("cargo-deb@{CARGO_DEB}")))?;
    }
    let output = tools::target().join("debian");
    std::fs::create_dir_all(&output)?;
    let mut pack = Command::new(program);
    pack.current_dir(tools::root()).args(["--no-build", "--no-strip", "--locked", "--package", "floorgate"]);
    pack.args(["--target", platform.target, "--output"]).arg(&output);
    pack.env("CARGO_TARGET_DIR", tools::target()).env("SOURCE_DATE_EPOCH", released()?);
    run(&mut pack)?;
    Ok(output.join(format!("floorgate_{}_{}.deb", packaged_version()?.0, platform.debian)))
}

/// Version and date of the newest entry of the changelog.
fn packaged_version() -> Result<(String, String)> {
    let changelog = std::fs::read_to_string(tools::root().join("deploy/debian/changelog"))?;
    let version = changelog.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(version, _)| version);
    let date = changelog.lines().find(|line| line.starts_with(" -- ")).and_then(|line| line.split_once(">  "));
    let entry = version.zip(date).context("the first entry of deploy/debian/changelog has no version or no date")?;
    Ok((entry.0.to_owned(), entry.1.1.to_owned()))
}

/// When that was, in seconds since 1970.
fn released() -> Result<String> {
    let date = packaged_version()?.1;
    let output = Command::new("date").args(["-u", "+%s", "-d", &date]).output().context("cannot start date")?;
    ensure!(output.status.success(), "{date:?} is no date");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Looks into the package.
fn check(platform: &Platform, package: &Path) -> Result<()> {
    ensure!(package.is_file(), "cargo-deb did not write {}", package.display());
    let field = |name: &str| -> Result<String> {
        let output = Command::new("dpkg-deb").arg("--field").arg(package).arg(name).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let glibc = format!("libc6 (>= {}.{})", cross::GLIBC.0, cross::GLIBC.1);
    let depends = field("Depends")?;
    ensure!(depends.split(", ").any(|one| one == glibc), "it depends on {depends:?} and not on {glibc}");
    ensure!(field("Architecture")? == platform.debian, "it is for {}", field("Architecture")?);
    ensure!(field("Version")? == packaged_version()?.0, "it is version {}", field("Version")?);

    let unpacked = tempfile::tempdir()?;
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(unpacked.path()))?;
    let inside = |path: &str| unpacked.path().join(path);
    for path in [
        "usr/lib/systemd/system/floorgate.service",
        "usr/lib/sysusers.d/floorgate.conf",
        "etc/floorgate/conf.d",
        "etc/floorgate/devices.d",
        "etc/floorgate/profiles.d",
        "usr/share/doc/floorgate/copyright",
        "usr/share/man/man8/floorgate.8.gz",
        "usr/share/man/man8/floorgate-send.8.gz",
        "usr/share/man/man5/floorgate.toml.5.gz",
        "usr/share/bash-completion/completions/floorgate",
        "usr/share/zsh/vendor-completions/_floorgate",
        "usr/share/fish/vendor_completions.d/floorgate.fish",
    ] {
        ensure!(inside(path).exists(), "{path} is not in it");
    }
    let needed = cross::needed_glibc(&inside("usr/bin/floorgate"))?;
    ensure!(needed <= cross::GLIBC, "its program needs glibc {needed:?}");
    first_start(platform, &inside("usr/bin/floorgate"), &inside("etc/floorgate"))?;
    run(Command::new("lintian").args(["--fail-on", "error", "--tag-display-limit", "0"]).arg(package))
}

/// What the installation's check says: first what is missing, then, with that filled in as its text asks, nothing.
fn first_start(platform: &Platform, program: &Path, etc: &Path) -> Result<()> {
    let asked = || -> Result<Output> {
        let mut check = platform.command(program)?;
        check.arg("check").arg("--config").arg(etc.join("floorgate.toml")).env_clear();
        check.output().with_context(|| format!("cannot run {}", program.display()))
    };
    let before = asked()?;
    let said = String::from_utf8_lossy(&before.stderr);
    ensure!(before.status.code() == Some(78), "as shipped, `check` ends with {} and says: {said}", before.status);
    let problems = said.lines().filter(|line| line.contains("floorgate.toml")).count();
    for key in LEFT_OPEN {
        ensure!(said.contains(&format!("`gateway.{key}`")), "as shipped, `check` does not ask for {key}: {said}");
    }
    ensure!(problems == LEFT_OPEN.len(), "as shipped, `check` finds more than {LEFT_OPEN:?}: {said}");
    let own = "[gateway]\nid = \"GATEWAY-FLOOR1-001\"\nlocation = \"factory-floor-1\"\n";
    std::fs::write(etc.join("conf.d/gateway.toml"), own)?;
    let after = asked()?;
    if !after.status.success() {
        bail!("with id and location, `check` says: {}", String::from_utf8_lossy(&after.stderr));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_configuration_leaves_open_what_only_the_operator_knows() {
        let example = "[gateway]\n## Who.\nid = \"G\"\nlocation = \"L\"\nother = 1\n# [[device]]\n# id = \"S\"\n";
        let shipped = as_shipped(example).unwrap_or_default();
        let rest = "[gateway]\n## Who.\n# id = \"G\"\n# location = \"L\"\nother = 1\n# [[device]]\n# id = \"S\"\n";
        assert_eq!(shipped.strip_prefix(PREFACE), Some(rest));
        assert!(as_shipped("[gateway]\nid = 1\n").is_err(), "a key that is gone must be noticed");
    }

    #[test]
    fn the_changelog_names_the_version_of_the_workspace() {
        let version = packaged_version().map(|(version, _)| version).unwrap_or_default();
        assert_eq!(version.split_once('-').map(|(upstream, _)| upstream), Some(env!("CARGO_PKG_VERSION")));
    }
}

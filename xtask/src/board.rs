//! The board test: Debian with systemd, started here, floorgate installed in it from its package, and its power cut.
//!
//! This half finds what is needed: an image ([`image`]), the package, the programs. The story and the judge are
//! `tests/board`, which this starts in namespaces of its own: whatever way it ends, its processes and mounts end with it.

mod image;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::package;
use crate::tools::{self, cargo, run};

/// What the machine's processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// Debian's name.
    fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// How the system runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// systemd-nspawn: this machine's kernel, a disk of its own.
    Container,
    /// qemu: a kernel of its own, every instruction emulated.
    Machine,
}

/// What `cargo xtask vm` was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    arch: Arch,
    kind: Kind,
    /// Debian's release.
    suite: String,
    cuts: u64,
    seed: Option<u64>,
    package: Option<PathBuf>,
    image_only: bool,
    no_flush: bool,
}

impl Asked {
    /// From the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let mut arch = None;
        let mut asked = Self {
            arch: Arch::Arm64,
            kind: Kind::Machine,
            suite: "bookworm".to_owned(),
            cuts: 5,
            seed: None,
            package: None,
            image_only: false,
            no_flush: false,
        };
        let mut rest = arguments.iter();
        while let Some(option) = rest.next() {
            match option.as_str() {
                "--nspawn" => asked.kind = Kind::Container,
                "--image-only" => asked.image_only = true,
                "--no-flush" => asked.no_flush = true,
                "--arch" | "--suite" | "--cuts" | "--seed" | "--package" => {
                    let value = rest.next().with_context(|| format!("{option} wants a value"))?;
                    let number = || value.parse().with_context(|| format!("{option} wants a number, not {value:?}"));
                    match (option.as_str(), value.as_str()) {
                        ("--arch", "amd64") => arch = Some(Arch::Amd64),
                        ("--arch", "arm64") => arch = Some(Arch::Arm64),
                        ("--arch", _) => bail!("--arch is amd64 or arm64, not {value:?}"),
                        ("--suite", "bookworm" | "trixie") => asked.suite.clone_from(value),
                        ("--suite", _) => bail!("--suite is bookworm or trixie, not {value:?}"),
                        ("--cuts", _) => asked.cuts = number()?,
                        ("--seed", _) => asked.seed = Some(number()?),
                        _ => asked.package = Some(PathBuf::from(value)),
                    }
                }
                _ => bail!(
                    "vm knows --arch, --suite, --nspawn, --cuts, --seed, --package, --image-only and --no-flush, not {option}"
                ),
            }
        }
        asked.arch = match (asked.kind, arch) {
            (Kind::Container, Some(Arch::Arm64)) => {
                bail!("a container runs on this machine's own processor: --nspawn goes with --arch amd64")
            }
            (Kind::Machine, _) if asked.no_flush => bail!("--no-flush goes with --nspawn"),
            (Kind::Container, _) => Arch::Amd64,
            (Kind::Machine, arch) => arch.unwrap_or(Arch::Arm64),
        };
        Ok(asked)
    }
}

/// Images stay here: `$FLOORGATE_BOARD_CACHE`, else `floorgate/board` in the user's cache folder.
fn cache() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("FLOORGATE_BOARD_CACHE") {
        return Ok(PathBuf::from(folder));
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let cache = cache.or_else(home).context("neither FLOORGATE_BOARD_CACHE, XDG_CACHE_HOME nor HOME is set")?;
    Ok(cache.join("floorgate/board"))
}

/// Runs the board test.
///
/// # Errors
/// If this machine cannot run it, which the text says, or a check fails.
pub(crate) fn vm(asked: &Asked) -> Result<()> {
    needs(asked)?;
    let image = image::image(&cache()?, asked.arch, asked.kind, &asked.suite)?;
    if asked.image_only {
        return Ok(());
    }
    let package = match &asked.package {
        Some(package) => package.canonicalize().with_context(|| format!("no package at {}", package.display()))?,
        None => built(asked.arch)?,
    };
    let began = Instant::now();
    // With a process tree and mounts of its own: when the test ends, so does everything in it. The features are those of
    // the fault suite, so that nothing is built for this alone.
    let mut test = Command::new("unshare");
    test.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    // A container is a few processes; an emulated machine takes a whole one for itself.
    let inner = cargo_test(if asked.kind == Kind::Container { 3 } else { 1 });
    test.arg(inner.get_program()).args(inner.get_args()).current_dir(tools::root());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => test.env(name, value),
            None => test.env_remove(name),
        };
    }
    test.env("FLOORGATE_BOARD_KIND", if asked.kind == Kind::Container { "container" } else { "machine" });
    test.env("FLOORGATE_BOARD_ARCH", asked.arch.debian());
    test.env("FLOORGATE_BOARD_IMAGE", &image).env("FLOORGATE_BOARD_PACKAGE", &package);
    test.env("FLOORGATE_BOARD_CUTS", asked.cuts.to_string());
    test.envs(asked.no_flush.then_some(("FLOORGATE_BOARD_NO_FLUSH", "1")));
    test.envs(asked.seed.map(|seed| ("FLOORGATE_TEST_SEED", seed.to_string())));
    run(&mut test)?;
    println!("board: {} s from the image to the end", began.elapsed().as_secs());
    Ok(())
}

/// The package of these sources.
fn built(arch: Arch) -> Result<PathBuf> {
    package::deb(arch.debian())?;
    let folder = tools::target().join("debian");
    let mut packages = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(&format!("_{}.deb", arch.debian())) {
            packages.push((path.metadata()?.modified()?, path));
        }
    }
    let newest = packages.into_iter().max().with_context(|| format!("no package in {}", folder.display()))?;
    newest.1.canonicalize().context("the package is gone")
}

fn cargo_test(at_a_time: usize) -> Command {
    let mut test = cargo();
    test.args(["test", "--features", "suites,fail_points", "--test", "board", "--", "--nocapture"]);
    test.arg(format!("--test-threads={at_a_time}"));
    test
}

/// Root, the programs, and devices that no package brings.
fn needs(asked: &Asked) -> Result<()> {
    let id = Command::new("id").arg("-u").output().context("cannot ask who runs this")?;
    if String::from_utf8_lossy(&id.stdout).trim() != "0" {
        bail!("the board test wants root: it makes file systems, mounts them and boots a system");
    }
    tools::need("dpkg-deb", "dpkg")?;
    match asked.kind {
        Kind::Container => {
            tools::need("systemd-nspawn", "systemd-container")?;
            tools::need("qemu-storage-daemon", "qemu-system-common")?;
            for device in ["/dev/fuse", "/dev/loop-control"] {
                if !Path::new(device).exists() {
                    bail!(
                        "{device} is not there, so no disk can be made that loses what was not flushed; use a virtual machine"
                    );
                }
            }
        }
        Kind::Machine if asked.arch == Arch::Arm64 => tools::need("qemu-system-aarch64", "qemu-system-arm")?,
        Kind::Machine => tools::need("qemu-system-x86_64", "qemu-system-x86")?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Asked> {
        Asked::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_container_has_this_machines_processor_and_a_machine_is_arm_unless_told() {
        let default = parsed("").unwrap();
        assert_eq!((default.arch, default.kind, default.cuts), (Arch::Arm64, Kind::Machine, 5));
        let quick = parsed("--nspawn --cuts 7 --seed 3").unwrap();
        assert_eq!((quick.arch, quick.kind, quick.cuts, quick.seed), (Arch::Amd64, Kind::Container, 7, Some(3)));
        assert_eq!(parsed("--arch amd64").unwrap().arch, Arch::Amd64);
        for wrong in ["--nspawn --arch arm64", "--arch mips", "--suite sarge", "--cuts", "--cuts many", "--fast"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}

//! ARM programs under emulation: `cargo xtask emulated [--no-run] [TARGET…]`.
//!
//! For each target, with its own compiler, C library and word length:
//!
//! * the unit tests of `floorgate` and `floorgate-model`, as programs of the target, under qemu;
//! * the demo's scenarios, `cargo demo --headless`: the daemon and its command line are programs of the target, devices,
//!   broker, table and tools are this machine's.
//!
//! # What it does not show
//!
//! Speed, and the target's kernel: system calls are this machine's, translated. [`LEFT_OUT`] are the tests that emulation
//! cannot carry; each is run natively by `cargo test`, and the step names them each time.
//!
//! # Why its own profile
//!
//! Every instruction costs ten. With `opt-level = 1` the tests of one target take minutes, without any far longer, and a
//! release would take longer to build than to run. Checks of overflow and assertions stay on.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cross;
use crate::platform::{self, Emulation, Platform};
use crate::tools::{self, cargo, run};

/// Longest that one test program may take. It hangs rather than fails if the emulator does.
const TESTS_WITHIN_SECONDS: u32 = 900;
/// Longest that the demo may take; natively it takes about 140 s.
const DEMO_WITHIN_SECONDS: u32 = 420;
/// Unit tests that are left out, each with its reason.
const LEFT_OUT: &[(&str, &str)] = &[];

/// What was built for a target.
#[derive(Debug, Default)]
struct Programs {
    /// Test programs, each with the folder it expects to run in.
    tests: Vec<(PathBuf, PathBuf)>,
    daemon: Option<PathBuf>,
}

/// What `cargo xtask emulated` was asked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    platforms: Vec<(&'static Platform, &'static Emulation)>,
    no_run: bool,
}

impl Asked {
    /// From the command line: targets, or none for all.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self> {
        let (options, names): (Vec<&String>, Vec<&String>) =
            arguments.iter().partition(|argument| argument.starts_with('-'));
        if let Some(other) = options.iter().find(|option| **option != "--no-run") {
            bail!("emulated knows --no-run, not {other}");
        }
        let emulated = |platform: &'static Platform| platform.emulated.as_ref().map(|emulation| (platform, emulation));
        let platforms = if names.is_empty() {
            platform::ALL.iter().filter_map(emulated).collect()
        } else {
            let one = |name: &&String| {
                let platform = Platform::named(name)?;
                emulated(platform).with_context(|| format!("{} needs no emulation here", platform.target))
            };
            names.iter().map(one).collect::<Result<_>>()?
        };
        Ok(Self { platforms, no_run: !options.is_empty() })
    }
}

/// Runs everything for these targets.
///
/// With `--no-run` it only builds: that wants processors, while other suites mostly wait.
///
/// # Errors
/// If something is missing and cannot be installed, does not build, or fails.
pub(crate) fn emulated(asked: &Asked) -> Result<()> {
    let mut demos = Vec::new();
    for (platform, emulation) in &asked.platforms {
        emulation.need()?;
        let started = Instant::now();
        let programs = build(platform)?;
        println!("{}: built in {} s", platform.target, started.elapsed().as_secs());
        if !asked.no_run {
            unit_tests(platform, emulation, &programs)?;
            demos.push((*platform, *emulation, programs));
        }
    }
    if demos.is_empty() { Ok(()) } else { all_demos(&demos) }
}

/// The demo for every target at the same time: its acts wait for a link's time-out or for a command to expire far longer
/// than they compute.
fn all_demos(demos: &[(&Platform, &Emulation, Programs)]) -> Result<()> {
    // All is built before, so that the limit is for the run alone. The table lies where the demo looks for it.
    run(cargo().args(["build", "--quiet", "--bin", "floorgate-demo", "--bin", "floorgate-fleet"]))?;
    let table = ["build", "--quiet", "--locked", "--manifest-path", "demo/table/Cargo.toml", "--target-dir"];
    run(cargo().args(table).arg(tools::target().join("floorgate-table")))?;
    let ended: Vec<Result<()>> = std::thread::scope(|scope| {
        let start = |(platform, emulation, programs)| scope.spawn(move || demo(platform, emulation, programs));
        let running: Vec<_> = demos.iter().map(|(p, e, programs)| start((*p, *e, programs))).collect();
        let panicked = || Err(anyhow::anyhow!("the thread that ran a demo panicked"));
        running.into_iter().map(|demo| demo.join().unwrap_or_else(|_| panicked())).collect()
    });
    ended.into_iter().collect()
}

/// Builds test programs and daemon in one go, so that both share every library.
fn build(platform: &Platform) -> Result<Programs> {
    let mut build = cross::cargo(platform, &tools::root(), &tools::target(), "test")?;
    build.args(["--no-run", "--locked", "--profile", "emulated", "--message-format=json-render-diagnostics"]);
    // A test of the command line asks for the daemon's program; itself it is not run here.
    build.args(["--package", "floorgate", "--package", "floorgate-model", "--lib", "--test", "cli"]);
    let output = build.stderr(Stdio::inherit()).output().context("cannot start cargo-zigbuild")?;
    ensure!(output.status.success(), "the build for {} ended with {}", platform.target, output.status);
    programs(&String::from_utf8_lossy(&output.stdout))
}

/// What cargo says it built.
fn programs(messages: &str) -> Result<Programs> {
    let mut found = Programs::default();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let (Some(program), Some(manifest)) = (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let is_test = message["profile"]["test"] == true;
        let folder = Path::new(manifest).parent().unwrap_or_else(|| Path::new(".")).to_owned();
        match kind {
            "lib" if is_test => found.tests.push((program.into(), folder)),
            "bin" if !is_test && message["target"]["name"] == "floorgate" => found.daemon = Some(program.into()),
            _ => {}
        }
    }
    ensure!(found.tests.len() == 2, "cargo built {} programs of unit tests, not 2", found.tests.len());
    ensure!(found.daemon.is_some(), "cargo did not build the daemon");
    Ok(found)
}

fn unit_tests(platform: &Platform, emulation: &Emulation, programs: &Programs) -> Result<()> {
    for (test, reason) in LEFT_OUT {
        println!("{}: left out: {test}: {reason}", platform.target);
    }
    for (program, folder) in &programs.tests {
        let started = Instant::now();
        let mut tests = limited(TESTS_WITHIN_SECONDS);
        tests.current_dir(folder).args([emulation.qemu, "-L", emulation.libraries]).arg(program);
        tests.arg("--quiet").args(LEFT_OUT.iter().flat_map(|(test, _)| ["--skip", test]));
        run(&mut tests)?;
        println!("{}: {} took {} s", platform.target, program.display(), started.elapsed().as_secs());
    }
    Ok(())
}

fn demo(platform: &Platform, emulation: &Emulation, programs: &Programs) -> Result<()> {
    let Some(daemon) = &programs.daemon else { bail!("there is no daemon") };
    // The demo starts one program, so qemu and the daemon become one.
    let folder = tempfile::tempdir()?;
    let through = folder.path().join("floorgate");
    std::fs::write(&through, through_qemu(emulation, daemon))?;
    std::fs::set_permissions(&through, std::fs::Permissions::from_mode(0o755))?;
    let started = Instant::now();
    let mut demo = limited(DEMO_WITHIN_SECONDS);
    demo.arg(tools::target().join("debug/floorgate-demo")).arg("--headless").current_dir(tools::root());
    // Told in one piece, as another one may run beside it.
    let output = demo.env("FLOORGATE_BIN", &through).output().context("cannot start the demo")?;
    let (told, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{}: the demo took {} s:\n{told}{complaints}", platform.target, started.elapsed().as_secs());
    ensure!(output.status.success(), "the demo with the daemon for {} ended with {}", platform.target, output.status);
    Ok(())
}

/// A command that is ended, with all it started, after so many seconds.
fn limited(seconds: u32) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", &seconds.to_string()]);
    command
}

fn through_qemu(emulation: &Emulation, program: &Path) -> String {
    format!("#!/bin/sh\nexec {} -L {} '{}' \"$@\"\n", emulation.qemu, emulation.libraries, program.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_targets_are_meant_unless_some_are_named() -> Result<()> {
        let parse = |line: &str| Asked::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(parse("")?.platforms.len(), 2);
        let one = parse("--no-run armhf")?;
        assert_eq!((one.platforms.len(), one.no_run), (1, true));
        assert_eq!(one.platforms[0].0.target, "armv7-unknown-linux-gnueabihf");
        assert!(parse("amd64").is_err(), "this machine's own programs need no emulation");
        assert!(parse("riscv64").is_err() && parse("--fast").is_err());
        Ok(())
    }

    #[test]
    fn the_programs_are_those_that_cargo_names() {
        let message = |kind: &str, name: &str, test: bool, file: &str| {
            serde_json::json!({
                "manifest_path": "/w/Cargo.toml", "executable": file, "profile": {"test": test},
                "target": {"kind": [kind], "name": name},
            })
            .to_string()
        };
        let all = [
            message("lib", "floorgate", true, "/t/a"),
            message("lib", "floorgate-model", true, "/t/b"),
            message("test", "cli", true, "/t/c"),
            message("bin", "floorgate", false, "/t/d"),
            r#"{"executable": null, "manifest_path": "/w/Cargo.toml"}"#.to_owned(),
        ];
        let found = programs(&all.join("\n")).unwrap_or_default();
        assert_eq!(found.tests, [("/t/a".into(), "/w".into()), ("/t/b".into(), "/w".into())]);
        assert_eq!(found.daemon, Some("/t/d".into()));
        assert!(programs(&all[..3].join("\n")).is_err(), "a daemon that is missing must be noticed");
        assert!(programs(&all[1..].join("\n")).is_err(), "tests that are missing must be noticed");
    }
}

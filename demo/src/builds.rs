//! Builds the programs the demo runs, with cargo, and tells how far it is.
//!
//! * the daemon: `cargo build --bin floorgate` in this workspace, as anyone would;
//! * the table: its own package with its own lock file, into `floorgate-table` inside the target directory.
//!
//! Both may run at the same time: they use different target directories. `CARGO` and `CARGO_TARGET_DIR` are honoured.
//! `FLOORGATE_BIN` and `FLOORGATE_TABLE_BIN` name ready programs instead.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::OnceCell;

/// Lines of cargo's output that are shown when a build fails.
const LAST_WORDS: usize = 40;

/// How far a build is; clones show the same.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<Step>>);

#[derive(Debug, Clone, Default)]
struct Step {
    packages: usize,
    now: String,
    ready: bool,
}

impl Progress {
    fn with(&self, change: impl FnOnce(&mut Step)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// In a few words: `87 packages, now ring`.
    #[must_use]
    pub fn in_words(&self) -> String {
        let step = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match step {
            Step { ready: true, .. } => "ready".to_owned(),
            Step { packages: 0, .. } => "waiting for cargo".to_owned(),
            Step { packages, now, .. } => format!("{packages} packages so far, now {now}"),
        }
    }

    /// Whether it is built.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ready
    }
}

fn workspace() -> PathBuf {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR"));
    demo.parent().unwrap_or(demo).to_owned()
}

/// Builds the daemon; answers where its program is.
///
/// # Errors
/// Cargo is not there or fails; its last lines are in the error.
pub async fn daemon(progress: &Progress) -> Result<PathBuf> {
    if let Some(ready) = named_by("FLOORGATE_BIN", progress)? {
        return Ok(ready);
    }
    let manifest = workspace().join("Cargo.toml");
    cargo(&["build", "--bin", "floorgate", "--manifest-path", &manifest.to_string_lossy()], "floorgate", progress).await
}

/// Builds the table, once a process; answers where its program is.
///
/// # Errors
/// Cargo is not there or fails; its last lines are in the error.
pub async fn table(progress: &Progress) -> Result<PathBuf> {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let build = async || {
        if let Some(ready) = named_by("FLOORGATE_TABLE_BIN", progress)? {
            return Ok(ready);
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
        let target = target.join("floorgate-table");
        let manifest = workspace().join("demo/table/Cargo.toml");
        let (target, manifest) = (target.to_string_lossy(), manifest.to_string_lossy());
        let arguments = ["build", "--locked", "--manifest-path", &manifest, "--target-dir", &target];
        cargo(&arguments, "floorgate-demo-table", progress).await
    };
    let path = BUILT.get_or_try_init(build).await?.clone();
    progress.with(|step| step.ready = true);
    Ok(path)
}

fn named_by(variable: &str, progress: &Progress) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    if !path.is_file() {
        bail!("{variable} names `{}`, which is no file", path.display());
    }
    progress.with(|step| step.ready = true);
    Ok(Some(path))
}

async fn cargo(arguments: &[&str], program: &str, progress: &Progress) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut child = Command::new(&cargo)
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}; is Rust's cargo installed?", Path::new(&cargo).display()))?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        bail!("cargo was started without pipes")
    };
    let watched = watch(BufReader::new(stderr), progress);
    let (last_words, executable) = tokio::join!(watched, find_program(BufReader::new(stdout), program));
    let status = child.wait().await.context("cannot wait for cargo")?;
    if !status.success() {
        let last_words = Vec::from(last_words).join("\n");
        bail!("`cargo {}` failed ({status}):\n{last_words}", arguments.join(" "));
    }
    progress.with(|step| step.ready = true);
    executable.with_context(|| format!("cargo built no program named {program}"))
}

/// Counts `Compiling …` lines; keeps the last lines for the case that it fails.
async fn watch(lines: impl tokio::io::AsyncBufRead + Unpin, progress: &Progress) -> VecDeque<String> {
    let mut last_words = VecDeque::new();
    let mut lines = lines.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut words = line.split_whitespace();
        if words.next() == Some("Compiling") {
            let name = words.next().unwrap_or_default().to_owned();
            progress.with(|step| *step = Step { packages: step.packages + 1, now: name, ready: false });
        }
        last_words.push_back(line);
        if last_words.len() > LAST_WORDS {
            last_words.pop_front();
        }
    }
    last_words
}

/// Cargo says itself where it put the program, whatever the target directory is.
async fn find_program(lines: impl tokio::io::AsyncBufRead + Unpin, program: &str) -> Option<PathBuf> {
    let mut found = None;
    let mut lines = lines.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if message["target"]["name"] == program
            && let Some(path) = message["executable"].as_str()
        {
            found = Some(PathBuf::from(path));
        }
    }
    found
}

//! Builds the programs the demo runs, with cargo, and tells how far it is.
//!
//! * the daemon and the tools' server: `cargo build --bin floorgate --bin floorgate-fleet` in this workspace. One build, because
//!   two would wait for each other at the target directory, and would choose features anew;
//! * the table: its own package with its own lock file, into `floorgate-table` inside the target directory.
//!
//! The two builds may run at the same time: they use different target directories. `CARGO` and `CARGO_TARGET_DIR` are honoured.
//! `FLOORGATE_BIN`, `FLOORGATE_FLEET_BIN` and `FLOORGATE_TABLE_BIN` name ready programs instead.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
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
    let [daemon] = programs([DAEMON], progress).await?;
    Ok(daemon)
}

/// Builds the tools' server; answers where its program is.
///
/// # Errors
/// As [`daemon`].
pub async fn tools(progress: &Progress) -> Result<PathBuf> {
    let [tools] = programs([TOOLS], progress).await?;
    Ok(tools)
}

/// Builds both at once; answers where the daemon and the tools' server are.
///
/// # Errors
/// As [`daemon`].
pub async fn daemon_and_tools(progress: &Progress) -> Result<(PathBuf, PathBuf)> {
    let [daemon, tools] = programs([DAEMON, TOOLS], progress).await?;
    Ok((daemon, tools))
}

/// A program of this workspace, and the variable that names a ready one.
type Program = (&'static str, &'static str);
const DAEMON: Program = ("floorgate", "FLOORGATE_BIN");
const TOOLS: Program = ("floorgate-fleet", "FLOORGATE_FLEET_BIN");

/// Builds those that no variable names.
async fn programs<const N: usize>(wanted: [Program; N], progress: &Progress) -> Result<[PathBuf; N]> {
    let mut ready: [Option<PathBuf>; N] = [const { None }; N];
    for (place, (_, variable)) in ready.iter_mut().zip(wanted) {
        *place = named_by(variable)?;
    }
    let missing: Vec<_> =
        wanted.iter().zip(&ready).filter(|(_, ready)| ready.is_none()).map(|((name, _), _)| *name).collect();
    if !missing.is_empty() {
        let manifest = workspace().join("Cargo.toml");
        let manifest = manifest.to_string_lossy();
        let mut arguments = vec!["build", "--manifest-path", &manifest];
        missing.iter().for_each(|name| arguments.extend(["--bin", name]));
        let mut built = cargo(&arguments, &missing, progress).await?.into_iter();
        for place in ready.iter_mut().filter(|place| place.is_none()) {
            *place = built.next();
        }
    }
    progress.with(|step| step.ready = true);
    let paths: Vec<PathBuf> = ready.into_iter().flatten().collect();
    paths.try_into().map_err(|_| anyhow!("cargo built too few programs"))
}

/// Builds the table, once a process; answers where its program is.
///
/// # Errors
/// Cargo is not there or fails; its last lines are in the error.
pub async fn table(progress: &Progress) -> Result<PathBuf> {
    static BUILT: OnceCell<PathBuf> = OnceCell::const_new();
    let build = async || {
        if let Some(ready) = named_by("FLOORGATE_TABLE_BIN")? {
            return Ok(ready);
        }
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
        let target = target.join("floorgate-table");
        let manifest = workspace().join("demo/table/Cargo.toml");
        let (target, manifest) = (target.to_string_lossy(), manifest.to_string_lossy());
        let arguments = ["build", "--locked", "--manifest-path", &manifest, "--target-dir", &target];
        let built = cargo(&arguments, &["floorgate-demo-table"], progress).await?;
        built.into_iter().next().context("cargo built no table")
    };
    let path = BUILT.get_or_try_init(build).await?.clone();
    progress.with(|step| step.ready = true);
    Ok(path)
}

fn named_by(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else { return Ok(None) };
    if !path.is_file() {
        bail!("{variable} names `{}`, which is no file", path.display());
    }
    Ok(Some(path))
}

/// Runs cargo; answers where these programs are, in their order.
async fn cargo(arguments: &[&str], programs: &[&str], progress: &Progress) -> Result<Vec<PathBuf>> {
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
    let (last_words, found) = tokio::join!(watched, find_programs(BufReader::new(stdout)));
    let status = child.wait().await.context("cannot wait for cargo")?;
    if !status.success() {
        let last_words = Vec::from(last_words).join("\n");
        bail!("`cargo {}` failed ({status}):\n{last_words}", arguments.join(" "));
    }
    let built = |program: &&str| {
        found.get(*program).cloned().with_context(|| format!("cargo built no program named {program}"))
    };
    programs.iter().map(built).collect()
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

/// Cargo says itself where it put each program, whatever the target directory is.
async fn find_programs(lines: impl tokio::io::AsyncBufRead + Unpin) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut lines = lines.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(message) = serde_json::from_str::<Value>(&line) else { continue };
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_program_is_where_cargo_says() {
        let said = concat!(
            r#"{"target": {"name": "floorgate-fleet"}, "executable": "/t/floorgate-fleet"}"#,
            "\n",
            r#"{"target": {"name": "floorgate"}, "executable": null}"#,
            "\nno json\n",
            r#"{"target": {"name": "floorgate"}, "executable": "/t/floorgate"}"#,
        );
        let found = find_programs(said.as_bytes()).await;
        let wanted = [("floorgate", "/t/floorgate"), ("floorgate-fleet", "/t/floorgate-fleet")];
        assert_eq!(found, wanted.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).into());
    }
}

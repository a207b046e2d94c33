//! A program that the demo runs: where its log goes, how it ended, and how it is ended.
//!
//! It is a process group of its own, because Ctrl-C in the terminal is for the demo, which then stops its children in order.
//! Dropping a [`Child`] kills it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{self, Command};
use tokio::time::timeout;

/// Lines of the log that are shown when it ended by itself.
const LAST_WORDS: usize = 10;

/// A program, running or not.
#[derive(Debug)]
pub(crate) struct Child {
    /// What people call it.
    name: &'static str,
    log: PathBuf,
    running: Mutex<Option<process::Child>>,
}

impl Child {
    /// One that does not run yet, with its log in this file.
    pub(crate) fn new(name: &'static str, log: PathBuf) -> Self {
        Self { name, log, running: Mutex::new(None) }
    }

    /// Where its log goes.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    fn lock(&self) -> MutexGuard<'_, Option<process::Child>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it; what ran before is killed.
    ///
    /// # Errors
    /// It cannot be run, or its log cannot be written.
    pub(crate) fn start(&self, command: &mut Command) -> Result<()> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write `{}`", self.log.display()))?;
        let errors = log.try_clone().context("cannot share the log")?;
        let child = command.stdin(Stdio::null()).stdout(log).stderr(errors).kill_on_drop(true).process_group(0).spawn();
        *self.lock() = Some(child.with_context(|| format!("cannot run {}", self.name))?);
        Ok(())
    }

    /// Why it ended, if it did: its exit code and the end of its log.
    pub(crate) fn ended(&self) -> Option<String> {
        let status = self.lock().as_mut()?.try_wait().ok()??;
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n");
        Some(format!("{} ended ({status}); its last words in `{}`:\n{last}", self.name, self.log.display()))
    }

    /// Asks it to end (SIGTERM) and waits; kills it if it takes longer. Answers whether it ended in order.
    pub(crate) async fn stop(&self, within: Duration) -> bool {
        let running = self.lock().take();
        let Some(mut child) = running else { return true };
        if let Some(id) = child.id() {
            // The one way to send SIGTERM without unsafe code or another dependency.
            let _ = Command::new("kill").arg("-TERM").arg(id.to_string()).stderr(Stdio::null()).status().await;
        }
        if let Ok(Ok(status)) = timeout(within, child.wait()).await {
            return status.success();
        }
        let _ = child.kill().await;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn its_end_is_told_with_the_end_of_its_log() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::new("the program", dir.path().join("log"));
        assert_eq!(child.ended(), None, "what never ran has not ended");
        child.start(&mut shell("echo broken; exit 3")).unwrap();
        let ended = loop {
            match child.ended() {
                Some(ended) => break ended,
                None => tokio::task::yield_now().await,
            }
        };
        assert!(ended.starts_with("the program ended (exit status: 3)") && ended.ends_with("broken"), "{ended}");
        assert!(!child.stop(Duration::from_secs(5)).await, "that was no orderly end");
    }

    #[tokio::test]
    async fn it_is_asked_to_end_and_killed_if_it_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let child = Child::new("the program", dir.path().join("log"));
        child.start(&mut shell("exec sleep 600")).unwrap();
        assert_eq!(child.ended(), None);
        assert!(!child.stop(Duration::from_secs(20)).await, "sleep ends by the signal, with no success");
        child.start(&mut shell("trap '' TERM; echo ready; while :; do sleep 1; done")).unwrap();
        while !std::fs::read_to_string(child.log()).unwrap().contains("ready") {
            tokio::task::yield_now().await;
        }
        assert!(!child.stop(Duration::from_millis(50)).await);
        assert_eq!(child.ended(), None, "nothing is left to end");
    }
}

//! The daemon as a child process.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::{Child, Command};

pub struct Daemon {
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    /// More variables for the running daemon.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// `NAME:N`: the next start dies at the N-th pass of this point. Only with the feature `fail_points`.
    pub fail_point: Option<String>,
    /// A program with its first arguments that becomes the daemon, `unshare` for example.
    pub through: Vec<String>,
    /// From the start of the process until its control socket answered.
    pub ready_after: Duration,
}

impl Daemon {
    pub fn new(config: &Path, log: &Path) -> Self {
        let program = std::env::var_os("FLOORGATE_TEST_BINARY")
            .map_or_else(|| env!("CARGO_BIN_EXE_floorgate").into(), PathBuf::from);
        Self {
            program,
            config: config.to_owned(),
            log: log.to_owned(),
            child: None,
            environment: Vec::new(),
            fail_point: None,
            through: Vec::new(),
            ready_after: Duration::ZERO,
        }
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        self.prepared(Command::new(&self.program), arguments)
    }

    fn prepared(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.args(arguments).arg("--config").arg(&self.config).kill_on_drop(true).stdin(Stdio::null());
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env_remove("AWS_SESSION_TOKEN");
        command.env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM");
        command
    }

    /// Runs a command of the command line to its end.
    pub async fn cli(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    pub async fn json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.cli(&all).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{arguments:?}: {output:?}\n{}", self.log()))
    }

    pub async fn provision(&self) {
        let output = self.cli(&["provision"]).await;
        assert!(output.status.success(), "provision: {output:?}");
    }

    /// Starts the daemon and waits until it answers.
    pub async fn run(&mut self) {
        let exited = self.try_run().await.err();
        assert!(exited.is_none(), "the daemon ended with {exited:?}\n{}", self.log());
    }

    /// Starts the daemon and waits until it answers, or ends before.
    pub async fn try_run(&mut self) -> Result<(), ExitStatus> {
        self.spawn();
        let started = Instant::now();
        loop {
            if self.cli(&["status", "--json"]).await.status.success() {
                break;
            }
            if let Some(exited) = self.exited() {
                return Err(exited);
            }
            assert!(started.elapsed() < Duration::from_secs(10), "the daemon does not answer\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.ready_after = started.elapsed();
        Ok(())
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().unwrap())
    }

    /// Starts the daemon and does not wait.
    pub fn spawn(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = match self.through.split_first() {
            None => self.command(&["run"]),
            Some((program, first)) => {
                let mut command = Command::new(program);
                command.args(first).arg(&self.program);
                self.prepared(command, &["run"])
            }
        };
        command.envs(self.fail_point.take().map(|point| ("FLOORGATE_FAIL_POINT", point)));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().and_then(Child::id).expect("a running daemon")
    }

    /// `kill -9`.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.unwrap();
        }
    }

    /// SIGTERM; answers the exit code and how long it took.
    pub async fn terminate(&mut self) -> (Option<i32>, Duration) {
        let pid = self.pid();
        let started = Instant::now();
        let sent = Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await.unwrap();
        assert!(sent.success());
        let status = tokio::time::timeout(Duration::from_secs(20), self.child.as_mut().unwrap().wait()).await;
        self.child = None;
        (status.expect("the daemon ends").unwrap().code(), started.elapsed())
    }

    /// Waits until the daemon ends by itself.
    pub async fn ended(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(Duration::from_secs(20), self.child.as_mut().unwrap().wait()).await;
        self.child = None;
        status.expect("the daemon ends").unwrap().code()
    }

    pub fn log(&self) -> String {
        super::read(&self.log)
    }
}

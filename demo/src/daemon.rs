//! The daemon as a child process: its configuration, its start and end, and what its own command line says of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::child::Child;
use crate::devices::seed;

/// The gateway's id in the demo.
pub const GATEWAY_ID: &str = "GATEWAY-FLOOR1-001";
/// How long a command of the daemon's command line may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long the daemon may take to end; the contract allows it 5 s.
const STOP_WITHIN: Duration = Duration::from_secs(8);

/// Where the daemon finds the others.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Where the built-in floor endpoint listens, or where the plant's broker is.
    pub floor: SocketAddr,
    /// Whether a broker of the plant's is there.
    pub floor_is_broker: bool,
    /// The cloud's broker.
    pub cloud: SocketAddr,
    /// The table.
    pub table: SocketAddr,
}

/// The daemon. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    program: PathBuf,
    config: PathBuf,
    child: Child,
}

impl Daemon {
    /// Writes its configuration into `dir`; does not start it.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn prepare(program: PathBuf, dir: &Path, surroundings: &Surroundings) -> Result<Self> {
        let config = dir.join("floorgate.toml");
        let text = configuration(&dir.join("state"), surroundings);
        std::fs::write(&config, text).with_context(|| format!("cannot write `{}`", config.display()))?;
        Ok(Self { program, config, child: Child::new("the daemon", dir.join("floorgate.log")) })
    }

    /// Its program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Where its log goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        self.child.log()
    }

    fn command(&self, task: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(task)
            .arg("--config")
            .arg(&self.config)
            .env("AWS_ACCESS_KEY_ID", "demo")
            .env("AWS_SECRET_ACCESS_KEY", "demo")
            .env_remove("AWS_SESSION_TOKEN");
        command
    }

    /// Starts it.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn start(&self) -> Result<()> {
        self.child.start(&mut self.command("run")).with_context(|| format!("`{}`", self.program.display()))
    }

    /// Why it ended, if it did: its exit code and the end of its log.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.child.ended()
    }

    /// Runs one task of its command line with `--json` and reads what it says.
    ///
    /// # Errors
    /// It fails; what it wrote to standard error is in the error.
    pub async fn ask(&self, task: &str) -> Result<Value> {
        let mut command = self.command(task);
        command.arg("--json").stdin(Stdio::null()).kill_on_drop(true).process_group(0);
        let output = timeout(ANSWER_WITHIN, command.output()).await;
        let output = output.with_context(|| format!("`floorgate {task}` does not answer"))?;
        let output = output.with_context(|| format!("cannot run `{}`", self.program.display()))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            bail!("`floorgate {task}` failed ({}): {reason}", output.status);
        }
        serde_json::from_slice(&output.stdout).with_context(|| format!("`floorgate {task} --json` says no JSON"))
    }

    /// Asks it to end (SIGTERM) and waits; kills it if it takes longer than 8 s. Answers whether it ended in order.
    pub async fn stop(&self) -> bool {
        self.child.stop(STOP_WITHIN).await
    }
}

fn configuration(state_dir: &Path, surroundings: &Surroundings) -> String {
    let Surroundings { floor, floor_is_broker, cloud, table } = surroundings;
    let floor = if *floor_is_broker { format!("url = \"mqtt://{floor}\"") } else { format!("listen = \"{floor}\"") };
    let mut text = format!(
        "# Written by `cargo demo`.\nstate_dir = {:?}\n\n\
         [gateway]\nid = \"{GATEWAY_ID}\"\nlocation = \"factory-floor-1\"\n\n\
         [floor]\n{floor}\n\n\
         [cloud]\nurl = \"mqtt://{cloud}\"\n\n\
         [dynamodb]\nregion = \"us-east-1\"\nendpoint_url = \"http://{table}\"\n\n\
         # Virtual machines often never say that their clock is synchronised.\n[clock]\ntrust = \"always\"\n\n\
         [store]\nquota = \"64MiB\"\n\n[sync]\nstate_interval = \"2s\"\n",
        state_dir.display().to_string()
    );
    for spec in seed() {
        let rate = spec.configuration.iter().find(|(key, _)| *key == "sample_rate_seconds");
        let rate = rate.map_or_else(|| spec.sample_rate.as_secs().to_string(), |(_, seconds)| (*seconds).to_owned());
        text.push_str(&format!(
            "\n[[device]]\nid = \"{}\"\ntype = \"{}\"\nlocation = \"{}\"\ndriver = \"mqtt\"\nsample_rate_seconds = {rate}\n",
            spec.id, spec.device_type, spec.location
        ));
    }
    text
}

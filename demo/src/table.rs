//! A DynamoDB-compatible store in a child process: built when needed, stopped, killed and started again at will.
//!
//! Its data is one SQLite file in the directory it is given; its address stays the same over [`Table::restart`].
//! The child ends with its owner, whatever happens to the owner: its standard input closes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::builds::{self, Progress};
use crate::dynamo::Client;

/// How long it may take to say that it listens.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a stop may take before it becomes a kill.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// A running (or stopped) table.
#[derive(Debug)]
pub struct Table {
    program: PathBuf,
    file: PathBuf,
    address: SocketAddr,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Closing it asks the child to end.
    stdin: ChildStdin,
}

impl Table {
    /// Starts it with its data in `dir` (made if it is not there), on a free loopback port; builds it first if needed,
    /// which takes about a minute the first time.
    ///
    /// # Errors
    /// It cannot be built, or does not start.
    pub async fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &Progress::default()).await
    }

    /// As [`Table::start`], with the build's progress to be watched.
    ///
    /// # Errors
    /// It cannot be built, or does not start.
    pub async fn start_with(dir: &Path, progress: &Progress) -> Result<Self> {
        let program = builds::table(progress).await.context("cannot build the table")?;
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
        let file = dir.join("table.db");
        let (running, address) = run(&program, &file, 0).await?;
        Ok(Self { program, file, address, running: Some(running) })
    }

    /// Where it listens, also while it is stopped.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What goes into `[dynamodb] endpoint_url`.
    #[must_use]
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A client for it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::to(self.address)
    }

    /// Asks it to end and waits until it has. Does nothing if it does not run.
    pub async fn stop(&mut self) {
        if let Some(Running { mut child, stdin }) = self.running.take() {
            drop(stdin);
            if timeout(STOP_WITHIN, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }

    /// Ends it as a crash would (SIGKILL) and waits until it is gone. Does nothing if it does not run.
    pub async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.kill().await;
        }
    }

    /// Starts it again with the same data at the same address; stops it first if it runs.
    ///
    /// # Errors
    /// Somebody else took the port meanwhile, or it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await;
        let (running, _) = run(&self.program, &self.file, self.address.port()).await?;
        self.running = Some(running);
        Ok(())
    }
}

async fn run(program: &Path, file: &Path, port: u16) -> Result<(Running, SocketAddr)> {
    let mut child = Command::new(program)
        .arg(file)
        .arg(port.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        // Ctrl-C in the terminal is for the owner, which then stops its children in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run `{}`", program.display()))?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("the table was started without pipes")
    };
    let mut lines = BufReader::new(stdout).lines();
    let line = timeout(READY_WITHIN, lines.next_line()).await.context("the table does not say that it listens")?;
    let line = line.context("cannot read from the table")?.context("the table ended at once; its reason is above")?;
    let address = line.strip_prefix("listening on ").and_then(|address| address.parse().ok());
    let address = address.with_context(|| format!("the table says `{line}` instead of its address"))?;
    Ok((Running { child, stdin }, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::{DEVICES, Error};
    use serde_json::json;

    #[tokio::test]
    async fn what_was_written_survives_a_kill_and_the_address_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::start(dir.path()).await.unwrap();
        let client = table.client();
        client.create_tables().await.unwrap();
        // Making them again is no error, so that a kept directory can be used again.
        client.create_tables().await.unwrap();

        let update = json!({
            "TableName": DEVICES,
            "Key": {"device_id": {"S": "PRESS-1"}},
            "UpdateExpression": "SET #l = :l, configuration = :c",
            "ExpressionAttributeNames": {"#l": "location"},
            "ExpressionAttributeValues": {":l": {"S": "hall"}, ":c": {"M": {"rate": {"N": "5"}}}},
        });
        client.call("UpdateItem", &update).await.unwrap();
        let wanted = json!({"device_id": "PRESS-1", "location": "hall", "configuration": {"rate": 5}});
        assert_eq!(client.device("PRESS-1").await.unwrap(), Some(wanted.clone()));

        table.kill().await;
        assert!(matches!(client.device("PRESS-1").await, Err(Error::Unreachable(_))));
        table.restart().await.unwrap();
        assert_eq!(client.scan(DEVICES).await.unwrap(), std::slice::from_ref(&wanted));
        let query = json!({
            "TableName": DEVICES,
            "IndexName": "location-index",
            "KeyConditionExpression": "#l = :l",
            "ExpressionAttributeNames": {"#l": "location"},
            "ExpressionAttributeValues": {":l": {"S": "hall"}},
        });
        assert_eq!(client.query(query).await.unwrap(), [wanted]);
        assert_eq!(client.device("PRESS-2").await.unwrap(), None);
        table.stop().await;
    }

    #[tokio::test]
    async fn a_refusal_carries_its_kind_and_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let table = Table::start(dir.path()).await.unwrap();
        match table.client().scan("no-such-table").await {
            Err(Error::Refused { kind, .. }) => assert_eq!(kind, "ResourceNotFoundException"),
            other => panic!("{other:?}"),
        }
    }
}

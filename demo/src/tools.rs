//! The fleet's tools: `floorgate-fleet serve` as a child process, and who calls it.
//!
//! It is the real program with its real policies, on plain HTTP because it is on loopback, which it allows nowhere else. It
//! stands on the cloud's side: it reads the table and publishes to the cloud's broker itself, not over the gateway's wires.
//!
//! * [`Tools::operator`], [`Tools::senior`], [`Tools::hasty`]: MCP clients, each with a token of its own, for the acts.
//! * Into its directory it writes, readable by its owner alone, what whoever tries the demo needs: [`CONFIGURATION`] with
//!   the address and both tokens as MCP clients are configured, and each token alone. [`Tools::renew`] renews them half-way
//!   to their end, so that what is printed holds as long as the demo runs. [`Tools::stop`] removes them; they would open
//!   nothing any more.
//!
//! The port is any that is free; when another program takes it first, the next is tried, [`PORTS_TRIED`] in all.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use floorgate_model::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::child::Child;
use crate::devices::now;
use crate::issuer::{CLIENT_ID, HASTY, ISSUER, Issuer, LIFETIME, OPERATOR, SENIOR, YOUR_OPERATOR, YOUR_SENIOR};
use crate::mcp::Client;

/// For MCP clients: the address and the tokens.
pub const CONFIGURATION: &str = "mcp.json";
/// The operator's token alone.
pub const OPERATOR_TOKEN: &str = "operator.token";
/// The senior operator's token alone.
pub const SENIOR_TOKEN: &str = "senior_operator.token";
/// Ports that are tried before the demo gives up.
pub const PORTS_TRIED: u32 = 3;
/// How long it may take until it answers the first question.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long it may take to end; it gives what runs 10 s.
const STOP_WITHIN: Duration = Duration::from_secs(13);

/// The tools' server and its callers. Dropping it kills the server.
#[derive(Debug)]
pub struct Tools {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
    issuer: Issuer,
    /// When the tokens in the files were issued.
    issued: Mutex<Timestamp>,
    /// What an operator's agent calls.
    pub operator: Client,
    /// What a senior operator's agent calls.
    pub senior: Client,
    /// What the agent of an operator calls who wants too much at once.
    pub hasty: Client,
}

impl Tools {
    /// Starts `program` against a broker and a table that are there, and connects the acts' callers. Its log, the issuer's
    /// keys and the tokens go to `dir`, which has to be an absolute path for the ready lines to hold everywhere.
    ///
    /// # Errors
    /// It cannot be run, ends at once, or does not answer within 30 s.
    pub async fn start(program: &Path, dir: &Path, cloud: SocketAddr, table: SocketAddr) -> Result<Self> {
        let issuer = Issuer::new()?;
        let keys = dir.join("issuer-keys.json");
        std::fs::write(&keys, issuer.key_set().to_string())
            .with_context(|| format!("cannot write `{}`", keys.display()))?;
        let child = Child::new("the tools' server", dir.join("floorgate-fleet.log"));
        let operator = issuer.token(&OPERATOR, now())?;
        for _ in 0..PORTS_TRIED {
            let address = free_address().await?;
            child.start(&mut command(program, &keys, address, cloud, table))?;
            let Some(operator) = ready(&child, address, &operator).await? else { continue };
            let senior = Client::connect(address, &issuer.token(&SENIOR, now())?).await?;
            let hasty = Client::connect(address, &issuer.token(&HASTY, now())?).await?;
            let (dir, issued) = (dir.to_owned(), Mutex::new(Timestamp::EPOCH));
            let tools = Self { child, address, dir, issuer, issued, operator, senior, hasty };
            tools.renew(now())?;
            return Ok(tools);
        }
        bail!("other programs took {PORTS_TRIED} ports before the tools' server could; start the demo again")
    }

    /// The address for MCP clients.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Why the server ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.child.ended()
    }

    /// What to type to connect an MCP client, first the shortest.
    #[must_use]
    pub fn how_to_connect(&self) -> Vec<String> {
        let hours = LIFETIME.as_secs() / 3_600;
        let file = |name: &str| self.dir.join(name).display().to_string();
        let (url, token) = (self.url(), file(OPERATOR_TOKEN));
        vec![
            format!("The tools, for any MCP client, as long as the demo runs: {url}"),
            format!("  its configuration, as an operator and as a senior operator: {}", file(CONFIGURATION)),
            format!("  the tokens alone: {token} and {}", file(SENIOR_TOKEN)),
            format!(
                "  (a token counts for {hours} h; the files have new ones in time) To try it, with Node.js 22 or later, or with curl:"
            ),
            format!(
                "  npx -y @modelcontextprotocol/inspector --cli --config '{}' --server floorgate-operator --method tools/list",
                file(CONFIGURATION)
            ),
            format!(
                "  curl -sS {url} -H \"Authorization: Bearer $(cat '{token}')\" -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' -H 'MCP-Protocol-Version: 2025-11-25' -d '{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{{\"name\":\"list_devices\",\"arguments\":{{}}}}}}'"
            ),
        ]
    }

    /// Issues new tokens into the files if the old ones have lived half their life. To be called now and then.
    ///
    /// # Errors
    /// The files cannot be written. That is tried again after another half of a life, which is early enough once.
    pub fn renew(&self, now: Timestamp) -> Result<()> {
        {
            let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
            if now.since(*issued) < LIFETIME / 2 {
                return Ok(());
            }
            *issued = now;
        }
        let (operator, senior) = (self.issuer.token(&YOUR_OPERATOR, now)?, self.issuer.token(&YOUR_SENIOR, now)?);
        let server = |token: &str| json!({"type": "http", "url": self.url(), "headers": {"Authorization": format!("Bearer {token}")}});
        let configuration: Value = json!({
            "mcpServers": {"floorgate-operator": server(&operator), "floorgate-senior-operator": server(&senior)},
        });
        self.write_secret(CONFIGURATION, &format!("{configuration:#}\n"))?;
        self.write_secret(OPERATOR_TOKEN, &operator)?;
        self.write_secret(SENIOR_TOKEN, &senior)
    }

    /// Writes a file for its owner's eyes alone. It comes whole in the place of an old one, which may have had other eyes on it.
    fn write_secret(&self, name: &str, text: &str) -> Result<()> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let _ = std::fs::remove_file(&new);
        let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&new);
        file.and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// Asks it to end and waits; kills it if it takes longer than 13 s. Answers whether it ended in order.
    pub async fn stop(&self) -> bool {
        for name in [CONFIGURATION, OPERATOR_TOKEN, SENIOR_TOKEN] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        self.child.stop(STOP_WITHIN).await
    }
}

/// A loopback port that was free a moment ago.
async fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("no port is free")?;
    listener.local_addr().context("the free port has no address")
}

fn command(program: &Path, keys: &Path, address: SocketAddr, cloud: SocketAddr, table: SocketAddr) -> Command {
    let mut command = Command::new(program);
    // What is set for another server must not reach this one; nor must settings of AWS's, which nobody asks here.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("FLOORGATE_") || name.starts_with("AWS_")) {
            command.env_remove(name);
        }
    }
    command
        .args(["serve", "--listen", &address.to_string(), "--issuer", ISSUER, "--client-id", CLIENT_ID, "--jwks-file"])
        .arg(keys)
        .env("AWS_ACCESS_KEY_ID", "demo")
        .env("AWS_SECRET_ACCESS_KEY", "demo")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_ENDPOINT_URL_DYNAMODB", format!("http://{table}"))
        .env("FLOORGATE_MQTT_URL", format!("mqtt://{cloud}"))
        // One line for each call; the SDK would add three.
        .env("FLOORGATE_LOG", "info,rmcp=warn");
    command
}

/// Waits until it takes a token, which no other server does: then it is this one. `None` if its port was taken.
async fn ready(child: &Child, address: SocketAddr, token: &str) -> Result<Option<Client>> {
    let end = Instant::now() + READY_WITHIN;
    loop {
        match (Client::connect(address, token).await, child.ended()) {
            (_, Some(reason)) if reason.contains("cannot listen on") => return Ok(None),
            (_, Some(reason)) => bail!(reason),
            (Ok(client), None) => return Ok(Some(client)),
            (Err(error), None) if Instant::now() >= end => {
                let log = child.log().display();
                return Err(error.context(format!(
                    "the tools' server does not answer within {} s; its log is `{log}`",
                    READY_WITHIN.as_secs()
                )));
            }
            (Err(_), None) => sleep(LOOK_EVERY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Broker;
    use crate::builds::{self, Progress};
    use crate::table::Table;
    use std::os::unix::fs::PermissionsExt as _;

    #[tokio::test]
    async fn only_who_has_a_token_of_this_start_is_let_in_and_the_ready_files_hold_until_the_end() {
        let program = builds::tools(&Progress::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::start(&dir.path().join("table")).await.unwrap();
        table.client().create_tables().await.unwrap();
        let broker = Broker::start().await.unwrap();
        let tools = Tools::start(&program, dir.path(), broker.address(), table.address()).await.unwrap();
        for agent in [&tools.operator, &tools.senior, &tools.hasty] {
            assert_eq!(agent.tools().await.unwrap().len(), 6);
        }
        let empty = tools.operator.call("list_devices", json!({})).await.unwrap().told().unwrap();
        assert_eq!(empty["count"], 0);
        let refusal = tools.operator.call("get_device_status", json!({"device_id": "X"})).await.unwrap();
        assert_eq!(refusal.refused().unwrap().code(), Some("UNKNOWN_DEVICE"));

        let stranger = Issuer::new().unwrap().token(&SENIOR, now()).unwrap();
        let error = Client::connect(tools.address, &stranger).await.unwrap_err();
        assert!(error.to_string().contains("401"), "{error:#}");

        // As whoever tries the demo uses them.
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let configuration: Value = serde_json::from_str(&read(CONFIGURATION)).unwrap();
        for (server, file) in [("floorgate-operator", OPERATOR_TOKEN), ("floorgate-senior-operator", SENIOR_TOKEN)] {
            let token = read(file);
            let server = &configuration["mcpServers"][server];
            assert_eq!((&server["url"], &server["type"]), (&json!(tools.url()), &json!("http")));
            assert_eq!(server["headers"]["Authorization"], format!("Bearer {token}"));
            assert_eq!(Client::connect(tools.address, &token).await.unwrap().tools().await.unwrap().len(), 6);
        }
        for name in [CONFIGURATION, OPERATOR_TOKEN, SENIOR_TOKEN] {
            let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let token = read(SENIOR_TOKEN);
        tools.renew(now().saturating_add(LIFETIME / 3)).unwrap();
        assert_eq!(read(SENIOR_TOKEN), token, "they have not lived half their life");
        // The server's clock is not moved: it would not take a token of the future, so only the files are looked at.
        tools.renew(now().saturating_add(LIFETIME / 2 + LIFETIME / 8)).unwrap();
        assert!(read(SENIOR_TOKEN) != token && read(CONFIGURATION).contains(&read(SENIOR_TOKEN)));
        let mode = std::fs::metadata(dir.path().join(SENIOR_TOKEN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        assert!(tools.stop().await);
        assert!(!dir.path().join(CONFIGURATION).exists() && !dir.path().join(SENIOR_TOKEN).exists());
        table.stop().await;
    }

    #[tokio::test]
    async fn a_port_that_was_taken_is_told_from_a_server_that_is_broken() {
        let program = builds::tools(&Progress::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, nobody) = (taken.local_addr().unwrap(), SocketAddr::from((Ipv4Addr::LOCALHOST, 9)));
        // It accepts, so that a client that came first gets its end.
        let accepting = tokio::spawn(async move { while taken.accept().await.is_ok() {} });
        let issuer = Issuer::new().unwrap();
        let keys = dir.path().join("keys.json");
        std::fs::write(&keys, issuer.key_set().to_string()).unwrap();
        let token = issuer.token(&OPERATOR, now()).unwrap();
        let child = Child::new("the tools' server", dir.path().join("log"));
        child.start(&mut command(&program, &keys, address, nobody, nobody)).unwrap();
        assert!(ready(&child, address, &token).await.unwrap().is_none());
        accepting.abort();

        let child = Child::new("the tools' server", dir.path().join("other.log"));
        let free = free_address().await.unwrap();
        child.start(command(&program, &keys, free, nobody, nobody).args(["--policies", "/nowhere"])).unwrap();
        let error = ready(&child, free, &token).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error:#}");
    }
}

//! A floor for `cargo xtask fleet`: the real daemon with the demo's simulated devices, between a broker and a table that
//! somebody else runs.
//!
//!   floor BROKER TABLE            addresses, 127.0.0.1:PORT; the daemon is built, or named by FLOORGATE_BIN
//!
//! Says `ready` once the daemon runs. Then it answers each line of standard input, a command's id, with the number of times that
//! the devices physically executed it, by what they wrote down themselves. When there are no more lines it ends everything.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use floorgate_demo::builds::{self, Progress};
use floorgate_demo::daemon::{Daemon, Surroundings};
use floorgate_demo::devices::{Fleet, Pace};

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("nobody listens")
}

#[tokio::main]
async fn main() -> Result<()> {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let [cloud, table] = &given[..] else { anyhow::bail!("usage: floor BROKER TABLE") };
    let [cloud, table]: [SocketAddr; 2] = [cloud.parse()?, table.parse()?];
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let program = builds::daemon(&Progress::default()).await?;
    let floor = TcpListener::bind("127.0.0.1:0").context("no port is free")?.local_addr()?;
    let daemon =
        Daemon::prepare(program, folder.path(), &Surroundings { floor, floor_is_broker: false, cloud, table })?;
    daemon.start()?;
    let pace = Pace {
        recalibration: Duration::from_millis(200),
        reboot: Duration::from_millis(300),
        sample: Some(Duration::from_millis(500)),
    };
    let devices = Fleet::start(floor, pace);
    say("ready")?;
    let (sender, mut lines) = tokio::sync::mpsc::channel::<String>(1);
    // Waiting for a line takes a thread; the devices have the others.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                break;
            }
        }
    });
    while let Some(id) = lines.recv().await {
        let executed: usize = devices.devices().iter().map(|device| device.log().executions(&id)).sum();
        say(&executed.to_string())?;
    }
    ensure!(daemon.stop().await, "the daemon did not end in order");
    Ok(())
}

//! Servers that nobody here wrote, started on loopback for one suite and ended with it.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::tools;

/// A running server; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start(name: &str, port: u16, command: &mut Command) -> Result<Server> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let server = Server { child: child.with_context(|| format!("cannot start {name}"))?, port };
    let patience = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > patience {
            bail!("{name} does not listen on port {port} after 30 s");
        }
        #[expect(clippy::disallowed_methods, reason = "a chore of its own process; nobody waits for this thread")]
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// Whether mosquitto writes its queues to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Persistence {
    /// As `deploy/mosquitto` tells; each change rewrites the whole file, once a second.
    OnDisk,
    /// For measuring: a queue of many thousands would be rewritten every second.
    InMemory,
}

/// mosquitto, set up as `deploy/mosquitto` tells: no queue limit, many in flight.
///
/// # Errors
/// If it cannot be installed or started.
pub(crate) fn mosquitto(folder: &Path, name: &str, persistence: Persistence) -> Result<Server> {
    tools::need("mosquitto", "mosquitto")?;
    let port = free_port()?;
    let data = folder.join(name);
    std::fs::create_dir_all(&data)?;
    let on_disk = persistence == Persistence::OnDisk;
    let settings = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\npersistence {on_disk}\npersistence_location {}/\n\
         autosave_interval 1\nautosave_on_changes true\nmax_inflight_messages 500\nmax_queued_messages 0\nuser root\n",
        data.display()
    );
    let file = folder.join(format!("{name}.conf"));
    std::fs::write(&file, settings)?;
    let program = if tools::is_there("mosquitto") { "mosquitto" } else { "/usr/sbin/mosquitto" };
    start(name, port, Command::new(program).arg("-c").arg(&file))
}

/// moto's DynamoDB: an implementation that is not the demo's.
///
/// # Errors
/// If it cannot be installed or started.
pub(crate) fn moto() -> Result<Server> {
    let python = tools::python("moto", &["moto[dynamodb,server]==5.2.5"])?;
    let port = free_port()?;
    let arguments = ["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()];
    start("moto", port, Command::new(python).args(arguments))
}

//! A DynamoDB-compatible store over HTTP on a loopback port, for the demo and the tests.
//!
//! `floorgate-demo-table FILE [PORT]` opens (or makes) the SQLite file and serves the DynamoDB JSON API on
//! 127.0.0.1:PORT (0, the default, takes a free one). When it is ready it prints one line, `listening on ADDRESS`.
//! It ends when its standard input closes (so it never outlives who started it), on SIGTERM or on SIGINT.
//!
//! It is a package with its own lock file because the store underneath pins another SQLite than the daemon does.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use dynoxide::Database;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// How long requests in progress may take after the end was asked for; then the process ends without them.
const GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start the runtime: {error}")),
    };
    let end = runtime.block_on(run());
    // Reading standard input occupies a thread that nothing can wake; do not wait for it.
    runtime.shutdown_background();
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn failed(error: &str) -> ExitCode {
    eprintln!("floorgate-demo-table: {error}");
    ExitCode::FAILURE
}

async fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: floorgate-demo-table FILE [PORT]")?;
    let port = arguments.next().unwrap_or_else(|| "0".to_owned());
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    let database = Database::new(&file).map_err(|error| format!("cannot open `{file}`: {error}"))?;
    let busy = |error| format!("cannot listen on 127.0.0.1:{port}: {error}");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(busy)?;
    let address = listener.local_addr().map_err(busy)?;
    // Installed before the ready line: whoever has read it may send a signal at once.
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| format!("cannot listen to SIGTERM: {error}"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| format!("cannot listen to SIGINT: {error}"))?;
    println!("listening on {address}");
    std::io::stdout().flush().map_err(|error| format!("cannot say that it is ready: {error}"))?;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = dynoxide::server::serve_with_shutdown(listener, database, async {
        let _ = stopped.await;
    });
    let mut server = tokio::spawn(server);
    tokio::select! {
        ended = &mut server => return ended.map_err(|error| error.to_string())?,
        () = input_closed() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let _ = stop.send(());
    match tokio::time::timeout(GRACE, server).await {
        Ok(ended) => ended.map_err(|error| error.to_string())?,
        Err(_) => Ok(()),
    }
}

async fn input_closed() {
    let mut input = tokio::io::stdin();
    let mut sink = [0; 256];
    while !matches!(input.read(&mut sink).await, Ok(0) | Err(_)) {}
}

//! The floor endpoint alone, for interoperability scripts: settles everything at once and prints one JSON line for
//! each message, each order sent with `order DEVICE PAYLOAD` on standard input, and `stats`.
//!
//! `cargo run --example endpoint -- LISTEN DEVICES [PASSWORD_FILE WATCHERS]`, lists separated by commas.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use floorgate::mqtt::endpoint::{Endpoint, EndpointConfig, EndpointHandle, MemorySessions};
use floorgate::mqtt::topics::TopicScheme;
use floorgate::mqtt::{Acceptance, BoxFuture, Inbound, Intake};
use floorgate::shadow::StoreError;
use floorgate_model::DeviceId;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Printer;

impl Intake for Printer {
    fn accept(&self, inbound: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        let payload = String::from_utf8_lossy(&inbound.payload);
        println!("{}", json!({ "topic": inbound.topic, "payload": payload, "dup": inbound.redelivered }));
        Box::pin(std::future::ready(Ok(Acceptance::Settled)))
    }
}

async fn obey(handle: EndpointHandle, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (read, mut lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).try_for_each(|line| read.blocking_send(line))
    });
    while let Some(line) = lines.recv().await {
        let mut words = line.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("order"), Some(device), Some(payload)) => {
                let (device, payload) = (DeviceId::new(device)?, payload.to_owned());
                let deadline = Instant::now() + Duration::from_secs(2);
                let handed = handle.publish_once(&device, payload.into(), deadline).await;
                println!("{}", json!({ "order": device, "handed": format!("{handed:?}") }));
            }
            (Some("stats"), ..) => println!("{}", json!({ "stats": handle.stats() })),
            _ => break,
        }
    }
    shutdown.cancel();
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, devices, rest @ ..] = arguments.as_slice() else { anyhow::bail!("LISTEN DEVICES [FILE WATCHERS]") };
    let mut config = EndpointConfig::new(listen.parse::<SocketAddr>().context("LISTEN is no address")?);
    if let [file, watchers, ..] = rest {
        config.password_file = Some(PathBuf::from(file));
        config.watchers = watchers.split(',').map(str::to_owned).collect();
    }
    let devices = devices.split(',').map(DeviceId::new).collect::<Result<HashSet<_>, _>>()?;
    let sessions = Arc::new(MemorySessions::default());
    let endpoint = Endpoint::bind(config, Arc::new(Printer), TopicScheme::default(), devices, sessions).await?;
    println!("{}", json!({ "listening": endpoint.local_addr().to_string() }));
    let shutdown = CancellationToken::new();
    let obeying = tokio::spawn(obey(endpoint.handle(), shutdown.clone()));
    endpoint.run(shutdown).await;
    obeying.await?
}

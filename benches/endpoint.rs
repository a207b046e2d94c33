//! PUBACKs a second of the floor endpoint beside mosquitto, under the same load in the same run.
//!
//! `cargo bench --bench endpoint [-- SECONDS]`. Each server is a process of its own on this machine; 200 clients send
//! QoS 1 messages of 120 bytes, first one at a time (closed loop), then with 20 on their way. The endpoint's intake
//! settles at once and its rate limit is lifted, so this measures the endpoint and not the store. mosquitto keeps
//! nothing on disk. One JSON line each: server, clients, window, PUBACKs a second, resident memory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::BytesMut;
use floorgate::mqtt::endpoint::{Endpoint, EndpointConfig, MemorySessions};
use floorgate::mqtt::topics::TopicScheme;
use floorgate::mqtt::{Acceptance, BoxFuture, Inbound, Intake};
use floorgate::shadow::StoreError;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Packet, Publish};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

const CLIENTS: usize = 200;

/// Messages the child's intake was handed; printed when it is told to end.
static TAKEN: AtomicU64 = AtomicU64::new(0);

struct Settling;

impl Intake for Settling {
    fn accept(&self, _: Inbound) -> BoxFuture<'_, Result<Acceptance, StoreError>> {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(Acceptance::Settled)))
    }
}

/// The server half: this program again, as a child.
async fn serve() -> anyhow::Result<()> {
    let mut config = EndpointConfig::new((Ipv4Addr::LOCALHOST, 0).into());
    (config.rate_per_second, config.rate_burst) = (1_000_000, 1_000_000);
    let (scheme, sessions) = (TopicScheme::default(), Arc::new(MemorySessions::default()));
    let endpoint = Endpoint::bind(config, Arc::new(Settling), scheme, [].into(), sessions).await?;
    println!("{}", endpoint.local_addr());
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        told.cancel();
    });
    endpoint.run(shutdown).await;
    eprintln!("{}", json!({ "server": "floorgate endpoint", "messages_taken": TAKEN.load(Ordering::Relaxed) }));
    Ok(())
}

/// Ends its process when dropped.
struct Server(Child, SocketAddr);

impl Drop for Server {
    fn drop(&mut self) {
        // The endpoint ends when its input closes, and says what it took; mosquitto is killed.
        match self.0.stdin.take() {
            Some(input) => drop(input),
            None => drop(self.0.kill()),
        }
        let _ = self.0.wait();
    }
}

fn floorgate() -> anyhow::Result<Server> {
    let mut child =
        Command::new(std::env::current_exe()?).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    let address = line.trim().parse()?;
    Ok(Server(child, address))
}

fn mosquitto(folder: &std::path::Path) -> anyhow::Result<Server> {
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let file = folder.join("mosquitto.conf");
    let text = format!("listener {} 127.0.0.1\nallow_anonymous true\nlog_type error\n", address.port());
    std::fs::File::create(&file)?.write_all(text.as_bytes())?;
    let child = Command::new("mosquitto").arg("-c").arg(&file).spawn().context("mosquitto is not installed")?;
    Ok(Server(child, address))
}

async fn client(address: SocketAddr, number: usize, window: u16, end: Instant, acks: &AtomicU64) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (mut out, mut read) = (BytesMut::new(), BytesMut::new());
    Packet::Connect(Connect::new(format!("client-{number}"))).write(&mut out, 1_000)?;
    stream.write_all(&out).await?;
    let mut publish = Publish::new(format!("devices/client-{number}/telemetry"), QoS::AtLeastOnce, vec![b'x'; 120]);
    publish.pkid = 0;
    let (mut owed, mut acked, mut oldest) = (0_usize, 0_u64, 1);
    loop {
        if timeout_at(end, stream.read_buf(&mut read)).await.map_or(Ok(0), |read| read)? == 0 {
            ensure!(Instant::now() >= end, "the server closed the connection");
            return Ok(());
        }
        while let Ok(packet) = Packet::read(&mut read, 1_000) {
            match packet {
                Packet::ConnAck(_) => owed = usize::from(window),
                // Each message once and in order; a PUBACK too many would widen the window and flatter the figure.
                Packet::PubAck(ack) if ack.pkid == oldest => {
                    oldest = oldest % 60_000 + 1;
                    owed += 1;
                    acked += 1;
                }
                other => anyhow::bail!("expected the PUBACK of {oldest}, got {other:?}"),
            }
        }
        acks.fetch_add(std::mem::take(&mut acked), Ordering::Relaxed);
        out.clear();
        for _ in 0..owed {
            publish.pkid = publish.pkid % 60_000 + 1;
            publish.write(&mut out)?;
        }
        owed = 0;
        stream.write_all(&out).await?;
    }
}

async fn load(name: &str, server: &Server, window: u16, seconds: u64) -> anyhow::Result<()> {
    let Server(child, address) = server;
    while TcpStream::connect(address).await.is_err() {
        sleep(Duration::from_millis(20)).await;
    }
    let acks = Arc::new(AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(seconds + 1);
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (acks, address) = (Arc::clone(&acks), *address);
            tokio::spawn(async move { client(address, number, window, end, &acks).await })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    let (begun, before) = (Instant::now(), acks.load(Ordering::Relaxed));
    for client in clients {
        client.await??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let rate = (acks.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default().trim();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    let cpu_ticks: u64 = ticks.filter_map(|field| field.parse::<u64>().ok()).sum();
    println!("{}", json!({ "server": name, "acked_in_all": acks.load(Ordering::Relaxed), "cpu_ticks": cpu_ticks }));
    let line = json!({ "server": name, "clients": CLIENTS, "window": window, "pubacks_per_s": rate.round(), "resident": resident });
    println!("{line}");
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let seconds = match arguments.next().as_deref() {
        Some("serve") => return serve().await,
        given => given.map_or(Ok(5), str::parse)?,
    };
    let folder = tempfile::tempdir()?;
    for window in [1, 20] {
        load("floorgate endpoint", &floorgate()?, window, seconds).await?;
        match mosquitto(folder.path()) {
            Ok(server) => load("mosquitto", &server, window, seconds).await?,
            Err(error) => println!("{}", json!({ "server": "mosquitto", "skipped": error.to_string() })),
        }
    }
    Ok(())
}

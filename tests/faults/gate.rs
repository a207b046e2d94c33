//! A proxy before the DynamoDB endpoint that understands HTTP and fails as networks and services fail.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use floorgate_demo::switch::Switch;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Answered with 500, nothing carried out.
    Status500,
    /// Answered with 503, nothing carried out.
    Status503,
    /// `ThrottlingException`.
    Throttling,
    /// `ProvisionedThroughputExceededException`.
    ProvisionedThroughput,
    /// Of a batch only a part is carried out; the rest comes back as `UnprocessedItems`.
    PartialBatch,
    /// Carried out; the answer never comes.
    TimeoutAfterApplying,
    /// Carried out; the connection breaks instead of an answer.
    BreakAfterApplying,
    /// The connection stands; nobody reads on.
    HalfOpen,
    /// Carried out after a while.
    Slow,
    /// Somebody else answers, with a page.
    Portal,
}

impl Fault {
    pub const ALL: [Self; 10] = [
        Self::Status500,
        Self::Status503,
        Self::Throttling,
        Self::ProvisionedThroughput,
        Self::PartialBatch,
        Self::TimeoutAfterApplying,
        Self::BreakAfterApplying,
        Self::HalfOpen,
        Self::Slow,
        Self::Portal,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Status500 => "500",
            Self::Status503 => "503",
            Self::Throttling => "throttling",
            Self::ProvisionedThroughput => "provisioned-throughput",
            Self::PartialBatch => "partial-batch",
            Self::TimeoutAfterApplying => "timeout-after-applying",
            Self::BreakAfterApplying => "break-after-applying",
            Self::HalfOpen => "half-open",
            Self::Slow => "slow",
            Self::Portal => "captive-portal",
        }
    }
}

/// The weather: which fault, and how many of 100 requests it hits.
#[derive(Debug)]
struct Weather {
    fault: Option<(Fault, u8)>,
    random: fastrand::Rng,
    injected: BTreeMap<Fault, u64>,
    /// The last request that was carried out and answered.
    answered: Option<Instant>,
}

type Shared = Arc<Mutex<Weather>>;

/// The proxy.
pub struct Gate {
    pub switch: Switch,
    weather: Shared,
}

impl Gate {
    pub async fn start(upstream: SocketAddr, seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        let weather = Weather { fault: None, random, injected: BTreeMap::new(), answered: None };
        let weather = Arc::new(Mutex::new(weather));
        let shared = Arc::clone(&weather);
        let serve = move |client| {
            let weather = Arc::clone(&shared);
            async move { drop(serve(client, upstream, &weather).await) }
        };
        Self { switch: Switch::start(0, serve).await.unwrap(), weather }
    }

    /// From now on `percent` of the requests meet this fault.
    pub fn storm(&self, fault: Fault, percent: u8) {
        self.weather.lock().unwrap().fault = Some((fault, percent));
    }

    pub fn calm(&self) {
        self.weather.lock().unwrap().fault = None;
    }

    /// How many requests met each fault.
    pub fn injected(&self) -> BTreeMap<Fault, u64> {
        self.weather.lock().unwrap().injected.clone()
    }

    /// When the last request was carried out and answered.
    pub fn answered(&self) -> Option<Instant> {
        self.weather.lock().unwrap().answered
    }
}

/// A request or an answer, whole.
struct Message {
    head: String,
    body: Vec<u8>,
}

impl Message {
    /// `None` when the connection ended before another one.
    async fn read(stream: &mut TcpStream) -> io::Result<Option<Self>> {
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 16_384]);
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut chunk).await? {
                0 => return Ok(None),
                n => bytes.extend_from_slice(&chunk[..n]),
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        };
        let length = head.lines().find_map(field).unwrap_or(0);
        let mut body = bytes.split_off(end);
        while body.len() < length {
            match stream.read(&mut chunk).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => body.extend_from_slice(&chunk[..n]),
            }
        }
        Ok(Some(Self { head, body }))
    }

    async fn write(&self, stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(self.head.as_bytes()).await?;
        stream.write_all(&self.body).await
    }

    fn answer(status: &str, kind: &str, body: &str) -> Self {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
        Self { head, body: body.as_bytes().to_vec() }
    }

    fn refusal(exception: &str) -> Self {
        let body = format!("{{\"__type\":\"com.amazonaws.dynamodb.v20120810#{exception}\",\"message\":\"not now\"}}");
        Self::answer("400 Bad Request", "application/x-amz-json-1.0", &body)
    }

    fn is_batch(&self) -> bool {
        self.head.contains("BatchWriteItem")
    }

    /// With another body, and its length.
    fn with_body(&self, body: Vec<u8>) -> Self {
        let other = |line: &&str| !line.is_empty() && !line.to_ascii_lowercase().starts_with("content-length:");
        let lines: Vec<&str> = self.head.split("\r\n").filter(other).collect();
        Self { head: format!("{}\r\ncontent-length: {}\r\n\r\n", lines.join("\r\n"), body.len()), body }
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, weather: &Shared) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    server.set_nodelay(true)?;
    while let Some(request) = Message::read(&mut client).await? {
        let fault = choose(weather, &request);
        match fault {
            Some(Fault::Status500) => answer(&mut client, "500 Internal Server Error").await?,
            Some(Fault::Status503) => answer(&mut client, "503 Service Unavailable").await?,
            Some(Fault::Throttling) => Message::refusal("ThrottlingException").write(&mut client).await?,
            Some(Fault::ProvisionedThroughput) => {
                Message::refusal("ProvisionedThroughputExceededException").write(&mut client).await?;
            }
            Some(Fault::Portal) => {
                Message::answer("200 OK", "text/html", "<p>Log in!</p>").write(&mut client).await?;
            }
            Some(Fault::HalfOpen) => return hang(&mut client).await,
            Some(Fault::TimeoutAfterApplying) => {
                carry_out(&mut server, &request).await?;
                return hang(&mut client).await;
            }
            Some(Fault::BreakAfterApplying) => {
                carry_out(&mut server, &request).await?;
                return Ok(());
            }
            Some(Fault::PartialBatch) => partial(&mut client, &mut server, &request).await?,
            Some(Fault::Slow) | None => {
                if fault.is_some() {
                    let ms = weather.lock().unwrap().random.u64(300..3_000);
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                }
                carry_out(&mut server, &request).await?.write(&mut client).await?;
                weather.lock().unwrap().answered = Some(Instant::now());
            }
        }
    }
    Ok(())
}

fn choose(weather: &Shared, request: &Message) -> Option<Fault> {
    let mut weather = weather.lock().unwrap();
    let (fault, percent) = weather.fault?;
    let hit = weather.random.u8(..100) < percent && (fault != Fault::PartialBatch || request.is_batch());
    if hit {
        *weather.injected.entry(fault).or_default() += 1;
    }
    hit.then_some(fault)
}

async fn answer(client: &mut TcpStream, status: &str) -> io::Result<()> {
    Message::answer(status, "text/plain", "").write(client).await
}

async fn carry_out(server: &mut TcpStream, request: &Message) -> io::Result<Message> {
    request.write(server).await?;
    Message::read(server).await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Until the client gives up.
async fn hang(client: &mut TcpStream) -> io::Result<()> {
    let mut sink = [0; 1_024];
    while client.read(&mut sink).await? > 0 {}
    Ok(())
}

/// Every second item of a batch is carried out.
async fn partial(client: &mut TcpStream, server: &mut TcpStream, request: &Message) -> io::Result<()> {
    let mut batch: Value = serde_json::from_slice(&request.body)?;
    let mut left = serde_json::Map::new();
    for (table, items) in batch["RequestItems"].as_object_mut().into_iter().flatten() {
        let all = std::mem::take(items.as_array_mut().ok_or(io::ErrorKind::InvalidData)?);
        let (mut taken, mut kept) = (Vec::new(), Vec::new());
        for (place, item) in all.into_iter().enumerate() {
            if place % 2 == 0 { kept.push(item) } else { taken.push(item) }
        }
        *items = taken.into();
        left.insert(table.clone(), kept.into());
    }
    let nothing = batch["RequestItems"].as_object().is_none_or(|all| all.values().all(|v| v == &Value::Array(vec![])));
    if !nothing {
        carry_out(server, &request.with_body(batch.to_string().into_bytes())).await?;
    }
    let body = serde_json::json!({"UnprocessedItems": left}).to_string();
    Message::answer("200 OK", "application/x-amz-json-1.0", &body).write(client).await
}

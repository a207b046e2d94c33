//! The wire to the table, seen: every request is noted, and the answer to some is lost.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Operation and body of each request.
type Requests = Arc<Mutex<Vec<(String, Value)>>>;
type Loses = Arc<dyn Fn(&str, &Value) -> bool + Send + Sync>;

pub struct Wire {
    pub url: String,
    requests: Requests,
}

impl Wire {
    /// To `table`; a request that `loses` names is carried out and never answered.
    pub async fn to(table: &str, loses: impl Fn(&str, &Value) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (requests, loses, table) = (Requests::default(), Arc::new(loses) as Loses, super::bench::address_of(table));
        let noted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (noted, loses) = (Arc::clone(&noted), Arc::clone(&loses));
                tokio::spawn(async move {
                    let mut near = BufReader::new(stream);
                    let mut far = BufReader::new(TcpStream::connect(table).await.unwrap());
                    while carry(&mut near, &mut far, &noted, &loses).await.is_some() {}
                });
            }
        });
        Self { url, requests }
    }

    /// Bodies of the requests of an operation, in their order.
    pub fn asked(&self, operation: &str) -> Vec<Value> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(name, _)| name == operation).map(|(_, body)| body.clone()).collect()
    }
}

async fn carry(
    near: &mut BufReader<TcpStream>,
    far: &mut BufReader<TcpStream>,
    noted: &Requests,
    loses: &Loses,
) -> Option<()> {
    let (head, body) = message(near).await?;
    let target = head.lines().find(|line| line.to_ascii_lowercase().starts_with("x-amz-target:"));
    let operation = target.and_then(|line| line.rsplit('.').next()).unwrap_or_default().trim().to_owned();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let lost = loses(&operation, &asked);
    noted.lock().unwrap().push((operation, asked));
    far.get_mut().write_all(&[head.as_bytes(), &body].concat()).await.ok()?;
    let (head, body) = message(far).await?;
    if lost {
        return None;
    }
    near.get_mut().write_all(&[head.as_bytes(), &body].concat()).await.ok()
}

/// Head and body, as they came.
async fn message(stream: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let at = head.len();
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
        let line = head[at..].trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

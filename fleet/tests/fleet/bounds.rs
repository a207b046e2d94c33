//! Bounds in time and number of what one call may read, shown with a played table whose every page takes as long as it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use floorgate_fleet::clock::Clock;
use floorgate_fleet::link::Link;
use floorgate_fleet::store::Tables;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::bench;

/// A table without the item that is asked for, and without an end.
struct Endless {
    url: String,
    scans: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
}

impl Endless {
    /// Time stands still but for what the pages take; nothing of it is waited for.
    async fn start(page_takes: Duration) -> Self {
        tokio::time::pause();
        // Idle, the paused clock would leap to the next time-out instead of waiting for a socket.
        tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (scans, at_once, most_at_once) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&scans), at_once, Arc::clone(&most_at_once));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let counts = counts.clone();
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while answer(&mut stream, page_takes, &counts).await.is_some() {}
                });
            }
        });
        Self { url, scans, most_at_once }
    }

    fn fleet(&self) -> floorgate_fleet::Fleet {
        bench::fleet(&self.url, Tables::default(), Link::Absent, &Clock::standing_at(bench::at(bench::NOW)))
    }
}

type Counts = (Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicUsize>);

async fn answer(stream: &mut BufReader<TcpStream>, takes: Duration, (scans, now, most): &Counts) -> Option<()> {
    let (mut length, mut scan) = (0, false);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        scan |= line.starts_with("x-amz-target:") && line.ends_with(".scan");
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    let mut body = json!({});
    if scan {
        scans.fetch_add(1, Ordering::SeqCst);
        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(takes).await;
        now.fetch_sub(1, Ordering::SeqCst);
        body = json!({"Items": [], "Count": 0, "ScannedCount": 1, "LastEvaluatedKey": {"device_id": {"S": "A"}}});
    }
    let body = body.to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nContent-Length:";
    stream.get_mut().write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await.ok()
}

#[tokio::test]
async fn after_eight_seconds_no_page_is_begun() {
    let table = Endless::start(Duration::from_secs(3)).await;
    let answer = bench::call(&table.fleet(), "list_devices", json!({"status": "online"})).await.unwrap();
    assert_eq!((&answer["examined"], &answer["complete"]), (&json!(3), &json!(false)), "{answer}");
    assert!(answer["next_cursor"].is_string());
}

#[tokio::test]
async fn twenty_pages_are_read_for_one_answer() {
    let table = Endless::start(Duration::ZERO).await;
    let answer = bench::call(&table.fleet(), "list_devices", json!({"status": "online"})).await.unwrap();
    assert_eq!((&answer["examined"], table.scans.load(Ordering::SeqCst)), (&json!(20), 20));
}

async fn unknown(table: &Endless) -> Value {
    let error = bench::call(&table.fleet(), "get_device_status", json!({"device_id": "line 7"})).await.unwrap_err();
    assert_eq!(error.code, "UNKNOWN_DEVICE");
    error.to_json()
}

#[tokio::test]
async fn four_pages_are_looked_through_for_a_device_that_nobody_knows() {
    let table = Endless::start(Duration::ZERO).await;
    unknown(&table).await;
    assert_eq!(table.scans.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn after_two_seconds_no_page_is_begun_for_a_device_that_nobody_knows() {
    let table = Endless::start(Duration::from_secs(1)).await;
    unknown(&table).await;
    assert_eq!(table.scans.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn two_devices_that_nobody_knows_are_looked_for_at_once_and_the_rest_is_told_so_at_once() {
    let table = Endless::start(Duration::ZERO).await;
    let fleet = table.fleet();
    let calls = (0..10).map(|_| bench::call(&fleet, "get_device_status", json!({"device_id": "line 7"})));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(|answer| answer.as_ref().unwrap_err().code == "UNKNOWN_DEVICE"));
    assert_eq!(table.most_at_once.load(Ordering::SeqCst), 2);
}

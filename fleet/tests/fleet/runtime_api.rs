//! Lambda's Runtime API, played over HTTP: one event for each answer.

use std::collections::VecDeque;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use floorgate_fleet::Fleet;
use floorgate_fleet::lambda::{self, LambdaSettings};

/// One event with the header of its client context.
pub struct Event {
    pub body: String,
    pub context: Option<String>,
}

impl Event {
    /// As an AgentCore gateway sends it.
    pub fn bare(tool: &str, arguments: &Value, more: &Value) -> Self {
        let mut custom = serde_json::json!({
            "bedrockAgentCoreMessageVersion": "1.0", "bedrockAgentCoreToolName": format!("IoTDeviceTools___{tool}"),
            "bedrockAgentCoreGatewayId": "gw-1",
        });
        custom.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Self { body: arguments.to_string(), context: Some(serde_json::json!({ "custom": custom }).to_string()) }
    }

    /// As the seed has it.
    pub fn seed(event: &Value) -> Self {
        Self { body: event.to_string(), context: None }
    }
}

/// What the function posted.
#[derive(Debug)]
pub struct Posted {
    pub path: String,
    pub body: Value,
}

/// Runs the door with these events; answers what it posted for each.
pub async fn run(fleet: &Fleet, settings: LambdaSettings, events: Vec<Event>) -> Vec<Posted> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap().to_string();
    play(&listener, lambda::run(fleet, settings, &api), events).await
}

/// Plays the API for a door that asks it; answers what the door posted for each event.
pub async fn play(
    listener: &TcpListener,
    door: impl Future<Output = impl std::fmt::Debug>,
    events: Vec<Event>,
) -> Vec<Posted> {
    let (number, mut events, mut posted) = (events.len(), VecDeque::from(events), Vec::new());
    let play = async {
        while posted.len() < number {
            let (stream, _) = listener.accept().await.unwrap();
            posted.extend(serve(stream, &mut events).await);
        }
    };
    tokio::select! {
        ended = door => panic!("the door ended: {ended:?}"),
        () = play => {}
    }
    posted
}

async fn serve(stream: TcpStream, events: &mut VecDeque<Event>) -> Option<Posted> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await.unwrap();
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    if method == "GET" {
        assert_eq!(path, "/2018-06-01/runtime/invocation/next");
        let event = events.pop_front()?;
        let deadline = jiff::Timestamp::now().as_millisecond() + 20_000;
        let context = event.context.map(|c| format!("Lambda-Runtime-Client-Context: {c}\r\n")).unwrap_or_default();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: id-7\r\nLambda-Runtime-Deadline-Ms: {deadline}\r\n\
             {context}Content-Length: {}\r\n\r\n{}",
            event.body.len(),
            event.body
        );
        stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
        return None;
    }
    stream.get_mut().write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    Some(Posted { path, body: serde_json::from_slice(&body).unwrap() })
}

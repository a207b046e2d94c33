//! The socket's two ends against each other, with a service that knows nothing.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use floorgate_model::ExecutionRecord;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::*;

/// Answers lists with nothing, devices with a refusal, and never ends a command.
struct Fake(mpsc::Sender<Query>);

impl ControlService for Fake {
    fn answer(&self, query: Query) -> BoxFuture<'_, Result<Reply, ControlError>> {
        Box::pin(async move {
            self.0.send(query.clone()).await.unwrap();
            match query {
                Query::Commands { .. } => Ok(Reply::Commands(Vec::new())),
                Query::Device { id } => Err(ControlError::new(ErrorCode::NotFound, format!("no device {id}"))),
                _ => std::future::pending().await,
            }
        })
    }
}

struct Running {
    folder: tempfile::TempDir,
    seen: mpsc::Receiver<Query>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let (sender, seen) = mpsc::channel(64);
    let server = ControlServer::bind(folder.path()).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let until = async { drop(stopped.await) };
    let task = tokio::spawn(server.serve(Arc::new(Fake(sender)), until));
    Running { folder, seen, stop, task }
}

async fn asked(folder: PathBuf, query: Query) -> Result<Vec<ExecutionRecord>, AskError> {
    tokio::task::spawn_blocking(move || ask(&[folder], &query)).await.unwrap()
}

/// Sends bytes and reads until the server closes.
async fn raw(folder: PathBuf, bytes: Vec<u8>) -> serde_json::Value {
    let talk = move || {
        let mut stream = UnixStream::connect(socket_path(&folder)).unwrap();
        stream.write_all(&bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_and_refusals_are_passed_on() {
    let mut running = start();
    let folder = running.folder.path().to_owned();
    let mode = std::fs::metadata(socket_path(&folder)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let query = Query::Commands { device: None, limit: 3 };
    assert_eq!(asked(folder.clone(), query.clone()).await.unwrap(), []);
    assert_eq!(running.seen.recv().await, Some(query));
    let refusal = asked(folder.clone(), Query::Device { id: "A".parse().unwrap() }).await.unwrap_err();
    assert_eq!(refusal.to_string(), "no device A");
    running.stop.send(()).unwrap();
    running.task.await.unwrap();
    assert!(!socket_path(&folder).exists());
    assert!(matches!(asked(folder, Query::Status).await, Err(AskError::Unreachable { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_query_or_too_long_is_refused() {
    let running = start();
    let folder = running.folder.path().to_owned();
    for bytes in [b"{}\n".to_vec(), b"\xff\n".to_vec(), vec![b'x'; REQUEST_BYTES_MAX + 1]] {
        let answer = raw(folder.clone(), bytes).await;
        assert_eq!(answer["error"]["code"], json!("invalid"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_without_a_name_gets_its_user_id_and_one_client_too_many_is_told() {
    let mut running = start();
    let folder = running.folder.path().to_owned();
    let request = json!({"query": "send", "device": "A", "command": "reboot", "wait_seconds": 60});
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut client = UnixStream::connect(socket_path(&folder)).unwrap();
        client.write_all(format!("{request}\n").as_bytes()).unwrap();
        clients.push(client);
        let Some(Query::Send { issuer: Some(issuer), .. }) = running.seen.recv().await else { panic!("no issuer") };
        assert!(issuer.strip_prefix("local:").is_some_and(|uid| uid.parse::<u32>().is_ok()), "{issuer}");
    }
    let busy = asked(folder.clone(), Query::Commands { device: None, limit: 1 }).await;
    assert!(matches!(busy, Err(AskError::Refused(ControlError { code: ErrorCode::Busy, .. }))), "{busy:?}");
    drop(clients);
    // Their places come free without a word from the service.
    let free = async {
        while asked(folder.clone(), Query::Commands { device: None, limit: 1 }).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(CLIENT_TIMEOUT, free).await.unwrap();
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(socket_path(folder.path())).unwrap());
    let server = ControlServer::bind(folder.path()).unwrap();
    assert!(matches!(ControlServer::bind(folder.path()), Err(BindError::InUse(_))));
    drop(server);
    assert!(!socket_path(folder.path()).exists());
}

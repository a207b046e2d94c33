//! The daemon's end of the control socket.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::query::{ControlError, ErrorCode, Query};
use super::report::Reply;
use super::{CLIENT_TIMEOUT, CONNECTIONS_MAX, REQUEST_BYTES_MAX, place, socket_path};

/// A boxed future, so that services can stand behind one name.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Answers queries.
pub trait ControlService: Send + Sync + 'static {
    /// Answers one query.
    ///
    /// # Errors
    /// [`ControlError`] if it cannot.
    ///
    /// # Cancel safety
    /// The future is dropped when the client goes away; a command that was journalled stays.
    fn answer(&self, query: Query) -> BoxFuture<'_, Result<Reply, ControlError>>;
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another floorgate is running with this state folder: `{}` answers; stop it, or use another `state_dir`", .0.display())]
    InUse(PathBuf),
    /// The socket cannot be made.
    #[error("cannot make the control socket `{}`: {cause}; the state folder must be writable and its path shorter than 90 bytes", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
}

/// The bound socket; its file goes when this does.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    listener: UnixListener,
    /// The folder that was made for it, if it could not be in the state folder.
    elsewhere: Option<PathBuf>,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // If it is gone already, so much the better.
        let _ = std::fs::remove_file(&self.path);
        if let Some(folder) = self.elsewhere.as_ref() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Makes a socket under another name until nobody else may open it; the renaming replaces what a killed daemon left.
fn make(folder: &Path, path: &Path) -> std::io::Result<UnixListener> {
    let unnamed = folder.join(format!(".control-{}.sock", std::process::id()));
    if unnamed.exists() {
        std::fs::remove_file(&unnamed)?;
    }
    let listener = UnixListener::bind(&unnamed)?;
    std::fs::set_permissions(&unnamed, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&unnamed, path)?;
    Ok(listener)
}

impl ControlServer {
    /// Makes the socket in an existing state folder, or elsewhere if its disk takes no new file. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`BindError`] if another daemon has it, or it cannot be made.
    pub fn bind(state_dir: &Path) -> Result<Self, BindError> {
        for path in place::candidates(state_dir) {
            if std::os::unix::net::UnixStream::connect(&path).is_ok() {
                return Err(BindError::InUse(path));
            }
        }
        let path = socket_path(state_dir);
        let cause = match make(state_dir, &path) {
            Ok(listener) => return Ok(Self { path, listener, elsewhere: None }),
            Err(cause) => cause,
        };
        let elsewhere = if place::is_disk(&cause) { place::make_elsewhere(state_dir).ok() } else { None };
        let Some(folder) = elsewhere else { return Err(BindError::Io { path, cause }) };
        tracing::warn!(%cause, folder = %folder.display(), "the state folder takes no control socket; it is elsewhere");
        let path = socket_path(&folder);
        match make(&folder, &path) {
            Ok(listener) => Ok(Self { path, listener, elsewhere: Some(folder) }),
            Err(cause) => Err(BindError::Io { path, cause }),
        }
    }

    /// Serves until `stop` resolves, then removes the socket. Conversations that run are dropped.
    pub async fn serve(self, service: Arc<dyn ControlService>, stop: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut clients = tokio::task::JoinSet::new();
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                () = &mut stop => break,
                Some(_) = clients.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => match Arc::clone(&places).try_acquire_owned() {
                    Ok(place) => {
                        let service = Arc::clone(&service);
                        clients.spawn(async move {
                            converse(stream, service).await;
                            drop(place);
                        });
                    }
                    Err(_) => refuse(&stream),
                },
                Err(error) => {
                    // Out of file descriptors, most likely; one second of quiet lets some come free.
                    tracing::warn!(%error, "the control socket cannot accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Tells one client too many, without waiting for it.
fn refuse(stream: &UnixStream) {
    let error = ControlError::new(ErrorCode::Busy, format!("{CONNECTIONS_MAX} clients are connected; try again"));
    // A client that cannot even take this line just sees the end.
    let _ = stream.try_write(&line(Err(error)));
}

/// One client, request by request, until it ends or is too slow.
async fn converse(stream: UnixStream, service: Arc<dyn ControlService>) {
    let uid = stream.peer_cred().map(|credentials| credentials.uid()).ok();
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let request = match timeout(CLIENT_TIMEOUT, read_request(&mut reader)).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                // What follows cannot be told from the rest of the request.
                let _ = write(&mut writer, Err(error)).await;
                return;
            }
        };
        let answer = match parse(&request, uid) {
            Err(error) => Err(error),
            Ok(query) => {
                let limit = query.wait() + CLIENT_TIMEOUT;
                tokio::select! {
                    answer = timeout(limit, service.answer(query)) => answer.unwrap_or_else(|_| Err(late(limit))),
                    () = gone(&mut reader) => return,
                }
            }
        };
        if write(&mut writer, answer).await.is_err() {
            return;
        }
    }
}

fn late(limit: Duration) -> ControlError {
    ControlError::new(ErrorCode::Unavailable, format!("the gateway did not answer within {} s", limit.as_secs()))
}

fn parse(request: &[u8], uid: Option<u32>) -> Result<Query, ControlError> {
    let invalid = |error| ControlError::new(ErrorCode::Invalid, format!("the request is no query: {error}"));
    let mut query = serde_json::from_slice(request).map_err(invalid)?;
    if let Query::Send { issuer, .. } = &mut query
        && issuer.is_none()
    {
        *issuer = uid.map(|uid| format!("local:{uid}"));
    }
    Ok(query)
}

/// One line without its end; `None` when the client is done.
async fn read_request(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<Vec<u8>>, ControlError> {
    let mut line = Vec::new();
    let limit = u64::try_from(REQUEST_BYTES_MAX + 1).unwrap_or(u64::MAX);
    match reader.take(limit).read_until(b'\n', &mut line).await {
        Ok(0) | Err(_) => Ok(None),
        Ok(_) if line.pop() == Some(b'\n') => Ok(Some(line)),
        Ok(n) if n > REQUEST_BYTES_MAX => {
            Err(ControlError::new(ErrorCode::Invalid, format!("the request is longer than {REQUEST_BYTES_MAX} bytes")))
        }
        Ok(_) => Ok(None),
    }
}

/// Resolves when the client has closed its end.
async fn gone(reader: &mut (impl AsyncBufRead + Unpin)) {
    let more = matches!(reader.fill_buf().await, Ok(bytes) if !bytes.is_empty());
    if more {
        // It has sent its next request already, so it is there; only the write will show when it is not.
        std::future::pending::<()>().await;
    }
}

async fn write(writer: &mut OwnedWriteHalf, answer: Result<Reply, ControlError>) -> std::io::Result<()> {
    timeout(CLIENT_TIMEOUT, writer.write_all(&line(answer))).await.unwrap_or_else(|late| Err(late.into()))
}

/// `{"ok": …}` or `{"error": …}` and the end of the line.
fn line(answer: Result<Reply, ControlError>) -> Vec<u8> {
    #[derive(serde::Serialize)]
    #[serde(rename_all = "snake_case")]
    enum Line {
        Ok(Reply),
        Error(ControlError),
    }
    let line = match answer {
        Ok(reply) => Line::Ok(reply),
        Err(error) => Line::Error(error),
    };
    let mut bytes = serde_json::to_vec(&line).unwrap_or_else(|error| {
        let message = format!("the answer cannot be written: {error}");
        serde_json::json!({"error": {"code": "unavailable", "message": message}}).to_string().into_bytes()
    });
    bytes.push(b'\n');
    bytes
}

//! The command line's end of the control socket: one question, one answer, no runtime.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::query::{ControlError, Query};
use super::{ANSWER_BYTES_MAX, CLIENT_TIMEOUT, place, socket_path};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("cannot reach floorgate at `{}`: {cause}; is it running? start it with `floorgate run` or systemctl", .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// The conversation broke off.
    #[error("floorgate at `{}` broke off: {cause}; see its log", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        cause: String,
    },
    /// The daemon refuses.
    #[error(transparent)]
    Refused(ControlError),
}

/// Asks the daemon whose state is in the first of `state_dirs` that has a control socket.
///
/// # Errors
/// [`AskError`] if it cannot be reached, breaks off, or refuses.
pub fn ask<T: DeserializeOwned>(state_dirs: &[PathBuf], query: &Query) -> Result<T, AskError> {
    let there = state_dirs.iter().find(|dir| socket_path(dir).exists()).or_else(|| state_dirs.first());
    let state_dir = there.map_or_else(|| Path::new("."), PathBuf::as_path);
    let mut reached = Err(AskError::Unreachable { path: socket_path(state_dir), cause: "nobody listens".to_owned() });
    for path in place::candidates(state_dir) {
        match UnixStream::connect(&path) {
            Ok(stream) => {
                reached = Ok((path, stream));
                break;
            }
            Err(error) if path.starts_with(state_dir) => {
                reached = Err(AskError::Unreachable { path, cause: error.to_string() });
            }
            // The state folder's own is the one to tell about.
            Err(_) => {}
        }
    }
    let (path, stream) = reached?;
    let answer = converse(&stream, query);
    let line = answer.map_err(|cause| AskError::Broken { path: path.clone(), cause })?;
    let answer = serde_json::from_slice(&line);
    match answer.map_err(|error| AskError::Broken { path, cause: format!("its answer cannot be read: {error}") })? {
        Line::Ok(answer) => Ok(answer),
        Line::Error(error) => Err(AskError::Refused(error)),
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<T> {
    Ok(T),
    Error(ControlError),
}

fn converse(mut stream: &UnixStream, query: &Query) -> Result<Vec<u8>, String> {
    let text = |error: std::io::Error| error.to_string();
    // The daemon gives up first, and says why.
    let patience = query.wait() + CLIENT_TIMEOUT * 2;
    stream.set_read_timeout(Some(patience)).map_err(text)?;
    stream.set_write_timeout(Some(CLIENT_TIMEOUT)).map_err(text)?;
    let mut request = serde_json::to_vec(query).map_err(|error| error.to_string())?;
    request.push(b'\n');
    // A daemon with too many clients answers before it reads; its answer counts, not our broken pipe.
    let written = stream.write_all(&request);
    let mut line = Vec::new();
    let limit = u64::try_from(ANSWER_BYTES_MAX).unwrap_or(u64::MAX);
    let read = BufReader::new(stream.take(limit)).read_until(b'\n', &mut line);
    match (read, line.last()) {
        (Ok(_), Some(b'\n')) => Ok(line),
        (Ok(0), _) => written.map_err(text).and_then(|()| Err("it closed the connection without an answer".to_owned())),
        (Ok(_), _) => Err("its answer ends in the middle".to_owned()),
        (Err(error), _) => Err(error.to_string()),
    }
}

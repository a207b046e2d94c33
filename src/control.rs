//! The control socket: how `floorgate status` and its siblings ask a running daemon.
//!
//! # Protocol
//!
//! A Unix stream socket, `control.sock` in the state folder. One JSON object a line each way: a [`Query`], then
//! `{"ok": …}` or `{"error": {"code", "message"}}`; as many in turn as the client likes.
//!
//! # Guarantees
//!
//! * The socket's mode is 0600 before it has its name: who may open it is who the daemon runs as, and root.
//! * At most [`CONNECTIONS_MAX`] clients at a time; one more is told that it is busy. A request has at most
//!   [`REQUEST_BYTES_MAX`] bytes; a client that is silent, or reads nothing, for [`CLIENT_TIMEOUT`] is dropped.
//! * A client that goes away takes its waiting with it, never a command that is already journalled.
//! * A state folder whose disk takes no new file does not keep the daemon from being asked: the socket is then elsewhere,
//!   and clients look there too (`place.rs`).
//! * A stale socket file is replaced; a living one is never taken over ([`BindError::InUse`]).
//!
//! # What it does not do
//!
//! It judges nothing and changes nothing itself: every query goes to the [`ControlService`]. It asks for what SIGHUP asks for
//! ([`Query::Reload`]), so whoever may signal the daemon may do no more here.

mod client;
mod place;
mod query;
mod report;
mod server;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use client::{AskError, ask};
pub use query::{ControlError, ErrorCode, Query};
pub use report::{
    DeviceReport, InhibitionReport, LinkReport, LinkState, RefusedFor, ReloadReport, Reply, StatusReport, SyncReport,
};
pub use server::{BindError, BoxFuture, ControlServer, ControlService};

/// Clients at a time.
pub const CONNECTIONS_MAX: usize = 16;
/// Largest request, bytes; a command has 8 KiB at most.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Largest answer a client takes, bytes; 10,000 devices need about 10 MB.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Longest silence of a client, longest wait for its reading, and longest time an answer may take.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for a command's end in one query.
pub const SEND_WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Longest wait for a reload's end; ten thousand files of a slow card are read within it.
pub const RELOAD_WAIT_MAX: Duration = Duration::from_secs(60);

/// The socket of the daemon that keeps its state in `state_dir`.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("control.sock")
}

//! What systemd is told: ready, reloading, stopping, signs of life. Outside a service all of it does nothing.
//!
//! The watchdog is to be fed by those who see the loops make progress, not by a bare timer: this module only carries
//! the ping.
//!
//! A service manager that does not read its socket blocks whoever writes to it. So a thread of its own writes, at most
//! [`WAITING_MAX`] messages wait for it, and what comes on top of those is dropped: the gateway goes on.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sd_notify::NotifyState;

/// Messages that wait for a service manager that does not read: a minute of signs of life.
pub const WAITING_MAX: usize = 64;

#[derive(Debug)]
enum Message {
    Ready(String),
    Status(String),
    /// Since when, on the monotonic clock, microseconds.
    Reloading(i128),
    Stopping,
    Watchdog,
    /// The start, or a step of it, takes so long from now, microseconds.
    Extend(u32),
}

/// The daemon takes messages now; also the end of a reload.
pub fn ready(status: &str) {
    tell(Message::Ready(status.to_owned()));
}

/// The configuration is being read again; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(NotifyState::MonotonicUsec(since)) => tell(Message::Reloading(since)),
        Ok(_) => {}
        Err(error) => tracing::debug!(%error, "systemd cannot be told of the reload"),
    }
}

/// One line on how it is, for `systemctl status`.
pub fn status(text: &str) {
    tell(Message::Status(text.to_owned()));
}

/// The daemon is on its way out.
pub fn stopping() {
    tell(Message::Stopping);
}

/// The start goes on; it is not to be given up for this long from now.
pub fn still_starting(patience: std::time::Duration) {
    tell(Message::Extend(u32::try_from(patience.as_micros()).unwrap_or(u32::MAX)));
}

/// A sign of life.
pub fn watchdog_ping() {
    tell(Message::Watchdog);
}

fn tell(message: Message) {
    static LINE: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();
    let line = LINE.get_or_init(|| {
        let (line, messages) = sync_channel(WAITING_MAX);
        std::thread::Builder::new().name("systemd".to_owned()).spawn(move || write(&messages)).ok().map(|_| line)
    });
    if line.as_ref().is_none_or(|line| line.try_send(message).is_err()) {
        tracing::debug!("systemd does not listen");
    }
}

/// Without NOTIFY_SOCKET every message is `Ok`; a service manager that went away is nothing a gateway stops for.
fn write(messages: &Receiver<Message>) {
    for message in messages {
        let told = match &message {
            Message::Ready(status) => sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(status)]),
            Message::Status(status) => sd_notify::notify(&[NotifyState::Status(status)]),
            // Both in one message, or neither is believed (`Type=notify-reload`).
            Message::Reloading(since) => {
                sd_notify::notify(&[NotifyState::Reloading, NotifyState::MonotonicUsec(*since)])
            }
            Message::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
            Message::Watchdog => sd_notify::notify(&[NotifyState::Watchdog]),
            Message::Extend(micros) => sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(*micros)]),
        };
        if let Err(error) = told {
            tracing::debug!(%error, "systemd cannot be told");
        }
    }
}

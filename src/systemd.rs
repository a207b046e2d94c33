//! What systemd is told: ready, stopping, signs of life. Outside a service all of it does nothing.
//!
//! The watchdog is to be fed by those who see the loops make progress, not by a bare timer: this module only carries
//! the ping.

use sd_notify::NotifyState;

/// The daemon takes messages now.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line on how it is, for `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// The daemon is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// A sign of life.
pub fn watchdog_ping() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this is `Ok`; a service manager that went away is nothing a gateway stops for.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

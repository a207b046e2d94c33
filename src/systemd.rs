//! What systemd is told: ready, stopping, a line of status, signs of life. Outside a service all of it does nothing.
//!
//! The watchdog is to be fed by those who see the loops make progress, not by a bare timer: this module only carries
//! the ping.

use std::time::Duration;

use sd_notify::NotifyState;

/// The daemon takes messages now.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The daemon is on its way out.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The line that `systemctl status` shows.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Starting or stopping takes longer; asks for this much time from now.
pub fn extend_timeout(by: Duration) {
    tell(&[NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))]);
}

/// A reload has begun; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
    }
}

/// A sign of life.
pub fn watchdog_ping() {
    tell(&[NotifyState::Watchdog]);
}

/// How often a sign of life is due: half of what the service is granted; `None` without a watchdog.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|granted| granted / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    // Without NOTIFY_SOCKET this is `Ok`; a service manager that went away is nothing a gateway stops for.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd cannot be told");
    }
}

//! SIGTERM and SIGINT: both tell the daemon to stop.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Hears them from its making on.
#[derive(Debug)]
pub(super) struct Ending {
    terminate: Signal,
    interrupt: Signal,
    was_told: bool,
}

impl Ending {
    /// From now on neither ends the process by itself.
    pub(super) fn new() -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, was_told: false })
    }

    /// One that was told already.
    #[cfg(test)]
    pub(super) fn told_for_tests() -> std::io::Result<Self> {
        Ok(Self { was_told: true, ..Self::new()? })
    }

    /// Whether [`Self::told`] has ever come back.
    pub(super) fn was_told(&self) -> bool {
        self.was_told
    }

    /// Resolves when one has come, also before it was called. Cancel safe.
    pub(super) async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.was_told = true;
    }
}

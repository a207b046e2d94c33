//! The uploader: three lanes, one owner of retry.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::health::{Health, SyncState};
use super::lanes::{Context, Executions, History, Settings, States, Step};
use super::source::SyncSource;
use super::table::CloudTable;
use crate::clock::Clock;
use crate::shadow::store::StoreError;

/// Moves what the store owes to the tables.
pub struct Uploader<S, T> {
    context: Arc<Context<S, T>>,
    executions: Executions<S, T>,
    states: States<S, T>,
    history: History<S, T>,
}

impl<S: SyncSource, T: CloudTable> Uploader<S, T> {
    /// An uploader that has not begun.
    #[must_use]
    pub fn new(source: S, table: T, settings: Settings, clock: Clock) -> Self {
        let context = Arc::new(Context { source, table, health: Health::new(clock), settings });
        let executions = Executions::new(Arc::clone(&context));
        let states = States::new(Arc::clone(&context));
        let history = History::new(Arc::clone(&context));
        Self { context, executions, states, history }
    }

    /// How it fares, for `status`; outlives the uploader.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<SyncState> {
        self.context.health.watch()
    }

    /// Runs the lanes until `stop` or until the store closes; while the store fails they wait and ask again. Requests that are under way are dropped at `stop`; what they
    /// may have done is done again after the next start, without effect.
    pub async fn run(self, stop: CancellationToken) {
        let mut lanes = tokio::task::JoinSet::new();
        lanes.spawn(self.executions.run());
        lanes.spawn(self.states.run());
        lanes.spawn(self.history.run());
        tokio::select! {
            () = stop.cancelled() => {}
            ended = lanes.join_next() => match ended {
                Some(Ok(())) | None => {}
                Some(Err(error)) => tracing::error!(%error, "sync stops: a lane broke down"),
            },
        }
        lanes.shutdown().await;
    }

    /// One step of every lane, in order of importance, without waiting; true while something is left to try.
    ///
    /// # Errors
    /// The store's.
    pub async fn sync_once(&mut self) -> Result<bool, StoreError> {
        let executions = self.executions.step(true).await?;
        self.states.recheck().await?;
        let states = self.states.step(false, true).await?;
        let history = self.history.step().await?;
        Ok([executions, states, history].contains(&Step::More))
    }
}

#[cfg(test)]
mod tests;

//! The daemon's tasks: each has a name, all are told to stop together, and one that ends too early, or is stuck
//! ([`pulse`](super::pulse)), is noticed.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::pulse::{Pulse, link_silence_max};

/// All tasks of the daemon.
#[derive(Debug, Default)]
pub(super) struct Crew {
    tasks: JoinSet<()>,
    names: HashMap<Id, String>,
    stop: CancellationToken,
    pulse: Pulse,
}

impl Crew {
    /// Starts a task that runs until [`Self::stopping`].
    pub(super) fn add(&mut self, name: impl Into<String>, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn(name.into(), None, task);
    }

    /// As [`Self::add`], for a link: it pings its broker each `keep_alive`, so one that does nothing for long is stuck.
    pub(super) fn add_link(
        &mut self,
        name: impl Into<String>,
        keep_alive: Duration,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name.into(), Some(link_silence_max(keep_alive)), task);
    }

    fn spawn(&mut self, name: String, silence_max: Option<Duration>, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(self.pulse.watch(&name, silence_max, task)).id();
        self.names.insert(id, name);
    }

    /// Whether they move.
    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Cancelled when the daemon stops.
    pub(super) fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Resolves when a task has ended although nobody asked it to; answers its name. Cancel safe.
    pub(super) async fn lost(&mut self) -> String {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.name(ended.map_or_else(|error| error.id(), |(id, ())| id)),
            None => std::future::pending().await,
        }
    }

    /// Tells all to stop and waits; answers who did not, and ends them.
    pub(super) async fn stop(&mut self, within: Duration) -> Vec<String> {
        self.stop.cancel();
        let deadline = tokio::time::Instant::now() + within;
        while let Ok(Some(ended)) = tokio::time::timeout_at(deadline, self.tasks.join_next_with_id()).await {
            let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
            self.names.remove(&id);
        }
        self.tasks.abort_all();
        let mut late: Vec<_> = self.names.drain().map(|(_, name)| name).collect();
        late.sort();
        late
    }

    fn name(&mut self, id: Id) -> String {
        self.names.remove(&id).unwrap_or_else(|| "unnamed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_stop_in_time_is_named() {
        let mut crew = Crew::default();
        let stop = crew.stopping();
        crew.add("obedient", async move { stop.cancelled().await });
        crew.add("stubborn", std::future::pending());
        assert_eq!(crew.stop(Duration::from_secs(2)).await, ["stubborn"]);
    }

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_noticed() {
        let mut crew = Crew::default();
        crew.add("steady", std::future::pending());
        crew.add("fragile", async {});
        assert_eq!(crew.lost().await, "fragile");
    }
}

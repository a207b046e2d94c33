//! The lanes: each is `run() = wait + step()`, a task of its own, and none waits for another's requests.

mod executions;
mod history;
mod pace;
mod settling;
mod states;

use std::time::Duration;

use floorgate_model::GatewayId;
use tokio::time::Instant;

use super::health::{Health, LaneName};
use crate::backoff::Backoff;
use crate::shadow::store::StoreError;

pub(super) use executions::Executions;
pub(super) use history::History;
pub(super) use states::States;

/// How long a lane sleeps at most: a signal that got lost costs this much and no more.
const IDLE_POLL: Duration = Duration::from_secs(2);

/// First ceiling of the pause after the store failed, and the highest one.
const STORE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));
/// Shortest such pause: a failing disk must not be asked in a loop.
const STORE_PAUSE_MIN: Duration = Duration::from_millis(200);

/// What the uploader needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who we are.
    pub gateway_id: GatewayId,
    /// How often states that are not urgent are written (`[sync] state_interval`).
    pub state_interval: Duration,
}

/// What the lanes share.
#[derive(Debug)]
pub(super) struct Context<S, T> {
    pub(super) source: S,
    pub(super) table: T,
    pub(super) health: Health,
    pub(super) settings: Settings,
}

/// What a step leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Something is left that can be tried as soon as [`Health`] admits it.
    More,
    /// Nothing to do until a signal or a time.
    Idle,
}

/// A store that fails passes by itself or is repaired (a full disk, a locked file): the lane waits and asks again. Only
/// a closed store ends a lane.
struct StoreTrouble {
    lane: LaneName,
    told: Option<String>,
    backoff: Backoff,
}

impl StoreTrouble {
    fn new(lane: LaneName) -> Self {
        Self { lane, told: None, backoff: Backoff::new(STORE_PAUSE.0, STORE_PAUSE.1, Duration::ZERO) }
    }

    /// Waits after a failure; told when it begins and when it becomes another.
    async fn pause(&mut self, error: &StoreError) {
        let text = error.to_string();
        if self.told.as_ref() != Some(&text) {
            tracing::error!(lane = ?self.lane, %error, "the store fails; sync waits and asks again");
            self.told = Some(text);
        }
        tokio::time::sleep(self.backoff.next_delay(fastrand::f64()).max(STORE_PAUSE_MIN)).await;
    }

    /// A step went through.
    fn over(&mut self) {
        if self.told.take().is_some() {
            tracing::info!(lane = ?self.lane, "the store answers again");
            self.backoff.lasted(Duration::MAX);
        }
    }
}

fn idle_poll() -> Instant {
    Instant::now() + IDLE_POLL
}

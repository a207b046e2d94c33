//! The lanes: each is `run() = wait + step()`, a task of its own, and none waits for another's requests.

mod executions;
mod history;
mod states;

use std::time::Duration;

use floorgate_model::GatewayId;
use tokio::time::Instant;

use super::health::Health;

pub(super) use executions::Executions;
pub(super) use history::History;
pub(super) use states::States;

/// How long a lane sleeps at most: a signal that got lost costs this much and no more.
const IDLE_POLL: Duration = Duration::from_secs(2);

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

fn idle_poll() -> Instant {
    Instant::now() + IDLE_POLL
}

//! Device states to `iot-devices`: urgent ones at once, the others together every interval.
//!
//! A device whose item failed goes behind the others, and among its like behind those that failed longer ago, so that
//! each gets its turn. Once it has failed by itself it is tried again at a pace of its own, which holds up nobody.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use floorgate_model::DeviceId;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::pace::Pace;
use super::{Context, Step, StoreTrouble};
use crate::shadow::store::StoreError;
use crate::shadow::{DeviceView, StateSnapshot};
use crate::sync::budget::Spending;
use crate::sync::dynamo::updates::other_is_silent;
use crate::sync::health::{LaneName, concerns_everything};
use crate::sync::source::SyncSource;
use crate::sync::table::{Cause, CloudTable, Owner, StateWritten, TableError};

const LANE: LaneName = LaneName::States;
/// States taken at one look, urgent ones first: an urgent one waits for at most this many others.
const PEEK: usize = 64;
/// Devices whose failed tries are remembered; further ones are tried as if they had not failed. A configuration has no
/// more devices than this.
const SUSPECTS_MAX: usize = 10_000;
/// Rounds of requests in one look; then the window is looked at anew.
const ROUNDS: usize = 8;
/// How often it is looked whether a device that another gateway took is free again.
pub(super) const RECHECK_EVERY: Duration = Duration::from_secs(60);

/// The lane's memory. All of it may be lost.
pub(in crate::sync) struct States<S, T> {
    context: Arc<Context<S, T>>,
    /// Failed at their last try, and in which turn: go behind the others, the latest last.
    suspects: HashMap<DeviceId, u64>,
    turn: u64,
    pace: Pace,
    /// Versions the table will never take; the device's next version is tried again.
    refused: HashMap<DeviceId, u64>,
    /// Versions adopted in the last look; the same one again brings nothing.
    adopted: HashMap<DeviceId, u64>,
    next_full: Instant,
    next_recheck: Instant,
}

impl<S: SyncSource, T: CloudTable> States<S, T> {
    pub(in crate::sync) fn new(context: Arc<Context<S, T>>) -> Self {
        let now = Instant::now();
        let (suspects, refused, adopted) = (HashMap::new(), HashMap::new(), HashMap::new());
        let (turn, pace) = (0, Pace::new());
        Self { context, suspects, turn, pace, refused, adopted, next_full: now, next_recheck: now }
    }

    /// Writes what is due, then waits for more. Ends when the store is closed.
    pub(in crate::sync) async fn run(mut self) {
        let mut trouble = StoreTrouble::new(LANE);
        loop {
            self.context.health.admitted(LANE).await;
            let step = self.due_step().await;
            if step.is_ok() {
                trouble.over();
            }
            match step {
                Ok(Step::More) => {}
                Ok(Step::Idle) => {
                    let again = self.pace.due().filter(|_| !self.suspects.is_empty());
                    let wake = self.next_full.min(again.unwrap_or(self.next_full)).min(super::idle_poll());
                    tokio::select! {
                        () = self.context.source.wakeups().states.notified() => {}
                        () = self.context.health.recovered() => self.next_full = Instant::now(),
                        () = tokio::time::sleep_until(wake) => {}
                    }
                }
                Err(StoreError::Closed) => return,
                Err(error) => trouble.pause(&error).await,
            }
        }
    }

    /// A full step when the interval is over, else one for the urgent states.
    async fn due_step(&mut self) -> Result<Step, StoreError> {
        let now = Instant::now();
        if now >= self.next_recheck {
            self.next_recheck = now + RECHECK_EVERY;
            self.recheck().await?;
        }
        let full = now >= self.next_full;
        let step = self.step(!full, self.pace.is_due()).await?;
        if full && matches!(step, Step::Idle) {
            self.next_full = now + self.context.settings.state_interval;
        }
        Ok(step)
    }

    /// One look at the states and what can be written of them; `again` also tries those that failed.
    pub(in crate::sync) async fn step(&mut self, urgent_only: bool, again: bool) -> Result<Step, StoreError> {
        let context = Arc::clone(&self.context);
        let limit = PEEK + self.refused.len() + self.suspects.len();
        let mut snapshots = context.source.peek_states(urgent_only, limit).await?;
        if !urgent_only {
            context.health.waiting(LANE, snapshots.len());
        }
        let many = snapshots.len() >= limit;
        snapshots.retain(|snapshot| self.refused.get(&snapshot.view.device_id) != Some(&snapshot.view.version));
        if !urgent_only && !many {
            // Not there any more: written meanwhile, detached, or another gateway's.
            let waiting: HashSet<_> = snapshots.iter().map(|snapshot| &snapshot.view.device_id).collect();
            self.suspects.retain(|device, _| waiting.contains(device));
        }
        let all = snapshots.len();
        let mut snapshots = self.in_turn(snapshots, again);
        let mut left = again && snapshots.len() < all;
        self.turn += 1;
        let adopted_before = std::mem::take(&mut self.adopted);

        let window = context.health.window(LANE);
        if snapshots.len() > window * ROUNDS {
            // The window of a probe must not stay that of everything behind it.
            snapshots.truncate(window * ROUNDS);
            left = true;
        }
        let (table, budget) = (&context.table, &context.health.budget);
        let mut answers = futures_util::stream::iter(snapshots)
            .map(|snapshot| async move {
                budget.spend(Spending::State, 1.0).await;
                (table.write_state(&snapshot).await, snapshot)
            })
            .buffer_unordered(window);
        let mut failed = false;
        while let Some((answer, snapshot)) = answers.next().await {
            failed |= self.took(answer, snapshot).await?;
            if failed && window == 1 {
                break;
            }
        }
        if !failed {
            context.health.widen(LANE, self.pace.is_failing());
        }
        let adopted = self.adopted.iter().any(|(device, version)| adopted_before.get(device) != Some(version));
        if failed || many || adopted || left {
            return Ok(Step::More);
        }
        if !urgent_only {
            context.health.waiting(LANE, 0);
            context.health.states_current();
        }
        Ok(Step::Idle)
    }

    /// Those that did not fail, then those that did, the longest ago first: one, as a probe, while they fail.
    fn in_turn(&self, snapshots: Vec<StateSnapshot>, again: bool) -> Vec<StateSnapshot> {
        let is_suspect = |snapshot: &StateSnapshot| self.suspects.contains_key(&snapshot.view.device_id);
        let (mut failed, mut states): (Vec<_>, Vec<_>) = snapshots.into_iter().partition(is_suspect);
        if again {
            failed.sort_by_key(|snapshot| self.suspects.get(&snapshot.view.device_id).copied());
            failed.truncate(if self.pace.is_failing() { 1 } else { usize::MAX });
            states.append(&mut failed);
        }
        states
    }

    /// Whether it failed and has to be repeated.
    async fn took(
        &mut self,
        answer: Result<StateWritten, TableError>,
        snapshot: StateSnapshot,
    ) -> Result<bool, StoreError> {
        let (context, view) = (Arc::clone(&self.context), &snapshot.view);
        let device = &view.device_id;
        match answer {
            Ok(written) => {
                context.health.succeeded(LANE, usize::from(written == StateWritten::Current));
                self.refused.remove(device);
                if self.suspects.remove(device).is_some() {
                    self.pace.over();
                }
                fail_point!(BeforeStateConfirm);
                match written {
                    StateWritten::Current => context.source.confirm_state(device, view.version).await?,
                    StateWritten::Behind { table_version } => {
                        context.source.adopt_version(device, table_version).await?;
                        self.adopted.insert(device.clone(), table_version);
                    }
                    StateWritten::TakenOver { by } => {
                        tracing::warn!(device_id = %device, gateway = %by, "another gateway writes this device; it is left alone");
                        context.source.taken_over(device, Some(by)).await?;
                        self.next_recheck = Instant::now() + RECHECK_EVERY;
                    }
                }
                Ok(false)
            }
            Err(error @ TableError::Permanent { .. }) => {
                tracing::error!(device_id = %device, version = view.version, %error, "state given up until it changes");
                context.health.refused(&error);
                self.suspects.remove(device);
                self.refused.insert(device.clone(), view.version);
                Ok(false)
            }
            Err(error) => {
                let known = self.suspects.contains_key(device);
                let throttled = matches!(error, TableError::Retry { cause: Cause::Throttled, .. });
                if known && !throttled && !concerns_everything(&error) {
                    context.health.failed_alone(LANE, &error);
                    self.pace.failed(&error);
                } else {
                    // A first failure may be the whole table's.
                    context.health.failed(LANE, &error);
                }
                if known || self.suspects.len() < SUSPECTS_MAX {
                    self.suspects.insert(device.clone(), self.turn);
                }
                Ok(true)
            }
        }
    }

    /// Looks at the devices that another gateway took; those it has lost are ours again.
    pub(in crate::sync) async fn recheck(&mut self) -> Result<(), StoreError> {
        let context = Arc::clone(&self.context);
        let devices = context.source.devices().await?;
        let mut taken = 0;
        for view in devices.iter().filter(|view| view.taken_over_by.is_some()) {
            taken += 1;
            match context.table.read_owner(&view.device_id).await {
                Ok(owner) if self.is_free(owner.as_ref(), view) => {
                    let version = owner.map_or(0, |owner| owner.version);
                    tracing::info!(device_id = %view.device_id, "the device is ours again");
                    context.source.taken_over(&view.device_id, None).await?;
                    context.source.adopt_version(&view.device_id, version).await?;
                    self.next_full = Instant::now();
                    taken -= 1;
                }
                Ok(Some(owner)) if view.taken_over_by.as_ref() != Some(&owner.gateway_id) => {
                    context.source.taken_over(&view.device_id, Some(owner.gateway_id)).await?;
                }
                Ok(_) => {}
                Err(error) => {
                    context.health.failed(LANE, &error);
                    break;
                }
            }
        }
        context.health.taken_over(devices.iter().filter(|view| view.taken_over_by.is_some()).count().min(taken));
        Ok(())
    }

    fn is_free(&self, owner: Option<&Owner>, view: &DeviceView) -> bool {
        let Some(owner) = owner else { return true };
        let seen = owner.last_seen_at.map(|at| at.to_string());
        owner.gateway_id == self.context.settings.gateway_id || other_is_silent(seen.as_deref(), view)
    }
}

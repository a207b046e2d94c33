//! The composition root: builds every part, owns start and stop order.
//!
//! # Start
//!
//! Store, then what judges and executes commands, then the floor, the cloud links, the lanes to the tables, the control
//! socket. A broker or a table that is away is no failure: the links keep trying, everything is kept. Nor is a disk that is
//! full, read-only or failing: the store tries again by itself, and says so. What is a failure: a store that cannot be
//! opened for any other reason, a port that is taken, certificates or passwords that cannot be used.
//!
//! # Stop
//!
//! SIGTERM or SIGINT: intake ends (floor, cloud), commands that run stay journalled, the lanes stop, the store commits,
//! checkpoints and closes. [`STOP_WITHIN`] for all of it; who does not make it is named in the log.
//!
//! # While it runs
//!
//! SIGHUP reads devices and profiles again (`reload.rs`); the watchdog is fed by the store's answers
//! (`heart.rs`) as long as no part is stuck (`pulse.rs`), and the service manager is told in one line how it is (`headline.rs`).
//!
//! This is the only room that knows all others. It holds no rule, no SQL, no topic and no attribute.

mod cloud;
mod control;
mod crew;
mod floor;
mod headline;
mod heart;
mod own;
mod pulse;
mod refused;
mod reload;
pub(crate) mod settings;
mod upstream;

pub use reload::Reread;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floorgate_model::{DeviceId, Profile};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::command::{Admission, Dispatcher, Judge};
use crate::config::{Config, Problem, ProfileText};
use crate::control::ControlServer;
use crate::device::{DriverRegistry, LocalDriver, Profiles, profiles};
use crate::mqtt::intake::Attached;
use crate::mqtt::limits::LiveRates;
use crate::mqtt::refusals::Refusals;
use crate::shadow::rescue::steps;
use crate::shadow::{Store, StoreError};
use crate::{sync, systemd};
use cloud::CloudSide;
use crew::Crew;
use reload::Parts;

/// From the signal to the end of the process; systemd and the contract allow 5 s.
const STOP_WITHIN: Duration = Duration::from_millis(4_500);
/// Of these, for the tasks; the rest is for the store's last commit.
const TASKS_WITHIN: Duration = Duration::from_millis(2_800);

/// Why the gateway ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the configuration says cannot be used on this machine.
    #[error("{0}")]
    Configuration(String),
    /// Something failed.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    fn failed(cause: impl ToString) -> Self {
        Self::Failed(cause.to_string())
    }
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::failed(error)
    }
}

/// What every part may need of the others.
#[derive(Clone)]
pub(crate) struct House {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) judge: Judge,
    pub(crate) admission: Admission,
    pub(crate) attached: Attached,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) rates: LiveRates,
    reloaded: reload::Outcome,
}

/// Runs until it is told to stop (SIGTERM, SIGINT); on SIGHUP, devices and profiles are those of `reread`.
///
/// # Errors
/// [`RunError`] if it cannot start, or has to give up.
pub async fn run(mut config: Config, reread: Reread) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::failed)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(RunError::failed)?;

    let clock = Clock::system(config.clock_trust);
    let control = ControlServer::bind(&settings::made(&config.store.state_dir)?).map_err(RunError::failed)?;
    let open = || Store::open(settings::store(&config), clock.clone());
    let extend = || systemd::still_starting(heart::STEP_WITHIN);
    let store = heart::start_with(open, steps, extend, heart::TICK)?;
    let house = furnish(&config, store.clone(), clock);
    let mut crew = Crew::default();
    let (parts, service) = match start(&config, house, control, &mut crew).await {
        Ok(started) => started,
        Err(error) => {
            crew.stop(TASKS_WITHIN).await;
            let _ = store.close().await;
            return Err(error);
        }
    };
    systemd::ready(&headline::now(&service).await);
    info!(gateway_id = %config.gateway.id, devices = config.devices.len(), "floorgate {} runs", env!("CARGO_PKG_VERSION"));

    let ended = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            _ = hang_up.recv() => {}
            name = crew.lost() => break Err(RunError::Failed(format!("the part `{name}` has stopped working"))),
        }
        systemd::reloading();
        tokio::select! {
            // Half done is no harm: the gateway stops, and the next start reads everything anew.
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            reloaded = reload::reload(&config, &reread, &parts, &mut crew) => config = reloaded.unwrap_or(config),
        }
        systemd::ready(&headline::now(&service).await);
    };
    systemd::stopping();
    let stopping = async {
        for late in crew.stop(TASKS_WITHIN).await {
            warn!("{late} did not stop within {TASKS_WITHIN:?}");
        }
        store.close().await
    };
    match tokio::time::timeout(STOP_WITHIN, stopping).await {
        Ok(closed) => closed?,
        Err(_) => warn!("the store did not close within {STOP_WITHIN:?}; what was acknowledged is on disk"),
    }
    info!("floorgate has stopped");
    ended
}

/// What judges commands and who is attached.
fn furnish(config: &Config, store: Store, clock: Clock) -> House {
    let profiles = Profiles::new(config.profiles.values().cloned().collect());
    let drivers = DriverRegistry::default();
    drivers.attach(config.gateway.id.as_device(), Arc::new(LocalDriver));
    let inhibition = store.inhibition().clone();
    let judge = Judge { profiles, drivers, clock: clock.clone(), inhibition };
    let admission = Admission::new(store.clone(), judge.clone(), config.gateway.id.clone());
    let attached = Attached::new(config.devices.iter().map(|device| device.id.clone()));
    let refusals = Arc::new(Refusals::new(clock.clone()));
    let (rates, reloaded) = (LiveRates::from(settings::rates(config)), reload::Outcome::default());
    House { store, clock, judge, admission, attached, refusals, rates, reloaded }
}

async fn start(
    config: &Config,
    house: House,
    control: ControlServer,
    crew: &mut Crew,
) -> Result<(Parts, Arc<control::Service>), RunError> {
    let floor = floor::start(config, &house, crew).await?;
    for device in &config.devices {
        house.judge.drivers.attach(device.id.clone(), floor.driver(&house.clock));
    }
    let dispatcher = Dispatcher::new(house.store.clone(), house.judge.clone());
    let stop = crew.stopping();
    crew.add("dispatcher", dispatcher.run(stop));
    let cloud = CloudSide::start(config, &house, crew).map(Arc::new);
    let tables = upstream::tables(config, &house, crew)?;
    let (beating, stop) = (house.store.clone(), crew.stopping());
    let beat = move || {
        let store = beating.clone();
        async move { store.tick().await }
    };
    let (health, seen) = (house.store.health(), AtomicU64::new(steps()));
    let store_holds_up = move || {
        let (health, now) = (health.borrow(), steps());
        let rebuilds = seen.swap(now, Ordering::Relaxed) != now;
        rebuilds || !(health.ok && health.takes_readings && health.takes_reports)
    };
    let feed = heart::unless_stuck(crew.pulse(), store_holds_up, systemd::watchdog_ping);
    crew.add("timers", heart::run(beat, steps, feed, stop));
    crew.add("own readings", own::run(config.gateway.id.clone(), house.clone(), crew.stopping()));
    let service = Arc::new(control::Service::new(config, house.clone(), floor.clone(), cloud.clone(), tables));
    crew.add("headline", headline::run(Arc::clone(&service), house.store.clone(), crew.stopping()));
    let (answering, stop) = (Arc::clone(&service), crew.stopping());
    crew.add("control socket", async move { control.serve(answering, stop.cancelled_owned()).await });
    Ok((Parts { house, floor, cloud }, service))
}

/// Creates the tables that are not there, as the configuration names them; tells what it did, a line each.
///
/// # Errors
/// [`RunError`] if there is no `[dynamodb]`, or the tables cannot be made.
pub async fn provision(config: Config) -> Result<Vec<String>, RunError> {
    let Some(tables) = &config.dynamodb else {
        return Err(RunError::Configuration(
            "there is no [dynamodb] in the configuration, so no tables to make".into(),
        ));
    };
    let settings = settings::tables(&config, tables);
    sync::provision(settings, Clock::system(config.clock_trust)).await.map_err(|error| match error {
        sync::SyncError::Settings(_) => RunError::Configuration(error.to_string()),
        sync::SyncError::Schema(_) | sync::SyncError::Table { .. } => RunError::failed(error),
    })
}

/// Reads the files of `profiles.d`.
#[must_use]
pub fn read_profiles(texts: &[ProfileText]) -> (BTreeMap<String, Profile>, Vec<Problem>) {
    let files: Vec<_> = texts.iter().map(|file| (file.path.display().to_string(), file.text.as_str())).collect();
    match profiles::combine(files.iter().map(|(path, text)| (path.as_str(), *text))) {
        Ok(read) => (read.into_iter().map(|profile| (profile.device_type.clone(), profile)).collect(), Vec::new()),
        Err(errors) => {
            let problem = |error: &profiles::ProfileError| {
                let text = format!("`{}` is {}; allowed: {}", error.key, error.value, error.allowed);
                Problem::new(std::path::Path::new(&error.file), None, text)
            };
            (BTreeMap::new(), errors.iter().map(problem).collect())
        }
    }
}

/// Ids of the attached devices.
fn ids(config: &Config) -> Vec<DeviceId> {
    config.devices.iter().map(|device| device.id.clone()).collect()
}

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
//! SIGTERM or SIGINT, heard from the first moment on, also while the store is opened or a reload runs: intake ends (floor,
//! cloud), commands that run stay journalled, the lanes stop, the store commits, checkpoints and closes. [`STOP_WITHIN`]
//! for all of it; who does not make it is named in the log.
//!
//! # While it runs
//!
//! SIGHUP, or a question over the control socket (`reloads.rs`), reads devices and profiles again (`reload.rs`); the watchdog
//! is fed by the store's answers (`heart.rs`) as long as no part is stuck (`pulse.rs`), and the service manager is told in one
//! line how it is (`headline.rs`).
//!
//! This is the only room that knows all others. It holds no rule, no SQL, no topic and no attribute.

mod cloud;
mod control;
mod crew;
mod ending;
mod failures;
mod floor;
mod headline;
mod heart;
mod own;
mod pulse;
mod refused;
mod reload;
mod reloads;
pub(crate) mod settings;
mod upstream;

pub use reload::Reread;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floorgate_model::{DeviceId, Profile};
use tokio::time::Instant;
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
use crate::shadow::{Store, StoreError, unless_newer};
use crate::{sync, systemd};
use cloud::CloudSide;
use crew::Crew;
use ending::Ending;
use reload::Parts;
use reloads::Reloads;

/// From the signal to the end of the process; systemd and the contract allow 5 s.
const STOP_WITHIN: Duration = Duration::from_millis(4_500);
/// Of these, for the tasks; the rest is for the store's last commit.
const TASKS_WITHIN: Duration = Duration::from_millis(2_800);

/// Why the gateway ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What the configuration says cannot be used on this machine, or what lies in the state folder not by this version:
    /// another try changes neither.
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
        match error {
            StoreError::Newer { .. } => Self::Configuration(error.to_string()),
            other => Self::failed(other),
        }
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
    reloads: reloads::Asking,
}

/// Runs until it is told to stop (SIGTERM, SIGINT); on SIGHUP, or when it is asked over the control socket, devices and
/// profiles are those of `reread`. When this comes back the store is closed; what still blocks a thread (a name server
/// that does not answer) has nothing to do with it and may be left behind.
///
/// In `between_runs`, if there is such a folder, failures in a row are counted: one that repeats comes back later and later
/// (`failures.rs`).
///
/// # Errors
/// [`RunError`] if it cannot start, or has to give up.
pub async fn run(config: Config, reread: Reread, between_runs: Option<&Path>) -> Result<(), RunError> {
    let mut ending = Ending::new().map_err(RunError::failed)?;
    let began = Instant::now();
    let ended = once(config, reread, &mut ending).await;
    failures::pause(&ended, began.elapsed(), between_runs, &mut ending).await;
    ended
}

async fn once(config: Config, reread: Reread, ending: &mut Ending) -> Result<(), RunError> {
    let (asking, reloads) = reloads::line().map_err(RunError::failed)?;
    let clock = Clock::system(config.clock_trust);
    let control = ControlServer::bind(&settings::made(&config.store.state_dir)?).map_err(RunError::failed)?;
    let store = tokio::select! {
        opened = open(&config, &clock) => opened?,
        // A rescue may take minutes. One that is left in the middle begins anew, as after a power cut.
        () = ending.told() => {
            systemd::stopping();
            info!("floorgate was told to stop before its store was open");
            return Ok(());
        }
    };
    let house = furnish(&config, store.clone(), clock, asking);
    let mut crew = Crew::default();
    let ended = tokio::select! {
        lost = live(config, house, control, &reread, reloads, &mut crew) => lost,
        // A start or a reload that is half done is no harm: the next start reads everything anew.
        () = ending.told() => Ok(()),
    };
    if ended.is_ok() {
        // Not after a failure: the service manager's patience with a stop is shorter than a pause may be.
        systemd::stopping();
    }
    let stopping = async {
        for late in crew.stop(TASKS_WITHIN).await {
            warn!("{late} did not stop within {TASKS_WITHIN:?}");
        }
        store.close().await
    };
    let closed = tokio::time::timeout(STOP_WITHIN, stopping).await.unwrap_or_else(|_| {
        warn!("the store did not close within {STOP_WITHIN:?}; what was acknowledged is on disk");
        Ok(())
    });
    ended?;
    closed?;
    info!("floorgate has stopped");
    Ok(())
}

/// Opens the store on a thread of its own, so that a stop is heard meanwhile.
async fn open(config: &Config, clock: &Clock) -> Result<Store, RunError> {
    let (settings, clock) = (settings::store(config), clock.clone());
    let extend = || systemd::still_starting(heart::STEP_WITHIN);
    let open = move || heart::start_with(|| Store::open(settings, clock), steps, extend, heart::TICK);
    Ok(tokio::task::spawn_blocking(open).await.map_err(RunError::failed)??)
}

/// Starts every part and does the reloads; comes back only with what went wrong.
async fn live(
    mut config: Config,
    house: House,
    control: ControlServer,
    reread: &Reread,
    mut reloads: Reloads,
    crew: &mut Crew,
) -> Result<(), RunError> {
    let (parts, service) = start(&config, house, control, crew).await?;
    systemd::ready(&headline::now(&service).await);
    info!(gateway_id = %config.gateway.id, devices = config.devices.len(), "floorgate {} runs", env!("CARGO_PKG_VERSION"));
    loop {
        let asked = tokio::select! {
            asked = reloads.next() => asked,
            name = crew.lost() => return Err(RunError::Failed(format!("the part `{name}` has stopped working"))),
        };
        systemd::reloading();
        config = reload::reload(&config, reread, &parts, crew).await.unwrap_or(config);
        systemd::ready(&headline::now(&service).await);
        asked.answer(parts.house.reloaded.last());
    }
}

/// What judges commands and who is attached.
fn furnish(config: &Config, store: Store, clock: Clock, reloads: reloads::Asking) -> House {
    let profiles = Profiles::new(config.profiles.values().cloned().collect());
    let drivers = DriverRegistry::default();
    drivers.attach(config.gateway.id.as_device(), Arc::new(LocalDriver));
    let inhibition = store.inhibition().clone();
    let judge = Judge { profiles, drivers, clock: clock.clone(), inhibition };
    let admission = Admission::new(store.clone(), judge.clone(), config.gateway.id.clone());
    let attached = Attached::new(config.devices.iter().map(|device| device.id.clone()));
    let refusals = Arc::new(Refusals::new(clock.clone()));
    let (rates, reloaded) = (LiveRates::from(settings::rates(config)), reload::Outcome::default());
    House { store, clock, judge, admission, attached, refusals, rates, reloaded, reloads }
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
    let tells_commands = config.dynamodb.as_ref().is_some_and(|tables| tables.commands_table.is_some());
    crew.add("own readings", own::run(config.gateway.id.clone(), tells_commands, house.clone(), crew.stopping()));
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

/// Whether this version can read what lies in the first of `state_dirs` that has something; nothing is written.
///
/// # Errors
/// [`RunError::Configuration`] if a newer floorgate wrote it.
pub fn knows_the_state(state_dirs: &[PathBuf]) -> Result<(), RunError> {
    let used = state_dirs.iter().find(|folder| folder.join("state.db").exists());
    used.map_or(Ok(()), |folder| Ok(unless_newer(folder)?))
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
                Problem::new(Path::new(&error.file), None, text)
            };
            (BTreeMap::new(), errors.iter().map(problem).collect())
        }
    }
}

/// Ids of the attached devices.
fn ids(config: &Config) -> Vec<DeviceId> {
    config.devices.iter().map(|device| device.id.clone()).collect()
}

//! `run`, `check`, `provision`: the tasks that read the whole configuration.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use super::arguments::Check;
use super::{CliError, say, say_json, warn};
use crate::config::{self, Config, Environment};
use crate::{gateway, logging, memory};

/// Threads that carry the gateway's tasks. The store has its own; two keep links moving while the other computes.
const WORKER_THREADS: usize = 2;

pub(super) fn run(file: &Path, environment: &Environment, log_level: Option<&str>) -> Result<(), CliError> {
    // Nothing depends on it, so nothing is said if it cannot be.
    memory::one_arena();
    start_logging(environment, log_level)?;
    #[cfg(feature = "fail_points")]
    if let Some(point) = environment.get("FLOORGATE_FAIL_POINT") {
        crate::fail_points::arm(point).map_err(|error| CliError::Usage(format!("FLOORGATE_FAIL_POINT: {error}")))?;
    }
    let config = load(file, environment)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let between_runs = environment.runtime_directory();
    let (file, environment) = (file.to_owned(), environment.clone());
    let reread = move || Config::load(&file, &environment, &gateway::read_profiles);
    let work = gateway::run(config, Arc::new(reread), between_runs.as_deref());
    to_its_end(runtime()?, work).map_err(CliError::from)
}

pub(super) fn check(file: &Path, environment: &Environment, json: bool, how: Check) -> Result<Config, CliError> {
    let environment = if how.assume_aws_environment { environment.assuming_aws() } else { environment.clone() };
    // Whoever checks may not be the service, and cannot see what systemd hands to that alone.
    let config = Config::load_from_outside(file, &environment, &gateway::read_profiles)?;
    for warning in &config.warnings {
        warn(warning, json);
    }
    gateway::knows_the_state(&config::state_dirs(file, &environment)?)?;
    match (how.quiet, json) {
        (true, _) => {}
        (false, true) => say_json(&config.effective())?,
        (false, false) => {
            let text = config.effective_toml();
            let unwritten = |error| CliError::Failed(format!("the configuration cannot be written as TOML: {error}"));
            say(&text.map_err(unwritten)?)?;
        }
    }
    Ok(config)
}

pub(super) fn provision(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    start_logging(environment, None)?;
    let config = load(file, environment)?;
    let lines = to_its_end(runtime()?, gateway::provision(config))?;
    if json { say_json(&lines) } else { say(&lines.iter().map(|line| format!("{line}\n")).collect::<String>()) }
}

fn load(file: &Path, environment: &Environment) -> Result<Config, CliError> {
    Ok(Config::load(file, environment, &gateway::read_profiles)?)
}

fn start_logging(environment: &Environment, level: Option<&str>) -> Result<(), CliError> {
    match level {
        Some(level) => logging::start(Some(level)).map_err(|error| CliError::Usage(format!("--log-level: {error}"))),
        None => logging::start(environment.get("FLOORGATE_LOG"))
            .map_err(|error| CliError::Configuration(format!("FLOORGATE_LOG: {error}"))),
    }
}

/// Does the work and ends the runtime with it. Threads that still block are left behind, for the process is about to end:
/// a name server that does not answer holds one for 20 s and more, and a stop must not wait for it. What has to be durable
/// was waited for by the work itself: the store is closed before [`gateway::run`] comes back.
pub(super) fn to_its_end<T>(runtime: tokio::runtime::Runtime, work: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKER_THREADS).enable_all().build();
    runtime.map_err(|error| CliError::Failed(format!("cannot start: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// What `getaddrinfo` is while no name server answers.
    #[test]
    fn a_thread_that_does_not_come_back_delays_no_end() {
        let (never, waits) = mpsc::channel::<()>();
        let (done, ended) = mpsc::channel();
        let work = async move {
            let (blocks, blocked) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                let _ = blocks.send(());
                waits.recv()
            });
            blocked.await.unwrap();
            "closed"
        };
        let ending = std::thread::spawn(move || done.send(to_its_end(runtime().unwrap(), work)));
        assert_eq!(ended.recv_timeout(Duration::from_secs(10)), Ok("closed"), "the end waits for a thread that blocks");
        drop(never);
        ending.join().unwrap().unwrap();
    }
}

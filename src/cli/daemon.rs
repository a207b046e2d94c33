//! `run`, `check`, `provision`: the tasks that read the whole configuration.

use std::path::Path;
use std::sync::Arc;

use super::{CliError, say, say_json, warn};
use crate::config::{Config, Environment};
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
    let (file, environment) = (file.to_owned(), environment.clone());
    let reread = move || Config::load(&file, &environment, &gateway::read_profiles);
    runtime()?.block_on(gateway::run(config, Arc::new(reread))).map_err(CliError::from)
}

pub(super) fn check(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    let config = load(file, environment)?;
    for warning in &config.warnings {
        warn(warning, json);
    }
    if json {
        return say_json(&config.effective());
    }
    let text = config.effective_toml();
    say(&text.map_err(|error| CliError::Failed(format!("the configuration cannot be written as TOML: {error}")))?)
}

pub(super) fn provision(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    start_logging(environment, None)?;
    let config = load(file, environment)?;
    let lines = runtime()?.block_on(gateway::provision(config))?;
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

pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(WORKER_THREADS).enable_all().build();
    runtime.map_err(|error| CliError::Failed(format!("cannot start: {error}")))
}

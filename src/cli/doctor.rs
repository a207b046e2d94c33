//! `doctor`: everything is looked at, also what keeps the gateway from starting.

use std::path::{Path, PathBuf};

use super::{CliError, daemon, say, say_json};
use crate::config::{Config, Environment};
use crate::{doctor, gateway};

pub(super) fn doctor(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    let config = Config::load(file, environment, &gateway::read_profiles);
    let patient = doctor::Patient { file, environment, root: PathBuf::from("/") };
    let runtime = daemon::runtime()?;
    let report = runtime.block_on(doctor::examine(patient, config.as_ref()));
    // A name service or a disk that hangs in a thread must not keep us.
    runtime.shutdown_background();
    if json {
        say_json(&report)?;
    } else {
        say(&report.text())?;
    }
    match (config, report.result) {
        (Err(_), _) => Err(CliError::ToldConfiguration),
        (Ok(_), doctor::State::Fail) => Err(CliError::Told),
        (Ok(_), _) => Ok(()),
    }
}

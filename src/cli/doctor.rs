//! `doctor`: everything is looked at, also what keeps the gateway from starting.

use std::path::{Path, PathBuf};

use super::{CliError, daemon, say, say_json};
use crate::config::Environment;
use crate::doctor;

pub(super) fn doctor(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    let patient = doctor::Patient { file: file.to_owned(), environment: environment.clone(), root: PathBuf::from("/") };
    let runtime = daemon::runtime()?;
    let (report, configuration_usable) = runtime.block_on(doctor::examine(patient));
    // A name service or a disk that hangs in a thread must not keep us.
    runtime.shutdown_background();
    if json {
        say_json(&report)?;
    } else {
        say(&report.text())?;
    }
    match report.result {
        _ if !configuration_usable => Err(CliError::ToldConfiguration),
        doctor::State::Fail => Err(CliError::Told),
        _ => Ok(()),
    }
}

//! What of the machine a configuration needs before it can be used: files that the service may read, a state folder that may
//! be written. What is wrong with these is put right by somebody, not by another try, so it is exit 78.

use std::path::Path;

use super::CliError;
use crate::config::{self, Config, Environment};
use crate::doctor;

/// After a check that has passed as whoever asked: whether it would as the service's user.
pub(super) fn readable_by_the_service(config: &Config) -> Result<(), CliError> {
    doctor::access_problems(config).map_or(Ok(()), |problems| Err(CliError::Configuration(problems)))
}

/// Before a start: whether a sandbox keeps the state folder read-only. What is wrong with the files themselves is told by who
/// reads them.
pub(super) fn writable(file: &Path, environment: &Environment) -> Result<(), CliError> {
    let Some(folder) = config::state_dirs(file, environment).ok().and_then(|dirs| dirs.into_iter().next()) else {
        return Ok(());
    };
    doctor::kept_read_only(Path::new("/"), &folder).map_or(Ok(()), |why| Err(CliError::Configuration(why)))
}

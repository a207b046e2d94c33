//! The composition root: builds every part, owns start and stop order.

use std::collections::BTreeMap;

use floorgate_model::Profile;

use crate::config::{Config, Problem, ProfileText};

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

/// Runs until it is told to stop (SIGTERM, SIGINT).
///
/// # Errors
/// [`RunError`] if it cannot start, or has to give up.
#[expect(clippy::unused_async, reason = "the rooms it wires are awaited")]
pub async fn run(config: Config) -> Result<(), RunError> {
    let _ = config;
    Err(RunError::Failed("the gateway's rooms are not wired together".to_owned()))
}

/// Creates the tables that are not there, as the configuration names them; tells what it did, a line each.
///
/// # Errors
/// [`RunError`] if there is no `[dynamodb]`, or the tables cannot be made.
#[expect(clippy::unused_async, reason = "the rooms it wires are awaited")]
pub async fn provision(config: Config) -> Result<Vec<String>, RunError> {
    let _ = config;
    Err(RunError::Failed("the gateway's rooms are not wired together".to_owned()))
}

/// Reads the files of `profiles.d`.
#[must_use]
pub fn read_profiles(texts: &[ProfileText]) -> (BTreeMap<String, Profile>, Vec<Problem>) {
    let refuse = |text: &ProfileText| Problem::new(&text.path, None, "profiles are not wired".to_owned());
    (BTreeMap::new(), texts.iter().map(refuse).collect())
}

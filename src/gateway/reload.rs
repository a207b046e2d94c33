//! A reload: the files are read again, and what they say of devices and profiles counts from then on.
//!
//! # Guarantees
//!
//! * All or nothing. Files with any error, a password file that cannot be used, another gateway's id, or a store that
//!   cannot write now leave everything as it is; the log has every reason, `STATUS=`, `floorgate status` and who asked over the control
//!   socket the first ones.
//! * Nothing but devices, profiles and the endpoint's users changes. Every other key that differs is named: it counts
//!   after a restart.
//! * From the inside out: the store (durable, the only step that can fail), profiles, drivers, rates, then the doors:
//!   the floor's intake and endpoint, and the filters of the cloud links. So whoever is let in is known everywhere.
//!
//! # Commands of a device that was removed
//!
//! * What waits is refused when its turn comes, at once if nothing of the device runs: `UNKNOWN_DEVICE`; nothing was sent.
//! * What was sent is waited for as long as its profile says, but the device is not heard any more: `NO_RESPONSE`.
//!   Nothing is sent a second time.
//!
//! Both are announced as any outcome. If the device comes back meanwhile, they go on as if it had been silent.
//!
//! # What it does not do
//!
//! Connections of devices that stay are left alone, and a user who is no longer in the password file stays connected
//! until it goes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{error, info, warn};

use super::cloud::CloudSide;
use super::crew::Crew;
use super::floor::FloorSide;
use super::{House, ids, settings};
use crate::config::{Changes, Config, ConfigErrors, Floor};
use crate::control::{RefusedFor, ReloadReport};
use crate::device::{Driver, LocalDriver};
use crate::mqtt::endpoint::users::Users;

/// Reads the files as at the start.
pub type Reread = Arc<dyn Fn() -> Result<Config, ConfigErrors> + Send + Sync>;

/// Problems that are remembered for `floorgate status`, and keys; the log has more.
const REMEMBERED_MAX: usize = 20;
/// Problems that are logged, a line each.
const LOGGED_MAX: usize = 200;

/// What became of the last reload. Cheap to clone; all clones show the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome(Arc<Mutex<Option<ReloadReport>>>);

impl Outcome {
    pub(super) fn last(&self) -> Option<ReloadReport> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, mut report: ReloadReport) {
        for list in [&mut report.problems, &mut report.needs_restart] {
            let more = list.len().saturating_sub(REMEMBERED_MAX);
            list.truncate(REMEMBERED_MAX);
            list.extend((more > 0).then(|| format!("and {more} more")));
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }
}

/// The parts that a reload concerns.
pub(super) struct Parts {
    pub(super) house: House,
    pub(super) floor: FloorSide,
    pub(super) cloud: Option<Arc<CloudSide>>,
}

/// A configuration that was read again and can be applied.
pub(super) struct Reload {
    config: Config,
    changes: Changes,
    users: Option<Users>,
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("changes", &self.changes).finish_non_exhaustive()
    }
}

impl Reload {
    /// What would change, if all of it can be used.
    pub(super) fn prepare(running: &Config, read: Result<Config, ConfigErrors>) -> Result<Self, Vec<String>> {
        let read = read.map_err(|errors| errors.problems().iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let changes = running.changes(&read).map_err(|why| vec![why])?;
        let users = match (&running.floor, &read.floor) {
            (Floor::Listen(now), Floor::Listen(new)) => match (&now.users, &new.users) {
                (Some(now), Some(new)) if now.path == new.path => Some(&new.path),
                _ => None,
            },
            _ => None,
        };
        let users = users.map(|path| Users::load(path)).transpose().map_err(|error| vec![error.to_string()])?;
        Ok(Self { config: running.reloaded(read), changes, users })
    }

    /// Applies it, from the inside out. Answers the configuration that runs now; after an error nothing has changed.
    async fn apply(self, parts: &Parts, crew: &mut Crew) -> Result<(Config, Changes), String> {
        let (house, config) = (&parts.house, self.config);
        house.store.attach(settings::store(&config).devices).await.map_err(|error| error.to_string())?;
        house.judge.profiles.replace(config.profiles.values().cloned().collect());
        let mut drivers: BTreeMap<_, Arc<dyn Driver>> =
            config.devices.iter().map(|device| (device.id.clone(), parts.floor.driver(&house.clock))).collect();
        drivers.insert(config.gateway.id.as_device(), Arc::new(LocalDriver));
        house.judge.drivers.replace(drivers);
        house.rates.replace(settings::rates(&config));
        house.attached.replace(ids(&config));
        house.refusals.forget_pending(|id| house.attached.contains(id));
        if let FloorSide::Endpoint { handle, .. } = &parts.floor {
            if let Some(users) = self.users {
                handle.set_users(users);
            }
            handle.attach(ids(&config).into_iter().collect());
        }
        if let Some(cloud) = &parts.cloud {
            cloud.listen_to(ids(&config), house, crew);
        }
        Ok((config, self.changes))
    }
}

/// One reload from the files to the report. Answers the configuration that runs now, if it is another.
pub(super) async fn reload(running: &Config, reread: &Reread, parts: &Parts, crew: &mut Crew) -> Option<Config> {
    let (files, before) = (Arc::clone(reread), running.clone());
    let prepared = tokio::task::spawn_blocking(move || Reload::prepare(&before, files())).await;
    let prepared = prepared.unwrap_or_else(|_| Err(vec!["the files could not be read".to_owned()]));
    let applied = match prepared {
        Ok(reload) => {
            for warning in &reload.config.warnings {
                warn!("{warning}");
            }
            reload.apply(parts, crew).await.map_err(|why| (vec![why], RefusedFor::Store))
        }
        Err(problems) => Err((problems, RefusedFor::Configuration)),
    };
    let at = parts.house.clock.now();
    match applied {
        Ok((config, changes)) => {
            info!(devices = config.devices.len(), "reload: read again: {changes}");
            if !changes.needs_restart.is_empty() {
                warn!("reload: these keys count after a restart: {}", changes.needs_restart.join(", "));
            }
            let (told, needs_restart) = (changes.to_string(), changes.needs_restart);
            let (problems, refused_for) = (Vec::new(), None);
            let report = ReloadReport { at, applied: true, changes: told, problems, refused_for, needs_restart };
            parts.house.reloaded.set(report);
            Some(config)
        }
        Err((problems, cause)) => {
            error!(problems = problems.len(), "reload: refused; devices and profiles stay as they were");
            for problem in problems.iter().take(LOGGED_MAX) {
                error!("reload: {problem}");
            }
            let (changes, needs_restart, refused_for) = (String::new(), Vec::new(), Some(cause));
            let report = ReloadReport { at, applied: false, changes, problems, refused_for, needs_restart };
            parts.house.reloaded.set(report);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use floorgate_model::Timestamp;

    fn report(problems: Vec<String>) -> ReloadReport {
        ReloadReport {
            at: Timestamp::EPOCH,
            applied: false,
            changes: String::new(),
            problems,
            refused_for: Some(RefusedFor::Configuration),
            needs_restart: Vec::new(),
        }
    }

    #[test]
    fn of_a_thousand_problems_status_has_twenty_and_the_number_of_the_rest() {
        let outcome = Outcome::default();
        outcome.set(report((0..1_000).map(|n| n.to_string()).collect()));
        let told = outcome.last().unwrap().problems;
        assert_eq!((told.len(), told[19].as_str(), told[20].as_str()), (21, "19", "and 980 more"));
        outcome.set(report(vec!["one".to_owned()]));
        assert_eq!(outcome.last().unwrap().problems, ["one"], "the last one counts");
    }

    /// The endpoint's users are read again with the devices; a file that is wrong refuses all of it.
    #[test]
    fn a_password_file_that_went_wrong_refuses_the_reload_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let (file, users) = (folder.path().join("floorgate.toml"), folder.path().join("users"));
        let text = "[gateway]\nid = \"G\"\nlocation = \"hall\"\n[floor]\nusers = \"users\"\n";
        std::fs::write(&file, text).unwrap();
        let hash = "$7$101$6NjKSEb5ZYkqS0xS$YlnidZRKxdsAFNTHW26CkjtjWmo0ownFxcZW6VJwh6wZ46rNIXVJS1NbJNV7jdwzW+6EEwMXYhok1fMeXt9bkA==";
        std::fs::write(&users, format!("A:{hash}\n")).unwrap();
        let environment = Environment::from_pairs::<&str, &str>([]);
        let load = || Config::load(&file, &environment, &crate::gateway::read_profiles);
        let running = load().unwrap();
        assert!(Reload::prepare(&running, load()).unwrap().users.is_some());
        std::fs::write(&users, format!("A:{hash}\nB:secret\n")).unwrap();
        let problems = Reload::prepare(&running, load()).unwrap_err();
        assert!(problems.len() == 1 && problems[0].contains(" line 2: "), "{problems:?}");
        std::fs::remove_file(&users).unwrap();
        assert!(!Reload::prepare(&running, load()).unwrap_err().is_empty());
    }
}

//! `floorgate doctor`: is everything this gateway needs as it has to be, and if not, what is to be done.
//!
//! # Guarantees
//!
//! * **It ends.** All checks run side by side, each with its own limit; [`EXAMINE_WITHIN`] after its beginning it tells
//!   what it has, and what has not answered by then is a red line of its own.
//! * **It changes nothing.** No command, no item and no file is written; brokers are tried with a client id of its own,
//!   never with the gateway's, whose session that would take away (`mqtt/probe.rs` says what is published there).
//! * **It helps.** Every finding that is not green says what to do. Names and states are stable (`docs/operations.md`).
//! * **It needs nothing.** Without a daemon, a network, or a configuration that can be used, it tells the rest.
//!
//! # How
//!
//! What happens on the machine is looked at here; what needs a room's own tools is found by that room
//! ([`crate::mqtt::probe`], [`crate::sync::dynamo::probe`]) and judged here; what only the daemon knows is asked for over
//! its control socket. Like the gateway's, this is a place that knows all rooms and holds no rule of theirs.
//!
//! # What it does not do
//!
//! It repairs nothing, and looks at one moment: what comes and goes is in the log.

mod brokers;
mod certificates;
mod clock;
mod daemon;
mod disk;
mod report;
mod tables;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::clock::{Clock, Trust};
use crate::config::{self, Config, ConfigErrors, Environment, Floor};
use crate::control::{self, AskError, Query};
use crate::gateway::settings;
use crate::mqtt::link::LinkConfig;
use crate::mqtt::probe::{self, Depth};
use crate::sync;
pub use certificates::RENEW_WITHIN;
pub use report::{Check, Finding, Report, State};

/// From its beginning to its answer.
pub const EXAMINE_WITHIN: Duration = Duration::from_secs(9);
/// A broker's whole probe; shorter, so that it can still say how far it came.
pub const BROKER_WITHIN: Duration = Duration::from_secs(8);
/// Problems of the configuration that are told; `floorgate check` tells all.
const PROBLEMS_TOLD: usize = 5;

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Patient<'a> {
    /// The main configuration file.
    pub file: &'a Path,
    /// The environment.
    pub environment: &'a Environment,
    /// Above `proc` and `sys`; `/` but in tests.
    pub root: PathBuf,
}

/// Looks at everything. `config`: the configuration as it was read, or what is wrong with it.
///
/// Blocking calls that have not come back by then (a name service, a network disk) are left behind: the caller's runtime
/// must not wait for them.
pub async fn examine(patient: Patient<'_>, config: Result<&Config, &ConfigErrors>) -> Report {
    let started = Instant::now();
    let deadline = started + EXAMINE_WITHIN;
    let folder = state_dir(&patient, config.ok());
    let clock = Clock::system(config.map_or(Trust::Auto, |config| config.clock_trust));
    let now = clock.now();
    let (machine, answer, floor, cloud, upstream) = tokio::join!(
        on_time(deadline, Check::DiskSpace, machine(patient.root.clone(), folder, config.ok())),
        timeout_at(deadline, ask(state_dirs(&patient, config.ok()))),
        on_time(deadline, Check::FloorBroker, floor_broker(config.ok(), now)),
        on_time(deadline, Check::CloudBroker, cloud_broker(config.ok(), now)),
        on_time(deadline, Check::Credentials, tables(config.ok(), clock.clone())),
    );
    let answer = answer.unwrap_or_else(|_| Err(broken(&format!("no answer within {} s", EXAMINE_WITHIN.as_secs()))));
    let mut findings = vec![configuration(patient.file, config)];
    // After the tables: their answers tell the time too.
    let (rule, here) = (config.map_or(Trust::Auto, |config| config.clock_trust), clock.state());
    findings.push(clock::judge(rule, &here, answer.as_ref().ok().map(|(status, _)| &status.clock)));
    findings.extend(daemon::judge(&answer, now));
    findings.extend(match config {
        Ok(config) => certificates::look(config, now),
        Err(_) => vec![unread(Check::Certificate)],
    });
    findings.extend([machine, floor, cloud, upstream].into_iter().flatten());
    Report::new(findings, started.elapsed())
}

/// What a check finds, or that it found nothing in time.
async fn on_time(deadline: Instant, check: Check, findings: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    timeout_at(deadline, findings).await.unwrap_or_else(|_| {
        let found = format!("no answer within {} s", EXAMINE_WITHIN.as_secs());
        vec![Finding::fail(check, found, "something hangs: a disk on the network, a name service, or the other side")]
    })
}

fn unread(check: Check) -> Finding {
    Finding::skipped(check, "the configuration cannot be used")
}

fn configuration(file: &Path, config: Result<&Config, &ConfigErrors>) -> Finding {
    let check = Check::Configuration;
    match config {
        Err(errors) => {
            let problems = errors.problems();
            let told: Vec<_> = problems.iter().take(PROBLEMS_TOLD).map(ToString::to_string).collect();
            let more = problems.len().saturating_sub(PROBLEMS_TOLD);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let advice = "correct it; `floorgate check` tells all problems. Credentials from the service's environment are not \
                those of your shell";
            Finding::fail(check, format!("{}{more}", told.join("; ")), advice)
        }
        Ok(config) if !config.warnings.is_empty() => {
            let told: Vec<_> = config.warnings.iter().take(PROBLEMS_TOLD).map(ToString::to_string).collect();
            Finding::warn(
                check,
                told.join("; "),
                "change what is not meant so; docs/configuration.md explains each key",
            )
        }
        Ok(config) => Finding::ok(check, format!("`{}` can be used, {} devices", file.display(), config.devices.len())),
    }
}

// ---- the machine ------------------------------------------------------------------------------------------------

/// Where the daemon keeps its state. A service's folder is not in our environment: the one with a daemon counts, then
/// one that is there.
fn state_dir(patient: &Patient<'_>, config: Option<&Config>) -> PathBuf {
    let dirs = state_dirs(patient, config);
    let with_daemon = dirs.iter().find(|dir| control::socket_path(dir).exists());
    let there = with_daemon.or_else(|| dirs.iter().find(|dir| dir.is_dir())).or_else(|| dirs.first());
    there.cloned().unwrap_or_default()
}

fn state_dirs(patient: &Patient<'_>, config: Option<&Config>) -> Vec<PathBuf> {
    let known = config.map(|config| config.store.state_dir.clone());
    config::state_dirs(patient.file, patient.environment).unwrap_or_else(|_| known.into_iter().collect())
}

async fn machine(root: PathBuf, folder: PathBuf, config: Option<&Config>) -> Vec<Finding> {
    if folder.as_os_str().is_empty() {
        return vec![unread(Check::DiskSpace), unread(Check::Mount), unread(Check::Flash)];
    }
    let quota = config.map_or(config::QUOTA_BYTES, |config| config.store.quota_bytes);
    let looked = tokio::task::spawn_blocking(move || disk::look(&root, &folder, quota)).await;
    looked.unwrap_or_else(|_| vec![Finding::skipped(Check::DiskSpace, "the disk could not be looked at")])
}

// ---- the daemon -------------------------------------------------------------------------------------------------

fn broken(cause: &str) -> AskError {
    AskError::Broken { path: PathBuf::from("control.sock"), cause: cause.to_owned() }
}

async fn ask(dirs: Vec<PathBuf>) -> daemon::Answer {
    let asked = tokio::task::spawn_blocking(move || {
        let status = control::ask(&dirs, &Query::Status)?;
        let devices = control::ask(&dirs, &Query::Devices { status: None })?;
        Ok((status, devices))
    });
    asked.await.unwrap_or_else(|_| Err(broken("it could not be asked")))
}

// ---- the network ------------------------------------------------------------------------------------------------

async fn floor_broker(config: Option<&Config>, now: floorgate_model::Timestamp) -> Vec<Finding> {
    let check = Check::FloorBroker;
    match config.map(|config| &config.floor) {
        None => vec![unread(check)],
        Some(Floor::Listen(_)) => vec![Finding::skipped(check, "devices talk to the built-in endpoint")],
        Some(Floor::Broker(broker)) => {
            broker_findings(check, settings::link("floor", broker), Depth::Session, now).await
        }
    }
}

async fn cloud_broker(config: Option<&Config>, now: floorgate_model::Timestamp) -> Vec<Finding> {
    let check = Check::CloudBroker;
    let Some(config) = config else { return vec![unread(check)] };
    let Some(cloud) = &config.cloud else {
        return vec![Finding::skipped(check, "there is no [cloud], so no command link")];
    };
    let mut link = settings::link("cloud", &cloud.broker);
    link.aws_iot = link.tls.as_ref().is_some_and(|files| files.identity.is_some());
    let depth = if probe::is_aws(&link) { Depth::Tls } else { Depth::Connect };
    broker_findings(check, link, depth, now).await
}

async fn broker_findings(
    check: Check,
    link: LinkConfig,
    depth: Depth,
    now: floorgate_model::Timestamp,
) -> Vec<Finding> {
    let found = Box::pin(probe::probe(&link, depth, BROKER_WITHIN)).await;
    brokers::judge(check, &link, depth, &found, now)
}

async fn tables(config: Option<&Config>, clock: Clock) -> Vec<Finding> {
    let check = Check::Credentials;
    let Some(config) = config else { return vec![unread(check), unread(Check::Table)] };
    let Some(tables) = &config.dynamodb else {
        return vec![Finding::skipped(check, "there is no [dynamodb], so nothing is sent upstream")];
    };
    let found = sync::dynamo::probe::probe(settings::tables(config, tables), clock).await;
    tables::judge(&tables.credentials, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_never_answers_is_a_red_line_at_the_deadline() {
        let started = Instant::now();
        let findings = on_time(started + EXAMINE_WITHIN, Check::Credentials, std::future::pending()).await;
        assert_eq!(started.elapsed(), EXAMINE_WITHIN);
        assert_eq!((findings.len(), findings[0].state, findings[0].check), (1, State::Fail, Check::Credentials));
        assert!(findings[0].advice.is_some());
    }

    #[tokio::test]
    async fn without_a_configuration_that_can_be_used_the_rest_is_told_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("floorgate.toml");
        std::fs::write(&file, "[gateway]\nid = \"a b\"\nlocation = \"x\"\n[store]\nstate_dir = \"state\"\n").unwrap();
        let environment = Environment::default();
        let errors = Config::load(&file, &environment, &crate::gateway::read_profiles).unwrap_err();
        let patient = Patient { file: &file, environment: &environment, root: folder.path().to_owned() };
        let report = examine(patient, Err(&errors)).await;
        let state = |check| report.checks.iter().find(|finding| finding.check == check).unwrap().state;
        assert_eq!(state(Check::Configuration), State::Fail);
        assert!(report.checks[0].found.contains("gateway.id"), "{report:#?}");
        assert_eq!(state(Check::DiskSpace), State::Ok, "{report:#?}");
        assert_eq!(state(Check::Daemon), State::Warn);
        assert_eq!(state(Check::Credentials), State::Skipped);
    }
}

//! `floorgate doctor`: is everything this gateway needs as it has to be, and if not, what is to be done.
//!
//! # Guarantees
//!
//! * **It ends.** The files are read first, for [`READ_WITHIN`] at most. Then all checks run side by side, each with its own
//!   limit; [`EXAMINE_WITHIN`] after its beginning it tells what it has, and what has not answered by then is a red line of
//!   its own. Everything that may block, a file that is a pipe or lies on a dying card, is done in threads that are left
//!   behind.
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

mod access;
mod brokers;
mod certificates;
mod clock;
mod daemon;
mod disk;
mod report;
mod service;
mod tables;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::clock::{Clock, Trust};
use crate::config::{self, Config, ConfigErrors, Environment, Floor, Problem};
use crate::control::{self, AskError, Query};
use crate::gateway::settings;
use crate::mqtt::link::LinkConfig;
use crate::mqtt::probe::{self, Depth};
use crate::sync;
pub use access::problems as access_problems;
pub use certificates::RENEW_WITHIN;
pub use disk::kept_read_only;
pub use report::{Check, Finding, Report, State};
pub use service::SYSTEMD_WITHIN;
use service::Unit;

/// From its beginning to its answer.
pub const EXAMINE_WITHIN: Duration = Duration::from_secs(9);
/// For the configuration and every file it names; it takes some milliseconds, on a slow card with thousands of files a second.
pub const READ_WITHIN: Duration = Duration::from_secs(4);
/// A broker's whole probe; shorter, so that it can still say how far it came.
pub const BROKER_WITHIN: Duration = Duration::from_secs(8);
/// Problems of the configuration that are told; `floorgate check` tells all.
const PROBLEMS_TOLD: usize = 5;

/// Where everything is.
#[derive(Debug, Clone)]
pub struct Patient {
    /// The main configuration file.
    pub file: PathBuf,
    /// The environment.
    pub environment: Environment,
    /// Above `proc`, `sys` and `etc`; `/` but in tests.
    pub root: PathBuf,
}

/// What of the patient's files could be read.
#[derive(Debug, Clone)]
struct Chart {
    config: Result<Arc<Config>, ConfigErrors>,
    /// Where the daemon may keep its state.
    dirs: Vec<PathBuf>,
    /// The service that runs this configuration; systemd tells it, and no file.
    unit: Option<Unit>,
}

impl Chart {
    /// Files and systemd side by side, so that neither takes the other's time.
    async fn of(patient: &Patient, deadline: Instant) -> Self {
        let (reader, file) = (patient.clone(), patient.file.clone());
        let read = timeout_at(deadline, tokio::task::spawn_blocking(move || Self::read(&reader)));
        let asked = timeout_at(deadline, tokio::task::spawn_blocking(move || Unit::of(&file)));
        let (chart, unit) = tokio::join!(read, asked);
        let chart = chart.ok().and_then(Result::ok).unwrap_or_else(|| Self::unread(patient));
        Self { unit: unit.ok().and_then(Result::ok).flatten(), ..chart }
    }

    /// Blocks.
    fn read(patient: &Patient) -> Self {
        let dirs = config::state_dirs(&patient.file, &patient.environment);
        let config = Config::load_from_outside(&patient.file, &patient.environment, &crate::gateway::read_profiles);
        let known = config.as_ref().ok().map(|config| config.store.state_dir.clone());
        Self { dirs: dirs.unwrap_or_else(|_| known.into_iter().collect()), config: config.map(Arc::new), unit: None }
    }

    /// When the files could not be read in time: which one hangs is known, and where a service keeps its state.
    fn unread(patient: &Patient) -> Self {
        let within = READ_WITHIN.as_secs();
        let file = config::being_read().unwrap_or_else(|| patient.file.clone());
        let text = format!("cannot be read within {within} s: it is a pipe, or its disk or network hangs");
        let config = Err(ConfigErrors::new(vec![Problem::new(&file, None, text)]));
        Self { config, dirs: vec![PathBuf::from(config::SERVICE_STATE_DIR)], unit: None }
    }

    fn config(&self) -> Result<&Config, &ConfigErrors> {
        self.config.as_ref().map(AsRef::as_ref)
    }

    /// Where the daemon keeps its state. A service's folder is not in our environment: the one with a daemon counts, then
    /// the service's, then one that is there. Blocks.
    fn state_dir(&self) -> PathBuf {
        let with_daemon = self.dirs.iter().find(|dir| control::socket_path(dir).exists());
        let provided = || self.dirs.iter().find(|dir| self.unit.as_ref().is_some_and(|unit| unit.provides(dir)));
        let there = || self.dirs.iter().find(|dir| dir.is_dir());
        with_daemon.or_else(provided).or_else(there).or_else(|| self.dirs.first()).cloned().unwrap_or_default()
    }
}

/// Looks at everything. With the report: whether the configuration can be used.
///
/// Blocking calls that have not come back by then (a name service, a network disk) are left behind: the caller's runtime
/// must not wait for them.
pub async fn examine(patient: Patient) -> (Report, bool) {
    let started = Instant::now();
    let deadline = started + EXAMINE_WITHIN;
    let chart = Chart::of(&patient, started + READ_WITHIN).await;
    let config = chart.config();
    let rule = config.map_or(Trust::Auto, |config| config.clock_trust);
    let clock = Clock::system(rule);
    let now = clock.now();
    let (machine, files, answer, floor, cloud, upstream) = tokio::join!(
        on_time(deadline, Check::DiskSpace, machine(patient.root.clone(), chart.clone())),
        on_time(
            deadline,
            Check::Certificate,
            files(patient.root.clone(), chart.config.clone().ok(), chart.unit.clone(), now)
        ),
        timeout_at(deadline, ask(chart.clone())),
        on_time(deadline, Check::FloorBroker, floor_broker(config.ok(), now)),
        on_time(deadline, Check::CloudBroker, cloud_broker(config.ok(), now)),
        on_time(deadline, Check::Credentials, tables(config.ok(), clock.clone())),
    );
    let hung = || (PathBuf::new(), Err(broken(&format!("no answer within {} s", EXAMINE_WITHIN.as_secs()))));
    let (folder, answer) = answer.unwrap_or_else(|_| hung());
    let mut findings = vec![configuration(&patient.file, config)];
    // After the tables: their answers tell the time too.
    findings.push(clock::judge(rule, &clock.state(), answer.as_ref().ok().map(|(status, _)| &status.clock)));
    findings.extend(daemon::judge(&answer, now, chart.unit.as_ref(), &folder));
    findings.extend([machine, files, floor, cloud, upstream].into_iter().flatten());
    (Report::new(findings, started.elapsed()), config.is_ok())
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

async fn machine(root: PathBuf, chart: Chart) -> Vec<Finding> {
    if chart.dirs.is_empty() {
        return vec![unread(Check::DiskSpace), unread(Check::Mount), unread(Check::Flash)];
    }
    let quota = chart.config().map_or(config::QUOTA_BYTES, |config| config.store.quota_bytes);
    let looked =
        tokio::task::spawn_blocking(move || disk::look(&root, &chart.state_dir(), quota, chart.unit.as_ref())).await;
    looked.unwrap_or_else(|_| vec![Finding::skipped(Check::DiskSpace, "the disk could not be looked at")])
}

/// The files that the configuration names: whether certificates are good, and whether the service may read all of them.
async fn files(
    root: PathBuf,
    config: Option<Arc<Config>>,
    unit: Option<Unit>,
    now: floorgate_model::Timestamp,
) -> Vec<Finding> {
    let Some(config) = config else { return vec![unread(Check::Access), unread(Check::Certificate)] };
    let looked = tokio::task::spawn_blocking(move || {
        let mut findings = access::look(&root, &config, unit.as_ref());
        findings.extend(certificates::look(&config, now));
        findings
    });
    looked.await.unwrap_or_else(|_| vec![Finding::skipped(Check::Certificate, "the files could not be looked at")])
}

// ---- the daemon -------------------------------------------------------------------------------------------------

fn broken(cause: &str) -> AskError {
    AskError::Broken { path: PathBuf::from("control.sock"), cause: cause.to_owned() }
}

/// What it says, and where its state is.
async fn ask(chart: Chart) -> (PathBuf, daemon::Answer) {
    let asked = tokio::task::spawn_blocking(move || {
        let both = || {
            let status = control::ask(&chart.dirs, &Query::Status)?;
            Ok((status, control::ask(&chart.dirs, &Query::Devices { status: None })?))
        };
        let answer = both();
        (chart.state_dir(), answer)
    });
    asked.await.unwrap_or_else(|_| (PathBuf::new(), Err(broken("it could not be asked"))))
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
        let patient = Patient { file, environment, root: folder.path().to_owned() };
        let (report, usable) = examine(patient).await;
        assert!(!usable);
        let state = |check| report.checks.iter().find(|finding| finding.check == check).unwrap().state;
        assert_eq!(state(Check::Configuration), State::Fail);
        assert!(report.checks[0].found.contains("gateway.id"), "{report:#?}");
        assert_eq!(state(Check::DiskSpace), State::Ok, "{report:#?}");
        assert_eq!(state(Check::Daemon), State::Warn);
        assert_eq!(state(Check::Credentials), State::Skipped);
    }
}

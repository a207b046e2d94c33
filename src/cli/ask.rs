//! The tasks that ask a running daemon.

mod show;

use std::path::{Path, PathBuf};

use floorgate_model::{DeviceId, DeviceStatus, ExecutionRecord, ExecutionStatus, Reason};
use serde::de::DeserializeOwned;

use super::arguments::Order;
use super::{CliError, say, say_json};
use crate::clock::{Clock, Trust};
use crate::config::{self, Environment};
use crate::control::{self, DeviceReport, Query, RefusedFor, ReloadReport, StatusReport};

fn ask<T: DeserializeOwned>(file: &Path, environment: &Environment, query: &Query) -> Result<T, CliError> {
    Ok(control::ask(&state_dirs(file, environment)?, query)?)
}

/// Where the daemon may be. Who may not read where has made no mistake in the configuration.
fn state_dirs(file: &Path, environment: &Environment) -> Result<Vec<PathBuf>, CliError> {
    config::state_dirs(file, environment).map_err(|errors| {
        let denied = errors.problems().iter().find(|problem| problem.denied);
        match denied {
            Some(problem) => {
                CliError::Failed(format!("{problem}; ask as root (`sudo floorgate …`) or as the service's user"))
            }
            None => errors.into(),
        }
    })
}

fn now() -> floorgate_model::Timestamp {
    Clock::system(Trust::Always).now()
}

pub(super) fn status(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    let report: StatusReport = ask(file, environment, &Query::Status)?;
    if json { say_json(&report) } else { say(&show::status(&report, now())) }
}

pub(super) fn devices(
    file: &Path,
    environment: &Environment,
    json: bool,
    status: Option<DeviceStatus>,
) -> Result<(), CliError> {
    let devices: Vec<DeviceReport> = ask(file, environment, &Query::Devices { status })?;
    if json { say_json(&devices) } else { say(&show::devices(&devices, now())) }
}

pub(super) fn device(file: &Path, environment: &Environment, json: bool, id: DeviceId) -> Result<(), CliError> {
    let device: DeviceReport = ask(file, environment, &Query::Device { id })?;
    if json { say_json(&device) } else { say(&show::device(&device, now())) }
}

pub(super) fn commands(
    file: &Path,
    environment: &Environment,
    json: bool,
    device: Option<DeviceId>,
    limit: u16,
) -> Result<(), CliError> {
    let query = Query::Commands { device, limit: limit.into() };
    let records: Vec<ExecutionRecord> = ask(file, environment, &query)?;
    if json { say_json(&records) } else { say(&show::commands(&records, now())) }
}

pub(super) fn send(file: &Path, environment: &Environment, json: bool, order: Order) -> Result<(), CliError> {
    let mut parameters = serde_json::Map::new();
    for (key, value) in order.parameters {
        if parameters.insert(key.clone(), value).is_some() {
            return Err(CliError::Usage(format!("parameter {key:?} is given twice")));
        }
    }
    let query = Query::Send {
        device: order.id,
        command: order.command,
        parameters,
        issuer: order.issuer,
        dry_run: order.dry_run,
        wait_seconds: order.wait,
    };
    let record: ExecutionRecord = ask(file, environment, &query)?;
    if json {
        say_json(&record)?;
    } else {
        say(&show::outcome(&record, order.wait))?;
    }
    let fine = record.status == ExecutionStatus::Succeeded || record.reason == Some(Reason::DryRunOk);
    if fine { Ok(()) } else { Err(CliError::Told) }
}

pub(super) fn reload(file: &Path, environment: &Environment, json: bool) -> Result<(), CliError> {
    let report: ReloadReport = ask(file, environment, &Query::Reload)?;
    if json {
        say_json(&report)?;
    } else if report.applied {
        say(&show::applied(&report))?;
    }
    let configuration = report.refused_for == Some(RefusedFor::Configuration);
    match (report.applied, json, configuration) {
        (true, ..) => Ok(()),
        (false, true, true) => Err(CliError::ToldConfiguration),
        (false, true, false) => Err(CliError::Told),
        (false, false, true) => Err(CliError::Configuration(show::refused(&report))),
        (false, false, false) => Err(CliError::Failed(show::refused(&report))),
    }
}

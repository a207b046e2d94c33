//! The command line: arguments in, text or JSON out, and an exit code that scripts can rely on.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done; for `send`: the command succeeded |
//! | 1 | it failed: no daemon, a refused query, a command that did not succeed |
//! | 64 | the arguments cannot be understood |
//! | 78 | another try changes nothing: a configuration, or state of a newer floorgate, or a sandbox, that cannot be worked with |
//!
//! `run`, `check`, `provision` and `doctor` read the whole configuration. All others talk to a running daemon over its control
//! socket and read only where that is, so that they work without the daemon's certificates and environment. Answers go
//! to standard output, everything else to standard error; a reader that closes the pipe ends the output quietly.
//!
//! `doctor` answers also when the configuration cannot be used, and tells by 78 that it cannot.
//!
//! With `--json` an error is one line on standard error, `{"error": {"code", "message"}}`, `code` being `usage`,
//! `configuration` or `failed`; a warning of `check` is `{"warning": …}`.

mod arguments;
mod ask;
mod daemon;
mod doctor;
mod place;
mod table;
pub(crate) mod words;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::config::{ConfigErrors, Environment};
use crate::control::AskError;
use crate::gateway::RunError;
use arguments::{Arguments, Task};

/// It failed.
pub const EXIT_FAILURE: u8 = 1;
/// The arguments cannot be understood (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;
/// The configuration cannot be used (`EX_CONFIG`).
pub const EXIT_CONFIGURATION: u8 = 78;

/// Why a task did not succeed; knows its exit code.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Configuration(String),
    #[error("{0}")]
    Failed(String),
    /// The answer is out and says it all.
    #[error("not succeeded")]
    Told,
    /// The same, and it is the configuration's fault.
    #[error("not succeeded")]
    ToldConfiguration,
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Configuration(_) | Self::ToldConfiguration => EXIT_CONFIGURATION,
            Self::Failed(_) | Self::Told => EXIT_FAILURE,
        }
    }

    /// For programs.
    fn code(&self) -> &'static str {
        match self {
            Self::Usage(_) => "usage",
            Self::Configuration(_) | Self::ToldConfiguration => "configuration",
            Self::Failed(_) | Self::Told => "failed",
        }
    }
}

impl From<ConfigErrors> for CliError {
    fn from(errors: ConfigErrors) -> Self {
        Self::Configuration(errors.to_string())
    }
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Configuration(text) => Self::Configuration(text),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<AskError> for CliError {
    fn from(error: AskError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What can be typed, for those who describe it: manual pages and shell completions are made from it
/// (`examples/manual.rs`).
#[must_use]
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Does what the arguments of this process ask for.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if error.use_stderr() => {
            // What could not be understood may still say how it wants to be answered.
            if std::env::args_os().any(|argument| argument == "--json") {
                complain(&CliError::Usage(error.to_string().trim_end().to_owned()), true);
            } else {
                let _ = error.print();
            }
            return ExitCode::from(EXIT_USAGE);
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    let json = arguments.json;
    match perform(arguments, &Environment::of_process()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CliError::Told | CliError::ToldConfiguration) {
                complain(&error, json);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn perform(arguments: Arguments, environment: &Environment) -> Result<(), CliError> {
    let Arguments { config, json, task } = arguments;
    match task {
        Task::Run { log_level } => {
            place::writable(&config, environment)?;
            daemon::run(&config, environment, log_level.as_deref())
        }
        Task::Check(how) => {
            let config = daemon::check(&config, environment, json, how)?;
            place::readable_by_the_service(&config)
        }
        Task::Reload => ask::reload(&config, environment, json),
        Task::Provision => daemon::provision(&config, environment, json),
        Task::Doctor => doctor::doctor(&config, environment, json),
        Task::Status => ask::status(&config, environment, json),
        Task::Devices { status } => ask::devices(&config, environment, json, status),
        Task::Device { id } => ask::device(&config, environment, json, id),
        Task::Commands { device, limit } => ask::commands(&config, environment, json, device, limit),
        Task::Send(order) => ask::send(&config, environment, json, order),
    }
}

/// Writes an answer. A reader that has seen enough is no failure.
fn say(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

fn say_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|error| CliError::Failed(format!("the answer cannot be written as JSON: {error}")))?;
    say(&format!("{text}\n"))
}

/// Tells what went wrong; nobody is left to tell if that fails.
fn complain(error: &CliError, json: bool) {
    let mut to = std::io::stderr();
    let _ = if json {
        let object = serde_json::json!({"error": {"code": error.code(), "message": error.to_string()}});
        writeln!(to, "{object}")
    } else {
        writeln!(to, "floorgate: {error}")
    };
}

/// Tells what is not wrong, but likely not meant.
fn warn(warning: &impl std::fmt::Display, json: bool) {
    let mut to = std::io::stderr();
    let _ = if json {
        writeln!(to, "{}", serde_json::json!({"warning": warning.to_string()}))
    } else {
        writeln!(to, "floorgate: warning: {warning}")
    };
}

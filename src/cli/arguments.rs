//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use floorgate_model::{DeviceId, DeviceStatus};
use serde_json::Value;

use crate::config::DEFAULT_FILE;

/// Edge gateway between a factory's devices and an agent's cloud tables.
#[derive(Debug, Parser)]
#[command(name = "floorgate", version, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// The configuration.
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub(super) config: PathBuf,
    /// Answer in JSON, errors included.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) task: Task,
}

#[derive(Debug, Subcommand)]
pub(super) enum Task {
    /// Run the gateway.
    Run {
        /// What to log: error, warn, info, debug, trace, or a list of target=level [else: $FLOORGATE_LOG, info].
        #[arg(long, value_name = "LEVEL")]
        log_level: Option<String>,
    },
    /// Check the configuration and print what it amounts to, secrets left out.
    ///
    /// A file under /run/credentials that systemd shows to the service alone is not looked at, and said so. The exit code
    /// is 78 also if the state was written by a newer floorgate.
    Check(Check),
    /// Have the running gateway read its devices and profiles again, and say what came of it.
    ///
    /// All or nothing, as on SIGHUP: a reload that is refused leaves everything as it was. The exit code is then 78 if the
    /// configuration is to blame, and 1 if the disk takes no writes; 1 also if nobody answers within a minute.
    Reload,
    /// Create the DynamoDB tables that are not there.
    Provision,
    /// Look at everything the gateway needs, and say what to do about what is not as it should be.
    ///
    /// Takes 10 s at most. The exit code is 1 if anything failed.
    Doctor,
    /// Show how the running gateway is.
    Status,
    /// List the attached devices.
    Devices {
        /// Only those that show this status: online, offline, warning, rebooting, maintenance.
        #[arg(long)]
        status: Option<DeviceStatus>,
    },
    /// Show one device.
    Device {
        /// Its id.
        id: DeviceId,
    },
    /// List commands, newest first.
    Commands {
        /// Only this device's.
        #[arg(long, value_name = "ID")]
        device: Option<DeviceId>,
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
        limit: u16,
    },
    /// Send a command to a device and wait for its outcome.
    ///
    /// It goes the way of every command: checked, journalled, executed at most once. The exit code is 0 only if it
    /// succeeded.
    Send(Order),
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Print nothing but what is wrong.
    #[arg(long)]
    pub(super) quiet: bool,
    /// Take for granted what is left to AWS_* variables: for whoever checks for a service that has its own.
    #[arg(long)]
    pub(super) assume_aws_environment: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Order {
    /// The device.
    pub(super) id: DeviceId,
    /// recalibrate, reboot, update_config or set_status.
    pub(super) command: String,
    /// Parameters; a value is a JSON number, true, false, null or quoted text, else plain text.
    #[arg(value_name = "KEY=VALUE", value_parser = parameter)]
    pub(super) parameters: Vec<(String, Value)>,
    /// How long to wait for its end.
    #[arg(long, value_name = "SECONDS", default_value_t = 330, value_parser = clap::value_parser!(u64).range(0..=3600))]
    pub(super) wait: u64,
    /// Run every check, touch nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Who asks [else: local:UID].
    #[arg(long, value_name = "NAME")]
    pub(super) issuer: Option<String>,
}

/// `key=value`, the value a JSON scalar if it is one, else text.
fn parameter(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    if key.is_empty() {
        return Err("the key is missing before `=`".to_owned());
    }
    let scalar = serde_json::from_str(value).ok().filter(|value: &Value| !value.is_object() && !value.is_array());
    Ok((key.to_owned(), scalar.unwrap_or_else(|| Value::from(value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use serde_json::json;

    #[test]
    fn the_arguments_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn values_are_json_scalars_or_text() {
        for (text, value) in [
            ("k=145.5", json!(145.5)),
            ("k=10", json!(10)),
            ("k=true", json!(true)),
            ("k=\"10\"", json!("10")),
            ("k=maintenance", json!("maintenance")),
            ("k=a=b", json!("a=b")),
            ("k=", json!("")),
            ("k=[1]", json!("[1]")),
            ("k={}", json!("{}")),
        ] {
            assert_eq!(parameter(text).unwrap(), ("k".to_owned(), value), "{text}");
        }
        assert!(parameter("k").is_err());
        assert!(parameter("=1").is_err());
    }
}

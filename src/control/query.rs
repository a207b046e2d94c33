//! What can be asked, and how a refusal looks.

use std::time::Duration;

use floorgate_model::{DeviceId, DeviceStatus};
use serde_json::{Map, Value};

use super::{RELOAD_WAIT_MAX, SEND_WAIT_MAX};

/// One question to the daemon.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "query", rename_all = "snake_case", deny_unknown_fields)]
pub enum Query {
    /// How the gateway is; answered with a [`super::StatusReport`].
    Status,
    /// All devices, or those of one status; answered with a list of [`super::DeviceReport`].
    Devices {
        /// Only devices that show this status.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<DeviceStatus>,
    },
    /// One device; answered with a [`super::DeviceReport`].
    Device {
        /// Which.
        id: DeviceId,
    },
    /// Executions, newest first; answered with a list of [`floorgate_model::ExecutionRecord`].
    Commands {
        /// Only this device's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        device: Option<DeviceId>,
        /// At most so many.
        limit: usize,
    },
    /// A local operator's command; answered with its [`floorgate_model::ExecutionRecord`] once it is terminal, or as it
    /// stands after the wait.
    Send {
        /// For which device.
        device: DeviceId,
        /// The command's name; judged by the gateway, not here.
        command: String,
        /// Its parameters.
        #[serde(default)]
        parameters: Map<String, Value>,
        /// Who asks; the server puts `local:<uid>` where nobody is named.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        issuer: Option<String>,
        /// Run every check, touch nothing.
        #[serde(default)]
        dry_run: bool,
        /// How long to wait for its end, seconds; at most [`SEND_WAIT_MAX`].
        #[serde(default)]
        wait_seconds: u64,
    },
    /// Read devices and profiles again, as on SIGHUP; answered with a [`super::ReloadReport`] once that is done.
    Reload,
}

impl Query {
    /// How long its answer may wait for something to happen.
    #[must_use]
    pub fn wait(&self) -> Duration {
        match self {
            Self::Send { wait_seconds, .. } => Duration::from_secs(*wait_seconds).min(SEND_WAIT_MAX),
            Self::Reload => RELOAD_WAIT_MAX,
            Self::Status | Self::Devices { .. } | Self::Device { .. } | Self::Commands { .. } => Duration::ZERO,
        }
    }
}

/// Why a query has no answer, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The question cannot be understood.
    Invalid,
    /// No such device.
    NotFound,
    /// The daemon cannot answer now.
    Unavailable,
    /// Too many clients.
    Busy,
}

/// Why a query has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{message}")]
pub struct ControlError {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl ControlError {
    /// An error.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

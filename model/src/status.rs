//! What a device is seen to be, and what an administrator says it is.

use std::fmt;
use std::str::FromStr;

/// The `status` attribute of a device, as the agent's tools filter on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceStatus {
    /// Reports in time, every reading within its limit.
    Online,
    /// Silent for max(3 × sample interval, 15 s), or its last will arrived.
    Offline,
    /// A reading exceeds its `alert_threshold_*`.
    Warning,
    /// A reboot command is running.
    Rebooting,
    /// Taken out of service by an administrator; hides the observed status.
    Maintenance,
}

/// The administrative overlay that `set_status` sets and removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminState {
    /// No overlay: the observed status shows.
    #[default]
    InService,
    /// Out of service: `maintenance` shows, and only `set_status` is accepted.
    Maintenance,
}

/// A word that is not a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a status; allowed are online, offline, warning, rebooting, maintenance")]
pub struct UnknownStatus(pub String);

impl DeviceStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Online, Self::Offline, Self::Warning, Self::Rebooting, Self::Maintenance];

    /// The word used in tables, topics and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Warning => "warning",
            Self::Rebooting => "rebooting",
            Self::Maintenance => "maintenance",
        }
    }
}

impl AdminState {
    /// The word used in tables and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InService => "in_service",
            Self::Maintenance => "maintenance",
        }
    }
}

impl FromStr for DeviceStatus {
    type Err = UnknownStatus;
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| UnknownStatus(text.chars().take(64).collect()))
    }
}

impl fmt::Display for DeviceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

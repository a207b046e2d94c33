//! Commands: the vocabulary, and one command as it was asked for.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::id::{CommandId, DeviceId};
use crate::timestamp::Timestamp;

/// Largest command payload, bytes (contract §3, hard).
pub const PAYLOAD_MAX: usize = 8 * 1024;
/// Most parameters in one command (contract §3, hard).
pub const PARAMETERS_MAX: usize = 32;
/// No command lives longer than this, whatever it says of itself (contract §5).
pub const LIFETIME_MAX: Duration = Duration::from_secs(3_600);
/// A command may come from a clock this much ahead of ours.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(60);

/// What can be asked of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandName {
    /// Adjust or check the measurement, as the device's profile defines it.
    Recalibrate,
    /// Restart the device.
    Reboot,
    /// Change configuration values that the profile opens to it.
    UpdateConfig,
    /// Set or remove the administrative overlay; never reaches the device.
    SetStatus,
}

/// A word that is not a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a command; known are recalibrate, reboot, update_config, set_status")]
pub struct UnknownCommand(pub String);

impl CommandName {
    /// Every command.
    pub const ALL: [Self; 4] = [Self::Recalibrate, Self::Reboot, Self::UpdateConfig, Self::SetStatus];

    /// The word used in payloads and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recalibrate => "recalibrate",
            Self::Reboot => "reboot",
            Self::UpdateConfig => "update_config",
            Self::SetStatus => "set_status",
        }
    }

    /// How long a command without `expires_at` stays valid: short where a late run surprises people at the machine.
    #[must_use]
    pub fn default_lifetime(self) -> Duration {
        match self {
            Self::Recalibrate | Self::Reboot => Duration::from_secs(120),
            Self::UpdateConfig | Self::SetStatus => Duration::from_secs(900),
        }
    }

    /// How long the device has to finish, unless its profile says otherwise; `set_status` is done locally at once.
    #[must_use]
    pub fn default_timeout(self) -> Duration {
        match self {
            Self::Recalibrate => Duration::from_secs(300),
            Self::Reboot => Duration::from_secs(180),
            Self::UpdateConfig => Duration::from_secs(30),
            Self::SetStatus => Duration::from_secs(5),
        }
    }
}

impl FromStr for CommandName {
    type Err = UnknownCommand;
    fn from_str(text: &str) -> Result<Self, UnknownCommand> {
        let found = Self::ALL.into_iter().find(|name| name.as_str() == text);
        found.ok_or_else(|| UnknownCommand(text.chars().take(64).collect()))
    }
}

impl fmt::Display for CommandName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A command as its sender asked for it: well-formed, not yet judged. The command's name may still be unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The device it is for.
    pub device_id: DeviceId,
    /// The name as sent; [`CommandName`] once it is known to be one.
    pub command: String,
    /// The parameters as sent; empty when the payload has none or `null`.
    pub parameters: Map<String, Value>,
    /// The sender's time. The seed always sends one; a local operator's command gets the gateway's.
    pub issued_at: Timestamp,
    /// The id, given or derived.
    pub command_id: CommandId,
    /// When it must no longer be executed: as given, else by [`CommandName::default_lifetime`]; never later than
    /// [`LIFETIME_MAX`] after `issued_at`.
    pub expires_at: Timestamp,
    /// Who asked, if the sender said so.
    pub issuer: Option<String>,
    /// Run every check, touch nothing.
    pub dry_run: bool,
}

impl Request {
    /// The expiry that counts: the given one or the command's default lifetime, cut at [`LIFETIME_MAX`].
    #[must_use]
    pub fn expiry(command: &str, issued_at: Timestamp, given: Option<Timestamp>) -> Timestamp {
        let lifetime = command.parse().map_or(LIFETIME_MAX, CommandName::default_lifetime);
        let cap = issued_at.saturating_add(LIFETIME_MAX);
        given.unwrap_or_else(|| issued_at.saturating_add(lifetime)).min(cap)
    }

    /// The id of a command that came without one: hex SHA-256 of device, command, canonical parameters and time as
    /// sent. A redelivery has identical bytes and so the same id; a second call of the tool has another time.
    #[must_use]
    pub fn derived_id(device: &DeviceId, command: &str, parameters: &Map<String, Value>, timestamp: &str) -> CommandId {
        let mut hash = Sha256::new();
        // The lengths keep the fields apart: ("ab","c") and ("a","bc") differ.
        for field in [device.as_str(), command, &canonical(parameters), timestamp] {
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field.as_bytes());
        }
        let mut hex = String::with_capacity(64);
        for byte in hash.finalize() {
            let digit = |n: u8| char::from(if n < 10 { b'0' + n } else { b'a' + n - 10 });
            hex.push(digit(byte >> 4));
            hex.push(digit(byte & 15));
        }
        #[expect(clippy::expect_used, reason = "64 hex digits fit the pattern of a command id")]
        CommandId::new(&hex).expect("64 hex digits are a command id")
    }
}

/// JSON with keys in order and no white space: equal content, equal text.
#[must_use]
pub fn canonical(parameters: &Map<String, Value>) -> String {
    // Any package of a build may turn on serde_json's `preserve_order`, for all of them: objects then keep the sender's order.
    let mut sorted = Value::Object(parameters.clone());
    sorted.sort_all_objects();
    sorted.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parameters(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_redelivery_has_the_same_id_and_anything_else_another() {
        let device = DeviceId::new("PRESS-1").unwrap();
        let id = |d: &DeviceId, c, p, t| Request::derived_id(d, c, &parameters(p), t);
        let first = id(&device, "reboot", json!({"b": 1, "a": {"y": 1, "x": 2}}), "2026-11-22T10:00:00+00:00");
        assert_eq!(first, id(&device, "reboot", json!({"a": {"x": 2, "y": 1}, "b": 1}), "2026-11-22T10:00:00+00:00"));
        assert_ne!(first, id(&device, "reboot", json!({"b": 1, "a": {"y": 1, "x": 2}}), "2026-11-22T10:00:01+00:00"));
        assert_ne!(first, id(&device, "recalibrate", json!({}), "2026-11-22T10:00:00+00:00"));
        assert_eq!(first.as_str().len(), 64);
    }

    #[test]
    fn expiry_is_the_default_or_the_given_one_and_never_over_an_hour() {
        let t = Timestamp::from_millis(1_000_000_000_000);
        let plus = |s| t.saturating_add(Duration::from_secs(s));
        assert_eq!(Request::expiry("reboot", t, None), plus(120));
        assert_eq!(Request::expiry("update_config", t, None), plus(900));
        assert_eq!(Request::expiry("reboot", t, Some(plus(10))), plus(10));
        assert_eq!(Request::expiry("reboot", t, Some(plus(86_400))), plus(3_600));
    }
}

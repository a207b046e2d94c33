//! What each type of device allows: commands, their parameters with types and ranges, timeouts.
//!
//! A profile allows; what it does not name is refused. Safety keys (`emergency_shutoff`, `control_mode`,
//! `max_position_pct`), the calibration date and connection limits appear in no built-in profile, so no command
//! writes them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::command::CommandName;
use crate::reading::Reading;
use crate::status::DeviceStatus;

/// What one type of device allows.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// The `device_type` it is for.
    pub device_type: String,
    /// Allowed commands; any other is `UNSUPPORTED`.
    pub commands: BTreeMap<CommandName, CommandSpec>,
    /// Part of a threshold by which a reading must fall below it before a warning ends, percent.
    pub deadband_percent: f64,
    /// How long a reading must stay below before a warning ends.
    pub warning_off_delay: Duration,
}

/// One allowed command.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSpec {
    /// Parameters it may have.
    pub parameters: BTreeMap<String, ParameterSpec>,
    /// At least one parameter has to be there (an empty `update_config` asks for nothing).
    pub needs_a_parameter: bool,
    /// How long the device has to finish.
    pub timeout: Duration,
    /// Doing it twice is the same as once, so an interrupted execution may be sent again.
    pub idempotent: bool,
}

/// One parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// Type and range.
    pub kind: ParameterKind,
    /// It must be there.
    pub required: bool,
}

/// Type and range of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum ParameterKind {
    /// A number, or a text that is one, within the range, ends included.
    Number {
        /// Least value.
        min: f64,
        /// Greatest value.
        max: f64,
    },
    /// A whole number, or a text that is one, within the range, ends included.
    Integer {
        /// Least value.
        min: i64,
        /// Greatest value.
        max: i64,
    },
    /// One of these words.
    Choice(Vec<String>),
    /// `true` or `false`, or a text that says so.
    Boolean,
}

/// Why parameters do not fit, in words for the sender.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A name the profile does not open.
    #[error("parameter {name:?} is not writable on a {device_type}; allowed are {allowed}")]
    Unknown {
        /// The name sent.
        name: String,
        /// The device's type.
        device_type: String,
        /// The names that are allowed.
        allowed: String,
    },
    /// A required one is not there.
    #[error("parameter {0:?} is missing")]
    Missing(String),
    /// None at all where one is needed.
    #[error("no parameter is given; allowed are {0}")]
    Empty(String),
    /// Wrong type or out of range.
    #[error("parameter {name:?} must be {wanted}, not {found}")]
    Value {
        /// The parameter.
        name: String,
        /// Type and range that are allowed.
        wanted: String,
        /// What was sent, shortened.
        found: String,
    },
}

impl ParameterKind {
    /// The value as the device receives it, in its own type; `None` if it does not fit.
    #[must_use]
    pub fn read(&self, value: &Value) -> Option<Value> {
        let number = || match value {
            Value::Number(n) => n.as_f64().and_then(Reading::new),
            Value::String(text) => Reading::parse(text),
            _ => None,
        };
        match self {
            Self::Number { min, max } => {
                let n = number()?;
                // As a person writes it: a whole number stays one (145, not 145.0).
                (*min..=*max).contains(&n.value()).then(|| serde_json::from_str(&n.to_string()).ok()).flatten()
            }
            Self::Integer { min, max } => {
                let n = number()?;
                let whole: i64 = n.to_string().parse().ok()?;
                (*min..=*max).contains(&whole).then(|| Value::from(whole))
            }
            Self::Choice(words) => {
                let text = value.as_str()?;
                words.iter().any(|word| word == text).then(|| value.clone())
            }
            Self::Boolean => match value {
                Value::Bool(_) => Some(value.clone()),
                Value::String(text) => text.parse::<bool>().ok().map(Value::from),
                _ => None,
            },
        }
    }

    fn wanted(&self) -> String {
        match self {
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Boolean => "true or false".to_owned(),
        }
    }
}

impl CommandSpec {
    /// Checks parameters and brings them into the device's types.
    ///
    /// # Errors
    /// [`ParameterError`] for the first one that does not fit.
    pub fn check(&self, device_type: &str, given: &Map<String, Value>) -> Result<Map<String, Value>, ParameterError> {
        let allowed = || self.parameters.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let allowed = || Some(allowed()).filter(|names| !names.is_empty()).unwrap_or_else(|| "none".to_owned());
        if self.needs_a_parameter && given.is_empty() {
            return Err(ParameterError::Empty(allowed()));
        }
        if let Some((name, _)) = self.parameters.iter().find(|(name, spec)| spec.required && !given.contains_key(*name))
        {
            return Err(ParameterError::Missing(name.clone()));
        }
        let mut checked = Map::new();
        for (name, value) in given {
            let Some(spec) = self.parameters.get(name) else {
                return Err(ParameterError::Unknown {
                    name: shortened(name),
                    device_type: device_type.to_owned(),
                    allowed: allowed(),
                });
            };
            let Some(value) = spec.kind.read(value) else {
                let found = shortened(&value.to_string());
                return Err(ParameterError::Value { name: name.clone(), wanted: spec.kind.wanted(), found });
            };
            checked.insert(name.clone(), value);
        }
        Ok(checked)
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(57).chain("…".chars()).collect() }
}

/// Device types of the seed, for which profiles are built in.
pub const BUILT_IN_TYPES: [&str; 5] =
    ["pressure_sensor", "temperature_sensor", "vibration_sensor", "valve_actuator", "edge_gateway"];

impl Profile {
    /// The built-in profile of a type; `None` for a type nobody described.
    #[must_use]
    pub fn built_in(device_type: &str) -> Option<Self> {
        let sample_rate = || ("sample_rate_seconds", ParameterKind::Integer { min: 1, max: 3_600 });
        let sensor = |threshold: &str, min, max, deadband_percent, off_seconds| {
            let threshold = (threshold, ParameterKind::Number { min, max });
            Self::of(device_type, true, [sample_rate(), threshold], deadband_percent, off_seconds)
        };
        let profile = match device_type {
            "pressure_sensor" => sensor("alert_threshold_psi", 0.0, 10_000.0, 2.0, 15),
            "temperature_sensor" => sensor("alert_threshold_c", -100.0, 1_000.0, 1.0, 60),
            "vibration_sensor" => sensor("alert_threshold_mm_s", 0.0, 1_000.0, 2.0, 15),
            // Position limits, shut-off and control mode are set at the valve, never from afar.
            "valve_actuator" => Self::of(device_type, false, [sample_rate()], 2.0, 15),
            "edge_gateway" => {
                let interval = ParameterKind::Integer { min: 10, max: 3_600 };
                Self::of(device_type, false, [("telemetry_batch_interval_seconds", interval)], 2.0, 15)
            }
            _ => return None,
        };
        Some(profile)
    }

    fn of<const N: usize>(
        device_type: &str,
        recalibrates: bool,
        keys: [(&str, ParameterKind); N],
        deadband_percent: f64,
        off_seconds: u64,
    ) -> Self {
        let spec = |name: CommandName, parameters: BTreeMap<String, ParameterSpec>, idempotent| {
            let needs_a_parameter = name == CommandName::UpdateConfig;
            (name, CommandSpec { parameters, needs_a_parameter, timeout: name.default_timeout(), idempotent })
        };
        let optional = |(name, kind): (&str, _)| (name.to_owned(), ParameterSpec { kind, required: false });
        // Only the overlay can be set: `online` removes it, observed statuses are not for setting.
        let words = [DeviceStatus::Maintenance, DeviceStatus::Online].map(|status| status.as_str().to_owned());
        let status = ParameterSpec { kind: ParameterKind::Choice(words.to_vec()), required: true };
        let mut commands = BTreeMap::from([
            spec(CommandName::Reboot, BTreeMap::new(), false),
            spec(CommandName::UpdateConfig, keys.into_iter().map(optional).collect(), true),
            spec(CommandName::SetStatus, BTreeMap::from([("status".to_owned(), status)]), true),
        ]);
        if recalibrates {
            let reference = ("reference_value", ParameterKind::Number { min: -1e6, max: 1e6 });
            commands.extend([spec(CommandName::Recalibrate, BTreeMap::from([optional(reference)]), false)]);
        }
        let warning_off_delay = Duration::from_secs(off_seconds);
        Self { device_type: device_type.to_owned(), commands, deadband_percent, warning_off_delay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(device_type: &str, command: CommandName, given: Value) -> Result<Value, ParameterError> {
        let profile = Profile::built_in(device_type).unwrap();
        profile.commands[&command].check(device_type, given.as_object().unwrap()).map(Value::Object)
    }

    #[test]
    fn parameters_arrive_in_the_devices_types() {
        let checked = check(
            "pressure_sensor",
            CommandName::UpdateConfig,
            json!({"alert_threshold_psi": "145.5", "sample_rate_seconds": 10.0}),
        );
        assert_eq!(checked.unwrap(), json!({"alert_threshold_psi": 145.5, "sample_rate_seconds": 10}));
        let whole = check("pressure_sensor", CommandName::UpdateConfig, json!({"alert_threshold_psi": "145"}));
        assert_eq!(whole.unwrap().to_string(), r#"{"alert_threshold_psi":145}"#);
    }

    #[test]
    fn safety_keys_are_written_by_no_command() {
        for device_type in BUILT_IN_TYPES {
            for key in ["emergency_shutoff", "control_mode", "max_position_pct", "calibration_date", "max_connections"]
            {
                let result = check(device_type, CommandName::UpdateConfig, json!({ key: "x" }));
                assert!(matches!(result, Err(ParameterError::Unknown { .. })), "{device_type} {key}");
            }
        }
    }

    #[test]
    fn what_is_out_of_range_or_of_another_type_is_named() {
        for bad in
            [json!(0), json!(3601), json!(1.5), json!("fast"), json!(null), json!([5]), json!("NaN"), json!(true)]
        {
            let result = check("pressure_sensor", CommandName::UpdateConfig, json!({"sample_rate_seconds": bad}));
            assert!(matches!(result, Err(ParameterError::Value { .. })), "{result:?}");
        }
        assert!(matches!(check("valve_actuator", CommandName::UpdateConfig, json!({})), Err(ParameterError::Empty(_))));
    }

    #[test]
    fn only_the_overlay_can_be_set_as_status() {
        for word in ["offline", "warning", "rebooting", "on fire"] {
            assert!(check("pressure_sensor", CommandName::SetStatus, json!({"status": word})).is_err());
        }
        assert!(check("pressure_sensor", CommandName::SetStatus, json!({"status": "maintenance"})).is_ok());
        assert!(check("pressure_sensor", CommandName::SetStatus, json!({})).is_err());
    }
}

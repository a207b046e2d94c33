//! One profile file: walked by hand, so that everything wrong in it is found in one go.

use std::time::Duration;

use floorgate_model::profile::{BUILT_IN_TYPES, CommandSpec, ParameterKind, ParameterSpec};
use floorgate_model::{CommandName, Profile};
use toml::{Table, Value};

use super::{DEADBAND_PERCENT_MAX, ProfileError, SAFETY_KEYS, TIMEOUT_MAX, TIMEOUT_MIN, WARNING_OFF_DELAY_MAX};

/// Longest name of a type or a parameter, bytes.
const NAME_MAX: usize = 64;
/// A warning of a type nobody based on another ends after this, as for the built-in sensors.
const WARNING_OFF_DELAY: Duration = Duration::from_secs(15);
/// And with this deadband, percent.
const DEADBAND_PERCENT: f64 = 2.0;

/// Reads the text of one file; `file` is only named in errors.
///
/// # Errors
/// Every [`ProfileError`] in it; one alone if it is not TOML.
pub fn parse(file: &str, text: &str) -> Result<Vec<Profile>, Vec<ProfileError>> {
    let mut errors = Errors { file, found: Vec::new() };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            errors.add(&format!("line {line}"), &error.message(), "TOML");
            return Err(errors.found);
        }
    };
    errors.unknown_keys("", &table, &["profile"]);
    let mut profiles = Vec::new();
    match table.get("profile") {
        Some(Value::Array(entries)) => {
            for (index, entry) in entries.iter().enumerate() {
                profiles.extend(errors.profile(&format!("profile[{index}]"), entry));
            }
        }
        Some(other) => errors.add("profile", other, "one or more [[profile]] tables"),
        None => {}
    }
    if errors.found.is_empty() { Ok(profiles) } else { Err(errors.found) }
}

/// A duration as the configuration writes it: a whole number with a unit, `"500ms"`, `"300s"`, `"5m"`, `"2h"`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3_600).map(Duration::from_secs),
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    !text.is_empty() && text.len() <= NAME_MAX && text.chars().all(allowed)
}

/// However it is spelt: a device may not care for case, nor for `-` or `.` instead of `_`.
fn is_safety_key(name: &str) -> bool {
    SAFETY_KEYS.contains(&name.to_ascii_lowercase().replace(['-', '.'], "_").as_str())
}

/// Collects what is wrong; every method says where, and goes on with what it has.
struct Errors<'a> {
    file: &'a str,
    found: Vec<ProfileError>,
}

impl Errors<'_> {
    fn add(&mut self, key: &str, value: &impl ToString, allowed: &str) {
        let mut value = value.to_string();
        if let Some((cut, _)) = value.char_indices().nth(80) {
            value.truncate(cut);
            value.push('…');
        }
        let (file, key, allowed) = (self.file.to_owned(), key.to_owned(), allowed.to_owned());
        self.found.push(ProfileError { file, key, value, allowed });
    }

    fn unknown_keys(&mut self, path: &str, table: &Table, known: &[&str]) {
        for (key, value) in table.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            self.add(&path, &format!("not a key here (its value is {value})"), &known.join(", "));
        }
    }

    fn table<'t>(&mut self, path: &str, value: &'t Value) -> Option<&'t Table> {
        if !value.is_table() {
            self.add(path, value, "a table");
        }
        value.as_table()
    }

    fn profile(&mut self, path: &str, value: &Value) -> Option<Profile> {
        let table = self.table(path, value)?;
        self.unknown_keys(
            path,
            table,
            &["device_type", "based_on", "deadband_percent", "warning_off_delay", "commands"],
        );
        let device_type = self.device_type(path, table);
        let mut profile = self.base(path, table)?;
        if let Some(value) = table.get("deadband_percent") {
            let wanted = format!("a number from 0 to {DEADBAND_PERCENT_MAX}");
            match number(value).filter(|percent| (0.0..=DEADBAND_PERCENT_MAX).contains(percent)) {
                Some(percent) => profile.deadband_percent = percent,
                None => self.add(&format!("{path}.deadband_percent"), value, &wanted),
            }
        }
        let delay = self.duration(path, table, "warning_off_delay", Duration::ZERO, WARNING_OFF_DELAY_MAX);
        profile.warning_off_delay = delay.unwrap_or(profile.warning_off_delay);
        if let Some(commands) = table.get("commands") {
            let path = format!("{path}.commands");
            for (name, command) in self.table(&path, commands)? {
                self.command(&format!("{path}.{name}"), name, command, &mut profile);
            }
        }
        profile.device_type = device_type?;
        Some(profile)
    }

    fn device_type(&mut self, path: &str, table: &Table) -> Option<String> {
        let key = format!("{path}.device_type");
        let allowed = "a name of letters, digits, `_`, `-` and `.`, at most 64";
        match table.get("device_type") {
            Some(Value::String(name)) if is_name(name) => return Some(name.clone()),
            Some(other) => self.add(&key, other, allowed),
            None => self.add(&key, &"missing", allowed),
        }
        None
    }

    /// What the file's words are laid over: a built-in profile, or one with nothing but `set_status`.
    fn base(&mut self, path: &str, table: &Table) -> Option<Profile> {
        if let Some(value) = table.get("based_on") {
            if let Some(profile) = value.as_str().and_then(Profile::built_in) {
                return Some(profile);
            }
            // Goes on without a base, to find what else is wrong.
            self.add(&format!("{path}.based_on"), value, &BUILT_IN_TYPES.join(", "));
        }
        let mut profile = Profile::built_in(BUILT_IN_TYPES[0])?;
        profile.commands.retain(|name, _| *name == CommandName::SetStatus);
        profile.deadband_percent = DEADBAND_PERCENT;
        profile.warning_off_delay = WARNING_OFF_DELAY;
        Some(profile)
    }

    fn command(&mut self, path: &str, name: &str, value: &Value, profile: &mut Profile) {
        let Some(name) = name.parse().ok().filter(|name| *name != CommandName::SetStatus) else {
            let allowed = "recalibrate, reboot, update_config (set_status is the same for every type)";
            self.add(path, &"not a command that a profile describes", allowed);
            return;
        };
        let Some(table) = self.table(path, value) else { return };
        let wrong_before = self.found.len();
        self.unknown_keys(path, table, &["timeout", "idempotent", "parameters"]);
        let mut spec = profile.commands.remove(&name).unwrap_or_else(|| CommandSpec {
            parameters: std::collections::BTreeMap::new(),
            needs_a_parameter: name == CommandName::UpdateConfig,
            timeout: name.default_timeout(),
            idempotent: name == CommandName::UpdateConfig,
        });
        spec.timeout = self.duration(path, table, "timeout", TIMEOUT_MIN, TIMEOUT_MAX).unwrap_or(spec.timeout);
        spec.idempotent = self.boolean(path, table, "idempotent").unwrap_or(spec.idempotent);
        if let Some(parameters) = table.get("parameters") {
            let path = format!("{path}.parameters");
            for (parameter, value) in self.table(&path, parameters).into_iter().flatten() {
                let parsed = self.parameter(&format!("{path}.{parameter}"), parameter, value);
                spec.parameters.extend(parsed.map(|parsed| (parameter.clone(), parsed)));
            }
        }
        let most = floorgate_model::command::PARAMETERS_MAX;
        if spec.parameters.len() > most {
            let found = format!("{} parameters", spec.parameters.len());
            self.add(&format!("{path}.parameters"), &found, &format!("at most {most}"));
        }
        if name == CommandName::UpdateConfig && spec.parameters.is_empty() && self.found.len() == wrong_before {
            self.add(&format!("{path}.parameters"), &"empty", "at least one parameter that may be changed");
        }
        profile.commands.insert(name, spec);
    }

    fn parameter(&mut self, path: &str, name: &str, value: &Value) -> Option<ParameterSpec> {
        if is_safety_key(name) {
            let allowed = "any name but a safety key; those are set at the device alone";
            self.add(path, &"a safety key", allowed);
            return None;
        }
        if !is_name(name) {
            self.add(path, &format!("{name:?}"), "a name of letters, digits, `_`, `-` and `.`, at most 64");
            return None;
        }
        let table = self.table(path, value)?;
        let required = self.boolean(path, table, "required").unwrap_or(false);
        let type_key = format!("{path}.type");
        let kind = match table.get("type").map(|word| (word, word.as_str())) {
            Some((_, Some("number"))) => self.number_kind(path, table),
            Some((_, Some("integer"))) => self.integer_kind(path, table),
            Some((_, Some("choice"))) => self.choice_kind(path, table),
            Some((_, Some("boolean"))) => {
                self.unknown_keys(path, table, &["type", "required"]);
                Some(ParameterKind::Boolean)
            }
            Some((other, _)) => {
                self.add(&type_key, other, "number, integer, choice, boolean");
                None
            }
            None => {
                self.add(&type_key, &"missing", "number, integer, choice, boolean");
                None
            }
        };
        kind.map(|kind| ParameterSpec { kind, required })
    }

    fn number_kind(&mut self, path: &str, table: &Table) -> Option<ParameterKind> {
        self.unknown_keys(path, table, &["type", "min", "max", "required"]);
        let min = self.bound(path, table, "min", number, "a number");
        let max = self.bound(path, table, "max", number, "a number");
        let (min, max) = (min?, max?);
        self.ordered(path, min <= max, min, max)?;
        Some(ParameterKind::Number { min, max })
    }

    fn integer_kind(&mut self, path: &str, table: &Table) -> Option<ParameterKind> {
        self.unknown_keys(path, table, &["type", "min", "max", "required"]);
        let min = self.bound(path, table, "min", Value::as_integer, "a whole number");
        let max = self.bound(path, table, "max", Value::as_integer, "a whole number");
        let (min, max) = (min?, max?);
        self.ordered(path, min <= max, min, max)?;
        Some(ParameterKind::Integer { min, max })
    }

    fn choice_kind(&mut self, path: &str, table: &Table) -> Option<ParameterKind> {
        self.unknown_keys(path, table, &["type", "values", "required"]);
        let key = format!("{path}.values");
        let allowed = "one or more texts, each once";
        let Some(value) = table.get("values") else {
            self.add(&key, &"missing", allowed);
            return None;
        };
        let words: Option<Vec<String>> =
            value.as_array().and_then(|values| values.iter().map(|word| word.as_str().map(str::to_owned)).collect());
        let distinct = |words: &Vec<String>| words.iter().collect::<std::collections::BTreeSet<_>>().len();
        let words = words.filter(|words| !words.is_empty() && distinct(words) == words.len());
        if words.is_none() {
            self.add(&key, value, allowed);
        }
        words.map(ParameterKind::Choice)
    }

    fn bound<T>(
        &mut self,
        path: &str,
        table: &Table,
        name: &str,
        read: impl Fn(&Value) -> Option<T>,
        allowed: &str,
    ) -> Option<T> {
        let key = format!("{path}.{name}");
        let Some(value) = table.get(name) else {
            self.add(&key, &"missing", allowed);
            return None;
        };
        let bound = read(value);
        if bound.is_none() {
            self.add(&key, value, allowed);
        }
        bound
    }

    fn ordered(&mut self, path: &str, ordered: bool, min: impl ToString, max: impl ToString) -> Option<()> {
        if !ordered {
            self.add(&format!("{path}.min"), &min, &format!("at most `max`, {}", max.to_string()));
        }
        ordered.then_some(())
    }

    fn duration(&mut self, path: &str, table: &Table, name: &str, min: Duration, max: Duration) -> Option<Duration> {
        let value = table.get(name)?;
        let read = value.as_str().and_then(duration).filter(|duration| (min..=max).contains(duration));
        if read.is_none() {
            let allowed = format!("a duration like \"90s\" or \"5m\", from {} s to {} s", min.as_secs(), max.as_secs());
            self.add(&format!("{path}.{name}"), value, &allowed);
        }
        read
    }

    fn boolean(&mut self, path: &str, table: &Table, name: &str) -> Option<bool> {
        let value = table.get(name)?;
        if !value.is_bool() {
            self.add(&format!("{path}.{name}"), value, "true, false");
        }
        value.as_bool()
    }
}

/// A finite number, written with or without a decimal point.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number).filter(|number| number.is_finite()),
        // Through text, because beyond 2^53 a cast would round silently.
        Value::Integer(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

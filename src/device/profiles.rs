//! Profiles: what each type of device allows, built in and from `profiles.d/*.toml`.
//!
//! [`parse`] turns the text of one file into profiles or into **all** that is wrong with it: every error names file,
//! key, value and what is allowed. [`combine`] does so for all files, and refuses two profiles of one type. Unknown keys
//! are errors: a misspelt `idempotnet` must not silently mean "not idempotent". The format is in `docs/profiles.md`.
//!
//! What no file can do:
//!
//! * open a safety key ([`SAFETY_KEYS`]): those are set at the device, by someone who stands beside it;
//! * change or remove `set_status`, which is the gateway's own and the same for every type;
//! * give a number without a range.

mod parse;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use floorgate_model::Profile;
use floorgate_model::profile::BUILT_IN_TYPES;

pub use parse::{duration, parse};

/// Parameters that no profile opens and no command writes.
pub const SAFETY_KEYS: [&str; 5] =
    ["emergency_shutoff", "control_mode", "max_position_pct", "calibration_date", "max_connections"];
/// A device gets at least this long to finish; less is surely a mistake.
pub const TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// And at most this long: meanwhile every other command to it waits.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);
/// Longest delay before a warning ends; a longer one is refused, because it hides that all is well again.
pub const WARNING_OFF_DELAY_MAX: Duration = Duration::from_secs(3_600);
/// Widest deadband, percent of the threshold; a wider one is refused.
pub const DEADBAND_PERCENT_MAX: f64 = 50.0;

/// One thing that is wrong in a profile file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{file}`: `{key}` is {value}; allowed: {allowed}")]
pub struct ProfileError {
    /// Which file.
    pub file: String,
    /// Which key, with its path (`profile[0].commands.reboot.timeout`).
    pub key: String,
    /// What stands there, shortened.
    pub value: String,
    /// What may stand there.
    pub allowed: String,
}

/// All profiles by device type. Cheap to clone; all clones show the same, and a reload replaces all of it at once.
#[derive(Clone)]
pub struct Profiles(Arc<RwLock<BTreeMap<String, Arc<Profile>>>>);

impl Profiles {
    /// The built-in profiles, and `more` beside or in place of them.
    #[must_use]
    pub fn new(more: Vec<Profile>) -> Self {
        Self(Arc::new(RwLock::new(with_built_in(more))))
    }

    /// Replaces what was given as `more`; what is not in it any more is gone, and the built-in one shows again.
    pub fn replace(&self, more: Vec<Profile>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = with_built_in(more);
    }

    /// The profile of a type, if there is one.
    #[must_use]
    pub fn get(&self, device_type: &str) -> Option<Arc<Profile>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(device_type).cloned()
    }

    /// Every type that has a profile, in order.
    #[must_use]
    pub fn types(&self) -> Vec<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }
}

impl Default for Profiles {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl fmt::Debug for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.types()).finish()
    }
}

fn with_built_in(more: Vec<Profile>) -> BTreeMap<String, Arc<Profile>> {
    let built_in = BUILT_IN_TYPES.into_iter().filter_map(Profile::built_in);
    built_in.chain(more).map(|profile| (profile.device_type.clone(), Arc::new(profile))).collect()
}

/// Reads the texts of several files, given as (path, text).
///
/// # Errors
/// Every [`ProfileError`] of every file, and one for each type that is described twice.
pub fn combine<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Vec<Profile>, Vec<ProfileError>> {
    let (mut profiles, mut errors) = (Vec::new(), Vec::new());
    let mut described: BTreeMap<String, String> = BTreeMap::new();
    for (file, text) in files {
        match parse(file, text) {
            Ok(parsed) => {
                for (index, profile) in parsed.into_iter().enumerate() {
                    match described.insert(profile.device_type.clone(), file.to_owned()) {
                        Some(before) => errors.push(ProfileError {
                            file: file.to_owned(),
                            key: format!("profile[{index}].device_type"),
                            value: format!("{:?}, which `{before}` describes too", profile.device_type),
                            allowed: "one profile a type".to_owned(),
                        }),
                        None => profiles.push(profile),
                    }
                }
            }
            Err(wrong) => errors.extend(wrong),
        }
    }
    if errors.is_empty() { Ok(profiles) } else { Err(errors) }
}

#[cfg(test)]
mod tests;

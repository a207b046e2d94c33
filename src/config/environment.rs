//! The environment variables floorgate looks at, read once, here alone.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Variables that are read; nothing else of the environment matters.
pub const VARIABLES: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SHARED_CREDENTIALS_FILE",
    // For tests alone; a daemon built without the feature does not even look.
    #[cfg(feature = "fail_points")]
    "FLOORGATE_FAIL_POINT",
    "FLOORGATE_LOG",
    "HOME",
    "JOURNAL_STREAM",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
];

/// A view of the environment; tests make their own.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

/// Shows names alone: values may be secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// The environment of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self::from_pairs(VARIABLES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))))
    }

    /// An environment of given variables.
    pub fn from_pairs<K: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// A variable that is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The folder systemd keeps for the service while it runs and is started again; the first, if there are several.
    #[must_use]
    pub fn runtime_directory(&self) -> Option<PathBuf> {
        self.get("RUNTIME_DIRECTORY").and_then(|list| list.split(':').next()).map(PathBuf::from)
    }

    /// The same with a word for everything that AWS may be told by variables, where nothing is said: for judging the
    /// configuration of a service whose variables are not known, never for running it.
    #[must_use]
    pub fn assuming_aws(&self) -> Self {
        let mut assumed = self.clone();
        for (name, value) in
            [("AWS_REGION", "us-east-1"), ("AWS_ACCESS_KEY_ID", "assumed"), ("AWS_SECRET_ACCESS_KEY", "assumed")]
        {
            assumed.0.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        assumed
    }

    /// The folder systemd keeps for the service; it lists several with colons, the first is ours.
    pub(super) fn state_directory(&self) -> Option<PathBuf> {
        self.get("STATE_DIRECTORY").and_then(|list| list.split(':').next()).map(PathBuf::from)
    }
}
